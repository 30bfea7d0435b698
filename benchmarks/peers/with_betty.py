"""Betty: an `ImplicitProblem` for each level under its `Engine`; `Config(type=...)` names the hypergradient.

Its package declares Python below 3.11, which nothing in it needs; pip is called so that it installs it anyway.
"""

import logging
from importlib.metadata import version
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from betty.configs import Config, EngineConfig  # pyright: ignore[reportMissingImports]
from betty.engine import Engine  # pyright: ignore[reportMissingImports]
from betty.logging.logger_base import get_logger  # pyright: ignore[reportMissingImports]
from betty.problems import ImplicitProblem  # pyright: ignore[reportMissingImports]

from benchmarks.peers import torch_problems
from benchmarks.peers.torch_problems import Tensors, adam, array, versions, warm_up
from benchmarks.peers.works import Arrays

__all__ = ["make", "warm_up"]

NEVER = 10**9


class UpperLevel(ImplicitProblem):
    """f, at the features of the current u."""

    work: torch_problems.Problem
    seen: list[np.ndarray] | None = None

    def training_step(self, batch: Any) -> Any:
        """The upper loss; afterwards the lower loss is differentiated in u."""
        if not self.lower.once:
            self.lower.kept = None
        return self.lower.module("f", self.lower.made_of_u("f"))

    def get_batch(self) -> Any:
        """The data are the work's."""
        return ()

    def grad_callback(self) -> None:
        """Keep the first gradient if it is requested."""
        if self.seen is not None and not self.seen:
            self.seen += [array(x.grad) for x in self.module.values]

    def param_callback(self) -> None:
        """Projection."""
        self.work.project(list(self.module.values))


class LowerLevel(ImplicitProblem):
    """g. What depends on u alone is computed once for all moves of v.

    With `once`, it is kept with its history, also for the derivatives in u. "darts" and "sama" use that history twice,
    so there it is recomputed.
    """

    work: torch_problems.Problem
    kept: Tensors | None = None
    once = True

    def made_of_u(self, loss: str = "g") -> Tensors:
        """What a loss computes from u alone; what both losses do, if it is computed only once."""
        if self.kept is not None:
            return self.kept
        return self.work.shared(list(self.upper.module.values), "fg" if self.once else loss)

    def on_inner_loop_start(self) -> None:
        """Compute it, and set v to its start."""
        self.kept = None
        with torch.set_grad_enabled(self.once):
            self.kept = self.made_of_u()
        if self.work.restarts:
            self.module.put(self.work.start(self.kept))

    def training_step(self, batch: Any) -> Any:
        """The lower loss."""
        return self.module("g", self.made_of_u())

    def get_batch(self) -> Any:
        """The data are the work's."""
        return ()


class Runner:
    """An engine."""

    def __init__(self, work: str, arrays: Arrays, method: str, settings: dict[str, Any]):
        self.problem, self.method, self.settings = torch_problems.PROBLEMS[work](arrays), method, settings
        self.versions = versions(**{"betty-ml": version("betty-ml")})

    def start(self, moves: int) -> None:
        """New problems and a new engine."""
        get_logger().setLevel(logging.WARNING)
        settings = self.settings
        steps = settings.get("solve_steps", 1)
        options: dict[str, Any] = {
            "late-cg": {"type": "cg", "cg_iterations": steps},
            "neumann": {
                "type": "neumann",
                "neumann_iterations": steps,
                "neumann_alpha": settings.get("scale", 1.0),
            },
            "one-step": {"type": "darts"},
            "sama": {"type": "sama"},
        }[self.method]
        lower, upper = torch_problems.Lower(self.problem), torch_problems.Upper(self.problem)
        self.lower = LowerLevel(
            "lower",
            Config(unroll_steps=moves, **options),
            lower,
            torch.optim.SGD(lower.parameters(), settings["lower_rate"]),
        )
        self.upper_level = UpperLevel(
            "upper", Config(retain_graph=True), upper, adam(upper.parameters(), settings["upper_rate"])
        )
        self.lower.work = self.upper_level.work = self.problem
        self.lower.once = self.method not in ("one-step", "sama")
        self.engine = Engine(
            [self.upper_level, self.lower],
            EngineConfig(valid_step=NEVER),
            {"u2l": {self.upper_level: [self.lower]}, "l2u": {self.lower: [self.upper_level]}},
        )
        self.moves = moves

    def advance(self, iterations: int) -> None:
        """T steps of the engine each, of which the last also moves u."""
        self.engine.train_iters = iterations * self.moves
        self.engine.run()

    def upper(self) -> list[np.ndarray]:
        """U."""
        return [array(x) for x in self.upper_level.module.values]

    def direction(self) -> list[np.ndarray]:
        """The first gradient."""
        self.upper_level.seen = seen = []
        self.advance(1)
        self.upper_level.seen = None
        return seen


def make(work: str, arrays: Arrays, method: str, settings: dict[str, Any]) -> Runner:
    """A row."""
    return Runner(work, arrays, method, settings)

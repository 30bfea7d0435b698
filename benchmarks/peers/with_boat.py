"""BOAT: `Problem` with gradient mapping NGD and as hypergradient RAD (reverse mode) or CG, or with PGDO or MESO.

Its losses are found by their dotted names, and what is computed from u alone is passed with the data.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boat_torch as boat  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.peers import torch_problems
from benchmarks.peers.torch_problems import Tensors, adam, array, versions, warm_up
from benchmarks.peers.works import Arrays

__all__ = ["lower_loss", "make", "upper_loss", "warm_up"]


def _loss(name: str, feed: dict[str, Any], lower: Any, params: Tensors | None) -> Any:
    return lower(name, feed["shared"]) if params is None else lower(name, feed["shared"], params=params)


def upper_loss(feed: dict[str, Any], upper: Any, lower: Any, params: Tensors | None = None) -> Any:
    """F."""
    return _loss("f", feed, lower, params)


def lower_loss(feed: dict[str, Any], upper: Any, lower: Any, params: Tensors | None = None) -> Any:
    """G."""
    return _loss("g", feed, lower, params)


class Runner:
    """A problem of BOAT's."""

    def __init__(self, work: str, arrays: Arrays, method: str, settings: dict[str, Any]):
        self.problem, self.method, self.settings = torch_problems.PROBLEMS[work](arrays), method, settings
        self.versions = versions(**{"boat-torch": version("boat-torch")})
        self.folder = tempfile.TemporaryDirectory()

    def start(self, moves: int) -> None:
        """New modules and a new problem."""
        self.upper_module = torch_problems.Upper(self.problem)
        self.lower = torch_problems.Lower(self.problem)
        self.config: dict[str, Any] = {
            "fo_op": None,
            "fo_ol_batch_input": False,
            "gm_op": None,
            "na_op": None,
            "lower_level_model": self.lower,
            "upper_level_model": self.upper_module,
            "lower_level_var": list(self.lower.parameters()),
            "upper_level_var": list(self.upper_module.parameters()),
            "lower_level_opt": torch.optim.SGD(self.lower.parameters(), self.settings["lower_rate"]),
            "upper_level_opt": adam(self.upper_module.parameters(), self.settings["upper_rate"]),
            "lower_iters": moves,
            "device": "cpu",
            "accumulate_grad": False,
            "return_grad": False,
            "copy_last_param": True,
            "loss_log_path": str(Path(self.folder.name) / "losses.json"),
            "GDA": {"alpha_init": 0.0, "alpha_decay": 0.5},
            "RGT": {"truncate_iter": 0},
        }
        self.config |= self._operations()
        here = __name__ if __name__ != "__main__" else "benchmarks.peers.with_boat"
        losses = {f"{name}_level_loss": {"function": f"{here}.{name}_loss"} for name in ("upper", "lower")}
        self.boat = boat.Problem(self.config, losses)
        self.boat.build_ll_solver()
        self.boat.build_ul_solver()
        self.done = 0

    def _operations(self) -> dict[str, Any]:
        """The method, and its settings."""
        settings = self.settings
        rate = settings["lower_rate"]
        match self.method:
            case "unrolled":
                return {"gm_op": ["NGD"], "na_op": ["RAD"]}
            case "plain-cg":
                return {"gm_op": ["NGD"], "na_op": ["CG"], "CG": {"k": settings["solve_steps"], "tolerance": 0.0}}
            case "value-penalty":
                gamma = settings["gamma"]
                options = {"y_hat_lr": rate, "gamma_init": gamma, "gamma_max": gamma, "gamma_argmax_step": 1}
                return {"fo_op": "PGDO", "PGDO": options | {"update_y_ahead": False, "penalty": "difference"}}
            case "moreau":  # its second optimizer is not used
                options = {"eta": rate, "gamma_1": 1 / settings["radius"], "c0": settings["weight"]}
                return {"fo_op": "MESO", "MESO": options | {"y_hat_lr": rate}}
        raise ValueError(f"BOAT has no row of {self.method!r} here")

    def _iteration(self) -> Any:
        s = self.problem.shared(list(self.upper_module.values))
        if self.problem.restarts:
            self.lower.put(self.problem.start(s))
        self.done += 1
        return self.boat.run_iter({"shared": s}, {"shared": s}, self.done)

    def advance(self, iterations: int) -> None:
        """Iterations of BOAT's."""
        for _ in range(iterations):
            self._iteration()
            self.problem.project(list(self.upper_module.values))

    def upper(self) -> list[np.ndarray]:
        """U."""
        return [array(x) for x in self.upper_module.values]

    def direction(self) -> list[np.ndarray]:
        """The gradient, which it returns on request."""
        self.config["return_grad"] = True
        gradients, _ = self._iteration()
        self.config["return_grad"] = False
        return [array(x) for x in gradients]


def make(work: str, arrays: Arrays, method: str, settings: dict[str, Any]) -> Runner:
    """A row."""
    return Runner(work, arrays, method, settings)

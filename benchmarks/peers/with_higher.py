"""higher: an inner loop by `innerloop_ctx`, differentiated as a whole."""

from importlib.metadata import version
from typing import Any

import higher  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.peers.torch_problems import Lower, Runner, Tensors, gradient, versions, warm_up
from benchmarks.peers.works import Arrays

__all__ = ["make", "warm_up"]


class Unrolled(Runner):
    """T moves of SGD, then the reverse pass through all of them."""

    def reset(self, moves: int) -> None:
        """A new module, its parameters where v starts."""
        self.lower = Lower(self.problem)
        self.descent = torch.optim.SGD(self.lower.parameters(), self.settings["lower_rate"])

    def iteration(self) -> Tensors:
        """The derivative of f(u, v_T(u))."""
        s = self.problem.shared(self.u)
        if self.problem.restarts:
            self.lower.put(self.problem.start(s))
        with higher.innerloop_ctx(self.lower, self.descent) as (lower, descent):
            for _ in range(self.moves):
                descent.step(lower("g", s))
            found = gradient(lower("f", s), self.u)
            self.lower.put(list(lower.parameters()))
        return found


def make(work: str, arrays: Arrays, method: str, settings: dict[str, Any]) -> Runner:
    """A row."""
    runner = Unrolled(work, arrays, method, settings)
    runner.versions = versions(higher=version("higher"))
    return runner

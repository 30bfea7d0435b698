"""TorchOpt: its differentiable MetaSGD, and its implicit differentiation with conjugate gradients."""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torchopt  # pyright: ignore[reportMissingImports]
from torchopt.diff.implicit import custom_root  # pyright: ignore[reportMissingImports]

from benchmarks.peers.torch_problems import Lower, Runner, Tensors, detached, gradient, versions, warm_up
from benchmarks.peers.works import Arrays

__all__ = ["make", "warm_up"]


class Unrolled(Runner):
    """T moves by MetaSGD, then the reverse pass through all of them."""

    def reset(self, moves: int) -> None:
        """A new module, its parameters where v starts."""
        self.lower = Lower(self.problem)
        self.descent = torchopt.MetaSGD(self.lower, lr=self.settings["lower_rate"])

    def iteration(self) -> Tensors:
        """The derivative of f(u, v_T(u))."""
        s = self.problem.shared(self.u)
        if self.problem.restarts:
            self.lower.put(self.problem.start(s))
        for _ in range(self.moves):
            self.descent.step(self.lower("g", s))
        found = gradient(self.lower("f", s), self.u)
        torchopt.stop_gradient(self.lower)
        torchopt.stop_gradient(self.descent)
        return found


class Implicit(Runner):
    """T moves by torchopt.sgd under `custom_root`, whose backward pass solves the linear system by `solve_cg`."""

    def reset(self, moves: int) -> None:
        """Put v back."""
        self.v = tuple(x.clone() for x in self.problem.v)
        problem, descent = self.problem, torchopt.sgd(lr=self.settings["lower_rate"])
        steps, damping = self.settings["solve_steps"], self.settings["damping"]
        solve = torchopt.linear_solve.solve_cg(maxiter=steps, rtol=1e-6, ridge=damping or None)

        def optimality(v: Any, s: Any) -> Any:
            return torch.func.grad(lambda v: problem.g(list(s), list(v)))(v)

        @custom_root(optimality, argnums=1, solve=solve)
        def descended(v: Any, s: Any) -> Any:
            state = descent.init(v)
            for _ in range(moves):
                v = tuple(x.detach().requires_grad_() for x in v)
                with torch.enable_grad():
                    slope = torch.autograd.grad(problem.g(detached(s), list(v)), v)
                updates, state = descent.update(slope, state)
                v = torchopt.apply_updates(tuple(detached(v)), updates, inplace=False)
            return tuple(detached(v))

        self.descended = descended

    def iteration(self) -> Tensors:
        """The hypergradient by implicit differentiation at v_T."""
        s = self.problem.shared(self.u)
        start = tuple(self.problem.start(s)) if self.problem.restarts else self.v
        v = self.descended(start, tuple(s))
        found = gradient(self.problem.f(s, list(v)), self.u)
        self.v = tuple(detached(v))
        return found


def make(work: str, arrays: Arrays, method: str, settings: dict[str, Any]) -> Runner:
    """A row."""
    runner = {"unrolled": Unrolled, "cg": Implicit}[method](work, arrays, method, settings)
    runner.versions = versions(torchopt=torchopt.__version__)
    return runner

"""PyTorch alone: Penalty written out, its second derivatives by a second reverse pass or by torch.func."""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from benchmarks.peers.torch_problems import Runner, Tensors, adam, detached, gradient, warm_up
from benchmarks.peers.works import Arrays

__all__ = ["make", "warm_up"]


class Penalty(Runner):
    """What both variants share: weights, multipliers, the optimizer of v."""

    def reset(self, moves: int) -> None:
        """Put v, its optimizer and the multipliers back."""
        self.v = [x.clone().requires_grad_() for x in self.problem.v]
        rate = self.settings["lower_rate"]
        sgd = self.settings.get("lower") != "adam"
        self.lower = torch.optim.SGD(self.v, rate) if sgd else adam(self.v, rate)
        self.nu = [torch.zeros_like(x) for x in self.v]
        self.gamma, self.lam, self.share = (self.settings[name] for name in ("gamma", "lam", "nu"))

    def iteration(self) -> Tensors:
        """T moves of v; the gradient of the penalty function in u; the multipliers' move."""
        shared = self.problem.shared(self.u)
        s = detached(shared)
        if self.problem.restarts:
            with torch.no_grad():
                for x, y in zip(self.v, self.problem.start(s), strict=True):
                    x.copy_(y)
        for _ in range(self.moves):
            for x, d in zip(self.v, self.lower_direction(s), strict=True):
                x.grad = d
            self.lower.step()
        direction, slope = self.upper_direction(shared)
        if self.share > 0:
            for m, d in zip(self.nu, slope, strict=True):
                m.add_(d, alpha=self.share * self.gamma)
        return direction

    def along(self, slope: Tensors) -> Tensors:
        """P = gamma grad_v g + nu."""
        return [m + self.gamma * d for m, d in zip(self.nu, slope, strict=True)]

    def lower_direction(self, s: Tensors) -> Tensors:
        """grad_v f + along(p)[1] + lam grad_v g."""
        raise NotImplementedError

    def upper_direction(self, s: Tensors) -> tuple[Tensors, Tensors]:
        """grad_u f + along(p)[0], and grad_v g; s has its history."""
        raise NotImplementedError


class DoubleBackward(Penalty):
    """By torch.autograd: a reverse pass through the gradient."""

    def lower_direction(self, s: Tensors) -> Tensors:
        """The direction of v."""
        f = torch.autograd.grad(self.problem.f(s, self.v), self.v)
        g = torch.autograd.grad(self.problem.g(s, self.v), self.v, create_graph=True)
        slope = detached(list(g))
        along = torch.autograd.grad(g, self.v, self.along(slope))
        return [a + b + self.lam * c for a, b, c in zip(f, along, slope, strict=True)]

    def upper_direction(self, s: Tensors) -> tuple[Tensors, Tensors]:
        """The direction of u."""
        f = self.problem.f(s, self.v)
        g = torch.autograd.grad(self.problem.g(s, self.v), self.v, create_graph=True)
        slope = detached(list(g))
        return gradient([f, *g], self.u, [torch.ones_like(f), *self.along(slope)]), slope


class ForwardOverReverse(Penalty):
    """By torch.func: a forward pass through the gradient; p is needed beforehand, so g has its gradient taken twice."""

    def lower_direction(self, s: Tensors) -> Tensors:
        """The direction of v."""
        v = detached(self.v)
        f = torch.func.grad(lambda v: self.problem.f(s, v))(v)
        slope_of = torch.func.grad(lambda v: self.problem.g(s, v))
        slope, along = torch.func.jvp(slope_of, (v,), (self.along(slope_of(v)),))
        return [a + b + self.lam * c for a, b, c in zip(f, along, slope, strict=True)]

    def upper_direction(self, s: Tensors) -> tuple[Tensors, Tensors]:
        """The direction of u."""
        u, v, shared = detached(self.u), detached(self.v), self.problem.shared
        f = torch.func.grad(lambda u: self.problem.f(shared(u, "f"), v))(u)
        kept = detached(s)
        slope = torch.func.grad(lambda v: self.problem.g(kept, v))(v)

        def in_u(v: Tensors) -> Any:
            return torch.func.grad(lambda u: self.problem.g(shared(u, "g"), v))(u)

        along = torch.func.jvp(in_u, (v,), (self.along(slope),))[1]
        return [a + b for a, b in zip(f, along, strict=True)], slope


def make(work: str, arrays: Arrays, method: str, settings: dict[str, Any]) -> Runner:
    """A row."""
    ways = {"double backward": DoubleBackward, "forward over reverse": ForwardOverReverse}
    return ways[settings["variant"]](work, arrays, method, settings)

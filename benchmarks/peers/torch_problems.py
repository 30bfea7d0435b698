"""The works in PyTorch, for the hand-written rows and for PyTorch's libraries; it needs only PyTorch.

f and g take as argument what depends on u alone, from `shared`. So features are computed once in an upper iteration and
not in each lower move, if a library allows them to be passed.
"""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.peers.works import FEATURES, HEADS, L2, QUERIES, SCALE, SHOT, WAY, Arrays, as_stored, leaves

Tensors = list[Any]


def warm_up(threads: int) -> None:
    """Pin the threads and start them, and make PyTorch load what it loads at first use."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    x = torch.ones(512, 512, requires_grad=True)
    (torch.mm(x, x) / 512).sum().backward()
    adam([x], 1e-3).step()
    torch.func.jvp(torch.func.grad(lambda x: (x**2).sum()), (x.detach(),), (x.detach(),))


def versions(**others: str) -> dict[str, str]:
    """The versions that run."""
    return {"torch": torch.__version__} | others


def tensor(x: np.ndarray) -> Any:
    """A tensor of an array; convolutions in PyTorch's layout, (out, in, height, width)."""
    found = torch.from_numpy(x.transpose(3, 2, 0, 1).copy() if is_convolution(x) else x.copy())
    return found


def is_convolution(x: Any) -> bool:
    """Whether these are a convolution's weights; the heads have three axes, and pictures are not variables."""
    return x.ndim == 4


def array(x: Any) -> np.ndarray:
    """The reverse of `tensor`."""
    found = x.detach()
    return as_stored((found.permute(2, 3, 1, 0) if is_convolution(found) else found).numpy().copy())


class Problem:
    """The synthetic example, and what the other works have in common.

    Attributes:
        u, v: lists of tensors, where they start.
        restarts: whether v starts again in each upper iteration, at `start`.
    """

    restarts = False

    def __init__(self, arrays: Arrays):
        self.u, self.v = ([tensor(x) for x in leaves(arrays, name)] for name in "uv")

    def __deepcopy__(self, memo: Any) -> "Problem":
        """Itself: a library that copies a module copies its parameters, not the data."""
        return self

    def shared(self, u: Tensors, losses: str = "fg") -> Tensors:
        """What the requested losses compute from u alone."""
        return list(u)

    def f(self, s: Tensors, v: Tensors) -> Any:
        """The upper loss."""
        return (s[0] ** 2).sum() + (v[0] ** 2).sum()

    def g(self, s: Tensors, v: Tensors) -> Any:
        """The lower loss."""
        return ((1 - s[0] - v[0]) ** 2).sum()

    def start(self, s: Tensors) -> Tensors:
        """Where v starts in an upper iteration."""
        raise NotImplementedError

    def project(self, u: Tensors) -> None:
        """Put u into its set, in place."""


class Poisoning(Problem):
    """Minus the validation loss, under the loss of samples and points."""

    def __init__(self, arrays: Arrays):
        super().__init__(arrays)
        self.x, self.y, self.x_val, self.y_val, self.labels = (
            torch.from_numpy(arrays[name]) for name in ("x", "y", "x_val", "y_val", "labels")
        )
        self.part = len(self.labels) / (len(self.labels) + len(self.y))

    def f(self, s: Tensors, v: Tensors) -> Any:
        """The upper loss."""
        return -functional.cross_entropy(functional.linear(self.x_val, v[0]), self.y_val)

    def g(self, s: Tensors, v: Tensors) -> Any:
        """The lower loss."""
        clean = functional.cross_entropy(functional.linear(self.x, v[0]), self.y)
        added = functional.cross_entropy(functional.linear(s[0], v[0]), self.labels)
        return (1 - self.part) * clean + self.part * added + L2["poisoning"] / 2 * (v[0] ** 2).sum()

    def project(self, u: Tensors) -> None:
        """Pixels lie in 0..1."""
        with torch.no_grad():
            u[0].clamp_(0, 1)


class Denoising(Problem):
    """The loss on clean samples, under that of the others by their weights; the network is a subclass's."""

    l2 = 0.0

    def __init__(self, arrays: Arrays):
        super().__init__(arrays)
        self.x, self.y, self.x_val, self.y_val = (
            torch.from_numpy(arrays[name]) for name in ("x", "y", "x_val", "y_val")
        )

    def network(self, v: Tensors, x: Any) -> Any:
        """Logits."""
        raise NotImplementedError

    def f(self, s: Tensors, v: Tensors) -> Any:
        """The upper loss."""
        return functional.cross_entropy(self.network(v, self.x_val), self.y_val)

    def g(self, s: Tensors, v: Tensors) -> Any:
        """The lower loss."""
        losses = functional.cross_entropy(self.network(v, self.x), self.y, reduction="none")
        weights = (torch.tanh(s[0]) + 1) / 2
        matrices = sum((p**2).sum() for p in v if p.dim() > 1)
        return (weights * losses).sum() / weights.sum() + self.l2 / 2 * matrices


class MLP(Denoising):
    """One hidden layer."""

    l2 = L2["mlp"]

    def network(self, v: Tensors, x: Any) -> Any:
        """Logits."""
        hidden = functional.relu(torch.addmm(v[0], x, v[1]))
        return torch.addmm(v[2], hidden, v[3])


class MNIST(Denoising):
    """`bilevax.nn.mnist_network` without dropout. Bias and ReLU follow the pooling, with which they commute."""

    l2 = L2["mnist"]

    def __init__(self, arrays: Arrays):
        super().__init__(arrays)
        self.x, self.x_val = self.x[:, None], self.x_val[:, None]

    def network(self, v: Tensors, x: Any) -> Any:
        """Logits."""
        for bias, weight in (v[:2], v[2:4]):
            pooled = functional.max_pool2d(functional.conv2d(x, weight), 2)
            x = functional.relu(pooled + bias[:, None, None])
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order that the work's weights expect: cheap, and without arithmetic
        for bias, weight in (v[4:6], v[6:8]):
            x = functional.relu(torch.addmm(bias, x, weight))
        return torch.addmm(v[8], x, v[9])


class Transformer(Denoising):
    """One block of a transformer. Fused attention has no second derivatives on CPUs, so its products are written out.

    This is what each library unrolls.
    """

    l2 = L2["transformer"]

    def network(self, v: Tensors, x: Any) -> Any:
        """Logits."""
        attention, out, into, back, head = v

        def normalised(x: Any) -> Any:
            return functional.layer_norm(x, (FEATURES,))

        q, k, values = (normalised(x) @ attention).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        shares = torch.softmax(q @ k.transpose(-1, -2) * (FEATURES / HEADS) ** -0.5, -1)
        x = x + (shares @ values).transpose(1, 2).flatten(2) @ out
        x = x + functional.gelu(normalised(x) @ into, approximate="tanh") @ back
        return normalised(x).mean(1) @ head


class FewShot(Problem):
    """`bilevax.applications.fewshot.tasks`: cosine heads on the features of `omniglot_network`."""

    restarts = True

    def __init__(self, arrays: Arrays):
        super().__init__(arrays)
        self.support, self.queries = (torch.from_numpy(arrays[name]) for name in ("support", "queries"))
        self.labels = [torch.arange(WAY).repeat_interleave(n).repeat(len(self.support)) for n in (SHOT, QUERIES)]

    def features(self, u: Tensors, pictures: Any) -> Any:
        """(tasks, n, d) of (tasks, n, height, width), normalised over all of them; pooled before, which commutes."""
        x = pictures.flatten(0, 1)[:, None]
        last = len(u) - 2
        for i in range(0, len(u), 2):
            x = functional.conv2d(x, u[i + 1], padding=1)
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
            x = (functional.max_pool2d(x, 2) - mean) * torch.rsqrt(variance + 1e-5) + u[i][:, None, None]
            x = x if i == last else functional.relu(x)
        return x.reshape(*pictures.shape[:2], -1)

    def shared(self, u: Tensors, losses: str = "fg") -> Tensors:
        """The features of the support samples, for g, and of the queries, for f."""
        pictures = {"g": self.support, "f": self.queries}
        return [self.features(u, x) if loss in losses else None for loss, x in pictures.items()]

    def _scores(self, v: Tensors, features: Any) -> Any:
        # Heads first: their gradient then has their memory layout, which BOAT needs.
        return torch.bmm(unit(v[0]), (SCALE * unit(features)).transpose(1, 2)).transpose(1, 2)

    def f(self, s: Tensors, v: Tensors) -> Any:
        """The upper loss."""
        return functional.cross_entropy(self._scores(v, s[1]).reshape(-1, WAY), self.labels[1])

    def g(self, s: Tensors, v: Tensors) -> Any:
        """The lower loss: the sum over tasks of their means."""
        return len(self.support) * functional.cross_entropy(self._scores(v, s[0]).reshape(-1, WAY), self.labels[0])

    def start(self, s: Tensors) -> Tensors:
        """The means of the classes' features."""
        features = s[0].detach()
        return [unit(features.reshape(len(features), WAY, SHOT, -1).mean(2))]


def unit(x: Any) -> Any:
    """Vectors along the last axis, of length one."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(1e-19))


PROBLEMS = {
    "synthetic": Problem,
    "poisoning": Poisoning,
    "mlp": MLP,
    "mnist": MNIST,
    "fewshot": FewShot,
    "transformer": Transformer,
}


class Lower(torch.nn.Module):
    """v as the parameters of a module, for libraries that need one; called with "f" or "g" it returns that loss."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem = problem
        self.names = [f"v_{i}" for i in range(len(problem.v))]
        for name, x in zip(self.names, problem.v, strict=True):
            self.register_parameter(name, torch.nn.Parameter(x.clone()))

    def forward(self, loss: str, s: Tensors) -> Any:
        """F or g at the result of `shared`."""
        return getattr(self.problem, loss)(s, [getattr(self, name) for name in self.names])

    def put(self, v: Tensors) -> None:
        """Set the start of v."""
        with torch.no_grad():
            for name, x in zip(self.names, v, strict=True):
                getattr(self, name).copy_(x)


class Upper(torch.nn.Module):
    """u as the parameters of a module."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.values = torch.nn.ParameterList([torch.nn.Parameter(x.clone()) for x in problem.u])


def adam(parameters: Any, rate: float) -> Any:
    """Adam, by one fused call for all parameters."""
    return torch.optim.Adam(parameters, rate, fused=True)


def detached(tensors: Tensors) -> Tensors:
    """The same numbers without their history."""
    return [x.detach() for x in tensors]


class Runner:
    """What all PyTorch rows have in common: u, its optimizer, and its last gradient.

    A subclass gives `reset(moves)` and `iteration()`, which moves v and returns the gradient in u.
    """

    def __init__(self, work: str, arrays: Arrays, method: str, settings: dict[str, Any]):
        self.problem, self.method, self.settings = PROBLEMS[work](arrays), method, settings
        self.versions = versions()

    def start(self, moves: int) -> None:
        """Back to the start."""
        self.moves = moves
        self.u = [x.clone().requires_grad_() for x in self.problem.u]
        self.optimizer = adam(self.u, self.settings["upper_rate"])
        self.reset(moves)

    def reset(self, moves: int) -> None:
        """Put v back."""
        raise NotImplementedError

    def iteration(self) -> Tensors:
        """T moves of v; the gradient in u."""
        raise NotImplementedError

    def advance(self, iterations: int) -> None:
        """Upper iterations."""
        for _ in range(iterations):
            for x, gradient in zip(self.u, self.iteration(), strict=True):
                x.grad = gradient
            self.optimizer.step()
            self.problem.project(self.u)

    def upper(self) -> list[np.ndarray]:
        """U."""
        return [array(x) for x in self.u]

    def direction(self) -> list[np.ndarray]:
        """The first gradient in u."""
        return [array(x) for x in self.iteration()]


def gradient(outputs: Any, inputs: Tensors, weights: Any = None) -> Tensors:
    """Torch.autograd.grad, with zeros for inputs that are not used."""
    found = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found, strict=True)]

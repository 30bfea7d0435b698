"""The lower move of benchmarks/lower_move.py written by hand in PyTorch; it needs only PyTorch.

That benchmark runs it as a separate process for the whole measurement. On standard input it gets one JSON line
{"variant": NAME, "moves": N} for each run, and it answers each with {"seconds": ..., "cpu": ...} on standard output.
Its first line of output has its version and its variants.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

BATCH, CLASSES, GAMMA, LAM, RATE = 200, 10, 100.0, 1.0, 1e-3
SHAPES = ((64, 1, 5, 5), (128, 64, 5, 5), (512, 2048), (256, 512), (CLASSES, 256))


def start() -> list[Any]:
    """Weights by He's initialisation and biases of zero, in turn."""
    params = []
    for shape in SHAPES:
        into = torch.Size(shape[1:]).numel()
        params += [torch.randn(shape) * (2 / into) ** 0.5, torch.zeros(shape[0])]
    return params


def network(params: Any, x: Any, train: bool) -> Any:
    """`bilevax.nn.mnist_network`. Bias and ReLU follow the pooling, with which they commute."""
    w1, b1, w2, b2, w3, b3, w4, b4, w5, b5 = params
    x = functional.relu(functional.max_pool2d(functional.conv2d(x, w1), 2) + b1[:, None, None])
    x = functional.dropout(x, 0.25, train)
    x = functional.relu(functional.max_pool2d(functional.conv2d(x, w2), 2) + b2[:, None, None])
    x = functional.dropout(x, 0.25, train).flatten(1)
    x = functional.dropout(functional.relu(functional.linear(x, w3, b3)), 0.5, train)
    x = functional.dropout(functional.relu(functional.linear(x, w4, b4)), 0.5, train)
    return functional.linear(x, w5, b5)


class Moves:
    """The data, the model and its optimizer; each method makes one move."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.params = [p.requires_grad_() for p in start()]
        self.optimizer = torch.optim.Adam(self.params, RATE, fused=True)
        self.clean = torch.rand(BATCH, 1, 28, 28), torch.randint(CLASSES, (BATCH,))
        self.noisy = torch.rand(BATCH, 1, 28, 28), torch.randint(CLASSES, (BATCH,))
        self.weights = torch.rand(BATCH)

    def upper(self, params: Any) -> Any:
        """f: the mean cross-entropy of the validation batch, without dropout."""
        x, y = self.clean
        return functional.cross_entropy(network(params, x, False), y)

    def lower(self, params: Any) -> Any:
        """g: that of the training batch by weights, with dropout."""
        x, y = self.noisy
        losses = functional.cross_entropy(network(params, x, True), y, reduction="none")
        return (self.weights * losses).sum() / self.weights.sum()

    def apply(self, gradient: Any) -> None:
        """One move of Adam."""
        for p, g in zip(self.params, gradient, strict=True):
            p.grad = g
        self.optimizer.step()

    def double_backward(self) -> None:
        """grad_v f + second_products(p)[1] + lam grad_v g, `second_products` by a second reverse pass."""
        f = torch.autograd.grad(self.upper(self.params), self.params)
        g = torch.autograd.grad(self.lower(self.params), self.params, create_graph=True)
        # One reverse pass for second_products(p) + lam grad_v g: the second seed of g itself costs nothing.
        p = [GAMMA * x.detach() for x in g]
        along = torch.autograd.grad(g, self.params, p)
        self.apply([a + b + LAM * c.detach() for a, b, c in zip(f, along, g, strict=True)])

    def forward_over_reverse(self) -> None:
        """The same by torch.func: p must be known beforehand, so the gradient of g is computed twice."""
        params = [x.detach() for x in self.params]
        f = torch.func.grad(self.upper)(params)
        state = torch.get_rng_state()
        p = [GAMMA * x for x in torch.func.grad(self.lower)(params)]
        torch.set_rng_state(state)
        g, along = torch.func.jvp(torch.func.grad(self.lower), (params,), (p,))
        self.apply([a + b + LAM * c for a, b, c in zip(f, along, g, strict=True)])

    def plain(self) -> None:
        """grad_v g alone: a move of plain training."""
        self.apply(torch.autograd.grad(self.lower(self.params), self.params))


def timed(move: Callable[[], None], moves: int) -> dict[str, float]:
    """Wall and processor seconds per move."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(moves):
        move()
    return {"seconds": (time.perf_counter() - wall) / moves, "cpu": (time.process_time() - cpu) / moves}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    moves = Moves()
    variants: dict[str, Callable[[], None]] = {
        "double backward": moves.double_backward,
        "forward over reverse": moves.forward_over_reverse,
        "plain gradient": moves.plain,
    }
    failed = {}
    for name, move in list(variants.items()):
        try:
            move()
        except (RuntimeError, NotImplementedError) as error:  # an operation without that derivative
            failed[name] = str(error).splitlines()[0]
            del variants[name]
    print(json.dumps({"torch": torch.__version__, "variants": list(variants), "failed": failed}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(timed(variants[asked["variant"]], asked["moves"])), flush=True)


if __name__ == "__main__":
    main()

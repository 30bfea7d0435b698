"""Modules of PyTorch, Keras and flax.nnx against the library's own layers: time and memory of a move, and accuracy.

The network is a multilayer perceptron for images of 28x28, with hidden layers of 512 and 256 and 200 images per batch.
The move is a lower move of Penalty as in benchmarks/lower_move.py; "PyTorch by hand" is the same move by double
backward, without a compiler. All variants run in turn in one process, and ratios are medians of pairs of runs next to
each other. Memory is the largest size of the temporary arrays of the compiled program; PyTorch has no such figure.

    python -m benchmarks.foreign [--runs 9] [--moves 5] [--seeds 3]

With the folder BILEVAX_DATA the second table is printed, see benchmarks/foreign_accuracy.py; its hidden layers are of
64 and 32. Libraries that are not installed are left out.
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

WIDTHS, CLASSES, BATCH = (512, 256), 10, 200


def torch_module(outputs: int = CLASSES, widths: tuple[int, int] = WIDTHS) -> Any:
    """The network in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    first, second = widths
    hidden = nn.Linear(784, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(second, outputs))


def keras_model(outputs: int = CLASSES, widths: tuple[int, int] = WIDTHS) -> Any:
    """The network in Keras."""
    import keras  # pyright: ignore[reportMissingImports]

    layers = [keras.layers.Dense(width, activation="relu") for width in widths]
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), *layers, keras.layers.Dense(outputs)])


def nnx_module(outputs: int = CLASSES, widths: tuple[int, int] = WIDTHS) -> Any:
    """The network in flax.nnx."""
    import jax
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            sizes = (784, *widths, outputs)
            self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

        def __call__(self, x: Any) -> Any:
            x = x.reshape(len(x), -1)
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x)

    return Network(nnx.Rngs(0))


MODULES = {"torch": torch_module, "keras": keras_model, "flax": nnx_module}


def by_hand(moves: int) -> Callable[[], Any] | None:
    """A lower move written in PyTorch, on the same shapes; None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net, loss = torch_module(), torch.nn.CrossEntropyLoss()
    params = list(net.parameters())
    optimizer = torch.optim.Adam(params, 1e-3)
    clean, noisy = ((torch.rand(BATCH, 28, 28), torch.randint(0, CLASSES, (BATCH,))) for _ in range(2))

    def run() -> None:
        for _ in range(moves):
            f = torch.autograd.grad(loss(net(clean[0]), clean[1]), params)
            g = torch.autograd.grad(loss(net(noisy[0]), noisy[1]), params, create_graph=True)
            along = sum((a * a.detach()).sum() for a in g)
            assert isinstance(along, torch.Tensor)
            products = torch.autograd.grad(along, params)
            for p, a, b in zip(params, f, products, strict=True):
                p.grad = a + b
            optimizer.step()

    return run


def milliseconds(run: Callable[[], Any], moves: int) -> float:
    """Wall time of one move."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start) / moves


def moves_table(runs: int, moves: int) -> None:
    """Measure lower moves and print the first table."""
    from benchmarks import foreign_accuracy
    from benchmarks.lower_move import program
    from bilevax.derivatives import exact
    from bilevax.nn import as_model, mlp

    models = {foreign_accuracy.OWN: mlp(CLASSES, WIDTHS)}
    models |= {f"{name}, by the adapter": as_model(make(), CLASSES) for name, make in installed().items()}
    programs = {name: program(model, moves, exact) for name, model in models.items()}
    variants: dict[str, Callable[[], Any]] = {name: found.call for name, found in programs.items()}
    by_pytorch = by_hand(moves)
    if by_pytorch is not None:
        variants["PyTorch by hand"] = by_pytorch
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(runs):
        for name, run in variants.items():
            times[name].append(milliseconds(run, moves))
    own = times[foreign_accuracy.OWN]
    print(f"{'one lower move of Penalty':<28}{'ms':>8}{'least':>8}{'ratio':>8}{'MB':>8}")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, own, strict=True))
        size = f"{programs[name].temporaries / 1e6:>8.1f}" if name in programs else f"{'-':>8}"
        print(f"{name:<28}{statistics.median(found):>8.2f}{min(found):>8.2f}{ratio:>8.2f}{size}", flush=True)


def installed() -> dict[str, Callable[..., Any]]:
    """The modules whose libraries are installed."""
    return {name: make for name, make in MODULES.items() if importlib.util.find_spec(name) is not None}


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--moves", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()

    from benchmarks import foreign_accuracy
    from bilevax.nn import mlp

    moves_table(options.runs, options.moves)
    if "BILEVAX_DATA" in os.environ:
        makers: dict[str, Callable[[int], Any]] = {
            foreign_accuracy.OWN: lambda outputs: mlp(outputs, foreign_accuracy.SMALL)
        }
        for name, make in installed().items():
            makers[name] = lambda outputs, make=make: make(outputs, foreign_accuracy.SMALL)
        print()
        foreign_accuracy.table(makers, options.seeds)


if __name__ == "__main__":
    main()

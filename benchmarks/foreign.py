"""Milliseconds per lower move of Penalty with modules of PyTorch, Keras and flax.nnx, against the library's own layers.

The network is a multilayer perceptron for images of 28x28, with hidden layers of 512 and 256 and 200 images per batch.
The move is that of benchmarks/lower_move.py, which also measures one written by hand in PyTorch. All variants run in
turn in one process, and ratios are medians of pairs of runs next to each other.

    python -m benchmarks.foreign [--runs 9] [--moves 5]

Libraries that are not installed are left out.
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

WIDTHS, CLASSES = (512, 256), 10


def torch_module() -> Any:
    """The network in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    first, second = WIDTHS
    hidden = nn.Linear(784, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(second, CLASSES))


def keras_model() -> Any:
    """The network in Keras."""
    import keras  # pyright: ignore[reportMissingImports]

    layers = [keras.layers.Dense(width, activation="relu") for width in WIDTHS]
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), *layers, keras.layers.Dense(CLASSES)])


def nnx_module() -> Any:
    """The network in flax.nnx."""
    import jax
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            sizes = (784, *WIDTHS, CLASSES)
            self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

        def __call__(self, x: Any) -> Any:
            x = x.reshape(len(x), -1)
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x)

    return Network(nnx.Rngs(0))


MODULES = {"torch": torch_module, "keras": keras_model, "flax": nnx_module}


def milliseconds(run: Callable[[], Any], moves: int) -> float:
    """Wall time of one move."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start) / moves


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--moves", type=int, default=5)
    options = parser.parse_args()

    from benchmarks.lower_move import program
    from bilevax.derivatives import exact
    from bilevax.nn import as_model, mlp

    models = {"own layers": mlp(CLASSES, WIDTHS)}
    for name, make in MODULES.items():
        if importlib.util.find_spec(name) is not None:
            models[f"{name}, by the adapter"] = as_model(make(), CLASSES)
    variants: dict[str, Callable[[], Any]] = {
        name: program(model, options.moves, exact).call for name, model in models.items()
    }
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.runs):
        for name, run in variants.items():
            times[name].append(milliseconds(run, options.moves))
    own = times["own layers"]
    print(f"{'one lower move of Penalty':<28}{'ms':>8}{'least':>8}{'ratio':>8}")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, own, strict=True))
        print(f"{name:<28}{statistics.median(found):>8.2f}{min(found):>8.2f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()

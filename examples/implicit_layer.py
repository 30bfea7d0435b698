"""A layer that solves an optimisation problem, inside a network that is trained end to end.

A task is a sine wave of random amplitude and phase, observed at ten points, of which about one in seven is an outlier.
A network computes features of x. A layer fits a robust linear model on these features to the ten points. The model is
evaluated at other points.

    u    the features of the ten points, from the layers before, and the log strength of a penalty
    v    the linear model
    g    the pseudo-Huber loss at the ten points + exp(strength) |v|^2, which has no closed-form minimiser
    f    the squared error at other points, which an optax optimizer minimises over all layers

`Argmin` turns g into a layer. The layer has a derivative, by the implicit function theorem, so `jax.grad` works.

What to look at: on the left, a wave that was not used in training. On the right, the error on such waves while the
network is trained: with this layer, with the same layer treated as a constant, and with least squares, which has a
closed form and is not robust to outliers.

    python examples/implicit_layer.py [--quick] [--out DIR]
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree
from matplotlib import rc_context
from matplotlib.figure import Figure

from bilevax.argmin import Argmin
from bilevax.plots import COLOURS, STYLE

WIDTH, SEEN, OFF, VISITS = 64, 10, 0.15, 20


def draw(key: PRNGKeyArray, tasks: int, queries: int) -> tuple[Any, Any, Any, Any]:
    """Random waves: x and y of observed points (tasks, 10), and of query points (tasks, n)."""
    keys = jax.random.split(key, 5)
    amplitude = jax.random.uniform(keys[0], (tasks, 1), minval=0.5, maxval=2)
    phase = jax.random.uniform(keys[1], (tasks, 1), maxval=2 * np.pi)
    x = jax.random.uniform(keys[2], (tasks, SEEN), minval=-5, maxval=5)
    far = 4 * jax.random.normal(keys[3], x.shape) * (jax.random.uniform(keys[4], x.shape) < OFF)
    at = jnp.broadcast_to(jnp.linspace(-5, 5, queries), (tasks, queries))
    return x, amplitude * jnp.sin(x + phase) + far, at, amplitude * jnp.sin(at + phase)


def start(key: PRNGKeyArray) -> dict[str, Any]:
    """Random parameters of the network."""
    sizes = list(itertools.pairwise([1, WIDTH, WIDTH, WIDTH]))
    keys = jax.random.split(key, len(sizes))
    layers = [(jax.random.normal(k, s) / s[0] ** 0.5, jnp.zeros(s[1])) for k, s in zip(keys, sizes, strict=True)]
    return {"layers": layers, "strength": jnp.asarray(-4.0)}


def features(params: dict[str, Any], x: Any) -> Any:
    """Features (n, 64) of points (n,)."""
    x = x[:, None]
    for weight, bias in params["layers"]:
        x = jnp.tanh(x @ weight + bias)
    return x / WIDTH**0.5


def robust_loss(u: dict[str, Any], v: PyTree, y: Any) -> Any:
    """What the layer minimises."""
    residuals = (u["features"] @ v - y) / 0.3
    return jnp.mean(jnp.sqrt(1 + residuals**2) - 1) + jnp.exp(u["strength"]) * jnp.sum(v**2)


ROBUST = Argmin(robust_loss, optax.sgd(0.05, momentum=0.9, nesterov=True), steps=100)


def least_squares(u: dict[str, Any], v: PyTree, y: Any) -> Any:
    """Ridge regression by its formula."""
    x = u["features"]
    return x.T @ jnp.linalg.solve(x @ x.T + SEEN * jnp.exp(u["strength"]) * jnp.eye(SEEN), y)


LAYERS = {
    "robust layer": ROBUST,
    "taken for a constant": lambda u, v, y: jax.lax.stop_gradient(ROBUST(u, v, y)),
    "least squares": least_squares,
}


def predict(params: dict[str, Any], x: Any, y: Any, x_query: Any, layer: Callable[..., Any]) -> Any:
    """The wave fitted to points (x, y), at other points."""
    v = layer({"features": features(params, x), "strength": params["strength"]}, jnp.zeros(WIDTH), y)
    return features(params, x_query) @ v


def loss(params: dict[str, Any], waves: Any, layer: Callable[..., Any]) -> Any:
    """The mean squared error at the query points."""
    x, y, at, truth = waves
    return jnp.mean((jax.vmap(lambda x, y, at: predict(params, x, y, at, layer))(x, y, at) - truth) ** 2)


@functools.partial(jax.jit, static_argnames=("steps", "layer"))
def train(steps: int, layer: Callable[..., Any], new: Any) -> tuple[Any, Any]:
    """The trained parameters, and the error on new waves at 20 times during training."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def one(carry: Any, t: Any) -> Any:
        waves = draw(jax.random.fold_in(jax.random.key(1), t), tasks=20, queries=20)
        updates, state = optimizer.update(jax.grad(loss)(carry[0], waves, layer), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    def stretch(carry: Any, turns: Any) -> Any:
        carry, _ = jax.lax.scan(one, carry, turns)
        return carry, loss(carry[0], new, layer)

    params = start(jax.random.key(0))
    turns = jnp.arange(steps).reshape(VISITS, -1)
    (params, _), errors = jax.lax.scan(stretch, (params, optimizer.init(params)), turns)
    return params, errors


def main(quick: bool, out: Path) -> dict[str, float]:
    """Train the network with each layer, and draw a new wave and the errors."""
    waves, steps = (40, 160) if quick else (200, 5000)
    new = draw(jax.random.key(2), tasks=waves, queries=101)
    trained = {name: train(steps, layer, new) for name, layer in LAYERS.items()}
    errors = {name: float(error[-1]) for name, (_, error) in trained.items()}
    errors["robust layer, untrained network"] = float(loss(start(jax.random.key(0)), new, ROBUST))
    summary = ", ".join(f"{error:.3f} ({name})" for name, error in errors.items())
    print(f"Mean squared error on {waves} new waves: {summary}.")

    # The first wave with two outliers.
    off = jnp.abs(jax.vmap(jnp.interp)(new[0], new[2], new[3]) - new[1]) > 1
    x, y, at, truth = (a[jnp.argmax(off.sum(1) == 2)] for a in new)
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(at, truth, color="#999999", linewidth=5, alpha=0.5, label="the wave")
        left.plot(x, y, "ko", markersize=5, label="points seen")
        for colour, (name, (params, error)) in zip(COLOURS, trained.items(), strict=False):
            left.plot(at, predict(params, x, y, at, LAYERS[name]), color=colour)
            right.plot(steps // VISITS * np.arange(1, VISITS + 1), error, color=colour, label=name)
        left.set(title="A new wave", xlabel="x", ylabel="y")
        right.set(title="Error on new waves", xlabel="step of training", ylabel="mean squared error", yscale="log")
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(out / "implicit_layer.png", dpi=110)
    return errors


PARSER = argparse.ArgumentParser(description="A layer that solves an optimisation problem, inside a network.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the picture")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))

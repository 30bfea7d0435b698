"""A training loss whose shape is learned from a few trusted samples.

Three in ten targets of the diabetes data are recorded too high, by a random amount. Least squares is not robust to
them. A robust loss gives large residuals less weight, equally on both sides, since it does not know which side is
wrong. Here the loss learns this: it is a mixture of Huber losses of several widths, on either side of zero.

    u    (2, 4) the logarithms of the mixture's weights, by side and width
    v    (11,) a linear model
    g    the learned loss of the residuals of 250 samples, some of them wrong
    f    the mean squared error of 60 correct samples

g is convex in v whatever u is. Ten random splits of the data are solved at once, by Vectorized.

What to look at: on the left, the learned loss rises slowly where targets lie above the prediction. On the right, the
error on correct samples that were not used for training, for each split and on average.

    python examples/learned_loss.py [--quick] [--out DIR]
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.linear_model import HuberRegressor, LinearRegression
from sklearn.metrics import mean_squared_error
from sklearn.preprocessing import scale

from bilevax import Batch, Implicit, Problem, Vectorized, solve
from bilevax.argmin import Argmin
from bilevax.plots import BLUE, SKY, STYLE

WIDTHS = np.array([0.25, 0.5, 1.0, 2.0])
TRAIN, TRUSTED, WRONG = 250, 60, 0.3


def learned_loss(u: PyTree, r: Any) -> Any:
    """The loss of residuals of any shape: quadratic up to each width and linear beyond, with slope 1."""
    sides = jnp.stack([jnp.maximum(r, 0), jnp.maximum(-r, 0)], -1)[..., None]
    huber = jnp.where(sides < WIDTHS, sides**2 / (2 * WIDTHS), sides - WIDTHS / 2)
    return jnp.sum(jax.nn.softmax(u, (0, 1)) * huber, (-2, -1))


def residuals(v: PyTree, data: tuple[Any, Any]) -> Any:
    """Positive where a target lies above the prediction."""
    x, y = data
    return y - x @ v[1:] - v[0]


def squared_error(u: PyTree, v: PyTree, data: tuple[Any, Any]) -> Any:
    """The mean."""
    return jnp.mean(residuals(v, data) ** 2)


def training_loss(u: PyTree, v: PyTree, data: tuple[Any, Any]) -> Any:
    """The mean of the learned loss."""
    return jnp.mean(learned_loss(u, residuals(v, data)))


PROBLEM = Problem(squared_error, training_loss)
trained = jax.jit(jax.vmap(Argmin(training_loss, optax.adam(optax.cosine_decay_schedule(0.03, 1500)), steps=1500)))


def main(quick: bool, out: Path) -> dict[str, float]:
    """Learn the loss on several splits at once, and draw it and the errors."""
    splits = 3 if quick else 10
    x, y = (scale(a) for a in load_diabetes(return_X_y=True))
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(len(y)) for _ in range(splits)])
    x, y = x[order], y[order]
    recorded = y + (rng.random(y.shape) < WRONG) * rng.exponential(3.0, y.shape)
    first, second, third = slice(TRAIN), slice(TRAIN, TRAIN + TRUSTED), slice(TRAIN + TRUSTED, None)

    data = Batch(upper=(x[:, second], y[:, second]), lower=(x[:, first], recorded[:, first]))
    batch = jax.tree.map(lambda a: jnp.asarray(a, float), data)
    u, v = jnp.zeros((splits, 2, len(WIDTHS))), jnp.zeros((splits, x.shape[2] + 1))
    solver = Vectorized(Implicit(optax.adam(0.1), optax.adam(1e-2), lower_steps=10))
    result = solve(solver, PROBLEM, u, trained(u, v, batch.lower), batch, steps=200, key=jax.random.key(0))
    v = trained(result.u, v, batch.lower)

    errors: dict[str, list[float]] = {}
    for i in range(splits):
        given, trusted = (x[i, first], recorded[i, first]), (x[i, second], y[i, second])
        test, right = (x[i, third], y[i, third]), (x[i, : TRAIN + TRUSTED], y[i, : TRAIN + TRUSTED])
        together = [np.concatenate(pair) for pair in zip(given, trusted, strict=True)]
        hubers = [HuberRegressor(epsilon=width, max_iter=10_000).fit(*given) for width in np.geomspace(1, 5, 8)]
        models = {
            "least squares": LinearRegression().fit(*together),
            "Huber's loss": min(hubers, key=lambda m: mean_squared_error(trusted[1], m.predict(trusted[0]))),
            "trusted samples alone": LinearRegression().fit(*trusted),
            "all targets right": LinearRegression().fit(*right),
        }
        found = {name: mean_squared_error(test[1], model.predict(test[0])) for name, model in models.items()}
        found["learned loss"] = float(squared_error(None, v[i], test))
        for name, error in found.items():
            errors.setdefault(name, []).append(error)
    means = {name: float(np.mean(errors[name])) for name in sorted(errors, key=lambda name: -np.mean(errors[name]))}
    print(f"Mean test error of {splits} splits: {', '.join(f'{e:.3f} by {name}' for name, e in means.items())}.")

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        r = jnp.linspace(-4, 4, 201)
        curves = np.stack([learned_loss(u, r) for u in result.u])
        left.plot(r, curves.T, color=SKY, linewidth=0.8)
        left.plot(r, curves.mean(0), color=BLUE, linewidth=2, label="mean of the splits")
        left.legend()
        left.set(title="The learned loss", xlabel="target less prediction, in standard deviations", ylabel="loss")
        names = list(means)
        for i, name in enumerate(names):
            right.plot(errors[name], [i] * splits, "o", color=SKY, markersize=4)
            right.plot(means[name], i, "D", color=BLUE)
        right.set_yticks(range(len(names)), names)
        right.set(title="Error on other, right samples", xlabel="mean squared error", xlim=(0, None))
        figure.savefig(out / "learned_loss.png", dpi=100)
    return means


PARSER = argparse.ArgumentParser(description="A training loss whose shape is learned from a few trusted samples.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the picture")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))

"""The strengths of a group lasso, one for each group, chosen by gradient.

Of 40 groups of 5 features, 5 groups matter. A group lasso removes whole groups. But a single strength that removes the
useless groups also shrinks the others. A strength for each group avoids this.

    u    (40,) log strengths
    v    (folds, 40, 5) coefficients, of each fold of a cross-validation
    g    over the folds, half the mean squared error of training samples + sum over groups of exp(u_j) |v_j|
    f    the mean squared error of the samples held out

g is not smooth where v has zeros. SparseHO moves v by a proximal map, which gives exact zeros, and u by the derivative
on the non-zero entries. A zero group has no derivative and stays out, so the start is the best single strength of a
grid, which keeps too many groups.

What to look at: which groups are kept, and how much they are shrunk compared with the true coefficients; above with the
grid's best single strength, below with a strength for each group. The few useless groups kept below are shrunk less
than above: 40 strengths overfit the held-out samples a little.

    python examples/group_lasso.py [--quick] [--out DIR]
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

from bilevax import Batch, Problem, SparseHO, solve
from bilevax.plots import BLUE, RED, STYLE

GROUPS, SIZE, USEFUL, NOISE, FOLDS = 40, 5, 5, 2.0, 4
RATE = 0.1  # of proximal descent; below one over the largest curvature of the squared errors here


def norms(v: PyTree) -> Any:
    """Of each group."""
    return jnp.sqrt(jnp.sum(v**2, -1))


def shrunk(u: PyTree, v: PyTree, step: Any) -> Any:
    """The proximal map: each group is shortened by step exp(u_j), or vanishes."""
    size = norms(v)
    return v * jnp.maximum(1 - step * jnp.exp(u) / jnp.where(size > 0, size, 1), 0)[..., None]


def errors(v: PyTree, share: Any, data: tuple[Any, Any]) -> Any:
    """The sum over the folds of the squared errors, each sample by its share (folds, n)."""
    x, y = data
    return jnp.sum(share * (v.reshape(len(v), -1) @ x.T - y) ** 2)


PROBLEM = Problem(
    upper_loss=lambda u, v, batch: errors(v, batch["held"], batch["data"]) / len(v),
    lower_loss=lambda u, v, batch: errors(v, batch["train"], batch["data"]) / 2,
    regularizer=lambda u, v, mu: jnp.sum(jnp.exp(u) * jnp.sqrt(jnp.sum(v**2, -1) + mu**2)),
)


@jax.jit
def fit(u: PyTree, share: Any, data: tuple[Any, Any]) -> Any:
    """The coefficients of given strengths, by many proximal moves."""
    slope, start = jax.grad(errors), jnp.zeros((len(share), GROUPS, SIZE))
    return jax.lax.fori_loop(0, 2000, lambda _, v: shrunk(u, v - RATE / 2 * slope(v, share, data), RATE), start)


def main(quick: bool, out: Path) -> dict[str, float]:
    """Choose the strengths, and draw the groups' norms."""
    rng, n = np.random.default_rng(0), 300
    truth = (np.arange(GROUPS) < USEFUL)[:, None] * rng.normal(size=(GROUPS, SIZE))

    def draw(n: int) -> tuple[Any, Any]:
        x = rng.normal(size=(n, GROUPS * SIZE))
        return jnp.asarray(x, float), jnp.asarray(x @ truth.ravel() + NOISE * rng.normal(size=n), float)

    data, test = draw(n), draw(5000)
    held = np.arange(n) % FOLDS == np.arange(FOLDS)[:, None]
    shares = {name: jnp.asarray(m / m.sum(1, keepdims=True), float) for name, m in (("held", held), ("train", ~held))}
    batch = shares | {"data": data}

    # One strength for all groups: the best of a grid, by the same folds.
    def held_out(strength: float) -> float:
        u = jnp.full(GROUPS, strength)
        return float(PROBLEM.upper_loss(u, fit(u, shares["train"], data), batch))

    one = jnp.full(GROUPS, min(np.linspace(-2.5, 1, 10 if quick else 40), key=held_out))

    # A strength for each, from there.
    steps = 40 if quick else 300
    solver = SparseHO(optax.adam(optax.cosine_decay_schedule(0.1, steps)), shrunk, RATE, lower_steps=100)
    v = fit(one, shares["train"], data)
    each = solve(solver, PROBLEM, one, v, Batch(batch, batch), steps=steps, key=jax.random.key(0)).u

    figures: dict[str, float] = {}
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 5), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True, sharey=True)
        for axes, name, u in zip(panels, ("one strength", "a strength for each group"), (one, each), strict=True):
            v = fit(u, jnp.full((1, n), 1 / n), data)[0]  # with all samples
            kept, error = np.asarray(norms(v) > 0), float(errors(v[None], jnp.full((1, 5000), 1 / 5000), test))
            found, vain = int(kept[:USEFUL].sum()), int(kept[USEFUL:].sum())
            summary = f"{found} of {USEFUL} useful groups kept, {vain} others; error {error:.2f}"
            print(f"With {name}: {summary} on other data, of which the noise is {NOISE**2:.2f}.")
            figures |= {f"found, {name}": found, f"kept in vain, {name}": vain, f"error, {name}": error}
            axes.bar(range(GROUPS), norms(truth), color="#cccccc", label="truth")
            axes.plot(np.flatnonzero(kept), norms(v)[kept], "o", color=BLUE, label="kept")
            axes.plot(np.flatnonzero(~kept), norms(v)[~kept], "x", color=RED, markersize=5, label="removed")
            axes.set(title=f"{name.capitalize()}: {summary}", ylabel="norm")
        panels[1].set_xlabel("group")
        panels[0].legend()
        figure.savefig(out / "group_lasso.png", dpi=110)
    return figures


PARSER = argparse.ArgumentParser(description="The strengths of a group lasso, one for each group.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the picture")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))

"""A thousand L2 strengths tuned by gradient.

Of 1,000 features, 20 matter. One L2 strength shrinks all of them equally; here each has its own.

    u    (1000,) log strengths
    v    (folds, 1000) coefficients, of each fold of a cross-validation
    g    over the folds, the mean squared error of the training samples + sum over j of exp(u_j) v_j^2
    f    the mean squared error of the samples held out

A thousand strengths could overfit the held-out samples. Two things prevent it: all strengths start large, and u moves
by plain descent, whose steps are proportional to the gradient. (Adam's steps have similar size for all features.)

What to look at: on the left, the strengths of the 20 fall below those of the others. On the right, the error on unseen
data as the strengths move, compared with one strength for all and with the lasso, both chosen by cross-validation.

    python examples/thousand_strengths.py [--quick] [--out DIR]
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
from sklearn.linear_model import LassoCV, RidgeCV
from sklearn.model_selection import KFold

from bilevax import Batch, Implicit, Problem, solve
from bilevax.plots import BLUE, RED, STYLE

START = 2.5
NOISE = 2.0  # standard deviation of the targets' noise


def errors(v: PyTree, share: Any, data: tuple[Any, Any]) -> Any:
    """The sum over the folds of the squared errors, each sample by its share (folds, n)."""
    x, y = data
    return jnp.sum(share * (v @ x.T - y) ** 2)


PROBLEM = Problem(
    upper_loss=lambda u, v, batch: errors(v, batch["held"], batch["data"]) / len(v),
    lower_loss=lambda u, v, batch: errors(v, batch["train"], batch["data"]) + jnp.sum(jnp.exp(u) * v**2),
)


def ridge(strengths: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The coefficients of given strengths, in closed form."""
    z, n = x / np.sqrt(strengths), len(y)
    return z.T @ np.linalg.solve(z @ z.T / n + np.eye(n), y / n) / np.sqrt(strengths)


def main(quick: bool, out: Path) -> dict[str, float]:
    """Tune the strengths, and draw them and the error on other data."""
    rng = np.random.default_rng(0)
    features, useful, samples, steps = (300, 10, 300, 30) if quick else (1000, 20, 600, 60)
    truth = np.zeros(features)
    truth[:useful] = rng.choice([-1, 1], useful) * rng.uniform(0.5, 1.5, useful)
    x, x_test = rng.normal(size=(samples, features)), rng.normal(size=(2000, features))
    y, y_test = (a @ truth + NOISE * rng.normal(size=len(a)) for a in (x, x_test))
    folds = list(KFold(3).split(x))
    held = np.stack([np.isin(np.arange(samples), fold) for _, fold in folds])

    def test_error(v: PyTree) -> float:
        return float(np.mean((x_test @ v - y_test) ** 2))

    # A strength for each feature. After every second step a callback takes a copy.
    data = jnp.asarray(x, float), jnp.asarray(y, float)
    shares = {name: jnp.asarray(m / m.sum(1, keepdims=True), float) for name, m in (("held", held), ("train", ~held))}
    visited: list[np.ndarray] = []
    solve(
        Implicit(optax.sgd(5.0), optax.adam(1e-2), lower_steps=10),
        PROBLEM,
        jnp.full(features, START),
        jnp.zeros((len(folds), features)),
        Batch(shares | {"data": data}, shares | {"data": data}),
        steps=steps,
        key=jax.random.key(0),
        every=2,
        callbacks=[lambda visit: visited.append(np.asarray(visit.state.u, np.float64))],
    )
    u, curve = visited[-1], [test_error(ridge(np.exp(u), x, y)) for u in visited]

    # One strength for all, by leave-one-out, and the lasso, by the same folds. Each model is fitted to all samples.
    single = RidgeCV(np.logspace(-1, 5, 40), fit_intercept=False).fit(x, y)
    lasso = LassoCV(cv=folds, fit_intercept=False).fit(x, y)
    levels = {"one strength": test_error(single.coef_), "lasso": test_error(lasso.coef_), "noise alone": NOISE**2}
    found = float(np.mean(np.argsort(u)[:useful] < useful))
    print(
        f"Test error: {curve[-1]:.2f} with {features} strengths, {levels['one strength']:.2f} with one for all, "
        f"{levels['lasso']:.2f} by the lasso; noise alone: {NOISE**2:.2f}. Of the {useful} weakest strengths "
        f"{found:.0%} are those of the {useful} features that matter."
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        left.plot(u, ".", color=BLUE, markersize=4, label=f"{features - useful} features of no use")
        left.plot(u[:useful], "o", color=RED, markersize=5, label=f"{useful} features that matter")
        left.axhline(START, color="#666666", linestyle=":", label="where all start")
        left.set(title="A strength for each feature", xlabel="feature", ylabel="log strength u")
        left.legend(loc="lower right")
        right.plot(2 * np.arange(1, len(curve) + 1), curve, color=BLUE, linewidth=1.8, label="a strength for each")
        for style, (name, level) in zip(("--", "-.", ":"), levels.items(), strict=True):
            right.axhline(level, color="#666666", linestyle=style, label=name)
        right.set(title="Error on other data", xlabel="step", ylabel="mean squared error", ylim=(0, None))
        right.legend()
        figure.savefig(out / "thousand_strengths.png", dpi=100)
    return {"error": curve[-1], "error_single": levels["one strength"], "error_lasso": levels["lasso"], "found": found}


PARSER = argparse.ArgumentParser(description="A thousand L2 strengths tuned by gradient.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the picture")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))

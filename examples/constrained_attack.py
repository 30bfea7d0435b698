"""An audit of your own training: five samples with right labels that change one prediction, under constraints.

If you train on samples that others send in, you may want to know what a few inconspicuous samples can do. Here five
correctly labelled digits are added to 200, so that one chosen test digit is misclassified.

    u    (5, 64) the added digits, pixels in 0..1
    v    the weights of a softmax regression
    g    the cross-entropy of the 200 digits and of u, with an l2 penalty
    f    the cross-entropy of the test digit, with the label that the attack wants
    h    |u_i - base_i| - 1 <= 0: each stays close to the real digit that it started from, and
         the loss on validation data - that of the model without u <= 0: the attack is not visible in it

The second constraint depends on u only through v*(u), so a projection of u cannot enforce it; Penalty handles both.
The constraint is tightened by a margin, because v*(u) is known only to some digits. At the end scikit-learn trains the
model from scratch with u, and this model is evaluated.

What to look at: the added digits differ little from real ones. Red pixels became darker, blue ones lighter.

    python examples/constrained_attack.py [--quick] [--out DIR]
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from bilevax import Batch, Inequality, Penalty, Problem, solve
from bilevax.plots import change_sheet
from bilevax.schedules import Geometric

ADDED, DISTANCE, L2, MARGIN = 5, 1.0, 1e-2, 2e-3


def cross_entropy(v: PyTree, x: Any, labels: Any) -> Any:
    """The mean over samples with one-hot labels."""
    return jnp.mean(optax.softmax_cross_entropy(x @ v["weight"] + v["bias"], labels))


def training_loss(u: PyTree, v: PyTree, batch: dict[str, Any]) -> Any:
    """The loss of the digits and of the added ones."""
    x, labels = jnp.concatenate([batch["x"], u]), jnp.concatenate([batch["labels"], batch["added"]])
    return cross_entropy(v, x, labels) + L2 / 2 * jnp.sum(v["weight"] ** 2)


def too_far(u: PyTree, v: PyTree, batch: dict[str, Any]) -> Any:
    """How far each added digit exceeds its distance bound."""
    return jnp.sqrt(jnp.sum((u - batch["base"]) ** 2, 1) + 1e-12) - DISTANCE


def too_visible(u: PyTree, v: PyTree, batch: dict[str, Any]) -> Any:
    """How far the validation loss exceeds its bound."""
    return cross_entropy(v, *batch["validation"]) - batch["allowed"] + MARGIN


PROBLEM = Problem(
    lambda u, v, batch: cross_entropy(v, batch["target"], batch["wanted"]),
    training_loss,
    constraints=(Inequality(too_far), Inequality(too_visible)),
    project_upper=lambda u: jnp.clip(u, 0, 1),
)


def trained(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """The minimiser of g, by scikit-learn."""
    return LogisticRegression(C=1 / (L2 * len(y)), tol=1e-8, max_iter=10_000).fit(x, y)


def main(quick: bool, out: Path) -> dict[str, float]:
    """Change one prediction within the constraints, and draw the added digits."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, x_val, x_test = np.split(np.asarray(x)[order] / 16, [200, 400])
    y, y_val, y_test = np.split(np.asarray(y)[order], [200, 400])
    clean = trained(x, y)

    # A test digit that the model classifies correctly, but less confidently than 85 of 100.
    p = clean.predict_proba(x_test)
    right = np.flatnonzero(p.argmax(1) == y_test)
    place = right[np.argsort(p[right].max(1))[int(0.15 * len(right))]]
    target, truth, wanted = x_test[place], y_test[place], p[place].argsort()[-2]
    candidates = x[y == wanted]
    base = candidates[np.argsort(np.linalg.norm(candidates - target, axis=1))[:ADDED]]

    hot, labels = np.eye(10), np.full(ADDED, wanted)
    v = {"weight": clean.coef_.T, "bias": clean.intercept_}
    allowed = log_loss(y_val, clean.predict_proba(x_val))
    upper = {"target": target[None], "wanted": hot[[wanted]], "base": base, "validation": (x_val, hot[y_val])}
    lower = {"x": x, "labels": hot[y], "added": hot[labels]}
    v, batch = jax.tree.map(lambda a: jnp.asarray(a, float), (v, Batch(upper | {"allowed": allowed}, lower)))
    steps = 1000 if quick else 3000
    solver = Penalty(
        optax.adam(optax.cosine_decay_schedule(0.02, steps)),
        optax.adam(optax.cosine_decay_schedule(0.03, 10 * steps)),
        lower_steps=10,
        gamma=Geometric(100.0, 1.2, high=1e4),
        step_scale=1.0,
        stage_steps=steps // 40,
    )
    result = solve(solver, PROBLEM, batch.upper["base"], v, batch, steps=steps, key=jax.random.key(0))
    added = np.asarray(result.u)

    after = trained(np.concatenate([x, added]), np.append(y, labels))
    unmoved = trained(np.concatenate([x, base]), np.append(y, labels))
    before, by_base, now = (float(m.predict_proba(target[None])[0, wanted]) for m in (clean, unmoved, after))
    far, loss = np.linalg.norm(added - base, axis=1), log_loss(y_val, after.predict_proba(x_val))
    taken = int(after.predict(target[None])[0])
    print(
        f"A test digit {truth} was a {wanted} with probability {before:.2f}, is one with {by_base:.2f} after {ADDED} "
        f"digits {wanted} are added as they are, and with {now:.2f} after these were moved by at most {far.max():.3f}: "
        f"it is taken for a {taken}. Validation loss {allowed:.4f} before, {loss:.4f} after; test accuracy "
        f"{clean.score(x_test, y_test):.1%} before, {after.score(x_test, y_test):.1%} after."
    )
    pictures, moved = base.reshape(-1, 8, 8), added.reshape(-1, 8, 8)
    below = [f"labelled {wanted}\ndistance {d:.2f}" for d in far]
    title = f"Digits added so that the {truth} is taken for a {taken}"
    change_sheet(pictures, moved, [""] * ADDED, below, out / "constrained_attack.png", title)
    return {
        "violation": float(max(far.max() - DISTANCE, loss - allowed)),
        "changed": float(taken == wanted),
        "probability_before": before,
        "probability_of_unmoved": by_base,
        "probability_after": now,
    }


PARSER = argparse.ArgumentParser(description="Five samples that change one prediction, under constraints.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the picture")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))

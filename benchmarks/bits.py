"""Whether two releases compute the same bits: every solver, every kind of batches, resuming, `Vectorized`, two devices.

    python -m benchmarks.bits save FILE.npz       # in a checkout of the one
    python -m benchmarks.bits compare FILE.npz    # in a checkout of the other, on the same machine

`save` writes u, v and the history of about 40 short solves; `compare` runs them again and exits with 1 if any of these
differs. Both take about two minutes.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

import bilevax as bx
from bilevax.solvers.spnbo import Layers

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # read at the first computation; compiles faster
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)

D, CLASSES, RNG = 6, 3, np.random.default_rng(0)
TRAIN, CLEAN = ((RNG.normal(size=(n, D)), RNG.integers(0, CLASSES, n)) for n in (40, 20))
U, V = np.zeros(40), {"w": 0.3 * RNG.normal(size=(D, CLASSES)), "b": np.zeros(CLASSES)}
ADAM, SGD, KEY = optax.adam(1e-2), optax.sgd(5e-2), jax.random.key(3)
MESH, SPLIT = jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec("data")


def losses(v: PyTree, data: Any) -> Any:
    """Cross-entropies of a softmax regression."""
    return optax.softmax_cross_entropy_with_integer_labels(data[0] @ v["w"] + v["b"], data[1])


def f(u: PyTree, v: PyTree, batch: bx.Samples) -> Any:
    """The mean loss."""
    return jnp.mean(losses(v, batch.data))


def weighted(weight: PyTree, v: PyTree, batch: bx.Samples) -> Any:
    """The loss with a weight for each sample, and an l2 penalty."""
    return jnp.mean(weight[batch.index] * losses(v, batch.data)) + 1e-2 * optax.tree.norm(v, squared=True)


def g(u: PyTree, v: PyTree, batch: bx.Samples) -> Any:
    """The same with weights in 0..1."""
    return weighted(jax.nn.sigmoid(u), v, batch)


def g_random(u: PyTree, v: PyTree, batch: bx.Samples, *, key: PRNGKeyArray) -> Any:
    """The same with noise on the inputs."""
    x, y = batch.data
    return g(u, v, batch._replace(data=(x * jax.random.bernoulli(key, 0.8, x.shape), y)))


def proximal(u: PyTree, v: PyTree, step: Any) -> Any:
    """The proximal map of LASSO."""
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - step * jnp.exp(u[0]), 0)


PLAIN, RANDOM, LINEAR = bx.Problem(f, g), bx.Problem(f, g_random, random_lower=True), bx.Problem(f, weighted)
CONSTRAINED = bx.Problem(
    f, g, constraints=(bx.Inequality(lambda u, v, b: jnp.mean(u) - 0.01), bx.Equality(lambda u, v, b: u[0]))
)
BOXED = bx.Problem(f, g, project_lower=lambda v: jax.tree.map(lambda x: jnp.clip(x, -0.2, 0.2), v))
STARTED = bx.Problem(
    f,
    lambda u, v, b: f(u, v, b) + optax.tree.norm(optax.tree.sub(u, v), squared=True),
    lower_start=lambda u, batch, key: u,
)
LASSO = bx.Problem(
    lambda u, v, b: jnp.mean((CLEAN[0] @ v - CLEAN[0][:, 0]) ** 2),
    lambda u, v, b: jnp.mean((TRAIN[0] @ v - TRAIN[0][:, 0] - 0.3 * TRAIN[0][:, 1]) ** 2) / 2,
    regularizer=lambda u, v, mu: jnp.exp(u[0]) * jnp.sum(jnp.sqrt(v**2 + mu**2)),
)
MATCH = bx.Problem(
    lambda u, v, b: jnp.mean(losses(v, CLEAN)), lambda u, v, b: jnp.mean(losses(v, (TRAIN[0] + u, TRAIN[1])))
)
FAILING = bx.Problem(lambda u, v, b: -jnp.sum(v), lambda u, v, b: jnp.sum(jnp.where(v < 0.4, (v - u) ** 2, jnp.nan)))

MINI = bx.Minibatches(CLEAN, TRAIN, upper_size=8, lower_size=10)
EPOCHS = bx.Epochs(CLEAN, TRAIN, lower_size=10)
PER_MOVE = bx.Minibatches(CLEAN, TRAIN, lower_size=10, per_move=3)
WHOLE = bx.Batch(bx.whole(CLEAN), bx.whole(TRAIN))
STACK = jax.tree.map(lambda x: np.stack([x, x + 0.1, x - 0.2, x]), (U, V))
STACKED = bx.Stacked(jax.tree.map(lambda x: np.stack([x, x, x, x]), EPOCHS))


def stream(count: int = 100) -> Iterator[bx.Batch]:
    """Batches on the host."""
    return (jax.device_get(MINI.at(i, jax.random.key(9))) for i in range(count))


LASSO_START = np.full(1, -2.0), np.zeros(D) + 0.1
LOW_START = np.array([[-50.0], [0.0]])
PENALTY, IMPLICIT, ALTERNATING = bx.Penalty(ADAM, ADAM, 3), bx.Implicit(ADAM, ADAM, 3), bx.Alternating(ADAM, ADAM, 3)
MANY = bx.Vectorized(PENALTY)
# name: solver, problem, u, v, batches, options of `solve`; a name with "resume" is solved in two parts.
CASES: dict[str, tuple[Any, ...]] = {
    "penalty, epochs": (bx.Penalty(ADAM, ADAM, 3, stage_steps=7), PLAIN, U, V, EPOCHS),
    "penalty, constraints": (PENALTY, CONSTRAINED, U, V, WHOLE),
    "penalty, random, minibatches": (PENALTY, RANDOM, U, V, MINI),
    "implicit, minibatches": (IMPLICIT, PLAIN, U, V, MINI),
    "implicit, box": (bx.Implicit(ADAM, SGD, 3), BOXED, U, V, WHOLE),
    "implicit, a batch per move": (IMPLICIT, PLAIN, U, V, PER_MOVE),
    "implicit, stop": (IMPLICIT, PLAIN, U, V, MINI, {"stop": lambda visit: visit.step >= 30}),
    "implicit, non-finite": (IMPLICIT, FAILING, np.zeros(2), np.zeros(2), None, {"steps": 500, "throw": False}),
    "reverse, fixed": (bx.ReverseMode(ADAM, SGD, 5, segment=2), PLAIN, U, V, WHOLE),
    "reverse, lower start": (bx.ReverseMode(ADAM, SGD, 3), STARTED, V, V, MINI),
    "forward": (bx.ForwardMode(ADAM, SGD, 4), LASSO, *LASSO_START, None),
    "alternating, stream": (ALTERNATING, PLAIN, U, V, stream),
    "alternating, short stream": (ALTERNATING, PLAIN, U, V, lambda: stream(23)),
    "alternating, L-BFGS": (bx.Alternating(ADAM, optax.lbfgs(), 2), PLAIN, U, V, WHOLE, {"steps": 12}),
    "look-ahead, epochs": (bx.LookAhead(ADAM, SGD, 5e-2, 2), PLAIN, U, V, EPOCHS),
    "look-ahead, lower start": (bx.LookAhead(ADAM, SGD, 5e-2, 2), STARTED, V, V, MINI),
    "learning to reweight": (bx.LearningToReweight(SGD), LINEAR, U, V, MINI),
    "gradient matching": (bx.GradientMatching(ADAM), MATCH, np.zeros((40, D)), V, None),
    "spnbo": (bx.SPNBO(ADAM, ADAM, 3, stage_steps=9), LASSO, *LASSO_START, None),
    "spnbo, layers": (bx.SPNBO(ADAM, ADAM, 3, rows=Layers(1), stage_steps=9), PLAIN, U, V, EPOCHS),
    "smnbp": (bx.SMNBP(), LASSO, *LASSO_START, None),
    "bvfim": (bx.BVFIM(ADAM, SGD, 4), PLAIN, U, V, EPOCHS),
    "sparse-ho": (bx.SparseHO(ADAM, proximal, rate=0.1, lower_steps=10), LASSO, *LASSO_START, None),
    "vectorized": (MANY, PLAIN, *STACK, STACKED),
    "vectorized, one fails": (bx.Vectorized(IMPLICIT), FAILING, LOW_START, LOW_START, None, {"steps": 400}),
    "resume, epochs": (PENALTY, RANDOM, U, V, EPOCHS),
    "resume, stream": (PENALTY, RANDOM, U, V, stream),
    "resume, vectorized": (bx.Vectorized(ALTERNATING), PLAIN, *STACK, STACKED),
    "resume, mesh": (PENALTY, PLAIN, U, V, EPOCHS, {"mesh": MESH}),
    "mesh, epochs": (PENALTY, PLAIN, U, V, EPOCHS, {"mesh": MESH}),
    "mesh, u split": (IMPLICIT, PLAIN, U, V, WHOLE, {"mesh": bx.Layout(MESH, u=SPLIT)}),
    "mesh, stream": (PENALTY, PLAIN, U, V, stream, {"mesh": MESH}),
    "mesh, members split": (MANY, PLAIN, *STACK, STACKED, {"mesh": bx.Layout(MESH, u=SPLIT)}),
}


def arrays_of(name: str) -> dict[str, np.ndarray]:
    """The numbers that a case ends with, by their paths: u, v, and each field of the history."""
    solver, problem, u, v, batches, *options = CASES[name]
    more = {"steps": 40, "every": 10, "key": KEY} | (options[0] if options else {})

    def run(**extra: Any) -> bx.Result:
        source: Any = batches() if callable(batches) else batches
        return bx.solve(solver, problem, u, v, source, **more | extra)

    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("resume"):
            run(steps=20, callbacks=[bx.Checkpoint(folder)])
            save = bx.Checkpoint(folder)
            result = run(callbacks=[save], resume=save)
        else:
            result = run()
    found, _ = jax.tree.flatten_with_path((result.u, result.v, result.history))
    return {name + jax.tree_util.keystr(path): np.asarray(jax.device_get(x)) for path, x in found}


def main() -> None:
    """Save or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("save", "compare"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    kept = dict(np.load(options.file)) if options.what == "compare" else None
    found: dict[str, np.ndarray] = {}
    for name in CASES:
        arrays = arrays_of(name)
        off = (
            [] if kept is None else [k for k, x in arrays.items() if k not in kept or kept[k].tobytes() != x.tobytes()]
        )
        print(f"{name:<30}{'saved' if kept is None else ', '.join(['differs:', *off]) if off else 'same'}", flush=True)
        found |= {k: x for k, x in arrays.items() if kept is None or k in off}
    if kept is None:
        np.savez(options.file, **found)  # type: ignore[arg-type]
    elif found:
        sys.exit(1)


if __name__ == "__main__":
    main()

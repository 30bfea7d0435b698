"""Learning rates of the race by short runs on another seed: `python -m experiments.race.rates PROBLEM [METHOD ...]`.

The samples and wrong labels of hyper-cleaning are another draw too. PROBLEM is as in the race: "cleaning 90%".
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.race.entrants import METHODS, entrant
from experiments.race.problems import Field
from experiments.race.race import field_of

SEED = 100
LOOKS = 4
GRID = {  # lower rates, and upper rates for a move of u with each move of v
    "quadratics": ((0.03, 0.1), (3e-4, 1e-3, 3e-3, 1e-2)),
    "logistic": ((0.05, 0.1, 0.2), (0.1, 0.3, 1.0, 3.0)),
    "cleaning": ((0.03, 0.1), (30.0, 100.0, 300.0)),
}
STEPS = {  # about two seconds, with and without inner loops
    "quadratics": (4000, 20_000),
    "logistic": (4000, 20_000),
    "cleaning": (500, 3000),
}


def main(name: str, methods: list[str]) -> None:
    """Print what each method reaches with each pair of rates, the least of a few looks."""
    jax.config.update("jax_enable_x64", True)
    field = field_of(name, "medium", SEED)
    lower, upper = GRID[name.split()[0]]
    for label in methods:
        inner = label in ("AmIGO", "StocBiO", "F2SA")
        pairs = [(a, b * (10 if inner else 1)) for a in lower for b in upper]
        began = time.process_time()
        ends = tried(field, name, label, pairs, STEPS[name.split()[0]][0 if inner else 1] // LOOKS)
        seconds = time.process_time() - began
        found = [
            min(_value(field, u, v) for u, v in zip(*(x[i] for x in ends), strict=True)) for i in range(len(pairs))
        ]
        best = pairs[int(np.argmin(found))]
        print(f"{label}: {best} ends at {min(found):.3g} ({seconds:.0f} s)", flush=True)
        print("  " + ", ".join(f"{a:g}/{b:g}: {x:.3g}" for (a, b), x in zip(pairs, found, strict=True)), flush=True)


def tried(field: Field, name: str, label: str, pairs: list[tuple[float, float]], steps: int) -> Any:
    """The iterates of a method with each pair of rates, at `LOOKS` times `steps` steps; compiled once."""
    key = jax.random.key(SEED)

    @jax.jit
    def run(pair: Any, data: Any) -> Any:
        upper, lower = data
        these = Field(field.problem, upper, lower, field.start, field.measure, field.figure)
        solver, source = entrant(label, name, these, (pair[0], pair[1]))

        def one(state: Any, k: Any) -> Any:
            batch = source.at(k, jax.random.fold_in(key, 0))
            return solver.step(field.problem, state, batch, jax.random.fold_in(key, k))[0], None

        def look(state: Any, ks: Any) -> Any:
            state = jax.lax.scan(one, state, ks)[0]
            return state, (state.u, state.v)

        u, v = jax.tree.map(jnp.asarray, field.start)
        state = solver.init(field.problem, u, v, source.at(0, key))
        return jax.lax.scan(look, state, jnp.arange(LOOKS * steps).reshape(LOOKS, steps))[1]

    data = jax.tree.map(jnp.asarray, (field.upper, field.lower))
    return jax.tree.map(lambda *x: np.stack(x), *(jax.device_get(run(jnp.array(p), data)) for p in pairs))


def _value(field: Field, u: Any, v: Any) -> float:
    value = field.measure(u, v) if np.isfinite(u).all() and np.isfinite(v).all() else np.inf
    return value if np.isfinite(value) else np.inf


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(METHODS))

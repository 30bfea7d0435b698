"""A step of SPNBO against how many layers' constraints it samples, compared with Penalty's, alternating.

python -m benchmarks.spnbo

Each set of layers is timed as it is drawn, so the spread over rounds includes that of the draws: a set whose first
layer is deep costs little, and a set with the first layer costs nearly as much as all layers.
"""

import functools
import statistics

import jax
import numpy as np
import optax

from benchmarks.stretch import in_turn, middle, ratios, seconds_of_a_step
from bilevax import SPNBO, Penalty
from bilevax.nn import six_and_four
from bilevax.solvers.spnbo import AllRows, Layers, layers_of
from experiments.spnbo.tasks import sparse_reweighting_task

BATCH, LOWER_STEPS = 64, 5
STEPS, ROUNDS = 2, 5
COUNTS = (8, 4, 2, 1)


def main() -> None:
    """Print milliseconds of a step and ratios to Penalty's: median and range."""
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, 28, 28)).astype(np.float32)
    y, key = rng.integers(0, 10, BATCH), jax.random.key(0)
    task = sparse_reweighting_task(six_and_four(), x, y, x, y, key=key)
    optimizers = optax.sgd(1e-3), optax.sgd(1e-3)
    solvers = {
        "Penalty": Penalty(*optimizers, LOWER_STEPS),
        "SPNBO, all rows": SPNBO(*optimizers, LOWER_STEPS, AllRows(), test_every=1000),
    }
    solvers |= {
        f"SPNBO, {count} layers": SPNBO(*optimizers, LOWER_STEPS, Layers(count), test_every=1000) for count in COUNTS
    }
    calls = {name: functools.partial(seconds_of_a_step, solver, task, STEPS, key) for name, solver in solvers.items()}
    print(f"{len(layers_of(task.start[1]))} layers, batches of {BATCH}, T = {LOWER_STEPS}")
    times = in_turn(calls, ROUNDS)
    for name, values in times.items():
        ratio = statistics.median(ratios(values, times["Penalty"]))
        print(f"{name:18s} {middle([1e3 * x for x in values], 1, ' ms')}, {ratio:.2f} of Penalty's")


if __name__ == "__main__":
    main()

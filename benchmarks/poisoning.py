"""One upper iteration of the untargeted attack (T = 20, 60 points, 1,000 + 1,000 samples), and its products' floor.

python -m benchmarks.poisoning

The floor is the time of the same matrix products alone, in the fastest form, alternating with the solve:
per lower move and for the move of u, two of the validation samples (forward and back) and four of the training samples
(the same, and their derivatives along p).
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks.stretch import in_turn, middle, ratios, seconds_of_a_step
from bilevax.applications.poisoning import Points, penalty_solver, untargeted_task
from bilevax.nn import Training, softmax_head

SAMPLES, FEATURES, CLASSES, POINTS, MOVES = 1000, 784, 10, 60, 20
STEPS, ROUNDS = 40, 9


@jax.jit
def products(x: Any, x_val: Any, v: PyTree, residual: Any) -> Any:
    """The products of STEPS upper iterations, each depending on the one before."""

    def evaluation(v: PyTree, _: None) -> tuple[Any, None]:
        for samples, count in ((x_val, 1), (x, 2)):
            for _again in range(count):
                forward = jax.lax.dot_general(v, samples, (((1,), (1,)), ((), ())))
                v = v + 1e-12 * ((residual + 1e-12 * forward) @ samples)
        return v, None

    return jax.lax.scan(evaluation, v, None, length=STEPS * (MOVES + 1))[0]


def main() -> None:
    """Print milliseconds of one upper iteration: median and range."""
    rng = np.random.default_rng(0)
    x, x_val = rng.random((2, SAMPLES, FEATURES), dtype=np.float32)
    y, y_val = rng.integers(0, CLASSES, (2, SAMPLES))
    points = Points(x[:POINTS], (y[:POINTS] + 1) % CLASSES)
    key = jax.random.key(0)
    task = untargeted_task(softmax_head(CLASSES), x, y, x_val, y_val, points, key=key, training=Training(steps=50))
    solver = penalty_solver(5000, MOVES)
    v, residual = jnp.ones((CLASSES, FEATURES)), jnp.ones((CLASSES, SAMPLES))
    device_x, device_val = jnp.asarray(x), jnp.asarray(x_val)

    attack = functools.partial(seconds_of_a_step, solver, task, STEPS, key)

    def floor() -> float:
        began = time.perf_counter()
        products(device_x, device_val, v, residual).block_until_ready()
        return (time.perf_counter() - began) / STEPS

    times = in_turn({"attack": attack, "floor": floor}, ROUNDS)
    for name, values in times.items():
        print(f"{name:7s} {middle([1e3 * x for x in values], 1, ' ms')} an upper iteration")
    print(f"ratio   {middle(ratios(times['attack'], times['floor']), 2)}")


if __name__ == "__main__":
    main()

"""One upper iteration of few-shot learning with T = 1 and with T = 20 moves of the heads, alternating.

python -m benchmarks.fewshot

The representation depends only on u and the meta-batch, so its passes belong outside the loop over the moves. A larger
T adds only the arithmetic of the heads. The floor, for comparison, is the gradient of the representation on the same
images.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks.stretch import in_turn, middle, ratios, seconds_of_a_step
from bilevax.applications.fewshot import approxgrad_solver, fewshot_task, penalty_solver
from bilevax.nn import omniglot_network

FILTERS, TASKS, WAY, SHOT, QUERIES = 32, 8, 5, 5, 5
MOVES = (1, 20)
STEPS, ROUNDS = 4, 9


def main() -> None:
    """Print milliseconds of an upper iteration and the ratio of T = 20 to T = 1: median and range."""
    images = np.random.default_rng(0).integers(0, 256, (100, SHOT + QUERIES, 28, 28)).astype(np.uint8)
    network, key = omniglot_network(FILTERS), jax.random.key(0)
    method = fewshot_task(network, images, way=WAY, shot=SHOT, queries=QUERIES, tasks=TASKS, key=key)
    task = method.task
    x = jnp.asarray(images.reshape(-1, 28, 28)[: TASKS * WAY * (SHOT + QUERIES) // 2])

    @jax.jit
    def gradients(u: PyTree) -> Any:
        """The gradient of two passes, one for the samples to learn from and one for the queries."""

        def one(u: PyTree, _: None) -> tuple[Any, None]:
            for _part in range(2):
                slope = jax.grad(lambda u: jnp.sum(jnp.tanh(network.apply(u, x))))(u)
                u = jax.tree.map(lambda p, d: p - 1e-9 * d, u, slope)
            return u, None

        return jax.lax.scan(one, u, None, length=STEPS)[0]

    def floor() -> float:
        began = time.perf_counter()
        jax.block_until_ready(gradients(task.start[0]))
        return (time.perf_counter() - began) / STEPS

    print(f"{TASKS} tasks of {WAY}-way {SHOT}-shot with {QUERIES} queries a class, {FILTERS} filters")
    for name, make in (("Penalty", penalty_solver), ("ApproxGrad", approxgrad_solver)):
        calls = {f"T = {n}": functools.partial(seconds_of_a_step, make(100, n), task, STEPS, key) for n in MOVES}
        times = in_turn(calls | {"floor": floor}, ROUNDS)
        for label, values in times.items():
            print(f"{name:10s} {label:6s} {middle([1e3 * x for x in values], 1, ' ms')}")
        for other in ("T = 1", "floor"):
            print(f"{name:10s} T = 20 to {other}: {middle(ratios(times['T = 20'], times[other]), 2)}")


if __name__ == "__main__":
    main()

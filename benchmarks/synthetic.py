"""Microseconds per upper iteration of Penalty on the paper's first synthetic example, T = 10.

The same run also measures, interleaved: the same moves with derivatives taken by hand in one `lax.scan`, which is the
time if the library has no overhead; and the floor of the machine's arithmetic, from the compiled program's count of
operations and a rate measured on products of 64x64.

    python -m benchmarks.synthetic [--steps 40000] [--runs 7]
"""

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

import bilevax as bx
from bilevax.loop.sources import Fixed
from bilevax.loop.stretch import (
    Carry,
    stretch,  # the compiled call itself, for its count of operations
)
from bilevax.schedules import Geometric

T, DIMENSION = 10, 10
ADAM = optax.adam(1e-3)
BOX = functools.partial(optax.projections.projection_box, lower=-5.0, upper=5.0)
PROBLEM = bx.Problem(
    lambda u, v, data: jnp.sum(u**2) + jnp.sum(v**2),
    lambda u, v, data: jnp.sum((1 - u - v) ** 2),
    project_upper=BOX,
)
SOLVER = bx.Penalty(ADAM, ADAM, T, lam=Geometric(10.0, 0.9))


@functools.partial(jax.jit, static_argnames="steps")
def by_hand(u: PyTree, v: PyTree, steps: int) -> Any:
    """The same algorithm with hand-derived gradients: grad_v g = -2 r with r = 1 - u - v, products (2 p, 2 p)."""

    def one(carry: Any, _: None) -> Any:
        u, v, upper_opt, lower_opt, stage, nu = carry
        gamma, lam, eps, scale = 1.1**stage, 10 * 0.9**stage, 0.9**stage, 1.1**-stage

        def directions(v: PyTree) -> tuple[Any, Any, Any]:
            grad_g = -2 * (1 - u - v)
            p = gamma * grad_g + nu
            return 2 * u + 2 * p, 2 * v + 2 * p + lam * grad_g, grad_g

        def lower(carry: Any, _: None) -> Any:
            v, opt = carry
            update, opt = ADAM.update(directions(v)[1], opt, v)
            return (v + scale * update, opt), None

        (v, lower_opt), _ = jax.lax.scan(lower, (v, lower_opt), None, length=T)
        grad_u, grad_v, grad_g = directions(v)
        update, upper_opt = ADAM.update(grad_u, upper_opt, u)
        done = jnp.sum(grad_u**2) + jnp.sum(grad_v**2) <= eps**2
        info = (jnp.sum(u**2) + jnp.sum(v**2), jnp.sum(grad_u**2), jnp.sum(grad_g**2))
        nu = nu + jnp.where(done, gamma, 0.0) * grad_g
        return (BOX(u + scale * update), v, upper_opt, lower_opt, stage + done, nu), info

    start = (u, v, ADAM.init(u), ADAM.init(v), jnp.zeros((), jnp.int32), jnp.zeros_like(v))
    return jax.lax.scan(one, start, None, length=steps)


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def arithmetic_rate() -> float:
    """Operations per second on products of 64x64, one core's worth of resident data."""
    a = jnp.ones((64, 64))
    product = jax.jit(lambda a: jax.lax.fori_loop(0, 2000, lambda _, x: a @ x * (1 / 64), a))
    jax.block_until_ready(product(a))
    return 2000 * 2 * 64**3 / min(seconds(lambda: product(a)) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    u = jax.random.uniform(jax.random.key(1), (DIMENSION,), minval=-5, maxval=5)
    v = jax.random.uniform(jax.random.key(2), (DIMENSION,), minval=-5, maxval=5)
    key = jax.random.key(0)

    def library() -> Any:
        return bx.solve(SOLVER, PROBLEM, u, v, steps=arguments.steps, key=key, every=arguments.steps).v

    def hand() -> Any:
        return by_hand(u, v, arguments.steps)

    source = Fixed(bx.Batch())
    state = SOLVER.init(PROBLEM, u, v, bx.Batch())
    compiled = stretch.lower(SOLVER, PROBLEM, 1, Carry(state, jnp.asarray(True)), source, key, 0, 1).compile()
    analysis: Any = compiled.cost_analysis()
    operations = analysis["flops"]
    # The analysis counts the body of the loop over lower moves once.
    operations *= T + 1

    times: dict[str, list[float]] = {"bilevax": [], "by hand": []}
    for function in (library, hand):
        jax.block_until_ready(function())
    for _ in range(arguments.runs):
        times["bilevax"].append(seconds(library))
        times["by hand"].append(seconds(hand))
    print(f"{platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, {arguments.runs} runs")
    for name, values in times.items():
        per_step = sorted(1e6 * x / arguments.steps for x in values)
        print(
            f"{name:>8}: {statistics.median(per_step):6.2f} us per upper iteration "
            f"(min {per_step[0]:.2f}, max {per_step[-1]:.2f})"
        )
    ratio = statistics.median(a / b for a, b in zip(times["bilevax"], times["by hand"], strict=True))
    print(f"   ratio: {ratio:6.2f} bilevax / by hand (median of pairs)")
    floor = 1e6 * operations / arithmetic_rate()
    print(f"   floor: {floor:6.3f} us, {operations:.0f} operations at the machine's measured rate")


if __name__ == "__main__":
    main()

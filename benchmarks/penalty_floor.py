"""A step of Penalty against the gradients that the algorithm needs, written by hand.

    taskset -c 1 python -m benchmarks.penalty_floor [--works mlp,mnist] [--moves 1,10] [--rounds 9]

By hand, one `lax.scan` makes T moves of v, then u moves. A move is: the gradient of f, the gradient of g, one reverse
pass through the latter along gamma grad_v g + nu, their sum, and a step of the same optimizer. The move of u has the
test that ends a stage, which needs the gradients in u and in v. Nothing is recorded, guarded or projected. Both are
compiled with the same flags and run in turn; times are processor seconds. It runs the works of `benchmarks.peers`.
"""

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.guard import AT_LEAST, Loop
from benchmarks.peers import jax_problems, ours, works
from benchmarks.peers.competitors import settings
from benchmarks.stretch import in_turn, middle, ratios

EPS = 1e9  # every step ends a stage, as in the settings of benchmarks.peers


def by_hand(made: jax_problems.Setup, given: dict[str, Any], moves: int) -> Callable[[Any], Any]:
    """The step of a state (u, v, the optimizers' states, nu)."""
    upper, lower = optax.adam(given["upper_rate"]), ours.lower_optimizer(given)
    gamma, lam = given["gamma"], given["lam"]

    def f(u: Any, v: Any) -> Any:
        return made.f(u, v, made.data)

    def gradient(u: Any, v: Any) -> Any:
        return jax.grad(lambda v: made.g(u, v, made.data))(v)

    def step(state: Any) -> Any:
        u, v, upper_state, lower_state, nu = state

        def products(v: Any) -> Any:
            slope, pull = jax.vjp(gradient, u, v)
            return slope, pull(jax.tree.map(lambda d, m: gamma * d + m, slope, nu))

        def move(carry: Any, _: None) -> Any:
            v, lower_state = carry
            slope, (_, along) = products(v)
            direction = jax.tree.map(lambda a, b, d: a + b + lam * d, jax.grad(f, 1)(u, v), along, slope)
            update, lower_state = lower.update(direction, lower_state, v)
            return (optax.apply_updates(v, update), lower_state), None

        (v, lower_state), _ = jax.lax.scan(move, (v, lower_state), None, length=moves)
        slope, (along_u, along_v) = products(v)
        of_u, of_v = jax.grad(f, (0, 1))(u, v)
        of_u = jax.tree.map(jnp.add, of_u, along_u)
        of_v = jax.tree.map(lambda a, b, d: a + b + lam * d, of_v, along_v, slope)
        update, upper_state = upper.update(of_u, upper_state, u)
        ends = optax.tree.norm((of_u, of_v), squared=True) <= EPS**2
        nu = jax.tree.map(lambda m, d: m + jnp.where(ends, given["nu"] * gamma, 0.0) * d, nu, slope)
        return optax.apply_updates(u, update), v, upper_state, lower_state, nu

    return step


class ByHand:
    """As `guard.Loop`."""

    def __init__(self, made: jax_problems.Setup, given: dict[str, Any], moves: int):
        step, self.count = by_hand(made, given, moves), 1
        u, v = made.u, made.v
        upper, lower = optax.adam(given["upper_rate"]), ours.lower_optimizer(given)
        self.state = jax.tree.map(jnp.array, (u, v, upper.init(u), lower.init(v), optax.tree.zeros_like(v)))

        @functools.partial(jax.jit, donate_argnums=0)
        def loop(state: Any, count: Any) -> Any:
            return jax.lax.fori_loop(0, count, lambda _, state: step(state), state)

        self.program = loop.lower(self.state, 1).compile()

    def __call__(self) -> float:
        """Processor seconds of a step."""
        began = time.process_time()
        self.state = jax.block_until_ready(self.program(self.state, self.count))
        return (time.process_time() - began) / self.count


def main() -> None:
    """Print a line for each work and T."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", default="mlp,mnist", help="of synthetic, poisoning, mlp and mnist")
    parser.add_argument("--moves", default="1,10", help="the T's")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of runs")
    asked = parser.parse_args()
    print(f"{'work':<12}{'T':>4}{'ms by hand':>14}   Penalty / by hand: median (range)")
    for work in asked.works.split(","):
        arrays = jax_problems.warmed(work, works.WORKS[work].arrays(), works.WORKS[work].warm)
        made, given = jax_problems.setup(work, arrays), settings()[work]["penalty"]
        for moves in map(int, asked.moves.split(",")):
            mine, hand = Loop(made, ours.solver("penalty", given, moves), guarded=True), ByHand(made, given, moves)
            in_turn({"mine": mine, "hand": hand}, 1)
            mine.count = hand.count = max(1, math.ceil(AT_LEAST / min(mine(), hand())))
            times = in_turn({"mine": mine, "hand": hand}, asked.rounds)
            for a, b in zip(jax.tree.leaves(mine.carry.state.u), jax.tree.leaves(hand.state[0]), strict=True):
                assert jnp.allclose(a, b, atol=1e-2), "the two move u differently"
            milliseconds = 1e3 * statistics.median(times["hand"])
            print(
                f"{work:<12}{moves:>4}{milliseconds:>14.3f}   {middle(ratios(times['mine'], times['hand']), 2)}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What the guard against non-finite values and the records of each iteration cost, alone.

    taskset -c 1 python -m benchmarks.guard [--rounds 15] [--works synthetic,mlp] [--methods penalty,cg] [--moves 1,10]

`solve` runs a compiled loop (`bilevax.loop.stretch`) of steps, of the guard, which ends the loop before a step that is
not finite, and of what is recorded of each step. Here the same loop is timed with and without them, in turn, in
processor seconds. Without records XLA also leaves out what is computed for them alone, such as norms of gradients.
It runs the works of `benchmarks.peers`.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers import jax_problems, ours, works
from benchmarks.peers.competitors import settings
from benchmarks.stretch import in_turn, middle, ratios
from bilevax._programs import compiled
from bilevax.loop.stretch import Carry, initial_state, one_step, stretch

AT_LEAST = 0.1  # seconds of a timed call
CAPACITY = 20_000


@compiled("solver", "problem", donate=("carry",))
def bare(solver: Any, problem: Any, carry: Carry, source: Any, key: Any, first: Any, count: Any) -> Carry:
    """The steps of `stretch` alone."""
    batch_key, step_key = jax.random.split(key)

    def body(loop: Any) -> Any:
        i, state = loop
        step = first + i
        return i + 1, one_step(solver, problem, state, source.at(step, batch_key), jax.random.fold_in(step_key, step))[
            0
        ]

    state = jax.lax.while_loop(lambda loop: loop[0] < count, body, (jnp.zeros((), jnp.int32), carry.state))[1]
    return Carry(state, carry.alive)


class Loop:
    """A compiled loop of a work and a solver; a call takes `count` steps and returns processor seconds of one."""

    def __init__(self, made: jax_problems.Setup, solver: Any, guarded: bool):
        self.made, self.count, self.done = made, 1, 0
        state = initial_state(solver, made.problem, made.u, made.v, made.data)
        self.carry, self.key, self.guarded = Carry(state, jnp.asarray(True)), jax.random.key(0), guarded
        given = made.source, self.key, 0, 1
        lowered = (
            stretch.lower(solver, made.problem, CAPACITY, self.carry, *given)
            if guarded
            else bare.lower(solver, made.problem, self.carry, *given)
        )
        self.program = lowered.compile()

    def __call__(self) -> float:
        """Processor seconds of a step."""
        began = time.process_time()
        found = self.program(carry=self.carry, source=self.made.source, key=self.key, first=self.done, count=self.count)
        jax.block_until_ready(found)
        spent = time.process_time() - began
        self.carry = found[0] if self.guarded else found
        self.done += self.count
        return spent / self.count


def compare(work: str, method: str, moves: int, rounds: int) -> tuple[float, str]:
    """The median share of a step, and a line of the table."""
    arrays = jax_problems.warmed(work, works.WORKS[work].arrays(), works.WORKS[work].warm)
    made = jax_problems.setup(work, arrays)
    solver = ours.solver(method, settings()[work][method], moves)
    with_, without = Loop(made, solver, guarded=True), Loop(made, solver, guarded=False)
    for each in (with_, without):
        each()
    while (seconds := without()) * without.count < AT_LEAST / 2 and without.count < CAPACITY:
        without.count = min(CAPACITY, math.ceil(2 * without.count if seconds == 0 else AT_LEAST / seconds))
    with_.count = without.count
    calls: dict[str, Callable[[], float]] = {"with": with_, "without": without}
    times = in_turn(calls, rounds)
    assert bool(with_.carry.alive), f"{work}: the steps are not finite"
    share = [100 * (x - 1) for x in ratios(times["with"], times["without"])]
    microseconds = [1e6 * x for x in times["without"]]
    line = f"{work:<12}{method:<10}{moves:>4}{statistics.median(microseconds):>14.2f}   {middle(share, 1, '%')}"
    return statistics.median(share), line


def main() -> None:
    """Print a line for each work, method and T."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="pairs of runs of each")
    parser.add_argument("--works", default="synthetic,mlp,mnist", help=f"of {', '.join(works.WORKS)}")
    parser.add_argument("--methods", default="penalty", help="as in benchmarks.peers")
    parser.add_argument("--moves", default="1,10", help="the T's")
    given = parser.parse_args()
    print(f"{'work':<12}{'method':<10}{'T':>4}{'us a step':>14}   guard and records, share of a step: median (range)")
    for work in given.works.split(","):
        for method in given.methods.split(","):
            for moves in given.moves.split(","):
                print(compare(work, method, int(moves), given.rounds)[1], flush=True)


if __name__ == "__main__":
    main()

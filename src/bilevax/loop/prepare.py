"""What `solve` does before the first step: checks the batches, makes the state, and reads the save to resume."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.loop.arguments import Arguments
from bilevax.loop.feed import Feed, feed_of
from bilevax.loop.fingerprint import fingerprint_of
from bilevax.loop.result import Fingerprint, History, Saved
from bilevax.loop.signals import Asked, LeftError
from bilevax.loop.stretch import Carry, Program, info_of_step, initial_state
from bilevax.solvers import base
from bilevax.solvers.base import Info, State

STRETCH_BYTES = 1 << 28  # for the Info of a stretch, which stays on the device until the stretch ends


class Prepared(NamedTuple):
    """A solve before step `step`, to be taken in stretches of at most `every` steps."""

    feed: Feed
    program: Program
    every: int
    fingerprint: Callable[[], Fingerprint]
    step: int
    history: History
    carry: Carry


def prepare(given: Arguments, asked: Asked) -> Prepared:
    """Place and check u, v and the batches, and make the state, or read the state to resume.

    Raises:
        InputError: the arguments do not fit together.
        LeftError: a signal has come. With several processes a signal is handled after the first stretch instead.
    """
    solver, problem, placement = given.solver, given.problem, given.placement
    u, v = placement.variables(given.u, given.v)
    feed = feed_of(given.batches, placement, given.key, asked)
    base.check_moves(solver, feed.first)
    solver.check(problem, u, v, feed.checked)
    _leave_if(given, asked)
    state = placement.start(functools.partial(initial_state, solver, problem), u, v, feed.first)
    _leave_if(given, asked)
    shapes = info_of_step(solver, problem, state, feed.first)
    empty = jax.tree.map(lambda x: np.zeros((0, *x.shape), x.dtype), shapes)
    every = min(given.every, max(1, STRETCH_BYTES // sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))))
    program = Program(solver, problem, placement.same(given.key), placement.shardings(state), empty)
    fingerprint = functools.cache(
        functools.partial(
            fingerprint_of, solver, problem, state, feed.first, feed.source, given.key, (given.u, given.v)
        )
    )
    placement.agree(lambda: fingerprint()._asdict() | {"steps": str((given.steps, every))})
    saved = _saved(given, fingerprint, state, empty)
    carry = Carry(saved.state, placement.same(jnp.asarray(True)))
    return Prepared(feed, program, every, fingerprint, saved.step, History(saved.history), carry)


def _leave_if(given: Arguments, asked: Asked) -> None:
    if given.placement.ends(asked):
        raise LeftError


def _saved(given: Arguments, fingerprint: Callable[[], Fingerprint], state: State, empty: Info) -> Saved:
    """The newest save to resume, or `state` as step 0 if there is none."""
    if given.resume is None:
        return Saved(0, state, empty)
    found = given.resume.load(fingerprint(), state, empty) or Saved(0, state, empty)
    given.placement.agree(lambda: {"the_step_to_resume_from": str(found.step)})
    return found if found.state is state else found._replace(state=given.placement.like(found.state, state))

"""What `solve` does before the first step: checks the batches, makes the state, and reads the save to resume."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.loop.arguments import Arguments
from bilevax.loop.feed import Feed, feed_of
from bilevax.loop.fingerprint import fingerprint_of
from bilevax.loop.result import Fingerprint, History, Saved
from bilevax.loop.signals import Asked, LeftError
from bilevax.loop.sources import draws
from bilevax.loop.stretch import Carry, Program, info_of_step, initial_state
from bilevax.problem import Problem
from bilevax.solvers import base
from bilevax.solvers.base import Info, State

TRIAL = 500  # a solve of fewer steps is a trial, and not warned of
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
    _warn_of_defaults(solver, problem, feed.source is None or draws(feed.source), given.steps)
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


def _warn_of_defaults(solver: Any, problem: Problem, drawn: bool, steps: int) -> None:
    """Warn that default settings are for whole data, if the gradients are random in a solve that is no mere trial.

    Args:
        solver: its `lower_optimizer` is compared with that of its class.
        problem: whether its losses are random.
        drawn: whether the batches differ from step to step.
        steps: of the solve.
    """
    solver = getattr(solver, "solver", solver)  # that of the members of a Vectorized
    default = getattr(type(solver), "lower_optimizer", None)
    drawn |= problem.random_lower or problem.random_upper
    if drawn and steps >= TRIAL and default is not None and solver.lower_optimizer is default:
        name = type(solver).__name__
        warnings.warn(
            f"{name} has its default lower_optimizer, which is for whole data, and the gradients of this solve are "
            "random (minibatches or a random loss). With a constant rate v stops at a distance from v*(u), and the "
            "result may be far from a solution. Use bilevax.recommend(problem, u, v, batches, steps=steps).solver, or "
            "set the optimizers, with rates that fall.",
            stacklevel=4,
        )

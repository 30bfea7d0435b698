"""The one loop: compiled stretches of steps, and a visit to the host between two of them."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from jax.sharding import Mesh

from bilevax._checks import PyTree
from bilevax.loop import signals
from bilevax.loop.arguments import Arguments, checked
from bilevax.loop.layout import Layout
from bilevax.loop.prepare import prepare
from bilevax.loop.result import Callback, Result, Resumable, Run, SolveError, Status, Visit
from bilevax.loop.signals import INTERRUPT, PREEMPTION, Asked
from bilevax.loop.sources import Source
from bilevax.loop.stretch import Carry
from bilevax.problem import Batch, Problem
from bilevax.solvers.base import Solver


def solve(
    solver: Solver,
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batches: Batch | Source | Iterable[Batch] | None = None,
    *,
    steps: int,
    key: Any,
    every: int | None = None,
    stop: Callable[[Visit], bool] | None = None,
    callbacks: Sequence[Callback | Callable[[Visit], None]] = (),
    resume: Resumable | None = None,
    mesh: Mesh | Layout | None = None,
    throw: bool = True,
) -> Result:
    """Solve a bilevel problem.

    Args:
        solver: one of `bilevax.solvers`, or anything with its three methods.
        problem: what to solve.
        u, v: the start, pytrees of floating arrays. They are copied, not consumed.
        batches: None, one fixed Batch, a source such as `Minibatches` or `Epochs` (sampled inside the
            compiled loop), or a host iterable of Batches (prefetched; one compiled call each).
        steps: how many steps to take in all, those before a resume included.
        key: a jax.random key. The same key on the same machine gives the same bits.
        every: steps between two visits to the host; by default a hundredth of `steps`, at most 1,000. Fewer where
            the Info of so many would fill more than 256 MB.
        stop: called at each visit; True ends the solve.
        callbacks: called at each visit, in order, such as `Checkpoint` and `Progress`.
        resume: where an earlier solve left its checkpoints, say the same `Checkpoint`;
            the solve continues bit for bit from the newest, or starts if there is none. A host
            iterable is advanced to that step, so pass one that starts from its beginning.
        mesh: several devices (a `jax.sharding.Mesh`, whose axis "data" splits the batches) and, by a
            `Layout`, how u and v are laid out. The history differs from that of one device by rounding only.
        throw: raise SolveError if a value is not finite; False returns the Result with that status.

    Between two visits nothing is read back and the loop is one compiled call, compiled once for each
    (solver, problem, shapes). A step that gives a NaN or an infinity ends the solve at the state before it.
    Ctrl-C ends it after the running stretch, or where a host iterable stalls, callbacks (checkpoints)
    included, and raises SolveInterrupted, a KeyboardInterrupt; a second one ends it at once. Where a
    Checkpoint is among the callbacks, SIGTERM and SIGUSR1 end it in the same way, with SolveTerminated, a
    SystemExit; without one they do what they did before. A handler of your own for them is called once all is
    saved. However a solve ends, every callback that was started is finished.

    With several processes (`jax.distributed.initialize`) the mesh spans the devices of all, and every process calls
    this with the same arguments: settings that differ are refused before the first step, and what one process decides
    (Ctrl-C, `stop`) holds for all. Callbacks are called in each; those of bilevax write in the first alone.

    Raises:
        InputError: the arguments do not fit; nothing has run.
        ProcessLostError: another process has gone; a checkpoint of this solve can be resumed. (Without the first one,
            which coordinates, JAX may end this process before, with a message of its own.)
        SolveError: a value was not finite; `.result` holds the last finite state.
        SolveInterrupted: Ctrl-C; `.result` holds the state of the last finished step. (Before there is a state, a
            plain KeyboardInterrupt.)
        SolveTerminated: SIGTERM or SIGUSR1, where a Checkpoint is among the callbacks; `.result` as above.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Penalty, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, target: jnp.sum((v - target) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - u) ** 2),
        ... )
        >>> from bilevax import Batch
        >>> result = solve(
        ...     Penalty(), problem, jnp.zeros(2), jnp.zeros(2), Batch(upper=jnp.array([1.0, -1.0])),
        ...     steps=2000, key=jax.random.key(0),
        ... )
        >>> result.status.name, result.history.upper_loss.shape
        ('FINISHED', (2000,))
    """
    given = checked(solver, problem, u, v, batches, steps, key, every, stop, callbacks, resume, mesh)
    steps, placement, saver = given.steps, given.placement, given.saver
    with signals.deferred(INTERRUPT, *(() if saver is None else PREEMPTION)) as asked:
        try:
            feed, program, longest, fingerprint, step, history, carry = prepare(given, asked)
        except signals.LeftError:
            raise signals.ended(asked, saver, "The solve was ended by a signal before its first step.") from None
        status, final, began = Status.FINISHED, None, time.perf_counter()
        with ExitStack() as left, placement.together():
            for callback in given.callbacks:
                left.callback(lambda callback=callback: callback.finish(final))
                callback.start(Run(step, steps, resume is not None, fingerprint, placement.processes > 1))
            left.enter_context(feed.opened(step, steps, asked))
            if step < steps and not asked:
                carry = feed.compiled(program, longest, carry)
            while step < steps and status is Status.FINISHED and not placement.ends(asked):
                count = min(longest, steps - step)
                carry, info, taken = feed.advance(program, longest, carry, step, count)
                step += taken
                history.add(info)
                visit = Visit(step, steps, time.perf_counter() - began, info, carry.state, history)
                for callback in given.callbacks if taken > 0 else ():
                    callback.visit(visit)
                status = _status(given, asked, visit, carry, complete=taken == count)
            if asked and status not in (Status.NON_FINITE, Status.TERMINATED):
                status = asked.status
            final = Result(carry.state.u, carry.state.v, status, step, history(), carry.state)
        asked.poll()
        if asked or status in (Status.INTERRUPTED, Status.TERMINATED):
            raise signals.ended(asked, saver, f"Step {step} of {steps}: {status.value}.", final)
    if throw and status is Status.NON_FINITE:
        fault = feed.fault(step)
        reason = status.value if fault is None else f"a step gave a NaN or an infinity, since its {fault}"
        raise SolveError(f"Step {step + 1} of {steps}: {reason.removesuffix('.')}.", final)
    return final


def _status(given: Arguments, asked: Asked, visit: Visit, carry: Carry, complete: bool) -> Status:
    """How the solve stands after a stretch, the same in all processes; FINISHED: go on while there are steps."""
    status = Status.FINISHED if complete else Status.EXHAUSTED if bool(carry.alive) else Status.NON_FINITE
    met = status is Status.FINISHED and bool(given.stop(visit))
    interrupted, preempted, met = given.placement.any(asked.interrupted, bool(asked) and not asked.interrupted, met)
    if status is not Status.NON_FINITE and (interrupted or preempted):
        return Status.INTERRUPTED if interrupted else Status.TERMINATED
    return Status.STOPPED if met else status

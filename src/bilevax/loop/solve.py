"""`solve`: compiled stretches of steps, with a visit to the host after each."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax.loop import signals
from bilevax.loop.arguments import Arguments, checked
from bilevax.loop.layout import Layout
from bilevax.loop.prepare import prepare
from bilevax.loop.result import Callback, Result, Resumable, Run, SolveError, Visit
from bilevax.loop.signals import INTERRUPT, PREEMPTION, Asked
from bilevax.loop.sources import Source
from bilevax.loop.status import Status
from bilevax.loop.stretch import Carry
from bilevax.problem import Batch, Problem
from bilevax.solvers.base import Solver


def solve(
    solver: Solver,
    problem: Problem,
    u: PyTree[Float[Array, "..."]],
    v: PyTree[Float[Array, "..."]],
    batches: Batch | Source | Iterable[Batch] | None = None,
    *,
    steps: int,
    key: PRNGKeyArray,
    every: int | None = None,
    stop: Callable[[Visit], bool] | None = None,
    callbacks: Sequence[Callback | Callable[[Visit], None]] = (),
    resume: Resumable | None = None,
    mesh: Mesh | Layout | None = None,
    throw: bool = True,
) -> Result:
    """Solve a bilevel problem.

    Args:
        solver: one of `bilevax.solvers`, or an object with the same three methods.
        problem: the problem.
        u, v: the start, pytrees of floating arrays. They are copied.
        batches: None, one fixed Batch, a source such as `Minibatches` or `Epochs` (sampled inside the compiled loop),
            or a host iterable of Batches of one tree structure (prefetched; one compiled call for each), whose leaves
            may be tensors of PyTorch or TensorFlow on the CPU. See "Data loaders" on the page of models.
        steps: the number of steps, including the steps before a resume.
        key: a jax.random key. The same key on the same machine gives the same bits.
        every: the number of steps between two visits to the host. The default is a hundredth of `steps`, at most 1,000.
            It is smaller if the Info of that many steps would take more than 256 MB.
        stop: a function of a Visit, called at each visit. The solve ends when it returns True.
        callbacks: `Callback` objects, such as `Checkpoint` and `Progress`, or functions of a Visit; called in this
            order at each visit.
        resume: an object with the saves of an earlier solve, usually the same `Checkpoint` as in `callbacks`. The solve
            continues bit for bit from the newest save, or starts from u and v if there is none. The batches of a host
            iterable before that step are skipped, so pass an iterable that starts from its beginning.
        mesh: the devices, as a `jax.sharding.Mesh` whose axis "data" splits the batches, or as a `Layout`, which can
            also split u and v. The default is one device; on a mesh the history differs from that by rounding only.
        throw: whether to raise SolveError if a value is not finite. If False, the Result is returned with that status.

    Between two visits the loop is one compiled call, compiled once for each (solver, problem, shapes), and nothing is
    read back. A step that gives a NaN or an infinity ends the solve, with the state before that step.

    Ctrl-C ends the solve after the current stretch, or while it waits for a host iterable. Callbacks (checkpoints) are
    finished, and SolveInterrupted, a KeyboardInterrupt, is raised. A second Ctrl-C ends the solve at once. If a
    Checkpoint is among the callbacks, SIGTERM and SIGUSR1 end the solve in the same way, with SolveTerminated, a
    SystemExit; your own handlers for them are called after the last save. Without a Checkpoint the handling of these
    signals is not changed. In all cases every callback that was started is finished.

    With several processes (`jax.distributed.initialize`) the mesh spans the devices of all processes, and every process
    calls `solve` with the same arguments; different settings are refused before the first step. If one process is
    interrupted or its `stop` returns True, all processes end. Callbacks are called in each process; the callbacks of
    bilevax write in the first process only.

    Raises:
        InputError: an argument cannot be used (raised before the first step), or a later batch of a host iterable
            cannot.
        ProcessLostError: another process was lost. The solve can be resumed from a checkpoint. (If the first process,
            the coordinator, was lost, JAX may end this process first, with its own message.)
        SolveError: a value was not finite; `.result` holds the last finite state.
        SolveInterrupted: Ctrl-C; `.result` holds the state after the last step. (A plain KeyboardInterrupt if there is
            no state yet.)
        SolveTerminated: SIGTERM or SIGUSR1 with a Checkpoint among the callbacks; `.result` as above.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Batch, Penalty, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, target: jnp.sum((v - target) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - u) ** 2),
        ... )
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
    caution = getattr(solver, "caution", None)
    text = (
        caution(final.state, final.history) if caution is not None and final.status is not Status.NON_FINITE else None
    )
    if text is not None:
        warnings.warn(text, stacklevel=2)
    return final


def _status(given: Arguments, asked: Asked, visit: Visit, carry: Carry, complete: bool) -> Status:
    """The status after a stretch, the same in all processes; FINISHED if the solve can take further steps."""
    status = Status.FINISHED if complete else Status.EXHAUSTED if bool(carry.alive) else Status.NON_FINITE
    met = status is Status.FINISHED and bool(given.stop(visit))
    interrupted, preempted, met = given.placement.any(asked.interrupted, bool(asked) and not asked.interrupted, met)
    if status is not Status.NON_FINITE and (interrupted or preempted):
        return Status.INTERRUPTED if interrupted else Status.TERMINATED
    return Status.STOPPED if met else status

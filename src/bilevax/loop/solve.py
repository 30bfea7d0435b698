"""The one loop: compiled stretches of steps, and a visit to the host between two of them."""

import functools
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bilevax._checks import (
    InputError,
    PyTree,
    check_finite,
    check_key,
    check_variable,
    described,
    require_count,
    require_function,
)
from bilevax.loop import placement as layouts
from bilevax.loop import signals
from bilevax.loop.fingerprint import fingerprint_of
from bilevax.loop.placement import Layout
from bilevax.loop.result import (
    Callback,
    ProcessLostError,
    Result,
    Resumable,
    Run,
    SolveError,
    SolveInterrupted,
    SolveTerminated,
    Status,
    Visit,
)
from bilevax.loop.signals import INTERRUPT, PREEMPTION, Asked
from bilevax.loop.sources import Fixed, Source, prefetch, require_batch, resident
from bilevax.loop.stretch import Carry, one_step, stretch
from bilevax.problem import Batch, Problem
from bilevax.solvers import base
from bilevax.solvers.base import Info, Solver

MOST_STEPS = 2**31 - 1
STRETCH_BYTES = 1 << 28  # of Info, which a stretch keeps on the device until it ends
LONGEST_STRETCH = 1000  # steps, by default
BEFORE_THE_FIRST = "The solve was ended by a signal before its first step."


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
        callbacks: called at each visit, in order; such as `Checkpoint` and `Progress`.
        resume: where an earlier solve left its checkpoints, say the same `Checkpoint`;
            the solve continues bit for bit from the newest, or starts if there is none. A host
            iterable is wound forward, so hand over one that starts from its beginning.
        mesh: several devices (a `jax.sharding.Mesh`, whose axis "data" splits the batches) and, by a
            `Layout`, what lies where. The history is that of one device but for the order of sums.
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
            which coordinates, JAX may be the sooner to end this process, with a sentence of its own.)
        SolveError: a value was not finite; `.result` holds the last finite state.
        SolveInterrupted: Ctrl-C; `.result` holds the state of the last finished step. (Before there is a state, a
            plain KeyboardInterrupt.)
        SolveTerminated: SIGTERM or SIGUSR1, where a Checkpoint is among the callbacks; `.result` likewise.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Penalty, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, target: jnp.sum((v - target) ** 2),
        ...     lower_loss=lambda u, v: jnp.sum((v - u) ** 2),
        ... )
        >>> from bilevax import Batch
        >>> result = solve(
        ...     Penalty(), problem, jnp.zeros(2), jnp.zeros(2), Batch(upper=jnp.array([1.0, -1.0])),
        ...     steps=2000, key=jax.random.key(0),
        ... )
        >>> result.status.name, result.history.upper_loss.shape
        ('FINISHED', (2000,))
    """
    base.require_solver("solve", solver)
    if not isinstance(problem, Problem):
        raise InputError(f"solve: problem is {described(problem)}, and must be a bilevax.Problem.")
    steps = require_count("solve", "steps", steps)
    if steps > MOST_STEPS:
        raise InputError(f"solve: steps is {steps}, and may be at most {MOST_STEPS}.")
    every = min(LONGEST_STRETCH, max(1, steps // 100)) if every is None else require_count("solve", "every", every)
    # Below that length solves of any number of steps share their program.
    every = min(every, max(steps, LONGEST_STRETCH))
    check_key("solve", key)
    if isinstance(mesh, Mesh):
        mesh = Layout(mesh)
    if mesh is not None and not isinstance(mesh, Layout):
        raise InputError(f"mesh is {described(mesh)}, and must be a jax.sharding.Mesh or a bilevax.Layout.")
    if stop is not None:
        require_function("solve", "stop", stop, "stop(visit) -> bool")
    _check_callbacks(callbacks)
    if resume is not None and (isinstance(resume, type) or not callable(getattr(resume, "load", None))):
        raise InputError(
            f"solve: resume is {described(resume)}. Pass what was a callback of the earlier solve, such as "
            "bilevax.Checkpoint(directory)."
        )
    check_variable("u", u)
    check_variable("v", v)
    saver = next((c for c in callbacks if hasattr(c, "visit") and hasattr(c, "load")), None)
    with signals.deferred(INTERRUPT, *(() if saver is None else PREEMPTION)) as asked:
        final, cause = _solve(
            solver, problem, u, v, batches, steps, key, every, stop, callbacks, resume, mesh, saver, asked
        )
    if throw and final.status is Status.NON_FINITE:
        reason = final.status.value if cause is None else f"a step gave a NaN or an infinity, since its {cause}"
        raise SolveError(f"Step {final.steps + 1} of {steps}: {reason.removesuffix('.')}.", final)
    return final


def _solve(
    solver: Solver,
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batches: Any,
    steps: int,
    key: Any,
    every: int,
    stop: Callable[[Visit], bool] | None,
    callbacks: Sequence[Any],
    resume: Resumable | None,
    layout: Layout | None,
    saver: Any,
    asked: Asked,
) -> tuple[Result, str | None]:
    """`solve`, with its signals caught (`asked`) and the callback that saves (`saver`), if there is one.

    Beside the result comes what is wrong with the batch of a step that gave a value that is not finite.
    """
    given, several = (u, v), layout is not None and jax.process_count() > 1

    def heed() -> None:
        """End here, before there is a state, if a signal has come. Of several processes none ends alone."""
        asked.poll()
        if asked and not several:
            raise _left(asked, saver, BEFORE_THE_FIRST, None)

    if layout is None:
        u, v = (jax.tree.map(lambda x: jnp.array(x, copy=True), x) for x in (u, v))
    else:
        u, v = (layouts.placed(x, layout.of_variable(name, x)) for name, x in (("u", u), ("v", v)))
    try:
        source, stream, first_batch, farthest = _feed(batches, key, asked)
    except signals.LeftError:
        raise _left(asked, saver, BEFORE_THE_FIRST, None) from None
    if layout is not None and stream is not None:
        first_batch = farthest = layouts.placed_share(first_batch, layout)
    base.check_moves(solver, first_batch)
    try:
        hash((solver, problem))
    except TypeError as error:
        raise InputError(
            f"The solver or the problem holds a field that cannot be hashed ({error}). "
            "Keep arrays out of them: they belong in u, v or the batches."
        ) from error
    solver.check(problem, u, v, farthest)
    heed()
    fed: Any
    if layout is None:
        state, form, shardings = _start(solver, problem, u, v, first_batch), None, None
        fed, fed_key = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, source), key
    else:
        start = functools.partial(_start, solver, problem, batch=_blank(first_batch))
        form = layout.of_state(jax.eval_shape(start, u, v), u, v)
        state, shardings = jax.jit(start, out_shardings=form)(u, v), tuple(jax.tree.leaves(form))
        fed = None if source is None else layouts.placed_source(source, layout)
        fed_key = layouts.placed(key, layout.sharding(PartitionSpec()))
    heed()
    info = _info_of(solver, problem, state, first_batch)
    row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(info))
    every = min(every, max(1, STRETCH_BYTES // row))
    fingerprint = functools.cache(
        functools.partial(fingerprint_of, solver, problem, state, first_batch, source, key, given)
    )
    if several:
        layouts.require_agreement(**fingerprint()._asdict(), steps=str((steps, every)), mesh=repr(layout))
    step, chunks = 0, [jax.tree.map(lambda x: np.zeros((0, *x.shape), x.dtype), info)]
    if resume is not None:
        saved = resume.load(fingerprint(), state, chunks[0])
        if saved is not None:
            step, chunks = saved.step, [saved.history]
            if layout is None:
                state = jax.tree.map(lambda x: jnp.array(x, copy=True), saved.state)
            else:
                state = layouts.placed(saved.state, form)
        if several:
            layouts.require_agreement(the_step_to_resume_from=str(step))

    def history() -> Info:
        chunks[:] = [jax.tree.map(lambda *x: np.concatenate(x), *chunks)]
        return chunks[0]

    def result(status: Status, carry: Carry) -> Result:
        state = carry.state
        return Result(state.u, state.v, status, step, history(), state)

    listeners: list[Any] = [c if hasattr(c, "visit") else _OnVisit(c) for c in callbacks]
    alive = jnp.asarray(True)
    if layout is not None:
        alive = layouts.placed(alive, layout.sharding(PartitionSpec()))
    carry, status, final = Carry(state, alive), Status.FINISHED, None
    started = time.perf_counter()
    with ExitStack() as left, _together(several):
        for listener in listeners:
            left.callback(lambda listener=listener: listener.finish(final))
            listener.start(Run(step, steps, resume is not None, fingerprint, several))
        place = jax.device_put if layout is None else functools.partial(layouts.placed_share, layout=layout)
        faults: dict[int, str] = {}
        numbers = itertools.count(step)

        def inspected(batch: Batch) -> Batch:
            """A host batch, placed; what is not finite in it is remembered, in case its step fails."""
            number, fault = next(numbers), _fault(batch)
            if fault is not None:
                faults[number] = fault
            return place(batch)

        feed = None if stream is None else prefetch(itertools.islice(stream, step, steps), inspected, asked=asked)
        if feed is not None:
            left.callback(feed.close)  # type: ignore[attr-defined]
        elif step < steps and not asked:
            # No step is taken: this compiles, and a signal that comes meanwhile need not wait for a whole stretch.
            carry, _, _ = stretch(solver, problem, every, carry, fed, fed_key, step, 0, shardings)
        while step < steps:
            asked.poll()
            if asked and not several:
                break
            count = min(every, steps - step)
            if feed is None:
                carry, told, taken = stretch(solver, problem, every, carry, fed, fed_key, step, count, shardings)
                told, taken = jax.device_get((told, taken))
            else:
                carry, told, taken = _stream_stretch(
                    solver, problem, shardings, carry, feed, fed_key, step, count, chunks[0], several
                )
            taken = int(taken)
            step += taken
            chunks.append(jax.tree.map(lambda x, n=taken: x[:n], told))
            visit = Visit(step, steps, time.perf_counter() - started, chunks[-1], carry.state, history)
            if taken < count:
                status = Status.EXHAUSTED if bool(carry.alive) else Status.NON_FINITE
            if taken > 0:
                for listener in listeners:
                    listener.visit(visit)
            met = status is Status.FINISHED and stop is not None and stop(visit)
            interrupted, preempted = asked.interrupted, bool(asked) and not asked.interrupted
            if several:
                interrupted, preempted, met = layouts.any_process(interrupted, preempted, met)
            if (interrupted or preempted) and status is not Status.NON_FINITE:
                status = Status.INTERRUPTED if interrupted else Status.TERMINATED
            elif met:
                status = Status.STOPPED
            if status is not Status.FINISHED:
                break
        if asked and status not in (Status.NON_FINITE, Status.TERMINATED):
            status = Status.INTERRUPTED if asked.interrupted else Status.TERMINATED
        final = result(status, carry)
    asked.poll()
    if asked or status in (Status.INTERRUPTED, Status.TERMINATED):
        raise _left(asked, saver, f"Step {step} of {steps}: {status.value}.", final)
    if status is not Status.NON_FINITE:
        return final, None
    return final, faults.get(step) if source is None else _fault(source.at(step, jax.random.split(key)[0]))


def _fault(batch: Batch) -> str | None:
    """What is not finite in a batch, in words; None if all is."""
    try:
        check_finite("batch", batch)
    except InputError as error:
        return str(error)
    return None


def _left(asked: Asked, saver: Any, sentence: str, result: Result | None) -> BaseException:
    """What a solve that a signal ends raises; how to go on is printed, unless somebody around it will say so."""
    interrupted = asked.interrupted
    if result is not None and result.status in (Status.INTERRUPTED, Status.TERMINATED):
        interrupted = result.status is Status.INTERRUPTED  # it may have come from another process
    if interrupted:
        return KeyboardInterrupt(sentence) if result is None else SolveInterrupted(sentence, result)
    where = getattr(saver, "directory", None)
    sentence += (
        f" To go on from there, call solve again with the same arguments and with this {type(saver).__name__}"
        f"{'' if where is None else f' ({str(where)!r})'} as resume= too."
    )
    if asked.outermost:
        print(sentence, file=sys.stderr, flush=True)
    return SolveTerminated(sentence, result)


def _feed(batches: Any, key: Any, asked: Asked) -> tuple[Any, Any, Batch, Batch]:
    """(source, None, first batch, batch to check) or (None, stream, first batch, the same)."""
    if isinstance(batches, str | bytes | dict | np.ndarray | jax.Array) or hasattr(batches, "iloc"):
        raise InputError(
            f"batches is {described(batches)}, which says not what is for which level. Pass a bilevax.Batch(upper=..., "
            "lower=...), a source such as bilevax.Minibatches, or an iterable of Batches."
        )
    if batches is None or isinstance(batches, Batch) or hasattr(batches, "at"):
        source, first, last = resident("batches", batches, jax.random.split(key)[0])
        return source, None, first, last
    if not isinstance(batches, Iterable):
        called = " Call it, and pass what it returns." if callable(batches) else ""
        raise InputError(
            f"batches is {described(batches)}.{called} Pass a bilevax.Batch, a source such as bilevax.Minibatches, "
            "or an iterable of Batches."
        )
    stream = iter(batches)
    try:
        first = signals.unless(asked, lambda: next(stream))
    except StopIteration:
        raise InputError("batches is empty: an iterable of at least one Batch is needed.") from None
    require_batch(first)
    rest, first = itertools.chain([first], stream), jax.tree.map(jnp.asarray, first)
    return None, rest, first, first


def _stream_stretch(
    solver: Solver,
    problem: Problem,
    shardings: tuple[NamedSharding, ...] | None,
    carry: Carry,
    feed: Iterator[Batch],
    key: Any,
    first: int,
    count: int,
    before: Info,
    several: bool,
) -> tuple[Carry, Info, int]:
    """As `stretch`, with one compiled call per host batch; nothing is read back in between.

    `before` is any earlier Info, for the shapes of an empty one. Of several processes the first whose batches run out
    ends it for all.
    """
    told, taken = [], []
    for i in range(count):
        batch = next(feed, None)
        if several and layouts.any_process(batch is None)[0]:
            break
        if batch is None:
            break
        carry, info, n = stretch(solver, problem, 1, carry, Fixed(batch), key, first + i, 1, shardings)
        told.append(info)
        taken.append(n)
    if not told:
        return carry, jax.tree.map(lambda x: x[:0], before), 0
    told, taken = jax.device_get((told, taken))
    return carry, jax.tree.map(lambda *x: np.concatenate(x), *told), int(sum(taken))


def _info_of(solver: Solver, problem: Problem, state: Any, batch: Batch) -> Info:
    """The shapes of a step's Info; a step that cannot be traced is refused."""
    try:
        state, info = jax.eval_shape(functools.partial(one_step, solver, problem), state, batch, jax.random.key(0))
    except InputError:
        raise
    except Exception as error:  # of the optimizers, or of a loss whose derivatives JAX cannot take
        text = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{type(solver).__name__} cannot take a step on this problem ({type(error).__name__}: {text}). The losses "
            "can be evaluated, so it is their derivatives, or what the optimizers make of them, that fail."
        ) from error
    return info


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, list | tuple):
        raise InputError(f"solve: callbacks is {described(callbacks)}. Pass a list of them.")
    for c in callbacks:
        methods = [callable(getattr(c, name, None)) for name in ("start", "visit", "finish")]
        if isinstance(c, type) or not (all(methods) or (callable(c) and not any(methods))):
            raise InputError(
                f"solve: callbacks holds {described(c)}. Each must be a function of a Visit, or an object with the "
                "methods start, visit and finish, such as bilevax.Progress()."
            )


class _OnVisit:
    """A plain function as a Callback."""

    def __init__(self, function: Any):
        self.visit = function

    def start(self, run: Run) -> None:
        pass

    def finish(self, result: Result | None) -> None:
        pass


def _blank(batch: Batch) -> Batch:
    """A batch of the same shapes: all that `init` asks for."""
    return jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.zeros(x.shape, x.dtype), batch
    )


def _start(solver: Solver, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> Any:
    """The state at (u, v), in strong types: else the second stretch would find other types and compile again.

    Every array is a copy, since the state is donated: an optimizer's `init` may hand on an array of the caller's, such
    as a learning rate or a key, and may hold one array twice (L-BFGS).
    """

    def own(x: Any) -> Any:
        return jnp.array(jax.lax.convert_element_type(x, jnp.result_type(x)), copy=True)

    return jax.tree.map(own, solver.init(problem, u, v, batch))


@contextmanager
def _together(several: bool) -> Iterator[None]:
    """Within, the error of a collective without one of its processes is a sentence."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # XLA's errors begin with their kind; some of them reach Python as ValueError.
        if not several or not re.match("[A-Z_]+: ", str(error)):
            raise
        cause = str(error).strip().splitlines()[0][:200]
        raise ProcessLostError(
            f"Process {jax.process_index()} of {jax.process_count()}: a step that all take together failed ({cause}). "
            "Another process has most likely been killed or has lost its connection. Start all of them again; with a "
            "Checkpoint as callback and as resume= the solve goes on from the last save."
        ) from error

"""Where the loop gets its batches: from a source on the device, or from an iterable on the host.

`Resident` and `Stream` have the same methods, so the loop is the same for both. `Resident` makes one compiled call for
each stretch, `Stream` one for each batch.
"""

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from bilevax._arrays import check_finite, require_arrays
from bilevax._checks import InputError, described, short_reason
from bilevax.loop import signals
from bilevax.loop.placement import Placement
from bilevax.loop.signals import POLL_SECONDS, Asked
from bilevax.loop.sources import Fixed, Source, resident
from bilevax.loop.stretch import Carry, Program, info_of_step
from bilevax.loop.tensors import as_arrays
from bilevax.problem import Batch
from bilevax.solvers.base import Info


class Feed(Protocol):
    """The batches of a solve.

    Attributes:
        first: the first batch; on the devices if the feed is a `Stream`.
        checked: the batch for `Solver.check`: the one with the largest indices if that is known, else the first.
        source: the source that `solve` was called with; None for an iterable.
    """

    @property
    def first(self) -> Batch: ...  # noqa: D102

    @property
    def checked(self) -> Batch: ...  # noqa: D102

    @property
    def source(self) -> Source | None: ...  # noqa: D102

    def opened(self, step: int, steps: int, asked: Asked) -> AbstractContextManager[Any]:
        """A context in which the batches `step` to `steps - 1` are available; a signal (`asked`) ends the wait."""
        ...

    def compiled(self, program: Program, capacity: int, carry: Carry) -> Carry:
        """Compile the program without taking a step, if possible, so that a signal can end the solve right after."""
        ...

    def advance(self, program: Program, capacity: int, carry: Carry, step: int, count: int) -> tuple[Carry, Info, int]:
        """Take `count` steps, or fewer if a step is not finite or batches run out.

        Returns:
            The carry after the last step, the Info of the steps (on the host), and their number.
        """
        ...

    def fault(self, step: int) -> str | None:
        """A sentence on the first non-finite value in the batch of a step; None if no such value is known."""
        ...


class Resident:
    """A source on the device: a stretch is one compiled call."""

    def __init__(self, source: Source, placement: Placement, first: Batch, checked: Batch, key: PRNGKeyArray):
        self.source, self.first, self.checked = source, first, checked
        self._placement, self._key = placement, key
        self._placed: Any = None

    def opened(self, step: int, steps: int, asked: Asked) -> AbstractContextManager[Any]:
        """Place the source on the devices."""
        self._placed = self._placement.source(self.source)
        return contextlib.nullcontext()

    def compiled(self, program: Program, capacity: int, carry: Carry) -> Carry:
        """Run a stretch of no steps."""
        return program(capacity, carry, self._placed, 0, 0)[0]

    def advance(self, program: Program, capacity: int, carry: Carry, step: int, count: int) -> tuple[Carry, Info, int]:
        """Make one compiled call, and read back its Info."""
        carry, info, taken = program(capacity, carry, self._placed, step, count)
        info, taken = jax.device_get((info, taken))
        return carry, jax.tree.map(lambda x: x[:taken], info), int(taken)

    def fault(self, step: int) -> str | None:
        """Draw the batch again and check it."""
        return _fault(self.source.at(step, self._key))


class Stream:
    """An iterable on the host, prefetched: each batch is one compiled call; a stretch is read back at its end."""

    source = None

    def __init__(self, batches: Iterator[Batch], placement: Placement, first: Batch):
        self.first = self.checked = placement.batch(first)
        self._batches, self._placement = itertools.chain([first], batches), placement
        self._structure = jax.tree.structure(first)
        self._shapes = {_shapes(self.first)}
        self._ready: Iterator[Batch] = iter(())
        self._faults: dict[int, str] = {}

    @contextmanager
    def opened(self, step: int, steps: int, asked: Asked) -> Iterator[None]:
        """Skip the batches before `step`; a thread reads the others ahead of the loop."""
        numbers = itertools.count(step)

        def place(batch: Batch) -> Batch:
            """Put a batch on the devices; record what is not finite in it, for the error if its step fails."""
            number = next(numbers)
            batch = arrays_of(batch)
            require_structure(number, batch, self._structure)
            fault = _fault(batch)
            if fault is not None:
                self._faults[number] = fault
            return self._placement.batch(batch)

        with contextlib.closing(prefetch(itertools.islice(self._batches, step, steps), place, asked=asked)) as ready:
            self._ready = ready
            yield

    def compiled(self, program: Program, capacity: int, carry: Carry) -> Carry:
        """Do nothing, since the first batch may not be available yet."""
        return carry

    def advance(self, program: Program, capacity: int, carry: Carry, step: int, count: int) -> tuple[Carry, Info, int]:
        """Make one compiled call for each batch, until the batches of any process run out."""
        infos, taken = [], []
        for i in range(count):
            batch = next(self._ready, None)
            if self._placement.any(batch is None)[0] or batch is None:
                break
            self._require_step(program, carry, batch, step + i)
            carry, info, n = program(1, carry, Fixed(batch), step + i, 1)
            infos.append(info)
            taken.append(n)
        infos, taken = jax.device_get((infos, taken))
        total = int(sum(taken))
        info = jax.tree.map(lambda *x: np.concatenate(x)[:total], program.empty, *infos)
        return carry, info, total

    def _require_step(self, program: Program, carry: Carry, batch: Batch, number: int) -> None:
        """Raise InputError if the solver cannot take a step with a batch of new shapes."""
        shapes = _shapes(batch)
        if shapes in self._shapes:
            return
        try:
            info_of_step(program.solver, program.problem, carry.state, batch)
        except InputError as error:
            solver, reason = type(program.solver).__name__, short_reason(error.__cause__ or error)
            raise InputError(
                f"batches yields a batch {number} with arrays of shapes {_listed(batch)}, and its first, batch 0, has "
                f"{_listed(self.first)}. {solver} cannot take a step with it ({reason}). Yield batches of one shape: "
                "leave out a last, smaller batch, in PyTorch by drop_last=True."
            ) from error
        self._shapes.add(shapes)

    def fault(self, step: int) -> str | None:
        """The sentence that was recorded when the batch was placed."""
        return self._faults.get(step)


def feed_of(batches: Any, placement: Placement, key: PRNGKeyArray, asked: Asked) -> Resident | Stream:
    """The feed for the argument `batches` of `solve`.

    Raises:
        InputError: it is neither a Batch, nor a source, nor an iterable of Batches.
        LeftError: a signal came before the first batch of an iterable.
    """
    if isinstance(batches, str | bytes | dict | np.ndarray | jax.Array) or hasattr(batches, "iloc"):
        raise InputError(
            f"batches is {described(batches)}, which does not say which data belong to which level. Pass a "
            "bilevax.Batch(upper=..., lower=...), a source such as bilevax.Minibatches, or an iterable of Batches."
        )
    if isinstance(batches, Batch):
        batches = as_arrays("batch", batches)
    if batches is None or isinstance(batches, Batch | Source):
        batch_key = jax.random.split(key)[0]
        source, first, last = resident("batches", batches, batch_key)
        return Resident(source, placement, first, last, batch_key)
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
    return Stream(stream, placement, arrays_of(first))


def _fault(batch: Batch) -> str | None:
    """The error message of `check_finite`, if a value is not finite."""
    try:
        check_finite("batch", batch)
    except InputError as error:
        return str(error)
    return None


def arrays_of(batch: Any) -> Batch:
    """An item of a host iterable as a Batch of arrays; those of NumPy are copies.

    JAX may use the memory of a NumPy array on the CPU as it is, and a loader may refill it for its next batch.

    Raises:
        InputError: it is not a Batch of arrays.
    """
    if not isinstance(batch, Batch):
        raise InputError(
            f"batches yields {type(batch).__name__}, and must yield bilevax.Batch(upper=..., lower=...), which says "
            "which data belong to which level. Wrap a data loader in a generator: `for data in loader: yield "
            "Batch(upper=clean, lower=data)`."
        )
    batch = as_arrays("batch", batch)
    require_arrays("batch", batch)
    return jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, batch)


def _shapes(batch: Batch) -> tuple[tuple[int, ...], ...]:
    return tuple(np.shape(x) for x in jax.tree.leaves(batch))


def _listed(batch: Batch) -> str:
    return ", ".join(str(shape) for shape in _shapes(batch))


def require_structure(number: int, batch: Batch, structure: Any) -> None:
    """Raise InputError if batch `number` of a host iterable has another tree structure than the first batch."""
    found = jax.tree.structure(batch)
    if found != structure:
        raise InputError(
            f"batches yields a batch {number} with the tree structure {found}, and its first, batch 0, has the "
            f"structure {structure}. Yield batches of one structure."
        )


def prefetch(
    batches: Iterable[Batch],
    place: Callable[[Batch], Batch] = jax.device_put,
    depth: int = 2,
    asked: Asked | None = None,
) -> Generator[Batch, None, None]:
    """The same batches, placed on the devices (by `place`) by a thread that works up to `depth` batches ahead.

    They end early if a signal has come (`asked`) and no batch is ready. A thread that waits for the user's iterable is
    then abandoned.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(place(batch)):
                    return
            put(end)
        except BaseException as error:  # raised again by the consumer
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="bilevax-prefetch")
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if asked is not None and asked:
                    asked.poll()
                    return
                continue
            if item is end:
                return
            if isinstance(item, BaseException):
                if asked is not None and asked:  # Ctrl-C also makes a data loader's processes fail
                    return
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=(5 if asked is not None and asked else 10) * POLL_SECONDS)

"""What feeds the loop its batches: a source on the device, or an iterable on the host.

`Resident` and `Stream` have the same methods, so the loop is the same for both: one compiled call for each stretch of
the first, and one for each batch of the second.
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

from bilevax._checks import InputError, check_finite, described, require_arrays
from bilevax.loop import signals
from bilevax.loop.placement import Placement
from bilevax.loop.signals import POLL_SECONDS, Asked
from bilevax.loop.sources import Fixed, Source, resident
from bilevax.loop.stretch import Carry, Program
from bilevax.problem import Batch
from bilevax.solvers.base import Info


class Feed(Protocol):
    """What the loop asks of a feed.

    Attributes:
        first: the first batch, placed.
        checked: a batch for `Solver.check`: the one with the largest indices where it is known, else the first.
        source: the source as it was given; None for an iterable.
    """

    @property
    def first(self) -> Batch: ...  # noqa: D102

    @property
    def checked(self) -> Batch: ...  # noqa: D102

    @property
    def source(self) -> Any: ...  # noqa: D102

    def opened(self, step: int, steps: int, asked: Asked) -> AbstractContextManager[Any]:
        """Within, batches `step` to `steps` can be taken; a signal (`asked`) ends the wait for one."""
        ...

    def compiled(self, program: Program, capacity: int, carry: Carry) -> Carry:
        """Compile the program where that can be done without a step; a signal need not wait for a stretch then."""
        ...

    def advance(self, program: Program, capacity: int, carry: Carry, step: int, count: int) -> tuple[Carry, Info, int]:
        """Take `count` steps, or fewer if a step is not finite or batches run out; their Info, and how many."""
        ...

    def fault(self, step: int) -> str | None:
        """What is not finite in the batch of a step, as a sentence; None if all of it is, or if it is not known."""
        ...


class Resident:
    """A source on the device: a stretch is one compiled call."""

    def __init__(self, source: Source, placement: Placement, first: Batch, checked: Batch, key: Any):
        self.source, self.first, self.checked = source, first, checked
        self._placement, self._key = placement, key
        self._placed: Any = None

    def opened(self, step: int, steps: int, asked: Asked) -> AbstractContextManager[Any]:
        """The source is placed here, after all checks of its arrays."""
        self._placed = self._placement.source(self.source)
        return contextlib.nullcontext()

    def compiled(self, program: Program, capacity: int, carry: Carry) -> Carry:
        """A stretch of no steps."""
        return program(capacity, carry, self._placed, 0, 0)[0]

    def advance(self, program: Program, capacity: int, carry: Carry, step: int, count: int) -> tuple[Carry, Info, int]:
        """One call, whose Info is read back."""
        carry, info, taken = program(capacity, carry, self._placed, step, count)
        info, taken = jax.device_get((info, taken))
        return carry, jax.tree.map(lambda x: x[:taken], info), int(taken)

    def fault(self, step: int) -> str | None:
        """By drawing the batch again."""
        return _fault(self.source.at(step, self._key))


class Stream:
    """An iterable on the host, prefetched: a batch is one compiled call, and nothing is read back within a stretch."""

    source = None

    def __init__(self, batches: Iterator[Batch], placement: Placement, first: Batch):
        self.first = self.checked = placement.batch(first)
        self._batches, self._placement = itertools.chain([first], batches), placement
        self._ready: Iterator[Batch] = iter(())
        self._faults: dict[int, str] = {}

    @contextmanager
    def opened(self, step: int, steps: int, asked: Asked) -> Iterator[None]:
        """The iterable wound forward to `step`; a thread works ahead."""
        numbers = itertools.count(step)

        def place(batch: Batch) -> Batch:
            """Placed; what is not finite in it is remembered, in case its step fails."""
            number, fault = next(numbers), _fault(batch)
            if fault is not None:
                self._faults[number] = fault
            return self._placement.batch(batch)

        with contextlib.closing(prefetch(itertools.islice(self._batches, step, steps), place, asked=asked)) as ready:
            self._ready = ready
            yield

    def compiled(self, program: Program, capacity: int, carry: Carry) -> Carry:
        """Nothing: the first batch may not be there yet."""
        return carry

    def advance(self, program: Program, capacity: int, carry: Carry, step: int, count: int) -> tuple[Carry, Info, int]:
        """A call for each batch. The first process whose batches run out ends the stretch for all."""
        infos, taken = [], []
        for i in range(count):
            batch = next(self._ready, None)
            if self._placement.any(batch is None)[0] or batch is None:
                break
            carry, info, n = program(1, carry, Fixed(batch), step + i, 1)
            infos.append(info)
            taken.append(n)
        infos, taken = jax.device_get((infos, taken))
        total = int(sum(taken))
        info = jax.tree.map(lambda *x: np.concatenate(x)[:total], program.empty, *infos)
        return carry, info, total

    def fault(self, step: int) -> str | None:
        """As it was found when the batch was placed."""
        return self._faults.get(step)


def feed_of(batches: Any, placement: Placement, key: Any, asked: Asked) -> Resident | Stream:
    """A feed of what `solve` was given as `batches`.

    Raises:
        InputError: it is neither a Batch, nor a source, nor an iterable of Batches.
        LeftError: a signal came while the first batch of an iterable was waited for.
    """
    if isinstance(batches, str | bytes | dict | np.ndarray | jax.Array) or hasattr(batches, "iloc"):
        raise InputError(
            f"batches is {described(batches)}, which does not say which data belong to which level. Pass a "
            "bilevax.Batch(upper=..., lower=...), a source such as bilevax.Minibatches, or an iterable of Batches."
        )
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
    require_batch(first)
    return Stream(stream, placement, first)


def _fault(batch: Batch) -> str | None:
    try:
        check_finite("batch", batch)
    except InputError as error:
        return str(error)
    return None


def require_batch(batch: Any) -> None:
    """Refuse what a host iterable yields if it is no Batch of arrays."""
    if not isinstance(batch, Batch):
        raise InputError(
            f"batches yields {type(batch).__name__}, and must yield bilevax.Batch(upper=..., lower=...). Pass the data "
            "themselves as one Batch, or as a source such as bilevax.Minibatches."
        )
    require_arrays("batch", batch)


def prefetch(
    batches: Iterable[Batch],
    place: Callable[[Batch], Batch] = jax.device_put,
    depth: int = 2,
    asked: Asked | None = None,
) -> Generator[Batch, None, None]:
    """The same Batches, put on the device (or devices: `place`) by a thread that works `depth` batches ahead.

    Where a signal has come (`asked`) and no batch is ready, they end. A thread that stalls in the user's iterable is
    left behind.
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
                require_batch(batch)
                if not put(place(batch)):
                    return
            put(end)
        except BaseException as error:  # handed to the consumer, whose error it is
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
                if asked is not None and asked:  # Ctrl-C reaches the processes of a loader, too, which then fail
                    return
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=(5 if asked is not None and asked else 10) * POLL_SECONDS)

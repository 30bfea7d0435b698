"""Ctrl-C and preemption signals as a flag that is polled.

An exception raised by a signal handler can interrupt a compiled call, which then loses the state that was donated to
it. Python also drops the exception if a hook of the garbage collector or a `__del__` is running. So the first signal
only sets a flag.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bilevax.loop.result import Result, SolveInterrupted, SolveTerminated
from bilevax.loop.status import Status

T = TypeVar("T")

INTERRUPT = int(signal.SIGINT)
PREEMPTION = tuple(int(getattr(signal, name)) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""The signals of a scheduler before it ends a job: SIGTERM and SIGUSR1 (on Windows SIGTERM only)."""
POLL_SECONDS = 0.1


class Asked:
    """The signals received so far; true if there are any.

    Attributes:
        received: the signals, in the order in which they came.
        outermost: whether this `deferred` was entered outside of any other.
    """

    def __init__(self, outer: "Asked | None" = None):
        self.received: list[int] = [] if outer is None else list(outer.received)
        self.outermost = outer is None
        self._outer = outer
        self._before: dict[int, Any] = {} if outer is None else dict(outer._before)

    def __bool__(self) -> bool:
        return bool(self.received)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C came first."""
        return self.received[:1] == [INTERRUPT]

    @property
    def name(self) -> str:
        """The name of the first signal."""
        return signal.Signals(self.received[0]).name

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal ends: 130 for Ctrl-C, 143 for preemption."""
        return 130 if self.interrupted else 143

    def ask(self, number: int) -> None:
        """Record a signal, here and in every `deferred` around this one."""
        if self._outer is not None:
            self._outer.ask(number)
        self.received.append(number)

    @property
    def insists(self) -> bool:
        """Whether Ctrl-C was pressed twice."""
        return self.received.count(INTERRUPT) > 1

    @property
    def status(self) -> Status:
        """The status of a solve that the first signal ends."""
        return Status.INTERRUPTED if self.interrupted else Status.TERMINATED

    def poll(self) -> None:
        """Raise KeyboardInterrupt after a second Ctrl-C, in case Python has dropped the exception of the handler."""
        if self.insists:
            raise KeyboardInterrupt


_innermost: Asked | None = None


def _handle(number: int, frame: Any) -> None:
    asked = _innermost
    if asked is None:
        return
    asked.ask(number)
    if number == INTERRUPT and asked.insists:
        asked._before[number](number, frame)


@contextmanager
def deferred(*numbers: int) -> Iterator[Asked]:
    """A context in which these signals set a flag, and a second Ctrl-C raises KeyboardInterrupt.

    Signals that are ignored (as SIGINT is under nohup) stay ignored, and outside the main thread nothing is changed. A
    handler that the caller has set for a preemption signal is called on exit of the outermost `deferred`. A signal
    that came in a `deferred` around this one is set here from the start.

    Args:
        *numbers: the signals, from `INTERRUPT` and `PREEMPTION`.

    Example:
        >>> import signal
        >>> from bilevax.loop.signals import INTERRUPT, deferred
        >>> with deferred(INTERRUPT) as asked:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(bool(asked), asked.exit_code)
        True 130
    """
    global _innermost
    if threading.current_thread() is not threading.main_thread():
        yield Asked()
        return
    asked = Asked(_innermost)
    installed = []
    for number in numbers:
        before = signal.getsignal(number)
        if number in asked._before or before in (signal.SIG_IGN, None):
            continue
        if number == INTERRUPT and not callable(before):
            continue
        asked._before[number] = before
        installed.append(number)
    _innermost = asked
    try:
        for number in installed:
            signal.signal(number, _handle)
        yield asked
    finally:
        for number in installed:
            if signal.getsignal(number) is _handle:
                signal.signal(number, asked._before[number])
        _innermost = asked._outer
        for number in dict.fromkeys(asked.received):
            if number in installed and number != INTERRUPT and callable(asked._before[number]):
                asked._before[number](number, None)


class LeftError(Exception):
    """A signal came during a wait."""


def unless(asked: Asked, work: Callable[[], T]) -> T:
    """The result of `work()`, computed in a thread, so that a signal can end the wait for it.

    Raises:
        LeftError: a signal came before the result. The thread is abandoned.
    """
    done = threading.Event()
    outcome: list[Any] = [None, None]

    def run() -> None:
        try:
            outcome[0] = work()
        except BaseException as error:  # raised again in the calling thread
            outcome[1] = error
        done.set()

    threading.Thread(target=run, daemon=True, name="bilevax-wait").start()
    while not done.wait(POLL_SECONDS):
        asked.poll()
        if asked:
            raise LeftError
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def ended(asked: Asked, saver: Any, sentence: str, result: Result | None = None) -> BaseException:
    """The exception that `solve` raises after a signal.

    For preemption it also prints how to resume, unless there is a `deferred` around this one.

    Args:
        asked: the signals.
        saver: the callback that has saved the state.
        sentence: the first sentence of the message.
        result: the Result; None if there was no state yet.

    Returns:
        For Ctrl-C a SolveInterrupted (a KeyboardInterrupt if there is no result), for preemption a SolveTerminated.
    """
    interrupted = asked.interrupted
    if result is not None and result.status in (Status.INTERRUPTED, Status.TERMINATED):
        interrupted = result.status is Status.INTERRUPTED  # the signal may have come to another process
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

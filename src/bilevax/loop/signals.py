"""Ctrl-C and preemption signals as a flag that is polled.

An exception raised by a signal handler can interrupt a compiled call, which then loses the state that was
donated to it, and Python drops it where a garbage collector's hook or a `__del__` is running. So the first signal only
sets a flag.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bilevax.loop.result import Result, SolveInterrupted, SolveTerminated, Status

T = TypeVar("T")

INTERRUPT = int(signal.SIGINT)
PREEMPTION = tuple(int(getattr(signal, name)) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What a scheduler sends before it takes the machine away: SIGTERM and SIGUSR1 (on Windows SIGTERM alone)."""
POLL_SECONDS = 0.1


class Asked:
    """Whether a signal has asked for an end.

    Attributes:
        received: the signals that came, in order.
        outermost: whether no other `deferred` was in force when this one was entered.
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
        """The first signal's name."""
        return signal.Signals(self.received[0]).name

    @property
    def exit_code(self) -> int:
        """What a process that ends for this signal exits with: 130 for Ctrl-C, 143 for preemption."""
        return 130 if self.interrupted else 143

    def ask(self, number: int) -> None:
        """Note a signal, here and in every `deferred` around this one."""
        if self._outer is not None:
            self._outer.ask(number)
        self.received.append(number)

    @property
    def insists(self) -> bool:
        """Whether Ctrl-C was pressed twice."""
        return self.received.count(INTERRUPT) > 1

    @property
    def status(self) -> Status:
        """What a solve that the first signal ends has as its status."""
        return Status.INTERRUPTED if self.interrupted else Status.TERMINATED

    def poll(self) -> None:
        """Raise KeyboardInterrupt after a second Ctrl-C, whose own exception may have been dropped."""
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
    """Within, these signals set a flag; a second Ctrl-C raises KeyboardInterrupt. Afterwards all is as before.

    Args:
        *numbers: `INTERRUPT`, `PREEMPTION` or both.

    Signals that are ignored (as SIGINT is under nohup) stay ignored, and outside the main thread nothing is changed. A
    handler of the caller's own for a preemption signal is called when the outermost `deferred` is left. A signal that
    came within a `deferred` around this one is already set here.

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
    """A signal came while something was waited for."""


def unless(asked: Asked, work: Callable[[], T]) -> T:
    """`work()`, done by a thread, so that a signal ends the wait for one that stalls.

    Raises:
        LeftError: a signal came before it was done. The thread is left behind.
    """
    done = threading.Event()
    outcome: list[Any] = [None, None]

    def run() -> None:
        try:
            outcome[0] = work()
        except BaseException as error:  # handed to the caller, whose error it is
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
    """What a solve that a signal has ended raises.

    Args:
        asked: the signals.
        saver: the callback that has saved the state.
        sentence: how far the solve came.
        result: what it came to; None where it ended before there was a state.

    Returns:
        For Ctrl-C a SolveInterrupted (a KeyboardInterrupt without a result), for preemption a SolveTerminated. How to
        go on is printed, unless a `deferred` around this one will say so.
    """
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

"""Jobs side by side until the time is over, by a clock that a test can replace."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

DONE, FAILED, CUT, WAITING = "done", "failed", "cut", "not started"


class Job(NamedTuple):
    """A command.

    Attributes:
        name: one word, unique.
        arguments: of `python -m experiments`.
        seconds: how long it takes beside the others, roughly. It is not started if less time is left.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float


class Process(Protocol):
    """A job that runs."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        ...

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        ...


class Outcome(NamedTuple):
    """How a job ended: `DONE`, `FAILED`, `CUT` or `WAITING`, and its seconds."""

    ended: str
    seconds: float


class Clock(NamedTuple):
    """The seconds now, and a function that waits."""

    now: Callable[[], float]
    wait: Callable[[float], None]


def drain(
    jobs: Sequence[Job], at_once: int, seconds: float, start: Callable[[Job], Process], clock: Clock
) -> dict[str, Outcome]:
    """Run jobs in their order, at most `at_once` at a time. At the end of the time what still runs is stopped.

    Args:
        jobs: the most valuable first. One for which too little time is left is passed over.
        at_once: the number of jobs side by side.
        seconds: from now on.
        start: starts a job.
        clock: the time.

    Returns:
        The outcome of each job, by its name.
    """
    end = clock.now() + seconds
    found = {job.name: Outcome(WAITING, 0.0) for job in jobs}
    waiting = list(jobs)
    running: dict[str, tuple[Process, float]] = {}
    try:
        while clock.now() < end:
            for name, (process, began) in list(running.items()):
                if (code := process.poll()) is not None:
                    found[name] = Outcome(FAILED if code else DONE, clock.now() - began)
                    del running[name]
            waiting = [job for job in waiting if job.seconds <= end - clock.now()]
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job.name] = start(job), clock.now()
            if not running:
                break
            clock.wait(min(1.0, max(0.0, end - clock.now())))
    finally:
        for name, (process, began) in running.items():
            process.stop()
            found[name] = Outcome(CUT, clock.now() - began)
    return found

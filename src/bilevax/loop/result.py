"""What a solve returns, what it hands to callbacks, and how it can end."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from bilevax._checks import PyTree
from bilevax.solvers.base import Info


class Status(enum.Enum):
    """How a solve ended."""

    FINISHED = "all steps were taken"
    STOPPED = "the stop rule was met before all steps were taken"
    EXHAUSTED = "the host's batches ran out before all steps were taken"
    INTERRUPTED = "the solve was interrupted from the keyboard; the state is that of the last finished step"
    TERMINATED = "a signal asked the process to end; the state is that of the last finished step"
    NON_FINITE = (
        "a step gave a NaN or an infinity; the state is the last finite one. Likely causes: a step size too large for "
        "the curvature of the losses (Penalty's: times gamma), an unbounded loss, or a loss with log or sqrt at zero. "
        "Lower the step sizes first"
    )


class SolveError(RuntimeError):
    """A solve that failed; `result` holds the last finite state."""

    def __init__(self, message: str, result: "Result"):
        super().__init__(message)
        self.result = result


class ProcessLostError(RuntimeError):
    """Another process of a solve over several has gone, and the iterates of this one with it."""


class SolveInterrupted(KeyboardInterrupt):
    """A solve that Ctrl-C ended between two steps; `result` holds the state of the last one."""

    def __init__(self, message: str, result: "Result"):
        super().__init__(message)
        self.result = result


class SolveTerminated(SystemExit):
    """A solve with a Checkpoint that SIGTERM or SIGUSR1 ended between two steps, after it was saved.

    Attributes:
        code: 143, with which the process exits if nobody catches this.
        result: the state of the last step; None where the signal came before there was one.
    """

    def __init__(self, message: str, result: "Result | None"):
        super().__init__(143)
        self.message = message
        self.result = result

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Result:
    """What `solve` returns.

    Attributes:
        u, v: the last finite iterates.
        status: how it ended.
        steps: steps taken, those before a resume included.
        history: Info with an array per scalar, leading axis `steps`, on the host.
        state: the solver's state, for diagnostics or another solve.
    """

    u: PyTree
    v: PyTree
    status: Status
    steps: int
    history: Info
    state: Any


@dataclass(frozen=True)
class Visit:
    """What a callback sees between two stretches.

    `info` holds the stretch's Info (arrays, on the host), `history` lazily all so far. `state` is on the
    device and valid until the callback returns: copy what is kept.
    """

    step: int
    steps: int
    seconds: float
    info: Info
    state: Any
    history: Callable[[], Info]


class History:
    """The Info of all steps so far, on the host: arrays are joined when they are asked for."""

    def __init__(self, first: Info):
        self._parts = [first]

    def add(self, info: Info) -> None:
        """Append the Info of a stretch."""
        self._parts.append(info)

    def __call__(self) -> Info:
        """All of it, an array per scalar."""
        self._parts = [jax.tree.map(lambda *x: np.concatenate(x), *self._parts)]
        return self._parts[0]


class Fingerprint(NamedTuple):
    """What must agree for a saved state to be continued, as text.

    `shapes` has a line for each array of the state, the first batch and the source. `problem` and
    `solver` are traced programs: they differ where functions, hyperparameters or arrays that a loss closes over
    differ, but not by the values in the batches. They change with JAX's version. `data` has a
    line for each array of the start and of the source, or of a host iterable's first batch: its name and
    the SHA-256 of its values.
    """

    shapes: str
    problem: str
    solver: str
    key: str
    data: str


class Run(NamedTuple):
    """What a callback's `start` is given as a solve starts at `step`; `resumes`: whether it was given a `resume`.

    `several`: whether several processes take part, each of which calls its callbacks.
    `fingerprint` traces the step, so it takes a while: call it if needed, and before `start` returns.
    """

    step: int
    steps: int
    resumes: bool
    fingerprint: Callable[[], Fingerprint]
    several: bool = False

    @property
    def writes(self) -> bool:
        """Whether this process draws and writes files: of several processes only the first does."""
        return not self.several or jax.process_index() == 0


class Saved(NamedTuple):
    """A state to continue from."""

    step: int
    state: Any
    history: Info


@runtime_checkable
class Callback(Protocol):
    """Something to do between stretches. Plain functions of a Visit will do, too."""

    def start(self, run: Run) -> None:
        """Before the first stretch."""
        ...

    def visit(self, visit: Visit) -> None:
        """After each stretch."""
        ...

    def finish(self, result: Result | None) -> None:
        """At the end, after an interrupt too; None if the solve was left by an error."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """Where a solve can find what an earlier one saved."""

    def load(self, fingerprint: Fingerprint, state: Any, info: Info) -> Saved | None:
        """The newest save, shaped like `state` and `info`; None if there is none yet."""
        ...

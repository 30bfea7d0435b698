"""What `solve` returns, what it passes to callbacks, and how it can end."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from bilevax.loop.frame import frame_of
from bilevax.loop.result_file import load, save
from bilevax.loop.status import Status
from bilevax.solvers.base import Info, State

if TYPE_CHECKING:
    import pandas as pd


class SolveError(RuntimeError):
    """A solve failed; `result` holds the last finite state."""

    def __init__(self, message: str, result: "Result"):
        super().__init__(message)
        self.result = result


class SolveInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a solve between two steps; `result` holds the state after the last step."""

    def __init__(self, message: str, result: "Result"):
        super().__init__(message)
        self.result = result


class SolveTerminated(SystemExit):
    """SIGTERM or SIGUSR1 ended a solve with a Checkpoint between two steps, after its state was saved.

    Attributes:
        code: 143, the exit code of the process if this is not caught.
        result: the Result with the state after the last step; None if the signal came before the first state.
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
        status: how the solve ended.
        steps: the number of steps taken, including steps before a resume.
        history: Info whose scalars are NumPy arrays (steps,), or (steps, members) for a `Vectorized` solver.
        state: the solver's state after the last step, for diagnostics.

    Example:
        >>> import jax, jax.numpy as jnp, pathlib, tempfile
        >>> from bilevax import Alternating, Problem, Result, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((u - v) ** 2), lambda u, v, data: jnp.sum((v - 1) ** 2))
        >>> result = solve(Alternating(), problem, jnp.zeros(2), jnp.zeros(2), steps=9, key=jax.random.key(0))
        >>> result.to_frame().columns.tolist()
        ['upper_loss', 'lower_loss', 'upper_grad_norm', 'lower_grad_norm']
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "result.npz")
        ...     result.save(path)
        ...     again = Result.load(path)
        >>> again.steps, again.status.name, bool((again.v == result.v).all())
        (9, 'FINISHED', True)
    """

    u: PyTree[Float[Array, "..."]]
    v: PyTree[Float[Array, "..."]]
    status: Status
    steps: int
    history: Info
    state: State

    def to_frame(self) -> "pd.DataFrame":
        """The history as a table of pandas, with a row for each step and a column for each scalar of Info.

        The index is `step`, counted from 1. For a `Vectorized` solver there is a row for each step and member, and the
        index is (`step`, `member`): `frame["upper_loss"].unstack("member")` has a column for each member. A scalar of
        `extra` whose name is taken is "extra/name"; an array of a solver of your own has a column for each entry,
        "name[0]", "name[1]" and so on.

        Raises:
            InputError: pandas is not installed.
        """
        return frame_of(self.history)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to one file, completely or not at all: an NPZ of the arrays and their structure as JSON.

        An earlier result of this name is replaced; any other file is refused. To continue an interrupted solve use a
        `Checkpoint`. With several processes, all must call it, and the first writes.

        Args:
            path: the file; its folder is made if it does not exist.

        Raises:
            InputError: path is not a local path, exists and is not a saved result, or cannot be written.
        """
        save(path, u=self.u, v=self.v, status=self.status, steps=self.steps, history=self.history, state=self.state)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Result":
        """A result that `save` has written, with equal bits. Nothing in the file is run.

        Dictionaries, lists and tuples in u, v and the state come back as such. Of other containers the file has the
        names alone: a NamedTuple, a dataclass or an equinox module comes back as a NamedTuple with its name and its
        fields, anything else as a tuple. Your own class comes back by its structure:
        `jax.tree.unflatten(jax.tree.structure(v), jax.tree.leaves(result.v))`, where v is of this class.

        Args:
            path: the file.

        Raises:
            InputError: there is no such file; it is damaged or not a saved result; it has 64-bit arrays, and
                jax_enable_x64 is off.
        """
        return Result(**load(path))


@dataclass(frozen=True)
class Visit:
    """What a callback gets between two stretches.

    Attributes:
        step: the number of steps taken so far.
        steps: the number of steps of the whole solve.
        seconds: the time since the first step of this call of `solve`.
        info: the Info of the last stretch: NumPy arrays whose leading axis is its steps.
        state: the solver's state, on the device. It is valid until the callback returns; copy what you keep.
        history: a function that returns the Info of all steps so far.
    """

    step: int
    steps: int
    seconds: float
    info: Info
    state: State
    history: Callable[[], Info]


class History:
    """The Info of all steps so far, on the host. Arrays are concatenated when it is called."""

    def __init__(self, first: Info):
        self._parts = [first]

    def add(self, info: Info) -> None:
        """Append the Info of a stretch."""
        self._parts.append(info)

    def __call__(self) -> Info:
        """The Info of all steps, an array per scalar."""
        self._parts = [jax.tree.map(lambda *x: np.concatenate(x), *self._parts)]
        return self._parts[0]


class Fingerprint(NamedTuple):
    """What must be equal for a saved state to be resumed, as text.

    Attributes:
        shapes: a line for each array of the state, the first batch and the source.
        problem, solver: traced programs. They depend on the functions, the hyperparameters, the arrays that a loss
            closes over and the version of JAX, but not on the values in the batches.
        key: the data of the key.
        data: a line for each array of u, v and the source, or the first batch of a host iterable: its name and the
            SHA-256 of its values.
    """

    shapes: str
    problem: str
    solver: str
    key: str
    data: str


class Run(NamedTuple):
    """What a callback's `start` gets.

    Attributes:
        step: the step that the solve starts from; 0 unless it resumes a save.
        steps: the number of steps of the whole solve.
        resumes: whether `solve` was called with `resume`.
        fingerprint: a function that returns the Fingerprint. It traces the step, which is slow; call it only if
            needed, and before `start` returns.
        several: whether there are several processes, each of which calls its callbacks.
    """

    step: int
    steps: int
    resumes: bool
    fingerprint: Callable[[], Fingerprint]
    several: bool = False

    @property
    def writes(self) -> bool:
        """Whether this process draws and writes files: only the first of several processes does."""
        return not self.several or jax.process_index() == 0


class Saved(NamedTuple):
    """A saved solve: the number of steps taken, the state, and the history of these steps."""

    step: int
    state: State
    history: Info


@runtime_checkable
class Callback(Protocol):
    """An object that `solve` calls between stretches. A plain function of a Visit can be used in its place."""

    def start(self, run: Run) -> None:
        """Called before the first stretch."""
        ...

    def visit(self, visit: Visit) -> None:
        """Called after each stretch."""
        ...

    def finish(self, result: Result | None) -> None:
        """Called at the end, also after an interrupt. `result` is None if an error ended the solve."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An object from which `solve` can resume."""

    def load(self, fingerprint: Fingerprint, state: State, info: Info) -> Saved | None:
        """The newest save, with the shapes of `state` and `info`; None if there is no save."""
        ...

"""Saves of a running solve, from which a later solve resumes."""

import hashlib
import os
import threading
import warnings
from itertools import zip_longest
from typing import Any

import jax

from bilevax import _files
from bilevax._checks import InputError, require_count, short_reason
from bilevax.loop.callbacks import require_writable, unused, unwritable, warn
from bilevax.loop.processes import any_process
from bilevax.loop.result import Fingerprint, Result, Run, Saved, SolveError, Visit
from bilevax.loop.saves import STATE, Writer, lock, pack, read, saves_in, step_of, unpack, was_a_save, what_it_is
from bilevax.solvers.base import Info, State


class SaveError(SolveError):
    """A solve whose last state could not be saved; `result` holds that state."""


class Checkpoint:
    """A callback that saves a solve as it runs, and that `resume` reads.

    Pass the same object as callback and as `resume`: the same command then starts a solve and continues it, bit for
    bit, until it is done.

    A save holds the state and the history in one NPZ file. A thread writes it while the solve goes on and renames it
    when it is complete, so a save that was cut short is never read. At the end, also after Ctrl-C and after a
    non-finite value (with the last finite state), the last state is saved if it has not been, and `solve` waits for
    the write.

    With a small state a save takes a few milliseconds of the visit and about 10 ms in the background, more with the
    size of the state and the length of the history. A visit that comes while a save is being written is skipped, so
    frequent visits do not slow the solve down. Choose `every` (or that of `solve`) so that saves are seconds apart.

    A save that fails, for example because the disk is full, does not end the solve: a warning gives the reason,
    earlier saves stay, and the next save is tried. SaveError is raised only if the last state cannot be saved at the
    end. If the newest save is damaged, the one before it is used, with a warning. While a solve writes to the
    directory, other solves that would write to it are refused.

    A save holds whole arrays, so a solve over other devices or another number of processes can continue it; results
    then agree to rounding. With several processes every process must have access to the directory.

    Args:
        directory: it holds one folder per saved step, and is made if it does not exist. Other files in it are not
            touched.
        every: the number of visits from one save to the next.
        keep: how many saves to keep; older ones are deleted.

    Raises:
        InputError: directory is not a local path, or a count is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp, tempfile
        >>> from bilevax import Checkpoint, Penalty, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - u) ** 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save = Checkpoint(folder)
        ...     start = (Penalty(), problem, jnp.zeros(2), jnp.zeros(2))
        ...     one = solve(*start, steps=100, key=jax.random.key(0), callbacks=[save], resume=save)
        ...     two = solve(*start, steps=300, key=jax.random.key(0), callbacks=[save], resume=save)
        >>> whole = solve(*start, steps=300, key=jax.random.key(0))
        >>> two.steps, bool((two.u == whole.u).all())
        (300, True)
    """

    def __init__(self, directory: str | os.PathLike[str], every: int = 1, keep: int = 2):
        self.directory = _files.local_path("Checkpoint: directory", directory)
        self.every = require_count("Checkpoint", "every", every)
        self.keep = require_count("Checkpoint", "keep", keep)
        self._running = self._several = False
        self._about: dict[str, Any] = {}
        self._saved = 0
        self._due = 0
        self._damaged: set[int] = set()  # steps whose saves `load` found damaged
        self._refused: set[int] = set()  # threads whose solves `start` refused, since another solve was running
        self._writer: Writer | None = None  # in the first process only

    def start(self, run: Run) -> None:
        """Make the directory ready.

        Raises:
            InputError: the directory cannot be written to, another solve writes to it, it holds a later step than
                this solve starts from, or it holds something that is not a save under the name of a step to come.
        """
        if self._running:
            self._refused.add(threading.get_ident())
            raise InputError(
                f"Checkpoint: one object, of {str(self.directory)!r}, is given to two solves, or twice to one. Make "
                "one Checkpoint for each solve, with a directory of its own."
            )
        require_writable("Checkpoint", self.directory)
        unlock = lock(self.directory) if run.writes else None
        try:
            self._check(run)
            about = _about(run.fingerprint())
            if unlock is not None:
                self._clean()
                kept = sorted(set(saves_in(self.directory)) - self._damaged)
                self._writer = Writer(self.directory, self.keep, kept, unlock)
        except BaseException as error:
            if unlock is not None:
                unlock()
            if isinstance(error, OSError):
                raise unwritable("Checkpoint", self.directory, error) from error
            raise
        self._about, self._saved, self._due = about, run.step, 0
        self._running, self._several = True, run.several

    def _check(self, run: Run) -> None:
        saves = saves_in(self.directory)
        newest = max(saves.keys() - self._damaged, default=0)
        if newest > run.step:
            raise InputError(
                f"Checkpoint: {str(self.directory)!r} already holds step {newest} of a solve, and this one starts "
                f"from step {run.step}. Pass the Checkpoint as resume= too to continue that "
                "solve, or name another directory."
            )
        for path in self.directory.iterdir():
            step = step_of(path)
            if step is not None and run.step < step <= run.steps and step not in saves:
                raise InputError(
                    f"Checkpoint: {str(path)!r} stands where step {step} would be saved, and it {what_it_is(path)}. "
                    "Move it away, or name another directory."
                )

    def _clean(self) -> None:
        """Delete what killed processes have left, and rename damaged saves."""
        try:
            _files.sweep(self.directory)
            for step in self._damaged:
                path = self.directory / str(step)
                if path.exists():
                    path.rename(unused(path.with_name(f"{step}.damaged")))
        except OSError as error:
            raise unwritable("Checkpoint", self.directory, error) from error
        self._damaged = set()

    def visit(self, visit: Visit) -> None:
        """Start a save, if one is due and none is being written."""
        if self._writer is not None and not self._writer.busy():
            before = self._writer.failure
            if self._writer.wait() and not before:
                warn(f"{self._writer.failure} The solve goes on, earlier saves stay, and the next save is tried.")
        self._due += 1
        if self._due < self.every:
            return
        busy = self._writer is not None and self._writer.busy()
        if self._several:
            (busy,) = any_process(busy)
        if not busy:
            self._save(visit.step, visit.state, visit.history())

    def finish(self, result: Result | None) -> None:
        """Save the last state if it is not saved yet, and wait until it is written.

        Raises:
            SaveError: the last state could not be saved.
        """
        if threading.get_ident() in self._refused:  # not the end of the running solve
            self._refused.discard(threading.get_ident())
            return
        if not self._running:
            return
        writer = self._writer
        try:
            failed = writer is not None and bool(writer.wait())
            if result is None:
                if writer is not None and failed:
                    warn(writer.failure)
                return
            if self._several:
                (failed,) = any_process(failed)
            if failed or result.steps > self._saved:
                self._save(result.steps, result.state, result.history)
                if writer is not None and writer.wait():
                    raise SaveError(
                        f"{writer.failure} The state that the solve ended with is in this error's .result "
                        f"({result.status.value}). Earlier saves stay: once there is room, resume from them.",
                        result,
                    )
        finally:
            self._writer, self._running = None, False
            if writer is not None:
                writer.close()

    def load(self, fingerprint: Fingerprint, state: State, info: Info) -> Saved | None:
        """The newest save that is not damaged; None if the directory holds no saves.

        Raises:
            InputError: all saves are damaged, another solve writes to the directory, or the save is of a solve with
                other shapes or data, or another problem, solver or key.
        """
        _files.require_unlocked(self.directory, "Checkpoint: directory")
        self._damaged = set()
        faults = {}
        try:
            saves = saves_in(self.directory)
            for path in self.directory.iterdir() if self.directory.is_dir() else ():
                if step_of(path) is not None and step_of(path) not in saves and was_a_save(path):
                    faults[path] = what_it_is(path)
        except OSError as error:
            raise InputError(
                f"Checkpoint: directory is {str(self.directory)!r}, which cannot be read ({_files.reason(error)})."
            ) from error
        for step in sorted(saves, reverse=True):
            path = self.directory / str(step)
            try:
                about, data = read(path / STATE)
                shape = about["step"], about["rows"], about["bytes"]
            except Exception as error:  # zipfile, zlib, NumPy and json raise many types for damaged files
                self._damaged.add(step)
                faults[path] = f"is cut short or damaged ({short_reason(error)})"
                continue
            if shape != (step, step, data.size):
                self._damaged.add(step)
                faults[path] = f"holds step {shape[0]} and {shape[1]} rows of history"
                continue
            _compare(f"resume: step {step} in {str(self.directory)!r}", about, _about(fingerprint))
            for other, fault in faults.items():
                text = f"resume: {str(other)!r} {fault}. It is not used; the solve continues from step {step}."
                warnings.warn(text, stacklevel=2)
            history = jax.tree.map(lambda x, n=step: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), info)
            return Saved(step, *unpack(data, (state, history)))
        if faults:
            found = "; ".join(f"{str(path)!r} {fault}" for path, fault in sorted(faults.items()))
            raise InputError(
                f"resume: no save in {str(self.directory)!r} can be used: {found}. Move them away to start from the "
                "beginning, or name another directory."
            )
        return None

    def _save(self, step: int, state: State, history: Info) -> None:
        """Start to write a save. Every process must call this: it gathers arrays."""
        data = pack((state, history))
        self._saved, self._due = step, 0
        if self._writer is not None:
            rows = len(jax.tree.leaves(history)[0])
            self._writer.write(step, {**self._about, "step": step, "rows": rows, "bytes": data.size}, data)


def _compare(where: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError for a save of another solve. A difference that can cause others is reported first."""
    instead = "Call solve with the same arguments as then, or name another directory."
    if found.get("shapes") != wanted["shapes"]:
        pairs = zip(found.get("shapes", []), wanted["shapes"], strict=False)
        was, now = next((p for p in pairs if p[0] != p[1]), ("", ""))
        differs = f": it has {was!r}, and this solve {now!r}" if was else ""
        raise InputError(f"{where} is of a solve with other shapes or another source of batches{differs}. {instead}")
    version = ""
    if found.get("jax") != wanted["jax"]:
        version = (
            f" (or only JAX's version: it was saved under {found.get('jax')}, this is {wanted['jax']}, and the same "
            "bits cannot be promised across versions)"
        )
    for part, name in (
        ("problem", "problem"),
        ("solver", "solver, or the same with other settings"),
        ("key", "key"),
    ):
        if found.get(part) != wanted[part]:
            raise InputError(f"{where} is of a solve with another {name}{version}. {instead}")
    for was, now in zip_longest(found.get("data", []), wanted["data"]):
        if was != now:
            name, _, _ = (now or was).partition(": ")
            raise InputError(f"{where} is of a solve with other data: the values of {name} differ. {instead}")


def _about(fingerprint: Fingerprint) -> dict[str, Any]:
    """A fingerprint as JSON. Traced programs are hashed; shapes are kept in full, since error messages show them."""

    def hashed(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    return {
        "jax": jax.__version__,
        "shapes": fingerprint.shapes.splitlines(),
        "problem": hashed(fingerprint.problem),
        "solver": hashed(fingerprint.solver),
        "key": fingerprint.key,
        "data": fingerprint.data.splitlines(),
    }

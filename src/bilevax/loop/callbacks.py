"""Callbacks that draw a progress bar and write logs.

The packages that they need are imported when a solve starts, not with bilevax. In a solve over several processes only
the first process draws and writes. A file that cannot be written does not end a solve: a warning names it, and the
next visit tries again.
"""

import importlib
import json
import os
import socket
import stat
import struct
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from bilevax import _files
from bilevax._checks import InputError, optional
from bilevax.loop.result import Result, Run, Visit
from bilevax.loop.scalars import last, mean


class Progress:
    """A progress bar (tqdm; a widget in notebooks) with both losses, the stage if there is one, and the rate.

    For a `Vectorized` solver the bar shows means over the members whose values are finite.

    Args:
        description: the text before the bar.

    Example:
        >>> from bilevax import Progress
        >>> bar = Progress("denoising")  # then solve(..., callbacks=[bar])
    """

    def __init__(self, description: str = ""):
        self.description = description
        self._bar: Any = None

    def start(self, run: Run) -> None:
        """Draw the bar, starting at the step that the solve starts from.

        Raises:
            InputError: tqdm is not installed.
        """
        if not run.writes:
            return
        tqdm = optional("tqdm.auto", "Progress", "apps").tqdm
        self._bar = tqdm(total=run.steps, initial=min(run.step, run.steps), desc=self.description or None, unit="step")

    def visit(self, visit: Visit) -> None:
        """Update the bar."""
        if self._bar is None:
            return
        scalars = {name: mean(value) for name, value in last(visit.info).items()}
        shown = {"upper": scalars["upper_loss"], "lower": scalars["lower_loss"]}
        if "stage" in scalars:
            shown["stage"] = scalars["stage"]
        try:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
            self._bar.update(visit.step - self._bar.n)
        except (OSError, ValueError):  # the terminal has gone
            self._bar = None

    def finish(self, result: Result | None) -> None:
        """Leave the bar as it stands."""
        bar, self._bar = self._bar, None
        with suppress(OSError, ValueError):
            if bar is not None:
                bar.refresh()
                bar.close()


class JsonLines:
    """A log with one line of JSON per visit: the step, the seconds, and every scalar of that step's Info.

    Values that are not finite are written as null, and values of a `Vectorized` solver as lists with one entry per
    member. A scalar of `extra` whose name is taken, for example "step", is written as "extra/step".

    A resumed solve removes the lines after the step that it resumes from and continues the file, including the count
    of seconds (time between the last checkpoint and the end of the earlier process is not counted). A new solve
    renames an existing log (`log.jsonl` to `log.jsonl.1` and so on) and starts another. A file that is not a log is
    refused.

    Lines that cannot be written, for example because the disk is full, are kept and written with a later line; a
    warning says so.

    Args:
        path: the file. Its folder is made if it does not exist.

    Raises:
        InputError: path is not a local path.

    Example:
        >>> import jax, jax.numpy as jnp, json, pathlib, tempfile
        >>> from bilevax import JsonLines, Penalty, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - u) ** 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "log.jsonl")
        ...     result = solve(
        ...         Penalty(), problem, jnp.zeros(2), jnp.zeros(2), steps=200, every=50, key=jax.random.key(0),
        ...         callbacks=[JsonLines(path)],
        ...     )
        ...     [json.loads(line)["step"] for line in path.read_text().splitlines()]
        [50, 100, 150, 200]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = _files.local_path("JsonLines: path", path)
        self._log: _Log | None = None
        self._before = 0.0

    def start(self, run: Run) -> None:
        """Open the file.

        Raises:
            InputError: the file cannot be written, or is not a log of this class.
        """
        self._before = 0.0
        if not run.writes:
            return
        try:
            _files.make(self.path.parent)
            if os.path.lexists(self.path) and self._holds_a_log():
                if run.resumes:
                    self._shorten(run.step)
                else:
                    self.path.rename(unused(self.path))
            self._log = _Log("JsonLines", self.path)
        except OSError as error:
            raise InputError(
                f"JsonLines: path is {str(self.path)!r}, which cannot be written ({_files.reason(error)}). Name a file "
                "in a folder that you can write to."
            ) from error

    def _holds_a_log(self) -> bool:
        """Whether the path holds lines of a log. Raises InputError if it holds anything else."""
        try:
            status = self.path.stat()
        except FileNotFoundError:  # a symlink to a file that does not exist yet
            return False
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, a pipe or a socket"
            raise InputError(f"JsonLines: path is {str(self.path)!r}, which is {kind}. Name a file.")
        if status.st_size == 0:
            return False
        with self.path.open("rb") as file:
            first = file.readline(1 << 20)
        if _record(first) is None and (first.endswith(b"\n") or not first.startswith(b'{"step": ')):
            raise InputError(
                f"JsonLines: line 1 of {str(self.path)!r} is not a record of a solve, so the file is neither continued "
                "nor renamed. Name another file."
            )
        return True

    def _shorten(self, step: int) -> None:
        """Remove the lines after a step. The last line may be incomplete: the process was killed as it wrote it."""
        kept = 0
        with self.path.open("r+b") as file:
            lines = file.readlines()
            records = [_record(line) for line in lines]
            if None in records[:-1] or (records[-1] is None and lines[-1].endswith(b"\n")):
                raise InputError(
                    f"JsonLines: line {records.index(None) + 1} of {str(self.path)!r} is not a record of a solve, so "
                    "the file is not continued. Name another file."
                )
            for line, record in zip(lines, records, strict=True):
                if record is None or not line.endswith(b"\n") or record["step"] > step:
                    break
                kept += len(line)
                self._before = record["seconds"]
            file.truncate(kept)

    def visit(self, visit: Visit) -> None:
        """Write a line."""
        if self._log is None:
            return
        scalars = last(visit.info, reserved=("step", "seconds"))
        record = {
            "step": visit.step,
            "seconds": round(self._before + visit.seconds, 6),
            **{name: _jsonable(value) for name, value in scalars.items()},
        }
        self._log.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def finish(self, result: Result | None) -> None:
        """Close the file."""
        log, self._log = self._log, None
        if log is not None:
            log.close()


class TensorBoard:
    """Every scalar of Info, at each visit, as TensorBoard events (through tensorboardX).

    For a `Vectorized` solver means over the members whose values are finite are written. A resumed solve makes
    TensorBoard discard the events after the step that it resumes from. Events that cannot be written, for example
    because the disk is full, are kept and written with later events; a warning says so.

    Args:
        directory: the folder of the event files.

    Raises:
        InputError: directory is not a local path.

    Example:
        >>> from bilevax import TensorBoard
        >>> log = TensorBoard("runs/denoising")  # then solve(..., callbacks=[log])
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = _files.local_path("TensorBoard: directory", directory)
        self._log: _Log | None = None

    def start(self, run: Run) -> None:
        """Open an event file.

        Raises:
            InputError: tensorboardX is not installed, or the directory cannot be written.
        """
        if not run.writes:
            return
        board = optional("tensorboardX", "TensorBoard", "tensorboard")
        require_writable("TensorBoard", self.directory)
        start = board.proto.event_pb2.SessionLog.START
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._log = _Log("TensorBoard", unused(self.directory / name))
        self._add(file_version="brain.Event:2")
        if run.step:
            self._add(step=run.step + 1, session_log=board.proto.event_pb2.SessionLog(status=start))

    def _add(self, **fields: Any) -> None:
        """Write an event as a TFRecord: length, checksum of the length, event, checksum of the event."""
        board, records = importlib.import_module("tensorboardX"), importlib.import_module("tensorboardX.record_writer")
        data = board.proto.event_pb2.Event(wall_time=time.time(), **fields).SerializeToString()
        size = struct.pack("<Q", len(data))
        check = [struct.pack("<I", records.masked_crc32c(x)) for x in (size, data)]
        if self._log is not None:
            self._log.write(size + check[0] + data + check[1])

    def visit(self, visit: Visit) -> None:
        """Add the scalars."""
        if self._log is None:
            return
        scalar = importlib.import_module("tensorboardX.summary").scalar
        for name, value in last(visit.info).items():
            self._add(step=visit.step, summary=scalar(name, mean(value)))

    def finish(self, result: Result | None) -> None:
        """Close the file."""
        log, self._log = self._log, None
        if log is not None:
            log.close()


class _Log:
    """A file that is appended to. Data that cannot be written are kept and written with the next data."""

    def __init__(self, owner: str, path: Path):
        self._owner, self._path = owner, path
        path.touch()
        self._file = path.open("r+b", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)
        self._waiting = b""
        self._failed = False

    def write(self, data: bytes) -> None:
        """Append. A failure gives a warning, unless the write before failed too."""
        self._waiting += data
        try:
            # Not in append mode: a part that was written before an error is overwritten.
            self._file.seek(self._end)
            left = memoryview(self._waiting)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            if not self._failed:
                self._failed = True
                warn(
                    f"{self._owner}: {str(self._path)!r} cannot be written ({_files.reason(error)}). The solve goes "
                    "on, and the next visit tries again."
                )
        else:
            self._end += len(self._waiting)
            self._waiting, self._failed = b"", False

    def close(self) -> None:
        """Try once more to write the data that are left, and close the file."""
        if self._waiting:
            self.write(b"")
        if self._waiting:
            warn(f"{self._owner}: the last {len(self._waiting)} bytes of {str(self._path)!r} could not be written.")
        with suppress(OSError):
            self._file.close()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line of a log; None if the line does not hold one."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) and isinstance(record["seconds"], int | float) else None
    except (ValueError, LookupError, TypeError):
        return None


def _jsonable(value: Shaped[np.ndarray, "*members"]) -> list[Any] | int | float | None:
    if np.ndim(value) > 0:
        return [_jsonable(x) for x in value]
    if np.issubdtype(value.dtype, np.integer):
        return int(value)
    number = float(value)
    return number if np.isfinite(number) else None


def unused(path: Path) -> Path:
    """`path`, or if it exists the first of `path.1`, `path.2` and so on that does not."""
    number, candidate = 0, path
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate


def warn(text: str) -> None:
    """Warn during a solve. Where warnings are errors the text is printed instead, and the solve goes on."""
    try:
        warnings.warn(text, stacklevel=3)
    except UserWarning:
        print(text, file=sys.stderr)


def require_writable(owner: str, directory: Path) -> None:
    """Raise InputError for a directory that cannot be made or written to."""
    try:
        _files.make_writable(directory)
    except OSError as error:
        raise unwritable(owner, directory, error) from error


def unwritable(owner: str, directory: Path, error: OSError) -> InputError:
    """The error of a directory that cannot be written."""
    return InputError(
        f"{owner}: directory is {str(directory)!r}, which cannot be written ({_files.reason(error)}). Name one that "
        "you can write to."
    )

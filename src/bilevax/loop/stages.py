"""A long job in stages: results of finished stages are kept in a folder, and the running solve has a Checkpoint.

After an interruption the same job reads the results of finished stages, and continues the running solve bit for bit.
"""

import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bilevax import _files
from bilevax._checks import InputError
from bilevax.loop.checkpoint import Checkpoint, SaveError
from bilevax.loop.result import Result, Run, Visit
from bilevax.loop.status import Status

CONTENT = "content"
REFERENCE = "array"

T = TypeVar("T", bound=NamedTuple)


class Keep(Checkpoint):
    """The Checkpoint of a stage. If the last state of a finished solve cannot be saved, it only gives notice.

    Attributes:
        seconds: the time that saving took, for measurements that leave it out.
    """

    def __init__(self, directory: Path, notice: Callable[[str], None]):
        super().__init__(directory)
        self.seconds, self._notice = 0.0, notice

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def start(self, run: Run) -> None:
        """As a Checkpoint."""
        with self._timed():
            super().start(run)

    def visit(self, visit: Visit) -> None:
        """As a Checkpoint."""
        with self._timed():
            super().visit(visit)

    def finish(self, result: Result | None) -> None:
        """As a Checkpoint, but a SaveError after the last step only gives notice."""
        with self._timed():
            try:
                super().finish(result)
            except SaveError as error:
                if result is None or result.status in (Status.INTERRUPTED, Status.TERMINATED):
                    raise
                self._notice(f"{error} The run goes on.")


class Stages:
    """Results of finished stages, one NPZ file each, in a folder that this program owns.

    Args:
        folder: a folder that was claimed (`_files.claim`).
        writes: whether this process writes; only the first of several processes does.
        heed: called before and after each stage; it raises if a signal has come.
        notice: called with a sentence if a result cannot be kept; the job goes on.

    Attributes:
        resumed: whether the result of a stage was read from the folder.

    A result is a dictionary of JSON values and NumPy arrays. It is returned in the form in which it would be read, so a
    job continues from the same values whether it was interrupted or not.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from bilevax import _files
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name, "run")
        ...     _files.claim(folder, "--out")
        ...     first = Stages(folder).of("squares", lambda checkpoint: {"values": np.arange(3) ** 2})
        ...     again = Stages(folder).of("squares", lambda checkpoint: {"values": None})
        >>> again["values"].tolist()
        [0, 1, 4]
    """

    def __init__(
        self,
        folder: Path,
        *,
        writes: bool = True,
        heed: Callable[[], None] = lambda: None,
        notice: Callable[[str], None] = lambda sentence: None,
    ):
        self.folder, self.resumed, self.heed = folder, False, heed
        self._writes, self._notice = writes, notice
        # Listed before anything is written, so that all processes find the same files.
        self._found = {path.name for path in folder.iterdir() if path.suffix == ".npz"}

    def of(self, name: str, compute: Callable[[Keep], Mapping[str, Any]]) -> dict[str, Any]:
        """The result of a stage: read from the folder, or computed and kept.

        Args:
            name: the name of the stage, a file name without its suffix.
            compute: a function of a Checkpoint, to be passed to the stage's solve as callback and as `resume`.
        """
        self.heed()
        value = self.read(name)
        if value is not None:
            self.resumed = True
            return value
        keep = self.checkpoint(name)
        content = pack(compute(keep))
        self.write(name, content)
        if self._writes and keep.directory.is_dir():
            try:
                _files.remove_ours(keep.directory)
            except OSError as error:
                self._notice(f"{keep.directory} could not be removed ({_files.reason(error)}). Remove it by hand.")
        self.heed()
        return unpack(content)

    def rebuilt(self, kind: type[T], stored: Mapping[str, Any], **given: Any) -> T:
        """A NamedTuple from the fields that a stage has stored and those that are given.

        Args:
            kind: the NamedTuple.
            stored: its fields by name.
            given: the fields that are not stored.

        Raises:
            InputError: another version stored other fields.
        """
        needed = [name for name in kind._fields if name not in given]
        if set(stored) != set(needed):
            raise InputError(
                f"--resume: a {kind.__name__} stored in {self.folder} has the fields {', '.join(stored)}, and this "
                f"version of bilevax needs {', '.join(needed)}. Resume with the version that began the run, or delete "
                "that folder to start over without --resume."
            )
        make: Any = kind
        return make(**stored, **given)

    def checkpoint(self, name: str) -> "Keep":
        """The Checkpoint for the solve of a stage."""
        return Keep(self.folder / name, self._notice)

    def read(self, name: str) -> dict[str, Any] | None:
        """The result that was kept under a name before this job started; None if it does not exist or is damaged."""
        if f"{name}.npz" not in self._found:
            return None
        try:
            return unpack((self.folder / f"{name}.npz").read_bytes())
        except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Keep a packed result under a name."""
        if not self._writes:
            return
        try:
            outputs = _files.Outputs(self.folder, [])
            outputs.write(f"{name}.npz", lambda path: path.write_bytes(content))
        except (OSError, InputError) as error:
            self._notice(
                f"The result of {name!r} could not be kept in {self.folder} ({error}). The run goes on; if it is "
                "interrupted, this part is computed again."
            )

    def any(self) -> bool:
        """Whether there is a finished stage or a save of a solve to resume."""
        try:
            return any(
                path.suffix == ".npz" or any(child.name.isdecimal() for child in path.iterdir())
                for path in self.folder.iterdir()
                if path.suffix == ".npz" or path.is_dir()
            )
        except OSError:
            return False


def pack(value: Mapping[str, Any]) -> bytes:
    """A dictionary of JSON values and NumPy arrays as the bytes of an NPZ file, without loss.

    Raises:
        TypeError: the dictionary holds a value of another type.
    """
    arrays: list[np.ndarray] = []

    def plain(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            if x.dtype.hasobject:
                raise TypeError(f"An array of {x.dtype} cannot be kept.")
            arrays.append(x)
            return {REFERENCE: len(arrays) - 1}
        if isinstance(x, np.generic):
            return x.item()
        if isinstance(x, Mapping):
            return {"items": {str(name): plain(item) for name, item in x.items()}}
        if isinstance(x, list | tuple):
            return [plain(item) for item in x]
        return x

    content = json.dumps(plain(value))
    entries: dict[str, Any] = {CONTENT: np.array(content), **{f"{REFERENCE}{i}": x for i, x in enumerate(arrays)}}
    file = io.BytesIO()
    np.savez(file, **entries)
    return file.getvalue()


def unpack(content: bytes) -> dict[str, Any]:
    """The dictionary that `pack` has packed; sequences become lists.

    Raises:
        ValueError, KeyError, zipfile.BadZipFile: `content` was not made by `pack`, or is damaged.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:

        def whole(x: Any) -> Any:
            if isinstance(x, list):
                return [whole(item) for item in x]
            if isinstance(x, dict):
                if REFERENCE in x:
                    return archive[f"{REFERENCE}{x[REFERENCE]}"]
                return {name: whole(item) for name, item in x["items"].items()}
            return x

        return whole(json.loads(str(archive[CONTENT])))

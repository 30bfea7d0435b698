"""The saves of a checkpoint on disk: a folder for each saved step, with the state and the history in one NPZ file."""

import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt8

from bilevax import _files
from bilevax._checks import short_reason
from bilevax.loop.callbacks import unwritable
from bilevax.loop.layout import is_key
from bilevax.loop.processes import on_host

STATE = "state.npz"


class Writer:
    """Writes saves in a thread, one at a time. `failure` is the reason why the last save failed, or empty."""

    def __init__(self, directory: Path, keep: int, kept: list[int], unlock: Callable[[], None]):
        self._directory, self._keep, self._kept, self._unlock = directory, keep, kept, unlock
        self._thread = ThreadPoolExecutor(1, "bilevax-save")
        self._writing: Future[None] | None = None
        self._step = 0
        self._checked = False
        self.failure = ""

    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._writing is not None and not self._writing.done()

    def write(self, step: int, about: dict[str, Any], data: UInt8[np.ndarray, " bytes"]) -> None:
        """Wait for the save before, and start a save."""
        self.wait()
        self._step, self._writing = step, self._thread.submit(self._write, step, about, data)

    def wait(self) -> str:
        """Wait for the save that is being written, if any, and return `failure`."""
        if self._writing is not None:
            error = self._writing.exception()
            self._writing, self.failure = None, ""
            if error is not None:
                reason = _files.reason(error) if isinstance(error, OSError) else short_reason(error)
                where = repr(str(self._directory))
                self.failure = f"Checkpoint: step {self._step} could not be saved to {where} ({reason})."
        return self.failure

    def close(self) -> None:
        """End the thread, and unlock the directory."""
        self._thread.shutdown()
        self._unlock()

    def _write(self, step: int, about: dict[str, Any], data: UInt8[np.ndarray, " bytes"]) -> None:
        if not self._directory.is_dir():  # removed while the solve ran, the lock with it
            _files.make(self._directory)
            self._unlock()
            self._unlock = lock(self._directory)
        final = self._directory / str(step)
        if os.path.lexists(final):
            raise FileExistsError(f"{str(final)!r} is in the way")
        part = _files.scratch(self._directory, [STATE], step=step)
        try:
            text = np.frombuffer(json.dumps(about).encode(), np.uint8)
            with (part / STATE).open("wb") as file:
                np.savez(file, about=text, data=data)
            _files.sync(part / STATE)
            if not self._checked:  # find a file system that alters data on the first save
                found, again = read(part / STATE)
                if found != about or again.tobytes() != data.tobytes():
                    raise OSError("what was written reads back otherwise")
                self._checked = True
            with suppress(OSError):  # some file systems cannot
                _files.sync(part)
            part.rename(final)
        except BaseException:
            with suppress(OSError):
                _files.remove_ours(part)
            raise
        with suppress(OSError):
            _files.sync(self._directory)
        self._kept.append(step)
        for old in self._kept[: -self._keep]:
            with suppress(OSError):
                _files.remove_whole(self._directory / str(old))
        del self._kept[: -self._keep]


def read(path: Path) -> tuple[dict[str, Any], UInt8[np.ndarray, " bytes"]]:
    """The description and the bytes of a save. NumPy checks the checksums as it reads."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return json.loads(file["about"].tobytes()), file["data"]


def step_of(path: Path) -> int | None:
    """The step that is the name of a file or folder; None if the name is not a step."""
    return int(path.name) if path.name.isascii() and path.name.isdecimal() and path.name[:1] != "0" else None


def saves_in(directory: Path) -> dict[int, Path]:
    """The folders of the saves, by step: folders that this program made and that have not been renamed."""
    if not directory.is_dir():
        return {}
    return {
        step: path
        for path in directory.iterdir()
        if (step := step_of(path)) is not None and (_files.read_mark(path) or {}).get("step") == step
    }


def what_it_is(path: Path) -> str:
    """What the folder of a step is if it is not a save, as the end of a sentence."""
    mark = _files.read_mark(path) or {}
    if "step" in mark:
        return f"holds the save of step {mark['step']}: it was renamed or copied"
    return "has lost its owner file" if was_a_save(path) else "was not made by bilevax"


def was_a_save(path: Path) -> bool:
    """Whether a folder holds the file of a save."""
    return os.path.lexists(path / STATE)


def lock(directory: Path) -> Callable[[], None]:
    """Lock a directory against other solves; return the function that unlocks it.

    Raises:
        InputError: another solve writes to the directory, or it cannot be written to.
    """
    try:
        return _files.lock(directory, "Checkpoint: directory")
    except OSError as error:
        raise unwritable("Checkpoint", directory, error) from error


def pack(tree: PyTree) -> UInt8[np.ndarray, " bytes"]:
    """The leaves of a tree as one array of bytes, which is written in half the time of an array per leaf.

    It is a copy: an array on the CPU may be a view of the device's memory, which the next stretch overwrites (the state
    is donated to it) while the bytes are being written.
    """
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    return np.concatenate([np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in on_host(leaves)])


def unpack(data: UInt8[np.ndarray, " bytes"], like: PyTree) -> PyTree:
    """The tree that `pack` has packed; `like` is a tree with its structure, shapes and dtypes."""
    place = 0

    def take(x: Any) -> Any:
        nonlocal place
        plain = jax.eval_shape(jax.random.key_data, x) if is_key(x) else x
        end = place + int(np.prod(plain.shape)) * np.dtype(plain.dtype).itemsize
        value = data[place:end].copy().view(plain.dtype).reshape(plain.shape)
        place = end
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(x)) if is_key(x) else value

    return jax.tree.map(take, like)

"""What to do between stretches: a progress bar, logs, and checkpoints to resume from.

`solve` asks little of a callback (`solve.Callback`), so any function of a Visit is one too. The
packages that these lean on are imported when a solve starts, not with bilevax. Of a solve over several
processes the first alone draws and writes.
"""

import hashlib
import importlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.layout import any_process, on_host
from bilevax.problem import InputError, require_count
from bilevax.solve import Fingerprint, Result, Run, Saved, Visit
from bilevax.solvers.base import Info


class Progress:
    """A progress bar (tqdm; a widget in notebooks) with both losses, the stage if there is one, and the rate.

    Args:
        description: what stands before the bar.

    For a `Vectorized` solver the means over the members that are still alive are shown.

    Example:
        >>> from bilevax import callbacks
        >>> bar = callbacks.Progress("denoising")  # then solve(..., callbacks=[bar])
    """

    def __init__(self, description: str = ""):
        self.description = description
        self._bar: Any = None

    def start(self, run: Run) -> None:
        """Draw the bar, from the resumed step on.

        Raises:
            InputError: tqdm is not installed.
        """
        if not run.writes:
            return
        tqdm = _import("tqdm.auto", "Progress", "apps").tqdm
        self._bar = tqdm(total=run.steps, initial=min(run.step, run.steps), desc=self.description or None, unit="step")

    def visit(self, visit: Visit) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        told = {name: _mean(value) for name, value in _last(visit.info).items()}
        shown = {"upper": told["upper_loss"], "lower": told["lower_loss"]}
        if "stage" in told:
            shown["stage"] = told["stage"]
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        self._bar.update(visit.step - self._bar.n)

    def finish(self, result: Result | None) -> None:
        """Leave the bar as it stands."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.refresh()
            bar.close()


class JsonLines:
    """A log with one line of JSON per visit: the step, the seconds, and every scalar of that step's Info.

    Args:
        path: the file; its folder is made. Values that are not finite are written as null, those of a
            `Vectorized` solver as lists with a value per member.

    A resumed solve drops the lines past its step and goes on from there, seconds included (those between
    the last checkpoint and the kill do not count). A new solve renames a log that is already there,
    `log.jsonl` to `log.jsonl.1` and so on, and starts another.

    Example:
        >>> import jax, jax.numpy as jnp, json, pathlib, tempfile
        >>> from bilevax import Penalty, Problem, callbacks, solve
        >>> problem = Problem(lambda u, v: jnp.sum((v - 1) ** 2), lambda u, v: jnp.sum((v - u) ** 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "log.jsonl")
        ...     result = solve(
        ...         Penalty(), problem, jnp.zeros(2), jnp.zeros(2), steps=200, every=50, key=jax.random.key(0),
        ...         callbacks=[callbacks.JsonLines(path)],
        ...     )
        ...     [json.loads(line)["step"] for line in path.read_text().splitlines()]
        [50, 100, 150, 200]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self._file: Any = None
        self._before = 0.0

    def start(self, run: Run) -> None:
        """Open the file.

        Raises:
            InputError: the file cannot be written, or a solve that resumes finds in it what is no log.
        """
        self._before = 0.0
        if not run.writes:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size > 0:
                if run.resumes:
                    self._shorten(run.step)
                else:
                    self.path.rename(_unused(self.path))
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"JsonLines: path is {str(self.path)!r}, which cannot be written ({error.strerror}). Name a file in "
                "a folder that you can write to."
            ) from error

    def _shorten(self, step: int) -> None:
        """Keep the lines up to a step. The last line may be cut: the solve was killed as it wrote it."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                at, seconds = record["step"], record["seconds"]
            except (ValueError, KeyError, TypeError):
                if number == len(lines):
                    continue
                raise InputError(
                    f"JsonLines: line {number} of {str(self.path)!r} is no record of a solve, so it is not "
                    "continued. Name another file."
                ) from None
            if at <= step and line.endswith("\n"):
                kept.append(line)
                self._before = seconds
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(self.path)

    def visit(self, visit: Visit) -> None:
        """Write a line."""
        if self._file is None:
            return
        record = {
            "step": visit.step,
            "seconds": round(self._before + visit.seconds, 6),
            **{name: _jsonable(value) for name, value in _last(visit.info).items()},
        }
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, result: Result | None) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class TensorBoard:
    """Every scalar of Info, at each visit, as TensorBoard events (through tensorboardX).

    Args:
        directory: where the event files go. A resumed solve tells TensorBoard to forget what came after its step.

    For a `Vectorized` solver the means over the members that are still alive are written.

    Example:
        >>> from bilevax import callbacks
        >>> log = callbacks.TensorBoard("runs/denoising")  # then solve(..., callbacks=[log])
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory).expanduser()
        self._writer: Any = None

    def start(self, run: Run) -> None:
        """Open an event file.

        Raises:
            InputError: tensorboardX is not installed, or the directory cannot be written.
        """
        if not run.writes:
            return
        board = _import("tensorboardX", "TensorBoard", "tensorboard")
        _require_writable("TensorBoard", self.directory)
        self._writer = board.SummaryWriter(str(self.directory), purge_step=run.step + 1 if run.step else None)

    def visit(self, visit: Visit) -> None:
        """Add the scalars."""
        if self._writer is None:
            return
        for name, value in _last(visit.info).items():
            self._writer.add_scalar(name, _mean(value), visit.step)

    def finish(self, result: Result | None) -> None:
        """Write out and close."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class Checkpoint:
    """Saves a solve as it runs, through orbax, and is where `resume` finds it.

    Args:
        directory: holds a folder per saved step. It is made if need be.
        every: visits from one save to the next.
        keep: how many saves to keep, the newest.

    A save holds the state and the history; it is written by a thread while the solve goes on, and takes
    its final name once whole, so one that was cut off by a kill is never seen. At the end, after Ctrl-C
    and at a non-finite value too (the last finite state), what is not yet saved is saved and waited for.

    A small state costs a visit about 10 ms, and its write 0.1 s in the background, more with the size of
    the state and the length of the history. A visit that comes while a save is being written is passed
    over, so frequent visits do not stall the solve; choose `every` (or solve's) so that saves are
    seconds apart.

    Pass the same object as callback and as `resume`, and the same command starts a solve and continues
    it, bit for bit, until it is done.

    A save holds whole arrays, so a solve over other devices or another number of processes continues it, to rounding.
    Several processes must all see the directory.

    Example:
        >>> import jax, jax.numpy as jnp, tempfile
        >>> from bilevax import Penalty, Problem, callbacks, solve
        >>> problem = Problem(lambda u, v: jnp.sum((v - 1) ** 2), lambda u, v: jnp.sum((v - u) ** 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save = callbacks.Checkpoint(folder)
        ...     start = (Penalty(), problem, jnp.zeros(2), jnp.zeros(2))
        ...     one = solve(*start, steps=100, key=jax.random.key(0), callbacks=[save], resume=save)
        ...     two = solve(*start, steps=300, key=jax.random.key(0), callbacks=[save], resume=save)
        >>> whole = solve(*start, steps=300, key=jax.random.key(0))
        >>> two.steps, bool((two.u == whole.u).all())
        (300, True)
    """

    def __init__(self, directory: str | os.PathLike[str], every: int = 1, keep: int = 2):
        require_count("Checkpoint", "every", every)
        require_count("Checkpoint", "keep", keep)
        self.directory = Path(directory).expanduser().absolute()
        self.every = every
        self.keep = keep
        self._manager: Any = None  # of the first process
        self._running = self._several = False
        self._about: dict[str, Any] = {}
        self._saved = 0
        self._due = 0

    def start(self, run: Run) -> None:
        """Make the directory ready.

        Raises:
            InputError: it cannot be written, or holds later steps than the one this solve starts from.
        """
        _require_writable("Checkpoint", self.directory)
        newest = max(self._steps(), default=0)
        if newest > run.step:
            raise InputError(
                f"Checkpoint: {str(self.directory)!r} already holds step {newest} of a solve, and this one starts "
                f"from step {run.step}. Pass the Checkpoint as resume= too to continue that "
                "solve, or name another directory."
            )
        self._about = _about(run.fingerprint())
        self._saved, self._due = run.step, 0
        self._running, self._several = True, run.several
        if not run.writes:
            return
        # A kill while orbax deletes an old step leaves half of it.
        for step in self._steps()[: -self.keep]:
            shutil.rmtree(self.directory / str(step), ignore_errors=True)
        orbax = _orbax()
        options = orbax.CheckpointManagerOptions(
            max_to_keep=self.keep,
            cleanup_tmp_directories=True,
            create=False,
            save_root_metadata=False,
            multiprocessing_options=_alone("save"),
        )
        with _quiet():
            self._manager = orbax.CheckpointManager(self.directory, options=options)

    def visit(self, visit: Visit) -> None:
        """Start a save, if one is due and none is being written."""
        self._due += 1
        if self._due < self.every:
            return
        busy = self._manager is not None and self._manager.is_saving_in_progress()
        if self._several:
            (busy,) = any_process(busy)
        if not busy:
            self._save(visit.step, visit.state, visit.history())

    def finish(self, result: Result | None) -> None:
        """Save what is not saved yet, and wait until all is written."""
        if not self._running:
            return
        manager = self._manager
        try:
            if result is not None and result.steps > self._saved:
                self._save(result.steps, result.state, result.history)
            try:
                if manager is not None:
                    manager.wait_until_finished()
            except Exception as error:
                raise self._unwritten(self._saved, error) from error
        finally:
            self._manager, self._running = None, False
            if manager is not None:
                manager.close()

    def load(self, fingerprint: Fingerprint, state: Any, info: Info) -> Saved | None:
        """The newest save; None if there is none.

        Raises:
            InputError: the save is damaged, or of a solve with other shapes or data, another problem, solver or key.
        """
        steps = self._steps()
        if not steps:
            return None
        step, orbax = max(steps), _orbax()
        handler, alone = orbax.CompositeCheckpointHandler(), _alone("load")
        with _quiet(), orbax.Checkpointer(handler, multiprocessing_options=alone) as reader:

            def read(**items: Any) -> Any:
                try:
                    return reader.restore(self.directory / str(step), args=orbax.args.Composite(**items))
                except Exception as error:  # orbax, tensorstore and json each have their own
                    raise self._damaged(step, steps, error) from error

            about = read(about=orbax.args.JsonRestore()).about
            try:
                self._compare(step, about, _about(fingerprint))
                rows, size, check = about["rows"], about["bytes"], about["crc32"]
            except (KeyError, TypeError) as error:
                raise self._damaged(step, steps, error) from error
            data = read(arrays=orbax.args.StandardRestore()).arrays["bytes"]
        if data.size != size or zlib.crc32(data.data) != check:
            raise self._damaged(step, steps, "its checksum is wrong")
        like = (state, jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), info))
        return Saved(step, *_unpack(data, like))

    def _steps(self) -> list[int]:
        """The steps that were saved. Folders being written have other names."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdecimal() and p.is_dir())

    def _save(self, step: int, state: Any, history: Info) -> None:
        orbax = _orbax()
        data = _pack((state, history))
        self._saved, self._due = step, 0
        if self._manager is None:
            return
        rows = len(jax.tree.leaves(history)[0])
        about = {**self._about, "rows": rows, "bytes": data.size, "crc32": zlib.crc32(data.data)}
        try:
            self._manager.save(
                step,
                args=orbax.args.Composite(
                    arrays=orbax.args.StandardSave({"bytes": data}), about=orbax.args.JsonSave(about)
                ),
            )
        except Exception as error:
            raise self._unwritten(step, error) from error

    def _compare(self, step: int, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Refuse a save of another solve; what explains the rest is told first."""
        where = f"resume: step {step} in {str(self.directory)!r}"
        instead = "Resume with what it was saved with, or name another directory."
        if found["shapes"] != wanted["shapes"]:
            pairs = zip(found["shapes"], wanted["shapes"], strict=False)
            was, now = next((p for p in pairs if p[0] != p[1]), ("", ""))
            told = f": it has {was!r}, and this solve {now!r}" if was else ""
            raise InputError(f"{where} is of a solve with other shapes or another source of batches{told}. {instead}")
        version = ""
        if found["jax"] != wanted["jax"]:
            version = (
                f" (or only JAX's version: it was saved under {found['jax']}, this is {wanted['jax']}, and the same "
                "bits cannot be promised across versions)"
            )
        for part, name in (
            ("problem", "problem"),
            ("solver", "solver, or the same with other settings"),
            ("key", "key"),
        ):
            if found[part] != wanted[part]:
                raise InputError(f"{where} is of a solve with another {name}{version}. {instead}")
        for was, now in zip(found["data"], wanted["data"], strict=False):
            if was != now:
                name, _, _ = now.partition(": ")
                raise InputError(f"{where} is of a solve with other data: the values of {name} differ. {instead}")

    def _damaged(self, step: int, steps: list[int], cause: Any) -> InputError:
        earlier = [s for s in steps if s < step]
        then = f"continue from step {earlier[-1]}" if earlier else "start from the beginning"
        reason = str(cause).strip().splitlines()[0][:200] if str(cause).strip() else type(cause).__name__
        return InputError(
            f"resume: the checkpoint of step {step} in {str(self.directory)!r} is cut short or damaged ({reason}). "
            f"Delete the folder {str(self.directory / str(step))!r}; the solve will then {then}."
        )

    def _unwritten(self, step: int, error: Exception) -> OSError:
        return OSError(
            f"Checkpoint: step {step} could not be written to {str(self.directory)!r} ({error}). Saves made before are "
            "untouched: once there is room, resume from them."
        )


def _about(fingerprint: Fingerprint) -> dict[str, Any]:
    """A fingerprint as JSON: traced programs as hashes, shapes in full, so that a refusal can name them."""

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


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _pack(tree: Any) -> np.ndarray:
    """All leaves as one row of bytes: any dtype, any size, one file to write, in half the time of many.

    It is a real copy. An array on the CPU may be a view of the device's memory, which the next stretch,
    to which the state is donated, overwrites while the bytes are being written out.
    """
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]
    return np.concatenate([np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in on_host(leaves)])


def _unpack(data: np.ndarray, like: Any) -> Any:
    """The tree that `_pack` was given, from one of the same shapes and dtypes."""
    place = 0

    def take(x: Any) -> Any:
        nonlocal place
        plain = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
        end = place + int(np.prod(plain.shape)) * np.dtype(plain.dtype).itemsize
        value = data[place:end].copy().view(plain.dtype).reshape(plain.shape)
        place = end
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(x)) if _is_key(x) else value

    return jax.tree.map(take, like)


def _last(info: Info) -> dict[str, np.ndarray]:
    """The scalars of a stretch's last step by name; those in `extra` by their names there."""
    extra = jax.tree_util.tree_leaves_with_path(info.extra)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in extra}
    named |= {name: getattr(info, name) for name in Info._fields if name != "extra"}
    return {name: x[-1] for name, x in named.items()}


def _mean(value: np.ndarray) -> float:
    """The mean over the members that are finite."""
    values = np.asarray(value, float)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _jsonable(value: np.ndarray) -> Any:
    if np.ndim(value) > 0:
        return [_jsonable(x) for x in value]
    if np.issubdtype(value.dtype, np.integer):
        return int(value)
    number = float(value)
    return number if np.isfinite(number) else None


def _unused(path: Path) -> Path:
    """`path` with the first number behind it that is free."""
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def make_writable(directory: Path) -> None:
    """Make a directory if need be, and try it with a file that leaves no trace.

    Raises:
        OSError: it cannot be made or written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


def _require_writable(owner: str, directory: Path) -> None:
    try:
        make_writable(directory)
    except OSError as error:
        raise InputError(
            f"{owner}: directory is {str(directory)!r}, which cannot be written ({error.strerror}). Name one that you "
            "can write to."
        ) from error


def _import(module: str, owner: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(
            f"{owner} needs the package {package}, which is not installed. Install it with the extra: "
            f"pip install 'bilevax[{extra}]'."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, orbax's warnings about folders that are not whole are not printed: what matters is raised."""

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger = logging.getLogger("absl")
    logger.addFilter(serious)
    try:
        yield
    finally:
        logger.removeFilter(serious)


def _alone(name: str) -> Any:
    """Orbax's options for work that this process does by itself, whatever the others do."""
    here = jax.process_index()
    return _orbax().options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"bilevax-{name}-{here}"
    )


def _orbax() -> Any:
    return importlib.import_module("orbax.checkpoint")

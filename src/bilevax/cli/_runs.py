"""A run of a command: its output files, its finished stages, and its continuation after an interruption."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

import bilevax
from bilevax import _files
from bilevax._checks import InputError, short_reason
from bilevax.cli._printing import complain, quoted, say
from bilevax.cli._writing import as_json, write_csv, write_json
from bilevax.loop import processes
from bilevax.loop.checkpoint import SaveError
from bilevax.loop.result import SolveError
from bilevax.loop.signals import PREEMPTION, Asked, deferred
from bilevax.loop.stages import Stages

if TYPE_CHECKING:
    import pandas as pd

SETTINGS, VERSION = "settings.json", "bilevax"


class Ended(SystemExit):
    """Exit of a run that SIGTERM or SIGUSR1 ended between two stages."""

    def __init__(self) -> None:
        super().__init__(143)


class Run:
    """One run of a command: its output files, and a folder OUT/checkpoints while it lasts.

    Args:
        command: its name, for the settings.
        out: where this process writes.
        names: the files that it may write there.
        settings: everything that the results depend on, including hashes of the inputs.
        inputs: the files to read, by the name of their argument.
        resume: whether to continue an interrupted run.
        overwrite: whether files of the user may be overwritten.
        shared: --out as passed; all processes read the checkpoints of the first one there.

    Raises:
        InputError: an output would overwrite an input or a file of the user; OUT/checkpoints holds files of the user,
            an interrupted run that is not resumed, or one with other settings or of another version. Nothing was
            changed.
    """

    def __init__(
        self,
        command: str,
        out: Path,
        names: list[str],
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path | None],
        *,
        resume: bool,
        overwrite: bool,
        shared: Path,
    ):
        self.out, self.written, self.elsewhere = out, [], None
        self.folder = shared / "checkpoints"
        self._first = jax.process_index() == 0
        self._settings = json.loads(json.dumps(as_json({"command": command, **settings, VERSION: bilevax.__version__})))
        if out.resolve() == Path(out.resolve().anchor):
            raise InputError(f"--out {out} is the root of the file system. Pass a folder of its own.")
        self._check_interrupted(resume)
        self._outputs = _files.Outputs(out, names, inputs=inputs, overwrite=overwrite)
        if self._first:
            if self.folder.is_symlink():
                raise InputError(
                    f"--out: {str(self.folder)!r} is a symbolic link, and a folder of that name is needed for "
                    "checkpoints. Remove it, or name another folder."
                )
            _files.claim(self.folder, "--out")

    def _check_interrupted(self, resume: bool) -> None:
        """Refuse to overwrite an interrupted run, or to resume a different one."""
        file = self.folder / SETTINGS
        self._fresh = not (_files.is_ours(self.folder) and file.is_file())
        if self._fresh:
            if resume:
                say(f"There is nothing to resume in {self.folder}; starting from the beginning.")
            return
        _files.require_unlocked(self.folder, "--out")
        if not resume:
            raise InputError(
                f"{self.folder} holds an interrupted run. Add --resume to go on with it, or delete that folder to "
                "start over."
            )
        try:
            before = json.loads(file.read_bytes())
            version = before.get(VERSION, "unknown")
            changed = [key for key in self._settings if self._settings[key] != before.get(key)]
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{file} cannot be read. Delete {self.folder} to start over, without --resume.") from error
        if version != bilevax.__version__:
            raise InputError(
                f"--resume: the interrupted run in {self.folder} is of bilevax {version}, and this is bilevax "
                f"{bilevax.__version__}. Resume with the version that began the run, or delete that folder to start "
                "over without --resume."
            )
        if changed:
            raise InputError(
                f"--resume: the interrupted run in {self.folder} had other settings ({', '.join(changed)}). Repeat "
                "the same command, or delete that folder to start over without --resume."
            )

    @contextmanager
    def stages(self) -> Iterator[Stages]:
        """Keep stages within the context and remove them at its end; print how to resume after an early end.

        Within the context SIGTERM and SIGUSR1 do not end the process: the run ends between its next two stages.
        """
        with deferred(*PREEMPTION) as asked, self._kept(asked) as stages:
            yield stages

    @contextmanager
    def _kept(self, asked: Asked) -> Iterator[Stages]:
        if jax.process_count() > 1:
            processes.require_agreement(settings=json.dumps(self._settings))  # all have looked for an interrupted run
        unlock = _files.lock(self.folder, "--out") if self._first else None
        if self._first:
            inner = _files.Outputs(self.folder, [])
            inner.write(SETTINGS, lambda path: write_json(path, self._settings))
        if jax.process_count() > 1:
            processes.require_agreement(folder=str(self.folder))  # now it is there, for all to look into
        stages = Stages(self.folder, writes=self._first, heed=lambda: _heed(asked), notice=complain)
        try:
            yield stages
        except BaseException as error:
            # A refusal or a non-finite value would recur after resuming; stages of an earlier run stay.
            futile = isinstance(error, InputError | SolveError) and not isinstance(error, SaveError)
            kept = stages.any() and not (self._fresh and futile)
            if unlock is not None:
                unlock()
            if not kept:
                self._clear()
            if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == 143):
                preempted = bool(asked) and not asked.interrupted
                how = f"Ended by {asked.name}" if preempted else "Interrupted"
                complain(self._how_to_resume(how) if kept else f"{how} before there was anything to keep.")
                if preempted:  # a search ends by a KeyboardInterrupt, whichever signal it was
                    raise Ended from error
            elif kept and not futile:
                complain(self._how_to_resume("Ended by an error"))
            raise
        if unlock is not None:
            unlock()
        self._clear()

    def _clear(self) -> None:
        if not self._first:
            return
        try:
            _files.remove_ours(self.folder)
        except OSError as error:
            complain(f"{self.folder} could not be removed ({_files.reason(error)}). Remove it by hand.")

    def _how_to_resume(self, how: str) -> str:
        command = ["bilevax", *(argument for argument in sys.argv[1:] if argument != "--resume"), "--resume"]
        return f"{how}. What was computed is kept in {self.folder}. To go on with it: {quoted(command)}"

    def csv(self, name: str, frame: "pd.DataFrame") -> None:
        """Write a table."""
        self._write(name, lambda path: write_csv(path, frame))

    def json(self, name: str, content: Any, indent: int | None = 2) -> None:
        """Write a report."""
        self._write(name, lambda path: write_json(path, content, indent))

    def file(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a file by a function of its path."""
        self._write(name, write)

    def picture(self, name: str, draw: Callable[[Path], Any]) -> None:
        """Draw a picture; if that fails, print a sentence. Call it after the data files are written."""
        try:
            self._write(name, draw)
        except Exception as error:
            complain(f"{name} could not be drawn ({short_reason(error)}). The other files hold all figures.")

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a file to --out, or to a new folder if that has become impossible."""
        if self.elsewhere is None:
            try:
                self._outputs.write(name, write)
            except OSError as error:
                self.elsewhere = Path(tempfile.mkdtemp(prefix="bilevax-"))
                complain(
                    f"{name} cannot be written to {self.out} ({_files.reason(error)}). This and all further files go "
                    f"to {self.elsewhere} instead."
                )
        if self.elsewhere is not None:
            _files.replace(self.elsewhere / name, write)
        self.written.append(name)

    def end(self, seconds: float) -> None:
        """Print which files were written, where, and the seconds.

        Raises:
            SystemExit: with code 1, if the files are not in --out.
        """
        where = self.out if self.elsewhere is None else self.elsewhere
        say(f"Wrote {', '.join(self.written)} to {where} in {seconds:.1f} s.")
        if self.elsewhere is not None:
            raise SystemExit(1)


def _heed(asked: Asked) -> None:
    """End the run if a signal has requested that, of this process or another."""
    ended = bool(asked)
    if jax.process_count() > 1:
        (ended,) = processes.any_process(ended)
    if ended:
        raise Ended

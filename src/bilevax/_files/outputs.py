"""The output files of a command."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bilevax._checks import InputError
from bilevax._files.folders import OWNER, make, make_writable, read_mark, write_mark
from bilevax._files.paths import reason, same_file
from bilevax._files.whole import digest, replace, unchanged


class Outputs:
    """The files that a command writes into a folder, checked before anything is computed.

    Args:
        folder: where the files go; made if needed. Other files in it are not touched.
        names: the files to write, relative to the folder.
        inputs: the files to read, by the name of their argument.
        overwrite: whether to overwrite files that are not unchanged outputs of this program.
        where: name of the folder in an error.

    `write` records the SHA-256 of each file in the owner file, so an output that was edited since counts as the user's.

    Raises:
        InputError: a file to write is an input, or exists and is not an unchanged output of this program; or the folder
            cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     outputs = Outputs(pathlib.Path(folder, "new"), ["report.txt"])
        ...     outputs.write("report.txt", lambda path: path.write_text("done"))
        ...     edited = (outputs.folder / "report.txt").write_text("mine")
        ...     Outputs(outputs.folder, ["report.txt"])
        Traceback (most recent call last):
        bilevax.InputError: --out: '.../report.txt' exists and would be overwritten...
    """

    def __init__(
        self,
        folder: Path,
        names: Iterable[str],
        *,
        inputs: Mapping[str, Path | None] | None = None,
        overwrite: bool = False,
        where: str = "--out",
    ):
        self.folder = folder
        self.where = where
        try:
            mark = read_mark(folder)
            if mark is None and os.path.lexists(folder / OWNER):
                raise InputError(
                    f"{where}: {str(folder / OWNER)!r} is damaged or was not written by bilevax, so it is unknown "
                    "which files are its own. Move it away, or name another folder."
                )
            for name in names:
                self._check(folder / name, {} if mark is None else mark["files"], inputs or {}, overwrite)
            make_writable(folder)
        except OSError as error:
            raise InputError(
                f"{where}: {str(folder)!r} cannot be written ({reason(error)}). Name a folder that you can write to."
            ) from error

    def _check(self, path: Path, files: dict[str, list[str]], inputs: Mapping[str, Path | None], force: bool) -> None:
        for argument, source in inputs.items():
            if source is not None and same_file(path, source):
                raise InputError(
                    f"{self.where}: {str(path)!r} is the input {argument} and would be overwritten. Name another "
                    "folder."
                )
        if not os.path.lexists(path):
            return
        if path.is_dir() and not path.is_symlink():
            raise InputError(
                f"{self.where}: {str(path)!r} is a folder, and a file with that name is needed. Name another folder."
            )
        name = path.relative_to(self.folder).as_posix()
        if not force and not (name in files and unchanged(path, files[name])):
            raise InputError(
                f"{self.where}: {str(path)!r} exists and would be overwritten: bilevax did not write it, or it was "
                "changed since. Name another folder, move the file away, or pass --overwrite."
            )

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write one of the files, completely or not at all, and record it.

        Args:
            name: relative to the folder.
            write: called with the path to write to.

        Raises:
            OSError: the file cannot be written.
        """
        path = self.folder / name
        make(path.parent)

        def recorded(temporary: Path) -> None:
            write(temporary)
            mark = read_mark(self.folder) or {"made": False, "files": {}}
            # The previous hash stays, too: a kill between here and the rename leaves the previous file.
            mark["files"][name] = [*mark["files"].get(name, [])[-1:], digest(temporary)]
            write_mark(self.folder, mark)

        replace(path, recorded)

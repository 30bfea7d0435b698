"""Files and folders that this program makes, as distinct from those of a user.

A folder made here, or written to, holds an owner file, `.bilevax`: whether the folder was made by this
program, and the SHA-256 of each file that it wrote there. Nothing that the owner file does not list is
removed or overwritten.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bilevax._checks import InputError

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

OWNER = ".bilevax"
LOCK = ".bilevax.lock"
TEMPORARY = re.compile(r"\.bilevax-[0-9a-f]{12}(\..*)?")
LONGEST_NAME = 255  # bytes; the limit of every common file system


def local_path(where: str, path: Any) -> Path:
    """A path that a user passed, as an absolute Path. Nothing is made.

    Args:
        where: what names the argument in an error, such as "JsonLines: path".
        path: what was passed.

    Raises:
        InputError: it is not a str or a path, is empty, is a URL, holds a NUL, or has a name that no file can have.

    Example:
        >>> local_path("JsonLines: path", "/logs/../logs/log.jsonl").name
        'log.jsonl'
        >>> local_path("JsonLines: path", "s3://bucket/log.jsonl")
        Traceback (most recent call last):
        bilevax.InputError: JsonLines: path is 's3://bucket/log.jsonl', a URL. Only local folders can be ...
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise InputError(f"{where} is {path!r}, and must be a path: a str or a pathlib.Path.")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise InputError(f"{where} is {text!r}, of bytes. Pass a str; os.fsdecode makes one.")
    if not text.strip():
        raise InputError(f"{where} is {text!r}, an empty path. Name a file or a folder.")
    if "\0" in text:
        raise InputError(f"{where} is {text!r}, which holds a NUL character. No file can have such a name.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # pathlib makes one slash of two
        raise InputError(
            f"{where} is {text!r}, a URL. Only local folders can be written to: mount the bucket, or write to a "
            "local folder and copy it."
        )
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{where} is {text!r}, and there is no such home folder. Write the path out.") from error
    try:
        too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in found.parts)
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is {text!r}, which cannot be encoded as a file name on this system.") from error
    if too_long:
        raise InputError(f"{where} holds a name of more than {LONGEST_NAME} bytes: {text[:60]!r}... Shorten it.")
    try:
        return Path(os.path.abspath(found))
    except FileNotFoundError as error:
        raise InputError(
            f"{where} is {text!r}, relative to a current folder that is gone. Write it in full."
        ) from error


def reason(error: OSError) -> str:
    """Why the system refused, in its own words."""
    return error.strerror or str(error) or type(error).__name__


# --- folders -----------------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Make a folder, with its parents, and mark it. One that is already there is left as it is.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
        return
    _write_mark(folder, {"made": True, "files": {}})


def make_writable(folder: Path) -> None:
    """`make`, and try the folder with a file that leaves no trace.

    Raises:
        OSError: it cannot be made or written.
    """
    make(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass


def claim(folder: Path, where: str) -> None:
    """Make a folder that is to hold nothing of a user's: a new one, an empty one, or one marked before.

    Args:
        folder: the folder.
        where: what names it in an error, such as "--out".

    Raises:
        InputError: it holds files and no mark, is a file, or cannot be written.
    """
    try:
        if folder.is_dir() and not is_ours(folder) and any(folder.iterdir()):
            raise InputError(
                f"{where}: {str(folder)!r} holds files that bilevax did not write. Name a folder that is new or empty."
            )
        make_writable(folder)
        if not is_ours(folder):
            _write_mark(folder, {"made": False, "files": {}})
    except OSError as error:
        raise InputError(
            f"{where}: {str(folder)!r} cannot be written ({reason(error)}). Name a folder that you can write to."
        ) from error


def is_ours(folder: Path) -> bool:
    """Whether the folder holds an owner file."""
    return read_mark(folder) is not None


def remove_ours(folder: Path) -> bool:
    """Remove from a marked folder what this program wrote, folders below it that are marked included.

    Files that the owner file does not list, or that were changed since, stay, and so do the folders they lie in.

    Returns:
        Whether the folder is gone.

    Raises:
        LockedError: a solve is writing to it.
        OSError: something could not be removed.
    """
    mark = read_mark(folder)
    if mark is None:
        return not os.path.lexists(folder)
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            remove_ours(child)
    left = {}
    for name, hashes in mark["files"].items():
        path = folder / name
        if not os.path.lexists(path):
            continue
        if unchanged(path, hashes):
            path.unlink()
        else:
            left[name] = hashes
        for parent in path.relative_to(folder).parents:
            with suppress(OSError):  # it holds more
                if parent.parts:
                    (folder / parent).rmdir()
    for path in folder.iterdir():  # left by a process that was killed
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
    if os.path.lexists(folder / LOCK):
        lock(folder, "The folder")()
    if mark["made"] and not folder.is_symlink() and {path.name for path in folder.iterdir()} <= {OWNER}:
        (folder / OWNER).unlink()
        folder.rmdir()
        return True
    _write_mark(folder, {**mark, "files": left})
    return False


def read_mark(folder: Path) -> dict[str, Any] | None:
    """What the owner file of a folder holds; None where there is none, or one that this program did not write."""
    path = folder / OWNER
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        mark = json.loads(path.read_bytes())
        files = mark["files"]
        good = mark["program"] == "bilevax" and isinstance(mark["made"], bool)
        good = good and all(isinstance(x, list) and _is_below(name) for name, x in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return mark if good else None


def _is_below(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts


def _write_mark(folder: Path, mark: dict[str, Any]) -> None:
    text = json.dumps({"program": "bilevax", **mark}, indent=1) + "\n"
    replace(folder / OWNER, lambda path: path.write_text(text, encoding="utf-8"))


def scratch(folder: Path, names: Iterable[str], **more: Any) -> Path:
    """A new marked folder with a temporary name in `folder`, for files of these names; `more` goes into the mark.

    Renamed once its files are written, it is a folder that is there whole or not at all.
    """
    part = _temporary(folder / "x")
    part.mkdir()
    try:
        _write_mark(part, {"made": True, "files": {name: [] for name in names}, **more})
    except BaseException:
        with suppress(OSError):
            part.rmdir()
        raise
    return part


def sweep(folder: Path) -> None:
    """Remove the scratch folders that killed processes have left."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            if not is_ours(path) and all(TEMPORARY.fullmatch(p.name) for p in path.iterdir()):
                _write_mark(path, {"made": True, "files": {}})  # killed before it was marked
            remove_ours(path)


def remove_whole(folder: Path) -> bool:
    """Remove a marked folder at once, as seen from outside; not if it holds a file that its mark does not list.

    Returns:
        Whether it was removed.
    """
    mark = read_mark(folder)
    if mark is None or {path.name for path in folder.iterdir()} - {OWNER, *mark["files"]}:
        return False
    part = _temporary(folder.parent / "x")
    folder.rename(part)
    return remove_ours(part)


# --- files -------------------------------------------------------------------------------------------------------


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: under another name in the same folder, then by a rename.

    A symlink at `path` is replaced; what it points to is not touched. What was there before stays if writing fails.

    Args:
        path: the file.
        write: writes the file at the path that it is called with, which has the same suffix.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers.csv")
        ...     replace(path, lambda temporary: temporary.write_text("1,2"))
        ...     path.read_text()
        '1,2'
    """
    temporary = _temporary(path)
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some file systems cannot
        sync(path.parent)


def _temporary(path: Path) -> Path:
    suffix = path.suffix if len(path.suffix) < 20 else ""
    return path.with_name(f".bilevax-{secrets.token_hex(6)}{suffix}")


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unchanged(path: Path, hashes: list[str]) -> bool:
    """Whether a path is a regular file with one of these hashes; without any, whether it is a regular file."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    return not hashes or digest(path) in hashes


class Outputs:
    """The files that a command writes into a folder, checked before anything is computed.

    Args:
        folder: where the files go. It is made if need be; other files in it are left alone.
        names: the files to be written, relative to the folder.
        inputs: the files that are read, by the name of their argument.
        overwrite: whether files that are not unchanged outputs of this program may be overwritten.
        where: what names the folder in an error.

    What `write` writes is recorded in the folder's owner file by its SHA-256, so an output that was edited since counts
    as the user's.

    Raises:
        InputError: a file to be written is an input; or exists, and is not an unchanged output of this program; or the
            folder cannot be written.

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
                    f"{where}: {str(folder / OWNER)!r} is damaged, or was not written by bilevax, so what is its own "
                    "cannot be known. Move it away, or name another folder."
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
                    f"{self.where}: {str(path)!r} would be overwritten, and it is the input {argument}. Name another "
                    "folder."
                )
        if not os.path.lexists(path):
            return
        if path.is_dir() and not path.is_symlink():
            raise InputError(
                f"{self.where}: {str(path)!r} is a folder, and a file of that name is to be written. Name another "
                "folder."
            )
        name = path.relative_to(self.folder).as_posix()
        if not force and not (name in files and unchanged(path, files[name])):
            raise InputError(
                f"{self.where}: {str(path)!r} exists and would be overwritten: it was not written by bilevax, or was "
                "changed since. Name another folder, move the file away, or pass --overwrite."
            )

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write one of the files, whole or not at all, and record it.

        Args:
            name: relative to the folder.
            write: writes the file at the path that it is called with.

        Raises:
            OSError: the file cannot be written.
        """
        path = self.folder / name
        make(path.parent)

        def recorded(temporary: Path) -> None:
            write(temporary)
            mark = read_mark(self.folder) or {"made": False, "files": {}}
            # The hash before stays as well: a kill between here and the rename leaves the earlier file.
            mark["files"][name] = [*mark["files"].get(name, [])[-1:], digest(temporary)]
            _write_mark(self.folder, mark)

        replace(path, recorded)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, through symlinks and hard links too, or would be one if they were made."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


# --- locks -------------------------------------------------------------------------------------------------------


class LockedError(InputError):
    """Another process, or another part of this one, has locked a folder."""


def lock(folder: Path, where: str) -> Callable[[], None]:
    """Lock a folder.

    The system drops the lock with the process, however that ends. Where the file system or the system has no locks,
    nothing is locked.

    Args:
        folder: the folder.
        where: what names it in an error, such as "Checkpoint: directory".

    Returns:
        What unlocks it.

    Raises:
        LockedError: it is locked.
        OSError: it cannot be written.
    """
    if fcntl is None:
        return lambda: None
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same_descriptor(descriptor, path):
                break
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise _locked(folder, where, holder) from error
        except OSError:  # this file system has no locks
            break
        os.close(descriptor)  # the one who held it removed the file meanwhile
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise

    def unlock() -> None:
        with suppress(OSError):
            if same_descriptor(descriptor, path):
                path.unlink()
        os.close(descriptor)

    return unlock


def require_unlocked(folder: Path, where: str) -> None:
    """Refuse a locked folder.

    Raises:
        LockedError: it is locked.
    """
    if fcntl is None:
        return
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody has locked it
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        raise _locked(folder, where, holder) from error
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _locked(folder: Path, where: str, holder: str) -> LockedError:
    by = f" ({holder})" if holder else ""
    return LockedError(
        f"{where} is {str(folder)!r}, which another solve{by} is writing to. Wait for it to end, or name another "
        "folder."
    )


def same_descriptor(descriptor: int, path: Path) -> bool:
    """Whether an open file is still what stands at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

"""Locks on folders, which end with the process."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bilevax._checks import InputError

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

LOCK = ".bilevax.lock"


class LockedError(InputError):
    """Another process, or another part of this one, has locked a folder."""


def lock(folder: Path, where: str) -> Callable[[], None]:
    """Lock a folder until the returned function is called or the process ends.

    Without support by the file system or the operating system, nothing is locked.

    Args:
        folder: the folder.
        where: its name in an error, such as "Checkpoint: directory".

    Raises:
        LockedError: it is locked already.
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
            locked = _locked(folder, where, descriptor)
            os.close(descriptor)
            raise locked from error
        except OSError:  # this file system has no locks
            break
        os.close(descriptor)  # the holder has removed the file meanwhile
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
    except OSError:  # no lock file
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _locked(folder, where, descriptor) from error
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _locked(folder: Path, where: str, descriptor: int) -> LockedError:
    holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    by = f" ({holder})" if holder else ""
    return LockedError(
        f"{where} is {str(folder)!r}, which another solve{by} is writing to. Wait for it to end, or name another "
        "folder."
    )


def same_descriptor(descriptor: int, path: Path) -> bool:
    """Whether a path is still the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

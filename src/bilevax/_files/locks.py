"""Locks on folders, which the system drops with the process."""

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

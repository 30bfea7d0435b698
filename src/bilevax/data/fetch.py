"""Files of data sets: looked up, downloaded, checked and stored.

pooch is not used: its downloader reads a response to its end, however long. With a downloader of ours, which stops at
the published size, names every mirror that failed and needs no progress bar, pooch would add the MD5 comparison alone.
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from bilevax._cache import cache_folder
from bilevax._checks import InputError, listed
from bilevax.data.archives import UnreadableError, read_npz
from bilevax.data.types import ClassImages, Images

Kind = TypeVar("Kind", Images, ClassImages)

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18  # bytes read at a time
STALE = 24 * 3600  # seconds after which the folder of a killed download is removed


class DownloadError(OSError):
    """A data set was not found and could not be downloaded or stored; the message says why and what to do."""


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    name: str
    size: int
    md5: str


@dataclass(frozen=True)
class Origin(Generic[Kind]):
    """How a data set is made from published files.

    Attributes:
        name: the NPZ file is called `name`.npz.
        shape: of one image.
        mirrors: URLs of folders; the first that returns the right bytes of a file is used.
        files: in the order that `read` takes; if there are none, nothing can be downloaded.
        read: makes the data set from the list of their paths.
        kind: its type.
    """

    name: str
    shape: tuple[int, ...]
    mirrors: tuple[str, ...]
    files: tuple[Published, ...]
    read: Callable[..., Kind]
    kind: type[Kind]


def load(source: Origin[Kind], download: bool = True) -> Kind:
    """The data set from the first place that has it: $BILEVAX_DATA, the cache, the mirrors."""
    file, looked_at = f"{source.name}.npz", []
    wanted = listed(source.kind._fields, quote=False)
    folder = os.environ.get("BILEVAX_DATA", "")
    if folder:
        own = Path(folder).expanduser()
        if not os.path.isdir(own):
            raise InputError(
                f"BILEVAX_DATA is {folder!r}, and there is no such directory. Make it and put {file} there, or "
                "unset BILEVAX_DATA to use the cache."
            )
        if os.path.isfile(own / file):
            remedy = "Replace it, or remove it to use the cache" + (" or the download." if source.files else ".")
            return _read_npz(own / file, source, remedy)
        looked_at.append(f"{own / file} (BILEVAX_DATA)")
    cache = cache_folder()
    if os.path.isfile(cache / file):
        remedy = "Remove it, and it will be downloaded again." if source.files else "Replace it."
        return _read_npz(cache / file, source, remedy)
    looked_at.append(f"{cache / file} (the cache)")
    if not source.files or not download:
        reason = "download is False" if source.files else "there is no public address to download it from"
        raise DownloadError(
            f"{source.name} is not in {' nor in '.join(looked_at)}, and {reason}. Put {file} (arrays {wanted}, all "
            "uint8) in a directory and set BILEVAX_DATA to it."
        )
    try:
        return _download(source, cache)
    except OSError as error:
        raise DownloadError(
            f"{source.name} is not in {' nor in '.join(looked_at)}, and its download failed. {error} Or put {file} "
            f"(arrays {wanted}, all uint8) in a directory and set BILEVAX_DATA to it."
        ) from error


def _read_npz(path: Path, source: Origin[Kind], remedy: str) -> Kind:
    try:
        arrays, _ = read_npz(path, source.kind._fields)
    except UnreadableError as error:
        raise InputError(f"{path} is damaged or not an NPZ file ({error}). {remedy}") from error
    missing = [name for name in source.kind._fields if name not in arrays]
    if missing:
        raise InputError(f"{path} lacks the arrays {listed(missing, quote=False)}. {remedy}")
    found = source.kind(**arrays)
    fault = found.fault(source.shape)
    if fault:
        raise InputError(f"{path}: {fault} {remedy}")
    return found


def _download(source: Origin[Kind], cache: Path) -> Kind:
    """Fetch, check, convert and store a data set. A complete file is moved into the cache, or none.

    Every download works in a directory of its own, so concurrent downloads do not disturb each other.
    """
    prefix = f".{source.name}-"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(prefix + "*"):
            with suppress(FileNotFoundError):  # another download has removed it, or has ended
                if time.time() - left.stat().st_mtime > STALE:
                    shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache, ignore_cleanup_errors=True) as scratch:
            images = _convert(source, [_fetch(file, source.mirrors, Path(scratch)) for file in source.files])
            part = Path(scratch) / f"{source.name}.npz"
            np.savez(part, **images._asdict())
            os.replace(part, cache / part.name)
            return images
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{cache} cannot be written ({error}). Make it a directory that you can write to and that has room, or set "
            "XDG_CACHE_HOME to another place."
        ) from error


def _convert(source: Origin[Kind], paths: list[Path]) -> Kind:
    archive = (zlib.error, tarfile.TarError, zipfile.BadZipFile)
    unreadable = (OSError, EOFError, ValueError, LookupError, TypeError, *archive)
    names = listed([path.name for path in paths], quote=False)
    try:
        images = source.read(paths)
    except unreadable as error:
        reason = str(error) or type(error).__name__
        raise DownloadError(f"{names} arrived as published but cannot be read ({reason}). Please report it.") from error
    fault = images.fault(source.shape)
    if fault:
        raise DownloadError(f"{names} arrived as published but with unexpected content: {fault} Please report it.")
    return images


def _fetch(file: Published, mirrors: tuple[str, ...], folder: Path) -> Path:
    """A file from the first mirror that returns the right bytes."""
    path, faults = folder / file.name, []
    for mirror in mirrors:
        try:
            _fetch_from(mirror + file.name, file, path)
        except DownloadError as error:
            faults.append(str(error))
        else:
            return path
    raise DownloadError(
        f"{'; '.join(faults)}. The published file has {file.size} bytes and MD5 {file.md5}. Check the connection and "
        "try again."
    )


def _fetch_from(url: str, file: Published, path: Path) -> None:
    digest, received = hashlib.md5(usedforsecurity=False), 0
    with open(path, "wb") as out, _bar(file) as advance:
        for block in _blocks(url, file.size):
            out.write(block)
            digest.update(block)
            received += len(block)
            advance(len(block))
    if received != file.size:
        raise DownloadError(f"{url} broke off after {received} of {file.size} bytes")
    if digest.hexdigest() != file.md5:
        raise DownloadError(f"{url} gave {received} bytes with MD5 {digest.hexdigest()}")


def _blocks(url: str, size: int) -> Iterator[bytes]:
    """The first `size` bytes at a URL. Connection errors become a DownloadError; disk errors do not."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "bilevax"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length", str(size))
            if announced != str(size):
                raise DownloadError(f"{url} announces {announced} bytes")
            # No further than `size`: a server may keep the connection open.
            while size > 0 and (block := response.read(min(BLOCK, size))):
                size -= len(block)
                yield block
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"{url} failed ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url} failed ({str(error) or type(error).__name__})") from error


@contextmanager
def _bar(file: Published) -> Iterator[Callable[[int], Any]]:
    """A progress bar, if tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update

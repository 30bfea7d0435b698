"""Files of data sets: found, downloaded, checked, kept.

Not by pooch: it takes one address for each file, reads an answer to its end however long that is, and needs `requests`.
Here the mirrors are tried in turn, and no more is read than the published number of bytes.
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
from typing import Any

import numpy as np

from bilevax._checks import InputError, listed
from bilevax.data.archives import UnreadableError, read_npz
from bilevax.data.types import CLASSES, ClassImages, Images

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18  # bytes read at a time
STALE = 24 * 3600  # seconds; what a killed download left behind is then swept up


class DownloadError(OSError):
    """A data set is not at hand and could not be fetched or kept; the message says why and what to do."""


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it, and where: the first address that gives the right bytes is taken."""

    name: str
    folders: tuple[str, ...]
    size: int
    md5: str


@dataclass(frozen=True)
class Origin:
    """How a data set is made from published files. `shape` is that of one picture."""

    name: str
    shape: tuple[int, ...]
    files: tuple[Published, ...]
    read: Callable[[list[Path]], Any]
    kind: type[Any] = Images

    def fault(self, found: Any) -> str:
        """What is wrong with these arrays, as a sentence; empty where nothing is."""
        return images_fault(found, self.shape) if self.kind is Images else classes_fault(found, self.shape)


def classes_fault(found: ClassImages, shape: tuple[int, ...]) -> str:
    """What is wrong with these arrays, as a sentence; empty where nothing is."""
    x = found.images
    if x.dtype != np.uint8 or x.shape[2:] != shape or 0 in x.shape:
        wanted = ", ".join(map(str, shape))
        return f"images is {x.dtype} {x.shape}, and must be uint8 (classes, pictures, {wanted}) with values 0..255."
    return ""


def load(source: Origin, download: bool = True) -> Any:
    """The data set from the first place that has it."""
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
    cache = _cache()
    if os.path.isfile(cache / file):
        remedy = "Remove it, and it will be downloaded again." if source.files else "Replace it."
        return _read_npz(cache / file, source, remedy)
    looked_at.append(f"{cache / file} (the cache)")
    if not source.files or not download:
        reason = "download is False" if source.files else "has no public home to download it from"
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


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "bilevax"
    except RuntimeError as error:
        raise InputError(
            "There is no home directory to look for a cache in. Set XDG_CACHE_HOME or BILEVAX_DATA to a directory."
        ) from error


def _read_npz(path: Path, source: Origin, remedy: str) -> Any:
    try:
        arrays, _ = read_npz(path, source.kind._fields)
    except UnreadableError as error:
        raise InputError(f"{path} is damaged or no NPZ file ({error}). {remedy}") from error
    missing = [name for name in source.kind._fields if name not in arrays]
    if missing:
        raise InputError(f"{path} lacks the arrays {listed(missing, quote=False)}. {remedy}")
    found = source.kind(**arrays)
    fault = source.fault(found)
    if fault:
        raise InputError(f"{path}: {fault} {remedy}")
    return found


def images_fault(images: Images, shape: tuple[int, ...] | None = None) -> str:
    """What is wrong with these arrays, as a sentence; empty where nothing is."""
    for x_name, y_name in (("x_train", "y_train"), ("x_test", "y_test")):
        x, y = getattr(images, x_name), getattr(images, y_name)
        fits = x.shape[1:] == shape if shape else x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)
        wanted = str(("n", *shape)).replace("'", "") if shape else "(n, h, w) or (n, h, w, 3)"
        if x.dtype != np.uint8 or not fits or x.size == 0:
            span = f" with values {x.min():.4g}..{x.max():.4g}" if x.size and x.dtype.kind in "iuf" else ""
            return f"{x_name} is {x.dtype} {x.shape}{span}, and must be uint8 {wanted} with values 0..255."
        if y.dtype != np.uint8 or y.shape != (len(x),):
            return f"{y_name} is {y.dtype} {y.shape}, and must be uint8 ({len(x)},), a label for each of {x_name}."
        if shape and y.max() >= CLASSES:
            return f"{y_name} has labels up to {y.max()}, and they must be 0..{CLASSES - 1}."
    return ""


def _download(source: Origin, cache: Path) -> Any:
    """Fetch, check, convert and keep a data set. The cache gets a complete file by a rename, or nothing.

    Every download works in a directory of its own, so several at once do not meet before the rename.
    """
    prefix = f".{source.name}-"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(prefix + "*"):
            with suppress(FileNotFoundError):  # another download sweeps, too, or has ended
                if time.time() - left.stat().st_mtime > STALE:
                    shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache, ignore_cleanup_errors=True) as scratch:
            images = _convert(source, [_fetch(file, Path(scratch) / file.name) for file in source.files])
            part = Path(scratch) / f"{source.name}.npz"
            np.savez(part, **images._asdict())
            os.replace(part, cache / part.name)
            return images
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{cache} cannot take it ({error}). Make it a directory that can be written to and has "
            "room, or set XDG_CACHE_HOME to another place."
        ) from error


def _convert(source: Origin, paths: list[Path]) -> Any:
    archive = (zlib.error, tarfile.TarError, zipfile.BadZipFile)
    unreadable = (OSError, EOFError, ValueError, LookupError, TypeError, *archive)
    names = listed([path.name for path in paths], quote=False)
    try:
        images = source.read(paths)
    except unreadable as error:
        reason = str(error) or type(error).__name__
        raise DownloadError(f"{names} arrived as published and cannot be read ({reason}). Please report it.") from error
    fault = source.fault(images)
    if fault:
        raise DownloadError(f"{names} arrived as published and hold something else: {fault} Please report it.")
    return images


def _fetch(file: Published, path: Path) -> Path:
    faults = []
    for folder in file.folders:
        try:
            _fetch_from(folder + file.name, file, path)
        except DownloadError as error:
            faults.append(str(error))
        else:
            return path
    raise DownloadError(
        f"{'; '.join(faults)}. Published are {file.size} bytes with MD5 {file.md5}. Check the connection and try again."
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
    """The first `size` bytes at an address. What fails on the way is a DownloadError; a full disk stays what it is."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "bilevax"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length", str(size))
            if announced != str(size):
                raise DownloadError(f"{url} announces {announced} bytes")
            # Read no further than `size`: a server that holds the line open must not hold us up.
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
    """A progress bar; none where tqdm is not installed, which is no reason to refuse a download."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update

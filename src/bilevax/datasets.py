"""Data sets, label noise at a known rate, splits by the papers' protocols: and the truth to measure by.

MNIST, Fashion-MNIST, CIFAR-10, SVHN and Omniglot are looked for in the directory that the environment variable
BILEVAX_DATA names, then in the user's cache ($XDG_CACHE_HOME/bilevax, or ~/.cache/bilevax), and are else downloaded to
that cache. In both places a data set is one file: mnist.npz, fashion_mnist.npz, cifar10.npz and svhn.npz with the
arrays x_train, y_train, x_test, y_test, all uint8, and omniglot.npz with images (classes, 20, 28, 28) uint8.
mini-ImageNet is looked for in both places and not downloaded: its images are under ImageNet's terms.
"""

import gzip
import hashlib
import http.client
import numbers
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bilevax._archives import UnreadableError, check_regular, memory, read_npz
from bilevax.problem import InputError, listed, require_count

if TYPE_CHECKING:
    import PIL.Image

CLASSES = 10  # of each of the data sets here
DIGITS = 1797
DIGITS_TRAIN = 1437
OMNIGLOT_DRAWERS = 20
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18  # bytes read at a time
NEARLY_WHITE = 191  # the mean shade, of 255, from which on a transparent picture is shown on black
STALE = 24 * 3600  # seconds; what a killed download left behind is then swept up


class DownloadError(OSError):
    """A data set is not at hand and could not be fetched or kept; the message says why and what to do."""


class Images(NamedTuple):
    """Labelled pictures in two parts.

    Attributes:
        x_train, x_test: (n, h, w) or, in colour, (n, h, w, 3) uint8, 0..255.
        y_train, y_test: (n,) labels 0, 1, ..., uint8.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class _Published:
    """A file as its authors publish it, and where: the first address that gives the right bytes is taken."""

    name: str
    folders: tuple[str, ...]
    size: int
    md5: str


@dataclass(frozen=True)
class _Source:
    """How a data set is made from published files. `shape` is that of one picture."""

    name: str
    shape: tuple[int, ...]
    files: tuple[_Published, ...]
    read: Callable[[list[Path]], Any]
    kind: type[Any] = Images

    def fault(self, found: Any) -> str:
        """What is wrong with these arrays, as a sentence; empty where nothing is."""
        return _fault(found, self.shape) if self.kind is Images else _classes_fault(found, self.shape)


def _read_idx(path: Path) -> np.ndarray:
    """An array in the IDX format: 0, 0, 8 (for uint8), the number of axes; their big-endian lengths; the bytes."""
    with gzip.open(path) as stream:
        content = stream.read()
    if content[:3] != b"\0\0\x08":
        raise ValueError("it does not start as an IDX file of uint8")
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">u4")).copy()


def _read_mnist(paths: list[Path]) -> Images:
    return Images(*(_read_idx(path) for path in paths))


def _read_cifar10(paths: list[Path]) -> Images:
    """Six members of records: a label byte, then the red, green and blue plane, 32 x 32 each."""
    with tarfile.open(paths[0]) as archive:
        members = {member.name: stream.read() for member in archive if (stream := archive.extractfile(member))}

    def part(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        content = b"".join(members[f"cifar-10-batches-bin/{name}.bin"] for name in names)
        records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        pictures = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(pictures), records[:, 0].copy()

    return Images(*part([f"data_batch_{i}" for i in range(1, 6)]), *part(["test_batch"]))


def _read_svhn(paths: list[Path]) -> Images:
    """MATLAB files: X (32, 32, 3, n), y (n, 1) in 1..10, where 10 stands for the digit 0."""
    from scipy.io import loadmat

    arrays = []
    for path in paths:
        content = loadmat(path, variable_names=("X", "y"))
        arrays += [np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2)), (content["y"][:, 0] % 10).astype(np.uint8)]
    return Images(*arrays)


_MNIST_FOLDERS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
_MNIST = _Source(
    "mnist",
    (28, 28),
    (
        _Published("train-images-idx3-ubyte.gz", _MNIST_FOLDERS, 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _Published("train-labels-idx1-ubyte.gz", _MNIST_FOLDERS, 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
        _Published("t10k-images-idx3-ubyte.gz", _MNIST_FOLDERS, 1648877, "9fb629c4189551a2d022fa330f9573f3"),
        _Published("t10k-labels-idx1-ubyte.gz", _MNIST_FOLDERS, 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    _read_mnist,
)
_FASHION_FOLDERS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
_FASHION_MNIST = _Source(
    "fashion_mnist",
    (28, 28),
    (
        _Published("train-images-idx3-ubyte.gz", _FASHION_FOLDERS, 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        _Published("train-labels-idx1-ubyte.gz", _FASHION_FOLDERS, 29515, "25c81989df183df01b3e8a0aad5dffbe"),
        _Published("t10k-images-idx3-ubyte.gz", _FASHION_FOLDERS, 4422102, "bef4ecab320f06d8554ea6380940ec79"),
        _Published("t10k-labels-idx1-ubyte.gz", _FASHION_FOLDERS, 5148, "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    _read_mnist,
)
_CIFAR10_FOLDERS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_CIFAR10 = _Source(
    "cifar10",
    (32, 32, 3),
    (_Published("cifar-10-binary.tar.gz", _CIFAR10_FOLDERS, 170052171, "c32a1d4ab5d03f1284b67883e8d87530"),),
    _read_cifar10,
)
_SVHN_FOLDERS = ("https://ufldl.stanford.edu/housenumbers/", "http://ufldl.stanford.edu/housenumbers/")
_SVHN = _Source(
    "svhn",
    (32, 32, 3),
    (
        _Published("train_32x32.mat", _SVHN_FOLDERS, 182040794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        _Published("test_32x32.mat", _SVHN_FOLDERS, 64275384, "eb5a983be6a315427106f1b164d9cef3"),
    ),
    _read_svhn,
)


def mnist() -> Images:
    """Handwritten digits (LeCun et al. 1998): 60,000 and 10,000 pictures of 28 x 28, white on black.

    Looked for in $BILEVAX_DATA, then in the user's cache, then downloaded (12 MB) to the cache.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or holds something else.
        DownloadError: it is in neither place, and cannot be downloaded or kept.

    Example:
        >>> from bilevax.datasets import mnist
        >>> mnist().x_train.shape  # doctest: +SKIP
        (60000, 28, 28)
    """
    return _load(_MNIST)


def fashion_mnist() -> Images:
    """Pictures of clothes (Xiao et al. 2017): 60,000 and 10,000 of 28 x 28, in the form of MNIST.

    Looked for in $BILEVAX_DATA, then in the user's cache, then downloaded (31 MB) to the cache.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or holds something else.
        DownloadError: it is in neither place, and cannot be downloaded or kept.

    Example:
        >>> from bilevax.datasets import fashion_mnist
        >>> fashion_mnist().x_train.shape  # doctest: +SKIP
        (60000, 28, 28)
    """
    return _load(_FASHION_MNIST)


def cifar10() -> Images:
    """Photographs of ten kinds of things (Krizhevsky 2009): 50,000 and 10,000 of 32 x 32 in colour.

    Looked for in $BILEVAX_DATA, then in the user's cache, then downloaded (170 MB, the binary version) to the cache.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or holds something else.
        DownloadError: it is in neither place, and cannot be downloaded or kept.

    Example:
        >>> from bilevax.datasets import cifar10
        >>> cifar10().x_train.shape  # doctest: +SKIP
        (50000, 32, 32, 3)
    """
    return _load(_CIFAR10)


def svhn() -> Images:
    """Digits of house numbers (Netzer et al. 2011, cropped): 73,257 and 26,032 of 32 x 32 in colour; labels are digits.

    Looked for in $BILEVAX_DATA, then in the user's cache, then downloaded (246 MB) to the cache.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or holds something else.
        DownloadError: it is in neither place, and cannot be downloaded or kept.

    Example:
        >>> from bilevax.datasets import svhn
        >>> svhn().x_train.shape  # doctest: +SKIP
        (73257, 32, 32, 3)
    """
    return _load(_SVHN)


class ClassImages(NamedTuple):
    """As many pictures of each of many classes.

    Attributes:
        images: (classes, pictures, h, w) or, in colour, (classes, pictures, h, w, 3) uint8, 0..255.
    """

    images: np.ndarray


class ClassSplit(NamedTuple):
    """Classes apart: to learn from, to choose by, to test on. Each as `ClassImages.images`; val may have no class."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def _classes_fault(found: ClassImages, shape: tuple[int, ...]) -> str:
    x = found.images
    if x.dtype != np.uint8 or x.shape[2:] != shape or 0 in x.shape:
        wanted = ", ".join(map(str, shape))
        return f"images is {x.dtype} {x.shape}, and must be uint8 (classes, pictures, {wanted}) with values 0..255."
    return ""


def _read_omniglot(paths: list[Path]) -> ClassImages:
    """Two archives of PNG files of 105 x 105, FOLDER/ALPHABET/CHARACTER/NNNN_DD.png, black strokes on white."""
    from PIL import Image

    drawn: list[np.ndarray] = []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            for name in names:
                with archive.open(name) as stream, Image.open(stream) as picture:
                    ink = Image.eval(picture.convert("L"), lambda value: 255 - value)
                    drawn.append(np.asarray(ink.resize((28, 28), Image.Resampling.LANCZOS)))
    return ClassImages(np.stack(drawn).reshape(-1, OMNIGLOT_DRAWERS, 28, 28))


_OMNIGLOT_FOLDERS = (
    "https://github.com/brendenlake/omniglot/raw/master/python/",
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
)
_OMNIGLOT = _Source(
    "omniglot",
    (28, 28),
    (
        _Published("images_background.zip", _OMNIGLOT_FOLDERS, 9464212, "68d2efa1b9178cc56df9314c21c6e718"),
        _Published("images_evaluation.zip", _OMNIGLOT_FOLDERS, 6462886, "6b91aef0f799c5bb55b94e3f2daec811"),
    ),
    _read_omniglot,
    ClassImages,
)


def omniglot(train: int = 1200, rotations: bool = True, *, download: bool = True) -> ClassSplit:
    """Characters of 50 alphabets (Lake et al. 2015), 20 drawings of each, 28 x 28, white on black.

    Split as in Mehra and Hamm (2021), section 3.3: the first 1,200 characters to learn from, the other 423 to test on;
    rotations by 90, 180 and 270 degrees are classes of their own (Santoro et al. 2016). There is no validation part.

    Looked for in $BILEVAX_DATA, then in the user's cache, then downloaded (16 MB) to the cache and reduced from 105 x
    105 to 28 x 28 by Lanczos' filter.

    Args:
        train: how many characters to learn from; the others are for tests.
        rotations: whether there are rotated classes.
        download: whether it may be downloaded.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or holds something else; train leaves
            no character for either part.
        DownloadError: it is in neither place, and may not be downloaded, or cannot be downloaded or kept.

    Example:
        >>> from bilevax.datasets import omniglot
        >>> omniglot().train.shape  # doctest: +SKIP
        (4800, 20, 28, 28)
    """
    require_count("omniglot", "train", train)
    images = _load(_OMNIGLOT, download).images
    if train >= len(images):
        raise InputError(f"omniglot: train is {train}, and there are {len(images)} characters. Leave some for tests.")
    parts = images[:train], images[:0], images[train:]
    return ClassSplit(*(rotated(part) for part in parts)) if rotations else ClassSplit(*parts)


def rotated(images: np.ndarray) -> np.ndarray:
    """Four times the classes: as they are, then turned by 90, 180 and 270 degrees.

    Example:
        >>> import numpy as np
        >>> from bilevax.datasets import rotated
        >>> rotated(np.zeros((3, 5, 8, 8), np.uint8)).shape
        (12, 5, 8, 8)
    """
    return np.concatenate([np.rot90(images, turns, (2, 3)) for turns in range(4)])


def mini_imagenet() -> ClassSplit:
    """Photographs of 100 classes of ImageNet (Vinyals et al. 2016), 600 of each, 84 x 84 in colour.

    Split by Ravi and Larochelle (2017): 64 classes to learn from, 16 to choose by, 20 to test on. There is no download:
    mini_imagenet_train.npz, mini_imagenet_val.npz and mini_imagenet_test.npz, each with images (classes, 600, 84, 84,
    3) uint8, are looked for in $BILEVAX_DATA and in the user's cache.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or holds something else.
        DownloadError: a file is in neither place.
    """
    sources = (_Source(f"mini_imagenet_{part}", (84, 84, 3), (), list, ClassImages) for part in ClassSplit._fields)
    return ClassSplit(*(_load(source).images for source in sources))


class ClassFolders(NamedTuple):
    """Pictures read from a folder of folders.

    Attributes:
        images: (classes, pictures, h, w[, 3]) uint8, of each class as many as the smallest one has.
        names: of the classes.
        unread: the files that could not be read.
        counts: of each class, how many could be read.
    """

    images: np.ndarray
    names: list[str]
    unread: list[str]
    counts: list[int]


def class_folders(folder: Path, *, side: int | None = None, strict: bool = False) -> ClassFolders:
    """Pictures from a folder of folders, one for each class.

    Args:
        folder: its subfolders are the classes, in the order of their names; hidden ones are left out.
        side: all pictures are brought to side x side; None leaves them as they are, and they must be alike.
        strict: a file that cannot be read as a picture is an error; otherwise it is left out and named.

    The pictures are grey where all of them are, and otherwise in colour. They are turned as their EXIF data say, and of
    several frames the first is read. Transparent ones are shown on white, or on black where what is visible is nearly
    white: a drawing that is all in the alpha channel stays a drawing.

    Raises:
        InputError: no such folder; no subfolders; one without a readable picture; pictures of several sizes where
            no side is given, or too many for the memory; a side that is not positive; a folder that cannot be listed;
            a file that cannot be read, where strict.
    """
    if side is not None:
        side = require_count("class_folders", "side", side)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder. Pass a folder that has one subfolder of pictures for each class.")
    names = [path.name for path in _visible(folder) if path.is_dir()]
    if not names:
        raise InputError(f"{folder} has no subfolders. Make one for each class, with its pictures in it.")
    unread: list[str] = []
    drawn: dict[str, list[np.ndarray]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    all_grey, total, room = True, 0, memory() // 2
    for name in names:
        drawn[name] = []
        for path in _visible(folder / name):
            if path.is_dir():
                continue
            try:
                check_regular(path, "it", "")
                shown, grey = _read_picture(path)
            except Exception as error:  # decoders raise whatever a damaged file leads them to
                if strict:
                    reason = str(error).strip().rstrip(".") or type(error).__name__
                    raise InputError(
                        f"{path} cannot be read as a picture ({reason}). Remove it, or go on without it (no --strict)."
                    ) from error
                unread.append(f"{name}/{path.name}")
                continue
            all_grey &= grey
            if side is not None:
                from PIL import Image

                shown = shown.resize((side, side), Image.Resampling.LANCZOS)
            sizes[shown.size] += 1
            drawn[name].append(np.asarray(shown))
            total += drawn[name][-1].nbytes
            if total > room:
                raise InputError(
                    f"The pictures in {folder} do not fit into memory ({sizes.total():,} of them take {total >> 20:,} "
                    "MB). Pass a smaller side that all get (--side), or fewer pictures."
                )
        if not drawn[name]:
            raise InputError(f"{folder / name} has no picture that can be read. Add some, or remove the folder.")
    if len(sizes) > 1:
        told = listed([f"{w} x {h} ({n})" for (w, h), n in sizes.most_common()], quote=False)
        raise InputError(f"The pictures in {folder} are of several sizes: {told}. Pass the side that all get (--side).")
    counts = [len(drawn[name]) for name in names]
    images = np.stack([np.stack(drawn[name][: min(counts)]) for name in names])
    return ClassFolders(images[..., 0] if all_grey else images, names, unread, counts)


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, by name, without what is hidden."""
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}). Check its permissions.") from error


def _read_picture(path: Path) -> tuple["PIL.Image.Image", bool]:
    """A file's picture as it looks, in RGB, and whether it is of a grey kind."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings(), Image.open(path) as picture:
        warnings.simplefilter("ignore")  # on metadata that is odd; what cannot be decoded is an error
        mode = picture.mode
        shown = ImageOps.exif_transpose(picture)
        if mode.startswith("I"):  # 16 bits, which `convert` would cut off at 255
            high = np.asarray(shown).clip(0, 65535) >> 8
            shown = Image.fromarray(high.astype(np.uint8))
        elif mode == "F":  # `convert` would make 0..1 black
            values = np.asarray(shown)
            high = 1 if values.max() <= 1 else 255
            if not (values.min() >= 0 and values.max() <= high):  # NaN, too
                raise ValueError(
                    f"its floats span {values.min():g}..{values.max():g}, which is neither 0..1 nor 0..255"
                )
            shown = Image.fromarray(np.rint(values * (255 / high)).astype(np.uint8))
        elif mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in shown.info:
            shown = _on_a_ground(shown.convert("RGBA"))
        return shown.convert("RGB"), mode in ("1", "L", "LA", "F") or mode.startswith("I")


def _on_a_ground(picture: "PIL.Image.Image") -> "PIL.Image.Image":
    """A picture with an alpha channel, laid on white, or on black where white would hide what is visible."""
    from PIL import Image

    alpha = np.asarray(picture.getchannel("A"), np.float64)
    if not alpha.any():  # nothing is visible: the channel means something else
        return picture
    shade = np.average(np.asarray(picture.convert("RGB").convert("L")), weights=alpha)
    ground = "black" if shade > NEARLY_WHITE else "white"
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture)


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits of 8 x 8: the first 1,437 to train, the other 360 to test.

    Its pixels 0..16 are scaled to 0..255 and rounded. The order is scikit-learn's; nothing is shuffled.

    Example:
        >>> from bilevax.datasets import digits
        >>> images = digits()
        >>> images.x_train.shape, images.x_test.shape, int(images.x_train.max())
        ((1437, 8, 8), (360, 8, 8), 255)
    """
    from sklearn.datasets import load_digits

    content: Any = load_digits()
    x, y = np.rint(content.images * (255 / 16)).astype(np.uint8), content.target.astype(np.uint8)
    return Images(x[:DIGITS_TRAIN], y[:DIGITS_TRAIN], x[DIGITS_TRAIN:], y[DIGITS_TRAIN:])


def _load(source: _Source, download: bool = True) -> Any:
    """The data set from the first place that has it."""
    file, looked_at = f"{source.name}.npz", []
    wanted = listed(source.kind._fields, quote=False)
    folder = os.environ.get("BILEVAX_DATA", "")
    if folder:
        given = Path(folder).expanduser()
        if not os.path.isdir(given):
            raise InputError(
                f"BILEVAX_DATA is {folder!r}, and there is no such directory. Make it and put {file} there, or "
                "unset BILEVAX_DATA to use the cache."
            )
        if os.path.isfile(given / file):
            remedy = "Replace it, or remove it to use the cache" + (" or the download." if source.files else ".")
            return _read_npz(given / file, source, remedy)
        looked_at.append(f"{given / file} (BILEVAX_DATA)")
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


def _read_npz(path: Path, source: _Source, remedy: str) -> Any:
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


def _fault(images: Images, shape: tuple[int, ...] | None = None) -> str:
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


def _download(source: _Source, cache: Path) -> Any:
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


def _convert(source: _Source, paths: list[Path]) -> Any:
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


def _fetch(file: _Published, path: Path) -> Path:
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


def _fetch_from(url: str, file: _Published, path: Path) -> None:
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
def _bar(file: _Published) -> Iterator[Callable[[int], Any]]:
    """A progress bar; none where tqdm is not installed, which is no reason to refuse a download."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update


def uniform_flips(labels: Any, rate: float, key: Any, classes: int | None = None) -> np.ndarray:
    """Labels of which round(rate * n), chosen at random, are wrong: each of the other classes is as likely.

    As in Mehra and Hamm 2021, section 3.2. (Some works draw from all classes, the right one among them; their rate r
    is r * (1 - 1/classes) here.)

    Args:
        labels: (n,) integers 0..classes-1.
        rate: the part that becomes wrong, in [0, 1).
        key: a jax.random key. The same key gives the same labels.
        classes: how many there are; None for the largest label plus 1.

    Returns:
        (n,) a copy, of the same dtype.

    Raises:
        InputError: the rate is not in [0, 1), labels are no integers 0..classes-1, or there is one class only.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax.datasets import uniform_flips
        >>> labels = np.arange(1000) % 10
        >>> int((uniform_flips(labels, 0.25, jax.random.key(0)) != labels).sum())
        250
    """
    return _flip("uniform_flips", labels, rate, key, classes, lambda rng, n, classes: rng.integers(1, classes, n))


def pair_flips(labels: Any, rate: float, key: Any, classes: int | None = None) -> np.ndarray:
    """Labels of which round(rate * n), chosen at random, are wrong: c becomes (c + 1) mod classes.

    The pair flip of Han et al. 2018 (co-teaching): each class is mistaken for one other class only.

    Args:
        labels: (n,) integers 0..classes-1.
        rate: the part that becomes wrong, in [0, 1).
        key: a jax.random key. The same key gives the same labels.
        classes: how many there are; None for the largest label plus 1.

    Returns:
        (n,) a copy, of the same dtype.

    Raises:
        InputError: the rate is not in [0, 1), labels are no integers 0..classes-1, or there is one class only.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax.datasets import pair_flips
        >>> labels = np.arange(6) % 3
        >>> sorted({(int(a), int(b)) for a, b in zip(labels, pair_flips(labels, 0.9, jax.random.key(0))) if a != b})
        [(0, 1), (1, 2), (2, 0)]
    """
    return _flip("pair_flips", labels, rate, key, classes, lambda rng, n, classes: np.ones(n, np.int64))


def _flip(
    owner: str,
    labels: Any,
    rate: float,
    key: Any,
    classes: int | None,
    shifts: Callable[[np.random.Generator, int, int], np.ndarray],
) -> np.ndarray:
    """Move round(rate * n) labels by `shifts`, modulo the number of classes."""
    right = _labels(owner, labels)
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise InputError(
            f"{owner}: rate is {rate!r}, and must be in [0, 1): it is the part of the labels that becomes wrong."
        )
    largest = int(right.max())
    if classes is None:
        classes = largest + 1
    require_count(owner, "classes", classes)
    if largest >= classes or classes < 2:
        raise InputError(
            f"{owner}: classes is {classes} and labels go up to {largest}. At least two classes are needed, and labels "
            "0..classes-1: pass classes, or number the labels from 0."
        )
    if classes - 1 > np.iinfo(right.dtype).max:
        raise InputError(f"{owner}: {classes} classes do not fit into labels of {right.dtype}. Pass a wider dtype.")
    rng = _generator(owner, key)
    wrong = rng.permutation(len(right))[: round(rate * len(right))]
    noisy = right.copy()
    noisy[wrong] = (right[wrong].astype(np.int64) + shifts(rng, len(wrong), classes)) % classes
    return noisy


def _labels(owner: str, labels: Any) -> np.ndarray:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0 or array.min() < 0:
        low = f" down to {array.min()}" if array.size and array.dtype.kind == "i" else ""
        raise InputError(
            f"{owner}: labels are {array.dtype} {array.shape}{low}, and must be integers from 0 of shape (n,), n > 0. "
            "np.unique(labels, return_inverse=True)[1] numbers any labels so."
        )
    return array


def _generator(owner: str, key: Any) -> np.random.Generator:
    """NumPy's generator seeded by a jax key: no compiling, and the same bits with and without float64."""
    try:
        words = np.asarray(jax.random.key_data(key))
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: key is {key!r}, and must be a jax.random key, as jax.random.key(0).") from error
    if words.ndim != 1:
        raise InputError(f"{owner}: key is an array of {words.shape[:-1]} keys, and must be a single one.")
    return np.random.default_rng(words)


class Split(NamedTuple):
    """Indices into the training samples: `train` and `clean` have none in common."""

    train: np.ndarray
    clean: np.ndarray


def split(labels: Any, clean: int, key: Any, *, train: int | None = None, balanced: bool = False) -> Split:
    """Set some training samples aside, at random, whose labels stay right: the upper level's data.

    The protocols of Mehra and Hamm 2021: clean=1000 of MNIST and of SVHN, 10000 of CIFAR-10 (section 3.2, Table 2);
    clean=5000, train=5000 of MNIST (D.1.1); clean=1000, train=44000 of CIFAR-10 (D.1.2).

    Args:
        labels: (n,) integers from 0.
        clean: how many samples are set aside.
        key: a jax.random key. The same key gives the same split.
        train: how many of the others to keep; None for all.
        balanced: the clean set has equally many of each class. Worth it for a small one, which may else miss a class.

    Raises:
        InputError: the sizes do not fit, or a class has too few samples.

    Example:
        >>> import jax
        >>> from bilevax.datasets import digits, split
        >>> parts = split(digits().y_train, 100, jax.random.key(0), train=1000)
        >>> len(parts.train), len(parts.clean), len(set(parts.train) & set(parts.clean))
        (1000, 100, 0)
    """
    array = _labels("split", labels)
    require_count("split", "clean", clean)
    if train is not None:
        require_count("split", "train", train)
    needed = clean + (1 if train is None else train)
    if needed > len(array):
        raise InputError(
            f"split: clean is {clean} and train is {train}, and there are {len(array)} samples. Take fewer: the clean "
            "samples are set aside, and some must remain to train on."
        )
    classes, counts = np.unique(array, return_counts=True)
    share = clean // len(classes) if balanced else 1
    if balanced and clean % len(classes):
        raise InputError(
            f"split: clean is {clean}, which {len(classes)} classes cannot share equally. "
            f"Take {share * len(classes) or len(classes)}, or balanced=False."
        )
    few = classes[counts < share + 1]
    if len(few):
        raise InputError(
            f"split: fewer than {share + 1} samples have the label {listed(few)}: the clean set needs {share} and "
            "training at least one. Leave such classes out, or take a smaller clean set."
        )
    order = _generator("split", key).permutation(len(array))
    aside = np.zeros(len(array), bool)
    if balanced:
        for label in classes:
            aside[np.flatnonzero(array[order] == label)[:share]] = True
    else:
        aside[:clean] = True
    return Split(order[~aside][:train], order[aside])


class Noisy(NamedTuple):
    """Pictures, part of their labels wrong, and what is known to be right.

    Attributes:
        x, y: (n, h, w[, 3]) uint8 pictures and (n,) labels as given; `y_true` the right ones.
        x_clean, y_clean: samples set aside, with right labels.
        x_test, y_test: the data set's test part, with right labels.
    """

    x: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    x_clean: np.ndarray
    y_clean: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def corrupted(
    images: Images,
    *,
    clean: int,
    noise: float,
    key: Any,
    train: int | None = None,
    flips: Callable[..., np.ndarray] = uniform_flips,
    balanced: bool = False,
) -> Noisy:
    """A data set with a clean part set aside (`split`) and wrong labels in the rest.

    Args:
        images: as `mnist()` and its kin return them.
        clean, train, balanced: as for `split`, where the papers' sizes are.
        noise: the part of the training labels that becomes wrong, in [0, 1).
        key: a jax.random key. The same key gives the same bits; and the same split at every noise rate.
        flips: (labels, rate, key, classes) -> labels: `uniform_flips`, `pair_flips`, or your own.

    Raises:
        InputError: as for `split` and `flips`; or images are not uint8 of shape (n, h, w) or (n, h, w, 3).

    Example:
        >>> import jax
        >>> from bilevax.datasets import corrupted, digits
        >>> data = corrupted(digits(), clean=200, noise=0.5, key=jax.random.key(0), train=1000)
        >>> data.x.shape, data.x_clean.shape, int((data.y != data.y_true).sum())
        ((1000, 8, 8), (200, 8, 8), 500)
    """
    images = Images(*map(np.asarray, images))
    fault = _fault(images)
    if fault:
        raise InputError(f"corrupted: {fault}")
    _generator("corrupted", key)  # refuses what is not a key, before jax does
    split_key, flip_key = jax.random.split(key)
    parts = split(images.y_train, clean, split_key, train=train, balanced=balanced)
    right = images.y_train[parts.train]
    classes = 1 + int(max(images.y_train.max(), images.y_test.max()))
    return Noisy(
        images.x_train[parts.train],
        flips(right, noise, flip_key, classes),
        right,
        images.x_train[parts.clean],
        images.y_train[parts.clean],
        images.x_test,
        images.y_test,
    )


def overlap(x: Any, x_clean: Any) -> int:
    """How many samples of the clean set also occur in the training set, byte for byte.

    Args:
        x, x_clean: (n, ...) and (m, ...), samples of one shape.

    Raises:
        InputError: the samples differ in shape, or are no numbers.

    Example:
        >>> from bilevax.datasets import digits, overlap
        >>> x = digits().x_train
        >>> overlap(x[:1000], x[990:1100]), overlap(x[:1000], x[1000:])
        (10, 0)
    """
    many, few = np.asarray(x), np.asarray(x_clean)
    if many.ndim == 0 or many.shape[1:] != few.shape[1:] or (many.dtype.kind + few.dtype.kind).strip("biuf"):
        raise InputError(
            f"overlap: x is {many.dtype} {many.shape} and x_clean {few.dtype} {few.shape}. Both must be numbers, "
            "of shape (n, ...) and (m, ...)."
        )
    dtype = np.result_type(many, few)
    sought = Counter(_rows(few, dtype))
    found = {row for row in _rows(many, dtype) if row in sought}
    return sum(sought[row] for row in found)


def _rows(x: np.ndarray, dtype: Any) -> Iterator[bytes]:
    for sample in np.ascontiguousarray(x, dtype):
        yield sample.tobytes()


class NoisyDigits(NamedTuple):
    """Handwritten digits, part of their labels wrong.

    Attributes:
        X, y: (n, 64) features and (n,) labels as given; `y_true` the right ones.
        X_clean, y_clean: a few samples with right labels.
        X_test, y_test: the remaining samples, with right labels.
        images: (n, 8, 8), X as pictures with values in 0..1.

    Features are pixels, each centred by its mean, and all divided by one standard deviation, over X and X_clean.
    """

    X: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    X_clean: np.ndarray
    y_clean: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    images: np.ndarray


def noisy_digits(seed: int, noise: float = 0.4, train: int = 1000, clean: int = 200) -> NoisyDigits:
    """scikit-learn's 1,797 handwritten digits, split at random, with uniformly drawn WRONG labels.

    Args:
        seed: of the split and of the noise.
        noise: the part of the training labels that is made wrong (Mehra and Hamm 2021, section 3.2).
        train, clean: how many samples; the others are the test set.

    Raises:
        InputError: noise is outside 0..1, or the sizes leave no test set.

    Example:
        >>> from bilevax.datasets import noisy_digits
        >>> data = noisy_digits(seed=0)
        >>> data.X.shape, data.X_test.shape, int((data.y != data.y_true).sum())
        ((1000, 64), (597, 64), 400)
    """
    from sklearn.datasets import load_digits

    if not 0 <= noise <= 1:
        raise InputError(f"noise is {noise}, and must lie between 0 and 1: it is a part of the training labels.")
    if train < 1 or clean < 1 or train + clean >= DIGITS:
        raise InputError(
            f"train is {train} and clean is {clean}. Both must be positive, and leave some of {DIGITS} for the test."
        )
    digits: Any = load_digits()
    pixels, labels = digits.data, digits.target
    generator = np.random.default_rng(seed)
    order = generator.permutation(DIGITS)
    first, second, rest = order[:train], order[train : train + clean], order[train + clean :]
    y_true = labels[first]
    y = y_true.copy()
    wrong = generator.permutation(train)[: round(noise * train)]
    y[wrong] = (y[wrong] + generator.integers(1, 10, len(wrong))) % 10
    seen = pixels[order[: train + clean]]
    centred = pixels - seen.mean(axis=0)
    X = (centred / np.sqrt(seen.var(axis=0).mean())).astype(np.float32)
    images = pixels[first].reshape(train, 8, 8).astype(np.float32) / 16
    return NoisyDigits(X[first], y, y_true, X[second], labels[second], X[rest], labels[rest], images)

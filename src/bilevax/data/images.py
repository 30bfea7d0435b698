"""Data sets of images with ten classes.

MNIST, Fashion-MNIST, CIFAR-10, SVHN and Omniglot are looked up in the directory that the environment variable
BILEVAX_DATA names, then in the user's cache ($XDG_CACHE_HOME/bilevax, or ~/.cache/bilevax); otherwise they are
downloaded to that cache. In both places a data set is one file: mnist.npz, fashion_mnist.npz, cifar10.npz and svhn.npz
with the arrays x_train, y_train, x_test, y_test, all uint8, and omniglot.npz with images (classes, 20, 28, 28) uint8.
mini-ImageNet is looked up in both places but not downloaded: its images are under ImageNet's terms.
"""

import gzip
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bilevax.data.fetch import Origin, Published, load
from bilevax.data.types import Images

DIGITS_TRAIN = 1437


def _read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
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
    """Six binary files of records: a label byte, then the red, green and blue planes, 32 x 32 each."""
    with tarfile.open(paths[0]) as archive:
        members = {member.name: stream.read() for member in archive if (stream := archive.extractfile(member))}

    def part(names: list[str]) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, " n"]]:
        content = b"".join(members[f"cifar-10-batches-bin/{name}.bin"] for name in names)
        records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        pictures = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(pictures), records[:, 0].copy()

    return Images(*part([f"data_batch_{i}" for i in range(1, 6)]), *part(["test_batch"]))


def _read_svhn(paths: list[Path]) -> Images:
    """MATLAB files: X (32, 32, 3, n), y (n, 1) in 1..10, where 10 is the digit 0."""
    from scipy.io import loadmat

    arrays = []
    for path in paths:
        content = loadmat(path, variable_names=("X", "y"))
        arrays += [np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2)), (content["y"][:, 0] % 10).astype(np.uint8)]
    return Images(*arrays)


_MNIST = Origin(
    "mnist",
    (28, 28),
    (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    (
        Published("train-images-idx3-ubyte.gz", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        Published("train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
        Published("t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3"),
        Published("t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    _read_mnist,
    Images,
)
_FASHION_MNIST = Origin(
    "fashion_mnist",
    (28, 28),
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    (
        Published("train-images-idx3-ubyte.gz", 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Published("train-labels-idx1-ubyte.gz", 29515, "25c81989df183df01b3e8a0aad5dffbe"),
        Published("t10k-images-idx3-ubyte.gz", 4422102, "bef4ecab320f06d8554ea6380940ec79"),
        Published("t10k-labels-idx1-ubyte.gz", 5148, "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    _read_mnist,
    Images,
)
_CIFAR10 = Origin(
    "cifar10",
    (32, 32, 3),
    ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
    (Published("cifar-10-binary.tar.gz", 170052171, "c32a1d4ab5d03f1284b67883e8d87530"),),
    _read_cifar10,
    Images,
)
_SVHN = Origin(
    "svhn",
    (32, 32, 3),
    ("https://ufldl.stanford.edu/housenumbers/", "http://ufldl.stanford.edu/housenumbers/"),
    (
        Published("train_32x32.mat", 182040794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        Published("test_32x32.mat", 64275384, "eb5a983be6a315427106f1b164d9cef3"),
    ),
    _read_svhn,
    Images,
)


def mnist() -> Images:
    """Handwritten digits (LeCun et al. 1998): 60,000 and 10,000 images of 28 x 28, white on black.

    Looked up in $BILEVAX_DATA, then in the user's cache; otherwise downloaded (12 MB) to the cache.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or has the wrong content.
        DownloadError: it is in neither place, and cannot be downloaded or stored.

    Example:
        >>> from bilevax.data import mnist
        >>> mnist().x_train.shape  # doctest: +SKIP
        (60000, 28, 28)
    """
    return load(_MNIST)


def fashion_mnist() -> Images:
    """Images of clothes (Xiao et al. 2017), in the form of MNIST. Looked up and downloaded (31 MB) as `mnist`."""
    return load(_FASHION_MNIST)


def cifar10() -> Images:
    """Photographs of ten classes of objects (Krizhevsky 2009): 50,000 and 10,000 of 32 x 32 in colour.

    Looked up and downloaded (170 MB, the binary version) as `mnist`.
    """
    return load(_CIFAR10)


def svhn() -> Images:
    """Digits of house numbers (Netzer et al. 2011, cropped): 73,257 and 26,032 of 32 x 32 in colour; labels are digits.

    Looked up and downloaded (246 MB) as `mnist`.
    """
    return load(_SVHN)


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits of 8 x 8: the first 1,437 for training, the other 360 for test.

    Pixels 0..16 are scaled to 0..255 and rounded. The order is that of scikit-learn.

    Example:
        >>> from bilevax.data import digits
        >>> images = digits()
        >>> images.x_train.shape, images.x_test.shape, int(images.x_train.max())
        ((1437, 8, 8), (360, 8, 8), 255)
    """
    from sklearn.datasets import load_digits

    content: Any = load_digits()
    x, y = np.rint(content.images * (255 / 16)).astype(np.uint8), content.target.astype(np.uint8)
    return Images(x[:DIGITS_TRAIN], y[:DIGITS_TRAIN], x[DIGITS_TRAIN:], y[DIGITS_TRAIN:])

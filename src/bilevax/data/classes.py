"""Data sets of many classes: Omniglot and mini-ImageNet."""

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from bilevax._checks import InputError, require_count
from bilevax.data.fetch import Origin, Published, load
from bilevax.data.types import ClassImages, ClassSplit

OMNIGLOT_DRAWERS = 20


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


_OMNIGLOT = Origin(
    "omniglot",
    (28, 28),
    (
        "https://github.com/brendenlake/omniglot/raw/master/python/",
        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
    ),
    (
        Published("images_background.zip", 9464212, "68d2efa1b9178cc56df9314c21c6e718"),
        Published("images_evaluation.zip", 6462886, "6b91aef0f799c5bb55b94e3f2daec811"),
    ),
    _read_omniglot,
    ClassImages,
)


def omniglot(train: int = 1200, rotations: bool = True, *, download: bool = True) -> ClassSplit:
    """Characters of 50 alphabets (Lake et al. 2015), 20 drawings of each, 28 x 28, white on black.

    Split as in Mehra and Hamm (2021), section 3.3: the first 1,200 characters for training, the other 423 for test;
    rotations by 90, 180 and 270 degrees are separate classes (Santoro et al. 2016). There is no validation part.

    Looked up in $BILEVAX_DATA, then in the user's cache; otherwise downloaded (16 MB) to the cache, where it is reduced
    from 105 x 105 to 28 x 28 by a Lanczos filter.

    Args:
        train: number of characters for training.
        rotations: whether to add rotated classes.
        download: whether it may be downloaded.

    Raises:
        InputError: BILEVAX_DATA is not a directory; a file found is damaged or has the wrong content; train leaves
            no character for test.
        DownloadError: it is in neither place, and may not be downloaded, or cannot be downloaded or stored.

    Example:
        >>> from bilevax.data import omniglot
        >>> omniglot().train.shape  # doctest: +SKIP
        (4800, 20, 28, 28)
    """
    require_count("omniglot", "train", train)
    images = load(_OMNIGLOT, download).images
    if train >= len(images):
        raise InputError(f"omniglot: train is {train}, and there are {len(images)} characters. Leave some for tests.")
    parts = images[:train], images[:0], images[train:]
    return ClassSplit(*(rotated(part) for part in parts)) if rotations else ClassSplit(*parts)


def rotated(images: Shaped[np.ndarray, "classes n h w *c"]) -> Shaped[np.ndarray, "_ n _h _w *c"]:
    """Four times the classes: the images as they are, then rotated by 90, 180 and 270 degrees.

    Example:
        >>> import numpy as np
        >>> from bilevax.data import rotated
        >>> rotated(np.zeros((3, 5, 8, 8), np.uint8)).shape
        (12, 5, 8, 8)
    """
    return np.concatenate([np.rot90(images, turns, (2, 3)) for turns in range(4)])


def mini_imagenet() -> ClassSplit:
    """Photographs of 100 classes of ImageNet (Vinyals et al. 2016), 600 of each, 84 x 84 in colour.

    Split by Ravi and Larochelle (2017): 64 classes for training, 16 for validation, 20 for test. There is no download:
    mini_imagenet_train.npz, mini_imagenet_val.npz and mini_imagenet_test.npz, each with images (classes, 600, 84, 84,
    3) uint8, are looked up in $BILEVAX_DATA and in the user's cache.

    Raises:
        InputError: BILEVAX_DATA is not a directory, or a file found is damaged or has the wrong content.
        DownloadError: a file is in neither place.
    """
    sources = (
        Origin(f"mini_imagenet_{part}", (84, 84, 3), (), (), ClassImages, ClassImages) for part in ClassSplit._fields
    )
    return ClassSplit(*(load(source).images for source in sources))

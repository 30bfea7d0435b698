"""What a data set is."""

from typing import NamedTuple

import numpy as np

CLASSES = 10  # of each of the data sets here


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

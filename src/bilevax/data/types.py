"""The forms of data sets."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

CLASSES = 10  # of each data set in `data.images`


class Images(NamedTuple):
    """Labelled images in two parts.

    Attributes:
        x_train, x_test: (n, h, w) or, in colour, (n, h, w, 3), values 0..255.
        y_train, y_test: (n,) labels 0, 1, ...
    """

    x_train: UInt8[np.ndarray, "n h w *c"]
    y_train: UInt8[np.ndarray, " n"]
    x_test: UInt8[np.ndarray, "m h w *c"]
    y_test: UInt8[np.ndarray, " m"]

    def fault(self, shape: tuple[int, ...] | None = None) -> str:
        """What is wrong with these arrays, as a sentence; empty where nothing is. `shape` is that of one image."""
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            fits = x.shape[1:] == shape if shape else x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)
            if x.dtype != np.uint8 or not fits or x.size == 0:
                wanted = str(("n", *shape)).replace("'", "") if shape else "(n, h, w) or (n, h, w, 3)"
                span = f" with values {x.min():.4g}..{x.max():.4g}" if x.size and x.dtype.kind in "iuf" else ""
                return f"x_{part} is {x.dtype} {x.shape}{span}, and must be uint8 {wanted} with values 0..255."
            if y.dtype != np.uint8 or y.shape != (len(x),):
                return f"y_{part} is {y.dtype} {y.shape}, and must be uint8 ({len(x)},), a label for each of x_{part}."
            if shape and y.max() >= CLASSES:
                return f"y_{part} has labels up to {y.max()}, and they must be 0..{CLASSES - 1}."
        return ""


class ClassImages(NamedTuple):
    """Equally many images of each of many classes.

    Attributes:
        images: (classes, images, h, w) or, in colour, (classes, images, h, w, 3), values 0..255.
    """

    images: UInt8[np.ndarray, "classes n h w *c"]

    def fault(self, shape: tuple[int, ...]) -> str:
        """What is wrong with the array, as a sentence; empty where nothing is. `shape` is that of one image."""
        x = self.images
        if x.dtype == np.uint8 and x.shape[2:] == shape and 0 not in x.shape:
            return ""
        wanted = ", ".join(map(str, shape))
        return f"images is {x.dtype} {x.shape}, and must be uint8 (classes, pictures, {wanted}) with values 0..255."


class ClassSplit(NamedTuple):
    """Images by class, as `ClassImages.images`: classes for training, validation (possibly none) and test."""

    train: UInt8[np.ndarray, "train n h w *c"]
    val: UInt8[np.ndarray, "val n h w *c"]
    test: UInt8[np.ndarray, "test n h w *c"]

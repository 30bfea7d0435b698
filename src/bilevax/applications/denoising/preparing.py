"""The features of a file as the samples of classifiers, in the same way for samples that come later."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

NETWORK_SIDE = 32  # pixels, to which pictures are averaged for a small network
PICTURE_SIDE = 16  # pixels, to which pictures are averaged for classifiers of tables
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)

Features = Float32[np.ndarray, "n d"] | UInt8[np.ndarray, "n h w 3"] | list[str]


class Preparation(NamedTuple):
    """What is done to features before classifiers take them.

    Attributes:
        encoder: the SHA-256 of the pretrained encoder whose vectors replace pictures or texts; empty without one.
        side: pixels, to which pictures are averaged; 0 for other samples.
        grey: whether averaged pictures have one channel; coloured ones become grey.
        flat: whether averaged pictures become rows of numbers; else they are bytes.
        centre, scale: numbers are moved and divided by these; empty where they are not.
    """

    encoder: str = ""
    side: int = 0
    grey: bool = False
    flat: bool = False
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def apply(self, features: Features) -> Shaped[np.ndarray, "n ..."]:
        """The samples; with an encoder `features` are its vectors."""
        if isinstance(features, list):
            return np.array(features, dtype=object)
        X = features
        if self.side:
            pictures = averaged(X, self.side)
            if self.grey:
                grey = (pictures[..., :1] == pictures).all(-1, keepdims=True)
                pictures = np.where(grey, pictures[..., :1], (pictures @ LUMINANCE)[..., None])
            X = pictures.reshape(len(X), -1) if self.flat else (pictures * 255).astype(np.uint8)
        if self.centre:
            X = (X - np.array(self.centre, X.dtype)) / np.array(self.scale, X.dtype)
        return X


def rows_of_pictures(pictures: UInt8[np.ndarray, "n h w 3"]) -> Preparation:
    """Pictures as rows of numbers, of one channel where all are grey."""
    return Preparation(side=PICTURE_SIDE, grey=bool((pictures[..., :1] == pictures).all()), flat=True)


def standardised(preparation: Preparation, X: Float[np.ndarray, "n d"]) -> Preparation:
    """The same with columns that have mean 0 and standard deviation 1 for X."""
    scale = np.maximum(X.std(0), np.finfo(X.dtype).eps)
    return preparation._replace(centre=tuple(X.mean(0).tolist()), scale=tuple(scale.tolist()))


def averaged(pictures: UInt8[np.ndarray, "n h w c"], side: int) -> Float32[np.ndarray, "n rows columns c"]:
    """Pictures with values in 0..1, averaged to at most side x side pixels."""
    rows, columns = (np.array_split(np.arange(size), min(size, side)) for size in pictures.shape[1:3])
    made = np.empty((len(pictures), len(rows), len(columns), pictures.shape[3]), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            block = pictures[:, row[0] : row[-1] + 1, column[0] : column[-1] + 1]
            made[:, i, j] = block.mean(axis=(1, 2), dtype=np.float32) / 255
    return made

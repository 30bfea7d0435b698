"""Data of `bilevax fewshot`: a folder of pictures, Omniglot, or scikit-learn's digits."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bilevax._checks import InputError, listed
from bilevax.data import images as datasets
from bilevax.data.classes import omniglot
from bilevax.data.fetch import DownloadError
from bilevax.data.folders import class_folders
from bilevax.data.types import CLASSES

SMALLEST = 16  # pixels: of less, the network's four poolings leave nothing
LARGE = 128  # pixels, from which on a hint at --side is worth a line
QUERIES = 15


class Pictures(NamedTuple):
    """Pictures of many classes.

    Attributes:
        title: what they are, in a few words.
        images: (classes, pictures, h, w[, 3]) uint8.
        names: of the classes.
        smallest: the class that has the fewest pictures, as the beginning of a sentence.
        way: classes of a task, where the user does not say.
        test: which classes the data set keeps for tests; None where they are drawn.
        unread: files that could not be read.
    """

    title: str
    images: np.ndarray
    names: list[str]
    smallest: str
    way: int
    test: np.ndarray | None = None
    unread: tuple[str, ...] = ()

    def digest(self) -> str:
        """Of the pictures and the names of their classes, so that a resumed run is known to be the same one."""
        found = hashlib.sha256(repr((self.images.shape, self.names)).encode("utf-8", "surrogatepass"))
        found.update(np.ascontiguousarray(self.images).data)
        return found.hexdigest()


class Parts(NamedTuple):
    """Which classes to learn from, and which to test on."""

    train: np.ndarray
    test: np.ndarray


def pictures_from_folder(
    folder: Path, side: int | None, strict: bool, notice: Callable[[str], None] = lambda sentence: None
) -> Pictures:
    """A user's pictures. Errors name the command's options.

    Args:
        folder, side, strict: as for `data.class_folders`.
        notice: called with a sentence on what is left out, or slow.

    Raises:
        InputError: as for `data.class_folders`; pictures that are too small for the network.
    """
    found = class_folders(folder, side=side, strict=strict)
    names, unread = [readable(name) for name in found.names], tuple(readable(name) for name in found.unread)
    if unread:
        notice(f"Files that cannot be read as pictures are left out ({len(unread):,}): {listed(unread, quote=False)}.")
    each = min(found.counts)
    smallest, others = names[found.counts.index(each)], sum(found.counts) - each * len(names)
    if others:
        notice(
            f"Each class gives {each:,} pictures, as many as the smallest one ({smallest}) has; {others:,} others are "
            "left out."
        )
    high, wide = found.images.shape[2:4]
    if min(high, wide) < SMALLEST:
        raise InputError(
            f"The pictures in {folder} are {wide} x {high}, smaller than the {SMALLEST} x {SMALLEST} that the network "
            "needs. Pass --side 28, say."
        )
    if max(high, wide) > LARGE:
        notice(f"The pictures are {wide} x {high}; on smaller ones, by --side 84 say, this is much faster.")
    return Pictures(
        readable(str(folder)), found.images, names, f"The smallest class ({smallest})", way=5, unread=unread
    )


def ready_made_pictures(side: int | None, notice: Callable[[str], None] = lambda sentence: None) -> Pictures:
    """Omniglot where it is at hand, otherwise scikit-learn's digits.

    Args:
        side: all pictures are brought to side x side; None leaves them as they are, and makes the digits 16 x 16.
        notice: called with a sentence where digits stand in.
    """
    try:
        split = omniglot(download=False)
    except DownloadError:
        notice("Omniglot is not at hand, so digits stand in for it; bilevax.data.omniglot() downloads it (16 MB).")
        d = datasets.digits()
        x, y = np.concatenate([d.x_train, d.x_test]), np.concatenate([d.y_train, d.y_test])
        each = np.bincount(y).min()
        images = np.stack([x[y == label][:each] for label in range(CLASSES)])
        names = [str(label) for label in range(CLASSES)]
        # Of 8 x 8 nothing would be left by the network.
        images = _resized(images, SMALLEST if side is None else side)
        return Pictures("scikit-learn's handwritten digits", images, names, "A class of the digits", way=3)
    # The same characters turned by 0, 90, 180 and 270 degrees follow each other.
    counts = len(split.train) // 4, len(split.test) // 4
    names = [
        f"{first + i}" + (f", {90 * turns}°" if turns else "")
        for first, count in ((0, counts[0]), (counts[0], counts[1]))
        for turns in range(4)
        for i in range(count)
    ]
    images = np.concatenate([split.train, split.test])
    images = images if side is None else _resized(images, side)
    test = np.arange(len(split.train), len(images))
    return Pictures("Omniglot", images, names, "A class of Omniglot", way=5, test=test)


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    """Grey pictures (classes, pictures, h, w), brought to side x side as those of a folder are."""
    flat = images.reshape(-1, *images.shape[2:])
    small = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS)) for x in flat]
    return np.stack(small).reshape(*images.shape[:2], side, side)


def readable(name: str) -> str:
    """A file's name without bytes that are not text, which could not be printed."""
    return name.encode(errors="replace").decode()


def split_classes(pictures: Pictures, way: int, test_classes: int | None, seed: int) -> Parts:
    """Which classes to learn from, and which to test on: the data set's own test classes, or some that are drawn.

    Args:
        way: classes of a task.
        test_classes: how many are drawn; None for a quarter, at least `way`.
        seed: of the draw.

    Raises:
        InputError: either part has fewer classes than a task; test_classes where the data set has its own.
    """
    classes = len(pictures.names)
    if pictures.test is not None:
        if test_classes is not None:
            raise InputError(
                f"--test-classes is given without FOLDER, and {pictures.title} has a test part of its own. Name a "
                "folder of pictures, or leave --test-classes out."
            )
        order = np.concatenate([pictures.test, np.setdiff1d(np.arange(classes), pictures.test)])
        aside = len(pictures.test)
    else:
        order = np.random.default_rng(seed).permutation(classes)
        aside = max(way, classes // 4) if test_classes is None else test_classes
    if min(aside, classes - aside) < way:
        most, given = classes // 2, ""
        if test_classes is not None:
            most, given = min(aside, classes - aside), f" with --test-classes {aside}"
        remedy = f"Lower --way to {most}" if most >= 2 else "Tasks have at least 2 classes: add some"
        remedy += ", or change --test-classes." if given else ", or add classes." if most >= 2 else "."
        raise InputError(
            f"{pictures.title} has {classes} classes. A task has --way {way} of them, so {way} are needed to learn "
            f"from and {way} others to test on; there are {max(classes - aside, 0)} and {min(aside, classes)}{given}. "
            f"{remedy}"
        )
    return Parts(np.sort(order[aside:]), np.sort(order[:aside]))


def queries_of(pictures: Pictures, shot: int, queries: int | None) -> int:
    """How many query pictures each class has; 15, or what is left, where `queries` is None.

    Raises:
        InputError: there are too few pictures.
    """
    there = pictures.images.shape[1]
    wanted = 1 if queries is None else queries
    if there < shot + wanted:
        few = min(shot, there // 2)
        remedy = f"Pass --shot {few} --queries {there - few}, or add pictures." if few else "Add pictures."
        raise InputError(
            f"{pictures.smallest} has {there} {'picture' if there == 1 else 'pictures'}, fewer than --shot {shot} to "
            f"learn from and {wanted} to ask about (--queries). {remedy}"
        )
    return min(QUERIES, there - shot) if queries is None else queries

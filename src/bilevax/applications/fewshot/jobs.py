"""Data of `bilevax fewshot`: the user's folder of pictures, Omniglot, or scikit-learn's digits."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from bilevax._checks import InputError, listed
from bilevax.data import images as datasets
from bilevax.data.classes import omniglot
from bilevax.data.fetch import DownloadError
from bilevax.data.folders import class_folders
from bilevax.data.types import CLASSES

SMALLEST = 16  # pixels: the network halves the side four times
LARGE = 128  # pixels: for a longer side a notice recommends --side
QUERIES = 15


class Pictures(NamedTuple):
    """Pictures of many classes.

    Attributes:
        title: name of the data, in a few words.
        images: pictures (classes, pictures, h, w) or (classes, pictures, h, w, 3).
        names: names of the classes.
        smallest: the class with the fewest pictures, as the beginning of a sentence.
        way: default number of classes of a task.
        test: indices of the data set's own test classes; None if test classes are drawn.
        unread: files that could not be read.
    """

    title: str
    images: UInt8[np.ndarray, "classes pictures ..."]
    names: list[str]
    smallest: str
    way: int
    test: Int[np.ndarray, " test"] | None = None
    unread: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a hash of the pictures and the names of their classes, to refuse a resume with other data."""
        found = hashlib.sha256(repr((self.images.shape, self.names)).encode("utf-8", "surrogatepass"))
        found.update(np.ascontiguousarray(self.images).data)
        return found.hexdigest()


class Parts(NamedTuple):
    """Indices of the training classes and of the test classes."""

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]


def pictures_from_folder(
    folder: Path, side: int | None, strict: bool, notice: Callable[[str], None] = lambda sentence: None
) -> Pictures:
    """Return the pictures of the user's folder. Errors name the command's options.

    Args:
        folder, side, strict: as for `data.class_folders`.
        notice: called with a sentence about files that are left out, or a large picture size.

    Raises:
        InputError: as for `data.class_folders`; the pictures are too small for the network.
    """
    found = class_folders(folder, side=side, strict=strict)
    names, unread = [readable(name) for name in found.names], tuple(readable(name) for name in found.unread)
    if unread:
        notice(f"Files that cannot be read as pictures are left out ({len(unread):,}): {listed(unread, quote=False)}.")
    each = min(found.counts)
    smallest, others = names[found.counts.index(each)], sum(found.counts) - each * len(names)
    if others:
        notice(
            f"{each:,} pictures of each class are used, as many as the smallest class ({smallest}) has; {others:,} "
            f"{'other is' if others == 1 else 'others are'} left out."
        )
    high, wide = found.images.shape[2:4]
    if min(high, wide) < SMALLEST:
        raise InputError(
            f"The pictures in {folder} are {wide} x {high}, smaller than the {SMALLEST} x {SMALLEST} that the network "
            "needs. Pass for example --side 28."
        )
    if max(high, wide) > LARGE:
        notice(f"The pictures are {wide} x {high}; smaller ones (for example --side 84) are much faster.")
    return Pictures(
        readable(str(folder)), found.images, names, f"The smallest class ({smallest})", way=5, unread=unread
    )


def ready_made_pictures(side: int | None, notice: Callable[[str], None] = lambda sentence: None) -> Pictures:
    """Return Omniglot if it has been downloaded, otherwise scikit-learn's digits.

    Args:
        side: all pictures are scaled to side x side; None leaves Omniglot as it is, and scales the digits to 16 x 16.
        notice: called with a sentence if the digits are used.
    """
    try:
        split = omniglot(download=False)
    except DownloadError:
        notice("Omniglot is not downloaded; digits are used instead. bilevax.data.omniglot() downloads it (16 MB).")
        d = datasets.digits()
        x, y = np.concatenate([d.x_train, d.x_test]), np.concatenate([d.y_train, d.y_test])
        each = np.bincount(y).min()
        images = np.stack([x[y == label][:each] for label in range(CLASSES)])
        names = [str(label) for label in range(CLASSES)]
        # The network needs at least 16 x 16; the digits are 8 x 8.
        images = _resized(images, SMALLEST if side is None else side)
        return Pictures("scikit-learn's handwritten digits", images, names, "A class of the digits", way=3)
    # Each part has all characters, then all of them rotated by 90, by 180 and by 270 degrees.
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


def _resized(
    images: UInt8[np.ndarray, "classes pictures h w"], side: int
) -> UInt8[np.ndarray, "classes pictures side side"]:
    """Return grey pictures scaled to side x side, by the same method as those of a folder."""
    flat = images.reshape(-1, *images.shape[2:])
    small = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS)) for x in flat]
    return np.stack(small).reshape(*images.shape[:2], side, side)


def readable(name: str) -> str:
    """Return a file's name with replacements for bytes that are not text, which could not be printed."""
    return name.encode(errors="replace").decode()


def split_classes(pictures: Pictures, way: int, test_classes: int | None, seed: int) -> Parts:
    """Return the training classes and the test classes: the data set's own split, or a random one.

    Args:
        pictures: the pictures.
        way: number of classes of a task.
        test_classes: number of test classes of a random split; None for a quarter of the classes, at least `way`.
        seed: of the random split.

    Raises:
        InputError: one of the parts has fewer classes than a task; `test_classes` is passed and the data set has its
            own split.
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
        most, option = classes // 2, ""
        if test_classes is not None:
            most, option = min(aside, classes - aside), f" with --test-classes {aside}"
        remedy = f"Lower --way to {most}" if most >= 2 else "A task must have at least 2 classes: add some"
        remedy += ", or change --test-classes." if option else ", or add classes." if most >= 2 else "."
        raise InputError(
            f"{pictures.title} has {classes} classes. A task has --way {way} of them, so {way} training classes and "
            f"{way} test classes are needed; there are {max(classes - aside, 0)} and {min(aside, classes)}{option}. "
            f"{remedy}"
        )
    return Parts(np.sort(order[aside:]), np.sort(order[:aside]))


def queries_of(pictures: Pictures, shot: int, queries: int | None) -> int:
    """Return the number of query pictures of each class: `queries`, or by default at most 15.

    Raises:
        InputError: a class has fewer than `shot` + `queries` pictures.
    """
    each = pictures.images.shape[1]
    least = 1 if queries is None else queries
    if each < shot + least:
        few = min(shot, each // 2)
        remedy = f"Pass --shot {few} --queries {each - few}, or add pictures." if few else "Add pictures."
        raise InputError(
            f"{pictures.smallest} has {each} {'picture' if each == 1 else 'pictures'}, fewer than --shot {shot} "
            f"support pictures and --queries {least} query pictures. {remedy}"
        )
    return min(QUERIES, each - shot) if queries is None else queries

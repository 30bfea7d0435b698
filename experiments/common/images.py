"""The image data sets of the experiments."""

import functools
from collections.abc import Callable

from bilevax.data import ClassSplit, Images, cifar10, fashion_mnist, mini_imagenet, mnist, omniglot, svhn

DATA_SETS: dict[str, Callable[[], Images]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "svhn": svhn,
}
CLASSES = 10
OMNIGLOT, MINI = "omniglot", "mini_imagenet"
CLASS_SPLITS: dict[str, Callable[[], ClassSplit]] = {OMNIGLOT: omniglot, MINI: mini_imagenet}


@functools.cache
def images_of(name: str) -> Images:
    """A data set of ten classes, read once."""
    return DATA_SETS[name]()


@functools.cache
def split_of(name: str) -> ClassSplit:
    """A few-shot data set, read once."""
    return CLASS_SPLITS[name]()

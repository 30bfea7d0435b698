"""Data sets, tables and images."""

from bilevax.data.classes import mini_imagenet as mini_imagenet
from bilevax.data.classes import omniglot as omniglot
from bilevax.data.classes import rotated as rotated
from bilevax.data.corruption import Noisy as Noisy
from bilevax.data.corruption import NoisyDigits as NoisyDigits
from bilevax.data.corruption import corrupted as corrupted
from bilevax.data.corruption import noisy_digits as noisy_digits
from bilevax.data.corruption import overlap as overlap
from bilevax.data.corruption import pair_flips as pair_flips
from bilevax.data.corruption import uniform_flips as uniform_flips
from bilevax.data.fetch import DownloadError as DownloadError
from bilevax.data.folders import ClassFolders as ClassFolders
from bilevax.data.folders import class_folders as class_folders
from bilevax.data.images import cifar10 as cifar10
from bilevax.data.images import digits as digits
from bilevax.data.images import fashion_mnist as fashion_mnist
from bilevax.data.images import mnist as mnist
from bilevax.data.images import svhn as svhn
from bilevax.data.splits import Split as Split
from bilevax.data.splits import split as split
from bilevax.data.types import ClassImages as ClassImages
from bilevax.data.types import ClassSplit as ClassSplit
from bilevax.data.types import Images as Images

"""Models, networks and their training."""

from bilevax.nn.adapters import as_model as as_model
from bilevax.nn.augmentation import augmented as augmented
from bilevax.nn.augmentation import crop_and_flip as crop_and_flip
from bilevax.nn.equinox import from_equinox as from_equinox
from bilevax.nn.linen import from_flax as from_flax
from bilevax.nn.model import Method as Method
from bilevax.nn.model import Model as Model
from bilevax.nn.model import logits as logits
from bilevax.nn.networks import cifar10_network as cifar10_network
from bilevax.nn.networks import lenet5 as lenet5
from bilevax.nn.networks import mlp as mlp
from bilevax.nn.networks import mnist_network as mnist_network
from bilevax.nn.networks import six_and_four as six_and_four
from bilevax.nn.networks import softmax_head as softmax_head
from bilevax.nn.networks import softmax_regression as softmax_regression
from bilevax.nn.networks import svhn_network as svhn_network
from bilevax.nn.networks import wide_resnet as wide_resnet
from bilevax.nn.representations import Representation as Representation
from bilevax.nn.representations import Statistics as Statistics
from bilevax.nn.representations import mini_imagenet_network as mini_imagenet_network
from bilevax.nn.representations import omniglot_network as omniglot_network
from bilevax.nn.training import Training as Training
from bilevax.nn.training import probabilities as probabilities
from bilevax.nn.training import train as train

"""Networks that return features, for few-shot learning."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, require_count
from bilevax.nn.layers import as_images, convolve, drop_out, initial_layer, max_pool
from bilevax.nn.model import Method


class Representation(NamedTuple):
    """A feature map with batch normalisation, as pure functions.

    `init(key, x) -> params`: x (n, ...) is a batch of examples, of which only shape and dtype matter.
    `apply(params, x, statistics=None, key=None) -> features (n, d)`. Channels are normalised by means and variances
    over the samples and pixels of x, or by `statistics` if given; a key switches dropout on.
    `statistics(params, x)` returns the means and variances over the samples x, for `apply`.

    There are no running statistics: they would be state in a function that is differentiated. While u is learned, every
    batch uses its own statistics. Predictions use the statistics of a large sample of training images, so the features
    of an image do not depend on the other images in the batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import omniglot_network
        >>> network, x = omniglot_network(filters=8), jax.random.uniform(jax.random.key(0), (6, 28, 28))
        >>> params = jax.jit(network.init)(jax.random.key(1), x)
        >>> jax.jit(network.apply)(params, x).shape
        (6, 8)
        >>> len(jax.eval_shape(network.statistics, params, x))  # a mean and a variance for each block
        4
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Float[Array, "n d"]]
    statistics: Callable[..., "Statistics"]


Statistics = tuple[tuple[Float[Array, " c"], Float[Array, " c"]], ...]


class _Norms:
    """The batch normalisations of one pass through a network, which collect the statistics they used in order."""

    def __init__(self, statistics: Statistics | None):
        self.used: list[tuple[Array, Array]] = []
        self._statistics = iter(statistics) if statistics is not None else None

    def __call__(
        self, x: Float[Array, "n h w c"], target: Float[Array, "n h2 w2 c"], shift: Float[Array, " c"]
    ) -> Float[Array, "n h2 w2 c"]:
        """`target` normalised by the statistics of x, or by the ones that were passed; without a scale."""
        found = (jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))) if self._statistics is None else next(self._statistics)
        self.used.append(found)
        mean, variance = found
        return (target - mean) * jax.lax.rsqrt(variance + 1e-5) + shift


class _Normalised:
    """The base of the representations: subclasses define `init` and `_run`."""

    def _run(
        self,
        params: PyTree[Float[Array, "..."]],
        images: Shaped[ArrayLike, "n ..."],
        norms: _Norms,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "n d"]:
        raise NotImplementedError

    def apply(
        self,
        params: PyTree[Float[Array, "..."]],
        x: Shaped[ArrayLike, "n ..."],
        statistics: Statistics | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "n d"]:
        return self._run(params, x, _Norms(statistics), key)

    def statistics(self, params: PyTree[Float[Array, "..."]], x: Shaped[ArrayLike, "n ..."]) -> Statistics:
        norms = _Norms(None)
        self._run(params, x, norms, None)
        return tuple(norms.used)

    def representation(self) -> Representation:
        return Representation(Method(self, "init"), Method(self, "apply"), Method(self, "statistics"))


def _images_for_four_poolings(
    name: str, images: Shaped[ArrayLike, "n ..."], dtype: DTypeLike
) -> Float[Array, "n h w c"]:
    x = as_images(name, images, dtype)
    if min(x.shape[1:3]) < 16:
        raise InputError(
            f"{name}: images of {x.shape[1]}x{x.shape[2]} are too small for four poolings. Pass images of at least "
            "16x16."
        )
    return x


def omniglot_network(filters: int = 64) -> Representation:
    """The representation for Omniglot of Mehra and Hamm (ACML 2021), appendix E.3.

    Four blocks of a padded 3x3 convolution, batch normalisation, ReLU and 2x2 max pooling; the last has no ReLU. For
    28x28 images it returns one feature per filter, and with 64 filters it has 111,424 parameters, the 111K of Table 7.
    Normalisation has a shift but no scale, which the next layer, or the cosine of the head, would undo.

    Args:
        filters: channels of each block.

    Images as for `lenet5`, of at least 16x16.

    Raises:
        InputError: filters is not a positive integer; in use, images of another rank, or too small.
    """
    return _OmniglotNetwork(require_count("omniglot_network", "filters", filters)).representation()


@dataclass(frozen=True)
class _OmniglotNetwork(_Normalised):
    """The network of `omniglot_network`."""

    filters: int

    def init(self, key: PRNGKeyArray, images: Shaped[ArrayLike, "n ..."]) -> PyTree[Float[Array, "..."]]:
        x = _images_for_four_poolings("omniglot_network", images, jnp.float32)
        channels = (x.shape[3], self.filters, self.filters, self.filters)
        keys = jax.random.split(key, len(channels))
        return tuple(
            {"weight": initial_layer(key, (3, 3, into, self.filters))["weight"], "shift": jnp.zeros(self.filters)}
            for key, into in zip(keys, channels, strict=True)
        )

    def _run(
        self,
        params: PyTree[Float[Array, "..."]],
        images: Shaped[ArrayLike, "n ..."],
        norms: _Norms,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "n d"]:
        x = _images_for_four_poolings("omniglot_network", images, params[0]["weight"].dtype)
        for i, block in enumerate(params):
            x = convolve(x, block["weight"], "SAME")
            x = norms(x, max_pool(x), block["shift"])  # normalisation and ReLU commute with the maximum
            x = jax.nn.relu(x) if i + 1 < len(params) else x
        return jnp.reshape(x, (x.shape[0], -1))


def mini_imagenet_network(features: int = 512) -> Representation:
    """The residual representation for mini-ImageNet of Mehra and Hamm (ACML 2021), appendix E.3 (Mishra et al. 2018).

    Four blocks of 64, 96, 128 and 256 channels. Each has three times a 3x3 convolution, batch normalisation and leaky
    ReLU (0.1), with a shortcut by a 1x1 convolution, then 2x2 max pooling and dropout of 0.1. A 1x1 convolution of
    2,048 channels with normalisation and leaky ReLU follows, then the mean over pixels, and a 1x1 convolution to the
    features.

    The text has 384 features. With 512 the network has the 3.8M parameters of Table 7, and two 5-way heads have its 5K
    (3.5M and 4K with 384), so 512 is the default.

    Args:
        features: the number of features.

    Images as for `lenet5`, of at least 16x16.

    Raises:
        InputError: features is not a positive integer; in use, images of another rank, or too small.
    """
    return _MiniImagenetNetwork(require_count("mini_imagenet_network", "features", features)).representation()


@dataclass(frozen=True)
class _MiniImagenetNetwork(_Normalised):
    """The network of `mini_imagenet_network`."""

    features: int

    def init(self, key: PRNGKeyArray, images: Shaped[ArrayLike, "n ..."]) -> PyTree[Float[Array, "..."]]:
        x = _images_for_four_poolings("mini_imagenet_network", images, jnp.float32)
        keys = (jax.random.fold_in(key, i) for i in itertools.count())

        def conv(side: int, into: int, out: int) -> Float[Array, "side side into out"]:
            return initial_layer(next(keys), (side, side, into, out))["weight"]

        into, blocks = x.shape[3], []
        for out in (64, 96, 128, 256):
            weights = tuple(conv(3, size, out) for size in (into, out, out))
            blocks.append({"weights": weights, "shifts": (jnp.zeros(out),) * 3, "shortcut": conv(1, into, out)})
            into = out
        wide = {"weight": conv(1, into, 2048), "shift": jnp.zeros(2048)}
        last = {"weight": conv(1, 2048, self.features), "bias": jnp.zeros(self.features)}
        return {"blocks": tuple(blocks), "wide": wide, "last": last}

    def _run(
        self,
        params: PyTree[Float[Array, "..."]],
        images: Shaped[ArrayLike, "n ..."],
        norms: _Norms,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "n d"]:
        x = _images_for_four_poolings("mini_imagenet_network", images, params["last"]["bias"].dtype)
        keys = itertools.repeat(None) if key is None else (jax.random.fold_in(key, i) for i in itertools.count())
        for block in params["blocks"]:
            short = convolve(x, block["shortcut"], "SAME")
            for weight, shift in zip(block["weights"], block["shifts"], strict=True):
                x = convolve(x, weight, "SAME")
                x = jax.nn.leaky_relu(norms(x, x, shift), 0.1)
            x = drop_out(next(keys), max_pool(x + short), 0.1)
        x = convolve(x, params["wide"]["weight"], "SAME")
        x = jax.nn.leaky_relu(norms(x, x, params["wide"]["shift"]), 0.1)
        return jnp.mean(x, (1, 2)) @ params["last"]["weight"][0, 0] + params["last"]["bias"]

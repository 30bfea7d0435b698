"""Networks for classification."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, require_count
from bilevax.nn.layers import Conv, DenseNetwork, as_images, convolve, drop_out, flattened, group_norm, initial_layer
from bilevax.nn.model import Model, model_of


def softmax_regression(classes: int) -> Model:
    """Multinomial logistic regression on flattened features, starting from zero.

    Raises:
        InputError: classes is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import softmax_regression
        >>> model = softmax_regression(3)
        >>> model.apply(model.init(jax.random.key(0), jnp.ones((5, 2))), jnp.ones((5, 2))).shape
        (5, 3)
    """
    return model_of(DenseNetwork(require_count("softmax_regression", "classes", classes), ()))


def softmax_head(classes: int) -> Model:
    """Softmax regression without bias: one matrix (classes, features), starting from zero, on flattened features.

    With the classes first, the product with the samples and its derivative both read memory in order: for 1,000 x 784
    samples a gradient takes about half the time of `softmax_regression`.

    Raises:
        InputError: classes is not an integer of at least 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import softmax_head
        >>> model = softmax_head(3)
        >>> model.init(jax.random.key(0), jnp.ones((5, 2))).shape
        (3, 2)
    """
    return model_of(_Head(require_count("softmax_head", "classes", classes, 2)))


def mlp(classes: int, widths: Sequence[int] = (64,)) -> Model:
    """A fully connected network with ReLU, on flattened features; He's initialisation (He et al. 2015).

    Args:
        classes: the number of logits.
        widths: of the hidden layers.

    Raises:
        InputError: classes or a width is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import mlp
        >>> model = mlp(3, widths=(16, 8))
        >>> model.apply(model.init(jax.random.key(0), jnp.ones((5, 2))), jnp.ones((5, 2))).shape
        (5, 3)
    """
    if isinstance(widths, str) or not isinstance(widths, Iterable):
        raise InputError(f"mlp: widths is {widths!r}. Pass the widths of the hidden layers, such as (64,).")
    sizes = tuple(require_count("mlp", "a layer's width", n) for n in widths)
    return model_of(DenseNetwork(require_count("mlp", "classes", classes), sizes))


@dataclass(frozen=True)
class _Head:
    """Softmax regression without bias."""

    classes: int

    def init(self, key: PRNGKeyArray, x: Shaped[ArrayLike, "n ..."]) -> Float[Array, "classes d"]:
        return jnp.zeros((self.classes, math.prod(jnp.shape(x)[1:])))

    def apply(self, params: Float[Array, "classes d"], x: Shaped[ArrayLike, "n ..."]) -> Float[Array, "n classes"]:
        # XLA on CPUs computes the logits and their softmax with the samples in the rows of memory faster, and would not
        # choose that layout without the barrier: 0.6 to 0.8 of the time for 1,200 x 64 samples, the same for 784.
        return jax.lax.optimization_barrier(jnp.einsum("kd,nd->kn", params, flattened(x))).T


def lenet5(classes: int = 10) -> Model:
    """LeNet-5 (LeCun et al. 1998) in its usual form today: ReLU, max pooling, a dense softmax layer.

    Convolutions of 6 (5x5, padded) and 16 (5x5) channels, each with 2x2 max pooling, then dense layers of 120 and
    84. 61,706 parameters on images of 28x28 with 10 classes.

    Args:
        classes: the number of logits, at least 2.

    Images are uint8 (divided by 255) or floats (unchanged), of shape (n, h, w) or (n, h, w, c).

    Raises:
        InputError: fewer than 2 classes; in use, images of another rank or too small.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import lenet5
        >>> images = jnp.zeros((5, 28, 28), jnp.uint8)
        >>> model = lenet5()
        >>> jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0), images), images).shape
        (5, 10)
    """
    blocks = ((Conv(6, 5, "SAME"),), (Conv(16, 5, "VALID"),))
    return _convolutional("lenet5", blocks, (120, 84), classes)


def mnist_network(classes: int = 10) -> Model:
    """The network for MNIST of Mehra and Hamm (ACML 2021), appendix E.2.

    Convolutions of 64 and 128 channels (5x5), each with 2x2 max pooling and dropout of 0.25, then dense layers of
    512 and 256 with dropout of 0.5. The paper does not state the padding: none gives 1,389,578 parameters on 28x28
    images, the 1.4M of its Table 7 (padded, it would be 3.6M).

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import mnist_network
        >>> shapes = jax.eval_shape(mnist_network().init, jax.random.key(0), jnp.zeros((1, 28, 28)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1389578
    """
    blocks = ((Conv(64, 5, "VALID"),), (Conv(128, 5, "VALID"),))
    return _convolutional("mnist_network", blocks, (512, 256), classes, 0.25, 0.5)


def cifar10_network(classes: int = 10) -> Model:
    """The network for CIFAR-10 of Mehra and Hamm (ACML 2021), appendix E.2.

    Three blocks of 48, 96 and 192 channels, each of two 3x3 convolutions, 2x2 max pooling and dropout of 0.25, then
    dense layers of 512 and 256 with dropout of 0.5. The paper does not state the padding: with the first convolution
    of a block padded and the second not, it has 1,172,410 parameters on 32x32x3 images, the 1.2M of its Table 7
    (padded throughout it has 2.4M; unpadded throughout, the last pooling has no pixels left).

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import cifar10_network
        >>> shapes = jax.eval_shape(cifar10_network().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1172410
    """
    blocks = tuple((Conv(out, 3, "SAME"), Conv(out, 3, "VALID")) for out in (48, 96, 192))
    return _convolutional("cifar10_network", blocks, (512, 256), classes, 0.25, 0.5)


def svhn_network(classes: int = 10) -> Model:
    """The network for SVHN of Mehra and Hamm (ACML 2021), appendix E.2.

    Three blocks of 32, 64 and 128 channels, each of two 3x3 convolutions, 2x2 max pooling and dropout of 0.3, then a
    dense layer of 512 with dropout of 0.3. The paper does not state the padding: padded throughout, it has 1,341,226
    parameters on 32x32x3 images, the 1.3M of its Table 7.

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import svhn_network
        >>> shapes = jax.eval_shape(svhn_network().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1341226
    """
    blocks = tuple((Conv(out, 3, "SAME"), Conv(out, 3, "SAME")) for out in (32, 64, 128))
    return _convolutional("svhn_network", blocks, (512,), classes, 0.3, 0.3)


def six_and_four(classes: int = 10) -> Model:
    """Six convolutions and four dense layers, the network of SPNBO (ICLR 2022 submission, section 5.2).

    The text states neither widths nor kernels. Here: three blocks of 32, 64 and 128 channels, each of two 3x3
    convolutions and 2x2 max pooling, then dense layers of 256, 128, 64 and the last. 853,354 parameters on 32x32x3
    images.

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import six_and_four
        >>> shapes = jax.eval_shape(six_and_four().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        853354
    """
    blocks = tuple((Conv(out, 3, "SAME"), Conv(out, 3, "SAME")) for out in (32, 64, 128))
    return _convolutional("six_and_four", blocks, (256, 128, 64), classes)


def wide_resnet(classes: int = 10, depth: int = 28, width: int = 10) -> Model:
    """Wide residual network (Zagoruyko and Komodakis 2016), WRN-28-10 by default, with group normalisation.

    Three groups of (depth - 4) / 6 pre-activated blocks of two 3x3 convolutions, of 16, 32 and 64 times `width`
    channels, the last two at half the resolution of the one before; then the mean over pixels and a dense layer. A
    bilevel problem cannot carry running statistics, so group normalisation (Wu and He 2018; 8 groups) replaces batch
    normalisation, with the same number of parameters. WRN-28-10 has 36,479,194 for 10 classes and 3 channels, the 36M
    of Table 7 of Mehra and Hamm (ACML 2021). No dropout, as usual for WRN-28-10.

    Args:
        classes: the number of logits, at least 2.
        depth: 6 k + 4 for k = 1, 2, ...
        width: factor on the channels; at least 1.

    Images as for `lenet5`, of any size.

    Raises:
        InputError: invalid classes, depth or width; in use, images of another rank.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import wide_resnet
        >>> shapes = jax.eval_shape(wide_resnet().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        36479194
    """
    classes, width = require_count("wide_resnet", "classes", classes, 2), require_count("wide_resnet", "width", width)
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer) or depth < 10 or depth % 6 != 4:
        raise InputError(f"wide_resnet: depth is {depth!r}, and must be 6 k + 4 for k = 1, 2, ...: 10, 16, 22, 28, ...")
    return model_of(_WideResNet(classes, int(depth), width))


@dataclass(frozen=True)
class _WideResNet:
    """The network of `wide_resnet`."""

    classes: int
    depth: int
    width: int

    def _plan(self) -> list[tuple[int, int]]:
        """For each block its channels and the stride of its first convolution."""
        return [
            (channels * self.width, 2 if group > 0 and block == 0 else 1)
            for group, channels in enumerate((16, 32, 64))
            for block in range((self.depth - 4) // 6)
        ]

    def init(self, key: PRNGKeyArray, images: Shaped[ArrayLike, "n ..."]) -> PyTree[Float[Array, "..."]]:
        x = as_images("wide_resnet", images, jnp.float32)
        keys = (jax.random.fold_in(key, i) for i in itertools.count())

        def conv(side: int, into: int, out: int) -> Float[Array, "side side into out"]:
            return initial_layer(next(keys), (side, side, into, out))["weight"]

        def norm(channels: int) -> dict[str, Float[Array, " c"]]:
            return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}

        first, into, blocks = conv(3, x.shape[3], 16), 16, []
        for out, _ in self._plan():
            block = {"norms": (norm(into), norm(out)), "convolutions": (conv(3, into, out), conv(3, out, out))}
            blocks.append(block | ({"shortcut": conv(1, into, out)} if into != out else {}))
            into = out
        dense = {"weight": jnp.zeros((into, self.classes)), "bias": jnp.zeros(self.classes)}
        return {"first": first, "blocks": tuple(blocks), "norm": norm(into), "dense": dense}

    def apply(
        self, params: PyTree[Float[Array, "..."]], images: Shaped[ArrayLike, "n ..."]
    ) -> Float[Array, "n classes"]:
        x = convolve(as_images("wide_resnet", images, params["first"].dtype), params["first"], "SAME")
        for block, (_, stride) in zip(params["blocks"], self._plan(), strict=True):
            (norm_1, norm_2), (conv_1, conv_2) = block["norms"], block["convolutions"]
            inner = jax.nn.relu(group_norm(norm_1, x))
            short = (
                convolve(inner, block["shortcut"], "SAME", stride) if "shortcut" in block else x[:, ::stride, ::stride]
            )
            inner = jax.nn.relu(group_norm(norm_2, convolve(inner, conv_1, "SAME", stride)))
            x = short + convolve(inner, conv_2, "SAME")
        x = jnp.mean(jax.nn.relu(group_norm(params["norm"], x)), (1, 2))
        return x @ params["dense"]["weight"] + params["dense"]["bias"]


def _convolutional(
    name: str,
    blocks: tuple[tuple[Conv, ...], ...],
    widths: tuple[int, ...],
    classes: int,
    block_dropout: float = 0.0,
    dense_dropout: float = 0.0,
) -> Model:
    """Blocks of convolutions, each with 2x2 max pooling and dropout at its end; then dense layers with dropout."""
    classes = require_count(name, "classes", classes, 2)
    return model_of(_Convolutional(name, blocks, widths, classes, block_dropout, dense_dropout))


@dataclass(frozen=True)
class _Convolutional:
    """The network of `_convolutional`."""

    name: str
    blocks: tuple[tuple[Conv, ...], ...]
    widths: tuple[int, ...]
    classes: int
    block_dropout: float
    dense_dropout: float

    def _flat_size(self, x: Float[Array, "n h w c"]) -> int:
        """The number of features after the convolutions."""
        side, channels = list(x.shape[1:3]), x.shape[3]
        for block in self.blocks:
            for conv in block:
                side = [s - (conv.side - 1 if conv.padding == "VALID" else 0) for s in side]
                channels = conv.out
            side = [s // 2 for s in side]
            if min(side) < 1:
                raise InputError(
                    f"{self.name}: images of {x.shape[1]}x{x.shape[2]} are too small for its convolutions and "
                    "poolings. Pass larger images, or another network."
                )
        return side[0] * side[1] * channels

    def init(self, key: PRNGKeyArray, images: Shaped[ArrayLike, "n ..."]) -> PyTree[Float[Array, "..."]]:
        x = as_images(self.name, images, jnp.float32)
        flat = self._flat_size(x)
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        channels, convs = x.shape[3], []
        for conv in itertools.chain.from_iterable(self.blocks):
            convs.append(initial_layer(next(keys), (conv.side, conv.side, channels, conv.out)))
            channels = conv.out
        sizes = (flat, *self.widths)
        dense = [initial_layer(next(keys), pair) for pair in itertools.pairwise(sizes)]
        # As in `mlp`, the last layer is zero.
        dense.append({"weight": jnp.zeros((sizes[-1], self.classes)), "bias": jnp.zeros(self.classes)})
        return {"convolutions": tuple(convs), "dense": tuple(dense)}

    def apply(
        self, params: PyTree[Float[Array, "..."]], images: Shaped[ArrayLike, "n ..."], key: PRNGKeyArray | None = None
    ) -> Float[Array, "n classes"]:
        x = as_images(self.name, images, params["dense"][0]["weight"].dtype)
        self._flat_size(x)
        keys = itertools.repeat(None) if key is None else (jax.random.fold_in(key, i) for i in itertools.count())
        layers = iter(params["convolutions"])
        for block in self.blocks:
            for conv in block[:-1]:
                layer = next(layers)
                x = jax.nn.relu(convolve(x, layer["weight"], conv.padding) + layer["bias"])
            # Bias and ReLU commute with the maximum, and cost a quarter as much after it.
            layer = next(layers)
            x = convolve(x, layer["weight"], block[-1].padding, pooled=True)
            x = drop_out(next(keys), jax.nn.relu(x + layer["bias"]), self.block_dropout)
        x = jnp.reshape(x, (x.shape[0], -1))
        *hidden, last = params["dense"]
        for layer in hidden:
            x = drop_out(next(keys), jax.nn.relu(x @ layer["weight"] + layer["bias"]), self.dense_dropout)
        return x @ last["weight"] + last["bias"]

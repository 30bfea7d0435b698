"""Models that a lower level can train: a pair of pure functions, and adapters for flax and equinox.

Neither flax nor equinox is imported unless one of its modules is handed over.
"""

import functools
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.problem import InputError, PyTree, require_count


class Model(NamedTuple):
    """A classifier as two pure functions.

    `init(key, x) -> params`: x (n, ...) is a batch of examples, of which only shape and dtype matter.
    `apply(params, x) -> logits`: x (n, ...) to (n, classes). If it has a parameter `key`, it is given
    a key while training (dropout) and None when predicting.

    The tools of `bilevax.applications` call a model by `initial` and `logits`, which hand it images of uint8 as
    floats in 0..1 (see `pixels`): a model never sees bytes, and need not scale them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import Model
        >>> linear = Model(
        ...     init=lambda key, x: jnp.zeros((x.shape[1], 3)),
        ...     apply=lambda params, x: x @ params,
        ... )
        >>> x = jnp.ones((5, 2))
        >>> linear.apply(linear.init(jax.random.key(0), x), x).shape
        (5, 3)
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


@dataclass(frozen=True)
class Method:
    """A method of a value. Unlike a local function it can be pickled, and it is equal where the values are.

    (Python's bound methods are equal only where they belong to one object.) Equal models are compiled once.
    """

    owner: Any
    name: str

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """What the method returns."""
        return getattr(self.owner, self.name)(*arguments, **more)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(self.owner, self.name))


def _model(network: Any) -> Model:
    """The Model of a value with methods `init` and `apply`."""
    return Model(Method(network, "init"), Method(network, "apply"))


def pixels(x: Any, dtype: Any = None) -> Any:
    """Images of uint8, (n, h, w) or of higher rank, as floats in 0..1; anything else as it is.

    The one rule on bytes: an array of uint8 of rank 2 is a table, whose numbers are taken as they are.

    Args:
        x: samples (n, ...).
        dtype: of the floats; JAX's default one if None.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.models import pixels
        >>> float(pixels(jnp.full((1, 2, 2), 255, jnp.uint8)).max())
        1.0
    """
    if getattr(x, "dtype", None) != jnp.uint8 or jnp.ndim(x) < 3:
        return x
    return jnp.asarray(x).astype(jnp.result_type(float) if dtype is None else dtype) / 255


def initial(model: Model, key: Any, x: Any) -> PyTree:
    """The parameters a model starts from; of x (n, ...) only shape and dtype matter."""
    return model.init(key, pixels(x))


def logits(model: Model, params: PyTree, x: Any, key: Any = None) -> Any:
    """The logits (n, classes) of x; with `key` as in training, without as in use."""
    x = pixels(x)
    if "key" in inspect.signature(model.apply).parameters:
        return model.apply(params, x, key=key)
    return model.apply(params, x)


def softmax_regression(classes: int) -> Model:
    """Multinomial logistic regression on flattened features, starting from zero.

    Raises:
        InputError: classes is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import softmax_regression
        >>> model = softmax_regression(3)
        >>> model.apply(model.init(jax.random.key(0), jnp.ones((5, 2))), jnp.ones((5, 2))).shape
        (5, 3)
    """
    return _dense(require_count("softmax_regression", "classes", classes), ())


def softmax_head(classes: int) -> Model:
    """Softmax regression without bias: one matrix (classes, features), starting from zero, on flattened features.

    With the classes first, the product with the samples' rows and its derivative both read memory in order; of
    1,000 x 784 samples a gradient takes about half the time of one through `softmax_regression`.

    Raises:
        InputError: classes is not an integer of at least 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import softmax_head
        >>> model = softmax_head(3)
        >>> model.init(jax.random.key(0), jnp.ones((5, 2))).shape
        (3, 2)
    """
    return _head(require_count("softmax_head", "classes", classes, 2))


def mlp(classes: int, widths: Sequence[int] = (64,)) -> Model:
    """A fully connected network with ReLU, on flattened features; He's initialisation (He et al. 2015).

    Args:
        classes: how many logits it gives.
        widths: the hidden layers' widths.

    Raises:
        InputError: classes or a width is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import mlp
        >>> model = mlp(3, widths=(16, 8))
        >>> model.apply(model.init(jax.random.key(0), jnp.ones((5, 2))), jnp.ones((5, 2))).shape
        (5, 3)
    """
    if isinstance(widths, str) or not isinstance(widths, Iterable):
        raise InputError(f"mlp: widths is {widths!r}. Pass the widths of the hidden layers, such as (64,).")
    return _dense(
        require_count("mlp", "classes", classes), tuple(require_count("mlp", "a layer's width", n) for n in widths)
    )


@functools.cache
def _dense(classes: int, widths: tuple[int, ...]) -> Model:
    return _model(_Dense(classes, widths))


@functools.cache
def _head(classes: int) -> Model:
    return _model(_Head(classes))


def _flat(x: Any) -> Any:
    return jnp.reshape(pixels(x), (jnp.shape(x)[0], -1))


@dataclass(frozen=True)
class _Head:
    """Softmax regression without bias."""

    classes: int

    def init(self, key: Any, x: Any) -> PyTree:
        return jnp.zeros((self.classes, math.prod(jnp.shape(x)[1:])))

    def apply(self, params: PyTree, x: Any) -> Any:
        return _flat(x) @ params.T


@dataclass(frozen=True)
class _Dense:
    """Dense layers with ReLU between them; none hidden is softmax regression."""

    classes: int
    widths: tuple[int, ...]

    def init(self, key: Any, x: Any) -> PyTree:
        sizes = [math.prod(jnp.shape(x)[1:]), *self.widths, self.classes]
        layers = []
        for i, (into, out) in enumerate(itertools.pairwise(sizes)):
            # The last layer starts at zero: all classes are equally likely at first.
            scale = 0.0 if i == len(self.widths) else (2 / into) ** 0.5
            weight = scale * jax.random.normal(jax.random.fold_in(key, i), (into, out))
            layers.append({"weight": weight, "bias": jnp.zeros(out)})
        return tuple(layers)

    def apply(self, params: PyTree, x: Any) -> Any:
        x = _flat(x)
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
        return x @ last["weight"] + last["bias"]


class _Conv(NamedTuple):
    """A convolution: output channels, side of the square window, and "SAME" or "VALID"."""

    out: int
    side: int
    padding: str


@functools.cache
def lenet5(classes: int = 10) -> Model:
    """LeNet-5 (LeCun et al. 1998) in its common form of today: ReLU, max pooling, a dense softmax layer.

    Convolutions of 6 (5x5, padded) and 16 (5x5) channels, each with 2x2 max pooling, then dense layers of 120 and
    84. 61,706 parameters on images of 28x28 with 10 classes.

    Args:
        classes: how many logits it gives; at least 2.

    Images are uint8 (read as pixels / 255) or floating (taken as they are), (n, h, w) or (n, h, w, c).

    Raises:
        InputError: fewer than 2 classes; in use, images of another rank or too small.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import lenet5
        >>> images = jnp.zeros((5, 28, 28), jnp.uint8)
        >>> model = lenet5()
        >>> model.apply(model.init(jax.random.key(0), images), images).shape
        (5, 10)
    """
    blocks = ((_Conv(6, 5, "SAME"),), (_Conv(16, 5, "VALID"),))
    return _convolutional("lenet5", blocks, (120, 84), classes)


@functools.cache
def mnist_network(classes: int = 10) -> Model:
    """The network for MNIST of Mehra and Hamm (ACML 2021), appendix E.2.

    Convolutions of 64 and 128 channels (5x5), each with 2x2 max pooling and dropout of 0.25, then dense layers of
    512 and 256 with dropout of 0.5. The paper does not print the padding: none gives 1,389,578 parameters on 28x28
    images, the 1.4M of its Table 7 (padded, it would be 3.6M).

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import mnist_network
        >>> shapes = jax.eval_shape(mnist_network().init, jax.random.key(0), jnp.zeros((1, 28, 28)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1389578
    """
    blocks = ((_Conv(64, 5, "VALID"),), (_Conv(128, 5, "VALID"),))
    return _convolutional("mnist_network", blocks, (512, 256), classes, 0.25, 0.5)


@functools.cache
def cifar10_network(classes: int = 10) -> Model:
    """The network for CIFAR-10 of Mehra and Hamm (ACML 2021), appendix E.2.

    Three blocks of 48, 96 and 192 channels, each of two 3x3 convolutions, 2x2 max pooling and dropout of 0.25, then
    dense layers of 512 and 256 with dropout of 0.5. The paper does not print the padding: with the first convolution
    of a block padded and the second not, it has 1,172,410 parameters on 32x32x3 images, the 1.2M of its Table 7
    (padded throughout 2.4M; unpadded throughout, the last pooling has nothing left to pool).

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import cifar10_network
        >>> shapes = jax.eval_shape(cifar10_network().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1172410
    """
    blocks = tuple((_Conv(out, 3, "SAME"), _Conv(out, 3, "VALID")) for out in (48, 96, 192))
    return _convolutional("cifar10_network", blocks, (512, 256), classes, 0.25, 0.5)


@functools.cache
def svhn_network(classes: int = 10) -> Model:
    """The network for SVHN of Mehra and Hamm (ACML 2021), appendix E.2.

    Three blocks of 32, 64 and 128 channels, each of two 3x3 convolutions, 2x2 max pooling and dropout of 0.3, then a
    dense layer of 512 with dropout of 0.3. The paper does not print the padding: padded throughout, it has 1,341,226
    parameters on 32x32x3 images, the 1.3M of its Table 7.

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import svhn_network
        >>> shapes = jax.eval_shape(svhn_network().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1341226
    """
    blocks = tuple((_Conv(out, 3, "SAME"), _Conv(out, 3, "SAME")) for out in (32, 64, 128))
    return _convolutional("svhn_network", blocks, (512,), classes, 0.3, 0.3)


@functools.cache
def six_and_four(classes: int = 10) -> Model:
    """Six convolutions and four dense layers, the network of the SPNBO text (ICLR 2022 submission, section 5.2).

    It prints neither widths nor kernels: here three blocks of 32, 64 and 128 channels, each of two 3x3 convolutions
    and 2x2 max pooling, then dense layers of 256, 128 and 64 and the last. 853,354 parameters on 32x32x3 images.

    Args, images and errors as for `lenet5`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import six_and_four
        >>> shapes = jax.eval_shape(six_and_four().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        853354
    """
    blocks = tuple((_Conv(out, 3, "SAME"), _Conv(out, 3, "SAME")) for out in (32, 64, 128))
    return _convolutional("six_and_four", blocks, (256, 128, 64), classes)


@functools.cache
def wide_resnet(classes: int = 10, depth: int = 28, width: int = 10) -> Model:
    """Wide residual network (Zagoruyko and Komodakis 2016), WRN-28-10 by default, with group normalisation.

    Three groups of (depth - 4) / 6 pre-activated blocks of two 3x3 convolutions, of 16, 32 and 64 times `width`
    channels, the last two at half the resolution of the one before; then the mean over pixels and a dense layer. A
    bilevel problem cannot carry running statistics, so group normalisation (Wu and He 2018; 8 groups) stands in the
    place of batch normalisation; it has as many parameters. WRN-28-10 has 36,479,194 for 10 classes and 3 channels,
    the 36M of Table 7 of Mehra and Hamm (ACML 2021). No dropout, as in WRN-28-10's usual form.

    Args:
        classes: how many logits it gives; at least 2.
        depth: 6 k + 4 for k = 1, 2, ...
        width: factor on the channels; at least 1.

    Images as for `lenet5`, of any size.

    Raises:
        InputError: classes, depth or width is none of these; in use, images of another rank.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import wide_resnet
        >>> shapes = jax.eval_shape(wide_resnet().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        36479194
    """
    classes, width = require_count("wide_resnet", "classes", classes, 2), require_count("wide_resnet", "width", width)
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer) or depth < 10 or depth % 6 != 4:
        raise InputError(f"wide_resnet: depth is {depth!r}, and must be 6 k + 4 for k = 1, 2, ...: 10, 16, 22, 28, ...")
    return _model(_WideResNet(classes, int(depth), width))


@dataclass(frozen=True)
class _WideResNet:
    """The network of `wide_resnet`."""

    classes: int
    depth: int
    width: int

    def _plan(self) -> list[tuple[int, int]]:
        """Of each block: its channels, and the stride of its first convolution."""
        return [
            (channels * self.width, 2 if group > 0 and block == 0 else 1)
            for group, channels in enumerate((16, 32, 64))
            for block in range((self.depth - 4) // 6)
        ]

    def init(self, key: Any, x: Any) -> PyTree:
        x = _images("wide_resnet", x, jnp.float32)
        keys = (jax.random.fold_in(key, i) for i in itertools.count())

        def conv(side: int, into: int, out: int) -> Any:
            return _layer(next(keys), (side, side, into, out))["weight"]

        def norm(channels: int) -> dict[str, Any]:
            return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}

        first, into, blocks = conv(3, x.shape[3], 16), 16, []
        for out, _ in self._plan():
            block = {"norms": (norm(into), norm(out)), "convolutions": (conv(3, into, out), conv(3, out, out))}
            blocks.append(block | ({"shortcut": conv(1, into, out)} if into != out else {}))
            into = out
        dense = {"weight": jnp.zeros((into, self.classes)), "bias": jnp.zeros(self.classes)}
        return {"first": first, "blocks": tuple(blocks), "norm": norm(into), "dense": dense}

    def apply(self, params: PyTree, x: Any) -> Any:
        x = _convolve(_images("wide_resnet", x, params["first"].dtype), params["first"], "SAME")
        for block, (_, stride) in zip(params["blocks"], self._plan(), strict=True):
            (norm_1, norm_2), (conv_1, conv_2) = block["norms"], block["convolutions"]
            inner = jax.nn.relu(_group_norm(norm_1, x))
            short = (
                _convolve(inner, block["shortcut"], "SAME", stride) if "shortcut" in block else x[:, ::stride, ::stride]
            )
            inner = jax.nn.relu(_group_norm(norm_2, _convolve(inner, conv_1, "SAME", stride)))
            x = short + _convolve(inner, conv_2, "SAME")
        x = jnp.mean(jax.nn.relu(_group_norm(params["norm"], x)), (1, 2))
        return x @ params["dense"]["weight"] + params["dense"]["bias"]


def _group_norm(params: PyTree, x: Any, groups: int = 8) -> Any:
    """Each sample's channels in groups of zero mean and unit variance, then scaled and shifted by channel."""
    grouped = x.reshape(*x.shape[:3], groups, -1)
    grouped = jax.nn.standardize(grouped, (1, 2, 4), epsilon=1e-5)
    return grouped.reshape(x.shape) * params["scale"] + params["bias"]


def _convolutional(
    name: str,
    blocks: tuple[tuple[_Conv, ...], ...],
    widths: tuple[int, ...],
    classes: int,
    block_dropout: float = 0.0,
    dense_dropout: float = 0.0,
) -> Model:
    """Blocks of convolutions, each block ending in 2x2 max pooling and dropout; then dense layers with dropout."""
    classes = require_count(name, "classes", classes, 2)
    return _model(_Convolutional(name, blocks, widths, classes, block_dropout, dense_dropout))


@dataclass(frozen=True)
class _Convolutional:
    """The networks of convolutions and dense layers."""

    name: str
    blocks: tuple[tuple[_Conv, ...], ...]
    widths: tuple[int, ...]
    classes: int
    block_dropout: float
    dense_dropout: float

    def _flat_size(self, x: Any) -> int:
        side = list(jnp.shape(x)[1:3])
        channels = jnp.shape(x)[3]
        for block in self.blocks:
            for conv in block:
                side = [s - (conv.side - 1 if conv.padding == "VALID" else 0) for s in side]
                channels = conv.out
            side = [s // 2 for s in side]
            if min(side) < 1:
                raise InputError(
                    f"{self.name}: images of {jnp.shape(x)[1]}x{jnp.shape(x)[2]} are too small: its convolutions and "
                    "poolings leave nothing of them. Pass larger images, or another network."
                )
        return side[0] * side[1] * channels

    def init(self, key: Any, x: Any) -> PyTree:
        x = _images(self.name, x, jnp.float32)
        flat = self._flat_size(x)
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        channels, convs = x.shape[3], []
        for conv in itertools.chain.from_iterable(self.blocks):
            convs.append(_layer(next(keys), (conv.side, conv.side, channels, conv.out)))
            channels = conv.out
        sizes = (flat, *self.widths)
        dense = [_layer(next(keys), pair) for pair in itertools.pairwise(sizes)]
        # As in `mlp` the last layer starts at zero.
        dense.append({"weight": jnp.zeros((sizes[-1], self.classes)), "bias": jnp.zeros(self.classes)})
        return {"convolutions": tuple(convs), "dense": tuple(dense)}

    def apply(self, params: PyTree, x: Any, key: Any = None) -> Any:
        x = _images(self.name, x, params["dense"][0]["weight"].dtype)
        self._flat_size(x)
        keys = itertools.repeat(None) if key is None else (jax.random.fold_in(key, i) for i in itertools.count())
        layers = iter(params["convolutions"])
        for block in self.blocks:
            for conv in block[:-1]:
                layer = next(layers)
                x = jax.nn.relu(_convolve(x, layer["weight"], conv.padding) + layer["bias"])
            # Bias and ReLU commute with the maximum, and cost a quarter after it.
            layer = next(layers)
            x = _convolve(x, layer["weight"], block[-1].padding, pooled=True)
            x = _dropout(next(keys), jax.nn.relu(x + layer["bias"]), self.block_dropout)
        x = jnp.reshape(x, (x.shape[0], -1))
        *hidden, last = params["dense"]
        for layer in hidden:
            x = _dropout(next(keys), jax.nn.relu(x @ layer["weight"] + layer["bias"]), self.dense_dropout)
        return x @ last["weight"] + last["bias"]


def _images(name: str, x: Any, dtype: Any) -> Any:
    """(n, h, w[, c]) as floating (n, h, w, c): uint8 divided by 255, anything else as it is."""
    shape = jnp.shape(x)
    if len(shape) not in (3, 4):
        raise InputError(
            f"{name}: images have shape {shape}, and must be (n, height, width) or (n, height, width, channels)."
        )
    x = jnp.reshape(x, (*shape, 1)) if len(shape) == 3 else jnp.asarray(x)
    return pixels(x, dtype).astype(dtype)


def _layer(key: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """A weight by He's initialisation (He et al. 2015), its last axis the output, and a bias of zero."""
    into = math.prod(shape[:-1])
    return {"weight": (2 / into) ** 0.5 * jax.random.normal(key, shape), "bias": jnp.zeros(shape[-1])}


def _convolve(x: Any, weight: Any, padding: str, stride: int = 1, *, pooled: bool = False) -> Any:
    """Images (n, h, w, c) with windows (side, side, c, out), to (n, h', w', out), 2x2 max pooling included if asked.

    On the CPU it is written as matrix products, elsewhere as XLA's convolution. XLA's CPU convolutions of a batch's
    gradient reach a third of the rate of its matrix products, and inside a compiled loop, where every solver's moves
    run, they fall back to code that is some fifty times slower (benchmarks/lower_move.py measures both).
    """
    side = weight.shape[0]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), padding)

    def xla(x: Any, weight: Any) -> Any:
        layouts = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weight, (stride, stride), pads, dimension_numbers=layouts)
        return _max_pool(x) if pooled else x

    def products(x: Any, weight: Any) -> Any:
        return _pooled_by_products(x, weight, pads) if pooled else _convolve_by_products(x, weight, pads, stride)

    return jax.lax.platform_dependent(x, weight, cpu=products, default=xla)


def _convolve_by_products(x: Any, weight: Any, pads: Any, stride: int) -> Any:
    """The convolution as one matrix product for each row of the window; its derivatives are such products too.

    The entries of a window's row stand side by side in memory (side times the input, where all of im2col takes side^2
    times), so each product sums over side * c terms, enough for a fast one. Where that is few, all rows go into one.
    """
    side, _, channels, out = weight.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    high, wide = ((size - side) // stride * stride + 1 for size in x.shape[1:3])
    columns = jnp.concatenate([x[:, :, j : j + wide : stride] for j in range(side)], -1)
    rows = [columns[:, i : i + high : stride] for i in range(side)]
    shape = (*rows[0].shape[:3], out)
    if _few_terms(weight):
        y = jnp.concatenate(rows, -1).reshape(-1, side * side * channels) @ weight.reshape(-1, out)
    else:
        y = _sum_of_products(rows, weight)
    return y.reshape(shape)


def _pooled_by_products(x: Any, weight: Any, pads: Any) -> Any:
    """The same with 2x2 max pooling; an odd last row or column is left out.

    The convolution's even and odd rows are made apart, so that a maximum over them is one of two arrays entry by
    entry, whose derivatives need neither strides nor scattering. With the rows' axis first the two are products of
    the same slices, which are contiguous: half the copies of a convolution that is pooled afterwards.
    """
    n, (side, _, channels, out) = x.shape[0], weight.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    high, wide = ((size - side + 1) // 2 for size in x.shape[1:3])
    if _few_terms(weight):
        columns = jnp.concatenate([x[:, :, j : j + 2 * wide] for j in range(side)], -1)
        windows = jnp.concatenate([columns[:, i : i + 2 * high] for i in range(side)], -1)
        corners = windows.reshape(n, high, 2, wide, 2, -1).transpose(2, 4, 0, 1, 3, 5)
        y = corners.reshape(-1, side * side * channels) @ weight.reshape(-1, out)
        a, b, c, d = y.reshape(4, n, high, wide, out)
        return _larger(_larger(a, c), _larger(b, d))

    def columns_of(parity: int) -> Any:
        x_of = x[:, parity : 2 * high + side - 1 : 2].transpose(1, 0, 2, 3)
        return jnp.concatenate([x_of[:, :, j : j + 2 * wide] for j in range(side)], -1)

    columns = columns_of(0), columns_of(1)
    rows = [columns[i % 2][i // 2 : i // 2 + high] for i in range(side + 1)]
    y = _larger(_sum_of_products(rows[:-1], weight), _sum_of_products(rows[1:], weight))
    y = y.reshape(high, n, wide, 2, out)
    return _larger(y[:, :, :, 0], y[:, :, :, 1]).transpose(1, 0, 2, 3)


def _few_terms(weight: Any) -> bool:
    """Whether a window has too few entries for a fast product of each of its rows."""
    return math.prod(weight.shape[:3]) <= 256


def _sum_of_products(rows: list[Any], weight: Any) -> Any:
    """The products of rows (..., side * c) of windows with those of the weight, summed: (pixels, out)."""
    total = 0.0
    for row, kernel in zip(rows, weight.reshape(len(rows), -1, weight.shape[3]), strict=True):
        # The derivative in `kernel` is a product too, whose natural form is (out, side * c). Were the transposition
        # not fixed here, XLA would have it the other way around, at the cost of transposing a large factor.
        kernel = jax.lax.optimization_barrier(kernel.T)
        total += jax.lax.dot_general(row.reshape(-1, kernel.shape[1]), kernel, (((1,), (1,)), ((), ())))
    return total


def _max_pool(x: Any) -> Any:
    """2x2 maxima of x (n, h, w, c); an odd last row or column is left out.

    Maxima of strided slices by selection: the derivatives are selections and paddings, where `reduce_window` compiles
    to a scatter and `jnp.maximum` divides for its ties. Of equal entries the first takes the derivative.
    """
    high, wide = (size // 2 * 2 for size in x.shape[1:3])
    x = _larger(x[:, :high:2, :wide], x[:, 1:high:2, :wide])
    return _larger(x[:, :, ::2], x[:, :, 1::2])


def _larger(a: Any, b: Any) -> Any:
    return jnp.where(a < b, b, a)


def _dropout(key: Any, x: Any, rate: float) -> Any:
    """Where there is a key, each entry is zero at the given rate and the others are scaled up.

    A random byte an entry decides where that meets the rate exactly, as it does 1/4 and 1/2; two bytes otherwise, which
    meet it to 1/65,536. They are cut from words of four, since `jax.random` spends a whole word on each byte it draws.
    """
    if key is None or rate == 0:
        return x
    size = jnp.uint8 if (rate * 2**8).is_integer() else jnp.uint16
    bits = jnp.iinfo(size).bits
    words = jax.random.bits(key, (-(-x.size * bits // 32),), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, size).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(draws >= round(rate * 2**bits), x * (1 / (1 - rate)), 0)


def augmented(model: Model, augment: Callable[[Any, Any], Any]) -> Model:
    """The model with its images augmented while training.

    Args:
        model: any Model.
        augment: (key, x) -> x of the same shape and dtype, such as `crop_and_flip()`. Called only where `apply` is
            given a key; the model gets another key made from it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import augmented, crop_and_flip, lenet5
        >>> model = augmented(lenet5(), crop_and_flip())
        >>> images = jnp.zeros((5, 32, 32, 3), jnp.uint8)
        >>> model.apply(model.init(jax.random.key(0), images), images, key=jax.random.key(1)).shape
        (5, 10)
    """
    return _augmented(model, augment)


@functools.cache
def _augmented(model: Model, augment: Callable[[Any, Any], Any]) -> Model:
    return Model(model.init, Method(_Augmented(model, augment), "apply"))


@dataclass(frozen=True)
class _Augmented:
    """A model whose images are augmented while training."""

    model: Model
    augment: Callable[[Any, Any], Any]

    def apply(self, params: PyTree, x: Any, key: Any = None) -> Any:
        if key is None:
            return logits(self.model, params, x)
        first, second = jax.random.split(key)
        return logits(self.model, params, self.augment(first, x), second)


@functools.cache
def crop_and_flip(pad: int = 4) -> Callable[[Any, Any], Any]:
    """The usual augmentation for small colour images: each padded with zeros, cropped at random and flipped at random.

    Args:
        pad: pixels of padding on each side, and so the largest shift; at least 0.

    Returns a function (key, x) -> x for x (n, h, w, c) of any dtype.

    Raises:
        InputError: pad is not an integer of at least 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import crop_and_flip
        >>> crop_and_flip()(jax.random.key(0), jnp.zeros((5, 32, 32, 3), jnp.uint8)).dtype
        dtype('uint8')
    """
    return _CropAndFlip(require_count("crop_and_flip", "pad", pad, 0))


@dataclass(frozen=True)
class _CropAndFlip:
    """The augmentation of `crop_and_flip`."""

    pad: int

    def __call__(self, key: Any, x: Any) -> Any:
        first, second = jax.random.split(key)
        shifts = jax.random.randint(first, (x.shape[0], 2), 0, 2 * self.pad + 1)
        return jax.vmap(self._one)(x, shifts, jax.random.bernoulli(second, 0.5, (x.shape[0],)))

    def _one(self, image: Any, shift: Any, flip: Any) -> Any:
        padded = jnp.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (shift[0], shift[1], 0), image.shape)
        return jnp.where(flip, image[:, ::-1], image)


# Packages whose modules are no models here, by the first part of their name: told apart without importing them.
_OTHERS = {
    "torch": "a PyTorch module",
    "keras": "a Keras model",
    "tf_keras": "a Keras model",
    "tensorflow": "a Keras model",
}


def as_model(model: Any, classes: int) -> Model:
    """A Model from whatever a user may hand over.

    Args:
        model: a `Model` or any (init, apply) pair, a flax.linen module, an equinox module, or a function
            from the number of classes to a Model, such as `mlp`.
        classes: how many classes the data have.

    Raises:
        InputError: it is none of these; a module's dropout could not be switched on while training.
    """
    known = _known(model)
    if known is not None:
        return known
    found = f"model is {model!r}, which is not a model"
    if isinstance(model, type):
        found = f"model is the class {model.__name__}, which is not a model: call it, {model.__name__}(...)"
    elif other := _other_library(model):
        found = f"model is {other}, which is not a model of pure JAX functions"
    elif callable(model):
        try:
            made = model(classes)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"model is {model!r}, and model({classes}) raises {type(error).__name__}: {error}. As a function, "
                "model must take the number of classes and return a Model."
            ) from error
        known = _known(made)
        if known is not None:
            return known
        found += f": model({classes}) is {made!r}"
    raise InputError(
        f"{found}. Pass an (init, apply) pair, a flax.linen or an equinox module, or a "
        "function from the number of classes to a Model, such as bilevax.models.mlp."
    )


def _known(model: Any) -> Model | None:
    """The Model of a pair or a module; None for anything else."""
    if isinstance(model, Model):
        return model
    if isinstance(model, tuple) and len(model) == 2 and all(callable(f) for f in model):
        return Model(*model)
    flax, equinox = sys.modules.get("flax.linen"), sys.modules.get("equinox")
    if flax is not None and isinstance(model, flax.Module):
        return from_flax(model)
    if equinox is not None and isinstance(model, equinox.Module):
        return from_equinox(model)
    return None


def _other_library(model: Any) -> str | None:
    """What a model of another library is; nothing is imported to find out."""
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if package in _OTHERS:
            return _OTHERS[package]
        if base.__module__.startswith("flax.nnx"):
            return "a flax.nnx module"
    return None


@dataclass(frozen=True, eq=False)
class _Module:
    """A module of another library as a value: equal where the modules are, if they can be hashed."""

    module: Any

    def _hashable(self) -> bool:
        try:
            hash(self.module)
        except TypeError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        if other.module is self.module:
            return True
        return self._hashable() and other._hashable() and bool(self.module == other.module)

    def __hash__(self) -> int:
        return hash(self.module) if self._hashable() else id(self.module)


# How flax's modules name the argument, or the field, that says whether they are training.
_TRAINING = ("train", "training", "is_training", "is_train")
_PREDICTING = ("deterministic", "use_running_average", "inference", "is_eval", "eval_mode", "evaluating")


@functools.lru_cache(maxsize=16)
def _from_flax(network: "_Flax") -> Model:
    return _model(network)


def from_flax(module: Any) -> Model:
    """A Model from a flax.linen module that maps (n, ...) to logits (n, classes).

    If the module's `__call__`, or the module itself as a field, has an argument `train`, `training`, `is_training` or
    `is_train` (or `deterministic`, `use_running_average`, `inference`, `is_eval`, `eval_mode`, `evaluating`), it is
    True (False) while training, where the key feeds the "dropout" stream.

    Raises:
        InputError: when it is initialised, if it has variables besides "params" (batch statistics, say), if its
            dropout stays off while training or on when predicting, or if it cannot be called.
    """
    return _from_flax(_Flax(module))


class _Flax(_Module):
    """A flax.linen module."""

    def _in_mode(self, training: bool) -> tuple[Any, dict[str, bool]]:
        """The module, and the arguments of its call, while training or not."""
        options = dict.fromkeys(_TRAINING, training) | dict.fromkeys(_PREDICTING, not training)
        parameters = inspect.signature(type(self.module).__call__).parameters
        arguments = {name: value for name, value in options.items() if name in parameters}
        own = set(self.module.__dataclass_fields__) - set(parameters)
        fields = {name: value for name, value in options.items() if name in own}
        return self.module.clone(**fields) if fields else self.module, arguments

    def init(self, key: Any, x: Any) -> PyTree:
        name = type(self.module).__name__
        module, arguments = self._in_mode(training=False)
        # The stream is there so that dropout which is on when predicting is found below, and named.
        try:
            variables = module.init({"params": key, "dropout": key}, x, **arguments)
        except Exception as error:
            raise InputError(f"model {name} cannot be initialised: {_first_line(error)}") from error
        others = sorted(set(variables) - {"params"})
        if others:
            raise InputError(
                f"model {name} keeps {', '.join(others)} besides its parameters, which a bilevel "
                "problem cannot carry. Use layers without running statistics, such as LayerNorm or GroupNorm."
            )
        params = variables.get("params", {})
        self._check_dropout(params, x)
        return params

    def _check_dropout(self, params: PyTree, x: Any) -> None:
        """Refuse dropout that does not follow the mode: it would be off while training, or on when predicting."""
        name, known = type(self.module).__name__, ", ".join((*_TRAINING[:3], *_PREDICTING[:2]))
        for training, mode in ((True, "off while training"), (False, "on when predicting")):
            try:
                layers = self._dropout_layers(params, x, training)
            except Exception as error:
                raise InputError(f"model {name} cannot be applied: {_first_line(error)}") from error
            if any(deterministic is training for deterministic in layers):
                raise InputError(
                    f"model {name} has dropout that stays {mode}: no argument of its __call__, nor a field of it, is "
                    f"known to switch it. Name it one of {known}."
                )

    def _dropout_layers(self, params: PyTree, x: Any, training: bool) -> list[bool]:
        """Of each layer with dropout whether it is off, in one pass in which nothing is computed."""
        import flax.linen as nn

        found: list[bool] = []

        def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            plain = isinstance(layer, nn.Dropout)
            rate = layer.rate if plain else getattr(layer, "dropout_rate", 0)
            if context.method_name == "__call__" and hasattr(layer, "deterministic") and rate:
                given = kwargs.get("deterministic", args[1] if plain and len(args) > 1 else None)
                found.append(bool(layer.deterministic if given is None else given))
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            jax.eval_shape(lambda params, x: self._run(params, x, jax.random.key(0), training), params, x)
        return found

    def _run(self, params: PyTree, x: Any, key: Any, training: bool) -> Any:
        module, arguments = self._in_mode(training)
        return module.apply({"params": params}, x, rngs=None if key is None else {"dropout": key}, **arguments)

    def apply(self, params: PyTree, x: Any, key: Any = None) -> Any:
        return self._run(params, x, key, key is not None)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else ''}."


@functools.lru_cache(maxsize=16)
def _from_equinox(network: "_Equinox") -> Model:
    return _model(network)


def from_equinox(module: Any) -> Model:
    """A Model from an equinox module that maps one example to logits (classes,); it is vmapped over samples.

    Args:
        module: an equinox module, whose own parameters are the start whatever the key; or a function
            key -> module, with which each start is a new draw.

    The module's floating arrays are the parameters; everything else is held fixed. Dropout is active while
    training and off when predicting (`equinox.nn.inference_mode`); the module's `__call__` must take the key for it.

    Raises:
        InputError: the module has state of its own (`equinox.nn.StatefulLayer`), or dropout and no argument `key`.
    """
    network = _Equinox(module)
    network.check()
    return _from_equinox(network)


class _Equinox(_Module):
    """An equinox module, or a function that makes one from a key."""

    @functools.cached_property
    def _given(self) -> bool:
        import equinox

        return isinstance(self.module, equinox.Module)

    @functools.cached_property
    def _example(self) -> Any:
        with jax.ensure_compile_time_eval():  # kept beyond the trace it may first be asked for in
            return self.module if self._given else self.module(jax.random.key(0))

    @functools.cached_property
    def _static(self) -> Any:
        import equinox

        return equinox.partition(self._example, equinox.is_inexact_array)[1]

    @property
    def _keyed(self) -> bool:
        return "key" in inspect.signature(type(self._example).__call__).parameters

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def check(self) -> None:
        import equinox

        if isinstance(self._example, tuple):
            raise InputError(
                "model gives a pair (module, state): layers with a state, such as BatchNorm, cannot be carried by a "
                "bilevel problem. Use layers without running statistics, such as LayerNorm or GroupNorm."
            )
        if not isinstance(self._example, equinox.Module):
            raise InputError(f"model gives {self._example!r} for a key, and must give an equinox module.")
        layers = jax.tree.leaves(self._example, is_leaf=lambda x: isinstance(x, equinox.nn.Dropout))
        if not self._keyed and any(isinstance(x, equinox.nn.Dropout) and x.p != 0 for x in layers):
            raise InputError(
                f"model {type(self._example).__name__} has dropout, and its __call__ takes no key to draw it by. "
                "Write __call__(self, x, key=None), and hand the key to the dropout layers."
            )

    def init(self, key: Any, x: Any) -> PyTree:
        import equinox

        module = self.module if self._given else self.module(key)
        return equinox.partition(module, equinox.is_inexact_array)[0]

    def apply(self, params: PyTree, x: Any, key: Any = None) -> Any:
        import equinox

        whole = equinox.nn.inference_mode(equinox.combine(params, self._static), key is None)
        if key is None or not self._keyed:
            return jax.vmap(whole)(x)
        return jax.vmap(lambda x, key: whole(x, key=key))(x, jax.random.split(key, jnp.shape(x)[0]))


class Representation(NamedTuple):
    """A feature map with batch normalisation, as pure functions.

    `init(key, x) -> params`: x (n, ...) is a batch of examples, of which only shape and dtype matter.
    `apply(params, x, statistics=None, key=None) -> features (n, d)`. Channels are normalised by means and variances
    over the samples and pixels of x, or by `statistics` where they are given; with a key as in training (dropout).
    `statistics(params, x)` are those of the samples x, as `apply` takes them.

    Nothing runs along: a mean that changes with every call has no place in a function that is differentiated. While
    u is learned every batch has its own statistics; who predicts takes those of a large sample of training images,
    by which no image's features depend on which others are looked at beside it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import omniglot_network
        >>> network, x = omniglot_network(filters=8), jax.random.uniform(jax.random.key(0), (6, 28, 28))
        >>> params = network.init(jax.random.key(1), x)
        >>> network.apply(params, x).shape
        (6, 8)
        >>> len(network.statistics(params, x))  # a mean and a variance for each block
        4
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]
    statistics: Callable[[PyTree, Any], PyTree]


Statistics = list[tuple[Any, Any]]


class _Norms:
    """The batch normalisations of one pass through a network, in their order, and the statistics they used."""

    def __init__(self, given: Any | None):
        self.used: Statistics = []
        self._given = iter(given) if given is not None else None

    def __call__(self, x: Any, shown: Any, shift: Any) -> Any:
        """`shown` normalised by the statistics of x, or by the given ones; a scale is left to what follows."""
        found = (jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))) if self._given is None else next(self._given)
        self.used.append(found)
        mean, variance = found
        return (shown - mean) * jax.lax.rsqrt(variance + 1e-5) + shift


class _Normalised:
    """What the representations share: one pass by given statistics, or one that collects its own."""

    def _run(self, params: PyTree, x: Any, norms: _Norms, key: Any) -> Any:
        raise NotImplementedError

    def apply(self, params: PyTree, x: Any, statistics: PyTree | None = None, key: Any = None) -> Any:
        return self._run(params, x, _Norms(statistics), key)

    def statistics(self, params: PyTree, x: Any) -> PyTree:
        norms = _Norms(None)
        self._run(params, x, norms, None)
        return tuple(norms.used)

    def representation(self) -> Representation:
        return Representation(Method(self, "init"), Method(self, "apply"), Method(self, "statistics"))


def _images_for_four_poolings(name: str, x: Any, dtype: Any) -> Any:
    x = _images(name, x, dtype)
    if min(x.shape[1:3]) < 16:
        raise InputError(
            f"{name}: images of {x.shape[1]}x{x.shape[2]} are too small for four poolings. Pass images of at least "
            "16x16."
        )
    return x


@functools.cache
def omniglot_network(filters: int = 64) -> Representation:
    """The representation for Omniglot of Mehra and Hamm (ACML 2021), appendix E.3.

    Four blocks of a padded 3x3 convolution, batch normalisation, ReLU and 2x2 max pooling; the last has no ReLU. Of
    28x28 images it gives as many features as it has filters, and with 64 of them has 111,424 parameters, the 111K of
    Table 7. Normalisation has a shift and no scale, which the next layer, or the cosine of the head, would undo.

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

    def init(self, key: Any, x: Any) -> PyTree:
        x = _images_for_four_poolings("omniglot_network", x, jnp.float32)
        channels = (x.shape[3], self.filters, self.filters, self.filters)
        keys = jax.random.split(key, len(channels))
        return tuple(
            {"weight": _layer(key, (3, 3, into, self.filters))["weight"], "shift": jnp.zeros(self.filters)}
            for key, into in zip(keys, channels, strict=True)
        )

    def _run(self, params: PyTree, x: Any, norms: _Norms, key: Any) -> Any:
        x = _images_for_four_poolings("omniglot_network", x, params[0]["weight"].dtype)
        for i, block in enumerate(params):
            x = _convolve(x, block["weight"], "SAME")
            x = norms(x, _max_pool(x), block["shift"])  # normalisation and ReLU commute with the maximum
            x = jax.nn.relu(x) if i + 1 < len(params) else x
        return jnp.reshape(x, (x.shape[0], -1))


@functools.cache
def mini_imagenet_network(features: int = 512) -> Representation:
    """The residual representation for mini-ImageNet of Mehra and Hamm (ACML 2021), appendix E.3 (Mishra et al. 2018).

    Four blocks of 64, 96, 128 and 256 channels, each of three times a 3x3 convolution, batch normalisation and leaky
    ReLU (0.1), a shortcut by a 1x1 convolution, 2x2 max pooling and dropout of 0.1; then a 1x1 convolution of 2,048
    channels with normalisation and leaky ReLU, the mean over pixels, and a 1x1 convolution to the features.

    The text has 384 features; with 512 the network has the 3.8M parameters, and two 5-way heads the 5K, of Table 7
    (3.5M and 4K with 384), so 512 is the default.

    Args:
        features: how many it gives.

    Images as for `lenet5`, of at least 16x16.

    Raises:
        InputError: features is not a positive integer; in use, images of another rank, or too small.
    """
    return _MiniImagenetNetwork(require_count("mini_imagenet_network", "features", features)).representation()


@dataclass(frozen=True)
class _MiniImagenetNetwork(_Normalised):
    """The network of `mini_imagenet_network`."""

    features: int

    def init(self, key: Any, x: Any) -> PyTree:
        x = _images_for_four_poolings("mini_imagenet_network", x, jnp.float32)
        keys = (jax.random.fold_in(key, i) for i in itertools.count())

        def conv(side: int, into: int, out: int) -> Any:
            return _layer(next(keys), (side, side, into, out))["weight"]

        into, blocks = x.shape[3], []
        for out in (64, 96, 128, 256):
            weights = tuple(conv(3, size, out) for size in (into, out, out))
            blocks.append({"weights": weights, "shifts": (jnp.zeros(out),) * 3, "shortcut": conv(1, into, out)})
            into = out
        wide = {"weight": conv(1, into, 2048), "shift": jnp.zeros(2048)}
        last = {"weight": conv(1, 2048, self.features), "bias": jnp.zeros(self.features)}
        return {"blocks": tuple(blocks), "wide": wide, "last": last}

    def _run(self, params: PyTree, x: Any, norms: _Norms, key: Any) -> Any:
        x = _images_for_four_poolings("mini_imagenet_network", x, params["last"]["bias"].dtype)
        keys = itertools.repeat(None) if key is None else (jax.random.fold_in(key, i) for i in itertools.count())
        for block in params["blocks"]:
            short = _convolve(x, block["shortcut"], "SAME")
            for weight, shift in zip(block["weights"], block["shifts"], strict=True):
                x = _convolve(x, weight, "SAME")
                x = jax.nn.leaky_relu(norms(x, x, shift), 0.1)
            x = _dropout(next(keys), _max_pool(x + short), 0.1)
        x = _convolve(x, params["wide"]["weight"], "SAME")
        x = jax.nn.leaky_relu(norms(x, x, params["wide"]["shift"]), 0.1)
        return jnp.mean(x, (1, 2)) @ params["last"]["weight"][0, 0] + params["last"]["bias"]

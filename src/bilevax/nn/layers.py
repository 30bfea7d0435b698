"""Layers of the networks."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevax._checks import InputError, PyTree
from bilevax.nn.model import Model, model_of, pixels


def dense_network(classes: int, widths: tuple[int, ...]) -> Model:
    """The Model of a `DenseNetwork`."""
    return model_of(DenseNetwork(classes, widths))


def flattened(x: Any) -> Any:
    """Samples as vectors (n, d), images of bytes scaled by `pixels`."""
    return jnp.reshape(pixels(x), (jnp.shape(x)[0], -1))


@dataclass(frozen=True)
class DenseNetwork:
    """Dense layers with ReLU between them; none hidden is softmax regression."""

    classes: int
    widths: tuple[int, ...]

    def init(self, key: Any, x: Any) -> PyTree:
        """Parameters: a weight and a bias for each layer."""
        sizes = [math.prod(jnp.shape(x)[1:]), *self.widths, self.classes]
        layers = []
        for i, (into, out) in enumerate(itertools.pairwise(sizes)):
            # The last layer starts at zero: all classes are equally likely at first.
            scale = 0.0 if i == len(self.widths) else (2 / into) ** 0.5
            weight = scale * jax.random.normal(jax.random.fold_in(key, i), (into, out))
            layers.append({"weight": weight, "bias": jnp.zeros(out)})
        return tuple(layers)

    def apply(self, params: PyTree, x: Any) -> Any:
        """Logits (n, classes)."""
        x = flattened(x)
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
        return x @ last["weight"] + last["bias"]


class Conv(NamedTuple):
    """A convolution: output channels, side of the square window, and "SAME" or "VALID"."""

    out: int
    side: int
    padding: str


def group_norm(params: PyTree, x: Any, groups: int = 8) -> Any:
    """Each sample's channels in groups of zero mean and unit variance, then scaled and shifted by channel."""
    grouped = x.reshape(*x.shape[:3], groups, -1)
    grouped = jax.nn.standardize(grouped, (1, 2, 4), epsilon=1e-5)
    return grouped.reshape(x.shape) * params["scale"] + params["bias"]


def as_images(name: str, x: Any, dtype: Any) -> Any:
    """(n, h, w[, c]) as floating (n, h, w, c): uint8 divided by 255, anything else as it is."""
    shape = jnp.shape(x)
    if len(shape) not in (3, 4):
        raise InputError(
            f"{name}: images have shape {shape}, and must be (n, height, width) or (n, height, width, channels)."
        )
    x = jnp.reshape(x, (*shape, 1)) if len(shape) == 3 else jnp.asarray(x)
    return pixels(x, dtype).astype(dtype)


def initial_layer(key: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """A weight by He's initialisation (He et al. 2015), its last axis the output, and a bias of zero."""
    into = math.prod(shape[:-1])
    return {"weight": (2 / into) ** 0.5 * jax.random.normal(key, shape), "bias": jnp.zeros(shape[-1])}


def convolve(x: Any, weight: Any, padding: str, stride: int = 1, *, pooled: bool = False) -> Any:
    """Images (n, h, w, c) convolved with windows (side, side, c, out), to (n, h', w', out); `pooled` by 2x2 maxima.

    On the CPU it is written as matrix products, elsewhere as XLA's convolution. XLA's CPU convolutions of a batch's
    gradient reach a third of the rate of its matrix products, and inside a compiled loop, where every solver's moves
    run, they fall back to code that is some fifty times slower (benchmarks/lower_move.py measures both).
    """
    side = weight.shape[0]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), padding)

    def xla(x: Any, weight: Any) -> Any:
        layouts = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weight, (stride, stride), pads, dimension_numbers=layouts)
        return max_pool(x) if pooled else x

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


def max_pool(x: Any) -> Any:
    """2x2 maxima of x (n, h, w, c); an odd last row or column is left out.

    Maxima of strided slices by selection: the derivatives are selections and paddings, where `reduce_window` compiles
    to a scatter and `jnp.maximum` divides for its ties. Of equal entries the first takes the derivative.
    """
    high, wide = (size // 2 * 2 for size in x.shape[1:3])
    x = _larger(x[:, :high:2, :wide], x[:, 1:high:2, :wide])
    return _larger(x[:, :, ::2], x[:, :, 1::2])


def _larger(a: Any, b: Any) -> Any:
    return jnp.where(a < b, b, a)


def drop_out(key: Any, x: Any, rate: float) -> Any:
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

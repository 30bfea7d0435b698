"""Layers of the networks."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError
from bilevax.nn.model import pixels


def flattened(x: Shaped[ArrayLike, "n ..."]) -> Shaped[Array, "n d"]:
    """Samples as vectors, images of bytes scaled by `pixels`."""
    return jnp.reshape(pixels(x), (jnp.shape(x)[0], -1))


@dataclass(frozen=True)
class DenseNetwork:
    """Dense layers with ReLU between them; softmax regression without hidden layers."""

    classes: int
    widths: tuple[int, ...]

    def init(self, key: PRNGKeyArray, x: Shaped[ArrayLike, "n ..."]) -> PyTree[Float[Array, "..."]]:
        """A weight and a bias for each layer."""
        sizes = [math.prod(jnp.shape(x)[1:]), *self.widths, self.classes]
        layers = []
        for i, (into, out) in enumerate(itertools.pairwise(sizes)):
            # The last layer is zero: all classes are equally likely at first.
            scale = 0.0 if i == len(self.widths) else (2 / into) ** 0.5
            weight = scale * jax.random.normal(jax.random.fold_in(key, i), (into, out))
            layers.append({"weight": weight, "bias": jnp.zeros(out)})
        return tuple(layers)

    def apply(self, params: PyTree[Float[Array, "..."]], x: Shaped[ArrayLike, "n ..."]) -> Float[Array, "n classes"]:
        """The logits."""
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


def group_norm(
    params: dict[str, Float[Array, " c"]], x: Float[Array, "n h w c"], groups: int = 8
) -> Float[Array, "n h w c"]:
    """Group normalisation, then scale and shift by channel."""
    grouped = x.reshape(*x.shape[:3], groups, -1)
    grouped = jax.nn.standardize(grouped, (1, 2, 4), epsilon=1e-5)
    return grouped.reshape(x.shape) * params["scale"] + params["bias"]


def as_images(name: str, x: Shaped[ArrayLike, "n ..."], dtype: DTypeLike) -> Float[Array, "n h w c"]:
    """Images (n, h, w[, c]) as floats (n, h, w, c), bytes scaled by `pixels`."""
    shape = jnp.shape(x)
    if len(shape) not in (3, 4):
        raise InputError(
            f"{name}: images have shape {shape}, and must be (n, height, width) or (n, height, width, channels)."
        )
    x = jnp.reshape(x, (*shape, 1)) if len(shape) == 3 else jnp.asarray(x)
    return jnp.asarray(pixels(x, dtype)).astype(dtype)


def initial_layer(key: PRNGKeyArray, shape: tuple[int, ...]) -> dict[str, Float[Array, "..."]]:
    """A weight by He's initialisation (He et al. 2015), with the output as its last axis, and a bias of zero."""
    into = math.prod(shape[:-1])
    return {"weight": (2 / into) ** 0.5 * jax.random.normal(key, shape), "bias": jnp.zeros(shape[-1])}


def convolve(
    x: Float[Array, "n h w c"],
    weight: Float[Array, "side side c out"],
    padding: str,
    stride: int = 1,
    *,
    pooled: bool = False,
) -> Float[Array, "n h2 w2 out"]:
    """Convolution of images, followed by 2x2 max pooling if `pooled`.

    On the CPU it is computed by matrix products, elsewhere by XLA's convolution. XLA's CPU convolutions reach a third
    of the rate of its matrix products for gradients of a batch, and inside a compiled loop, where solvers run, they
    fall back to code that is about fifty times slower (benchmarks/lower_move.py measures both).
    """
    side = weight.shape[0]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), padding)

    def xla(x: Array, weight: Array) -> Array:
        layouts = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weight, (stride, stride), pads, dimension_numbers=layouts)
        return max_pool(x) if pooled else x

    def products(x: Array, weight: Array) -> Array:
        return _pooled_by_products(x, weight, pads) if pooled else _convolve_by_products(x, weight, pads, stride)

    return jax.lax.platform_dependent(x, weight, cpu=products, default=xla)


def _convolve_by_products(
    x: Float[Array, "n h w c"], weight: Float[Array, "side side c out"], pads: Any, stride: int
) -> Float[Array, "n h2 w2 out"]:
    """The convolution as one matrix product for each row of the window; so are its derivatives.

    The entries of a row of the window are copied next to each other (side copies of the input, where im2col makes
    side^2), so each product sums over side * c terms. Where these are too few for speed, one product takes all rows.
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


def _pooled_by_products(
    x: Float[Array, "n h w c"], weight: Float[Array, "side side c out"], pads: Any
) -> Float[Array, "n h2 w2 out"]:
    """The same with 2x2 max pooling; an odd last row or column is left out.

    Even and odd rows of the convolution are computed separately, so the maximum over them is elementwise and its
    derivative needs neither strides nor scatters. With the axis of rows first, both are products of the same contiguous
    slices: half the copies of a convolution that is pooled afterwards.
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

    def columns_of(parity: int) -> Array:
        x_of = x[:, parity : 2 * high + side - 1 : 2].transpose(1, 0, 2, 3)
        return jnp.concatenate([x_of[:, :, j : j + 2 * wide] for j in range(side)], -1)

    columns = columns_of(0), columns_of(1)
    rows = [columns[i % 2][i // 2 : i // 2 + high] for i in range(side + 1)]
    y = _larger(_sum_of_products(rows[:-1], weight), _sum_of_products(rows[1:], weight))
    y = y.reshape(high, n, wide, 2, out)
    return _larger(y[:, :, :, 0], y[:, :, :, 1]).transpose(1, 0, 2, 3)


def _few_terms(weight: Float[Array, "side side c out"]) -> bool:
    """Whether a window has too few entries for a fast product per row."""
    return math.prod(weight.shape[:3]) <= 256


def _sum_of_products(
    rows: list[Float[Array, "... terms"]], weight: Float[Array, "side side c out"]
) -> Float[Array, "pixels out"]:
    """The sum of the products of each row of the windows with that row of the weight."""
    total: Any = 0.0
    for row, kernel in zip(rows, weight.reshape(len(rows), -1, weight.shape[3]), strict=True):
        # The derivative by `kernel` is a product with the natural shape (out, side * c). Without the barrier, XLA
        # computes its transpose and has to transpose a large factor.
        kernel = jax.lax.optimization_barrier(kernel.T)
        total += jax.lax.dot_general(row.reshape(-1, kernel.shape[1]), kernel, (((1,), (1,)), ((), ())))
    return total


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """2x2 max pooling; an odd last row or column is left out.

    Selection between strided slices: its derivatives are selections and paddings, while `reduce_window` compiles to a
    scatter and `jnp.maximum` divides the derivative between ties. Of equal entries the first gets the derivative.
    """
    high, wide = (size // 2 * 2 for size in x.shape[1:3])
    x = _larger(x[:, :high:2, :wide], x[:, 1:high:2, :wide])
    return _larger(x[:, :, ::2], x[:, :, 1::2])


def _larger(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(a < b, b, a)


def drop_out(key: PRNGKeyArray | None, x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    """Dropout at the given rate; x unchanged without a key.

    Each entry uses one random byte if that represents the rate exactly, as for 1/4 and 1/2, otherwise two bytes, which
    represent it to 1/65,536. They are cut from 32-bit words, since `jax.random` draws a word for each byte.
    """
    if key is None or rate == 0:
        return x
    size = jnp.uint8 if (rate * 2**8).is_integer() else jnp.uint16
    bits = jnp.iinfo(size).bits
    words = jax.random.bits(key, (-(-x.size * bits // 32),), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, size).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(draws >= round(rate * 2**bits), x * (1 / (1 - rate)), 0)

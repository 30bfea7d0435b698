"""Random changes to the images that a model is trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bilevax._checks import PyTree, require_count
from bilevax.nn.model import Method, Model, logits


def augmented(model: Model, augment: Callable[[Any, Any], Any]) -> Model:
    """The model with its images augmented while training.

    Args:
        model: any Model.
        augment: (key, x) -> x of the same shape and dtype, such as `crop_and_flip()`. Called only where `apply` is
            given a key; the model gets another key made from it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import augmented, crop_and_flip, lenet5
        >>> model = augmented(lenet5(), crop_and_flip())
        >>> images = jnp.zeros((5, 32, 32, 3), jnp.uint8)
        >>> model.apply(model.init(jax.random.key(0), images), images, key=jax.random.key(1)).shape
        (5, 10)
    """
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


def crop_and_flip(pad: int = 4) -> Callable[[Any, Any], Any]:
    """The usual augmentation for small colour images: each padded with zeros, cropped at random and flipped at random.

    Args:
        pad: pixels of padding on each side, and so the largest shift; at least 0.

    Returns a function (key, x) -> x for x (n, h, w, c) of any dtype.

    Raises:
        InputError: pad is not an integer of at least 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import crop_and_flip
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

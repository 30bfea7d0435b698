"""Data augmentation of images."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import require_count
from bilevax.nn.model import Method, Model, Moments, Settled, logits

Augment = Callable[[PRNGKeyArray, Shaped[Array, "n h w c"]], Shaped[Array, "n h w c"]]


def augmented(model: Model, augment: Augment) -> Model:
    """The model with its images augmented during training.

    Args:
        model: any Model.
        augment: (key, x) -> x of the same shape and dtype, such as `crop_and_flip()`. Called only where `apply` gets
            a key, which is split between it and the model.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import augmented, crop_and_flip, lenet5
        >>> model = augmented(lenet5(), crop_and_flip())
        >>> images = jnp.zeros((5, 32, 32, 3), jnp.uint8)
        >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> jax.eval_shape(model.apply, params, images, key=jax.random.key(1)).shape
        (5, 10)
    """
    return model._replace(apply=Method(_Augmented(model, augment), "apply"))


@dataclass(frozen=True)
class _Augmented:
    """The model of `augmented`."""

    model: Model
    augment: Augment

    def apply(
        self,
        params: PyTree,
        x: Shaped[Array, "n h w c"],
        key: PRNGKeyArray | None = None,
        statistics: dict[str, Moments] | None = None,
    ) -> Float[Array, "n classes"]:
        if key is None:
            return logits(self.model, params if statistics is None else Settled(params, statistics), x)
        first, second = jax.random.split(key)
        return logits(self.model, params, self.augment(first, x), second)


def crop_and_flip(pad: int = 4) -> Augment:
    """The usual augmentation of small colour images: zero padding, random crop, random horizontal flip.

    Args:
        pad: pixels of padding on each side, which is the largest shift; at least 0.

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

    def __call__(self, key: PRNGKeyArray, x: Shaped[Array, "n h w c"]) -> Shaped[Array, "n h w c"]:
        first, second = jax.random.split(key)
        shifts = jax.random.randint(first, (x.shape[0], 2), 0, 2 * self.pad + 1)
        return jax.vmap(self._one)(x, shifts, jax.random.bernoulli(second, 0.5, (x.shape[0],)))

    def _one(
        self, image: Shaped[Array, "h w c"], shift: Int[Array, "2"], flip: Bool[Array, ""]
    ) -> Shaped[Array, "h w c"]:
        padded = jnp.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (shift[0], shift[1], 0), image.shape)
        return jnp.where(flip, image[:, ::-1], image)

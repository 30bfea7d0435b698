"""Model: two pure functions."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped


class Model(NamedTuple):
    """A classifier as two pure functions.

    `init(key, x) -> params`: x (n, ...) is a batch of examples, of which only shape and dtype matter.
    `apply(params, x) -> logits`: x (n, ...) to (n, classes). If it has a parameter `key`, it gets a key during training
    (for dropout) and None for predictions.

    The tools of `bilevax.applications` call a model by `initial` and `logits`, which pass images of uint8 as floats in
    0..1 (see `pixels`). A model must therefore not divide by 255 itself: the images would be scaled twice. Images that
    are floats are passed unchanged; divide them by 255 yourself if their values are 0..255.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import Model
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
    """A method of a value, which can be pickled and is equal to the same method of an equal value.

    Python's bound methods are equal only if they belong to the same object. Equal models are compiled once.
    """

    owner: Any
    name: str

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Call the method."""
        return getattr(self.owner, self.name)(*arguments, **more)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(self.owner, self.name))


def model_of(network: Any) -> Model:
    """The Model of a value with methods `init` and `apply`."""
    return Model(Method(network, "init"), Method(network, "apply"))


def pixels(x: Shaped[ArrayLike, "n ..."], dtype: DTypeLike | None = None) -> Shaped[ArrayLike, "n ..."]:
    """Images of uint8, (n, h, w) or of higher rank, as floats in 0..1; anything else unchanged.

    This is the only place where bytes are scaled. An array of uint8 of rank 2 is a table and stays unchanged.

    Args:
        x: samples.
        dtype: of the floats; None for JAX's default.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.nn.model import pixels
        >>> float(pixels(jnp.full((1, 2, 2), 255, jnp.uint8)).max())
        1.0
    """
    if getattr(x, "dtype", None) != jnp.uint8 or jnp.ndim(x) < 3:
        return x
    return jnp.asarray(x).astype(jnp.result_type(float) if dtype is None else dtype) / 255


def initial(model: Model, key: PRNGKeyArray, x: Shaped[ArrayLike, "n ..."]) -> PyTree:
    """The initial parameters of a model; of x only shape and dtype matter."""
    return model.init(key, pixels(x))


def logits(
    model: Model, params: PyTree, x: Shaped[ArrayLike, "n ..."], key: PRNGKeyArray | None = None
) -> Float[Array, "n classes"]:
    """The logits of x: with `key` as in training, without as in predictions."""
    x = pixels(x)
    if "key" in inspect.signature(model.apply).parameters:
        return model.apply(params, x, key=key)
    return model.apply(params, x)

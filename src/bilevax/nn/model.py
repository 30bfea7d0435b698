"""What a model is: two pure functions."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from bilevax._checks import PyTree


class Model(NamedTuple):
    """A classifier as two pure functions.

    `init(key, x) -> params`: x (n, ...) is a batch of examples, of which only shape and dtype matter.
    `apply(params, x) -> logits`: x (n, ...) to (n, classes). If it has a parameter `key`, it is given
    a key while training (dropout) and None when predicting.

    The tools of `bilevax.applications` call a model by `initial` and `logits`, which hand it images of uint8 as
    floats in 0..1 (see `pixels`): a model never sees bytes, and need not scale them.

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


def model_of(network: Any) -> Model:
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
        >>> from bilevax.nn.model import pixels
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

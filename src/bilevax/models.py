"""Models that a lower level can train: a pair of pure functions, and adapters for flax and equinox.

Neither flax nor equinox is imported unless one of its modules is handed over.
"""

import functools
import inspect
import itertools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevax.problem import InputError, PyTree


class Model(NamedTuple):
    """A classifier as two pure functions.

    `init(key, x) -> params`: x (n, ...) is a batch of examples, of which only shape and dtype matter.
    `apply(params, x) -> logits`: x (n, ...) to (n, classes). If it has a parameter `key`, it is given
    a key while training (dropout) and None when predicting.

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


@functools.cache
def softmax_regression(classes: int) -> Model:
    """Multinomial logistic regression on flattened features, starting from zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import softmax_regression
        >>> model = softmax_regression(3)
        >>> model.apply(model.init(jax.random.key(0), jnp.ones((5, 2))), jnp.ones((5, 2))).shape
        (5, 3)
    """
    return _dense((), classes)


@functools.cache
def mlp(classes: int, widths: tuple[int, ...] = (64,)) -> Model:
    """A fully connected network with ReLU, on flattened features; He's initialisation (He et al. 2015).

    Args:
        classes: how many logits it gives.
        widths: the hidden layers' widths.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.models import mlp
        >>> model = mlp(3, widths=(16, 8))
        >>> model.apply(model.init(jax.random.key(0), jnp.ones((5, 2))), jnp.ones((5, 2))).shape
        (5, 3)
    """
    return _dense(tuple(widths), classes)


def _dense(widths: tuple[int, ...], classes: int) -> Model:
    for size in (*widths, classes):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"A layer's width is {size!r}, and must be a positive integer.")

    def init(key: Any, x: Any) -> PyTree:
        sizes = [int(jnp.size(x) // jnp.shape(x)[0]), *widths, classes]
        layers = []
        for i, (into, out) in enumerate(itertools.pairwise(sizes)):
            # The last layer starts at zero: all classes are equally likely at first.
            scale = 0.0 if i == len(widths) else (2 / into) ** 0.5
            weight = scale * jax.random.normal(jax.random.fold_in(key, i), (into, out))
            layers.append({"weight": weight, "bias": jnp.zeros(out)})
        return tuple(layers)

    def apply(params: PyTree, x: Any) -> Any:
        x = jnp.reshape(x, (jnp.shape(x)[0], -1))
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
        return x @ last["weight"] + last["bias"]

    return Model(init, apply)


def logits(model: Model, params: PyTree, x: Any, key: Any = None) -> Any:
    """The logits (n, classes) of x; with `key` as in training, without as in use."""
    if "key" in inspect.signature(model.apply).parameters:
        return model.apply(params, x, key=key)
    return model.apply(params, x)


def as_model(model: Any, classes: int) -> Model:
    """A Model from whatever a user may hand over.

    Args:
        model: a `Model` or any (init, apply) pair, a flax.linen module, an equinox module, or a function
            from the number of classes to a Model, such as `mlp`.
        classes: how many classes the data have.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, tuple) and len(model) == 2 and all(callable(f) for f in model):
        return Model(*model)
    flax, equinox = sys.modules.get("flax.linen"), sys.modules.get("equinox")
    if flax is not None and isinstance(model, flax.Module):
        return from_flax(model)
    if equinox is not None and isinstance(model, equinox.Module):
        return from_equinox(model)
    made = model(classes) if callable(model) and not isinstance(model, type) else None
    if isinstance(made, Model):
        return made
    raise InputError(
        f"model is {model!r}, which is no model. Pass an (init, apply) pair, a flax.linen or an equinox module, or a "
        "function from the number of classes to a Model, such as bilevax.models.mlp."
    )


def _cached(make: Callable[[Any], Model]) -> Callable[[Any], Model]:
    """The same Model for an equal module, where it can be hashed: an equal problem is not compiled again."""
    cached = functools.lru_cache(maxsize=16)(make)

    @functools.wraps(make)
    def model(module: Any) -> Model:
        try:
            hash(module)
        except TypeError:
            return make(module)
        return cached(module)

    return model


@_cached
def from_flax(module: Any) -> Model:
    """A Model from a flax.linen module that maps (n, ...) to logits (n, classes).

    If the module's `__call__` has a parameter `train` (or `deterministic`), it is True (False) while training,
    where the key feeds the "dropout" stream.

    Raises:
        InputError: when it is initialised, if it has variables besides "params" (batch statistics, say).
    """
    parameters = inspect.signature(type(module).__call__).parameters

    def mode(training: bool) -> dict[str, bool]:
        options = {"train": training, "deterministic": not training}
        return {name: value for name, value in options.items() if name in parameters}

    def init(key: Any, x: Any) -> PyTree:
        variables = module.init(key, x, **mode(False))
        others = sorted(set(variables) - {"params"})
        if others:
            raise InputError(
                f"model {type(module).__name__} keeps {', '.join(others)} besides its parameters, which a bilevel "
                "problem cannot carry. Use layers without running statistics, such as LayerNorm or GroupNorm."
            )
        return variables["params"]

    def apply(params: PyTree, x: Any, key: Any = None) -> Any:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, rngs=rngs, **mode(key is not None))

    return Model(init, apply)


@_cached
def from_equinox(module: Any) -> Model:
    """A Model from an equinox module that maps one example to logits (classes,); it is vmapped over samples.

    Args:
        module: an equinox module, whose own parameters are the start whatever the key; or a function
            key -> module, with which each start is a new draw.

    The module's floating arrays are the parameters; everything else is held fixed. Dropout is active while
    training and off when predicting (`equinox.nn.inference_mode`).

    Raises:
        InputError: the module has state of its own (`equinox.nn.StatefulLayer`).
    """
    import equinox

    given = isinstance(module, equinox.Module)
    example = module if given else module(jax.random.key(0))
    if isinstance(example, tuple):
        raise InputError(
            "model gives a pair (module, state): layers with a state, such as BatchNorm, cannot be carried by a "
            "bilevel problem. Use layers without running statistics, such as LayerNorm or GroupNorm."
        )
    static = equinox.partition(example, equinox.is_inexact_array)[1]
    keyed = "key" in inspect.signature(type(example).__call__).parameters

    def init(key: Any, x: Any) -> PyTree:
        return equinox.partition(module if given else module(key), equinox.is_inexact_array)[0]

    def apply(params: PyTree, x: Any, key: Any = None) -> Any:
        whole = equinox.nn.inference_mode(equinox.combine(params, static), key is None)
        if key is None or not keyed:
            return jax.vmap(whole)(x)
        return jax.vmap(lambda x, key: whole(x, key=key))(x, jax.random.split(key, jnp.shape(x)[0]))

    return Model(init, apply)

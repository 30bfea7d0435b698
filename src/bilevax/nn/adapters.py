"""Conversion of models of other libraries to a Model or a Representation."""

import sys
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, described
from bilevax.nn.equinox import from_equinox
from bilevax.nn.keras3 import from_keras
from bilevax.nn.linen import from_flax
from bilevax.nn.model import Method, Model, Moments, Settled, initial, logits, pixels
from bilevax.nn.nnx import from_nnx
from bilevax.nn.pytorch import from_torch
from bilevax.nn.representations import Representation


def as_model(model: Any, classes: int) -> Model:
    """A Model from any kind of model that a user may pass.

    Args:
        model: a `Model` or any (init, apply) pair; a module of torch.nn, flax.nnx, flax.linen or equinox; a Keras
            model; or a function from the number of classes to one of these, such as `mlp`.
        classes: the number of classes in the data.

    Raises:
        InputError: it is none of these, or its adapter (`from_torch`, `from_keras`, `from_nnx`, `from_flax`,
            `from_equinox`) refuses it.
    """
    known = _known(model, classes)
    if known is not None:
        return known
    found = f"model is {model!r}, which is not a model"
    if isinstance(model, type):
        found = f"model is the class {model.__name__}, which is not a model: call it, {model.__name__}(...)"
    elif any(base.__module__.partition(".")[0] in ("tf_keras", "tensorflow") for base in type(model).__mro__):
        found = "model is a TensorFlow model, which is not a model of JAX: use Keras 3 with its JAX backend"
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
        known = _known(made, classes)
        if known is not None:
            return known
        found += f": model({classes}) is {made!r}"
    raise InputError(
        f"{found}. Pass an (init, apply) pair; a module of torch.nn, flax.nnx, flax.linen or equinox; a Keras model; "
        "or a function from the number of classes to a Model, such as bilevax.nn.mlp."
    )


def as_representation(module: Any) -> Representation:
    """A Representation from a module whose output is features (n, d), for few-shot learning.

    Args:
        module: a `Representation`; or a `Model`, a pair (init, apply), a module of torch.nn, flax.nnx, flax.linen or
            equinox, or a Keras model, as for `as_model`. Where it has batch normalisation, the statistics of the
            Representation are the dictionary of `Settled`.

    Raises:
        InputError: it is none of these, or its adapter refuses it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from bilevax.nn import as_representation
        >>> network = as_representation(nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
        >>> x = jnp.ones((5, 4))
        >>> network.apply(network.init(jax.random.key(0), x), x).shape
        (5, 8)
    """
    if isinstance(module, Representation):
        return module
    known = _known(module, None)
    if known is None:
        raise InputError(
            f"representation is {described(module)}, and must be a bilevax.nn.Representation, such as "
            "omniglot_network(), or a model whose outputs are features: a module of torch.nn, flax.nnx, flax.linen or "
            "equinox, a Keras model, or a pair (init, apply)."
        )
    features = _Features(known)
    return Representation(Method(features, "init"), Method(features, "apply"), Method(features, "statistics"))


@dataclass(frozen=True)
class _Features:
    """A model as the functions of a Representation."""

    model: Model

    def init(self, key: PRNGKeyArray, x: Shaped[Array, "n ..."]) -> PyTree:
        return initial(self.model, key, x)

    def apply(
        self, params: PyTree, x: Shaped[Array, "n ..."], statistics: Any = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "n d"]:
        return logits(self.model, Settled(params, statistics) if statistics else params, x, key)

    def statistics(self, params: PyTree, x: Shaped[Array, "n ..."]) -> dict[str, Moments]:
        return {} if self.model.moments is None else self.model.moments(params, pixels(x))


def _known(model: Any, classes: int | None) -> Model | None:
    """The Model of a pair or a module; None for anything else."""
    if isinstance(model, Model):
        return model
    if isinstance(model, tuple) and len(model) == 2 and all(callable(f) for f in model):
        return Model(*model)
    # A module can only be there if its library was imported.
    torch, keras, nnx, flax, equinox = map(sys.modules.get, ("torch.nn", "keras", "flax.nnx", "flax.linen", "equinox"))
    if torch is not None and isinstance(model, torch.Module):
        return from_torch(model, classes)
    if keras is not None and isinstance(model, keras.Model):
        return from_keras(model, classes)
    if nnx is not None and isinstance(model, nnx.Module):
        return from_nnx(model, classes)
    if flax is not None and isinstance(model, flax.Module):
        return from_flax(model)
    if equinox is not None and isinstance(model, equinox.Module):
        return from_equinox(model)
    return None

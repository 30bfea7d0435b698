"""Conversion of models of other libraries to a Model."""

import sys
from typing import Any

from bilevax._checks import InputError
from bilevax.nn.equinox import from_equinox
from bilevax.nn.linen import from_flax
from bilevax.nn.model import Model

# Packages whose modules cannot be converted, by the first part of their name; recognised without importing them.
_OTHERS = {
    "torch": "a PyTorch module",
    "keras": "a Keras model",
    "tf_keras": "a Keras model",
    "tensorflow": "a Keras model",
}


def as_model(model: Any, classes: int) -> Model:
    """A Model from any kind of model that a user may pass.

    Args:
        model: a `Model` or any (init, apply) pair, a flax.linen module, an equinox module, or a function
            from the number of classes to a Model, such as `mlp`.
        classes: the number of classes in the data.

    Raises:
        InputError: it is none of these; the dropout of a module cannot be switched on for training.
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
        "function from the number of classes to a Model, such as bilevax.nn.mlp."
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
    """What a model of another library is, found without importing anything; None for anything else."""
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if package in _OTHERS:
            return _OTHERS[package]
        if base.__module__.startswith("flax.nnx"):
            return "a flax.nnx module"
    return None

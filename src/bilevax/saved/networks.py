"""Networks as arrays of parameters, and the code of those of `bilevax.nn` by name."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from sklearn.base import BaseEstimator

from bilevax._checks import InputError
from bilevax.applications.denoising.network import FittedNetwork
from bilevax.nn import networks
from bilevax.nn.adapters import as_model
from bilevax.nn.model import Model, Moments, Settled, initial, params_of

NAMES = (
    "mlp",
    "softmax_regression",
    "softmax_head",
    "lenet5",
    "mnist_network",
    "cifar10_network",
    "svhn_network",
    "six_and_four",
    "wide_resnet",
)


class StoredNetwork(NamedTuple):
    """A network and its parameters for each fold.

    Attributes:
        code: the name of a function of `bilevax.nn` and its arguments; None for another network.
        classes: the number of logits.
        sample: of which only shape and dtype matter.
        leaves: the parameters for each fold, in the order of the tree.
        statistics: for each fold the mean and variance of layers of batch normalisation, by their paths.
    """

    code: dict[str, Any] | None
    classes: int
    sample: Shaped[np.ndarray, "1 ..."]
    leaves: list[list[Shaped[np.ndarray, "..."]]]
    statistics: list[dict[str, list[Shaped[np.ndarray, "..."]]]]


def is_network(model: Any) -> bool:
    """Whether the parameter `model` of an estimator is a network, and not an estimator of scikit-learn or None."""
    return model is not None and not isinstance(model, BaseEstimator)


def code_of(model: Model) -> dict[str, Any] | None:
    """The function of `bilevax.nn`, and its arguments, that make an equal model; None where there is none."""
    owner = getattr(model.init, "owner", None)
    if not dataclasses.is_dataclass(owner):
        return None
    fields = {field.name: getattr(owner, field.name) for field in dataclasses.fields(owner)}
    for name in (fields.get("name"), *NAMES):
        for wanted in (("classes", "widths"), ("classes", "depth", "width"), ("classes",)):
            arguments = {key: fields[key] for key in wanted if key in fields}
            if name in NAMES and len(arguments) == len(wanted) and _made(name, arguments) == model:
                return {"name": name, **arguments}
    return None


def _made(name: str, arguments: dict[str, Any]) -> Model | None:
    try:
        return getattr(networks, name)(**arguments)
    except (TypeError, InputError):
        return None


def model_by(code: dict[str, Any]) -> Model:
    """The model that `code_of` describes."""
    arguments = dict(code)
    name = arguments.pop("name")
    if name not in NAMES:
        raise ValueError(f"there is no network {name!r}")
    return getattr(networks, name)(**arguments)


def stored_network(fitted: FittedNetwork) -> StoredNetwork:
    """A fitted network as arrays."""
    leaves = [[np.asarray(leaf) for leaf in jax.tree.leaves(params_of(v))] for v in fitted.params]
    statistics = [
        {path: [np.asarray(m.mean), np.asarray(m.variance)] for path, m in v.statistics.items()}
        if isinstance(v, Settled)
        else {}
        for v in fitted.params
    ]
    classes = fitted.out_of_sample.shape[1]
    return StoredNetwork(code_of(fitted.model), classes, fitted.sample, leaves, statistics)


def network_of(stored: StoredNetwork, network: Any) -> FittedNetwork:
    """The fitted network that arrays describe.

    Args:
        stored: the arrays.
        network: the network, where its code is not stored.

    Raises:
        InputError: it is needed and not passed, or has other parameters.
    """
    if stored.code is not None:
        model = model_by(stored.code)
    elif network is None:
        raise InputError(
            "load_model: the model is a network whose code is not saved. Pass the network that was fitted, as "
            "load_model(path, network=...)."
        )
    else:
        model = as_model(network, stored.classes)
    start = jax.eval_shape(lambda key: initial(model, key, jnp.asarray(stored.sample)), jax.random.key(0))
    shapes, tree = jax.tree.flatten(start)
    needed = [leaf.shape for leaf in shapes]
    for leaves in stored.leaves:
        if (found := [leaf.shape for leaf in leaves]) != needed:
            raise InputError(
                f"load_model: the network has parameters of the shapes {needed}, and the saved ones have {found}. Pass "
                "the network that was fitted."
            )
    params = [jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in leaves]) for leaves in stored.leaves]
    settled = [
        Settled(v, {path: Moments(jnp.asarray(mean), jnp.asarray(var)) for path, (mean, var) in moments.items()})
        if moments
        else v
        for v, moments in zip(params, stored.statistics, strict=True)
    ]
    return FittedNetwork(np.zeros((0, stored.classes)), model, tuple(settled), stored.sample)

"""Conversion of Keras models."""

import importlib
import pickle
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, first_line, listed
from bilevax.nn.foreign import GivenObject
from bilevax.nn.model import Model, Moments

_OF_NORMS = ("moving_mean", "moving_variance")


def from_keras(model: Any, classes: int | None = None) -> Model:
    """A Model from a Keras model that maps (n, ...) to logits (n, classes).

    Args:
        model: a built `keras.Model`, with Keras on JAX. Its weights are where every start begins, whatever the key; it
            is not changed.
        classes: number of logits that `init` checks; None for any.

    The parameters are a dictionary from the paths of `model.trainable_variables` in the model to arrays, with dots for
    slashes, such as "dense_1.kernel"; so layers with `trainable = False` are frozen. If the last layer has a softmax,
    the logits are what it gets.

    Dropout and other random layers are on during training, by the key of the call; batch normalisation is described at
    `bilevax.nn.settled`. Other variables are held fixed.

    Raises:
        InputError: Keras runs on another backend; the model is not built, or has nothing to train; it ends in an
            activation that is not the identity or a softmax; on use: it cannot be applied to the samples, or changes a
            variable.
    """
    return _Keras(model, classes).model()


def _keras() -> Any:
    """The package keras, which was imported where a model was made."""
    return importlib.import_module("keras")


class _Keras(GivenObject):
    """A Keras model."""

    def __init__(self, model: Any, classes: int | None, names: list[list[str]] | None = None):
        keras = _keras()

        self.module, self.name, self.classes, self.structure = model, type(model).__name__, classes, id(model)
        if keras.backend.backend() != "jax":
            raise InputError(
                f"Keras runs on {keras.backend.backend()}, and must run on JAX: set the environment variable "
                "KERAS_BACKEND=jax before keras is imported."
            )
        if not model.built or not model.variables:
            raise InputError(f"model {self.name} is not built: call it once on some samples, model(x[:1]), first.")
        if not model.trainable_variables:
            raise InputError(f"model {self.name} has no trainable variables: there is nothing to train.")
        self._logits_of_last()
        variables = model.trainable_variables, model.non_trainable_variables
        # Keras may give new names to a copy, whose parameters keep theirs.
        self._names = [_names(model, some) for some in variables] if names is None else names
        trained, others = (zip(*pair, strict=True) for pair in zip(self._names, variables, strict=True))
        self._trained, self._others = dict(trained), dict(others)
        self.params = {path: _value(v) for path, v in self._trained.items()}
        places = {id(v): path for path, v in self._others.items()}
        self._norms = {}
        for layer in _batch_norms(model):
            pair = [places[id(getattr(layer, name))] for name in _OF_NORMS]
            self._norms[pair[0].removesuffix(f".{_OF_NORMS[0]}")] = (layer, pair)
        self.statistics = {
            path: Moments(*(_value(self._others[place]) for place in pair)) for path, (_, pair) in self._norms.items()
        }
        moving = {place for _, pair in self._norms.values() for place in pair}
        self._seeds = [place for place, v in self._others.items() if v.name == "seed_generator_state"]
        self.rest = {place: _value(v) for place, v in self._others.items() if place not in moving}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_names": self._names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _Keras.__init__(self, state["module"], state["classes"], state["_names"])
        vars(self).update(state)

    def _run(
        self,
        params: PyTree,
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None,
        statistics: dict[str, Moments],
        measured: dict[str, Moments] | None,
    ) -> Float[Array, "n classes"]:
        keras = _keras()
        others = dict(self.rest)
        for path, (_, pair) in self._norms.items():
            others |= dict(zip(pair, statistics.get(path, self.statistics[path]), strict=True))
        if key is not None:
            for place, own in zip(self._seeds, jax.random.split(key, max(len(self._seeds), 1)), strict=False):
                others[place] = jax.random.bits(own, (2,), self.rest[place].dtype)
        batch = {path for path in self._norms if path not in statistics}
        with _normalised(self._norms, batch), self._logits_of_last():
            # As `stateless_call`, whose models must themselves take the argument `training`.
            mapping = [(v, params[path]) for path, v in self._trained.items()]
            mapping += [(v, others[place]) for place, v in self._others.items()]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                logits = self.module(x, training=key is not None)
            after = {place: scope.get_current_value(v) for place, v in self._others.items()}
        self._require_fixed(others, after, key is not None)
        if measured is not None:
            measured |= {path: Moments(*(after[place] for place in self._norms[path][1])) for path in batch}
        return logits

    def _require_fixed(self, before: dict[str, Any], after: dict[str, Any], training: bool) -> None:
        free = {place for _, pair in self._norms.values() for place in pair} | (set(self._seeds) if training else set())
        changed = [place for place in before if place not in free and after[place] is not before[place]]
        if changed:
            raise InputError(
                f"model {self.name} changes its variables {listed(changed)} when it is called. A loss of a bilevel "
                "problem has no state: keep such values outside of the model."
            )

    def _logits_of_last(self) -> Any:
        """A context in which the last layer returns its logits; refuses an activation that has none."""
        keras = _keras()

        last = _last_layer(self.module)
        if isinstance(last, keras.layers.Softmax):
            return _replaced(last, "call", lambda inputs, mask=None: inputs)
        activation = getattr(last, "activation", None)
        if activation is keras.activations.softmax:
            return _replaced(last, "activation", keras.activations.linear)
        if activation not in (None, keras.activations.linear):
            raise InputError(
                f"model {self.name} ends in the activation {getattr(activation, '__name__', activation)}, and must "
                "return logits, one for each class. Give its last layer activation=None."
            )
        return nullcontext()

    def to_module(self, params: PyTree, statistics: dict[str, Moments]) -> Any:
        try:
            with warnings.catch_warnings():  # of keras's own calls of NumPy
                warnings.simplefilter("ignore", DeprecationWarning)
                module = pickle.loads(pickle.dumps(self.module))  # as keras saves and loads models
        except Exception as error:
            raise InputError(
                f"model {self.name} cannot be copied by keras ({first_line(error)}) Decorate its class by "
                "keras.saving.register_keras_serializable(), or assign the parameters to its trainable_variables."
            ) from error
        trained = dict(zip(self._trained, module.trainable_variables, strict=False))
        others = dict(zip(self._others, module.non_trainable_variables, strict=False))
        before, after = ([v.shape for v in m.variables] for m in (self.module, module))
        if before != after:
            raise InputError(
                f"model {self.name} has other variables after keras has saved and loaded it. Assign the parameters to "
                "its trainable_variables, in the order of from_keras(model).init(key, x)."
            )
        for path, x in params.items():
            trained[path].assign(x)
        for path, m in statistics.items():
            for place, x in zip(self._norms[path][1], m, strict=True):
                others[place].assign(x)
        return module


def _names(model: Any, variables: list[Any]) -> list[str]:
    """The paths of variables in a model, with dots; of equal ones the later are numbered."""
    found: list[str] = []
    for v in variables:
        path = base = v.path.removeprefix(f"{model.name}/").replace("/", ".")
        count = 1
        while path in found:
            path, count = f"{base}_{count}", count + 1
        found.append(path)
    return found


def _value(variable: Any) -> Array:
    return jnp.asarray(np.asarray(variable.value))


def _layers(model: Any) -> list[Any]:
    return list(model._flatten_layers(include_self=False))


def _batch_norms(model: Any) -> list[Any]:
    """Layers of batch normalisation that are trained: others keep their statistics, as always in Keras."""
    keras = _keras()

    return [x for x in _layers(model) if isinstance(x, keras.layers.BatchNormalization) and x.trainable]


def _last_layer(model: Any) -> Any:
    """The layer that makes the output, as far as it is known."""
    keras = _keras()

    while isinstance(model, keras.Model) and model.layers:
        operation = getattr(getattr(model, "output", None), "_keras_history", None)
        model = operation.operation if operation is not None else model.layers[-1]
    return model


@contextmanager
def _normalised(norms: dict[str, Any], batch: set[str]) -> Iterator[None]:
    """Layers of batch normalisation that use the batch or their statistics, whatever the mode of the call."""
    with ExitStack() as stack:
        for path, (layer, _) in norms.items():
            stack.enter_context(_replaced(layer, "call", _in_mode(layer.call, path in batch)))
            stack.enter_context(_replaced(layer, "momentum", 0.0))  # an update leaves the moments of the batch
        yield


def _in_mode(call: Any, training: bool) -> Any:
    def one(inputs: Any, training: Any = None, mask: Any = None, mode: bool = training) -> Any:
        return call(inputs, training=mode, mask=mask)

    return one


@contextmanager
def _replaced(layer: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one layer, exchanged and put back."""
    own, before = name in vars(layer), vars(layer).get(name)
    object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        if own:
            object.__setattr__(layer, name, before)
        else:
            object.__delattr__(layer, name)

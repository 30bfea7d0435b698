"""A flax.linen module as a Model."""

import inspect
from typing import Any

import jax

from bilevax._checks import InputError, PyTree, first_line
from bilevax.nn.foreign import ForeignModule
from bilevax.nn.model import Model, model_of

# How flax's modules name the argument, or the field, that says whether they are training.
_TRAINING = ("train", "training", "is_training", "is_train")
_PREDICTING = ("deterministic", "use_running_average", "inference", "is_eval", "eval_mode", "evaluating")


def from_flax(module: Any) -> Model:
    """A Model from a flax.linen module that maps (n, ...) to logits (n, classes).

    If the module's `__call__`, or the module itself as a field, has an argument `train`, `training`, `is_training` or
    `is_train` (or `deterministic`, `use_running_average`, `inference`, `is_eval`, `eval_mode`, `evaluating`), it is
    True (False) while training, where the key feeds the "dropout" stream.

    Raises:
        InputError: when it is initialised, if it has variables besides "params" (batch statistics, say), if its
            dropout stays off while training or on when predicting, or if it cannot be called.
    """
    return model_of(_Flax(module))


class _Flax(ForeignModule):
    """A flax.linen module."""

    def _in_mode(self, training: bool) -> tuple[Any, dict[str, bool]]:
        """The module, and the arguments of its call, while training or not."""
        options = dict.fromkeys(_TRAINING, training) | dict.fromkeys(_PREDICTING, not training)
        parameters = inspect.signature(type(self.module).__call__).parameters
        arguments = {name: value for name, value in options.items() if name in parameters}
        own = set(self.module.__dataclass_fields__) - set(parameters)
        fields = {name: value for name, value in options.items() if name in own}
        return self.module.clone(**fields) if fields else self.module, arguments

    def init(self, key: Any, x: Any) -> PyTree:
        name = type(self.module).__name__
        module, arguments = self._in_mode(training=False)
        # The stream is there so that dropout which is on when predicting is found below, and named.
        try:
            variables = module.init({"params": key, "dropout": key}, x, **arguments)
        except Exception as error:
            raise InputError(f"model {name} cannot be initialised: {first_line(error)}") from error
        others = sorted(set(variables) - {"params"})
        if others:
            raise InputError(
                f"model {name} keeps {', '.join(others)} besides its parameters, which a bilevel "
                "problem cannot carry. Use layers without running statistics, such as LayerNorm or GroupNorm."
            )
        params = variables.get("params", {})
        self._check_dropout(params, x)
        return params

    def _check_dropout(self, params: PyTree, x: Any) -> None:
        """Refuse dropout that does not follow the mode: it would be off while training, or on when predicting."""
        name, known = type(self.module).__name__, ", ".join((*_TRAINING[:3], *_PREDICTING[:2]))
        for training, mode in ((True, "off while training"), (False, "on when predicting")):
            try:
                layers = self._dropout_layers(params, x, training)
            except Exception as error:
                raise InputError(f"model {name} cannot be applied: {first_line(error)}") from error
            if any(deterministic is training for deterministic in layers):
                raise InputError(
                    f"model {name} has dropout that stays {mode}: no argument of its __call__, nor a field of it, is "
                    f"known to switch it. Name it one of {known}."
                )

    def _dropout_layers(self, params: PyTree, x: Any, training: bool) -> list[bool]:
        """Of each layer with dropout whether it is off, in one pass in which nothing is computed."""
        import flax.linen as nn

        found: list[bool] = []

        def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            plain = isinstance(layer, nn.Dropout)
            rate = layer.rate if plain else getattr(layer, "dropout_rate", 0)
            if context.method_name == "__call__" and hasattr(layer, "deterministic") and rate:
                mode = kwargs.get("deterministic", args[1] if plain and len(args) > 1 else None)
                found.append(bool(layer.deterministic if mode is None else mode))
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            jax.eval_shape(lambda params, x: self._run(params, x, jax.random.key(0), training), params, x)
        return found

    def _run(self, params: PyTree, x: Any, key: Any, training: bool) -> Any:
        module, arguments = self._in_mode(training)
        return module.apply({"params": params}, x, rngs=None if key is None else {"dropout": key}, **arguments)

    def apply(self, params: PyTree, x: Any, key: Any = None) -> Any:
        return self._run(params, x, key, key is not None)

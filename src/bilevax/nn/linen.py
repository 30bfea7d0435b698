"""Conversion of flax.linen modules."""

import inspect
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, first_line
from bilevax.nn.foreign import ForeignModule
from bilevax.nn.model import Model, model_of

# Common names of the argument or field of a flax module that switches between training and prediction.
_TRAINING = ("train", "training", "is_training", "is_train")
_PREDICTING = ("deterministic", "use_running_average", "inference", "is_eval", "eval_mode", "evaluating")


def from_flax(module: Any) -> Model:
    """A Model from a flax.linen module that maps (n, ...) to logits (n, classes).

    An argument of `__call__` or a field of the module named `train`, `training`, `is_training` or `is_train` is True
    during training; one named `deterministic`, `use_running_average`, `inference`, `is_eval`, `eval_mode` or
    `evaluating` is False. In training the key feeds the "dropout" stream.

    Raises:
        InputError: at initialisation, if the module has variables other than "params" (such as batch statistics), if
            its dropout stays off in training or on in predictions, or if it cannot be called.
    """
    return model_of(_Flax(module))


class _Flax(ForeignModule):
    """A flax.linen module."""

    def _in_mode(self, training: bool) -> tuple[Any, dict[str, bool]]:
        """The module and the arguments of its call for training or prediction."""
        options = dict.fromkeys(_TRAINING, training) | dict.fromkeys(_PREDICTING, not training)
        parameters = inspect.signature(type(self.module).__call__).parameters
        arguments = {name: value for name, value in options.items() if name in parameters}
        own = set(self.module.__dataclass_fields__) - set(parameters)
        fields = {name: value for name, value in options.items() if name in own}
        return self.module.clone(**fields) if fields else self.module, arguments

    def init(self, key: PRNGKeyArray, x: Shaped[Array, "n ..."]) -> PyTree:
        name = type(self.module).__name__
        module, arguments = self._in_mode(training=False)
        # With the stream, dropout that is on in predictions is found by the check below instead of failing here.
        try:
            variables = module.init({"params": key, "dropout": key}, x, **arguments)
        except Exception as error:
            raise InputError(f"model {name} cannot be initialised: {first_line(error)}") from error
        others = sorted(set(variables) - {"params"})
        if others:
            raise InputError(
                f"model {name} has the variables {', '.join(others)} in addition to its parameters, which a bilevel "
                "problem cannot carry. Use layers without running statistics, such as LayerNorm or GroupNorm."
            )
        params = variables.get("params", {})
        self._check_dropout(params, x)
        return params

    def _check_dropout(self, params: PyTree, x: Shaped[Array, "n ..."]) -> None:
        """Refuse dropout that does not follow the mode."""
        name, known = type(self.module).__name__, ", ".join((*_TRAINING[:3], *_PREDICTING[:2]))
        for training, mode in ((True, "off in training"), (False, "on in predictions")):
            try:
                layers = self._dropout_layers(params, x, training)
            except Exception as error:
                raise InputError(f"model {name} cannot be applied: {first_line(error)}") from error
            if any(deterministic is training for deterministic in layers):
                raise InputError(
                    f"model {name} has dropout that stays {mode}: neither an argument of its __call__ nor a field "
                    f"is known to switch it. Name one of them {known}."
                )

    def _dropout_layers(self, params: PyTree, x: Shaped[Array, "n ..."], training: bool) -> list[bool]:
        """For each layer with dropout whether it is off, found by an abstract evaluation."""
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

    def _run(
        self, params: PyTree, x: Shaped[Array, "n ..."], key: PRNGKeyArray | None, training: bool
    ) -> Float[Array, "n classes"]:
        module, arguments = self._in_mode(training)
        return module.apply({"params": params}, x, rngs=None if key is None else {"dropout": key}, **arguments)

    def apply(
        self, params: PyTree, x: Shaped[Array, "n ..."], key: PRNGKeyArray | None = None
    ) -> Float[Array, "n classes"]:
        return self._run(params, x, key, key is not None)

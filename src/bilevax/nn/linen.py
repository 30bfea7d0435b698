"""Conversion of flax.linen modules."""

import inspect
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, first_line
from bilevax.nn.foreign import ForeignModule
from bilevax.nn.model import Method, Model, Moments, model_of

# Common names of the argument or field of a flax module that switches between training and prediction.
_TRAINING = ("train", "training", "is_training", "is_train")
_NAMES = ("mean", "var")  # of the variables of nn.BatchNorm, in the order of Moments
_PREDICTING = ("deterministic", "use_running_average", "inference", "is_eval", "eval_mode", "evaluating")


def from_flax(module: Any) -> Model:
    """A Model from a flax.linen module that maps (n, ...) to logits (n, classes).

    An argument of `__call__` or a field of the module named `train`, `training`, `is_training` or `is_train` is True
    during training; one named `deterministic`, `use_running_average`, `inference`, `is_eval`, `eval_mode` or
    `evaluating` is False. In training the key feeds the "dropout" stream. Batch normalisation (`nn.BatchNorm`) does not
    follow these names; it is described at `bilevax.nn.settled`.

    Raises:
        InputError: at initialisation, if the module has variables other than "params" and those of `nn.BatchNorm`, if
            its dropout stays off in training or on in predictions, or if it cannot be called.
    """
    network = _Flax(module)
    return model_of(network)._replace(moments=Method(network, "moments"), to_module=Method(network, "to_module"))


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
        others = sorted(set(variables) - {"params", "batch_stats"})
        if others:
            raise InputError(
                f"model {name} has the variables {', '.join(others)} in addition to its parameters, which a bilevel "
                "problem cannot carry. Use layers without state."
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
        self,
        params: PyTree,
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None,
        training: bool,
        statistics: dict[str, Moments] | None = None,
    ) -> tuple[Float[Array, "n classes"], dict[str, Moments]]:
        """The logits, and the moments of the layers that `statistics` lacks."""
        import flax.linen as nn

        held, layers = {} if statistics is None else statistics, []

        def normalise(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
                return call(*args, **kwargs)
            path = layer.path
            layers.append(path)
            # The layer is a copy that this call made. Without momentum an update leaves the moments of the batch.
            object.__setattr__(layer, "momentum", 0.0)
            object.__setattr__(layer, "use_running_average", None)
            return call(args[0], **{**kwargs, "use_running_average": ".".join(path) in held})

        module, arguments = self._in_mode(training)
        variables = {"params": params, "batch_stats": _nested(held)}
        rngs = None if key is None else {"dropout": key}
        with nn.intercept_methods(normalise):
            logits, updated = module.apply(variables, x, rngs=rngs, mutable=["batch_stats"], **arguments)
        measured = {}
        for path in layers:
            if ".".join(path) not in held:
                measured[".".join(path)] = Moments(*(_at(updated["batch_stats"], (*path, name)) for name in _NAMES))
        return logits, measured

    def apply(
        self,
        params: PyTree,
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None = None,
        statistics: dict[str, Moments] | None = None,
    ) -> Float[Array, "n classes"]:
        return self._run(params, x, key, key is not None, statistics)[0]

    def moments(
        self, params: PyTree, x: Shaped[Array, "n ..."], statistics: dict[str, Moments] | None = None
    ) -> dict[str, Moments]:
        return self._run(params, x, None, False, statistics)[1]

    def to_module(self, params: PyTree, statistics: dict[str, Moments]) -> Any:
        return {"params": params} | ({"batch_stats": _nested(statistics)} if statistics else {})


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _nested(statistics: dict[str, Moments]) -> dict[str, Any]:
    """Statistics as flax holds them."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(
        {(*path.split("."), name): x for path, m in statistics.items() for name, x in zip(_NAMES, m, strict=True)}
    )

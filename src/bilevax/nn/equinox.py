"""Conversion of equinox modules."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError
from bilevax.nn.foreign import ForeignModule
from bilevax.nn.model import Method, Model, Moments, Settled, model_of


def from_equinox(module: Any) -> Model:
    """A Model from an equinox module that maps one example to logits (classes,); it is vmapped over samples.

    Args:
        module: an equinox module, whose parameters are the initial ones for every key; or a function key -> module,
            which draws new ones.

    The floating arrays of the module are the parameters; everything else is held fixed. Dropout is on during training
    and off for predictions (`equinox.nn.inference_mode`); the module's `__call__` must take the key for it.

    Raises:
        InputError: the module has state (`equinox.nn.StatefulLayer`), or dropout but no argument `key`.
    """
    network = _Equinox(module)
    network.check()
    return model_of(network)._replace(
        given=Method(network, "given") if network.is_module else None, to_module=Method(network, "to_module")
    )


class _Equinox(ForeignModule):
    """An equinox module, or a function that makes one from a key."""

    @functools.cached_property
    def is_module(self) -> bool:
        import equinox

        return isinstance(self.module, equinox.Module)

    @functools.cached_property
    def _example(self) -> Any:
        with jax.ensure_compile_time_eval():  # it outlives the trace that first needs it
            return self.module if self.is_module else self.module(jax.random.key(0))

    @functools.cached_property
    def _static(self) -> Any:
        import equinox

        return equinox.partition(self._example, equinox.is_inexact_array)[1]

    @property
    def _keyed(self) -> bool:
        return "key" in inspect.signature(type(self._example).__call__).parameters

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def check(self) -> None:
        import equinox

        if isinstance(self._example, tuple):
            raise InputError(
                "model returns a pair (module, state): layers with a state, such as BatchNorm, cannot be carried by a "
                "bilevel problem. Use layers without running statistics, such as LayerNorm or GroupNorm."
            )
        if not isinstance(self._example, equinox.Module):
            raise InputError(f"model returns {self._example!r} for a key, and must return an equinox module.")
        layers = jax.tree.leaves(self._example, is_leaf=lambda x: isinstance(x, equinox.nn.Dropout))
        if not self._keyed and any(isinstance(x, equinox.nn.Dropout) and x.p != 0 for x in layers):
            raise InputError(
                f"model {type(self._example).__name__} has dropout, and its __call__ takes no key for it. "
                "Write __call__(self, x, key=None), and pass the key to the dropout layers."
            )

    def init(self, key: PRNGKeyArray, x: Shaped[Array, "n ..."]) -> PyTree:
        import equinox

        module = self.module if self.is_module else self.module(key)
        return equinox.partition(module, equinox.is_inexact_array)[0]

    def given(self) -> Settled:
        import equinox

        return Settled(equinox.partition(self.module, equinox.is_inexact_array)[0], {})

    def to_module(self, params: PyTree, statistics: dict[str, Moments]) -> Any:
        import equinox

        return equinox.combine(params, self._static)

    def apply(
        self, params: PyTree, x: Shaped[Array, "n ..."], key: PRNGKeyArray | None = None
    ) -> Float[Array, "n classes"]:
        import equinox

        whole = equinox.nn.inference_mode(equinox.combine(params, self._static), key is None)
        if key is None or not self._keyed:
            return jax.vmap(whole)(x)
        return jax.vmap(lambda x, key: whole(x, key=key))(x, jax.random.split(key, jnp.shape(x)[0]))

"""Conversion of flax.nnx modules."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, listed
from bilevax.nn.foreign import GivenModule
from bilevax.nn.model import Model, Moments


def from_nnx(module: Any, classes: int | None = None) -> Model:
    """A Model from a flax.nnx module that maps (n, ...) to logits (n, classes).

    Args:
        module: its weights (`nnx.Param`) are where every start begins, whatever the key. It is not changed.
        classes: number of logits that `init` checks; None for any.

    The parameters are a dictionary as of `nnx.to_pure_dict`; floating samples are converted to their type. Dropout is
    on during training, by the key of the call; in predictions the module's random streams always start from the same
    state. Batch normalisation is described at `bilevax.nn.settled`. Other variables are held fixed.

    Raises:
        InputError: the module has other statistics than those of `nnx.BatchNorm`, or no parameters; on use: it cannot
            be applied to the samples, or changes a variable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from bilevax.nn import from_nnx
        >>> model = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> x = jnp.ones((5, 2))
        >>> params = model.init(jax.random.key(0), x)
        >>> sorted(params), model.apply(params, x).shape
        (['bias', 'kernel'], (5, 3))
    """
    return _Nnx(module, classes).model()


class _Nnx(GivenModule):
    """A flax.nnx module."""

    def __init__(self, module: Any, classes: int | None):
        from flax import nnx

        self.name, self.classes = type(module).__name__, classes
        self.structure, params, rest = nnx.split(module, nnx.Param, ...)
        self.params, self.rest = nnx.to_pure_dict(params), rest
        if not jax.tree.leaves(self.params):
            raise InputError(f"module {self.name} has no parameters (nnx.Param): there is nothing to train.")
        layers = _batch_norms(module)
        self.statistics = {path: Moments(layer.mean[...], layer.var[...]) for path, layer in layers.items()}
        known = {id(x) for layer in layers.values() for x in (layer.mean, layer.var)}
        others = [
            ".".join(map(str, path))
            for path, x in nnx.iter_graph(module)
            if isinstance(x, nnx.BatchStat) and id(x) not in known
        ]
        if others:
            raise InputError(
                f"module {self.name} has the statistics {listed(others)}, which are not those of an nnx.BatchNorm, and "
                "which a bilevel problem cannot carry. Use layers without running statistics, such as nnx.LayerNorm."
            )

    def _run(
        self,
        params: PyTree,
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None,
        statistics: dict[str, Moments],
        measured: dict[str, Moments] | None,
    ) -> Float[Array, "n classes"]:
        whole = self._merged(params)
        whole.eval() if key is None else whole.train()
        layers = _batch_norms(whole)
        for path, layer in layers.items():
            layer.use_running_average = path in statistics
            layer.momentum = 0.0  # an update then leaves the moments of this batch
            if path in statistics:
                layer.mean[...], layer.var[...] = statistics[path]
        if key is not None:
            _reseed(whole, key)
        before = _held(whole)
        logits = whole(x)
        changed = [path for path, value in _held(whole).items() if before.get(path) is not value]
        if changed:
            raise InputError(
                f"module {self.name} changes its variables {listed(changed)} when it is called. A loss of a bilevel "
                "problem has no state: keep such values outside of the module."
            )
        if measured is not None:
            for path, layer in layers.items():
                if path not in statistics:
                    measured[path] = Moments(layer.mean[...], layer.var[...])
        return logits

    def _merged(self, params: PyTree) -> Any:
        from flax import nnx

        return nnx.merge(self.structure, nnx.State(params), self.rest, copy=True)

    def to_module(self, params: PyTree, statistics: dict[str, Moments]) -> Any:
        whole = self._merged(params)
        for path, layer in _batch_norms(whole).items():
            layer.mean[...], layer.var[...] = statistics[path]
        return whole


def _batch_norms(module: Any) -> dict[str, Any]:
    """The layers of batch normalisation by their paths."""
    from flax import nnx

    return {".".join(map(str, path)): m for path, m in nnx.iter_modules(module) if isinstance(m, nnx.BatchNorm)}


def _reseed(module: Any, key: PRNGKeyArray) -> None:
    """Give each random stream of a module a key of its own."""
    from flax import nnx

    streams = [x for _, x in nnx.iter_graph(module) if isinstance(x, nnx.RngStream)]
    for stream, own in zip(streams, jax.random.split(key, len(streams)), strict=True):
        stream.key[...], stream.count[...] = own, jnp.zeros_like(stream.count[...])


def _held(module: Any) -> dict[str, Any]:
    """The variables that a call must not change."""
    from flax import nnx

    # Recurrent layers draw a key for their start, which is zero, in predictions too.
    free = (nnx.BatchStat, nnx.Intermediate, nnx.RngState)
    found = ((path, x) for path, x in nnx.iter_graph(module) if isinstance(x, nnx.Variable) and not isinstance(x, free))
    return {".".join(map(str, path)): x.get_value() for path, x in found}

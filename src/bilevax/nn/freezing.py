"""Models of which some weights are held fixed."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, described, listed
from bilevax.nn.model import Method, Model, Moments, Settled, logits, params_of


def freeze(
    model: Model, frozen: str | Iterable[str] | Callable[[str], bool], params: PyTree | Settled | None = None
) -> Model:
    """A model whose parameters are those that are not frozen, as a dictionary from paths to arrays.

    Args:
        model: any Model.
        frozen: paths of parameters or of layers, which hold for all below; or a function from the path of a parameter
            to whether it is frozen. A path is the keys joined by dots: "conv1", "layer1.0.conv1.weight".
        params: all parameters; None for those that a module came with.

    The new model starts from `params` whatever the key. A layer of batch normalisation whose parameters are all frozen
    keeps its running statistics (as with `layer.trainable = False` in Keras), also in training; those of `params` must
    then be `Settled`. Large frozen arrays are arguments of the compiled programs.

    Raises:
        InputError: a path that the model does not have; nothing or all is frozen; params is needed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import freeze, mlp
        >>> network, x, key = mlp(3, widths=(8,)), jnp.ones((5, 2)), jax.random.key(0)
        >>> head = freeze(network, "0", network.init(key, x))
        >>> sorted(head.init(key, x))
        ['1.bias', '1.weight']
    """
    if params is None and model.given is None:
        raise InputError("freeze: the model draws its start. Pass params, the weights that are held fixed.")
    whole = model.given() if params is None else params  # pyright: ignore[reportOptionalCall]
    statistics = whole.statistics if isinstance(whole, Settled) else {}
    leaves, structure = jax.tree_util.tree_flatten_with_path(params_of(whole))
    values = {_path(keys): jnp.asarray(x) for keys, x in leaves}
    names = _chosen(frozen, values, statistics)
    held = {layer: m for layer, m in statistics.items() if _is_held(layer, values, names)}
    network = _Partly(model, structure, values, names, held, statistics)
    return Model(
        Method(network, "init"),
        Method(network, "apply"),
        Method(network, "given"),
        None if model.moments is None else Method(network, "moments"),
        None if model.to_module is None else Method(network, "to_module"),
    )


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def _below(path: str, layer: str) -> bool:
    return path == layer or path.startswith(f"{layer}.")


def _chosen(frozen: Any, values: dict[str, Any], statistics: dict[str, Moments]) -> set[str]:
    """The paths of the frozen parameters, and of frozen layers that have statistics only."""
    known = [*values, *(layer for layer in statistics if not any(_below(path, layer) for path in values))]
    if callable(frozen):
        chosen = {path for path in known if frozen(path)}
    else:
        try:
            paths = [frozen] if isinstance(frozen, str) else list(frozen)
        except TypeError:
            raise InputError(
                f"freeze: frozen is {described(frozen)}, and must be paths or a function of a path."
            ) from None
        unknown = [p for p in paths if not any(_below(path, str(p)) for path in known)]
        if unknown:
            raise InputError(f"freeze: the model has no parameters at {listed(unknown)}. It has {listed(known)}.")
        chosen = {path for path in known if any(_below(path, str(p)) for p in paths)}
    if not chosen:
        raise InputError(f"freeze: frozen chooses none of the parameters {listed(values)}.")
    if chosen.issuperset(values):
        raise InputError("freeze: all parameters are frozen. Leave some to be trained.")
    return chosen


def _is_held(layer: str, values: dict[str, Any], frozen: set[str]) -> bool:
    """Whether a layer of batch normalisation keeps its statistics."""
    own = [path for path in values if _below(path, layer)]
    return all(path in frozen for path in own) if own else layer in frozen


class _Partly:
    """A model of which some parameters are fixed; equal to itself alone."""

    def __init__(
        self,
        model: Model,
        structure: Any,
        values: dict[str, Any],
        frozen: set[str],
        held: dict[str, Moments],
        statistics: dict[str, Moments],
    ):
        self._model, self._structure, self._order = model, structure, list(values)
        self._start = {path: x for path, x in values.items() if path not in frozen}
        self._frozen = {path: x for path, x in values.items() if path in frozen}
        self._held, self._given = held, {k: m for k, m in statistics.items() if k not in held}

    def _whole(self, params: dict[str, Any]) -> PyTree:
        every = self._frozen | params
        return jax.tree.unflatten(self._structure, [every[path] for path in self._order])

    def init(self, key: PRNGKeyArray, x: Shaped[Array, "n ..."]) -> dict[str, Float[Array, "..."]]:
        self._model.init(key, x)  # for its checks
        return self._start

    def apply(
        self,
        params: dict[str, Float[Array, "..."]],
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None = None,
        statistics: dict[str, Moments] | None = None,
    ) -> Float[Array, "n classes"]:
        used = self._held | ({} if statistics is None else statistics)
        if not used:
            return logits(self._model, self._whole(params), x, key)
        return self._model.apply(self._whole(params), x, key=key, statistics=used)

    def moments(
        self, params: dict[str, Float[Array, "..."]], x: Shaped[Array, "n ..."], statistics: Any = None
    ) -> dict[str, Moments]:
        assert self._model.moments is not None
        used = self._held | ({} if statistics is None else statistics)
        return self._model.moments(self._whole(params), x, used)

    def given(self) -> Settled:
        return Settled(self._start, self._given)

    def to_module(self, params: dict[str, Float[Array, "..."]], statistics: dict[str, Moments]) -> Any:
        assert self._model.to_module is not None
        return self._model.to_module(self._whole(params), self._held | statistics)

"""The base of the conversions from other libraries."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, first_line
from bilevax.nn.model import Method, Model, Moments, Settled


@dataclass(frozen=True, eq=False)
class ForeignModule:
    """A module of another library as a value: two are equal if their modules are hashable and equal."""

    module: Any

    def _hashable(self) -> bool:
        try:
            hash(self.module)
        except TypeError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        if other.module is self.module:
            return True
        return self._hashable() and other._hashable() and bool(self.module == other.module)

    def __hash__(self) -> int:
        return hash(self.module) if self._hashable() else id(self.module)


class GivenModule:
    """A module that holds its weights, which were read once and are where every start begins.

    Subclasses set `name`, `structure` (hashable; equal for modules that are the same function of their weights),
    `params`, `statistics` and `rest` (other arrays of the module, held fixed) in their constructor, and define `_run`.
    Two are equal if structure and arrays are: a converted module is compiled once, and again after its weights changed.
    """

    name: str
    structure: Any
    params: PyTree
    statistics: dict[str, Moments]
    rest: PyTree
    classes: int | None

    def _run(
        self,
        params: PyTree,
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None,
        statistics: dict[str, Moments],
        measured: dict[str, Moments] | None,
    ) -> Float[Array, "n classes"]:
        """The logits of x; into `measured` go the moments of the layers that `statistics` lacks."""
        raise NotImplementedError

    def init(self, key: PRNGKeyArray, x: Shaped[Array, "n ..."]) -> PyTree:
        """The weights of the module, whatever the key; refuses samples and classes that do not fit."""
        shape, dtype = jnp.shape(x)[1:], jnp.result_type(x)
        if (shape, dtype) not in self._fitting:
            self._check(shape, dtype)
            self._fitting.add((shape, dtype))
        return self.params

    @functools.cached_property
    def _fitting(self) -> set[Any]:
        """Shapes and types of samples that were checked."""
        return set()

    def _check(self, sample: tuple[int, ...], dtype: Any) -> None:
        two = jax.ShapeDtypeStruct((2, *sample), dtype)
        shape = jax.eval_shape(lambda x: self.apply(self.params, x, statistics=self.statistics), two)
        found = getattr(shape, "shape", None)
        if found is None or len(found) != 2 or found[0] != 2:
            raise InputError(
                f"module {self.name} returns {_output(shape)} for 2 samples of shape {sample}, and must "
                "return logits of shape (2, classes)."
            )
        if self.classes is not None and found[1] != self.classes:
            raise InputError(
                f"module {self.name} returns {found[1]} logits, and there are {self.classes} classes. Replace its last "
                f"layer by one of width {self.classes}."
            )

    def apply(
        self,
        params: PyTree,
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None = None,
        statistics: dict[str, Moments] | None = None,
    ) -> Float[Array, "n classes"]:
        """As `Model.apply`."""
        held = {} if statistics is None else statistics
        with self._sentences(jnp.shape(x)):
            return self._run(params, _in_precision(x, params), key, held, None)

    def moments(
        self, params: PyTree, x: Shaped[Array, "n ..."], statistics: dict[str, Moments] | None = None
    ) -> dict[str, Moments]:
        """As `Model.moments`."""
        measured: dict[str, Moments] = {}
        held = {} if statistics is None else statistics
        with self._sentences(jnp.shape(x)):
            self._run(params, _in_precision(x, params), None, held, measured)
        return measured

    def given(self) -> Settled:
        """As `Model.given`."""
        return Settled(self.params, self.statistics)

    def to_module(self, params: PyTree, statistics: dict[str, Moments]) -> Any:
        """As `Model.to_module`."""
        raise NotImplementedError

    def model(self) -> Model:
        """The Model of this module."""
        moments = Method(self, "moments") if self.statistics else None
        methods = (Method(self, name) for name in ("init", "apply", "given"))
        return Model(*methods, moments=moments, to_module=Method(self, "to_module"))

    @contextmanager
    def _sentences(self, shape: tuple[int, ...]) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"module {self.name} cannot be applied to samples of shape {shape}: {self._reason(error)}"
            ) from error

    def _reason(self, error: Exception) -> str:
        return first_line(error)

    def _arrays(self) -> list[Any]:
        return jax.tree.leaves((self.params, self.statistics, self.rest))

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        if type(other) is not type(self) or not isinstance(other, GivenModule):
            return NotImplemented
        if self.structure != other.structure or self.classes != other.classes:
            return False
        mine, theirs = self._arrays(), other._arrays()
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.classes))


class GivenObject(GivenModule):
    """A module that is kept as the user's object; a copy of this value is made from a copy of the object."""

    module: Any

    def __init__(self, module: Any, classes: int | None):
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("module", "classes", "params", "statistics", "rest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, state["module"], state["classes"])
        vars(self).update(state)


def _in_precision(x: Shaped[Array, "n ..."], params: PyTree) -> Shaped[Array, "n ..."]:
    """Floats in the type of the parameters, anything else unchanged."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(next(p.dtype for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.floating)))


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _output(shape: Any) -> str:
    found = getattr(shape, "shape", None)
    return f"an output of shape {found}" if found is not None else f"a {type(shape).__name__}"


def layer_of(path: str, layers: Any) -> str | None:
    """The layer, of several paths, that a parameter's path is part of."""
    return next((layer for layer in layers if path.startswith(f"{layer}.")), None)

"""A bilevel problem, stated by functions alone.

    min over u of f(u, v*(u))  s.t.  h(u, v*(u)) <= 0 or = 0,  v*(u) = argmin over v of g(u, v)

`Problem` holds f, g, h and the sets u and v live in; it holds no data, no iterates, no options.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from bilevax._arrays import check_finite, check_variable, require_arrays
from bilevax._checks import InputError, described, first_line, require_function
from bilevax._indices import first_outside


class Batch(NamedTuple):
    """The data of one step: `upper` is handed to f and h, `lower` to g. Any pytrees."""

    upper: PyTree = None
    lower: PyTree = None


class PerMove(NamedTuple):
    """A lower batch whose leaves lead with an axis of length `lower_steps`: fresh data per move."""

    data: PyTree


class PartAndWhole(NamedTuple):
    """A minibatch, and all samples of its data set, for solvers that need both."""

    part: PyTree
    whole: PyTree


def data_of_loss(data: PyTree) -> PyTree:
    """What a loss is called with: the first entry of a PerMove, the minibatch of a PartAndWhole, other data as is."""
    if isinstance(data, PartAndWhole):
        return data.part
    return jax.tree.map(lambda x: x[0], data.data) if isinstance(data, PerMove) else data


@dataclass(frozen=True)
class Inequality:
    """The constraint `function(u, v, data) <= 0`, entry by entry, of any shape; data is that of its level."""

    function: Callable[..., Any]

    def __post_init__(self) -> None:
        require_loss("Inequality", "function", self.function)


@dataclass(frozen=True)
class Equality:
    """The constraint `function(u, v, data) = 0`, entry by entry, of any shape; data is that of its level."""

    function: Callable[..., Any]

    def __post_init__(self) -> None:
        require_loss("Equality", "function", self.function)


def identity(x: PyTree) -> PyTree:
    """The projection onto the whole space."""
    return x


def depends_on_u(project: Callable[..., Any]) -> bool:
    """Whether a projection is called as (u, v): it has two parameters without a default."""
    return len(_needed(project)) == 2


def _needed(function: Callable[..., Any]) -> list[str]:
    """The names of the parameters by position that have no default; none for a builtin."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in places and p.default is p.empty]


def require_lower_projection(owner: str, name: str, project: Any) -> None:
    """Refuse a projection onto the set of v that can be called neither as (v) nor as (u, v)."""
    require_function(owner, name, project, "v -> v, or (u, v) -> v")
    needed = _needed(project)
    if len(needed) > 2 or needed == ["v", "u"]:
        raise InputError(
            f"{owner}: {name} takes ({', '.join(needed)}), and is called as (v), or as (u, v) for a set that depends "
            "on u. Write `lambda v: ...` or `lambda u, v: ...`, and bind other arguments there."
        )


def require_loss(owner: str, name: str, function: Any, random: bool | None = None, declared: str = "") -> None:
    """Refuse a loss or constraint that cannot be called as (u, v, data), or as (u, v, data, key=key) if it is random.

    Args:
        owner, name: what it is an argument of, and which.
        function: the loss or constraint.
        random: whether it is declared random; None for a constraint, which cannot be.
        declared: the argument by which it is.
    """
    called = "(u, v, data, key=key)" if random else "(u, v, data)"
    require_function(owner, name, function, called)
    if isinstance(function, type):
        raise InputError(f"{owner}: {name} is the class {function.__name__}. Pass an instance of it, or a function.")
    if random not in (None, False, True):
        raise InputError(f"{owner}: {declared} is {described(random)}, and must be True or False.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return
    names, data = list(signature.parameters), object()
    takes = f"{owner}: {name} takes ({', '.join(names)})"
    if not random and "key" in names:
        remedy = f"pass {declared}=True and write `lambda u, v, data, *, key: ...`." if declared else "it gets no key."
        raise InputError(f"{takes}, and is called as (u, v, data); {remedy}")
    try:
        bound = signature.bind(None, None, data, **({"key": None} if random else {})).arguments
    except TypeError:
        form = "`lambda u, v, data, *, key: ...`" if random else "`lambda u, v, data: ...`"
        bind = ", and bind other arguments by functools.partial" if len(names) > len(called.split(",")) else ""
        leave = f", or leave out {declared}=True" if random else ""
        raise InputError(f"{takes}, and is called as {called}; write {form}{bind or leave}.") from None
    for p in signature.parameters.values():
        if bound.get(p.name) is data and p.default is not p.empty:
            raise InputError(
                f"{owner}: {name} has the parameter {p.name}={described(p.default)}, which would get the data in place "
                f"of its default; if it is a setting, write `lambda u, v, data, *, {p.name}=...: ...`, and if it is "
                "the data, leave out its default."
            )


@dataclass(frozen=True)
class Problem:
    """A bilevel problem (Mehra and Hamm 2021, eqs. 6 and 7).

    Args:
        upper_loss: f(u, v, batch.upper) -> floating scalar. Pure.
        lower_loss: g(u, v, batch.lower) -> floating scalar. Pure.
        constraints: `Inequality` and `Equality` conditions on (u, v*(u)).
        project_upper: maps u onto the set it lives in; applied after each move of u.
        project_lower: the same for v: v -> v, or (u, v) -> v for a set that depends on u. The orthogonal projection,
            such as those of `optax.projections`.
        lower_start: (u, batch, key) -> v, where v starts in each step. Without it v goes on from
            where it stopped.
        regularizer: (u, v, mu) -> scalar, a non-smooth term of g in its smoothed form; solvers that
            do not schedule mu use 1e-3.
        lower_constraints: `Inequality` and `Equality` conditions on (u, v, batch.lower) under which v minimises g.
        random_upper: whether f is random. It is then called as f(u, v, batch.upper, key=key).
        random_lower: the same for g.

    Raises:
        InputError: a loss or constraint cannot be called in this way; an argument is not of its kind.

    u and v are pytrees of floating arrays. The data of a loss are None where its batch holds none. Two problems are
    equal when their functions are: the same functions, or equal values such as frozen dataclasses with `__call__`. Make
    a Problem once and pass it around: each that is not equal to an earlier one is compiled anew.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax import Problem
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum(u**2) + jnp.sum(v**2),
        ...     lower_loss=lambda u, v, data: jnp.sum((1 - u - v) ** 2),
        ... )
        >>> problem.check(u=jnp.zeros(3), v=jnp.zeros(3))
    """

    upper_loss: Callable[..., Any]
    lower_loss: Callable[..., Any]
    constraints: tuple[Inequality | Equality, ...] = ()
    project_upper: Callable[[PyTree], PyTree] = identity
    project_lower: Callable[..., PyTree] = identity
    lower_start: Callable[[PyTree, Batch, Any], PyTree] | None = None
    regularizer: Callable[[PyTree, PyTree, Any], Any] | None = None
    lower_constraints: tuple[Inequality | Equality, ...] = field(default=(), kw_only=True)
    random_upper: bool = field(default=False, kw_only=True)
    random_lower: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        require_loss("Problem", "upper_loss", self.upper_loss, self.random_upper, "random_upper")
        require_loss("Problem", "lower_loss", self.lower_loss, self.random_lower, "random_lower")
        require_function("Problem", "project_upper", self.project_upper, "u -> u")
        require_lower_projection("Problem", "project_lower", self.project_lower)
        if self.lower_start is not None:
            require_function("Problem", "lower_start", self.lower_start, "(u, batch, key) -> v, or None")
        if self.regularizer is not None:
            require_function("Problem", "regularizer", self.regularizer, "(u, v, mu) -> scalar, or None")
        for name in ("constraints", "lower_constraints"):
            found = getattr(self, name)
            if not isinstance(found, tuple | list):
                raise InputError(
                    f"Problem: {name} is {described(found)}. Pass a tuple of Inequality(h) and Equality(h)."
                )
            for constraint in found:
                if not isinstance(constraint, Inequality | Equality):
                    raise InputError(
                        f"Problem: {name} holds {described(constraint)}. Wrap each function h(u, v, data) as "
                        "Inequality(h) for h <= 0 or Equality(h) for h = 0."
                    )
            object.__setattr__(self, name, tuple(found))

    def upper(self, u: PyTree, v: PyTree, data: PyTree, key: Any) -> Any:
        """The upper loss f at (u, v)."""
        return self.upper_loss(u, v, data, key=key) if self.random_upper else self.upper_loss(u, v, data)

    def lower(self, u: PyTree, v: PyTree, data: PyTree, key: Any, mu: Any = 1e-3) -> Any:
        """The lower loss g at (u, v), with the smoothed regularizer."""
        loss = self.lower_loss(u, v, data, key=key) if self.random_lower else self.lower_loss(u, v, data)
        return loss if self.regularizer is None else loss + self.regularizer(u, v, mu)

    @property
    def set_moves(self) -> bool:
        """Whether the set of v depends on u."""
        return depends_on_u(self.project_lower)

    def lower_set(self, u: PyTree) -> Callable[[PyTree], PyTree]:
        """The projection onto the set of v at this u."""
        project = self.project_lower
        return (lambda v: project(u, v)) if depends_on_u(project) else project

    def constraint_values(self, u: PyTree, v: PyTree, data: PyTree) -> tuple[Any, ...]:
        """All constraints h at (u, v), in the order of `constraints`."""
        return tuple(c.function(u, v, data) for c in self.constraints)

    def lower_constraint_values(self, u: PyTree, v: PyTree, data: PyTree) -> tuple[Any, ...]:
        """All lower constraints c at (u, v), in the order of `lower_constraints`."""
        return tuple(c.function(u, v, data) for c in self.lower_constraints)

    def check(self, u: PyTree, v: PyTree, batch: Batch | None = None) -> None:
        """Refuse what no solver could treat.

        Raises:
            InputError: u or v is empty, not floating or not finite; the batch holds a NaN or an
                infinity, or what is not an array of numbers; a loss cannot be evaluated, is not a floating
                scalar, or reads an index out of range; g does not depend on v; a constraint returns
                nothing; a projection or `lower_start` changes shapes or dtypes.
        """
        batch = Batch() if batch is None else batch
        if not isinstance(batch, Batch):
            raise InputError(f"batch is {described(batch)}, and must be a bilevax.Batch(upper=..., lower=...).")
        check_variable("u", u)
        check_variable("v", v)
        require_arrays("batch", batch)
        check_finite("batch", batch)
        key = jax.random.key(0)
        upper_data, lower_data = data_of_loss(batch.upper), data_of_loss(batch.lower)
        self._check_loss("upper_loss", self.upper, u, v, upper_data, key)
        closed = self._check_loss("lower_loss", self.lower, u, v, lower_data, key)
        n_u, n_v = len(jax.tree.leaves(u)), len(jax.tree.leaves(v))
        wanted = [n_u <= i < n_u + n_v for i in range(len(closed.jaxpr.invars))]
        if not any(_reached(closed.jaxpr, wanted)):
            raise InputError(
                "lower_loss does not depend on v, so every v minimises it. "
                "It is called as lower_loss(u, v, data): check the order of its arguments."
            )
        stated = [(f"constraints[{i}]", c, upper_data) for i, c in enumerate(self.constraints)]
        stated += [(f"lower_constraints[{i}]", c, lower_data) for i, c in enumerate(self.lower_constraints)]
        for name, constraint, data in stated:
            found = jax.tree.leaves(_shapes(name, constraint.function, u, v, data))
            if not found:
                raise InputError(f"{name} returns no values. It must return the amounts by which it is violated.")
            for leaf in found:
                if not jnp.issubdtype(leaf.dtype, jnp.floating):
                    raise InputError(
                        f"{name} returns {leaf.dtype}, and must return floating values: "
                        "return the amount by which it is violated, not whether it is."
                    )
        for name, project, x in (("project_upper", self.project_upper, u), ("project_lower", self.lower_set(u), v)):
            _same_shapes(name, _shapes(name, project, x), x)
        if self.lower_start is not None:
            _same_shapes("lower_start", _shapes("lower_start", self.lower_start, u, batch, key), v)

    def _check_loss(self, name: str, loss: Callable[..., Any], *arguments: Any) -> Any:
        """The traced loss, if it returns one floating number and uses no index that is out of range."""
        traced, out = _traced(name, loss, *arguments)
        shape = getattr(out, "shape", None)
        if shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
            found = type(out).__name__ if shape is None else f"{out.dtype} of shape {shape}"
            raise InputError(
                f"{name} returns {found}, and must return one floating number. "
                "Take the mean or the sum of the per-sample losses."
            )
        named = jax.tree_util.tree_leaves_with_path(dict(zip(("u", "v", "batch", "key"), arguments, strict=True)))
        named.sort(key=lambda item: ("u", "v", "batch", "key").index(item[0][0].key))
        outside = first_outside(traced, [_integers(x) if path[0].key == "batch" else None for path, x in named])
        if outside is not None:
            array = "an array"
            if outside.operand is not None:
                path, _ = named[outside.operand]
                array = f"{path[0].key}{jax.tree_util.keystr(path[1:])}"
            raise InputError(
                f"{name} reads index {outside.value} along axis {outside.axis} of {array} of shape {outside.shape}, "
                "which is out of range; JAX would take another entry in its place. Give it an entry for each index "
                'that the batches hold, or, if clipping is meant, read it by jnp.take(x, index, mode="clip").'
            )
        return traced


def _integers(x: Any) -> np.ndarray | None:
    """The values of an array of integers, where they are known."""
    if isinstance(x, Tracer | jax.ShapeDtypeStruct) or not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x, jnp.result_type(x))


def _traced(name: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """A user's function as a closed jaxpr, and the shapes of what it returns."""
    try:
        return jax.make_jaxpr(function, return_shape=True)(*arguments)
    except InputError:
        raise
    except Exception as error:  # whatever the user's function raises
        sizes = sorted({np.shape(x)[0] for x in jax.tree.leaves(arguments) if np.ndim(x) > 0})
        raise InputError(
            f"{name} cannot be evaluated on the start and the first batch: "
            f"{first_line(error)} "
            f"The arrays handed to it have leading sizes {sizes}; check that they fit each other."
        ) from error


def _shapes(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    return _traced(name, function, *arguments)[1]


def _same_shapes(name: str, found: Any, wanted: PyTree) -> None:
    def kinds(tree: PyTree) -> Any:
        return jax.tree.structure(tree), [(np.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]

    def shown(tree: PyTree) -> Any:
        return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(np.shape(x))}", tree)

    if kinds(found) != kinds(wanted):
        raise InputError(
            f"{name} returns {shown(found)}, and must return the same structure, shapes and dtypes as the variable it "
            f"stands for, {shown(wanted)}."
        )


def _reached(jaxpr: Any, flags: list[bool]) -> list[bool]:
    """Which outputs of a jaxpr depend on the flagged inputs (inner calls are followed)."""
    reached = {var for var, flag in zip(jaxpr.invars, flags, strict=True) if flag}

    def hit(atom: Any) -> bool:
        return not hasattr(atom, "val") and atom in reached

    for equation in jaxpr.eqns:
        inputs = [hit(x) for x in equation.invars]
        inner = equation.params.get("jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if equation.primitive.name in ("jit", "pjit") and inner is not None:
            outputs = _reached(inner, inputs)
        else:
            outputs = [any(inputs)] * len(equation.outvars)
        reached |= {var for var, flag in zip(equation.outvars, outputs, strict=True) if flag}
    return [hit(x) for x in jaxpr.outvars]

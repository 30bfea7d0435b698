"""A bilevel problem, stated by functions alone.

    min over u of f(u, v*(u))  s.t.  h(u, v*(u)) <= 0 or = 0,  v*(u) = argmin over v of g(u, v)

`Problem` holds f, g, h and the sets u and v live in; it holds no data, no iterates, no options.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
LARGE_CONSTANT_BYTES = 1 << 20


class InputError(ValueError):
    """What the caller handed over cannot be used; the message says what was found and what to do."""


def require_count(owner: str, name: str, value: Any, least: int = 1) -> int:
    """A count as an int, NumPy's integers too; refuse what is not a positive integer, or is less than `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise InputError(f"{owner}: {name} is {value!r}, and must be {wanted}.")
    return int(value)


NAMED = 12  # at most this many columns, or labels, are named in a message


def listed(names: Any, quote: bool = True) -> str:
    """The first few names, for a message, and how many more there are."""
    names = [repr(x.item() if isinstance(x, np.generic) else x) if quote else str(x) for x in names]
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


class Batch(NamedTuple):
    """The data of one step: `upper` is handed to f and h, `lower` to g. Any pytrees."""

    upper: PyTree = None
    lower: PyTree = None


class PerMove(NamedTuple):
    """A lower batch whose leaves lead with an axis of length `lower_steps`: fresh data per move."""

    data: PyTree


@dataclass(frozen=True)
class Inequality:
    """The constraint `function(u, v[, batch.upper]) <= 0`, entry by entry, of any shape."""

    function: Callable[..., Any]


@dataclass(frozen=True)
class Equality:
    """The constraint `function(u, v[, batch.upper]) = 0`, entry by entry, of any shape."""

    function: Callable[..., Any]


def identity(x: PyTree) -> PyTree:
    """No set to project onto."""
    return x


def evaluate(function: Callable[..., Any], u: PyTree, v: PyTree, data: PyTree, key: Any, key_data: bool = True) -> Any:
    """Call a loss or constraint with as many of (u, v, data, key=) as its signature asks for."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function(u, v, data)
    kinds = inspect.Parameter
    positional = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD) and p.name != "key"
    ]
    takes_any = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
    arguments = (u, v, data) if takes_any or len(positional) >= 3 else (u, v)
    if key_data and any(p.name == "key" for p in parameters):
        return function(*arguments, key=key)
    return function(*arguments)


@dataclass(frozen=True)
class Problem:
    """A bilevel problem (Mehra and Hamm 2021, eqs. 6 and 7).

    Args:
        upper_loss: f(u, v[, batch.upper][, key=]) -> floating scalar. Pure.
        lower_loss: g(u, v[, batch.lower][, key=]) -> floating scalar. Pure.
        constraints: `Inequality` and `Equality` conditions on (u, v*(u)).
        project_upper: maps u onto the set it lives in; applied after each move of u.
        project_lower: the same for v.
        lower_start: (u, batch, key) -> v, where v starts in each step. Without it v goes on from
            where it stopped.
        regularizer: (u, v, mu) -> scalar, a non-smooth term of g in its smoothed form; solvers that
            do not schedule mu use 1e-3.

    u and v are pytrees of floating arrays. Two problems are equal when their functions are the same
    objects, so make a Problem once and pass it around: each new one is compiled anew.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax import Problem
        >>> problem = Problem(
        ...     upper_loss=lambda u, v: jnp.sum(u**2) + jnp.sum(v**2),
        ...     lower_loss=lambda u, v: jnp.sum((1 - u - v) ** 2),
        ... )
        >>> problem.check(u=jnp.zeros(3), v=jnp.zeros(3))
    """

    upper_loss: Callable[..., Any]
    lower_loss: Callable[..., Any]
    constraints: tuple[Inequality | Equality, ...] = ()
    project_upper: Callable[[PyTree], PyTree] = identity
    project_lower: Callable[[PyTree], PyTree] = identity
    lower_start: Callable[[PyTree, Batch, Any], PyTree] | None = None
    regularizer: Callable[[PyTree, PyTree, Any], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("upper_loss", "lower_loss", "project_upper", "project_lower"):
            if not callable(getattr(self, name)):
                raise InputError(
                    f"Problem: {name} is {getattr(self, name)!r}, not a function. Pass a function "
                    f"{name}({'u, v, batch) -> scalar' if 'loss' in name else 'x) -> x'}."
                )
        if not isinstance(self.constraints, Iterable):
            raise InputError(
                f"Problem: constraints is {self.constraints!r}. Pass a tuple of Inequality(h) and Equality(h)."
            )
        for constraint in self.constraints:
            if not isinstance(constraint, Inequality | Equality):
                raise InputError(
                    f"Problem: constraints holds {constraint!r}. Wrap each function h(u, v, batch) as "
                    "Inequality(h) for h <= 0 or Equality(h) for h = 0."
                )
        object.__setattr__(self, "constraints", tuple(self.constraints))

    def upper(self, u: PyTree, v: PyTree, data: PyTree, key: Any) -> Any:
        """F at (u, v)."""
        return evaluate(self.upper_loss, u, v, data, key)

    def lower(self, u: PyTree, v: PyTree, data: PyTree, key: Any, mu: Any = 1e-3) -> Any:
        """G at (u, v), the smoothed regularizer included."""
        loss = evaluate(self.lower_loss, u, v, data, key)
        return loss if self.regularizer is None else loss + self.regularizer(u, v, mu)

    def constraint_values(self, u: PyTree, v: PyTree, data: PyTree) -> tuple[Any, ...]:
        """Every h at (u, v), in the order of `constraints`."""
        return tuple(evaluate(c.function, u, v, data, None, key_data=False) for c in self.constraints)

    def check(self, u: PyTree, v: PyTree, batch: Batch | None = None) -> None:
        """Refuse, in a sentence, what no solver could treat.

        Raises:
            InputError: u or v is empty, not floating or not finite; the batch holds a NaN or an
                infinity; a loss cannot be evaluated or is no floating scalar; g does not depend
                on v; a projection or `lower_start` changes shapes.
        """
        batch = Batch() if batch is None else batch
        check_variable("u", u)
        check_variable("v", v)
        check_finite("batch", batch)
        key = jax.random.key(0)
        lower_data = batch.lower
        if isinstance(lower_data, PerMove):
            lower_data = jax.tree.map(lambda x: x[0], lower_data.data)
        self._check_loss("upper_loss", self.upper, u, v, batch.upper, key)
        self._check_loss("lower_loss", self.lower, u, v, lower_data, key)
        closed = jax.make_jaxpr(self.lower)(u, v, lower_data, key)
        n_u, n_v = len(jax.tree.leaves(u)), len(jax.tree.leaves(v))
        wanted = [n_u <= i < n_u + n_v for i in range(len(closed.jaxpr.invars))]
        if not any(_reached(closed.jaxpr, wanted)):
            raise InputError(
                "lower_loss does not depend on v, so it has no minimiser to speak of. "
                "It is called as lower_loss(u, v, batch): check the order of its arguments."
            )
        held = sum(np.asarray(c).nbytes for c in closed.consts)
        if held > LARGE_CONSTANT_BYTES:
            warnings.warn(
                f"lower_loss closes over {held / 2**20:.0f} MiB of arrays, which are compiled in as "
                "constants (slow to compile, and copied). Hand data over through batches= instead.",
                stacklevel=3,
            )
        for i, constraint in enumerate(self.constraints):
            name = f"constraints[{i}]"

            def value(u: PyTree, v: PyTree, data: PyTree, function: Callable[..., Any] = constraint.function) -> Any:
                return evaluate(function, u, v, data, None, key_data=False)

            for leaf in jax.tree.leaves(_shapes(name, value, u, v, batch.upper)):
                if not jnp.issubdtype(leaf.dtype, jnp.floating):
                    raise InputError(
                        f"{name} returns {leaf.dtype}, and must return floating values: "
                        "return the amount by which it is violated, not whether it is."
                    )
        for name, project, x in (("project_upper", self.project_upper, u), ("project_lower", self.project_lower, v)):
            _same_shapes(name, _shapes(name, project, x), x)
        if self.lower_start is not None:
            _same_shapes("lower_start", _shapes("lower_start", self.lower_start, u, batch, key), v)

    def _check_loss(self, name: str, loss: Callable[..., Any], *arguments: Any) -> None:
        out = _shapes(name, loss, *arguments)
        shape = getattr(out, "shape", None)
        if shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
            found = type(out).__name__ if shape is None else f"{out.dtype} of shape {shape}"
            raise InputError(
                f"{name} returns {found}, and must return one floating number. "
                "Take the mean or the sum of the per-sample losses."
            )


def check_variable(name: str, x: PyTree) -> None:
    """Refuse a variable that is empty, not floating or not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(x)
    if not leaves:
        raise InputError(f"{name} holds no arrays ({x!r}). Pass a pytree of floating arrays.")
    for path, leaf in leaves:
        where = f"{name}{jax.tree_util.keystr(path)}"
        try:
            dtype, size = jnp.result_type(leaf), np.size(leaf)
        except (TypeError, ValueError):
            raise InputError(f"{where} is a {type(leaf).__name__}, and must be a floating array.") from None
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f"{where} has dtype {dtype}, and must be floating, since it is moved by gradients. "
                f"Convert it, say by jnp.asarray(x, float), or keep it out of {name}."
            )
        if size == 0:
            raise InputError(f"{where} is empty (shape {np.shape(leaf)}). Remove this leaf, or give it entries.")
    check_finite(name, x)


def check_finite(name: str, tree: PyTree) -> None:
    """Refuse NaN and infinity in a tree of data or variables."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            continue
        bad = int(_non_finite(leaf))
        if bad:
            raise InputError(
                f"{name}{jax.tree_util.keystr(path)} holds {bad} NaN or infinite "
                f"{'value' if bad == 1 else 'values'} of {leaf.size}. Remove or fill them before solving."
            )


@jax.jit
def _non_finite(x: jax.Array) -> jax.Array:
    return x.size - jnp.isfinite(x).sum()


def _shapes(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except InputError:
        raise
    except Exception as error:  # whatever the user's function raises is told in one sentence
        sizes = sorted({np.shape(x)[0] for x in jax.tree.leaves(arguments) if np.ndim(x) > 0})
        raise InputError(
            f"{name} cannot be evaluated on the start and the first batch: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''} "
            f"The arrays handed to it have leading sizes {sizes}; check that they fit each other."
        ) from error


def _same_shapes(name: str, found: Any, wanted: PyTree) -> None:
    def shapes(tree: PyTree) -> Any:
        return jax.tree.structure(tree), [np.shape(x) for x in jax.tree.leaves(tree)]

    if shapes(found) != shapes(wanted):
        raise InputError(
            f"{name} returns {jax.tree.map(np.shape, found)}, and must return the same structure and "
            f"shapes as the variable it stands for, {jax.tree.map(np.shape, wanted)}."
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

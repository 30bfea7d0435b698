"""Indices that are out of range, found in a traced function from the integers that it is given.

JAX clips an index that is too large, in silence. Which indices a loss uses follows from the integers among its data
alone, by a few operations that are done here in NumPy; whatever else it computes is not.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode


class Outside(NamedTuple):
    """An index, and the array that it is out of range of: its place among the function's inputs, or None, and shape."""

    value: int
    axis: int
    operand: int | None
    shape: tuple[int, ...]


def _broadcast(x: Any, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    expanded = np.ones(len(shape), int)
    expanded[list(broadcast_dimensions)] = np.shape(x)
    return np.broadcast_to(np.reshape(x, expanded), shape)


def _iota(dtype: Any, shape: Any, dimension: int, **_: Any) -> Any:
    return _broadcast(np.arange(shape[dimension], dtype=dtype), shape, (dimension,))


RULES: dict[str, Callable[..., Any]] = {
    "lt": lambda a, b, **_: np.less(a, b),
    "add": lambda a, b, **_: np.add(a, b),
    "sub": lambda a, b, **_: np.subtract(a, b),
    "mul": lambda a, b, **_: np.multiply(a, b),
    "max": lambda a, b, **_: np.maximum(a, b),
    "min": lambda a, b, **_: np.minimum(a, b),
    "clamp": lambda low, x, high, **_: np.clip(x, low, high),
    "select_n": lambda which, *cases, **_: np.where(which, cases[-1], cases[0]),
    "convert_element_type": lambda x, new_dtype, **_: np.asarray(x).astype(new_dtype),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, new_sizes, **_: np.reshape(x, new_sizes),
    "squeeze": lambda x, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "concatenate": lambda *x, dimension, **_: np.concatenate(x, dimension),
    "transpose": lambda x, permutation, **_: np.transpose(x, permutation),
    "iota": lambda dtype, shape, dimension, **_: _broadcast(
        np.arange(shape[dimension], dtype=dtype), shape, [dimension]
    ),
}
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
ONE_CALL = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def first_outside(traced: Any, known: Sequence[Any]) -> Outside | None:
    """The first index out of range in a traced function (a closed jaxpr), given some of its inputs (None: not known).

    Only reads that JAX would clip, or fill with NaN, count. One whose mode is "clip" is meant to be clipped; so are
    taken to be those of a scalar index under `jax.vmap`, which look the same.
    """
    origins = {var: i for i, var in enumerate(traced.jaxpr.invars)}
    return _walk(traced.jaxpr, traced.consts, known, origins)[1]


def _walk(jaxpr: Any, consts: Sequence[Any], known: Sequence[Any], origins: dict[Any, int]) -> tuple[list[Any], Any]:
    values = {var: x for var, x in zip(jaxpr.invars, known, strict=True) if x is not None}
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        if jnp.issubdtype(var.aval.dtype, jnp.integer) and isinstance(const, np.ndarray | jax.Array):
            values[var] = np.asarray(const)

    def read(atom: Any) -> Any:
        return np.asarray(atom.val) if hasattr(atom, "val") else values.get(atom)

    for equation in jaxpr.eqns:
        inputs, name = [read(x) for x in equation.invars], equation.primitive.name
        inner = next((equation.params[k] for k in INNER if k in equation.params), None)
        closed: Any = getattr(inner, "jaxpr", inner)
        if name in ONE_CALL and closed is not None and len(closed.invars) == len(inputs):
            inside = {
                var: origins[x]
                for var, x in zip(closed.invars, equation.invars, strict=True)
                if not hasattr(x, "val") and x in origins
            }
            outputs, found = _walk(closed, getattr(inner, "consts", ()), inputs, inside)
            if found is not None:
                return [], found
            values |= {var: x for var, x in zip(equation.outvars, outputs, strict=True) if x is not None}
        elif name in ("gather", "dynamic_slice"):
            if (found := _outside(equation, inputs, origins)) is not None:
                return [], found
        elif name in RULES and all(x is not None for x in inputs):
            values[equation.outvars[0]] = RULES[name](*inputs, **equation.params)
    return [read(x) for x in jaxpr.outvars], None


def _outside(equation: Any, inputs: Sequence[Any], origins: dict[Any, int]) -> Outside | None:
    operand, params = equation.invars[0], equation.params
    shape, sizes = operand.aval.shape, params["slice_sizes"]
    if equation.primitive.name == "gather":
        mode, indices = params["mode"], inputs[1]
        filled = mode == GatherScatterMode.FILL_OR_DROP and np.any(np.isnan(params["fill_value"] or 0))
        if indices is None or not (mode == GatherScatterMode.PROMISE_IN_BOUNDS or filled):
            return None
        starts = [(axis, indices[..., i]) for i, axis in enumerate(params["dimension_numbers"].start_index_map)]
    else:
        starts = [(axis, start) for axis, start in enumerate(inputs[1:]) if start is not None]
    for axis, index in starts:
        if np.any((index < 0) | (index > shape[axis] - sizes[axis])):
            place = None if hasattr(operand, "val") else origins.get(operand)
            return Outside(int(np.max(index) if np.max(index) > 0 else np.min(index)), axis, place, shape)
    return None

"""Moves matrix products of a loop's constants out of the loop body, before the loop is differentiated.

A compiler does this for the forward pass of a loop. It cannot do it for the reverse pass: the cotangent of such a
product differs in each iteration, and only the sum of the cotangents needs a reverse pass.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.core import eval_jaxpr

PRODUCTS = {"dot_general", "conv_general_dilated"}
Body = Callable[..., Any]


@functools.cache
def extended_core() -> Any:
    """Return `jax.extend.core`, imported at its first use: it loads Pallas, which takes as long as half of bilevax."""
    from jax.extend import core

    return core


def hoist(body: Body, fixed: Any, *turn: Any) -> tuple[Any, Body]:
    """Return `made` and `rest` with rest(made, *turn) = body(fixed, *turn); `made` has matrix products of `fixed`.

    `made` also has values that depend only on such products, and the arrays that
    `body` closes over. Elementwise operations on `fixed` stay in the body, where
    they cost less than the memory of their results.

    Args:
        body: a pure function of pytrees.
        fixed: the argument that is the same in all iterations; `made` is differentiable in it.
        turn: the arguments that change; only their shapes are used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax._hoisting import hoist
        >>> body = lambda a, x: jnp.tanh(a @ a) @ x
        >>> made, rest = hoist(body, jnp.eye(2), jnp.ones(2))
        >>> str(jax.make_jaxpr(rest)(made, jnp.ones(2))).count("dot_general")
        1
    """
    traced, shape = jax.make_jaxpr(_inlined(body), return_shape=True)(fixed, *turn)
    jaxpr, form = traced.jaxpr, jax.tree.structure(shape)
    values, given = jax.tree.flatten(fixed)
    known, heavy = set(_inputs(traced)[: len(traced.consts) + len(values)]), set()
    outside, inside = [], []
    for equation in jaxpr.eqns:
        of = _variables(equation.invars)
        if not equation.effects and known.issuperset(of):
            known.update(equation.outvars)
            outside.append(equation)
            if _is_product(equation) or not heavy.isdisjoint(of):
                heavy.update(equation.outvars)
                continue
        inside.append(equation)
    used = _variables([*(x for equation in inside for x in equation.invars), *jaxpr.outvars])
    kept = [x for x in dict.fromkeys(used) if x in heavy]
    start = dict(zip(_inputs(traced), (*traced.consts, *values), strict=False))
    made = _evaluated(_part(jaxpr, [], outside, kept), start) if kept else []
    body_of_rest = _part(jaxpr, [], inside, jaxpr.outvars)

    def rest(made: tuple[list[Any], list[Any], list[Any]], *turn: Any) -> Any:
        constants, values, made_of = made
        arguments = jax.tree.leaves((jax.tree.unflatten(given, values), *turn))
        inputs = dict(zip(_inputs(traced), (*constants, *arguments), strict=True))
        return jax.tree.unflatten(form, _evaluated(body_of_rest, inputs | dict(zip(kept, made_of, strict=True))))

    return (traced.consts, values, made), rest


def _inlined(body: Body) -> Body:
    """Return the body with calls of jitted functions inlined."""

    def flat(*arguments: Any) -> Any:
        traced, shape = jax.make_jaxpr(body, return_shape=True)(*arguments)
        values = (*traced.consts, *jax.tree.leaves(arguments))
        results = _evaluated(traced.jaxpr, dict(zip(_inputs(traced), values, strict=True)))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return flat


def _evaluated(jaxpr: Any, environment: dict[Any, Any]) -> list[Any]:
    """Return the outputs of a traced program, from the values of its inputs."""
    environment = dict(environment)

    def read(x: Any) -> Any:
        return x.val if isinstance(x, extended_core().Literal) else environment[x]

    for equation in jaxpr.eqns:
        if equation.primitive is extended_core().primitives.jit_p:
            inner = equation.params["jaxpr"]
            values = (*inner.consts, *map(read, equation.invars))
            results = _evaluated(inner.jaxpr, dict(zip(_inputs(inner), values, strict=True)))
        else:
            of = list(dict.fromkeys(_variables(equation.invars)))
            alone = _part(jaxpr, of, [equation], equation.outvars)
            results = eval_jaxpr(alone, (), *map(read, of))
        environment |= dict(zip(equation.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _part(jaxpr: Any, inputs: list[Any], equations: list[Any], outputs: list[Any]) -> Any:
    """Return some equations of a program as a program."""
    unnamed = extended_core().DebugInfo("hoist", "body", None, None)
    return jaxpr.replace(constvars=[], invars=inputs, eqns=equations, outvars=outputs, debug_info=unnamed)


def _inputs(traced: Any) -> list[Any]:
    return [*traced.jaxpr.constvars, *traced.jaxpr.invars]


def _variables(atoms: Iterable[Any]) -> list[Any]:
    return [x for x in atoms if not isinstance(x, extended_core().Literal)]


def _is_product(equation: Any) -> bool:
    inner = extended_core().jaxprs_in_params(equation.params)
    return equation.primitive.name in PRODUCTS or any(_is_product(e) for jaxpr in inner for e in jaxpr.eqns)

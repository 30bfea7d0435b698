"""Hypergradients by differentiating the T lower moves, in reverse or forward mode."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError, settle_counts
from bilevax._hoisting import PRODUCTS, extended_core, hoist
from bilevax._optimizers import away_from_zero, first_line, update
from bilevax.problem import Batch, Problem
from bilevax.solvers import base

SLOPE = "grad_v g"
LARGE = 4  # times v


@dataclass(frozen=True)
class ReverseMode:
    """Reverse-mode differentiation, RMD (Maclaurin et al. 2015; Franceschi et al. 2017).

    u moves along the exact derivative of f(u, v_T(u)), where v_T is v after T moves along grad_v g. With a
    `lower_start` that depends on u, as in MAML, the derivative includes that of the start.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; the upper one without a line search. The updates of
            the lower one are differentiated: use gradient descent or momentum, since Adam divides by the size of the
            gradient, which removes most of the derivative.
        lower_steps: T, moves of v per move of u.
        last: differentiate only the last `last` moves (truncation, Shaban et al. 2019); None for all T. It is refused
            with a `lower_start` that depends on u, since the derivative through the start would be lost.
        segment: store v only at the start of every `segment` moves, and recompute the moves between them in the reverse
            pass (`jax.checkpoint`). Memory is least at about sqrt(T). None stores all moves.

    Cost of a step: about three times T gradients of g, four times with `segment`. Memory: T times
    the matrix products and convolutions of a gradient of g, or T times v where these are more than four times as large
    (mixed-mode differentiation, Kemaev et al. 2025); with `segment` = s, T/s times v plus s times that. Matrix products
    of g that depend only on u and the batch, such as features, and their reverse pass are computed once and not T
    times.
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_steps: int = 10
    last: int | None = None
    segment: int | None = None

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")
        for name in ("last", "segment"):
            if getattr(self, name) is not None:
                settle_counts(self, name)
        if self.last is not None and self.last > self.lower_steps:
            raise InputError(
                f"ReverseMode: last is {self.last}, and must be at most lower_steps, {self.lower_steps}. Lower last."
            )

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a lower optimizer that cannot be differentiated, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, base.Known.VALUE, base.Known.FUNCTION, moving_sets=True)
        _require_differentiable(self, problem, u, v, batch)
        depends = derivatives.require_start("ReverseMode", problem, u, batch, self.last not in (None, self.lower_steps))
        if depends:
            raise InputError(
                f"ReverseMode: lower_start depends on u, and with last={self.last} of {self.lower_steps} lower_steps "
                "the derivative through the start would be lost. Pass last=None, and segment=... to save memory; or "
                "use jax.lax.stop_gradient(u) in lower_start, to treat the start as a constant."
            )

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times, and u once along d f(u, v_T(u)) / du, by reverse mode."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        last = self.lower_steps if self.last is None else self.last
        skipped = self.lower_steps - last

        def start(u: PyTree) -> tuple[PyTree, Any]:
            return base.start_of_step(problem, state._replace(u=u), batch, start_key), state.lower_opt

        before = start(state.u)
        if skipped:
            before, _ = _moves(self, problem, state.u, before, batch, 0, skipped, lower_key, _thrifty)

        def moved(u: PyTree) -> tuple[PyTree, Any]:
            carry = before if skipped else start(u)
            (v, lower_opt), losses = _moves(
                self, problem, u, carry, batch, skipped, last, lower_key, _thrifty, self.segment
            )
            return v, (lower_opt, losses)

        v, pull_back, (lower_opt, losses) = jax.vjp(moved, state.u, has_aux=True)
        f = derivatives.upper(problem, state.u, v, batch.upper, upper_key)
        (through,) = pull_back(f.grad_v)
        direction = optax.tree.add(f.grad_u, through)
        return _finish(self, problem, state._replace(v=v, lower_opt=lower_opt), direction, f, losses)


@dataclass(frozen=True)
class ForwardMode:
    """Forward-mode differentiation, FMD (Franceschi et al. 2017): the matrix dv_t/du is updated with each move.

    The direction is that of `ReverseMode`, but memory is |u| |v| for any T: for a few hyperparameters.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; for the lower one see `ReverseMode`.
        lower_steps: T, moves of v per move of u.

    Cost of a step: |u| + 1 times T gradients of g. Memory: |u| |v|.
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_steps: int = 10

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a lower optimizer that cannot be differentiated, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, base.Known.VALUE, base.Known.FUNCTION, moving_sets=True)
        derivatives.require_start("ForwardMode", problem, u, batch)
        _require_differentiable(self, problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times, and u once along d f(u, v_T(u)) / du, by forward mode."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        flat_u, unravel = ravel_pytree(state.u)

        def moved(flat_u: Any) -> tuple[PyTree, Any]:
            u = unravel(flat_u)
            start = base.start_of_step(problem, state._replace(u=u), batch, start_key)
            (end, lower_opt), losses = _moves(
                self, problem, u, (start, state.lower_opt), batch, 0, self.lower_steps, lower_key, _plain
            )
            return end, (end, lower_opt, losses)

        # Leaves of `jacobian` are shaped (*leaf of v, |u|).
        jacobian, (v, lower_opt, losses) = jax.jacfwd(moved, has_aux=True)(flat_u)
        f = derivatives.upper(problem, state.u, v, batch.upper, upper_key)
        through = jnp.zeros_like(flat_u)
        for d, j in zip(jax.tree.leaves(f.grad_v), jax.tree.leaves(jacobian), strict=True):
            through += jnp.tensordot(d, j, axes=d.ndim)
        direction = optax.tree.add(f.grad_u, unravel(through))
        return _finish(self, problem, state._replace(v=v, lower_opt=lower_opt), direction, f, losses)


def _require_differentiable(solver: Any, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
    """Refuse a lower optimizer that cannot be differentiated in reverse mode, such as one with a line search."""
    optimizer, data, key = solver.lower_optimizer, base.lower_data(batch, 0), jax.random.key(0)

    def updated(v: PyTree) -> PyTree:
        descent = base.Descent(problem, u, optimizer)
        objective = descent.objective(v, data, key, problem.lower(u, v, data, key))
        gradient, state = v, optimizer.init(v)
        return jax.vjp(lambda d: update(optimizer, d, state, v, objective)[0], gradient)[1](v)

    try:
        jax.eval_shape(updated, v)
    except Exception as error:
        raise InputError(
            f"{type(solver).__name__} differentiates its lower moves, and lower_optimizer cannot be differentiated: "
            f"{first_line(error)} Pass an optimizer without a line search, such as optax.sgd(1e-2)."
        ) from error


def _differentiable_at_zero(optimizer: Any, gradient: PyTree, opt_state: Any, v: PyTree) -> Any:
    """Return the optimizer with finite derivatives at entries of the gradient that are exactly zero.

    The derivative at a near point is used instead; values do not change. An optimizer that needs more than the gradient
    is returned unchanged.
    """
    try:
        jax.eval_shape(optimizer.update, gradient, opt_state, v)
    except Exception:
        return optimizer
    update: Any = jax.custom_jvp(lambda *arguments: optimizer.update(*arguments))

    @update.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        gradient, *rest = primals
        near = (away_from_zero(gradient), *rest)
        return update(*primals), jax.jvp(optimizer.update, near, tangents)[1]

    def updated(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, updated)


Gradient = Callable[[Any, PyTree, Any], tuple[Any, PyTree]]  # (made, v, t) -> (g, grad_v g)


def _plain(loss: Callable[..., Any], *example: Any) -> Gradient:
    """Return the value and the gradient in v of loss(made, v, t), with the derivatives of JAX."""
    return jax.value_and_grad(loss, 1)


def _thrifty(loss: Callable[..., Any], made: Any, v: PyTree, t: Any) -> Gradient:
    """As `_plain`, or as `_mixed` where that stores much less.

    In reverse mode, a move stores its matrix products and theirs in the reverse pass, or v if it is `_mixed`. With the
    products at hand a dense network takes two thirds of the time, so they are stored unless they are large.
    """
    products = 2 * _bytes_of_products(jax.make_jaxpr(loss)(made, v, t).jaxpr)
    return _mixed(loss) if products > LARGE * sum(x.nbytes for x in jax.tree.leaves(v)) else _plain(loss)


def _bytes_of_products(jaxpr: Any) -> int:
    """Return the size of all matrix products and convolutions in a program, with those of its loops."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        if equation.primitive.name in PRODUCTS:
            total += sum(math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in equation.outvars)
        within = extended_core().jaxprs_in_params(equation.params)
        total += times * sum(map(_bytes_of_products, within))
    return total


def _mixed(loss: Callable[..., Any]) -> Gradient:
    """As `_plain`, but its reverse pass is a forward pass through the gradient.

    For cotangents c of the value and d of the gradient it returns (c + d/ds) grad loss(made, v + s d) at s = 0. Second
    derivatives are symmetric, so this is the transpose, and nothing but made and v is stored.

    Source: Kemaev et al., "Scalable meta-learning via mixed-mode differentiation", ICML 2025, section 3.
    """

    def gradient(made: Any, v: PyTree, t: Any) -> tuple[Any, PyTree]:
        leaves, form = jax.tree.flatten(made)
        smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

        def of(floats: list[Any], others: list[Any], v: PyTree) -> Any:
            floats, others = list(floats), list(others)
            merged = [(floats if is_smooth else others).pop(0) for is_smooth in smooth]
            return loss(jax.tree.unflatten(form, merged), v, others[0])

        @jax.custom_vjp
        def value_and_slope(floats: list[Any], others: list[Any], v: PyTree) -> tuple[Any, PyTree]:
            return jax.value_and_grad(of, 2)(floats, others, v)

        def forward(floats: list[Any], others: list[Any], v: PyTree) -> tuple[Any, Any]:
            return value_and_slope(floats, others, v), (floats, others, v)

        def backward(kept: Any, cotangents: tuple[Any, PyTree]) -> tuple[Any, None, PyTree]:
            (floats, others, v), (of_value, of_slope) = kept, cotangents
            both = jax.grad(of, (0, 2))
            at, along = jax.jvp(lambda v: both(floats, others, v), (v,), (of_slope,))
            found = jax.tree.map(lambda a, b: (of_value * a + b).astype(b.dtype), at, along)
            return found[0], None, found[1]

        value_and_slope.defvjp(forward, backward)
        floats = [x for x, is_smooth in zip(leaves, smooth, strict=True) if is_smooth]
        others = [x for x, is_smooth in zip(leaves, smooth, strict=True) if not is_smooth]
        return value_and_slope(floats, [*others, t], v)

    return gradient


def _moves(
    solver: Any,
    problem: Problem,
    u: PyTree,
    carry: tuple[PyTree, Any],
    batch: Batch,
    first: int,
    count: int,
    key: PRNGKeyArray,
    rule: Callable[[Callable[..., Any], Any, PyTree, Any], Gradient],
    segment: int | None = None,
) -> tuple[tuple[PyTree, Any], tuple[Any, Any]]:
    """Return v and its optimizer's state after moves first, ..., first + count - 1, differentiable in u.

    The second result is (g, |grad_v g|) before the last of these moves. `rule` differentiates g.
    """
    ts = jnp.arange(first, first + count)
    optimizer = _differentiable_at_zero(solver.lower_optimizer, carry[0], carry[1], carry[0])

    def loss(fixed: tuple[PyTree, Batch], v: PyTree, t: Any) -> Any:
        u, batch = fixed
        return problem.lower(u, v, base.lower_data(batch, t), jax.random.fold_in(key, t))

    made, rest = hoist(loss, (u, batch), carry[0], ts[0])
    gradient = rule(rest, made, carry[0], ts[0])

    def one(made: Any, carry: Any, t: Any) -> tuple[Any, Any]:
        v, opt_state = carry
        value, slope = gradient(made, v, t)
        slope = jax.tree.map(lambda x: checkpoint_name(x, SLOPE), slope)
        objective = base.Objective(value, lambda v: rest(made, v, t), lambda v: gradient(made, v, t)[1])
        moved = base.move(optimizer, opt_state, v, slope, problem.lower_set(u), None, objective)
        return moved, (value, optax.tree.norm(slope))

    # Recomputing the rest of a move is faster than reading it. `_mixed` has no products of its own in a reverse pass.
    policies = jax.checkpoint_policies
    policy = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names(SLOPE))
    each: Any = jax.checkpoint(partial(one, made), prevent_cse=False, policy=policy)

    def some(carry: Any, ts: Any) -> tuple[Any, Any]:
        carry, losses = jax.lax.scan(each, carry, ts)
        return carry, jax.tree.map(lambda x: x[-1], losses)

    if segment is None or segment >= count:
        return some(carry, ts)
    whole = count // segment * segment
    carry, losses = jax.lax.scan(jax.checkpoint(some), carry, ts[:whole].reshape(-1, segment))
    losses = jax.tree.map(lambda x: x[-1], losses)
    return (carry, losses) if whole == count else jax.checkpoint(some)(carry, ts[whole:])


def _finish(
    solver: Any,
    problem: Problem,
    state: base.State,
    direction: PyTree,
    f: derivatives.Upper,
    losses: tuple[Any, Any],
) -> tuple[base.State, base.Info]:
    """Return the state with u moved, and the Info; `losses` are (g, |grad_v g|) of the last move of v."""
    u, upper_opt = base.move_upper(solver, problem, state, direction, base.Objective(f.loss))
    info = base.Info(f.loss, losses[0], optax.tree.norm(direction), losses[1], {})
    return state._replace(u=u, upper_opt=upper_opt), info

"""Hypergradients by differentiating the T lower moves themselves, in reverse or forward mode."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError, settle_counts
from bilevax._optimizers import first_line, update
from bilevax.problem import Batch, Problem
from bilevax.solvers import base
from bilevax.solvers.hoisting import hoist


@dataclass(frozen=True)
class ReverseMode:
    """Reverse-mode differentiation, RMD (Maclaurin et al. 2015; Franceschi et al. 2017).

    u moves along the exact derivative of f(u, v_T(u)), where v_T is the end of T moves of v down g. Where v starts at
    a `lower_start` that depends on u, as in MAML, the derivative goes through the start, too.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; the upper one without a line search. The lower one
            is differentiated through: take descent or momentum there, since Adam divides by the size of the gradient
            and with it normalises most of the derivative away.
        lower_steps: T, moves of v per move of u.
        last: differentiate only the last so many moves (truncation, Shaban et al. 2019); None: all T. With a
            `lower_start` that depends on u it is refused, since the derivative through the start would be lost.
        segment: keep v at the start of every so many moves only and do the moves in between again on
            the way back (`jax.checkpoint`). About sqrt(T) is the least memory; None keeps all moves.

    Cost of a step: about three times T gradients of g, four with `segment`. Memory: v and the matrix products
    and convolutions of a gradient of g, times T; with `segment` = s, v times T/s plus the rest times s. What g
    makes of u and the batch alone by matrix products, such as features, is made once, not T times, and gone back
    through once.
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
                f"ReverseMode: last is {self.last}, more than the {self.lower_steps} lower_steps there are."
            )

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and what no solver can treat."""
        base.check(self, problem, u, v, batch, base.Known.VALUE, base.Known.FUNCTION, lower_sets=True)
        _require_differentiable(self, problem, u, v, batch)
        depends = derivatives.require_start("ReverseMode", problem, u, batch, self.last not in (None, self.lower_steps))
        if depends:
            raise InputError(
                f"ReverseMode: lower_start depends on u, and with last={self.last} of {self.lower_steps} lower_steps "
                "the derivative through the start would be lost. Pass last=None, and segment=... to save memory; or "
                "use jax.lax.stop_gradient(u) in lower_start, to treat the start as a constant."
            )

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """The state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of v; one of u along d f(u, v_T(u)) / du, by reverse mode."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        last = self.lower_steps if self.last is None else self.last
        skipped = self.lower_steps - last

        def start(u: PyTree) -> tuple[PyTree, Any]:
            return base.start_of_step(problem, state._replace(u=u), batch, start_key), state.lower_opt

        before = start(state.u)
        if skipped:
            before, _ = _moves(self, problem, state.u, before, batch, 0, skipped, lower_key)

        def answer(u: PyTree) -> tuple[PyTree, Any]:
            carry = before if skipped else start(u)
            (v, lower_opt), losses = _moves(self, problem, u, carry, batch, skipped, last, lower_key, self.segment)
            return v, (lower_opt, losses)

        v, pull_back, (lower_opt, losses) = jax.vjp(answer, state.u, has_aux=True)
        f = derivatives.upper(problem, state.u, v, batch.upper, upper_key)
        (through,) = pull_back(f.grad_v)
        direction = optax.tree.add(f.grad_u, through)
        return _finish(self, problem, state._replace(v=v, lower_opt=lower_opt), direction, f, losses)


@dataclass(frozen=True)
class ForwardMode:
    """Forward-mode differentiation, FMD (Franceschi et al. 2017): the matrix dv_t/du carried along.

    The direction is that of `ReverseMode`, but memory is |u| |v| whatever T: for few hyperparameters.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; on the lower one see `ReverseMode`.
        lower_steps: T, moves of v per move of u.

    Cost of a step: |u| + 1 times T gradients of g. Memory: |u| |v|.
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_steps: int = 10

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and what no solver can treat."""
        base.check(self, problem, u, v, batch, base.Known.VALUE, base.Known.FUNCTION, lower_sets=True)
        derivatives.require_start("ForwardMode", problem, u, batch)
        _require_differentiable(self, problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """The state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of v; one of u along d f(u, v_T(u)) / du, by forward mode."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        flat_u, unravel = ravel_pytree(state.u)

        def answer(flat_u: Any) -> tuple[PyTree, Any]:
            u = unravel(flat_u)
            start = base.start_of_step(problem, state._replace(u=u), batch, start_key)
            (end, lower_opt), losses = _moves(
                self, problem, u, (start, state.lower_opt), batch, 0, self.lower_steps, lower_key
            )
            return end, (end, lower_opt, losses)

        # Leaves of `jacobian` are shaped (*leaf of v, |u|).
        jacobian, (v, lower_opt, losses) = jax.jacfwd(answer, has_aux=True)(flat_u)
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
    """The optimizer, with finite derivatives where an entry of the gradient is exactly zero.

    Adam and its kin take the square root of a mean of squares, whose derivative there is 0 times infinity. The
    derivative beside it is taken instead; values are as they were. An optimizer that asks for more than the gradient
    stays as it is.
    """
    try:
        jax.eval_shape(optimizer.update, gradient, opt_state, v)
    except Exception:
        return optimizer
    update: Any = jax.custom_jvp(lambda *arguments: optimizer.update(*arguments))

    @update.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        gradient, *rest = primals
        beside = jax.tree.map(lambda d: jnp.where(d == 0, jnp.finfo(d.dtype).tiny ** 0.4, d).astype(d.dtype), gradient)
        return update(*primals), jax.jvp(optimizer.update, (beside, *rest), tangents)[1]

    def updated(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, updated)


def _moves(
    solver: Any,
    problem: Problem,
    u: PyTree,
    carry: tuple[PyTree, Any],
    batch: Batch,
    first: int,
    count: int,
    key: PRNGKeyArray,
    segment: int | None = None,
) -> tuple[tuple[PyTree, Any], tuple[Any, Any]]:
    """Moves first, ..., first + count - 1 of v down g, as a function of u; and (g, |grad_v g|) before the last."""
    ts = jnp.arange(first, first + count)

    def move(fixed: tuple[PyTree, Batch], carry: Any, t: Any) -> tuple[Any, Any]:
        u, batch = fixed
        return base.Descent(problem, u, optimizer).move(carry, base.lower_data(batch, t), jax.random.fold_in(key, t))

    optimizer = _differentiable_at_zero(solver.lower_optimizer, carry[0], carry[1], carry[0])
    made, one = hoist(move, (u, batch), carry, ts[0])
    # Of each move the products alone are kept for the way back; what is between them is quicker made again than read.
    one = jax.checkpoint(partial(one, made), prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable)

    def some(carry: Any, ts: Any) -> tuple[Any, Any]:
        carry, losses = jax.lax.scan(one, carry, ts)
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
    """The state after the moves of v, with u moved; `losses` are (g, |grad_v g|) of the last move of v."""
    u, upper_opt = base.move_upper(solver, problem, state, direction, base.Objective(f.loss))
    info = base.Info(f.loss, losses[0], optax.tree.norm(direction), losses[1], {})
    return state._replace(u=u, upper_opt=upper_opt), info

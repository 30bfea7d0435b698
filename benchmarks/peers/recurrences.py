"""What other libraries compute where it differs from bilevax's own methods: for --check, and a row of three lines."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

import bilevax as bx
from bilevax import derivatives, schedules
from bilevax.linear_solve import LinearSolution
from bilevax.solvers import base
from bilevax.solvers._value_function import Counted, Values


@dataclass(frozen=True)
class Itself:
    """The linear solve of one-step methods such as first-order look-ahead: q = b, as if the Hessian were I."""

    def __call__(self, second_products: Any, b: Any, start: PyTree) -> LinearSolution:
        """B, and no residual: it would take a product."""
        return LinearSolution(b, second_products(b)[0], jnp.zeros(()))


@dataclass(frozen=True)
class PlainCG:
    """A number of steps of conjugate gradients from zero, without bilevax's start and safeguards.

    With `late` the next direction uses the residual from before the step. This is not a conjugate gradient method, but
    what Betty 0.2.1 computes (its hypergradient/cg.py). Both variants serve to check other libraries.
    """

    steps: int
    late: bool = False
    damping: float = 0.0

    def __call__(self, second_products: Any, b: Any, start: PyTree) -> LinearSolution:
        """The result of the steps; the residual is not computed."""

        def one(carry: Any, _: None) -> tuple[Any, None]:
            x, r, p = carry
            hp, size = optax.tree.add_scale(second_products(p)[1], self.damping, p), optax.tree.norm(r, squared=True)
            alpha = size / optax.tree.vdot(p, hp)
            x, new = optax.tree.add_scale(x, alpha, p), optax.tree.add_scale(r, -alpha, hp)
            beta = optax.tree.norm(new, squared=True) / size
            return (x, new, optax.tree.add_scale(r if self.late else new, beta, p)), None

        q = jax.lax.scan(one, (optax.tree.zeros_like(b), b, b), None, length=self.steps)[0][0]
        return LinearSolution(q, second_products(q)[0], jnp.zeros(()))


@dataclass(frozen=True)
class PlainSeries:
    """A number of terms of the Neumann series beyond the first, without bilevax's safeguard; used to check Betty."""

    terms: int
    scale: float

    def __call__(self, second_products: Any, b: Any, start: PyTree) -> LinearSolution:
        """The sum of the terms; the residual is not computed."""

        def one(carry: Any, _: None) -> tuple[Any, None]:
            power, total = carry
            power = optax.tree.add_scale(power, -self.scale, second_products(power)[1])
            return (power, optax.tree.add(total, power)), None

        q = optax.tree.scale(self.scale, jax.lax.scan(one, (b, b), None, length=self.terms)[0][1])
        return LinearSolution(q, second_products(q)[0], jnp.zeros(()))


def by_differences(g: Any, u: PyTree, v: PyTree, length: float = 0.01) -> derivatives.Lower:
    """The curvature of Betty 0.2.1's "darts": a central difference whose step has this length for every v.

    Used to check Betty, as `PlainCG` is. Its "sama" takes steps of length 1.
    """

    def second_products(p: Any) -> Any:
        t = length / optax.tree.norm(p)
        ahead, back = (jax.grad(g, (0, 1))(u, optax.tree.add_scale(v, sign * t, p)) for sign in (1, -1))
        return jax.tree.map(lambda a, b: (a - b) / (2 * t), ahead, back)

    loss, grad_v = jax.value_and_grad(g, 1)(u, v)
    return derivatives.Lower(loss, grad_v, second_products)


@dataclass(frozen=True)
class Together(bx.VPBGD):
    """V-PBGD as BOAT 1.1.1 has it (its fo_ol/pgdo.py): u and v move together, and v once, where z moves T times."""

    def step(
        self, problem: bx.Problem, state: base.State, batch: bx.Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of z down g; then one of u and of v, both from the last u and v."""
        u, v, (z, z_opt, count) = state.u, state.v, state.memory
        gamma, data = schedules.at(self.gamma, count), base.lower_data(batch, 0)
        scale = jnp.minimum(1.0, 1 / gamma)
        z, z_opt, _ = base.Descent(problem, u, self.lower_optimizer).moves(z, z_opt, batch, self.lower_steps, key)
        f = derivatives.upper(problem, u, v, batch.upper, key)
        loss, at_v, slope = derivatives.lower_slopes(problem, u, v, data, key)
        least, at_z, _ = derivatives.lower_slopes(problem, u, z, data, key)
        direction = jax.tree.map(lambda d, a, b: scale * (d + gamma * (a - b)), f.grad_u, at_v, at_z)
        down = jax.tree.map(lambda d, a: scale * (d + gamma * a), f.grad_v, slope)
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        v, lower_opt = base.move(self.lower_optimizer, state.lower_opt, v, down, problem.project_lower)
        info = base.Info(f.loss, loss, optax.tree.norm(direction), optax.tree.norm(slope), {"gap": loss - least})
        return base.State(moved, v, upper_opt, lower_opt, Values(z, z_opt, count + 1)), info


@dataclass(frozen=True)
class LowerFirst(bx.MEHA):
    """MEHA as BOAT 1.1.1 has it (its fo_ol/meso.py): v moves before u, where the published method moves u before v.

    It also differentiates |w - v|^2 / (2 radius) in v through the move of w, which depends on v.
    """

    def step(
        self, problem: bx.Problem, state: base.State, batch: bx.Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """One move of w, of v and of u, each at the newest values of the others."""
        u, v, (w, count) = state.u, state.v, state.memory
        data, c = base.lower_data(batch, 0), schedules.at(self.weight, count)
        slope = derivatives.lower_gradient(problem, u, w, data, key)[1]
        w = jax.tree.map(lambda x, d, y: x - self.value_rate * (d + (x - y) / self.radius), w, slope, v)
        f = derivatives.upper(problem, u, v, batch.upper, key)
        slope = derivatives.lower_gradient(problem, u, v, data, key)[1]
        pull = (1 - self.value_rate / self.radius) / self.radius
        v = jax.tree.map(lambda x, a, b, y: x - self.rate * (a / c + b - pull * (x - y)), v, f.grad_v, slope, w)
        f = derivatives.upper(problem, u, v, batch.upper, key)
        loss, at_v, slope = derivatives.lower_slopes(problem, u, v, data, key)
        least, at_w, _ = derivatives.lower_slopes(problem, u, w, data, key)
        direction = jax.tree.map(lambda d, a, b: d / c + a - b, f.grad_u, at_v, at_w)
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        info = base.Info(f.loss, loss, optax.tree.norm(direction), optax.tree.norm(slope), {"gap": loss - least})
        return base.State(moved, v, upper_opt, (), Counted(w, count + 1)), info


@dataclass(frozen=True)
class Rising:
    """The weight that BOAT's MESO has: initial * (k + 2)**0.25 in step k, counted from 0."""

    initial: float

    def __call__(self, step: Any) -> Any:
        """The weight of a step."""
        return self.initial * (step + 2.0) ** 0.25

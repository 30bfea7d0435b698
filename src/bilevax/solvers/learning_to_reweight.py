"""Learning to reweight: in each step, the weights of a minibatch are computed from the slope of the clean loss."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError
from bilevax.problem import Batch, Problem
from bilevax.solvers import base

LINEAR_WITHIN = 1e-3  # relative to g: in float32 a linear g has errors of about 1e-6


class Weights(NamedTuple):
    """The weights that samples had so far, to rank them.

    Attributes:
        mean_weight: the mean of all weights of each sample, which is less noisy than the weight in one batch; 0 if the
            sample was in no batch.
        seen: the number of batches with the sample.
    """

    mean_weight: Float[Array, " n"]
    seen: Int[Array, " n"]


@dataclass(frozen=True)
class LearningToReweight:
    """Learning to reweight examples (Ren, Zeng, Yang and Urtasun, ICML 2018, Algorithm 1).

    For problems whose u (n,) is one weight per training sample, and whose losses are

        f(v),    g(u, v, Samples(data, index)) = 1/B sum over the batch of u[index_i] loss_i(v)  +  r(v).

    In each step the weights of the batch are computed, not moved by a gradient. With e_i the derivative of
    f(v - t grad_v g(u, v)) in the weight of sample i at u = 0,

        w_i = B max(-e_i, 0) / sum_j max(-e_j, 0),    all zero if the sum is zero,

    and v moves along grad_v g(w, v). The weight of a sample is proportional to the decrease of the clean loss by a
    gradient step on the loss of the sample. In the paper the weights sum to 1 and g is a sum; here they sum to B, and
    g is a mean.

    As published, the look-ahead uses only the weighted losses, without r (Ren et al., eqs. 5-8): at u = 0 it stays at
    v, so e = second_products(p)[0] with p = -t grad_v f(v), and w does not depend on the rate t. Only the move of v
    uses r. A sample that is in a batch several times has one weight, that of a single copy.

    Args:
        lower_optimizer: any optax optimizer.

    The start of u determines its shape and type, and stays the weight of a sample that is never drawn. Rank samples by
    `result.state.memory.mean_weight`; see `Weights`.

    Cost of a step: one gradient of f, one of g, and one forward-mode pass through g (not through its gradient, since g
    is linear in u). Memory: that of v, the optimizer and three vectors (n,).
    `upper_loss` is at v before the move, `extra["used"]` is the share of the batch with a positive weight.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import LearningToReweight, Minibatches, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, clean: jnp.mean((v - clean.data) ** 2),
        ...     lower_loss=lambda u, v, noisy: jnp.mean(u[noisy.index] * (v - noisy.data) ** 2),
        ... )
        >>> batches = Minibatches(upper=jnp.full(2, 1.0), lower=jnp.array([1.0, 1.0, -1.0, -3.0]))
        >>> solver = LearningToReweight(optax.sgd(0.1))
        >>> result = solve(solver, problem, jnp.zeros(4), jnp.zeros(()), batches, steps=10, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.state.memory.mean_weight, 3))
        [2. 2. 0. 0.] [2. 2. 0. 0.]
    """

    lower_optimizer: optax.GradientTransformation = optax.sgd(1e-2)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a `project_lower`, a u that is not a vector, a batch without index, and other losses."""
        base.refuse_constraints(self, problem)
        base.refuse_lower_constraints(self, problem)
        if not jax.tree_util.all_leaves([u]) or np.ndim(u) != 1:
            found = f"of shape {np.shape(u)}" if jax.tree_util.all_leaves([u]) else f"a {type(u).__name__}"
            raise InputError(
                f"LearningToReweight: u is {found}, and must be one floating vector (n,), a weight for each "
                "training sample. For any other u use LookAhead."
            )
        index: Any = getattr(batch.lower, "index", None)
        if np.ndim(index) != 1 or not jnp.issubdtype(getattr(index, "dtype", float), jnp.integer):
            raise InputError(
                f"LearningToReweight: batch.lower is a {type(batch.lower).__name__} without an integer vector `index`, "
                "and must be bilevax.Samples(data, index), with the positions of the samples in u. "
                "Use Minibatches or Epochs (without per_move), or wrap a full data set by bilevax.whole."
            )
        low, high = int(jnp.min(index)), int(jnp.max(index))
        if low < 0 or high >= len(u):
            raise InputError(
                f"LearningToReweight: batch.lower.index has values from {low} to {high}, and u has {len(u)} entries. "
                "Give u one entry for each training sample."
            )
        base.refuse_lower_sets(self, problem)
        base.check_problem(self, problem, u, v, batch)
        base.check_optimizers(self, problem, u, v, batch, lower=base.Known.FUNCTION)
        self._check_losses(problem, u, v, batch)

    def _check_losses(self, problem: Problem, u: Any, v: PyTree, batch: Batch) -> None:
        """Refuse an f that depends on u, and a g that is not linear in u, by their values at u = 0, 1 and 2."""

        @jax.jit
        def values(v: PyTree, batch: Batch) -> Any:
            key, points = jax.random.key(0), [jnp.full_like(u, x) for x in (0, 1, 2)]
            f = [problem.upper(x, v, batch.upper, key) for x in points]
            return f, [problem.lower(x, v, batch.lower, key) for x in points]

        f, g = (np.asarray(x, float) for x in values(v, batch))
        if np.any(f[0] != f) and not np.any(np.isnan(f)):
            raise InputError(
                f"LearningToReweight: upper_loss depends on u (it is {f[0]:g} at u = 0 and {f[1]:g} at u = 1), "
                "and must be a loss of v alone, such as that on clean samples. Use LookAhead for this problem."
            )
        if not np.all(np.isfinite(g)) or abs(g[0] - 2 * g[1] + g[2]) > LINEAR_WITHIN * np.abs(g).sum():
            raise InputError(
                f"LearningToReweight: lower_loss is not linear in u (it is {g[0]:g}, {g[1]:g} and {g[2]:g} if all "
                "weights are 0, 1 and 2). Return jnp.mean(u[batch.index] * losses), without a non-linear function of "
                "u and without dividing by the sum of the weights, or use LookAhead."
            )

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with no sample seen."""
        u = jnp.asarray(u)
        weights = Weights(jnp.zeros_like(u), jnp.zeros(u.shape, jnp.int32))
        return base.State(u, v, (), self.lower_optimizer.init(v), weights)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Compute the weights of the batch, and move v once along grad_v g."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        v = base.start_of_step(problem, state, batch, start_key)
        index = batch.lower.index
        zero = jnp.zeros_like(state.u)
        f = derivatives.upper(problem, zero, v, batch.upper, upper_key)
        # The weights and the move of v use the same key: they have the same dropout, and share the forward pass.
        g = derivatives.lower(problem, zero, v, batch.lower, lower_key)
        slope = g.second_products(jax.tree.map(jnp.negative, f.grad_v))[0]
        copies = jnp.zeros_like(state.memory.seen).at[index].add(1)
        # second_products sums over the copies of a sample.
        positive = jnp.maximum(-slope[index], 0) / copies[index].astype(slope.dtype)
        total = jnp.sum(positive)
        weight = index.size * positive / jnp.where(total > 0, total, 1)
        u = problem.project_upper(state.u.at[index].set(weight))

        descent = base.Descent(problem, u, self.lower_optimizer)
        (v, lower_opt), (loss, size) = descent.move((v, state.lower_opt), batch.lower, lower_key)
        here = copies > 0
        mean, seen = state.memory.mean_weight, state.memory.seen + here
        mean += jnp.where(here, (u - mean) / jnp.maximum(seen, 1).astype(u.dtype), 0)
        extra = {"used": jnp.mean(weight > 0, dtype=weight.dtype)}
        info = base.Info(f.loss, loss, optax.tree.norm(slope), size, extra)
        return base.State(u, v, (), lower_opt, Weights(mean, seen)), info

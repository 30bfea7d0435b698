"""Learning to reweight: the weights of a minibatch set anew in each step, from the clean loss's slope."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError
from bilevax.problem import Batch, Problem
from bilevax.solvers import base

LINEAR_WITHIN = 1e-3  # of the size of g: float32 keeps linearity to about 1e-6


class Weights(NamedTuple):
    """What ranks the samples.

    Attributes:
        mean_weight: (n,) the mean of all weights that a sample was given, less noisy than one minibatch's; 0 where
            `seen` is.
        seen: (n,) integers, the number of batches that a sample was in.
    """

    mean_weight: Float[Array, ""]
    seen: Any


@dataclass(frozen=True)
class LearningToReweight:
    """Learning to reweight examples (Ren, Zeng, Yang and Urtasun, ICML 2018, Algorithm 1).

    For problems whose u (n,) is one weight per training sample, and whose losses are

        f(v),    g(u, v, Samples(data, index)) = 1/B sum over the batch of u[index_i] loss_i(v)  +  r(v).

    In each step the weights of the batch are set, not moved. With e_i the derivative of f(v - t grad_v g(u, v)) in
    the weight of sample i at u = 0,

        w_i = B max(-e_i, 0) / sum_j max(-e_j, 0),    all zero where the sum is,

    and v moves along grad_v g(w, v). So a sample counts as far as a step down its own loss brings
    down the clean loss. The paper's weights sum to 1 under a sum; these sum to B under g's mean.

    As published, the look-ahead is that of the weighted losses alone (Ren et al., eqs. 5-8), without r: at u = 0
    it stays at v, so e = second_products(p)[0] with p = -t grad_v f(v), and the step t drops out of w. There is
    no rate to choose; r has its part in the move of v alone. A sample that is in a batch several times has one
    weight, that of a single copy.

    Args:
        lower_optimizer: any optax optimizer.

    The start of u gives its shape and type, and stays where a sample was never drawn. Rank samples by
    `result.state.memory.mean_weight`, see `Weights`.

    Cost of a step: one gradient of f, one of g, and the tangent of g's forward pass (of g alone, not of its
    gradient, since g is linear in u). Memory: that of v, the optimizer and three vectors (n,).
    `upper_loss` is that at the v before the move, `extra["used"]` the share of the batch with a positive weight.

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
        """Refuse constraints, a v in a set, a u that is not a vector of weights, no index, losses of another form."""
        base.refuse_constraints(self, problem)
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
                "and must be bilevax.Samples(data, index), which says which weights are the batch's. "
                "Use Minibatches or Epochs (without per_move), or wrap a full data set by bilevax.whole."
            )
        low, high = int(jnp.min(index)), int(jnp.max(index))
        if low < 0 or high >= len(u):
            raise InputError(
                f"LearningToReweight: batch.lower.index reaches from {low} to {high}, and u has {len(u)} entries. "
                "Give u one entry for each training sample."
            )
        base.refuse_lower_sets(self, problem)
        problem.check(u, v, batch)
        base.check_optimizers(self, problem, u, v, batch, lower=base.Known.FUNCTION)
        self._check_losses(problem, u, v, batch)

    def _check_losses(self, problem: Problem, u: Any, v: PyTree, batch: Batch) -> None:
        """By their values at u = 0, 1, 2: f must not change, g must change linearly."""

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
                f"LearningToReweight: lower_loss is not linear in u (it is {g[0]:g}, {g[1]:g} and {g[2]:g} where all "
                "weights are 0, 1 and 2). Let it return jnp.mean(u[batch.index] * losses), without a function of u "
                "and without dividing by the sum of the weights, or use LookAhead."
            )

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """The state at (u, v), no sample seen."""
        u = jnp.asarray(u)
        weights = Weights(jnp.zeros_like(u), jnp.zeros(u.shape, jnp.int32))
        return base.State(u, v, (), self.lower_optimizer.init(v), weights)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """The batch's weights, then one move of v along grad_v g."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        v = base.start_of_step(problem, state, batch, start_key)
        index = batch.lower.index
        zero = jnp.zeros_like(state.u)
        f = derivatives.upper(problem, zero, v, batch.upper, upper_key)
        # One key for the weights and the move they are for: the same dropout, and the same forward pass.
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

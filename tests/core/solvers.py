"""Every solver, with a problem that it can treat: the common tests walk this list, and a new method adds one entry."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import derivatives, linear_solve
from bilevax.penalties import L1
from bilevax.schedules import Geometric, Power

UPPER, LOWER = optax.adam(2e-2), optax.sgd(5e-2)
ADAM = optax.adam(2e-2)
SLOWING = optax.sgd(optax.cosine_decay_schedule(2e-2, 4000))


@dataclass(frozen=True, eq=False)
class Case:
    """A solver and what it is tried on; `finds`: whether it reaches the solution of `PROBLEM`, to a tolerance."""

    solver: Any
    problem: bx.Problem
    u: Any
    v: Any
    batch: bx.Batch
    finds: float | None = None

    @property
    def start(self):
        return self.u, self.v


# f pulls (u, v) to a target given as data; g couples v to u through a tree of two leaves.
def upper_loss(u, v, target):
    return jnp.sum((v["a"] - target) ** 2) + 0.1 * jnp.sum(u**2) + 0.1 * jnp.sum(v["b"] ** 2)


def lower_loss(u, v, weights):
    return 0.5 * jnp.sum(weights * (v["a"] - 2 * u) ** 2) + 0.5 * jnp.sum((v["b"] - jnp.sum(u)) ** 2)


PROBLEM = bx.Problem(upper_loss, lower_loss)
TARGET = jnp.array([1.0, -2.0, 0.5])
BATCH = bx.Batch(upper=TARGET, lower=jnp.array([1.0, 2.0, 3.0]))
START = jnp.zeros(3), {"a": jnp.zeros(3), "b": jnp.zeros(())}


def solution():
    """d/du [|2u - t|^2 + 0.1 |u|^2 + 0.1 (sum u)^2] = 0."""
    matrix = (8 + 0.2) * np.eye(3) + 0.2 * np.ones((3, 3))
    return np.linalg.solve(matrix, 4 * np.asarray(TARGET))


# A lasso whose strength is exp(u).
SPARSE = bx.Problem(
    lambda u, v, target: jnp.sum((v - target) ** 2) + 0.01 * jnp.sum(u**2),
    lambda u, v, scale: jnp.sum(scale * (v - jnp.array([2.0, 0.5, -1.0])) ** 2) / 2,
    regularizer=lambda u, v, mu: jnp.exp(u[0]) * L1()(v, mu),
)


def proximal(u, v, step):
    return L1().proximal(v, step * jnp.exp(u[0]))


# The training gradient of v is to point as the gradient of f does.
ALIGNED = bx.Problem(
    lambda u, v, target: v @ target + 0.1 * v @ v, lambda u, v, weights: (weights * u) @ v + 0.1 * v @ v
)

# A weight for each of six samples.
WEIGHTED = bx.Problem(
    lambda u, v, clean: jnp.mean((v - clean.data) ** 2),
    lambda u, v, noisy: jnp.mean(u[noisy.index] * (v - noisy.data) ** 2),
)
NOISY = bx.Batch(bx.whole(jnp.full(2, 1.0)), bx.whole(jnp.array([1.0, 1.5, 0.5, -1.0, -2.0, 3.0])))


# The same target and weights as samples, for solvers that need to know which samples they get.
SAMPLED = bx.Problem(
    lambda u, v, target: upper_loss(u, v, target.data[0]), lambda u, v, weights: lower_loss(u, v, weights.data[0])
)
IN_BLOCKS = bx.Blocks(BATCH.upper[None], BATCH.lower[None], 1, 1).last()
WITH_WHOLE = bx.Batch(bx.PartAndWhole(BATCH.upper, BATCH.upper), bx.PartAndWhole(BATCH.lower, BATCH.lower))
DOWN = optax.sgd(5e-3), optax.sgd(1e-1), optax.sgd(1e-1)


def common(solver, finds=2e-3):
    return Case(solver, PROBLEM, *START, BATCH, finds)


CASES = {
    "Alternating": common(bx.Alternating(UPPER, LOWER), None),
    "Penalty": common(bx.Penalty(UPPER, ADAM)),
    "Penalty, no multipliers": common(bx.Penalty(UPPER, ADAM, nu=0.0)),
    "Penalty, lam": common(bx.Penalty(UPPER, ADAM, lam=Geometric(1.0, 0.8))),
    "Penalty, finite differences": common(bx.Penalty(UPPER, ADAM, curvature=derivatives.finite_difference)),
    "Penalty, stages": common(bx.Penalty(UPPER, ADAM, stage_steps=100)),
    "Implicit": common(bx.Implicit(UPPER, LOWER, 20, linear_solve.CG(20))),
    "Implicit, GMRES": common(bx.Implicit(UPPER, LOWER, 20, linear_solve.GMRES(3))),
    "Implicit, Neumann": common(bx.Implicit(UPPER, LOWER, 20, linear_solve.Neumann(60, 0.2))),
    "Implicit, Nystrom": common(bx.Implicit(UPPER, LOWER, 20, linear_solve.Nystrom(4, 1e-6, 10))),
    "Implicit, descent": common(bx.Implicit(UPPER, LOWER, 20, linear_solve.ByOptimizer(optax.sgd(0.05), 20))),
    "Implicit, quadratic": common(
        bx.Implicit(UPPER, LOWER, 20, linear_solve.ByOptimizer(optax.sgd(0.2), 20, form=linear_solve.quadratic))
    ),
    "ReverseMode": common(bx.ReverseMode(UPPER, LOWER, 100)),
    "ReverseMode, segments": common(bx.ReverseMode(UPPER, optax.sgd(2e-2, momentum=0.8), 100, segment=10)),
    "ReverseMode, truncated": common(bx.ReverseMode(UPPER, LOWER, 100, last=60, segment=7)),
    "ForwardMode": common(bx.ForwardMode(UPPER, LOWER, 100)),
    "SPNBO": common(
        bx.SPNBO(UPPER, ADAM, 10, beta=Geometric(1.0, 1.1), step_scale=Geometric(1.0, 0.9), stage_steps=100)
    ),
    "SMNBP": common(bx.SMNBP()),
    "BVFIM": common(bx.BVFIM(UPPER, LOWER, 20), 0.15),
    "F2SA": common(bx.F2SA(UPPER, LOWER, 20), 1e-2),
    "F2SA, forward": common(bx.F2SA(UPPER, LOWER, 20, 0.02, 1), 1e-2),
    "F2SA, order 3": common(bx.F2SA(UPPER, LOWER, 20, order=3), 1e-2),
    "F2SA, order 4": common(bx.F2SA(UPPER, LOWER, 20, order=4), 1e-2),
    "VPBGD": common(bx.VPBGD(UPPER, LOWER, lower_steps=5)),
    "BOME": common(bx.BOME(SLOWING, SLOWING, LOWER, 20), 1e-2),
    "MEHA": common(bx.MEHA(optax.sgd(5e-2), None, 5e-2, 5e-2, weight=Power(3.0, 0.49))),
    "SOBA": common(bx.SOBA(*DOWN)),
    "MASOBA": common(bx.MASOBA(*DOWN)),
    "SABA": Case(bx.SABA((1, 1), *DOWN), SAMPLED, *START, IN_BLOCKS, 2e-3),
    "SRBA": Case(bx.SRBA(*DOWN, period=5), PROBLEM, *START, WITH_WHOLE, 2e-3),
    "AmIGO": common(bx.AmIGO(*DOWN)),
    "StocBiO": common(bx.StocBiO(optax.sgd(5e-2), LOWER, 50, 100, 0.2)),
    "SAMA": common(bx.SAMA(UPPER, LOWER), None),
    "PZOBO": common(bx.PZOBO(optax.sgd(1e-2), optax.sgd(0.2), 20, 20), 1e-2),
    "BLOCC": common(bx.BLOCC(UPPER, LOWER, gamma=200.0)),
    "BiCGAFFA": common(bx.BiCGAFFA(optax.sgd(5e-2), 5e-2, 5e-2, weight=Power(3.0, 0.49))),
    "LookAhead": common(bx.LookAhead(UPPER, LOWER, 5e-2), None),
    "LookAhead, finite differences": common(bx.LookAhead(UPPER, LOWER, 5e-2, 10, derivatives.finite_difference), None),
    "SparseHO": Case(
        bx.SparseHO(UPPER, proximal, rate=0.3, lower_steps=20),
        SPARSE,
        jnp.full(1, -2.0),
        jnp.ones(3),
        bx.Batch(jnp.array([1.0, 0.0, -0.5]), jnp.ones(3)),
    ),
    "GradientMatching": Case(
        bx.GradientMatching(UPPER),
        ALIGNED,
        jnp.array([1.0, 1.0, 0.5]),
        jnp.full(3, 0.1),
        bx.Batch(jnp.array([1.0, 0.0, 0.5]), jnp.ones(3)),
    ),
    "LearningToReweight": Case(bx.LearningToReweight(optax.sgd(0.1)), WEIGHTED, jnp.zeros(6), jnp.zeros(()), NOISY),
}

# One of each class: its variants have a comma in their names.
KINDS = {name: case for name, case in CASES.items() if "," not in name}

# One solver for each way to a direction of u: a penalty, a linear system, unrolled moves, values of g, a single loop.
FAMILIES = ("Penalty", "Implicit", "ReverseMode", "F2SA", "SOBA")


def _quick(solvers, is_quick):
    named = [(x if isinstance(x, str) else type(x).__name__, x) for x in solvers]
    return [pytest.param(x, id=n, marks=() if is_quick(n) else pytest.mark.slow) for n, x in named]


def of_each_class(solvers, *more):
    """Solvers, or names in `CASES`, as parameters: other settings of a class are slow, except `more`.

    For what a method has of its own: its direction, and what it refuses.
    """
    return _quick(solvers, lambda name: "," not in name or name in more)


def of_each_family(solvers, *more):
    """Solvers, or names in `CASES`, as parameters: slow except one of each family, and `more`.

    For what methods share: data, types, optimizers, resuming, several members.
    """
    return _quick(solvers, lambda name: name in (*FAMILIES, *more))


def floats(change, tree):
    """The tree, its floating leaves changed: not the indices of samples."""
    return jax.tree.map(lambda x: change(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

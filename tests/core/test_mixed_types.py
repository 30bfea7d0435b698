"""Every solver on u and v whose leaves have several types: they run, keep the types, and come to the same answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import Problem, linear_solve, solve
from bilevax.argmin import hypergradient
from bilevax.penalties import L1
from tests.core.solvers import FAMILIES, KINDS, of_each_family

SGD = optax.sgd(0.05)
SOLVERS = {
    "Alternating": bx.Alternating(SGD, SGD),
    "AmIGO": bx.AmIGO(SGD, SGD, SGD, 5, 5),
    "BOME": bx.BOME(SGD, SGD, SGD, 5),
    "BVFIM": bx.BVFIM(SGD),
    "F2SA": bx.F2SA(SGD, SGD, 5),
    "MASOBA": bx.MASOBA(SGD, SGD, SGD),
    "MEHA": bx.MEHA(SGD),
    "SOBA": bx.SOBA(SGD, SGD, SGD),
    "StocBiO": bx.StocBiO(SGD, SGD, 5, 5),
    "VPBGD": bx.VPBGD(SGD, SGD),
    "BLOCC": bx.BLOCC(SGD, SGD, 5),
    "BiCGAFFA": bx.BiCGAFFA(SGD),
    "PZOBO": bx.PZOBO(SGD, SGD, 5),
    "SAMA": bx.SAMA(SGD, SGD),
    "ForwardMode": bx.ForwardMode(SGD, SGD),
    "Implicit": bx.Implicit(SGD, SGD),
    "Implicit, Direct": bx.Implicit(SGD, SGD, linear_solve=linear_solve.Direct()),
    "Implicit, Adam": bx.Implicit(optax.adam(0.05), optax.adam(0.05), linear_solve=linear_solve.ByOptimizer()),
    "Implicit, differences": bx.Implicit(SGD, SGD, curvature=bx.derivatives.finite_difference),
    "LookAhead": bx.LookAhead(SGD, SGD),
    "GradientMatching": bx.GradientMatching(SGD),
    "Penalty": bx.Penalty(),
    "ReverseMode": bx.ReverseMode(SGD, SGD, segment=5),
    "ReverseMode, Adam": bx.ReverseMode(optax.adam(0.05), optax.adam(0.05)),
    "SMNBP": bx.SMNBP(),
    "SPNBO": bx.SPNBO(lower_steps=5),
    "SparseHO": bx.SparseHO(SGD, lambda u, v, step: L1().proximal(v, step * jnp.exp(u["b"][0])), 0.1, 5),
}
TYPES = {
    "float32 and bfloat16": (jnp.float32, jnp.bfloat16),
    "float64 and float32": (jnp.float64, jnp.float32),
    "float16": (jnp.float16, jnp.float16),
}
PROBLEM = Problem(
    lambda u, v, _: jnp.sum((v["a"] - 1.0) ** 2) + jnp.sum((v["b"] + 0.5) ** 2) + 0.1 * jnp.sum(u["a"] ** 2),
    lambda u, v, _: jnp.sum((v["a"] - u["a"]) ** 2) + jnp.sum((v["b"] - u["b"] * v["a"][0]) ** 2),
    regularizer=lambda u, v, mu: jnp.exp(u["b"][0]) * L1()(v, mu),
)
SMOOTH = Problem(PROBLEM.upper_loss, PROBLEM.lower_loss)


def start(types):
    u = {"a": jnp.full(2, 0.5, types[0]), "b": jnp.full(2, -2.0, types[1])}
    return u, {"a": jnp.full(2, 0.4, types[0]), "b": jnp.full(2, -0.6, types[1])}


def kinds(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


CASES = {f"{name}, {types}": (SOLVERS[name], TYPES[types]) for name in SOLVERS for types in list(TYPES)[:1]}
CASES |= {f"{name}, {types}": (SOLVERS[name], TYPES[types]) for name in ("Implicit", "SparseHO") for types in TYPES}


def test_every_solver_is_here():
    """LearningToReweight needs a vector u of one type; SABA and SRBA need sources, and move as SOBA does."""
    missing = set(KINDS) - set(SOLVERS) - {"LearningToReweight", "SABA", "SRBA"}
    assert not missing, f"SOLVERS in {__file__} lacks {sorted(missing)}: add each with plain descent and few moves"


def problem_for(solver):
    return PROBLEM if isinstance(solver, bx.SparseHO | bx.SMNBP | bx.SPNBO) else SMOOTH


@pytest.mark.parametrize("name", of_each_family(CASES, *(f"{name}, {next(iter(TYPES))}" for name in FAMILIES)))
def test_a_step_keeps_types(name):
    solver, types = CASES[name]
    u, v = start(types)
    state = solver.init(problem_for(solver), u, v, bx.Batch())
    moved, _ = jax.eval_shape(lambda s: solver.step(problem_for(solver), s, bx.Batch(), jax.random.key(0)), state)
    assert kinds(moved) == kinds(state)
    assert kinds((moved.u, moved.v)) == kinds((u, v))


SOLVED = [
    pytest.param(*case, id=name, marks=() if name.startswith("Penalty") else pytest.mark.slow)
    for name, case in CASES.items()
]


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "types"), SOLVED)
def test_a_solve_keeps_types_and_moves(solver, types):
    problem, (u, v) = problem_for(solver), start(types)
    result = solve(solver, problem, u, v, steps=2, key=jax.random.key(0))
    assert kinds((result.u, result.v)) == kinds((u, v))
    assert np.any(np.asarray(result.u["a"] != u["a"]))
    assert np.isfinite(np.asarray(result.history.upper_loss, float)).all()


@functools.cache
def exact():
    return jax.jit(lambda u, v: hypergradient(SMOOTH, u, v).gradient)(*start((jnp.float64,) * 2))


@pytest.mark.parametrize(
    "types", [pytest.param(x, marks=pytest.mark.slow if n == "float16" else ()) for n, x in TYPES.items()], ids=TYPES
)
def test_the_hypergradient_of_several_types(types):
    u, v = start(types)
    wanted = exact()
    solve = linear_solve.CG(20, 1e-4)
    found = jax.jit(lambda u, v: hypergradient(SMOOTH, u, v, linear_solve=solve).gradient)(u, v)
    assert kinds(found) == kinds(u)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a.astype(float), b, atol=0.03)

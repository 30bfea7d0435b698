"""What holds for every solver: a new method adds one entry to SOLVERS."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import derivatives, linear_solve
from bilevax.schedules import Geometric
from bilevax.solvers.base import State

UPPER, LOWER = optax.adam(2e-2), optax.sgd(5e-2)
ADAM = optax.adam(2e-2)

SOLVERS = [
    bx.Alternating(UPPER, LOWER),
    bx.Penalty(UPPER, ADAM),
    bx.Penalty(UPPER, ADAM, nu=0.0),
    bx.Penalty(UPPER, ADAM, lam=Geometric(1.0, 0.8)),
    bx.Penalty(UPPER, ADAM, curvature=derivatives.finite_difference),
    bx.Penalty(UPPER, ADAM, stage_steps=100),
    bx.Implicit(UPPER, LOWER, 20, linear_solve.CG(20)),
    bx.Implicit(UPPER, LOWER, 20, linear_solve.GMRES(3)),
    bx.Implicit(UPPER, LOWER, 20, linear_solve.Neumann(60, 0.2)),
    bx.Implicit(UPPER, LOWER, 20, linear_solve.ByOptimizer(optax.sgd(0.05), 20)),
    bx.Implicit(UPPER, LOWER, 20, linear_solve.ByOptimizer(optax.sgd(0.2), 20, form=linear_solve.quadratic)),
    bx.ReverseMode(UPPER, LOWER, 100),
    bx.ReverseMode(UPPER, optax.sgd(2e-2, momentum=0.8), 100, segment=10),
    bx.ReverseMode(UPPER, LOWER, 100, last=60, segment=7),
    bx.ForwardMode(UPPER, LOWER, 100),
    bx.SPNBO(UPPER, ADAM, 10, beta=Geometric(1.0, 1.1), step_scale=Geometric(1.0, 0.9), stage_steps=100),
    bx.LookAhead(UPPER, LOWER, 5e-2),
    bx.LookAhead(UPPER, LOWER, 5e-2, 10, derivatives.finite_difference),
]
FINDS_SOLUTIONS = [s for s in SOLVERS if not isinstance(s, bx.Alternating | bx.LookAhead)]


EVERY = 50  # the same in all tests, so that they share a compiled program


def run(solver, problem, u, v, batch, steps, key):
    return bx.solve(solver, problem, u, v, batch, steps=steps, every=EVERY, key=key)


def name(solver):
    return repr(type(solver).__name__) + str(SOLVERS.index(solver))


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


@pytest.mark.parametrize("solver", FINDS_SOLUTIONS, ids=name)
def test_reaches_the_bilevel_solution(solver, key):
    result = run(solver, PROBLEM, *START, BATCH, 4000, key)
    np.testing.assert_allclose(result.u, solution(), atol=2e-3)
    np.testing.assert_allclose(result.v["a"], 2 * solution(), atol=4e-3)
    assert result.status is bx.Status.FINISHED


def test_alternating_descent_does_not(key):
    result = bx.solve(SOLVERS[0], PROBLEM, *START, BATCH, steps=4000, key=key)
    assert np.linalg.norm(result.u - solution()) > 0.5  # it only sees grad_u f = 0.2 u
    np.testing.assert_allclose(result.u, 0, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_protocol(solver, key):
    """State and Info keep structure, shapes and dtypes."""
    state = solver.init(PROBLEM, *START, BATCH)
    assert isinstance(state, State)
    moved, info = jax.jit(lambda s: solver.step(PROBLEM, s, BATCH, key))(state)
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(moved)] == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert isinstance(info, bx.Info)
    assert all(x.shape == () for x in jax.tree.leaves(info))
    assert isinstance(solver.lower_steps, int)
    hash(solver)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_float32_stays_float32(solver, key):
    small = jax.tree.map(lambda x: x.astype(jnp.float32), (*START, BATCH))
    result = run(solver, PROBLEM, *small, 3, key)
    assert {x.dtype for x in jax.tree.leaves((result.u, result.v))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_same_key_same_bits(solver, key):
    runs = [run(solver, PROBLEM, *START, BATCH, 60, key) for _ in range(2)]
    for a, b in zip(*(jax.tree.leaves((r.state, r.history)) for r in runs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_length_of_a_stretch_changes_no_bit(key):
    runs = [bx.solve(SOLVERS[1], PROBLEM, *START, BATCH, steps=60, key=key, every=n) for n in (50, 7)]
    for a, b in zip(*(jax.tree.leaves((r.state, r.history)) for r in runs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_vectorized_members_equal_single_runs(solver, key):
    starts = jax.tree.map(lambda x: jnp.stack([x, x + 0.3, x - 1.0]), START)
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x, x]), BATCH)
    together = bx.solve(bx.Vectorized(solver), PROBLEM, *starts, batch, steps=40, key=key)
    assert together.history.upper_loss.shape == (40, 3)
    for i in (0, 1):
        one = jax.tree.map(lambda x, i=i: x[i], (*starts, batch))
        alone = run(solver, PROBLEM, *one, 40, key)
        np.testing.assert_allclose(together.u[i], alone.u, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not isinstance(s, bx.Penalty)], ids=name)
def test_constraints_are_refused_by_name(solver, key):
    problem = dataclasses.replace(PROBLEM, constraints=(bx.Inequality(lambda u, v: u),))
    with pytest.raises(bx.InputError, match=rf"{type(solver).__name__} cannot treat .* Use Penalty"):
        run(solver, problem, *START, BATCH, 1, key)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_fresh_data_for_each_move(solver, key):
    """PerMove hands move t its own slice; T copies of one batch change nothing."""
    copies = jnp.broadcast_to(BATCH.lower, (solver.lower_steps, 3))
    start = jnp.ones(3), START[1]
    one = run(solver, PROBLEM, *start, BATCH, 5, key)
    same = run(solver, PROBLEM, *start, BATCH._replace(lower=bx.PerMove(copies)), 5, key)
    np.testing.assert_allclose(one.u, same.u, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(one.v["a"], same.v["a"], rtol=1e-10, atol=1e-12)
    ramp = copies * jnp.linspace(0.1, 1, solver.lower_steps)[:, None]
    other = run(solver, PROBLEM, *start, BATCH._replace(lower=bx.PerMove(ramp)), 5, key)
    assert not np.allclose(one.v["a"], other.v["a"], rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_lower_start(solver, key):
    """v starts where the problem says, in every step."""
    problem = dataclasses.replace(PROBLEM, lower_start=lambda u, batch, key: {"a": 2 * u, "b": jnp.sum(u)})
    u = jnp.ones(3)
    far = {"a": jnp.full(3, 1e6), "b": jnp.zeros(())}
    if getattr(solver, "last", None) is not None:
        with pytest.raises(bx.InputError, match="the derivative through the start would be lost"):
            run(solver, problem, u, far, BATCH, 1, key)
        return
    result = run(solver, problem, u, far, BATCH, 1, key)
    assert np.abs(result.v["a"]).max() < 10


@pytest.mark.parametrize(
    ("solver", "fields", "message"),
    [
        (bx.Penalty, {"lower_steps": 0}, "lower_steps is 0, and must be a positive integer"),
        (bx.Penalty, {"lower_steps": 2.0}, "lower_steps is 2.0"),
        (bx.Penalty, {"gamma": Geometric(1.0, 0.9)}, "gamma decreases from 1 at stage 0 to 0.9"),
        (bx.Penalty, {"gamma": -1.0}, "gamma is -1 at stage 0, and must be positive"),
        (bx.Penalty, {"eps": 0.0}, "eps is 0 at stage 0"),
        (bx.Penalty, {"lam": lambda k: 1.0 - k}, "lam is -1 at stage 2, and must be zero or positive"),
        (bx.Penalty, {"nu": -0.5}, "nu is -0.5"),
        (bx.Penalty, {"step_scale": 0.0}, "step_scale is 0"),
        (bx.Penalty, {"stage_steps": 0}, "stage_steps is 0"),
        (bx.Implicit, {"lower_steps": -1}, "lower_steps is -1"),
        (bx.ReverseMode, {"last": 11}, "last is 11, more than the 10"),
        (bx.ReverseMode, {"segment": 0}, "segment is 0"),
        (bx.Alternating, {"lower_steps": True}, "lower_steps is True"),
        (bx.ForwardMode, {"lower_steps": 0}, "lower_steps is 0"),
        (Geometric, {"initial": -1.0, "factor": 2.0}, "initial is -1, and must be positive"),
    ],
)
def test_bad_hyperparameters(solver, fields, message):
    with pytest.raises(bx.InputError, match=message):
        solver(**fields)


def test_stages_move_as_the_paper_says(key):
    """gamma and nu change exactly where |grad_u|^2 + |grad_v|^2 <= eps_k^2, and eps_k falls."""
    solver = bx.Penalty(UPPER, ADAM)
    history = run(solver, PROBLEM, *START, BATCH, 2000, key).history
    stage = history.extra["stage"]
    ended = history.extra["stationarity"] <= 0.9**stage
    np.testing.assert_array_equal(np.diff(stage), ended[:-1].astype(int))
    np.testing.assert_allclose(history.extra["gamma"], 1.1**stage, rtol=1e-12)
    assert stage[-1] > 10


def test_stage_steps_end_a_stage(key):
    solver = bx.Penalty(UPPER, ADAM, stage_steps=10, eps=1e-12)
    stage = run(solver, PROBLEM, *START, BATCH, 35, key).history.extra["stage"]
    np.testing.assert_array_equal(stage, np.arange(35) // 10)


def test_regularizer_is_part_of_g(key):
    """mu = 1e-3 smoothing of |v| in g: v* is the soft threshold of u."""
    problem = bx.Problem(
        lambda u, v: jnp.sum((v - 1) ** 2),
        lambda u, v: 0.5 * jnp.sum((v - u) ** 2),
        regularizer=lambda u, v, mu: jnp.sum(jnp.sqrt(v**2 + mu**2)),
    )
    result = bx.solve(bx.Implicit(ADAM, LOWER, 20), problem, jnp.full(2, 3.0), jnp.ones(2), steps=2000, key=key)
    np.testing.assert_allclose(result.v, 1, atol=1e-3)
    np.testing.assert_allclose(result.u, 2, atol=3e-3)


def test_lam_keeps_v_from_a_maximum(key):
    """Where g curves down, |grad_v g|^2 alone is also small at a maximum of g; lam g moves v off it."""
    problem = bx.Problem(lambda u, v: (u - 1) ** 2 + 0.1 * v**2, lambda u, v: (v**2 - 1) ** 2)
    start = jnp.zeros(()), jnp.asarray(0.1)
    plain = bx.solve(bx.Penalty(ADAM, ADAM, nu=0.0), problem, *start, steps=3000, key=key)
    helped = bx.solve(bx.Penalty(ADAM, ADAM, nu=0.0, lam=Geometric(10.0, 0.9)), problem, *start, steps=3000, key=key)
    assert abs(float(plain.v)) < 0.1
    assert abs(abs(float(helped.v)) - 1) < 0.05


def test_a_solver_may_be_made_inside_a_traced_function():
    problem = bx.Problem(lambda u, v: jnp.sum((v - 1) ** 2), lambda u, v: jnp.sum((v - u) ** 2))

    @jax.jit
    def stepped(u):
        solver = bx.Penalty()  # its default schedules are looked at as it is made
        return solver.step(problem, solver.init(problem, u, u, bx.Batch()), bx.Batch(), jax.random.key(0))[0].u

    apart = bx.Penalty()
    state = apart.step(
        problem, apart.init(problem, jnp.zeros(2), jnp.zeros(2), bx.Batch()), bx.Batch(), jax.random.key(0)
    )[0]
    np.testing.assert_allclose(stepped(jnp.zeros(2)), state.u, rtol=1e-6)

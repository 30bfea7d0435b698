"""Single-loop methods and their relatives: SOBA, MASOBA, SABA, SRBA, AmIGO, StocBiO; the sources they need."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from tests.core.solvers import BATCH, CASES, PROBLEM, START, solution

KEY = jax.random.key(0)
STILL, FULL = optax.sgd(0.0), optax.sgd(1.0)
NAMES = ("SOBA", "MASOBA", "SABA", "SRBA", "AmIGO", "StocBiO")


def stepped(solver, problem, state, batch):
    """One step, compiled: by itself each of its operations would be compiled apart."""
    return jax.jit(lambda state: solver.step(problem, state, batch, KEY))(state)


def hypergradient(u):
    """Of f(u, v*(u)) = |2u - t|^2 + 0.1 |u|^2 + 0.1 (sum u)^2."""
    return 4 * (2 * u - BATCH.upper) + 0.2 * u + 0.2 * jnp.sum(u)


@pytest.mark.parametrize("name", NAMES)
def test_at_rest_the_direction_is_the_hypergradient(name):
    case = CASES[name]
    u = jnp.array([0.3, -0.2, 0.7])
    more = {"theta": 1.0} if name == "MASOBA" else {}
    still = dataclasses.replace(case.solver, upper_optimizer=STILL, **more)
    rest = bx.solve(still, case.problem, u, case.v, case.batch, steps=2000, every=500, key=KEY)
    full = dataclasses.replace(still, upper_optimizer=FULL)
    after, info = stepped(full, case.problem, rest.state, case.batch)
    np.testing.assert_allclose(u - after.u, hypergradient(u), rtol=1e-4)
    assert float(info.extra["linear_residual"]) < 1e-3


def test_masoba_averages_the_directions():
    case = CASES["MASOBA"]
    solver = dataclasses.replace(case.solver, upper_optimizer=FULL, lower_optimizer=STILL, linear_optimizer=STILL)
    state = solver.init(PROBLEM, *START, BATCH)
    after, _ = stepped(solver, PROBLEM, state, BATCH)
    # v = 0 and p = 0: the direction of u is grad_u f = 0.2 u = 0; a p of ones gives grad2_uv g . p = -2 w - 1.
    p = {"a": jnp.ones(3), "b": jnp.ones(())}
    state = state._replace(memory=(p, *state.memory[1:]))
    one, _ = stepped(solver, PROBLEM, state, BATCH)
    wanted = 0.1 * (-2 * BATCH.lower - 1)
    np.testing.assert_allclose(one.memory[2], wanted, rtol=1e-12)
    np.testing.assert_allclose(one.u, -wanted, rtol=1e-12)
    np.testing.assert_allclose(after.u, 0, atol=1e-12)


# Regression with a ridge strength for each of 5 columns: 64 rows to train, 48 to validate.
rng = np.random.default_rng(0)
COEFFICIENTS = np.array([1.0, -2.0, 0.0, 0.5, 0.0])
X = rng.normal(size=(112, 5))
Y = X @ COEFFICIENTS + rng.normal(size=112)
TRAIN, VALIDATION = (jnp.asarray(X[:64]), jnp.asarray(Y[:64])), (jnp.asarray(X[64:]), jnp.asarray(Y[64:]))
RIDGE = bx.Problem(
    lambda u, v, rows: jnp.mean((rows.data[0] @ v - rows.data[1]) ** 2) / 2 + 0.05 * jnp.sum(u**2),
    lambda u, v, rows: jnp.mean((rows.data[0] @ v - rows.data[1]) ** 2) / 2 + jnp.exp(u) @ v**2 / 2,
)


def size_of_the_gradient(u):
    """|grad F(u)| of the whole data, from the closed form of v*(u)."""

    def value(u):
        (x, y), (xv, yv) = TRAIN, VALIDATION
        v = jnp.linalg.solve(x.T @ x / 64 + jnp.diag(jnp.exp(u)), x.T @ y / 64)
        return jnp.mean((xv @ v - yv) ** 2) / 2 + 0.05 * jnp.sum(u**2)

    return float(jnp.linalg.norm(jax.grad(value)(u)))


BLOCKS = bx.Blocks(VALIDATION, TRAIN, upper_size=8, lower_size=8)
DOWN = optax.sgd(0.2), optax.sgd(0.1), optax.sgd(0.1)


@pytest.mark.parametrize(
    ("solver", "source"),
    [
        (bx.SABA(BLOCKS.blocks, *DOWN), BLOCKS),
        pytest.param(bx.SRBA(*DOWN, period=8), bx.WithWhole(BLOCKS), marks=pytest.mark.slow),
    ],
    ids=lambda x: type(x).__name__,
)
def test_variance_reduction_converges_linearly_with_constant_steps(solver, source):
    start = jnp.zeros(5), jnp.zeros(5)
    run = {"every": 2000, "key": KEY}
    plain = bx.solve(bx.SOBA(*DOWN), RIDGE, *start, BLOCKS, steps=2000, **run)
    states = []
    for steps in (500, 1000):
        found = bx.solve(solver, RIDGE, *start, source, steps=steps, every=500, key=KEY)
        states.append(size_of_the_gradient(found.u))
    first, second = states
    assert size_of_the_gradient(plain.u) > 1e-4  # noise keeps it from the solution
    assert first < 1e-4
    assert second < max(1e-13, 1e-3 * first)


def test_the_tables_of_saba_are_changed_in_place_and_kept_in_a_failed_step():
    """A copy of the tables in each step would take longer than the step. A state and its tables go together."""
    n = 2048
    rows = jnp.arange(4.0 * n).reshape(n, 4)
    problem = bx.Problem(
        lambda u, v, b: jnp.mean((b.data @ v - 1) ** 2),
        lambda u, v, b: jnp.mean((b.data @ (v - u)) ** 2) / jnp.sum(v**2),
    )
    source = bx.Blocks(rows, rows, 1, 1)
    solver, start = bx.SABA(source.blocks), (jnp.ones(4), jnp.ones(4))

    def run(state):
        def one(carry):
            k, state, _ = carry
            after, info = solver.step(problem, state, source.at(k, KEY), KEY)
            state, alive = solver.keep_finite(state, after, info)
            return k + 1, state, alive

        return jax.lax.while_loop(lambda c: (c[0] < 9) & c[2], one, (0, state, jnp.asarray(True)))

    state = solver.init(problem, *start, source.at(0, KEY))
    tables = sum(x.nbytes for x in jax.tree.leaves(state.memory[2]))
    memory = jax.jit(run, donate_argnums=0).lower(state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < tables / 4
    broken = state._replace(v=jnp.zeros(4))  # g is 0 / 0 there
    after, alive = run(broken)[1:]
    assert not alive
    jax.tree.map(np.testing.assert_array_equal, after, broken)


@pytest.mark.slow
def test_fresh_batches_for_every_estimate_remove_the_bias_of_the_inverse():
    """q = H^-1 b with H and b from one minibatch is biased; AmIGO and StocBiO with fresh ones are nearly not."""
    slowing = optax.sgd(optax.cosine_decay_schedule(5e-2, 2000))
    source = bx.Minibatches(VALIDATION, TRAIN, 48, 8)
    u = jnp.full(5, -2.0)
    solver = bx.AmIGO(STILL, slowing, slowing, 5, 5)
    fresh = dataclasses.replace(source, per_move=solver.lower_batches)
    result = bx.solve(solver, RIDGE, u, jnp.zeros(5), fresh, steps=400, every=400, key=KEY)
    x, y = TRAIN
    hessian = x.T @ x / 64 + jnp.diag(jnp.exp(u))
    v = jnp.linalg.solve(hessian, x.T @ y / 64)
    p = -jnp.linalg.solve(hessian, VALIDATION[0].T @ (VALIDATION[0] @ v - VALIDATION[1]) / 48)
    assert jnp.linalg.norm(result.state.memory[0] - p) < 0.15 * jnp.linalg.norm(p)
    for size in (solver.lower_steps, solver.lower_batches - 1):
        with pytest.raises(bx.InputError, match=r"AmIGO takes 11 lower batches in a step. .*per_move=11"):
            bx.solve(solver, RIDGE, u, u, dataclasses.replace(source, per_move=size), steps=1, key=KEY)


def test_stocbio_takes_a_minibatch_for_each_factor():
    """With M = 1 and fresh batches: q = scale (b + (I - scale H_1) b), and the cross product is that of the last."""
    solver = bx.StocBiO(FULL, STILL, 1, 1, 0.1)
    weights = jnp.array([[1.0, 2.0, 3.0], [2.0, 0.5, 1.0], [3.0, 1.0, 0.5]])
    batch = BATCH._replace(lower=bx.PerMove(weights))
    u = jnp.array([0.3, -0.2, 0.7])
    after, _ = stepped(solver, PROBLEM, solver.init(PROBLEM, u, START[1], batch), batch)
    b = 2 * (START[1]["a"] - BATCH.upper)
    q = 0.1 * (b + b - 0.1 * weights[1] * b)
    np.testing.assert_allclose(u - after.u, 0.2 * u + 2 * weights[2] * q, rtol=1e-12)


def test_the_radius_bounds_p():
    solver = bx.SOBA(STILL, optax.sgd(0.1), optax.sgd(0.1), radius=0.5)
    result = bx.solve(solver, PROBLEM, *START, BATCH, steps=200, key=KEY)
    assert float(optax.tree.norm(result.state.memory[0])) == pytest.approx(0.5)


# --- sources -----------------------------------------------------------------------------------------------------


def test_blocks_are_whole_and_equally_likely():
    source = bx.Blocks(jnp.arange(6.0), jnp.arange(12.0), 2, 4)
    source.check()
    at = jax.jit(lambda step: source.at(step, KEY))
    seen = [jax.device_get(at(step)) for step in range(300)]
    for batch in seen:
        assert int(batch.lower.index[0]) % 4 == 0
        np.testing.assert_array_equal(batch.lower.data, batch.lower.index)
    counts = np.bincount([int(batch.lower.index[0]) // 4 for batch in seen], minlength=3)
    assert counts.min() > 70  # of 100 each: more than 3.6 standard deviations
    pairs = {(int(b.upper.index[0]), int(b.lower.index[0])) for b in seen}
    assert len(pairs) == 9  # the levels are drawn independently
    np.testing.assert_array_equal(source.last().lower.index, np.arange(8, 12))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (bx.Blocks(jnp.zeros(6), jnp.zeros(10), 2, 4), r"lower has 10 samples, .* blocks of 4. Leave out 2 samples"),
        (bx.Blocks(jnp.zeros(0), jnp.zeros(8), 2, 4), "upper has 0 samples"),
        (bx.Blocks(jnp.full(2, jnp.nan), jnp.zeros(8), 2, 4), "upper"),
        (bx.WithWhole(bx.Minibatches(jnp.zeros(3), jnp.zeros(3), per_move=2)), "has per_move"),
        (bx.WithWhole(jnp.zeros(3)), "Pass a Minibatches, Epochs or Blocks"),
    ],
)
def test_sources_that_cannot_be_used(source, message):
    with pytest.raises(bx.InputError, match=message):
        source.check()


@pytest.mark.usefixtures("annotations_unchecked")
def test_saba_refuses_what_its_tables_cannot_hold():
    solver = bx.SABA((6, 8))
    start = jnp.zeros(5), jnp.zeros(5)
    with pytest.raises(bx.InputError, match=r"tables of 6 and 8 blocks take .* GiB, above memory_limit"):
        bx.solve(dataclasses.replace(solver, memory_limit=1000.0), RIDGE, *start, BLOCKS, steps=1, key=KEY)
    for source, message in (
        (bx.Minibatches(VALIDATION, TRAIN, 8, 8), r"batch.upper is a .*Samples.* Pass batches from .* bilevax.Blocks"),
        (bx.Batch(VALIDATION, TRAIN), r"batch.upper is a tuple.* Pass batches from the source bilevax.Blocks"),
        (bx.Blocks(VALIDATION, TRAIN, 8, 4), r"batch.lower is block \d+ of its data, and SABA has 8 blocks"),
    ):
        problem = (
            RIDGE
            if not isinstance(source, bx.Batch)
            else bx.Problem(
                lambda u, v, rows: jnp.sum((rows[0] @ v) ** 2) + u @ u,
                lambda u, v, rows: jnp.sum((rows[0] @ v - u[0]) ** 2),
            )
        )
        with pytest.raises(bx.InputError, match=message):
            bx.solve(solver, problem, *start, source, steps=1, key=jax.random.key(1))
    with pytest.raises(bx.InputError, match="Pass two numbers"):
        bx.SABA(3)


def test_the_whole_data_go_to_solvers_that_ask_for_them():
    with pytest.raises(bx.InputError, match=r"SRBA: batch.upper is a Block, .* Pass bilevax.WithWhole"):
        bx.solve(bx.SRBA(), RIDGE, jnp.zeros(5), jnp.zeros(5), BLOCKS, steps=1, key=KEY)
    with pytest.raises(bx.InputError, match=r"SOBA takes minibatches alone, .* without bilevax.WithWhole"):
        bx.solve(bx.SOBA(), RIDGE, jnp.zeros(5), jnp.zeros(5), bx.WithWhole(BLOCKS), steps=1, key=KEY)


def test_the_solution_of_the_common_problem_is_that_of_the_closed_form():
    np.testing.assert_allclose(hypergradient(jnp.asarray(solution())), 0, atol=1e-12)

"""The loop: what it compiles, what it returns, and what it keeps when something goes wrong."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.loop.stretch import Carry, stretch

ADAM = optax.adam(1e-2)


def upper_loss(u, v, data):
    X, y = data.data
    return jnp.mean((X @ v - y) ** 2)


def lower_loss(u, v, data):
    X, y = data.data
    return jnp.mean(jax.nn.sigmoid(u)[data.index] * (X @ v - y) ** 2) + 1e-3 * jnp.sum(v**2)


def regression(n=60, d=4):
    X = jax.random.normal(jax.random.key(1), (n, d))
    y = X @ jnp.arange(1.0, d + 1) + 0.1 * jax.random.normal(jax.random.key(2), (n,))
    return (X[:20], y[:20]), (X[20:], y[20:])


CLEAN, NOISY = jax.jit(regression)()
START = jnp.zeros(40), jnp.zeros(4)
SOURCE = bx.Epochs(upper=CLEAN, lower=NOISY, lower_size=8)
SOLVERS = [bx.Penalty(ADAM, ADAM, 3), bx.Implicit(ADAM, ADAM, 3), bx.ReverseMode(ADAM, optax.sgd(1e-2), 3)]


def run(solver, problem=None, **options):
    problem = problem or bx.Problem(upper_loss, lower_loss)
    # The same `every` in all tests, so that they share a compiled program.
    options = {"batches": SOURCE, "steps": 20, "every": 10, "key": jax.random.key(0)} | options
    return bx.solve(solver, problem, *START, **options)


# The others are compiled once in test_solvers.py.
@pytest.mark.parametrize(
    "solver",
    [SOLVERS[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SOLVERS[1:])],
    ids=lambda s: type(s).__name__,
)
def test_compiled_once(solver):
    """A second solve traces nothing, whatever its number of steps, data, start or key."""
    calls = itertools.count()

    def counted(u, v, data):
        next(calls)
        return lower_loss(u, v, data)

    problem = bx.Problem(upper_loss, counted)
    static = solver, problem, 10, ()
    run(solver, problem, steps=25, every=10)  # 10 + 10 + 5: the short stretch needs no program of its own
    assert stretch.programs(*static) == 1
    run(solver, problem, steps=33, every=10, key=jax.random.key(5))
    other = bx.Epochs(upper=CLEAN, lower=jax.tree.map(lambda x: 2 * x, NOISY), lower_size=8)
    run(solver, problem, steps=10, every=10, batches=other)
    assert stretch.programs(*static) == 1
    # The checks and the shapes of Info trace the loss again; the compiled program itself must not.
    traced = next(calls)
    run(solver, problem, steps=10, every=10)
    per_solve = next(calls) - traced - 1
    assert per_solve <= 6, per_solve
    assert stretch.programs(*static) == 1


@pytest.mark.parametrize(
    "solver",
    [SOLVERS[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SOLVERS[1:])],
    ids=lambda s: type(s).__name__,
)
def test_data_are_arguments_not_constants(solver):
    """The compiled call takes the data set as a parameter and holds no constant of its size."""
    n = 5000
    big = jnp.ones((n, 4)), jnp.ones(n)
    source = bx.Epochs(upper=CLEAN, lower=big, lower_size=8)
    problem = bx.Problem(upper_loss, lower_loss)
    batch = source.at(0, jax.random.key(0))
    state = solver.init(problem, jnp.zeros(n), jnp.zeros(4), batch)
    text = (
        stretch.lower(solver, problem, 10, Carry(state, jnp.asarray(True)), source, jax.random.key(0), 0, 10)
        .compile()
        .as_text()
    )
    entry = text[text.index("ENTRY") :]
    assert f"f64[{n},4]" in "".join(line for line in entry.splitlines() if "parameter(" in line)
    assert not [line for line in text.splitlines() if f"[{n},4]" in line and " constant(" in line]


def test_history_and_result():
    result = run(SOLVERS[0], steps=25, every=10)
    assert result.steps == 25
    assert result.status is bx.Status.FINISHED
    assert isinstance(result.history.upper_loss, np.ndarray)
    assert {x.shape for x in jax.tree.leaves(result.history)} == {(25,)}
    assert result.state.u is result.u
    last = run(SOLVERS[0], steps=1).history
    np.testing.assert_array_equal(result.history.upper_loss[0], last.upper_loss[0])


def test_the_start_is_not_consumed():
    u, v = START
    run(SOLVERS[0])
    np.testing.assert_array_equal(u, np.zeros(40))
    np.testing.assert_array_equal(v, np.zeros(4))


def test_arrays_that_an_optimizer_hands_on_are_not_consumed():
    """A learning rate, a key: `init` puts the caller's own array into the state, which the loop consumes."""
    rate, key, weight = jnp.asarray(0.05), jax.random.key(3), jnp.ones(40)
    upper = optax.chain(
        optax.add_noise(0.1, 0.5, key), optax.inject_hyperparams(optax.adam)(rate), optax.scale_by_schedule(lambda k: 1)
    )

    def keeps(u):
        return {"weight": weight, "twice": weight, "u": u}

    hands_on = optax.GradientTransformation(keeps, lambda g, state, x=None: (g, state))
    solver = bx.Alternating(optax.chain(upper, hands_on), optax.inject_hyperparams(optax.adam)(rate), 2)
    u, v = jnp.zeros(40), jnp.zeros(4)
    problem = bx.Problem(upper_loss, lower_loss)
    options = {"steps": 4, "every": 2, "key": jax.random.key(0)}
    batches = SOURCE.at(0, jax.random.key(0))
    first = bx.solve(solver, problem, u, v, batches, **options)
    again = bx.solve(solver, problem, u, v, batches, **options)
    np.testing.assert_array_equal(first.u, again.u)
    bx.solve(solver, problem, first.u, first.v, batches, **options)
    kept = (rate, jax.random.key_data(key), weight, u, v, batches, first.u, first.v, first.state, options["key"])
    assert not any(x.is_deleted() for x in jax.tree.leaves(kept))


def test_equals_the_plain_loop():
    """solve is these six lines, compiled."""
    solver, problem, key = SOLVERS[0], bx.Problem(upper_loss, lower_loss), jax.random.key(3)
    batch_key, step_key = jax.random.split(key)
    state = solver.init(problem, *START, SOURCE.at(0, batch_key))
    one_step = jax.jit(lambda state, batch, key: solver.step(problem, state, batch, key)[0])
    at = jax.jit(lambda step: (SOURCE.at(step, batch_key), jax.random.fold_in(step_key, step)))
    for step in range(12):
        state = one_step(state, *at(step))
    result = run(solver, problem, steps=12, key=key)
    np.testing.assert_allclose(result.u, state.u, rtol=1e-12)
    np.testing.assert_allclose(result.v, state.v, rtol=1e-12)


def test_a_host_stream_gives_what_the_source_gives():
    key = jax.random.key(4)
    batch_key = jax.random.split(key)[0]
    at = jax.jit(lambda i: SOURCE.at(i, batch_key))
    stream = (jax.device_get(at(i)) for i in range(25))
    a, b = run(SOLVERS[0], batches=stream, key=key, steps=25), run(SOLVERS[0], key=key, steps=25)
    np.testing.assert_allclose(a.u, b.u, rtol=1e-12)
    np.testing.assert_allclose(a.history.upper_loss, b.history.upper_loss, rtol=1e-12)
    assert a.status is bx.Status.FINISHED


def test_a_stream_that_ends():
    batch = SOURCE.at(0, jax.random.key(0))
    for n in (17, 20):
        result = run(SOLVERS[0], batches=[batch] * n, steps=30)
        assert (result.status, result.steps) == (bx.Status.EXHAUSTED, n)


def test_stop_and_callbacks():
    seen = []
    result = run(
        SOLVERS[0],
        steps=100,
        every=10,
        stop=lambda visit: visit.step >= 30,
        callbacks=[lambda visit: seen.append((visit.step, visit.info.upper_loss.shape, float(visit.state.u[0])))],
    )
    assert result.status is bx.Status.STOPPED
    assert [s[:2] for s in seen] == [(10, (10,)), (20, (10,)), (30, (10,))]
    assert seen[-1][2] == float(result.u[0])


def diverging(at):
    """g turns NaN once v has grown past a bound."""
    return bx.Problem(
        lambda u, v, _: -jnp.sum(v),
        lambda u, v, _: jnp.sum(jnp.where(v < at, (v - u) ** 2, jnp.nan)),
    )


@pytest.mark.parametrize(
    ("size", "every"), [(2, 50), pytest.param(2, 1, marks=pytest.mark.slow), (300, 50)]
)  # a small state has blocks of steps
def test_non_finite_keeps_the_last_finite_state(size, every):
    u = v = jnp.zeros(size)
    options = {"steps": 500, "every": every, "key": jax.random.key(0)}
    solver = bx.Implicit(ADAM, ADAM, 3)
    with pytest.raises(bx.SolveError, match=r"Step \d+ of 500: a step gave a NaN .* Lower the step sizes") as caught:
        bx.solve(solver, diverging(0.4), u, v, **options)
    result = caught.value.result
    assert result.status is bx.Status.NON_FINITE
    assert 0 < result.steps < 500
    assert np.isfinite(result.u).all()
    assert np.isfinite(result.v).all()
    assert result.history.upper_loss.shape == (result.steps,)
    quiet = bx.solve(solver, diverging(0.4), u, v, throw=False, **options)
    np.testing.assert_array_equal(quiet.u, result.u)
    clean = bx.solve(solver, diverging(1e9), u, v, **(options | {"steps": result.steps}))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
        (clean.state, clean.history),
        (result.state, result.history),
    )


def test_one_member_may_fail_alone():
    starts = jnp.array([[-50.0], [0.0]])
    result = bx.solve(
        bx.Vectorized(bx.Implicit(ADAM, ADAM, 3)), diverging(0.4), starts, starts, steps=400, key=jax.random.key(0)
    )
    assert result.status is bx.Status.FINISHED
    assert list(result.state.memory.alive) == [True, False]
    assert np.isfinite(result.u).all()
    assert np.isfinite(result.history.upper_loss[-1, 0])
    assert np.isnan(result.history.upper_loss[-1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0, and must be a positive integer"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"every": -1}, "every is -1"),
        ({"key": 0}, "key is 0, and must be one key"),
        ({"key": jax.random.split(jax.random.key(0))}, "must be one key"),
        ({"batches": 3}, "batches is 3"),
        ({"batches": []}, "batches is empty"),
        ({"batches": [(1, 2)]}, "batches yields tuple"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(bx.InputError, match=message):
        run(SOLVERS[0], **options)


def test_a_bad_batch_in_mid_stream():
    batch = SOURCE.at(0, jax.random.key(0))
    with pytest.raises(bx.InputError, match="batches yields int"):
        run(SOLVERS[0], batches=[batch, batch, 7])


def test_unequal_members():
    problem = bx.Problem(lambda u, v, _: v**2, lambda u, v, _: (u - v) ** 2)
    with pytest.raises(bx.InputError, match=r"leading axes \[2, 3\]"):
        bx.solve(bx.Vectorized(SOLVERS[0]), problem, jnp.zeros(2), jnp.zeros(3), steps=1, key=jax.random.key(0))


def test_keys_reach_losses():
    """A loss with a key draws anew in each step, and the same for the same key."""

    def noisy(u, v, _, *, key):
        return jnp.sum((v - u + 0.1 * jax.random.normal(key, v.shape)) ** 2)

    problem = bx.Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), noisy, random_lower=True)
    runs = [
        bx.solve(SOLVERS[0], problem, jnp.zeros(2), jnp.zeros(2), steps=30, key=jax.random.key(s)) for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0].u, runs[1].u)
    assert not np.allclose(runs[0].u, runs[2].u)
    assert len(set(runs[0].history.lower_loss.tolist())) == 30

"""Search without derivatives: a known optimum, budgets, failures, interrupts, and what is refused."""

import logging
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import InputError, Minibatches, Problem, SolveError, SolveInterrupted, Status
from bilevax import search as search_module
from bilevax.problem import Equality
from bilevax.search import GP, TPE, Random, search

TARGET = jnp.array([0.3, -0.7])
SHIFT = jnp.array([1.0, 2.0])
# v*(u) = u + SHIFT, so f is least where u = TARGET - SHIFT.
QUADRATIC = Problem(lambda u, v: jnp.sum((v["a"] - TARGET) ** 2), lambda u, v: jnp.sum((v["a"] - u["x"] - SHIFT) ** 2))
LOW, HIGH = {"x": jnp.full(2, -4.0)}, {"x": jnp.full(2, 1.0)}
START = {"a": jnp.zeros(2)}
SETTINGS = {"lower_steps": 20, "lower_optimizer": optax.sgd(0.4)}


@pytest.mark.parametrize(
    ("sampler", "trials", "tolerance"), [(Random(50), 1000, 0.25), (TPE(), 120, 0.4), (GP(), 16, 0.2)]
)
def test_finds_the_optimum_of_a_quadratic(sampler, trials, tolerance, key):
    if isinstance(sampler, TPE | GP):
        pytest.importorskip("optuna")
    if isinstance(sampler, GP):
        pytest.importorskip("torch")
    level = logging.getLogger("optuna").level
    result = search(sampler, QUADRATIC, LOW, HIGH, START, trials=trials, key=key, **SETTINGS)
    assert result.status is Status.FINISHED
    assert float(jnp.abs(result.u["x"] - (TARGET - SHIFT)).max()) < tolerance
    np.testing.assert_allclose(result.v["a"], result.u["x"] + SHIFT, atol=1e-6)
    history = result.history
    assert history.extra["gradient_evaluations"].tolist() == [20 * (i + 1) for i in range(trials)]
    np.testing.assert_array_equal(history.extra["best_loss"], np.minimum.accumulate(history.upper_loss))
    # f of every trial in closed form
    truth = ((np.asarray(result.state["x"]) + np.asarray(SHIFT - TARGET)) ** 2).sum(1)
    np.testing.assert_allclose(history.upper_loss, truth, atol=1e-6)
    assert (np.diff(history.extra["seconds"]) >= 0).all()
    assert logging.getLogger("optuna").level == level


def test_same_key_same_bits_and_the_first_trial(key):
    first = {"x": jnp.array([-0.5, 0.5])}
    for sampler in (Random(4), TPE()):
        runs = [
            search(sampler, QUADRATIC, LOW, HIGH, START, trials=6, key=key, first=first, **SETTINGS) for _ in range(2)
        ]
        np.testing.assert_array_equal(runs[0].state["x"], runs[1].state["x"])
        np.testing.assert_array_equal(runs[0].state["x"][0], first["x"])
        assert runs[0].steps == 6
    other = search(Random(4), QUADRATIC, LOW, HIGH, START, trials=6, key=jax.random.key(1), **SETTINGS)
    assert not np.array_equal(other.state["x"], runs[0].state["x"])


def test_compiled_once_for_all_trials(key):
    traces = []

    def lower(u, v):
        traces.append(1)
        return jnp.sum((v - u) ** 2)

    problem = Problem(lambda u, v: jnp.sum(v**2), lower)
    low, high, v = -jnp.ones(2), jnp.ones(2), jnp.zeros(2)
    search(Random(4), problem, low, high, v, trials=3, key=key, lower_steps=2)
    count = len(traces)
    # problem.check traces the loss anew; the program of the trials does not.
    checks = count
    search(Random(4), problem, low, high, v, trials=9, key=key, lower_steps=2)
    assert len(traces) - count < checks


def test_failed_trials_do_not_end_the_search(key):
    problem = Problem(lambda u, v: jnp.sum(jnp.log(v)), lambda u, v: jnp.sum((v - u) ** 2))
    settings = {"trials": 16, "key": key, "lower_steps": 30, "lower_optimizer": optax.sgd(0.4)}
    for sampler in (Random(8), TPE()):
        result = search(sampler, problem, jnp.full(1, -1.0), jnp.full(1, 1.0), jnp.ones(1), **settings)
        failed = np.isnan(result.history.upper_loss)
        assert 0 < failed.sum() < 16
        np.testing.assert_array_equal(failed, np.asarray(result.state)[:, 0] < 0)
        assert result.u[0] > 0
    with pytest.raises(SolveError, match="not finite in any of 16 trials") as raised:
        search(Random(8), problem, jnp.full(1, -2.0), jnp.full(1, -1.0), jnp.ones(1), **settings)
    assert raised.value.result.status is Status.NON_FINITE


def test_interrupt_keeps_the_trials_so_far(key, monkeypatch):
    calls = []
    trials = search_module._trials

    def break_off(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return trials(*arguments)

    monkeypatch.setattr(search_module, "_trials", break_off)
    with pytest.raises(SolveInterrupted) as raised:
        search(Random(4), QUADRATIC, LOW, HIGH, START, trials=40, key=key, **SETTINGS)
    assert raised.value.result.steps == 12
    assert raised.value.result.status is Status.INTERRUPTED


def test_time_limit(key):
    result = search(Random(4), QUADRATIC, LOW, HIGH, START, trials=4000, key=key, seconds=0.0, **SETTINGS)
    assert (result.steps, result.status) == (4, Status.STOPPED)


def test_minibatches_reach_the_mean(key):
    data = jnp.linspace(-1.0, 1.0, 20)
    problem = Problem(
        lambda u, v, batch: jnp.mean((v - u - batch.data) ** 2), lambda u, v, batch: jnp.mean((v - u - batch.data) ** 2)
    )
    source = Minibatches(data, data, lower_size=5)
    result = search(
        Random(2),
        problem,
        jnp.zeros(()),
        jnp.ones(()),
        jnp.zeros(()),
        source,
        trials=2,
        key=key,
        lower_steps=400,
        lower_optimizer=optax.sgd(0.02),
    )
    assert abs(float(result.v - result.u)) < 0.15


def test_refusals(key):
    def refused(low=LOW, high=HIGH, problem=QUADRATIC, sampler=Random(), **more):
        with pytest.raises(InputError) as raised:
            search(sampler, problem, low, high, START, **({"trials": 2, "key": key} | more))
        return str(raised.value)

    assert "not below high in 2 of 2" in refused(low=HIGH, high=LOW)
    assert "shaped like u" in refused(high={"x": jnp.ones(3)})
    assert "infinite" in refused(high={"x": jnp.full(2, jnp.inf)})
    assert "trials is 0" in refused(trials=0)
    assert "shaped like u" in refused(first={"x": jnp.ones(3)})
    assert "constraints" in refused(
        problem=Problem(QUADRATIC.upper_loss, QUADRATIC.lower_loss, (Equality(lambda u, v: u["x"]),))
    )


def test_packages_that_are_not_installed(key, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(search_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torch"):
        search(GP(), QUADRATIC, LOW, HIGH, START, trials=1, key=key)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match="needs optuna"):
        search(TPE(), QUADRATIC, LOW, HIGH, START, trials=1, key=key)

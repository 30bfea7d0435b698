"""Search without derivatives: a known optimum, budgets, failures, interrupts, and what is refused."""

import logging
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import Equality, InputError, Minibatches, Problem, SolveError, SolveInterrupted, Status
from bilevax.search import GP, TPE, Proposals, Random, samplers, search, trials

TARGET = jnp.array([0.3, -0.7])
SHIFT = jnp.array([1.0, 2.0])
# v*(u) = u + SHIFT, so f is least where u = TARGET - SHIFT.
QUADRATIC = Problem(
    lambda u, v, _: jnp.sum((v["a"] - TARGET) ** 2), lambda u, v, _: jnp.sum((v["a"] - u["x"] - SHIFT) ** 2)
)
LOW, HIGH = {"x": jnp.full(2, -4.0)}, {"x": jnp.full(2, 1.0)}
LARGE = Problem(lambda u, v, _: jnp.sum(v**2), lambda u, v, _: jnp.sum((v - u) ** 2))
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

    def lower(u, v, _):
        traces.append(1)
        return jnp.sum((v - u) ** 2)

    problem = Problem(lambda u, v, _: jnp.sum(v**2), lower)
    low, high, v = -jnp.ones(2), jnp.ones(2), jnp.zeros(2)
    search(Random(4), problem, low, high, v, trials=3, key=key, lower_steps=2)
    count = len(traces)
    # problem.check traces the loss anew; the program of the trials does not.
    checks = count
    search(Random(4), problem, low, high, v, trials=9, key=key, lower_steps=2)
    assert len(traces) - count < checks


def test_failed_trials_do_not_end_the_search(key):
    problem = Problem(lambda u, v, _: jnp.sum(jnp.log(v)), lambda u, v, _: jnp.sum((v - u) ** 2))
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
    train_all = trials.train_all

    def break_off(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return train_all(*arguments)

    monkeypatch.setattr(trials, "train_all", break_off)
    with pytest.raises(SolveInterrupted) as raised:
        search(Random(4), QUADRATIC, LOW, HIGH, START, trials=40, key=key, **SETTINGS)
    assert raised.value.result.steps == 12
    assert raised.value.result.status is Status.INTERRUPTED


@pytest.mark.parametrize("sampler", [TPE(), TPE(together=4), GP()], ids=repr)
@pytest.mark.parametrize("bad", [np.nan, *(pytest.param(x, marks=pytest.mark.slow) for x in (np.inf, -np.inf, 1e300))])
def test_samplers_leave_the_region_where_trials_fail(sampler, bad):
    """Half of the box is bad: of the last 50 trials of 100, well under half go there."""
    pytest.importorskip("optuna")
    if isinstance(sampler, GP):
        pytest.importorskip("torch")
    low, high = -np.ones(2), np.ones(2)
    proposals = sampler.start(low, high, None, 0)
    points = []
    for _ in range(100 // sampler.together):
        asked = proposals.ask(sampler.together)
        proposals.tell(np.where(asked[:, 0] > 0, bad, ((asked + 0.3) ** 2).sum(1)))
        points.extend(asked)
    points = np.array(points)
    assert (points[50:, 0] > 0).mean() < 0.25
    assert np.abs(points + 0.3).max(1).min() < 0.1


def test_samplers_whose_trials_all_fail():
    pytest.importorskip("optuna")
    proposals = TPE().start(np.zeros(1), np.ones(1), None, 0)
    points = []
    for _ in range(15):
        points.append(proposals.ask(1))
        proposals.tell(np.full(1, np.nan))
    assert len(np.unique(np.array(points))) == 15
    assert np.abs(np.diff(np.sort(np.array(points).ravel()))).max() < 0.6  # all over the box
    for _ in range(30):
        points.append(proposals.ask(1))
        proposals.tell(np.where(points[-1][:, 0] > 0.5, np.nan, 1.0))
    assert (np.array(points[-15:]) > 0.5).mean() < 0.4


@pytest.mark.parametrize(
    ("losses", "usable"),
    [
        ([1.0, 2.0, np.nan], [1.0, 2.0, 3.0]),
        ([1.0, np.inf, -np.inf], [1.0, 2.0, 2.0]),
        ([0.0, np.nan], [0.0, 1.0]),
        ([-3.0, np.nan], [-3.0, 0.0]),
        ([0.0, 1.0, 2.0, 1e300], [0.0, 1.0, 2.0, 150.0]),
        ([-1e300, 0.0], [-1e100, 0.0]),
    ],
)
def test_losses_that_a_sampler_can_use(losses, usable):
    np.testing.assert_allclose(samplers.finite(np.array(losses)), usable)


def test_ctrl_c_ends_the_search_after_the_running_trials(key):
    class Pressed(Random):
        def start(self, *arguments):
            ask, tell = Random.start(self, *arguments)

            def pressing(losses):
                pressed.append(1)
                if len(pressed) == 2:
                    signal.raise_signal(signal.SIGINT)
                tell(losses)

            return Proposals(ask, pressing)

    pressed, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(SolveInterrupted, match="Trial 8 of 40") as raised:
        search(Pressed(4), QUADRATIC, LOW, HIGH, START, trials=40, key=key, **SETTINGS)
    assert raised.value.result.steps == 8
    assert signal.getsignal(signal.SIGINT) is before


def test_counts_and_seconds_of_numpy(key):
    counts = {"trials": np.int64(3), "lower_steps": np.int32(20)}
    result = search(Random(4), QUADRATIC, LOW, HIGH, START, key=key, seconds=np.float64(60), **(SETTINGS | counts))
    assert (result.steps, result.status) == (3, Status.FINISHED)


def test_time_limit(key):
    result = search(Random(4), QUADRATIC, LOW, HIGH, START, trials=4000, key=key, seconds=0.0, **SETTINGS)
    assert (result.steps, result.status) == (4, Status.STOPPED)


@pytest.mark.slow
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
    def refused(low=LOW, high=HIGH, problem=QUADRATIC, sampler=Random(), v=START, batches=None, **more):
        with pytest.raises(InputError) as raised:
            search(sampler, problem, low, high, v, batches, **({"trials": 2, "key": key} | more))
        return str(raised.value)

    assert "not below high in 2 of 2" in refused(low=HIGH, high=LOW)
    assert "not below high in 2 of 2" in refused(low=LOW, high=LOW)
    assert "shaped like u" in refused(high={"x": jnp.ones(3)})
    assert "infinite" in refused(high={"x": jnp.full(2, jnp.inf)})
    assert "low['x'] holds 1 NaN" in refused(low={"x": float("nan")}, high={"x": 1.0})
    assert "too large" in refused(low={"x": -1.7e308}, high={"x": 1.7e308})
    assert "dtype int64" in refused(low={"x": jnp.zeros(2, int)})
    assert "low holds no arrays" in refused(low=None)
    assert "low is an object" in refused(low=object())
    for name in ("trials", "lower_steps"):
        for count in (0, -1, 2.0, "2", True, None):
            assert f"{name} is {count!r}" in refused(**{name: count})
    assert "together is 0" in refused(sampler=Random(0))
    assert "sampler is the class TPE, and must be" in refused(sampler=TPE)
    assert "sampler is 'random'" in refused(sampler="random")
    for seconds in (-1, float("nan"), "60", True):
        assert f"seconds is {seconds!r}" in refused(seconds=seconds)
    for bad in (0, None, jax.random.split(jax.random.key(0))):
        assert "key is" in refused(key=bad)
    for batches in ([1, 2], iter([]), jnp.ones(3), "data", Minibatches):
        assert f"batches is a {type(batches).__name__}. Pass a Batch" in refused(batches=batches)
    assert "shaped like u" in refused(first={"x": jnp.ones(3)})
    assert "shaped like u" in refused(first=jnp.ones(2))
    assert "first is outside the bounds in 1 of 2" in refused(first={"x": jnp.array([0.0, 1.5])})
    assert "first['x'] holds 1 NaN" in refused(first={"x": jnp.array([0.0, jnp.nan])})
    assert "v['a'] has dtype int64" in refused(v={"a": np.zeros(2, int)})
    assert "problem is None" in refused(problem=None)
    pytest.importorskip("optuna")
    assert "u has 20,000 entries" in refused(
        low=jnp.zeros(20_000), high=jnp.ones(20_000), v=jnp.zeros(20_000), sampler=TPE(), problem=LARGE
    )
    assert "constraints" in refused(
        problem=Problem(QUADRATIC.upper_loss, QUADRATIC.lower_loss, (Equality(lambda u, v, _: u["x"]),))
    )


def test_packages_that_are_not_installed(key, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torch"):
        search(GP(), QUADRATIC, LOW, HIGH, START, trials=1, key=key)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match="needs optuna"):
        search(TPE(), QUADRATIC, LOW, HIGH, START, trials=1, key=key)

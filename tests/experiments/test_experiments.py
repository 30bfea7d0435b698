"""The synthetic experiments: their problems, what they show at reduced size, and what they write."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import InputError
from experiments.common.compare import Published, Row, within_noise, write_results
from experiments.common.settings import Settings
from experiments.synthetic import figure1, figure2, protocol, table4
from experiments.synthetic.problems import Data, distance, draw, lower_loss, upper_loss
from experiments.synthetic.protocol import OWN, PAPER, converges, follow

EXAMPLES = (1, 2, 3, 4)


@pytest.fixture(autouse=True, scope="module")
def single_precision():
    """The experiments run in float32, as a user's do."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


def trial(example):
    trials = draw(example, [7])
    return jax.tree.map(lambda x: x[0], trials)


def solution(example, A, key):
    """A solution of the example; a random one where there are many."""
    middle = jnp.full(10, 0.5 if example % 2 else 0.0)
    if A is None:
        return middle, middle
    p = jax.random.normal(key, (10,))
    p -= A.T @ jnp.linalg.solve(A @ A.T, A @ p)
    return middle + p, middle + (p if example == 3 else 0)


@pytest.mark.parametrize("example", EXAMPLES)
def test_losses_are_those_of_the_paper(example):
    u, v, data = trial(example)
    A = jnp.eye(10) if data.A is None else data.A
    assert (data.A is None) == (example < 3)
    if example % 2:
        f, g = jnp.sum(u**2) + jnp.sum(v**2), jnp.sum((A @ (1 - u - v)) ** 2)
    else:
        f, g = jnp.sum(v**2) - jnp.sum((A @ (u - v)) ** 2), jnp.sum((A @ (u - v)) ** 2)
    np.testing.assert_allclose(upper_loss(u, v, data), f, rtol=1e-5)
    np.testing.assert_allclose(lower_loss(u, v, data), g, rtol=1e-5)
    assert float(jnp.abs(jnp.stack([u, v])).max()) <= 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_solutions_are_feasible_stationary_and_at_distance_zero(example, key):
    """v is optimal for u, and f does not change to first order along the pairs (u, v) that are."""
    data = trial(example).data
    u, v = solution(example, data.A, key)
    assert float(distance(u, v, data)) < 1e-5
    assert float(jnp.linalg.norm(jax.grad(lower_loss, 1)(u, v, data))) < 1e-4
    f_u, f_v = jax.grad(upper_loss, (0, 1))(u, v, data)
    # The pairs with A (1 - u - v) = 0 (or A (u - v) = 0) are a plane: f's gradient must be normal to it.
    A = np.eye(10) if data.A is None else np.asarray(data.A)
    normal = np.concatenate([A, A if example % 2 else -A], axis=1)
    gradient = np.concatenate([f_u, f_v])
    if example == 3:  # E.1's residual distance leaves the null space of A aside; so must the test of its solutions
        gradient = np.concatenate([np.linalg.pinv(A) @ A @ np.asarray(x) for x in (f_u, f_v)])
    rest = gradient - normal.T @ np.linalg.lstsq(normal.T, gradient, rcond=None)[0]
    assert np.linalg.norm(rest) < 1e-4


@pytest.mark.parametrize("example", EXAMPLES)
def test_distance_off_the_solutions(example, key):
    data = trial(example).data
    u, v = solution(example, data.A, key)
    step = jnp.zeros(10).at[0].set(2.0) if data.A is None else 2 * data.A[0] / jnp.linalg.norm(data.A[0])
    np.testing.assert_allclose(distance(u + step, v, data), 2.0, rtol=1e-4)
    np.testing.assert_allclose(distance(u, v + step, data), 2.0, rtol=1e-4)


def test_a_matrix_is_drawn_for_each_trial_and_each_seed_gives_the_same():
    some, more = draw(3, range(2)), draw(3, range(3))
    assert not np.allclose(some.data.A[0], some.data.A[1])
    np.testing.assert_array_equal(some.data.A, more.data.A[:2])


def ends(setup, method, T, examples, steps, seeds=range(4)):
    """Final distances by example, from one solve of both."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *(draw(example, seeds) for example in examples))
    curves = follow(setup.solver(method, T, steps), both, steps)
    return dict(zip(examples, np.split(curves.distances[:, -1], 2), strict=True))


@pytest.mark.parametrize(("examples", "T", "steps"), [((1, 2), 1, 8_000), ((1, 2), 10, 4_000), ((3, 4), 1, 40_000)])
def test_penalty_converges(examples, T, steps):
    for example, found in ends(OWN, "Penalty", T, examples, steps).items():
        assert converges(found), (example, found)


@pytest.mark.parametrize("method", ["GD", "RMD"])
@pytest.mark.parametrize("examples", [(1, 2), (3, 4)])
def test_descent_and_short_unrolling_fail_as_in_the_paper(method, examples):
    """At T = 1, with E.1's rates and with as many steps as there: they are not slow, they end elsewhere."""
    for example, found in ends(PAPER, method, 1, examples, protocol.STEPS).items():
        assert found.mean() > 1, (example, found)


@pytest.mark.parametrize("method", ["GD", "RMD"])
def test_they_fail_with_tuned_rates_too(method):
    """Of example 1 the wrong point is known: u = 0 and v = 1, sqrt(5) away from 1/2, or near it in RMD."""
    found = ends(OWN, method, 1, (1, 2), 16_000)[1]
    np.testing.assert_allclose(found, np.sqrt(5), atol=0.01 if method == "GD" else 0.1)


def test_reverse_and_forward_mode_agree():
    reverse, forward = (ends(OWN, method, 5, (1, 2), 500) for method in ("RMD", "FMD"))
    np.testing.assert_allclose(reverse[1], forward[1], rtol=1e-4)


@pytest.mark.parametrize("method", protocol.METHODS)
def test_evaluations_are_those_of_a_step(method):
    spent = protocol.spent(method, T=5, members=2, steps=10)
    assert spent["lower_gradients"] in (100, 120)
    assert all(isinstance(n, int) and n >= 0 for n in spent.values())


def test_a_figure_writes_all_that_the_contract_asks_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocol, "QUICK_STEPS", 400)
    monkeypatch.setattr(protocol, "LOWER_STEPS", (2,))
    figure2.run(Settings(quick=True, seeds=3, solver="penalty", out=tmp_path))
    printed = capsys.readouterr().out
    assert "paper" in printed
    assert "ours" in printed
    assert "reduced run: 400" in printed
    record = json.loads((tmp_path / "results.json").read_text())
    for name in ("settings", "versions", "device", "seeds", "wall_seconds", "gradient_evaluations", "solvers"):
        assert record[name], name
    assert record["seeds"] == [0, 1, 2]
    assert record["versions"]["jax"] == jax.__version__
    assert record["solvers"][OWN.name]["rates"]["Penalty"] == list(OWN.rates["Penalty"])
    rows = record["results"][OWN.name]
    assert [row["where"][:3] for row in rows] == [[f"example {e}", "Penalty", t] for e in (3, 4) for t in "2"]
    for row in rows:
        assert len(row["ours"]["values"]) == 3
        assert row["ours"]["mean"] == pytest.approx(np.mean(row["ours"]["values"]))
    for name in ("figure2.png", "figure2_paper_settings.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_numbers_follow_from_the_runs(tmp_path, monkeypatch, capsys):
    """Other trials, other numbers: none is typed in."""
    monkeypatch.setattr(protocol, "QUICK_STEPS", 50)
    monkeypatch.setattr(protocol, "LOWER_STEPS", (1,))
    means = []
    for seeds in (2, 3):
        figure1.run(Settings(quick=True, seeds=seeds, solver="GD", out=tmp_path))
        rows = json.loads((tmp_path / "results.json").read_text())["results"][OWN.name]
        means.append([row["ours"]["mean"] for row in rows])
    assert np.all(np.abs(np.subtract(*means)) > 0)


def test_table4_times_one_compiled_call(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table4, "STEPS", 100)
    monkeypatch.setattr(table4, "LOWER_STEPS", (1,))
    table4.run(Settings(quick=True, seeds=2, solver="GD", out=tmp_path))
    record = json.loads((tmp_path / "results.json").read_text())
    rows = record["results"][OWN.name]
    assert [row["paper"] for row in rows] == [Published(*table4.PAPER[e, "GD"][0])._asdict() for e in EXAMPLES]
    assert all(0 < t < 10 for row in rows for t in row["ours"]["values"])
    assert all(row["agrees"] is None for row in rows)


def test_an_unknown_solver_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"--solver is 'SGD'.*Penalty"):
        figure1.run(Settings(solver="SGD", out=tmp_path))


@pytest.mark.parametrize(
    ("paper", "ours", "agrees"),
    [
        (Published(90.0, 1.0), [91.0, 92.0], True),
        (Published(90.0, 0.1), [91.0, 91.1], False),
        (Published(90.0), [90.0], True),
        (Published(90.0), [90.1], False),
    ],
)
def test_within_noise(paper, ours, agrees):
    assert within_noise(paper, np.asarray(ours)) is agrees


def test_a_trial_without_a_finite_value_is_null_in_json(tmp_path):
    rows = [Row(("a",), None, np.array([1.0, np.nan]), None)]
    path = write_results("x", Settings(out=tmp_path), [0, 1], 1.0, {}, {}, {"t": rows}, [])
    assert json.loads(path.read_text())["results"]["t"][0]["ours"] == {"mean": None, "sd": None, "values": [1.0, None]}


def test_data_is_an_argument_of_the_problem():
    """One program serves all A: none is closed over."""
    closed = jax.make_jaxpr(lower_loss)(jnp.ones(10), jnp.ones(10), Data(1.0, jnp.ones((5, 10))))
    assert not closed.consts

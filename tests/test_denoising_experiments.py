"""The denoising experiments' own pieces: how u is moved, what is counted, which cells are asked for."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bilevax import InputError
from bilevax.applications.importance import denoising_task, from_agreement
from bilevax.applications.training import Training
from bilevax.datasets import corrupted, digits
from bilevax.models import Model, softmax_regression
from experiments import denoising, denoising_small, table2
from experiments.contract import Settings

LINEAR = softmax_regression(10)
MODEL = Model(LINEAR.init, lambda params, x: LINEAR.apply(params, x / 255))


def test_the_authors_way_shares_adams_moments_by_place_and_rescales_after_a_pass():
    optimizer = denoising_small.as_the_authors(0.3, 2, 2)
    u = jnp.array([0.2, -0.2, 0.5, -1.0])
    first, second = jnp.array([1.0, -2.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 3.0, 0.5])
    updates, state = optimizer.update(first, optimizer.init(u), u)
    adam = optax.adam(0.3)
    moved, adam_state = adam.update(first[:2], adam.init(jnp.zeros(2)))
    np.testing.assert_allclose(updates, [*moved, 0, 0], rtol=1e-12)
    u += updates
    updates, _ = optimizer.update(second, state, u)
    moved, _ = adam.update(second[2:], adam_state)  # the moments are those of the samples before
    weight = (np.tanh(np.asarray(u + jnp.array([0, 0, *moved]))) + 1) / 2
    np.testing.assert_allclose((np.tanh(np.asarray(u + updates)) + 1) / 2, weight * 0.5 / weight.mean(), rtol=1e-10)


@pytest.mark.parametrize(
    ("solver", "counts"),
    [
        (denoising_small.PENALTY, {"f": 63, "g": 63, "products": 63}),
        (denoising_small.APPROXGRAD, {"f": 3, "g": 63, "products": 63}),
        (denoising_small.RMD, {"f": 3, "g": 300, "products": 600}),
        (denoising_small.REWEIGHT, {"f": 3, "g": 6, "products": 3}),
        (denoising_small.META_WEIGHT, {"f": 3, "g": 6, "products": 3}),
    ],
)
def test_evaluations_of_three_steps(solver, counts):
    assert denoising.evaluations(solver, 3) == counts


def test_cells_that_are_not_there():
    with pytest.raises(InputError, match="--dataset is 'svhn'"):
        table2.run(Settings(quick=True, dataset="svhn"))
    with pytest.raises(InputError, match=r"--noise is 30, .* Pass one of 25, 50"):
        table2.run(Settings(quick=True, noise=30))


def test_f1_is_that_of_right_labels_kept():
    right, kept = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert denoising.f1(right, kept) == pytest.approx(2 / 3)


def test_a_cell_of_table2_ranks_its_rows_on_the_digits(monkeypatch):
    monkeypatch.setattr(denoising, "images_of", lambda name: digits())
    plan = table2.Plan(MODEL, 100, 1000, 20, 5, 2, batch=100, rate=1e-2)
    rows = table2.run_cell("digits", plan, 50, 0, list(table2.LABELS))
    assert rows.keys() == set(table2.LABELS)
    assert rows["Oracle"]["accuracy"] > rows["Penalty"]["accuracy"] > rows["Val-Only"]["accuracy"]
    assert rows["Penalty"]["average_precision"] > 0.8


def test_start_is_by_agreement():
    data = corrupted(digits(), clean=100, noise=0.3, key=jax.random.key(0), train=400)
    trial = denoising.Trial(data, MODEL, Training(steps=50, batch_size=100), 0)
    v = trial.fit(trial.right)
    u = from_agreement(trial.agreement(v))
    u, same = trial.task(denoising_task, None, None, start=(u, v)).start
    assert same is v
    np.testing.assert_allclose(np.unique(denoising.learned_weights(u).round(6)), [0.4, 0.6], atol=1e-5)
    assert denoising.area(trial.right, trial.suspicion(v)) > 0.9

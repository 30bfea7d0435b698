"""The denoising experiments' own pieces: how u is moved, what is counted, which cells are asked for."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import InputError
from bilevax.applications.denoising import denoising_task, from_agreement
from bilevax.data import corrupted, digits
from bilevax.nn import Model, Training, softmax_regression
from experiments.common.cells import kept_cell
from experiments.common.runs import Look, evaluations, run_solver, watched_solve
from experiments.common.settings import Settings
from experiments.denoising import figure4a, figure5a, small, table2, wrn, wrong_labels
from experiments.denoising.protocol import SOLVERS, Plan, penalty
from experiments.denoising.trial import Trial, f1, learned_weights, roc_area

LINEAR = softmax_regression(10)
MODEL = Model(LINEAR.init, lambda params, x: LINEAR.apply(params, 16 * x))


def test_the_authors_way_shares_adams_moments_by_place_and_rescales_after_a_pass():
    optimizer = small.as_the_authors(0.3, 2, 2)
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
        (small.PENALTY, {"f": 63, "g": 63, "products": 63}),
        (small.APPROXGRAD, {"f": 3, "g": 63, "products": 63}),
        (small.RMD, {"f": 3, "g": 300, "products": 600}),
        (small.REWEIGHT, {"f": 3, "g": 6, "products": 3}),
        (small.META_WEIGHT, {"f": 3, "g": 6, "products": 3}),
    ],
)
def test_evaluations_of_three_steps(solver, counts):
    assert evaluations(solver, 3) == counts


def test_cells_that_are_not_there():
    with pytest.raises(InputError, match="--dataset is 'svhn'"):
        table2.run(Settings(quick=True, dataset="svhn"))
    with pytest.raises(InputError, match=r"--noise is 30, .* Pass one of 25, 50"):
        table2.run(Settings(quick=True, noise=30))


def test_f1_is_that_of_right_labels_kept():
    right, kept = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert f1(right, kept) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_a_cell_of_table2_ranks_its_rows_on_the_digits(monkeypatch):
    monkeypatch.setattr(table2, "images_of", lambda name: digits())
    plan = Plan(MODEL, 100, 1000, 30, 10, 2, 20, batch=100, rate=1e-2)
    rows = table2.run_cell("digits", plan, 50, 0, {}, list(table2.LABELS))
    assert rows.keys() == set(table2.LABELS)
    # At a fixed rate Train+Val fits wrong labels.
    assert all(row["accuracy"] > (65 if label == "Train+Val" else 75) for label, row in rows.items())
    assert rows["Oracle"]["accuracy"] > max(row["accuracy"] for label, row in rows.items() if label != "Oracle")
    assert all(rows[label]["f1"] > 0.9 and rows[label]["average_precision"] > 0.93 for label in SOLVERS)
    assert all(rows[label]["accuracy"] > rows["Train+Val"]["accuracy"] for label in (table2.START, *SOLVERS))
    assert all(rows[label]["wrong"] < 15 for label in (table2.START, *SOLVERS))  # half of the labels are wrong
    known = {"Val-Only": {"accuracy": 1.0}}
    assert table2.run_cell("digits", plan, 50, 0, known, ["Val-Only"]) == known


def test_start_is_by_agreement():
    data = corrupted(digits(), clean=100, noise=0.3, key=jax.random.key(0), train=400)
    trial = Trial(data, MODEL, Training(steps=50, batch_size=100), 0)
    v = trial.fit(trial.right)
    u = from_agreement(trial.agreement(v))
    u, same = trial.task(denoising_task, None, None, start=(u, v)).start
    assert same is v
    np.testing.assert_allclose(np.unique(learned_weights(u).round(6)), [0.4, 0.6], atol=1e-5)
    assert roc_area(trial.right, trial.suspicion(v)) > 0.9


def test_a_cell_of_wrong_labels_ranks_them_on_the_digits(monkeypatch):
    monkeypatch.setattr(wrong_labels, "images_of", lambda name: digits())
    plan = Plan(MODEL, 200, 800, 20, 10, 1, batch=100, rate=1e-2)
    cell = wrong_labels.Cell("digits", "uniform", 25, 200)
    rows = wrong_labels.run_cell(cell, plan, 0, list(wrong_labels.LABELS))
    assert rows.keys() == set(wrong_labels.LABELS)
    assert all(row["average_precision"] > 0.95 and row["area"] > 0.95 for row in rows.values())
    assert rows["cleanlab, best score"]["average_precision"] >= rows["cleanlab"]["average_precision"]
    assert rows["bilevax"]["average_precision"] > rows["Train+Val"]["average_precision"]
    assert rows["bilevax"]["run"] == rows["cleanlab"]["run"]
    assert wrong_labels.run_cell(cell, plan, 0, ["Val-Only"]).keys() == {"Val-Only"}


def test_out_of_sample_probabilities_are_of_models_that_did_not_see_the_sample(monkeypatch):
    data = corrupted(digits(), clean=100, noise=0.3, key=jax.random.key(0), train=400)
    trial = Trial(data, MODEL, Training(steps=20, batch_size=100), 0)
    held_out = []

    def train(model, training, x, y, weight, key):
        assert len(x) == 400 - 80 + 100
        np.testing.assert_array_equal(x[:320], np.asarray(trial.x)[np.asarray(weight[:320], int)])  # its own weights
        np.testing.assert_array_equal(weight[320:], 1)
        held_out.append({row.tobytes() for row in np.asarray(trial.x)} - {row.tobytes() for row in np.asarray(x)})
        return len(held_out) - 1

    def probabilities(model, v, x):
        assert {row.tobytes() for row in np.asarray(x)} <= held_out[v]
        return np.full((len(x), 10), 0.1)

    monkeypatch.setattr(wrong_labels, "train", train)
    monkeypatch.setattr(wrong_labels, "probabilities", probabilities)
    np.testing.assert_allclose(wrong_labels.out_of_sample(trial, np.arange(400), 0), 0.1)
    assert len(held_out) == wrong_labels.FOLDS


def test_cells_of_wrong_labels_and_where_another_is_ahead():
    cells = wrong_labels.cells(["mnist"], [10, 25], quick=False)
    assert [(c.flips, c.noise, c.clean) for c in cells] == [
        ("uniform", 10, 1000),
        ("uniform", 25, 1000),
        ("pair", 10, 1000),
        ("pair", 25, 1000),
        ("uniform", 25, 50),
        ("uniform", 25, 200),
        ("pair", 25, 50),
        ("pair", 25, 200),
    ]

    def row(precision):
        return {"average_precision": precision, "processor": 20 * precision, "run": precision > 0.85}

    found = {
        cell: [{"cleanlab": row(other), "bilevax": row(0.9)} for other in pair]
        for cell, pair in zip(cells[:2], [(0.85, 0.93), (0.89, 0.93)], strict=True)
    }
    assert wrong_labels.ahead(found, "cleanlab") == ["mnist uniform 25%, 1000 clean (0.9100 against 0.9000)"]
    ratios = wrong_labels.against_cleanlab(found)  # where one run measured both
    assert [(r.where[1], len(r.ours)) for r in ratios] == [
        ("uniform 10%, 1000 clean", 1),
        ("uniform 25%, 1000 clean", 2),
    ]
    np.testing.assert_allclose(ratios[0].ours, 0.9 / 0.93)


def test_a_kept_cell_runs_what_is_missing_alone(tmp_path):
    path, asked = tmp_path / "cells" / "a.json", []

    def run(labels):
        asked.append(labels)
        return {label: {"accuracy": float(len(asked))} for label in labels}

    assert kept_cell(path, ["a", "b"], run)["b"] == {"accuracy": 1.0}
    assert kept_cell(path, ["b", "c"], run) == {
        "a": {"accuracy": 1.0},
        "b": {"accuracy": 1.0},
        "c": {"accuracy": 2.0},
    }
    assert asked == [["a", "b"], ["c"]]
    kept_cell(path, ["a"], run)
    assert len(asked) == 2


def small_trial(steps=30):
    data = corrupted(digits(), clean=100, noise=0.25, key=jax.random.key(0), train=400)
    return Trial(data, MODEL, Training(steps=steps, batch_size=100), 0)


def test_the_clock_of_a_watched_solve_stands_still_while_it_looks():
    trial = small_trial()
    task = trial.task(denoising_task, 100, 100, warm_rounds=0)
    solver = penalty(1, 6)

    def look(u, v):
        time.sleep(0.5)
        return {"accuracy": trial.accuracy(v)}

    looks = watched_solve(solver, task, 6, 2, 0, look)
    assert [x.step for x in looks] == [2, 4, 6]
    assert [x.seconds for x in looks] == sorted(x.seconds for x in looks)
    result = run_solver(solver, task, 6, 0)
    assert looks[-1].seen["accuracy"] == trial.accuracy(result.v)
    assert looks[-1].seconds < 3 * 0.5


@pytest.mark.slow
def test_figures_4a_and_5a_on_the_digits():
    trial = small_trial()
    plan = Plan(MODEL, 100, 400, 10, 10, 2, batch=100)
    v = trial.fit_clean()
    looks = figure4a.watch(trial, v, plan, "Penalty", 0)
    assert len(looks) == figure4a.LOOKS
    assert set(looks[0].seen) == set(figure4a.KINDS)
    assert looks[-1].seen["labels as given"] < 80 < looks[-1].seen["test set"]  # a quarter of the labels is wrong
    assert figure4a.first([Look(1, 0.5, {"test set": 90.0}), Look(2, 1.5, {"test set": 95.0})], 93.0) == 1.5
    assert figure4a.first(looks, 100.0) == np.inf
    found = figure5a.one(trial, v, plan, "Penalty", 0)
    assert found["accuracy"] == looks[-1].seen["test set"]
    assert found["average_precision"] > 0.8


@pytest.mark.slow
def test_a_trial_of_d12_on_the_digits(monkeypatch):
    monkeypatch.setattr(wrn, "images_of", lambda name: digits())
    rows = wrn.run_cell(wrn.Size(MODEL, 100, 800, 100, 20), 0, list(wrn.LABELS))
    assert rows.keys() == set(wrn.LABELS)
    assert all(row["accuracy"] > 80 for label, row in rows.items() if label not in wrn.META)
    assert all(rows[label]["accuracy"] > 40 for label in wrn.META)  # its rates are those of a wide residual network
    assert rows["Penalty"]["f1"] > 0.7

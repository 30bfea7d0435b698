"""Hyper-cleaning: its draws, and a short run of a few methods on small images."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.common.settings import Settings
from experiments.denoising import hyper_cleaning


@pytest.fixture
def digits(monkeypatch):
    """scikit-learn's digits in place of MNIST."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = (x.reshape(-1, 8, 8) * 15.9).astype(np.uint8), y.astype(np.uint8)
    images = SimpleNamespace(x_train=x[:1400], y_train=y[:1400], x_test=x[1400:], y_test=y[1400:])
    monkeypatch.setattr(hyper_cleaning, "images_of", lambda name: images)
    return images


def test_half_of_the_labels_are_drawn_from_all_classes(digits):
    trial = hyper_cleaning.drawn(0, 600)
    order = np.random.default_rng(0).permutation(1400)[:1200]
    wrong = trial.train[1] != digits.y_train[order[:600]]
    assert trial.kept.sum() == 300
    assert not wrong[trial.kept].any()
    assert 0.05 < np.mean(~wrong[~trial.kept]) < 0.16  # right by chance
    np.testing.assert_array_equal(trial.clean[1], digits.y_train[order[600:]])
    assert trial.f1(np.where(trial.kept, 0.0, -1.0)) == 100
    np.testing.assert_allclose(trial.f1(np.zeros(600)), 200 / 3)


def test_the_network_has_the_published_sizes():
    params = hyper_cleaning.network().init(jax.random.key(0), np.zeros((1, 784)))
    assert [x.shape for x in jax.tree.leaves(params)] == [(784, 300), (300,), (300, 10), (10,)]
    assert np.abs(params[0][0]).max() <= 1 / 28
    for model, plans in hyper_cleaning.PLANS.items():
        assert tuple(plans) == hyper_cleaning.LABELS, model


def test_v_pbgd_finds_the_drawn_labels_in_miniature(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(hyper_cleaning, "QUICK_SIZE", 600)
    monkeypatch.setattr(hyper_cleaning, "LOOKS", 3)
    plan = hyper_cleaning.Plan(0.1, 0.5, 3000)  # a tenth of the steps in a quick run
    monkeypatch.setitem(hyper_cleaning.PLANS["linear"], "V-PBGD", plan)
    run = Settings(quick=True, dataset="linear", solver="V-PBGD", out=tmp_path)
    hyper_cleaning.run(run)
    record = json.loads((tmp_path / "results.json").read_text())["results"]
    accuracy, f1 = (record[name][0]["ours"]["mean"] for name in ("test accuracy %", "F1 of the cleaner %"))
    assert accuracy > 85
    assert f1 > 85  # 67 if all samples are kept


@pytest.mark.slow
@pytest.mark.parametrize("label", hyper_cleaning.LABELS)
def test_every_method_runs_on_the_network(digits, label):
    trial = hyper_cleaning.drawn(0, 500)
    found = hyper_cleaning.cleaned(trial, "mlp", label, hyper_cleaning.Plan(0.1, 0.1, 3), 0)
    assert np.isfinite([found["accuracy"], found["f1"]]).all()

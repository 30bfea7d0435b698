"""The calibration of predictions: their power, the noise matrix, and the interval of the number of wrong labels."""

import numpy as np
import pytest

from bilevax.applications.denoising import calibration
from bilevax.applications.denoising.calibration import calibrated, likeliest_power, numbers_of_wrong_labels
from bilevax.applications.denoising.noise import sharpened

PAIR = np.array([[0.65, 0.35, 0.0], [0.0, 0.65, 0.35], [0.35, 0.0, 0.65]])


def drawn(q, rng):
    """One class for each row of probabilities."""
    return (q.cumsum(1) > rng.random((len(q), 1))).argmax(1)


def sample(n=3_000, trusted=300, confidence=6, seed=0, matrix=PAIR):
    """Probabilities of the true class, labels of which the first are right, which these are, and what is wrong."""
    rng = np.random.default_rng(seed)
    logits = confidence * rng.standard_normal((n, len(matrix)))
    q = np.exp(logits - logits.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    true = drawn(q, rng)
    known = np.arange(n) < trusted
    labels = np.where(known, true, drawn(matrix[true], rng))
    return q, labels, known, labels != true


def test_the_power_that_was_taken_from_predictions_is_found_by_trusted_labels():
    q, labels, known, wrong = sample()
    cautious = sharpened(q, 0.4)
    found = calibrated(cautious, labels, known, np.full((3, 3), 1 / 3), cautious)
    assert found.power == pytest.approx(2.5, rel=0.15)
    np.testing.assert_allclose(found.noise, PAIR, atol=0.05)
    assert found.least <= wrong.sum() <= found.most
    assert found.most - found.least < 0.1 * len(q)
    given = labels[~known]
    suspicion = 1 - found.posterior[np.arange(len(given)), given]
    sure = suspicion > 0.8
    assert wrong[~known][sure].mean() > 0.95
    assert suspicion.sum() == pytest.approx(wrong.sum(), rel=0.1)
    np.testing.assert_allclose(found.posterior.sum(1), 1)


def test_without_trusted_labels_the_interval_holds_soft_and_certain_predictions():
    q, labels, _, wrong = sample(trusted=0)
    cautious = sharpened(q, 0.4)
    found = calibrated(cautious, labels, np.zeros(len(q), bool), np.eye(3) * 0.4 + 0.2, cautious)
    assert found.most == (q.argmax(1) != labels).sum()
    assert found.least < wrong.sum() < found.most
    assert found.power == pytest.approx(calibration.ALONE, rel=0.1)  # the predictions fit the soft labels as they are


def test_the_power_of_soft_labels():
    q, *_ = sample()
    assert likeliest_power(sharpened(q, 0.5), q) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("trusted", [pytest.param(30, marks=pytest.mark.slow), 300])
def test_nine_of_ten_intervals_by_the_predicted_class_hold_the_number(trusted):
    """The predictions need no calibration: here they are far too cautious."""
    held, width = [], []
    for seed in range(20):
        q, labels, known, wrong = sample(1_000, trusted, 4, seed)
        draws = numbers_of_wrong_labels(sharpened(q, 0.6), labels, known, PAIR)
        low, high = np.quantile(draws, [0.05, 0.95])
        held.append(low <= wrong.sum() <= high)
        width.append(high - low)
    assert np.mean(held) >= 0.8
    assert np.mean(width) < (250 if trusted == 30 else 120)


def test_a_class_that_no_sample_in_doubt_has_and_one_that_no_trusted_sample_has():
    q, labels, known, _ = sample(400, 60)
    labels = np.where(known & (labels == 2), 1, np.where(~known & (labels == 0), 1, labels))
    found = calibrated(q, labels, known, PAIR + 1e-3, q)
    assert np.isfinite(found.posterior).all()
    assert 0 <= found.least <= found.most <= 340

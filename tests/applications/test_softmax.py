"""Logistic regression on soft labels of many columns."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from bilevax.applications.denoising.experts import WIDE, Folds, Linear
from bilevax.applications.denoising.softmax import FittedSoftmax, Softmax


def wide(n, d, classes, noise, seed=0):
    """Few of the columns decide the class; a share of the labels is drawn anew."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.3 + 5
    true = ((X[:, :8] - 5) @ rng.standard_normal((8, classes))).argmax(1)
    return X, true, np.where(rng.random(n) < noise, rng.integers(0, classes, n), true)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_coefficients_are_those_of_scikit_learn(classes):
    """With soft labels, which are weighted rows there."""
    X, _, labels = wide(400, 30, classes, 0.3)
    targets = 0.7 * np.eye(classes)[labels] + 0.3 / classes
    penalty = 20.0 / 2 if classes == 2 else 20.0  # scikit-learn has one column of weights for two classes
    fitted = Softmax((20.0,), 2).fit(X, targets, 0)
    seen = fitted.out_of_sample
    standard = StandardScaler().fit_transform(X)
    rows, given = np.nonzero(targets)
    whole = Folds(LogisticRegression(C=1 / penalty, max_iter=1000, tol=1e-8), 2).fit(standard, targets, 0)
    np.testing.assert_allclose(seen, whole.out_of_sample, atol=0.003)
    assert log_loss(given, seen[rows], sample_weight=targets[rows, given]) < np.log(classes)
    np.testing.assert_allclose(fitted.predict(X).sum(1), 1)


def test_the_penalty_grows_with_the_noise():
    X, _, clean = wide(600, 320, 3, 0.0)
    _, true, noisy = wide(600, 320, 3, 0.6)
    few, many = (Softmax().fit(X, np.eye(3)[labels], 0) for labels in (clean, noisy))
    assert few.penalty < many.penalty
    weak = Softmax((3.0,)).fit(X, np.eye(3)[noisy], 0)
    right = [(fitted.out_of_sample.argmax(1) == true).mean() for fitted in (many, weak)]
    assert right[0] > right[1] + 0.05


def test_no_sample_is_predicted_from_its_own_label():
    rng = np.random.default_rng(0)
    X, labels = rng.standard_normal((400, 350)), rng.integers(0, 2, 400)
    found = Softmax((3.0,)).fit(X, np.eye(2)[labels], 0)
    assert abs((found.out_of_sample.argmax(1) == labels).mean() - 0.5) < 0.08
    assert (found.predict(X).argmax(1) == labels).mean() > 0.9


def test_a_constant_column_and_a_class_with_one_sample():
    X, _, labels = wide(60, 310, 2, 0.0)
    X[:, 3], labels[0] = 7.0, 2
    found = Softmax().fit(X, np.eye(3)[labels], 0)
    assert np.isfinite(found.out_of_sample).all()
    np.testing.assert_allclose(found.out_of_sample.sum(1), 1)


def test_only_wide_tables_are_fitted_with_a_chosen_penalty():
    X, _, labels = wide(100, WIDE + 1, 2, 0.2)
    assert isinstance(Linear().fit(X, np.eye(2)[labels], 0), FittedSoftmax)
    assert not isinstance(Linear().fit(X[:, :-1], np.eye(2)[labels], 0), FittedSoftmax)

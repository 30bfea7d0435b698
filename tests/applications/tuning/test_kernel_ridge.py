"""Kernel ridge with tuned length-scales: the shortcut of leave-one-out, the gradient, and what is found."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.utils.estimator_checks import check_estimator

from bilevax import InputError
from bilevax.applications.tuning import TunedKernelRidge
from bilevax.applications.tuning.kernel_ridge import CONSTANT, held_out


def samples(n=40, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, size=(n, d))
    return X, np.sin(2 * X[:, 0]) + 0.1 * rng.normal(size=n)


def by_hand(X, y, theta, held):
    """The predictions for some samples by a Gaussian process of the others, by scikit-learn."""
    rest = np.setdiff1d(np.arange(len(y)), held)
    kernel = RBF(np.exp(theta[:-1])) + ConstantKernel(CONSTANT) + WhiteKernel(np.exp(theta[-1]))
    return GaussianProcessRegressor(kernel, alpha=1e-10, optimizer=None).fit(X[rest], y[rest]).predict(X[held])


@pytest.mark.parametrize("size", [1, 8])
def test_held_out_residuals_are_those_of_retraining(size):
    X, y = samples()
    blocks = np.split(np.random.default_rng(1).permutation(40), 40 // size)
    theta = np.log([0.7, 3.0, 1.5, 0.05])
    truth = np.concatenate([y[held] - by_hand(X, y, theta, held) for held in blocks])
    assert held_out(X, y, blocks, theta).value == pytest.approx((truth**2).mean() / 2, rel=1e-7)


@pytest.mark.parametrize("size", [1, 8])
def test_the_gradient_is_that_of_finite_differences(size):
    X, y = samples()
    blocks = np.split(np.random.default_rng(1).permutation(40), 40 // size)
    theta, step = np.log([0.7, 3.0, 1.5, 0.05]), 1e-4
    gradient = held_out(X, y, blocks, theta).gradient
    values = [[held_out(X, y, blocks, theta + sign * step * e).value for sign in (1, -1)] for e in np.eye(4)]
    np.testing.assert_allclose(gradient, np.subtract(*np.transpose(values)) / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_length_scales_of_features_that_do_not_matter_are_long():
    X, y = samples(100, 6)
    units = np.array([1.0, 100.0, 1e-3, 1.0, 1.0, 1.0])
    model, one = TunedKernelRidge().fit(X * units, 50 * y + 7), TunedKernelRidge("scalar").fit(X, y)
    scales = model.length_scales_ / units
    assert scales[1:].min() > 3 * scales[0]
    X_test, y_test = samples(300, 6, seed=1)
    assert model.score(X_test * units, 50 * y_test + 7) > 0.9 > one.score(X_test, y_test)
    assert np.ptp(one.length_scales_ / X.std(0)) < 1e-9
    mean, deviation = model.predict(X_test * units, return_std=True)
    inside = np.abs(50 * y_test + 7 - mean) < 1.645 * deviation
    assert 0.8 < inside.mean() < 0.98


def test_folds_a_constant_column_and_a_search_around_it():
    X, y = samples(60)
    X = np.column_stack([X, np.full(60, 3.0)])
    model = TunedKernelRidge(cv=5).fit(X, y)
    assert np.isinf(model.length_scales_[3])
    assert model.score(X, y) > 0.9
    search = GridSearchCV(TunedKernelRidge(cv=3), {"length_scales": ["scalar", "feature"]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5


def test_refusals():
    X, y = samples(12)
    for settings, message in (
        ({"length_scales": "all"}, "length_scales is 'all'"),
        ({"cv": "five"}, "cv is 'five'"),
        ({"cv": 1}, "choose 2 to 12 folds"),
        ({"cv": ShuffleSplit(3, test_size=0.5, random_state=0)}, "folds that overlap"),
    ):
        with pytest.raises(InputError, match=message):
            TunedKernelRidge(**settings).fit(X, y)
    with pytest.raises(InputError, match="at most 5,000"):
        TunedKernelRidge().fit(np.zeros((5001, 1)), np.zeros(5001))


@pytest.mark.slow
def test_scikit_learns_checks():
    results = check_estimator(TunedKernelRidge(), on_fail=None, on_skip=None)
    assert not {r["check_name"] for r in results if r["status"] == "failed"}

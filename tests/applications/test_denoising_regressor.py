"""DenoisingRegressor: wrong targets found, trusted ones used, scikit-learn's interface, saved models."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import HuberRegressor, LinearRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevax import InputError
from bilevax.applications.denoising import DenoisingRegressor, residuals, targets
from bilevax.saved import load_model, save_model

IMPOSSIBLE = {
    "check_dtype_object": "it demands a TypeError for a dict among the features, and InputError is a ValueError",
}


@pytest.mark.slow  # DenoisingClassifier passes them in the quick run
@parametrize_with_checks([DenoisingRegressor(LinearRegression())], expected_failed_checks=lambda _: IMPOSSIBLE)
def test_scikit_learns_checks(estimator, check, monkeypatch):
    monkeypatch.setattr(targets, "REFITS", 0)
    monkeypatch.setattr(residuals, "TREES", 30)
    monkeypatch.setattr(residuals, "FREEDOMS", (5.0,))
    check(estimator)


def line(n=200, wrong=20, seed=0):
    """Targets of a linear function whose noise grows with a feature; some are those of other samples."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    right = X @ [3.0, -2.0, 0.0] + 0.2 * np.exp(X[:, 2]) * rng.normal(size=n)
    given = right.copy()
    change = rng.permutation(n)[:wrong]
    given[change] = right[rng.permutation(n)[:wrong]]
    return X, given, right


@pytest.fixture
def cheap():
    return DenoisingRegressor(LinearRegression())


@pytest.mark.slow
def test_wrong_targets_come_first(cheap):
    X, given, right = line()
    found = cheap.fit(X, given)
    wrong = given != right
    precision = average_precision_score(wrong, found.probability_wrong_)
    assert precision > 0.9
    assert precision > average_precision_score(wrong, np.abs(given - found.predicted_target_)) + 0.02
    number, low, high = found.expected_wrong_
    assert low <= number <= high
    assert low <= 20 <= high
    assert number == pytest.approx(found.probability_wrong_.sum())
    assert np.abs(found.suggested_target_ - right)[found.suspects_ & wrong].mean() < 0.5
    np.testing.assert_array_equal(found.suggested_target_[~found.suspects_], given[~found.suspects_])
    np.testing.assert_array_equal(found.sample_weight_, 1 - found.probability_wrong_)
    assert np.corrcoef(np.log(found.deviation_), X[:, 2])[0, 1] > 0.5
    # A wrong target moves the prediction less than it moves plain least squares.
    far = np.where(wrong, 10 * given, given)
    plain = LinearRegression().fit(X, far).predict(X)
    assert np.abs(cheap.fit(X, far).predict(X) - right).mean() < 0.5 * np.abs(plain - right).mean()


@pytest.mark.slow
def test_the_default_stack_is_the_same_for_a_seed():
    X, y = (part[:120] for part in load_diabetes(return_X_y=True))
    given = y.copy()
    given[:6] *= 10
    found = DenoisingRegressor().fit(X, given)
    assert set(found.probability_wrong_.argsort()[-6:]) == set(range(6))
    again = clone(found).fit(X, given)
    np.testing.assert_array_equal(again.probability_wrong_, found.probability_wrong_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).predict(X), found.predict(X))


@pytest.mark.parametrize("how", ["mask", "further"])
def test_trusted_targets(cheap, how):
    X, given, right = line(wrong=60)
    if how == "mask":
        mask = np.zeros(200, bool)
        mask[np.flatnonzero(given == right)[:40]] = True
        found = cheap.fit(X, given, trusted=mask)
        assert (found.probability_wrong_[mask] == 0).all()
    else:
        X_clean, _, y_clean = line(50, 0, seed=1)
        found = cheap.fit(X, given, X_clean, y_clean)
    number, low, high = found.expected_wrong_
    assert 40 <= number <= 70
    assert low <= 60 <= high
    assert found.probability_wrong_.shape == (200,)


@pytest.mark.slow
def test_a_trusted_repeat_settles_a_target(cheap):
    X, given, right = line()
    some = np.flatnonzero(given != right)[:3].tolist() + np.flatnonzero(given == right)[:3].tolist()
    with pytest.warns(UserWarning, match="3 samples of X have another target in y_clean"):
        found = cheap.fit(X, given, X[some], right[some])
    assert found.probability_wrong_[some].tolist() == [1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(found.suggested_target_[some], right[some])
    assert found.expected_wrong_[1] >= 3


@pytest.mark.slow
def test_pipelines_masks_and_other_regressors(cheap):
    X, given, right = line()
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    mask = np.zeros(200, bool)
    mask[np.flatnonzero(given == right)[:30]] = True
    pipeline = make_pipeline(StandardScaler(), cheap).fit(frame, given, denoisingregressor__trusted=mask)
    assert (pipeline[-1].probability_wrong_[mask] == 0).all()
    assert cross_val_score(cheap, frame, right, cv=3).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("model", [KNeighborsRegressor(), HuberRegressor()], ids=["no weights", "weights"])
def test_other_regressors_with_sample_weights_and_without(model):
    X, given, right = line()
    found = DenoisingRegressor(model).fit(X, given)
    assert average_precision_score(given != right, found.probability_wrong_) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cheap", "stack"])
def test_saved(cheap, tmp_path, name):
    X, given, _ = line(60, 6)
    found = {"cheap": cheap, "stack": DenoisingRegressor()}[name].fit(X, given)
    save_model(tmp_path / name, found)
    loaded = load_model(tmp_path / name)
    np.testing.assert_array_equal(loaded.predict(X), found.predict(X))
    np.testing.assert_array_equal(loaded.suggested_target_, found.suggested_target_)
    if name == "stack":
        assert not (tmp_path / name / "estimators.skops").exists()


@pytest.mark.slow
def test_what_is_refused(cheap):
    X, given, _ = line(30, 3)
    for arguments, message in (
        ((X, given[:-1]), "30 samples and y 29"),
        ((X, np.where(given > 0, np.inf, given)), "NaN or infinite"),
        ((X, ["a"] * 30), "not numbers"),
        ((X, np.ones(30)), "y holds 1 alone"),
        ((X[:9], given[:9]), "9 targets are in doubt"),
        ((X, np.stack([given, given], 1)), r"must be \(n,\)"),
        ((X, given, X), "go together"),
        ((X, given, X[:, :2], given), "X_clean has 2 features"),
        ((X, given, None, None, np.ones(29)), "one truth value for each of 30"),
        ((X, given, None, None, np.ones(30)), "0 targets are in doubt"),
    ):
        with pytest.raises(InputError, match=message):
            cheap.fit(*arguments)
    with pytest.raises(InputError, match="must be a scikit-learn regressor"):
        DenoisingRegressor("ridge").fit(X, given)
    with pytest.raises(InputError, match="features"):
        cheap.fit(X, given).predict(X[:, :2])


@pytest.mark.slow
def test_equal_and_immense_targets(cheap):
    X, given, _ = line()
    few = np.round(given / 4)  # many equal targets, and residuals of zero
    assert np.isfinite(cheap.fit(X, few).probability_wrong_).all()
    scaled = cheap.fit(X, given * 1e9 + 1e12)
    plain = clone(cheap).fit(X, given)
    np.testing.assert_allclose(scaled.probability_wrong_, plain.probability_wrong_, atol=1e-3)
    given[0] = 1e12
    assert cheap.fit(X, given).probability_wrong_[0] > 0.99

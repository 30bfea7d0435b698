import warnings

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import optax
import pandas as pd
import pytest
from sklearn.base import clone

from bilevax import InputError, Penalty, ReverseMode, solve
from bilevax.applications import Task
from bilevax.applications.denoising import DenoisingClassifier, PlainClassifier
from bilevax.applications.importance import approxgrad_solver, denoising_task, penalty_solver, weights
from bilevax.datasets import noisy_digits
from bilevax.models import mlp, softmax_regression


@pytest.fixture(scope="module")
def digits():
    return noisy_digits(100)


@pytest.fixture(scope="module")
def small():
    return noisy_digits(101, train=200, clean=100)


@pytest.fixture(scope="module")
def fitted(digits):
    d = digits
    return DenoisingClassifier(random_state=100).fit(d.X, d.y, d.X_clean, d.y_clean)


def quick(**settings):
    return DenoisingClassifier(**({"model": softmax_regression, "steps": 3} | settings))


def test_noisy_digits():
    d = noisy_digits(3, noise=0.25, train=400, clean=100)
    assert d.X.shape == (400, 64)
    assert d.X_test.shape == (1297, 64)
    assert (d.y != d.y_true).sum() == 100
    assert d.images.shape == (400, 8, 8)
    assert (d.images.min(), d.images.max()) == (0, 1)
    np.testing.assert_array_equal(d.y, noisy_digits(3, noise=0.25, train=400, clean=100).y)
    assert not np.array_equal(d.X, noisy_digits(4, noise=0.25, train=400, clean=100).X)


@pytest.mark.parametrize("bad", [{"noise": 1.5}, {"train": 1700, "clean": 97}, {"clean": 0}])
def test_noisy_digits_refuses(bad):
    with pytest.raises(InputError, match=r"noise is|train is"):
        noisy_digits(0, **bad)


def test_finds_the_wrong_labels(fitted, digits):
    d, wrong = digits, digits.y != digits.y_true
    assert wrong[fitted.suspects_].mean() >= 0.88
    assert fitted.suspects_[wrong].mean() >= 0.95
    # As many of the most suspicious as there are wrong ones.
    assert wrong[np.argsort(-fitted.suspicion_)[:400]].mean() >= 0.93
    assert (fitted.label_belief_ == d.y_true).mean() >= 0.95
    clean_only = PlainClassifier(random_state=100).fit(d.X_clean, d.y_clean)
    assert fitted.score(d.X_test, d.y_test) >= clean_only.score(d.X_test, d.y_test) + 0.01


def test_weights_suspicion_and_suspects_agree(fitted):
    w = fitted.sample_weight_
    assert w.shape == (1000,)
    assert ((w >= 0) & (w <= 1)).all()
    middle = (w > 1e-6) & (w < 1 - 1e-6)
    np.testing.assert_allclose(fitted.suspicion_[middle], -np.log(w / (1 - w))[middle], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(fitted.suspects_, w < 0.5)
    assert fitted.result_.history.upper_loss.shape == (100,)


def test_a_second_fit_is_the_same_and_clones_too(small):
    d = small
    first = quick(random_state=3, callbacks=()).fit(d.X, d.y, d.X_clean, d.y_clean)
    second = clone(first).fit(d.X, d.y, d.X_clean, d.y_clean)
    np.testing.assert_array_equal(first.sample_weight_, second.sample_weight_)
    np.testing.assert_array_equal(first.predict_proba(d.X_test), second.predict_proba(d.X_test))
    assert clone(DenoisingClassifier(solver=approxgrad_solver())).solver == approxgrad_solver()


def test_labels_of_any_type_and_data_frames(small):
    d = small
    names = np.array([f"digit {i}" for i in range(10)])
    columns = [f"pixel {i}" for i in range(64)]
    numbers = quick().fit(d.X, d.y, d.X_clean, d.y_clean)
    strings = quick().fit(
        pd.DataFrame(d.X, columns=columns),
        pd.Series(names[d.y]),
        pd.DataFrame(d.X_clean, columns=columns),
        pd.Series(names[d.y_clean], dtype="category"),
    )
    np.testing.assert_array_equal(names[numbers.predict(d.X_test)], strings.predict(d.X_test))
    np.testing.assert_array_equal(names[numbers.label_belief_], strings.label_belief_)
    assert list(strings.classes_) == list(names)
    assert strings.n_features_in_ == 64
    assert list(strings.feature_names_in_) == columns
    np.testing.assert_allclose(strings.predict_proba(d.X_test).sum(1), 1)
    with pytest.raises(InputError, match="Pass them in that order"):
        strings.predict(pd.DataFrame(d.X, columns=columns[::-1]))
    with pytest.raises(InputError, match="X has 63 features, and the classifier was fitted on 64"):
        strings.predict(d.X[:, 1:])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(nn.relu(nn.Dense(16)(x))))


@pytest.mark.parametrize(
    ("model", "solver"),
    [
        (Net(), None),
        (eqx.nn.MLP(64, 10, 16, 1, key=jax.random.key(0)), approxgrad_solver()),
        (mlp(10, (16,)), ReverseMode(optax.adam(0.1), optax.sgd(0.1), lower_steps=3)),
    ],
    ids=["flax", "equinox", "pair"],
)
def test_any_model_and_any_solver(small, model, solver):
    d = small
    fitted = DenoisingClassifier(model=model, solver=solver, steps=3).fit(d.X, d.y, d.X_clean, d.y_clean)
    assert fitted.score(d.X_test, d.y_test) > 0.7
    wrong = d.y != d.y_true
    assert fitted.suspicion_[wrong].mean() > fitted.suspicion_[~wrong].mean() + 0.3


def test_callbacks_are_called(small):
    d, seen = small, []
    quick(callbacks=[lambda visit: seen.append(visit.step)]).fit(d.X, d.y, d.X_clean, d.y_clean)
    assert seen == [1, 2, 3]


def test_task_runs_on_solvers_and_tells(small, key):
    d = small
    task = denoising_task(softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, key=key)
    assert isinstance(task, Task)
    u, v = task.start
    assert u.shape == (200,)
    np.testing.assert_allclose(np.unique(np.round(weights(u), 6)), [0.4, 0.6])
    wrong = d.y != d.y_true
    assert np.mean(np.asarray(u) < 0, where=wrong) > 0.9
    before = task.metrics(u, v)
    assert all(isinstance(x, float) for x in before.values())
    result = solve(penalty_solver(), task.problem, u, v, task.batches, steps=30, key=key)
    after = task.metrics(result.u, result.v)
    assert after["clean_accuracy"] > 0.9
    assert after["suspects"] == np.sum(np.asarray(result.u) < 0)


def test_minibatches_move_only_their_own_weights(small, key):
    d = small
    task = denoising_task(
        softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, key=key, batch_size=20, clean_batch_size=50
    )
    solver = Penalty(optax.sgd(1.0), optax.adam(1e-3), lower_steps=2)
    u, v = task.start
    one = solve(solver, task.problem, u, v, task.batches, steps=1, key=key)
    assert np.sum(np.asarray(one.u != u)) == 20
    whole_pass = solve(solver, task.problem, u, v, task.batches, steps=10, key=key)
    assert np.sum(np.asarray(whole_pass.u != u)) == 200


@pytest.mark.slow
def test_minibatches_find_wrong_labels(digits):
    d, wrong = digits, digits.y != digits.y_true
    fitted = DenoisingClassifier(steps=60, batch_size=200, random_state=100).fit(d.X, d.y, d.X_clean, d.y_clean)
    assert wrong[fitted.suspects_].mean() >= 0.85
    assert fitted.suspects_[wrong].mean() >= 0.93


def test_plain_classifier_learns_what_it_is_given(digits):
    d = digits
    noisy = PlainClassifier().fit(d.X, d.y).score(d.X_test, d.y_test)
    right = PlainClassifier().fit(d.X, d.y_true).score(d.X_test, d.y_test)
    assert right > 0.96
    assert noisy < right - 0.1


def with_nan(x):
    x = x.copy()
    x[2, 3] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"X": with_nan(d.X)}, "X holds 1 NaN or infinite values"),
        (lambda d: {"X_clean": with_nan(d.X_clean)}, "X_clean holds 1 NaN or infinite values"),
        (lambda d: {"y": np.zeros(200, int), "y_clean": np.zeros(100, int)}, r"y has one class only \(0\)"),
        (lambda d: {"y_clean": d.y_clean + 1}, "y_clean has labels that y lacks: 10"),
        (lambda d: {"y": d.y[:-1]}, "X has 200 samples and y 199 labels"),
        (lambda d: {"y_clean": d.y_clean[:-1]}, "X_clean has 100 samples and y_clean 99 labels"),
        (lambda d: {"X_clean": d.X_clean[:, :60]}, "X_clean has 60 features and X has 64"),
        (lambda d: {"X": np.full((200, 64), "a")}, "X holds values that are no numbers"),
        (lambda d: {"X": pd.DataFrame(d.X).assign(kind="a")}, "X has columns that hold no numbers: 'kind'"),
        (lambda d: {"X": d.X[:, 0]}, r"X has shape \(200,\)"),
        (lambda d: {"X": d.X[:0], "y": d.y[:0]}, r"X has shape \(0, 64\)"),
        (lambda d: {"y": d.y[:, None]}, r"y has shape \(200, 1\)"),
        (lambda d: {"y": d.y + 0.5}, "y holds fractions"),
        (lambda d: {"y": np.where(d.y == 1, np.nan, d.y)}, "y has .* missing labels"),
        (lambda d: {"y": np.array([*d.y[:-1], "a"], object)}, "y mixes labels of several types"),
        (
            lambda d: {"X": pd.DataFrame(d.X), "X_clean": pd.DataFrame(d.X_clean).iloc[:, ::-1]},
            "Give both the same columns in the same order",
        ),
    ],
)
def test_bad_data_get_a_sentence(small, change, message):
    arguments = {name: getattr(small, name) for name in ("X", "y", "X_clean", "y_clean")} | change(small)
    with pytest.raises(InputError, match=message):
        quick().fit(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 201}, "X has 200 samples, fewer than one batch of 201"),
        ({"clean_batch_size": 101}, "X_clean has 100 samples, fewer than one batch of 101"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"model": mlp(3)}, "Set its last layer's width to the number of classes"),
        ({"model": "mlp"}, "which is no model"),
        ({"random_state": -1}, "random_state is -1"),
        ({"training": 200}, "training is 200"),
        ({"solver": "penalty"}, "solver is 'penalty'"),
    ],
)
def test_bad_settings_get_a_sentence(small, settings, message):
    d = small
    with pytest.raises(InputError, match=message):
        quick(**settings).fit(d.X, d.y, d.X_clean, d.y_clean)


def test_unscaled_features_are_warned_of(small):
    d = small
    with pytest.warns(UserWarning, match="scale X"):
        PlainClassifier(model=softmax_regression).fit(100 * d.X, d.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PlainClassifier(model=softmax_regression).fit(d.X, d.y)

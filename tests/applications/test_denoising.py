import copy
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import optax
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import average_precision_score

from bilevax import Checkpoint, InputError, Penalty, ReverseMode, solve
from bilevax.applications import Task
from bilevax.applications._inputs import on_one_scale
from bilevax.applications.denoising import (
    ImportanceClassifier,
    PlainClassifier,
    approxgrad_solver,
    denoising_task,
    penalty_solver,
    weights,
)
from bilevax.applications.denoising.importance_classifier import _Both
from bilevax.data import noisy_digits
from bilevax.nn import Model, Training, mlp, softmax_regression
from bilevax.nn.training import improbable


@pytest.fixture(scope="module")
def digits():
    return noisy_digits(100, train=600, clean=100)


@pytest.fixture(scope="module")
def small():
    return noisy_digits(101, train=200, clean=100)


@pytest.fixture(scope="module")
def fitted(digits):
    d = digits
    return ImportanceClassifier(steps=60, random_state=100).fit(d.X, d.y, d.X_clean, d.y_clean)


def quick(**settings):
    return ImportanceClassifier(**({"model": softmax_regression, "steps": 3} | settings))


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
    assert wrong[np.argsort(-fitted.suspicion_)[: wrong.sum()]].mean() >= 0.93
    assert (fitted.label_belief_ == d.y_true).mean() >= 0.94
    clean_only = PlainClassifier(random_state=100).fit(d.X_clean, d.y_clean)
    assert fitted.score(d.X_test, d.y_test) >= clean_only.score(d.X_test, d.y_test) + 0.02


def test_suspicion_is_the_probability_that_the_given_label_is_wrong(fitted, digits):
    d, wrong = digits, digits.y != digits.y_true
    assert fitted.sample_weight_.shape == (600,)
    assert ((fitted.sample_weight_ >= 0) & (fitted.sample_weight_ <= 1)).all()
    given = fitted.predict_proba(d.X)[np.arange(600), d.y]
    np.testing.assert_allclose(fitted.suspicion_, 1 - given, atol=1e-12)
    np.testing.assert_array_equal(fitted.suspects_, fitted.label_belief_ != d.y)
    # Measured: 0.997, where the weights rank at 0.96.
    by_weight = average_precision_score(wrong, -fitted.sample_weight_)
    assert average_precision_score(wrong, fitted.suspicion_) > max(0.99, by_weight + 0.005)
    assert fitted.result_.history.upper_loss.shape == (60,)


def test_suspicion_tells_apart_what_single_precision_does_not():
    scores = np.array([[40.0, 0.0], [60.0, 0.0], [0.0, 30.0]])
    found, believed = improbable(Model(lambda key, x: (), lambda v, x: x), (), scores, np.array([0, 0, 0]))
    np.testing.assert_allclose(found, [np.exp(-40), np.exp(-60), 1 / (1 + np.exp(-30))], rtol=1e-12)
    assert believed.tolist() == [0, 0, 1]


@pytest.mark.slow
def test_a_second_fit_is_the_same_and_clones_too(small):
    d = small
    first = quick(random_state=3, callbacks=()).fit(d.X, d.y, d.X_clean, d.y_clean)
    second = clone(first).fit(d.X, d.y, d.X_clean, d.y_clean)
    np.testing.assert_array_equal(first.sample_weight_, second.sample_weight_)
    np.testing.assert_array_equal(first.predict_proba(d.X_test), second.predict_proba(d.X_test))
    assert clone(ImportanceClassifier(solver=approxgrad_solver(100))).solver == approxgrad_solver(100)


@pytest.mark.slow
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


def assert_loads_elsewhere(fitted, x, folder):
    """Pickled, dumped by joblib, copied: the same predictions to the bit, in another process too."""
    expected = fitted.predict_proba(x)
    (folder / "a.pickle").write_bytes(pickle.dumps(fitted))
    joblib.dump(fitted, folder / "b.joblib")
    np.savez(folder / "x.npz", x=x, expected=expected)
    for loaded in (pickle.loads(pickle.dumps(fitted)), joblib.load(folder / "b.joblib"), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(loaded.predict_proba(x), expected)
        assert loaded.get_params().keys() == fitted.get_params().keys()
        assert type(loaded.solver) is type(fitted.solver)
        clone(loaded)
    return folder


@pytest.mark.filterwarnings("ignore:On trusted samples")  # three steps move the weights little
@pytest.mark.parametrize(
    ("model", "solver"),
    [
        pytest.param(Net(), None, marks=pytest.mark.slow),
        pytest.param(eqx.nn.MLP(64, 10, 16, 1, key=jax.random.key(0)), approxgrad_solver(100), marks=pytest.mark.slow),
        pytest.param(
            mlp(10, (16,)), ReverseMode(optax.adam(0.1), optax.sgd(0.1), lower_steps=3), marks=pytest.mark.slow
        ),
    ],
    ids=["flax", "equinox", "pair"],
)
def test_any_model_and_any_solver(small, model, solver, tmp_path):
    d = small
    fitted = ImportanceClassifier(model=model, solver=solver, steps=3).fit(d.X, d.y, d.X_clean, d.y_clean)
    assert fitted.score(d.X_test, d.y_test) > 0.7
    wrong = d.y != d.y_true
    assert fitted.suspicion_[wrong].mean() > fitted.suspicion_[~wrong].mean() + 0.3
    assert_loads_elsewhere(fitted, d.X_test[:50], tmp_path)


LOAD = """
import sys, pickle, jax, joblib, numpy as np
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[2])
with np.load(sys.argv[1] + "/x.npz") as file:
    for name, load in (("a.pickle", lambda f: pickle.load(open(f, "rb"))), ("b.joblib", joblib.load)):
        fitted = load(f"{sys.argv[1]}/{name}")
        np.testing.assert_array_equal(fitted.predict_proba(file["x"]), file["expected"])
"""


@pytest.mark.slow
def test_a_fitted_classifier_is_loaded_in_another_process(small, tmp_path):
    d = small
    plain = PlainClassifier(training=Training(steps=20, rate=optax.cosine_decay_schedule(1e-2, 20))).fit(d.X, d.y)
    assert_loads_elsewhere(plain_with_solver(plain), d.X_test[:50], tmp_path)
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path), str(Path(__file__).parent)], check=True)


def plain_with_solver(plain):
    plain.solver = penalty_solver(100)  # optax's closures, which pickle refuses
    return plain


def test_what_cannot_be_pickled_is_named(small):
    with pytest.raises(InputError, match="cannot be pickled: its callbacks holds"):
        pickle.dumps(quick(callbacks=[threading.Lock()]))


BRIEF = Training(steps=60, rate=0.1)


@pytest.mark.slow
def test_pictures_of_bytes_are_read_as_0_to_1(small):
    """The same to rounding as the pictures over 255, through fit and predict; not those over 1."""
    d = small
    images = (255 * d.images).astype(np.uint8)

    def fit(x, clean):
        return quick(steps=1, training=BRIEF).fit(x[:150], d.y_true[:150], clean[150:], d.y_true[150:])

    bytes_, floats = fit(images, images), fit(images / 255, images / 255)
    np.testing.assert_allclose(bytes_.predict_proba(images), floats.predict_proba(images / 255), atol=1e-6)
    np.testing.assert_allclose(bytes_.predict_proba(images / 255), floats.predict_proba(images), atol=1e-6)
    np.testing.assert_allclose(bytes_.suspicion_, floats.suspicion_, atol=1e-6)
    assert bytes_.score(images, d.y_true) > 0.8
    with pytest.raises(InputError, match=r"X holds floats from 0 to 255, and fit bytes"):
        bytes_.predict(images.astype(float))
    with pytest.raises(InputError, match=r"X holds floats from 0 to 255, and X_clean bytes"):
        fit(images.astype(float), images)
    mixed, both = on_one_scale("X", images / 255, "X_clean", images)
    np.testing.assert_allclose(mixed, both, rtol=1e-12)


@pytest.mark.slow
def test_a_table_of_bytes_holds_numbers(small):
    table = (9 * small.images).astype(np.uint8).reshape(200, 64)
    found, same = (PlainClassifier(softmax_regression, BRIEF).fit(x, small.y) for x in (table, table.astype(float)))
    np.testing.assert_array_equal(found.predict_proba(table), same.predict_proba(table.astype(float)))


@pytest.mark.slow
def test_results_that_cannot_be_right_are_warned_of(small):
    """Nine of ten labels are shifted by one, and a single step leaves the weights at 0.4 and 0.6."""
    d = small
    y = np.where(np.arange(200) % 10, (d.y_true + 1) % 10, d.y_true)
    with pytest.warns() as record:
        quick(steps=2, batch_size=20).fit(d.X, y, d.X_clean, d.y_clean)
    visits, worse = [str(w.message) for w in record]
    assert "visited 0.2 times in 2 steps" in visits
    assert "at least 50 steps" in visits
    assert worse.startswith("On trusted samples that it was not trained on, the final classifier is right on")


@pytest.mark.parametrize("suspects", [100, 101])
def test_more_suspects_than_half_are_warned_of(suspects):
    classifier = quick()
    classifier._model = None
    classifier.suspects_ = np.arange(200) < suspects
    few = _Both(np.zeros((205, 2)), np.zeros(205, int), np.ones(200))  # too few trusted samples to compare by
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        classifier._warn_of_result(few, None)
    assert [str(w.message)[:31] for w in record] == ["101 of 200 samples are suspects"] * (suspects > 100)


@pytest.mark.slow
def test_callbacks_are_called(small):
    d, seen = small, []
    quick(callbacks=[lambda visit: seen.append(visit.step)]).fit(d.X, d.y, d.X_clean, d.y_clean)
    assert seen == [1, 2, 3]


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_not_continued(small, tmp_path):
    """Corrected labels, other trusted samples, another training: arrays of equal shapes, and another answer."""
    d = small
    keep = Checkpoint(tmp_path / "run")
    quick(callbacks=[keep], training=BRIEF).fit(d.X, d.y, d.X_clean, d.y_clean)
    again = quick(resume=keep, training=BRIEF)
    for change in (
        {"y": np.where(np.arange(200) == 7, (d.y + 1) % 10, d.y)},
        {"X": d.X + 1e-3 * (np.arange(200) == 7)[:, None]},
        {"X_clean": d.X_clean[::-1]},
        {"y_clean": np.where(np.arange(100) == 7, (d.y_clean + 1) % 10, d.y_clean)},
    ):
        arguments = {"X": d.X, "y": d.y, "X_clean": d.X_clean, "y_clean": d.y_clean} | change
        with pytest.raises(InputError, match="is of a solve with other data"):
            again.fit(**arguments)
    with pytest.raises(InputError, match="differ"):
        quick(resume=keep, training=Training(steps=61, rate=0.1)).fit(d.X, d.y, d.X_clean, d.y_clean)
    again.fit(d.X, d.y, d.X_clean, d.y_clean)


@pytest.mark.slow
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
    result = solve(penalty_solver(30), task.problem, u, v, task.batches, steps=30, key=key)
    after = task.metrics(result.u, result.v)
    assert after["clean_accuracy"] > 0.9
    assert after["suspects"] == np.sum(np.asarray(result.u) < 0)


@pytest.mark.slow
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
def test_minibatches_find_wrong_labels():
    d = noisy_digits(100)
    wrong = d.y != d.y_true
    fitted = ImportanceClassifier(steps=60, batch_size=200, random_state=100).fit(d.X, d.y, d.X_clean, d.y_clean)
    assert wrong[fitted.suspects_].mean() >= 0.85
    assert fitted.suspects_[wrong].mean() >= 0.93


@pytest.mark.slow
def test_plain_classifier_learns_what_it_is_given(digits):
    d = digits
    noisy = PlainClassifier().fit(d.X, d.y).score(d.X_test, d.y_test)
    right = PlainClassifier().fit(d.X, d.y_true).score(d.X_test, d.y_test)
    assert right > 0.95
    assert noisy < right - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 201}, "X has 200 samples, fewer than one batch of 201"),
        ({"clean_batch_size": 101}, "X_clean has 100 samples, fewer than one batch of 101"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"model": mlp(3)}, "Set its last layer's width to the number of classes"),
        ({"model": "mlp"}, "which is not a model"),
        ({"random_state": -1}, "random_state is -1"),
        ({"training": 200}, "training is 200"),
        ({"random_state": None}, "random_state is None"),
        ({"random_state": "a"}, "random_state is 'a'"),
        ({"random_state": 2**32}, "random_state is 4294967296, .* at most 2"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"solver": "penalty"}, "solver is 'penalty'"),
        ({"solver": Penalty}, r"solver is the class Penalty, which is not a solver\. Pass an instance"),
        ({"solver": penalty_solver}, r"which is not a solver\. Call it"),
        ({"model": None}, "model is None"),
        ({"model": Model(lambda key, x: jnp.zeros((3, 10)), lambda v, x: x @ v)}, "cannot be applied to samples of"),
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

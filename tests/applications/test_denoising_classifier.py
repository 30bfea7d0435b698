"""`DenoisingClassifier` and `review_probabilities`: scikit-learn's contract, its models, and what they refuse."""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevax import InputError
from bilevax.applications.denoising import DenoisingClassifier, calibration, experts, review_probabilities
from bilevax.applications.denoising.repeats import settle
from bilevax.applications.denoising.reviewing import Model, review
from bilevax.data.samples.read import read_samples
from bilevax.data.samples.types import Options
from bilevax.nn import Training, lenet5, mlp

IMPOSSIBLE = {
    "check_dtype_object": "it demands a TypeError for a dict among the features, and InputError is a ValueError",
}


@parametrize_with_checks([DenoisingClassifier(GaussianNB())], expected_failed_checks=lambda _: IMPOSSIBLE)
def test_scikit_learns_checks(estimator, check, monkeypatch):
    # The checks are of the interface: fewer draws are enough for them.
    monkeypatch.setattr(calibration, "NOISE_DRAWS", 101)
    check(estimator)


def blobs(n=150, seed=0, wrong=0.1):
    """Three classes, of which some labels are wrong: samples, given labels, right labels."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 3, n)
    X = rng.normal(size=(n, 4)) + 4 * np.eye(3, 4)[right]
    given = right.copy()
    change = rng.permutation(n)[: int(wrong * n)]
    given[change] = (right[change] + 1) % 3
    return X, given, right


@pytest.fixture
def cheap():
    return DenoisingClassifier(GaussianNB())


@pytest.fixture
def small_forests(monkeypatch):
    """The default stack, with fewer trees."""
    small = (experts.Linear(), experts.Forest(extra=True, trees=30))
    monkeypatch.setattr("bilevax.applications.denoising.estimator.TABLES", small)


# --- what it finds ----------------------------------------------------------------------------------------------------


def test_wrong_labels_come_first_and_are_counted(small_forests):
    X, given, right = blobs(300)
    found = DenoisingClassifier().fit(X, given)
    wrong = given != right
    first = np.argsort(-found.probability_wrong_)[: wrong.sum()]
    assert wrong[first].mean() > 0.9
    assert (found.suggested_label_ == right).mean() > 0.97
    assert found.score(X, right) > 0.95
    assert found.expected_wrong_[1] <= wrong.sum() <= found.expected_wrong_[2]
    np.testing.assert_allclose(found.noise_matrix_.sum(1), 1)
    np.testing.assert_array_equal(found.suspects_, found.suggested_label_ != given)
    np.testing.assert_array_equal(found.sample_weight_, 1 - found.probability_wrong_)
    np.testing.assert_allclose(found.predict_proba(X).sum(1), 1)


@pytest.mark.parametrize(
    "model",
    [
        KNeighborsClassifier(5),  # its fit takes no sample_weight
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
    ],
)
def test_any_classifier_of_scikit_learn_is_a_model(model):
    X, given, right = blobs()
    found = DenoisingClassifier(model).fit(X, given)
    first = np.argsort(-found.probability_wrong_)[:15]
    assert (given != right)[first].sum() >= 12
    assert (found.predict(X) == right).mean() > 0.95


def test_a_network_is_a_model():
    X, given, right = blobs()
    found = DenoisingClassifier(lambda classes: mlp(classes, [8]), Training(steps=150)).fit(X, given)
    first = np.argsort(-found.probability_wrong_)[:15]
    assert (given != right)[first].sum() >= 12
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(X), found.predict_proba(X))


@pytest.mark.slow
def test_images_of_bytes_need_a_network():
    X = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1), np.uint8)
    y = np.arange(40) % 2
    X[y == 1, :3] //= 8
    with pytest.raises(InputError, match=r"X holds samples of shape 6 x 6 x 1.*Pass a network as model"):
        DenoisingClassifier().fit(X, y)
    found = DenoisingClassifier(mlp(2, [8]), Training(steps=60)).fit(X, y)
    assert found.score(X, y) > 0.9
    assert found.n_features_in_ == 6
    np.testing.assert_allclose(found.predict_proba(X / 255), found.predict_proba(X), atol=1e-6)
    with pytest.raises(InputError, match="X holds floats from 0 to 255"):
        found.predict(X.astype(float))
    with pytest.raises(InputError, match="X has 5 x 6 x 1 features, but DenoisingClassifier is expecting 6 x 6 x 1"):
        found.predict(X[:, :5])


def test_one_sample_of_a_class():
    X, given, _ = blobs(60)
    labels = np.where(given == 2, 0, given)
    labels[7] = 2
    found = DenoisingClassifier(LogisticRegression()).fit(X, labels)
    assert found.predict_proba(X).shape == (60, 3)
    assert np.isfinite(found.probability_wrong_).all()
    alone = np.zeros(30, int)
    alone[3] = 1  # without it, one class is left to learn
    found = DenoisingClassifier(LogisticRegression()).fit(X[:30], alone)
    assert found.predict_proba(X).shape == (60, 2)
    assert np.isfinite(found.probability_wrong_).all()


@pytest.mark.filterwarnings("ignore:The trusted samples hold none of the labels")
@pytest.mark.parametrize("model", [None, LogisticRegression()])
def test_all_labels_in_doubt_are_of_one_class(model, small_forests):
    X, given, _ = blobs(60, wrong=0)
    found = DenoisingClassifier(model).fit(X, given, trusted=given != 0)
    assert set(found.predict(X)) <= {0, 1, 2}
    assert (found.probability_wrong_[given != 0] == 0).all()
    assert np.isfinite(found.probability_wrong_).all()


@pytest.mark.slow
def test_a_class_that_the_trusted_samples_lack(cheap):
    X, given, right = blobs(300)
    known = np.flatnonzero(right != 2)[:60]
    with pytest.warns(UserWarning, match="The trusted samples hold none of the labels 2"):
        found = cheap.fit(X, given, X[known] + 1e-3, right[known])
    wrong = given != right
    assert wrong[np.argsort(-found.probability_wrong_)[: wrong.sum()]].mean() > 0.85


# --- trusted samples --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trusted_labels_have_probability_zero(cheap):
    X, given, right = blobs()
    trusted = np.zeros(150, bool)
    trusted[:40] = given[:40] == right[:40]
    found = cheap.fit(X, given, trusted=trusted)
    assert (found.probability_wrong_[trusted] == 0).all()
    np.testing.assert_array_equal(found.suggested_label_[trusted], given[trusted])
    as_numbers = clone(cheap).fit(X, given, trusted=trusted.astype(int).tolist())
    np.testing.assert_array_equal(as_numbers.probability_wrong_, found.probability_wrong_)


@pytest.mark.slow
def test_repeated_samples_have_the_trusted_label(cheap):
    X, given, right = blobs()
    wrong, fine = np.flatnonzero(given != right)[:3], np.flatnonzero(given == right)[:20]
    known = np.concatenate([wrong, fine])
    with pytest.warns(UserWarning, match="^3 samples of X have another label in y_clean"):
        found = cheap.fit(X, given, X[known], right[known])
    np.testing.assert_array_equal(found.probability_wrong_[wrong], 1)
    np.testing.assert_array_equal(found.suggested_label_[wrong], right[wrong])
    assert found.suspects_[wrong].all()
    np.testing.assert_array_equal(found.probability_wrong_[fine], 0)
    assert found.expected_wrong_[0] == pytest.approx(found.probability_wrong_.sum())
    mask, corrected = np.zeros(150, bool), given.copy()
    mask[known], corrected[wrong] = True, right[wrong]
    by_mask = clone(cheap).fit(X, corrected, trusted=mask)
    others = ~mask
    np.testing.assert_array_equal(found.probability_wrong_[others], by_mask.probability_wrong_[others])


def test_trusted_repeats_that_disagree_settle_nothing():
    labels = np.array([0, 1, 0, 1, 1])
    trusted = np.array([False, False, True, True, True])
    known = settle(labels, trusted, np.array([-1, -1, 0, 0, 1]))
    assert known.rows.tolist() == [0, 1, 2, 3]
    assert known.trusted.tolist() == [False, True, True, True]
    assert known.place.tolist() == [0, 1, 2, 3, 1]
    assert not known.contradicted.any()


@pytest.mark.slow
def test_a_review_of_files_uses_trusted_repeats(tmp_path):
    X, given, right = blobs(120)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=given)
    wrong = np.flatnonzero(given != right)[:2]
    fine = np.flatnonzero(given == right)[:10]
    known = np.concatenate([wrong, fine])
    frame.to_csv(tmp_path / "train.csv", index=False)
    frame.assign(label=right).iloc[known].to_csv(tmp_path / "trusted.csv", index=False)
    samples = read_samples(tmp_path / "train.csv", tmp_path / "trusted.csv", Options(target="label"))
    assert samples.twin[120:].tolist() == known.tolist()
    found = review(samples, Model.linear)
    probability = found.ranking.probability_wrong
    assert len(probability) == 132
    np.testing.assert_array_equal(probability[wrong], 1)
    np.testing.assert_array_equal(found.suggested()[wrong], right[wrong])
    np.testing.assert_array_equal(probability[fine], 0)
    np.testing.assert_array_equal(probability[120:], 0)


# --- scikit-learn's tools ---------------------------------------------------------------------------------------------


def test_pickle_joblib_clone_and_copy(cheap, tmp_path):
    X, given, _ = blobs()
    found = cheap.fit(X, given)
    p = found.predict_proba(X)
    joblib.dump(found, tmp_path / "found.joblib")
    for again in (
        pickle.loads(pickle.dumps(found)),
        joblib.load(tmp_path / "found.joblib"),
        copy.deepcopy(found),
        clone(found).fit(X, given),
    ):
        np.testing.assert_array_equal(again.predict_proba(X), p)
        np.testing.assert_array_equal(again.probability_wrong_, found.probability_wrong_)
    assert not hasattr(clone(found), "classes_")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(small_forests):
    X, given, _ = blobs()
    first, second, other = (DenoisingClassifier(random_state=seed).fit(X, given) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.probability_wrong_, second.probability_wrong_)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert (first.probability_wrong_ != other.probability_wrong_).any()
    trusted = np.arange(150) < 40
    first, second = (clone(first).fit(X, given, trusted=trusted) for _ in range(2))
    np.testing.assert_array_equal(first.probability_wrong_, second.probability_wrong_)


def test_cross_validation(cheap):
    X, given, _ = blobs()
    assert cross_val_score(cheap, X, given, cv=3).min() > 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The trusted samples hold none of the labels")
def test_a_mask_goes_through_a_pipeline_with_columns():
    X, given, right = blobs()
    names = np.array(["red", "green", "blue"])
    frame = pd.DataFrame(X[:, :3], columns=list("abc")).assign(kind=np.where(X[:, 3] > 0, "high", "low"))
    trusted = (given == right) & (np.arange(150) < 50)
    columns = ColumnTransformer([("kind", OneHotEncoder(), ["kind"])], remainder=StandardScaler())
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = DenoisingClassifier(GaussianNB(var_smoothing=0.1)).set_fit_request(trusted=True)
        pipeline = make_pipeline(columns, classifier).fit(frame, names[given], trusted=trusted)
        scores = cross_val_score(pipeline, frame, names[given], cv=3, params={"trusted": trusted})
    found = pipeline[-1]
    assert (found.probability_wrong_[trusted] == 0).all()
    assert (found.probability_wrong_[~trusted] > 0).all()
    assert (found.suggested_label_ == names[right]).mean() > 0.95
    assert (pipeline.predict(frame) == names[right]).mean() > 0.95
    assert scores.min() > 0.7


def test_data_frames(cheap):
    X, given, _ = blobs()
    frame = pd.DataFrame(X, columns=list("abcd"))
    found = cheap.fit(frame, pd.Series(given))
    assert found.feature_names_in_.tolist() == list("abcd")
    np.testing.assert_array_equal(found.predict(frame), clone(cheap).fit(X, given).predict(X))
    with pytest.raises(InputError, match="feature names should match"):
        found.predict(frame[list("dcba")])
    with pytest.raises(InputError, match="X has 3 features, but DenoisingClassifier is expecting 4 features"):
        found.predict(frame[list("abc")])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        found.predict(X)
    assert not hasattr(found.fit(X, given), "feature_names_in_")


# --- what it refuses --------------------------------------------------------------------------------------------------

X_SMALL, Y_SMALL = np.arange(40.0).reshape(20, 2), np.arange(20) % 2


def with_nan():
    X = X_SMALL.copy()
    X[3, 1] = np.nan
    return X


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"X": with_nan()}, "X holds 1 NaN or infinite value"),
        ({"X": X_SMALL[:, 0]}, r"X has shape \(20,\).*Reshape your data"),
        ({"X": X_SMALL[:, :0]}, r"X has shape \(20, 0\): 0 feature\(s\)"),
        ({"X": [["a", "b"]] * 20}, "X holds values that are not numbers"),
        ({"y": Y_SMALL[:19]}, "X has 20 samples and y 19 labels. One label each is needed."),
        ({"y": np.zeros(20, int)}, "y has one class only"),
        ({"y": np.linspace(0, 1, 20)}, "y holds fractions .*: a continuous quantity, not labels"),
        ({"y": [None, *Y_SMALL[1:]]}, "y has 1 missing labels"),
        ({"y": None}, "requires y to be passed, but the target y is None"),
        ({"X_clean": X_SMALL}, "X_clean and y_clean go together: pass both, or neither."),
        ({"y_clean": Y_SMALL}, "X_clean and y_clean go together: pass both, or neither."),
        ({"X_clean": X_SMALL[:2] + 0.5, "y_clean": [0, 5]}, "y_clean has labels that y lacks: 5. y has 0, 1."),
        ({"X_clean": X_SMALL[:2, :1], "y_clean": [0, 1]}, "X_clean has 1 features and X has 2"),
        ({"X_clean": X_SMALL[:2], "y_clean": [0]}, "X_clean has 2 samples and y_clean 1 labels"),
        ({"trusted": np.ones(19, bool)}, r"trusted has shape \(19,\) and dtype bool, and must be one truth value"),
        ({"trusted": np.full(20, 0.5)}, r"trusted has shape \(20,\) and dtype float64"),
        ({"trusted": np.array(["yes"] * 20)}, r"trusted has shape \(20,\) and dtype <U3"),
        ({"trusted": np.array([None, True] * 10)}, r"trusted has shape \(20,\) and dtype object"),
        ({"trusted": np.full(20, np.nan)}, r"trusted has shape \(20,\) and dtype float64"),
        ({"trusted": [[True], [False, True]]}, "trusted is not an array"),
        ({"trusted": np.arange(20) < 11}, r"9 labels are in doubt, of 2\d samples. Pass at least 10"),
        (
            {"X_clean": X_SMALL[:11], "y_clean": Y_SMALL[:11]},
            r"9 labels are in doubt, of 2\d samples. Pass at least 10",
        ),
    ],
)
def test_malformed_input_is_refused(arguments, sentence, cheap):
    with pytest.raises(InputError, match=sentence):
        cheap.fit(**({"X": X_SMALL, "y": Y_SMALL} | arguments))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"random_state": -1}, "random_state is -1, and must be a non-negative integer"),
        ({"random_state": None}, "random_state is None, and must be a non-negative integer"),
        ({"model": Ridge()}, r"model is Ridge\(\), which has no predict_proba"),
        ({"model": LogisticRegression}, "model is the class LogisticRegression, which is not a model: call it"),
        ({"model": "forest"}, "model is 'forest', which is not a model"),
        ({"model": mlp(2, [4]), "training": 5}, r"training is 5. Pass a bilevax.nn.Training."),
        ({"model": mlp(3, [4])}, r"model gives logits of shape \(20, 3\) for 20 samples of 2 classes"),
        ({"model": lenet5}, "lenet5: images have shape"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        DenoisingClassifier(**settings).fit(X_SMALL, Y_SMALL)


# --- given probabilities ----------------------------------------------------------------------------------------------


def predicted(n=200, seed=0):
    """Probabilities of two classes, given labels, and which of them are wrong."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 2, n)
    p = np.clip(np.where(right == 1, 0.9, 0.1) + 0.05 * rng.normal(size=n), 0, 1)
    wrong = np.arange(n) < n // 10
    return np.stack([1 - p, p], 1), np.array(["no", "yes"])[right ^ wrong], wrong


@pytest.mark.slow
def test_given_probabilities():
    p, labels, wrong = predicted()
    found = review_probabilities(p, labels)
    assert wrong[np.argsort(-found.probability_wrong)[:20]].all()
    assert found.classes.tolist() == ["no", "yes"]
    assert (found.suggested_label[wrong] != labels[wrong]).all()
    assert found.expected_wrong[1] <= 20 <= found.expected_wrong[2]
    trusted = ~wrong & (np.arange(200) < 80)
    found = review_probabilities(p.tolist(), labels.tolist(), trusted.tolist())
    assert (found.probability_wrong[trusted] == 0).all()
    assert wrong[np.argsort(-found.probability_wrong)[:20]].all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pred_probs": [[0.5, 0.5]] * 199}, "pred_probs has 199 samples and labels 200 labels"),
        (
            {"pred_probs": [[0.2, 0.3, 0.5]] * 200},
            r"pred_probs has shape \(200, 3\), and must be \(n, 2\).*'no', 'yes'",
        ),
        ({"pred_probs": [0.5] * 200}, r"pred_probs has shape \(200,\), and must be \(n, 2\)"),
        (
            {"pred_probs": [[0.5, 0.6]] * 200},
            r"pred_probs has 200 rows that are no probabilities \(row 0 sums to 1.1\)",
        ),
        ({"pred_probs": [[-0.5, 1.5]] * 200}, "pred_probs has 200 rows that are no probabilities"),
        ({"pred_probs": [[np.nan, 1.0]] * 200}, "pred_probs holds 200 NaN"),
        ({"labels": ["no"] * 200}, "labels has one class only"),
        ({"trusted": np.ones(200, bool)}, "0 labels are in doubt"),
        ({"trusted": np.ones((200, 1), bool)}, r"trusted has shape \(200, 1\)"),
    ],
)
def test_probabilities_that_are_none_are_refused(change, sentence):
    p, labels, _ = predicted()
    with warnings.catch_warnings(), pytest.raises(InputError, match=sentence):
        review_probabilities(**({"pred_probs": p, "labels": labels} | change))

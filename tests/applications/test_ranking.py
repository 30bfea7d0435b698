"""The ranking of labels: posterior, estimates of the noise matrix, experts out of sample, the whole on a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevax.applications.denoising import noise
from bilevax.applications.denoising.experts import TABLES, Folds, Forest, Linear, stack
from bilevax.applications.denoising.ranking import noise_matrix, rank, rank_probabilities

NOISE = np.array([[0.9, 0.1, 0.0], [0.0, 0.6, 0.4], [0.1, 0.1, 0.8]])
PAIR = np.array([[0.65, 0.35, 0.0], [0.0, 0.65, 0.35], [0.35, 0.0, 0.65]])


def drawn(q, rng):
    """One class for each row of probabilities."""
    return (q.cumsum(1) > rng.random((len(q), 1))).argmax(1)


def sample(matrix, n, confidence, seed=0):
    """Probabilities of the true class, true classes drawn from them, and given labels drawn by a noise matrix."""
    rng = np.random.default_rng(seed)
    logits = confidence * rng.standard_normal((n, len(matrix)))
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = drawn(q, rng)
    return q, true, drawn(matrix[true], rng)


def test_posterior_by_hand():
    q = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    found = noise.posterior(q, NOISE, np.array([1, 2]))
    by_hand = [[0.05, 0.18, 0.02], [0.0, 0.08, 0.48]]
    np.testing.assert_allclose(found, np.array(by_hand) / np.sum(by_hand, axis=1, keepdims=True), atol=5e-3)
    np.testing.assert_allclose(found.sum(1), 1)
    assert found[1, 0] == 0  # the first class never gets the third label
    np.testing.assert_allclose(noise.other_than(found, np.array([1, 2])), 1 - found[[0, 1], [1, 2]])


def test_a_label_that_no_class_gets_is_no_division_by_zero():
    assert np.isfinite(noise.posterior(np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 1]))).all()


def test_em_recovers_the_noise_matrix_from_exact_probabilities():
    q, _, given = sample(NOISE, 20_000, 4)
    np.testing.assert_allclose(noise.from_given_labels(q, given, power=1), NOISE, atol=0.03)


def test_without_samples_the_noise_matrix_is_the_priors():
    found = noise.from_given_labels(np.empty((0, 3)), np.empty(0, int))
    np.testing.assert_allclose(found, np.where(np.eye(3, dtype=bool), noise.PRIOR_RIGHT, (1 - noise.PRIOR_RIGHT) / 2))


@pytest.mark.parametrize(
    ("trusted", "rounds", "within"), [(100, noise.DECONVOLUTION_ROUNDS, 0.16), (2_000, 10, 0.1)], ids=["few", "many"]
)
def test_trusted_labels_recover_class_to_class_noise(trusted, rounds, within, monkeypatch):
    """With few steps of the deconvolution, many trusted samples find too much noise: T makes up for missing steps."""
    monkeypatch.setattr(noise, "DECONVOLUTION_ROUNDS", rounds)
    monkeypatch.setattr(noise, "_value_and_grad", jax.jit(jax.value_and_grad(noise._trusted_loss.__wrapped__)))
    q, true, given = sample(PAIR, 3_000, 4)
    start = noise.from_given_labels(q @ PAIR, given)
    found = noise.from_trusted_labels((q @ PAIR)[:trusted], true[:trusted], start)
    np.testing.assert_allclose(found, PAIR, atol=within)
    assert np.abs(found - PAIR).max() < 0.75 * np.abs(start - PAIR).max()
    np.testing.assert_allclose(found.sum(1), 1)


@pytest.mark.slow
def test_the_gradient_through_the_deconvolution_equals_finite_differences():
    q, true, _ = sample(PAIR, 60, 2)
    p, prior = jnp.asarray(noise.floored(q @ PAIR)), jnp.asarray(noise.uniform_prior(3))
    logits = jnp.log(prior / prior.sum(1, keepdims=True)) + 0.3 * jnp.arange(9.0).reshape(3, 3)
    grad = jax.grad(noise._trusted_loss)(logits, p, jnp.asarray(true), prior)
    steps = 1e-5 * np.eye(9).reshape(9, 3, 3)
    differences = [
        (noise._trusted_loss(logits + step, p, true, prior) - noise._trusted_loss(logits - step, p, true, prior)) / 2e-5
        for step in steps
    ]
    np.testing.assert_allclose(np.ravel(grad), differences, rtol=1e-6, atol=1e-6)
    assert np.abs(grad).min() > 1e-3


def test_deconvolution_lowers_the_divergence_from_what_was_seen():
    q, _, _ = sample(NOISE, 200, 3)
    p = noise.floored(q @ NOISE)
    found = noise.deconvolved(p, NOISE)

    def divergence(q):
        return float(np.sum(p * np.log(p / (q @ NOISE)), axis=1).mean())

    assert divergence(found) < divergence(p) / 4
    np.testing.assert_allclose(found.sum(1), 1)


@pytest.mark.parametrize(
    "expert", [Forest(extra=True), Forest(extra=False), Linear()], ids=["extra", "forest", "folds"]
)
def test_no_sample_is_predicted_from_its_own_label(expert):
    """Labels are random, so that a model can only know them by heart."""
    rng = np.random.default_rng(0)
    X, labels = rng.standard_normal((600, 4)), rng.integers(0, 2, 600)
    wrong = rng.random(600) < 0.3
    fitted = expert.fit(X, np.eye(2)[np.where(wrong, 1 - labels, labels)], 0)
    own = np.take_along_axis(fitted.out_of_sample, labels[:, None], 1)[:, 0]
    by_heart = np.take_along_axis(fitted.predict(X), labels[:, None], 1)[:, 0]
    assert average_precision_score(wrong, -own) < 0.36  # 0.3 is chance
    if isinstance(expert, Forest):
        assert average_precision_score(wrong, -by_heart) < 0.3 or average_precision_score(~wrong, by_heart) > 0.8
    np.testing.assert_allclose(fitted.out_of_sample.sum(1), 1)


class WithoutWeights(KNeighborsClassifier):
    """A classifier whose fit takes no sample weights."""


@pytest.mark.parametrize(
    "classifier", [WithoutWeights(5), make_pipeline(StandardScaler(), WithoutWeights(5))], ids=["alone", "pipeline"]
)
def test_folds_of_a_classifier_without_sample_weights_learn_the_most_probable_class(classifier):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    X = 6 * np.eye(3)[labels] + rng.standard_normal((150, 3))
    hard = Folds(classifier).fit(X, np.eye(3)[labels], 0)
    soft = Folds(classifier).fit(X, 0.6 * np.eye(3)[labels] + 0.4 / 3, 0)
    np.testing.assert_array_equal(soft.out_of_sample, hard.out_of_sample)
    assert (soft.out_of_sample.argmax(1) == labels).mean() > 0.95
    assert (soft.predict(X).argmax(1) == labels).mean() > 0.95


def test_folds_weight_the_rows_of_soft_labels():
    """A column alone decides the label: with probability .8, whatever most probable classes say."""
    X = np.tile([[0.0], [1.0]], (200, 1))
    targets = np.tile([[0.8, 0.2], [0.2, 0.8]], (200, 1))
    fitted = Folds(LogisticRegression(C=1e6)).fit(X, targets, 0)
    np.testing.assert_allclose(fitted.out_of_sample, targets, atol=0.01)


def test_a_class_with_fewer_samples_than_folds():
    X = np.arange(40.0)[:, None]
    labels = np.array([0] * 18 + [1] * 20 + [2] * 2)
    fitted = Linear().fit(X, np.eye(3)[labels], 0)
    assert fitted.out_of_sample.shape == (40, 3)
    np.testing.assert_allclose(fitted.out_of_sample.sum(1), 1)


def test_a_stack_prefers_the_expert_that_predicts():
    class Fixed:
        def __init__(self, p):
            self.p = p

        def fit(self, X, targets, seed):
            return self

        @property
        def out_of_sample(self):
            return self.p

        def predict(self, X):
            return np.tile(self.p[:1], (len(X), 1))

    q, true, _ = sample(NOISE, 500, 4)
    uniform = np.full(q.shape, 1 / 3)
    found = stack([Fixed(uniform), Fixed(q)], np.zeros((500, 1)), np.eye(3)[true], 0)
    assert found.weights[1] > 0.9
    assert found.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.out_of_sample, found.weights[0] * uniform + found.weights[1] * q)
    kept = stack([Fixed(uniform), Fixed(q)], np.zeros((500, 1)), np.eye(3)[true], 0, np.array([0.5, 0.5]))
    np.testing.assert_allclose(kept.predict(np.zeros((2, 1)))[1], (uniform[0] + q[0]) / 2)


def table(trusted):
    """scikit-learn's breast cancer: 35% of malignant samples are labelled benign."""
    X, true = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    known = np.isin(np.arange(len(X)), rng.permutation(len(X))[:trusted])
    wrong = (rng.random(len(X)) < 0.35) & (true == 0) & ~known
    return X, np.where(wrong, 1, true), known, wrong


SMALL = (Linear(), Forest(extra=True, trees=50))


@pytest.mark.parametrize(("trusted", "least"), [(0, 0.8), (60, 0.9)])
def test_the_ranking_of_a_table(trusted, least):
    X, labels, known, wrong = table(trusted)
    found = rank(X, labels, known, 2, experts=SMALL, seed=0)
    assert average_precision_score(wrong[~known], found.probability_wrong[~known]) > least
    assert (found.probability_wrong[known] == 0).all()
    assert found.probability_wrong.sum() == pytest.approx(found.expected_wrong[0], rel=1e-6)
    assert found.expected_wrong[1] - 5 <= wrong.sum() <= found.expected_wrong[2] + 5  # the interval is one of 90%
    assert found.noise_matrix[0, 1] > 0.1 > found.noise_matrix[1, 0]
    np.testing.assert_allclose(found.posterior.sum(1), 1)
    np.testing.assert_array_equal(found.posterior[known].argmax(1), labels[known])
    assert (found.model.predict(X).argmax(1) == np.where(wrong, 0, labels)).mean() > 0.9
    if trusted:
        again = rank(X, labels, known, 2, experts=SMALL, seed=0)
        np.testing.assert_array_equal(found.probability_wrong, again.probability_wrong)


@pytest.mark.parametrize(
    ("matrix", "trusted", "others", "fits"),
    [(PAIR, 0, 0, 2), (0.7 * np.eye(3) + 0.1, 150, 1, 3), (PAIR, 150, 1, 4)],
    ids=["alone", "uniform", "class to class"],
)
def test_the_experts_learn_trusted_samples_and_refits_only_a_structure(matrix, trusted, others, fits):
    """T comes from a fit without the trusted samples; all later fits have them."""
    rng = np.random.default_rng(0)
    true, seen = rng.integers(0, 3, 600), []
    X = 2.5 * np.eye(3)[true] + rng.standard_normal((600, 3))
    known = np.arange(600) < trusted
    labels = np.where(known, true, drawn(matrix[true], rng))

    class Seen(Linear):
        def fit(self, X, targets, seed):
            seen.append(len(X))
            return super().fit(X, targets, seed)

    found = rank(X, labels, known, 3, experts=(Seen(),))
    assert seen == [600 - trusted] * others + [600] * (fits - others)
    wrong, doubted = labels != true, ~known
    assert average_precision_score(wrong[doubted], found.probability_wrong[doubted]) > 0.8


def test_the_spread_of_wrong_labels():
    assert noise.spread(np.full((4, 4), 0.25)) == pytest.approx(1)
    assert noise.spread(PAIR) == pytest.approx(1 / 2)
    assert noise.spread(np.array([[0.6, 0.4], [0.2, 0.8]])) == pytest.approx(
        np.exp(-np.log([2 / 3, 1 / 3]) @ [2, 1] / 3) / 2
    )


@pytest.mark.slow
def test_the_ranking_by_given_probabilities():
    q, true, given = sample(PAIR, 1_500, 6)
    trusted = np.arange(1_500) < 100
    labels, p = np.where(trusted, true, given), q @ PAIR
    wrong, doubted = labels != true, ~trusted
    found = rank_probabilities(p, labels, trusted)
    precision = average_precision_score(wrong[doubted], found.probability_wrong[doubted])
    by_confidence = average_precision_score(wrong[doubted], -p[np.arange(1_500), labels][doubted])
    exact = noise.other_than(noise.posterior(q, PAIR, labels), labels)
    assert precision > by_confidence + 0.1
    assert precision > average_precision_score(wrong[doubted], exact[doubted]) - 0.03
    assert found.model is None
    assert found.probability_wrong.sum() == pytest.approx(found.expected_wrong[0])
    calibrated = noise.other_than(found.posterior, labels)[doubted]  # the same values in an order of their own
    np.testing.assert_allclose(np.sort(found.probability_wrong[doubted]), np.sort(calibrated))
    assert (found.probability_wrong[trusted] == 0).all()


def test_corrections_make_more_labels_right():
    for trusted, gain in ((0, 0.02), (60, 0.06)):
        X, labels, known, wrong = table(trusted)
        found = rank(X, labels, known, 2, experts=SMALL, seed=0)
        suggested = found.posterior.argmax(1)
        corrected = np.where(found.sure, suggested, labels)
        true = np.where(wrong, 0, labels)
        assert not found.sure[known].any()
        assert (suggested != labels)[found.sure].all()
        assert (corrected == true).mean() > (labels == true).mean() + gain
        by_threshold = np.where(found.probability_wrong > 0.9, suggested, labels)
        assert (corrected == true).mean() > (by_threshold == true).mean()
        if trusted:
            np.testing.assert_array_equal(found.sure, suggested != labels)


def test_corrections_do_little_harm_where_few_labels_are_wrong():
    """Hard samples look like wrong labels; without trusted ones the posterior corrects too many."""
    q, true, given = sample(0.94 * np.eye(3) + 0.02, 1_500, 2)
    found = rank_probabilities(q @ (0.94 * np.eye(3) + 0.02), given, np.zeros(1_500, bool))
    suggested = found.posterior.argmax(1)
    right = (np.where(found.sure, suggested, given) == true).mean()
    assert right > (given == true).mean() - 0.03
    assert right > (suggested == true).mean() + 0.02


@pytest.mark.slow
def test_many_trusted_labels_leave_no_bias_in_the_noise_matrix():
    """The first estimate, through few steps of a deconvolution, makes up for missing steps; the last one does not."""
    q, true, given = sample(PAIR, 6_000, 4)
    trusted = np.arange(6_000) < 2_000
    labels, p = np.where(trusted, true, given), q @ PAIR
    found = rank_probabilities(p, labels, trusted)
    assert np.diag(noise_matrix(p, labels, trusted)).mean() < 0.55
    np.testing.assert_allclose(found.noise_matrix, PAIR, atol=0.04)
    wrong = (labels != true).sum()
    assert found.expected_wrong[0] == pytest.approx(wrong, rel=0.06)
    assert found.expected_wrong[1] < wrong < found.expected_wrong[2]


@pytest.mark.slow
def test_the_ranking_of_a_table_by_the_default_experts():
    X, labels, known, wrong = table(100)
    found = rank(X, labels, known, 2, experts=TABLES, seed=1)
    assert average_precision_score(wrong[~known], found.probability_wrong[~known]) > 0.93

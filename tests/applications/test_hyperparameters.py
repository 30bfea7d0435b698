"""Hyperparameters by gradient: each by another route, the hypergradient against retraining, the estimator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse import csr_array
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from bilevax import Alternating, Implicit, InputError, Penalty, solve, whole
from bilevax.applications.tuning import (
    classifier_task,
    implicit_solver,
    tune,
    tuning_task,
)
from bilevax.applications.tuning.folds import over_folds
from bilevax.applications.tuning.hyperparameters import (
    BRIGHTNESS,
    CLASS_WEIGHTS,
    CONTRAST,
    FEATURE_L2,
    INPUT_NOISE,
    LABEL_SMOOTHING,
    LAYER_L2,
)
from bilevax.nn import Model, mlp, softmax_regression

SIMPLEST = Alternating(lower_steps=1)
ALL = [FEATURE_L2, LAYER_L2, CLASS_WEIGHTS, LABEL_SMOOTHING, INPUT_NOISE, BRIGHTNESS, CONTRAST]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def blobs(seed, n, features=4, classes=3, informative=2):
    """Classes that differ in the first features alone."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.normal(size=(n, features))
    centres = np.random.default_rng(99).normal(size=(classes, informative))
    X[:, :informative] += 1.5 * centres[y]
    return X, y


# --- kinds -----------------------------------------------------------------------------------------------------


def losses(scores, targets):
    return -(targets * log_softmax(scores, axis=1)).sum(1)


@functools.partial(jax.jit, static_argnums=0)
def lower(problem, *arguments):
    return problem.lower(*arguments)


class Loss:
    """The training loss of a 4-5-3 network at random parameters, by the task and by hand."""

    def __init__(self, *hyperparameters):
        self.x, self.y = blobs(1, 21)
        model = mlp(3, (5,))
        self.task = classifier_task(model, self.x, self.y, self.x, self.y, hyperparameters, key=jax.random.key(0))
        rng = np.random.default_rng(2)
        self.v = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), self.task.start[1])
        self.scores = np.asarray(model.apply(self.v, jnp.asarray(self.x)))
        self.plain = losses(self.scores, np.eye(3)[self.y])
        self.first, self.last = (np.asarray(layer["weight"]) for layer in self.v)

    def at(self, u, key=None):
        u, data = jax.tree.map(jnp.asarray, u), whole((jnp.asarray(self.x), jnp.asarray(self.y)))
        return float(lower(self.task.problem, u, self.v, data, jax.random.key(0) if key is None else key))


@pytest.mark.slow
def test_feature_l2_is_a_ridge_by_feature(rng):
    loss, u = Loss(FEATURE_L2), rng.normal(size=4)
    expected = loss.plain.mean() + (np.exp(u)[:, None] * loss.first**2).sum() / 2
    assert loss.at({"feature_l2": u}) == pytest.approx(expected, rel=1e-12)


def test_layer_l2_is_a_ridge_by_layer():
    loss, u = Loss(LAYER_L2), np.array([-1.0, 0.5])
    expected = loss.plain.mean() + np.exp(-1) * (loss.first**2).sum() / 2 + np.exp(0.5) * (loss.last**2).sum() / 2
    assert loss.at({"layer_l2": u}) == pytest.approx(expected, rel=1e-12)


def test_class_weights_are_those_of_scikit_learn(rng):
    loss, u = Loss(CLASS_WEIGHTS), rng.normal(size=3)
    expected = log_loss(loss.y, np.exp(log_softmax(loss.scores, axis=1)), sample_weight=np.exp(u)[loss.y])
    assert loss.at({"class_weights": u}) == pytest.approx(expected, rel=1e-10)
    assert loss.at({"class_weights": u + 1}) == pytest.approx(expected, rel=1e-10)  # their ratios alone count


def test_label_smoothing_mixes_with_the_uniform_target():
    loss, part = Loss(LABEL_SMOOTHING), 0.2
    u = np.log(part / (1 - part))
    uniform = losses(loss.scores, np.full((21, 3), 1 / 3)).mean()
    expected = (1 - part) * loss.plain.mean() + part * uniform
    assert loss.at({"label_smoothing": u}) == pytest.approx(expected, rel=1e-12)
    assert float(LABEL_SMOOTHING.natural(u)) == pytest.approx(part)


@pytest.mark.slow
def test_hyperparameters_act_together(rng):
    loss = Loss(CLASS_WEIGHTS, LABEL_SMOOTHING, FEATURE_L2, LAYER_L2)
    u = {
        "class_weights": rng.normal(size=3),
        "label_smoothing": 0.0,
        "feature_l2": rng.normal(size=4),
        "layer_l2": rng.normal(size=2),
    }
    smoothed = losses(loss.scores, np.eye(3)[loss.y] / 2 + 1 / 6)
    expected = np.average(smoothed, weights=np.exp(u["class_weights"])[loss.y])
    expected += (np.exp(u["feature_l2"])[:, None] * loss.first**2).sum() / 2
    expected += sum(np.exp(a) * (w**2).sum() / 2 for a, w in zip(u["layer_l2"], (loss.first, loss.last), strict=True))
    assert loss.at(u) == pytest.approx(expected, rel=1e-12)
    # The validation loss has none of it.
    data = (jnp.asarray(loss.x), jnp.asarray(loss.y))
    assert float(loss.task.problem.upper(u, loss.v, whole(data), None)) == pytest.approx(loss.plain.mean(), rel=1e-12)
    metrics = loss.task.metrics(u, loss.v)
    assert metrics["validation_loss"] == pytest.approx(loss.plain.mean(), rel=1e-12)
    assert metrics["train_loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_augmentations_have_the_spread_they_promise(key):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 6)))
    noise = INPUT_NOISE.inputs(jnp.log(0.3), x, key) - x
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.06
    shift = BRIGHTNESS.inputs(jnp.log(0.3), x, key) - x
    np.testing.assert_allclose(shift, np.repeat(shift[:, :1], 6, axis=1), atol=1e-12)
    assert float(shift[:, 0].std()) == pytest.approx(0.3, rel=0.05)
    stretched = CONTRAST.inputs(jnp.log(0.3), x, key)
    np.testing.assert_allclose(stretched.mean(1), x.mean(1), atol=1e-12)
    factor = stretched.std(1) / x.std(1)
    assert float(jnp.log(factor).std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(jnp.log(factor).mean())) < 0.02
    images = jnp.ones((3, 5, 5, 2)) * jnp.arange(5.0)[:, None, None]
    for hyperparameter in (INPUT_NOISE, BRIGHTNESS, CONTRAST):
        assert hyperparameter.inputs(jnp.zeros(()), images, key).shape == images.shape


@pytest.mark.parametrize("hyperparameter", ALL, ids=lambda hyperparameter: hyperparameter.name)
def test_every_hyperparameter_starts_within_bounds_moves_the_loss_and_is_held_to_them(hyperparameter):
    loss = Loss(hyperparameter)
    start = loss.task.start[0][hyperparameter.name]
    assert (start > hyperparameter.low).all()
    assert (start < hyperparameter.high).all()
    assert (np.asarray(hyperparameter.natural(start)) > 0).all()
    direction = jax.tree.map(jnp.ones_like, loss.task.start[0])
    u, step = {hyperparameter.name: jnp.asarray(start + 1.0)}, 1e-5

    def at(t):
        return loss.at(jax.tree.map(lambda a, d: a + t * d, u, direction))

    data = whole((jnp.asarray(loss.x), jnp.asarray(loss.y)))
    slope = jax.grad(lower, 1)(loss.task.problem, u, loss.v, data, jax.random.key(0))[hyperparameter.name].sum()
    assert float(slope) == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-6, abs=1e-9)
    # Class weights all alike are the one direction in which the loss must not move.
    assert (abs(float(slope)) > 1e-4) == (hyperparameter is not CLASS_WEIGHTS)
    for value, bound in ((1e3, hyperparameter.high), (-1e3, hyperparameter.low)):
        held = loss.task.problem.project_upper({hyperparameter.name: jnp.full_like(start, value)})
        np.testing.assert_array_equal(held[hyperparameter.name], bound)


def test_augmentation_is_drawn_anew_in_each_move(key):
    loss, other = Loss(INPUT_NOISE), jax.random.key(1)
    u = {"input_noise": np.log(0.5)}
    assert loss.at(u, key) == loss.at(u, key) != loss.at(u, other)


def test_feature_l2_needs_a_matrix_with_a_row_for_each_feature(key):
    X, y = blobs(0, 12)
    turned = Model(lambda key, x: {"weight": jnp.zeros((3, 4))}, lambda v, x: x @ v["weight"].T)
    with pytest.raises(InputError, match=r"no matrix with one row for each of 4 features.*\(3, 4\).*Use layer_l2"):
        classifier_task(turned, X, y, X, y, [FEATURE_L2], key=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyperparameters": []}, "hyperparameters are none. Pass at least one"),
        ({"hyperparameters": [LAYER_L2, LAYER_L2]}, "with different names"),
        ({"y": np.zeros(11, int)}, "X has 12 samples and y 11 labels"),
        ({"X_validation": np.zeros((0, 4)), "y_validation": np.zeros(0, int)}, r"X_validation has shape \(0, 4\)"),
        ({"y_validation": np.arange(12)}, "a label 11 in y_validation and the model gives 3 logits"),
        ({"hyperparameters": "layer_l2"}, "hyperparameters holds 'l'. Pass a list of Hyperparameter"),
        ({"hyperparameters": 3}, "hyperparameters holds 3"),
        ({"X": np.full((12, 4), np.nan)}, "X holds 48 NaN"),
        ({"X": np.zeros((12, 4), complex)}, "X holds complex numbers"),
        ({"X": csr_array(np.eye(12, 4))}, "X is a sparse matrix"),
        ({"X": np.zeros(12)}, r"X has shape \(12,\)"),
        ({"X_validation": np.zeros((12, 5))}, "X_validation has 5 features and X has 4"),
        ({"y": np.array(["a", "b", "c"] * 4)}, "y holds labels of type <U1"),
        ({"y": np.array([0, 1, -1] * 4)}, "y has a label -1"),
        ({"y": np.full(12, 0.5)}, "y holds fractions"),
        ({"key": 0}, "key is 0"),
    ],
)
def test_classifier_task_refuses(change, message, key):
    X, y = blobs(0, 12)
    arguments = {"X": X, "y": y, "X_validation": X, "y_validation": y, "hyperparameters": [LAYER_L2]} | change
    with pytest.raises(InputError, match=message):
        classifier_task(softmax_regression(3), **({"key": key} | arguments))


@pytest.mark.slow
def test_images_of_bytes_are_those_of_floats(key):
    rng = np.random.default_rng(0)
    images, y = rng.integers(0, 256, (12, 3, 3)).astype(np.uint8), np.arange(12) % 3

    def losses_of(images):
        task = classifier_task(
            softmax_regression(3), images, y, images, y, [INPUT_NOISE, BRIGHTNESS, CONTRAST, FEATURE_L2], key=key
        )
        v = jax.tree.map(lambda p: p + 0.3, task.start[1])
        return task.problem.lower(task.start[0], v, task.batches.at(0, key).lower, key)

    assert float(losses_of(images)) == pytest.approx(float(losses_of(images / 255)), rel=1e-6)


def test_equal_tasks_have_equal_problems(key):
    X, y = blobs(0, 12)
    one, other = (classifier_task(mlp(3, (5,)), X, y, X, y, ALL, key=key).problem for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != classifier_task(mlp(3, (6,)), X, y, X, y, ALL, key=key).problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": Penalty}, "solver is the class Penalty"),
        ({"solver": "penalty"}, "solver is 'penalty'"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"train_steps": True}, "train_steps is True"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"key": np.zeros(2)}, "key is"),
    ],
)
def test_tune_refuses(change, message, key):
    X, y = blobs(0, 12)
    with pytest.raises(InputError, match=message):
        tune(softmax_regression(3), X, y, X, y, [LAYER_L2], **({"key": key, "steps": 2} | change))


# --- tune and tuning_task ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tuning_task_with_losses_of_ones_own_and_minibatches(key):
    """The mean of data shrunk by 1 / (1 + e^u), and the validation set wants half of it."""
    data = jnp.asarray(np.random.default_rng(0).normal(2.0, 0.1, 400))
    task = tuning_task(
        lambda u, v, s: jnp.mean((v - s.data) ** 2) + jnp.exp(u) * v**2,
        lambda u, v, s: jnp.mean((v - s.data) ** 2),
        jnp.asarray(-2.0),
        jnp.zeros(()),
        data,
        data / 2,
        project=lambda u: jnp.clip(u, -3.0, 3.0),
        batch_size=50,
        validation_batch_size=100,
    )
    assert task.batches.at(0, key).lower.data.shape == (50,)
    assert task.batches.at(0, key).upper.data.shape == (100,)
    solver = Implicit(optax.adam(0.05), optax.sgd(0.2), lower_steps=10)
    result = solve(solver, task.problem, *task.start, task.batches, steps=300, key=key)
    assert float(result.u) == pytest.approx(0.0, abs=0.1)
    assert task.metrics(result.u, result.v)["validation_loss"] < 0.01


@pytest.fixture(scope="module")
def few():
    """Few samples, many useless features: without a penalty the model overfits."""
    return *blobs(3, 45, features=20), *blobs(4, 300, features=20)


def ridge(few, log_strength):
    """Validation loss of scikit-learn's ridge with the strength of LAYER_L2."""
    X, y, X_validation, y_validation = few
    C = 1 / (len(y) * np.exp(log_strength))
    model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-8).fit(X, y)
    return log_loss(y_validation, model.predict_proba(X_validation))


@pytest.mark.slow
def test_tune_finds_the_best_strength_of_a_fine_grid(few, key):
    seen = []
    arguments = {"key": key, "train_steps": 2000, "callbacks": [lambda visit: seen.append(visit.step)]}
    tuned = tune(softmax_regression(3), *few, [LAYER_L2], **arguments)
    start, best = ridge(few, -6.0), min(ridge(few, a) for a in np.linspace(-6, 1, 36))
    strength = tuned.hyperparameters["layer_l2"]
    assert strength.shape == (1,)
    found = ridge(few, np.log(strength[0]))
    assert found < best + 0.01 * (start - best)
    # The parameters that come with it are those that scikit-learn finds.
    scores = few[2] @ tuned.params[0]["weight"] + tuned.params[0]["bias"]
    loss = losses(np.asarray(scores), np.eye(3)[few[3]]).mean()
    assert tuned.validation_loss == pytest.approx(loss, rel=1e-10)
    assert loss == pytest.approx(found, rel=1e-3)
    assert seen == list(range(2, 201, 2))
    assert len(tuned.result.history.upper_loss) == 200


@pytest.mark.slow
def test_the_loss_of_folds_is_the_mean_over_tasks_of_their_own(rng, key):
    """Folds of 4, 9 and 9 samples are filled to one shape; what fills them has no part in the losses."""
    X, y = blobs(5, 22)
    parts = np.split(rng.permutation(22), [4, 13])
    folds = [(np.setdiff1d(np.arange(22), held), held) for held in parts]
    model, hyperparameters = mlp(3, (5,)), [LAYER_L2, CLASS_WEIGHTS]
    task = over_folds(classifier_task(model, X, y, X, y, hyperparameters, key=key), folds, None)
    single = [classifier_task(model, X[a], y[a], X[b], y[b], hyperparameters, key=key) for a, b in folds]
    assert task.start[1][0]["weight"].shape == (3, 4, 5)
    u = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), task.start[0])
    v = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), task.start[1])
    each = [one.metrics(u, jax.tree.map(lambda x, k=k: x[k], v)) for k, one in enumerate(single)]
    batch = task.batches.at(0, key)
    assert float(lower(task.problem, u, v, batch.lower, key)) == pytest.approx(sum(m["train_loss"] for m in each))
    expected = np.mean([m["validation_loss"] for m in each])
    assert float(task.problem.upper(u, v, batch.upper, None)) == pytest.approx(expected)
    assert task.metrics(u, v)["validation_loss"] == pytest.approx(expected)


def test_tune_by_folds_finds_the_best_strength_of_a_fine_grid(key):
    X, y = blobs(3, 62, features=20)  # folds of 20, 21 and 21
    pairs = list(StratifiedKFold(3).split(X, y))

    def loss(a):
        return np.mean([ridge((X[i], y[i], X[j], y[j]), a) for i, j in pairs])

    tuned = tune(softmax_regression(3), X, y, hyperparameters=[LAYER_L2], folds=3, key=key, train_steps=1500)
    start, best = loss(-6.0), min(loss(a) for a in np.linspace(-6, 1, 36))
    found = np.log(tuned.hyperparameters["layer_l2"][0])
    assert loss(found) < best + 0.01 * (start - best)
    assert tuned.validation_loss == pytest.approx(loss(found), rel=1e-3)
    # The parameters are those of all samples.
    model = LogisticRegression(C=1 / (62 * np.exp(found)), solver="newton-cholesky", tol=1e-8).fit(X, y)
    scores = X @ np.asarray(tuned.params[0]["weight"]) + np.asarray(tuned.params[0]["bias"])
    np.testing.assert_allclose(log_softmax(scores, axis=1), model.predict_log_proba(X), atol=1e-3)


@pytest.mark.slow
def test_the_number_and_sizes_of_folds_do_not_change_how_often_a_model_is_traced(key):
    X, y = blobs(0, 31)
    traces = []

    def apply(v, x):
        traces.append(x.shape)
        return x @ v["weight"]

    model = Model(lambda key, x: {"weight": jnp.zeros((4, 3))}, apply)
    counts = []
    for folds in (2, 7):
        before = len(traces)
        settings = {"hyperparameters": [LAYER_L2], "solver": SIMPLEST, "steps": 2, "train_steps": 2}
        tune(model, X, y, folds=folds, key=key, **settings)
        counts.append(len(traces) - before)
    assert counts[1] <= counts[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "X_validation and y_validation are missing. Pass both, or a number of folds"),
        ({"X_validation": 0}, "one of X_validation and y_validation is missing"),
        ({"X_validation": 0, "y_validation": 0, "folds": 3}, "folds and validation samples are both given"),
        ({"folds": 1}, "folds is 1, and must be at least 2"),
        ({"folds": 13}, "folds is 13 folds, and there are n_samples=12"),
        ({"folds": 0.25}, r"folds is 0\.25, and must be a number of folds"),
        ({"folds": "loo"}, "folds is 'loo'"),
        ({"folds": [(np.arange(6), np.arange(12))]}, "Fold 0 of folds trains without samples of the class 2"),
        ({"folds": [(np.arange(9), [12])]}, "does not hold pairs of arrays of indices from 0 to 11"),
        ({"folds": 3, "batch_size": 9}, "A fold trains on 8 samples, fewer than one batch of 9"),
        ({"folds": 3, "hyperparameters": ()}, "hyperparameters are none"),
    ],
)
def test_tune_refuses_folds(change, message, key):
    X, y = blobs(0, 12)
    y = np.sort(y)
    arguments = {"hyperparameters": [LAYER_L2], "key": key, "steps": 2} | change
    with pytest.raises(InputError, match=message):
        tune(softmax_regression(3), X, y, **arguments)


@pytest.mark.slow
def test_tune_with_a_strength_for_each_feature_finds_the_useless_ones(few, key):
    tuned = tune(softmax_regression(3), *few, [FEATURE_L2], key=key)
    strength = tuned.hyperparameters["feature_l2"]
    assert strength[:2].max() < np.median(strength[2:]) / 3
    assert tuned.validation_loss < min(ridge(few, a) for a in np.linspace(-6, 1, 29)) - 0.02


@pytest.mark.slow
def test_tune_strengthens_noise_where_the_model_overfits(few, key):
    """Noise on whole data, and noise with minibatches: both make g random, so that Penalty is not the default."""
    tuned = tune(softmax_regression(3), *few, [INPUT_NOISE], key=key)
    assert 0.5 < tuned.hyperparameters["input_noise"] < 2  # 0.05 at the start
    assert tuned.validation_loss < 0.6  # fixed noise of exp(-1), exp(0), exp(0.5) gives 1.03, 0.50, 0.57
    hyperparameters = [INPUT_NOISE, LABEL_SMOOTHING, CLASS_WEIGHTS]
    runs = [tune(softmax_regression(3), *few, hyperparameters, key=key, steps=200, batch_size=15) for _ in range(2)]
    found = runs[0].hyperparameters
    np.testing.assert_array_equal(found["class_weights"], runs[1].hyperparameters["class_weights"])
    assert {k: v.shape for k, v in found.items()} == {"input_noise": (), "label_smoothing": (), "class_weights": (3,)}
    assert found["input_noise"] > 0.3
    assert runs[0].validation_loss < 0.8  # 2.8 with the noise of the start


@pytest.mark.slow
def test_tune_with_another_solver(few, key):
    solver = implicit_solver(100, lower_rate=3e-2)
    assert implicit_solver(100, lower_rate=3e-2) is solver
    tuned = tune(softmax_regression(3), *few, [LAYER_L2], key=key, solver=solver, steps=100)
    assert tuned.validation_loss < ridge(few, -6.0) - 0.1
    assert "linear_residual" in tuned.result.history.extra


def test_tune_refuses_no_training(few, key):
    with pytest.raises(InputError, match="train_steps is 0"):
        tune(softmax_regression(3), *few, [LAYER_L2], key=key, train_steps=0)

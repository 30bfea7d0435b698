"""Networks that rank labels: training through a noise matrix, the ranking, the module that comes back."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import average_precision_score
from sklearn.naive_bayes import GaussianNB

from bilevax import InputError
from bilevax.applications.denoising import DenoisingClassifier
from bilevax.applications.denoising.forward import Labelled, train_through
from bilevax.nn import Model, Training, mlp
from bilevax.nn.training import probabilities

TRAINING = Training(steps=150, rate=1e-2, batch_size=64)


def pair_flips(n=600, wrong=0.4, seed=0, trusted=60):
    """Three classes; given labels are one class too high for a part of the samples in doubt."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 3, n)
    X = (rng.normal(size=(n, 4)) + 3.5 * np.eye(3, 4)[right]).astype(np.float32)
    mask = np.arange(n) < trusted
    flipped = ~mask & (rng.random(n) < wrong)
    return X, np.where(flipped, (right + 1) % 3, right), right, mask


@pytest.mark.slow
def test_the_noise_matrix_is_learned_with_the_network():
    X, given, right, mask = pair_flips(trusted=150)
    samples = Labelled(jnp.asarray(X), jnp.asarray(given), jnp.asarray(mask))
    start = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    arguments = mlp(3, [16]), Training(steps=300, rate=1e-2, batch_size=100), samples, np.arange(600), start
    fixed = train_through(*arguments, jax.random.key(0), learned=False)
    np.testing.assert_allclose(fixed.noise, start, atol=1e-5)
    learned = train_through(*arguments, jax.random.key(0))
    true = 0.6 * np.eye(3) + 0.4 * np.roll(np.eye(3), 1, axis=1)
    assert np.abs(learned.noise - true).sum(1).mean() < 0.25 < np.abs(start - true).sum(1).mean()

    def accuracy(fitted):
        return (probabilities(arguments[0], fitted.params, X).argmax(1) == right).mean()

    assert accuracy(learned) > max(accuracy(fixed), 0.96)


@pytest.mark.slow
def test_one_program_serves_all_trainings():
    X, given, _, mask = pair_flips(60)
    samples = Labelled(jnp.asarray(X), jnp.asarray(given), jnp.asarray(mask))
    traced = []

    def apply(params, x):
        traced.append(x.shape)
        return x @ params

    model = Model(init=lambda key, x: jnp.zeros((4, 3)), apply=apply)
    for share, learned, rows in ((1.0, True, np.arange(40)), (0.5, False, np.arange(20, 60))):
        train_through(
            model, Training(steps=4), samples, rows, np.eye(3), jax.random.key(0), learned=learned, share=share
        )
    assert len(traced) == 1


@pytest.mark.parametrize(
    "trusted", [pytest.param(0, marks=pytest.mark.slow), 12, pytest.param(200, marks=pytest.mark.slow)]
)
def test_a_network_ranks_wrong_labels(trusted):
    X, given, right, mask = pair_flips(wrong=0.3 if trusted else 0.15, trusted=trusted)
    found = DenoisingClassifier(mlp(3, [16]), TRAINING).fit(X, given, trusted=mask)
    assert average_precision_score(given != right, found.probability_wrong_) > 0.9
    assert (found.probability_wrong_[mask] == 0).all()
    assert found.score(X, right) > 0.95
    assert abs(found.expected_wrong_[0] / (given != right).sum() - 1) < 0.2


def test_trusted_samples_decide_where_most_labels_are_wrong():
    X, given, right, mask = pair_flips(wrong=0.6, trusted=200)
    found = DenoisingClassifier(mlp(3, [16]), TRAINING).fit(X, given, trusted=mask)
    assert (found.suggested_label_ == right).mean() > 0.93
    assert np.diag(found.noise_matrix_).max() < 0.55


class Twice(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


@pytest.mark.slow
def test_the_module_comes_back_with_its_weights():
    X, given, right, mask = pair_flips()
    module = Twice(nnx.Rngs(0))
    before = copy.deepcopy(nnx.to_pure_dict(nnx.state(module)))
    found = DenoisingClassifier(module, TRAINING).fit(X, given, trusted=mask)
    learned = found.to_module()
    assert isinstance(learned, Twice)
    own = np.asarray(learned(jnp.asarray(X))).argmax(1)
    assert (own == right).mean() > 0.93
    assert (own == found.predict(X)).mean() > 0.95
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(module)), before)


@pytest.mark.slow
def test_a_pair_comes_back_as_its_parameters():
    X, given, right, _ = pair_flips(300, wrong=0.1)
    model = mlp(3, [8])
    params = DenoisingClassifier(model, TRAINING).fit(X, given).to_module()
    assert (np.asarray(model.apply(params, X)).argmax(1) == right).mean() > 0.9


def test_classifiers_of_tables_have_no_module():
    X, given, _, _ = pair_flips(60)
    with pytest.raises(InputError, match="which is not a network, so there is no module"):
        DenoisingClassifier(GaussianNB()).fit(X, given).to_module()


def test_a_training_that_diverges_is_refused():
    X, given, _, _ = pair_flips(60)
    training = Training(steps=5, rate=optax.constant_schedule(np.inf))
    with pytest.raises(InputError, match=r"diverged: its parameters are not finite after 3 steps.*smaller rate"):
        DenoisingClassifier(mlp(3, [8]), training).fit(X, given)


def test_logits_of_another_width_are_refused():
    X, given, _, _ = pair_flips(60)
    with pytest.raises(InputError, match=r"logits of shape \(60, 4\).*must give \(60, 3\)"):
        DenoisingClassifier(mlp(4, [8]), TRAINING).fit(X, given)


@pytest.mark.slow
def test_a_batch_larger_than_a_fold_is_the_whole_fold():
    X, given, _, _ = pair_flips(60, wrong=0.1)
    large, whole = (
        DenoisingClassifier(mlp(3, [8]), Training(steps=20, batch_size=size)).fit(X, given) for size in (500, None)
    )
    np.testing.assert_array_equal(large.probability_wrong_, whole.probability_wrong_)

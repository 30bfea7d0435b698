"""The applications with modules of PyTorch, Keras and flax.nnx, beside the library's own network, on digits."""

import importlib.util
import os
import warnings

import jax
import numpy as np
import pytest

from bilevax import InputError
from bilevax.applications.denoising import DenoisingClassifier
from bilevax.applications.fewshot import FewShotLearner
from bilevax.applications.poisoning import audit
from bilevax.applications.tuning import LAYER_L2, tune
from bilevax.data import digits
from bilevax.nn import Model, Settled, Training, as_model, as_representation, export, mlp, probabilities

D = digits()
X, Y = D.x_train[:300].reshape(300, -1) / 255, D.y_train[:300].astype(int)
X = X.astype(np.float32)
X_TEST, Y_TEST = D.x_test.reshape(360, -1).astype(np.float32) / 255, D.y_test.astype(int)
WIDTH = 32


def of_torch(outputs, norm=False):
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("torchax") is None:  # which from_torch must be the first to import
        pytest.skip("torchax is not installed")
    torch.manual_seed(0)
    middle = [torch.nn.BatchNorm1d(WIDTH)] if norm else []
    layers = torch.nn.Linear(64, WIDTH), *middle, torch.nn.ReLU(), torch.nn.Linear(WIDTH, outputs)
    for layer in (layers[0], layers[-1]):  # as in the other libraries; PyTorch draws biases, too
        torch.nn.init.xavier_uniform_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return torch.nn.Sequential(*layers)


def of_keras(outputs, norm=False):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    middle = [keras.layers.BatchNormalization()] if norm else []
    layers = keras.layers.Dense(WIDTH), *middle, keras.layers.ReLU(), keras.layers.Dense(outputs)
    return keras.Sequential([keras.Input((64,)), *layers])


def of_nnx(outputs, norm=False):
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(64, WIDTH, rngs=rngs), nnx.Linear(WIDTH, outputs, rngs=rngs)
            self.norm = nnx.BatchNorm(WIDTH, rngs=rngs) if norm else None

        def __call__(self, x):
            x = self.first(x)
            return self.second(nnx.relu(x if self.norm is None else self.norm(x)))

    return Network(nnx.Rngs(0))


MAKERS = {"torch": of_torch, "keras": of_keras, "nnx": of_nnx}
TRAINING = Training(steps=200, rate=5e-3)


def denoised(model):
    given = np.where(np.arange(300) % 5 == 0, (Y + 1) % 10, Y)
    classifier = DenoisingClassifier(model, TRAINING).fit(X, given)
    return (classifier.predict(X_TEST) == Y_TEST).mean()


def tuned(model):
    found = tune(model, X[:200], Y[:200], X[200:], Y[200:], [LAYER_L2], key=jax.random.key(0), steps=20)
    return (probabilities(as_model(model, 10), found.params, X_TEST).argmax(1) == Y_TEST).mean()


def audited(model):
    settings = {"levels": 1, "seeds": 1, "steps": 20, "training": TRAINING, "key": jax.random.key(0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = audit(X, Y, X_TEST, Y_TEST, model=model, **settings)
    assert report.surrogate is None
    return report.attacked.mean()


def few_shot(model):
    images = np.stack([D.x_train[D.y_train == c][:40].reshape(40, -1) for c in range(10)])
    learner = FewShotLearner(model, way=3, shot=1, queries=3, tasks=4, steps=40).meta_fit(images[:6])
    right = []
    for i in range(20):
        found = learner.adapt(images[6:9, i], np.arange(3)).predict(images[6:9, 20:25].reshape(15, -1))
        right.append((found == np.repeat(np.arange(3), 5)).mean())
    return np.mean(right)


def drawn(outputs):
    """The library's network with a last layer that is drawn: for logits it starts at zero."""
    network = mlp(outputs, (WIDTH,))

    def init(key, x):
        first, last = network.init(key, x)
        return first, {**last, "weight": jax.random.normal(key, last["weight"].shape) / WIDTH**0.5}

    return Model(init, network.apply)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [denoised, tuned, audited, few_shot], ids=lambda f: f.__name__)
def test_accuracy_is_that_of_the_librarys_own_network(measure):
    outputs = 16 if measure is few_shot else 10
    own = measure(drawn(outputs) if measure is few_shot else mlp(outputs, (WIDTH,)))
    assert own > 0.7
    tried = 0
    for make in MAKERS.values():
        try:
            module = make(outputs)
        except pytest.skip.Exception:
            continue
        tried += 1
        assert abs(measure(module) - own) < 0.1
    assert tried


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx", "torch", "keras"])
def test_a_representation_with_batch_normalisation(name):
    """Its statistics are measured on the training images, and go back into the module."""
    module = MAKERS[name](16, norm=True)
    images = np.stack([D.x_train[D.y_train == c][:20].reshape(20, -1) for c in range(6)])
    learner = FewShotLearner(module, way=3, shot=1, queries=2, tasks=2, steps=3).meta_fit(images)
    (moments,) = learner.statistics_.values()
    assert moments.mean.shape == (WIDTH,)
    x = images[0, :4].astype(np.float32) / 255
    alone, together = (as_representation(module).apply(learner.u_, part, learner.statistics_) for part in (x[:1], x))
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-4, atol=1e-5)
    back = as_model(export(as_model(module, 16), Settled(learner.u_, learner.statistics_)), 16)
    params, statistics = back.given()
    np.testing.assert_allclose(back.apply(params, x, statistics=statistics), together, rtol=1e-4, atol=1e-5)


def test_what_is_no_representation():
    for given in ("resnet", 3, mlp):
        with pytest.raises(InputError, match=r"representation is .*a model whose outputs are features"):
            as_representation(given)


@pytest.mark.slow
def test_features_that_start_at_zero_are_refused():
    images = np.stack([D.x_train[D.y_train == c][:20].reshape(20, -1) for c in range(4)])
    with pytest.raises(InputError, match="features are all zero at its start"):
        FewShotLearner(mlp(16), way=2, shot=1, queries=2, tasks=2, steps=1).meta_fit(images)

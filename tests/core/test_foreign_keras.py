"""Keras models through `from_keras`, against Keras itself."""

import os
import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
from bilevax import InputError  # noqa: E402
from bilevax.nn import (  # noqa: E402
    Settled,
    Training,
    as_model,
    export,
    freeze,
    from_keras,
    logits,
    probabilities,
    settled,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
L = keras.layers
N, CLASSES = 6, 3


def mlp():
    return keras.Sequential([keras.Input((4,)), L.Dense(8), L.LayerNormalization(), L.ReLU(), L.Dense(CLASSES)])


def lenet():
    convolutions = [L.Conv2D(3, 3, activation="tanh"), L.MaxPooling2D(), L.Conv2D(4, 3), L.AveragePooling2D(2)]
    return keras.Sequential([keras.Input((14, 14, 1)), *convolutions, L.Flatten(), L.Dense(CLASSES)])


def resnet():
    start = x = keras.Input((8, 8, 2))
    x = L.Conv2D(4, 3, strides=2)(x)
    inside = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(x))
    inside = L.Activation("tanh")(inside)
    x = L.Add()([x, L.BatchNormalization(momentum=0.9)(L.Conv2D(4, 3, padding="same", use_bias=False)(inside))])
    return keras.Model(start, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))


def encoder():
    start = x = keras.Input((5, 8))
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
    x = L.LayerNormalization()(x + L.Dense(8)(L.Dense(12, activation="gelu")(x)))
    return keras.Model(start, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(x)))


def reader():
    return keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(11, 5), L.LSTM(7), L.Dense(CLASSES)])


def tied():
    start, twice = keras.Input((4,)), L.Dense(4, activation="tanh")
    return keras.Model(start, L.Dense(CLASSES)(twice(twice(start))))


def normal(*shape):
    return np.random.default_rng(0).normal(size=(N, *shape)).astype(np.float32)


ZOO = {
    "mlp": (mlp, lambda: normal(4)),
    "tied": (tied, lambda: normal(4)),
    "lenet": (lenet, lambda: normal(14, 14, 1)),
    "resnet": (resnet, lambda: normal(8, 8, 2)),
    "encoder": (encoder, lambda: normal(5, 8)),
    "reader": (reader, lambda: np.random.default_rng(0).integers(0, 11, (N, 4)).astype(np.int32)),
}
QUICK = {"mlp", "tied"}
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ZOO]


def made(name):
    keras.utils.set_random_seed(0)
    make, samples = ZOO[name]
    model = make()
    rng = np.random.default_rng(1)
    for v in model.non_trainable_variables:  # statistics of a model that was trained
        if "moving" in v.name:
            v.assign(rng.uniform(0.5, 2.0, v.shape))
    return model, samples()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_keras(name, training):
    native, x = made(name)
    model, key = from_keras(native, CLASSES), jax.random.key(0)
    params = model.init(key, x)
    rng = np.random.default_rng(2)
    direction = {k: jnp.asarray(rng.normal(size=p.shape), p.dtype) for k, p in params.items()}

    def loss(params):
        out = logits(model, params, x, key) if training else logits(model, Settled(params, model.given().statistics), x)
        return jnp.sum(out**2) + jnp.sum(out)

    fixed = [v.value for v in native.non_trainable_variables]

    def expected(trained):
        out, _ = native.stateless_call(trained, fixed, x, training=training)
        return jnp.sum(out**2) + jnp.sum(out)

    @jax.jit
    def ours(params):
        curved = jax.grad(lambda p: sum(jnp.vdot(a, direction[k]) for k, a in jax.grad(loss)(p).items()))(params)
        return loss(params), jax.grad(loss)(params), curved

    @jax.jit
    def theirs(trained):
        along = list(direction.values())
        return expected(trained), *jax.jvp(jax.grad(expected), (trained,), (along,))

    value, slope, curved = ours(params)
    their_value, their_slope, their_curved = theirs(list(params.values()))
    if not training:
        out = np.asarray(native(x, training=False))
        np.testing.assert_allclose(their_value, (out**2).sum() + out.sum(), rtol=1e-5)
    np.testing.assert_allclose(value, their_value, rtol=1e-5)
    for i, k in enumerate(params):
        np.testing.assert_allclose(slope[k], their_slope[i], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(curved[k], their_curved[i], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_vmap_over_parameters_is_a_loop(name):
    native, x = made(name)
    model, key = from_keras(native), jax.random.key(0)
    several = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), model.init(key, x))
    both = jax.jit(jax.vmap(lambda p: logits(model, p, x, key)))(several)
    for i in range(2):
        one = logits(model, jax.tree.map(lambda p, i=i: p[i], several), x, key)
        np.testing.assert_allclose(both[i], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_exported_weights_are_exact(name):
    native, x = made(name)
    model = from_keras(native)
    exported = export(model, model.given())
    for a, b in zip(native.get_weights(), exported.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(native(x), exported(x))
    changed = export(model, jax.tree.map(lambda x: 2 * x, model.given()))
    for a, b in zip(native.trainable_variables, changed.trainable_variables, strict=True):
        np.testing.assert_array_equal(2 * np.asarray(a), np.asarray(b))


def dropped():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(30), L.Dropout(0.5), L.ReLU(), L.Dropout(0.5), L.Dense(CLASSES, "softmax")]
    )


def test_dropout_follows_the_key(key):
    native, x = dropped(), normal(4)
    model = from_keras(native)
    params = model.init(key, x)
    before = [np.asarray(v) for v in native.variables]
    run = jax.jit(lambda key: logits(model, params, x, key))
    first, again, other = run(key), run(key), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
    # The model ends in a softmax; the logits are what it gets.
    np.testing.assert_allclose(jax.nn.softmax(logits(model, params, x)), native(x), rtol=1e-5)
    assert float(jnp.abs(logits(model, params, x).sum(1) - 1).max()) > 1e-3
    for v, value in zip(native.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(v), value)


def test_a_layer_of_softmax_at_the_end(key):
    native = keras.Sequential([keras.Input((4,)), L.Dense(CLASSES), L.Softmax()])
    model = from_keras(native)
    np.testing.assert_allclose(
        jax.nn.softmax(logits(model, model.init(key, normal(4)), normal(4))), native(normal(4)), rtol=1e-5
    )


def normed():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(8), L.BatchNormalization(), L.ReLU(), L.Dropout(0.2), L.Dense(CLASSES)]
    )


def test_statistics_are_those_of_the_whole_sample(key):
    native, x = normed(), np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    model = from_keras(native)
    v = settled(model, model.init(key, x), x, key=key, batch_size=100)
    ((path, moments),) = v.statistics.items()
    assert path == native.layers[1].name
    hidden = np.asarray(native.layers[0](x))
    np.testing.assert_allclose(moments.mean, hidden.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.variance, hidden.var(0), atol=1e-5)
    np.testing.assert_allclose(np.asarray(export(model, v)(x)), logits(model, v, x), atol=1e-5)


def test_training_and_predictions_by_batch_normalisation(key):
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    y = np.where(x[:, 0] > 0, 1 + (x[:, 1] > 0), 0)
    model = as_model(normed(), CLASSES)
    v = train(model, Training(steps=150, batch_size=50), x, y, np.ones(300, np.float32), key)
    assert (probabilities(model, v, x).argmax(1) == y).mean() > 0.9
    np.testing.assert_allclose(probabilities(model, v, x[:1]), probabilities(model, v, x)[:1], atol=1e-5)
    with pytest.raises(InputError, match="probabilities: the model has batch normalisation"):
        probabilities(model, v.params, x)


def test_frozen_layers_stay(key):
    native, x = normed(), normal(4)
    native.layers[0].trainable = native.layers[1].trainable = False
    model = from_keras(native)
    params = model.init(key, x)
    assert [p.rpartition(".")[2] for p in params] == ["kernel", "bias"]
    # A frozen layer of batch normalisation keeps its statistics, so batches do not matter.
    np.testing.assert_allclose(logits(model, params, x)[:1], logits(model, params, x[:1]), atol=1e-5)
    native.layers[0].trainable = native.layers[1].trainable = True
    whole = from_keras(native)
    same = freeze(whole, [layer.name for layer in native.layers[:2]])
    assert set(same.init(key, x)) == set(params)
    np.testing.assert_allclose(logits(same, params, x), logits(model, params, x), atol=1e-5)
    np.testing.assert_array_equal(export(same, params).get_weights()[0], native.get_weights()[0])


def test_equal_models_share_programs_and_changed_weights_do_not(key):
    native, x = dropped(), normal(4)
    first = from_keras(native)
    assert from_keras(native) == first
    assert hash(from_keras(native)) == hash(first)
    native.layers[0].kernel.assign(np.zeros((4, 30)))
    assert from_keras(native) != first
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(logits(loaded, loaded.init(key, x), x), logits(first, first.init(key, x), x))


@pytest.mark.slow
def test_the_page_of_models_runs():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    names = {"__name__": "models"}
    start = page[page.index("```python\n") + 10 : page.index("```\n\n## ")]
    own = re.findall(r"^``` { .python title=\"Keras\" }\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert own
    for code in (start, *own):
        exec(compile(code, "models.md", "exec"), names)
    assert isinstance(names["trained"], keras.Model)


class Unregistered(keras.Model):
    def __init__(self, counts=False):
        super().__init__()
        self.dense, self.counts = L.Dense(CLASSES), counts
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        if self.counts:
            self.count.assign(self.count + 1)
        return self.dense(x)


def test_a_model_of_a_users_own_class(key):
    native, x = Unregistered(), normal(4)
    native(x)
    model = from_keras(native)
    np.testing.assert_allclose(logits(model, model.init(key, x), x), native(x), rtol=1e-5)
    with pytest.raises(InputError, match=r"model Unregistered cannot be copied by keras .*register_keras_serializable"):
        export(model, model.given())


def test_a_model_with_state_is_refused(key):
    native = Unregistered(counts=True)
    native(normal(4))
    with pytest.raises(InputError, match=r"model Unregistered changes its variables '.*count' when it is called"):
        from_keras(native).init(key, normal(4))


def without_training():
    native = mlp()
    native.trainable = False
    return native


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: keras.Sequential([L.Dense(3)]), r"model Sequential is not built: call it once on some samples"),
        (lambda: keras.Sequential([keras.Input((4,)), L.Dense(1, "sigmoid")]), "ends in the activation sigmoid"),
        (without_training, "model Sequential has no trainable variables"),
    ],
)
def test_models_that_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        from_keras(make())


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(InputError, match="Keras runs on tensorflow, and must run on JAX: set the environment variable"):
        from_keras(mlp())


def test_other_classes_and_other_samples_are_refused(key):
    with pytest.raises(InputError, match="module Sequential returns 3 logits, and there are 10 classes"):
        as_model(mlp(), 10).init(key, normal(4))
    with pytest.raises(InputError, match=r"module Sequential cannot be applied to samples of shape \(2, 5\)"):
        as_model(mlp(), 3).init(key, normal(5))

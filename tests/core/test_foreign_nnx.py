"""flax.nnx and flax.linen modules, freezing and exports, against flax itself."""

import pickle

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bilevax import Batch, InputError, Penalty, Problem, solve
from bilevax.applications.denoising import ImportanceClassifier
from bilevax.applications.poisoning.points import logit_count
from bilevax.data import noisy_digits
from bilevax.nn import (
    Model,
    Settled,
    Training,
    as_model,
    export,
    freeze,
    from_flax,
    from_nnx,
    logits,
    mlp,
    params_of,
    probabilities,
    settled,
    train,
)
from bilevax.nn.training import cross_entropy

N, CLASSES = 6, 3


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, CLASSES, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm, self.dense = nnx.BatchNorm(4, momentum=0.9, rngs=rngs), nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        return self.dense(jnp.mean(jnp.tanh(x + self.norm(self.second(x))), (1, 2)))


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, dropout_rate=0.0, decode=False, rngs=rngs)
        self.norm, self.dense = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x + self.attention(x)).mean(1))


class Reader(nnx.Module):
    def __init__(self, rngs):
        self.words, self.dense = nnx.Embed(11, 5, rngs=rngs), nnx.Linear(7, CLASSES, rngs=rngs)
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(5, 7, param_dtype=jnp.float64, rngs=rngs))

    def __call__(self, x):
        return self.dense(self.lstm(self.words(x))[:, -1])


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.into, self.dense = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, CLASSES, rngs=rngs)
        self.back = self.into

    def __call__(self, x):
        return self.dense(jnp.tanh(self.back(jnp.tanh(self.into(x)))))


def normal(*shape):
    return np.random.default_rng(0).normal(size=(N, *shape))


ZOO = {
    "plain": (Plain, lambda: normal(4)),
    "tied": (Tied, lambda: normal(4)),
    "residual": (Residual, lambda: normal(8, 8, 2)),
    "encoder": (Encoder, lambda: normal(5, 8)),
    "reader": (Reader, lambda: np.random.default_rng(0).integers(0, 11, (N, 4))),
}
slow = pytest.mark.slow
CASES = [pytest.param(name, marks=() if name == "tied" else slow) for name in ZOO]
IN_MODES = [
    pytest.param(name, mode == "train", id=f"{name}-{mode}", marks=() if (name, mode) == ("tied", "eval") else slow)
    for name in ZOO
    for mode in ("eval", "train")
]


def made(name):
    make, samples = ZOO[name]
    module = make(nnx.Rngs(0))
    floats = nnx.state(module, (nnx.Param, nnx.BatchStat))
    nnx.update(module, jax.tree.map(lambda x: x.astype(jnp.float64), floats))
    if name == "residual":  # statistics of a module that was trained
        module.norm.mean[...], module.norm.var[...] = jnp.linspace(-0.2, 0.2, 4), jnp.linspace(0.5, 2.0, 4)
    return module, samples()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "training"), IN_MODES)
def test_values_and_derivatives_are_those_of_flax(name, training, key):
    module, x = made(name)
    model = from_nnx(module, CLASSES)
    params = model.init(key, x)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)

    def loss(params):
        out = logits(model, params, x, key) if training else logits(model, Settled(params, model.given().statistics), x)
        return jnp.sum(out**2) + jnp.sum(out)

    def native(module):
        out = module(x)
        return jnp.sum(out**2) + jnp.sum(out)

    @jax.jit
    def ours(params):
        return loss(params), *jax.jvp(jax.grad(loss), (params,), (direction,))

    value, slope, curved = ours(params)
    module.train() if training else module.eval()
    # Flax's own way: the value and gradient of a module, and the derivative of its gradient along the direction.
    expected, slopes = nnx.value_and_grad(native)(module)
    np.testing.assert_allclose(value, expected, rtol=1e-8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), slope, nnx.to_pure_dict(slopes))
    graph, state, rest = nnx.split(module, nnx.Param, ...)

    def slope_at(state):
        return nnx.grad(native)(nnx.merge(graph, state, rest, copy=True))

    along = nnx.clone(state)
    nnx.replace_by_pure_dict(along, direction)
    theirs = nnx.to_pure_dict(jax.jit(lambda s, d: jax.jvp(slope_at, (s,), (d,))[1])(state, along))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), curved, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_vmap_over_parameters_and_exports(name, key):
    module, x = made(name)
    model = from_nnx(module)
    params = model.init(key, x)
    several = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    both = jax.jit(jax.vmap(lambda p: logits(model, p, x, key)))(several)
    for i in range(2):
        one = logits(model, jax.tree.map(lambda p, i=i: p[i], several), x, key)
        np.testing.assert_allclose(both[i], one, rtol=1e-8, atol=1e-10)
    exported = export(model, model.given())
    assert type(exported) is type(module)
    before, after = (nnx.to_pure_dict(nnx.state(m, (nnx.Param, nnx.BatchStat))) for m in (module, exported))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    changed = export(model, jax.tree.map(lambda x: 2 * x, model.given()))
    after = nnx.to_pure_dict(nnx.state(changed, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), params, after)


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, CLASSES, rngs=rngs)
        self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        return self.dense(self.drops[1](self.drops[0](x)))


@pytest.mark.slow
def test_dropout_follows_the_key(key):
    module, x = Dropped(nnx.Rngs(0)), normal(4)
    model = from_nnx(module)
    params = model.init(key, x)
    run = jax.jit(lambda key: logits(model, params, x, key))
    first, again, other = run(key), run(key), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
    # Two layers drop different entries.
    ones = from_nnx(Dropped(nnx.Rngs(0)))
    p = {"dense": {"bias": jnp.zeros(3), "kernel": jnp.ones((4, 3))}}
    kept = logits(ones, p, np.eye(4).repeat(200, 0), key)[:, 0]
    assert 0.15 < float((kept > 0).mean()) < 0.35
    module.eval()
    np.testing.assert_allclose(logits(model, params, x), module(x), rtol=1e-6)


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, CLASSES, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class NormedLinen(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.relu(linen.BatchNorm(use_running_average=not train, name="norm")(linen.Dense(8, name="first")(x)))
        return linen.Dense(CLASSES, name="last")(linen.Dropout(0.2, deterministic=not train)(x))


NORMED = {"nnx": lambda: Normed(nnx.Rngs(0)), "linen": NormedLinen}


@pytest.mark.slow
@pytest.mark.parametrize("make", [NORMED["nnx"], pytest.param(NORMED["linen"], marks=slow)], ids=NORMED)
def test_statistics_are_those_of_the_whole_sample(make, key):
    x = np.random.default_rng(0).normal(size=(600, 4))
    model = as_model(make(), CLASSES)
    params = model.init(key, x)
    v = settled(model, params, x, key=key, batch_size=100)
    known = jax.tree.map(np.asarray, params)  # by hand in numpy, where nothing is compiled
    hidden = x @ known["first"]["kernel"] + known["first"]["bias"]
    np.testing.assert_allclose(v.statistics["norm"].mean, hidden.mean(0), atol=1e-6)
    np.testing.assert_allclose(v.statistics["norm"].variance, hidden.var(0), atol=1e-6)
    # In training a batch uses its own mean and variance.
    trained = jax.jit(lambda params: logits(model, params, x[:50]))(params)
    scaled = (hidden[:50] - hidden[:50].mean(0)) / np.sqrt(hidden[:50].var(0) + 1e-5)
    expected = np.maximum(scaled, 0) @ known["last"]["kernel"] + known["last"]["bias"]
    np.testing.assert_allclose(trained, expected, atol=1e-5)
    # The user's own module with these weights predicts the same.
    exported = export(model, v)
    if isinstance(exported, dict):
        own = jax.jit(NormedLinen().apply)(exported, x)
    else:
        exported.eval()
        own = nnx.jit(lambda module: module(x))(exported)
    np.testing.assert_allclose(own, jax.jit(lambda v: logits(model, v, x))(v), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [NORMED["nnx"], pytest.param(NORMED["linen"], marks=slow)], ids=NORMED)
def test_training_and_predictions_by_batch_normalisation(make, key):
    x = np.random.default_rng(0).normal(size=(300, 4))
    y = np.where(x[:, 0] > 0, 1 + (x[:, 1] > 0), 0)
    model = as_model(make(), CLASSES)
    v = train(model, Training(steps=150, batch_size=50), x, y, np.ones(300), key)
    assert isinstance(v, Settled)
    assert (probabilities(model, v, x).argmax(1) == y).mean() > 0.75  # always naming one class: 0.5
    np.testing.assert_allclose(probabilities(model, v, x[:1]), probabilities(model, v, x)[:1], atol=1e-8)
    with pytest.raises(InputError, match="probabilities: the model has batch normalisation"):
        probabilities(model, v.params, x)
    with pytest.raises(InputError, match="v is Settled: it has running statistics"):
        cross_entropy(model, v, x, y)
    with pytest.raises(InputError, match="v is Settled: it has running statistics"):
        logits(model, v, x, key)


@pytest.mark.slow
def test_a_problem_of_a_module_with_batch_normalisation(key):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    model = as_model(Normed(nnx.Rngs(0)), CLASSES)

    def upper(u, v, data):
        return jnp.mean(cross_entropy(model, v, *data))

    def lower(u, v, data, *, key):
        return jnp.mean(jax.nn.sigmoid(u) * cross_entropy(model, v, *data, key=key))

    problem = Problem(upper, lower, random_lower=True)
    batch = Batch(upper=(x[:20], y[:20]), lower=(x[20:], y[20:]))
    solver = Penalty(optax.adam(0.1), optax.adam(0.01), lower_steps=2)
    start = model.init(key, x)
    result = solve(solver, problem, jnp.zeros(20), start, batch, steps=3, key=key)
    assert float(jnp.abs(result.u).max()) > 0
    v = settled(model, result.v, x[20:], key=key)
    assert probabilities(model, v, x).shape == (40, 3)
    with pytest.raises(InputError, match="v is Settled"):
        solve(solver, problem, jnp.zeros(20), v, batch, steps=3, key=key)
    assert jax.tree.structure(params_of(v)) == jax.tree.structure(start)


@pytest.mark.slow
def test_frozen_layers_stay(key):
    module, x = Normed(nnx.Rngs(0)), normal(4)
    model = freeze(from_nnx(module), ["first", "norm"])
    params = model.init(key, x)
    assert sorted(params) == ["last.bias", "last.kernel"]
    # A frozen layer of batch normalisation keeps its statistics, so batches do not matter.
    np.testing.assert_allclose(logits(model, params, x)[:1], logits(model, params, x[:1]), atol=1e-10)
    assert settled(model, params, x, key=key) is params
    exported = export(model, params)
    np.testing.assert_array_equal(exported.first.kernel[...], module.first.kernel[...])
    # Without its layer of batch normalisation, statistics are measured.
    partly = freeze(from_nnx(module), lambda path: path.startswith("first"))
    v = settled(partly, partly.init(key, x), x, key=key)
    assert sorted(v.params) == ["last.bias", "last.kernel", "norm.bias", "norm.scale"]
    assert list(v.statistics) == ["norm"]
    export(partly, v).eval()


@pytest.mark.slow
def test_pretrained_functions_and_low_rank_updates(key):
    network, x = mlp(CLASSES, widths=(8,)), normal(4)
    whole = network.init(key, x)
    head = freeze(network, "0", whole)
    assert sorted(head.init(jax.random.key(1), x)) == ["1.bias", "1.weight"]
    np.testing.assert_array_equal(logits(head, head.init(key, x), x), logits(network, whole, x))

    # LoRA: the weights are W + A B.
    def apply(v, x):
        first = whole[0] | {"weight": whole[0]["weight"] + v["a"] @ v["b"]}
        return network.apply((first, *whole[1:]), x)

    lora = Model(lambda key, x: {"a": jax.random.normal(key, (4, 2)), "b": jnp.zeros((2, 8))}, apply)
    np.testing.assert_allclose(logits(lora, lora.init(key, x), x), logits(network, whole, x))


@pytest.mark.parametrize(
    ("frozen", "sentence"),
    [
        ("head", "the model has no parameters at 'head'. It has 'first.bias'"),
        ([], "frozen chooses none of the parameters"),
        (lambda path: True, "all parameters are frozen"),
        (3, "frozen is 3, and must be paths or a function of a path"),
    ],
)
def test_freeze_refuses(frozen, sentence):
    with pytest.raises(InputError, match=sentence):
        freeze(from_nnx(Normed(nnx.Rngs(0))), frozen)


def test_freeze_needs_weights():
    with pytest.raises(InputError, match=r"freeze: the model draws its start. Pass params"):
        freeze(mlp(3), "0")


def test_equal_modules_share_programs_and_changed_weights_do_not(key):
    module, x = Normed(nnx.Rngs(0)), normal(4)
    first = from_nnx(module)
    assert from_nnx(module) == first == from_nnx(Normed(nnx.Rngs(0)))
    assert hash(from_nnx(module)) == hash(first)
    module.first.kernel[...] = jnp.zeros((4, 8), jnp.float32)
    assert from_nnx(module) != first
    assert float(jnp.abs(first.init(key, x)["first"]["kernel"]).max()) > 0
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(logits(loaded, loaded.init(key, x), x), logits(first, first.init(key, x), x))


def test_equinox_modules_come_back(key):
    module = eqx.nn.MLP(4, 3, 8, 1, key=key)
    model = as_model(module, 3)
    params = jax.tree.map(lambda p: 2 * p, model.init(key, normal(4)))
    exported = export(model, params)
    np.testing.assert_array_equal(exported.layers[0].weight, 2 * module.layers[0].weight)
    with pytest.raises(InputError, match="The model was made from functions, not from a module"):
        export(mlp(3), None)
    assert export(from_flax(NormedLinen()), params_of(Settled({"a": 1}, {}))) == {"params": {"a": 1}}


class Odd(nnx.Module):
    def __init__(self, what, rngs):
        self.what, self.dense = what, nnx.Linear(4, CLASSES, rngs=rngs)
        self.count = nnx.Variable(jnp.zeros(()))
        self.own = nnx.BatchStat(jnp.zeros(())) if what == "statistics" else None

    def __call__(self, x):
        if self.what == "counts":
            self.count[...] += 1
        return self.dense(x)[:, 0] if self.what == "flat" else self.dense(x)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("counts", "module Odd changes its variables 'count' when it is called"),
        ("flat", r"module Odd returns an output of shape \(2,\) for 2 samples"),
        ("statistics", "module Odd has the statistics 'own'"),
    ],
)
def test_what_a_module_cannot_do(what, sentence, key):
    with pytest.raises(InputError, match=sentence):
        from_nnx(Odd(what, nnx.Rngs(0))).init(key, normal(4))


def test_other_classes_and_other_samples_are_refused(key):
    with pytest.raises(InputError, match="module Plain returns 3 logits, and there are 10 classes"):
        as_model(Plain(nnx.Rngs(0)), 10).init(key, normal(4))
    with pytest.raises(InputError, match=r"module Plain cannot be applied to samples of shape \(2, 5\)"):
        as_model(Plain(nnx.Rngs(0)), 3).init(key, normal(5))
    with pytest.raises(InputError, match="module Dropout has no parameters"):
        from_nnx(nnx.Dropout(0.5))


def test_attacks_refuse_batch_normalisation_unless_it_is_fixed(key):
    model = from_nnx(Normed(nnx.Rngs(0)))
    with pytest.raises(InputError, match="The model has batch normalisation: the logits of a sample would depend"):
        logit_count(model, normal(4), key)
    assert logit_count(freeze(model, "norm"), normal(4), key) == CLASSES


@pytest.mark.slow
def test_wrong_labels_are_found_by_a_network_with_batch_normalisation():
    d = noisy_digits(seed=100, train=200, clean=100)

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(64, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)
            self.norm = nnx.BatchNorm(32, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    module = Network(nnx.Rngs(0))
    found = ImportanceClassifier(module, training=Training(steps=100), steps=30).fit(d.X, d.y, d.X_clean, d.y_clean)
    assert found.score(d.X_test, d.y_test) > 0.8
    assert (d.y != d.y_true)[found.suspects_].mean() > 0.8
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).predict(d.X_test), found.predict(d.X_test))

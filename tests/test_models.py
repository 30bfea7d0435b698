import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import InputError
from bilevax.models import Model, as_model, from_equinox, from_flax, logits, mlp, softmax_regression


class Net(nn.Module):
    classes: int = 3
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(8)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


class Dropped(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear = eqx.nn.Linear(4, 3, key=key)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, key=None):
        return self.linear(self.dropout(x, key=key))


@pytest.fixture
def x(key):
    return jax.random.normal(key, (5, 4))


@pytest.mark.parametrize("model", [softmax_regression(3), mlp(3), mlp(3, (7, 6))])
def test_built_in_models_start_undecided(model, key, x):
    out = logits(model, model.init(key, x), x)
    np.testing.assert_array_equal(out, np.zeros((5, 3)))


def test_softmax_regression_is_affine(key, x):
    model = softmax_regression(2)
    (layer,) = model.init(key, x)
    params = ({"weight": jnp.ones_like(layer["weight"]), "bias": jnp.array([1.0, 0.0])},)
    np.testing.assert_allclose(logits(model, params, x), x.sum(1)[:, None] + np.array([1.0, 0.0]), atol=1e-12)


def test_mlp_flattens_images_and_draws_by_key(key):
    images = jnp.ones((5, 2, 3))
    first, second = mlp(3).init(key, images), mlp(3).init(jax.random.key(1), images)
    assert first[0]["weight"].shape == (6, 64)
    assert float(jnp.abs(first[0]["weight"] - second[0]["weight"]).max()) > 0.1
    assert logits(mlp(3), first, images).shape == (5, 3)


def test_the_same_model_is_the_same_object():
    assert mlp(3) is mlp(3)
    assert from_flax(Net()) is from_flax(Net())


def test_a_width_must_be_positive():
    with pytest.raises(InputError, match="layer's width is 0"):
        mlp(3, (0,))


def test_flax_module_with_dropout(key, x):
    model = from_flax(Net())
    params = model.init(key, x)
    used = logits(model, params, x)
    np.testing.assert_allclose(used, Net().apply({"params": params}, x))
    np.testing.assert_allclose(used, logits(model, params, x))
    trained = logits(model, params, x, jax.random.key(1))
    assert float(jnp.abs(trained - used).max()) > 1e-3


def test_flax_running_statistics_are_refused(key, x):
    with pytest.raises(InputError, match="keeps batch_stats besides its parameters"):
        from_flax(Normed()).init(key, x)


def test_equinox_module_is_vmapped(key, x):
    net = eqx.nn.MLP(4, 3, 8, 1, key=key)
    model = from_equinox(net)
    params = model.init(jax.random.key(1), x)
    np.testing.assert_allclose(logits(model, params, x), jax.vmap(net)(x))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))
    gradient = jax.grad(lambda p: jnp.sum(logits(model, p, x) ** 2))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)


def test_equinox_dropout_and_draws(key, x):
    model = from_equinox(lambda key: Dropped(key))
    params, others = model.init(key, x), model.init(jax.random.key(1), x)
    assert float(jnp.abs(params.linear.weight - others.linear.weight).max()) > 1e-3
    used = logits(model, params, x)
    np.testing.assert_allclose(used, x @ params.linear.weight.T + params.linear.bias, atol=1e-12)
    assert float(jnp.abs(logits(model, params, x, key) - used).max()) > 1e-3


def test_as_model_takes_what_users_have(key, x):
    def init(key, x):
        return jnp.zeros((x.shape[1], 3))

    def apply(params, x):
        return x @ params

    candidates = (Model(init, apply), (init, apply), Net(), Dropped(key), mlp, softmax_regression)
    for candidate in candidates:
        model = as_model(candidate, 3)
        assert isinstance(model, Model)
        assert logits(model, model.init(key, x), x).shape == (5, 3)


@pytest.mark.parametrize("bad", ["mlp", 3, None, (1, 2), lambda classes: classes, Net])
def test_as_model_refuses_the_rest(bad):
    with pytest.raises(InputError, match="which is no model"):
        as_model(bad, 3)

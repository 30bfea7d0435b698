"""Models that compute in bfloat16 with float32 parameters, by every solver."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.nn import Model, Training, logits, train
from bilevax.nn.training import cross_entropy
from tests.core.solvers import CASES

N, HIDDEN, CLASSES = 24, 8, 3
RNG = np.random.default_rng(0)
MIDDLES = RNG.normal(size=(CLASSES, 4))
Y = np.arange(N) % CLASSES
X = (MIDDLES[Y] + 0.5 * RNG.normal(size=(N, 4))).astype(np.float32)
NOISY = np.where(np.arange(N) % 4 == 0, (Y + 1) % CLASSES, Y)


def init(key, x):
    first, second = jax.random.split(key)
    return {
        "first": 0.5 * jax.random.normal(first, (x.shape[1], HIDDEN), jnp.float32),
        "second": 0.5 * jax.random.normal(second, (HIDDEN, CLASSES), jnp.float32),
    }


def apply(params, x):
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    return jnp.tanh(x.astype(jnp.bfloat16) @ half["first"]) @ half["second"]


MODEL = Model(init, apply)


def upper_loss(u, v, clean):
    return jnp.mean(cross_entropy(MODEL, v, *clean.data))


def lower_loss(u, v, noisy):
    losses = cross_entropy(MODEL, v, *noisy.data)
    decay = 1e-2 * sum(jnp.sum(p**2) for p in jax.tree.leaves(v))
    return jnp.mean(u[noisy.index] * losses) + decay


PROBLEM = bx.Problem(upper_loss, lower_loss)
SPARSE = bx.Problem(
    upper_loss, lower_loss, regularizer=lambda u, v, mu: 1e-3 * sum(jnp.sum(p**2) / 2 for p in jax.tree.leaves(v))
)
DATA = (jnp.asarray(X), jnp.asarray(Y)), (jnp.asarray(X), jnp.asarray(NOISY))
BATCH = bx.Batch(*map(bx.whole, DATA))
BATCHES = {"SABA": bx.Blocks(*DATA, N, N), "SRBA": bx.WithWhole(bx.Minibatches(*DATA))}  # others: BATCH


def shrink(u, v, step):
    return jax.tree.map(lambda x: x / (1 + 1e-3 * step), v)


def solver_of(name):
    if name == "SparseHO":
        return bx.SparseHO(optax.adam(2e-2), shrink, rate=0.3, lower_steps=20)
    return CASES[name].solver


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "Penalty" else pytest.mark.slow) for n in CASES])
def test_a_network_of_bfloat16(name):
    start = jnp.ones(N, jnp.float32), init(jax.random.key(0), X)
    problem = SPARSE if name == "SparseHO" else PROBLEM
    result = bx.solve(solver_of(name), problem, *start, BATCHES.get(name, BATCH), steps=60, key=jax.random.key(0))
    assert result.status is bx.Status.FINISHED
    for x in jax.tree.leaves((result.u, result.v)):
        assert x.dtype == jnp.float32
        assert jnp.isfinite(x).all()
    history = result.history
    assert history.upper_loss.dtype == np.float32
    if name == "GradientMatching":  # v stays
        return
    last = upper_loss(result.u, result.v, BATCH.upper)
    assert last < upper_loss(*start, BATCH.upper) - 0.1
    distinct = np.unique(history.upper_loss).size  # bfloat16 has 256 numbers between 0.5 and 1
    assert distinct > 10


@pytest.mark.slow
def test_losses_are_computed_in_float32():
    """A mean over many samples in bfloat16 would be off in the third digit."""
    params = init(jax.random.key(0), X)
    many = np.tile(X, (100, 1))
    found = logits(MODEL, params, many)
    assert apply(params, many).dtype == jnp.bfloat16
    assert found.dtype == jnp.float32
    expected = optax.softmax_cross_entropy_with_integer_labels(
        np.asarray(apply(params, many)).astype(np.float64), np.tile(Y, 100)
    )
    loss = jnp.mean(cross_entropy(MODEL, params, many, np.tile(Y, 100)))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


@pytest.mark.slow
def test_training_in_bfloat16():
    training = Training(steps=60, rate=3e-2, l2=0.0)
    v = train(MODEL, training, X, Y, jnp.ones(N, jnp.float32), jax.random.key(0))
    assert {p.dtype for p in jax.tree.leaves(v)} == {jnp.dtype("float32")}
    assert (np.asarray(logits(MODEL, v, X)).argmax(1) == Y).mean() > 0.9

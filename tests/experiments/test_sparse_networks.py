"""The applications of the SPNBO text: losses and regularisers by hand, what solvers make of them, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse import csr_array

from bilevax import SPNBO, InputError, solve
from bilevax.applications.fewshot import evaluate
from bilevax.applications.poisoning import Points
from bilevax.nn import Representation, Training, mlp
from bilevax.solvers.spnbo import Layers
from experiments.spnbo.tasks import (
    log_adam,
    sparse_fewshot_task,
    sparse_poisoning_task,
    sparse_reweighting_task,
    sparsity,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
CENTRES = 2 * RNG.normal(size=(3, 6))
NET = mlp(3, (8,))


def samples(n, seed, noise=0.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = CENTRES[y] + rng.normal(size=(n, 6))
    return x, np.where(rng.random(n) < noise, (y + 1) % 3, y)


X, Y = samples(90, 1, noise=0.3)
X_VAL, Y_VAL = samples(60, 2)


def log_softmax(scores):
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def losses(v, x, y):
    return -log_softmax(np.asarray(NET.apply(v, jnp.asarray(x))))[np.arange(len(y)), y]


def reweighting(**more):
    return sparse_reweighting_task(NET, X, Y, X_VAL, Y_VAL, key=KEY, **more)


def test_reweighting_by_hand():
    task = reweighting(single=2e-3, group=5e-2)
    u, v = task.start
    v = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), v)
    u = u | {"sample": jnp.asarray(RNG.normal(size=90))}
    batch = task.batches.at(0, KEY)
    leaves = [np.asarray(x) for x in jax.tree.leaves(v)]
    plain = (np.exp(u["sample"]) * losses(v, X, Y)).mean()
    corners = 2e-3 * sum(np.abs(x).sum() for x in leaves) + 5e-2 * sum(np.linalg.norm(x) for x in leaves)
    assert float(task.problem.lower(u, v, batch.lower, KEY, 1e-9)) == pytest.approx(plain + corners, rel=1e-6)
    assert float(task.problem.upper(u, v, batch.upper, KEY)) == pytest.approx(losses(v, X_VAL, Y_VAL).mean())
    found = task.metrics(u, v)
    assert found["val_loss"] == pytest.approx(losses(v, X_VAL, Y_VAL).mean())
    far = task.problem.project_upper(jax.tree.map(lambda x: 100 * x + 50, u))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(far)) == 10


def test_wrong_labels_lose_their_weight_and_parameters_vanish():
    task = reweighting(single=3e-3)
    solver = SPNBO(log_adam(0.1), optax.adam(1e-2), 5, Layers(1), beta=10.0, mu=1e-2, step_scale=1.0)
    result = solve(solver, task.problem, *task.start, task.batches, steps=400, key=KEY)
    right = np.array([np.array_equal(a, b) for a, b in zip(Y, samples(90, 1)[1], strict=True)])
    weight = np.exp(result.u["sample"])
    assert weight[right].mean() > 1.5 * weight[~right].mean()
    assert task.metrics(result.u, result.v)["val_accuracy"] > 0.85


def test_an_idle_samples_weight_stays():
    task = reweighting(batch_size=10)
    solver = SPNBO(log_adam(0.1), optax.adam(1e-2), 2)
    result = solve(solver, task.problem, *task.start, task.batches, steps=3, key=KEY)
    assert (result.u["sample"] == 0).sum() == 60
    assert float(result.u["single"]) != float(task.start[0]["single"])


def test_sparsity_counts_zeros_and_arrays():
    v = {"a": jnp.array([0.0, 1e-4, 2.0]), "b": jnp.full(4, 5e-4), "c": jnp.zeros((2, 2))}
    found = sparsity(v)
    assert found["zeros"] == pytest.approx(10 / 11)
    assert found["removed"] == pytest.approx(2 / 3)


def test_poisoning_by_hand():
    x, x_val = (np.clip((a + 8) / 16, 0, 1) for a in (X, X_VAL))
    points = Points(x[:4], (Y[:4] + 1) % 3)
    training = Training(steps=50, l2=1e-2)
    task = sparse_poisoning_task(NET, x, Y, x_val, Y_VAL, points, key=KEY, p=0.5, strength=1e-3, training=training)
    u, v = task.start
    batch = task.batches.at(0, KEY)
    together = losses(v, np.concatenate([x, points.x]), np.concatenate([Y, points.y])).mean()
    corners = 1e-3 * sum((np.abs(np.asarray(a)) ** 0.5).sum() for a in jax.tree.leaves(v))
    assert float(task.problem.lower(u, v, batch.lower, KEY, 1e-12)) == pytest.approx(together + corners, rel=1e-4)
    assert float(task.problem.upper(u, v, batch.upper, KEY)) == pytest.approx(-losses(v, x_val, Y_VAL).mean())
    assert {"val_loss", "val_accuracy", "moved", "zeros", "removed"} == set(task.metrics(u, v))
    again = sparse_poisoning_task(
        NET, x, Y, x_val, Y_VAL, points, key=KEY, p=0.5, strength=1e-3, training=training, start=v
    )
    assert again.problem == task.problem
    assert again.start[1] is v


def dense(width):
    def init(key, x):
        return [jax.random.normal(key, (x[0].size, width)) / 3]

    def apply(params, x, statistics=None, key=None):
        return x.reshape(len(x), -1) @ params[0]

    return Representation(init, apply, lambda params, x: None)


REPRESENTATION = dense(5)
IMAGES = np.random.default_rng(3).normal(size=(9, 1, 4, 4)) + 0.3 * np.random.default_rng(4).normal(size=(9, 10, 4, 4))


def test_sparse_heads_by_hand_and_their_zeros():
    made = {"way": 3, "shot": 2, "queries": 4, "tasks": 2, "key": KEY}
    method = sparse_fewshot_task(REPRESENTATION, IMAGES, p=0.5, strength=1e-2, **made)
    task = method.task
    u, _ = task.start
    batch = task.batches.at(0, KEY)
    v = task.problem.lower_start(u, batch, KEY)
    assert v.shape == (2, 3, 5)
    np.testing.assert_allclose(np.linalg.norm(v, axis=2), 10)
    v = v + 0.3
    total = 0.0
    for x, y, heads in zip(*map(np.asarray, (batch.lower.x, batch.lower.y, v)), strict=True):
        features = x.reshape(len(x), -1) @ np.asarray(u[0])
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        total -= log_softmax(features @ heads.T)[np.arange(len(y)), y].mean()
    corners = 1e-2 * (np.abs(np.asarray(v)) ** 0.5).sum()
    assert float(task.problem.lower(u, v, batch.lower, KEY, 1e-12)) == pytest.approx(total + corners, rel=1e-4)
    adapt, scores = method.use(3)
    few = evaluate(adapt, scores, u, jnp.asarray(IMAGES), way=3, shot=2, queries=4, episodes=40, key=KEY)
    assert few.mean > 0.7
    strong = sparse_fewshot_task(REPRESENTATION, IMAGES, p=0.5, strength=3.0, **made)
    heads = strong.use(3)[0](u, batch.lower)
    assert np.abs(heads).mean() < 0.5 * np.abs(adapt(u, batch.lower)).mean()
    assert strong.task.metrics(u, jnp.zeros((2, 3, 5)))["zeros"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": X * 1j}, "X holds complex numbers"),
        ({"X": csr_array(X)}, "X is a sparse matrix"),
        ({"X": np.where(X > 1, np.nan, X)}, "X holds .* NaN"),
        ({"X": X[:5]}, "X has 5 samples and y 90 labels"),
        ({"X_val": X_VAL[:, :2]}, "X_val has 2 features"),
        ({"y": np.where(Y == 0, "a", "b")}, "y holds labels of type"),
        ({"y": Y - 1}, "y has a label -1"),
        ({"y_val": Y_VAL + 50}, "in y_val and the model gives"),
        ({"single": "a"}, "single is 'a', and must be a number"),
        ({"group": np.ones(2)}, "group is an? ndarray"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"val_batch_size": 10**6}, "fewer than one batch of 1000000"),
        ({"key": 3}, "key is 3"),
    ],
)
def test_malformed_samples_are_refused_by_name(change, words):
    with pytest.raises(InputError, match=words):
        sparse_reweighting_task(NET, **({"X": X, "y": Y, "X_val": X_VAL, "y_val": Y_VAL, "key": KEY} | change))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reweighting(single=0.0), "single is 0.0, and must be a positive number"),
        (lambda: reweighting(group=-1.0), "group is -1.0"),
        (
            lambda: sparse_poisoning_task(NET, X, Y, X_VAL, Y_VAL, Points(X[:2], Y[:2]), key=KEY, p=1.5),
            r"p is 1.5, and must be in \(0, 1\]",
        ),
        (
            lambda: sparse_poisoning_task(NET, X, Y, X_VAL, Y_VAL, Points(X[:2], Y[:2]), key=KEY, strength=0.0),
            "strength is 0.0",
        ),
        (lambda: sparse_fewshot_task(REPRESENTATION, IMAGES, way=3, shot=2, key=KEY, p=0.0), "p is 0.0"),
        (
            lambda: sparse_fewshot_task(REPRESENTATION, IMAGES, way=3, shot=2, key=KEY, strength=-1.0),
            "strength is -1.0",
        ),
        (lambda: sparse_fewshot_task(REPRESENTATION, IMAGES, way=30, shot=2, key=KEY), "There are 9 classes"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(InputError, match=words):
        call()

"""One-step look-ahead (Meta-Weight-Net, DARTS) and learning to reweight, against the published formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bilevax as bx
from bilevax import derivatives

SGD = optax.sgd(1.0)
RATE = 0.3


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# A lower loss with a tree for u, nothing linear or quadratic in it, and noise from a key.
def curved_upper(u, v, target, key):
    return jnp.sum(jnp.tanh(v["a"] * jax.random.bernoulli(key, 0.7, v["a"].shape) - target) ** 2) + jnp.sum(
        jnp.sin(u["x"]) * v["b"]
    )


def curved_lower(u, v, data, key):
    kept = data * jax.random.bernoulli(key, 0.7, data.shape)
    return jnp.mean(jnp.exp(0.3 * u["y"]) * jnp.cos(kept @ v["a"]) + jnp.sum(u["x"] * v["b"]) ** 2) + jnp.sum(
        v["b"] ** 4
    )


CURVED = bx.Problem(curved_upper, curved_lower, random_upper=True, random_lower=True)
CURVED_START = (
    {"x": normal(0, 3), "y": jnp.asarray(0.4)},
    {"a": normal(1, 4), "b": normal(2, 3)},
)
CURVED_BATCH = bx.Batch(normal(3, 4), normal(4, 5, 4))


@pytest.mark.parametrize(
    ("curvature", "tolerance"),
    [(derivatives.exact, 1e-7), (derivatives.finite_difference, 1e-6)],
    ids=["exact", "difference"],
)
def test_direction_is_the_derivative_of_the_look_ahead(curvature, tolerance, key):
    """Against central differences of F(u) = f(u, v - rate grad_v g(u, v)), dropout included."""
    solver = bx.LookAhead(SGD, SGD, RATE, curvature=curvature)
    u, v = CURVED_START
    state = solver.init(CURVED, u, v, CURVED_BATCH)
    moved, info = jax.jit(lambda s: solver.step(CURVED, s, CURVED_BATCH, key))(state)
    direction = jax.tree.map(lambda a, b: a - b, u, moved.u)
    noise = jax.random.split(key, 3)[2]  # the key of the step's losses
    flat, unravel = ravel_pytree(u)

    @jax.jit
    def ahead(x):
        gradient = jax.grad(curved_lower, 1)(unravel(x), v, CURVED_BATCH.lower, noise)
        v_hat = jax.tree.map(lambda a, b: a - RATE * b, v, gradient)
        return curved_upper(unravel(x), v_hat, CURVED_BATCH.upper, noise)

    step = 1e-5
    slopes = [(ahead(flat + step * e) - ahead(flat - step * e)) / (2 * step) for e in np.eye(flat.size)]
    np.testing.assert_allclose(ravel_pytree(direction)[0], slopes, atol=tolerance)
    np.testing.assert_allclose(info.upper_loss, ahead(flat), rtol=1e-12)
    np.testing.assert_allclose(info.upper_grad_norm, np.linalg.norm(slopes), rtol=1e-6)
    assert np.linalg.norm(slopes) > 0.1


def test_v_moves_from_where_it_was(key):
    """T moves at the new u, from v and not from v_hat, each with its own slice of a PerMove."""
    problem = bx.Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, x: 0.5 * jnp.sum(x * (v - u) ** 2))
    x = jnp.array([[1.0], [2.0]])
    solver = bx.LookAhead(optax.sgd(0.1), optax.sgd(0.2), RATE, lower_steps=2)
    result = bx.solve(solver, problem, jnp.ones(1), jnp.zeros(1), bx.Batch(lower=bx.PerMove(x)), steps=1, key=key)
    v_hat = 0 + RATE * 1.0
    u = 1 - 0.1 * 2 * (v_hat - 1) * RATE * 1.0
    v = 0.2 * u
    v += 0.4 * (u - v)
    np.testing.assert_allclose(result.u, [u], rtol=1e-12)
    np.testing.assert_allclose(result.v, [v], rtol=1e-12)


def test_agrees_with_the_hypergradient_where_the_rate_inverts_the_hessian(key):
    """grad2_vv g = 4 I: with rate 1/4 the look-ahead lands on v*(u), and the solve on the solution."""
    problem = bx.Problem(
        lambda u, v, _: jnp.sum((v - 1) ** 2) + jnp.sum(u**2), lambda u, v, _: 2 * jnp.sum((v - 3 * u) ** 2)
    )
    result = bx.solve(
        bx.LookAhead(optax.sgd(0.04), optax.sgd(0.1), 0.25), problem, jnp.zeros(2), jnp.zeros(2), steps=200, key=key
    )
    np.testing.assert_allclose(result.u, 0.3, rtol=1e-8)
    np.testing.assert_allclose(result.v, 0.9, rtol=1e-8)
    other = bx.solve(
        bx.LookAhead(optax.sgd(0.04), optax.sgd(0.1), 0.05), problem, jnp.zeros(2), jnp.zeros(2), steps=500, key=key
    )
    # The limit that the docstring warns of: 2 u + 12 rate 2 (3 u - 1) = 0.
    np.testing.assert_allclose(other.u, 24 * 0.05 / (2 + 72 * 0.05), rtol=1e-8)


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("rate", [0.0, -1.0, np.inf, np.nan, "fast"])
def test_bad_rate(rate):
    with pytest.raises(bx.InputError, match=r"rate is .*, and must be a positive number"):
        bx.LookAhead(rate=rate)


# Meta-Weight-Net: u are the parameters of V, which maps a sample's loss to its weight.
def net(u, loss):
    """V (Shu et al., section 2.2): one hidden layer, a weight in 0..1 for each loss (n,)."""
    return jax.nn.sigmoid(jnp.tanh(loss[:, None] * u["w1"] + u["b1"]) @ u["w2"] + u["b2"])


def net_start(width=8):
    return {"w1": normal(10, width), "b1": normal(11, width), "w2": 0.01 * normal(12, width), "b2": jnp.zeros(())}


def losses(v, x, y):
    return optax.sigmoid_binary_cross_entropy(x @ v["w"] + v["b"], y)


def meta_upper(u, v, clean):
    return jnp.mean(losses(v, *clean.data))


def meta_lower(u, v, noisy):
    each = losses(v, *noisy.data)
    return jnp.mean(net(u, jax.lax.stop_gradient(each)) * each)


META = bx.Problem(meta_upper, meta_lower)


def two_classes(n, flipped, seed, separation=1.5):
    """Two Gaussian classes in 5 dimensions, a share of whose labels is flipped: (x, y, wrong)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, 5)) + np.outer(2 * y - 1, [separation, separation, 0, 0, 0])
    wrong = rng.random(n) < flipped
    return jnp.asarray(x), jnp.asarray(np.where(wrong, 1 - y, y), float), wrong


def test_meta_weight_net_as_published(key):
    """Three steps of Shu et al., eqs. 5, 7 and 9, written out."""
    x, y, _ = two_classes(12, 0.4, 0)
    x_clean, y_clean, _ = two_classes(6, 0.0, 1)
    alpha, beta = 0.4, 2.0
    u = theta = net_start()
    v = w = {"w": normal(5, 5), "b": jnp.zeros(())}

    @jax.jit
    def step(theta, w):
        # The gradient of each sample's loss, by the closed form of logistic regression.
        def moved(theta):
            weight = net(theta, losses(w, x, y))
            residual = jax.nn.sigmoid(x @ w["w"] + w["b"]) - y
            return {
                "w": w["w"] - alpha / 12 * (weight * residual) @ x,
                "b": w["b"] - alpha / 12 * jnp.sum(weight * residual),
            }

        slope = jax.grad(lambda theta: jnp.mean(losses(moved(theta), x_clean, y_clean)))(theta)
        theta = jax.tree.map(lambda a, b: a - beta * b, theta, slope)
        return theta, moved(theta)

    for _ in range(3):
        theta, w = step(theta, w)
    batch = bx.Batch(bx.whole((x_clean, y_clean)), bx.whole((x, y)))
    result = bx.solve(bx.LookAhead(optax.sgd(beta), optax.sgd(alpha), alpha), META, u, v, batch, steps=3, key=key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), (result.u, result.v), (theta, w)
    )
    assert np.abs(u["w2"] - result.u["w2"]).max() > 1e-3


@pytest.mark.slow
def test_meta_weight_net_learns_to_distrust_wrong_labels(key):
    x, y, wrong = two_classes(600, 0.4, 2)
    x_clean, y_clean, _ = two_classes(40, 0.0, 3)
    batches = bx.Minibatches((x_clean, y_clean), (x, y), lower_size=50)
    solver = bx.LookAhead(optax.adam(1e-2), optax.sgd(0.3), 0.3)
    start = net_start(), {"w": jnp.zeros(5), "b": jnp.zeros(())}
    result = bx.solve(solver, META, *start, batches, steps=1500, key=key)

    def spread(u):
        weight = np.asarray(net(u, losses(result.v, x, y)))
        return weight[~wrong].mean() - weight[wrong].mean()

    assert spread(result.u) > 0.4
    assert spread(start[0]) < 0.1
    # V must learn to fall with the loss: it started almost flat.
    low, high = np.asarray(net(result.u, jnp.array([0.05, 3.0])))
    assert low > 0.6 > 0.3 > high


# Learning to reweight.
L2 = 0.1


def weighted_upper(u, v, clean):
    return jnp.mean(losses(v, *clean.data))


def weighted_lower(u, v, noisy):
    return jnp.mean(u[noisy.index] * losses(v, *noisy.data)) + L2 / 2 * jnp.sum(v["w"] ** 2)


WEIGHTED = bx.Problem(weighted_upper, weighted_lower)


def noisy_batch(n, size, *, copies=True):
    x, y, _ = two_classes(n, 0.4, 0)
    index = jnp.array([3, 0, 3, 7, 3, 1, 0, 5, 9, 2]) if copies else jnp.arange(size)
    x_clean, y_clean, _ = two_classes(6, 0.0, 1)
    return bx.Batch(bx.whole((x_clean, y_clean)), bx.Samples((x[index], y[index]), index))


def test_reweighting_as_published(key):
    """Ren et al., Algorithm 1: an epsilon for each place of the batch, differentiated through the look-ahead."""
    batch = noisy_batch(12, 10)
    (x, y), index = batch.lower
    v = {"w": normal(5, 5), "b": jnp.asarray(0.2)}
    u = jnp.full(12, 0.5)

    def clean_loss(epsilon, step):
        gradient = jax.grad(lambda v: jnp.sum(epsilon * losses(v, x, y)))(v)
        ahead = jax.tree.map(lambda a, b: a - step * b, v, gradient)
        return jnp.mean(losses(ahead, *batch.upper.data))

    slope = jax.jit(jax.grad(clean_loss))(jnp.zeros(10), 0.37)
    weight = np.maximum(-np.asarray(slope), 0)
    weight /= weight.sum()
    residual = weight * (jax.nn.sigmoid(x @ v["w"] + v["b"]) - y)
    expected = {"w": v["w"] - 0.2 * (residual @ x + L2 * v["w"]), "b": v["b"] - 0.2 * residual.sum()}

    result = bx.solve(bx.LearningToReweight(optax.sgd(0.2)), WEIGHTED, u, v, batch, steps=1, key=key)
    np.testing.assert_allclose(result.u[index], 10 * weight, rtol=1e-10, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), result.v, expected)
    drawn = np.isin(np.arange(12), index)
    np.testing.assert_array_equal(result.u[~drawn], 0.5)
    np.testing.assert_array_equal(result.state.memory.seen, drawn)
    np.testing.assert_allclose(result.state.memory.mean_weight, np.where(drawn, result.u, 0), rtol=1e-12)
    np.testing.assert_allclose(result.history.extra["used"], [np.mean(weight > 0)])
    assert 0 < np.mean(weight > 0) < 1


def test_weights_of_linear_regression(key):
    """loss_i = (x_i v - y_i)^2 / 2: w_i ~ max(r_i x_i . mean clean r x, 0), over three steps; a sum rule."""
    x, y, x_clean, y_clean = normal(0, 8, 3), normal(1, 8), normal(2, 4, 3), normal(3, 4)
    problem = bx.Problem(
        lambda u, v, d: jnp.mean((d[0] @ v - d[1]) ** 2) / 2,
        lambda u, v, d: jnp.mean(u[d.index] * (d.data[0] @ v - d.data[1]) ** 2) / 2,
    )
    batch = bx.Batch((x_clean, y_clean), bx.whole((x, y)))
    result = bx.solve(
        bx.LearningToReweight(optax.sgd(0.1)), problem, jnp.zeros(8), jnp.ones(3), batch, steps=3, key=key
    )
    v, all_weights = np.ones(3), []
    for _ in range(3):
        clean_slope = (x_clean @ v - y_clean) @ x_clean / 4
        residual = x @ v - y
        weight = np.maximum(residual * (x @ clean_slope), 0)
        weight *= 8 / weight.sum()
        v = v - 0.1 * (weight * residual) @ x / 8
        all_weights.append(weight)
    np.testing.assert_allclose(result.u, all_weights[-1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.v, v, rtol=1e-10)
    np.testing.assert_allclose(result.state.memory.mean_weight, np.mean(all_weights, 0), rtol=1e-10, atol=1e-12)
    assert result.u.min() == 0
    np.testing.assert_allclose(result.u.sum(), 8, rtol=1e-12)


def test_where_no_sample_helps_all_weights_are_zero(key):
    """The clean loss is at its minimum, then the samples all pull the wrong way."""
    problem = bx.Problem(lambda u, v, c: (v - c) ** 2, lambda u, v, d: jnp.mean(u[d.index] * (v - d.data) ** 2))
    for clean in (0.0, 1.0):
        batch = bx.Batch(jnp.asarray(clean), bx.whole(jnp.full(4, -1.0)))
        result = bx.solve(bx.LearningToReweight(), problem, jnp.ones(4), jnp.zeros(()), batch, steps=2, key=key)
        np.testing.assert_array_equal(result.u, 0)
        np.testing.assert_array_equal(result.v, 0)
        np.testing.assert_array_equal(result.history.extra["used"], 0)


@pytest.mark.slow
def test_reweighting_finds_wrong_labels(key):
    n = 400
    x, y, wrong = two_classes(n, 0.4, 2)
    x_clean, y_clean, _ = two_classes(40, 0.0, 3)
    batches = bx.Minibatches((x_clean, y_clean), (x, y), upper_size=5, lower_size=20)
    start = jnp.zeros(n), {"w": jnp.zeros(5), "b": jnp.zeros(())}
    state = bx.solve(bx.LearningToReweight(optax.sgd(0.3)), WEIGHTED, *start, batches, steps=600, key=key).state

    def auroc(weight):
        weight = np.asarray(weight)
        clean, wrongly = weight[~wrong][:, None], weight[wrong]
        return np.mean((clean > wrongly) + (clean == wrongly) / 2)

    assert auroc(state.memory.mean_weight) > 0.95
    assert auroc(state.memory.mean_weight) > auroc(state.u) + 0.02
    assert state.memory.mean_weight.min() >= 0
    assert state.memory.seen.min() > 0
    x_test, y_test, _ = two_classes(2000, 0.0, 4)
    assert np.mean((x_test @ state.v["w"] + state.v["b"] > 0) == y_test) > 0.95


def dropped_lower(u, v, noisy, key):
    x, y = noisy.data
    return jnp.mean(u[noisy.index] * losses(v, 2 * x * jax.random.bernoulli(key, 0.5, x.shape), y))


def test_reweighting_takes_one_dropout_mask_for_weights_and_move(key):
    problem = dataclasses.replace(WEIGHTED, lower_loss=dropped_lower, random_lower=True)
    batch, v, u = noisy_batch(12, 12, copies=False), {"w": normal(5, 5), "b": jnp.asarray(0.2)}, jnp.zeros(12)
    solver = bx.LearningToReweight(optax.sgd(0.1))
    moved, _ = jax.jit(lambda s: solver.step(problem, s, batch, key))(solver.init(problem, u, v, batch))
    (x, y), mask_key = batch.lower.data, jax.random.split(key, 3)[1]
    x = 2 * x * jax.random.bernoulli(mask_key, 0.5, x.shape)
    gradient = jax.jit(jax.grad(lambda v: jnp.mean(losses(v, *batch.upper.data))))(v)
    residual = jax.nn.sigmoid(x @ v["w"] + v["b"]) - y
    weight = np.maximum(residual * (x @ gradient["w"] + gradient["b"]), 0)
    weight *= 12 / weight.sum()
    np.testing.assert_allclose(moved.u, weight, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moved.v["w"], v["w"] - 0.1 * (weight * residual) @ x / 12, rtol=1e-10)


def test_reweighting_keeps_to_the_sets_and_starts_of_the_problem(key):
    problem = dataclasses.replace(
        WEIGHTED,
        project_upper=lambda u: jnp.minimum(u, 1),
        lower_start=lambda u, batch, key: {"w": normal(5, 5), "b": jnp.zeros(())},
    )
    batch = noisy_batch(12, 12, copies=False)
    far = {"w": jnp.full(5, 1e3), "b": jnp.zeros(())}
    result = bx.solve(bx.LearningToReweight(optax.sgd(0.1)), problem, jnp.zeros(12), far, batch, steps=2, key=key)
    assert result.u.max() == 1
    assert np.abs(result.v["w"]).max() < 10


BATCH = noisy_batch(12, 12, copies=False)
V = {"w": jnp.zeros(5), "b": jnp.zeros(())}


@pytest.mark.parametrize(
    ("changes", "u", "batch", "message"),
    [
        ({}, {"a": jnp.zeros(12)}, BATCH, "u is a dict, and must be one floating vector"),
        ({}, jnp.zeros((12, 1)), BATCH, r"u is of shape \(12, 1\), and must be one floating vector"),
        ({}, jnp.zeros(12, int), BATCH, "u has dtype int64, and must be floating"),
        ({}, jnp.zeros(12), BATCH._replace(lower=BATCH.lower.data), "lower is a tuple without an integer vector"),
        ({}, jnp.zeros(12), BATCH._replace(lower=bx.PerMove(BATCH.lower)), "lower is a PerMove without"),
        ({}, jnp.zeros(9), BATCH, "index has values from 0 to 11, and u has 9 entries"),
        ({"constraints": (bx.Inequality(lambda u, v, _: u),)}, jnp.zeros(12), BATCH, "does not handle .* Use Penalty"),
        (
            {"upper_loss": lambda u, v, d: weighted_upper(u, v, d) + 1e-4 * jnp.sum(u**2)},
            jnp.zeros(12),
            BATCH,
            "upper_loss depends on u",
        ),
        (
            {"lower_loss": lambda u, v, d: jnp.sum(u[d.index] * losses(v, *d.data)) / jnp.sum(u[d.index])},
            jnp.zeros(12),
            BATCH,
            "lower_loss is not linear in u .it is nan",
        ),
        (
            {"lower_loss": lambda u, v, d: jnp.mean(jax.nn.sigmoid(u[d.index]) * losses(v, *d.data))},
            jnp.zeros(12),
            BATCH,
            "lower_loss is not linear in u .* use LookAhead",
        ),
    ],
)
def test_reweighting_refuses(changes, u, batch, message, key):
    problem = dataclasses.replace(WEIGHTED, **changes)
    with pytest.raises(bx.InputError, match=message):
        bx.solve(bx.LearningToReweight(), problem, u, V, batch, steps=1, key=key)


def test_reweighting_costs_less_than_a_second_order_step():
    """Of the derivative of grad_u g along p only a forward pass is left: no second reverse pass is compiled."""
    n, d, width = 64, 128, 256
    v = {"a": jnp.zeros((d, width)), "b": jnp.zeros((width, width)), "c": jnp.zeros((width, 1))}

    def each(v, x):
        return jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["c"]

    problem = bx.Problem(
        lambda u, v, x: jnp.mean(each(v, x) ** 2), lambda u, v, d: jnp.mean(u[d.index] * each(v, d.data)[:, 0] ** 2)
    )
    batch = bx.Batch(jnp.ones((n, d)), bx.whole(jnp.ones((n, d))))
    u, key = jnp.zeros(n), jax.random.key(0)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]  # type: ignore[index]

    gradient = flops(lambda v, d: derivatives.lower_gradient(problem, u, v, d, key), v, batch.lower)
    solver = bx.LearningToReweight(optax.sgd(0.1))
    step = flops(lambda s, b: solver.step(problem, s, b, key), solver.init(problem, u, v, batch), batch)
    # A gradient of f, one of g, and 5/8 of one for the tangent; a second reverse or forward pass is 3/8 or more.
    assert step < 2.8 * gradient

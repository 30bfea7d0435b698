"""Importance learning's three problems, the optimizer for minibatches of weights, and plain training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import InputError
from bilevax.applications.denoising import (
    denoising_task,
    from_losses,
    meta_weight_task,
    meta_weights,
    per_sample,
    reweighting_task,
    weights,
)
from bilevax.data import noisy_digits
from bilevax.loop.sources import epoch_indices
from bilevax.nn import Model, Training, logits, mlp, probabilities, softmax_regression, train
from bilevax.nn.training import cross_entropy, penalised, weighted_mean

RNG = np.random.default_rng(0)
SIMPLEST = bx.Alternating(optax.sgd(0.1), optax.sgd(0.1), 1)


class Adam:
    """Adam of one entry, by hand."""

    def __init__(self, rate, b1=0.9, b2=0.999, eps=1e-8):
        self.rate, self.b1, self.b2, self.eps = rate, b1, b2, eps
        self.first, self.second, self.count = 0.0, 0.0, 0

    def step(self, gradient):
        self.count += 1
        self.first = self.b1 * self.first + (1 - self.b1) * gradient
        self.second = self.b2 * self.second + (1 - self.b2) * gradient**2
        first, second = self.first / (1 - self.b1**self.count), self.second / (1 - self.b2**self.count)
        rate = self.rate(self.count - 1) if callable(self.rate) else self.rate
        return -rate * first / (np.sqrt(second) + self.eps)


def run(optimizer, gradients, x):
    """The path of x (n,) under a row of gradients (steps, n)."""

    def one(carry, gradient):
        x, state = carry
        updates, state = optimizer.update(gradient, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    return jax.jit(lambda: jax.lax.scan(one, (x, optimizer.init(x)), gradients)[1])()


OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(optax.exponential_decay(0.1, 5, 0.5), weight_decay=0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_per_sample_is_the_optimizer_itself_on_full_batches(optimizer):
    gradients, x = jnp.asarray(RNG.normal(size=(20, 6))), jnp.asarray(RNG.normal(size=6))
    np.testing.assert_allclose(run(per_sample(optimizer), gradients, x), run(optimizer, gradients, x), rtol=1e-12)


def test_per_sample_is_one_adam_for_each_entry_over_its_visits():
    steps, n = 60, 8
    gradients = RNG.normal(size=(steps, n))
    visited = RNG.random((steps, n)) < np.linspace(0.05, 1, n)
    visited[:, 0] = False
    x = RNG.normal(size=n)
    path = np.asarray(run(per_sample(optax.adam(0.1)), jnp.asarray(np.where(visited, gradients, 0.0)), jnp.asarray(x)))
    each, expected = [Adam(0.1) for _ in range(n)], np.empty((steps, n))
    for t in range(steps):
        for i in np.flatnonzero(visited[t]):
            x[i] += each[i].step(gradients[t, i])
        expected[t] = x
    np.testing.assert_allclose(path, expected, rtol=1e-10, atol=1e-12)
    # Idle entries stay to the last bit; plain Adam moves them on.
    idle = ~visited[1:]
    np.testing.assert_array_equal(path[1:][idle], path[:-1][idle])
    plain = np.asarray(run(optax.adam(0.1), jnp.asarray(np.where(visited, gradients, 0.0)), jnp.asarray(x)))
    assert np.abs(plain[1:][idle] - plain[:-1][idle]).max() > 1e-2


@pytest.mark.slow
def test_per_sample_leaves_an_idle_entry_s_state_alone():
    optimizer = per_sample(optax.adam(0.1))
    x = jnp.zeros(3)
    _, first = optimizer.update(jnp.array([1.0, 2.0, 3.0]), optimizer.init(x), x)
    updates, second = optimizer.update(jnp.array([0.0, -1.0, 0.0]), first, x)
    assert updates[0] == updates[2] == 0
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.shape == (3,)
        np.testing.assert_array_equal(a[jnp.array([0, 2])], b[jnp.array([0, 2])])
        assert a[1] != b[1]


@pytest.mark.slow
def test_per_sample_in_a_solve_moves_a_weight_by_its_own_visits(key):
    """Each pass visits a weight once, at the rate of Adam's first step in the first pass: 0.1 whatever the slope."""
    problem = bx.Problem(
        lambda u, v, b: (v - 1) ** 2, lambda u, v, b: jnp.mean(jax.nn.sigmoid(u[b.index]) * (v - b.data) ** 2)
    )
    source = bx.Epochs(jnp.zeros(1), jnp.linspace(-1.0, 1.5, 12), lower_size=3)
    solver = bx.Penalty(per_sample(optax.adam(0.1)), optax.sgd(0.1), lower_steps=2, gamma=1.0, step_scale=1.0)
    result = bx.solve(solver, problem, jnp.zeros(12), jnp.asarray(0.0), source, steps=4, key=key)
    np.testing.assert_allclose(np.abs(result.u), 0.1, rtol=1e-4)
    assert len(set(np.sign(result.u))) == 2


# The losses, against numpy.
X, Y = RNG.normal(size=(7, 4)), RNG.integers(0, 3, 7)
CLEAN, Y_CLEAN = RNG.normal(size=(5, 4)), RNG.integers(0, 3, 5)
V = ({"weight": jnp.asarray(RNG.normal(size=(4, 3))), "bias": jnp.asarray(RNG.normal(size=3))},)
INDEX = np.array([5, 0, 5, 2])
L2 = 0.3


def numpy_losses(x, y):
    """The cross-entropy of softmax regression at V, sample by sample."""
    weight, bias = np.asarray(V[0]["weight"]), np.asarray(V[0]["bias"])
    told = []
    for row, label in zip(x, y, strict=True):
        scores = row @ weight + bias
        told.append(np.log(np.exp(scores).sum()) - scores[label])
    return np.array(told)


def l2_term():
    return L2 / 2 * (np.asarray(V[0]["weight"]) ** 2).sum()


def noisy(index):
    return bx.Samples((jnp.asarray(X[index]), jnp.asarray(Y[index])), jnp.asarray(index))


def tasks(**settings):
    """The three tasks on the small data, by the names of their functions."""
    model, data = softmax_regression(3), (X, Y, CLEAN, Y_CLEAN)
    key = jax.random.key(0)
    return {
        "denoising_task": denoising_task(model, *data, key=key, training=Training(steps=5, l2=L2), **settings),
        "reweighting_task": reweighting_task(model, *data, key=key, l2=L2, **settings),
        "meta_weight_task": meta_weight_task(model, *data, key=key, l2=L2, **settings),
    }


@pytest.fixture(scope="module")
def three():
    return tasks()


@functools.partial(jax.jit, static_argnums=0)
def lower(problem, *arguments):
    return problem.lower(*arguments)


@pytest.mark.parametrize("index", [np.arange(7), INDEX], ids=["all", "batch"])
def test_lower_losses(three, index, key):
    ce = numpy_losses(X[index], Y[index])
    u = RNG.normal(size=7)
    w = (np.tanh(u[index]) + 1) / 2
    loss = lower(three["denoising_task"].problem, jnp.asarray(u), V, noisy(index), key)
    np.testing.assert_allclose(loss, (w * ce).sum() / w.sum() + l2_term(), rtol=1e-12)

    loss = lower(three["reweighting_task"].problem, jnp.asarray(u), V, noisy(index), key)
    np.testing.assert_allclose(loss, (u[index] * ce).mean() + l2_term(), rtol=1e-12)

    net = {name: RNG.normal(size=x.shape) for name, x in three["meta_weight_task"].start[0].items()}
    w = []
    for value in ce:
        hidden = np.maximum(value * net["into"] + net["bias"], 0)
        w.append(1 / (1 + np.exp(-(hidden @ net["out"] + net["level"]))))
    w = np.array(w)
    net = {name: jnp.asarray(x) for name, x in net.items()}
    np.testing.assert_allclose(meta_weights(net, jnp.asarray(ce)), w, rtol=1e-10)
    loss = lower(three["meta_weight_task"].problem, net, V, noisy(index), key)
    np.testing.assert_allclose(loss, (w * ce).sum() / w.sum() + l2_term(), rtol=1e-10)


def test_v_does_not_learn_through_its_own_weights(three, key):
    """The gradient in v of Meta-Weight-Net is that with the weights held (Shu et al., eq. 5)."""
    problem, u = three["meta_weight_task"].problem, three["meta_weight_task"].start[0]
    w = np.asarray(meta_weights(u, jnp.asarray(numpy_losses(X, Y))))
    weight, bias = np.asarray(V[0]["weight"]), np.asarray(V[0]["bias"])
    p = np.exp(X @ weight + bias)
    residual = w[:, None] * (p / p.sum(1, keepdims=True) - np.eye(3)[Y]) / w.sum()
    gradient = jax.grad(lower, 2)(problem, u, V, noisy(np.arange(7)), key)[0]
    np.testing.assert_allclose(gradient["weight"], X.T @ residual + L2 * weight, rtol=1e-10)
    np.testing.assert_allclose(gradient["bias"], residual.sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_upper_losses_and_metrics(three, key):
    ce = numpy_losses(CLEAN, Y_CLEAN)
    batch = bx.Samples((jnp.asarray(CLEAN[:3]), jnp.asarray(Y_CLEAN[:3])), jnp.arange(3))
    predicted = (CLEAN @ np.asarray(V[0]["weight"]) + np.asarray(V[0]["bias"])).argmax(1)
    accuracy = (predicted == Y_CLEAN).mean()
    assert 0 < accuracy < 1
    for task in three.values():
        u = task.start[0]
        np.testing.assert_allclose(task.problem.upper(u, V, batch, key), ce[:3].mean(), rtol=1e-12)
        told = task.metrics(u, V)
        assert told["clean_loss"] == pytest.approx(ce.mean(), rel=1e-12)
        assert told["clean_accuracy"] == accuracy
    u = jnp.array([-1.0, 0.5, 2.0, -0.1, 0.0, 0.3, -2.0])
    told = three["denoising_task"].metrics(u, V)
    assert told["suspects"] == 3
    assert told["mean_weight"] == pytest.approx(((np.tanh(u) + 1) / 2).mean(), rel=1e-12)
    np.testing.assert_allclose(weights(u), (np.tanh(u) + 1) / 2, rtol=1e-12)
    assert three["reweighting_task"].metrics(u, V)["mean_weight"] == pytest.approx(float(u.mean()), rel=1e-12)
    assert three["meta_weight_task"].metrics(three["meta_weight_task"].start[0], V).keys() == {
        "clean_loss",
        "clean_accuracy",
    }


def test_starts(three):
    u, v = three["reweighting_task"].start
    np.testing.assert_array_equal(u, np.ones(7))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), v)  # softmax regression's own start
    u, v = three["meta_weight_task"].start
    assert {name: x.shape for name, x in u.items()} == {"into": (100,), "bias": (100,), "out": (100,), "level": ()}
    for name, bound in (("into", 1.0), ("bias", 1.0), ("out", 0.1)):  # uniform: the deviation is bound / sqrt 3
        assert 0.95 * bound < float(jnp.abs(u[name]).max()) < bound
        assert float(u[name].std()) == pytest.approx(bound / 3**0.5, rel=0.2)
    assert abs(float(u["level"])) < 0.1
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), v)


@pytest.mark.slow
def test_the_start_without_warm_rounds_is_a_model_of_the_clean_set_alone(key):
    training = Training(steps=30, rate=0.05, l2=L2)
    model = softmax_regression(3)
    task = denoising_task(model, X, Y, CLEAN, Y_CLEAN, key=key, training=training, warm_rounds=0)
    u, v = task.start
    expected = train(model, training, jnp.asarray(CLEAN), jnp.asarray(Y_CLEAN), jnp.ones(5), key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), v, expected)
    agrees = probabilities(model, v, X).argmax(1) == Y
    np.testing.assert_allclose(weights(u), np.where(agrees, 0.6, 0.4), rtol=1e-12)
    assert 0 < agrees.sum() < 7


@pytest.mark.slow
def test_batches_hold_what_was_asked_for():
    for task in tasks(batch_size=3, clean_batch_size=2).values():
        batch = task.batches.at(0, jax.random.key(0))
        assert batch.lower.data[0].shape == (3, 4)
        assert batch.upper.data[0].shape == (2, 4)
        np.testing.assert_array_equal(batch.lower.data[0], X[batch.lower.index])
        np.testing.assert_array_equal(batch.lower.data[1], Y[batch.lower.index])
        np.testing.assert_array_equal(batch.upper.data[0], CLEAN[batch.upper.index])
        np.testing.assert_array_equal(batch.upper.data[1], Y_CLEAN[batch.upper.index])


@pytest.mark.slow
def test_bytes_stay_bytes_until_the_model_reads_them(key):
    images = RNG.integers(0, 256, (7, 3, 3)).astype(np.uint8)

    def init(key, x):
        assert x.dtype == jnp.float64
        return jnp.zeros((9, 3))

    def apply(params, x):
        assert x.dtype == jnp.float64
        return x.reshape(len(x), -1) @ params

    task = reweighting_task(Model(init, apply), images, Y, images[:5], Y_CLEAN, key=key, batch_size=4)
    assert task.batches.at(0, key).lower.data[0].dtype == jnp.uint8
    solver = bx.LearningToReweight(optax.sgd(0.1))
    result = bx.solve(solver, task.problem, *task.start, task.batches, steps=2, key=key)
    assert float(jnp.abs(result.v).max()) > 1e-3


def test_equal_tasks_have_equal_problems(three):
    again = tasks()
    for name, task in three.items():
        assert task.problem == again[name].problem
        assert hash(task.problem) == hash(again[name].problem)
    assert len({task.problem for task in three.values()}) == 3


def test_equal_tasks_compile_once(compilations, key):
    def solved():
        data = (jnp.ones((4, 2)), jnp.array([0, 1, 0, 1]), jnp.ones((2, 2)), jnp.array([0, 1]))
        task = reweighting_task(mlp(2, (3,)), *data, key=key)
        bx.solve(SIMPLEST, task.problem, *task.start, task.batches, steps=2, key=key)
        probabilities(mlp(2, (3,)), task.start[1], data[0])

    solved()
    with compilations() as seen:
        solved()
    assert seen == []


@pytest.fixture(scope="module")
def digits():
    return noisy_digits(102, train=300, clean=150)


def area_under_roc(score, positive):
    above = score[positive][:, None], score[~positive]
    return np.mean((above[0] > above[1]) + (above[0] == above[1]) / 2)


@pytest.mark.slow
def test_learning_to_reweight_finds_wrong_labels(digits, key):
    d, wrong = digits, digits.y != digits.y_true
    task = reweighting_task(softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, key=key, l2=1e-2, batch_size=50)
    solver = bx.LearningToReweight(optax.sgd(0.1))
    result = bx.solve(solver, task.problem, *task.start, task.batches, steps=100, key=key)
    mean = np.asarray(result.state.memory.mean_weight)
    assert area_under_roc(-mean, wrong) > 0.92
    assert mean[wrong].mean() < 0.2 * mean[~wrong].mean()
    assert task.metrics(result.u, result.v)["clean_accuracy"] > 0.9


@pytest.mark.slow
def test_meta_weight_net_finds_wrong_labels(digits):
    d, wrong = digits, digits.y != digits.y_true
    key = jax.random.key(3)
    task = meta_weight_task(softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, key=key, l2=1e-2, batch_size=100)
    solver = bx.LookAhead(optax.adam(1e-3), optax.sgd(0.1), rate=0.1)
    result = bx.solve(solver, task.problem, *task.start, task.batches, steps=600, key=key, every=600)
    w = np.asarray(meta_weights(result.u, cross_entropy(softmax_regression(10), result.v, d.X, d.y)))
    assert w[wrong].mean() < 0.25 * w[~wrong].mean()
    assert area_under_roc(-w, wrong) > 0.95

    def slope(u):
        low, high = np.asarray(meta_weights(u, jnp.array([0.1, 4.0])))
        return high / low

    # V learnt this: it started flat.
    assert slope(result.u) < 0.1 < 0.5 < slope(task.start[0])


# Plain training.
def by_hand(x, y, weight, rows, training):
    """Softmax regression from zero by Adam with a cosine rate, gradients in closed form."""

    def rate(step):
        return training.rate * (1 + np.cos(np.pi * min(step, training.steps) / training.steps)) / 2

    matrix, bias = np.zeros((x.shape[1], 3)), np.zeros(3)
    for_matrix, for_bias = Adam(rate), Adam(rate)
    for row in rows:
        p = np.exp(x[row] @ matrix + bias)
        residual = weight[row][:, None] * (p / p.sum(1, keepdims=True) - np.eye(3)[y[row]]) / weight[row].sum()
        matrix, bias = (
            matrix + for_matrix.step(x[row].T @ residual + training.l2 * matrix),
            bias + for_bias.step(residual.sum(0)),
        )
    return matrix, bias


@pytest.mark.parametrize("batch_size", [None, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 7, 50))])
def test_train_is_weighted_training_by_adam(batch_size, key):
    training = Training(steps=20, rate=0.1, batch_size=batch_size, l2=0.05)
    weight = RNG.random(7) + 0.1
    weight[3] = 0
    data = jnp.asarray(X), jnp.asarray(Y), jnp.asarray(weight)
    (layer,) = train(softmax_regression(3), training, *data, key)
    rows = [np.arange(7)] * 20
    if batch_size == 3:
        # The keys that `train` makes: the order of the samples is that of an Epochs source.
        order_key = jax.random.split(jax.random.fold_in(jax.random.split(key)[1], 20))[1]
        rows = [np.asarray(epoch_indices(step, 3, 7, order_key)) for step in range(20)]
        assert sorted(np.concatenate(rows)[:7]) == list(range(7))
    matrix, bias = by_hand(X, Y, weight, rows, training)
    np.testing.assert_allclose(layer["weight"], matrix, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(layer["bias"], bias, rtol=1e-7, atol=1e-9)
    assert np.abs(matrix).max() > 0.3


@pytest.mark.slow
def test_train_draws_dropout_anew_at_each_step():
    """The model's only parameter adds up the coins it was shown."""

    def apply(v, x, key=None):
        coin = 0.0 if key is None else jax.random.bernoulli(key, 0.5)
        return jnp.stack([jnp.full(len(x), v[0] * coin), jnp.zeros(len(x))], 1)

    model = Model(lambda key, x: jnp.zeros(1), apply)
    settings = [Training(steps=steps, rate=0.1, l2=0.0) for steps in (1, 40)]
    x, y = jnp.zeros((4, 1)), jnp.zeros(4, jnp.int32)
    short = np.array([train(model, settings[0], x, y, jnp.ones(4), jax.random.key(i))[0] for i in range(40)])
    # One step moves by the rate, or not at all where the coin is tails.
    np.testing.assert_allclose(np.unique(np.round(short, 6)), [0, 0.1], atol=1e-6)
    assert 8 < (short == 0).sum() < 32
    long = [float(train(model, settings[1], x, y, jnp.ones(4), jax.random.key(i))[0]) for i in range(5)]
    assert len({round(x, 6) for x in long}) == 5


@pytest.mark.slow
def test_train_starts_where_the_model_does(key):
    model, training = mlp(3, (5,)), Training(steps=1, rate=1e-9, l2=0.0)
    v = train(model, training, jnp.asarray(X), jnp.asarray(Y), jnp.ones(7), key)
    start = model.init(jax.random.split(key)[0], jnp.asarray(X[:1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), v, start)
    assert float(jnp.abs(v[0]["weight"]).max()) > 0.1


@pytest.mark.slow
def test_weightless_samples_do_not_count(key):
    training = Training(steps=10, l2=0.0)
    weight = np.array([1.0, 1, 0, 1, 0, 1, 1])
    kept = weight > 0
    whole = train(softmax_regression(3), training, jnp.asarray(X), jnp.asarray(Y), jnp.asarray(weight), key)
    part = train(softmax_regression(3), training, jnp.asarray(X[kept]), jnp.asarray(Y[kept]), jnp.ones(5), key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), whole, part)


def test_weighted_mean():
    losses = jnp.array([1.0, 2.0, 5.0])
    assert weighted_mean(losses, jnp.array([1.0, 3.0, 0.0])) == 1.75
    # A minibatch of weightless samples alone: no NaN, in the gradient neither.
    value, gradient = jax.value_and_grad(weighted_mean, 1)(losses, jnp.zeros(3))
    assert value == 0
    assert jnp.isfinite(gradient).all()


def test_only_matrices_are_penalised():
    v = {"weight": jnp.full((2, 2), 2.0), "kernel": jnp.full((1, 1, 1, 3), 1.0), "bias": jnp.full(4, 9.0)}
    assert penalised(jnp.asarray(1.0), 0.5, v) == 1 + 0.25 * (16 + 3)


def test_probabilities_are_the_same_in_pieces(monkeypatch, key):
    model = mlp(3, (5,))
    params = model.init(key, jnp.asarray(X))
    params = (params[0], {"weight": jnp.asarray(RNG.normal(size=(5, 3))), "bias": params[1]["bias"]})
    scores = np.exp(np.asarray(logits(model, params, jnp.asarray(X))))
    monkeypatch.setattr("bilevax.nn.training.PREDICTED_AT_ONCE", 3)
    p = probabilities(model, params, X)
    np.testing.assert_allclose(p, scores / scores.sum(1, keepdims=True), rtol=1e-10)
    assert np.abs(p - 1 / 3).max() > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Training: steps is 0"),
        ({"steps": 1.5}, "Training: steps is 1.5"),
        ({"batch_size": 0}, "Training: batch_size is 0"),
        ({"batch_size": True}, "Training: batch_size is True"),
        ({"rate": 0.0}, "Training: rate is 0.0, and must be positive"),
        ({"rate": float("nan")}, "Training: rate is nan, and must be positive"),
        ({"l2": -1e-3}, "Training: l2 is -0.001, and must be zero or positive"),
        ({"l2": float("nan")}, "Training: l2 is nan, and must be zero or positive"),
    ],
)
def test_training_refuses(settings, message):
    with pytest.raises(InputError, match=message):
        Training(**settings)


def test_training_is_one_key_for_equal_settings():
    assert hash(Training(steps=3)) == hash(Training(steps=3))
    assert Training().batch_size is None


def test_weights_from_losses_are_the_probability_that_a_label_is_right():
    """Losses drawn from known densities: Bayes' rule gives the probability in closed form."""
    rng = np.random.default_rng(0)
    n, m, wrong = 20_000, 5_000, 0.3
    is_right = rng.random(n) > wrong
    losses = np.where(is_right, rng.exponential(0.5, n), 1 + rng.exponential(1.0, n))
    w = np.asarray(weights(from_losses(losses, rng.exponential(0.5, m))))
    density_right = (1 - wrong) * 2 * np.exp(-2 * losses)
    density_wrong = wrong * np.where(losses > 1, np.exp(1 - losses), 0.0)
    exact = np.clip(density_right / (density_right + density_wrong), 0.02, 0.98)
    assert np.abs(w - exact).mean() < 0.03
    assert ((w > 0.5) == (exact > 0.5)).mean() > 0.97
    assert np.all(np.diff(w[np.argsort(losses)]) <= 1e-6)


@pytest.mark.parametrize(("losses", "clean"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])])
def test_losses_that_are_none_or_not_finite_are_refused(losses, clean):
    with pytest.raises(InputError, match="one finite loss per sample"):
        from_losses(losses, clean)

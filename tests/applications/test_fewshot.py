"""Few-shot learning: episodes, losses by hand, hypergradients by retraining, baselines by their papers' formulas."""

import copy
import dataclasses
import functools
import itertools
import logging
import pickle
import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import joblib
import numpy as np
import optax
import pytest
import scipy.optimize
from scipy.special import log_softmax
from sklearn.base import clone

from bilevax import Alternating, Implicit, InputError, Penalty, ReverseMode
from bilevax.applications.fewshot import (
    Episode,
    Episodes,
    FewShotLearner,
    alternating_solver,
    approxgrad_solver,
    class_means,
    evaluate,
    features_of,
    fewshot_task,
    first_order_maml_solver,
    imaml_solver,
    maml_solver,
    maml_task,
    metric_solver,
    penalty_solver,
    prototypical_task,
    relation_task,
    reverse_solver,
    statistics_of,
    unit,
)
from bilevax.applications.fewshot.baselines import IMAML_RATE, IMAML_STEPS
from bilevax.applications.fewshot.recipes import ADAPT_STEPS, HEAD_RATE
from bilevax.linear_solve import CG
from bilevax.nn import Representation, omniglot_network

KEY = jax.random.key(7)
PLAIN = optax.sgd(1.0)


@pytest.fixture(autouse=True, scope="module")
def hasty_compilation():
    """Everything here runs for a moment only: LLVM's optimisations would take longer than they save."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def dense(*widths):
    """A representation by dense layers, tanh between them, on flattened samples; it normalises nothing."""

    def flat(x):
        return jnp.asarray(x, float).reshape(len(x), -1)

    def init(key, x):
        sizes = itertools.pairwise([flat(x).shape[1], *widths])
        keys = jax.random.split(key, len(widths))
        return [jax.random.normal(k, size) / size[0] ** 0.5 for k, size in zip(keys, sizes, strict=True)]

    def apply(params, x, statistics=None, key=None):
        x = flat(x)
        for weight in params[:-1]:
            x = jnp.tanh(x @ weight)
        return x @ params[-1]

    return Representation(init, apply, lambda params, x: ())


def noise(classes=10, pictures=8, shape=(2, 2), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(classes, pictures, *shape)))


def direction(solver, problem, u, v, batch):
    """What one step by `PLAIN` descent takes away from u, and the state that it leaves."""
    state, info = step_of(solver, problem, solver.init(problem, u, v, batch), batch)
    return optax.tree.sub(u, state.u), state, info


@functools.partial(jax.jit, static_argnums=(0, 1))
def step_of(solver, problem, state, batch):
    return solver.step(problem, state, batch, KEY)


draw = jax.jit(lambda source, step, key: source.at(step, key))


def agree(a, b, rtol=1e-9):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(one, a, b)


# --- episodes -------------------------------------------------------------------------------------------------------

# Each pixel names its class and picture.
NAMED = jnp.asarray(np.broadcast_to((100 * np.arange(10)[:, None] + np.arange(8))[..., None, None], (10, 8, 3, 2)))


@pytest.mark.slow
def test_an_episode_holds_what_it_says(key):
    """Classes differ within a task, pictures within a class, and none is in both support and query sets."""
    source = Episodes(NAMED, way=4, shot=3, queries=5, tasks=6)
    seen = set()
    for step in range(5):
        batch = draw(source, step, key)
        assert batch.lower.x.shape == (6, 12, 3, 2)
        assert batch.upper.x.shape == (6, 20, 3, 2)
        assert batch.lower.x.dtype == NAMED.dtype
        for part in batch:
            assert part.statistics is None
            np.testing.assert_array_equal(part.x, np.broadcast_to(part.x[:, :, :1, :1], part.x.shape))
        learned, asked = (np.asarray(part.x[:, :, 0, 0]) for part in (batch.lower, batch.upper))
        np.testing.assert_array_equal(batch.lower.y, np.tile(np.repeat(np.arange(4), 3), (6, 1)))
        np.testing.assert_array_equal(batch.upper.y, np.tile(np.repeat(np.arange(4), 5), (6, 1)))
        for a, b in zip(learned.reshape(6, 4, 3), asked.reshape(6, 4, 5), strict=True):
            both = np.concatenate([a, b], 1)
            classes = both // 100
            assert (classes == classes[:, :1]).all()
            assert len(set(classes[:, 0])) == 4
            assert len(set(both.ravel())) == both.size  # 8 of 8 pictures, each in one place
        seen |= {tuple(row) for row in learned}
    assert len(seen) == 30


def test_the_same_key_and_step_give_the_same_bits(key):
    source = Episodes(NAMED, way=4, shot=3, queries=5, tasks=6)

    def bits(step, key):
        batch = draw(source, step, key)
        return [np.asarray(part.x) for part in batch] + [np.asarray(jax.random.key_data(part.key)) for part in batch]

    first = bits(0, key)
    for a, b in zip(first, bits(0, key), strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (bits(1, key), bits(0, jax.random.key(1))):
        assert all((a != b).any() for a, b in zip(first, other, strict=True))
    assert (first[2] != first[3]).any()  # keys for dropout


@pytest.mark.slow
def test_each_class_and_picture_is_drawn_as_often_as_any_in_every_place(key):
    source, steps, tasks = Episodes(NAMED, way=3, shot=2, queries=1, tasks=5), 400, 5
    batches = jax.jit(jax.vmap(lambda step: source.at(step, key)))(jnp.arange(steps))
    n = steps * tasks
    for part, each in ((batches.lower, 2), (batches.upper, 1)):
        drawn = np.asarray(part.x[..., 0, 0]).reshape(n, 3, each)
        for place in range(3):
            classes = np.bincount(drawn[:, place, 0] // 100, minlength=10)
            assert np.abs(classes - n / 10).max() < 4.5 * (n * 0.1 * 0.9) ** 0.5
            for i in range(each):
                pictures = np.bincount(drawn[:, place, i] % 100, minlength=8)
                assert np.abs(pictures - n / 8).max() < 4.5 * (n / 8 * 7 / 8) ** 0.5
        # The pictures of one class know nothing of those of another.
        same = (drawn[:, 0, 0] % 100 == drawn[:, 1, 0] % 100).sum()
        assert abs(same - n / 8) < 4.5 * (n / 8 * 7 / 8) ** 0.5


def episodes(images=NAMED, **change):
    return Episodes(images, **({"way": 3, "shot": 2, "queries": 2, "tasks": 2} | change))


EPISODES_REFUSED = {
    f"{name} {value!r}": (lambda name=name, value=value: episodes(**{name: value}), f"{name} is {value!r}, and must be")
    for name in ("way", "shot", "queries", "tasks")
    for value in (0, -1, 2.0, True)
} | {
    "one class": (lambda: episodes(way=1), "way is 1, and a task must have at least 2 classes. Raise way"),
    "few classes": (lambda: episodes(way=11), "There are 10 classes, fewer than the 11 of a task. Lower way"),
    "few pictures": (
        lambda: episodes(shot=5, queries=4),
        "A class has 8 pictures, fewer than the 5 support and 4 query samples of a task. Lower shot or queries",
    ),
    "no classes": (lambda: episodes(jnp.zeros(5)), r"images has shape \(5,\), and must be \(classes, pictures, ...\)"),
    "empty": (lambda: episodes(jnp.zeros((5, 0, 2))), r"images has shape \(5, 0, 2\)"),
}


@pytest.mark.parametrize(("make", "sentence"), EPISODES_REFUSED.values(), ids=EPISODES_REFUSED)
def test_episodes_that_cannot_be_drawn_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make().check()


def test_the_largest_episodes_that_fit_are_taken(key):
    source = episodes(way=10, shot=3, queries=5)
    source.check()
    assert len(set(np.asarray(draw(source, 0, key).lower.x[0, :, 0, 0]) // 100)) == 10


@pytest.mark.slow
def test_means_are_those_of_each_class(key):
    features, y = jax.random.normal(key, (2, 5, 3)), jnp.array([[0, 2, 0, 2, 2], [1, 0, 1, 1, 0]])
    means = class_means(features, y, 3)
    for task in range(2):
        for label in range(3):
            rows = np.asarray(features[task])[np.asarray(y[task]) == label]
            np.testing.assert_allclose(means[task, label], rows.mean(0) if len(rows) else np.zeros(3), rtol=1e-12)


# --- evaluation -----------------------------------------------------------------------------------------------------


def nearest(u, v, queries):
    return -jnp.square(u * queries.x[:, :, None, 0, 0] - v[:, None, :, 0])


def means(u, samples):
    return class_means(u * samples.x[:, :, 0, :1], samples.y, 4)


@pytest.mark.slow
def test_an_evaluation_is_recounted_by_numpy(key):
    """By a number of tasks that is not one of rounds of 20."""
    count, at_once = 26, 13
    images, u = noise(seed=3) + jnp.arange(10.0)[:, None, None, None], jnp.asarray(1.5)
    found = evaluate(means, nearest, u, images, way=4, shot=2, key=key, queries=3, episodes=count)
    source, shares = Episodes(images, 4, 2, 3, at_once), []
    for turn in range(count // at_once):
        batch = draw(source, turn, key)
        for x, asked in zip(np.asarray(batch.lower.x), np.asarray(batch.upper.x), strict=True):
            centres = x[:, 0, 0].reshape(4, 2).mean(1)
            answers = np.abs(asked[:, 0, 0][:, None] - centres).argmin(1)
            shares.append((answers == np.repeat(np.arange(4), 3)).mean())
    np.testing.assert_allclose(found.accuracies, shares, rtol=1e-6)  # a mean of booleans is a float32
    assert found.mean == pytest.approx(np.mean(shares), rel=1e-6)
    spread = np.sqrt(((np.array(shares) - np.mean(shares)) ** 2).sum() / (count - 1))
    assert found.half_width == pytest.approx(1.96 * spread / count**0.5, rel=1e-5)
    assert 0.3 < found.mean < 1


@pytest.mark.slow
def test_who_is_evaluated_sees_no_dropout_and_the_given_statistics(key):
    seen = []

    def adapt(u, samples):
        seen.append(samples)
        return means(u, samples)

    def scores(u, v, queries):
        seen.append(queries)
        return nearest(u, v, queries) + queries.statistics * 0

    sizes = {"way": 4, "shot": 2, "queries": 3}
    found = evaluate(adapt, scores, 1.0, noise(), **sizes, key=key, episodes=1, statistics=jnp.ones(()))
    assert found.accuracies.shape == (1,)
    assert found.half_width == 0  # of one task nothing is known about the spread
    assert len(seen) == 2
    assert all(part.key is None and part.statistics.shape == () for part in seen)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"episodes": 0}, "evaluate: episodes is 0, and must be a positive integer"),
        ({"episodes": 2.5}, "evaluate: episodes is 2.5"),
        ({"way": 11}, "There are 10 classes, fewer than the 11"),
        ({"queries": 7}, "A class has 8 pictures, fewer than the 2 support and 7"),
        ({"images": jnp.zeros(3)}, r"images has shape \(3,\)"),
    ],
    ids=str,
)
def test_an_evaluation_is_refused(change, sentence, key):
    arguments = {"images": noise(), "way": 4, "shot": 2, "queries": 3, "episodes": 5} | change
    with pytest.raises(InputError, match=sentence):
        evaluate(means, nearest, 1.0, arguments.pop("images"), key=key, **arguments)


# --- heads of cosines -----------------------------------------------------------------------------------------------

LINEAR = dense(3)


def cosine_task(**change):
    """Three classes in three dimensions of features: as many heads as dimensions, so that each is determined."""
    arguments = {"images": noise(pictures=10, seed=1), "way": 3, "shot": 4, "queries": 4, "tasks": 2} | change
    return fewshot_task(LINEAR, arguments.pop("images"), key=jax.random.key(0), **arguments).task


TASK = cosine_task()
BATCH = draw(TASK.batches, 0, jax.random.key(1))
U = TASK.start[0]


def unit_rows(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def loss_of(v, features, y):
    """A task's mean cross-entropy and its derivative in the heads, by numpy."""
    a, b = unit_rows(v), unit_rows(features)
    logs = log_softmax(10 * b @ a.T, axis=1)
    slope = 10 * (np.exp(logs) - np.eye(len(v))[y]).T @ b / len(y)
    slope -= a * (a * slope).sum(1, keepdims=True)
    return -logs[np.arange(len(y)), y].mean(), slope / np.linalg.norm(v, axis=1, keepdims=True)


def parts(weight, part):
    """The features and labels of each task."""
    x = np.asarray(part.x)
    return [(x.reshape(len(x), -1) @ weight, y) for x, y in zip(x, np.asarray(part.y), strict=True)]


@functools.cache
def settled():
    """v*(u) by small moves from the start: the minimum whose derivative is meant, of several that there may be."""
    descent = jax.grad(lambda v: TASK.problem.lower(U, v, BATCH.lower, None))
    move = jax.jit(lambda v: jax.lax.fori_loop(0, 20_000, lambda i, v: v - 0.02 * descent(v), v))
    return move(TASK.problem.lower_start(U, BATCH, KEY))


def solved(weight):
    """v*(u) near there by scipy, which knows nothing of the library: heads of length one, since none is better."""
    heads = []
    for (features, y), start in zip(parts(weight, BATCH.lower), unit_rows(np.asarray(settled())), strict=True):

        def slope(flat, features=features, y=y):
            v = flat.reshape(3, 3)
            length = (v**2).sum(1, keepdims=True)
            return (loss_of(v, features, y)[1] + (length - 1) * v).ravel()

        heads.append(scipy.optimize.root(slope, start.ravel(), tol=1e-13).x.reshape(3, 3))
    return np.stack(heads)


def asked(weight, heads=None):
    """f by numpy, at v*(u) where no heads are given."""
    pairs = zip(solved(weight) if heads is None else heads, parts(weight, BATCH.upper), strict=True)
    return np.mean([loss_of(v, features, y)[0] for v, (features, y) in pairs])


@functools.cache
def by_retraining():
    """The derivative of f(u, v*(u)) in each entry of the weight, by differences of fourth order."""
    weight, h = np.asarray(U[0]), 1e-4
    found = np.zeros_like(weight)
    for place in np.ndindex(*weight.shape):
        step = np.zeros_like(weight)
        step[place] = h
        near, far = (asked(weight + n * step) - asked(weight - n * step) for n in (1, 2))
        found[place] = (8 * near - far) / (12 * h)
    return found


def test_the_losses_are_cosines_times_ten():
    """f is a mean over the tasks and g a sum; the lengths of heads and of features mean nothing."""
    rng = np.random.default_rng(3)
    v, weight = rng.normal(size=(2, 3, 3)), np.asarray(U[0])
    upper = jax.jit(lambda v: TASK.problem.upper(U, v, BATCH.upper, None))
    lower = jax.jit(jax.value_and_grad(lambda v: TASK.problem.lower(U, v, BATCH.lower, None)))
    assert float(upper(v)) == pytest.approx(asked(weight, v), rel=1e-12)
    tasks = [loss_of(heads, *part) for heads, part in zip(v, parts(weight, BATCH.lower), strict=True)]
    loss, gradient = lower(v)
    assert float(loss) == pytest.approx(sum(loss for loss, _ in tasks), rel=1e-12)
    np.testing.assert_allclose(gradient, np.stack([slope for _, slope in tasks]), rtol=1e-9, atol=1e-12)
    longer = rng.uniform(0.1, 10, (2, 3, 1)) * v
    assert float(lower(longer)[0]) == pytest.approx(float(loss), rel=1e-12)
    assert float(upper(longer)) == pytest.approx(float(upper(v)), rel=1e-12)


def test_heads_start_at_their_classes_means():
    start = TASK.problem.lower_start(U, BATCH, KEY)
    for heads, (features, y) in zip(start, parts(np.asarray(U[0]), BATCH.lower), strict=True):
        expected = unit_rows(np.stack([features[y == label].mean(0) for label in range(3)]))
        np.testing.assert_allclose(heads, expected, rtol=1e-10)
    assert TASK.start[1].shape == start.shape
    assert TASK.start[1].dtype == start.dtype


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_zero_has_no_direction_and_no_infinite_derivative(dtype):
    x = jnp.array([[0, 0], [3e-5, -4e-5], [3e9, 4e9]], dtype)
    out, jacobian = jax.jit(lambda x: (unit(x), jax.jacobian(unit)(x)))(x)
    np.testing.assert_allclose(out, [[0, 0], [0.6, -0.8], [0.6, 0.8]], rtol=1e-6)
    assert out.dtype == dtype
    assert np.isfinite(jacobian).all()


@pytest.mark.slow
def test_the_representation_sees_all_tasks_in_one_pass():
    """Once for each loss, and once for the start; it is given the key and the statistics."""
    calls = []

    def apply(params, x, statistics=None, key=None):
        calls.append((x.shape, statistics, key))
        return LINEAR.apply(params, x)

    problem = fewshot_task(
        Representation(LINEAR.init, apply, LINEAR.statistics), noise(), way=3, shot=2, queries=4, tasks=2, key=KEY
    ).task.problem
    calls.clear()
    batch = draw(episodes(noise(), queries=4), 0, KEY)
    v = jnp.ones((2, 3, 3))
    jax.eval_shape(lambda u: problem.lower_start(u, batch, KEY), U)
    jax.eval_shape(lambda u: problem.lower(u, v, batch.lower, KEY), U)
    jax.eval_shape(lambda u: problem.upper(u, v, batch.upper._replace(statistics=(1,)), KEY), U)
    shapes, statistics, keys = zip(*calls, strict=True)
    assert shapes == ((12, 2, 2), (12, 2, 2), (24, 2, 2))
    assert statistics == (None, None, (1,))
    assert all(a is b for a, b in zip(keys, (batch.lower.key, batch.lower.key, batch.upper.key), strict=True))


@pytest.mark.slow
def test_implicit_s_direction_is_the_derivative_of_retraining():
    """By many moves from the means. The Hessian is singular along each head, but f is flat there, and CG stays off."""
    solver = Implicit(PLAIN, optax.sgd(0.02), 20_000, CG(steps=100, tolerance=1e-9))
    (found,), state, info = direction(solver, TASK.problem, U, TASK.start[1], BATCH)
    np.testing.assert_allclose(unit_rows(np.asarray(state.v)), solved(np.asarray(U[0])), atol=1e-7)
    assert float(info.extra["linear_residual"]) < 1e-8
    expected = by_retraining()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    # As if v were fixed it is another: the tolerance tells them apart.
    (partial,), *_ = direction(Alternating(PLAIN, optax.sgd(0.0), 1), from_v(), U, state.v, BATCH)
    assert np.abs(partial - expected).max() > 0.2 * np.abs(expected).max()


def from_v():
    """The problem whose heads go on from where they are."""
    return dataclasses.replace(TASK.problem, lower_start=None)


@pytest.mark.slow
def test_penalty_s_direction_tends_to_it_as_gamma_grows():
    """Where v has settled it is off by a term in 1/gamma: half as much at twice the gamma."""
    expected, errors = by_retraining(), []
    for gamma in (2000.0, 4000.0):
        lower = optax.sgd(4e-3 / gamma, momentum=0.99)
        solver = Penalty(PLAIN, lower, 20_000, gamma=gamma, lam=0.0, nu=0.0, step_scale=1.0)
        (found,), *_ = direction(solver, from_v(), U, settled(), BATCH)
        errors.append(np.asarray(found) - expected)
    assert np.abs(errors[1]).max() < 0.02 * np.abs(expected).max()
    np.testing.assert_allclose(errors[0], 2 * errors[1], atol=0.1 * np.abs(errors[0]).max())


@pytest.mark.slow
def test_reverse_mode_s_direction_is_that_through_moves_written_by_hand():
    """The heads' start counts as given; the moves after it are differentiated."""
    steps, rate = 4, 0.05

    def rows(x):
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True))

    def loss(u, v, x, y):
        logs = jax.nn.log_softmax(10 * rows(x.reshape(len(x), -1) @ u) @ rows(v).T)
        return -logs[jnp.arange(len(y)), y].mean()

    def end(u, v):
        total = 0.0
        for i in range(2):
            moved = v[i]
            for _ in range(steps):
                moved = moved - rate * jax.grad(loss, 1)(u, moved, BATCH.lower.x[i], BATCH.lower.y[i])
            total += loss(u, moved, BATCH.upper.x[i], BATCH.upper.y[i]) / 2
        return total

    solver = ReverseMode(PLAIN, optax.sgd(rate), steps)
    (found,), _, info = direction(solver, TASK.problem, U, TASK.start[1], BATCH)
    start = TASK.problem.lower_start(U, BATCH, KEY)
    loss_by_hand, expected = jax.jit(jax.value_and_grad(end))(U[0], start)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    assert float(info.upper_loss) == pytest.approx(float(loss_by_hand), rel=1e-10)


@pytest.mark.slow
def test_a_new_task_is_learned_by_a_hundred_moves():
    """Of any number of classes; by hand, with the derivative of numpy."""
    weight = np.asarray(U[0])
    way = 4
    method = fewshot_task(LINEAR, noise(), way=3, shot=2, queries=2, tasks=2, key=KEY)
    adapt, scores = method.use(way)
    batch = draw(Episodes(noise(seed=5), way, 3, 2, 2), 0, KEY)
    found = adapt(U, batch.lower)
    assert found.shape == (2, 4, 3)
    for heads, (features, y) in zip(found, parts(weight, batch.lower), strict=True):
        v = unit_rows(np.stack([features[y == label].mean(0) for label in range(way)]))
        for _ in range(ADAPT_STEPS):
            v = v - HEAD_RATE * loss_of(v, features, y)[1]
        np.testing.assert_allclose(heads, v, rtol=1e-7, atol=1e-8)
    expected = [
        10 * unit_rows(features) @ unit_rows(np.asarray(v)).T
        for v, (features, _) in zip(found, parts(weight, batch.upper), strict=True)
    ]
    np.testing.assert_allclose(scores(U, found, batch.upper), np.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_metrics_are_an_evaluation_on_the_given_classes():
    images = noise()
    method = fewshot_task(LINEAR, images, way=3, shot=2, queries=4, tasks=2, key=KEY)
    expected = evaluate(*method.use(3), U, images, way=3, shot=2, queries=4, episodes=100, key=jax.random.key(0))
    assert method.task.metrics(U, None) == {"accuracy": expected.mean}
    assert 0 < expected.mean < 1


@pytest.mark.slow
def test_statistics_are_those_of_two_thousand_of_the_pictures(key):
    seen = []
    method = fewshot_task(LINEAR, noise(), way=3, shot=2, queries=2, tasks=2, key=KEY)
    method = method._replace(statistics=lambda u, x: seen.append(x.shape) or x)
    few = np.arange(12.0).reshape(3, 4, 1)
    np.testing.assert_array_equal(np.sort(statistics_of(method, U, few, key=key).ravel()), np.arange(12.0))
    many = np.asarray(statistics_of(method, U, np.arange(3000.0).reshape(30, 100, 1), key=key)).ravel()
    assert seen == [(12, 1), (2000, 1)]
    assert len(set(many)) == 2000
    assert many.max() > 2900


# --- what the compiled step repeats ---------------------------------------------------------------------------------

WAY, SHOT, QUERIES, TASKS = 5, 3, 11, 2


def products(text):
    """The dimensions of each product in optimised HLO: of those in a loop, and of all others.

    A product is in a loop if its computation can be reached from the body of a `while`.
    """
    computations, names = {}, {}
    for line in text.splitlines():
        if re.match(r"(ENTRY )?%\S+ .*\{$", line):
            lines = computations.setdefault(re.search(r"%([\w.-]+)", line)[1], [])
        elif line.startswith(" "):
            lines.append(line)
            if defined := re.match(r"\s+(?:ROOT )?%([\w.-]+) = \w+\[([\d,]*)\]", line):
                names[defined[1]] = {int(size) for size in defined[2].split(",") if size}
    bodies = re.findall(r" while\(.*?body=%([\w.-]+)", text)
    assert bodies
    inside, new = set(), set(bodies)
    while new:
        inside |= new
        words = {word for name in new for line in computations[name] for word in re.findall(r"%([\w.-]+)", line)}
        new = (words & set(computations)) - inside
    found = {True: [], False: []}
    for name, lines in computations.items():
        for line in lines:
            product = re.match(r"\s+(?:ROOT )?%([\w.-]+) = \S+ (?:dot|convolution|custom-call)\((.*?)\)", line)
            if product:
                sizes = [names[word] for word in (product[1], *re.findall(r"%([\w.-]+)", product[2]))]
                found[name in inside].append(set().union(*sizes))
    return found[True], found[False]


def two_blocks():
    """Half the network for Omniglot: what a whole one adds is time to compile."""
    network = omniglot_network(7)
    return Representation(lambda key, x: network.init(key, x)[:2], network.apply, network.statistics)


def step_s_products(representation, d, make, change=lambda representation, problem: problem):
    """Dimensions of the products in the loops and outside, without those that the heads have: none, then some."""
    images = np.random.default_rng(0).integers(0, 256, (6, 14, 16, 17)).astype(np.uint8)
    sizes = {"way": WAY, "shot": SHOT, "queries": QUERIES, "tasks": TASKS}
    task = fewshot_task(representation, images, **sizes, key=jax.random.key(0)).task
    assert task.start[1].shape == (TASKS, WAY, d)
    problem, solver, batch = change(representation, task.problem), make(10, lower_steps=20), draw(task.batches, 0, KEY)
    step = jax.jit(lambda state, batch, key: solver.step(problem, state, batch, key))
    # Hasty compilation leaves out what LLVM does, which comes after all of XLA's passes over the program read here.
    text = step.lower(solver.init(problem, *task.start, batch), batch, KEY).compile().as_text()
    heads = {TASKS, WAY, d, WAY * SHOT, WAY * QUERIES}
    return [[sizes - heads for sizes in part] for part in products(text)]


@pytest.mark.slow
@pytest.mark.parametrize("make", [penalty_solver, reverse_solver, alternating_solver, approxgrad_solver])
def test_moves_of_the_heads_do_not_run_the_representation(make):
    """All products in the compiled loops have the heads' dimensions; those of the representation are outside."""
    inside, outside = step_s_products(two_blocks(), 112, make)
    assert len(inside) >= 2
    assert not any(inside)
    assert sum(map(bool, outside)) >= 6  # two blocks, their samples and the queries, forward and back


def moved_by_the_heads(representation, problem):
    """A representation that answers to v, so that each move has to run it."""

    def lower_loss(u, v, samples):
        u = jax.tree.map(lambda p: p * (1 + 1e-9 * jnp.sum(v)), u)
        scores = 10 * unit(features_of(representation, u, samples)) @ jnp.swapaxes(unit(v), 1, 2)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(scores, samples.y))

    return dataclasses.replace(problem, lower_loss=lower_loss)


@pytest.mark.slow
@pytest.mark.parametrize("make", [alternating_solver, penalty_solver, approxgrad_solver, reverse_solver])
def test_that_would_be_seen_if_they_did(make):
    """Which is about the reading of a program: the same for all."""
    inside, _ = step_s_products(dense(23, 7), 7, make, moved_by_the_heads)
    assert sum(map(bool, inside)) >= 4  # two layers, forward and back


# --- baselines ------------------------------------------------------------------------------------------------------

CURVED = dense(4, 3)
RATE = 0.3
INNER = optax.sgd(RATE)
TWICE = dataclasses.replace(maml_solver(10, 2), upper_optimizer=PLAIN, lower_optimizer=INNER)


def random_like(tree, scale, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape)), tree)


def network_loss(params, x, y):
    """A task's cross-entropy, written anew."""
    first, second = params["representation"]
    features = jnp.tanh(x.reshape(len(x), -1) @ first) @ second
    logs = jax.nn.log_softmax(features @ params["dense"]["weight"] + params["dense"]["bias"])
    return -jnp.mean(jnp.take_along_axis(logs, y[:, None], 1))


def descended(params, x, y, rate, steps, proximal=0.0):
    start = params
    for _ in range(steps):
        slope = jax.grad(network_loss)(params, x, y)
        params = jax.tree.map(lambda p, s, d: p - rate * (d + proximal * (p - s)), params, start, slope)
    return params


def maml(**change):
    arguments = {"way": 3, "shot": 2, "queries": 4, "tasks": 2, "key": jax.random.key(0)} | change
    method = maml_task(CURVED, noise(), **arguments)
    u = random_like(method.task.start[0], 0.7)
    return method, u, draw(method.task.batches, 0, jax.random.key(1))


def test_reverse_mode_is_maml():
    """The derivative of the query loss at theta - rate * gradient, twice, second derivatives included."""
    method, u, batch = maml()
    found, _, info = direction(TWICE, method.task.problem, u, method.task.start[1], batch)

    def objective(u):
        def one(x, y, asked, answers):
            return network_loss(descended(u, x, y, RATE, 2), asked, answers)

        return jnp.mean(jax.vmap(one)(batch.lower.x, batch.lower.y, batch.upper.x, batch.upper.y))

    loss, expected = jax.jit(jax.value_and_grad(objective))(u)
    agree(found, expected)
    assert float(info.upper_loss) == pytest.approx(float(loss), rel=1e-10)


@pytest.mark.slow
def test_alternating_descent_is_first_order_maml():
    """The gradient at the adapted parameters; the full one is another."""
    method, u, batch = maml()
    solver = dataclasses.replace(first_order_maml_solver(10, 2), upper_optimizer=PLAIN, lower_optimizer=INNER)
    found, *_ = direction(solver, method.task.problem, u, method.task.start[1], batch)

    def one(x, y, asked, answers):
        return jax.grad(network_loss)(descended(u, x, y, RATE, 2), asked, answers)

    expected = jax.jit(jax.vmap(one))(batch.lower.x, batch.lower.y, batch.upper.x, batch.upper.y)
    agree(found, jax.tree.map(lambda d: d.mean(0), expected))
    other, *_ = direction(TWICE, method.task.problem, u, method.task.start[1], batch)
    assert optax.tree.norm(optax.tree.sub(other, found)) > 0.05 * optax.tree.norm(found)


@pytest.mark.slow
def test_an_implicit_solver_is_imaml():
    """(I + H / lambda)^-1 times the gradient at the adapted parameters, by numpy's dense solve."""
    proximal = 0.8
    method, u, batch = maml(proximal=proximal)
    solver = dataclasses.replace(imaml_solver(10), upper_optimizer=PLAIN, linear_solve=CG(steps=200, tolerance=1e-13))
    found, state, _ = direction(solver, method.task.problem, u, method.task.start[1], batch)
    flat, unravel = jax.flatten_util.ravel_pytree(u)

    @jax.jit
    def adapted(x, y):
        return jax.flatten_util.ravel_pytree(descended(u, x, y, IMAML_RATE, IMAML_STEPS, proximal))[0]

    @jax.jit
    def hessian(params, x, y):
        return jax.hessian(lambda p: network_loss(unravel(p), x, y))(params)

    @jax.jit
    def gradient(params, x, y):
        return jax.grad(lambda p: network_loss(unravel(p), x, y))(params)

    expected = []
    for task in range(2):
        (x, y), (asked, answers) = ((part.x[task], part.y[task]) for part in (batch.lower, batch.upper))
        params = adapted(x, y)
        moved = jax.tree.map(lambda p, v, task=task: p + v[task], u, state.v)
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(moved)[0], params, rtol=1e-9, atol=1e-11)
        slope = gradient(params, asked, answers)
        matrix = np.eye(len(flat)) + np.asarray(hessian(params, x, y)) / proximal
        expected.append(np.linalg.solve(matrix, slope))
    agree(found, unravel(jnp.asarray(np.mean(expected, 0))), rtol=1e-7)


@pytest.mark.slow
def test_maml_learns_a_new_task_by_its_own_moves_and_normalises_tasks_apart():
    method, u, batch = maml(adapt_rate=0.2, adapt_steps=5)
    adapt, scores = method.use(3)
    v = jax.jit(adapt)(u, batch.lower)
    for task in range(2):
        expected = jax.jit(descended, static_argnums=4)(u, batch.lower.x[task], batch.lower.y[task], 0.2, 5)
        agree(jax.tree.map(lambda p, v, task=task: p + v[task], u, v), expected)
    calls = []

    def apply(params, x, statistics=None, key=None):
        calls.append((x.shape, statistics, key))
        return CURVED.apply(params, x)

    other = maml_task(Representation(CURVED.init, apply, CURVED.statistics), noise(), way=3, shot=2, key=KEY, queries=4)
    calls.clear()
    found = other.use(3)[1](u, v, batch.upper._replace(statistics=(1,)))
    ((shape, statistics, key),) = calls
    assert (shape, statistics) == ((12, 2, 2), (1,))  # under vmap: a task's own
    assert key is batch.upper.key
    np.testing.assert_allclose(found, scores(u, v, batch.upper), rtol=1e-12)


@pytest.mark.slow
def test_maml_starts_undecided_and_refuses_another_number_of_classes():
    method, _, batch = maml()
    np.testing.assert_array_equal(method.use(3)[1](*method.task.start, batch.upper), 0)
    with pytest.raises(InputError, match=r"3 logits, and a task has 4 classes\. Make the task with way=4"):
        method.use(4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"proximal": -0.5}, "maml_task: proximal is -0.5, and must be zero or positive"),
        ({"proximal": float("nan")}, "proximal is nan"),
        ({"adapt_steps": 0}, "maml_task: adapt_steps is 0, and must be a positive integer"),
        ({"way": 11}, "There are 10 classes, fewer than the 11"),
    ],
    ids=str,
)
def test_maml_refuses_in_a_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence):
        maml(**change)


def metric(make):
    method = make(CURVED, noise(), way=3, shot=2, queries=4, tasks=2, key=jax.random.key(0))
    return method, random_like(method.task.start[0], 0.7)


def two_directions(method, u):
    """Of the first step and of the second, whose linear solve is warm-started from other data."""
    solver, problem = dataclasses.replace(metric_solver(10), upper_optimizer=PLAIN), method.task.problem
    first, second = (draw(method.task.batches, step, KEY) for step in (0, 1))
    found, state, info = direction(solver, problem, u, method.task.start[1], first)
    assert float(info.extra["linear_residual"]) < 1e-12
    again, _ = step_of(solver, problem, state, second)
    return (found, u, first), (optax.tree.sub(state.u, again.u), state.u, second)


def check_metric(method, u, score, loss):
    """The direction of the bilevel problem against the gradient of the loss with the means put in."""

    def objective(u, batch):
        total = 0.0
        for i in range(2):
            first, second = u["representation"]
            given, asked = (
                jnp.tanh(part.x[i].reshape(len(part.x[i]), -1) @ first) @ second for part in (batch.lower, batch.upper)
            )
            means = jnp.stack([given[2 * label : 2 * label + 2].mean(0) for label in range(3)])
            one = jax.vmap(lambda query: jax.vmap(lambda mean: score(u, mean, query))(means))  # noqa: B023
            total += loss(one(asked), batch.upper.y[i]) / 2
        return total

    gradient = jax.jit(jax.grad(objective))
    for found, at, batch in two_directions(method, u):
        agree(found, gradient(at, batch), rtol=1e-8)


@pytest.mark.slow
def test_prototypical_networks_are_published_ones():
    def loss(scores, y):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], 1))

    check_metric(*metric(prototypical_task), lambda u, mean, query: -jnp.sum((mean - query) ** 2), loss)


@pytest.mark.slow
def test_relation_networks_are_published_ones_on_feature_vectors():
    def score(u, mean, query):
        net = u["relation"]
        hidden = jax.nn.relu(jnp.concatenate([mean, query]) @ net["first"] + net["shift"])
        return 1 / (1 + jnp.exp(-(hidden @ net["last"] + net["bias"])))

    def loss(scores, y):
        return jnp.mean(jnp.sum((scores - jnp.eye(3)[y]) ** 2, 1))

    method, u = metric(relation_task)
    assert u["relation"]["first"].shape == (6, 24)
    check_metric(method, u, score, loss)


@pytest.mark.parametrize("make", [prototypical_task, relation_task])
def test_a_metric_is_asked_about_another_number_of_classes(make):
    method, u = metric(make)
    adapt, scores = method.use(5)
    batch = draw(Episodes(noise(), 5, 3, 2, 4), 0, KEY)
    v = jax.jit(adapt)(u, batch.lower)
    expected = CURVED.apply(u["representation"], batch.lower.x.reshape(60, 2, 2)).reshape(4, 5, 3, 3).mean(2)
    np.testing.assert_allclose(v, expected, rtol=1e-9, atol=1e-12)
    assert jax.eval_shape(scores, u, v, batch.upper).shape == (4, 10, 5)


@pytest.mark.parametrize("make", [maml_task, prototypical_task, relation_task])
def test_baselines_statistics_are_those_of_their_representation(make):
    told = Representation(CURVED.init, CURVED.apply, lambda params, x: (params, x))
    method = make(told, noise(), way=3, shot=2, queries=4, tasks=2, key=KEY)
    u = method.task.start[0]
    assert method.statistics(u, 3) == (u["representation"], 3)


# --- learning -------------------------------------------------------------------------------------------------------


def clusters(classes, seed=0):
    """What tells the classes apart are 5 of 16 pixels; the others are louder."""
    rng = np.random.default_rng(seed)
    x = 1.5 * rng.normal(size=(classes, 12, 16))
    x[..., :5] = rng.normal(size=(classes, 1, 5)) + 0.1 * rng.normal(size=(classes, 12, 5))
    return x.reshape(classes, 12, 4, 4)


def told_apart(method, u, images, statistics=None, key=KEY):
    sizes = {"way": 3, "shot": 3, "queries": 5, "episodes": 200}
    return evaluate(*method.use(3), u, images, **sizes, key=key, statistics=statistics)


def normalised():
    """One layer, each feature of zero mean over the samples that it sees in one pass, or by `statistics`."""
    plain = dense(5)

    def apply(params, x, statistics=None, key=None):
        features = plain.apply(params, x)
        return features - (features.mean(0) if statistics is None else statistics)

    return Representation(plain.init, apply, lambda params, x: plain.apply(params, x).mean(0))


LEARNER = FewShotLearner(normalised(), penalty_solver(200), way=3, shot=3, queries=5, tasks=4, steps=200)


@functools.cache
def learned():
    return LEARNER.meta_fit(clusters(60)[:40])


@pytest.mark.slow
def test_a_learner_tells_new_classes_apart():
    """Well above chance, and above the representation it started from."""
    images = clusters(60)[40:]
    learner = learned()
    found = learner.evaluate(images, episodes=200, seed=3)
    u = learner.method_.task.start[0]
    known = statistics_of(learner.method_, u, images, key=KEY)
    before = told_apart(learner.method_, u, images, known)
    assert found.mean > 0.9
    assert before.mean < 0.7
    assert learner.history_.upper_loss.shape == (200,)
    assert np.mean(learner.history_.upper_loss[-50:]) < 0.7 * np.mean(learner.history_.upper_loss[:50])
    expected = told_apart(learner.method_, learner.u_, images, learner.statistics_, jax.random.key(3))
    assert found.mean == expected.mean
    easier = learner.evaluate(images, way=2, shot=5, queries=7, episodes=200, seed=3)
    assert easier.accuracies.shape == (200,)
    assert easier.mean > found.mean
    np.testing.assert_allclose(easier.accuracies * 14, np.round(easier.accuracies * 14), atol=1e-4)


@pytest.mark.slow
def test_labels_are_of_any_kind_and_classes_of_another_number():
    images = clusters(60)[40:]
    names = np.array(["oak", "ash", "elm", "yew", "fir"])
    given = np.tile(names, 4)
    X = images[:5, :4].swapaxes(0, 1).reshape(20, 4, 4)
    classifier = learned().adapt(X, given)
    assert classifier.classes_.tolist() == ["ash", "elm", "fir", "oak", "yew"]
    asked = images[:5, 4:].reshape(40, 4, 4)
    answers = classifier.predict(asked)
    assert (answers == np.repeat(names, 8)).mean() > 0.7
    p = classifier.predict_proba(asked)
    assert p.shape == (40, 5)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    assert (p > 0).all()
    np.testing.assert_array_equal(classifier.classes_[p.argmax(1)], answers)
    # The order of the samples does not matter, nor what the labels are.
    numbers = {"oak": 7, "ash": -3, "elm": 40, "yew": 0, "fir": 12}
    backwards = learned().adapt(X[::-1].tolist(), [numbers[name] for name in given[::-1]])
    assert [numbers[name] for name in answers] == backwards.predict(asked).tolist()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    images, again = clusters(60)[:40], FewShotLearner(**vars_of(LEARNER))
    first, second = learned(), again.meta_fit(images)
    for a, b in zip(jax.tree.leaves(first.u_), jax.tree.leaves(second.u_), strict=True):
        np.testing.assert_array_equal(a, b)
    other = FewShotLearner(**vars_of(LEARNER) | {"seed": 1}).meta_fit(images)
    assert float(jnp.abs(other.u_[0] - first.u_[0]).max()) > 0.1
    of_seeds = [first.evaluate(clusters(60)[40:], episodes=200, seed=seed).accuracies for seed in (1, 1, 2)]
    np.testing.assert_array_equal(of_seeds[0], of_seeds[1])
    assert (of_seeds[0] != of_seeds[2]).any()


def vars_of(learner):
    names = ("representation", "solver", "way", "shot", "queries", "tasks", "steps", "seed")
    return {name: getattr(learner, name) for name in names}


@pytest.mark.slow
def test_a_learned_network_normalises_by_its_training_pictures():
    """So that no answer depends on which pictures are queried beside it."""
    learner, images = learned(), clusters(60)
    (weight,), new = learner.u_, images[40:43]
    mean = (images[:40].reshape(-1, 16) @ weight).mean(0)
    np.testing.assert_allclose(learner.statistics_, mean, rtol=1e-9)
    given, asked = new[:, :2].reshape(6, 4, 4), new[:, 2:].reshape(30, 4, 4)
    classifier = learner.adapt(given, np.repeat([3, 4, 5], 2))
    together, alone = classifier.predict_proba(asked), classifier.predict_proba(asked[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-9)
    adapt, _ = learner.method_.use(3)
    samples = Episode(jnp.asarray(given)[None], jnp.repeat(jnp.arange(3), 2)[None], None, learner.statistics_)
    heads = np.asarray(jax.jit(adapt)(learner.u_, samples)[0])
    cosines = unit_rows(asked.reshape(30, 16) @ np.asarray(weight) - mean) @ unit_rows(heads).T
    np.testing.assert_allclose(together, np.exp(log_softmax(10 * cosines, axis=1)), rtol=1e-8)


def test_any_representation_sees_bytes_as_0_to_1():
    images = np.random.default_rng(0).integers(0, 256, (1, 6, 2, 2)).astype(np.uint8)
    u = LINEAR.init(KEY, jnp.zeros((1, 2, 2)))
    found, same = (
        features_of(LINEAR, u, Episode(jnp.asarray(x), jnp.zeros((1, 6), int))) for x in (images, images / 255)
    )
    np.testing.assert_allclose(found, same, rtol=1e-12)


@pytest.mark.slow
def test_a_second_task_of_equal_shapes_compiles_nothing(caplog):
    images = clusters(60)[40:]
    given, asked, names = images[:3, :2].reshape(6, 4, 4), images[:3, 2:].reshape(30, 4, 4), np.repeat([3, 4, 5], 2)
    learned().adapt(given, names).predict(asked)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        learned().adapt(given[::-1], names).predict(asked[::-1])
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]


@pytest.mark.slow
def test_a_learner_and_its_classifiers_are_pickled_copied_and_cloned(tmp_path):
    images = clusters(60)[40:]
    given, asked = images[:3, :2].reshape(6, 4, 4), images[:3, 2:].reshape(30, 4, 4)
    expected = learned().adapt(given, np.repeat([3, 4, 5], 2)).predict_proba(asked)
    joblib.dump(learned(), tmp_path / "learner")
    for other in (pickle.loads(pickle.dumps(learned())), joblib.load(tmp_path / "learner"), copy.deepcopy(learned())):
        classifier = other.adapt(given, np.repeat([3, 4, 5], 2))
        np.testing.assert_array_equal(classifier.predict_proba(asked), expected)
        for again in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
            np.testing.assert_array_equal(again.predict_proba(asked), expected)
    assert (tmp_path / "learner").stat().st_size < 60_000  # without the training images, 61,440 bytes of them
    assert clone(learned()).get_params().keys() == LEARNER.get_params().keys()


X5, Y5 = noise(shape=(4, 4))[:5, 0], np.arange(5)
LEARNER_REFUSED = {
    "adapt before": (lambda: FewShotLearner().adapt(X5, Y5), "is not fitted yet. Call meta_fit first"),
    "evaluate before": (lambda: FewShotLearner().evaluate(noise()), "is not fitted yet. Call meta_fit first"),
    "one class": (lambda: learned().adapt(X5, np.zeros(5)), r"y has one class only \(0\.0\)"),
    "no class": (lambda: learned().adapt(X5[:0], []), "y has no labels"),
    "fewer labels": (lambda: learned().adapt(X5, Y5[:4]), "X has 5 samples and y 4 labels"),
    "labels of two axes": (
        lambda: learned().adapt(X5, np.eye(5)),
        r"y has shape \(5, 5\), and must have one label per sample",
    ),
    "no rows": (lambda: learned().adapt(np.arange(5.0), Y5), r"X has shape \(5,\)\. .*\(n, 4, 4\) is needed"),
    "other size": (lambda: learned().adapt(np.zeros((5, 5, 4)), Y5), r"for samples of shape \(4, 4\)"),
    "channels": (lambda: learned().adapt(X5[..., None], Y5), r"X has shape \(5, 4, 4, 1\)"),
    "words": (lambda: learned().adapt(np.full((5, 4, 4), "a"), Y5), "X holds values that are not numbers"),
    "not finite": (lambda: learned().adapt(np.where(X5 > 0.5, np.nan, X5), Y5), "X holds [0-9]+ NaN or infinite"),
    "predict: one sample": (lambda: learned().adapt(X5, Y5).predict(X5[0]), r"X has shape \(4, 4\)"),
    "predict: other size": (lambda: learned().adapt(X5, Y5).predict(np.zeros((2, 4, 5))), r"X has shape \(2, 4, 5\)"),
    "predict: not finite": (lambda: learned().adapt(X5, Y5).predict_proba(X5 * np.inf), "X holds 80 NaN or infinite"),
    "evaluate: no classes": (lambda: learned().evaluate(jnp.zeros(5)), r"images has shape \(5,\), and must be"),
    "evaluate: few classes": (lambda: learned().evaluate(noise(), way=11), "There are 10 classes, fewer than the 11"),
    "evaluate: few pictures": (lambda: learned().evaluate(noise(), shot=4), "A class has 8 pictures, fewer than the 4"),
    "evaluate: no episodes": (lambda: learned().evaluate(noise(), episodes=0), "episodes is 0, and must be a positive"),
    "fit: no classes": (
        lambda: fit(jnp.zeros((5, 3))),
        r"images has shape \(5, 3\), and must be \(classes",
    ),
    "fit: empty": (lambda: fit(jnp.zeros((5, 0, 4))), r"images has shape \(5, 0, 4\)"),
    "fit: not finite": (lambda: fit(noise() / 0), "images holds 320 NaN or infinite values of 320"),
    "fit: few classes": (lambda: fit(noise(), way=12), "There are 10 classes, fewer than the 12 of a task"),
    "fit: few pictures": (lambda: fit(noise(), queries=8), "A class has 8 pictures, fewer than the 1 support and 8"),
    "fit: shot": (lambda: fit(noise(), shot=0), "shot is 0, and must be a positive integer"),
    "fit: steps": (lambda: fit(noise(), steps=0), "FewShotLearner: steps is 0, and must be a positive integer"),
    "fit: no whole steps": (lambda: fit(noise(), steps=1.5), "steps is 1.5, and must be a positive integer"),
    "fit: complex": (lambda: fit(noise() * 1j), "images holds complex numbers"),
    "fit: words": (lambda: fit(np.full((10, 8, 2, 2), "a")), "images holds values that are not numbers"),
    "fit: no network": (
        lambda: fit(noise(), representation=omniglot_network),
        "representation is <function omniglot_network",
    ),
    "fit: a solver's class": (lambda: fit(noise(), solver=Penalty), "solver is the class Penalty"),
    "fit: seed": (lambda: fit(noise(), seed=None), "seed is None"),
    "complex": (lambda: learned().adapt(X5 * 1j, Y5), "X holds complex numbers"),
    "mixed labels": (lambda: learned().adapt(X5, ["a", 1, 2, 3, 4]), "y mixes labels of several types"),
    "fit: small pictures": (lambda: fit(noise(), representation=None), "images of 2x2 are too small"),
}


def fit(images, **change):
    arguments = {"representation": LINEAR, "way": 3, "shot": 1, "queries": 2, "tasks": 2, "steps": 2} | change
    return FewShotLearner(**arguments).meta_fit(images)


@pytest.mark.parametrize(("call", "sentence"), LEARNER_REFUSED.values(), ids=LEARNER_REFUSED)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()

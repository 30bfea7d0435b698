"""Poisoning: the losses by hand, the hypergradient by retraining, and every refusal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from scipy.special import log_softmax

from bilevax import GradientMatching, Implicit, InputError, derivatives, solve
from bilevax.applications.poisoning import (
    FeatureMap,
    Points,
    WithinBall,
    approxgrad_solver,
    clean_label_solver,
    clean_label_task,
    euclidean,
    influence_solver,
    penalty_solver,
    points_alone,
    poison_frogs,
    retrained,
    reverse_solver,
    swapped,
    targeted_task,
    untargeted_task,
    well_classified,
    wrongly_labelled,
)
from bilevax.linear_solve import CG
from bilevax.nn import Training, probabilities, softmax_head, softmax_regression

HEAD = softmax_head(3)
L2 = 0.05
TRAINING = Training(steps=300, rate=0.05, l2=L2)


def blobs(seed, n):
    """Three classes in the unit square's four-dimensional sister."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.2, 0.2, 0.5, 0.5], [0.8, 0.2, 0.5, 0.3], [0.5, 0.8, 0.2, 0.5]])
    y = np.arange(n) % 3
    return np.clip(centres[y] + 0.12 * rng.normal(size=(n, 4)), 0, 1), y


X, Y = blobs(0, 45)
X_VAL, Y_VAL = blobs(1, 30)
POINTS = wrongly_labelled(X, Y, 4, key=jax.random.key(1))


def losses(v, x, y):
    return -log_softmax(x @ v.T, axis=1)[np.arange(len(y)), y]


def trained(x_added, y_added):
    """The minimiser of g by scipy, which knows nothing of the library."""
    x, y = np.concatenate([X, x_added]), np.concatenate([Y, y_added])

    def g(flat):
        v = flat.reshape(3, 4)
        p = np.exp(log_softmax(x @ v.T, axis=1)) - np.eye(3)[y]
        return losses(v, x, y).mean() + L2 / 2 * (v**2).sum(), (p.T @ x / len(y) + L2 * v).ravel()

    options = {"maxiter": 2000, "gtol": 1e-12, "ftol": 1e-16}
    return scipy.optimize.minimize(g, np.zeros(12), jac=True, method="L-BFGS-B", options=options).x.reshape(3, 4)


def untargeted(**change):
    arguments = {"X": X, "y": Y, "X_val": X_VAL, "y_val": Y_VAL, "points": POINTS, "training": TRAINING} | change
    return untargeted_task(HEAD, **arguments, key=jax.random.key(0))


def targeted(**change):
    points = swapped(X, Y, 4, 0, 1, key=jax.random.key(1))
    arguments = {"X": X, "y": Y, "X_val": X_VAL, "y_val": Y_VAL, "points": points, "source": 0, "target": 1} | change
    return targeted_task(HEAD, **arguments, training=TRAINING, key=jax.random.key(0))


def test_a_head_is_softmax_regression_without_bias(key):
    head, full = softmax_head(3), softmax_regression(3)
    v = jax.random.normal(key, (3, 4))
    both = ({"weight": v.T, "bias": jnp.zeros(3)},)
    np.testing.assert_allclose(head.apply(v, X), full.apply(both, X), rtol=1e-12)


@pytest.mark.slow
def test_the_losses_are_those_of_equation_11():
    task = untargeted()
    u, v = task.start[0], np.random.default_rng(3).normal(size=(3, 4))
    batch = task.batches.at(0, jax.random.key(0))
    x, y = np.concatenate([X, np.asarray(u)]), np.concatenate([Y, POINTS.y])
    lower = losses(v, x, y).mean() + L2 / 2 * (v**2).sum()
    assert float(task.problem.lower(u, jnp.asarray(v), batch.lower, None)) == pytest.approx(lower, rel=1e-12)
    upper = -losses(v, X_VAL, Y_VAL).mean()
    assert float(task.problem.upper(u, jnp.asarray(v), batch.upper, None)) == pytest.approx(upper, rel=1e-12)


def test_rows_beyond_the_points_have_no_part_in_the_losses(key):
    plain, roomy = untargeted(), untargeted(room=7)
    u, v = roomy.start[0], np.random.default_rng(3).normal(size=(3, 4))
    u = u.at[4:].set(0.3)
    assert u.shape == (7, 4)
    batches = [task.batches.at(0, key).lower for task in (plain, roomy)]
    value, of_u = jax.value_and_grad(roomy.problem.lower)(u, jnp.asarray(v), batches[1], None)
    expected, expected_of_u = jax.value_and_grad(plain.problem.lower)(u[:4], jnp.asarray(v), batches[0], None)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(of_u, np.concatenate([expected_of_u, np.zeros((3, 4))]), rtol=1e-10, atol=1e-14)
    assert roomy.metrics(u, jnp.asarray(v))["moved"] == pytest.approx(0, abs=1e-12)


def test_retraining_with_room_is_retraining(key):
    training = Training(steps=20, rate=0.05, l2=L2)
    plain, roomy = (retrained(HEAD, training, X, Y, POINTS, key=key, room=room) for room in (0, 9))
    np.testing.assert_allclose(plain, roomy, rtol=1e-9)


@pytest.mark.slow
def test_the_targeted_aim_is_one_class_taken_for_another():
    task = targeted()
    v = np.random.default_rng(3).normal(size=(3, 4))
    batch = task.batches.at(0, jax.random.key(0))
    chosen = X_VAL[Y_VAL == 0]
    upper = losses(v, chosen, np.ones(len(chosen), int)).mean()
    assert float(task.problem.upper(task.start[0], jnp.asarray(v), batch.upper, None)) == pytest.approx(
        upper, rel=1e-12
    )


@pytest.mark.slow
def test_the_direction_is_the_derivative_of_retraining(key):
    """One step of plain descent by an exact linear solve against central differences through scipy's minimiser."""
    task, rate = untargeted(), 1e-3
    inside = jnp.clip(task.start[0], 0.1, 0.9)
    v = jnp.asarray(trained(np.asarray(inside), POINTS.y))
    solver = Implicit(optax.sgd(rate), optax.sgd(0.0), 1, CG(steps=200, tolerance=1e-12))
    moved = solve(solver, task.problem, inside, v, task.batches, steps=1, key=key).u
    direction = np.asarray(inside - moved) / rate

    def aim(x):
        return -losses(trained(x, POINTS.y), X_VAL, Y_VAL).mean()

    h = 1e-4
    for i, j in ((0, 0), (1, 2), (3, 3)):
        step = np.zeros_like(direction)
        step[i, j] = h
        by_differences = (aim(np.asarray(inside) + step) - aim(np.asarray(inside) - step)) / (2 * h)
        assert direction[i, j] == pytest.approx(by_differences, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "make", [penalty_solver, *(pytest.param(x, marks=pytest.mark.slow) for x in (approxgrad_solver, reverse_solver))]
)
@pytest.mark.parametrize(("task", "sign"), [(untargeted, -1), pytest.param(targeted, 1, marks=pytest.mark.slow)])
def test_every_attack_beats_flipped_labels_after_retraining(make, task, sign, key):
    ready = task()
    u, v = ready.start
    result = solve(make(200), ready.problem, u, v, ready.batches, steps=200, key=key)
    batch = ready.batches.at(0, key)
    labels = np.asarray(batch.lower.labels).argmax(1)

    def aim(x):
        v = trained(np.asarray(x), labels)
        return float(ready.problem.upper(x, jnp.asarray(v), batch.upper, None))

    assert aim(result.u) < aim(u) - 0.05
    assert float(result.u.min()) >= 0
    assert float(result.u.max()) <= 1


@pytest.mark.slow
def test_penalty_reaches_what_exact_hypergradients_reach(key):
    """Local optima of f(u, v*(u)): the two routes share neither direction nor multipliers."""
    task = untargeted()
    exact = Implicit(optax.adam(optax.cosine_decay_schedule(0.03, 400)), optax.adam(1e-3), 20, CG(steps=50))
    ends = []
    for solver in (exact, penalty_solver(1000)):
        steps = 400 if solver is exact else 1000
        u = solve(solver, task.problem, *task.start, task.batches, steps=steps, key=key).u
        ends.append(-losses(trained(np.asarray(u), POINTS.y), X_VAL, Y_VAL).mean())
    assert ends[1] == pytest.approx(ends[0], abs=0.01)


@pytest.mark.slow
def test_retraining_is_the_minimiser(key):
    v = retrained(HEAD, Training(steps=3000, rate=0.05, l2=L2), X, Y, POINTS, key=key)
    np.testing.assert_allclose(v, trained(POINTS.x, POINTS.y), atol=2e-3)


@pytest.mark.slow
def test_minibatches_keep_the_points_in_each_batch(key):
    task = untargeted(batch_size=9, val_batch_size=6)
    batch = task.batches.at(3, key)
    assert batch.lower.clean.index.shape == (9,)
    assert batch.lower.labels.shape == (4, 3)
    assert float(batch.lower.share) == pytest.approx(4 / 49)
    assert batch.upper.index.shape == (6,)


MAP = np.random.default_rng(5).normal(size=(4, 6))
TANH = FeatureMap(lambda params, x: jnp.tanh(x @ params), jnp.asarray(MAP))


def clean_label(**change):
    arguments = {
        "X": X,
        "y": Y,
        "target": X_VAL[0],
        "target_class": 0,
        "base": X[Y == 1][:3],
        "base_class": 1,
        "eps": 0.3,
        "features": TANH,
        "training": TRAINING,
    } | change
    return clean_label_task(HEAD, arguments.pop("features"), **arguments, key=jax.random.key(0))


@pytest.mark.slow
def test_the_bound_holds_where_it_binds(key):
    task = clean_label()
    result = solve(clean_label_solver(2000), task.problem, *task.start, task.batches, steps=2000, key=key)
    found = task.metrics(result.u, result.v)
    assert found["distance"] <= 0.3 * 1.001
    assert found["distance"] >= 0.3 * 0.99  # it binds: feature collision alone would go further
    start = task.metrics(*task.start)
    assert found["feature_distance"] < start["feature_distance"]
    assert found["target_probability"] > start["target_probability"]


@pytest.mark.slow
def test_a_bound_without_a_projection_holds_too(key):
    """|tanh(2 (x - base))|_1, not convex: nothing projects onto it in closed form."""

    def distance(x, base):
        return jnp.sum(jnp.abs(jnp.tanh(2 * (x - base))), 1)

    task = clean_label(distance=distance, eps=0.5)
    result = solve(clean_label_solver(2000), task.problem, *task.start, task.batches, steps=2000, key=key)
    found = task.metrics(result.u, result.v)
    assert 0.5 * 0.98 <= found["distance"] <= 0.5 * 1.001


@pytest.mark.slow
def test_distances_are_euclidean_and_flat_at_the_base():
    base = jnp.asarray(X[:2])
    np.testing.assert_allclose(euclidean(base + 0.1, base), [0.2, 0.2], rtol=1e-9)
    gradient = jax.grad(lambda x: euclidean(x, base).sum())(base)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
def test_the_aims_that_are_left_are_named(key):
    v = clean_label().start[1]
    right = well_classified(HEAD, TANH, v, X_VAL, Y_VAL)
    p = probabilities(HEAD, v, jnp.tanh(X_VAL @ MAP))
    np.testing.assert_array_equal(right, np.flatnonzero(p.argmax(1) == Y_VAL))


@pytest.mark.slow
def test_projection_and_penalty_reach_the_same_point(key):
    """Plain descent there: Adam's move of each entry, projected onto a ball, does not rest at the solution."""
    ball = WithinBall(clean_label(distance=None))
    solver = dataclasses.replace(clean_label_solver(2000), upper_optimizer=optax.sgd(0.5))
    projected = solve(solver, ball.task.problem, *ball.task.start, ball.task.batches, steps=2000, key=key)
    by_projection = ball.task.metrics(projected.u, projected.v)
    assert by_projection["distance"] <= 0.3 * (1 + 1e-6)
    task = clean_label()
    penalised = solve(clean_label_solver(2000), task.problem, *task.start, task.batches, steps=2000, key=key)
    by_penalty = task.metrics(penalised.u, penalised.v)
    assert by_penalty["feature_distance"] == pytest.approx(by_projection["feature_distance"], rel=0.02)


def test_frogs_collide_and_stay_in_the_ball():
    base = X[Y == 1][:3]
    found = poison_frogs(TANH, X_VAL[0], base, eps=0.3)
    assert np.linalg.norm(found - base, axis=1).max() <= 0.3 * (1 + 1e-6)
    far, near = (np.linalg.norm(np.tanh(x @ MAP) - np.tanh(X_VAL[0] @ MAP), axis=1) for x in (base, found))
    assert (near < far).all()


def test_one_step_of_frogs_is_algorithm_1():
    base, rate, beta = X[Y == 1][:2], 0.02, 0.5

    def features(x):
        return np.tanh(x @ MAP)

    slope = 2 * ((features(base) - features(X_VAL[0])) * (1 - features(base) ** 2)) @ MAP.T
    forward = base - rate * slope
    backward = np.clip((forward + rate * beta * base) / (1 + beta * rate), 0, 1)
    found = poison_frogs(TANH, X_VAL[0], base, eps=10.0, rate=rate, similarity=beta, steps=1)
    np.testing.assert_allclose(found, backward, rtol=1e-10)


@pytest.mark.slow
def test_gradients_match_and_the_direction_is_that_of_the_cosine(key):
    """The direction against central differences of 1 - cos, and a solve that raises the cosine."""
    v = clean_label().start[1]
    task = clean_label(distance=None, training=Training(l2=0.0), start=v)
    ball = WithinBall(points_alone(task))
    problem, batch = ball.task.problem, ball.task.batches.at(0, key)
    u = 0.1 * jax.random.normal(key, ball.task.start[0].shape)

    @jax.jit
    def misaligned(u):
        a = derivatives.upper(problem, u, v, batch.upper, None).grad_v.ravel()
        b = derivatives.lower_gradient(problem, u, v, batch.lower, None)[1].ravel()
        return 1 - a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)

    moved = solve(GradientMatching(optax.sgd(1e-3)), problem, u, v, ball.task.batches, steps=1, key=key).u
    direction, h = (u - moved) / 1e-3, 1e-5
    for place in ((0, 0), (1, 2), (2, 3)):
        step = jnp.zeros_like(u).at[place].set(h)
        slope = float(misaligned(u + step) - misaligned(u - step)) / (2 * h)
        assert float(direction[place]) == pytest.approx(slope, rel=1e-4)
    result = solve(GradientMatching(optax.adam(0.05)), problem, u, v, ball.task.batches, steps=100, key=key)
    assert misaligned(result.u) < misaligned(u) - 0.1
    np.testing.assert_array_equal(result.v, v)


def test_influence_moves_by_signs_toward_the_aim(key):
    task = untargeted()
    result = solve(influence_solver(10), task.problem, *task.start, task.batches, steps=10, key=key)
    moved = (np.asarray(result.u) - POINTS.x)[(result.u > 0) & (result.u < 1)] / 0.02
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-6)  # clipped entries apart, in multiples of the rate
    before, after = (-losses(trained(np.asarray(x), POINTS.y), X_VAL, Y_VAL).mean() for x in (POINTS.x, result.u))
    assert after < before - 0.02


def test_baselines_refuse_what_is_not_theirs():
    with pytest.raises(InputError, match="already has a constraint on the distance"):
        WithinBall(clean_label())
    with pytest.raises(InputError, match="not one of clean_label_task"):
        points_alone(untargeted())
    with pytest.raises(InputError, match="eps is 0"):
        poison_frogs(TANH, X_VAL[0], X[:1], eps=0.0)


WRONG = X_VAL[0] * np.array([-1, 1, 1, 1])
REFUSED = {
    "no budget": (lambda: wrongly_labelled(X, Y, 0, key=jax.random.key(0)), "number of points is 0, and must be"),
    "negative budget": (lambda: wrongly_labelled(X, Y, -2, key=jax.random.key(0)), "number of points is -2"),
    "too many": (lambda: wrongly_labelled(X, Y, 46, key=jax.random.key(0)), "46 points are more than the training"),
    "too many of two": (
        lambda: swapped(X, Y, 31, 0, 1, key=jax.random.key(0)),
        "classes 0 and 1, of which there are 30",
    ),
    "one class": (lambda: wrongly_labelled(X, 0 * Y, 2, key=jax.random.key(0)), "one class only"),
    "no such class": (lambda: targeted(target=7), "target is class 7, which y does not have. y has 0, 1, 2"),
    "same class": (lambda: targeted(target=0), "source and target are both class 0"),
    "none of the class": (
        lambda: targeted(X_val=X_VAL[Y_VAL > 0], y_val=Y_VAL[Y_VAL > 0]),
        "no sample of class 0, which is to be misclassified",
    ),
    "out of range": (lambda: untargeted(X=X * 2), r"X has entries from .* outside 0\.\.1\. Scale the samples"),
    "no range": (lambda: untargeted(low=1.0, high=1.0), "low is 1 and high is 1: low must be less than high"),
    "not finite": (lambda: untargeted(X_val=X_VAL * np.nan), "X_val holds 120 NaN"),
    "other shape": (lambda: untargeted(X_val=X_VAL[:, :3]), r"X_val has samples of shape \(3,\), and X of \(4,\)"),
    "points of another shape": (lambda: untargeted(points=Points(X[:2, :2], Y[:2])), r"points.x has samples of shape"),
    "label too high": (
        lambda: untargeted(y_val=Y_VAL + 1),
        r"y_val has labels 3, and the model has 3 logits, for labels 0\.\.2",
    ),
    "labels that are no integers": (lambda: untargeted(y=Y + 0.5), "y holds fractions"),
    "labels of text": (lambda: untargeted(y=Y.astype(str)), "must have one integer label per sample"),
    "eps": (lambda: clean_label(eps=0.0), "eps is 0.0, and must be positive"),
    "features": (
        lambda: clean_label(features=FeatureMap(lambda params, x: jnp.sum(x))),
        r"features maps 45 samples to \(\), and must map them to \(45, d\)",
    ),
    "base of the target's class": (lambda: clean_label(base_class=0), "both class 0"),
    "image out of range": (lambda: clean_label(target=WRONG - 0.5), r"target has entries from .* outside 0\.\.1"),
    "wrong already": (lambda: clean_label(target=X_VAL[1]), "predicts class 1 for the target.*Choose another target"),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()

"""SparseHO on the lasso and the weighted lasso: derivatives of the true problem, and the strengths that grids find."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize, root
from scipy.special import expit
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression

from bilevax import Batch, Implicit, InputError, Problem, SparseHO, solve
from bilevax.linear_solve import CG
from bilevax.penalties import L1

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
D = 30
TRUE = np.zeros(D)
TRUE[:5] = 2 * RNG.normal(size=5)
X, X_VAL = RNG.normal(size=(2, 100, D))
Y, Y_VAL = X @ TRUE + RNG.normal(size=100), X_VAL @ TRUE + RNG.normal(size=100)
RATE = 1 / np.linalg.norm(X.T @ X / 100, 2)
BATCH = Batch((jnp.asarray(X_VAL), jnp.asarray(Y_VAL)), (jnp.asarray(X), jnp.asarray(Y)))


def error(u, v, data):
    return 0.5 * jnp.mean((data[0] @ v - data[1]) ** 2)


def strengths(u):
    return jnp.broadcast_to(jnp.exp(u), (D,))  # one, or one for each entry


def proximal(u, v, step):
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - step * strengths(u), 0)


PROBLEM = Problem(error, error, regularizer=lambda u, v, mu: jnp.sum(strengths(u) * jnp.sqrt(v**2 + mu**2)))


def lasso(u):
    """The true solution, by scikit-learn: the columns divided by their strengths."""
    weights = np.exp(np.broadcast_to(u, (D,)))
    fitted = Lasso(1.0, fit_intercept=False, tol=1e-13, max_iter=1_000_000).fit(X / weights, Y)
    return fitted.coef_ / weights


def held_out(u):
    return float(error(None, lasso(u), (X_VAL, Y_VAL)))


def direction(solver, u):
    """How a step of descent by 1 moves u, at the true lower solution."""
    result = solve(solver, PROBLEM, jnp.asarray(u), jnp.asarray(lasso(u)), BATCH, steps=1, key=KEY)
    return np.asarray(u - result.u), result


@pytest.mark.parametrize("entries", [pytest.param(1, marks=pytest.mark.slow), D])
def test_the_direction_is_the_derivative_of_the_true_problem(entries):
    u = np.full(entries, np.log(0.1)) + 0.1 * np.random.default_rng(1).normal(size=entries)
    found, result = direction(SparseHO(optax.sgd(1.0), proximal, RATE, 100), u)
    wanted = np.array([(held_out(u + h) - held_out(u - h)) / 2e-5 for h in 1e-5 * np.eye(entries)])
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    assert 0.1 < float(result.history.extra["support"][0]) < 0.9
    # On all entries, with the corner smoothed by the usual 1e-3 or less, the same system goes wrong.
    whole = Implicit(optax.sgd(1.0), optax.sgd(1e-12), 1, CG(100))
    wrong, _ = direction(whole, u)
    assert np.abs(wrong - wanted).max() > 100 * np.abs(found - wanted).max()


@pytest.mark.slow
def test_the_strength_is_that_of_a_grid_of_a_thousand():
    grid = np.linspace(np.log(1e-3), np.log(2.0), 1000)
    losses = [held_out(np.array([u])) for u in grid]
    best = grid[int(np.argmin(losses))]
    solver = SparseHO(optax.adam(optax.cosine_decay_schedule(3e-2, 600)), proximal, RATE, 100)
    result = solve(solver, PROBLEM, jnp.full(1, -4.0), jnp.zeros(D), BATCH, steps=600, key=KEY)
    assert abs(float(result.u[0]) - best) <= grid[1] - grid[0]


@pytest.mark.slow
def test_a_strength_for_each_entry_beats_the_best_single_one():
    single = min(held_out(np.array([u])) for u in np.linspace(-4, 0, 60))
    solver = SparseHO(optax.adam(3e-2), proximal, RATE, 100)
    result = solve(solver, PROBLEM, jnp.full(D, -3.0), jnp.zeros(D), BATCH, steps=400, key=KEY)
    assert held_out(np.asarray(result.u)) < 0.95 * single
    np.testing.assert_allclose(result.v, lasso(np.asarray(result.u)), atol=1e-3)


@pytest.mark.slow
def test_an_empty_support_moves_u_by_f_alone():
    u = np.full(1, 5.0)
    problem = Problem(lambda u, v, d: error(u, v, d) + u[0], error, regularizer=PROBLEM.regularizer)
    solver = SparseHO(optax.sgd(1.0), proximal, RATE, 5)
    result = solve(solver, problem, jnp.asarray(u), jnp.zeros(D), BATCH, steps=1, key=KEY)
    np.testing.assert_allclose(u - result.u, [1.0])
    assert float(result.history.extra["support"][0]) == 0
    assert (result.v == 0).all()


def test_an_empty_support_that_the_loss_itself_wants_is_no_reason_to_refuse():
    """The slope of g without its regularizer counts: here it is zero at v = 0, that of the regularizer is not."""
    problem = Problem(
        lambda u, v, _: jnp.sum((v - 1) ** 2),
        lambda u, v, _: jnp.sum(v**2) / 2,
        regularizer=lambda u, v, mu: jnp.exp(u[0]) * jnp.sum(v),
    )
    solver = SparseHO(optax.sgd(1.0), lambda u, v, step: jnp.maximum(v - step * jnp.exp(u[0]), 0), 0.5, 5)
    solver.check(problem, jnp.zeros(1), jnp.zeros(2), Batch())
    pulled = replace(problem, lower_loss=lambda u, v, _: jnp.sum((v - 0.1) ** 2) / 2)
    with pytest.raises(InputError, match="the support is empty"):
        solver.check(pulled, jnp.zeros(1), jnp.zeros(2), Batch())


@pytest.mark.usefixtures("annotations_unchecked")
def test_refusals():
    with pytest.raises(InputError, match="rate is 0"):
        SparseHO(optax.sgd(1.0), proximal, rate=0)
    with pytest.raises(InputError, match=r"proximal is .L1."):
        SparseHO(optax.sgd(1.0), L1.__name__)
    with pytest.raises(InputError, match="lower_steps"):
        SparseHO(optax.sgd(1.0), proximal, lower_steps=0)
    with pytest.raises(InputError, match=r"the support is empty: after 5 .* Start from a u with a weaker penalty"):
        SparseHO(optax.sgd(1.0), proximal, RATE, 5).check(PROBLEM, jnp.full(1, 5.0), jnp.ones(D) / 100, BATCH)


# --- sparse logistic regression and the elastic net -----------------------------------------------------------------

LABELS, LABELS_VAL = (np.where(x @ TRUE + RNG.normal(size=100) > 0, 1.0, -1.0) for x in (X, X_VAL))


def logistic_error(u, v, data):
    return jnp.mean(jax.nn.softplus(-data[1] * (data[0] @ v)))


def sparse_logistic(u):
    """The true solution, by liblinear; on its support, with its signs, to the end by scipy."""
    C = 1 / (100 * np.exp(u[0]))
    model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-6, max_iter=100_000)
    v = model.fit(X, LABELS).coef_[0]
    on = v != 0

    def slope(w):
        return -X[:, on].T @ (LABELS * expit(-LABELS * (X[:, on] @ w))) / 100 + np.exp(u[0]) * np.sign(v[on])

    v[on] = root(slope, v[on], tol=1e-13).x
    return v


def squared_and_l2(u, v, data):
    """The error, and half of the elastic net's strengths, exp(u[1])."""
    return error(u, v, data) + jnp.exp(u[1]) / 2 * jnp.sum(v**2)


def elastic_net(u):
    """The true solution, by scikit-learn."""
    both = np.exp(u).sum()
    net = ElasticNet(both, l1_ratio=np.exp(u[0]) / both, fit_intercept=False, tol=1e-13, max_iter=1_000_000)
    return net.fit(X, Y).coef_


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lower", "upper", "truth", "targets", "u"),
    [
        (logistic_error, logistic_error, sparse_logistic, (LABELS, LABELS_VAL), np.array([np.log(0.03)])),
        (squared_and_l2, error, elastic_net, (Y, Y_VAL), np.log([0.1, 0.2])),
    ],
    ids=["sparse logistic regression", "elastic net"],
)
def test_other_sparse_models(lower, upper, truth, targets, u):
    """The direction is the derivative of the true problem by differences, and its descent gains what a search gains."""
    y, y_val = targets
    batch = Batch((jnp.asarray(X_VAL), jnp.asarray(y_val)), (jnp.asarray(X), jnp.asarray(y)))
    problem = Problem(upper, lower, regularizer=lambda u, v, mu: jnp.exp(u[0]) * L1()(v, mu))

    def prox(u, v, step):
        return L1().proximal(v, step * jnp.exp(u[0]))

    def loss(u):
        return float(upper(None, truth(u), batch.upper))

    def descended(solver, steps):
        return solve(solver, problem, jnp.asarray(u), jnp.asarray(truth(u)), batch, steps=steps, key=KEY)

    found = u - np.asarray(descended(SparseHO(optax.sgd(1.0), prox, RATE, 200), 1).u)
    wanted = np.array([(loss(u + h) - loss(u - h)) / 2e-5 for h in 1e-5 * np.eye(len(u))])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert 0.1 < (truth(u) != 0).mean() < 0.9
    end = descended(SparseHO(optax.adam(optax.cosine_decay_schedule(3e-2, 400)), prox, RATE, 30), 400)
    # Nelder and Mead's search jumps over corners, at which a descent may stay: a tenth of what can be gained is let go.
    best = minimize(loss, u, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-10}).fun
    assert loss(np.asarray(end.u)) <= best + 0.1 * (loss(u) - best)

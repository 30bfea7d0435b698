"""Derivatives of lower levels that live in a set, or have a proximal term, against solvers that are not ours.

The table: for each kind of set, an independent solver of the lower level (scipy, scikit-learn, an active-set method),
and central differences of the upper loss at its solutions. Every case has entries on and off the boundary.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from sklearn.linear_model import ElasticNet, Lasso
from sklearn.svm import SVC, LinearSVC, LinearSVR

import bilevax
from bilevax import (
    Batch,
    ForwardMode,
    Implicit,
    InputError,
    LookAhead,
    Problem,
    ReverseMode,
    SparseHO,
    derivatives,
    diagnostics,
    fixed_points,
    solve,
)
from bilevax.argmin import Argmin, hypergradient
from bilevax.linear_solve import CG
from bilevax.penalties import L1, ByRow, GroupLasso
from bilevax.projections import box_section

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
N = 6
ROOT = RNG.normal(size=(12, N))
H, LINEAR = ROOT.T @ ROOT / 12 + 0.1 * np.eye(N), RNG.normal(size=(N, 3))
X, Y = RNG.normal(size=(40, N)), RNG.normal(size=40)
SIGNS = np.sign(X @ RNG.normal(size=N) + RNG.normal(size=40))
HALVES = (slice(0, 20), slice(20, 40))
PROJECTIONS = optax.projections


@dataclass(frozen=True, eq=False)
class Case:
    """g, the set or the proximal map, u, and an independent u -> v*(u); `on`: whether v is at bounds or zeros."""

    lower: Any
    u: Any
    peer: Any
    project: Any = None
    proximal: Any = None
    rate: float = 0.1
    on: Any = lambda v, u: np.sum(v == 0)


def quadratic(u, v, _):
    return v @ jnp.asarray(H) @ v / 2 - (jnp.asarray(LINEAR) @ u) @ v


def of_active_set(u, matrix, low, high):
    """The minimiser of v'Hv/2 - b'v with low <= v <= high and matrix v = right, from the active set of SLSQP."""
    u = np.asarray(u)
    b = LINEAR @ u
    rows, right = matrix
    found = scipy.optimize.minimize(
        lambda v: v @ H @ v / 2 - b @ v,
        np.full(N, right[0] / N),
        jac=lambda v: H @ v - b,
        method="SLSQP",
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "eq", "fun": lambda v: rows @ v - right, "jac": lambda v: rows},
        options={"ftol": 1e-13, "maxiter": 500},
    ).x
    v = np.where(found < low + 1e-5, low, np.where(found > high - 1e-5, high, np.nan))
    free = np.isnan(v)
    fixed = np.where(free, 0, v)
    k = len(rows)
    kkt = np.block([[H[np.ix_(free, free)], rows[:, free].T], [rows[:, free], np.zeros((k, k))]])
    end = np.linalg.solve(kkt, np.concatenate([(b - H @ fixed)[free], right - rows @ fixed]))
    fixed[free] = end[: free.sum()]
    return fixed


def least_squares_root(u):
    """The Cholesky factor of H and the target, so that |root v - target|^2 / 2 is the quadratic."""
    root = np.linalg.cholesky(H).T
    return root, np.linalg.solve(root.T, LINEAR @ np.asarray(u))


def nnls(u):
    return scipy.optimize.nnls(*least_squares_root(u))[0]


def in_box(u):
    root, target = least_squares_root(u)
    return scipy.optimize.lsq_linear(root, target, (-np.exp(u[1]), np.exp(u[0])), method="bvls", tol=1e-15).x


def in_ball(u):
    """The trust-region problem: v = (H + m)^-1 b with |v| = r, m by bisection."""
    b, radius = LINEAR @ np.asarray(u), np.exp(u[0])

    def at(m):
        return np.linalg.solve(H + m * np.eye(N), b)

    if np.linalg.norm(at(0)) <= radius:
        return at(0)
    return at(scipy.optimize.brentq(lambda m: np.linalg.norm(at(m)) - radius, 0, 1e4, xtol=1e-15, rtol=1e-15))


def in_l1_ball(u):
    """As the non-negative parts of v, whose sum is the radius; from the active set of SLSQP."""
    b, radius = LINEAR @ np.asarray(u), np.exp(u[1])
    both = np.concatenate([np.eye(N), -np.eye(N)])
    h, linear = both @ H @ both.T, both @ b
    found = scipy.optimize.minimize(
        lambda w: w @ h @ w / 2 - linear @ w,
        np.full(2 * N, radius / 2 / N),
        jac=lambda w: h @ w - linear,
        method="SLSQP",
        bounds=[(0, None)] * 2 * N,
        constraints={"type": "ineq", "fun": lambda w: radius - w.sum(), "jac": lambda w: -np.ones(2 * N)},
        options={"ftol": 1e-13, "maxiter": 500},
    ).x
    v = both.T @ found
    free = np.abs(v) > 1e-5
    if np.abs(v).sum() < radius - 1e-6:
        return np.linalg.solve(H, b)
    s = np.sign(v[free])
    kkt = np.block([[H[np.ix_(free, free)], s[:, None]], [s[None], np.zeros((1, 1))]])
    v = np.zeros(N)
    v[free] = np.linalg.solve(kkt, [*b[free], radius])[:-1]
    return v


def elastic_loss(u, v, _):
    return jnp.mean((X @ v - Y) ** 2) / 2


def lasso(u):
    return Lasso(np.exp(u[0]), fit_intercept=False, tol=1e-14, max_iter=10**6).fit(X, Y).coef_


def elastic(u):
    strength = np.exp(u[0]) + np.exp(u[1])
    model = ElasticNet(strength, l1_ratio=np.exp(u[0]) / strength, fit_intercept=False, tol=1e-14, max_iter=10**6)
    return model.fit(X, Y).coef_


def soft(u, v, step):
    return L1().proximal(v, step * jnp.exp(u[0]))


def shrunk(u, v, step):
    return L1().proximal(v, step * jnp.exp(u[0])) / (1 + step * jnp.exp(u[1]))


def grouped(u, v, step):
    return GroupLasso(ByRow()).proximal(v.reshape(3, 2), step * jnp.exp(u[0])).ravel()


def group_lasso(u):
    """Newton on the support that block coordinate descent finds."""
    b, strength = LINEAR @ np.asarray(u), np.exp(u[0])
    v = np.zeros((3, 2))
    for _ in range(400):
        for i in range(3):
            rows = slice(2 * i, 2 * i + 2)
            block = H[rows, rows]
            c = b[rows] - H[rows] @ v.ravel() + block @ v[i]
            if np.linalg.norm(c) <= strength:
                v[i] = 0
                continue

            def norm(t, block=block, c=c):
                return np.linalg.norm(np.linalg.solve(block + strength / t * np.eye(2), c)) - t

            t = scipy.optimize.brentq(norm, 1e-12, 1e4, xtol=1e-15, rtol=1e-15)
            v[i] = np.linalg.solve(block + strength / t * np.eye(2), c)
    return v.ravel()


def dual_loss(u, a, _):
    """Of a support vector machine without an intercept."""
    margin = SIGNS[:, None] * X
    return jnp.sum((a @ margin) ** 2) / 2 - jnp.sum(a)


def fitted(model, y):
    """Liblinear to rounding, which it does not recognise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


def svm(u):
    model = LinearSVC(loss="hinge", C=np.exp(u[0]), fit_intercept=False, tol=1e-13, max_iter=10**6, random_state=0)
    w = fitted(model, SIGNS).coef_[0]
    return from_weights(w, SIGNS[:, None] * X, SIGNS * 0 + 1, np.exp(u[0]))


def from_weights(w, margin, one, bound):
    """The dual of a hinge loss: at the bound where the margin is violated, zero beyond it, and else by w = a margin."""
    value = margin @ w
    a = np.where(value < one - 1e-6, bound, 0.0)
    edge = np.abs(value - one) <= 1e-6
    a[edge] = np.linalg.lstsq(margin[edge].T, w - a @ margin, rcond=None)[0]
    return a


def kernel_dual(u, a, _):
    """Of a support vector machine with an intercept and a Gaussian kernel of width exp(u[1])."""
    distances = jnp.sum((X[:, None] - X[None]) ** 2, -1)
    kernel = SIGNS[:, None] * SIGNS * jnp.exp(-jnp.exp(u[1]) * distances)
    return a @ kernel @ a / 2 - jnp.sum(a)


def kernel_svm(u):
    model = SVC(C=np.exp(u[0]), gamma=np.exp(u[1]), tol=1e-13).fit(X, SIGNS)
    a = np.zeros(40)
    a[model.support_] = np.abs(model.dual_coef_[0])
    free = (a > 1e-6) & (a < np.exp(u[0]) - 1e-6)  # libsvm stops early: the free entries by their equations
    kernel = SIGNS[:, None] * SIGNS * np.exp(-np.exp(u[1]) * np.sum((X[:, None] - X[None]) ** 2, -1))
    a = np.where(free, 0, np.where(a > 1e-6, np.exp(u[0]), 0))
    kkt = np.block([[kernel[np.ix_(free, free)], SIGNS[free][:, None]], [SIGNS[free][None], np.zeros((1, 1))]])
    a[free] = np.linalg.solve(kkt, [*(1 - kernel @ a)[free], -SIGNS @ a])[:-1]
    return a


def regression_dual(u, a, _):
    """Of support vector regression without an intercept, epsilon |a|_1 apart."""
    return jnp.sum((a @ X) ** 2) / 2 - a @ Y


def boxed_soft(u, a, step):
    return jnp.clip(L1().proximal(a, step * jnp.exp(u[1])), -jnp.exp(u[0]), jnp.exp(u[0]))


def svr(u):
    bound, width = np.exp(u[0]), np.exp(u[1])
    model = LinearSVR(epsilon=width, C=bound, fit_intercept=False, tol=1e-13, max_iter=10**6, random_state=0)
    w = fitted(model, Y).coef_
    residual = Y - X @ w
    a = np.where(np.abs(residual) > width + 1e-6, np.sign(residual) * bound, 0.0)
    edge = np.abs(np.abs(residual) - width) <= 1e-6
    a[edge] = np.linalg.lstsq(X[edge].T, w - a @ X, rcond=None)[0]
    return a


# Multiclass (Crammer and Singer): rows of a dual on simplices; the loss in the primal-dual form of JAXopt's example.
CLASSES = np.eye(3)[RNG.integers(0, 3, 12)]


def multiclass_dual(u, v, _):
    v = v.reshape(12, 3)
    w = X[:12].T @ (CLASSES - v) / jnp.exp(u[0])
    return jnp.exp(u[0]) * jnp.sum(w**2) / 2 + jnp.sum(v * CLASSES)


def on_simplices(v):
    return jax.vmap(PROJECTIONS.projection_simplex)(v.reshape(12, 3)).ravel()


def multiclass(u):
    """From the active set of SLSQP."""
    strength, gram = np.exp(u[0]), X[:12] @ X[:12].T

    def slope(v):
        return (-gram @ (CLASSES - v.reshape(12, 3)) / strength + CLASSES).ravel()

    def value(v):
        d = CLASSES - v.reshape(12, 3)
        return np.sum(d * (gram @ d)) / 2 / strength + np.sum(v.reshape(12, 3) * CLASSES)

    rows = np.kron(np.eye(12), np.ones(3))
    found = scipy.optimize.minimize(
        value,
        np.full(36, 1 / 3),
        jac=slope,
        method="SLSQP",
        bounds=[(0, None)] * 36,
        constraints={"type": "eq", "fun": lambda v: rows @ v - 1, "jac": lambda v: rows},
        options={"ftol": 1e-14, "maxiter": 1000},
    ).x
    free = found > 1e-5
    hessian = np.kron(gram / strength, np.eye(3))[np.ix_(free, free)]
    linear = (gram @ CLASSES / strength - CLASSES).ravel()[free]
    some = rows[:, free]
    kkt = np.block([[hessian, some.T], [some, np.zeros((12, 12))]])
    v = np.zeros(36)
    v[free] = np.linalg.lstsq(kkt, np.concatenate([linear, np.ones(12)]), rcond=None)[0][: free.sum()]
    return v


AT = np.array([0.7, -0.4, 1.1])
ONES = np.ones((1, N))
TABLE = {
    "non-negative": Case(quadratic, AT, nnls, PROJECTIONS.projection_non_negative),
    "box whose bounds are u": Case(
        quadratic,
        np.array([-1.0, -0.5, 1.1]),
        in_box,
        lambda u, v: PROJECTIONS.projection_box(v, -jnp.exp(u[1]), jnp.exp(u[0])),
        on=lambda v, u: np.sum(np.abs(v - np.exp(u[0])) < 1e-9) * np.sum(np.abs(v + np.exp(u[1])) < 1e-9),
    ),
    "simplex": Case(
        quadratic,
        AT,
        lambda u: of_active_set(u, (ONES, [1.0]), np.zeros(N), np.full(N, 2.0)),
        PROJECTIONS.projection_simplex,
    ),
    "simplex whose sum is u": Case(
        quadratic,
        AT,
        lambda u: of_active_set(u, (ONES, [np.exp(u[0])]), np.zeros(N), np.full(N, 9.0)),
        lambda u, v: PROJECTIONS.projection_simplex(v, jnp.exp(u[0])),
    ),
    "l2 ball whose radius is u": Case(
        quadratic,
        np.array([-1.0, -0.4, 1.1]),
        in_ball,
        lambda u, v: PROJECTIONS.projection_l2_ball(v, jnp.exp(u[0])),
        on=lambda v, u: np.abs(np.linalg.norm(v) - np.exp(u[0])) < 1e-9,
    ),
    "l2 ball, inside": Case(
        quadratic,
        np.array([3.0, -0.4, 1.1]),
        in_ball,
        lambda u, v: PROJECTIONS.projection_l2_ball(v, jnp.exp(u[0])),
        on=lambda v, u: np.linalg.norm(v) < np.exp(u[0]),
    ),
    "l1 ball whose radius is u": Case(
        quadratic, AT, in_l1_ball, lambda u, v: PROJECTIONS.projection_l1_ball(v, jnp.exp(u[1]))
    ),
    "lasso": Case(elastic_loss, np.array([-2.0]), lasso, proximal=soft),
    "elastic net": Case(elastic_loss, np.array([-2.0, -1.5]), elastic, proximal=shrunk),
    "group lasso": Case(quadratic, np.array([0.2, 0.3, 0.2]), group_lasso, proximal=grouped),
    "SVM dual": Case(
        dual_loss,
        np.array([-2.0]),
        svm,
        lambda u, a: jnp.clip(a, 0, jnp.exp(u[0])),
        rate=0.008,
        on=lambda a, u: np.sum(a == 0) * np.sum(np.abs(a - np.exp(u[0])) < 1e-9),
    ),
    "SVM dual, kernel and intercept": Case(
        kernel_dual,
        np.array([0.3, -1.5]),
        kernel_svm,
        lambda u, a: box_section(a, jnp.asarray(SIGNS), 0.0, 0.0, jnp.exp(u[0])),
        rate=0.1,
        on=lambda a, u: np.sum(a == 0) * np.sum(np.abs(a - np.exp(u[0])) < 1e-9),
    ),
    "SVR dual": Case(
        regression_dual,
        np.array([-2.0, -1.0]),
        svr,
        proximal=boxed_soft,
        rate=0.008,
        on=lambda a, u: np.sum(a == 0) * np.sum(np.abs(np.abs(a) - np.exp(u[0])) < 1e-9),
    ),
    "multiclass SVM dual": Case(multiclass_dual, np.array([1.0]), multiclass, on_simplices),
}
# The quick ones stand for a projection that depends on u, and for a proximal map.
QUICK = {"box whose bounds are u"}


def upper(u, v, _):
    """For a dual, of the weights, which are unique where the dual variables are not."""
    w = v if v.shape == (N,) else jnp.tanh(v[:10]) if v.shape == (36,) else v @ jnp.asarray(X)
    return jnp.sum(jnp.arange(1, len(w) + 1) * (w - 0.3) ** 2) + jnp.sum(u**2)


def differences(case, h=1e-4):
    """Central differences of the upper loss at the solutions of the independent solver, of fourth order."""

    def at(u):
        return float(upper(jnp.asarray(u), jnp.asarray(case.peer(u)), None))

    steps = h * np.eye(len(case.u))
    return np.array(
        [(8 * (at(case.u + d) - at(case.u - d)) - (at(case.u + 2 * d) - at(case.u - 2 * d))) / 12 / h for d in steps]
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TABLE])
def test_derivatives_on_a_set_are_those_of_an_independent_solver(name):
    case = TABLE[name]
    u, v = jnp.asarray(case.u), jnp.asarray(case.peer(case.u))
    assert case.on(np.asarray(v), case.u), "no entry at a bound"
    wanted = differences(case)
    scale = np.abs(wanted).max()
    problem = (
        Problem(upper, case.lower) if case.project is None else Problem(upper, case.lower, project_lower=case.project)
    )
    found = hypergradient(problem, u, v, linear_solve=CG(500, 1e-13), proximal=case.proximal)
    np.testing.assert_allclose(found.gradient, wanted, atol=1e-6 * scale, rtol=0)
    sets = {} if case.project is None else {"project": case.project}
    layer = Argmin(case.lower, optax.sgd(case.rate), 100, CG(500, 1e-13), proximal=case.proximal, **sets)
    slope = jax.jit(jax.grad(lambda u: upper(u, layer(u, v), None)))(u)
    np.testing.assert_allclose(slope, wanted, atol=1e-6 * scale, rtol=0)
    proximal = case.proximal or (lambda u, v, step: problem.lower_set(u)(v))
    solvers = [SparseHO(optax.sgd(1.0), proximal, case.rate, 5, CG(500, 1e-13))]
    if case.proximal is None:
        solvers.append(Implicit(optax.sgd(1.0), optax.sgd(case.rate), 5, CG(500, 1e-13)))
        report = diagnostics.report(problem, u, v)
        np.testing.assert_allclose(report.hypergradient, wanted, atol=1e-6 * scale, rtol=0)
        assert not report.degenerate
    for solver in solvers:
        result = solve(solver, problem, u, v, steps=1, key=KEY)
        np.testing.assert_allclose(u - result.u, wanted, atol=1e-6 * scale, rtol=0)


# --- sets that move with u in other solvers, points without a derivative, refusals ------------------------------------

# v*(u) = min(u, exp(-u)), which is exp(-u) where u > 0.567.
MOVING = Problem(
    lambda u, v, _: jnp.sum((v - 1) ** 2 + u**2),
    lambda u, v, _: jnp.sum((v - u) ** 2) / 2,
    project_lower=lambda u, v: jnp.minimum(v, jnp.exp(-u)),
)
BOTH = np.array([0.2, 1.0])
END = np.minimum(BOTH, np.exp(-BOTH))
WANTED = 2 * BOTH + 2 * (END - 1) * np.where(BOTH < 0.5, 1, -np.exp(-BOTH))


@pytest.mark.parametrize(
    "solver",
    [
        Implicit(optax.sgd(1.0), optax.sgd(0.5)),
        ReverseMode(optax.sgd(1.0), optax.sgd(1.0), 3),
        ForwardMode(optax.sgd(1.0), optax.sgd(1.0), 3),
        LookAhead(optax.sgd(1.0), optax.sgd(1.0), 1.0),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_every_solver_that_takes_a_set_that_moves_differentiates_its_bound(solver):
    result = solve(solver, MOVING, jnp.asarray(BOTH), jnp.asarray(END), steps=1, key=KEY)
    np.testing.assert_allclose(BOTH - result.u, WANTED, rtol=1e-9)


@pytest.mark.parametrize("name", ["F2SA", "VPBGD", "BOME", "MEHA", "BVFIM", "Penalty", "SOBA"])
def test_other_solvers_refuse_a_set_that_moves(name):
    with pytest.raises(InputError, match=rf"{name} .*project_lower.*Implicit or ReverseMode"):
        getattr(bilevax, name)().check(MOVING, jnp.asarray(BOTH), jnp.asarray(END), Batch())


def kink(project, proximal, u, v):
    sets = {} if project is None else {"project_lower": project}
    problem = Problem(MOVING.upper_loss, MOVING.lower_loss, **sets)
    g = derivatives.lower(problem, u, v, None, None)
    return bool(fixed_points.degenerate(problem, u, v, g, proximal))


@pytest.mark.slow
def test_a_multiplier_of_zero_is_reported_and_warned_of():
    """v*(u) = max(u, 0): its derivative at u = 0 is 0 or 1. Also the edge of a ball, and of a soft threshold."""

    def threshold(u, v, step):
        return L1().proximal(v, step)

    def ball(v):
        return PROJECTIONS.projection_l2_ball(v, 1.0)

    for project, proximal, u, v in (
        (PROJECTIONS.projection_non_negative, None, [0.0, 1.0], [0.0, 1.0]),
        (ball, None, [0.6, 0.8], [0.6, 0.8]),
        (None, threshold, [1.0, 3.0], [0.0, 2.0]),
    ):
        assert kink(project, proximal, jnp.array(u), jnp.array(v))
    assert not kink(ball, None, jnp.array([0.9, 1.2]), jnp.array([0.6, 0.8]))
    assert not kink(None, threshold, jnp.array([0.9, 3.0]), jnp.array([0.0, 2.0]))
    # The curvature of a ball in 1,000 dimensions is not taken for a jump; one multiplier of zero among 1,000 is found.
    u = jnp.asarray(RNG.normal(size=1000), jnp.float32)
    assert not kink(PROJECTIONS.projection_l2_ball, None, u, u / jnp.linalg.norm(u))
    u = jnp.sign(u) * (1 + jnp.abs(u))
    assert not kink(PROJECTIONS.projection_non_negative, None, u, jnp.maximum(u, 0))
    u = u.at[7].set(0.0)
    assert kink(PROJECTIONS.projection_non_negative, None, u, jnp.maximum(u, 0))

    problem = Problem(MOVING.upper_loss, MOVING.lower_loss, project_lower=PROJECTIONS.projection_non_negative)
    u = v = jnp.array([0.0, 1.0])
    with pytest.warns(UserWarning, match=r"hypergradient: .* has a multiplier of zero"):
        hypergradient(problem, u, v)
    assert "multiplier of zero" in str(diagnostics.report(problem, u, v))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hypergradient(MOVING, jnp.asarray(BOTH), jnp.asarray(END))
    layer = Argmin(MOVING.lower_loss, optax.sgd(1.0), 5, project=PROJECTIONS.projection_non_negative)
    with pytest.warns(UserWarning, match=r"Argmin: .* has a multiplier of zero"):
        jax.grad(lambda u: jnp.sum(layer(u, jnp.ones(2))))(u)


@pytest.mark.slow
@pytest.mark.usefixtures("annotations_unchecked")
def test_refusals():
    u, v = jnp.ones(2), jnp.ones(2)

    def with_set(project):
        return Problem(MOVING.upper_loss, MOVING.lower_loss, project_lower=project)

    with pytest.raises(InputError, match=r"project_lower takes \(tree, lower, upper\), and is called as \(v\), or"):
        with_set(PROJECTIONS.projection_box)
    with pytest.raises(InputError, match=r"project takes \(v, u\)"):
        Argmin(MOVING.lower_loss, project=lambda v, u: v)
    with pytest.raises(InputError, match="moves a point that is already projected"):
        hypergradient(with_set(lambda u, v: 0.5 * v + u), u, v)
    with pytest.raises(InputError, match="or returns one that is not finite"):  # an empty set: sum 5 of entries up to 1
        hypergradient(with_set(lambda u, v: box_section(v, u, 5.0, 0.0, 1.0)), u, v)
    with pytest.raises(InputError, match="moves a point that is already projected"):  # a ball of radius -1
        hypergradient(with_set(lambda u, v: PROJECTIONS.projection_l2_ball(v, -u[0])), u, v)
    with pytest.raises(InputError, match="both project_lower and proximal are given"):
        hypergradient(MOVING, u, v, proximal=soft)
    with pytest.raises(InputError, match="both project and proximal are given"):
        Argmin(MOVING.lower_loss, optax.sgd(0.1), project=lambda v: v * 1, proximal=soft)(u, v)
    with pytest.raises(InputError, match="proximal has a derivative that is not symmetric"):
        hypergradient(
            Problem(MOVING.upper_loss, MOVING.lower_loss), u, v, proximal=lambda u, v, step: v.at[0].set(v[1])
        )
    for optimizer in (optax.adam(0.1), optax.sgd(0.1, momentum=0.9), optax.sgd(optax.cosine_decay_schedule(0.1, 9))):
        with pytest.raises(InputError, match=r"Argmin: with proximal.*Pass optax.sgd\(rate\)"):
            Argmin(MOVING.lower_loss, optimizer, proximal=soft)


def test_a_box_section_is_the_nearest_point_with_its_sum():
    weights, low = RNG.normal(size=5), -np.abs(RNG.normal(size=5))
    for seed in range(5):
        v = 2 * np.random.default_rng(seed).normal(size=5)
        peer = scipy.optimize.minimize(
            lambda x, v=v: np.sum((x - v) ** 2),
            np.zeros(5),
            jac=lambda x, v=v: 2 * (x - v),
            method="SLSQP",
            bounds=[(b, 0.8) for b in low],
            constraints={"type": "eq", "fun": lambda x: weights @ x - 0.3, "jac": lambda x: weights},
            options={"ftol": 1e-15},
        )
        found = box_section(jnp.asarray(v), jnp.asarray(weights), 0.3, jnp.asarray(low), 0.8)
        np.testing.assert_allclose(found, peer.x, atol=1e-6)
        np.testing.assert_allclose(weights @ found, 0.3, atol=1e-12)
    unused = box_section(jnp.array([3.0, 0.2]), jnp.array([0.0, 1.0]), 0.5, 0.0, 1.0)
    np.testing.assert_allclose(unused, [1.0, 0.5], atol=1e-12)

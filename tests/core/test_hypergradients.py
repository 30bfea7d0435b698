"""Every route to the hypergradient against a quadratic pair whose hypergradient is known in closed form.

f = u'Ru/2 + v'Sv/2 + u'Mv + r'u + s'v,  g = v'Hv/2 + v'(Bu + c), cond(H) = 100, so that
v*(u) = -H^-1 (Bu + c) and the derivative of f(u, v*(u)) is grad_u f - B'H^-1 grad_v f.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import derivatives, diagnostics, linear_solve
from bilevax.solvers import unrolled

N_U, N_V, CONDITION = 20, 30, 100.0
STEP = 2 / (1 + CONDITION)  # the best step of plain descent: it contracts by 99/101 a move
MOVES = 3000
KEEP = optax.sgd(0.0)
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The matrices, a point u, and what is known there."""

    R: np.ndarray
    S: np.ndarray
    M: np.ndarray
    r: np.ndarray
    s: np.ndarray
    H: np.ndarray
    B: np.ndarray
    c: np.ndarray
    u: np.ndarray

    @property
    def v(self):
        return -np.linalg.solve(self.H, self.B @ self.u + self.c)

    def hypergradient(self, v):
        """Eq. (9) at (u, v)."""
        grad_u = self.R @ self.u + self.M @ v + self.r
        return grad_u - self.B.T @ np.linalg.solve(self.H, self.upper_grad_v(v))

    def upper_grad_v(self, v):
        return self.S @ v + self.M.T @ self.u + self.s

    def penalty_minimiser(self, gamma):
        """v of least f + gamma/2 |grad_v g|^2: (S + gamma H^2) v = -(M'u + s + gamma H (Bu + c))."""
        right = self.M.T @ self.u + self.s + gamma * self.H @ (self.B @ self.u + self.c)
        return -np.linalg.solve(self.S + gamma * self.H @ self.H, right)


@functools.cache
def pair():
    rng = np.random.default_rng(0)

    def positive(n, low, high):
        q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        return (q * np.geomspace(low, high, n)) @ q.T

    return Pair(
        R=positive(N_U, 0.5, 2),
        S=positive(N_V, 0.5, 2),
        M=rng.normal(size=(N_U, N_V)) / 5,
        r=rng.normal(size=N_U),
        s=rng.normal(size=N_V),
        H=positive(N_V, 1, CONDITION),
        B=rng.normal(size=(N_V, N_U)),
        c=rng.normal(size=N_V),
        u=rng.normal(size=N_U),
    )


def upper_loss(u, v, data):
    R, S, M, r, s = data
    return u @ R @ u / 2 + v @ S @ v / 2 + u @ M @ v + r @ u + s @ v


def lower_loss(u, v, data):
    H, B, c = data
    return v @ H @ v / 2 + v @ (B @ u + c)


PROBLEM = bx.Problem(upper_loss, lower_loss)


@functools.cache
def batch():
    p = pair()
    return bx.Batch((p.R, p.S, p.M, p.r, p.s), (p.H, p.B, p.c))


def relative(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@functools.cache
def direction(solver, at_answer=False):
    v = pair().v if at_answer else np.zeros(N_V)
    return np.asarray(diagnostics.report(PROBLEM, pair().u, v, batch(), solver).direction)


REVERSE = bx.ReverseMode(lower_optimizer=optax.sgd(STEP), lower_steps=MOVES)


@pytest.mark.parametrize(("dense_limit", "bound"), [(1000, 1e-10), (0, 1e-8)], ids=["dense", "iterative"])
def test_diagnostics_give_the_closed_form(dense_limit, bound):
    for v in (pair().v, np.ones(N_V)):
        found = diagnostics.report(PROBLEM, pair().u, v, batch(), dense_limit=dense_limit)
        error = relative(found.hypergradient, pair().hypergradient(v))
        print(f"dense_limit {dense_limit}: relative error {error:.1e}, residual {found.linear_residual:.1e}")
        assert error < bound, f"relative error {error:.1e}"
        assert found.linear_residual < bound * np.linalg.norm(pair().upper_grad_v(v))


def test_reverse_and_forward_mode_give_the_closed_form_and_each_other():
    wanted = pair().hypergradient(pair().v)
    reverse = direction(REVERSE)
    forward = direction(bx.ForwardMode(lower_optimizer=REVERSE.lower_optimizer, lower_steps=MOVES))
    errors = relative(reverse, wanted), relative(forward, wanted), relative(reverse, forward)
    print("reverse {:.1e}, forward {:.1e}, between them {:.1e}".format(*errors))
    assert errors[0] < 1e-6
    assert errors[1] < 1e-6
    assert errors[2] < 1e-10


def test_segments_change_memory_and_not_the_direction():
    full = direction(REVERSE)
    for segment in (55, 1000):  # one does not divide 3000
        error = relative(direction(dataclasses.replace(REVERSE, segment=segment)), full)
        assert error < 1e-12, f"segment {segment}: {error:.1e}"


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.05), pytest.param(optax.adam(1e-2), marks=pytest.mark.slow)], ids=["descent", "adam"]
)
def test_mixed_mode_stores_v_alone_and_gives_the_same_direction(optimizer, monkeypatch):
    """Eight moves of a network on 200 samples: the products of a move are 34 times as large as v."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(200, 4))), jnp.asarray(rng.normal(size=200))

    def residuals(v):
        return (jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["c"] - y) ** 2

    problem = bx.Problem(
        lambda u, v, _: jnp.mean(residuals(v)) + jnp.sum(u**2),
        lambda u, v, _: jnp.mean(jax.nn.sigmoid(u) * residuals(v)),
    )
    v = {"a": rng.normal(size=(4, 8)), "b": rng.normal(size=(8, 8)), "c": rng.normal(size=8)}
    u, v = jnp.asarray(rng.normal(size=200)), jax.tree.map(jnp.asarray, v)
    solver = bx.ReverseMode(optax.sgd(1.0), optimizer, 8)
    found = []
    for large in (0, np.inf):
        monkeypatch.setattr(unrolled, "LARGE", large)
        state = solver.init(problem, u, v, bx.Batch())
        step = jax.jit(lambda state: solver.step(problem, state, bx.Batch(), jax.random.key(0))[0].u)
        compiled = step.lower(state).compile()
        found.append((u - compiled(state), compiled.memory_analysis().temp_size_in_bytes))
    (mixed, small), (plain, large) = found
    np.testing.assert_allclose(mixed, plain, rtol=1e-9, atol=1e-12)
    assert small < large / 3


def test_truncation_to_all_moves_is_none_and_to_some_has_the_known_error():
    full = direction(REVERSE, at_answer=True)
    np.testing.assert_array_equal(direction(dataclasses.replace(REVERSE, last=MOVES), at_answer=True), full)
    # From v*, truncation to K moves is the Neumann series of K terms (Shaban et al. 2019).
    p, errors = pair(), []
    for last in (1, 300):
        found = direction(dataclasses.replace(REVERSE, last=last), at_answer=True)
        power = np.linalg.matrix_power(np.eye(N_V) - STEP * p.H, last)
        series = (np.eye(N_V) - power) @ np.linalg.solve(p.H, p.upper_grad_v(p.v))
        wanted = p.R @ p.u + p.M @ p.v + p.r - p.B.T @ series
        assert relative(found, wanted) < 1e-9, f"last {last}"
        errors.append(relative(found, full))
    print("truncated to 1 and 300 of 3000:", errors)
    assert errors[0] > errors[1] > 1e-9


@pytest.mark.parametrize(
    ("solve", "bound"),
    [
        (linear_solve.CG(100, 1e-12), 1e-9),
        (linear_solve.GMRES(10, 1e-12, restart=30), 1e-9),
        (linear_solve.Neumann(MOVES, STEP), 1e-9),
        (linear_solve.ByOptimizer(optax.sgd(STEP), MOVES, form=linear_solve.quadratic), 1e-9),
    ],
    ids=["cg", "gmres", "neumann", "by_optimizer"],
)
def test_implicit_at_the_answer_gives_the_closed_form(solve, bound):
    found = direction(bx.Implicit(lower_optimizer=KEEP, lower_steps=1, linear_solve=solve), at_answer=True)
    error = relative(found, pair().hypergradient(pair().v))
    assert error < bound, f"{solve}: relative error {error:.1e}"


def penalty_direction(gamma, v, state=None):
    solver = bx.Penalty(lower_optimizer=KEEP, lower_steps=1, gamma=float(gamma))
    return diagnostics.report(PROBLEM, pair().u, v, batch(), solver, state)


@functools.cache
def at_penalty_minimiser(gamma):
    return penalty_direction(gamma, pair().penalty_minimiser(gamma))


def test_penalty_error_falls_as_one_over_gamma():
    gammas = np.array([1e1, 1e2, 1e4])
    wanted = pair().hypergradient(pair().v)
    errors = [relative(at_penalty_minimiser(float(g)).direction, wanted) for g in gammas]
    slope = np.polyfit(np.log(gammas), np.log(errors), 1)[0]
    steepness = np.diff(np.log(errors)) / np.diff(np.log(gammas))
    print(f"errors {errors}, slope {slope:.3f}, by decade {steepness}")
    assert abs(slope + 1) < 0.1, f"slope {slope:.3f}, errors {errors}"
    assert np.all(np.abs(steepness + 1) < 0.1), steepness


def test_penalty_direction_at_its_minimiser_is_equation_9_there():
    """Lemma 3 of Mehra and Hamm (2021), for any gamma."""
    for gamma in (0.1, 10.0, 1e4):
        v = pair().penalty_minimiser(gamma)
        found = at_penalty_minimiser(gamma)
        # gamma H^2 multiplies the rounding of v.
        assert relative(found.direction, pair().hypergradient(v)) < 1e-8
        assert found.direction_error is not None
        assert found.direction_error < 1e-8
        assert found.direction_cosine == pytest.approx(1, abs=1e-12)


def test_penalty_direction_with_multipliers_is_exact_at_a_finite_gamma():
    """The method of multipliers on v, u held fixed and gamma 10 throughout."""
    gamma = 10.0
    curved = pair().S + gamma * pair().H @ pair().H

    def newton(updates, state, params=None):  # v's problem is quadratic: one move gets to its minimum
        return -jnp.linalg.solve(jnp.asarray(curved), updates), state

    solver = bx.Penalty(
        upper_optimizer=KEEP,
        lower_optimizer=optax.GradientTransformation(lambda v: optax.EmptyState(), newton),
        lower_steps=2,
        gamma=gamma,
        step_scale=1.0,
        nu=1.0,
        eps=1e12,  # every step ends a stage
    )
    result = bx.solve(solver, PROBLEM, pair().u, np.zeros(N_V), batch(), steps=60, key=KEY)
    np.testing.assert_array_equal(result.u, pair().u)
    assert int(result.state.memory.stage) == 60
    found = diagnostics.report(PROBLEM, result.u, result.v, batch(), solver, result.state)
    error = relative(found.direction, pair().hypergradient(pair().v))
    plain = relative(at_penalty_minimiser(gamma).direction, pair().hypergradient(pair().v))
    print(f"gamma 10: without multipliers {plain:.1e}, with them {error:.1e}")
    assert error < 1e-6, f"relative error {error:.1e}"
    assert plain > 1e-4
    assert relative(result.v, pair().v) < 1e-6
    # The multipliers are those of the Lagrangian: nu = -(grad2_vv g)^-1 grad_v f.
    wanted = -np.linalg.solve(pair().H, pair().upper_grad_v(pair().v))
    assert relative(result.state.memory.nu, wanted) < 1e-6


# A pair that is not quadratic, on pytrees.


def network_loss(u, v, data):
    x, y = data
    hidden = jnp.tanh(x @ v["in"] + v["bias"])
    weights = jax.nn.sigmoid(u["weights"])
    decay = jnp.exp(u["decay"]) * (jnp.sum(v["in"] ** 2) + jnp.sum(v["out"] ** 4))
    return jnp.mean(weights * (hidden @ v["out"] - y) ** 2) + decay


NETWORK = bx.Problem(lambda u, v, data: network_loss(u, v, data) ** 2, network_loss)


def network():
    rng = np.random.default_rng(3)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    u = {"weights": normal(8), "decay": jnp.array(-1.0)}
    v = {"in": normal(3, 2), "bias": normal(2), "out": normal(2)}
    p = {"in": normal(3, 2), "bias": normal(2), "out": normal(2)}
    return u, v, p, (normal(8, 3), normal(8))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@functools.partial(jax.jit, static_argnames="curvature")
def second_products(u, v, p, data, curvature=derivatives.exact):
    return derivatives.lower(NETWORK, u, v, data, KEY, curvature=curvature).second_products(p)


def test_along_is_the_difference_of_gradients():
    u, v, p, data = network()
    found = second_products(u, v, p, data)
    gradient = jax.jit(jax.grad(network_loss, (0, 1)))

    def moved(t):
        return gradient(u, jax.tree.map(lambda x, d: x + t * d, v, p), data)

    t = 1e-5
    for part, up, down in zip(found, moved(t), moved(-t), strict=True):
        np.testing.assert_allclose(flat(part), (flat(up) - flat(down)) / (2 * t), rtol=1e-6, atol=1e-8)


def test_along_is_the_explicit_second_derivative():
    u, v, p, data = network()
    _, unravel = jax.flatten_util.ravel_pytree(v)
    flat_u, unravel_u = jax.flatten_util.ravel_pytree(u)

    def loss(x, y):
        return network_loss(unravel_u(x), unravel(y), data)

    x, y = flat_u, jax.flatten_util.ravel_pytree(v)[0]
    found_u, found_v = second_products(u, v, p, data)
    direction = jax.flatten_util.ravel_pytree(p)[0]
    mixed, hessian = jax.jit(lambda x, y: (jax.jacfwd(jax.grad(loss), 1)(x, y), jax.hessian(loss, 1)(x, y)))(x, y)
    np.testing.assert_allclose(flat(found_u), mixed @ direction, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(flat(found_v), hessian @ direction, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float64, 1e-8), (jnp.float32, 2e-3)])
def test_finite_difference_curvature_agrees_with_exact(dtype, bound):
    u, v, p, data = jax.tree.map(lambda x: x.astype(dtype), network())
    exact, difference = second_products(u, v, p, data), derivatives.finite_difference
    for size in (1e-3, 1.0, 1e3):
        scaled = jax.tree.map(lambda x, size=size: (size * x).astype(dtype), p)
        found = second_products(u, v, scaled, data, difference)
        for part, wanted in zip(found, exact, strict=True):
            error = relative(flat(part), size * flat(wanted))
            assert error < bound, f"|p| scaled by {size}: relative error {error:.1e}"
    zero = second_products(u, v, jax.tree.map(jnp.zeros_like, p), data, difference)
    assert np.all(flat(zero) == 0)


@pytest.mark.slow
def test_hypergradient_of_the_network_is_the_derivative_of_the_reduced_loss():
    """Against differences of f(u, v*(u)), v*(u) by Newton's method: no formula in common."""
    u, v, _, data = network()
    flat_v, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: 0.3 * x, v))
    x, unravel_u = jax.flatten_util.ravel_pytree(u)
    gradient = jax.jit(lambda x, y: jax.grad(lambda y: network_loss(unravel_u(x), unravel(y), data))(y))
    hessian = jax.jit(lambda x, y: jax.hessian(lambda y: network_loss(unravel_u(x), unravel(y), data))(y))

    def answer(x, y):
        for _ in range(200):
            slope = np.asarray(gradient(x, y))
            if np.linalg.norm(slope) < 1e-14:  # to rounding: more moves change nothing
                break
            values, vectors = np.linalg.eigh(hessian(x, y))
            y = y - vectors @ ((vectors.T @ slope) / np.maximum(np.abs(values), 1e-1))
        return y

    y = answer(x, flat_v)
    batch = bx.Batch(data, data)
    found = diagnostics.report(NETWORK, u, unravel(y), batch)
    assert found.lower_grad_norm < 1e-10
    assert found.smallest_curvature > 0
    upper = jax.jit(lambda x, y: NETWORK.upper(unravel_u(x), unravel(y), data, KEY))
    x, t, differences = np.asarray(x), 1e-5, []
    for unit in np.eye(len(x)):
        up, down = (float(upper(x + s * t * unit, answer(x + s * t * unit, y))) for s in (1, -1))
        differences.append((up - down) / (2 * t))
    assert relative(flat(found.hypergradient), np.array(differences)) < 1e-7

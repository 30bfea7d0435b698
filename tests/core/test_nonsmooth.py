"""`diagnostics.nonsmooth_stationarity`: residuals of the problem with its corners, against proximal descent to the end
and differences of the true upper loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import Batch, Equality, InputError, Problem
from bilevax.diagnostics import nonsmooth_stationarity
from bilevax.penalties import L1, Given, GroupLasso, Lp, Oscar

D = 12
RNG = np.random.default_rng(0)
(X, X_VAL), TRUE = RNG.normal(size=(2, 40, D)), np.repeat([1.5, 0.0, -1.0, 0.1], 3)
Y, Y_VAL = X @ TRUE + RNG.normal(size=40), X_VAL @ TRUE + RNG.normal(size=40)
BATCH = Batch((jnp.asarray(X_VAL), jnp.asarray(Y_VAL)), (jnp.asarray(X), jnp.asarray(Y)))
RATE = 1 / np.linalg.norm(X.T @ X / 40, 2)
PENALTIES = {
    "l1": L1(),
    "group": GroupLasso(Given([range(i, i + 3) for i in range(0, D, 3)])),
    "oscar": Oscar(1.0, 0.1),
    "l_0.6": Lp(0.6),
}


def error(u, v, data):
    return 0.5 * jnp.mean((data[0] @ v - data[1]) ** 2)


def problem_of(penalty):
    return Problem(error, error, regularizer=lambda u, v, mu: jnp.exp(u[0]) * penalty(v, mu))


def proximal_of(penalty):
    return lambda u, v, step: penalty.proximal(v, step * float(jnp.exp(u[0])))


def minimiser(penalty, u, v, rate):
    """By proximal descent until nothing moves."""
    proximal = penalty.proximal if isinstance(penalty, Oscar) else jax.jit(penalty.proximal)
    for _ in range(6000):
        moved = np.asarray(proximal(v - rate * X.T @ (X @ v - Y) / 40, rate * np.exp(u)))
        if np.array_equal(moved, v):
            break
        v = moved
    return v


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind != "group" else ()) for kind in PENALTIES
    ],  # its map is on the host
)
def test_the_residuals_are_those_of_the_true_problem(kind):
    penalty = PENALTIES[kind]
    u, rate = -0.7, RATE / (20 if kind == "l_0.6" else 1)
    start = np.linalg.lstsq(X, Y, rcond=None)[0]
    v = minimiser(penalty, u, start, rate)
    arguments = {"proximal": proximal_of(penalty), "rate": rate}
    found = nonsmooth_stationarity(problem_of(penalty), jnp.full(1, u), jnp.asarray(v), BATCH, **arguments)
    assert found.lower < 1e-9
    np.testing.assert_allclose(found.v, v, atol=1e-12)
    sides = [float(error(None, minimiser(penalty, u + h, v, rate), (X_VAL, Y_VAL))) / 2e-4 for h in (1e-4, -1e-4)]
    assert found.upper == pytest.approx(abs(sides[0] - sides[1]), rel=1e-4)
    if kind == "oscar":  # entries of one size
        assert len(np.unique(np.abs(v).round(9))) < D
    else:
        assert (np.abs(v) < 1e-9).any()
    away = nonsmooth_stationarity(problem_of(penalty), jnp.full(1, u), jnp.asarray(v + 0.01), BATCH, **arguments)
    assert away.lower > 1e-2


@pytest.mark.slow
def test_it_treats_trees():
    problem = Problem(
        lambda u, v, _: (v["a"] - 1.0) ** 2 + u**2,
        lambda u, v, _: (v["a"] - 2.0) ** 2 / 2 + jnp.sum((v["b"] - 0.5) ** 2) / 2,
        regularizer=lambda u, v, mu: u * L1()(v, mu),
    )
    v = {"a": jnp.asarray(1.2), "b": jnp.zeros(2)}
    found = nonsmooth_stationarity(
        problem, jnp.asarray(0.8), v, proximal=lambda u, v, step: L1().proximal(v, step * u), rate=0.5
    )
    assert found.lower == pytest.approx(0, abs=1e-12)
    assert found.upper == pytest.approx(abs(2 * 0.8 - 2 * (1.2 - 1)), rel=1e-5)
    np.testing.assert_array_equal(found.v["b"], 0)


PLAIN = problem_of(L1())


@pytest.mark.parametrize(
    ("problem", "change", "words"),
    [
        (Problem(error, error), {}, "no regularizer"),
        (Problem(error, error, (Equality(lambda u, v, _: u),), regularizer=PLAIN.regularizer), {}, "has constraints"),
        (PLAIN, {"rate": 0.0}, "rate is 0.0, and must be positive"),
        (PLAIN, {"limit": 5}, "v has 12 entries"),
        (
            Problem(error, error, regularizer=lambda u, v, mu: jnp.sum(jnp.sqrt(jnp.abs(v)))),
            {"proximal": lambda u, v, step: jnp.zeros(D)},
            "not finite at this",
        ),
    ],
    ids=["regularizer", "constraints", "rate", "size", "not finite"],
)
def test_refusals(problem, change, words):
    arguments = {"proximal": proximal_of(L1()), "rate": RATE} | change
    with pytest.raises(InputError, match=words):
        nonsmooth_stationarity(problem, jnp.zeros(1), jnp.ones(D), BATCH, **arguments)


@pytest.mark.slow
def test_it_works_in_float32():
    lower, upper = (jax.tree.map(lambda x: x.astype(jnp.float32), part) for part in (BATCH.lower, BATCH.upper))
    v = minimiser(L1(), -1.3, np.zeros(D), RATE)
    exact = nonsmooth_stationarity(
        PLAIN, jnp.full(1, -1.3), jnp.asarray(v), BATCH, proximal=proximal_of(L1()), rate=RATE
    )
    found = nonsmooth_stationarity(
        PLAIN,
        jnp.full(1, -1.3, jnp.float32),
        jnp.asarray(v, jnp.float32),
        Batch(upper, lower),
        proximal=proximal_of(L1()),
        rate=RATE,
    )
    assert found.lower < 1e-5
    assert found.upper == pytest.approx(exact.upper, rel=0.02)

"""The problems of the literature: their best values by an independent search, and some of them solved."""

import itertools

import jax
import numpy as np
import pytest
import scipy.optimize

from experiments.bolib import study
from experiments.bolib.convex import CONVEX
from experiments.bolib.example import onto_polygon
from experiments.bolib.linear import LINEAR

ALL = CONVEX | LINEAR
QUICK = ("ClarkWesterberg1990a", "FalkLiu1995", "MuuQuy2003Ex1", "LiuHart1994")
FAR = 20.0  # how far the search goes where u has no bound
FAVOUR = 1e-5  # the weight of the upper loss below: among several minimisers it decides


def lowest(example, u, starts):
    """A minimiser of the lower loss, of several the best for the upper loss, by SLSQP; None if the set is empty."""
    u = np.asarray(u, float)
    held = [] if example.below is None else [{"type": "ineq", "fun": lambda v: -np.array(example.below(u, v), float)}]

    def loss(v):
        return float(example.lower(u, v) + FAVOUR * example.upper(u, v))

    best = None
    for start in starts:
        found = scipy.optimize.minimize(
            loss, start, method="SLSQP", constraints=held, options={"ftol": 1e-12, "maxiter": 200}
        )
        outside = 0.0 if example.below is None else np.max(example.below(u, found.x))
        if np.isfinite(found.fun) and outside < 1e-6 and found.success:
            return found.x
        if np.isfinite(found.fun) and outside < 1e-6 and (best is None or found.fun < best.fun - 1e-9):
            best = found
    return None if best is None else best.x


def searched(example, points=21):
    """The lowest upper value on a grid or a sample of u, then from the three best points by Nelder and Mead."""
    n, m = len(example.u), len(example.v)
    low, high = (np.broadcast_to(np.asarray(x, float), n) for x in (example.box or (-np.inf, np.inf)))
    low, high = np.where(np.isfinite(low), low, -FAR), np.where(np.isfinite(high), high, 2 * FAR)
    onto = jax.jit(example.onto)
    starts = [np.asarray(example.v, float), np.zeros(m), np.full(m, 3.0)]

    def value(u):
        u = np.asarray(onto(np.clip(u, low, high)), float)
        v = lowest(example, u, starts)
        return 1e9 if v is None else float(example.upper(u, v))

    if n <= 2:
        axes = [np.linspace(a, b, 20 * points + 1 if n == 1 else points) for a, b in zip(low, high, strict=True)]
        grid = [np.array(x) for x in itertools.product(*axes)]
    else:
        grid = list(np.random.default_rng(0).uniform(low, high, (3 * points * points, n)))
    grid += [np.asarray(example.u, float)]
    values = np.array([value(u) for u in grid])
    options = {"xatol": 1e-7, "fatol": 1e-8, "maxiter": 200}
    ends = [
        scipy.optimize.minimize(value, grid[i], method="Nelder-Mead", options=options).fun
        for i in np.argsort(values)[:2]
    ]
    return min(*ends, values.min())


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ALL])
def test_the_best_value_is_that_of_an_independent_search(name):
    example = ALL[name]
    found = searched(example, 10 if name in QUICK else 20)
    np.testing.assert_allclose(found, example.best, rtol=1e-3, atol=1e-3)


def test_there_are_many():
    assert len(ALL) >= 60
    for example in ALL.values():
        u, v = example.start
        assert np.isfinite([example.upper(u, v), example.lower(u, v)]).all()


def test_a_value_counts_only_at_a_minimiser_of_the_lower_loss():
    example = CONVEX["FalkLiu1995"]
    u = np.array([0.75, 0.75])
    assert study.near(example, u, u)
    assert not study.near(example, u, np.array([0.6, 0.75]))  # not a minimiser
    assert not study.near(example, np.zeros(2), np.array([0.4, 0.5]))  # outside


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("DeSilva1978", "Penalty"),
        pytest.param("MuuQuy2003Ex1", "Penalty", marks=pytest.mark.slow),
        pytest.param("MuuQuy2003Ex1", "BLOCC", marks=pytest.mark.slow),
        pytest.param("MacalHurter1997", "BiCGAFFA", marks=pytest.mark.slow),  # MuuQuy2003Ex1 it does not solve
    ],
)
def test_a_problem_is_solved_from_its_start(name, label):
    found = study.solved(ALL[name], label)
    assert found["solved"], found


def test_a_polygon_is_projected_onto():
    project = onto_polygon((0, 0), (2, 0), (0, 1))
    for u, wanted in (([0.5, 0.5], [0.5, 0.5]), ([-1, -1], [0, 0]), ([1, -3], [1, 0]), ([2, 2], [1.2, 0.4])):
        np.testing.assert_allclose(project(np.array(u, float)), wanted, atol=1e-12)

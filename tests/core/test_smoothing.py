"""Smoothed penalties: gaps, gradients and limits on random input; their proximal maps; measures of sparsity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy.optimize import minimize_scalar

from bilevax import InputError
from bilevax.penalties import (
    L1,
    ByLeaf,
    ByRow,
    ElasticNet,
    Given,
    GroupLasso,
    Lp,
    Oscar,
    SparseGroupLasso,
    removed_share,
    zero_share,
)

D = 9
GROUPS = Given([[0, 4, 5], [1], [2, 3, 6, 7, 8]])
PENALTIES = [
    L1(),
    Lp(0.3),
    Lp(0.6),
    Lp(1.0),
    ElasticNet(0.7),
    GroupLasso(GROUPS),
    SparseGroupLasso(GROUPS, 0.5, 2.0),
    Oscar(0.3, 1.5),
]
CONVEX = [p for p in PENALTIES if not isinstance(p, Lp) or p.p == 1]
SLOPES = {penalty: jax.jit(jax.grad(penalty)) for penalty in PENALTIES}
TRUE = {penalty: jax.jit(jax.vmap(penalty.true)) for penalty in PENALTIES}
SIZES = {penalty: jax.jit(lambda w, mu, p=penalty: (p(w, mu), p.true(w), p.gap(w, mu))) for penalty in PENALTIES}
# Oscar's is a loop of numpy.
PROXIMAL = {p: p.proximal if isinstance(p, Oscar) else jax.jit(p.proximal) for p in PENALTIES}
NAMES = [f"{type(p).__name__}{i}" for i, p in enumerate(PENALTIES)]
numbers = st.floats(-4, 4, allow_nan=False).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
vectors = st.lists(numbers, min_size=D, max_size=D).map(np.array)
scales = st.floats(1e-4, 2.0)


def lipschitz(penalty, mu):
    """Its constant for vectors of D entries."""
    return penalty.lipschitz(np.zeros(D), mu) if isinstance(penalty, Oscar) else penalty.lipschitz(mu)


def by_pairs(penalty, w, mu):
    """Oscar's smoothed value over all pairs."""
    a = np.sqrt(w**2 + mu**2)
    total = penalty.single * a.sum()
    for j in range(len(a)):
        for k in range(j):
            t = abs(a[j] - a[k])
            total += penalty.pair * (a[j] + a[k] + (t if t >= mu else (t**2 / mu + mu) / 2)) / 2
    return total


@pytest.mark.parametrize("penalty", PENALTIES, ids=NAMES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(w=vectors, mu=scales)
def test_smoothed_lies_above_the_true_value_by_no_more_than_the_gap(penalty, w, mu):
    smooth, true, gap = map(float, SIZES[penalty](w, mu))
    slack = 1e-12 * (1 + abs(true))
    assert -slack <= smooth - true <= gap + slack


@pytest.mark.parametrize("penalty", PENALTIES, ids=NAMES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(a=vectors, b=vectors, mu=st.floats(1e-2, 2.0))
def test_gradients_change_no_faster_than_the_lipschitz_constant(penalty, a, b, mu):
    slopes = [np.asarray(SLOPES[penalty](x, mu)) for x in (a, b)]
    apart = np.linalg.norm(a - b)
    assert np.linalg.norm(slopes[0] - slopes[1]) <= lipschitz(penalty, mu) * apart * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("penalty", PENALTIES, ids=NAMES)
def test_gradients_agree_with_finite_differences(penalty):
    rng = np.random.default_rng(0)
    for mu in (1e-2, 0.5):
        w = rng.normal(size=D)
        w[2] = 0.0
        w[3] = w[4] + mu / 3  # a pair within mu
        slope = np.asarray(SLOPES[penalty](w, mu))
        for i in range(D):
            step = 1e-6 * np.eye(D)[i]
            up, down = (float(SIZES[penalty](w + s * step, mu)[0]) for s in (1, -1))
            assert slope[i] == pytest.approx((up - down) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES, ids=NAMES)
def test_the_gap_is_nearly_taken_at_zero_so_no_smaller_rate_would_do(penalty):
    for mu in (1e-3, 1e-1):
        smooth, _, gap = SIZES[penalty](np.zeros(D), mu)  # compiled once; outside of jit each operation would be
        assert 0.9 < float(smooth / gap) <= 1 + 1e-12


@settings(max_examples=60, deadline=None, derandomize=True)
@given(w=vectors, mu=scales)
def test_sorted_sums_of_oscar_are_the_sums_over_all_pairs(w, mu):
    penalty = Oscar(0.3, 1.5)
    smooth, true, _ = map(float, SIZES[penalty](w, mu))
    assert smooth == pytest.approx(by_pairs(penalty, w, mu), rel=1e-10)
    a = np.abs(w)
    pairs = sum(max(a[j], a[k]) for j in range(D) for k in range(j))
    assert true == pytest.approx(0.3 * a.sum() + 1.5 * pairs, rel=1e-12)


def test_oscar_of_many_entries_makes_nothing_of_their_square():
    d = 20_000
    w = jnp.asarray(np.random.default_rng(0).normal(size=d))
    compiled = jax.jit(jax.grad(Oscar())).lower(w, 1e-3).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 400 * d
    assert np.isfinite(compiled(w, 1e-3)).all()


@pytest.mark.parametrize("penalty", PENALTIES, ids=NAMES)
def test_proximal_maps_minimise(penalty):
    rng = np.random.default_rng(1)
    for step in (0.05, 0.6):
        w = 2 * rng.normal(size=D)
        found = np.asarray(PROXIMAL[penalty](w, step))

        def excess(points, w=w, step=step, found=found):
            """step true(x) + |x - w|^2 / 2 at the points, minus that at `found`."""
            points = np.stack([found, *points])
            values = step * np.asarray(TRUE[penalty](points)) + 0.5 * np.sum((points - w) ** 2, 1)
            return values[1:] - values[0]

        targets = np.stack([np.r_[0.0, x, np.linspace(-abs(x), abs(x), 41)] for x in w])
        along = [np.where(np.arange(D) == i, target, found) for i in range(D) for target in targets[i]]
        assert (excess(along) >= -1e-9).all()
        around = [found + 10 ** rng.uniform(-6, 0) * rng.normal(size=D) for _ in range(60)]
        assert (excess(around) >= -1e-10).all()
        if penalty in CONVEX:  # (w - prox) / step is a subgradient there
            others = found + rng.normal(size=(60, D))
            least, *values = np.asarray(TRUE[penalty](np.stack([found, *others])))
            assert (values >= least + (others - found) @ (w - found) / step - 1e-9).all()


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
def test_proximal_of_lp_against_a_scalar_search(p):
    step = 0.7
    w = np.linspace(-3, 3, 61)
    found = np.asarray(Lp(p).proximal(w, step))
    for x, target in zip(found, w, strict=True):

        def value(z, target=target):
            return step * abs(z) ** p + (z - target) ** 2 / 2

        inner = minimize_scalar(value, bounds=sorted((1e-3 * target, target)), method="bounded") if target else None
        best = min(value(0.0), inner.fun if inner else np.inf)
        assert value(x) <= best + 1e-8
    assert (found[np.abs(w) < 0.5] == 0).all()


@pytest.mark.slow
def test_groups_by_leaf_by_row_and_given_agree_with_norms_by_hand():
    rng = np.random.default_rng(2)
    tree = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    by_leaf = np.linalg.norm(tree["a"]) + np.linalg.norm(tree["b"])
    by_row = np.linalg.norm(tree["a"], axis=1).sum() + np.abs(tree["b"]).sum()
    assert float(GroupLasso(ByLeaf()).true(tree)) == pytest.approx(by_leaf)
    assert float(GroupLasso(ByRow()).true(tree)) == pytest.approx(by_row)
    w = rng.normal(size=D)
    assert float(GroupLasso(GROUPS).true(w)) == pytest.approx(sum(np.linalg.norm(w[list(g)]) for g in GROUPS.members))
    for groups in (ByLeaf(), ByRow()):
        gone = GroupLasso(groups).proximal(tree, 100.0)
        assert all((x == 0).all() for x in jax.tree.leaves(gone))
        kept = GroupLasso(groups).proximal(tree, 1e-9)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-8), kept, tree)


def test_measures_of_sparsity():
    tree = {"a": np.array([[0.0, 0.0], [1.0, 0.0]]), "b": np.array([1e-3, 2.0])}
    assert zero_share(tree) == 0.5
    assert zero_share(tree, 1e-2) == pytest.approx(4 / 6)
    assert removed_share(ByRow(), tree) == 0.25
    assert removed_share(ByRow(), tree, 1e-2) == 0.5
    assert removed_share(ByLeaf(), tree) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lp(0.0), r"p is 0.0, and must be in \(0, 1\]"),
        (lambda: Lp(1.5), "For p > 1 the sum of"),
        (lambda: ElasticNet(-1.0), "ratio is -1.0"),
        (lambda: SparseGroupLasso(ByLeaf(), single=-0.1), "single is -0.1"),
        (lambda: Oscar(pair=-2.0), "pair is -2.0"),
        (lambda: Given([]), "There is no group|there is no group"),
        (lambda: Given([[0], []]), "an empty group"),
        (lambda: Given([[0, 1], [1, 2]]), "more than one group: 1"),
        (lambda: Given([[0], [2]]), "in no group: 1"),
        (lambda: Given([[-1], [0]]), "negative index, -1"),
        (lambda: GroupLasso(Given([[0], [1]])).true(np.zeros(3)), r"v has shape \(3,\), .* of 2 entries"),
        (lambda: Oscar().true(np.zeros((2, 2))), r"shapes \(2, 2\), and must be one vector"),
        (lambda: L1()(np.zeros(2), 0.0), "mu is 0.0, and must be positive"),
        (lambda: GroupLasso(ByLeaf())(np.zeros(2), -1.0), "mu is -1.0"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_annotations_are_checked_while_the_tests_run():
    with pytest.raises(TypeCheckError, match="Type-check error"):
        L1().proximal(jnp.zeros(3), jnp.zeros(3))

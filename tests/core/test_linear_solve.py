"""Linear solves: right where the matrix is kind, finite and truthful where it is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import linear_solve as ls

DAMPING = 0.3
# A well-conditioned matrix (eigenvalues 1 to 5): all of them can solve it to rounding, given their steps.
PATIENT = {
    "cg": ls.CG(60, 1e-14, DAMPING),
    "gmres": ls.GMRES(30, 1e-14, DAMPING, restart=12),
    "direct": ls.Direct(DAMPING),
    "neumann": ls.Neumann(400, 0.3, DAMPING),
    "least_squares": ls.ByOptimizer(optax.sgd(0.06), 1500, DAMPING),
    "quadratic": ls.ByOptimizer(optax.sgd(0.3), 400, DAMPING, ls.quadratic),
    "adam": ls.ByOptimizer(optax.adam(optax.exponential_decay(0.1, 100, 0.5)), 3000, DAMPING, ls.quadratic),
}
HASTY = {
    "cg": ls.CG(),
    "gmres": ls.GMRES(),
    "direct": ls.Direct(),
    "neumann": ls.Neumann(),
    "least_squares": ls.ByOptimizer(),
    "quadratic": ls.ByOptimizer(optax.sgd(0.1), form=ls.quadratic),
    "diverging": ls.ByOptimizer(optax.sgd(1e3), 400),
}
patient = pytest.mark.parametrize("solve", PATIENT.values(), ids=PATIENT)
SLOW = pytest.mark.slow
# float32 is quick in `test_finite_and_truthful_whatever_the_matrix`.
dtypes = pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=SLOW), jnp.float64], ids=["float32", "float64"]
)


def matrix(low=1.0, high=5.0, n=12, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * np.linspace(low, high, n)) @ q.T, rng.normal(size=n)


def run(solve, a, b, start=None):
    start = jnp.zeros_like(b) if start is None else start
    q, cross, residual = jax.jit(lambda a, b, start: solve(lambda q: (3 * q, a @ q), b, start))(a, b, start)
    np.testing.assert_allclose(cross, 3 * q, rtol=1e-5)  # whatever became of q
    return q, residual


@dtypes
@patient
def test_solves_a_damped_system(solve, dtype):
    a, b = matrix()
    wanted = np.linalg.solve(a + DAMPING * np.eye(len(b)), b)
    q, residual = run(solve, jnp.asarray(a, dtype), jnp.asarray(b, dtype))
    assert q.dtype == dtype
    error = np.linalg.norm(q - wanted) / np.linalg.norm(wanted)
    assert error < (1e-8 if dtype == jnp.float64 else 1e-5), f"{solve}: relative error {error:.1e}"
    true = np.linalg.norm((a + DAMPING * np.eye(len(b))) @ np.asarray(q, float) - b)
    assert float(residual) == pytest.approx(true, rel=1e-3, abs=1e-5 if dtype == jnp.float32 else 1e-12)


@patient
def test_pytrees_and_vmap(solve):
    a, _ = matrix()
    bs = np.random.default_rng(1).normal(size=(3, 12))

    def tree(x):
        return {"w": x[:8].reshape(2, 4), "b": x[8:]}

    def flat(t):
        return jnp.concatenate([t["w"].ravel(), t["b"]])

    def one(b):
        q, _, residual = solve(lambda t: (None, tree(a @ flat(t))), tree(b), tree(jnp.zeros(12)))
        return flat(q), residual

    q, residual = jax.jit(jax.vmap(one))(jnp.asarray(bs))
    wanted = np.linalg.solve(a + DAMPING * np.eye(12), bs.T).T
    np.testing.assert_allclose(q, wanted, atol=1e-8)
    assert residual.shape == (3,)
    assert np.all(np.asarray(residual) < 1e-7)


# name: (matrix, right-hand side, start)
HOSTILE = {
    "zero matrix": (np.zeros((12, 12)), np.ones(12), np.zeros(12)),
    "zero right-hand side": (matrix()[0], np.zeros(12), np.ones(12)),
    "negative": (-matrix()[0], np.ones(12), np.zeros(12)),
    "indefinite": (matrix(-4.0, 5.0)[0], np.ones(12), np.zeros(12)),
    "singular": (matrix(0.0, 5.0)[0], np.ones(12), np.zeros(12)),
    # p'Ap = 0 in the first step of conjugate gradients
    "breakdown": (np.diag([1.0, -1.0] * 6), np.ones(12), np.zeros(12)),
    "huge": (1e30 * matrix()[0], np.ones(12), np.ones(12)),
    "NaN": (np.full((12, 12), np.nan), np.ones(12), np.zeros(12)),
    "kind": (np.eye(12), np.ones(12), np.zeros(12)),
}


# In float32, where rounding is coarse; in float64 too those that end by a tolerance.
@pytest.mark.parametrize(
    ("solve", "dtype"),
    [
        pytest.param(
            solve, dtype, id=f"{name}-{dtype.__name__}", marks=() if dtype is jnp.float32 or name == "cg" else [SLOW]
        )
        for name, solve in HASTY.items()
        for dtype in (jnp.float32, jnp.float64)
    ],
)
def test_finite_and_truthful_whatever_the_matrix(solve, dtype):
    """All under one vmap, where a hostile member must not spoil its neighbour either."""
    stacked = [jnp.asarray(np.stack(x), dtype) for x in zip(*HOSTILE.values(), strict=True)]
    together = jax.jit(jax.vmap(lambda a, b, start: solve(lambda q: (None, a @ q), b, start)))
    qs, _, residuals = together(*stacked)
    assert qs.dtype == dtype
    for name, a, b, q, residual in zip(HOSTILE, *stacked[:2], qs, residuals, strict=True):
        a, b, q = (np.asarray(x, float) for x in (a, b, q))
        size = np.linalg.norm(b)
        assert np.all(np.isfinite(q)), f"{name}: {q}"
        assert 0 <= residual <= size * (1 + 1e-6), f"{name}: {residual} above |b| = {size}"
        if name == "zero right-hand side":
            assert np.all(q == 0)
        if name == "NaN":
            assert np.all(q == 0)
            assert float(residual) == pytest.approx(size, rel=1e-6)
        else:
            rounding = 20 * float(jnp.finfo(dtype).eps) * (np.linalg.norm(a) * np.linalg.norm(q) + size)
            true = np.linalg.norm(a @ q - b)
            assert abs(float(residual) - true) <= rounding, f"{name}: told {residual}, truly {true}"
    # The kind member among members of its kind, by the same compiled program.
    alone = together(*(np.broadcast_to(x[-1], x.shape) for x in stacked)).q
    np.testing.assert_allclose(qs[-1], alone[-1], rtol=1e-5, atol=1e-6)


def test_an_answer_worse_than_none_is_shortened_and_not_dropped():
    """H = diag(1, -1): each term of the series grows along the second axis, past |b|; in closed form."""
    terms, scale = 5, 0.5
    b, h = np.array([1.0, 0.1]), np.array([1.0, -1.0])
    series = (1 - (1 - scale * h) ** (terms + 1)) / h * b
    assert np.linalg.norm(h * series - b) > np.linalg.norm(b)
    multiple = (h * series) @ b / np.sum((h * series) ** 2)
    q, residual = run(ls.Neumann(terms, scale), jnp.diag(jnp.asarray(h)), jnp.asarray(b))
    np.testing.assert_allclose(q, multiple * series, rtol=1e-12)
    assert float(residual) == pytest.approx(np.linalg.norm(h * multiple * series - b), rel=1e-12)
    assert float(residual) < 0.8 * np.linalg.norm(b)


def test_cg_that_ends_worse_than_none_is_shortened_and_a_good_start_kept():
    """diag(4, -1), b = (1, 1): one step goes b'b / b'Hb = 2/3 along b, to the residual (-5/3, 5/3)."""
    h, b = jnp.diag(jnp.array([4.0, -1.0])), jnp.ones(2)
    q, residual = run(ls.CG(1), h, b)
    np.testing.assert_allclose(q, [3 / 17, 3 / 17], rtol=1e-12)  # the multiple of b with the least residual
    assert float(residual) == pytest.approx(np.linalg.norm([-5 / 17, 20 / 17]), rel=1e-12)
    near = jnp.array([0.25 + 0.1, -1 - 0.4])  # residual (-0.4, -0.4); the step would lead to (2, -2) / 3
    q, residual = run(ls.CG(1), h, b, near)
    np.testing.assert_array_equal(q, near)
    assert float(residual) == pytest.approx(np.linalg.norm([0.4, 0.4]), rel=1e-12)


def test_cg_alone_breaks_down_where_the_safeguard_holds():
    """diag(1, -1) q = (1, 1): the first step of conjugate gradients divides by p'Ap = 0."""
    q, residual = run(ls.CG(), jnp.diag(jnp.array([1.0, -1.0])), jnp.ones(2))
    assert np.all(np.isfinite(q))
    assert residual <= np.sqrt(2) * (1 + 1e-12)


def test_gmres_solves_the_indefinite_system():
    a, b = matrix(-4.0, 5.0)
    q, residual = run(ls.GMRES(10, 1e-12, restart=12), a, b)
    np.testing.assert_allclose(q, np.linalg.solve(a, b), rtol=1e-8)
    assert residual < 1e-9


@pytest.mark.parametrize("solve", [s for s in PATIENT.values() if not isinstance(s, ls.Neumann | ls.Direct)])
def test_a_start_at_the_solution_stays_there(solve):
    a, b = matrix()
    wanted = np.linalg.solve(a + DAMPING * np.eye(12), b)
    q, residual = run(dataclasses.replace(solve, steps=3), a, b, jnp.asarray(wanted))
    np.testing.assert_allclose(q, wanted, atol=1e-12)
    assert residual < 1e-12


@pytest.mark.parametrize("solve", [ls.CG(3), ls.ByOptimizer(optax.sgd(0.06), 3)], ids=["cg", "sgd"])
def test_a_warm_start_helps(solve):
    a, b = matrix()
    near = np.linalg.solve(a, b) + 1e-4
    assert run(solve, a, b, jnp.asarray(near))[1] < 0.01 * run(solve, a, b)[1]


def test_conjugate_gradients_go_on_from_a_start_to_the_solution():
    a, b = matrix()
    wanted = np.linalg.solve(a, b)
    q, residual = run(ls.CG(30, 1e-12), a, b, jnp.asarray(wanted + 1e-3 * np.cos(np.arange(12))))
    np.testing.assert_allclose(q, wanted, rtol=1e-9)
    assert residual < 1e-11


@pytest.mark.parametrize("power", [-30, 30])
def test_conjugate_gradients_do_not_depend_on_units(power):
    """Of a singular matrix: when they end, and what they hold to be rounding, scales with H and b."""
    root = np.random.default_rng(0).normal(size=(6, 10))
    h, unit = root.T @ root, 2.0**power
    b = h @ np.cos(np.arange(10))
    q, residual = run(ls.CG(50, 1e-20), h, b)
    for found, wanted in zip(run(ls.CG(50, 1e-20), h, unit * b), (unit * q, unit * residual), strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(run(ls.CG(50, 1e-20), unit * h, b)[0], q / unit)


def test_neumann_is_its_series():
    a, b = matrix()
    q, _ = run(ls.Neumann(3, 0.1), a, b)
    m = np.eye(12) - 0.1 * a
    np.testing.assert_allclose(q, 0.1 * (b + m @ b + m @ m @ b + m @ m @ m @ b), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ls.CG(steps=0), "CG: steps is 0"),
        (lambda: ls.CG(steps=2.0), "CG: steps is 2.0"),
        (lambda: ls.CG(damping=-1.0), "CG: damping is -1.0"),
        (lambda: ls.CG(damping=float("nan")), "CG: damping is nan"),
        (lambda: ls.CG(tolerance=0.0), "CG: tolerance is 0.0"),
        (lambda: ls.GMRES(steps=True), "GMRES: steps is True"),
        (lambda: ls.GMRES(tolerance=-1e-3), "GMRES: tolerance is -0.001"),
        (lambda: ls.GMRES(restart=0), "GMRES: restart is 0"),
        (lambda: ls.Direct(damping=-1.0), "Direct: damping is -1.0"),
        (lambda: ls.Neumann(terms=-1), "Neumann: terms is -1"),
        (lambda: ls.Neumann(scale=0.0), "Neumann: scale is 0.0"),
        (lambda: ls.ByOptimizer(steps=0), "ByOptimizer: steps is 0"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(bx.InputError, match=named):
        make()


def test_cg_goes_on_where_curvature_is_small_beside_the_size():
    """On 7,840 float32 entries a test of breakdown such as that of lineax takes curvatures below 0.09 for one."""
    h = jnp.asarray(np.geomspace(1e-2, 5.0, 7840), jnp.float32)
    b = jnp.asarray(np.random.default_rng(0).normal(size=h.size), jnp.float32)
    *_, residual = ls.CG(steps=150)(lambda q: (None, h * q), b, jnp.zeros_like(b))
    assert float(residual) < 1e-3 * float(jnp.linalg.norm(b))


def test_cg_takes_the_products_that_it_names_and_the_answers_cross_term():
    a, b = matrix()
    calls = []

    def second_products(q):
        jax.debug.callback(lambda: calls.append(1))
        return None, a @ q

    jax.jit(lambda b: ls.CG(steps=4)(second_products, b, 0.1 * b))(b)
    jax.effects_barrier()
    assert len(calls) == 4 + 1 + 1


@dtypes
def test_on_a_singular_matrix_the_residual_is_the_true_one_and_q_stays_short(dtype):
    """H = 2 A'A of rank 2; b = e1 has no solution (least residual .894), b = H (1, 1, 1) has one of least norm."""
    a = np.array([[1, 2, 3], [2, 4, 6.5]])
    h = 2 * a.T @ a
    cases = np.stack([np.eye(3)[0], h @ np.ones(3)])
    longest = 100 * np.linalg.norm(np.linalg.pinv(h) @ cases[0])
    bs = jnp.asarray(cases, dtype)
    for solve in (ls.CG(100), ls.GMRES(100), ls.Direct(), ls.Neumann(100, 0.01)):

        def one(b, solve=solve):
            return solve(lambda x: (None, jnp.asarray(h, b.dtype) @ x), b, 0 * b)

        answers = jax.jit(jax.vmap(one))(bs)
        for q, residual, b in zip(answers.q, answers.residual, cases, strict=True):
            rounding = 20 * float(jnp.finfo(dtype).eps) * (np.linalg.norm(h) * np.linalg.norm(q) + np.linalg.norm(b))
            assert abs(float(residual) - np.linalg.norm(h @ np.asarray(q, float) - b)) <= rounding, solve
            assert np.linalg.norm(q) < longest, solve
        assert 0.89 < answers.residual[0] <= 1 + 1e-6
        if isinstance(solve, ls.CG | ls.Direct):
            wanted = np.linalg.pinv(h) @ cases[1]
            np.testing.assert_allclose(answers.q[1], wanted, atol=3e-3 if dtype == jnp.float32 else 1e-9)
        if isinstance(solve, ls.Direct):  # of least norm also where the residual is least
            least = np.linalg.pinv(h) @ cases[0]
            np.testing.assert_allclose(answers.q[0], least, atol=3e-2 if dtype == jnp.float32 else 1e-8)


@dtypes
def test_conjugate_gradients_end_before_they_leave_the_range(dtype):
    """Rank 12 of 20, with a solution: 1,000 steps at a tolerance out of reach hold nothing of the null space."""
    rng = np.random.default_rng(0)
    root = 10.0 ** rng.uniform(-1, 0, (12, 1)) * rng.normal(size=(12, 20))
    h = root.T @ root
    b = h @ rng.normal(size=20)
    q, residual = run(ls.CG(1000, 1e-20), jnp.asarray(h, dtype), jnp.asarray(b, dtype))
    wanted = np.linalg.pinv(h) @ b
    assert np.linalg.norm(q - wanted) < 1e4 * float(jnp.finfo(dtype).eps) * np.linalg.norm(wanted)
    assert residual < 1e3 * float(jnp.finfo(dtype).eps) * np.linalg.norm(b)


@pytest.mark.parametrize(
    "solve", [pytest.param(x, marks=() if n in ("cg", "gmres") else SLOW) for n, x in PATIENT.items()], ids=PATIENT
)
def test_leaves_of_several_types(solve):
    types = jnp.float32, jnp.bfloat16
    a, b = matrix(n=6)
    trees = {"w": jnp.asarray(b[:4], types[0]), "b": jnp.asarray(b[4:], types[1])}

    def second_products(q):
        flat = jnp.concatenate([q["w"], q["b"]])
        image = jnp.asarray(a, flat.dtype) @ flat
        return None, {"w": image[:4].astype(types[0]), "b": image[4:].astype(types[1])}

    q, _, residual = jax.jit(lambda b: solve(second_products, b, jax.tree.map(jnp.zeros_like, b)))(trees)
    assert (q["w"].dtype, q["b"].dtype) == types
    wanted = np.linalg.solve(a + DAMPING * np.eye(6), b)
    coarsest = max(float(jnp.finfo(t).eps) for t in types)
    np.testing.assert_allclose(np.r_[q["w"].astype(float), q["b"].astype(float)], wanted, atol=20 * coarsest)
    assert residual.dtype == jnp.result_type(jnp.float32, *types)

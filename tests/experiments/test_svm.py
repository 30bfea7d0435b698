"""The study of a support vector machine: its draws, its machines, and what its searches find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from experiments.common.settings import Settings
from experiments.tuning import svm


def small(seed=0):
    """Twelve rows of each part, of two classes that overlap."""
    rng = np.random.default_rng(seed)
    y = np.where(np.arange(36) % 2, 1.0, -1.0)
    Z = np.column_stack([rng.normal(size=(36, 2)) + y[:, None], np.ones(36)]) * y[:, None]
    return svm.Split(Z[:12], Z[12:24], Z[24:])


def test_a_draw():
    data = svm.split("breast-cancer", 3)
    assert [part.shape for part in data] == [(300, 31), (130, 31), (139, 31)]
    X = data.train[:, :-1] * data.train[:, -1:]
    np.testing.assert_allclose(X.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(X.std(0), 1)
    assert set(np.unique(data.test[:, -1])) == {-1.0, 1.0}


def test_a_machine_of_weight_zero_is_right_for_one_class():
    Z = np.array([[2.0, 1.0], [1.0, -1.0], [3.0, -1.0]])
    assert svm.accuracy(np.zeros(2), Z) == pytest.approx(2 / 3)
    assert svm.accuracy(np.array([1.0, 0.0]), Z) == 1


def test_the_primal_and_the_dual_are_the_problem_of_linear_svc():
    Z, C = small().train, 0.7
    w = svm.machine(Z, C)
    value = w @ w / 2 + C * np.maximum(1 - Z @ w, 0).sum()
    v, u = {"w": jnp.asarray(w), "xi": jnp.maximum(1 - jnp.asarray(Z) @ w, 0)}, jnp.log(C)
    np.testing.assert_allclose(svm.SOFT.lower(u, v, Z, None), value)
    np.testing.assert_array_less(np.concatenate(svm.SOFT.lower_constraint_values(u, v, Z)), 1e-12)
    batch = (jnp.asarray(Z), 1.0)
    dual = jax.jit(jax.value_and_grad(lambda a: svm.DUAL.lower(u, a, batch, None)))
    least = scipy.optimize.minimize(dual, np.zeros(12), jac=True, bounds=[(0, C)] * 12, method="L-BFGS-B")
    np.testing.assert_allclose(-least.fun, value, rtol=1e-4)


def test_with_bounds_above_one_nothing_depends_on_them():
    Z = small().train
    values = svm.BOUNDS.lower_constraint_values(jnp.full(12, 1.5), jnp.zeros(3), Z)[0]
    assert (np.asarray(values) < 0).all()  # w = 0, the least |w|, is inside the lower set
    assert (np.asarray(svm.BOUNDS.lower_constraint_values(svm.slacks(Z), svm.machine(Z, 0.1), Z)[0]) < 0).all()


@pytest.mark.slow
def test_both_routes_find_the_c_of_a_fine_grid():
    data = small(1)
    labels = ("fine grid, validation loss", "BLOCC, one C", "dual, one C")
    found = [{"w": jnp.asarray(svm.METHODS[label](data, 0).w)} for label in labels]
    losses = [float(svm.SOFT.upper(0.0, v, data.valid, None)) for v in found]
    np.testing.assert_allclose(losses[1:], losses[0], rtol=0.02)


@pytest.mark.slow
def test_a_run_writes_its_tables(tmp_path):
    svm.run(Settings(quick=True, out=tmp_path, solver="dual, one C"))
    assert (tmp_path / "results.json").is_file()
    assert (tmp_path / "cells" / "breast-cancer-0.json").is_file()

"""Quadratic problems with absolute values, against scipy's bounded minimiser of the split problem."""

import numpy as np
import pytest
import scipy.optimize

from bilevax.applications.tuning.glm.absolute import absolute_minimum
from bilevax.applications.tuning.glm.quadratic import violations


def split_minimum(hessian, target, weight):
    """The minimum by x = a - b with a, b >= 0, where the problem is smooth."""

    def value(ab):
        a, b = ab[: len(target)], ab[len(target) :]
        r = hessian @ (a - b) - target
        return (a - b) @ (r - target) / 2 + weight @ (a + b), np.concatenate([r + weight, weight - r])

    options = {"maxiter": 50_000, "maxfun": 500_000, "ftol": 1e-16, "gtol": 1e-12}
    found = scipy.optimize.minimize(
        value, np.zeros(2 * len(target)), jac=True, bounds=[(0, None)] * (2 * len(target)), options=options
    )
    return found.fun


@pytest.mark.parametrize(("rows", "q"), [(40, 12), (8, 20)])
@pytest.mark.parametrize("size", [1e-4, 0.1, 10.0])
def test_the_value_is_that_of_the_split_problem(rows, q, size):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, q))
    hessian, target = x.T @ x / rows, x.T @ rng.normal(size=rows) / rows
    weight = size * rng.uniform(0.5, 2, q)
    weight[0] = 0.0
    tolerance = 1e-12
    found = absolute_minimum(hessian, target, weight, rng.normal(size=q), tolerance)
    r = target - hessian @ found
    wrong = np.where(found != 0, np.abs(r - weight * np.sign(found)), np.maximum(np.abs(r) - weight, 0))
    assert wrong.max() <= tolerance
    value = found @ (hessian @ found) / 2 - target @ found + weight @ np.abs(found)
    assert value == pytest.approx(split_minimum(hessian, target, weight), rel=1e-6, abs=1e-9)


def test_duplicated_columns_and_a_column_of_zeros_are_solved():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4))
    x = np.concatenate([x, x, np.zeros((6, 1))], axis=1)
    hessian, target, weight = x.T @ x, x.T @ rng.normal(size=6), np.full(9, 0.05)
    found = absolute_minimum(hessian, target, weight, np.ones(9), 1e-10)
    r = target - hessian @ found
    wrong = np.where(found != 0, np.abs(r - weight * np.sign(found)), np.maximum(np.abs(r) - weight, 0))
    assert wrong.max() <= 1e-10
    assert found[8] == 0


def test_violations_are_those_of_each_block_alone():
    x, r = np.array([3.0, 4.0, 0.0, 0.0, 7.0]), np.array([0.6, 1.8, 3.0, 4.0, 9.0])
    blocks, weight = [np.array([0, 1]), np.array([3, 2])], np.array([2.0, 1.5])
    # |r - w x / |x|| = |(0.6 - 1.2, 1.8 - 1.6)|, and |r| - w = 5 - 1.5; the last entry is in no block.
    np.testing.assert_allclose(violations(r, x, blocks, weight), [np.sqrt(0.36 + 0.04), 3.5], rtol=1e-14)

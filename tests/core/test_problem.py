"""Stating a problem, and what is said of one that cannot be solved."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.problem import evaluate


def f(u, v):
    return jnp.sum(u**2) + jnp.sum(v**2)


def g(u, v):
    return jnp.sum((v - u) ** 2)


GOOD = bx.Problem(f, g)
ONE = jnp.ones(2)


def test_a_good_problem_passes():
    GOOD.check(ONE, ONE)
    GOOD.check({"x": np.ones(3), "y": 2.0}["x"], np.ones(3))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda u, v: ("u", "v", u, v), ("u", "v", 1, 2)),
        (lambda u, v, batch: ("b", u, v, batch), ("b", 1, 2, 3)),
        (lambda u, v, *, key: (u, v, key), (1, 2, 4)),
        (lambda u, v, key: (u, v, key), (1, 2, 4)),
        (lambda u, v, batch, key: (u, v, batch, key), (1, 2, 3, 4)),
        (lambda *args: args, (1, 2, 3)),
        (functools.partial(lambda scale, u, v: (scale, u, v), 9), (9, 1, 2)),
        (jax.jit(lambda u, v: (u, v)), (1, 2)),
    ],
)
def test_losses_get_the_arguments_they_ask_for(loss, expected):
    assert evaluate(loss, 1, 2, 3, 4) == expected


@pytest.mark.parametrize(
    ("changes", "u", "v", "batch", "message"),
    [
        ({"upper_loss": lambda u, v: v**2}, ONE, ONE, None, r"upper_loss returns float64 of shape \(2,\)"),
        ({"lower_loss": lambda u, v: v**2}, ONE, ONE, None, r"lower_loss returns float64 of shape \(2,\)"),
        ({"upper_loss": lambda u, v: jnp.sum(v > 0)}, ONE, ONE, None, "upper_loss returns int64"),
        ({"upper_loss": lambda u, v: (1.0, 2.0)}, ONE, ONE, None, "upper_loss returns tuple"),
        ({}, jnp.arange(2), ONE, None, r"u has dtype int64, and must be floating"),
        ({}, ONE, {"w": jnp.arange(2)}, None, r"v\['w'\] has dtype int64"),
        ({}, (), ONE, None, "u holds no arrays"),
        ({}, ONE, jnp.zeros((0, 3)), None, r"v is empty \(shape \(0, 3\)\)"),
        ({}, jnp.array([1.0, jnp.nan]), ONE, None, "u holds 1 NaN or infinite value of 2"),
        ({}, ONE, np.array([np.inf, np.nan]), None, "v holds 2 NaN or infinite values of 2"),
        (
            {},
            ONE,
            ONE,
            bx.Batch(lower={"X": np.array([1.0, np.nan])}),
            r"batch.lower\['X'\] holds 1 NaN or infinite value of 2",
        ),
        ({"lower_loss": lambda u, v: jnp.sum(u**2)}, ONE, ONE, None, "lower_loss does not depend on v"),
        ({"lower_loss": jax.jit(lambda u, v: jnp.sum(u**2))}, ONE, ONE, None, "lower_loss does not depend on v"),
        (
            {"lower_loss": lambda u, v, b: jnp.sum((b[0] @ v - b[1]) ** 2)},
            ONE,
            ONE,
            bx.Batch(lower=(jnp.ones((5, 2)), jnp.ones(4))),
            r"lower_loss cannot be evaluated .* leading sizes \[2, 4, 5\]",
        ),
        ({"project_upper": lambda u: u[:1]}, ONE, ONE, None, "project_upper returns"),
        ({"lower_start": lambda u, batch, key: 0.0}, ONE, ONE, None, "lower_start returns"),
        ({"constraints": (bx.Inequality(lambda u, v: u > 0),)}, ONE, ONE, None, r"constraints\[0\] returns bool"),
        ({"constraints": (bx.Equality(lambda u, v: u @ jnp.ones(3)),)}, ONE, ONE, None, r"constraints\[0\] cannot be"),
    ],
)
def test_bad_input_is_told_in_a_sentence(changes, u, v, batch, message):
    problem = dataclasses.replace(GOOD, **changes)
    with pytest.raises(bx.InputError, match=message) as caught:
        problem.check(u, v, batch)
    assert str(caught.value)[0] != "\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"upper_loss": 3}, "upper_loss is 3, not a function"),
        ({"constraints": 7}, "constraints is 7"),
        ({"constraints": [f]}, r"Wrap each function .* Inequality"),
    ],
)
def test_bad_statement(fields, message):
    with pytest.raises(bx.InputError, match=message):
        bx.Problem(**({"upper_loss": f, "lower_loss": g} | fields))


def test_data_closed_over_is_warned_of():
    X = jnp.ones((600, 600))
    problem = bx.Problem(f, lambda u, v: jnp.sum((X @ v) ** 2))
    with pytest.warns(UserWarning, match="lower_loss closes over 3 MiB"):
        problem.check(ONE, jnp.ones(600))

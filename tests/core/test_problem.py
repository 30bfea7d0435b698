"""Stating a problem, and what is said of one that cannot be solved."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.argmin import Argmin


def f(u, v, _):
    return jnp.sum(u**2) + jnp.sum(v**2)


def g(u, v, _):
    return jnp.sum((v - u) ** 2)


GOOD = bx.Problem(f, g)
ONE = jnp.ones(2)


def test_a_good_problem_passes():
    GOOD.check(ONE, ONE)
    GOOD.check({"x": np.ones(3), "y": 2.0}["x"], np.ones(3))


def test_losses_and_constraints_are_called_with_their_data():
    def echo(*arguments, **more):
        return arguments, more

    problem = bx.Problem(echo, echo, (bx.Inequality(echo), bx.Equality(echo)))
    assert problem.upper(1, 2, 3, "key") == problem.lower(1, 2, 3, "key") == ((1, 2, 3), {})
    assert problem.constraint_values(1, 2, 3) == (((1, 2, 3), {}),) * 2
    random = dataclasses.replace(problem, random_upper=True)
    assert random.upper(1, 2, 3, "key") == ((1, 2, 3), {"key": "key"})
    assert random.lower(1, 2, 3, "key") == ((1, 2, 3), {})
    random = dataclasses.replace(problem, random_lower=True)
    assert random.upper(1, 2, 3, "key") == ((1, 2, 3), {})
    assert random.lower(1, 2, 3, "key") == ((1, 2, 3), {"key": "key"})


@pytest.mark.parametrize(
    "loss",
    [
        lambda u, v, data, key: jnp.sum(v),
        lambda u, v, data, *, key: jnp.sum(v),
        lambda u, v, data, key=None: jnp.sum(v),
        lambda u, v, *_, key: jnp.sum(v),
        lambda *_, **more: jnp.sum(_[1]),
        jax.jit(lambda u, v, data, *, key: jnp.sum(v)),
        functools.partial(lambda scale, u, v, data, key: scale * jnp.sum(v), 9.0),
        functools.partial(lambda u, v, data, *, scale, key: scale * jnp.sum(v), scale=9.0),
    ],
)
def test_random_losses_are_declared(loss):
    bx.Problem(loss, loss, random_upper=True, random_lower=True).check(ONE, ONE)
    Argmin(loss, random_lower=True)


@pytest.mark.parametrize(
    ("loss", "declared", "message"),
    [
        (
            lambda u, v: 0,
            {},
            "Problem: lower_loss takes (u, v), and is called as (u, v, data); write `lambda u, v, data: ...`.",
        ),
        (
            lambda u, v, data, s: 0,
            {},
            "Problem: lower_loss takes (u, v, data, s), and is called as (u, v, data); write `lambda u, v, data: ...`, "
            "and bind other arguments by functools.partial.",
        ),
        (
            lambda u, v, s=2.0: 0,
            {},
            "Problem: lower_loss has the parameter s=2.0, which would get the data in place of its default; if it is a "
            "setting, write `lambda u, v, data, *, s=...: ...`, and if it is the data, leave out its default.",
        ),
        (
            lambda u, v, data, *, key=None: 0,
            {},
            "Problem: lower_loss takes (u, v, data, key), and is called as (u, v, data); pass random_lower=True and "
            "write `lambda u, v, data, *, key: ...`.",
        ),
        (
            lambda u, v, data: 0,
            {"random_lower": True},
            "Problem: lower_loss takes (u, v, data), and is called as (u, v, data, key=key); write `lambda u, v, "
            "data, *, key: ...`, or leave out random_lower=True.",
        ),
        (
            lambda u, v, key: 0,
            {"random_lower": True},
            "Problem: lower_loss takes (u, v, key), and is called as (u, v, data, key=key); write `lambda u, v, "
            "data, *, key: ...`, or leave out random_lower=True.",
        ),
        (
            lambda u, v, data, s, key: 0,
            {"random_lower": True},
            "Problem: lower_loss takes (u, v, data, s, key), and is called as (u, v, data, key=key); write `lambda "
            "u, v, data, *, key: ...`, and bind other arguments by functools.partial.",
        ),
        (g, {"random_lower": 1.5}, "Problem: random_lower is 1.5, and must be True or False."),
    ],
)
def test_a_refused_loss_is_shown_the_right_form(loss, declared, message):
    with pytest.raises(bx.InputError) as caught:
        bx.Problem(f, loss, **declared)
    assert str(caught.value) == message
    with pytest.raises(bx.InputError) as caught:
        bx.Problem(loss, g, **{name.replace("lower", "upper"): value for name, value in declared.items()})
    assert str(caught.value) == message.replace("lower", "upper")
    with pytest.raises(bx.InputError) as caught:
        Argmin(loss, **declared)
    assert str(caught.value) == message.replace("Problem", "Argmin")


@pytest.mark.parametrize("loss", [lambda u, v, key: v, lambda u, v, data, *, key=None: v])
def test_constraints_get_no_key(loss):
    with pytest.raises(
        bx.InputError, match=r"^Equality: function takes .*, and is called as \(u, v, data\); it gets no"
    ):
        bx.Equality(loss)


@pytest.mark.parametrize(
    ("changes", "u", "v", "batch", "message"),
    [
        ({"upper_loss": lambda u, v, _: v**2}, ONE, ONE, None, r"upper_loss returns float64 of shape \(2,\)"),
        ({"lower_loss": lambda u, v, _: v**2}, ONE, ONE, None, r"lower_loss returns float64 of shape \(2,\)"),
        ({"upper_loss": lambda u, v, _: jnp.sum(v > 0)}, ONE, ONE, None, "upper_loss returns int64"),
        ({"upper_loss": lambda u, v, _: (1.0, 2.0)}, ONE, ONE, None, "upper_loss returns tuple"),
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
        ({"lower_loss": lambda u, v, _: jnp.sum(u**2)}, ONE, ONE, None, "lower_loss does not depend on v"),
        ({"lower_loss": jax.jit(lambda u, v, _: jnp.sum(u**2))}, ONE, ONE, None, "lower_loss does not depend on v"),
        (
            {"lower_loss": lambda u, v, b: jnp.sum((b[0] @ v - b[1]) ** 2)},
            ONE,
            ONE,
            bx.Batch(lower=(jnp.ones((5, 2)), jnp.ones(4))),
            r"lower_loss cannot be evaluated .* leading sizes \[2, 4, 5\]",
        ),
        ({"project_upper": lambda u: u[:1]}, ONE, ONE, None, "project_upper returns"),
        ({"lower_start": lambda u, batch, key: 0.0}, ONE, ONE, None, "lower_start returns"),
        ({"constraints": (bx.Inequality(lambda u, v, _: u > 0),)}, ONE, ONE, None, r"constraints\[0\] returns bool"),
        (
            {"constraints": (bx.Equality(lambda u, v, _: u @ jnp.ones(3)),)},
            ONE,
            ONE,
            None,
            r"constraints\[0\] cannot be",
        ),
    ],
)
def test_bad_input_is_told_in_a_sentence(changes, u, v, batch, message):
    problem = dataclasses.replace(GOOD, **changes)
    with pytest.raises(bx.InputError, match=message) as caught:
        problem.check(u, v, batch)
    assert str(caught.value)[0] != "\n"


@pytest.mark.parametrize("solver", [bx.Penalty(), bx.Implicit(), bx.VPBGD()], ids=lambda s: type(s).__name__)
def test_a_map_of_u_that_is_no_projection_is_refused_by_solvers(solver):
    """As for v; a projection that is not orthogonal, and one of half precision, are taken."""
    for shrinks in (lambda u: 0.9 * u, lambda u: u + 1, lambda u: u / 0.0):
        problem = dataclasses.replace(GOOD, project_upper=shrinks)
        name = type(solver).__name__
        with pytest.raises(bx.InputError, match=f"^{name}: project_upper moves a point that is already projected, or"):
            solver.check(problem, ONE, ONE, bx.Batch())
    problem = dataclasses.replace(GOOD, project_upper=lambda u: u.at[0].set(u[1]))
    solver.check(problem, ONE, ONE, bx.Batch())
    unit = dataclasses.replace(GOOD, project_upper=lambda u: (u / jnp.linalg.norm(u)).astype(u.dtype))
    solver.check(unit, ONE.astype(jnp.bfloat16), ONE, bx.Batch())


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

"""Programs are shared by equal static arguments, and do not pile up."""

import gc
import weakref

import jax
import jax.numpy as jnp
import pytest

import bilevax as bx
from bilevax._programs import KEPT, compiled
from bilevax.loop.sources import Fixed, Samples
from bilevax.loop.stretch import Carry, initial_state, one_step, stretch
from bilevax.nn import freeze, mlp


class Power:
    """Equal by value."""

    def __init__(self, exponent):
        self.exponent = exponent

    def __eq__(self, other):
        return isinstance(other, Power) and self.exponent == other.exponent

    def __hash__(self):
        return hash(self.exponent)


def test_equal_static_arguments_share_a_program():
    traced = []

    @compiled("power")
    def raised(power, x, y=1.0):
        traced.append(power.exponent)
        return y * x**power.exponent

    assert raised(Power(2), 3.0) == 9
    assert raised(x=4.0, power=Power(2)) == 16
    assert raised(Power(2), 3.0, 2.0) == 18
    assert raised(Power(3), 3.0) == 27
    assert traced == [2, 3]
    assert raised.programs(Power(2)) == 1
    assert raised.function(Power(2), 3) == 9
    assert traced == [2, 3, 2]


@pytest.mark.slow
def test_the_oldest_static_arguments_are_dropped():
    @compiled("power")
    def raised(power, x):
        return x**power.exponent

    powers = [Power(i) for i in range(KEPT + 5)]
    for power in powers:
        raised(power, 1.0)
    kept = [weakref.ref(power) for power in powers]
    del power, powers
    gc.collect()
    assert [ref() is None for ref in kept] == [True] * 5 + [False] * KEPT


def test_donated_arguments_are_donated():
    @compiled("n", donate=("x",))
    def double(n, x):
        return n * x

    x = jnp.arange(8.0)
    assert float(double(2, x)[7]) == 14
    assert x.is_deleted()


def test_a_problem_whose_programs_are_dropped_is_freed(key):
    """Nothing else holds it: not the checks, not the shapes of Info, not the callbacks."""

    def solved():
        problem = bx.Problem(lambda u, v, d: jnp.sum((v - d) ** 2), lambda u, v, d: jnp.sum((v - u) ** 2))
        bx.solve(bx.Penalty(), problem, jnp.zeros(2), jnp.zeros(2), bx.Batch(upper=jnp.ones(2)), steps=2, key=key)
        return weakref.ref(problem)

    problem = solved()
    stretch.clear()
    one_step.clear()
    jax.effects_barrier()
    gc.collect()
    assert problem() is None


def constants(text, size):
    """The lines of a program's text that hold a constant of so many float64."""
    return [
        line for line in text.splitlines() if "constant" in line and f"tensor<{size}x" in line and 'dense<"' in line
    ]


def test_large_arrays_that_are_closed_over_are_arguments():
    large, small = jax.random.normal(jax.random.key(0), (20_000,)), jnp.arange(3.0)

    @compiled("power")
    def inner(power, x):
        return jnp.sum(large) * x**power

    @compiled("power", donate=("x",))
    def outer(power, x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: x + inner(power, x) + jnp.sum(large * i), x) + small

    x = jnp.ones(3)
    expected = jnp.ones(3)
    for i in range(4):
        expected = expected + large.sum() * expected**2 + large.sum() * i
    text = outer.lower(2, x, 4).as_text()
    assert not constants(text, 20_000)
    assert constants(jax.jit(lambda x: x * large).lower(1.0).as_text(), 20_000)
    found = outer(2, x, 4)
    assert jnp.allclose(found, expected + small, rtol=1e-12)
    assert x.is_deleted()
    assert outer.programs(2) == 1
    outer(2, jnp.ones(3), 5)
    assert outer.programs(2) == 1
    outer(2, jnp.ones((1, 3)), 5)
    assert outer.programs(2) == 2


def test_a_chosen_device_is_kept():
    """An array put on a device stays a constant, and arguments on another device are accepted as they were."""
    first, second = jax.devices()[:2]
    large = jax.device_put(jnp.ones(20_000), first)

    @compiled("power")
    def total(power, x):
        return jnp.sum(large * x**power)

    assert float(total(2, jax.device_put(jnp.full(20_000, 2.0), second))) == 80_000


def test_frozen_weights_are_arguments_of_a_solve(key):
    whole = [{"weight": jnp.eye(100), "bias": jnp.zeros(100)}, {"weight": jnp.ones((100, 2)), "bias": jnp.zeros(2)}]
    head = freeze(mlp(2, (100,)), "0", whole)

    def loss(u, v, data):
        return jnp.mean((head.apply(v, data.data) - 1) ** 2) + jnp.exp(u[0]) * jnp.sum(v["1.weight"] ** 2)

    problem, data = bx.Problem(loss, loss), jnp.ones((5, 100))
    batch = bx.Batch(Samples(data, jnp.arange(5)), Samples(data, jnp.arange(5)))
    solver, u, v = bx.Penalty(), jnp.zeros(1), head.init(key, data)
    carry = Carry(initial_state(solver, problem, u, v, batch), jnp.asarray(True))
    text = stretch.lower(solver, problem, 10, carry, Fixed(batch), key, 0, 10).as_text()
    assert not constants(text, "100x100")

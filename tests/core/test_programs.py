"""Programs are shared by equal static arguments, and do not pile up."""

import gc
import weakref

import jax
import jax.numpy as jnp
import pytest

import bilevax as bx
from bilevax._programs import KEPT, compiled
from bilevax.loop.stretch import one_step, stretch


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

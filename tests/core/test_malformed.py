"""Malformed calls: each is refused in a sentence that names the argument, before anything is compiled."""

import dataclasses
import functools
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import (
    Batch,
    Checkpoint,
    Epochs,
    InputError,
    Minibatches,
    PerMove,
    Problem,
    Progress,
    Stacked,
    schedules,
    solve,
)
from bilevax.argmin import Argmin, hypergradient
from bilevax.loop.sources import Fixed
from bilevax.search import Random, search
from tests.core.solvers import KINDS

# The refusals are tested by wrong arguments, which the checks of annotations would refuse first.
pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def f(u, v, _):
    return jnp.sum(u**2) + jnp.sum(v**2)


def g(u, v, _):
    return jnp.sum((v - u) ** 2)


PROBLEM = Problem(f, g)
ONE = np.ones(2)


def call(**changes):
    arguments = {
        "solver": bx.Alternating(),
        "problem": PROBLEM,
        "u": ONE,
        "v": ONE,
        "batches": None,
        "steps": 1,
        "key": jax.random.key(0),
    } | changes
    return solve(**arguments)


def refused(message, function, *arguments, **options):
    with pytest.raises(InputError, match=message) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Tensor:
    """What torch's tensors look like from outside."""

    shape = (2,)
    dtype = "torch.float32"

    def __array__(self, dtype=None, copy=None):
        return np.ones(2, dtype)


Tensor.__module__ = "torch"


class Linear(Tensor):
    """A module of the user's own, derived from one of torch's."""


Linear.__module__ = "__main__"


@jax.tree_util.register_pytree_node_class
class Module:
    """A module with an activation among its leaves, as equinox has them."""

    def tree_flatten(self):
        return (np.ones(2), jnp.tanh), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls()


NO_ARRAYS = {
    "text": ("ab", "is a str, and must be an array of numbers"),
    "bytes": (b"ab", "is a bytes"),
    "set": ({1.0, 2.0}, "is a set"),
    "function": (jnp.tanh, "is .*and must be an array of numbers. Modules that hold functions"),
    "tensor": (Tensor(), r"is a Tensor, .* x.detach\(\).cpu\(\).numpy\(\)"),
    "torch module": ({"w": Linear()}, r"\['w'\] is a Linear, .* of a module pass its arrays"),
    "module": (Module(), "and must be an array of numbers. .* equinox.partition"),
    "array of texts": (np.array(["a", "b"]), "has dtype <U1"),
    "array of objects": (np.array([1.0, None]), "has dtype object"),
    "array of dates": (np.array(["2020-01-01"], "datetime64[D]"), "has dtype datetime64"),
    "long doubles": (np.ones(2, np.longdouble), "has dtype (float128|longdouble)"),
    "huge integer": (2**70, "is 1180591620717411303424"),
    "masked": (np.ma.masked_array([1.0, 2.0], [True, False]), r"is a masked array, .* x.filled"),
    "unsorted keys": ({1: ONE, "a": ONE}, "is not a tree that JAX can take apart"),
}
NOT_FLOATING = {
    "None": (None, "holds no arrays"),
    "empty tuple": ((), "holds no arrays"),
    "integers": (np.arange(2), "has dtype int64, and must be floating"),
    "an integer": (3, "has dtype int"),
    "truth": (True, "has dtype bool"),
    "complex": (np.array([1 + 2j]), "has dtype complex128"),
    "key": (jax.random.key(0), "has dtype key<fry>"),
    "no entries": (np.ones((0, 3)), "is empty"),
    "NaN": ({"a": np.array([1.0, np.nan])}, r"\['a'\] holds 1 NaN or infinite value of 2 \(the first at \[1\]\)"),
    "a NaN": (math.nan, "holds 1 NaN"),
    "infinite": (jnp.array([jnp.inf, 1.0]), "holds 1 NaN or infinite value of 2"),
}


@pytest.mark.parametrize("name", ["u", "v"])
@pytest.mark.parametrize("case", NO_ARRAYS | NOT_FLOATING)
def test_variables(name, case):
    value, message = (NO_ARRAYS | NOT_FLOATING)[case]
    refused(f"^{name}.*{message}", call, **{name: value})
    refused(f"^{name}.*{message}", call, solver=bx.Vectorized(bx.Alternating()), **{name: value})
    if "entries" not in case and "NaN" not in case and "infinite" not in case:
        arguments = {"u": ONE, "v": ONE} | {name: value}
        refused(f"^{name}.*{message}", hypergradient, PROBLEM, **arguments)


@pytest.mark.parametrize("case", NO_ARRAYS)
def test_data(case):
    value, message = NO_ARRAYS[case]
    refused(f"^batch.*{message}", call, batches=Batch(lower=value))
    refused(f"^batch.*{message}", call, batches=[Batch(upper=value)])
    if case != "unsorted keys":  # JAX sees them first
        refused(f"^upper.*{message}", call, batches=Minibatches([value], ONE))
        refused(f"^lower.*{message}", call, batches=Epochs(ONE, [value], lower_size=1))
        refused(f"{message}", call, batches=Fixed(Batch(upper=value)))


@pytest.mark.parametrize("package", ["pandas", "scipy.sparse", "equinox"])
def test_what_other_packages_have(package):
    module = pytest.importorskip(package)
    value, message = {
        "pandas": lambda: (module.DataFrame({"a": [1.0]}), r"is a DataFrame, .* x.to_numpy\(\)"),
        "scipy.sparse": lambda: (module.csr_matrix(np.eye(2)), r"is a csr_matrix, .* x.toarray\(\)"),
        "equinox": lambda: (module.nn.MLP(1, 1, 2, 1, key=jax.random.key(0)), "equinox.partition"),
    }[package]()
    for name in ("u", "v"):
        refused(f"^{name}.*{message}", call, **{name: value})
    refused(f"^batch.lower.*{message}", call, batches=Batch(lower=value))


def test_numbers_that_jax_would_change():
    """Without 64 bits 2^40 + 5 becomes 5 and 1e200 infinity."""
    big, wide = np.array([1, 2**40 + 5]), np.array([1.0, 1e200])
    with jax.enable_x64(False):
        for value, told in (
            (big, "1099511627781, which does not fit int32"),
            (wide, "1e.200, which does not fit float32"),
        ):
            refused(f"^batch.lower holds {told}", call, batches=Batch(lower=value))
            refused(f"^lower holds {told}", call, batches=Minibatches(ONE, value))
            refused(f"^batch.upper holds {told}", call, batches=iter([Batch(upper=value)]))
        refused("^v holds 1e.200", call, v=wide)
        refused("^u holds -1e.200", call, u=-wide)
        refused("^batch.lower is 1099511627781, which does not fit", call, batches=Batch(lower=2**40 + 5))
        assert call(u=np.full(2, 0.1), batches=Batch(lower=np.array([1, 2**31 - 1]))).steps == 1
    assert call(batches=Batch(lower=big, upper=wide)).steps == 1


COUNTS = [0, -1, 2.0, True, None, "3", np.array(3), jnp.array(3), [3], np.float64(3), math.nan]
ids = functools.partial(pytest.mark.parametrize, ids=lambda x: re.sub(r"0x[0-9a-f]+|\W+", " ", repr(x))[:40])


@ids("value", COUNTS)
def test_counts(value):
    refused("^solve: steps is .*positive integer", call, steps=value)
    if value is not None:
        refused("^solve: every is .*positive integer", call, every=value)
        refused("^Minibatches: lower_size is .*positive integer", Minibatches, ONE, ONE, None, value)
        refused("^Epochs: upper_size is .*positive integer", Epochs, ONE, ONE, value)
        refused("^Epochs: per_move is .*positive integer", Epochs, ONE, ONE, 1, 1, value)
    refused("^Argmin: steps is .*positive integer", Argmin, g, steps=value)
    refused("^search: trials is .*positive integer", search, Random(), PROBLEM, -ONE, ONE, ONE, trials=value, key=0)
    refused("^Checkpoint: keep is .*positive integer", Checkpoint, "unused", keep=value)


SOLVERS = [case.solver for case in KINDS.values() if hasattr(case.solver, "lower_steps")]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_counts_of_solvers(solver):
    make = functools.partial(dataclasses.replace, solver)
    for value in COUNTS:
        refused(f"^{type(solver).__name__}: lower_steps is .*positive integer", make, lower_steps=value)
    made = make(lower_steps=np.int64(3))
    assert type(made.lower_steps) is int
    assert made == make(lower_steps=3)


def test_counts_of_numpy_are_counts():
    """As they come from np.arange."""
    result = call(steps=np.int64(2), every=np.uint8(1), callbacks=(lambda visit: None,))
    assert result.steps == 2
    assert type(result.steps) is int
    assert Minibatches(ONE, ONE, lower_size=np.int32(2)) is not None
    assert type(Minibatches(ONE, ONE, lower_size=np.int32(2)).lower_size) is int


def test_a_stretch_takes_no_more_memory_than_its_steps_need(monkeypatch):
    assert call(steps=3, every=10**9).steps == 3
    refused("^solve: steps is 10000000000, and may be at most", call, steps=10**10)
    visits = []
    small = 1 << 16  # as published a test takes too long
    monkeypatch.setattr(sys.modules["bilevax.loop.prepare"], "STRETCH_BYTES", small)
    call(steps=10**9, every=10**9, callbacks=[visits.append], stop=lambda visit: True)
    assert 10**2 < visits[0].step < 10**4


ARGUMENTS = {
    "solver": [bx.Penalty, optax.adam(1e-2), None, "Penalty", PROBLEM, object()],
    "problem": [f, None, Problem, bx.Penalty(), (f, g)],
    "key": [0, None, "0", np.zeros(2), jax.random.split(jax.random.key(0)), jax.random.PRNGKey(0), 1.5],
    "mesh": ["data", 3, jax.devices(), bx.Layout],
    "stop": [3, "at 10", True],
    "callbacks": [None, Progress(), print, "log.jsonl", {Progress()}, [Progress], [3], [None], ["log"], iter([print])],
    "resume": ["runs", Checkpoint, 3, print, True],
    "batches": [
        3,
        "data",
        ONE,
        jnp.ones(2),
        [ONE],
        (ONE, ONE),
        {"upper": ONE},
        [],
        (),
        iter([]),
        [None],
        [[ONE]],
        Minibatches,
        Batch,
        lambda: iter([Batch()]),
        print,
        jax.random.key(0),
        object(),
    ],
}


@ids(("name", "value"), [(name, value) for name, values in ARGUMENTS.items() for value in values])
def test_arguments_of_solve(name, value):
    refused(rf"\b{name}\b", call, **{name: value})


def test_an_old_key_is_wrapped():
    assert "jax.random.wrap_key_data(key)" in refused("^solve: key", call, key=jax.random.PRNGKey(0))


def test_what_is_passed_as_one_callback_works_in_a_list():
    assert call(callbacks=[print]).steps == 1


def test_a_data_frame_is_no_source():
    pandas = pytest.importorskip("pandas")
    refused("^batches is a DataFrame", call, batches=pandas.DataFrame({"at": [1.0]}))


class Unregistered:
    def at(self, step, key):
        return Batch()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Own:
    """A source that answers as it is told."""

    data: np.ndarray
    answer: object = dataclasses.field(default=None, metadata={"static": True})

    def at(self, step, key):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


SOURCES = {
    "unregistered": (Unregistered(), "^batches is a Unregistered, which JAX does not know as a pytree"),
    "returns nothing": (Own(ONE), "^batches.at.* returns None"),
    "returns arrays": (Own(ONE, (1, 2)), r"^batches.at.* returns \(1, 2\)"),
    "raises": (Own(ONE, KeyError("x")), "^batches.at.* raises KeyError"),
    "stacks nothing": (Stacked(3), "^Stacked: source is 3"),
    "stacks a class": (Stacked(Epochs), "^Stacked: source is the class Epochs"),
    "stacks unequal": (Stacked(Minibatches(np.ones((2, 3)), np.ones((3, 3)))), "^The leading sizes of source differ"),
    "no lower": (Minibatches(ONE, None), "^The leading sizes of lower .*nothing"),
    "scalars": (Minibatches(1.0, ONE), "^The leading sizes of upper .*a scalar"),
    "no samples": (Minibatches(ONE, np.ones((0, 2))), "^lower has no samples"),
    "unequal": (Epochs((ONE, np.ones(3)), ONE), "^The leading sizes of upper differ"),
    "too few": (Epochs(ONE, ONE, lower_size=3), "^lower has 2 samples, fewer than one batch of 3"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_sources(case):
    source, message = SOURCES[case]
    refused(message, call, batches=source)


@pytest.mark.parametrize("kind", [Minibatches, Epochs])
def test_a_bad_row_is_found_before_the_first_step(kind):
    """It may be drawn late, and would be taken for a step size that is too large."""
    rows = np.ones((500, 2))
    rows[417, 1] = np.nan
    message = r"holds 1 NaN or infinite value of 1000 \(the first at \[417, 1\]\)"
    refused(rf"^lower\['x'\] {message}", call, batches=kind(ONE, {"x": rows}, lower_size=1))
    refused(f"^upper {message}", call, batches=kind(jnp.asarray(rows), ONE, upper_size=1))
    members = Stacked(kind(np.ones((2, 3)), np.stack([ONE, ONE * np.nan]), lower_size=1))
    refused("^source.lower holds 2 NaN", call, batches=members)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Spoilt:
    """A source of the user's own that is not finite from step 3 on."""

    data: np.ndarray

    def at(self, step, key):
        return Batch(lower=jnp.where(step < 3, 1.0, jnp.nan) * self.data)


@pytest.mark.parametrize("kind", ["stream", "source"])
def test_a_batch_that_is_not_finite_is_named_when_its_step_fails(kind):
    def batches():
        for i in range(9):
            yield Batch(lower=np.array([1.0, np.nan]) if i == 3 else ONE)

    problem = Problem(f, lambda u, v, b: jnp.sum((v - jnp.mean(b)) ** 2))
    with pytest.raises(bx.SolveError) as caught:
        call(problem=problem, batches=batches() if kind == "stream" else Spoilt(ONE), steps=8, every=5)
    told = str(caught.value)
    assert re.match(r"Step 4 of 8: a step gave a NaN .* since its batch.lower holds [12] NaN or infinite", told)
    assert "step sizes" not in told
    assert caught.value.result.steps == 3


LOSSES = {
    "nothing": (lambda u, v, _: None, "returns NoneType, and must return one floating number"),
    "a tuple": (lambda u, v, _: (v.sum(), u.sum()), "returns tuple"),
    "a list": (lambda u, v, _: [v.sum()], "returns list"),
    "text": (lambda u, v, _: "low", "cannot be evaluated"),
    "an integer": (lambda u, v, _: jnp.sum(v > 0), "returns int64 of shape"),
    "truth": (lambda u, v, _: jnp.all(v > 0), "returns bool of shape"),
    "complex": (lambda u, v, _: jnp.sum(v + 1j), "returns complex128 of shape"),
    "a vector": (lambda u, v, _: v, r"returns float64 of shape \(2,\)"),
    "a row": (lambda u, v, _: v.sum()[None], r"returns float64 of shape \(1,\)"),
    "a float": (lambda u, v, _: float(v.sum()), "cannot be evaluated .*ConcretizationTypeError"),
    "a condition": (
        lambda u, v, _: v.sum() if v.sum() > 0 else u.sum(),
        "cannot be evaluated .*TracerBoolConversionError",
    ),
    "numpy": (lambda u, v, _: np.sum(np.exp(v)), "cannot be evaluated .*TracerArrayConversionError"),
    "an error": (lambda u, v, _: 1 / 0, "cannot be evaluated .*ZeroDivisionError"),
    "a missing name": (lambda u, v, _: v["w"].sum(), "cannot be evaluated"),
    "unequal": (lambda u, v, _: jnp.sum(v @ jnp.ones(3)), "cannot be evaluated .*leading sizes"),
}


@pytest.mark.parametrize("name", ["upper_loss", "lower_loss"])
@pytest.mark.parametrize("case", LOSSES)
def test_what_losses_return(name, case):
    loss, message = LOSSES[case]
    refused(f"^{name} {message}", call, problem=dataclasses.replace(PROBLEM, **{name: loss}))


OTHERS = {
    "constraint of nothing": (
        {"constraints": (bx.Inequality(lambda u, v, _: None),)},
        r"^constraints\[0\] returns no values",
    ),
    "constraint of none": ({"constraints": (bx.Equality(lambda u, v, _: ()),)}, r"^constraints\[0\] returns no values"),
    "constraint of text": (
        {"constraints": (bx.Equality(lambda u, v, _: "u"),)},
        r"^constraints\[0\] cannot be evaluated",
    ),
    "constraint of truth": ({"constraints": (bx.Equality(lambda u, v, _: v > 0),)}, r"^constraints\[0\] returns bool"),
    "projection of nothing": ({"project_upper": lambda u: None}, "^project_upper returns None"),
    "projection in place": ({"project_lower": lambda v: v.sort()}, "^project_lower returns None|sort"),
    "projection to float32": ({"project_lower": lambda v: v.astype("float32")}, r"^project_lower returns float32\[2\]"),
    "projection to integers": ({"project_upper": lambda u: jnp.round(u).astype(int)}, r"^project_upper returns int64"),
    "projection to a list": ({"project_upper": lambda u: [u]}, "^project_upper returns"),
    "projection that raises": ({"project_upper": lambda u: u.missing}, "^project_upper cannot be evaluated"),
    "projection of two": ({"project_upper": lambda u, v: u}, "^project_upper cannot be evaluated"),
    "start of nothing": ({"lower_start": lambda u, batch, key: None}, "^lower_start returns None"),
    "start to float32": ({"lower_start": lambda u, b, k: jnp.ones(2, "float32")}, r"^lower_start returns float32\[2\]"),
    "start of one": ({"lower_start": lambda u: u}, "^lower_start cannot be evaluated"),
    "regularizer of two": ({"regularizer": lambda u, v: 0.0}, "^lower_loss cannot be evaluated"),
    "regularizer of a vector": ({"regularizer": lambda u, v, mu: v}, "^lower_loss returns"),
    "loss without derivative": (
        {"lower_loss": lambda u, v, _: jax.lax.while_loop(lambda x: x < 9.0, lambda x: x * 2, jnp.sum((v - u) ** 2))},
        "^Penalty cannot take a step on this problem .*derivatives",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_other_functions_return(case):
    changes, message = OTHERS[case]
    if case == "projection in place":
        changes = {"project_lower": lambda v: None}
    solver = bx.ReverseMode() if "project_lower" in changes else bx.Penalty()  # Penalty refuses any project_lower
    refused(message, call, solver=solver, problem=dataclasses.replace(PROBLEM, **changes))


PROBLEMS = {
    "no function": ({"upper_loss": 3}, "upper_loss is 3, not a function"),
    "called": ({"lower_loss": 0.5}, "lower_loss is 0.5, not a function"),
    "nothing": ({"lower_loss": None}, "lower_loss is None"),
    "a class": ({"lower_loss": Tensor}, "lower_loss is the class Tensor"),
    "no projection": ({"project_lower": None}, "project_lower is None"),
    "a start": ({"lower_start": ONE}, r"lower_start is a ndarray of shape \(2,\), not a function"),
    "a regularizer": ({"regularizer": 1e-3}, "regularizer is 0.001, not a function"),
    "one constraint": ({"constraints": bx.Inequality(f)}, "constraints is .*Pass a tuple"),
    "a bare constraint": ({"constraints": (f,)}, "constraints holds"),
    "text": ({"constraints": "h"}, "constraints is 'h'"),
    "a class of constraints": ({"constraints": (bx.Inequality,)}, "constraints holds the class Inequality"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_fields_of_problems(case):
    changes, message = PROBLEMS[case]
    refused(f"^Problem: {message}", lambda: Problem(**({"upper_loss": f, "lower_loss": g} | changes)))


def test_checks_within_a_traced_function():
    """Of traced arrays nothing is known; what is not traced is checked as ever."""

    def gradient(u, v):
        return hypergradient(PROBLEM, u, v).gradient

    np.testing.assert_allclose(jax.jit(lambda u: gradient(u, jnp.asarray(ONE)))(ONE), gradient(ONE, ONE))
    bad = jnp.array([1.0, jnp.nan])
    refused("^v holds 1 NaN", jax.jit(lambda u: gradient(u, bad)), ONE)
    refused("^u has dtype int64", jax.jit(lambda u: gradient(u, ONE)), np.arange(2))


# --- how a loss is called -------------------------------------------------------------------------------------------


class Loss:
    def __init__(self, c):
        self.c = c

    def __call__(self, u, v, data, *, scale=1.0):
        return jnp.sum((v - u) ** 2) * self.c * scale

    def method(self, u, v, data):
        return jnp.sum((v - u) ** 2) * self.c + data

    def defaulted(self, u, v, c=3):
        return c


def two_arguments(u, v):
    return jnp.sum((v - u) ** 2)


def with_setting(u, v, data, c=3.0):
    return c * jnp.sum((v - u) ** 2)


UNFIT = {
    "without data": lambda u, v: 0,
    "a setting in place of the data": lambda u, v, c=3.0: c,
    "data that may be left out": lambda u, v, data=None: 0,
    "a function": two_arguments,
    "a method": Loss(2).defaulted,
    "jitted": jax.jit(two_arguments),
    "bound by place": functools.partial(lambda c, u, v, d=1: 0, 3),
    "too many": lambda u, v, data, more: 0,
    "too few": lambda v: 0,
    "nothing": lambda: 0,
    "unfilled": lambda u, v, data, *, scale: 0,
    "a key": lambda u, v, data, key: 0,
    "a key in place of the data": lambda u, v, key: 0,
    "a key that may be left out": lambda u, v, data, *, key=None: 0,
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_loss_that_cannot_be_called_is_refused(case):
    loss = UNFIT[case]
    refused("^Problem: upper_loss ", Problem, loss, g)
    refused("^Problem: lower_loss ", Problem, f, loss)
    refused("^Inequality: function ", bx.Inequality, loss)
    refused("^Equality: function ", bx.Equality, loss)
    refused("^Argmin: lower_loss ", Argmin, loss)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda u, v, data, *, c=3.0: c * jnp.sum((v - u) ** 2), 3.0),
        (with_setting, 3.0),
        (functools.partial(with_setting, c=4.0), 4.0),
        (jax.jit(functools.partial(with_setting, c=4.0)), 4.0),
        (Loss(2.0), 2.0),
        (Loss(2.0).method, 2.0 + 10),
        (lambda u, v, *_: jnp.sum((v - u) ** 2), 1.0),
        (lambda *arguments: jnp.sum((arguments[1] - arguments[0]) ** 2) + arguments[2], 1.0 + 10),
        (lambda u, v, data, **settings: jnp.sum((v - u) ** 2) * (1 + len(settings)), 1.0),
    ],
)
def test_losses_that_can_be_called(loss, value):
    """At u = 0, v = (1, 0), with data 10."""
    u, v, ten = jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array(10.0)
    problem = Problem(f, loss)
    problem.check(u, v, Batch(ten, ten))
    assert problem.lower(u, v, ten, jax.random.key(0)) == value


# --- indices and moves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda u, v, b: jnp.sum(u[b.index]) + jnp.sum(v), r"reads index 9 along axis 0 of u of shape \(7,\)"),
        (jax.jit(lambda u, v, b: jnp.sum(jax.nn.sigmoid(u)[b.index]) + jnp.sum(v)), r"reads index 9 .* of an array"),
        (lambda u, v, b: jnp.sum(u.at[b.index].get()) + jnp.sum(v), r"of u of shape \(7,\)"),
        (lambda u, v, b: jnp.sum(jnp.take(u, b.index)) + jnp.sum(v), r"of u of shape \(7,\)"),
        (lambda u, v, b: jnp.sum(u.reshape(7, 1)[b.index, b.index * 0]) + jnp.sum(v), r"index 9 along axis 0"),
        (lambda u, v, b: u[7] + jnp.sum(v), r"index 7 .*of u of shape \(7,\)"),
        (lambda u, v, b: u[-8] + jnp.sum(v), r"of u of shape \(7,\)"),
    ],
)
@pytest.mark.parametrize("kind", [Minibatches, Epochs])
def test_an_index_out_of_range_is_refused(loss, message, kind):
    """u has 7 entries, and there are 10 samples, of which a batch has 2: JAX would take the last entry."""
    source = kind(np.zeros(1), np.zeros(10), lower_size=2)
    refused(f"^lower_loss .*{message}", call, problem=Problem(f, loss), u=np.ones(7), batches=source)


def test_indices_in_range_and_those_meant_to_be_clipped_pass():
    def loss(u, v, b):
        one = u[b.index] + u[-1] + u[9 - b.index] + jax.vmap(lambda i: u[i])(b.index)
        return jnp.sum(v**2) + jnp.sum(one) + jnp.sum(jnp.take(v, b.index, mode="clip"))

    source = Minibatches(np.zeros(1), np.zeros(10), lower_size=3)
    assert call(problem=Problem(f, loss), u=np.ones(10), batches=source).steps == 1


@pytest.mark.parametrize("per_move", [1, 2, 5])
def test_fresh_data_for_each_move_or_none(per_move):
    """With 2 of them 3 moves would have the last one twice."""
    problem = Problem(f, lambda u, v, b: jnp.sum(v**2) + jnp.mean(b.data))
    solver = bx.Alternating(lower_steps=3)
    message = rf"^batch.lower is a PerMove .* {per_move}, and Alternating takes 3 lower batches .* per_move=3"
    refused(message, call, solver=solver, problem=problem, batches=Minibatches(ONE, ONE, None, 1, per_move))
    plain = Problem(f, lambda u, v, b: jnp.sum(v**2) + jnp.mean(b))
    fixed = Batch(lower=PerMove(np.ones((per_move, 2))))
    refused(message, call, solver=solver, problem=plain, batches=fixed)
    refused(message, call, solver=solver, problem=plain, batches=iter([fixed]))
    members = jax.tree.map(lambda x: np.stack([x, x]), fixed)
    refused(
        message, call, solver=bx.Vectorized(solver), problem=plain, u=np.ones((2, 2)), v=ONE[:, None], batches=members
    )
    refused("no axis", call, solver=solver, problem=plain, batches=Batch(lower=PerMove(1.0)))


# --- schedules, layouts, Vectorized ---------------------------------------------------------------------------------

SCHEDULES = {
    "text": ("a", "is 'a', and must be a number"),
    "nothing": (None, "is None, and must be a number"),
    "truth": (True, "is True, and must be a number"),
    "an array": (np.ones(2), "is a ndarray of shape"),
    "NaN": (math.nan, "is nan, and must be finite"),
    "infinite": (math.inf, "is inf, and must be finite"),
    "a condition": (lambda k: 1.0 if k < 3 else 2.0, "cannot be evaluated .*jnp.where for if"),
    "of math": (lambda k: math.pow(1.1, k), "cannot be evaluated .*jnp's functions for those of math"),
    "a list": ([1.0, 2.0].__getitem__, "cannot be evaluated"),
    "of nothing": (lambda k: None, "returns NoneType"),
    "of a vector": (lambda k: jnp.ones(2), r"returns float64 of shape \(2,\)"),
    "of two": (lambda k, j: 1.0, "cannot be evaluated"),
    "a class": (schedules.Geometric, "is the class Geometric"),
    "to infinity": (lambda k: jnp.power(10.0, 10.0 * k), "is inf at stage"),
    "too large": (lambda k: 10.0 ** (10.0 * k), "cannot be evaluated .*OverflowError"),
}


@pytest.mark.parametrize("case", SCHEDULES)
@pytest.mark.parametrize(("solver", "name"), [(bx.Penalty, "gamma"), (bx.Penalty, "eps"), (bx.BVFIM, None)])
def test_schedules(case, solver, name):
    value, message = SCHEDULES[case]
    names = (
        [name] if name else [x.name for x in dataclasses.fields(solver) if isinstance(x.default, schedules.Geometric)]
    )
    for name in names:
        if case not in ("to infinity", "too large") or name == "gamma":
            refused(f"^{solver.__name__}: {name} {message}", solver, **{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initial": "a"}, "initial is 'a', and must be a number"),
        ({"initial": 0}, "initial is 0, and must be positive"),
        ({"factor": -1.0}, "factor is -1"),
        ({"factor": None}, "factor is None"),
        ({"low": math.nan}, "low is nan"),
        ({"low": 3.0, "high": 2.0}, "low is 3, and must not be above high"),
    ],
)
def test_geometric(fields, message):
    refused(f"^Geometric: {message}", schedules.Geometric, **({"initial": 1.0, "factor": 1.1} | fields))


def test_numpy_numbers_do_not_widen_a_solve():
    """A strength out of np.logspace is no reason to compute in float64."""
    u = np.ones(2, np.float32)
    solver = bx.Penalty(gamma=np.float64(2.0), eps=np.float64(1.0), lam=np.float32(0.1), lower_steps=np.int64(2))
    result = call(solver=solver, u=u, v=u)
    assert result.u.dtype == result.v.dtype == np.float32
    same = call(solver=bx.Penalty(gamma=2.0, eps=1.0, lam=float(np.float32(0.1)), lower_steps=2), u=u, v=u)
    np.testing.assert_array_equal(result.u, same.u)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh": 4}, "^Layout: mesh is a int"),
        ({"data": "rows"}, "^Layout: the mesh has the axes"),
        ({"data": None}, "^Layout: the mesh has the axes"),
        ({"u": "data"}, "^Layout: u holds 'data'"),
        ({"u": None}, "^Layout: the tree of PartitionSpecs for u"),
        ({"v": [jax.sharding.PartitionSpec()]}, "^Layout: the tree of PartitionSpecs for v"),
        ({"v": jax.sharding.PartitionSpec("rows")}, "^Layout: the spec"),
        ({"v": jax.sharding.PartitionSpec(None, "data")}, "^Layout: v has shape"),
    ],
)
def test_layouts(fields, message):
    mesh = jax.make_mesh((2,), ("data",))
    refused(message, lambda: call(mesh=bx.Layout(**({"mesh": mesh} | fields))))


@pytest.mark.parametrize("solver", [bx.Alternating, None, 3, optax.sgd(1.0)])
def test_vectorized_of_no_solver(solver):
    refused("^Vectorized: solver is", bx.Vectorized, solver)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": {"a": np.ones((2, 1)), "b": 1.0}}, r"leading axes \[2, none\]"),
        ({"v": 1.0}, r"leading axes \[2, none\]"),
        ({"batches": Batch(np.ones(3))}, r"leading axes \[2, 3\]"),
    ],
)
def test_vectorized_members(changes, message):
    members = np.ones((2, 1))
    refused(
        f"^Vectorized: .*{message}",
        call,
        **({"solver": bx.Vectorized(bx.Alternating()), "u": members, "v": members} | changes),
    )

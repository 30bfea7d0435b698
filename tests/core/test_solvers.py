"""What holds for every solver: a new method adds one entry to CASES in tests/core/solvers.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import derivatives
from bilevax.loop.stretch import stretch
from bilevax.problem import data_of_loss
from bilevax.schedules import Geometric
from bilevax.solvers.base import State
from tests.core.solvers import (
    ADAM,
    BATCH,
    CASES,
    KINDS,
    LOWER,
    PROBLEM,
    START,
    UPPER,
    floats,
    of_each_class,
    of_each_family,
    solution,
)

EVERY = 50  # the same in all tests, so that they share a compiled program
ON_PROBLEM = [name for name, case in CASES.items() if case.problem is PROBLEM]
MOVES = [name for name in ON_PROBLEM if hasattr(CASES[name].solver, "lower_steps")]


def run(solver, problem, u, v, batch, steps, key, **more):
    return bx.solve(solver, problem, u, v, batch, steps=steps, every=EVERY, key=key, **more)


def solved(case, steps, key, **more):
    return run(case.solver, case.problem, *case.start, case.batch, steps, key, **more)


def same(one, other):
    for a, b in zip(*(jax.tree.leaves((r.state, r.history)) for r in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(params=of_each_class(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(params=of_each_family(CASES))
def shared(request):
    return CASES[request.param]


def test_every_solver_is_here():
    solvers = {x for x in vars(bx.solvers).values() if isinstance(x, type) and hasattr(x, "step")}
    assert {type(case.solver) for case in KINDS.values()} == solvers - {bx.Vectorized, bx.solvers.Solver}


@pytest.mark.parametrize("name", of_each_class([name for name, case in CASES.items() if case.finds]))
def test_reaches_the_bilevel_solution(name, key):
    case = CASES[name]
    result = solved(case, 4000, key)
    np.testing.assert_allclose(result.u, solution(), atol=case.finds)
    np.testing.assert_allclose(result.v["a"], 2 * solution(), atol=2 * case.finds)
    assert result.status is bx.Status.FINISHED


def test_alternating_descent_does_not(key):
    result = solved(CASES["Alternating"], 4000, key)
    assert np.linalg.norm(result.u - solution()) > 0.5  # it only sees grad_u f = 0.2 u
    np.testing.assert_allclose(result.u, 0, atol=1e-3)


# float64 is slow here: it is the type of all solves in these tests, and a loop refuses a state that changes its form.
@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.slow), "float32"])
@pytest.mark.parametrize("name", of_each_family(CASES, "Penalty, finite differences", "ReverseMode, segments"))
def test_protocol(name, dtype, key):
    """State and Info keep structure, shapes and dtypes."""
    case, solver = CASES[name], CASES[name].solver
    u, v, batch = floats(lambda x: x.astype(dtype), (*case.start, case.batch))
    state = solver.init(case.problem, u, v, batch)
    assert isinstance(state, State)
    moved, info = jax.eval_shape(lambda s: solver.step(case.problem, s, batch, key), state)
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(moved)] == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert {x.dtype for x in jax.tree.leaves((moved.u, moved.v))} == {jnp.dtype(dtype)}
    assert isinstance(info, bx.Info)
    assert all(x.shape == () for x in jax.tree.leaves(info))
    assert info.upper_loss.dtype == dtype
    hash(solver)


def test_float32_stays_float32(key):
    case = CASES["Penalty"]
    small = floats(lambda x: x.astype(jnp.float32), (*case.start, case.batch))
    result = run(case.solver, case.problem, *small, 3, key)
    assert {x.dtype for x in jax.tree.leaves((result.u, result.v))} == {jnp.dtype("float32")}


def test_same_key_same_bits_from_one_program(shared, key):
    one = solved(shared, 60, key)
    programs = stretch.programs(shared.solver, shared.problem, EVERY, ())
    same(one, solved(shared, 60, key))
    assert stretch.programs(shared.solver, shared.problem, EVERY, ()) == programs


def test_resumed_it_gives_the_same_bits(shared, key, tmp_path):
    save = bx.Checkpoint(tmp_path)
    solved(shared, 50, key, callbacks=[save])
    same(solved(shared, 60, key, callbacks=[save], resume=save), solved(shared, 60, key))


def test_the_length_of_a_stretch_changes_no_bit(key):
    case = CASES["Penalty"]
    options = {"steps": 60, "key": key}
    runs = [bx.solve(case.solver, PROBLEM, *START, BATCH, every=n, **options) for n in (50, 7)]
    same(*runs)


# Not PZOBO, which draws directions: each member has a key of its own.
@pytest.mark.parametrize("name", of_each_family([name for name in CASES if name != "PZOBO"]))
def test_vectorized_members_equal_single_runs(name, key):
    case = CASES[name]
    start, batch = case.start, case.batch
    # By numpy, as in the next tests: jax.numpy compiles a program for each operation and shape.
    start, batch = jax.tree.map(np.asarray, (start, batch))
    starts = jax.tree.map(lambda x: np.stack([x, x + 0.3, x - 1.0]), start)
    batches = jax.tree.map(lambda *x: np.stack(x), batch, floats(lambda x: 2 * x, batch), batch)
    together = bx.solve(bx.Vectorized(case.solver), case.problem, *starts, batches, steps=40, key=key)
    assert together.history.upper_loss.shape == (40, 3)
    for i in (0, 1):
        one = jax.tree.map(lambda x, i=i: x[i], (*starts, batches))
        alone = run(case.solver, case.problem, *one, 40, key)
        for members, single in zip(
            *map(jax.tree.leaves, (together.state.memory.memory, alone.state.memory)), strict=True
        ):
            np.testing.assert_allclose(members[i], single, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(together.u[i], alone.u, rtol=1e-9, atol=1e-11)


def test_constraints_are_refused_by_name(case, key):
    if isinstance(case.solver, bx.Penalty):
        return
    problem = dataclasses.replace(case.problem, constraints=(bx.Inequality(lambda u, v, _: u),))
    with pytest.raises(bx.InputError, match=rf"{type(case.solver).__name__} does not handle .* Use Penalty"):
        run(case.solver, problem, *case.start, case.batch, 1, key)


@pytest.mark.parametrize("name", of_each_family(MOVES, "ReverseMode, segments", "ReverseMode, truncated"))
def test_fresh_data_for_each_move(name, key):
    """PerMove hands move t its own slice; T copies of one batch change nothing."""
    solver = CASES[name].solver
    copies = np.broadcast_to(BATCH.lower, (getattr(solver, "lower_batches", solver.lower_steps), 3))
    state = solver.init(PROBLEM, np.ones(3), START[1], BATCH)
    # A step is compiled in half of the time that a solve takes for it, with its checks.
    step = jax.jit(lambda state, batch: solver.step(PROBLEM, state, batch, key)[0])
    one = step(state, BATCH)
    same = step(state, BATCH._replace(lower=bx.PerMove(copies)))
    np.testing.assert_allclose(one.u, same.u, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(one.v["a"], same.v["a"], rtol=1e-10, atol=1e-12)
    ramp = copies * np.linspace(0.1, 1, len(copies))[:, None]
    other = step(state, BATCH._replace(lower=bx.PerMove(ramp)))
    assert not np.allclose(one.v["a"], other.v["a"], rtol=1e-6)


def test_truncated_moves_have_the_data_that_all_moves_have(key):
    batch = BATCH._replace(lower=bx.PerMove(BATCH.lower * jnp.linspace(0.1, 1, 5)[:, None]))
    whole = bx.ReverseMode(UPPER, LOWER, 5)
    ends = []
    for solver in (whole, dataclasses.replace(whole, last=2)):
        state = solver.init(PROBLEM, jnp.ones(3), START[1], batch)
        ends.append(jax.jit(lambda s, solver=solver: solver.step(PROBLEM, s, batch, key))(state)[0].v)
    np.testing.assert_allclose(ends[0]["a"], ends[1]["a"], rtol=1e-12)
    np.testing.assert_allclose(ends[0]["b"], ends[1]["b"], rtol=1e-12)


@pytest.mark.parametrize("name", of_each_family(ON_PROBLEM, "ReverseMode, truncated", "SRBA"))
def test_lower_start(name, key):
    """v starts where the problem says, in every step."""
    solver = CASES[name].solver
    problem = dataclasses.replace(PROBLEM, lower_start=lambda u, batch, key: {"a": 2 * u, "b": jnp.sum(u)})
    u = jnp.ones(3)
    far = {"a": jnp.full(3, 1e6), "b": jnp.zeros(())}
    if getattr(solver, "last", None) is not None or isinstance(solver, bx.SRBA):
        with pytest.raises(bx.InputError, match=r"the derivative through the start would be lost|need a v that"):
            run(solver, problem, u, far, CASES[name].batch, 1, key)
        return
    state = solver.init(problem, u, far, BATCH)
    after = jax.jit(lambda state: solver.step(problem, state, BATCH, key)[0])(state)
    assert np.abs(after.v["a"]).max() < 10


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("solver", "fields", "message"),
    [
        (bx.Penalty, {"lower_steps": 0}, "lower_steps is 0, and must be a positive integer"),
        (bx.Penalty, {"lower_steps": 2.0}, "lower_steps is 2.0"),
        (bx.Penalty, {"gamma": Geometric(1.0, 0.9)}, "gamma decreases from 1 at stage 0 to 0.9"),
        (bx.Penalty, {"gamma": -1.0}, "gamma is -1 at stage 0, and must be positive"),
        (bx.Penalty, {"eps": 0.0}, "eps is 0 at stage 0"),
        (bx.Penalty, {"lam": lambda k: 1.0 - k}, "lam is -1 at stage 2, and must be zero or positive"),
        (bx.Penalty, {"nu": -0.5}, "nu is -0.5"),
        (bx.Penalty, {"step_scale": 0.0}, "step_scale is 0"),
        (bx.Penalty, {"stage_steps": 0}, "stage_steps is 0"),
        (bx.Implicit, {"lower_steps": -1}, "lower_steps is -1"),
        (bx.ReverseMode, {"last": 11}, "last is 11, and must be at most lower_steps, 10"),
        (bx.ReverseMode, {"segment": 0}, "segment is 0"),
        (bx.Alternating, {"lower_steps": True}, "lower_steps is True"),
        (bx.ForwardMode, {"lower_steps": 0}, "lower_steps is 0"),
        (Geometric, {"initial": -1.0, "factor": 2.0}, "initial is -1, and must be positive"),
    ],
)
def test_bad_hyperparameters(solver, fields, message):
    with pytest.raises(bx.InputError, match=message):
        solver(**fields)


def test_stages_move_as_the_paper_says(key):
    """gamma and nu change exactly where |grad_u|^2 + |grad_v|^2 <= eps_k^2, and eps_k falls."""
    solver = bx.Penalty(UPPER, ADAM)
    history = run(solver, PROBLEM, *START, BATCH, 2000, key).history
    stage = history.extra["stage"]
    ended = history.extra["stationarity"] <= 0.9**stage
    np.testing.assert_array_equal(np.diff(stage), ended[:-1].astype(int))
    np.testing.assert_allclose(history.extra["gamma"], 1.1**stage, rtol=1e-12)
    assert stage[-1] > 10


def test_stage_steps_end_a_stage(key):
    solver = bx.Penalty(UPPER, ADAM, stage_steps=10, eps=1e-12)
    stage = run(solver, PROBLEM, *START, BATCH, 35, key).history.extra["stage"]
    np.testing.assert_array_equal(stage, np.arange(35) // 10)


def test_regularizer_is_part_of_g(key):
    """mu = 1e-3 smoothing of |v| in g: v* is the soft threshold of u."""
    problem = bx.Problem(
        lambda u, v, _: jnp.sum((v - 1) ** 2),
        lambda u, v, _: 0.5 * jnp.sum((v - u) ** 2),
        regularizer=lambda u, v, mu: jnp.sum(jnp.sqrt(v**2 + mu**2)),
    )
    result = bx.solve(bx.Implicit(ADAM, LOWER, 20), problem, jnp.full(2, 3.0), jnp.ones(2), steps=2000, key=key)
    np.testing.assert_allclose(result.v, 1, atol=1e-3)
    np.testing.assert_allclose(result.u, 2, atol=3e-3)


def test_lam_keeps_v_from_a_maximum(key):
    """Where g curves down, |grad_v g|^2 alone is also small at a maximum of g; lam g moves v off it."""
    problem = bx.Problem(lambda u, v, _: (u - 1) ** 2 + 0.1 * v**2, lambda u, v, _: (v**2 - 1) ** 2)
    start = jnp.zeros(()), jnp.asarray(0.1)
    plain = bx.solve(bx.Penalty(ADAM, ADAM, nu=0.0), problem, *start, steps=3000, key=key)
    helped = bx.solve(bx.Penalty(ADAM, ADAM, nu=0.0, lam=Geometric(10.0, 0.9)), problem, *start, steps=3000, key=key)
    assert abs(float(plain.v)) < 0.1
    assert abs(abs(float(helped.v)) - 1) < 0.05


def test_a_solver_may_be_made_inside_a_traced_function():
    problem = bx.Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))

    @jax.jit
    def stepped(u):
        solver = bx.Penalty()  # its default schedules are looked at as it is made
        return solver.step(problem, solver.init(problem, u, u, bx.Batch()), bx.Batch(), jax.random.key(0))[0].u

    apart = bx.Penalty()
    state = apart.init(problem, jnp.zeros(2), jnp.zeros(2), bx.Batch())
    state = jax.jit(lambda state: apart.step(problem, state, bx.Batch(), jax.random.key(0))[0])(state)
    np.testing.assert_allclose(stepped(jnp.zeros(2)), state.u, rtol=1e-6)


@pytest.mark.parametrize("kind", {type(case.solver): case for case in KINDS.values()})
def test_info_is_that_of_a_point_and_of_the_direction(kind, key):
    """The losses and |grad_v g| are those at a point of the step; plain descent of u moves by `upper_grad_norm`."""
    case = next(case for case in CASES.values() if type(case.solver) is kind)
    changes = {"upper_optimizer": optax.sgd(1e-2), "lower_steps": 1}
    solver = dataclasses.replace(case.solver, **{k: x for k, x in changes.items() if hasattr(case.solver, k)})
    problem, batch, (u, v) = case.problem, case.batch, jax.tree.map(lambda x: x + 0.3, case.start)

    def slope(u, v):
        return derivatives.lower_gradient(problem, u, v, data_of_loss(batch.lower), key)

    @jax.jit
    def step(u, v):
        after, info = solver.step(problem, solver.init(problem, u, v, batch), batch, key)
        points = [v, after.v]
        if kind in (bx.BVFIM, bx.VPBGD):
            points.append(after.memory.z)
        if kind is bx.LookAhead:
            points.append(optax.tree.add_scale(v, -solver.rate, slope(u, v)[1]))
        points = [(a, b) for a in (u, after.u) for b in points]
        lower = [(g, optax.tree.norm(d)) for g, d in (slope(*point) for point in points)]
        upper = [problem.upper(*point, data_of_loss(batch.upper), key) for point in points]
        return info, lower, upper, optax.tree.norm(optax.tree.sub(after.u, u))

    info, lower, upper, moved = step(u, v)
    for found, known in zip(
        (info.upper_loss, info.lower_loss, info.lower_grad_norm), (upper, *zip(*lower, strict=True)), strict=True
    ):
        assert np.isclose(known, found, rtol=1e-6, atol=0).any()
    if hasattr(solver, "upper_optimizer"):
        np.testing.assert_allclose(moved, 1e-2 * info.upper_grad_norm * info.extra.get("step", 1), rtol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        bx.Alternating(lower_steps=3),
        bx.LookAhead(lower_steps=3),
        bx.ForwardMode(lower_steps=3),
        bx.ReverseMode(lower_steps=3),
        bx.ReverseMode(lower_steps=6, segment=2),
        bx.ReverseMode(lower_steps=5, segment=3, last=4),
    ],
    ids=lambda s: type(s).__name__,
)
def test_the_lower_loss_is_recorded_before_the_last_move(solver, key):
    solver = dataclasses.replace(solver, lower_optimizer=optax.sgd(0.05))
    fewer = dataclasses.replace(solver, lower_steps=solver.lower_steps - 1)

    @jax.jit
    def step(u, v):
        _, info = solver.step(PROBLEM, solver.init(PROBLEM, u, v, BATCH), BATCH, key)
        before, _ = fewer.step(PROBLEM, fewer.init(PROBLEM, u, v, BATCH), BATCH, key)
        at = before.u if isinstance(solver, bx.LookAhead) else u
        loss, slope = derivatives.lower_gradient(PROBLEM, at, before.v, BATCH.lower, key)
        return info, loss, optax.tree.norm(slope)

    info, loss, size = step(*jax.tree.map(lambda x: x + 0.3, START))
    assert float(info.lower_loss) == pytest.approx(float(loss), rel=1e-9)
    assert float(info.lower_grad_norm) == pytest.approx(float(size), rel=1e-9)


def test_u_and_v_are_checked(case):
    u, v = case.start
    for name, at in (("u", (jnp.full_like(u, jnp.nan), v)), ("v", (u, jax.tree.map(lambda x: x * jnp.nan, v)))):
        with pytest.raises(bx.InputError, match=f"^{name}"):
            case.solver.check(case.problem, *at, case.batch)

"""All optimizers of optax: each moves the variables of a solver, or is refused by name before anything runs."""

import dataclasses
import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import bilevax as bx
from bilevax import InputError, linear_solve
from bilevax._optimizers import Objective, check_optimizer, require_optimizer, update
from bilevax.applications.tuning import tune
from bilevax.applications.tuning.hyperparameters import LAYER_L2
from bilevax.argmin import Argmin
from bilevax.nn import Training, softmax_regression
from bilevax.search import Random, search
from tests.core.solvers import KINDS, of_each_class, of_each_family

# The refusals are tested by wrong arguments, which the checks of annotations would refuse first.
pytestmark = pytest.mark.usefixtures("annotations_unchecked")

ADAM, SGD = optax.adam(1e-2), optax.sgd(1e-2)
BACKTRACKING = optax.chain(optax.sgd(0.5), optax.scale_by_backtracking_linesearch(5))


def halved(step):
    return 0.1 / (1 + step)


def everywhere(label):
    return lambda x: jax.tree.map(lambda _: label, x)


def quietly(*arguments):
    """Made without the warning of an argument that optax itself still needs."""

    def make(make):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return make(*arguments)

    return make


# How each is made, by its name in optax: by a rate, by nothing, or by what it needs.
BY_RATE = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam nadamw
    novograd optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum sm3 yogi
    adaptive_grad_clip add_decayed_weights clip clip_by_block_rms clip_by_global_norm scale scale_by_learning_rate
    scale_by_rprop
    contrib.acprop contrib.ademamix contrib.adopt contrib.galore contrib.madgrad contrib.momo contrib.momo_adam
    contrib.muon contrib.scale_by_madgrad contrib.simplified_ademamix contrib.sophia
"""
BY_NOTHING = """
    apply_every centralize identity keep_params_nonnegative lbfgs normalize_by_update_norm polyak_sgd scale_by_adadelta
    scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad scale_by_belief scale_by_distance_over_gradients
    scale_by_factored_rms scale_by_lbfgs scale_by_lion scale_by_novograd scale_by_optimistic_gradient
    scale_by_param_block_norm scale_by_param_block_rms scale_by_polyak scale_by_radam scale_by_rms scale_by_rss
    scale_by_sign scale_by_sm3 scale_by_stddev scale_by_trust_ratio scale_by_yogi set_to_zero zero_nans
    contrib.cocob contrib.dadapt_adamw contrib.dog contrib.dowg contrib.hutchinson_estimator_diag_hessian
    contrib.normalize contrib.prodigy contrib.reduce_on_plateau contrib.scale_by_acprop contrib.scale_by_ademamix
    contrib.scale_by_adopt contrib.scale_by_cocob contrib.scale_by_galore contrib.scale_by_muon
    contrib.scale_by_simplified_ademamix contrib.schedule_free_adamw contrib.schedule_free_sgd
"""
BY_MORE = {
    "MultiSteps": lambda make: make(ADAM, 3),
    "add_noise": lambda make: make(0.01, 0.55, 0),
    "apply_if_finite": lambda make: make(ADAM, 5),
    "chain": lambda make: make(optax.clip(1.0), ADAM),
    "conditionally_mask": lambda make: make(ADAM, lambda step: step > 3),
    "conditionally_transform": lambda make: make(ADAM, lambda step: step > 3),
    "ema": lambda make: make(0.9),
    "flatten": lambda make: make(ADAM),
    "freeze": lambda make: make(False),
    "inject_hyperparams": lambda make: make(optax.adam)(learning_rate=halved),
    "lookahead": lambda make: make(ADAM, 5, 0.5),
    "masked": lambda make: make(ADAM, everywhere(True)),
    "measure_with_ema": lambda make: make(optax.tree.norm, 0.9),
    "monitor": lambda make: make({"norm": optax.tree.norm}),
    "multi_transform": lambda make: make({"a": ADAM, "b": SGD}, everywhere("a")),
    "named_chain": lambda make: make(("clip", optax.clip(1.0)), ("adam", ADAM)),
    "noisy_sgd": lambda make: make(1e-2, 0.01, 0.55, key=0),
    "partition": lambda make: make({"a": ADAM}, everywhere("a")),
    "scale_by_backtracking_linesearch": lambda make: make(5),
    "scale_by_schedule": lambda make: make(halved),
    "scale_by_zoom_linesearch": lambda make: make(5),
    "selective_transform": lambda make: make(ADAM, freeze_mask=False),
    "snapshot": lambda make: make("norm", optax.tree.norm),
    "stateless": lambda make: make(lambda d, x: d),
    "stateless_with_tree_map": lambda make: make(lambda d, x: d),
    "trace": lambda make: make(0.9),
    "with_extra_args_support": lambda make: make(ADAM),
    "contrib.differentially_private_aggregate": lambda make: make(1.0, 0.1, key=0),
    "contrib.dpsgd": quietly(1e-2, 1.0, 0.1, 0),
    "contrib.mechanize": lambda make: make(ADAM),
    "contrib.sam": lambda make: make(ADAM, SGD),
    "contrib.schedule_free": lambda make: make(SGD, 1e-2),
    "contrib.split_real_and_imaginary": lambda make: make(ADAM),
}
TABLE = (
    dict.fromkeys(BY_RATE.split(), lambda make: make(1e-2))
    | dict.fromkeys(BY_NOTHING.split(), lambda make: make())
    | BY_MORE
)
# Not optimizers of their own: replaced by another name of the table, with a warning.
DEPRECATED = {"optimistic_adam", "inject_stateful_hyperparams"}
# What they need beside the gradient.
VALUE = {"polyak_sgd", "scale_by_polyak", "contrib.momo", "contrib.momo_adam", "contrib.reduce_on_plateau"}
FUNCTION = {
    "lbfgs": "value_fn",
    "scale_by_backtracking_linesearch": "value_fn",
    "scale_by_zoom_linesearch": "value_fn",
    "contrib.sophia": "obj_fn",
    "contrib.hutchinson_estimator_diag_hessian": "obj_fn",
}
REFUSED = {
    "lookahead": "moves two copies of the parameters",
    "measure_with_ema": "returns updates of another structure",
    "monitor": "returns a state of another structure",
    "contrib.differentially_private_aggregate": "cannot move v: ValueError",  # gradients of each sample alone
    "contrib.dpsgd": "cannot move v: ValueError",
    "contrib.scale_by_muon": "cannot move v: ValueError",  # matrices alone
}
X = {"m": jnp.ones((4, 3)), "v": jnp.ones(3)}
MIXED = {"m": jnp.ones((4, 3), jnp.bfloat16), "v": jnp.ones(3, jnp.float32), "s": jnp.ones(())}


def made(name):
    module, last = (contrib, name.removeprefix("contrib.")) if name.startswith("contrib.") else (optax, name)
    return TABLE[name](getattr(module, last))


def loss(x):
    return sum(jnp.sum(a.astype(float) ** 2) for a in jax.tree.leaves(x))


def slope(x):
    return jax.tree.map(lambda a: 2 * a, x)


def known(x, what):
    """What a solver hands to an optimizer: nothing, the value, or all."""
    return {
        "nothing": None,
        "value": Objective(loss(x)),
        "function": Objective(loss(x), loss, slope),
    }[what]


def carried(optimizer, x, what):
    """The shapes after three moves in a compiled loop, which must keep all types."""

    def move(carry, _):
        x, state = carry
        updates, state = update(optimizer, slope(x), state, x, known(x, what))
        return (optax.apply_updates(x, updates), state), None

    return jax.eval_shape(lambda x: jax.lax.scan(move, (x, optimizer.init(x)), None, length=3)[0][0], x)


def test_the_table_holds_all_of_optax():
    found = set()
    for prefix, module in (("", optax), ("contrib.", contrib)):
        for name in dir(module):
            make = getattr(module, name)
            returns = str(getattr(make, "__annotations__", {}).get("return"))
            if callable(make) and not name.startswith("_") and "GradientTransformation" in returns:
                found.add(prefix + name)
    assert len(found) > 100
    assert found - set(TABLE) - DEPRECATED == set(), "optax has optimizers that this table does not know"
    assert set(REFUSED) | VALUE | set(FUNCTION) <= set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_an_optimizer_moves_a_variable_or_is_refused(name):
    optimizer = made(name)
    if name in REFUSED:
        with pytest.raises(InputError, match=f"Penalty: lower_optimizer .*{REFUSED[name]}"):
            check_optimizer("Penalty", "lower_optimizer", optimizer, "v", X, known(X, "function"))
        return
    needs = "value" if name in VALUE else "function" if name in FUNCTION else "nothing"
    check_optimizer("Penalty", "lower_optimizer", optimizer, "v", X, known(X, needs))
    after = carried(optimizer, X, needs)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), X)
    if needs != "nothing":
        missing = FUNCTION.get(name, "value")
        with pytest.raises(
            InputError, match=rf"Penalty: lower_optimizer needs the .*\({missing}\) beside the gradient"
        ):
            check_optimizer("Penalty", "lower_optimizer", optimizer, "v", X)


@pytest.mark.parametrize("name", ["adam", "lbfgs", "contrib.muon", "contrib.prodigy", "contrib.reduce_on_plateau"])
def test_leaves_of_several_types(name):
    optimizer = made(name)
    check_optimizer("Penalty", "lower_optimizer", optimizer, "v", MIXED, known(MIXED, "function"))
    after = carried(optimizer, MIXED, "function")
    assert {k: a.dtype for k, a in after.items()} == {k: a.dtype for k, a in MIXED.items()}


@pytest.mark.slow
@pytest.mark.parametrize("x", [MIXED, jnp.ones(3), jnp.ones(())], ids=["mixed", "vector", "scalar"])
@pytest.mark.parametrize("name", TABLE)
def test_what_is_not_refused_runs_on_other_variables(name, x):
    optimizer = made(name)
    try:
        check_optimizer("Penalty", "lower_optimizer", optimizer, "v", x, known(x, "function"))
    except InputError:
        return
    after = carried(optimizer, x, "function")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), x)


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (optax.adam, "is the function adam, .* Call it"),
        (halved, "is the function halved, .* schedule"),
        (lambda step: 0.1, "is the function <lambda>"),
        (0.01, "is 0.01, and must be an optax optimizer"),
        (np.float32(0.5), "is np.float32"),
        (jnp.ones(3), r"is an array of shape \(3,\)"),
        ("adam", "is 'adam'"),
        (None, "is None"),
        (True, "is True"),
        (optax.GradientTransformation, "is the class GradientTransformation"),
        ((ADAM, SGD), "is a tuple of 2, .* optax.chain"),
        ([ADAM], "is a list of 1"),
        (optax.GradientTransformation(1, 2), "is a GradientTransformation whose init or update is not a function"),
        ({"adam": ADAM}, "is a dict"),
    ],
)
def test_what_is_no_optimizer(optimizer, found):
    with pytest.raises(InputError, match=f"Implicit: upper_optimizer {found}"):
        require_optimizer("Implicit", "upper_optimizer", optimizer)


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (optax.sgd(lambda step: 0.1 if step < 5 else 0.01), "TracerBoolConversionError"),
        (optax.sgd("fast"), "cannot move v: TypeError"),
        (optax.sgd(jnp.ones(2)), "cannot move v: ValueError: Incompatible shapes"),
        (optax.sgd(jnp.ones((2, 1, 3))), r"returns updates with float64 of shape \(2, 4, 3\)"),
        (optax.masked(ADAM, {"other": True}), "cannot be started on v"),
        (optax.GradientTransformation(lambda x: "state", lambda d, s, x: (d, s)), "cannot be started on v"),
        (optax.GradientTransformation(lambda x: (), lambda d, s: (d, s)), "cannot move v: TypeError"),
        (optax.GradientTransformation(lambda x: (), lambda d, s, x: d), "returns updates of another structure"),
        (
            optax.GradientTransformation(lambda x: jnp.zeros((), int), lambda d, s, x: (d, s + 0.5)),
            "returns a state with float64 of shape .* for int64",
        ),
        (optax.MultiSteps(optax.polyak_sgd(), 2), "optax.MultiSteps around an optimizer that needs the loss"),
    ],
)
def test_optimizers_that_fail_are_refused(optimizer, found):
    with pytest.raises(InputError, match=f"Penalty: lower_optimizer .*{found}"):
        check_optimizer("Penalty", "lower_optimizer", optimizer, "v", X, known(X, "function"))


def test_a_line_search_and_a_projection():
    check_optimizer("Implicit", "lower_optimizer", ADAM, "v", X, known(X, "function"), projected=True)
    with pytest.raises(InputError, match="v is projected after each move"):
        check_optimizer("Implicit", "lower_optimizer", optax.lbfgs(), "v", X, known(X, "function"), projected=True)


# --- in solvers ------------------------------------------------------------------------------------------------------

TARGET = jnp.array([1.0, -2.0, 0.5])
# v*(u) = 2 u, so f is least where 2 (2 u - TARGET) 2 + 0.2 u = 0.
PROBLEM = bx.Problem(
    lambda u, v, _: jnp.sum((v - TARGET) ** 2) + 0.1 * jnp.sum(u**2),
    lambda u, v, _: 0.5 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * (v - 2 * u) ** 2),
    regularizer=lambda u, v, mu: 0.0 * jnp.sum(v),
)
SOLUTION = 4 * TARGET / 8.2
WEIGHTED = bx.Problem(lambda u, v, _: jnp.sum(v**2), lambda u, v, batch: jnp.mean(u[batch.index] * (v - 1) ** 2))
START = jnp.zeros(3), jnp.ones(3)
SOLVERS = [case.solver for case in KINDS.values()] + [bx.Vectorized(bx.Alternating())]


def sides(solver):
    solver = getattr(solver, "solver", solver)
    names = ("upper_optimizer", "lower_optimizer", "linear_optimizer", "value_optimizer")
    return [name for name in names if hasattr(solver, name)]


def with_optimizer(solver, side, optimizer):
    if isinstance(solver, bx.Vectorized):
        return bx.Vectorized(with_optimizer(solver.solver, side, optimizer))
    return dataclasses.replace(solver, **{side: optimizer})


def checked(solver):
    """`solver.check` on a problem that it can treat."""
    problem, u, v, batch = PROBLEM, *START, bx.Batch()
    if isinstance(solver, bx.LearningToReweight):
        problem, v, batch = WEIGHTED, jnp.ones(()), bx.Batch(lower=bx.whole(jnp.zeros(3)))
    if isinstance(solver, bx.MEHA):
        problem = dataclasses.replace(PROBLEM, regularizer=None)
    if isinstance(solver, bx.SABA):
        batch = bx.Blocks(jnp.zeros(1), jnp.zeros(1), 1, 1).last()
    if isinstance(solver, bx.SRBA):
        batch = bx.Batch(bx.PartAndWhole(None, None), bx.PartAndWhole(None, None))
    if isinstance(solver, bx.Vectorized):
        u, v = jnp.stack([u, u]), jnp.stack([v, v])
    solver.check(problem, u, v, batch)
    return problem, u, v, batch


def traced(solver):
    """Whether `check` lets a solver pass; if so, a step of it is traced, and keeps all shapes and types."""
    try:
        problem, u, v, batch = checked(solver)
    except InputError:
        return False
    state = solver.init(problem, u, v, batch)
    moved, _ = jax.eval_shape(lambda s, k: solver.step(problem, s, batch, k), state, jax.random.key(0))
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(moved)]
    assert shapes == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    return True


@pytest.mark.parametrize("solver", of_each_class(SOLVERS))
def test_every_solver_checks_its_optimizers(solver):
    name = type(getattr(solver, "solver", solver)).__name__
    for side in sides(solver):
        for optimizer, found in (
            (optax.adam, "is the function adam"),
            (0.1, "is 0.1"),
            (made("lookahead"), "is optax"),
        ):
            with pytest.raises(InputError, match=f"{name}: {side} {found}"):
                checked(with_optimizer(solver, side, optimizer))


@pytest.mark.parametrize("solver", of_each_family(SOLVERS, "Alternating", "LearningToReweight", "Vectorized"))
def test_an_optimizer_that_needs_the_loss_runs_where_it_is_not_refused(solver):
    """A step of each solver, traced: what `check` lets pass is what `step` hands on."""
    optimizers = optax.polyak_sgd(), BACKTRACKING
    ran = [traced(with_optimizer(solver, side, x)) for side in sides(solver) for x in optimizers]
    expected = {
        bx.Alternating: 4,
        bx.Vectorized: 4,
        bx.Implicit: 3,
        bx.LookAhead: 3,
        bx.LearningToReweight: 2,
        bx.ForwardMode: 3,
        bx.ReverseMode: 3,
        bx.GradientMatching: 1,
        bx.SparseHO: 1,
        bx.StocBiO: 2,
        bx.PZOBO: 2,
        bx.SAMA: 1,
        bx.BLOCC: 2,
    }
    assert sum(ran) == expected.get(type(solver), 0)


@pytest.mark.slow
def test_line_searches_and_plateaus_reach_the_solution(key):
    """L-BFGS finds v*(u) in a few moves; the upper rate falls where f no longer does."""
    upper = optax.chain(optax.adam(0.1), contrib.reduce_on_plateau(factor=0.5, patience=20))
    result = bx.solve(bx.Implicit(upper, optax.lbfgs(), 4), PROBLEM, *START, steps=300, key=key)
    np.testing.assert_allclose(result.u, SOLUTION, atol=1e-3)
    np.testing.assert_allclose(result.v, 2 * result.u, atol=1e-3)
    assert result.state.upper_opt[1].scale < 0.1  # the plateau was seen


def test_the_polyak_step_is_that_of_the_loss(key):
    """g = |v - 2 u|^2 with least value 0: a step of (g - 0) / |grad g|^2 along the gradient halves v - 2 u."""
    problem = bx.Problem(lambda u, v, _: jnp.sum(u**2), lambda u, v, _: jnp.sum((v - 2 * u) ** 2))
    u, v = jnp.array([1.0, 2.0]), jnp.array([5.0, -1.0])
    result = bx.solve(bx.Alternating(optax.sgd(0.0), optax.polyak_sgd(), 3), problem, u, v, steps=1, key=key)
    np.testing.assert_allclose(result.v - 2 * u, (v - 2 * u) / 8, rtol=1e-7)


def test_search_and_argmin_take_line_searches(key):
    shifted = bx.Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))
    result = search(
        Random(4),
        shifted,
        jnp.zeros(2),
        jnp.ones(2),
        jnp.zeros(2),
        trials=4,
        key=key,
        lower_steps=3,
        lower_optimizer=BACKTRACKING,
    )
    np.testing.assert_allclose(result.v, result.u, atol=1e-8)
    argmin = Argmin(lambda u, v, _: jnp.sum((v - u**2) ** 2), BACKTRACKING, steps=3)
    u = jnp.array([1.0, 3.0])
    np.testing.assert_allclose(argmin(u, jnp.zeros(2)), u**2, rtol=1e-8)
    np.testing.assert_allclose(jax.grad(lambda u: jnp.sum(argmin(u, jnp.zeros(2))))(u), 2 * u, rtol=1e-6)


def test_refusals_outside_of_solvers(key):
    problem = bx.Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))
    box = jnp.zeros(2), jnp.ones(2), jnp.zeros(2)
    for optimizer, found in ((optax.adam, "is the function adam"), (made("lookahead"), "is optax.lookahead")):
        with pytest.raises(InputError, match=f"search: lower_optimizer {found}"):
            search(Random(), problem, *box, trials=1, key=key, lower_optimizer=optimizer)
        with pytest.raises(InputError, match=f"Argmin: optimizer {found}"):
            Argmin(problem.lower_loss, optimizer)(jnp.ones(2), jnp.ones(2))
        with pytest.raises(InputError, match=f"ByOptimizer: optimizer {found}"):
            linear_solve.ByOptimizer(optimizer)(lambda q: (None, q), jnp.ones(2), jnp.zeros(2))
    with pytest.raises(InputError, match="ByOptimizer: optimizer needs the loss as a function"):
        linear_solve.ByOptimizer(optax.lbfgs())(lambda q: (None, q), jnp.ones(2), jnp.zeros(2))


@pytest.mark.parametrize(
    ("rate", "found"),
    [
        (lambda step: 0.1 if step < 5 else 0.01, "cannot be a schedule: TracerBoolConversionError"),
        (lambda step: math.pow(0.5, step), "cannot be a schedule"),
        (optax.adam, "cannot be a schedule"),
        (lambda: 0.1, "cannot be a schedule: TypeError"),
        (lambda step: jnp.ones(3), r"returns float64 of shape \(3,\) for a step"),
        (lambda step: step, "returns int32"),
        (lambda step: None, "cannot be a schedule"),
    ],
)
def test_schedules_of_trainings(rate, found):
    with pytest.raises(InputError, match=f"Training: rate .*{found}"):
        Training(rate=rate)
    Training(rate=optax.cosine_decay_schedule(0.1, 10))


def test_tune_checks_the_optimizer_of_its_training(key):
    x, y = np.random.default_rng(0).random((12, 3)), np.arange(12) % 2
    with pytest.raises(InputError, match="tune: train_optimizer is the function adam"):
        tune(softmax_regression(2), x, y, x, y, [LAYER_L2], key=key, train_optimizer=optax.adam)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_every_optimizer_in_every_solver(solver):
    """Refused in a sentence, or traced as part of a step that keeps all shapes and types."""
    for name, side in itertools.product(TABLE, sides(solver)):
        print(name, side)  # shown where it fails
        traced(with_optimizer(solver, side, made(name)))

"""What an optax optimizer has to be for a variable, checked by shapes before anything runs, and its update."""

import re
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from bilevax._checks import InputError, first_line


class Objective(NamedTuple):
    """The function whose gradient moves a variable, for optimizers that ask for more than the gradient.

    `value` is its value at the variable, which `optax.polyak_sgd` and `optax.contrib.reduce_on_plateau` need.
    `function` evaluates it elsewhere, as line searches (`optax.lbfgs`) need; `gradient` is its gradient. Both are None
    where the value alone is known.
    """

    value: Any
    function: Callable[[PyTree], Any] | None = None
    gradient: Callable[[PyTree], PyTree] | None = None


_OF_ARGUMENTS = re.compile("keyword|must be provided")
# What an optimizer may ask for beside the gradient, tried in this order: some refuse what they do not know.
_ASKED: tuple[tuple[str, ...], ...] = (
    (),
    ("value", "grad"),  # optax.polyak_sgd, optax.contrib.reduce_on_plateau
    ("value", "grad", "value_fn"),  # line searches
    ("obj_fn",),  # optax.contrib.sophia
    ("grad_fn",),  # optax.contrib.sam
    ("value", "grad", "value_fn", "obj_fn", "grad_fn"),
)


def update(
    optimizer: Any, gradient: PyTree, opt_state: Any, x: PyTree, objective: Objective | None = None
) -> tuple[PyTree, Any]:
    """`optimizer.update`, with what it asks for of the objective; its state keeps its types.

    Some optimizers promote parts of their state (float32 in a process with 64-bit numbers, bfloat16 beside float32),
    which a compiled loop cannot carry.
    """
    asked: tuple[str, ...] | None = ()
    if objective is not None and (asked := _remembered(optimizer, objective)) is None:
        asked, _ = _attempt(optimizer, gradient, opt_state, x, objective)
    updates, new = optimizer.update(gradient, opt_state, x, **_extra(asked, gradient, objective))
    return updates, jax.tree.map(_as, new, opt_state)


def away_from_zero(gradient: PyTree) -> PyTree:
    """Return a gradient whose exact zeros are replaced by tiny numbers.

    The derivative of an optimizer there is finite: Adam and similar optimizers take the square root of a mean of
    squares, whose derivative at zero is 0 times infinity.
    """
    return jax.tree.map(lambda d: jnp.where(d == 0, jnp.finfo(d.dtype).tiny ** 0.4, d).astype(d.dtype), gradient)


def learning_rate(optimizer: Any) -> float | None:
    """The rate of gradient descent with a constant rate, without momentum; None for any other optimizer."""
    rates = []
    try:
        with jax.ensure_compile_time_eval():
            x = jnp.zeros(2)
            state = optimizer.init(x)
            for entries in ((1.0, 2.0), (3.0, -1.0), (-0.5, 0.25)):
                gradient = jnp.array(entries)
                updates, state = optimizer.update(gradient, state, x)
                rates += np.asarray(-updates / gradient, float).tolist()
    except Exception:  # it needs the loss, or v itself
        return None
    within = 1e-5 * abs(rates[0])
    return rates[0] if rates[0] > 0 and all(abs(x - rates[0]) <= within for x in rates) else None


def require_optimizer(owner: str, name: str, optimizer: Any) -> None:
    """Refuse what is not an optimizer: a function that makes one, a number, a schedule, a tuple of optimizers.

    Raises:
        InputError: `optimizer` has no functions `init` and `update`.
    """
    if isinstance(optimizer, type):
        found = f"the class {optimizer.__name__}"
    elif callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return
    elif isinstance(optimizer, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
        found = "a GradientTransformation whose init or update is not a function"
    elif callable(optimizer):
        label = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise InputError(
            f"{owner}: {name} is the function {label}, and must be an optax optimizer. Call it if it makes one "
            "(optax.adam(1e-2), not optax.adam), or pass it to one if it is a schedule (optax.adam(schedule))."
        )
    elif isinstance(optimizer, bool | int | float | np.generic | np.ndarray | jax.Array):
        found = f"{optimizer!r}" if np.ndim(optimizer) == 0 else f"an array of shape {np.shape(optimizer)}"
    elif isinstance(optimizer, tuple | list):
        raise InputError(
            f"{owner}: {name} is a {type(optimizer).__name__} of {len(optimizer)}, and must be one optax optimizer. "
            "Join several by optax.chain(first, second)."
        )
    elif optimizer is None or isinstance(optimizer, str):
        found = repr(optimizer)
    else:
        found = f"a {type(optimizer).__name__}"
    raise InputError(f"{owner}: {name} is {found}, and must be an optax optimizer, such as optax.adam(1e-2).")


def require_schedule(owner: str, name: str, schedule: Callable[[Any], Any]) -> None:
    """Refuse a function that gives no rate for a step, or that cannot be traced.

    Raises:
        InputError: so it is.
    """
    try:
        rate = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
        good = rate.shape == () and jnp.issubdtype(rate.dtype, jnp.floating)
        found = "" if good else f"{rate.dtype} of shape {rate.shape} for a step"
    except Exception as error:
        raise InputError(
            f"{owner}: {name} is a function that cannot be a schedule: {first_line(error)} It must give a number for "
            "a step, and be traced by JAX (jnp.where in place of if, jnp in place of math)."
        ) from error
    if found:
        raise InputError(f"{owner}: {name} returns {found}, and must return one floating number, the rate.")


def check_optimizer(
    owner: str,
    name: str,
    optimizer: Any,
    variable: str,
    x: PyTree,
    objective: Objective | None = None,
    projected: bool = False,
) -> None:
    """Refuse an optimizer that cannot move a variable. Only shapes are computed.

    Args:
        owner: for the message, the solver or function that is to use the optimizer.
        name: its name as an argument of `owner`.
        optimizer: what to check.
        variable: the name of the variable that it is to move.
        x: the variable, arrays or their shapes.
        objective: what `update` will be given, by shapes; None where the direction is not a function's gradient.
        projected: whether the variable is projected after each move, which a line search knows nothing of.

    Raises:
        InputError: it is not an optimizer; it fails on the shapes of x; it asks for what `owner` does not have; its
            updates or its state do not keep their shapes.
    """
    require_optimizer(owner, name, optimizer)
    x = jax.tree.map(_shape, x)
    what, instead = f"{owner}: {name}", "Pass another optimizer, such as optax.adam(1e-2)."
    try:
        state = jax.eval_shape(optimizer.init, x)
    except Exception as error:
        raise InputError(f"{what} cannot be started on {variable}: {first_line(error)} {instead}") from error
    if any(map(_is_lookahead, jax.tree.leaves(state, is_leaf=_is_lookahead))):
        raise InputError(
            f"{what} is optax.lookahead, which moves two copies of the parameters (optax.LookaheadParams), and "
            f"{owner} has the one {variable}. {instead}"
        )
    try:
        asked, (updates, moved) = _attempt(optimizer, x, state, x, objective)
    except Exception as error:
        if more := _asks_for_more(optimizer, state, x, objective):
            raise InputError(
                f"{what} needs {more} beside the gradient, which {owner} does not have for the direction in which it "
                f"moves {variable}. Pass an optimizer that needs the gradient alone, such as optax.adam(1e-2); of "
                "optax.lbfgs, optax.lbfgs(1e-2, linesearch=None)."
            ) from error
        raise InputError(f"{what} cannot move {variable}: {first_line(error)} {instead}") from error
    if asked and isinstance(optimizer, optax.MultiSteps):
        raise InputError(
            f"{what} is an optax.MultiSteps around an optimizer that needs the loss, and the mean of several gradients "
            "comes without one. Use that optimizer without MultiSteps, or another within it."
        )
    if "value_fn" in asked and projected:
        raise InputError(
            f"{what} evaluates the loss along its step, and {variable} is projected after each move, which changes "
            "that step. Pass an optimizer without a line search, such as optax.adam(1e-2)."
        )
    _keeps(f"{what} returns updates", updates, x, variable)
    _keeps(f"{what} returns a state", moved, state, "")


def _update_shapes(
    optimizer: Any, gradient: PyTree, state: Any, x: PyTree, objective: Objective | None, asked: tuple[str, ...]
) -> Any:
    """The shapes of an update that is given what it asks for."""
    if not asked:  # the optimizer's own function: JAX keeps its trace, which the step then uses again
        return jax.eval_shape(optimizer.update, gradient, state, x)

    def one(gradient: PyTree, state: Any, x: PyTree, value: Any) -> Any:
        known = None if objective is None else objective._replace(value=value)
        return optimizer.update(gradient, state, x, **_extra(asked, gradient, known))

    return jax.eval_shape(one, gradient, state, x, None if objective is None else objective.value)


def _attempt(
    optimizer: Any, gradient: PyTree, state: Any, x: PyTree, objective: Objective | None
) -> tuple[tuple[str, ...], tuple[Any, Any]]:
    """What an optimizer asks for beside the gradient, the least that it takes of what there is; its update's shapes.

    Raises what the optimizer raises where none of it helps.
    """
    failures: list[Exception] = []
    known = _remembered(optimizer, objective)
    for asked in _on_offer(optimizer, objective) if known is None else [known]:
        try:
            updates, moved = _update_shapes(optimizer, gradient, state, x, objective, asked)
        except Exception as error:
            failures.append(error)
        else:
            _remember(optimizer, asked)
            return asked, (updates, moved)
    # Most attempts fail for what they lack or have in excess: another reason is the one to name.
    raise next((e for e in failures if not _OF_ARGUMENTS.search(str(e))), failures[0])


def _on_offer(optimizer: Any, objective: Objective | None) -> tuple[tuple[str, ...], ...]:
    """The attempts for which there is what they hand on."""
    if objective is None or not isinstance(optimizer, optax.GradientTransformationExtraArgs | optax.MultiSteps):
        return _ASKED[:1]
    return _ASKED[:2] if objective.function is None else _ASKED


# By the update function, since attempts are traced: a line search takes a second.
_found: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _remember(optimizer: Any, asked: tuple[str, ...]) -> None:
    if isinstance(optimizer.update, types.FunctionType):
        _found[optimizer.update] = asked


def _remembered(optimizer: Any, objective: Objective | None) -> tuple[str, ...] | None:
    """What an earlier attempt has found, if that is on offer here."""
    asked = _found.get(optimizer.update) if isinstance(optimizer.update, types.FunctionType) else None
    return asked if asked in _on_offer(optimizer, objective) else None


def _extra(asked: tuple[str, ...], gradient: PyTree, objective: Objective | None) -> dict[str, Any]:
    """What an optimizer asks for, by its names."""
    if objective is None:
        return {}
    slope = objective.gradient
    known = {
        "value": objective.value,
        "grad": gradient,
        "value_fn": objective.function,
        "obj_fn": objective.function,
        "grad_fn": None if slope is None else lambda x, _: slope(x),
    }
    return {name: known[name] for name in asked}


def _asks_for_more(optimizer: Any, state: Any, x: PyTree, objective: Objective | None) -> str:
    """What would make an update possible that failed: the value of the loss, or the loss as a function; or nothing."""
    if objective is not None and objective.function is not None:
        return ""
    number = jax.ShapeDtypeStruct((), jnp.result_type(*jax.tree.leaves(x)))

    def total(x: PyTree) -> Any:
        return sum((jnp.sum(a.astype(number.dtype)) for a in jax.tree.leaves(x)), jnp.zeros((), number.dtype))

    try:
        asked, _ = _attempt(optimizer, x, state, x, Objective(number, total, lambda x: x))
    except Exception:
        return ""
    return {
        (): "",
        ("value", "grad"): "the value of the loss (value)",
        ("grad_fn",): "the gradient of the loss as a function (grad_fn)",
        ("obj_fn",): "the loss as a function (obj_fn)",
    }.get(asked, "the loss as a function (value_fn)")


def _keeps(what: str, found: Any, wanted: Any, variable: str) -> None:
    """Refuse another structure, other shapes or, of a state (no variable's name given), other types."""
    of = f"and must be shaped like {variable}" if variable else "and must keep it as init made it"
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        counts = f"{len(jax.tree.leaves(found))} arrays for {len(jax.tree.leaves(wanted))}"
        raise InputError(f"{what} of another structure ({counts}), {of}. Pass another optimizer.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, a), b in pairs:
        kept = _as(a, b).dtype == b.dtype if not variable else not jnp.issubdtype(a.dtype, jnp.complexfloating)
        if a.shape != b.shape or not kept:
            where = jax.tree_util.keystr(path)
            raise InputError(
                f"{what} with {a.dtype} of shape {a.shape}{f' at {where}' if where else ''} for {b.dtype} of shape "
                f"{b.shape}, {of}. Look at its learning rate, masks and labels, or pass another optimizer."
            )


def _is_lookahead(state: Any) -> bool:
    return isinstance(state, optax.LookaheadState)


def _as(new: Any, old: Any) -> Any:
    """A floating leaf in the type that it had before."""
    kinds = _type(new), _type(old)
    if kinds[0] == kinds[1] or not all(jnp.issubdtype(t, jnp.floating) for t in kinds):
        return new
    if isinstance(new, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(new.shape, kinds[1])
    return jnp.asarray(new, kinds[1])


def _type(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), _type(x))

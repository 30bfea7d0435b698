"""Search over u by trials."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax._arrays import check_finite, check_key, check_variable
from bilevax._checks import InputError, require_count
from bilevax._programs import compiled
from bilevax.loop import signals
from bilevax.loop.result import Result, SolveError, SolveInterrupted
from bilevax.loop.sources import Source, resident
from bilevax.loop.status import Status
from bilevax.problem import Batch, Problem
from bilevax.search.samplers import HUGE, Sampler
from bilevax.search.training import check_trainer, trained
from bilevax.solvers import base
from bilevax.solvers.base import Info


@compiled("problem", "optimizer", "steps")
def train_all(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    steps: int,
    u: PyTree,
    v: PyTree,
    source: Source,
    key: PRNGKeyArray,
) -> tuple[PyTree, Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """Train v for a stack of n points u: v of the trial with the least f, and f, g and |grad_v g| of each."""

    def one(u: PyTree) -> tuple[PyTree, Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        end, f, g, norm = trained(problem, optimizer, steps, u, v, source, key)
        return end, jnp.where(base.all_finite((end, f)), f, jnp.nan), g, norm

    ends, f, g, norm = jax.vmap(one)(u)
    least = jnp.argmin(jnp.where(jnp.isfinite(f), f, jnp.inf))
    return jax.tree.map(lambda x: x[least], ends), f, g, norm


def search(
    sampler: Sampler,
    problem: Problem,
    low: PyTree,
    high: PyTree,
    v: PyTree,
    batches: Batch | Source | None = None,
    *,
    trials: int,
    key: PRNGKeyArray,
    lower_steps: int = 100,
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2),
    first: PyTree | None = None,
    seconds: float | None = None,
    throw: bool = True,
) -> Result:
    """Search for the u with the least f(u, v*(u)) by trials, without derivatives in u.

    Args:
        sampler: `Random`, `TPE` or `GP`.
        problem: the problem, without constraints.
        low, high: bounds of u, pytrees shaped like it.
        v: where v starts in each trial.
        batches: None, one fixed Batch, or a source. Lower step t of each trial uses the lower batch of step t, so all
            trials use the same batches. f is evaluated on the upper batch of step 0, which should be all samples.
        trials: the number of trials.
        key: a jax.random key.
        lower_steps: steps of v in each trial; each evaluates one gradient of g.
        lower_optimizer: any optax optimizer; its state starts anew in each trial.
        first: a u within the bounds that is tried before all others, for example the default.
        seconds: no trial starts after this time; None for no limit.
        throw: raise SolveError if every trial failed; with False, return a Result with that status.

    Returns:
        A Result, as from `solve`. u is the best point tried, and v was trained for it. `steps` is the number of trials.
        `history` has an entry for each trial: f (NaN where it failed), g, |grad_v g|, and in `extra` the least f so far
        (`best_loss`), the `seconds` since the start, and the gradients of g so far (`gradient_evaluations`). `state`
        holds all u that were tried, with leading axis `steps`. Trials trained together have the same `seconds`.

    Raises:
        InputError: the bounds are not finite, differ in shape, or are swapped; `first` is outside the bounds; the
            problem has constraints; the optimizer does not fit v; the package of the sampler is not installed.
        SolveError: f was not finite in any trial.
        SolveInterrupted: after Ctrl-C, which ends the search after the running trials; `.result` holds the trials so
            far.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Problem
        >>> from bilevax.search import Random, search
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 0.5) ** 2), lambda u, v, data: jnp.sum((v - u) ** 2))
        >>> result = search(
        ...     Random(), problem, jnp.zeros(1), jnp.ones(1), jnp.zeros(1), trials=200, key=jax.random.key(0)
        ... )
        >>> bool(abs(result.u[0] - 0.5) < 0.1), result.history.extra["gradient_evaluations"][-1].item()
        (True, 20000)
    """
    trials, lower_steps, together = _check(sampler, problem, batches, trials, lower_steps, seconds, key)
    lowest, highest, unravel = _bounds(low, high)
    start = None if first is None else _inside(first, low, lowest, highest)
    source, drawn, farthest = resident("search: batches", batches, key)
    middle = unravel(jnp.asarray((lowest + highest) / 2))
    check_variable("v", v)
    problem.check(middle, v, farthest)
    check_trainer("search", "lower_optimizer", lower_optimizer, problem, middle, v, drawn)
    v = jax.tree.map(jnp.asarray, v)
    seed_key, trial_key = jax.random.split(key)
    proposals = sampler.start(lowest, highest, start, int(jax.random.bits(seed_key, dtype=jnp.uint32)))

    best_u, best_v, best = middle, v, np.inf
    points: list[np.ndarray] = []
    rows: list[tuple[float, ...]] = []
    status, began = Status.FINISHED, time.perf_counter()
    dtype = ravel_pytree(middle)[0].dtype
    try:
        with signals.deferred(signals.INTERRUPT) as stopped:
            while len(rows) < trials:
                stopped.poll()
                if stopped:
                    status = Status.INTERRUPTED
                    break
                if seconds is not None and time.perf_counter() - began > seconds and rows:
                    status = Status.STOPPED
                    break
                count = min(together, trials - len(rows))
                proposed = proposals.ask(count)
                # The last, smaller group is padded to the size that is compiled.
                stack = jnp.asarray(np.concatenate([proposed, np.repeat(proposed[:1], together - count, axis=0)]))
                tried = jax.vmap(unravel)(stack.astype(dtype))
                end, *losses = train_all(problem, lower_optimizer, lower_steps, tried, v, source, trial_key)
                f, g, norm = (np.asarray(x, float)[:count] for x in losses)
                proposals.tell(f)
                passed = time.perf_counter() - began
                if np.isfinite(f).any() and np.nanmin(f) < best:
                    i = int(np.nanargmin(f))
                    best, best_u, best_v = float(f[i]), jax.tree.map(lambda x, i=i: x[i], tried), end
                points.extend(proposed)
                rows.extend((*row, passed) for row in zip(f, g, norm, strict=True))
    except KeyboardInterrupt:  # a second Ctrl-C, during the trials
        status = Status.INTERRUPTED
    if status is Status.INTERRUPTED and not rows:
        raise KeyboardInterrupt
    if not np.isfinite(best) and status is not Status.INTERRUPTED:
        status = Status.NON_FINITE
    history = _history(np.array(rows), lower_steps)
    count = len(rows)
    points_tried = jax.device_get(jax.vmap(unravel)(jnp.asarray(np.array(points[:count]), dtype)))
    result = Result(best_u, best_v, status, count, history, points_tried)
    if status is Status.INTERRUPTED:
        raise SolveInterrupted(f"Trial {count} of {trials}: the search was interrupted from the keyboard.", result)
    if throw and status is Status.NON_FINITE:
        raise SolveError(
            f"f was not finite in any of {count} trials. Lower lower_optimizer's step size, or narrow the bounds.",
            result,
        )
    return result


def _check(
    sampler: Any, problem: Any, batches: Any, trials: Any, lower_steps: Any, seconds: Any, key: Any
) -> tuple[int, int, int]:
    """The counts `trials`, `lower_steps` and `together`; raise InputError for arguments that cannot be used."""
    if isinstance(sampler, type) or not callable(getattr(sampler, "start", None)) or not hasattr(sampler, "together"):
        found = f"the class {sampler.__name__}" if isinstance(sampler, type) else repr(sampler)
        raise InputError(f"search: sampler is {found}, and must be a sampler, such as Random() or TPE().")
    counts = (("trials", trials), ("lower_steps", lower_steps), ("together", sampler.together))
    trials, lower_steps, together = (require_count("search", name, count) for name, count in counts)
    if seconds is not None and not (_is_number(seconds) and seconds >= 0):
        raise InputError(f"search: seconds is {seconds!r}, and must be zero or positive, or None for no limit.")
    if not isinstance(problem, Problem):
        raise InputError(f"search: problem is {problem!r}, and must be a bilevax.Problem.")
    check_key("search", key)
    if problem.constraints:
        raise InputError(
            f"search does not support upper-level constraints, and this problem has {len(problem.constraints)}. Use "
            "the solver Penalty."
        )
    sampled = callable(getattr(batches, "at", None)) and not isinstance(batches, type)
    if not (batches is None or isinstance(batches, Batch) or sampled):
        raise InputError(
            f"search: batches is a {type(batches).__name__}. Pass a Batch, or a source such as Minibatches. An "
            "iterable of batches is not supported, since all trials use the same batches, drawn on the device."
        )
    return trials, lower_steps, together


def _history(rows: Float[np.ndarray, "n 4"], lower_steps: int) -> Info:
    """The history of trials with the columns f, g, |grad_v g| and seconds."""
    f, g, norm, passed = rows.T
    extra = {
        "best_loss": np.minimum.accumulate(np.where(np.isfinite(f), f, np.inf)),
        "seconds": passed,
        "gradient_evaluations": lower_steps * np.arange(1, len(f) + 1),
    }
    return Info(f, g, np.full(len(f), np.nan), norm, extra)


def _bounds(
    low: PyTree, high: PyTree
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"], Callable[[Any], PyTree]]:
    """Both bounds as flat arrays, and the function that turns such an array into u."""
    check_variable("low", low)
    check_variable("high", high)
    if not _shaped_alike(low, high):
        raise InputError(
            f"low has shapes {jax.tree.map(np.shape, low)} and high {jax.tree.map(np.shape, high)}. "
            "Both must be shaped like u."
        )
    low, high = jax.tree.map(jnp.asarray, (low, high))
    check_finite("low", low)
    check_finite("high", high)
    flat, unravel = ravel_pytree(low)
    lowest, highest = np.asarray(flat, float), np.asarray(ravel_pytree(high)[0], float)
    if wrong := int((~(lowest < highest)).sum()):
        raise InputError(f"low is not below high in {wrong} of {len(lowest)} entries. Swap or widen those bounds.")
    if not np.isfinite(highest / 2 - lowest / 2).all() or (highest / 2 - lowest / 2).max() > HUGE:
        raise InputError("high - low is too large. Narrow the bounds.")
    return lowest, highest, unravel


def _inside(
    first: PyTree, low: PyTree, lowest: Float[np.ndarray, " d"], highest: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    """The flat `first`, if it lies within the bounds."""
    check_variable("first", first)
    first = jax.tree.map(jnp.asarray, first)
    check_finite("first", first)
    if not _shaped_alike(first, low):
        raise InputError(
            f"first has shapes {jax.tree.map(np.shape, first)} and the bounds {jax.tree.map(np.shape, low)}. "
            "It must be shaped like u."
        )
    point = np.asarray(ravel_pytree(first)[0], float)
    room = 1e-6 * (highest - lowest)  # the bounds and `first` may be rounded in different dtypes
    if outside := int(((point < lowest - room) | (point > highest + room)).sum()):
        raise InputError(
            f"first is outside the bounds in {outside} of {point.size} entries. Move it into them, or widen them."
        )
    return np.clip(point, lowest, highest)


def _shaped_alike(one: PyTree, other: PyTree) -> bool:
    form, other_form = ((jax.tree.structure(x), [np.shape(a) for a in jax.tree.leaves(x)]) for x in (one, other))
    return form == other_form


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)

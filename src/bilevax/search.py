"""Derivative-free search over u: the baselines that a gradient method has to beat.

Each trial draws u within bounds, trains v from its start down g, and looks at f. What a sampler learns from
earlier trials makes the method: `Random` nothing (Bergstra and Bengio 2012), `TPE` and `GP` as Optuna has them.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bilevax._checks import InputError, PyTree, check_finite, check_key, check_variable, require_count
from bilevax._optimizers import check_optimizer
from bilevax._programs import compiled
from bilevax.loop import signals
from bilevax.loop.result import Result, SolveError, SolveInterrupted, Status
from bilevax.loop.sources import Source, resident
from bilevax.problem import Batch, Problem, identity
from bilevax.solvers import base
from bilevax.solvers.base import Info

FIRST_TRIALS = 10  # that Optuna's samplers draw at random
HUGE, FAR = 1e100, 100.0
MOST_ENTRIES = 10_000  # of u, for the samplers of Optuna


class Proposals(NamedTuple):
    """The proposals of a sampler: `ask(n)` returns n points (n, d), `tell(losses)` records their losses (n,)."""

    ask: Callable[[int], np.ndarray]
    tell: Callable[[np.ndarray], None]


class Sampler(Protocol):
    """Where `search` gets its points from.

    `together` trials are asked for at once, and trained at once under vmap.
    """

    @property
    def together(self) -> int:
        """Trials at once."""
        ...

    def start(self, low: np.ndarray, high: np.ndarray, first: np.ndarray | None, seed: int) -> Proposals:
        """Proposals between low and high (d,), `first` before all others where it is given."""
        ...


@dataclass(frozen=True)
class Random:
    """Each u uniform between its bounds, whatever came before (Bergstra and Bengio 2012).

    Args:
        together: trials trained at once. They do not wait for each other's outcome, so many may be.
    """

    together: int = 8

    def start(self, low: np.ndarray, high: np.ndarray, first: np.ndarray | None, seed: int) -> Proposals:
        """Proposals that learn nothing."""
        generator = np.random.default_rng(seed)
        waiting = [] if first is None else [first]

        def ask(n: int) -> np.ndarray:
            points = generator.uniform(low, high, (n, len(low)))
            if waiting:
                points[0] = waiting.pop()
            return points

        return Proposals(ask, lambda losses: None)


@dataclass(frozen=True)
class TPE:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    Args:
        together: trials asked for before the loss of the first is known. More are faster and learn less.
    """

    together: int = 1

    def start(self, low: np.ndarray, high: np.ndarray, first: np.ndarray | None, seed: int) -> Proposals:
        """Proposals by Optuna."""
        optuna = _optuna("TPE", len(low))
        return _by_optuna(optuna.samplers.TPESampler(seed=seed), low, high, first)


@dataclass(frozen=True)
class GP:
    """Optuna's Gaussian process with expected improvement (Snoek et al. 2012). It needs torch.

    Args:
        together: trials asked for before the loss of the first is known.
    """

    together: int = 1

    def start(self, low: np.ndarray, high: np.ndarray, first: np.ndarray | None, seed: int) -> Proposals:
        """Proposals by Optuna."""
        optuna = _optuna("GP", len(low))
        if importlib.util.find_spec("torch") is None:
            raise InputError("GP needs torch, which is not installed. Install it by pip install torch, or take TPE.")
        with warnings.catch_warnings():  # Optuna marks it as experimental
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.GPSampler(seed=seed)
        return _by_optuna(sampler, low, high, first)


def _optuna(owner: str, entries: int) -> Any:
    if entries > MOST_ENTRIES:
        raise InputError(
            f"{owner}: u has {entries:,} entries, which it proposes one by one, for minutes. At most {MOST_ENTRIES:,}: "
            "take Random, or a solver that follows the gradient."
        )
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f"{owner} needs optuna, which is not installed. Install it by pip install 'bilevax[apps]', or take Random."
        ) from error
    return optuna


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log at warnings, and its own warnings off, within."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _by_optuna(sampler: Any, low: np.ndarray, high: np.ndarray, first: np.ndarray | None) -> Proposals:
    import optuna

    names = [f"u{i:06d}" for i in range(len(low))]
    distributions: Any = {
        name: optuna.distributions.FloatDistribution(float(a), float(b))
        for name, a, b in zip(names, low, high, strict=True)
    }
    with _quiet():
        study = optuna.create_study(sampler=sampler, direction="minimize")
        if first is not None:
            study.enqueue_trial(dict(zip(names, first.tolist(), strict=True)))
    asked: list[Any] = []
    found: list[float] = []
    reported = 0

    def ask(n: int) -> np.ndarray:
        with _quiet():
            new = [study.ask(distributions) for _ in range(n)]
        asked.extend(new)
        return np.array([[trial.params[name] for name in names] for trial in new])

    def tell(losses: np.ndarray) -> None:
        nonlocal reported
        found.extend(losses.tolist())
        # Optuna draws its first trials at random, whatever they give: until then what is bad can wait to be known.
        if len(found) >= FIRST_TRIALS and np.isfinite(found).any():
            with _quiet():
                for trial, loss in zip(asked[reported:], _finite(np.array(found))[reported:].tolist(), strict=True):
                    study.tell(trial, loss)
            reported = len(found)

    return Proposals(ask, tell)


def _finite(losses: np.ndarray) -> np.ndarray:
    """Losses (n,) as a sampler can use them, at least one of them finite.

    A trial that failed, and is left out, is proposed again and again: it counts as worse than all others. Losses far
    above the better half of them are brought down, since one of 1e300 leaves a Gaussian process no scale for the rest.
    """
    finite = np.clip(losses[np.isfinite(losses)], -HUGE, HUGE)
    least = finite.min()
    most = min(finite.max(), least + FAR * (np.median(finite) - least))
    bad = most + (most - least or max(abs(least), 1.0))
    return np.where(np.isfinite(losses), np.clip(losses, -HUGE, most), bad)


def trained(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    steps: int,
    u: PyTree,
    v: PyTree,
    source: Source,
    key: Any,
) -> tuple[PyTree, Any, Any, Any]:
    """Train v by `steps` moves down g at a fixed u: the end, with f, g and |grad_v g|. Pure, for jit and vmap.

    f is that of the upper batch of step 0, g that of the last move's lower batch.
    """
    batch_key, start_key, move_key = jax.random.split(key, 3)
    first = source.at(0, batch_key)
    v = v if problem.lower_start is None else problem.lower_start(u, first, start_key)

    def one(carry: Any, t: Any) -> tuple[Any, Any]:
        data = base.lower_data(source.at(t, batch_key), 0)
        return descent.move(carry, data, jax.random.fold_in(move_key, t))

    descent = base.Descent(problem, u, optimizer)
    (v, _), (losses, norms) = jax.lax.scan(one, (v, optimizer.init(v)), jnp.arange(steps))
    return v, problem.upper(u, v, first.upper, start_key), losses[-1], norms[-1]


def check_trainer(owner: str, name: str, optimizer: Any, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
    """Refuse an optimizer with which `trained` cannot move v."""
    data, key = base.lower_data(batch, 0), jax.random.key(0)
    descent = base.Descent(problem, u, optimizer)
    objective = descent.objective(v, data, key, jax.eval_shape(problem.lower, u, v, data, key))
    check_optimizer(owner, name, optimizer, "v", v, objective, problem.project_lower is not identity)


train_lower = compiled("problem", "optimizer", "steps")(trained)
"""`trained`, compiled."""


@compiled("problem", "optimizer", "steps")
def _trials(
    problem: Problem, optimizer: Any, steps: int, u: PyTree, v: PyTree, source: Source, key: Any
) -> tuple[PyTree, Any, Any, Any]:
    """All trials of a stack of u: f, g, |grad_v g| of each, and v of the one with the least f."""

    def one(u: PyTree) -> tuple[PyTree, Any, Any, Any]:
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
    key: Any,
    lower_steps: int = 100,
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2),
    first: PyTree | None = None,
    seconds: float | None = None,
    throw: bool = True,
) -> Result:
    """Look for the u with the least f(u, v*(u)) by trials, without its derivative.

    Args:
        sampler: `Random`, `TPE` or `GP`.
        problem: what to solve; without constraints.
        low, high: bounds of u, pytrees shaped like it.
        v: where v starts in each trial.
        batches: None, one fixed Batch, or a source; a trial's lower move t has the lower batch of step t, and
            all trials have the same batches. f is taken on the upper batch of step 0: let it be all samples.
        trials: how many.
        key: a jax.random key.
        lower_steps: moves of v in each trial: so many gradients of g are its cost.
        lower_optimizer: any optax optimizer, started afresh in each trial.
        first: a u within the bounds to try before all others, the default say.
        seconds: begin no trial after so many; None for no such limit.
        throw: raise SolveError where every trial failed; False returns a Result with that status.

    Returns:
        As `solve` does. u is the best one tried and v as it was trained; `steps` counts trials; `history` has an
        entry for each: f (NaN where it failed), g, |grad_v g|, and in `extra` the least f so far (`best_loss`),
        the `seconds` since the start, and the gradients of g so far (`gradient_evaluations`). `state` holds all u
        tried, leading axis `steps`. Trials that are trained together end at the same second.

    Raises:
        InputError: bounds that are not finite, not alike or the wrong way round; a `first` outside of them;
            constraints; an optimizer that cannot move v; a sampler whose package is not installed.
        SolveError: f was not finite in any trial.
        SolveInterrupted: Ctrl-C, which ends the search after the running trials; `.result` holds the trials so far.

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
    if isinstance(sampler, type) or not callable(getattr(sampler, "start", None)) or not hasattr(sampler, "together"):
        found = f"the class {sampler.__name__}" if isinstance(sampler, type) else repr(sampler)
        raise InputError(f"search: sampler is {found}, and must be a sampler, such as Random() or TPE().")
    trials, lower_steps, together = (
        require_count("search", name, count)
        for name, count in (("trials", trials), ("lower_steps", lower_steps), ("together", sampler.together))
    )
    if seconds is not None and not (_is_number(seconds) and seconds >= 0):
        raise InputError(f"search: seconds is {seconds!r}, and must be zero or positive, or None for no limit.")
    if not isinstance(problem, Problem):
        raise InputError(f"search: problem is {problem!r}, and must be a bilevax.Problem.")
    check_key("search", key)
    if problem.constraints:
        raise InputError(
            f"search cannot treat upper-level constraints, and this problem has {len(problem.constraints)}. Use the "
            "solver Penalty."
        )
    lowest, highest, unravel = _bounds(low, high)
    start = None if first is None else _inside(first, low, lowest, highest)
    sampled = callable(getattr(batches, "at", None)) and not isinstance(batches, type)
    if not (batches is None or isinstance(batches, Batch) or sampled):
        raise InputError(
            f"search: batches is a {type(batches).__name__}. Pass a Batch, or a source such as Minibatches: all trials "
            "have the same batches, drawn on the device, so an iterable of batches will not do."
        )
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
                asked = proposals.ask(count)
                # The last, smaller group is filled up to the size that is compiled.
                stack = jnp.asarray(np.concatenate([asked, np.repeat(asked[:1], together - count, axis=0)]))
                tried = jax.vmap(unravel)(stack.astype(dtype))
                end, *losses = _trials(problem, lower_optimizer, lower_steps, tried, v, source, trial_key)
                f, g, norm = (np.asarray(x, float)[:count] for x in losses)
                proposals.tell(f)
                passed = time.perf_counter() - began
                if np.isfinite(f).any() and np.nanmin(f) < best:
                    i = int(np.nanargmin(f))
                    best, best_u, best_v = float(f[i]), jax.tree.map(lambda x, i=i: x[i], tried), end
                points.extend(asked)
                rows.extend((*row, passed) for row in zip(f, g, norm, strict=True))
    except KeyboardInterrupt:  # a second Ctrl-C, in the midst of trials
        status = Status.INTERRUPTED
    if status is Status.INTERRUPTED and not rows:
        raise KeyboardInterrupt
    if not np.isfinite(best):
        status = Status.NON_FINITE if status is not Status.INTERRUPTED else status
    f, g, norm, passed = np.array(rows).T
    so_far = np.minimum.accumulate(np.where(np.isfinite(f), f, np.inf))
    extra = {
        "best_loss": so_far,
        "seconds": passed,
        "gradient_evaluations": lower_steps * np.arange(1, len(f) + 1),
    }
    history = Info(f, g, np.full(len(f), np.nan), norm, extra)
    tried = jax.device_get(jax.vmap(unravel)(jnp.asarray(np.array(points[: len(f)]), dtype)))
    result = Result(best_u, best_v, status, len(f), history, tried)
    if status is Status.INTERRUPTED:
        raise SolveInterrupted(f"Trial {len(f)} of {trials}: the search was interrupted from the keyboard.", result)
    if throw and status is Status.NON_FINITE:
        raise SolveError(
            f"f was not finite in any of {len(f)} trials. Lower lower_optimizer's step size, or narrow the bounds.",
            result,
        )
    return result


def _bounds(low: PyTree, high: PyTree) -> tuple[np.ndarray, np.ndarray, Callable[[Any], PyTree]]:
    check_variable("low", low)
    check_variable("high", high)
    shapes = [(jax.tree.structure(x), [np.shape(a) for a in jax.tree.leaves(x)]) for x in (low, high)]
    if shapes[0] != shapes[1]:
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
        raise InputError("high - low is too large a number. Narrow the bounds.")
    return lowest, highest, unravel


def _inside(first: PyTree, low: PyTree, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    check_variable("first", first)
    first = jax.tree.map(jnp.asarray, first)
    check_finite("first", first)
    shapes = [(jax.tree.structure(x), [np.shape(a) for a in jax.tree.leaves(x)]) for x in (first, low)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"first has shapes {jax.tree.map(np.shape, first)} and the bounds {jax.tree.map(np.shape, low)}. "
            "It must be shaped like u."
        )
    point = np.asarray(ravel_pytree(first)[0], float)
    room = 1e-6 * (highest - lowest)  # the rounding of bounds and of `first` in their own types
    if outside := int(((point < lowest - room) | (point > highest + room)).sum()):
        raise InputError(
            f"first is outside of the bounds in {outside} of {point.size} entries. Move it into them, or widen them."
        )
    return np.clip(point, lowest, highest)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)

"""Samplers of points for `search`: uniform, and two of Optuna's."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from bilevax._checks import InputError

FIRST_TRIALS = 10  # that Optuna's samplers draw at random
HUGE, FAR = 1e100, 100.0
MOST_ENTRIES = 10_000  # of u, for Optuna's samplers


class Proposals(NamedTuple):
    """The proposals of a sampler: `ask(n)` returns n points (n, d), `tell(losses)` records their losses (n,)."""

    ask: Callable[[int], Float[np.ndarray, "n d"]]
    tell: Callable[[Float[np.ndarray, " n"]], None]


class Sampler(Protocol):
    """The source of the points that `search` tries.

    `together` points are proposed at once, and trained at once under vmap.
    """

    @property
    def together(self) -> int:
        """The number of trials at once."""
        ...

    def start(
        self,
        low: Float[np.ndarray, " d"],
        high: Float[np.ndarray, " d"],
        first: Float[np.ndarray, " d"] | None,
        seed: int,
    ) -> Proposals:
        """Return proposals between low and high; `first`, if it is not None, comes before all others."""
        ...


@dataclass(frozen=True)
class Random:
    """Each u is uniform between its bounds, independent of earlier trials (Bergstra and Bengio 2012).

    Args:
        together: trials trained at once. They do not depend on each other, so the number only changes the speed.
    """

    together: int = 8

    def start(self, low: np.ndarray, high: np.ndarray, first: np.ndarray | None, seed: int) -> Proposals:
        """Return proposals that learn nothing."""
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
        together: trials proposed before the loss of the first is known. More are faster and learn less.
    """

    together: int = 1

    def start(self, low: np.ndarray, high: np.ndarray, first: np.ndarray | None, seed: int) -> Proposals:
        """Return proposals by Optuna."""
        optuna = _optuna("TPE", len(low))
        return _by_optuna(optuna.samplers.TPESampler(seed=seed), low, high, first)


@dataclass(frozen=True)
class GP:
    """Optuna's Gaussian process with expected improvement (Snoek et al. 2012). It needs torch.

    Args:
        together: trials proposed before the loss of the first is known.
    """

    together: int = 1

    def start(self, low: np.ndarray, high: np.ndarray, first: np.ndarray | None, seed: int) -> Proposals:
        """Return proposals by Optuna."""
        optuna = _optuna("GP", len(low))
        if importlib.util.find_spec("torch") is None:
            raise InputError("GP needs torch, which is not installed. Install it by pip install torch, or use TPE.")
        with warnings.catch_warnings():  # Optuna marks it as experimental
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.GPSampler(seed=seed)
        return _by_optuna(sampler, low, high, first)


def _optuna(owner: str, entries: int) -> Any:
    if entries > MOST_ENTRIES:
        raise InputError(
            f"{owner}: u has {entries:,} entries, and it supports at most {MOST_ENTRIES:,}, "
            "since it proposes them one by one. Use Random, or a solver that follows the gradient."
        )
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f"{owner} needs optuna, which is not installed. Install it by pip install 'bilevax[apps]', or use Random."
        ) from error
    return optuna


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which Optuna logs warnings only, and raises none of its own."""
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
    proposed: list[Any] = []
    found: list[float] = []
    reported = 0

    def ask(n: int) -> np.ndarray:
        with _quiet():
            new = [study.ask(distributions) for _ in range(n)]
        proposed.extend(new)
        return np.array([[trial.params[name] for name in names] for trial in new])

    def tell(losses: np.ndarray) -> None:
        nonlocal reported
        found.extend(losses.tolist())
        # Optuna draws its first trials at random, so their losses can be reported together, once they have a scale.
        if len(found) >= FIRST_TRIALS and np.isfinite(found).any():
            with _quiet():
                for trial, loss in zip(proposed[reported:], finite(np.array(found))[reported:].tolist(), strict=True):
                    study.tell(trial, loss)
            reported = len(found)

    return Proposals(ask, tell)


def finite(losses: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Replace losses that a sampler cannot use; at least one must be finite.

    A failed trial counts as worse than all others; if it were left out, it would be proposed again and again. Losses
    far above the better half are reduced, since a single loss of 1e300 would dominate the scale of a Gaussian process.
    """
    finite = np.clip(losses[np.isfinite(losses)], -HUGE, HUGE)
    least = finite.min()
    most = min(finite.max(), least + FAR * (np.median(finite) - least))
    bad = most + (most - least or max(abs(least), 1.0))
    return np.where(np.isfinite(losses), np.clip(losses, -HUGE, most), bad)

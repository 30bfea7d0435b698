"""The number of strengths, chosen on samples that the tuning has not seen.

Many strengths can overfit the folds that they are tuned on. So each fold in turn is set aside, the strengths of each
kind are tuned on the others, and the loss is taken on the fold that was set aside (nested cross-validation, Varma and
Simon 2006). Log ratios of strengths have a normal prior, so that they stay near the scalar strength unless the data say
otherwise. Its standard deviation grows step by step from zero, one strength for all. The first step, which can neither
help nor harm much, is taken where it lowers the loss by a part of the standard error of the difference; each further
step where it lowers the loss of the last one by a whole standard error or more. Where a step is not taken, the wider
priors are not tried.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevax.applications.tuning.glm.curvature import Coefficients
from bilevax.applications.tuning.glm.search import Path
from bilevax.applications.tuning.glm.tuner import Codes, Tuner

# Standard deviations of log ratios under the prior, and the standard errors by which the loss must fall for each.
LADDER = ((0.5, 0.25), (1.0, 1.0), (2.0, 1.0), (5.0, 2.0))
UNCOMPARED = 1.0  # the standard deviation where kinds are not compared
MOST_PARTS = 5  # folds that are set aside
NESTED_STEPS, NESTED_TOLERANCE = 30, 2e-2  # of L-BFGS-B
LOOSE = 1e-6  # tolerance of the lower problems
ROUGH = 0.1  # precision of the scalar log strength


class Candidate(NamedTuple):
    """One kind of strengths in the nested comparison.

    Attributes:
        kind: "scalar", "group", "feature" or "class".
        deviation: of log ratios under the prior.
        difference: of the held-out loss from that of the scalar strength, on samples that the tuning has not seen.
        standard_error: of that difference.
    """

    kind: str
    deviation: float
    difference: float
    standard_error: float


class Chosen(NamedTuple):
    """The result of the tuning.

    Attributes:
        codes, u: the kind of strengths, and their logarithms.
        path: the search of the scalar strength.
        search: the search of the finer strengths; None for a scalar strength.
        candidates: the nested comparison.
        start: coefficients of the folds at the best strengths.
        deviation: of log ratios under the prior that was chosen; 0 for a scalar strength.
    """

    codes: Codes
    u: Float[np.ndarray, " strengths"]
    path: Path
    search: Path | None
    candidates: list[Candidate]
    start: Coefficients
    deviation: float = 0.0


def choose(
    tuner: Tuner, scalar: Codes, finer: list[Codes], *, nested: bool, near: float | None = None, most: int = 100
) -> Chosen:
    """Tune the scalar strength, then the finer kinds where they help.

    Args:
        tuner: the problem.
        scalar, finer: the kinds of strengths.
        nested: whether to compare the kinds; without it the first finer kind is taken.
        near: a log strength to search near.
        most: iterations of each search of many strengths.
    """
    path, criterion = tuner.scalar(scalar, near)
    candidates: list[Candidate] = []
    taken: tuple[Codes, float] | None = None
    if finer and not nested:
        taken = finer[0], UNCOMPARED
    elif finer:
        candidates, best = compare(tuner, scalar, finer, float(path.best.u[0]), criterion.start)
        if best is not None:
            taken = next(codes for codes in finer if codes.kind == best.kind), best.deviation
    if taken is None:
        return Chosen(scalar, path.best.u, path, None, candidates, criterion.start)
    codes, deviation = taken
    u = np.full(int(codes.codes.max()) + 1, path.best.u[0])
    search, criterion = tuner.search(codes, u, criterion.start, tuner.unit(path.best.value), deviation, most)
    return Chosen(codes, search.best.u, path, search, candidates, criterion.start, deviation)


class _Fold:
    """One fold that is set aside: the problem of the others, and the solutions so far.

    Args:
        tuner: the problem with all folds.
        inner: the problem without fold j, with its other folds.
        j: the fold.
        rows: its samples that no earlier fold held out.
        scalar: one strength.
        near: the log strength that is the best for all folds.
        start: the coefficients of all folds at that strength.
    """

    def __init__(
        self, tuner: Tuner, inner: Tuner, j: int, rows: Bool[np.ndarray, " n"], scalar: Codes, near: float, start: Any
    ):
        self.tuner, self.inner, self.rows = tuner, replace(inner, start=start), rows
        self.outer = tuner.part(tuner.train[:, j], [])
        self.shift = np.log(inner.weight.sum() / self.outer.weight.sum()) if tuner.total else 0.0
        path, criterion = self.inner.scalar(scalar, near, ROUGH)
        self.unit = inner.unit(path.best.value)
        self.level, self.start = path.best.u[0], criterion.start
        self.base = self._losses(scalar, path.best.u)
        self.found: dict[str, tuple[Float[np.ndarray, " strengths"], Coefficients]] = {}

    def _losses(self, codes: Codes, u: Float[np.ndarray, " strengths"]) -> Float[np.ndarray, " rows"]:
        return self.tuner.losses(self.outer.fit(codes, u + self.shift)[0], self.rows)

    def differences(self, codes: Codes, deviation: float) -> Float[np.ndarray, " rows"]:
        """The losses of the samples set aside, less those of one strength; the search starts from the last one."""
        strengths = int(codes.codes.max()) + 1
        u, start = self.found.get(codes.kind, (np.full(strengths, self.level), self.start))
        path, criterion = self.inner.search(codes, u, start, self.unit, deviation, NESTED_STEPS, NESTED_TOLERANCE)
        self.found[codes.kind] = path.best.u, criterion.start
        return self._losses(codes, path.best.u) - self.base


def compare(
    tuner: Tuner, scalar: Codes, finer: list[Codes], near: float, start: Coefficients
) -> tuple[list[Candidate], Candidate | None]:
    """The held-out loss of kinds of strengths on folds that were set aside, and the one to take; None for one strength.

    Args:
        tuner, scalar, finer: as for `choose`.
        near, start: the best log strength of one, and the coefficients of the folds there.
    """
    folds = _folds(tuner, scalar, near, start)
    if not folds:
        return [], None
    weight = np.concatenate([tuner.weight[fold.rows] for fold in folds])
    weight /= weight.sum()
    candidates: list[Candidate] = []
    taken, last, open_kinds = None, np.zeros(len(weight)), finer
    for deviation, needed in LADDER:
        tried = []
        for codes in open_kinds:
            found = np.concatenate([fold.differences(codes, deviation) for fold in folds])
            tried.append((float(weight @ found), codes, found))
            candidates.append(Candidate(codes.kind, deviation, *_mean_and_error(found, weight)))
        _, codes, found = min(tried, key=lambda one: one[0])
        mean, error = _mean_and_error(found - last, weight)
        if not mean + needed * error < 0:
            break
        taken = next(one for one in candidates if (one.kind, one.deviation) == (codes.kind, deviation))
        last, open_kinds = found, [codes]
    return candidates, taken


def _mean_and_error(values: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> tuple[float, float]:
    mean = float(weight @ values)
    return mean, float(np.sqrt((weight**2) @ (values - mean) ** 2))


def _folds(tuner: Tuner, scalar: Codes, near: float, start: Coefficients) -> list[_Fold]:
    seen = np.zeros(len(tuner.weight), bool)
    found = []
    for j in range(min(tuner.held.shape[1], MOST_PARTS)):
        inner, usable = _others(tuner, j)
        rows = tuner.held[:, j] & ~seen
        if inner is None or not rows.any():
            continue
        seen |= rows
        found.append(_Fold(tuner, inner, j, rows, scalar, near, start[:, :, usable]))
    return found


def _others(tuner: Tuner, j: int) -> tuple[Tuner | None, list[int]]:
    """The problem without the samples that fold j holds out, None for none, and the folds that can still be used."""
    rows = ~tuner.held[:, j]
    usable = [
        k
        for k in range(tuner.held.shape[1])
        if k != j and (tuner.held[:, k] & rows).any() and _trains(tuner, tuner.train[:, k] & rows)
    ]
    if not usable or not _trains(tuner, tuner.train[:, j]):
        return None, usable
    return replace(tuner.part(rows, usable), tolerance=LOOSE), usable


def _trains(tuner: Tuner, rows: Bool[np.ndarray, " n"]) -> bool:
    """Whether samples can be trained on: some, and for classes some of each."""
    if not rows.any():
        return False
    if not tuner.loss.classifies:
        return True
    y = tuner.y[rows]
    return bool((np.ptp(y, axis=0) > 0).all())

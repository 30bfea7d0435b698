"""The number of strengths, chosen on samples that the tuning has not seen.

Many strengths can overfit the folds that they are tuned on. So each fold in turn is set aside, the strengths of each
kind are tuned on the others, and the loss is taken on the fold that was set aside (nested cross-validation, Varma and
Simon 2006). A finer kind is taken only where its loss is lower than that of the scalar strength by a part of the
standard error of the difference. Log ratios of strengths have a normal prior, so that they stay near the scalar
strength unless the data say otherwise; its standard deviation is chosen in the same way.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevax.applications.tuning.glm.curvature import Coefficients
from bilevax.applications.tuning.glm.search import Path
from bilevax.applications.tuning.glm.tuner import Codes, Tuner

# Standard deviations of log ratios under the prior, and the standard errors by which the loss must be lower for each.
DEVIATIONS = {0.5: 0.25, 1.0: 0.25, 3.0: 2.0}
UNCOMPARED = 1.0  # the standard deviation where kinds are not compared
MOST_PARTS = 5  # folds that are set aside
NESTED_STEPS = 30  # of L-BFGS-B
LOOSE = 1e-6  # tolerance of the lower problems
ROUGH = 0.1  # precision of the scalar log strength


class Candidate(NamedTuple):
    """One kind of strengths in the nested comparison.

    Attributes:
        kind: "scalar", "group", "feature" or "class".
        deviation: of log ratios under the prior; 0 for the scalar strength.
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
    """

    codes: Codes
    u: Float[np.ndarray, " strengths"]
    path: Path
    search: Path | None
    candidates: list[Candidate]
    start: Coefficients


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
        candidates = compare(tuner, scalar, finer, float(path.best.u[0]))
        best = min(candidates, key=_pessimistic, default=None)
        if best is not None and _pessimistic(best) < 0:
            taken = next(codes for codes in finer if codes.kind == best.kind), best.deviation
    if taken is None:
        return Chosen(scalar, path.best.u, path, None, candidates, criterion.start)
    codes, deviation = taken
    u = np.full(int(codes.codes.max()) + 1, path.best.u[0])
    search, criterion = tuner.search(codes, u, criterion.start, tuner.unit(path.best.value), deviation, most)
    return Chosen(codes, search.best.u, path, search, candidates, criterion.start)


def _pessimistic(candidate: Candidate) -> float:
    return candidate.difference + DEVIATIONS[candidate.deviation] * candidate.standard_error


def compare(tuner: Tuner, scalar: Codes, finer: list[Codes], near: float) -> list[Candidate]:
    """The held-out loss of each kind of strengths on folds that were set aside, against the scalar strength."""
    n, folds = tuner.held.shape
    totals = {(codes.kind, deviation): np.zeros(n) for codes in finer for deviation in DEVIATIONS}
    seen = np.zeros(n, bool)
    for j in range(min(folds, MOST_PARTS)):
        inner = _others(tuner, j)
        if inner is None:
            continue
        rows = tuner.held[:, j] & ~seen
        seen |= rows
        outer = tuner.part(tuner.train[:, j], [])
        shift = np.log(inner.weight.sum() / outer.weight.sum()) if tuner.total else 0.0
        path, criterion = inner.scalar(scalar, near, ROUGH)
        u, start = path.best.u, criterion.start
        base = tuner.losses(outer.fit(scalar, u + shift)[0], rows)
        unit = inner.unit(path.best.value)
        for codes in finer:
            many, warm = np.full(int(codes.codes.max()) + 1, u[0]), start
            for deviation in DEVIATIONS:
                search, criterion = inner.search(codes, many, warm, unit, deviation, NESTED_STEPS)
                many, warm = search.best.u, criterion.start
                found = tuner.losses(outer.fit(codes, many + shift)[0], rows)
                totals[codes.kind, deviation][rows] = found - base
    if not seen.any():
        return []
    weight = tuner.weight[seen] / tuner.weight[seen].sum()
    candidates = []
    for (kind, deviation), differences in totals.items():
        d = differences[seen]
        mean = float(weight @ d)
        candidates.append(Candidate(kind, deviation, mean, float(np.sqrt((weight**2) @ (d - mean) ** 2))))
    return candidates


def _others(tuner: Tuner, j: int) -> Tuner | None:
    """The problem without the samples that fold j holds out, with the folds that can still be used; None for none."""
    rows = ~tuner.held[:, j]
    usable = [
        k
        for k in range(tuner.held.shape[1])
        if k != j and (tuner.held[:, k] & rows).any() and _trains(tuner, tuner.train[:, k] & rows)
    ]
    return replace(tuner.part(rows, usable), tolerance=LOOSE) if usable and _trains(tuner, tuner.train[:, j]) else None


def _trains(tuner: Tuner, rows: Bool[np.ndarray, " n"]) -> bool:
    """Whether samples can be trained on: some, and for classes some of each."""
    if not rows.any():
        return False
    if not tuner.loss.classifies:
        return True
    y = tuner.y[rows]
    return bool((np.ptp(y, axis=0) > 0).all())

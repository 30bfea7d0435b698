"""One tuning problem: samples, folds and a penalty; its searches, and the fit of all samples."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bilevax.applications.tuning.glm.criterion import Criterion
from bilevax.applications.tuning.glm.curvature import Coefficients
from bilevax.applications.tuning.glm.data import Data
from bilevax.applications.tuning.glm.losses import Loss, Multinomial
from bilevax.applications.tuning.glm.newton import Newton
from bilevax.applications.tuning.glm.penalties import Term
from bilevax.applications.tuning.glm.proximal import Proximal
from bilevax.applications.tuning.glm.search import Path, gradient_search, near_search, scalar_search

WEAKEST, STRONGEST = 1e-8, 1e5  # L2: strengths relative to the curvature of the loss in one feature
FIRST = 1e3  # where the path of L2 starts, in the same unit; stronger only where that is best
DECADE = np.log(10.0)
WEAKEST_NORM = 1e-5  # norms: relative to the least strength that makes all coefficients zero
NORM_SPACING = DECADE / 6
TURNS, NORM_TURNS = 3, 12  # points of rising loss after which a path ends
PRECISION = 1e-3  # of a scalar log strength


class Codes(NamedTuple):
    """A kind of strengths.

    Attributes:
        kind: "scalar", "group", "feature" or "class".
        codes: the strength of each coefficient, (features, outputs).
    """

    kind: str
    codes: Int[np.ndarray, "features outputs"]


@dataclass(frozen=True)
class Tuner:
    """Samples with folds, a loss and a penalty.

    Attributes:
        loss, term: of the problem.
        x: (n, p) standardised, with a column of ones at the end where there is an intercept.
        y: (n, outputs).
        offset, weight: (n,).
        train, held: the training and held-out samples of each fold, (n, folds).
        total: whether strengths are relative to the sum of the losses (so that they count less for more samples) or to
            their mean.
        intercept: whether there is one.
        tolerance: of the lower problems.
    """

    loss: Loss
    term: Term
    x: Any
    y: Float[np.ndarray, "n outputs"]
    offset: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    train: Bool[np.ndarray, "n folds"]
    held: Bool[np.ndarray, "n folds"]
    total: bool
    intercept: bool
    tolerance: float = 1e-8
    start: Coefficients | None = field(default=None, compare=False)

    @cached_property
    def data(self) -> Data:
        """The samples with the weights of the folds."""
        return self._data(self.train * self.weight[:, None], self.held * self.weight[:, None])

    def _data(self, train: Float[np.ndarray, "n folds"], held: Float[np.ndarray, "n folds"]) -> Data:
        sizes = train.sum(0)
        boost = self.weight.sum() / sizes if self.total else np.ones_like(sizes)
        whole = held.sum()
        return Data(
            self.x,
            self.y[:, :, None],
            self.offset[:, None, None],
            train / sizes,
            held / whole if whole > 0 else held,
            boost,
            self.intercept,
        )

    @cached_property
    def everything(self) -> Data:
        """All samples, as one training fold without held-out samples."""
        return self._data(self.weight[:, None], np.zeros((len(self.weight), 1)))

    def null(self, data: Data) -> Coefficients:
        """The coefficients of the model of the intercepts alone, near enough to start from."""
        found = np.zeros(data.shape)
        if data.intercept:
            for k in range(data.shape[2]):
                mean = np.einsum("i,ic->c", data.train[:, k], self.y)
                exposed = data.train[:, k] @ self.loss.mean(self.offset[:, None])[:, 0]
                found[-1, :, k] = self.loss.start(mean, float(exposed))
        return found

    def lower(self, data: Data) -> Newton | Proximal:
        """The solver of the lower problems."""
        null = self.null(data)
        if self.term.norm:
            return Proximal(self.loss, data, self.term, null, self.tolerance)
        return Newton(self.loss, data, null, self.tolerance)

    @cached_property
    def folds(self) -> Newton | Proximal:
        """The solver of the lower problems of the folds."""
        return self.lower(self.data)

    @cached_property
    def whole(self) -> tuple[Data, Newton | Proximal]:
        """All samples, and the solver of their lower problem."""
        return self.everything, self.lower(self.everything)

    def criterion(self, codes: Codes, start: Coefficients | None = None) -> Criterion:
        """The cross-validated loss of one kind of strengths."""
        if start is None:
            start = self.null(self.data) if self.start is None else self.start
        return Criterion(self.loss, self.data, self.term, codes.codes, self.folds, start)

    @cached_property
    def bounds(self) -> tuple[float, float, float]:
        """The bounds of the log strengths, and where the path of the scalar strength starts."""
        data = self.everything
        null = self.null(data)
        eta = data.times(null) + data.offset
        if self.term.norm:
            slope = self.loss.slope(eta, data.y) * data.train[:, None, :]
            inner = np.abs(data.transposed(slope)[: data.features])
            if self.term.blocks is None:
                largest = float(inner.max()) / self.term.norm
            else:
                flat = inner.ravel()
                largest = max(float(np.linalg.norm(flat[b])) / np.sqrt(len(b)) for b in self.term.blocks)
            high = np.log(1.2 * max(largest, 1e-200))
            return high + np.log(WEAKEST_NORM), high, high
        curve = (self.loss.curvature(eta, data.y) * data.train[:, None, :])[:, :, 0].mean(1)
        squares = self.x.multiply(self.x) if hasattr(self.x, "multiply") else None
        moments = squares.T @ curve if squares is not None else np.einsum("ij,ij,i->j", self.x, self.x, curve)
        moments = np.asarray(moments)[: data.features]
        moments = moments[moments > 1e-12 * max(float(moments.max(initial=0.0)), 1e-200)]
        least, most = (float(moments.min()), float(moments.max())) if len(moments) else (1.0, 1.0)
        return float(np.log(least * WEAKEST)), float(np.log(most * STRONGEST)), float(np.log(most * FIRST))

    def scalar(self, codes: Codes, near: float | None = None, precision: float = PRECISION) -> tuple[Path, Criterion]:
        """The best scalar strength, along the path of all strengths or near a known one."""
        criterion = self.criterion(codes)
        low, high, first = self.bounds
        spacing, turns = (NORM_SPACING, NORM_TURNS) if self.term.norm else (DECADE, TURNS)

        def evaluate(t: float) -> Any:
            return criterion(np.array([t]))

        if near is not None and (path := near_search(evaluate, near, low, high, spacing / 2, precision)) is not None:
            return path, criterion
        path = scalar_search(evaluate, low, first, spacing, turns, precision)
        if first < high and path.best is path.points[0]:
            path = scalar_search(evaluate, first, high, spacing, turns, precision)
        return path, criterion

    def search(
        self,
        codes: Codes,
        u: Float[np.ndarray, " strengths"],
        start: Coefficients,
        unit: float,
        deviation: float,
        most: int,
        tolerance: float = 1e-2,
    ) -> tuple[Path, Criterion]:
        """The best strengths of one kind from given ones."""
        criterion = self.criterion(codes, start)
        low, high, _ = self.bounds
        settings = {"unit": unit, "deviation": deviation, "most": most, "tolerance": tolerance}
        return gradient_search(criterion, u, low, high, **settings), criterion

    def unit(self, value: float) -> float:
        """The cross-validated loss that counts as one unit of log-likelihood, where the least one is `value`."""
        weight = self.weight[self.held.any(1)]
        effective = weight.sum() ** 2 / (weight**2).sum()
        return (1.0 if self.loss.classifies else max(2 * value, 1e-300)) / effective

    def fit(self, codes: Codes, u: Float[np.ndarray, " strengths"]) -> tuple[Float[np.ndarray, "p outputs"], bool]:
        """The coefficients of all samples, and whether they converged."""
        data, lower = self.whole
        found = Criterion(self.loss, data, self.term, codes.codes, lower, self.null(data)).fit(u)
        return found.w[:, :, 0], found.converged

    def losses(self, w: Float[np.ndarray, "p outputs"], rows: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " rows"]:
        """The loss of some samples at coefficients."""
        eta = np.asarray(self.x[rows] @ w) + self.offset[rows, None]
        return self.loss.value(eta[:, :, None], self.y[rows][:, :, None])[:, 0]

    def part(self, rows: Bool[np.ndarray, " n"], folds: list[int]) -> "Tuner":
        """The same problem on some samples with some of the folds."""
        return Tuner(
            self.loss,
            self.term,
            self.x[rows],
            self.y[rows],
            self.offset[rows],
            self.weight[rows],
            self.train[rows][:, folds],
            self.held[rows][:, folds],
            self.total,
            self.intercept,
            self.tolerance,
        )


def strength_codes(kind: str, features: int, outputs: int, groups: Int[np.ndarray, " features"] | None) -> Codes:
    """The strength of each coefficient for a kind of strengths."""
    match kind:
        case "scalar":
            codes = np.zeros((features, outputs), int)
        case "group":
            assert groups is not None
            codes = np.repeat(groups[:, None], outputs, axis=1)
        case "feature":
            codes = np.repeat(np.arange(features)[:, None], outputs, axis=1)
        case _:
            codes = np.repeat(np.arange(outputs)[None, :], features, axis=0)
    return Codes(kind, codes)


def has_classes(loss: Loss, outputs: int) -> bool:
    """Whether there can be a strength for each class."""
    return outputs > 1 or isinstance(loss, Multinomial)

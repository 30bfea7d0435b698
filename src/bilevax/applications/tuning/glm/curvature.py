"""Hessians of the training losses of all folds, factorised: the smaller of features and samples decides how.

Each object holds the Hessian of the loss at one point, and `factor` adds the strengths. `solve` is then a
preconditioner, and exact at that point where `exact` says so.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.linalg import LinAlgError, get_lapack_funcs

from bilevax.applications.tuning.glm.data import Data, gram
from bilevax.applications.tuning.glm.losses import Loss

LARGEST_FACTOR = 2000  # rows of a matrix that is factorised for each fold
LARGE = 2e9  # operations of the Hessians of all folds, above which folds share their curvature
LARGEST_COUPLED = 700  # coefficients of coupled outputs whose whole Hessian is formed
_LAPACK: Any = get_lapack_funcs(("potrf", "potrs"), dtype=np.float64)
Coefficients = Float[np.ndarray, "p outputs folds"]


def curvature_of(loss: Loss, data: Data) -> "Coupled | Gram | Kernel | Diagonal":
    """The way to hold the Hessian for a data set."""
    p, outputs, _ = data.shape
    if p <= LARGEST_FACTOR and (p <= data.x.shape[0] or p <= 200):
        coupled = loss.coupled and p * outputs <= LARGEST_COUPLED
        return Coupled(loss, data) if coupled else Gram(loss, data)
    if data.x.shape[0] <= LARGEST_FACTOR:
        return Kernel(loss, data)
    return Diagonal(loss, data)


def factorised(matrix: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "q q"]:
    """The Cholesky factor, of the matrix with a larger diagonal where rounding makes it indefinite."""
    factor, failed = _LAPACK[0](matrix.T, lower=1)  # symmetric, and its transpose is in the order of LAPACK
    scale = np.abs(matrix.diagonal()).max(initial=0.0) or 1.0
    for jitter in (1e-14, 1e-12, 1e-10, 1e-8, 1e-6):
        if not failed:
            break
        factor, failed = _LAPACK[0](matrix + jitter * scale * np.eye(len(matrix)), lower=1)
    if failed:
        raise LinAlgError("The Hessian of the training loss is not positive definite.")
    return factor


def solved(factor: Float[np.ndarray, "q q"], r: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """The solution of the linear system with right-hand side r, from the Cholesky factor."""
    return _LAPACK[1](factor, r, lower=1)[0]


def _with_diagonal(matrix: Float[np.ndarray, "q q"], more: Float[np.ndarray, " q"]) -> Float[np.ndarray, "q q"]:
    found = matrix.copy()
    found[np.diag_indices_from(found)] += more
    return found


class Gram:
    """X' D X, one matrix (p, p) for each output and fold.

    A row adds the same matrix to each fold that trains on it where the loss is quadratic. So one pass over the rows, in
    parts of rows that the same folds train on, serves all folds. For large problems with another loss, the
    curvature is the mean of that of the folds, and the matrices are no longer exact.
    """

    def __init__(self, loss: Loss, data: Data):
        self.loss, self.data = loss, data
        p, outputs, folds = data.shape
        one = 2.0 * data.x.shape[0] * p * p * outputs
        self.parts = _parts(data.train) if loss.quadratic or one * folds > LARGE else None
        self.exact = not loss.coupled and (loss.quadratic or self.parts is None)
        self.flops = one if self.parts is not None else one * folds
        self.matrices: list[list[np.ndarray]] = []
        self.factors: list[list[Any]] = []

    def refresh(self, eta: Float[np.ndarray, "n outputs folds"]) -> None:
        """Take the Hessian of the loss at a linear predictor."""
        data = self.data
        _, outputs, folds = data.shape
        if self.parts is not None:
            curve = self.loss.curvature(eta, data.y).mean(2)
            self.matrices = [_shared_grams(data, curve[:, c], self.parts) for c in range(outputs)]
            return
        weight = self.loss.curvature(eta, data.y) * data.train[:, None, :]
        self.matrices = [[gram(data.x, weight[:, c, k]) for k in range(folds)] for c in range(outputs)]

    def factor(self, strength: Coefficients) -> None:
        """Add the strengths to the diagonal, and factorise."""
        self.factors = [
            [factorised(_with_diagonal(m, strength[:, c, k])) for k, m in enumerate(row)]
            for c, row in enumerate(self.matrices)
        ]

    def solve(self, r: Coefficients) -> Coefficients:
        """The solution of the linear system with right-hand side r."""
        found = np.empty_like(r)
        for c, row in enumerate(self.factors):
            for k, factor in enumerate(row):
                found[:, c, k] = solved(factor, r[:, c, k])
        return found


def _parts(train: Float[np.ndarray, "n folds"]) -> list[np.ndarray] | None:
    """The rows that the same folds train on, part by part; None where there are more parts than twice the folds."""
    patterns, codes = np.unique(train > 0, axis=0, return_inverse=True)
    if len(patterns) > 2 * train.shape[1]:
        return None
    codes = codes.reshape(-1)
    return [np.flatnonzero(codes == code) for code in range(len(patterns)) if patterns[code].any()]


def _shared_grams(data: Data, curve: Float[np.ndarray, " n"], parts: list[np.ndarray]) -> list[np.ndarray]:
    p, _, folds = data.shape
    found = [np.zeros((p, p)) for _ in range(folds)]
    for rows in parts:
        trains = np.flatnonzero(data.train[rows[0]] > 0)
        first = trains[0]
        matrix = gram(data.x[rows], data.train[rows, first] * curve[rows])
        for k in trains:  # the weights of a row in two folds differ by the same factor in all rows
            found[k] += matrix * (data.train[rows[0], k] / data.train[rows[0], first])
    return found


class Coupled:
    """The Hessian of coupled outputs, one matrix (p outputs, p outputs) for each fold."""

    exact = True

    def __init__(self, loss: Loss, data: Data):
        self.loss, self.data = loss, data
        p, outputs, folds = data.shape
        self.flops = 1.0 * data.x.shape[0] * (p * outputs) ** 2 * folds
        self.dense = data.x.toarray() if sparse.issparse(data.x) else data.x
        self.matrices: list[np.ndarray] = []
        self.factors: list[Any] = []

    def refresh(self, eta: Float[np.ndarray, "n outputs folds"]) -> None:
        """Take the Hessian of the loss at a linear predictor."""
        data = self.data
        p, outputs, folds = data.shape
        mean = self.loss.mean(eta)
        self.matrices = []
        for k in range(folds):
            # Blocks X' diag(p_c) X on the diagonal, minus the products of the rows p_c x.
            rows = (np.sqrt(data.train[:, k])[:, None] * mean[:, :, k])[:, :, None] * self.dense[:, None, :]
            rows = rows.reshape(len(rows), outputs * p)
            matrix = -(rows.T @ rows)
            for c in range(outputs):
                block = slice(c * p, (c + 1) * p)
                matrix[block, block] += gram(self.dense, data.train[:, k] * mean[:, c, k])
            if data.intercept:  # a shift of all intercepts changes nothing: make the matrix definite
                at = np.arange(outputs) * p + p - 1
                matrix[np.ix_(at, at)] += 1 / outputs
            self.matrices.append(matrix)

    def factor(self, strength: Coefficients) -> None:
        """Add the strengths to the diagonal, and factorise."""
        self.factors = [factorised(_with_diagonal(m, strength[:, :, k].T.ravel())) for k, m in enumerate(self.matrices)]

    def solve(self, r: Coefficients) -> Coefficients:
        """The solution of the linear system with right-hand side r."""
        p, outputs, _ = r.shape
        found = np.empty_like(r)
        for k, factor in enumerate(self.factors):
            found[:, :, k] = solved(factor, r[:, :, k].T.ravel()).reshape(outputs, p).T
        return found


class Kernel:
    """The Hessian through matrices (n, n), for fewer samples than features (Woodbury)."""

    def __init__(self, loss: Loss, data: Data):
        self.loss, self.data = loss, data
        self.exact = not loss.coupled
        n, outputs, folds = data.x.shape[0], data.shape[1], data.shape[2]
        self.flops = 2.0 * n**3 / 3 * outputs * folds
        self.factors: list[list[Any]] = []

    def refresh(self, eta: Float[np.ndarray, "n outputs folds"]) -> None:
        """Take the Hessian of the loss at a linear predictor."""
        self.weight = self.loss.curvature(eta, self.data.y) * self.data.train[:, None, :]

    def factor(self, strength: Coefficients) -> None:
        """Add the strengths, and factorise."""
        data = self.data
        d, (_, outputs, folds) = data.features, data.shape
        self.x = data.x[:, :d]
        self.inverse = 1 / strength[:d]
        self.root = np.sqrt(self.weight)
        self.factors, self.borders = [], []
        for c in range(outputs):
            # The strengths of the folds differ by a factor alone.
            base = self.inverse[:, c, 0] * data.boost[0]
            scaled = self.x.multiply(base).tocsr() if sparse.issparse(self.x) else self.x * base
            kernel = scaled @ self.x.T
            kernel = np.asarray(kernel.todense()) if sparse.issparse(kernel) else kernel
            row = []
            for k in range(folds):
                s = self.root[:, c, k]
                matrix = (s[:, None] * kernel) * (s / data.boost[k])
                matrix[np.diag_indices_from(matrix)] += 1
                row.append(factorised(matrix))
            self.factors.append(row)
        if data.intercept:
            a = np.asarray(self.x.T @ self.weight.reshape(len(self.weight), -1)).reshape(d, outputs, folds)
            m = self._penalised(a)
            self.border = a, m, np.maximum(self.weight.sum(0) - (a * m).sum(0), 1e-300)

    def _penalised(self, r: Coefficients) -> Coefficients:
        scaled = self.inverse * r
        t = np.asarray(self.x @ scaled.reshape(len(r), -1)).reshape(-1, *r.shape[1:]) * self.root
        for c, row in enumerate(self.factors):
            for k, factor in enumerate(row):
                t[:, c, k] = solved(factor, t[:, c, k])
        t = (t * self.root).reshape(len(t), -1)
        return scaled - self.inverse * np.asarray(self.x.T @ t).reshape(r.shape)

    def solve(self, r: Coefficients) -> Coefficients:
        """The solution of the linear system with right-hand side r."""
        d = self.data.features
        found = self._penalised(r[:d])
        if not self.data.intercept:
            return found
        a, m, complement = self.border
        b = (r[d] - (a * found).sum(0)) / complement
        return np.concatenate([found - m * b, b[None]])


class Diagonal:
    """The diagonal of the Hessian, for many samples and many features."""

    exact = False

    def __init__(self, loss: Loss, data: Data):
        self.loss, self.data = loss, data
        self.flops = 0.0
        self.squares = data.x.multiply(data.x).tocsr() if sparse.issparse(data.x) else None

    def refresh(self, eta: Float[np.ndarray, "n outputs folds"]) -> None:
        """Take the Hessian of the loss at a linear predictor."""
        data = self.data
        weight = (self.loss.curvature(eta, data.y) * data.train[:, None, :]).reshape(len(eta), -1)
        found = (
            self.squares.T @ weight if self.squares is not None else np.einsum("np,np,nm->pm", data.x, data.x, weight)
        )
        self.found = np.asarray(found).reshape(data.shape)

    def factor(self, strength: Coefficients) -> None:
        """Add the strengths."""
        self.inverse = 1 / np.maximum(self.found + strength, 1e-300)

    def solve(self, r: Coefficients) -> Coefficients:
        """The right-hand side over the diagonal."""
        return self.inverse * r

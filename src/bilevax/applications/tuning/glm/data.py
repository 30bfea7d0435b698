"""The samples of a cross-validation: one design matrix, and a weight of each sample in each fold."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from bilevax.applications.tuning.glm.losses import Loss

CHUNK = 4096  # rows of a product with weights, so that its memory does not grow with the rows


@dataclass(frozen=True)
class Data:
    """All samples, with the weights of each fold.

    Attributes:
        x: (n, p) standardised features, dense or CSR; with an intercept the last column is 1.
        y: targets (n, outputs, 1).
        offset: added to the linear predictor, (n, 1, 1).
        train: weight of each sample in the training loss of each fold, (n, folds); each fold sums to 1.
        held: weight of each sample in the held-out loss, (n, folds); all sum to 1.
        boost: factor of the strengths in each fold, (folds,).
        intercept: whether the last column is an intercept, which is not penalised.
    """

    x: Any
    y: Float[np.ndarray, "n outputs 1"]
    offset: Float[np.ndarray, "n 1 1"]
    train: Float[np.ndarray, "n folds"]
    held: Float[np.ndarray, "n folds"]
    boost: Float[np.ndarray, " folds"]
    intercept: bool

    @property
    def features(self) -> int:
        """Number of columns without the intercept."""
        return self.x.shape[1] - self.intercept

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the coefficients: (p, outputs, folds)."""
        return self.x.shape[1], self.y.shape[1], self.train.shape[1]

    def of_fold(self, k: int) -> "Data":
        """The samples with the weights of one fold."""
        return replace(self, train=self.train[:, [k]], held=self.held[:, [k]], boost=self.boost[[k]])

    def times(self, w: Float[np.ndarray, "p outputs folds"]) -> Float[np.ndarray, "n outputs folds"]:
        """X w."""
        return np.asarray(self.x @ w.reshape(len(w), -1)).reshape(-1, *w.shape[1:])

    def transposed(self, r: Float[np.ndarray, "n outputs folds"]) -> Float[np.ndarray, "p outputs folds"]:
        """X' r."""
        return np.asarray(self.x.T @ r.reshape(len(r), -1)).reshape(-1, *r.shape[1:])


def gram(x: Any, weight: Float[np.ndarray, " n"], columns: Any = slice(None)) -> Float[np.ndarray, "p p"]:
    """X' diag(weight) X of some columns, for weights of at least zero."""
    if sparse.issparse(x):
        rows = x[:, columns] if not isinstance(columns, slice) else x
        return np.asarray((rows.T @ rows.multiply(weight[:, None]).tocsr()).todense())
    total: Any = 0.0
    root = np.sqrt(weight)
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK, columns] * root[start : start + CHUNK, None]
        total = total + part.T @ part
    return total


def train_loss(loss: Loss, data: Data, eta: Float[np.ndarray, "n outputs folds"]) -> Float[np.ndarray, " folds"]:
    """The weighted training loss of each fold."""
    return (data.train * loss.value(eta, data.y)).sum(0)

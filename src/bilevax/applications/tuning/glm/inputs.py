"""What users pass to the tuned models: features, weights, exposures, groups of columns."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse
from sklearn.metrics import get_scorer_names

from bilevax._checks import InputError, described, listed, suggestion
from bilevax.applications.tuning.glm.losses import LogLink, Loss

ALONE = 1e-8  # part of the weights beside one sample, below which it is alone
STEEPEST = 500.0  # largest offset of a log link, of which the exponential can be computed


class Design(NamedTuple):
    """Standardised features.

    Attributes:
        x: (n, p) dense or CSR, with a column of ones at the end where there is an intercept.
        mean, scale: what was subtracted from and divided by, (d,); a constant column has the scale infinity.
    """

    x: Any
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]


def standardised(X: Any, weight: Float[np.ndarray, " n"], standardize: bool, intercept: bool) -> Design:
    """The features in units of their standard deviations, centred where they are dense and there is an intercept.

    Constant columns become zero where there is an intercept, which they would repeat.
    """
    share = weight / weight.sum()
    is_sparse = sparse.issparse(X)
    mean = np.asarray(X.T @ share).ravel()
    if is_sparse:
        squares = np.asarray(X.multiply(X).T @ share).ravel()
        largest = np.asarray(abs(X).max(axis=0).todense()).ravel()
        variance = np.maximum(squares - mean**2, 0)
        deviation = np.where(variance <= 1e-12 * squares, 0.0, np.sqrt(variance))
    else:
        largest = np.abs(X).max(axis=0)
        deviation = np.sqrt(np.maximum(_variance(X, mean, share), 0))
    constant = deviation <= 1e-10 * largest
    if intercept:
        scale = np.where(constant, np.inf, deviation if standardize else 1.0)
    else:
        scale = np.where(constant, np.where(largest > 0, largest, np.inf), deviation)
        scale = scale if standardize else np.where(np.isinf(scale), np.inf, 1.0)
    if is_sparse:
        x = X.multiply(1 / scale).tocsr()
        if intercept:
            x = sparse.hstack([x, np.ones((X.shape[0], 1))], format="csr")
        return Design(x, np.zeros_like(mean), scale)
    centre = mean if intercept else np.zeros_like(mean)
    x = np.empty((X.shape[0], X.shape[1] + intercept))
    inner = x[:, : X.shape[1]]
    np.subtract(X, centre, out=inner)
    inner /= scale
    if intercept:
        x[:, -1] = 1.0
    return Design(x, centre, scale)


def _variance(X: np.ndarray, mean: np.ndarray, share: np.ndarray) -> Float[np.ndarray, " d"]:
    total: Any = 0.0
    for start in range(0, len(X), 4096):
        part = X[start : start + 4096] - mean
        total = total + share[start : start + 4096] @ part**2
    return total


def remarks(design: Design, names: Shaped[np.ndarray, " d"]) -> list[str]:
    """Sentences about columns that are constant, and columns that are equal."""
    found = []
    constant = np.isinf(design.scale)
    if constant.any():
        one = int(constant.sum()) == 1
        found.append(
            f"X has {int(constant.sum())} constant {'column' if one else 'columns'} ({listed(names[constant])}): "
            f"{'its coefficient is' if one else 'their coefficients are'} 0. Leave "
            f"{'it' if one else 'them'} out to be rid of this message."
        )
    d = len(design.scale)
    key = np.asarray(design.x.T @ np.random.default_rng(0).normal(size=design.x.shape[0])).ravel()[:d]
    order = np.argsort(key, kind="stable")
    pairs = []
    for a, b in itertools.pairwise(order):
        if not (constant[a] or constant[b]) and abs(key[a] - key[b]) <= 1e-9 * (1 + abs(key[a])):
            difference = design.x[:, [a]] - design.x[:, [b]]
            if abs(difference).max() <= 1e-9:
                pairs.append(f"{names[min(a, b)]!r} and {names[max(a, b)]!r}")
    if pairs:
        found.append(
            f"X has equal columns ({listed(pairs, quote=False)}): the data do not determine how a coefficient is "
            "shared between them. Leave one of each pair out."
        )
    return found


def sample_weights(sample_weight: Any, n: int) -> Float[np.ndarray, " n"]:
    """The weight of each sample.

    Raises:
        InputError: another shape; weights that are not finite or negative, all zero, or all on one sample.
    """
    if sample_weight is None:
        return np.ones(n)
    weight = _column("sample_weight", sample_weight, n)
    if (weight < 0).any():
        raise InputError(
            f"sample_weight holds {int((weight < 0).sum())} negative values, for example {weight[weight < 0][0]:g}. "
            "Weights must be at least zero."
        )
    positive = int((weight > 0).sum())
    if positive == 0:
        raise InputError("sample_weight is zero for all samples. At least two must have a positive weight.")
    if positive == 1 and n > 1:
        raise InputError(
            f"sample_weight is zero but for sample {int(weight.argmax())}. At least two must have a positive weight."
        )
    most = int(weight.argmax())
    rest = float(np.delete(weight / weight[most], most).sum())
    if rest < ALONE and n > 1:
        raise InputError(
            f"sample_weight is on sample {most} alone: the weights of all others are {rest:.1g} of its weight. At "
            "least two samples must count."
        )
    return weight


def _column(name: str, values: Any, n: int) -> Float[np.ndarray, " n"]:
    try:
        found = np.asarray(values, np.float64)
        found = np.full(n, float(found)) if found.ndim == 0 else found
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers ({error}). Pass one number for each sample.") from error
    if found.ndim != 1 and found.shape != (n, 1):
        raise InputError(f"{name} has shape {found.shape}: Sample weights must be 1D array or scalar, (n,).")
    found = found.reshape(-1)
    if len(found) != n:
        raise InputError(f"{name} has shape {found.shape}, and X {n} samples. One number for each sample is needed.")
    if not np.isfinite(found).all():
        raise InputError(f"{name} holds NaN or infinite values. Fill them, or leave those samples out.")
    return found


def require_numbers(y: Any) -> None:
    """Refuse targets of a regressor that are texts or dates, with a sentence; `validate_data` refuses the rest.

    Raises:
        InputError: a text that is no number; dates or durations.
    """
    found = np.asarray(y)
    wanted = "and a regressor needs numbers"
    if found.dtype.kind in "mM":
        raise InputError(f"y holds dates or durations, {wanted}. Convert them, for example to days since the first.")
    for value in found.flat if found.dtype.kind in "OUS" else ():
        if isinstance(value, str | bytes) and not _is_number(value):
            raise InputError(
                f"y holds the text {str(value)!r}, {wanted}. Convert y, or for classes use TunedLogisticRegression, or "
                'TunedGLM with loss="logistic".'
            )


def require_scoring(owner: str, scoring: Any) -> None:
    """Refuse a score that is neither a function nor one of scikit-learn's names; None is no score.

    Raises:
        InputError: as above.
    """
    if scoring is None or callable(scoring):
        return
    text, known = isinstance(scoring, str), get_scorer_names()
    if not text or scoring not in known:
        raise InputError(
            f"{owner}: scoring is {described(scoring)}, and must be a function of (estimator, X, y), or one of "
            f"sklearn.metrics.get_scorer_names().{suggestion(scoring, known) if text else ''}"
        )


def _is_number(text: str | bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def named_columns(given: Any, d: int) -> Shaped[np.ndarray, " d"]:
    """The names of the columns of X, or their places.

    Raises:
        InputError: there is not one name for each column.
    """
    names = list(range(d) if given is None else given)
    if len(names) != d:
        raise InputError(f"column_names holds {len(names)} names, and X {d} columns. Pass one for each column.")
    found = np.empty(d, object)
    found[:] = names
    return found


def sample_labels(groups: Any, n: int) -> Shaped[np.ndarray, " n"]:
    """The group of each sample, for splitters.

    Raises:
        InputError: there is not one label for each sample.
    """
    found = np.asarray(groups)
    if found.shape != (n,):
        raise InputError(f"groups has shape {found.shape}, and X {n} samples. Pass one label for each sample.")
    return found


def offsets(loss: Loss, exposure: Any, offset: Any, n: int) -> Float[np.ndarray, " n"]:
    """What is added to the linear predictor: the offset, and the logarithm of the exposure.

    Raises:
        InputError: another shape; an exposure that is not positive, or with a loss without log link.
    """
    found = np.zeros(n) if offset is None else _column("offset", offset, n).copy()
    if exposure is not None:
        if not isinstance(loss, LogLink):
            raise InputError(
                f"exposure is given with the loss {type(loss).__name__}, which has no log link. Pass it with Poisson, "
                "Gamma or Tweedie, or pass offset=."
            )
        exposed = _column("exposure", exposure, n)
        if not (exposed > 0).all():
            raise InputError(
                f"exposure holds {int((~(exposed > 0)).sum())} values that are not positive. Leave those samples out."
            )
        found += np.log(exposed)
    if isinstance(loss, LogLink) and np.abs(found).max(initial=0.0) > STEEPEST:
        raise InputError(
            f"offset, with the logarithm of exposure, holds {found[np.abs(found).argmax()]:g}, and the mean is "
            f"proportional to its exponential. Choose units in which it is between -{STEEPEST:g} and {STEEPEST:g}."
        )
    return found


def group_codes(groups: Any, X: Any, names: Shaped[np.ndarray, " d"]) -> Int[np.ndarray, " d"]:
    """The group of each column, 0, 1, ...

    Args:
        groups: None or "indicators" to find runs of adjacent columns of zeros and ones of which at most one is 1 in
            each row, as encoded categories are; a label for each column; lists of columns, by place or by name; a
            function from the names to labels.
        X: (n, d).
        names: of the columns.

    Raises:
        InputError: groups that overlap, leave columns out, or name columns that do not exist.
    """
    d = len(names)
    if groups is None or (isinstance(groups, str) and groups == "indicators"):
        return indicator_runs(X)
    if isinstance(groups, str):
        raise InputError(f'groups is {groups!r}. Pass "indicators", a label for each column, or lists of columns.')
    if callable(groups):
        groups = groups(names)
    if not np.iterable(groups):
        raise InputError(f"groups is {described(groups)}. Pass a label for each column, or lists of columns.")
    parts = list(groups)
    if parts and all(isinstance(part, list | tuple | np.ndarray) and np.ndim(part) == 1 for part in parts):
        return _listed_groups(parts, names)
    if len(parts) != d or any(np.ndim(part) for part in parts):
        raise InputError(
            f"groups holds {len(parts)} entries, and X {d} columns. Pass one label for each column, or lists of "
            "columns."
        )
    if any(part is None or part != part for part in parts):  # NaN differs from itself
        raise InputError("groups holds a missing label. Pass a label for each column, or lists of columns.")
    try:
        return np.unique(np.asarray(parts), return_inverse=True)[1].reshape(-1)
    except TypeError as error:
        raise InputError("groups holds labels of several types. Pass texts alone, or numbers alone.") from error


def _listed_groups(parts: list[Any], names: Shaped[np.ndarray, " d"]) -> Int[np.ndarray, " d"]:
    place = {name: j for j, name in enumerate(names.tolist())}
    found = np.full(len(names), -1)
    for code, part in enumerate(parts):
        for column in part:
            j = place.get(column, column) if isinstance(column, str) else column
            if isinstance(j, bool) or not isinstance(j, int | np.integer) or not 0 <= j < len(names):
                raise InputError(
                    f"groups names the column {column!r}, and X has {len(names)} columns: {listed(names)}. "
                    "Name columns of X."
                )
            if found[int(j)] >= 0:
                raise InputError(
                    f"groups overlap: column {names[int(j)]!r} is in groups {found[int(j)]} and {code}. Each column "
                    "must be in one group."
                )
            found[int(j)] = code
    if (found < 0).any():
        raise InputError(
            f"groups leave out {int((found < 0).sum())} of {len(names)} columns: {listed(names[found < 0])}. Each "
            "column must be in one group; a column alone is a group of one."
        )
    return np.unique(found, return_inverse=True)[1].reshape(-1)


def indicator_runs(X: Any) -> Int[np.ndarray, " d"]:
    """The group of each column, where adjacent indicators of which at most one is 1 in each row are one group."""
    n, d = X.shape
    found, code = np.empty(d, int), -1
    columns = X.tocsc() if sparse.issparse(X) else X
    taken = np.zeros(n, bool)
    running = False
    for j in range(d):
        if sparse.issparse(X):
            values = columns.data[columns.indptr[j] : columns.indptr[j + 1]]
            rows = columns.indices[columns.indptr[j] : columns.indptr[j + 1]]
            rows, binary = rows[values != 0], bool(((values == 1) | (values == 0)).all())
        else:
            column = columns[:, j]
            binary = bool(((column == 0) | (column == 1)).all())
            rows = np.flatnonzero(column) if binary else np.empty(0, int)
        if not (binary and running and not taken[rows].any()):
            code += 1
            taken[:] = False
        running = binary
        if binary:
            taken[rows] = True
        found[j] = code
    return found

"""Label review on public tables: its ranking, its expected number of wrong labels, and what each part adds.

All methods get the same rows, given labels and trusted rows, and rank the rows that are not trusted. cleanlab's ranking
(self-confidence, its default) takes probabilities out of five folds; the trusted rows, with their right labels, are in
the training data of every fold. The other rivals are a model of the trusted rows alone.

Sources: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021.
"""

import functools
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevax import InputError
from bilevax.applications.denoising.ranking import rank
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import Rows, kept_cell
from experiments.common.settings import Settings, pick, pick_data_sets, pick_noise
from experiments.denoising.ablation import precisions_of_parts
from experiments.denoising.public_tables import MOST_ROWS, RATES, SCIKIT_LEARN, TABLES, Draw, draw, load
from experiments.denoising.tables_report import ABLATION, OURS, Cell, report

TITLE = EXPERIMENTS["review-tables"].title
# These are not in the study. On the first eight, in KEEL's binned form, the settings of the ranking were chosen; on
# those of the first two lines, as rows, those of the calibration; on those of the third line, and on satimage, phoneme,
# vehicle, german, ring, mushroom and led7digit, what trusted rows change (`ranking.UNIFORM`). The tables two_class_dat
# and OJ come with R's packages modeldata and ISLR, the others with KEEL.
DEVELOPMENT = ("satimage", "phoneme", "vehicle", "magic", "german", "ring", "marketing", "texture")
DEVELOPMENT += ("pima", "saheart", "mushroom", "led7digit", "australian", "movement_libras")
DEVELOPMENT += ("wisconsin", "ionosphere", "crx", "monk-2", "bands", "two_class_dat", "OJ")
TRUSTED = (0, 30, 100, 200)
SEEDS = 3
FOLDS = 5
BINS = 10
QUICK_ROWS = 500
CLEANLAB_LINEAR, CLEANLAB_FOREST = "cleanlab, logistic regression", "cleanlab, random forest"
TRUSTED_LINEAR, TRUSTED_FOREST = "trusted alone, logistic regression", "trusted alone, random forest"
LABELS = (OURS, CLEANLAB_LINEAR, CLEANLAB_FOREST, TRUSTED_LINEAR, TRUSTED_FOREST, ABLATION)


def linear(seed: int) -> Any:
    """The rivals' logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def forest(seed: int) -> Any:
    """The rivals' random forest, scikit-learn's default."""
    return RandomForestClassifier(random_state=seed)


def by_cleanlab(model: Callable[[int], Any], drawn: Draw, seed: int) -> dict[str, Any]:
    """The suspicion of every row by cleanlab.

    Raises:
        InputError: cleanlab is not installed.
    """
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise InputError(
            "review-tables needs cleanlab, which is not installed. Install it by pip install 'bilevax[experiments]', "
            f"or run one method without it: --solver {OURS}."
        ) from error
    p = np.zeros((len(drawn.labels), drawn.classes))
    doubted, known = np.flatnonzero(~drawn.trusted), np.flatnonzero(drawn.trusted)
    labels = drawn.labels[doubted]
    for kept, left_out in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels):
        rows = np.concatenate([doubted[kept], known])
        fitted = model(seed).fit(drawn.X[rows], drawn.labels[rows])
        p[np.ix_(doubted[left_out], fitted.classes_)] = fitted.predict_proba(drawn.X[doubted[left_out]])
    score = np.zeros(len(p))
    score[doubted] = get_label_quality_scores(labels, p[doubted])
    return {"suspicion": -score}


def by_trusted_rows(model: Callable[[int], Any], drawn: Draw, seed: int) -> dict[str, Any]:
    """The probability that each given label is wrong, by a model of the trusted rows alone."""
    fitted = model(seed).fit(drawn.X[drawn.trusted], drawn.labels[drawn.trusted])
    p = np.zeros((len(drawn.labels), drawn.classes))
    p[:, fitted.classes_] = fitted.predict_proba(drawn.X)
    return {"suspicion": 1 - p[np.arange(len(p)), drawn.labels]}


def by_bilevax(drawn: Draw, seed: int) -> dict[str, Any]:
    """The probability that each given label is wrong, the expected number of wrong labels, and its interval."""
    found = rank(drawn.X, drawn.labels, drawn.trusted, drawn.classes, seed=seed)
    return {"suspicion": found.probability_wrong, "expected": found.expected_wrong}


METHODS: dict[str, Callable[[Draw, int], dict[str, Any]]] = {
    OURS: by_bilevax,
    CLEANLAB_LINEAR: functools.partial(by_cleanlab, linear),
    CLEANLAB_FOREST: functools.partial(by_cleanlab, forest),
    TRUSTED_LINEAR: functools.partial(by_trusted_rows, linear),
    TRUSTED_FOREST: functools.partial(by_trusted_rows, forest),
}


def figures(method: Callable[[Draw, int], dict[str, Any]], drawn: Draw, seed: int) -> dict[str, Any]:
    """Average precision and seconds of a method; what it expects, and its reliability, if it has probabilities."""
    began, cpu = time.perf_counter(), time.process_time()
    found = method(drawn, seed)
    row: dict[str, Any] = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    wrong, suspicion = drawn.wrong[~drawn.trusted], found["suspicion"][~drawn.trusted]
    row["average_precision"] = float(average_precision_score(wrong, suspicion))
    if "expected" in found:
        expected, least, most = found["expected"]
        row |= {"wrong": int(wrong.sum()), "expected": expected, "least": least, "most": most}
        row["bins"] = reliability(suspicion, wrong)
    return row


def reliability(p: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"]) -> list[list[float]]:
    """For ten bins of equal width: the number of labels, their summed probabilities, and how many are wrong.

    Example:
        >>> import numpy as np
        >>> from experiments.denoising.tables import reliability
        >>> reliability(np.array([0.02, 0.04, 0.97]), np.array([False, False, True]))[-1]
        [1.0, 0.97, 1.0]
    """
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(place, weights, BINS) for weights in (np.ones(len(p)), p, wrong)], 1).tolist()


def run_cell(cell: Cell, seed: int, most: int, labels: list[str]) -> Rows:
    """The figures of each method in one draw. Where there are no trusted rows, there is no model of them."""
    table = load(cell.name, seed, most)
    drawn = draw(table, cell.kind, cell.trusted, (seed, zlib.crc32(cell.name.encode())))
    rows: Rows = {}
    for label in labels:
        if label == ABLATION:
            rows[label] = precisions_of_parts(drawn, seed)
        else:
            rows[label] = figures(METHODS[label], drawn, seed)
    return rows


def cells(names: list[str], kinds: list[str], quick: bool) -> list[Cell]:
    """Every table, kind of wrong labels and number of trusted rows."""
    trusted = (0, 100) if quick else TRUSTED
    return [Cell(name, kind, count) for name in names for kind in kinds for count in trusted]


def run(settings: Settings) -> None:
    """Run every missing cell, compare, draw, and write `results.json`."""
    labels = pick(LABELS, settings.solver)
    names = pick_data_sets(list(SCIKIT_LEARN if settings.quick else TABLES), settings.dataset)
    rates = pick_noise([round(100 * rate) for rate in RATES.values()], settings.noise)
    kinds = [kind for kind, rate in RATES.items() if round(100 * rate) in rates]
    count = settings.seeds or (1 if settings.quick else SEEDS)
    began = time.perf_counter()
    # The parts come last: a stopped run has the comparison.
    for group in ([label for label in labels if label != ABLATION], [label for label in labels if label == ABLATION]):
        for seed in range(count):
            for cell in cells(names, kinds, settings.quick):
                _kept(settings, cell, seed, group)
    found = {
        cell: [_kept(settings, cell, seed, labels) for seed in range(count)]
        for cell in cells(names, kinds, settings.quick)
    }
    report(settings, TITLE, found, labels, count, time.perf_counter() - began)


def _kept(settings: Settings, cell: Cell, seed: int, labels: list[str]) -> Rows:
    """A cell's rows, from its file where they are there; without those that there cannot be."""
    possible = [label for label in labels if cell.trusted or label not in (TRUSTED_LINEAR, TRUSTED_FOREST)]
    path = settings.out / "cells" / f"{cell.name}-{cell.kind.split()[0]}-{cell.trusted}-{seed}.json"
    most = QUICK_ROWS if settings.quick else MOST_ROWS
    return kept_cell(path, possible, functools.partial(run_cell, cell, seed, most))

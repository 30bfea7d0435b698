"""Label review on real wrong labels: CIFAR-10N, whose labels people gave, through a pretrained encoder.

All methods get the same features, given labels and trusted samples, and rank the samples that are not trusted. Trusted
samples are drawn at random; their labels are replaced by the true ones. cleanlab's ranking (self-confidence, its
default) takes probabilities out of five folds of logistic regression, with scikit-learn's default penalty and with the
one that our classifier chooses. The last rival is logistic regression on the trusted samples alone.

The cells "reviews" are of texts: their wrong labels are drawn, and depend on the class alone (see `reviews`).

`--medium` takes the first 10,000 pictures, the full size all 50,000, and `--quick` synthetic features. The pictures are
those of `bilevax.data.cifar10`; the labels are looked up beside them, in $BILEVAX_DATA/cifar10n.npz.

Sources: Wei, Zhu, Cheng, Liu, Niu and Liu, "Learning with noisy labels revisited: a study using real-world human
annotations", ICLR 2022; Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
JAIR 2021; Tan and Le, "EfficientNet", ICML 2019 (the encoder, in its Lite0 form).
"""

import functools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevax import InputError
from bilevax.applications.denoising.experts import Expert, Folds, Linear
from bilevax.applications.denoising.ranking import rank
from bilevax.applications.denoising.softmax import Softmax
from bilevax.nn.pretrained import efficientnet
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import Rows, kept_cell
from experiments.common.compare import Row, show, write_results
from experiments.common.images import CLASSES, images_of
from experiments.common.settings import Settings, pick, pick_data_sets
from experiments.denoising import reviews
from experiments.denoising.public_tables import Draw
from experiments.denoising.tables import reliability

TITLE = EXPERIMENTS["real-noise"].title
LABELS_FILE = "cifar10n.npz"
KINDS = {"worst": "worse_label", "aggregate": "aggre_label"}  # by name: the array of the file
REVIEWS = "reviews"
PUBLISHED = {"worst": 0.4021, "aggregate": 0.0901}  # rates of wrong labels among all 50,000
TRUSTED = (0, 200, 1000)
MEDIUM = 10_000
SEEDS = 1
ABOVE = 0.9  # suggestions above this probability are applied where a user asks for that
QUICK_SAMPLES, QUICK_WIDTH = 2_000, 16
OURS, CLEANLAB, CHOSEN, ALONE = "bilevax", "cleanlab", "cleanlab, penalty chosen", "trusted alone"
LABELS = (OURS, CLEANLAB, CHOSEN, ALONE)
DEFAULT_PENALTY = 1.0  # scikit-learn's
FIGURES = {
    "average precision": "average_precision",
    "ROC area": "area",
    "wrong labels missed by a review of as many samples as are wrong": "missed",
    "accuracy of the corrected labels": "corrected",
    f"accuracy of the labels after all suggestions above {ABOVE}": "accuracy",
    "CPU seconds": "cpu_seconds",
}


PICTURES: dict[str, Expert] = {OURS: Linear(), CLEANLAB: Softmax((DEFAULT_PENALTY,)), CHOSEN: Softmax()}
ALONE_ON_PICTURES = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


class Noisy(NamedTuple):
    """Features, the true classes, and what people said.

    Attributes:
        X: the features.
        true: the true classes.
        given: given labels by kind.
        experts: the classifier of label review, and those whose probabilities cleanlab takes, by row label.
        alone: the classifier of the trusted samples.
    """

    X: Float[np.ndarray, "n d"]
    true: Int[np.ndarray, " n"]
    given: Mapping[str, Int[np.ndarray, " n"]]
    experts: Mapping[str, Expert] = PICTURES
    alone: Any = ALONE_ON_PICTURES


class Cell(NamedTuple):
    """The kind of given labels, and the number of trusted samples."""

    kind: str
    trusted: int


def synthetic() -> Noisy:
    """Clusters of features; given labels are drawn from the classes of near clusters, so hard samples are wrong."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, CLASSES, QUICK_SAMPLES)
    centres = rng.normal(size=(CLASSES, QUICK_WIDTH))
    X = (centres[true] + rng.normal(size=(QUICK_SAMPLES, QUICK_WIDTH))).astype(np.float32)
    near = -((X[:, None] - centres) ** 2).sum(2)
    gumbel = rng.gumbel(size=near.shape)
    return Noisy(X, true, {kind: (near / wide + gumbel).argmax(1) for kind, wide in (("worst", 9), ("aggregate", 4))})


def photographs(settings: Settings) -> Noisy:
    """CIFAR-10 as features of the encoder, computed once for an output directory.

    Raises:
        InputError: the labels are not there, or do not belong to the pictures in this order.
    """
    pictures = images_of("cifar10")
    n = MEDIUM if settings.medium else len(pictures.y_train)
    true = np.asarray(pictures.y_train).astype(int)
    given = read_labels(true)
    X = features(pictures.x_train[:n], settings.out / f"features-{n}.npy")
    return Noisy(X, true[:n], {kind: labels[:n] for kind, labels in given.items()})


def texts() -> Noisy:
    """The reviews; their features are their numbers, by which the classifiers find the words."""
    written, true = reviews.read_reviews()
    classifier = reviews.classifier(written)
    ours, usual = classifier(reviews.OURS), classifier(reviews.USUAL)
    experts = {OURS: Folds(ours), CLEANLAB: Folds(usual), CHOSEN: Folds(ours)}
    return Noisy(np.arange(len(true))[:, None], true, {REVIEWS: reviews.by_class(true)}, experts, ours)


def read_labels(true: Int[np.ndarray, " n"]) -> dict[str, Int[np.ndarray, " n"]]:
    """The given labels of all pictures by kind.

    Raises:
        InputError: the file is not there, or as many labels as were published are not wrong.
    """
    path = Path(os.environ.get("BILEVAX_DATA", "")) / LABELS_FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {kind: arrays[name].astype(int) for kind, name in KINDS.items()}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Set BILEVAX_DATA to a directory with {LABELS_FILE}, which has the "
            f"arrays {' and '.join(KINDS.values())} of CIFAR-10N in the order of the pictures, or run --quick."
        ) from error
    for kind, labels in found.items():
        rate = float(np.mean(labels != true)) if labels.shape == true.shape else 1.0
        if abs(rate - PUBLISHED[kind]) > 1e-3:
            raise InputError(
                f"{path}: {rate:.2%} of {KINDS[kind]} differ from the classes of the pictures, where "
                f"{PUBLISHED[kind]:.2%} were published. Bring the labels into the order of the pictures."
            )
    return found


def features(pictures: UInt8[np.ndarray, "n h w 3"], path: Path) -> Float[np.ndarray, "n d"]:
    """The features of pictures, from a file where they were kept."""
    if path.is_file():
        return np.load(path)
    found = efficientnet.encode_pictures(efficientnet.efficientnet(), np.asarray(pictures))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, found)
    return found


def draw(data: Noisy, cell: Cell, seed: int) -> Draw:
    """Choose trusted samples at random; their labels are the true ones."""
    trusted = np.zeros(len(data.true), bool)
    trusted[np.random.default_rng(seed).permutation(len(trusted))[: cell.trusted]] = True
    labels = np.where(trusted, data.true, data.given[cell.kind])
    return Draw(data.X, labels, trusted, labels != data.true, int(data.true.max()) + 1)


def by_bilevax(expert: Expert, drawn: Draw, seed: int) -> dict[str, Any]:
    """The ranking of label review with the classifier that it takes for such samples."""
    found = rank(drawn.X, drawn.labels, drawn.trusted, drawn.classes, (expert,), seed)
    suggested = found.posterior.argmax(1)
    return {
        "suspicion": found.probability_wrong,
        "probability": found.probability_wrong,
        "suggested": suggested,
        "corrected": np.where(found.sure, suggested, drawn.labels),
        "expected": found.expected_wrong,
    }


def by_cleanlab(expert: Expert, drawn: Draw, seed: int) -> dict[str, Any]:
    """Cleanlab's score and issues with probabilities out of the folds of a classifier of all samples.

    Raises:
        InputError: cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise InputError(
            "real-noise needs cleanlab, which is not installed. Install it by pip install 'bilevax[experiments]', or "
            f"run one method without it: --solver {OURS}."
        ) from error
    p = expert.fit(drawn.X, np.eye(drawn.classes)[drawn.labels], seed).out_of_sample
    p = p / p.sum(1, keepdims=True)
    score, suggested = get_label_quality_scores(drawn.labels, p), p.argmax(1)
    corrected = np.where(find_label_issues(drawn.labels, p, n_jobs=1), suggested, drawn.labels)
    return {"suspicion": -score, "probability": 1 - score, "suggested": suggested, "corrected": corrected}


def by_trusted_samples(model: Any, drawn: Draw) -> dict[str, Any]:
    """The probability that each given label is wrong, by a model of the trusted samples alone."""
    fresh: Any = clone(model)
    fitted = fresh.fit(drawn.X[drawn.trusted], drawn.labels[drawn.trusted])
    p = np.zeros((len(drawn.labels), drawn.classes))
    p[:, fitted.classes_] = fitted.predict_proba(drawn.X)
    own = p[np.arange(len(p)), drawn.labels]
    return {"suspicion": -own, "probability": 1 - own, "suggested": p.argmax(1), "corrected": p.argmax(1)}


def figures(
    drawn: Draw, true: Int[np.ndarray, " n"], found: Mapping[str, Any], doubted: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """What a ranking is worth, on the samples in doubt."""
    wrong, suspicion = drawn.wrong[doubted], found["suspicion"][doubted]
    reviewed = np.argsort(-suspicion, kind="stable")[: wrong.sum()]
    applied = np.where(found["probability"] > ABOVE, found["suggested"], drawn.labels)
    row: dict[str, Any] = {
        "average_precision": float(average_precision_score(wrong, suspicion)),
        "area": float(roc_auc_score(wrong, suspicion)),
        "missed": 1 - float(wrong[reviewed].mean()),
        "corrected": float(np.mean(found["corrected"][doubted] == true[doubted])),
        "accuracy": float(np.mean(applied[doubted] == true[doubted])),
        "applied": int(np.sum(found["probability"][doubted] > ABOVE)),
        "wrong": int(wrong.sum()),
        "doubted": int(doubted.sum()),
    }
    if "expected" in found:
        row["expected"], row["least"], row["most"] = found["expected"]
        row["bins"] = reliability(suspicion, wrong)
    return row


def run_cell(data: Noisy, cell: Cell, seed: int, labels: Sequence[str]) -> Rows:
    """The figures of each method in one draw."""
    drawn = draw(data, cell, seed)
    rows: Rows = {}
    for label in labels:
        began, cpu = time.perf_counter(), time.process_time()
        if label == ALONE:
            found = by_trusted_samples(data.alone, drawn)
        else:
            found = (by_bilevax if label == OURS else by_cleanlab)(data.experts[label], drawn, seed)
        row = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        rows[label] = row | figures(drawn, data.true, found, ~drawn.trusted)
    return rows


def run(settings: Settings) -> None:
    """Run every missing cell, compare, and write `results.json`."""
    labels = pick(LABELS, settings.solver)
    kinds = pick_data_sets(list(KINDS) if settings.quick else [*KINDS, REVIEWS], settings.dataset)
    began = time.perf_counter()
    pictures = functools.cache(synthetic if settings.quick else functools.partial(photographs, settings))
    written, count = functools.cache(texts), settings.seeds or SEEDS
    found: dict[Cell, list[Rows]] = {}
    for seed in range(count):
        for cell in (Cell(kind, trusted) for trusted in TRUSTED for kind in kinds):
            possible = [label for label in labels if cell.trusted or label != ALONE]
            path = settings.out / "cells" / f"{cell.kind}-{cell.trusted}-{seed}.json"
            load = written if cell.kind == REVIEWS else pictures
            missing = lambda wanted, cell=cell, seed=seed, load=load: run_cell(load(), cell, seed, wanted)  # noqa: E731
            found.setdefault(cell, []).append(kept_cell(path, possible, missing))
    tables_of_results = result_tables(found, labels)
    notes = footnotes(settings, found)
    last = list(tables_of_results)[-1]
    for name, rows in tables_of_results.items():
        show(f"{TITLE}: {name}", ("labels", "trusted", "method"), rows, notes if name == last else ())
    seconds = time.perf_counter() - began
    write_results("real-noise", settings, list(range(count)), seconds, {}, {}, tables_of_results, notes)


def result_tables(found: Mapping[Cell, Sequence[Rows]], labels: Sequence[str]) -> dict[str, list[Row]]:
    """The figures of each cell and method, and the expected number of wrong labels."""

    def where(cell: Cell, label: str) -> tuple[str, str, str]:
        return (cell.kind, f"{cell.trusted} trusted", label)

    result = {
        name: [
            Row(where(cell, label), None, np.array([trial[label][field] for trial in trials], float), None)
            for cell, trials in found.items()
            for label in labels
            if label in trials[0]
        ]
        for name, field in FIGURES.items()
    }
    result["accuracy of the labels as given"] = [
        Row(where(cell, "given"), None, np.array([1 - row["wrong"] / row["doubted"] for row in rows]), None)
        for cell, trials in found.items()
        if (rows := [next(iter(trial.values())) for trial in trials])
    ]
    if OURS in labels:
        result["the number of wrong labels"] = [
            Row(where(cell, name), None, np.array([trial[OURS][field] for trial in trials], float), None)
            for cell, trials in found.items()
            for name, field in (("wrong", "wrong"), ("expected", "expected"), ("least", "least"), ("most", "most"))
        ]
    return result


def footnotes(settings: Settings, found: Mapping[Cell, Sequence[Rows]]) -> list[str]:
    """The protocol, and the cells in which the interval does not hold the number of wrong labels."""
    size = "synthetic features" if settings.quick else "features of EfficientNet-Lite0 at 128 pixels"
    doubted = [row["doubted"] for cell, (rows, *_) in found.items() if cell.kind != REVIEWS for row in rows.values()]
    notes = [
        f"{max(doubted, default=0):,} pictures, {size}; figures are of those that are not trusted. "
        "cleanlab's score is its default; its probabilities come from five folds of all samples, by our solver of "
        "logistic regression, which is faster than scikit-learn's.",
        "Corrected labels are those of --apply auto. cleanlab's are the predicted classes of the issues that "
        "find_label_issues returns, and the given labels of all other samples; those of the trusted samples alone are "
        "the predicted classes.",
        f"A suggestion is the most probable class of a sample whose given label is wrong with a probability above "
        f"{ABOVE}; for the rivals that probability is 1 minus the predicted probability of the given label.",
        "reviews: 5,000 texts of two classes (small_fine_foods of R's modeldata, from Amazon's reviews). Their wrong "
        "labels are drawn: 35% of one class, 10% of the other. All methods take logistic regression on words and pairs "
        "of words; the chosen penalty is that of label review for texts.",
        "Two constants of the calibration, the part of the labels that counts as no evidence and how far the interval "
        "reaches, were chosen with a look at the pictures with 0 and 1,000 trusted samples of seed 0. The rule of "
        "corrections without trusted samples was chosen on tables; the figures of these pictures were seen beside "
        "theirs.",
        "Encoding is not in the CPU seconds, which are those of all threads.",
    ]
    missed = [
        f"{cell.kind} {cell.trusted} trusted"
        for cell, trials in found.items()
        for trial in trials
        if OURS in trial and not trial[OURS]["least"] <= trial[OURS]["wrong"] <= trial[OURS]["most"]
    ]
    if missed:
        notes.append(f"The number of wrong labels is outside the interval of 90%: {'; '.join(missed)}.")
    return notes

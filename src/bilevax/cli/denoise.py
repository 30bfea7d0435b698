"""`bilevax denoise`: the wrong labels in a user's data."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.table import Table

from bilevax._checks import InputError
from bilevax.cli._printing import as_table, say, show
from bilevax.cli._runs import Run
from bilevax.cli._shared import (
    MOST,
    Devices,
    Overwrite,
    Resume,
    Seed,
    digest,
    figure,
    finite,
    in_plain_words,
    laid_out,
    surroundings,
)
from bilevax.loop.placement import Layout

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.data.tables import Labelled
    from bilevax.loop.checkpoint import Checkpoint
    from bilevax.loop.stages import Stages

SHOWN_SUSPECTS = 50


def denoise(
    train: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRAIN",
            help="Samples whose labels are in doubt: CSV, Parquet, or NPZ with arrays X and y.",
            show_default="scikit-learn's digits, 40% of 1,000 labels made wrong",
        ),
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A few samples with trusted labels, in the same columns.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="What holds the labels. For NPZ, an array; y unless told."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Samples with trusted labels, to measure accuracy on.")
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Without --test: set aside this part of CLEAN to measure accuracy on.",
            metavar="PART",
            callback=finite,
        ),
    ] = 0.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("denoised"),
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Upper steps of each solver.", show_default="the classifier's own"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of TRAIN per step.", show_default="all of them")
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Find the wrong labels in TRAIN with the help of a few clean ones.

    Columns of text are one-hot encoded, numeric ones are scaled. Accuracies need a test set: --test, or part of
    the clean samples by --hold-out. Without either all clean samples are learned from, and the table shows a dash.

    Writes suspects.csv (rows counted from 0, the most suspicious first), weights.png, convergence.png,
    results.json and, where the samples are images, contact_sheet.png.
    """
    with in_plain_words() as asked:
        began = time.perf_counter()
        if train is None:
            for name, value in (("--clean", clean), ("--target", target), ("--test", test)):
                if value is not None:
                    raise InputError(f"{name} is given without TRAIN. Name the file whose labels are in doubt, too.")
        elif clean is None:
            raise InputError("TRAIN is given without --clean. Pass a file of samples whose labels you trust.")
        shared = out
        layout, out = laid_out(devices, out)
        files = {"train": train, "clean": clean, "test": test}
        settings = {name: None if path is None else digest(name, path) for name, path in files.items()}
        settings |= {"target": target, "hold_out": hold_out, "steps": steps, "batch_size": batch_size, "seed": seed}
        pictures = train is None or train.suffix.lower() == ".npz"
        names = ["suspects.csv", "results.json", "weights.png", "convergence.png", "contact_sheet.png"]
        run = Run(
            "denoise",
            out,
            names if pictures else names[:-1],
            settings,
            {"TRAIN": train, "--clean": clean, "--test": test},
            resume=resume,
            overwrite=overwrite,
            shared=shared,
            asked=asked,
        )
        with run.stages() as stages:
            if train is None or clean is None:
                data = _noisy_digits(seed)
            else:
                from bilevax.data import tables

                data = tables.from_files(train, clean, test, target, hold_out, seed)
            for note in data.notes:
                say(note)
            rows, found = _compute(data, settings, stages, layout)
            report = {
                "settings": settings | {"steps": found["Penalty"]["steps"]},
                "seed": seed,
                "resumed": stages.resumed,
                **surroundings("jax", "optax", "numpy", "scikit-learn"),
                "wall_seconds": time.perf_counter() - began,
                "data": _sizes(data),
                "methods": [row._asdict() for row in rows],
            }
            _write_results(data, found, report, run)
        show(_table(data, rows, hold_out))
        run.end(report["wall_seconds"])


class Row(NamedTuple):
    """One line of the table of `denoise`; None where a figure is not known or does not apply."""

    method: str
    test_accuracy: float | None
    suspects: int | None
    precision: float | None
    recall: float | None
    seconds: float


def _noisy_digits(seed: int) -> "Labelled":
    from bilevax.data.corruption import noisy_digits
    from bilevax.data.tables import Labelled

    d = noisy_digits(seed)
    return Labelled(
        "scikit-learn's handwritten digits",
        d.X,
        d.y,
        d.X_clean,
        d.y_clean,
        d.X_test,
        d.y_test,
        d.y_true,
        d.images,
        (),
    )


def _compute(
    data: "Labelled", settings: dict[str, Any], stages: "Stages", layout: Layout | None
) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """The rows of the table, and what each solver found."""
    from bilevax.applications.denoising.estimator import STEPS
    from bilevax.applications.denoising.recipes import approxgrad_solver, penalty_solver

    steps = STEPS if settings["steps"] is None else settings["steps"]
    references = stages.of("references", lambda _: {"rows": [row._asdict() for row in _references(data, settings)]})
    rows, found = [Row(**row) for row in references["rows"]], {}
    for name, solver in (("Penalty", penalty_solver(steps)), ("ApproxGrad", approxgrad_solver(steps))):
        found[name] = stages.of(
            name.lower(), lambda keep, name=name, solver=solver: _fit(name, solver, data, settings, keep, layout)
        )
        rows.append(Row(**found[name]["row"]))
    return rows, found


def _references(data: "Labelled", settings: dict[str, Any]) -> list[Row]:
    """What plain training gives: on all labels as they are, on the clean ones, on all right ones where known."""
    from bilevax.applications.denoising.estimator import PlainClassifier

    both = np.concatenate([data.X, data.X_clean])
    sets = {
        "all labels as given": (both, np.concatenate([data.y, data.y_clean])),
        "clean set only": (data.X_clean, data.y_clean),
    }
    if data.y_true is not None:
        right = np.concatenate([data.y == data.y_true, np.ones(len(data.y_clean), bool)])
        sets["oracle: right labels"] = (both[right], np.concatenate([data.y, data.y_clean])[right])
    rows = []
    for name, (X, y) in sets.items():
        began = time.perf_counter()
        model = PlainClassifier(random_state=settings["seed"]).fit(X, y)
        seconds = time.perf_counter() - began
        rows.append(Row(name, _accuracy(model, data), None, None, None, seconds))
    return rows


def _fit(
    name: str,
    solver: Any,
    data: "Labelled",
    settings: dict[str, Any],
    keep: "Checkpoint",
    layout: Layout | None,
) -> dict[str, Any]:
    """What a solver finds, as a stage's result: labels as places in the sorted ones of `data.y`."""
    from bilevax.applications.denoising.estimator import STEPS, DenoisingClassifier
    from bilevax.loop.callbacks import Progress

    classifier = DenoisingClassifier(
        solver=solver,
        steps=STEPS if settings["steps"] is None else settings["steps"],
        batch_size=settings["batch_size"],
        random_state=settings["seed"],
        callbacks=(Progress(name), keep),
        resume=keep,
        mesh=layout,
    )
    began = time.perf_counter()
    classifier.fit(data.X, data.y, data.X_clean, data.y_clean)
    return {
        "row": _row(name, classifier, data, time.perf_counter() - began)._asdict(),
        "steps": classifier.steps,
        "weight": np.asarray(classifier.sample_weight_),
        "suspicion": np.asarray(classifier.suspicion_),
        "suspects": np.asarray(classifier.suspects_, bool),
        "believed": np.searchsorted(classifier.classes_, classifier.label_belief_),
        "history": {
            name: value for name, value in classifier.result_.history._asdict().items() if isinstance(value, np.ndarray)
        },
    }


def _accuracy(model: Any, data: "Labelled") -> float | None:
    if data.X_test is None or data.y_test is None:
        return None
    return float(np.mean(model.predict(data.X_test) == data.y_test))


def _row(name: str, model: Any, data: "Labelled", seconds: float) -> Row:
    suspects = np.asarray(model.suspects_, bool)
    precision = recall = None
    if data.y_true is not None:
        wrong = data.y != data.y_true
        found = np.sum(suspects & wrong)
        precision, recall = float(found / max(1, suspects.sum())), float(found / max(1, wrong.sum()))
    return Row(name, _accuracy(model, data), int(suspects.sum()), precision, recall, seconds)


def _write_results(data: "Labelled", found: dict[str, dict[str, Any]], report: dict[str, Any], run: Run) -> None:
    """Everything about the samples, by Penalty's weights: tables first, for a picture may fail."""
    import pandas as pd

    from bilevax import plots
    from bilevax.solvers.base import Info

    best = found["Penalty"]
    believed = np.unique(data.y)[best["believed"]]
    order = np.argsort(-best["suspicion"], kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(1, len(order) + 1)
    frame = pd.DataFrame(
        {
            "row": np.arange(len(order)),
            "given_label": data.y,
            "weight": best["weight"],
            "rank": rank,
            "believed_label": believed,
            "suspect": np.where(best["suspects"], "yes", "no"),
        }
    )
    run.csv("suspects.csv", frame.sort_values("rank"))
    run.json("results.json", report)
    wrong = None if data.y_true is None else data.y != data.y_true
    run.picture("weights.png", lambda path: plots.weight_histogram(best["weight"], wrong, path))
    histories = {name: Info(**one["history"], extra={}) for name, one in found.items()}
    run.picture("convergence.png", lambda path: plots.convergence(histories, path))
    images = data.images
    if images is not None:
        first = order[:SHOWN_SUSPECTS]
        run.picture(
            "contact_sheet.png",
            lambda path: plots.contact_sheet(
                images[first],
                [f"row {i}\n{str(data.y[i])[:9]} → {str(believed[i])[:9]}" for i in first],
                path,
                f"The {len(first)} most suspicious of {len(order):,}: given label → believed label"
                + ("" if wrong is None else "   (orange frame: wrong indeed, blue: right)"),
                None if wrong is None else wrong[first].tolist(),
            ),
        )


def _sizes(data: "Labelled") -> dict[str, Any]:
    return {
        "title": data.title,
        "train": len(data.y),
        "clean": len(data.y_clean),
        "test": None if data.y_test is None else len(data.y_test),
        "features": data.X.shape[1],
        "classes": len(np.unique(data.y)),
        "wrong_labels": None if data.y_true is None else int(np.sum(data.y != data.y_true)),
    }


def _table(data: "Labelled", rows: list[Row], hold_out: float) -> Table:
    sizes = _sizes(data)
    wrong = "" if data.y_true is None else f" ({sizes['wrong_labels'] / sizes['train']:.0%} of the labels wrong)"
    tested = "no test set" if data.y_test is None else f"{sizes['test']:,} test samples"
    caption = "Seconds include compilation."
    if data.y_test is None:
        caption += " For accuracies, pass --test FILE, or --hold-out 0.25 to set aside a quarter of the clean set."
    elif hold_out > 0:
        caption += " The test samples were set aside from the clean set (--hold-out); no method has seen them."
    if data.y_true is None:
        caption += " Which labels are wrong is not known, so precision and recall are not, either."
    return as_table(
        f"{data.title}: {sizes['train']:,} training samples{wrong}, {sizes['clean']:,} clean, {tested}",
        ("method", "test accuracy", "suspects", "precision", "recall", "seconds"),
        [
            (
                row.method,
                figure(row.test_accuracy, ".1%"),
                figure(row.suspects, ",d"),
                figure(row.precision, ".3f"),
                figure(row.recall, ".3f"),
                f"{row.seconds:.1f}",
            )
            for row in rows
        ],
        caption,
    )

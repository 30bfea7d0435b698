"""`bilevax denoise`: the wrong labels in a user's data."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bilevax.cli._shared import (
    Devices,
    check_writable,
    complain,
    digest,
    figure,
    in_plain_words,
    laid_out,
    remove,
    say,
    surroundings,
)
from bilevax.layout import Layout
from bilevax.problem import InputError

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications.denoising import DenoisingClassifier
    from bilevax.tables import Labelled

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
        ),
    ] = 0.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("denoised"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Upper steps of each solver.", show_default="the classifier's own")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of TRAIN per step.", show_default="all of them")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command was interrupted.")] = False,
    devices: Devices = None,
) -> None:
    """Find the wrong labels in TRAIN with the help of a few clean ones.

    Columns of text are one-hot encoded, numeric ones are scaled. Accuracies need a test set: --test, or part of
    the clean samples by --hold-out. Without either all clean samples are learned from, and the table shows a dash.

    Writes suspects.csv (rows counted from 0, the most suspicious first), weights.png, convergence.png,
    results.json and, where the samples are images, contact_sheet.png.
    """
    with in_plain_words():
        if train is None:
            for name, value in (("--clean", clean), ("--target", target), ("--test", test)):
                if value is not None:
                    raise InputError(f"{name} is given without TRAIN. Name the file whose labels are in doubt, too.")
        elif clean is None:
            raise InputError("TRAIN is given without --clean. Pass a file of samples whose labels you trust.")
        checkpoints = out / "checkpoints"
        layout, out = laid_out(devices, out)
        check_writable(out)
        files = {"train": train, "clean": clean, "test": test}
        settings = {name: None if path is None else digest(name, path) for name, path in files.items()}
        settings |= {"target": target, "hold_out": hold_out, "steps": steps, "batch_size": batch_size, "seed": seed}
        _check_checkpoints(checkpoints, settings, resume)
        if train is None or clean is None:
            data = _noisy_digits(seed)
        else:
            from bilevax import tables

            data = tables.from_files(train, clean, test, target, hold_out, seed)
        for note in data.notes:
            say(note)
        _denoise(data, settings, out, checkpoints, resume, layout)


def _check_checkpoints(directory: Path, settings: dict[str, Any], resume: bool) -> None:
    """Neither overwrite an interrupted run nor go on with another one's."""
    file = directory / "settings.json"
    if not file.is_file():
        if resume:
            say(f"There is nothing to resume in {directory}; starting from the beginning.")
        return
    if not resume:
        raise InputError(
            f"{directory} holds an interrupted run. Add --resume to go on with it, or delete that directory to start "
            "over."
        )
    try:
        before = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} cannot be read. Delete {directory} to start over, without --resume.") from error
    changed = [key for key in settings if settings[key] != before.get(key)]
    if changed:
        raise InputError(
            f"--resume: the interrupted run in {directory} had other settings ({', '.join(changed)}). Repeat the same "
            "command, or delete that directory to start over without --resume."
        )


class Row(NamedTuple):
    """One line of the table of `denoise`; None where a figure is not known or does not apply."""

    method: str
    test_accuracy: float | None
    suspects: int | None
    precision: float | None
    recall: float | None
    seconds: float


def _noisy_digits(seed: int) -> "Labelled":
    from bilevax import datasets
    from bilevax.tables import Labelled

    d = datasets.noisy_digits(seed)
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


def _denoise(
    data: "Labelled",
    settings: dict[str, Any],
    out: Path,
    checkpoints: Path,
    resume: bool,
    layout: Layout | None,
) -> None:
    from bilevax.applications.importance import approxgrad_solver, penalty_solver

    began = time.perf_counter()
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "settings.json").write_text(json.dumps(settings))
    try:
        rows = _references(data, settings["seed"])
        fitted = {}
        for name, solver in (("Penalty", penalty_solver()), ("ApproxGrad", approxgrad_solver())):
            fitted[name], seconds = _fit(name, solver, data, settings, checkpoints, resume, layout)
            rows.append(_row(name, fitted[name], data, seconds))
    except BaseException as error:
        kept = any(checkpoints.glob("*/[0-9]*"))
        if not kept:
            remove(checkpoints)
        if isinstance(error, KeyboardInterrupt):
            complain(_how_to_resume(checkpoints) if kept else "Interrupted before there was anything to keep.")
        raise
    files = _write_results(data, fitted, out)
    report = {
        "settings": settings | {"steps": fitted["Penalty"].steps},
        "seed": settings["seed"],
        "resumed": resume,
        **surroundings("jax", "optax", "numpy", "scikit-learn"),
        "wall_seconds": time.perf_counter() - began,
        "data": _sizes(data),
        "methods": [row._asdict() for row in rows],
    }
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    remove(checkpoints)
    Console().print(_table(data, rows, settings["hold_out"]))
    say(f"Wrote {', '.join([*files, 'results.json'])} to {out} in {report['wall_seconds']:.1f} s.")


def _references(data: "Labelled", seed: int) -> list[Row]:
    """What plain training gives: on all labels as they are, on the clean ones, on all right ones where known."""
    from bilevax.applications.denoising import PlainClassifier

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
        model = PlainClassifier(random_state=seed).fit(X, y)
        seconds = time.perf_counter() - began
        rows.append(Row(name, _accuracy(model, data), None, None, None, seconds))
    return rows


def _fit(
    name: str,
    solver: Any,
    data: "Labelled",
    settings: dict[str, Any],
    checkpoints: Path,
    resume: bool,
    layout: Layout | None,
) -> tuple["DenoisingClassifier", float]:
    from bilevax.applications.denoising import STEPS, DenoisingClassifier
    from bilevax.callbacks import Checkpoint, Progress

    keep = Checkpoint(checkpoints / name.lower())
    classifier = DenoisingClassifier(
        solver=solver,
        steps=STEPS if settings["steps"] is None else settings["steps"],
        batch_size=settings["batch_size"],
        random_state=settings["seed"],
        callbacks=(Progress(name), keep),
        resume=keep if resume else None,
        mesh=layout,
    )
    began = time.perf_counter()
    classifier.fit(data.X, data.y, data.X_clean, data.y_clean)
    return classifier, time.perf_counter() - began


def _accuracy(model: Any, data: "Labelled") -> float | None:
    if data.X_test is None or data.y_test is None:
        return None
    return float(np.mean(model.predict(data.X_test) == data.y_test))


def _row(name: str, model: "DenoisingClassifier", data: "Labelled", seconds: float) -> Row:
    suspects = np.asarray(model.suspects_, bool)
    precision = recall = None
    if data.y_true is not None:
        wrong = data.y != data.y_true
        found = np.sum(suspects & wrong)
        precision, recall = float(found / max(1, suspects.sum())), float(found / max(1, wrong.sum()))
    return Row(name, _accuracy(model, data), int(suspects.sum()), precision, recall, seconds)


def _how_to_resume(checkpoints: Path) -> str:
    command = ["bilevax", *(argument for argument in sys.argv[1:] if argument != "--resume"), "--resume"]
    return f"Interrupted. What was computed is kept in {checkpoints}. To go on with it: {shlex.join(command)}"


def _write_results(data: "Labelled", fitted: "dict[str, DenoisingClassifier]", out: Path) -> list[str]:
    """Everything about the samples, by Penalty's weights; the names of the files."""
    import pandas as pd

    from bilevax import plots

    model = fitted["Penalty"]
    order = np.argsort(-np.asarray(model.suspicion_), kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(1, len(order) + 1)
    frame = pd.DataFrame(
        {
            "row": np.arange(len(order)),
            "given_label": data.y,
            "weight": model.sample_weight_,
            "rank": rank,
            "believed_label": model.label_belief_,
            "suspect": np.where(model.suspects_, "yes", "no"),
        }
    )
    frame.sort_values("rank").to_csv(out / "suspects.csv", index=False)
    wrong = None if data.y_true is None else data.y != data.y_true
    plots.weight_histogram(model.sample_weight_, wrong, out / "weights.png")
    plots.convergence({name: m.result_.history for name, m in fitted.items()}, out / "convergence.png")
    files = ["suspects.csv", "weights.png", "convergence.png"]
    if data.images is not None:
        first = order[:SHOWN_SUSPECTS]
        plots.contact_sheet(
            data.images[first],
            [f"row {i}\n{str(data.y[i])[:9]} → {str(model.label_belief_[i])[:9]}" for i in first],
            out / "contact_sheet.png",
            f"The {len(first)} most suspicious of {len(order):,}: given label → believed label"
            + ("" if wrong is None else "   (orange frame: wrong indeed, blue: right)"),
            None if wrong is None else wrong[first].tolist(),
        )
        files.append("contact_sheet.png")
    return files


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
    table = Table(
        title=f"{data.title}: {sizes['train']:,} training samples{wrong}, {sizes['clean']:,} clean, {tested}",
        caption=caption,
    )
    table.add_column("method", no_wrap=True)
    for name in ("test accuracy", "suspects", "precision", "recall", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            figure(row.test_accuracy, ".1%"),
            figure(row.suspects, ",d"),
            figure(row.precision, ".3f"),
            figure(row.recall, ".3f"),
            f"{row.seconds:.1f}",
        )
    return table

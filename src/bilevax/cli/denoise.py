"""`bilevax denoise`: the wrong labels in a user's data."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Target,
    digest,
    figure,
    finite,
    in_plain_words,
    laid_out,
    surroundings,
)

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications.denoising.comparison import Comparison, Row
    from bilevax.applications.denoising.jobs import Job

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
        Path | None, typer.Option(metavar="FILE", help="A few samples with trusted labels, with the same columns.")
    ] = None,
    target: Target = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Samples with trusted labels, for the test accuracy.")
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
    the clean samples by --hold-out. Without either, all clean samples are learned from, and the table shows a dash.

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
            from bilevax.applications.denoising.comparison import compare
            from bilevax.applications.denoising.jobs import job_from_files, noisy_digits_job

            if train is None or clean is None:
                job = noisy_digits_job(seed)
            else:
                job = job_from_files(train, clean, test, target, hold_out, seed)
            for note in job.notes:
                say(note)
            found = compare(job, steps=steps, batch_size=batch_size, seed=seed, stages=stages, mesh=layout)
            report = {
                "settings": settings | {"steps": found.steps},
                "seed": seed,
                "resumed": stages.resumed,
                **surroundings("jax", "optax", "numpy", "scikit-learn"),
                "wall_seconds": time.perf_counter() - began,
                "data": _sizes(job),
                "methods": [row._asdict() for row in found.rows],
            }
            _write_results(job, found, report, run)
        show(_table(job, found.rows, hold_out))
        run.end(report["wall_seconds"])


def _write_results(job: "Job", found: "Comparison", report: dict[str, Any], run: Run) -> None:
    """Write the results of Penalty: tables first, since a picture may fail."""
    import pandas as pd

    from bilevax import plots

    best = found.results["Penalty"]
    order = best.order()
    rank = np.empty(len(order), int)
    rank[order] = np.arange(1, len(order) + 1)
    frame = pd.DataFrame(
        {
            "row": np.arange(len(order)),
            "given_label": job.y,
            "weight": best.weight,
            "rank": rank,
            "believed_label": best.believed,
            "suspect": np.where(best.suspects, "yes", "no"),
        }
    )
    run.csv("suspects.csv", frame.sort_values("rank"))
    run.json("results.json", report)
    wrong = None if job.y_true is None else job.y != job.y_true
    run.picture("weights.png", lambda path: plots.weight_histogram(best.weight, wrong, path))
    histories = {name: one.history for name, one in found.results.items()}
    run.picture("convergence.png", lambda path: plots.convergence(histories, path))
    images = job.images
    if images is not None:
        first = order[:SHOWN_SUSPECTS]
        run.picture(
            "contact_sheet.png",
            lambda path: plots.contact_sheet(
                images[first],
                [f"row {i}\n{str(job.y[i])[:9]} → {str(best.believed[i])[:9]}" for i in first],
                path,
                f"The {len(first)} most suspicious of {len(order):,}: given label → believed label"
                + ("" if wrong is None else "   (orange frame: wrong indeed, blue: right)"),
                None if wrong is None else wrong[first].tolist(),
            ),
        )


def _sizes(job: "Job") -> dict[str, Any]:
    return {
        "title": job.title,
        "train": len(job.y),
        "clean": len(job.y_clean),
        "test": None if job.y_test is None else len(job.y_test),
        "features": job.X.shape[1],
        "classes": len(np.unique(job.y)),
        "wrong_labels": None if job.y_true is None else int(np.sum(job.y != job.y_true)),
    }


# Of the printed table: heading, field of Row, format.
COLUMNS = [
    ("method", "method", ""),
    ("test\naccuracy", "test_accuracy", ".1%"),
    ("suspects", "suspects", ",d"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("seconds", "seconds", ".1f"),
]


def _table(job: "Job", rows: list["Row"], hold_out: float) -> Table:
    sizes = _sizes(job)
    wrong = "" if job.y_true is None else f" ({sizes['wrong_labels'] / sizes['train']:.0%} of the labels wrong)"
    tested = "no test set" if job.y_test is None else f"{sizes['test']:,} test samples"
    caption = "Seconds include compilation."
    if job.y_test is None:
        caption += " For accuracies, pass --test FILE, or --hold-out 0.25 to set aside a quarter of the clean set."
    elif hold_out > 0:
        caption += " The test samples were set aside from the clean set (--hold-out); no method has seen them."
    if job.y_true is None:
        caption += " Which labels are wrong is not known, so precision and recall are not, either."
    return as_table(
        f"{job.title}: {sizes['train']:,} training samples{wrong}, {sizes['clean']:,} clean, {tested}",
        [heading for heading, _, _ in COLUMNS],
        [[figure(getattr(row, field), form) for _, field, form in COLUMNS] for row in rows],
        caption,
        whole=False,
    )

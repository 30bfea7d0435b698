"""`bilevax audit`: the accuracy that a few added samples could cost the user's own training pipeline."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
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
    finite,
    in_plain_words,
    laid_out,
    surroundings,
)
from bilevax.loop.layout import Layout

if TYPE_CHECKING:  # these import scikit-learn, which `--help` does not need
    from bilevax.applications.poisoning.jobs import Job
    from bilevax.applications.poisoning.report import Report
    from bilevax.loop.stages import Stages

SHOWN_POINTS = 10
HIDDEN = 64  # units
TREES = 100


class Model(enum.Enum):
    """The models of `--model`."""

    linear = "linear"
    mlp = "mlp"
    trees = "trees"


def audit(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Training samples: NPZ with arrays X and y, or CSV or Parquet.",
            show_default="scikit-learn's digits",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Samples with right labels, for the attack and for the accuracies.",
            show_default="a third of DATA",
        ),
    ] = None,
    target: Target = None,
    budget: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Largest number of added samples, as a share of the training samples.",
            callback=finite,
        ),
    ] = 0.05,
    levels: Annotated[int, typer.Option(min=1, max=1000, help="Number of shares, evenly spaced up to the budget.")] = 4,
    model: Annotated[
        Model,
        typer.Option(
            help="What to audit: softmax regression, a network with one hidden layer, or a random forest, which is "
            "attacked through a network."
        ),
    ] = Model.linear,
    hidden: Annotated[
        int | None,
        typer.Option(min=1, max=2**20, help="Width of the hidden layer of --model mlp.", show_default=str(HIDDEN)),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=MOST, help="Number of repetitions, each with its own seed.")] = 5,
    steps: Annotated[int, typer.Option(min=1, max=MOST, help="Upper steps of each attack.")] = 500,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("audited"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Audit your own training pipeline: measure the accuracy that a few added samples could cost.

    Trains the model on DATA, optimises added samples to increase its loss, trains it again with them, and measures the
    accuracy on validation samples that the attack does not use. For comparison, it adds as many random samples with
    wrong labels.

    Writes report.json, curve.png and, if the samples are images, points.png.
    """
    with in_plain_words() as asked:
        if data is None and (validation is not None or target is not None):
            raise InputError("--validation or --target is given without DATA. Also name the file of training samples.")
        if hidden is not None and model is not Model.mlp:
            raise InputError("--hidden is the width of the layer of --model mlp. Add that, or leave --hidden out.")
        shared = out
        layout, out = laid_out(devices, out)
        files = {"data": data, "validation": validation}
        settings: dict[str, Any] = {name: None if path is None else digest(name, path) for name, path in files.items()}
        settings |= {"target": target, "budget": budget, "levels": levels, "model": model.value}
        settings |= {"hidden": HIDDEN if hidden is None and model is Model.mlp else hidden}
        settings |= {"seeds": seeds, "steps": steps, "seed": seed}
        names = ["report.json", "curve.png", "points.png"]
        run = Run(
            "audit",
            out,
            names if data is None or data.suffix.lower() == ".npz" else names[:-1],
            settings,
            {"DATA": data, "--validation": validation},
            resume=resume,
            overwrite=overwrite,
            shared=shared,
            asked=asked,
        )
        with run.stages() as stages:
            from bilevax.applications.poisoning.jobs import digits_job, job_from_files

            job = digits_job() if data is None else job_from_files(data, validation, target, seed)
            report = _audit(job, settings, stages, layout)
            _write(report, job, settings, run)
        show(_table(report))
        say(report.in_words())
        run.end(report.seconds)


def _audit(job: "Job", settings: dict[str, Any], stages: "Stages", layout: Layout | None) -> "Report":
    import jax

    from bilevax.applications.poisoning.audit import audit

    with Console(stderr=True).status("auditing") as status:
        return audit(
            job.X,
            job.y,
            job.X_val,
            job.y_val,
            model=_model(Model(settings["model"]), settings["hidden"]),
            budget=settings["budget"],
            levels=settings["levels"],
            seeds=settings["seeds"],
            steps=settings["steps"],
            key=jax.random.key(settings["seed"]),
            progress=status.update,
            mesh=layout,
            stages=stages,
        )


def _model(model: Model, hidden: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    from bilevax.nn.networks import mlp, softmax_head

    if model is Model.trees:
        return RandomForestClassifier(TREES)
    return softmax_head if model is Model.linear else lambda classes: mlp(classes, (hidden,))


def _table(report: "Report") -> Table:
    columns = [report.lost(accuracies) for accuracies in (report.flipped, report.attacked)]
    rows = [
        (
            f"{100 * fraction:.1f}%",
            *(
                f"{100 * mean[i]:.1f}" + ("" if np.isnan(width[i]) else f" ± {100 * width[i]:.1f}")
                for mean, width in columns
            ),
        )
        for i, fraction in enumerate(report.fractions)
    ]
    names = ("samples added", "random wrong labels", "attack by Penalty")
    return as_table("Loss of accuracy, percentage points", names, rows)


def _write(report: "Report", job: "Job", settings: dict[str, Any], run: Run) -> None:
    """Write the report, then the figures: if a figure fails, the report is already on disk."""
    from bilevax import plots

    content = {
        "data": {"title": job.title, "train": len(job.y), "held_out": report.held_out},
        "settings": settings,
        **surroundings("jax", "optax", "numpy", "scikit-learn"),
        "wall_seconds": report.seconds,
        **report.as_dict(),
    }
    run.json("report.json", content, indent=None)
    percents = 100 * np.concatenate([[0], report.fractions])
    lines = {
        name: plots.Line(percents, 100 * np.concatenate([report.clean[None], accuracies]).T)
        for name, accuracies in (("random wrong labels", report.flipped), ("attack by Penalty", report.attacked))
    }
    levels = {"no added samples": 100 * float(report.clean.mean())}
    panel = plots.LinePanel(job.title, "added samples, % of the training set", "held-out accuracy %", lines, levels)
    run.picture("curve.png", lambda path: plots.line_panels([panel], path))
    if job.pictures:
        chosen = np.argsort(-report.l2, kind="stable")[:SHOWN_POINTS]
        low = min(job.X.min(), job.X_val.min())
        scale = max(job.X.max(), job.X_val.max()) - low
        run.picture(
            "points.png",
            lambda path: plots.change_sheet(
                (report.base[chosen] - low) / scale,
                (report.points.x[chosen] - low) / scale,
                [str(label)[:9] for label in report.base_labels[chosen]],
                [f"as {str(report.points.y[i])[:6]}\nl2 {report.l2[i]:.2f}" for i in chosen],
                path,
                f"The {len(chosen)} added samples of {len(report.l2)} that moved furthest",
            ),
        )

"""`bilevax audit`: the accuracy that a few added samples could cost the user's own training pipeline."""

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevax._checks import InputError
from bilevax.cli._printing import say, show
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
)

HIDDEN = 64  # units


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
    with in_plain_words():
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

        from bilevax.cli import _auditing
        from bilevax.cli._runs import Run

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
        )
        with run.stages() as stages:
            from bilevax.applications.poisoning.jobs import digits_job, job_from_files

            job = digits_job() if data is None else job_from_files(data, validation, target, seed)
            report = _auditing.audited(job, settings, stages, layout)
            _auditing.write(report, job, settings, run)
        show(_auditing.table(report))
        say(report.in_words())
        run.end(report.seconds)

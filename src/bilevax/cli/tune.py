"""`bilevax tune`: hyperparameters by gradient, compared with random and Bayesian search."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from bilevax.cli.lasso import tune_lasso
from bilevax.loop.layout import Layout

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications.tuning.comparison import Comparison, Row
    from bilevax.applications.tuning.jobs import Job


def tune(
    train: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRAIN",
            help="Labelled samples: CSV, Parquet, or NPZ with arrays X and y.",
            show_default="scikit-learn's breast cancer, and its digits",
        ),
    ] = None,
    target: Target = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Samples to tune by, with the same columns.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Samples that no method sees, for the test loss.")
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.45,
            help="The part of TRAIN that is set aside to tune by, without --validation; as much to test on, without "
            "--test.",
            metavar="PART",
            callback=finite,
        ),
    ] = 0.25,
    trials: Annotated[int, typer.Option(min=1, max=MOST, help="Trials of random search and of Bayesian search.")] = 200,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Upper steps of Penalty.", show_default="the estimator's own")
    ] = None,
    seed: Seed = 0,
    lasso: Annotated[
        bool,
        typer.Option(
            "--lasso",
            help="Choose a lasso's strength for a target that is a quantity, beside LassoCV. Without TRAIN: on "
            "scikit-learn's diabetes data. Without --validation: by 5-fold cross-validation.",
        ),
    ] = False,
    per_feature: Annotated[
        bool, typer.Option("--per-feature", help="With --lasso: a strength for each feature, or group, as well.")
    ] = False,
    groups: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --lasso: a group lasso as well; a CSV with columns feature, group."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("tuned"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Tune one L2 strength per feature of logistic regression: by gradient, by random and by Bayesian search.

    Columns of text are one-hot encoded, numeric ones are scaled. For every row of the table, a model is
    trained to the end on the same samples with the strengths that the method found.

    Writes strengths.csv (Penalty's), tuning.png (validation loss against time) and results.json; with --lasso
    lasso.csv and lasso.png (coefficients of the chosen features) and results.json.
    """
    with in_plain_words() as asked:
        began = time.perf_counter()
        files = {"train": train, "validation": validation, "test": test}
        given = {"--target": target, "--validation": validation, "--test": test, "--groups": groups}
        if train is None:
            for name, value in given.items():
                if value is not None:
                    raise InputError(f"{name} is given without TRAIN. Name the file to train on, too.")
        if not lasso and (per_feature or groups is not None):
            name = "--per-feature" if per_feature else "--groups"
            raise InputError(f"{name} is given without --lasso, which it belongs to. Add --lasso.")
        shared = out
        layout, out = laid_out(devices, out)
        read = files | {"groups": groups} if lasso else files
        settings: dict[str, Any] = {name: None if path is None else digest(name, path) for name, path in read.items()}
        settings |= {"target": target, "hold_out": hold_out, "steps": steps, "seed": seed}
        settings |= {"per_feature": per_feature} if lasso else {"trials": trials}
        prefixes = [""] if train is not None else ["breast_cancer_", "digits_"]
        names = [f"{prefix}{name}" for prefix in prefixes for name in ("strengths.csv", "tuning.png")]
        run = Run(
            "tune --lasso" if lasso else "tune",
            out,
            [*(["lasso.csv", "lasso.png"] if lasso else names), "results.json"],
            settings,
            {"TRAIN": train, "--validation": validation, "--test": test, "--groups": groups},
            resume=resume,
            overwrite=overwrite,
            shared=shared,
            asked=asked,
        )
        if lasso:
            tune_lasso(files, groups, settings, run, layout)
        else:
            _tune_classifier(files, settings, run, layout, began)


def _tune_classifier(
    files: dict[str, Path | None], settings: dict[str, Any], run: Run, layout: Layout | None, began: float
) -> None:
    """Run all methods, write strengths.csv, tuning.png and results.json, and print the table."""
    split = settings["hold_out"], settings["seed"]
    with run.stages() as stages:
        from bilevax.applications.tuning.comparison import compare
        from bilevax.applications.tuning.jobs import job_from_files, ready_made_jobs

        jobs = (
            ready_made_jobs(*split) if files["train"] is None else [job_from_files(files, settings["target"], *split)]
        )
        found = []
        for job in jobs:
            for note in job.notes:
                say(note)
            found.append(
                compare(
                    job,
                    trials=settings["trials"],
                    steps=settings["steps"],
                    seed=settings["seed"],
                    stages=stages,
                    mesh=layout,
                    notice=say,
                )
            )
        seconds = time.perf_counter() - began
        for job, one in zip(jobs, found, strict=True):
            _write_strengths(job, one, run)
        report = {
            "settings": settings,
            **surroundings("jax", "optax", "numpy", "scikit-learn", "optuna"),
            "wall_seconds": seconds,
            "data_sets": [one.report for one in found],
        }
        run.json("results.json", report)
        for job, one in zip(jobs, found, strict=True):
            _draw(job, one, run)
    for job, one in zip(jobs, found, strict=True):
        show(_table(job, one.rows))
        for sentence in one.sentences:
            say(sentence)
    run.end(seconds)


def _write_strengths(job: "Job", found: "Comparison", run: Run) -> None:
    import pandas as pd

    run.csv(f"{job.prefix}strengths.csv", pd.DataFrame({"feature": job.features, "strength": found.strengths}))


def _draw(job: "Job", found: "Comparison", run: Run) -> None:
    from bilevax import plots

    curves = {}
    for name in sorted(found.paths, key=lambda name: name != "Penalty"):  # Penalty first: in blue, as in all figures
        path = found.paths[name]
        # To the end of the run, where nothing better was found.
        curves[name] = plots.TimedLosses([*path.seconds, found.runs[name].seconds], [*path.losses, path.losses[-1]])
    levels = {"default (C=1)": found.default, "random search's best": found.best}
    title = f"Validation loss: {Path(job.title).name}, {len(job.features)} strengths"
    run.picture(f"{job.prefix}tuning.png", lambda file: plots.loss_against_time(curves, file, title, levels))


def _table(job: "Job", rows: list["Row"]) -> Table:
    # Broken by hand, so that a terminal of 80 columns shows all figures on one line.
    names = (
        "method",
        "validation\nloss",
        "test\nloss",
        "seconds\n(+ compile)",
        "gradients",
        "seconds\nto reach\nrandom's",
    )
    return as_table(
        f"{job.title}: {len(job.y):,} training, {len(job.y_validation):,} validation, {len(job.y_test):,} "
        f"test samples, {len(job.features)} strengths, {job.classes} classes",
        names,
        [
            (
                row.method,
                f"{row.validation_loss:.4f}",
                f"{row.test_loss:.4f}",
                "–" if row.seconds is None else f"{row.seconds:.2f} (+{row.compile_seconds:.1f})",
                figure(row.gradient_evaluations, ",d"),
                figure(row.seconds_to_random, ".3f"),
            )
            for row in rows
        ],
        "Losses: mean cross-entropy of logistic regression trained to the end with each method's strengths. "
        "Seconds: of a second run, with all compiled (+ those of a first, short one, which compiles). "
        "Last column: until random search's best validation loss was reached.",
    )

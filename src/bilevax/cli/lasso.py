"""`bilevax tune --lasso`: strengths of a lasso or group lasso by gradient, compared with scikit-learn's LassoCV."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bilevax._checks import InputError
from bilevax.cli._printing import as_table, say, show
from bilevax.cli._runs import Run
from bilevax.cli._shared import figure, surroundings
from bilevax.loop.layout import Layout

if TYPE_CHECKING:  # this imports pandas and scikit-learn, which `--help` does not need
    from bilevax.applications.tuning.lasso_comparison import LassoComparison

MOST_SHOWN = 30


def tune_lasso(
    files: dict[str, Path | None],
    groups: Path | None,
    settings: dict[str, Any],
    run: Run,
    layout: Layout | None,
) -> None:
    """Run all methods, write lasso.csv, results.json and lasso.png, and print the table and the chosen features.

    Raises:
        InputError: a file cannot be used, or the target is constant.
    """
    began = time.perf_counter()
    hold_out, seed = settings["hold_out"], settings["seed"]
    with run.stages() as stages:
        from bilevax.applications.tuning.lasso_comparison import (
            FOLDS,
            compare_lasso,
            lasso_from_files,
            read_groups,
            ready_made_lasso,
        )

        if files["train"] is None:
            job = ready_made_lasso(hold_out, seed)
        else:
            job = lasso_from_files(files, settings["target"], hold_out, seed)
        for note in job.notes:
            say(note)
        if np.ptp(job.y) == 0:
            raise InputError(
                f"The target is {job.y[0]:g} in all {len(job.y)} samples for tuning, so there is nothing to explain. "
                "Check --target."
            )
        labels = None if groups is None else read_groups(groups, job)
        say(
            f"{job.title}: {len(job.y):,} samples with {len(job.names)} features, tuned "
            f"{'on a validation set' if len(job.held) == 1 else f'by {FOLDS}-fold cross-validation'} ..."
        )
        found = compare_lasso(
            job,
            labels,
            per_feature=settings["per_feature"],
            steps=settings["steps"],
            stages=stages,
            mesh=layout,
        )
        seconds = time.perf_counter() - began
        report = {
            "settings": settings,
            **surroundings("jax", "optax", "numpy", "scikit-learn"),
            "wall_seconds": seconds,
            **found.report,
        }
        run.csv("lasso.csv", found.coefficients())
        run.json("results.json", report)
        run.picture("lasso.png", lambda path: _draw(found, path))
    _print(found)
    run.end(seconds)


def _print(found: "LassoComparison") -> None:
    from bilevax.applications.tuning.lasso_comparison import EACH

    job = found.job
    show(
        as_table(
            f"{job.title}: {len(job.y):,} samples, {len(job.y_test):,} test samples, {len(job.names)} features",
            ("method", "held-out\nerror", "test\nerror", "features\nchosen", "seconds"),
            [
                (
                    row.method,
                    figure(row.held_out_error, ".5g"),
                    figure(row.test_error, ".5g"),
                    str(row.chosen),
                    figure(row.seconds, ".1f"),
                )
                for row in found.rows
            ],
            "Mean squared errors on the samples held out for tuning, and on the test samples. Seconds include "
            "compilation.",
        )
    )
    chosen = found.chosen()
    show(
        as_table(
            "Features chosen, with their coefficients (for features on one scale)",
            ("feature", *(method.replace(", ", "\n") for method in found.fits)),
            [
                (str(line["feature"]), *(figure(float(line[method]) or None, ".4g") for method in found.fits))
                for line in chosen.head(MOST_SHOWN).to_dict("records")
            ],
            whole=False,
        )
    )
    if len(chosen) > MOST_SHOWN:
        say(f"... and {len(chosen) - MOST_SHOWN} more, in lasso.csv.")
    if any(EACH in method for method in found.fits):
        say(
            "One strength for each feature overfits the held-out samples in part; compare the test errors. A feature "
            "whose coefficient is zero in all folds stays at zero."
        )


def _draw(found: "LassoComparison", path: Path) -> None:
    from bilevax import plots

    shown = found.chosen().head(MOST_SHOWN)
    plots.bars(
        shown["feature"].astype(str).tolist(),
        {method: shown[method].to_numpy() for method in found.fits},
        path,
        f"Features chosen: {Path(found.job.title).name}",
        "coefficient, features on one scale",
    )

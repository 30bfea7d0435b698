"""`bilevax denoise --compare`: the methods of the papers on the user's data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from bilevax.cli._printing import as_table, say
from bilevax.cli._runs import Run
from bilevax.cli._shared import figure
from bilevax.loop.layout import Layout
from bilevax.loop.stages import Stages

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications.denoising.comparison import Comparison, Row
    from bilevax.applications.denoising.jobs import Job

FILES = ("weights.csv", "weights.png", "convergence.png")


class Settings(NamedTuple):
    """The options of a comparison; see the help of the command."""

    test: Path | None
    hold_out: float
    steps: int | None
    batch_size: int | None


class Compared(NamedTuple):
    """The data of a comparison and its result."""

    job: "Job"
    found: "Comparison"

    def report(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "steps": self.found.steps,
            "data": _sizes(self.job),
            "methods": [row._asdict() for row in self.found.rows],
        }


def compare(
    train: Path | None,
    trusted: Path | None,
    target: str | None,
    settings: Settings,
    seed: int,
    stages: Stages,
    mesh: Layout | None,
) -> Compared:
    """Compare methods on a user's files, or on the digits."""
    from bilevax.applications.denoising import comparison
    from bilevax.applications.denoising.jobs import job_from_files, noisy_digits_job

    if train is None or trusted is None:
        job = noisy_digits_job(seed)
    else:
        job = job_from_files(train, trusted, settings.test, target, settings.hold_out, seed)
    for note in job.notes:
        say(note)
    found = comparison.compare(
        job, steps=settings.steps, batch_size=settings.batch_size, seed=seed, stages=stages, mesh=mesh
    )
    return Compared(job, found)


def write(compared: Compared, run: Run) -> None:
    """Write the weights that Penalty learned: the table first, since a picture may fail."""
    import pandas as pd

    from bilevax import plots

    job, found = compared
    best = found.results["Penalty"]
    order = best.order()
    frame = pd.DataFrame(
        {
            "row": order,
            "given_label": job.y[order],
            "weight": best.weight[order],
            "believed_label": best.believed[order],
            "suspect": np.where(best.suspects[order], "yes", "no"),
        }
    )
    run.csv("weights.csv", frame)
    wrong = None if job.y_true is None else job.y != job.y_true
    run.picture("weights.png", lambda path: plots.weight_histogram(best.weight, wrong, path))
    histories = {name: one.history for name, one in found.results.items()}
    run.picture("convergence.png", lambda path: plots.convergence(histories, path))


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


def table(job: "Job", rows: list["Row"], hold_out: float) -> Table:
    sizes = _sizes(job)
    wrong = "" if job.y_true is None else f" ({sizes['wrong_labels'] / sizes['train']:.0%} of the labels wrong)"
    tested = "no test set" if job.y_test is None else f"{sizes['test']:,} test samples"
    caption = "Seconds include compilation."
    if job.y_test is None:
        caption += " For accuracies, pass --test FILE, or --hold-out 0.25 to set aside a quarter of the trusted ones."
    elif hold_out > 0:
        caption += " The test samples were set aside from the trusted samples (--hold-out); no method has seen them."
    if job.y_true is None:
        caption += " Which labels are wrong is not known, so precision and recall are not, either."
    return as_table(
        f"{job.title}: {sizes['train']:,} training samples{wrong}, {sizes['clean']:,} trusted, {tested}",
        [heading for heading, _, _ in COLUMNS],
        [[figure(getattr(row, field), form) for _, field, form in COLUMNS] for row in rows],
        caption,
        whole=False,
    )

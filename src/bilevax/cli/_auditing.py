"""What `bilevax audit` runs, prints and writes."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from bilevax.cli._printing import as_table
from bilevax.cli._runs import Run
from bilevax.cli._shared import surroundings
from bilevax.loop.layout import Layout
from bilevax.loop.stages import Stages

if TYPE_CHECKING:
    from bilevax.applications.poisoning.jobs import Job
    from bilevax.applications.poisoning.report import Report

SHOWN_POINTS = 10
TREES = 100


def audited(job: "Job", settings: dict[str, Any], stages: Stages, layout: Layout | None) -> "Report":
    """Audit the model of the settings."""
    from bilevax.applications.poisoning.audit import audit

    with Console(stderr=True).status("auditing") as status:
        return audit(
            job.X,
            job.y,
            job.X_val,
            job.y_val,
            model=_model(settings["model"], settings["hidden"]),
            budget=settings["budget"],
            levels=settings["levels"],
            seeds=settings["seeds"],
            steps=settings["steps"],
            key=jax.random.key(settings["seed"]),
            progress=status.update,
            mesh=layout,
            stages=stages,
        )


def _model(name: str, hidden: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    from bilevax.nn.networks import mlp, softmax_head

    if name == "trees":
        return RandomForestClassifier(TREES)
    return softmax_head if name == "linear" else lambda classes: mlp(classes, (hidden,))


def table(report: "Report") -> Table:
    """The loss of accuracy for each share of added samples."""
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


def write(report: "Report", job: "Job", settings: dict[str, Any], run: Run) -> None:
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

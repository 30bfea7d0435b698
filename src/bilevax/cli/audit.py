"""`bilevax audit`: what a few added samples could do to a user's own training pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
    digest,
    finite,
    in_plain_words,
    laid_out,
    surroundings,
)
from bilevax.loop.placement import Layout

if TYPE_CHECKING:  # scikit-learn, which `--help` need not wait for
    from bilevax.applications.poisoning.audit import Report
    from bilevax.loop.stages import Stages

SHOWN_POINTS = 10
DIGITS_VALIDATION = 600


class Audited(NamedTuple):
    """The data of an audit: features (n, ...), labels, and whether the features are pictures with values in 0..1."""

    title: str
    X: np.ndarray
    y: np.ndarray
    X_val: np.ndarray
    y_val: np.ndarray
    pictures: bool


def audit(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="What the model is trained on: NPZ with arrays X and y, CSV or Parquet of numbers.",
            show_default="scikit-learn's digits",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Right samples to attack by and to measure on.", show_default="a third of DATA"
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="What holds the labels. For NPZ, an array; y unless told."),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(metavar="PART", help="The largest share of samples that someone could add.", callback=finite),
    ] = 0.05,
    levels: Annotated[int, typer.Option(min=1, max=1000, help="How many shares up to the budget.")] = 4,
    hidden: Annotated[
        int, typer.Option(min=0, max=2**20, help="Width of the model's hidden layer; 0 for softmax regression.")
    ] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=MOST, help="How many times all is drawn anew.")] = 5,
    steps: Annotated[int, typer.Option(min=1, max=MOST, help="Upper steps of each attack.")] = 500,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("audited"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Audit your own training pipeline: how much accuracy could someone take who adds a few samples?

    Trains the model on DATA, finds the samples that would hurt it most, trains it again with them, and measures on
    validation samples that the attack has not seen. Beside it stand as many random samples with wrong labels.

    Writes report.json, curve.png and, where the samples are images, points.png.
    """
    with in_plain_words() as asked:
        if data is None and (validation is not None or target is not None):
            raise InputError("--validation or --target is given without DATA. Name the file of training samples, too.")
        shared = out
        layout, out = laid_out(devices, out)
        files = {"data": data, "validation": validation}
        settings: dict[str, Any] = {name: None if path is None else digest(name, path) for name, path in files.items()}
        settings |= {"target": target, "budget": budget, "levels": levels, "hidden": hidden}
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
            samples = _digits() if data is None else _from_files(data, validation, target, seed)
            report = _audit(samples, settings, stages, layout)
            _write(report, samples, settings, run)
        show(_table(report))
        say(_in_words(report))
        run.end(report.seconds)


def _digits() -> Audited:
    from bilevax.data import images as datasets

    d = datasets.digits()
    x, y = np.concatenate([d.x_train, d.x_test]) / 255, np.concatenate([d.y_train, d.y_test]).astype(int)
    title = "scikit-learn's handwritten digits"
    return Audited(
        title, x[DIGITS_VALIDATION:], y[DIGITS_VALIDATION:], x[:DIGITS_VALIDATION], y[:DIGITS_VALIDATION], True
    )


def _from_files(data: Path, validation: Path | None, target: str | None, seed: int) -> Audited:
    import pandas as pd
    from sklearn.model_selection import train_test_split

    from bilevax.data import tables

    def features(table: tables.Table) -> np.ndarray:
        images = tables.as_images(table)
        if images is not None:
            return images
        others = table.features.columns.difference(table.features.select_dtypes(["number", "bool"]).columns, sort=False)
        if len(others):
            raise InputError(
                f"{table.name} has columns that hold no numbers: {tables.listed(others)}. An added sample is moved by "
                "gradients: encode them as numbers, or leave them out."
            )
        return table.features.to_numpy(np.float64)

    files = {"DATA": data} | ({} if validation is None else {"--validation": validation})
    table, *others = tables.read_together(files, target)
    x, y = features(table), table.labels
    if not others:
        values, counts = np.unique(y, return_counts=True)
        if counts.min() < 6:
            raise InputError(
                f"{table.name} has fewer than 6 samples of {tables.listed(values[counts < 6])}, too few to set a third "
                "aside. Pass --validation FILE, or leave those classes out."
            )
        places: Any = np.arange(len(y))
        train, aside = train_test_split(places, test_size=1 / 3, stratify=y, random_state=seed)
        x, x_val, y, y_val = x[train], x[aside], y[train], y[aside]
    else:
        other = others[0]
        if set(other.features.columns) != set(table.features.columns):
            raise InputError(f"{other.name} has other columns than {table.name}. Give both files the same features.")
        # As one table: columns in one order, and pictures on one scale.
        both = table._replace(features=pd.concat([table.features, other.features]), labels=[*y, *other.labels])
        x, x_val = np.split(features(both), [len(y)])
        y_val = other.labels
    return Audited(str(data), x, y, x_val, y_val, tables.as_images(table) is not None)


def _audit(samples: Audited, settings: dict[str, Any], stages: "Stages", layout: Layout | None) -> "Report":
    import jax

    from bilevax.applications.poisoning.audit import audit
    from bilevax.nn.networks import mlp, softmax_head

    hidden = settings["hidden"]
    with Console(stderr=True).status("auditing") as status:
        return audit(
            samples.X,
            samples.y,
            samples.X_val,
            samples.y_val,
            model=softmax_head if hidden == 0 else lambda classes: mlp(classes, (hidden,)),
            budget=settings["budget"],
            levels=settings["levels"],
            seeds=settings["seeds"],
            steps=settings["steps"],
            key=jax.random.key(settings["seed"]),
            progress=status.update,
            mesh=layout,
            stages=stages,
        )


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
    names = ("samples added", "wrong labels at random", "found by Penalty")
    return as_table("Accuracy lost, points of a hundred", names, rows)


def _in_words(report: "Report") -> str:
    lost, _ = report.lost(report.attacked)
    of = "" if report.points.x.ndim > 2 else ", columns in units of their ranges"
    further = float((report.nearest > 2 * report.usual_nearest).mean())
    return (
        f"Without added samples the model is right on {100 * report.clean.mean():.1f}% of {report.held_out} held-out "
        f"samples (always the most frequent class: {100 * report.majority:.1f}%; logistic regression: "
        f"{100 * report.logistic:.1f}%). {len(report.points.y)} added samples ({100 * report.fractions[-1]:.1f}%) cost "
        f"up to {100 * lost[-1]:.1f} points. How visible they are: the median one is {np.median(report.l2):.3g} "
        f"(l2{of}) from where it started and {np.median(report.nearest):.3g} from its nearest clean neighbour; clean "
        f"samples are {report.usual_nearest:.3g} from theirs. {100 * further:.0f}% of them lie more than twice as far "
        "out, where a filter by distance would find them."
    )


def _write(report: "Report", samples: Audited, settings: dict[str, Any], run: Run) -> None:
    """The report first, for a picture may fail."""
    from bilevax import plots

    means = {name: report.lost(getattr(report, name)) for name in ("flipped", "attacked")}
    content = {
        "data": {"title": samples.title, "train": len(samples.y), "held_out": report.held_out},
        "settings": settings,
        **surroundings("jax", "optax", "numpy", "scikit-learn"),
        "wall_seconds": report.seconds,
        "clean_accuracy": report.clean.tolist(),
        "references": {"most_frequent_class": report.majority, "logistic_regression": report.logistic},
        "levels": [
            {
                "fraction": float(report.fractions[i]),
                **{
                    name: {
                        "accuracy": getattr(report, name)[i].tolist(),
                        "lost": float(mean[i]),
                        "half_width_95": None if np.isnan(width[i]) else float(width[i]),
                    }
                    for name, (mean, width) in means.items()
                },
            }
            for i in range(len(report.fractions))
        ],
        "points": {
            "label": [str(label) for label in report.points.y],
            "base_label": [str(label) for label in report.base_labels],
            "l2": report.l2.tolist(),
            "l_inf": report.l_inf.tolist(),
            "nearest_clean": report.nearest.tolist(),
            "usual_nearest": report.usual_nearest,
            "x": np.asarray(report.points.x, float).round(6).tolist(),
        },
    }
    run.json("report.json", content, indent=None)
    percents = 100 * np.concatenate([[0], report.fractions])
    lines = {
        name: plots.Line(percents, 100 * np.concatenate([report.clean[None], accuracies]).T)
        for name, accuracies in (("wrong labels at random", report.flipped), ("found by Penalty", report.attacked))
    }
    levels = {"no added samples": 100 * float(report.clean.mean())}
    panel = plots.LinePanel(samples.title, "added samples, % of the training set", "held-out accuracy %", lines, levels)
    run.picture("curve.png", lambda path: plots.line_panels([panel], path))
    if samples.pictures:
        chosen = np.argsort(-report.l2, kind="stable")[:SHOWN_POINTS]
        low = min(samples.X.min(), samples.X_val.min())
        scale = max(samples.X.max(), samples.X_val.max()) - low
        run.picture(
            "points.png",
            lambda path: plots.change_sheet(
                (report.base[chosen] - low) / scale,
                (report.points.x[chosen] - low) / scale,
                [str(label)[:9] for label in report.base_labels[chosen]],
                [f"as {str(report.points.y[i])[:6]}\nl2 {report.l2[i]:.2f}" for i in chosen],
                path,
                f"The {len(chosen)} most changed of {len(report.l2)} added samples",
            ),
        )

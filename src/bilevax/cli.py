"""The command line: `bilevax denoise` on a user's labels, `bilevax reproduce` for the papers' tables and figures."""

import hashlib
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import numpy as np

import bilevax
from bilevax.callbacks import make_writable
from bilevax.problem import InputError
from bilevax.solve import SolveError

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise SystemExit(f"The bilevax command needs {error.name}: pip install 'bilevax[apps]'") from error

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    from bilevax.applications.denoising import DenoisingClassifier
    from bilevax.tables import Labelled

SOLVE_FAILED, INPUT_REFUSED, INTERRUPTED = 1, 2, 130
SHOWN_SUSPECTS = 50

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)


def main() -> None:
    """The `bilevax` command. Exit codes: 0 done, 1 the solve failed, 2 bad input, 130 Ctrl-C."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bilevax {bilevax.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Bilevel optimisation in JAX."""


@app.command()
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
) -> None:
    """Find the wrong labels in TRAIN with the help of a few clean ones.

    Columns of text are one-hot encoded, numeric ones are scaled. Accuracies need a test set: --test, or part of
    the clean samples by --hold-out. Without either all clean samples are learned from, and the table shows a dash.

    Writes suspects.csv (rows counted from 0, the most suspicious first), weights.png, convergence.png,
    results.json and, where the samples are images, contact_sheet.png.
    """
    with _in_plain_words():
        if train is None:
            for name, value in (("--clean", clean), ("--target", target), ("--test", test)):
                if value is not None:
                    raise InputError(f"{name} is given without TRAIN. Name the file whose labels are in doubt, too.")
        elif clean is None:
            raise InputError("TRAIN is given without --clean. Pass a file of samples whose labels you trust.")
        _check_writable(out)
        files = {"train": train, "clean": clean, "test": test}
        settings = {name: None if path is None else _digest(name, path) for name, path in files.items()}
        settings |= {"target": target, "hold_out": hold_out, "steps": steps, "batch_size": batch_size, "seed": seed}
        checkpoints = out / "checkpoints"
        _check_checkpoints(checkpoints, settings, resume)
        if train is None or clean is None:
            data = _noisy_digits(seed)
        else:
            from bilevax import tables

            data = tables.from_files(train, clean, test, target, hold_out, seed)
        for note in data.notes:
            _say(note)
        _denoise(data, settings, out, checkpoints, resume)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which table or figure, see --list.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name them all.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Under two minutes on two cores.")] = False,
    medium: Annotated[bool, typer.Option("--medium", help="Between --quick and full size.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many.", show_default="the experiment's")] = None,
    solver: Annotated[str | None, typer.Option(help="Only this one of the experiment's solvers.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the results go.", show_default="out/NAME")
    ] = None,
) -> None:
    """Run one table or figure of the papers, and compare with the paper's numbers."""
    with _in_plain_words():
        if quick and medium:
            raise InputError("--quick and --medium are both given. Choose one.")
        catalog = _catalog()
        experiments = catalog.EXPERIMENTS
        if list_all:
            table = Table("name", "what it reproduces", box=None)
            for key, experiment in experiments.items():
                table.add_row(key, experiment.title)
            Console().print(table)
            return
        names = ", ".join(experiments)
        if name is None:
            raise InputError(f"NAME is missing. Pass one of {names}.")
        if name not in experiments:
            raise InputError(f"NAME is {name!r}, which is no experiment. Pass one of {names}.")
        out = Path("out") / name if out is None else out
        _check_writable(out)
        experiments[name].run(catalog.Settings(quick=quick, medium=medium, seeds=seeds, solver=solver, out=out))


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """What a user can mend ends in a sentence on stderr and an exit code, not in a traceback."""
    try:
        yield
    except InputError as error:
        _complain(str(error))
        raise typer.Exit(INPUT_REFUSED) from error
    except SolveError as error:
        _complain(f"The solve failed. {error}")
        raise typer.Exit(SOLVE_FAILED) from error
    except OSError as error:  # a disk that is full, say
        _complain(str(error))
        raise typer.Exit(SOLVE_FAILED) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _complain(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _check_writable(out: Path) -> None:
    try:
        make_writable(out)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written to ({error.strerror}). Pass a directory that you may write to."
        ) from error


def _digest(name: str, path: Path) -> dict[str, str]:
    """A file's name and contents, so that a resumed run is known to be the same one."""
    name = "TRAIN" if name == "train" else f"--{name}"
    try:
        with path.open("rb") as file:
            return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise InputError(f"{name} ({path}) cannot be opened: {error.strerror}. Check the path.") from error


def _check_checkpoints(directory: Path, settings: dict[str, Any], resume: bool) -> None:
    """Neither overwrite an interrupted run nor go on with another one's."""
    file = directory / "settings.json"
    if not file.is_file():
        if resume:
            _say(f"There is nothing to resume in {directory}; starting from the beginning.")
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


def _catalog() -> Any:
    """`experiments.catalog`, from the checkout in or above which we are."""
    for place in (Path.cwd(), Path(bilevax.__file__).resolve().parents[2]):
        if (place / "experiments" / "catalog.py").is_file():
            sys.path.insert(0, str(place))
            return importlib.import_module("experiments.catalog")
    raise InputError(
        "The directory experiments/ was found neither here nor beside the package: the experiments are part of the "
        "repository and not of the installed package. Clone the repository and run this command in it."
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


def _denoise(data: "Labelled", settings: dict[str, Any], out: Path, checkpoints: Path, resume: bool) -> None:
    from bilevax.applications.denoising import approxgrad_solver, penalty_solver

    began = time.perf_counter()
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "settings.json").write_text(json.dumps(settings))
    try:
        rows = _references(data, settings["seed"])
        fitted = {}
        for name, solver in (("Penalty", penalty_solver()), ("ApproxGrad", approxgrad_solver())):
            fitted[name], seconds = _fit(name, solver, data, settings, checkpoints, resume)
            rows.append(_row(name, fitted[name], data, seconds))
    except BaseException as error:
        kept = any(checkpoints.glob("*/[0-9]*"))
        if not kept:
            shutil.rmtree(checkpoints)
        if isinstance(error, KeyboardInterrupt):
            _complain(_how_to_resume(checkpoints) if kept else "Interrupted before there was anything to keep.")
        raise
    files = _write_results(data, fitted, out)
    report = {
        "settings": settings | {"steps": fitted["Penalty"].steps},
        "seed": settings["seed"],
        "resumed": resume,
        "versions": {"python": platform.python_version(), "bilevax": bilevax.__version__}
        | {name: version_of(name) for name in ("jax", "optax", "numpy", "scikit-learn")},
        "device": {
            "platform": jax.devices()[0].platform,
            "kind": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        "wall_seconds": time.perf_counter() - began,
        "data": _sizes(data),
        "methods": [row._asdict() for row in rows],
    }
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(checkpoints)
    Console().print(_table(data, rows, settings["hold_out"]))
    _say(f"Wrote {', '.join([*files, 'results.json'])} to {out} in {report['wall_seconds']:.1f} s.")


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
    name: str, solver: Any, data: "Labelled", settings: dict[str, Any], checkpoints: Path, resume: bool
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
            _figure(row.test_accuracy, ".1%"),
            _figure(row.suspects, ",d"),
            _figure(row.precision, ".3f"),
            _figure(row.recall, ".3f"),
            f"{row.seconds:.1f}",
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)

"""`bilevax tune`: a linear model of a table, with its penalty strengths tuned by cross-validated hypergradients."""

import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevax._checks import InputError
from bilevax.cli._printing import say
from bilevax.cli._shared import MOST, Overwrite, Resume, Seed, digest, finite, in_plain_words, surroundings

COMPARISON, READING = "With --compare", "How the data is read"


class LossName(StrEnum):
    """The losses that the command offers; auto goes by the kind of target."""

    auto = "auto"
    squared = "squared"
    logistic = "logistic"
    poisson = "poisson"
    gamma = "gamma"
    tweedie = "tweedie"
    huber = "huber"
    quantile = "quantile"


class PenaltyName(StrEnum):
    """The penalties."""

    l2 = "l2"
    l1 = "l1"
    elastic_net = "elastic_net"
    group_lasso = "group_lasso"


class Kind(StrEnum):
    """How many strengths."""

    auto = "auto"
    scalar = "scalar"
    group = "group"
    feature = "feature"
    classes = "class"


def tune(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="A table: CSV (any separator, encoding, compression), Parquet, or NPZ with arrays X and y.",
            show_default="scikit-learn's diabetes and breast cancer data",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="COLUMN", help="The column to predict; of an NPZ file the array.")
    ] = None,
    loss: Annotated[
        LossName,
        typer.Option(help="What is minimised. auto: logistic for classes, squared for quantities, poisson for counts."),
    ] = LossName.auto,
    penalty: Annotated[PenaltyName, typer.Option(help="Of the coefficients; l1 is the lasso.")] = PenaltyName.l2,
    strengths: Annotated[
        Kind,
        typer.Option(
            help="One strength for all, or for each column of FILE (group), each encoded column (feature), or each "
            "class. auto: the more only where nested folds say that they help."
        ),
    ] = Kind.auto,
    quantile: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With --loss quantile: which.",
            show_default="0.5",
            callback=lambda q: None if q is None else finite(q),
        ),
    ] = None,
    exposure: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Of counts or amounts: the prediction is a rate per unit of it."),
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COLUMN", help="How much each row counts.")] = None,
    folds: Annotated[int, typer.Option(min=2, max=1000, help="Folds by which the strengths are tuned.")] = 5,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Leave out this column.", rich_help_panel=READING)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Use this column, though it looks like an identifier.", rich_help_panel=READING
        ),
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Of a text file.", show_default="found out", rich_help_panel=READING)
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of a text file.", show_default="found out", rich_help_panel=READING)
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what would be left out with a note.", rich_help_panel=READING)
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also one strength, scikit-learn's own CV class where there is one, random and Bayesian search.",
            rich_help_panel=COMPARISON,
        ),
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="Of each search.",
            show_default="as many as the tuning took",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("tuned"),
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Predict the target of a table by a linear model whose penalty strengths are tuned by cross-validation.

    Columns of text are one-hot encoded; all are scaled. Writes strengths.csv (strengths, coefficients, importance),
    path.png, importance.png, results.json with scores on samples that the tuning has not seen, and the folder model,
    which `bilevax predict` takes.
    """
    with in_plain_words(), tempfile.TemporaryDirectory(prefix="bilevax-") as folder:
        began = time.perf_counter()
        alone = {"--target": target, "--exposure": exposure, "--weight": weight, "--drop": drop, "--keep": keep}
        _check(file, loss, quantile, trials, compare, alone)
        settings: dict[str, Any] = {"file": None if file is None else digest("file", file), "target": target}
        settings |= {"loss": loss.value, "penalty": penalty.value, "strengths": strengths.value, "quantile": quantile}
        settings |= {"exposure": exposure, "weight": weight, "folds": folds, "drop": drop, "keep": keep}
        settings |= {"separator": separator, "encoding": encoding, "strict": strict, "compare": compare}
        settings |= {"trials": trials, "seed": seed}

        from bilevax.cli import _tuning
        from bilevax.cli._runs import Run

        names = _tuning.files(file is None)
        run = Run("tune", out, names, settings, {"FILE": file}, resume=resume, overwrite=overwrite, shared=out)
        with run.stages() as stages:
            from bilevax.data.samples.types import Options

            aside = {"--exposure": exposure, "--weight": weight}
            options = Options(
                target,
                drop=tuple(drop or ()),
                aside=tuple((name, option) for option, name in aside.items() if name is not None),
                keep=tuple(keep or ()),
                encoding=encoding,
                separator=separator,
                strict=strict,
            )
            if file is None:
                jobs = {f"{name}/": path for name, path in _tuning.ready_made(Path(folder)).items()}
            else:
                jobs = {"": file}
            found = [_tuning.read_and_tune(prefix, path, options, settings, stages) for prefix, path in jobs.items()]
            report = {
                "settings": settings,
                "resumed": stages.resumed,
                **surroundings("numpy", "scipy", "scikit-learn"),
                "data_sets": [_tuning.figures(one) for one in found],
                "wall_seconds": time.perf_counter() - began,
            }
            for one in found:
                _tuning.write(one, run)
            run.json("results.json", report)
            for one in found:
                _tuning.draw(one, run)
        for one in found:
            _tuning.tell(one)
        run.end(time.perf_counter() - began)
        say(_tuning.next_step(found[0], run))


def _check(
    file: Path | None,
    loss: LossName,
    quantile: float | None,
    trials: int | None,
    compare: bool,
    alone: dict[str, Any],
) -> None:
    """Refuse options that do not fit; `alone` are those that need FILE."""
    if file is None:
        for name, value in alone.items():
            if value is not None:
                raise InputError(f"{name} is given without FILE. Name the table, too.")
        if loss is not LossName.auto:
            raise InputError("--loss is given without FILE. Name the table, too.")
    for name in ("--exposure", "--weight"):
        if alone[name] is not None and alone[name] == alone["--target"]:
            raise InputError(f"{name} and --target both name {alone[name]!r}. Pass another column as one of them.")
    if quantile is not None and not 0 < quantile < 1:
        raise InputError(f"--quantile is {quantile:g}, and must be a number between 0 and 1, both excluded.")
    if quantile is not None and loss is not LossName.quantile:
        raise InputError("--quantile is an option of --loss quantile. Add that, or leave --quantile out.")
    if trials is not None and not compare:
        raise InputError("--trials is an option of the comparison. Add --compare, or leave --trials out.")

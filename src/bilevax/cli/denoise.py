"""`bilevax denoise`: the wrong labels in a user's data, a page to review them, and the corrected data."""

import os
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevax.cli._printing import say
from bilevax.cli._shared import (
    CORRECTED,
    MOST,
    Devices,
    Overwrite,
    Resume,
    Seed,
    digest,
    finite,
    in_plain_words,
    laid_out,
    require,
)

COMPARISON = "With --compare"
READING = "How the data is read"


class Kind(StrEnum):
    """What the target is."""

    auto = "auto"
    classes = "classes"
    quantity = "quantity"


WANTED = {Kind.auto: None, Kind.classes: False, Kind.quantity: True}  # as `Options.quantity`


class Model(StrEnum):
    """What ranks the samples; the same names as `applications.denoising.reviewing.Model`, without its imports."""

    auto = "auto"
    linear = "linear"
    trees = "trees"
    mlp = "mlp"
    network = "network"
    encoder = "encoder"


def denoise(
    train: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRAIN",
            help="Samples whose labels are in doubt: CSV (any separator, encoding, compression), Parquet, NPZ, NPY, a "
            "folder with a subfolder of pictures for each class, or a folder of Hugging Face datasets.",
            show_default="scikit-learn's digits, 40% of 1,000 labels made wrong",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="COLUMN", help="The column of the labels; of an NPZ file the array."),
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(
            help="What the target is. auto: a quantity where it has fractions, or many different whole numbers with "
            "few samples of each; else classes."
        ),
    ] = Kind.auto,
    trusted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More samples, whose labels are right, with the same columns.")
    ] = None,
    trusted_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A column of TRAIN: whether the label is known to be right.")
    ] = None,
    pred_probs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Probabilities of classes that your model predicts for TRAIN, out of sample."
        ),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Features that replace those of TRAIN.")
    ] = None,
    model: Annotated[
        Model,
        typer.Option(
            help="What predicts the labels: for rows, linear, trees or mlp (of classes); for pictures also a small "
            "network; for pictures and texts a pretrained encoder. auto: linear and trees for rows, words for texts, "
            "the encoder for photographs if it is installed."
        ),
    ] = Model.auto,
    encoder: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The weights of the encoder.", show_default="the installed package"),
    ] = None,
    apply: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|auto",
            help="Write the corrected data: by the decisions that report.html exported, without a new review; or by "
            "the suggestions, such that the most labels are right.",
        ),
    ] = None,
    above: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            callback=lambda value: None if value is None else finite(value),
            help="With --apply auto: correct only labels that are wrong with more than this probability. .9 makes few "
            "mistakes, and leaves more labels wrong.",
            show_default="what makes the most labels right",
        ),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Leave out this column.", rich_help_panel=READING)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Use this column, though it looks like an identifier.", rich_help_panel=READING
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For an NPY file, the NPY file of its labels.", rich_help_panel=READING),
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Of a text file.", show_default="found out", rich_help_panel=READING)
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of a text file.", show_default="found out", rich_help_panel=READING)
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse what would be left out with a note.", rich_help_panel=READING),
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("denoised"),
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also learn sample weights by two bilevel methods.", rich_help_panel=COMPARISON),
    ] = False,
    test: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Samples with trusted labels, for the test accuracy.", rich_help_panel=COMPARISON
        ),
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Without --test: set aside this part of the trusted file to measure accuracy on.",
            metavar="PART",
            callback=finite,
            rich_help_panel=COMPARISON,
        ),
    ] = 0.0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="Upper steps of each method.",
            show_default="the classifier's own",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples of TRAIN per step.", show_default="all of them", rich_help_panel=COMPARISON),
    ] = None,
    devices: Devices = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Find the wrong labels in TRAIN, with or without some trusted ones.

    Writes report.html, a page on which you decide about each suspect; suspects.csv with all samples, the most
    suspicious first; noise_matrix.csv, results.json and, for pictures, contact_sheet.png; and the folder model, which
    `bilevax predict` takes. The page exports your decisions; with --apply they become corrected data in the form of
    TRAIN, and changes.csv. TRAIN is never changed.

    A target that is a quantity, such as a price, is reviewed in the same way, without a noise matrix.
    """
    with in_plain_words():
        began = time.perf_counter()
        compared_by = {"test": test, "hold_out": hold_out, "steps": steps, "batch_size": batch_size}
        by_file = apply is not None and apply != "auto"
        alone = {"--trusted": trusted, "--target": target, "--pred-probs": pred_probs, "--embeddings": embeddings}
        alone |= {"--test": test, "--trusted-column": trusted_column, "--apply": apply}
        _check(train, trusted, compare, {**compared_by, "devices": devices}, alone)
        _check_apply(train, apply, above, compare, out)
        _check_kind(kind, pred_probs, compare)
        require(
            pred_probs is None or model is Model.auto,
            "--model is not used where --pred-probs gives the predictions. Leave one of them out.",
        )
        layout, own = laid_out(devices, out)
        files = {"train": train, "trusted": trusted, "pred-probs": pred_probs, "embeddings": embeddings}
        files |= {"labels": labels, "test": test, "apply": Path(str(apply)) if by_file else None}
        reading = {"target": target, "trusted_column": trusted_column, "drop": drop, "keep": keep, "strict": strict}
        reading |= {"separator": separator, "encoding": encoding}
        known = {name.replace("-", "_"): _digest(name, path) for name, path in files.items()} | reading
        known |= {"model": model.value, "above": above, "encoder": None if encoder is None else str(encoder)}
        known |= {"kind": kind.value, "apply": apply, "compare": compare, "seed": seed, **compared_by, "test": None}

        from bilevax.cli import _denoising
        from bilevax.cli._runs import Run
        from bilevax.data.samples.types import Options

        reading |= {"drop": tuple(drop or ()), "keep": tuple(keep or ()), "labels": labels}
        options = Options(**reading)
        if train is not None and pred_probs is None and not compare:
            options = options._replace(quantity=WANTED[kind])
        request = _denoising.Request(
            train=train,
            trusted=trusted,
            pred_probs=pred_probs,
            embeddings=embeddings,
            options=options,
            kind=kind.value,
            model=model.value,
            encoder=encoder,
            apply=apply,
            above=above,
            seed=seed,
        )
        run = Run(
            "denoise",
            own,
            _denoising.names(request, compare),
            known,
            {name.upper() if name == "train" else f"--{name}": path for name, path in files.items()},
            resume=resume,
            overwrite=overwrite,
            shared=out,
        )
        if by_file:
            _denoising.correct(request, run)
            run.end(time.perf_counter() - began)
            return
        next_step = _denoising.review(request, run, known, compared_by if compare else None, layout, began)
        run.end(time.perf_counter() - began)
        say(next_step)


def _digest(name: str, path: Path | None) -> Any:
    """The digest of a file; of a folder with samples its name."""
    if path is None:
        return None
    return str(path) if name in ("train", "trusted") and os.path.isdir(path) else digest(name, path)


def _check(
    train: Path | None,
    trusted: Path | None,
    compare: bool,
    comparison: Mapping[str, Any],
    alone: Mapping[str, Any],
) -> None:
    """Refuse options that do not fit.

    Args:
        train, trusted, compare: of the command.
        comparison: options that need --compare.
        alone: options that need TRAIN.
    """
    if train is None:
        for name, value in alone.items():
            require(value is None, f"{name} is given without TRAIN. Name the file whose labels are in doubt, too.")
    if compare:
        require(
            train is None or trusted is not None,
            "--compare learns weights by trusted samples. Pass a file of them by --trusted.",
        )
        return
    for name, value in comparison.items():
        flag = f"--{name.replace('_', '-')}"
        require(not value, f"{flag} is an option of the comparison. Add --compare, or leave {flag} out.")


def _check_kind(kind: Kind, pred_probs: Path | None, compare: bool) -> None:
    """Refuse options of classes for a quantity."""
    for flag, given in (("--pred-probs", pred_probs is not None), ("--compare", compare)):
        require(
            kind is not Kind.quantity or not given,
            f"{flag} is for classes, and --kind quantity is given. Leave one of them out.",
        )


def _check_apply(train: Path | None, apply: str | None, above: float | None, compare: bool, out: Path) -> None:
    """Refuse options that do not fit --apply, and a folder of corrected data that exists."""
    require(
        above is None or apply == "auto", "--above is the probability of --apply auto. Add that, or leave --above out."
    )
    if apply is None:
        return
    require(
        not compare or apply == "auto", "--apply FILE does not review anything. Leave --compare out, or run it before."
    )
    corrected = out / CORRECTED
    require(
        train is None or not train.is_dir() or not corrected.exists(),
        f"{corrected} exists, and is not overwritten. Remove it, or pass another --out.",
    )

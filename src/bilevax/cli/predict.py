"""`bilevax predict`: the predictions of a saved model for a new file."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bilevax._checks import InputError
from bilevax.cli._printing import as_table, say, show
from bilevax.cli._shared import Overwrite, in_plain_words

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    import pandas as pd

    from bilevax.saved import FileModel

MOST_SHOWN = 20  # classes


def predict(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL_DIR", help="The folder model that `bilevax denoise` or `bilevax tune` wrote."),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="New samples in the form of those that the model was fitted to, without labels or with; also a "
            "picture, or a folder of pictures.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The CSV file to write.")] = Path("predictions.csv"),
    encoder: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The weights of the encoder.", show_default="the installed package"),
    ] = None,
    separator: Annotated[str | None, typer.Option(help="Of a text file.", show_default="found out")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a text file.", show_default="found out")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what would be left out, or taken as missing, with a note.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Predict the samples of FILE by a saved model.

    Writes a CSV file with a row for each sample: its row, its line in a text file, its identifier or the name of its
    picture, the predicted label and the probability of each class, or the predicted number.
    """
    with in_plain_words():
        began = time.perf_counter()
        from bilevax import _files

        outputs = _files.Outputs(out.parent, [out.name], inputs={"FILE": file}, overwrite=overwrite, where="--out")
        from bilevax.cli._writing import write_csv
        from bilevax.saved import FileModel, load_model

        loaded = load_model(model)
        if not isinstance(loaded, FileModel):
            raise InputError(
                f"The model {model} was saved from Python, and does not say how a file becomes its features. Load it "
                "by bilevax.saved.load_model."
            )
        say(loaded.method)
        progress = _Progress()
        found = loaded.predict(
            file, encoder=encoder, separator=separator, encoding=encoding, strict=strict, report=progress
        )
        for note in found.notes:
            say(note)
        outputs.write(out.name, lambda path: write_csv(path, found.table))
        show(_summary(loaded, found.table))
        say(f"Wrote {len(found.table):,} predictions to {out} in {time.perf_counter() - began:.1f} s.")


class _Progress:
    """A bar for samples that are encoded."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        from tqdm.auto import tqdm

        self.bar = self.bar or tqdm(total=total, desc="Encoding", unit="sample")
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()


def _summary(model: "FileModel", table: "pd.DataFrame") -> Any:
    """How often each class is predicted, and how sure the model is; or the range of the predicted numbers."""
    if model.classes is None:
        values = table["predicted"]
        names, rows = ["", "predicted"], [[name, f"{values.quantile(q):.5g}"] for name, q in RANGE]
        return as_table("Predictions", names, rows)
    best = table.filter(regex="^probability: ").max(axis=1)
    rows = []
    for label, group in best.groupby(table["predicted_label"].astype(str)):
        rows.append([str(label), f"{len(group):,}", f"{group.mean():.2f}"])
    rows.sort(key=lambda row: -int(row[1].replace(",", "")))
    return as_table("Predictions", ["predicted", "samples", "mean\nprobability"], rows[:MOST_SHOWN])


RANGE = (("least", 0.0), ("median", 0.5), ("largest", 1.0))

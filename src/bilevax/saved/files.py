"""A model of a user's files: it reads a new file in the form of the one that it was fitted to, and predicts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from bilevax._checks import InputError
from bilevax.applications.denoising.experts import FittedStack
from bilevax.applications.denoising.noise import sharpened
from bilevax.applications.denoising.preparing import Preparation
from bilevax.data.samples.embedding import embedded, identity_of
from bilevax.data.samples.new import Form, NewSamples, read_new


class Denoised(NamedTuple):
    """What a label review predicts by: a stack of classifiers, and the power that calibrates it."""

    stack: FittedStack
    power: float

    def predict_proba(self, X: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n classes"]:
        """The probability of each true class."""
        return sharpened(self.stack.predict(X), self.power)


class Predictions(NamedTuple):
    """Predictions for the samples of a file.

    Attributes:
        table: a row for each sample: `row` (from 0), `line` (of a text file), `id` (where the file has one); of a
            classifier `predicted_label` and `probability: CLASS` for each class, else `predicted`.
        notes: what was done while reading, in sentences.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FileModel:
    """A fitted model together with the form of the files that it takes.

    Attributes:
        task: what it predicts: classes, quantities, or counts.
        form: of the samples that it was fitted to.
        model: with `predict_proba` for classes, `predict` for anything else.
        classes: the labels in the order of the columns of `predict_proba`; None for anything but classes.
        preparation: what is done to features before the model takes them.
        method: what the model is, in a line.
    """

    task: Literal["classification", "regression", "counts"]
    form: Form
    model: Any
    classes: Shaped[np.ndarray, " classes"] | None = None
    preparation: Preparation = Preparation()
    method: str = ""

    def predict(
        self,
        source: Path | str | pd.DataFrame,
        *,
        encoder: Path | None = None,
        encoding: str | None = None,
        separator: str | None = None,
        strict: bool = False,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Predictions:
        r"""Predict the samples of a file or a data frame; labels in it are not used.

        Args:
            source: as `bilevax.data.samples.new.read_new` takes it.
            encoder: the weights of the pretrained encoder, where the model has one; None for the installed package.
            encoding, separator, strict: of `read_new`.
            report: called with the number of samples that are encoded, and that of all.

        Raises:
            InputError: the file cannot be read, or holds other samples than the model takes; the encoder is not
                installed, or is not the one that the model was fitted with.

        Example:
            >>> import pathlib, tempfile
            >>> import numpy as np
            >>> from sklearn.linear_model import LinearRegression
            >>> from bilevax.data.samples.new import form_of
            >>> from bilevax.data.samples.read import read_samples
            >>> from bilevax.saved import FileModel
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     train, new = (pathlib.Path(folder, name) for name in ("train.csv", "new.csv"))
            ...     _ = train.write_text("size,label\n1,1\n3,3\n"), new.write_text("size\n2\n")
            ...     samples = read_samples(train)
            ...     line = LinearRegression().fit(samples.features, samples.labels)
            ...     model = FileModel("regression", form_of(samples), line)
            ...     found = model.predict(new).table
            >>> found.to_dict("records")
            [{'row': 0, 'line': 2, 'predicted': 2.0}]
        """
        source = source if isinstance(source, pd.DataFrame) else Path(source)
        samples = read_new(source, self.form, encoding=encoding, separator=separator, strict=strict)
        features = samples.features
        if self.preparation.encoder:
            self._require_encoder(samples, encoder)
            features = embedded(samples, encoder, report)
        elif encoder is not None:
            raise InputError("The model has no encoder. Leave --encoder out.")
        X = self.preparation.apply(features)
        columns: dict[str, Any] = {"row": samples.record}
        if samples.lines is not None:
            columns["line"] = samples.lines
        if samples.identifiers is not None:
            columns["id"] = samples.identifiers
        if self.classes is None:
            columns["predicted"] = np.asarray(self.model.predict(X))
        else:
            p = self.model.predict_proba(X)
            columns["predicted_label"] = self.classes[p.argmax(1)]
            columns |= {f"probability: {name}": p[:, i] for i, name in enumerate(self.classes.tolist())}
        return Predictions(pd.DataFrame(columns), samples.notes)

    def _require_encoder(self, samples: NewSamples, encoder: Path | None) -> None:
        wanted, found = self.preparation.encoder, identity_of(samples, encoder)
        if found != wanted:
            raise InputError(
                f"The encoder's weights have the SHA-256 {found[:12]}..., and the model was fitted to vectors of "
                f"{wanted[:12]}.... Pass the same encoder by --encoder."
            )

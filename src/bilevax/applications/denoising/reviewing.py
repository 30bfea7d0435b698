"""The review of samples as they were read: which classifiers rank them, and what they find."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bilevax._checks import InputError
from bilevax.applications.denoising.experts import TABLES, Expert, Folds, Forest, Linear
from bilevax.applications.denoising.network import Network
from bilevax.applications.denoising.noise import TRUSTED_COUNT
from bilevax.applications.denoising.ranking import LEAST_IN_DOUBT, Ranking, rank_probabilities
from bilevax.applications.denoising.repeats import rank_settled, settle
from bilevax.data.samples.embedding import embedded
from bilevax.data.samples.probabilities import Probabilities
from bilevax.data.samples.types import Samples
from bilevax.nn.networks import lenet5, mlp
from bilevax.nn.pretrained import efficientnet
from bilevax.nn.training import Training

LEAST_PHOTOGRAPH = 24  # pixels of the shorter side
NETWORK_SIDE = 32  # pixels, to which pictures are averaged for a small network
PICTURE_SIDE = 16  # pixels, to which pictures are averaged for classifiers of tables


class Model(StrEnum):
    """What ranks the samples: classifiers of rows, a small network for pictures, or a pretrained encoder."""

    auto = "auto"
    linear = "linear"
    trees = "trees"
    mlp = "mlp"
    network = "network"
    encoder = "encoder"


class Reviewed(NamedTuple):
    """The result of a review.

    Attributes:
        ranking: of all samples, those of a trusted file at the end.
        classes: the labels, sorted.
        method: what was done, in a line.
    """

    ranking: Ranking
    classes: Shaped[np.ndarray, " classes"]
    method: str

    def suggested(self) -> Shaped[np.ndarray, " n"]:
        """The most probable label of each sample."""
        return self.classes[self.ranking.posterior.argmax(1)]


def review(
    samples: Samples,
    model: Model = Model.auto,
    probabilities: Probabilities | None = None,
    embeddings: Float[np.ndarray, "n d"] | None = None,
    encoder: Path | None = None,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Reviewed:
    """Rank the labels of samples.

    Args:
        samples: as they were read.
        model: the classifiers; unused with probabilities.
        probabilities: predicted by the user's own model, out of sample, for the samples of TRAIN.
        embeddings: features that replace those of the samples of TRAIN.
        encoder: the weights of a pretrained encoder of pictures or texts; None for the installed package.
        seed: of the classifiers.
        report: called with the number of samples that are encoded, and that of all.

    Raises:
        InputError: fewer than ten labels are in doubt; the model does not take such samples; the encoder is not
            installed; embeddings or probabilities come with a trusted file, for whose samples they have no rows.
    """
    classes, codes = np.unique(samples.labels, return_inverse=True)
    known = settle(codes, samples.trusted, samples.twin)
    doubted = int((~known.trusted).sum())
    if doubted < LEAST_IN_DOUBT:
        raise InputError(
            f"{samples.name}: {doubted} labels are in doubt. At least {LEAST_IN_DOUBT} samples that are not trusted "
            "are needed."
        )
    given = "--pred-probs" if probabilities is not None else "--embeddings"
    if (probabilities is not None or embeddings is not None) and samples.own < len(samples.labels):
        raise InputError(
            f"{given} has no rows for the samples of --trusted. Put them into TRAIN, and mark them by --trusted-column."
        )
    trusted = _evidence(int(known.trusted.sum()))
    if probabilities is not None:
        found = rank_probabilities(probabilities.values, codes, samples.trusted)
        return Reviewed(found, classes, f"Given probabilities, explained by a noise matrix {trusted}.")
    if embeddings is None and _encodes(samples, model, encoder):
        embeddings, encoded = embedded(samples, encoder, report), "Vectors of a pretrained encoder. "
    else:
        encoded = ""
    X, experts, name = _experts(samples, model, embeddings)
    found = rank_settled(X, known, len(classes), experts, seed)
    weights = "" if found.model is None or len(experts) == 1 else _shares(found.model.weights)
    return Reviewed(found, classes, f"{encoded}{name}{weights}, explained by a noise matrix {trusted}.")


def _encodes(samples: Samples, model: Model, encoder: Path | None) -> bool:
    """Whether samples are encoded: on demand; photographs also if the encoder is installed."""
    if model is Model.encoder or encoder is not None:
        return True
    photographs = samples.kind == "images" and min(np.shape(samples.features)[1:3]) >= LEAST_PHOTOGRAPH
    return model is Model.auto and photographs and efficientnet.is_installed()


def _evidence(trusted: int) -> str:
    if trusted == 0:
        return "from the given labels alone"
    return f"that was tuned on {trusted:,} trusted labels (prior: {TRUSTED_COUNT:g} of each class)"


def _shares(weights: Float[np.ndarray, " experts"]) -> str:
    return f" ({', '.join(f'{weight:.0%}' for weight in weights)})"


def _experts(
    samples: Samples, model: Model, embeddings: Float[np.ndarray, "n d"] | None
) -> tuple[Shaped[np.ndarray, "n ..."], Sequence[Expert], str]:
    """The features, the classifiers, and their name."""
    if embeddings is None and samples.kind == "text":
        if model not in (Model.auto, Model.linear):
            raise InputError(
                f"--model {model.value} takes rows of numbers, and {samples.name} holds texts. Leave --model out, or "
                "pass --embeddings."
            )
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000)
        texts = np.array(samples.features, dtype=object)
        return texts, (Folds(make_pipeline(words, LogisticRegression(C=10.0))),), "Logistic regression on words"
    if embeddings is None and model is Model.network:
        if samples.kind != "images":
            raise InputError(f"--model network takes pictures, and {samples.name} holds none. Leave --model out.")
        pictures = (_averaged(samples, NETWORK_SIDE) * 255).astype(np.uint8)
        training = Training(steps=max(200, 6 * len(pictures) // 100), rate=3e-3, batch_size=100, l2=1e-4)
        return pictures, (Network(lenet5(len(np.unique(samples.labels))), training),), "LeNet-5"
    X = embeddings if embeddings is not None else _rows(samples)
    # Classes of pretrained vectors are nearly linear, and forests of hundreds of columns take minutes.
    if model is Model.linear or (embeddings is not None and model in (Model.auto, Model.encoder)):
        return X, (Linear(),), "Logistic regression"
    if model is Model.trees:
        return X, (Forest(extra=True), Forest(extra=False)), "Two forests"
    if model is Model.mlp:
        classes = len(np.unique(samples.labels))
        standard = (X - X.mean(0)) / np.maximum(X.std(0), np.finfo(X.dtype).eps)
        return standard, (Network(mlp(classes), Training()),), "A network with one hidden layer"
    return X, TABLES, "Logistic regression and two forests"


def _rows(samples: Samples) -> Float[np.ndarray, "n d"]:
    """A matrix; pictures are averaged to at most 16 x 16 pixels."""
    if samples.kind != "images":
        return np.asarray(samples.features)
    averaged = _averaged(samples, PICTURE_SIDE)
    grey = (averaged[..., :1] == averaged).all()
    return (averaged[..., :1] if grey else averaged).reshape(len(averaged), -1)


def _averaged(samples: Samples, side: int) -> Float[np.ndarray, "n h w c"]:
    """Pictures with values in 0..1, averaged to at most side x side pixels."""
    pictures = np.asarray(samples.features)
    rows, columns = (np.array_split(np.arange(size), min(size, side)) for size in pictures.shape[1:3])
    made = np.empty((len(pictures), len(rows), len(columns), pictures.shape[3]), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            block = pictures[:, row[0] : row[-1] + 1, column[0] : column[-1] + 1]
            made[:, i, j] = block.mean(axis=(1, 2), dtype=np.float32) / 255
    return made

"""The review of samples as they were read: which classifiers rank them, and what they find."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bilevax._checks import InputError
from bilevax.applications.denoising.experts import TABLES, Expert, Folds, Forest, Linear
from bilevax.applications.denoising.network import Network
from bilevax.applications.denoising.noise import TRUSTED_COUNT
from bilevax.applications.denoising.preparing import NETWORK_SIDE, Preparation, rows_of_pictures, standardised
from bilevax.applications.denoising.ranking import Ranking, rank_probabilities, require_doubt
from bilevax.applications.denoising.repeats import rank_settled, settle
from bilevax.data.samples.embedding import embedded, identity_of
from bilevax.data.samples.probabilities import Probabilities
from bilevax.data.samples.types import Samples
from bilevax.nn.networks import lenet5, mlp
from bilevax.nn.pretrained import efficientnet
from bilevax.nn.training import Training

LEAST_PHOTOGRAPH = 24  # pixels of the shorter side


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
        preparation: how features become the samples of `ranking.model`; None where probabilities were given.
        vectors: that replaced the features of the samples; None where none did.
    """

    ranking: Ranking
    classes: Shaped[np.ndarray, " classes"]
    method: str
    preparation: Preparation | None = None
    vectors: Float[np.ndarray, "n d"] | None = None

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
    require_doubt("labels", known.trusted, samples.name)
    if probabilities is not None or embeddings is not None:
        require_all_rows("--pred-probs" if probabilities is not None else "--embeddings", samples)
    trusted = _evidence(int(known.trusted.sum()))
    if probabilities is not None:
        found = rank_probabilities(probabilities.values, codes, samples.trusted)
        return Reviewed(found, classes, f"Given probabilities, explained by a noise matrix {trusted}.")
    vectors, encoded = embeddings, ""
    if embeddings is None and _encodes(samples, model, encoder):
        vectors, encoded = embedded(samples, encoder, report), "Vectors of a pretrained encoder. "
    preparation, experts, name = _experts(samples, model, vectors)
    if encoded:
        preparation = preparation._replace(encoder=identity_of(samples, encoder))
    X = preparation.apply(samples.features if vectors is None else vectors)
    found = rank_settled(X, known, len(classes), experts, seed)
    weights = "" if found.model is None or len(found.model.experts) == 1 else _shares(found.model.weights)
    method = f"{encoded}{name}{weights}, explained by a noise matrix {trusted}."
    return Reviewed(found, classes, method, preparation, embeddings)


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
    samples: Samples, model: Model, vectors: Float[np.ndarray, "n d"] | None
) -> tuple[Preparation, Sequence[Expert] | Network, str]:
    """What is done to the features, the classifiers, and their name."""
    if vectors is None and samples.kind == "text":
        if model not in (Model.auto, Model.linear):
            raise InputError(
                f"--model {model.value} takes rows of numbers, and {samples.name} holds texts. Leave --model out, or "
                "pass --embeddings."
            )
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000)
        return Preparation(), (Folds(make_pipeline(words, LogisticRegression(C=10.0))),), "Logistic regression on words"
    if vectors is None and model is Model.network:
        if samples.kind != "images":
            raise InputError(f"--model network takes pictures, and {samples.name} holds none. Leave --model out.")
        training = Training(steps=max(200, 6 * len(samples.labels) // 100), rate=3e-3, batch_size=100, l2=1e-4)
        network = Network(lenet5(len(np.unique(samples.labels))), training)
        return Preparation(side=NETWORK_SIDE), network, "LeNet-5"
    preparation = Preparation()
    if vectors is None and samples.kind == "images":
        preparation = rows_of_pictures(_pictures(samples))
    # Classes of pretrained vectors are nearly linear, and forests of hundreds of columns take minutes.
    if model is Model.linear or (vectors is not None and model in (Model.auto, Model.encoder)):
        return preparation, (Linear(),), "Logistic regression"
    if model is Model.trees:
        return preparation, (Forest(extra=True), Forest(extra=False)), "Two forests"
    if model is Model.mlp:
        classes = len(np.unique(samples.labels))
        X = preparation.apply(samples.features if vectors is None else vectors)
        return standardised(preparation, X), Network(mlp(classes), Training()), "A network with one hidden layer"
    return preparation, TABLES, "Logistic regression and two forests"


def _pictures(samples: Samples) -> UInt8[np.ndarray, "n h w 3"]:
    assert isinstance(samples.features, np.ndarray)
    return samples.features


def require_all_rows(option: str, samples: Samples) -> None:
    """Refuse samples of a trusted file, for which a file with rows of TRAIN has none."""
    if samples.own < len(samples.labels):
        raise InputError(
            f"{option} has no rows for the samples of --trusted. Put them into TRAIN, and mark them by "
            "--trusted-column."
        )

"""A neural network that ranks labels: trained through the noise matrix of the labels, in folds."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, first_line
from bilevax.applications._pickling import Picklable
from bilevax.applications.denoising import noise
from bilevax.applications.denoising.calibration import calibrated
from bilevax.applications.denoising.experts import FittedStack
from bilevax.applications.denoising.forward import Labelled, Through, train_through
from bilevax.applications.denoising.ranking import Ranking, noise_matrix, ordered
from bilevax.nn.model import Model, Settled, export, initial, logits, params_of
from bilevax.nn.training import Training, probabilities

# Chosen on other draws of CIFAR-10 and Fashion-MNIST than those reported (experiments/denoising/wrong_labels.py).
FIRST_SHARE = 0.5  # of the steps, for the network of the given labels alone: less of the wrong ones is learned
TRUSTED_SHARE = 0.25  # for a network of trusted samples alone
LAST_SHARE = 0.25  # for the network of all samples, which starts from that of a fold
MANY_TRUSTED = 50  # for each class, from which networks of trusted samples alone are trained
TRUSTED_POWER = 0.15  # of the predictions of these networks, in the product with those of the others
EVEN = 1 / 8  # part of the largest variance of the probabilities of wrong labels, half of which is taken for errors
LEAST = 1e-5  # added to probabilities before their logarithms are taken
FIRST, LAST = 0, 1_000_000  # numbers of trainings, from which their keys come; those of the folds are between them


@dataclass(frozen=True)
class FittedNetwork(Picklable):
    """A fitted `Network`.

    Attributes:
        out_of_sample: the prediction of each sample by a network that has not seen it.
        model: the network.
        params: of each fold; the first has then seen all samples.
        sample: one, of which only shape and dtype matter.
    """

    out_of_sample: Float[np.ndarray, "n classes"]
    model: Model
    params: tuple[PyTree | Settled, ...]
    sample: Shaped[np.ndarray, "1 ..."]

    def predict(self, X: Shaped[np.ndarray, "m ..."]) -> Float[np.ndarray, "m classes"]:
        """The probability of each class of other samples, the mean over the folds."""
        return np.mean([probabilities(self.model, v, X) for v in self.params], axis=0)

    def to_module(self) -> Any:
        """The module with the weights of the network that has seen all samples; of a pair of functions, the weights."""
        return params_of(self.params[0]) if self.model.to_module is None else export(self.model, self.params[0])


@dataclass(frozen=True)
class Network:
    """A network that ranks labels.

    1. A network learns given labels of a part of the samples in doubt. Its predictions of the others, and of the
       trusted samples, give a noise matrix (see `noise`).
    2. For each fold a network of the true class is trained on the other folds, through the noise matrix. With trusted
       samples the matrix is learned with it (see `forward`).
    3. With many trusted samples, networks learn these alone, in the same folds. Their predictions, to a small power,
       are factors of the others.
    4. The geometric mean of all networks, and the noise matrix that it and the given labels determine (see `evened`),
       give the posterior of the true class. It ranks the samples. Networks that have seen a sample take part: what they
       learn through the matrix is not the wrong labels, and the mean of three ranks better than one alone.
    5. The probabilities, in this order, are those of the predictions out of sample, calibrated (see `calibration`).

    All trainings have the same shapes, and are one compiled program.

    Args:
        model: maps samples to logits.
        training: how it is trained.
        folds: number of folds.
    """

    model: Model
    training: Training
    folds: int = 3

    def rank(
        self,
        X: Shaped[np.ndarray, "n ..."],
        labels: Int[np.ndarray, " n"],
        trusted: Bool[np.ndarray, " n"],
        classes: int,
        seed: int,
    ) -> Ranking:
        """Rank labels.

        Args:
            X: samples.
            labels: given labels 0..classes-1, the right ones for trusted samples.
            trusted: which labels are known to be right.
            classes: number of classes.
            seed: of the folds and of the training.

        Raises:
            InputError: a training diverged.
        """
        samples = Labelled(jnp.asarray(X), jnp.asarray(labels, jnp.int32), jnp.asarray(trusted))
        fits = _Fits(self, samples, len(X) - math.ceil(len(X) / self.folds), jax.random.key(seed))
        order = np.random.default_rng(seed).permutation(len(X))
        order = order[np.argsort(~trusted[order], kind="stable")]  # each fold has its part of the trusted samples
        fold = np.empty(len(X), int)
        fold[order] = np.arange(len(X)) % self.folds
        others = [order[fold[order] != k] for k in range(self.folds)]

        start = self._first_matrix(fits, order[trusted.sum() :], labels, trusted, classes)
        fitted = [fits.through(rows, start, 1 + k, learned=bool(trusted.any())) for k, rows in enumerate(others)]
        p = np.stack([fits.predict(one) for one in fitted])
        if trusted.sum() >= MANY_TRUSTED * classes:
            alone = enumerate([rows[trusted[rows]] for rows in others], LAST + 1)
            own = [fits.predict(fits.as_given(rows, classes, number, TRUSTED_SHARE)) for number, rows in alone]
            p = _product(p, np.stack(own))
        mean = np.exp(np.log(p + LEAST).mean(0))
        matrix = evened(noise.from_given_labels(_normalised(mean)[~trusted], labels[~trusted], power=1.0))
        posterior = _normalised(mean * matrix[:, labels].T)
        posterior[trusted] = np.eye(classes)[labels[trusted]]
        q = p[fold, np.arange(len(X))]
        last = calibrated(q, labels, trusted, np.mean([one.noise for one in fitted], axis=0), posterior)

        unseen = np.concatenate([order[fold[order] == 0], others[0]])
        whole = fits.through(unseen, matrix, LAST, share=LAST_SHARE, start=fitted[0].params)
        params = (whole.params, *(one.params for one in fitted[1:]))
        stack = FittedStack(q, np.ones(1), [FittedNetwork(q, self.model, params, np.zeros_like(X[:1]))])
        found = ordered(posterior[~trusted], last, q, labels, trusted, stack)
        return found._replace(posterior=posterior, noise_matrix=matrix)

    def _first_matrix(
        self,
        fits: "_Fits",
        doubted: Int[np.ndarray, " k"],
        labels: Int[np.ndarray, " n"],
        trusted: Bool[np.ndarray, " n"],
        classes: int,
    ) -> Float[np.ndarray, "classes classes"]:
        """The noise matrix by a network of given labels."""
        seen = doubted[: len(doubted) - len(doubted) // self.folds]
        p = fits.predict(fits.as_given(seen, classes, FIRST, FIRST_SHARE))
        unseen = np.setdiff1d(np.arange(len(labels)), seen)
        return noise_matrix(p[unseen], labels[unseen], trusted[unseen])


def evened(matrix: Float[np.ndarray, "classes classes"]) -> Float[np.ndarray, "classes classes"]:
    """The noise matrix, drawn to one that treats all classes alike, the more the nearer it is to that.

    Classes that a network confuses look like classes whose labels were exchanged. Where the estimated probabilities of
    wrong labels are nearly equal, their differences are mostly such errors; where few of them hold nearly all of the
    noise, these are real.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.denoising.network import evened
        >>> uniform = np.array([[0.8, 0.12, 0.08], [0.1, 0.8, 0.1], [0.08, 0.12, 0.8]])
        >>> evened(uniform).round(3)[0].tolist()
        [0.8, 0.104, 0.096]
        >>> pair = np.array([[0.7, 0.28, 0.02], [0.02, 0.7, 0.28], [0.28, 0.02, 0.7]])
        >>> evened(pair).round(2)[0].tolist()
        [0.7, 0.26, 0.04]
    """
    classes = len(matrix)
    if classes == 2:
        return matrix
    diagonal = np.eye(classes, dtype=bool)
    wrong = matrix[~diagonal]
    largest = (classes - 2) * wrong.mean() ** 2  # where each class has wrong labels of one other class
    share = 1 / (1 + wrong.var() / largest / EVEN)
    return (1 - share) * matrix + share * np.where(diagonal, matrix[diagonal].mean(), wrong.mean())


class _Fits(NamedTuple):
    """Trainings of one network on parts of the same samples."""

    network: Network
    samples: Labelled
    rows: int  # of each training
    key: PRNGKeyArray

    def through(
        self, rows: Int[np.ndarray, " k"], matrix: Float[np.ndarray, "classes classes"], number: int, **more: Any
    ) -> Through:
        """Train through a noise matrix on the first of the given rows, or on these repeatedly if they are few."""
        model, training = self.network.model, self.network.training
        key = jax.random.fold_in(self.key, number)
        return train_through(model, training, self.samples, np.resize(rows, self.rows), matrix, key, **more)

    def as_given(self, rows: Int[np.ndarray, " k"], classes: int, number: int, share: float) -> Through:
        """Train on the labels of rows as if all of them were right."""
        right = jnp.ones_like(self.samples.right)
        fits = self._replace(samples=self.samples._replace(right=right))
        return fits.through(rows, np.eye(classes), number, learned=False, share=share)

    def predict(self, fitted: Through) -> Float[np.ndarray, "n classes"]:
        """The prediction of all samples."""
        return probabilities(self.network.model, fitted.params, self.samples.x).astype(np.float64)


def _product(
    p: Float[np.ndarray, "folds n classes"], own: Float[np.ndarray, "folds n classes"]
) -> Float[np.ndarray, "folds n classes"]:
    """The predictions p with those of networks of the trusted samples as factors."""
    return _normalised((p + LEAST) ** (1 - TRUSTED_POWER) * (own + LEAST) ** TRUSTED_POWER)


def _normalised(odds: Float[np.ndarray, "*m classes"]) -> Float[np.ndarray, "*m classes"]:
    return odds / odds.sum(-1, keepdims=True)


def require_logits(model: Model, x: Shaped[np.ndarray, "n ..."], classes: int) -> None:
    """Refuse a model that does not map x to logits (n, classes).

    Raises:
        InputError: the logits have another shape, or the model cannot be applied to x; the message then holds the
            model's own error.
    """
    try:
        shape = jax.eval_shape(lambda x: logits(model, initial(model, jax.random.key(0), x[:1]), x), x).shape
    except InputError:
        raise
    except Exception as error:  # each library raises its own types
        raise InputError(f"model cannot be applied to samples of shape {x.shape[1:]}: {first_line(error)}") from error
    if shape != (len(x), classes):
        raise InputError(
            f"model gives logits of shape {shape} for {len(x)} samples of {classes} classes, and must give "
            f"{(len(x), classes)}. Set its last layer's width to the number of classes."
        )

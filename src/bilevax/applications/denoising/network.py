"""A neural network as an expert: trained once for each fold of the samples without it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, Shaped

from bilevax._checks import InputError, first_line
from bilevax.applications._pickling import Picklable
from bilevax.nn.model import Model, initial, logits
from bilevax.nn.training import Training, probabilities, train


@dataclass(frozen=True)
class FittedNetwork(Picklable):
    """A fitted `Network`: parameters for each fold, and a sample, of which only shape and dtype matter."""

    out_of_sample: Float[np.ndarray, "n classes"]
    model: Model
    params: tuple[PyTree, ...]
    sample: Shaped[np.ndarray, "1 ..."]

    def predict(self, X: Shaped[np.ndarray, "m ..."]) -> Float[np.ndarray, "m classes"]:
        """The probability of each class of other samples, the mean over the folds."""
        return np.mean([probabilities(self.model, v, X) for v in self.params], axis=0)


@dataclass(frozen=True)
class Network:
    """A network that learns soft labels.

    The samples of a fold have weight zero in its training. So all trainings have the same shapes and are one compiled
    program.

    Args:
        model: maps samples to logits.
        training: how it is trained.
        folds: number of folds.
    """

    model: Model
    training: Training
    folds: int = 3

    def fit(self, X: Shaped[np.ndarray, "n ..."], targets: Float[np.ndarray, "n classes"], seed: int) -> FittedNetwork:
        """Train the network for each fold."""
        dtype = jnp.result_type(float)
        x, soft = jnp.asarray(X), jnp.asarray(targets, dtype)
        fold = np.random.default_rng(seed).permutation(len(X)) % self.folds
        found, params = np.zeros(targets.shape), []
        for k in range(self.folds):
            key = jax.random.fold_in(jax.random.key(seed), k)
            v = train(self.model, self.training, x, soft, jnp.asarray(fold != k, dtype), key)
            found[fold == k] = probabilities(self.model, v, X)[fold == k]
            params.append(v)
        return FittedNetwork(found, self.model, tuple(params), np.zeros_like(X[:1]))


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

"""The class-to-class noise matrix: its estimates, and the posterior of the true class.

A sample of true class k gets the given label j with probability T[k, j]. If q are the probabilities of the true class
of a sample, q T are those of its given label. A classifier that was trained on given labels estimates p = q T; `q` and
`T` are recovered from it here.

Without trusted samples T is not identified by p alone: T = I and q = p explain p as well as the truth does. Of several
explanations the one with confident q and noisy T is chosen, as by methods that look for anchor points (Patrini et al.
2017, "Making deep neural networks robust to label noise") or for the matrix of least volume (Li et al. 2021, "Provably
end-to-end label-noise learning without anchor points"). Trusted samples identify T: it is the upper variable of a
bilevel problem, whose upper loss is the cross-entropy of their right labels and whose lower problem recovers q.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import optimize, special

# Chosen on tables other than those reported (experiments/denoising/tables.py, DEVELOPMENT).
FLOOR = 2e-3  # of a probability, before they are normalised again
POWER = 2.0  # without trusted samples: q is taken to be p to this power
PRIOR_COUNT = 50.0  # pseudo-counts of each row of T without trusted samples
PRIOR_RIGHT = 0.8  # the part of them on the diagonal
TRUSTED_COUNT = 10.0  # pseudo-counts of each row of T with trusted samples
EM_ROUNDS = 40
DECONVOLUTION_ROUNDS = 3
QUASI_NEWTON_STEPS = 100


def floored(p: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Probabilities of which none is zero."""
    p = np.asarray(p, np.float64) + FLOOR
    return p / p.sum(1, keepdims=True)


def posterior(
    q: Float[np.ndarray, "n classes"], noise: Float[np.ndarray, "classes classes"], given: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n classes"]:
    """The probability of each true class: q[k] noise[k, given], normalised.

    Args:
        q: probabilities of the true class, from features alone.
        noise: the noise matrix.
        given: the given labels.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.denoising.noise import posterior
        >>> noise = np.array([[1.0, 0.0], [0.5, 0.5]])  # half of the second class is labelled as the first
        >>> posterior(np.array([[0.5, 0.5]]), noise, np.array([0])).round(2).tolist()
        [[0.67, 0.33]]
    """
    return _bayes(floored(q), noise, given)


def _bayes(
    q: Float[np.ndarray, "n classes"], noise: Float[np.ndarray, "classes classes"], given: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n classes"]:
    found = q * noise[:, given].T
    return found / np.maximum(found.sum(1, keepdims=True), np.finfo(np.float64).tiny)


def uniform_prior(classes: int) -> Float[np.ndarray, "classes classes"]:
    """The pseudo-counts of T without trusted samples: `PRIOR_RIGHT` on the diagonal, the others alike."""
    off = PRIOR_COUNT * (1 - PRIOR_RIGHT) / max(classes - 1, 1)
    return np.where(np.eye(classes, dtype=bool), PRIOR_COUNT * PRIOR_RIGHT, off)


def from_given_labels(
    p: Float[np.ndarray, "n classes"], given: Int[np.ndarray, " n"], power: float = POWER
) -> Float[np.ndarray, "classes classes"]:
    """The noise matrix from given labels alone, by expectation maximisation (Dawid and Skene 1979).

    It is the mode of T's posterior under `uniform_prior`, with q proportional to p ** power.

    Args:
        p: out-of-sample probabilities of the given label.
        given: the given labels.
        power: larger powers explain more of the disagreement of p and the labels by wrong labels.
    """
    return expectation_maximisation(sharpened(p, power), given, uniform_prior(p.shape[1]))


def sharpened(p: Float[np.ndarray, "n classes"], power: float) -> Float[np.ndarray, "n classes"]:
    """Probabilities to a power, normalised: over-confident above 1, as by a temperature of 1 / power."""
    p = floored(p) ** power
    return p / p.sum(1, keepdims=True)


def expectation_maximisation(
    q: Float[np.ndarray, "n classes"], given: Int[np.ndarray, " n"], prior: Float[np.ndarray, "classes classes"]
) -> Float[np.ndarray, "classes classes"]:
    """The mode of T's posterior under a Dirichlet prior, where q are the probabilities of the true class."""
    noise = prior / prior.sum(1, keepdims=True)
    q, labels = floored(q), np.eye(len(prior))[given]
    for _ in range(EM_ROUNDS):
        counts = _bayes(q, noise, given).T @ labels + prior
        noise = counts / counts.sum(1, keepdims=True)
    return noise


def _deconvolved(p: Float[Array, "n classes"], noise: Float[Array, "classes classes"]) -> Float[Array, "n classes"]:
    """The q for which q noise is nearly p, by steps of Richardson (1972) and Lucy (1974) from q = p.

    Each step lowers the divergence of p from q noise. Few steps are taken, which regularises.
    """
    q = p
    for _ in range(DECONVOLUTION_ROUNDS):
        q = q * ((p / (q @ noise)) @ noise.T)
    return q / jnp.sum(q, axis=1, keepdims=True)


@jax.jit
def _trusted_loss(
    logits: Float[Array, "classes classes"],
    p: Float[Array, "m classes"],
    true: Int[Array, " m"],
    prior: Float[Array, "classes classes"],
) -> Float[Array, ""]:
    """The cross-entropy of right labels under the deconvolved p, minus the logarithm of T's Dirichlet prior."""
    log_noise = jax.nn.log_softmax(logits)
    q = _deconvolved(p, jnp.exp(log_noise))
    right = jnp.take_along_axis(q, true[:, None], axis=1)
    return -jnp.sum(jnp.log(right)) - jnp.sum(prior * log_noise)


_value_and_grad = jax.jit(jax.value_and_grad(_trusted_loss))


def from_trusted_labels(
    p: Float[np.ndarray, "m classes"], true: Int[np.ndarray, " m"], start: Float[np.ndarray, "classes classes"]
) -> Float[np.ndarray, "classes classes"]:
    """The noise matrix by which p, the noise taken out of it, predicts the right labels of trusted samples.

    The upper variable T minimises the cross-entropy of the right labels plus a Dirichlet prior with mean `start`; the
    lower variable q recovers the true classes from p and T. Quasi-Newton steps go through both. T makes up for steps
    that the deconvolution lacks and for predictions that are too cautious, so it ranks well but has too much noise;
    `calibration.calibrated` estimates it again.

    Args:
        p: probabilities of the *given* label of trusted samples, by a classifier that has not seen them.
        true: their right labels.
        start: a first estimate with positive entries, such as that of `from_given_labels`.
    """
    classes = len(start)
    data = (
        jnp.asarray(floored(p), jnp.result_type(float)),
        jnp.asarray(true),
        jnp.asarray(TRUSTED_COUNT * start, jnp.result_type(float)),
    )

    def objective(logits: Float[np.ndarray, " entries"]) -> tuple[float, Float[np.ndarray, " entries"]]:
        value, grad = _value_and_grad(jnp.asarray(logits.reshape(classes, classes), data[0].dtype), *data)
        return float(value), np.asarray(grad, np.float64).ravel()

    found: Any = optimize.minimize(
        objective, np.log(start).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": QUASI_NEWTON_STEPS}
    )
    logits = found.x.reshape(classes, classes)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def spread(noise: Float[np.ndarray, "classes classes"]) -> float:
    """The effective number of pairs (true class, wrong label), as a part of all K (K - 1) of them.

    It is the exponential of the entropy of the entries of T outside the diagonal, over their number: 1 where wrong
    labels are uniform, 1 / (K - 1) where each class has a single wrong label.

    Args:
        noise: the noise matrix.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.denoising.noise import spread
        >>> round(spread(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])), 3)
        1.0
        >>> round(spread(np.array([[0.65, 0.35], [0.0, 1.0]])), 3)
        0.5
    """
    wrong = noise[~np.eye(len(noise), dtype=bool)]
    share = wrong / wrong.sum()
    return float(np.exp(special.entr(share).sum()) / len(share))


def own(p: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The probability of each label."""
    return np.take_along_axis(p, labels[:, None], axis=1)[:, 0]


def other_than(p: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The probability of the other labels; 1 - p would be 0 for all samples that are nearly certain."""
    return np.where(np.arange(p.shape[1]) == labels[:, None], 0, p).sum(1)


def deconvolved(
    p: Float[np.ndarray, "n classes"], noise: Float[np.ndarray, "classes classes"]
) -> Float[np.ndarray, "n classes"]:
    """The probabilities of the true class from those of the given label and the noise matrix.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.denoising.noise import deconvolved
        >>> noise = np.array([[0.8, 0.2], [0.2, 0.8]])
        >>> q = deconvolved(np.array([[0.74, 0.26]]), noise)  # of a sample with q = (0.9, 0.1)
        >>> bool(q[0, 0] > 0.8)
        True
    """
    return np.asarray(jax.jit(_deconvolved)(jnp.asarray(floored(p)), jnp.asarray(noise)), np.float64)

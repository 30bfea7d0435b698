"""Importance weights: their scale, their starts, and an optimizer with a state for each sample."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float
from sklearn.isotonic import IsotonicRegression

from bilevax._checks import InputError

AGREES, DISAGREES = 0.6, 0.4
SUREST = 0.98


def per_sample(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` with a separate state for each entry of u; entries with a zero gradient do not change.

    With minibatches only the samples in the batch have a gradient. Plain Adam would update all others as well, by
    momentum, and let their second moments decay between two visits; its bias correction would count the steps of the
    solve instead of the visits of the sample. On full batches this is `optimizer` itself.

    Args:
        optimizer: any optimizer that treats entries one by one, for example optax.adam; not one that uses norms. u is
            (n,), or a tree of arrays (n,).

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bilevax.applications.denoising import per_sample
        >>> optimizer = per_sample(optax.adam(0.1))
        >>> updates, _ = optimizer.update(jnp.array([0.0, 2.0]), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
        >>> [round(float(x), 4) for x in updates]
        [0.0, -0.1]
    """

    def init(params: Any) -> Any:
        return jax.vmap(optimizer.init)(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(gradient: Any, state: Any, x: Any) -> tuple[Any, Any]:
            update, new = optimizer.update(gradient, state, x)
            seen = jnp.any(jnp.stack(jax.tree.leaves(gradient)) != 0)
            update = jax.tree.map(lambda a: jnp.where(seen, a, jnp.zeros_like(a)), update)
            return update, jax.tree.map(lambda a, b: jnp.where(seen, a, b), new, state)

        return jax.vmap(one)(updates, state, params)

    return optax.GradientTransformation(init, update)


def weights(u: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
    """Importance weights in 0..1 from u: (tanh u + 1) / 2."""
    return (jnp.tanh(u) + 1) / 2


def from_agreement(agrees: Bool[ArrayLike, " n"]) -> Float[Array, " n"]:
    """The start of u, from whether a model predicts the label of each sample."""
    return jnp.arctanh(2 * jnp.where(agrees, AGREES, DISAGREES).astype(jnp.result_type(float)) - 1)


def from_losses(losses: npt.ArrayLike, clean_losses: npt.ArrayLike) -> Float[Array, " n"]:
    """The u whose weights are the probability that a label is right, from losses under one model.

    Losses of clean samples have the same distribution as losses of right labels. A label of loss s is therefore right
    with probability (1 - r) c(s) / t(s), with c and t the densities of clean and of training losses, and 1 - r the
    share of right labels. Isotonic regression separates clean from training losses, which gives a non-increasing c / t;
    1 - r is the ratio of the shares of training and of clean losses below the clean median, where wrong labels are few.

    Unlike agreement with the model's predictions, this keeps hard samples with right labels: on Fashion-MNIST with 25%
    and 50% wrong labels, after four passes of LeNet-5, the F1 of the right labels kept was 0.975 and 0.953 (row `Start`
    of `python -m experiments table2 --medium`, seed 0). The model may have been trained on all samples, but must not
    have fitted the wrong labels yet.

    Args:
        losses: (n,) of the training samples, for example the cross-entropy of the given label.
        clean_losses: (m,) of the clean samples; some hundreds, since their quantiles are compared.

    Returns:
        u, with weights within 0.02..0.98, so that they can still change.

    Raises:
        InputError: either is empty or has entries that are not finite.

    Source: density ratios by a classifier: Sugiyama, Suzuki and Kanamori, "Density ratio estimation in machine
    learning", 2012, chapter 4.

    Example:
        >>> from bilevax.applications.denoising import from_losses, weights
        >>> u = from_losses([0.1, 0.2, 0.3, 3.0, 4.0], [0.1, 0.2, 0.3])
        >>> print([round(float(w), 2) for w in weights(u)])
        [0.98, 0.98, 0.98, 0.02, 0.02]
    """
    losses, clean_losses = np.asarray(losses, float), np.asarray(clean_losses, float)
    for name, found in (("losses", losses), ("clean_losses", clean_losses)):
        if not (found.size and np.isfinite(found).all()):
            raise InputError(f"from_losses: {name} must hold one finite loss per sample; {found.size} were given.")
    n, m = len(losses), len(clean_losses)
    is_clean = np.repeat([0.0, 1.0], (n, m))
    shares = np.repeat([1 / n, 1 / m], (n, m))
    classifier = IsotonicRegression(increasing=False, out_of_bounds="clip")
    clean = classifier.fit(np.concatenate([losses, clean_losses]), is_clean, sample_weight=shares).predict(losses)
    median = np.median(clean_losses)
    right = np.mean(losses <= median) / np.mean(clean_losses <= median)
    probability = right * clean / np.maximum(1 - clean, np.finfo(float).tiny ** 0.5)
    clipped = np.clip(probability, 1 - SUREST, SUREST)
    return jnp.arctanh(jnp.asarray(2 * clipped - 1, jnp.result_type(float)))

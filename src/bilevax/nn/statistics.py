"""Running statistics of batch normalisation, measured after training."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._arrays import check_key
from bilevax._checks import InputError, require_count
from bilevax._programs import compiled
from bilevax.nn.model import Model, Moments, Settled, measures, params_of, pixels

MEASURED_AT_ONCE = 256


def settled(
    model: Model,
    params: PyTree | Settled,
    x: Shaped[np.ndarray | Array, "n ..."],
    *,
    key: PRNGKeyArray,
    batch_size: int | None = None,
) -> PyTree | Settled:
    """The parameters with running statistics, measured by one pass over x; without batch normalisation, params.

    A loss that is differentiated cannot contain a mean that changes with every call. So in a Problem and in `train`
    every batch is normalised by its own mean and variance, and there are no running statistics. Before predictions
    they are measured once: each batch of x passes through the network as in training, but without dropout, and the
    moments of all batches are pooled, as over one large batch.

    Args:
        model: with or without batch normalisation.
        params: as `model.init` returns them, for example the v of a Result. Statistics of `Settled` are replaced.
        x: training samples (n, ...), some thousand are enough; images of uint8 as for `logits`.
        key: a jax.random key, for the order of the samples.
        batch_size: samples per batch, as in training; 256 by default. The last samples that do not fill a batch are
            left out.

    Raises:
        InputError: x has no samples; batch_size is not a positive integer; key is not a key.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, section 3 (precise batch norm). That
    dropout is off follows Li et al., "Understanding the disharmony between dropout and batch normalization by variance
    shift", CVPR 2019.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from bilevax.nn import as_model, settled
        >>> class Net(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.norm, self.dense = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.dense(self.norm(x))
        >>> model, key = as_model(Net(nnx.Rngs(0)), classes=3), jax.random.key(0)
        >>> x = jax.random.normal(key, (300, 4))
        >>> v = settled(model, model.init(key, x), x, key=key)
        >>> v.statistics["norm"].variance.shape
        (4,)
    """
    params = params_of(params)
    check_key("settled", key)
    if not len(x):
        raise InputError("settled: x has no samples. Pass the training samples.")
    if not measures(model, params, x[:2]):
        return params
    size = require_count("settled", "batch_size", MEASURED_AT_ONCE if batch_size is None else batch_size)
    size = min(size, len(x))
    order = jax.random.permutation(key, len(x))[: len(x) // size * size].reshape(-1, size)
    return Settled(params, _pooled(model, params, jnp.asarray(x), order))


@compiled("model")
def _pooled(
    model: Model, params: PyTree, x: Shaped[Array, "n ..."], order: Int[Array, "batches size"]
) -> dict[str, Moments]:
    assert model.moments is not None

    def one(batch: Int[Array, " size"]) -> dict[str, Moments]:
        return model.moments(params, pixels(x[batch]))  # pyright: ignore[reportOptionalCall]

    found = jax.lax.map(one, order)
    return {name: _of_all(moments) for name, moments in found.items()}


def _of_all(batches: Moments) -> Moments:
    """The moments over all samples, from those (batches, channels) of batches of one size."""
    mean = jnp.mean(batches.mean, 0)
    return Moments(mean, jnp.mean(batches.variance, 0) + jnp.var(batches.mean, 0))

"""Model: two pure functions, and what it has beside its parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError


class Moments(NamedTuple):
    """The mean and the variance (channels,) by which a layer of batch normalisation scales its input."""

    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]


class Settled(NamedTuple):
    """Parameters of a model together with its running statistics, for predictions.

    Attributes:
        params: as `Model.init` returns them.
        statistics: the moments of each layer of batch normalisation, by its path.
    """

    params: PyTree
    statistics: dict[str, Moments]


class Model(NamedTuple):
    """A classifier as two pure functions.

    `init(key, x) -> params`: x (n, ...) is a batch of examples, of which only shape and dtype matter.
    `apply(params, x) -> logits`: x (n, ...) to (n, classes). If it has a parameter `key`, it gets a key during training
    (for dropout) and None for predictions.

    The tools of `bilevax.applications` call a model by `initial` and `logits`, which pass images of uint8 as floats in
    0..1 (see `pixels`). A model must therefore not divide by 255 itself: the images would be scaled twice. Images that
    are floats are passed unchanged; divide them by 255 yourself if their values are 0..255.

    A pair (init, apply) is a complete model. Modules of other libraries may have more, which `as_model` sets:

    Args:
        init: see above.
        apply: see above. With batch normalisation it has a parameter `statistics`: a dictionary from the paths of
            layers to `Moments`. Layers that it lacks normalise by the mean and variance of the batch.
        given: () -> Settled: the weights and running statistics of the module; None for a model that draws its start.
        moments: (params, x, statistics={}) -> dict[str, Moments]: the moments of the batch x in each layer of batch
            normalisation that `statistics` lacks; None for a model that cannot have any.
        to_module: (params, statistics) -> a copy of the module with these weights; None for functions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.nn import Model
        >>> linear = Model(
        ...     init=lambda key, x: jnp.zeros((x.shape[1], 3)),
        ...     apply=lambda params, x: x @ params,
        ... )
        >>> x = jnp.ones((5, 2))
        >>> linear.apply(linear.init(jax.random.key(0), x), x).shape
        (5, 3)
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]
    given: Callable[[], Settled] | None = None
    moments: Callable[..., dict[str, Moments]] | None = None
    to_module: Callable[[PyTree, dict[str, Moments]], Any] | None = None


@dataclass(frozen=True)
class Method:
    """A method of a value, which can be pickled and is equal to the same method of an equal value.

    Python's bound methods are equal only if they belong to the same object. Equal models are compiled once.
    """

    owner: Any
    name: str

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Call the method."""
        return getattr(self.owner, self.name)(*arguments, **more)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(self.owner, self.name))


def model_of(network: Any) -> Model:
    """The Model of a value with methods `init` and `apply`."""
    return Model(Method(network, "init"), Method(network, "apply"))


def pixels(x: Shaped[ArrayLike, "n ..."], dtype: DTypeLike | None = None) -> Shaped[ArrayLike, "n ..."]:
    """Images of uint8, (n, h, w) or of higher rank, as floats in 0..1; anything else unchanged.

    This is the only place where bytes are scaled. An array of uint8 of rank 2 is a table and stays unchanged.

    Args:
        x: samples.
        dtype: of the floats; None for JAX's default.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.nn.model import pixels
        >>> float(pixels(jnp.full((1, 2, 2), 255, jnp.uint8)).max())
        1.0
    """
    if getattr(x, "dtype", None) != jnp.uint8 or jnp.ndim(x) < 3:
        return x
    return jnp.asarray(x).astype(jnp.result_type(float) if dtype is None else dtype) / 255


def initial(model: Model, key: PRNGKeyArray, x: Shaped[ArrayLike, "n ..."]) -> PyTree:
    """The initial parameters of a model; of x only shape and dtype matter."""
    return model.init(key, pixels(x))


def logits(
    model: Model, params: PyTree | Settled, x: Shaped[ArrayLike, "n ..."], key: PRNGKeyArray | None = None
) -> Float[Array, "n classes"]:
    """The logits of x: with `key` as in training, without as in predictions.

    Logits of bfloat16 or float16 become float32, so that losses are computed and summed in float32.

    Layers of batch normalisation use the statistics of `params` if it is `Settled`, and those of x otherwise.

    Raises:
        InputError: a key and `Settled` parameters: training uses the statistics of the batch.
    """
    x = pixels(x)
    if isinstance(params, Settled):
        if key is not None:
            raise refused_statistics()
        found = model.apply(params.params, x, statistics=params.statistics)
    elif "key" in inspect.signature(model.apply).parameters:
        found = model.apply(params, x, key=key)
    else:
        found = model.apply(params, x)
    half = getattr(found, "dtype", None) in (jnp.bfloat16, jnp.float16)
    return found.astype(jnp.float32) if half else found


def refused_statistics() -> InputError:
    """The error where a loss gets running statistics."""
    return InputError(
        "v is Settled: it has running statistics, and a loss normalises by the statistics of its batch. Start from "
        "its params: bilevax.nn.params_of(v)."
    )


def params_of(v: PyTree | Settled) -> PyTree:
    """The parameters alone, which a Problem can have as v: those of `Settled`, anything else unchanged.

    Example:
        >>> from bilevax.nn.model import Settled, params_of
        >>> params_of(Settled([1.0], {})), params_of([1.0])
        ([1.0], [1.0])
    """
    return v.params if isinstance(v, Settled) else v


def export(model: Model, params: PyTree | Settled) -> Any:
    """A copy of the module that the model was made from, with these weights, in its own framework.

    Args:
        model: from `as_model`, `from_torch`, `from_keras`, `from_nnx`, `from_equinox` or `from_flax`; also after
            `freeze`. For flax.linen, whose modules hold no weights, the result is the dictionary of variables.
        params: of the model. With batch normalisation `Settled`, as `train` and `settled` return them.

    Raises:
        InputError: the model was not made from a module; it has batch normalisation, and params has no statistics.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from bilevax.nn import as_model, export
        >>> model = as_model(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), classes=3)
        >>> params = model.init(jax.random.key(0), jnp.ones((5, 2)))
        >>> export(model, jax.tree.map(jnp.zeros_like, params))(jnp.ones((1, 2))).tolist()
        [[0.0, 0.0, 0.0]]
    """
    if model.to_module is None:
        raise InputError("The model was made from functions, not from a module: its parameters are all that it has.")
    if not isinstance(params, Settled) and model.given is not None and model.given().statistics:
        raise unmeasured("export")
    return model.to_module(params_of(params), params.statistics if isinstance(params, Settled) else {})


def measures(model: Model, params: PyTree, x: Shaped[ArrayLike, "n ..."]) -> bool:
    """Whether a model has batch normalisation whose statistics are to be measured."""
    return model.moments is not None and bool(jax.eval_shape(model.moments, params, pixels(x)))


def require_settled(owner: str, model: Model, params: PyTree | Settled, x: Shaped[ArrayLike, "n ..."]) -> None:
    """Refuse to predict by parameters without running statistics where the model has batch normalisation."""
    if not isinstance(params, Settled) and measures(model, params, x):
        raise unmeasured(owner)


def unmeasured(owner: str) -> InputError:
    """The error where running statistics are missing."""
    return InputError(
        f"{owner}: the model has batch normalisation, and these parameters have no running statistics. Measure "
        "them by bilevax.nn.settled(model, params, x, key=key), x being the training samples."
    )

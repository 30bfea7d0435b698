"""Sources for variance reduction: fixed blocks of samples, and batches with the whole data beside them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from bilevax._arrays import check_finite, require_arrays
from bilevax._checks import InputError, described, settle_counts
from bilevax.loop.sources import leading_size, whole
from bilevax.problem import Batch, PartAndWhole


class Block(NamedTuple):
    """Consecutive samples of a data set.

    Attributes:
        data: a pytree of arrays (n, ...).
        index: (n,), the positions of the samples in the data set.
        place: which of the blocks of the data set it is, from 0 on.
    """

    data: PyTree
    index: Int[Array, " n"]  # pyright: ignore[reportIncompatibleMethodOverride]
    place: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """One block of consecutive samples a step, drawn at random; the blocks are the same in all steps.

    Shuffle the data first: samples that stand together are drawn together. A block is a slice, which is faster than
    the rows that `Minibatches` gathers.

    Args:
        upper, lower: data sets, pytrees of arrays whose leading axis is the samples.
        upper_size, lower_size: samples per block; each divides the number of samples.

    The data of a loss are `Block(data, index, place)`.

    Raises:
        InputError: a size is not a positive integer. In `solve`: a size does not divide the number of samples, leading
            sizes differ, or a value in any row is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Blocks
        >>> source = Blocks(upper=jnp.arange(4.0), lower=jnp.arange(9.0), upper_size=2, lower_size=3)
        >>> source.blocks, bool(source.at(0, jax.random.key(0)).lower.index[0] % 3 == 0)
        ((2, 3), True)
    """

    upper: PyTree
    lower: PyTree
    upper_size: int = field(metadata={"static": True})
    lower_size: int = field(metadata={"static": True})

    def __post_init__(self) -> None:
        settle_counts(self, "upper_size", "lower_size")

    @property
    def blocks(self) -> tuple[int, int]:
        """The numbers of blocks of the upper and of the lower data."""
        upper, lower = leading_size("upper", self.upper), leading_size("lower", self.lower)
        return upper // self.upper_size, lower // self.lower_size

    def check(self) -> None:
        """Raise InputError if sizes do not fit the data, or a value in any row is not finite."""
        for name, data, size in (("upper", self.upper, self.upper_size), ("lower", self.lower, self.lower_size)):
            require_arrays(name, data)
            n = leading_size(name, data)
            if n == 0 or n % size:
                raise InputError(
                    f"{name} has {n} samples, which are no whole number of blocks of {size}. Leave out {n % size} "
                    f"samples, or choose a {name}_size that divides {n}."
                )
            check_finite(name, data)

    def last(self) -> Batch:
        """The last block of each level."""
        upper, lower = self.blocks
        return Batch(_block(self.upper, upper - 1, self.upper_size), _block(self.lower, lower - 1, self.lower_size))

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """The blocks of a step."""
        upper_key, lower_key = jax.random.split(jax.random.fold_in(key, step))
        upper, lower = self.blocks
        return Batch(
            _block(self.upper, jax.random.randint(upper_key, (), 0, upper), self.upper_size),
            _block(self.lower, jax.random.randint(lower_key, (), 0, lower), self.lower_size),
        )


def _block(data: PyTree, place: Int[ArrayLike, ""], size: int) -> Block:
    place = jnp.asarray(place, jnp.int32)
    rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), place * size, size), data)
    return Block(rows, place * size + jnp.arange(size, dtype=jnp.int32), place)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WithWhole:
    """The batches of another source, with the whole data beside them, for solvers that need both from time to time.

    Args:
        source: a `Minibatches`, `Epochs` or `Blocks`.

    Raises:
        InputError: source has no data of both levels, or batches for each move.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Minibatches, WithWhole
        >>> source = WithWhole(Minibatches(jnp.arange(5.0), jnp.arange(9.0), upper_size=2, lower_size=4))
        >>> batch = source.at(0, jax.random.key(0))
        >>> batch.lower.part.data.shape, batch.lower.whole.data.shape
        ((4,), (9,))
    """

    source: Any

    def check(self) -> None:
        """Raise InputError if the source cannot be used."""
        if not all(hasattr(self.source, name) for name in ("upper", "lower", "at", "last", "check")):
            raise InputError(f"WithWhole: source is {described(self.source)}. Pass a Minibatches, Epochs or Blocks.")
        if getattr(self.source, "per_move", None) is not None:
            raise InputError("WithWhole: source has per_move, and must give one lower batch in a step. Leave it out.")
        self.source.check()

    def last(self) -> Batch:
        """The last samples of each level, with the whole data."""
        return self._beside(self.source.last())

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """The batch of a step, with the whole data."""
        return self._beside(self.source.at(step, key))

    def _beside(self, batch: Batch) -> Batch:
        upper, lower = (whole(jax.tree.map(jnp.asarray, data)) for data in (self.source.upper, self.source.lower))
        return Batch(PartAndWhole(batch.upper, upper), PartAndWhole(batch.lower, lower))

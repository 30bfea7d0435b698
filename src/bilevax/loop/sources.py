"""Sources of batches.

A *source* is a pytree with a method `at(step, key) -> Batch` that runs inside the compiled loop: its arrays are on the
device and are arguments of the compiled call. It has no state: step and key determine the samples, so a resumed solve
gets the same batches. For iterables of Batches on the host see `bilevax.loop.feed`.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, UInt32

from bilevax._arrays import check_finite, require_arrays
from bilevax._checks import InputError, described, settle_counts
from bilevax.problem import Batch, PerMove

FEISTEL_ROUNDS = 6
LARGEST_DATA_SET = 1 << 30


class Samples(NamedTuple):
    """Samples of a data set.

    Attributes:
        data: a pytree of arrays (n, ...).
        index: (n,), the positions of the samples in the data set.
    """

    data: PyTree
    index: Int[Array, " n"]  # pyright: ignore[reportIncompatibleMethodOverride]


@runtime_checkable
class Source(Protocol):
    """A device-resident source of batches."""

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """The batch of a step. `key` is the same in all steps of a solve."""
        ...


def require_source(name: str, source: Any) -> None:
    """Check that `source` is a device-resident source: a pytree with a method `at`.

    Raises:
        InputError: it is a class, has no method `at`, or is not registered with JAX as a pytree.
    """
    if isinstance(source, type):
        raise InputError(f"{name} is {described(source)}. Pass an instance of it, with its data.")
    if isinstance(source, jax.Array) or hasattr(source, "iloc") or not callable(getattr(source, "at", None)):
        raise InputError(
            f"{name} is {described(source)}. Pass a source such as bilevax.Minibatches, with a method at(step, key)."
        )
    if jax.tree_util.all_leaves([source]):
        raise InputError(
            f"{name} is a {type(source).__name__}, which JAX does not know as a pytree. Decorate its class by "
            "jax.tree_util.register_dataclass, or register it by jax.tree_util.register_pytree_node."
        )


def resident(name: str, batches: Any, key: PRNGKeyArray) -> tuple[Any, Batch, Batch]:
    """A source for None, a fixed Batch or a source; its first batch; and a batch with the largest indices.

    Raises:
        InputError: `batches` is of another type, or cannot be sampled.
    """
    if batches is None:
        batches = Batch()
    if isinstance(batches, Batch):
        require_arrays("batch", batches)
        batches = Fixed(jax.tree.map(jnp.asarray, batches))
    require_source(name, batches)
    if hasattr(batches, "check"):
        batches.check()
    try:
        first = batches.at(0, key)
        last = batches.last() if hasattr(batches, "last") else first
    except InputError:
        raise
    except Exception as error:  # from the caller's source
        raise InputError(f"{name}.at(0, key) raises {type(error).__name__}: {error}") from error
    for batch in (first, last):
        if not isinstance(batch, Batch):
            raise InputError(f"{name}.at(0, key) returns {described(batch)}, and must return a bilevax.Batch.")
    return batches, first, last


def whole(data: PyTree) -> Samples:
    """A full data set as Samples, for losses that take minibatches."""
    return Samples(data, jnp.arange(leading_size("data", data)))


def leading_size(name: str, data: PyTree) -> int:
    """The common leading size of the leaves of a data set.

    Raises:
        InputError: there are no leaves, or their leading sizes differ.
    """
    sizes = {
        f"{name}{jax.tree_util.keystr(path)}": np.shape(leaf)[:1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(data)
    }
    if not sizes or () in sizes.values() or len(set(sizes.values())) > 1:
        found = ", ".join(f"{k}: {v[0] if v else 'a scalar'}" for k, v in sizes.items()) or "nothing"
        raise InputError(f"The leading sizes of {name} differ or are missing ({found}). One row per sample is needed.")
    return next(iter(sizes.values()))[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """The same batch at every step."""

    batch: Batch

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """The batch."""
        return self.batch


def draws(source: Any) -> bool:
    """Whether the batches of a source differ from step to step. A source of another class is taken to draw."""
    if isinstance(source, _Drawn):
        return not (source.upper_size is None and source.lower_size is None)
    return draws(source.source) if isinstance(source, Stacked) else not isinstance(source, Fixed)


def _gather(data: PyTree, index: Int[Array, " n"]) -> Samples:
    return Samples(jax.tree.map(lambda x: jnp.take(x, index, axis=0), data), index)


@dataclass(frozen=True)
class _Drawn:
    """The data of both levels and the sizes of their batches: the base of `Minibatches` and `Epochs`."""

    upper: PyTree
    lower: PyTree
    upper_size: int | None = field(default=None, metadata={"static": True})
    lower_size: int | None = field(default=None, metadata={"static": True})
    per_move: int | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        settle_counts(self, *(n for n in ("upper_size", "lower_size", "per_move") if getattr(self, n) is not None))

    def check(self) -> None:
        """Raise InputError if sizes do not fit the data, or a value in any row is not finite."""
        for name, data, size in (("upper", self.upper, self.upper_size), ("lower", self.lower, self.lower_size)):
            require_arrays(name, data)
            n = leading_size(name, data)
            if n == 0:
                raise InputError(f"{name} has no samples.")
            if n > LARGEST_DATA_SET:
                raise InputError(f"{name} has {n} samples; at most {LARGEST_DATA_SET} can be sampled on the device.")
            if size is not None and n < size:
                raise InputError(
                    f"{name} has {n} samples, fewer than one batch of {size}. Lower {name}_size, or pass None to use "
                    "all."
                )
            check_finite(name, data)

    def last(self) -> Batch:
        """The last samples as a batch: it has the largest indices, for checks."""

        def last(data: PyTree, size: int | None) -> Samples:
            if size is None:
                return whole(data)
            n = leading_size("data", data)
            return Samples(jax.tree.map(lambda x: jnp.asarray(x)[n - size :], data), jnp.arange(n - size, n))

        upper, lower = last(self.upper, self.upper_size), last(self.lower, self.lower_size)
        copies = self.per_move
        if copies is None:
            return Batch(upper, lower)
        return Batch(upper, PerMove(jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *x.shape)), lower)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Minibatches(_Drawn):
    """Minibatches drawn with replacement, each independent of the others.

    Args:
        upper, lower: data sets, pytrees of arrays whose leading axis is the samples.
        upper_size, lower_size: samples per batch; None for all samples, in order.
        per_move: the number of lower batches per step, one for each lower step: the solver's `lower_steps`. None for
            one batch that all lower steps share, as in the paper.

    The data of a loss are `Samples(data, index)`.

    Raises:
        InputError: a size is not a positive integer. In `solve`: leading sizes differ, a data set has fewer samples
            than a batch, or a value in any row is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Minibatches
        >>> source = Minibatches(upper=jnp.arange(5.0), lower=jnp.arange(9.0), lower_size=4)
        >>> batch = source.at(step=0, key=jax.random.key(0))
        >>> batch.upper.data.shape, batch.lower.data.shape, batch.lower.index.shape
        ((5,), (4,), (4,))
    """

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """The batch of a step."""
        upper_key, lower_key = jax.random.split(jax.random.fold_in(key, step))

        def draw(data: PyTree, size: int | None, key: PRNGKeyArray) -> Samples:
            if size is None:
                return whole(data)
            return _gather(data, jax.random.randint(key, (size,), 0, leading_size("data", data)))

        upper = draw(self.upper, self.upper_size, upper_key)
        if self.per_move is None:
            return Batch(upper, draw(self.lower, self.lower_size, lower_key))
        keys = jax.random.split(lower_key, self.per_move)
        return Batch(upper, PerMove(jax.vmap(lambda k: draw(self.lower, self.lower_size, k))(keys)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Epochs(_Drawn):
    """Minibatches without replacement: every sample is drawn once in each pass through the data.

    The order of a pass is a keyed bijection of 0..n-1 (a Feistel network with cycle walking; Black and Rogaway 2002),
    evaluated only for the samples of the batch: nothing is sorted, and no permutation is stored. A batch may span two
    passes, so no samples are dropped.

    Args:
        upper, lower, upper_size, lower_size, per_move: as for `Minibatches`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Epochs
        >>> source = Epochs(upper=jnp.zeros(1), lower=jnp.arange(6.0), lower_size=2)
        >>> key = jax.random.key(0)
        >>> sorted(int(i) for step in range(3) for i in source.at(step, key).lower.index)
        [0, 1, 2, 3, 4, 5]
    """

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """The batch of a step."""
        upper_key, lower_key = jax.random.split(key)

        def take(data: PyTree, size: int | None, key: PRNGKeyArray, turn: Int[ArrayLike, ""]) -> Samples:
            if size is None:
                return whole(data)
            return _gather(data, epoch_indices(turn, size, leading_size("data", data), key))

        upper = take(self.upper, self.upper_size, upper_key, step)
        if self.per_move is None:
            return Batch(upper, take(self.lower, self.lower_size, lower_key, step))
        turns = step * self.per_move + jnp.arange(self.per_move)
        return Batch(upper, PerMove(jax.vmap(lambda t: take(self.lower, self.lower_size, lower_key, t))(turns)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stacked:
    """A source for `Vectorized`: the leading axis of the arrays of `source` is the members."""

    source: Any

    def check(self) -> None:
        """Raise InputError if the source of a member cannot be used, or a value in any row is not finite."""
        require_source("Stacked: source", self.source)
        require_arrays("source", self.source)
        leading_size("source", self.source)
        check_finite("source", self.source)
        if hasattr(self.source, "check"):
            jax.tree.map(lambda x: x[0], self.source).check()

    def last(self) -> Batch:
        """The last samples of each member, stacked."""
        return jax.vmap(lambda source: source.last() if hasattr(source, "last") else source.at(0, jax.random.key(0)))(
            self.source
        )

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """One batch for each member, stacked."""
        keys = jax.random.split(key, leading_size("source", self.source))
        return jax.vmap(lambda source, key: source.at(step, key))(self.source, keys)


def epoch_indices(turn: Int[ArrayLike, ""], size: int, n: int, key: PRNGKeyArray) -> Int[Array, " {size}"]:
    """The indices of batch number `turn` in an endless sequence of shuffled passes over 0..n-1."""
    epoch, place = _divide(jnp.asarray(turn, jnp.uint32), size, n)
    place = place + jnp.arange(size, dtype=jnp.uint32)
    epoch, place = epoch + place // n, place % n
    seed = jax.random.bits(key, (), jnp.uint32)
    return _shuffled(place, epoch, seed, n).astype(jnp.int32)


def _divide(turn: UInt32[Array, ""], size: int, n: int) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """(turn * size) // n and % n in 32 bits, without forming the product (n <= 2^30)."""
    whole_turns, turn = turn // n, turn % n
    quotient = jnp.zeros((), jnp.uint32)
    rest = jnp.zeros((), jnp.uint32)
    for bit in bin(size)[2:]:
        rest = 2 * rest + (turn if bit == "1" else 0)
        quotient = 2 * quotient + rest // n
        rest = rest % n
    return whole_turns * jnp.uint32(size) + quotient, rest


def _shuffled(
    place: UInt32[Array, " m"], epoch: UInt32[Array, " m"], seed: UInt32[Array, ""], n: int
) -> UInt32[Array, " m"]:
    """The image of each place under the bijection of 0..n-1 that (epoch, seed) determines."""
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = jnp.uint32((1 << half) - 1)

    def mix(x: UInt32[Array, "*m"]) -> UInt32[Array, "*m"]:  # the finaliser of MurmurHash3 (Appleby 2008)
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    salt = mix(mix(epoch + jnp.uint32(0x9E3779B9)) ^ seed)

    def network(x: UInt32[Array, " m"]) -> UInt32[Array, " m"]:
        left, right = x >> half, x & mask
        for i in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(salt + jnp.uint32(i))) & mask)
        return (left << half) | right

    # Cycle walking: apply the network again to images outside 0..n-1. Its domain is smaller than 4 n.
    return jax.lax.while_loop(lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, network(x), x), network(place))

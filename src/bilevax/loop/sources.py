"""What feeds a solve.

A *source* is a pytree with a method `at(step, key) -> Batch` that runs inside the compiled loop: its
arrays live on the device and are arguments of the compiled call. It keeps no state, since step
and key say which samples are due, so a resumed solve sees the same batches. A *stream* is any
iterable of Batches on the host, see `bilevax.loop.feed`.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from bilevax._checks import InputError, PyTree, check_finite, described, require_arrays, settle_counts
from bilevax.problem import Batch, PerMove

FEISTEL_ROUNDS = 6
LARGEST_DATA_SET = 1 << 30


class Samples(NamedTuple):
    """Some samples of a data set: `data`, its leaves gathered, and `index` (n,), their places in it."""

    data: PyTree
    index: Any


@runtime_checkable
class Source(Protocol):
    """A device-resident source of batches."""

    def at(self, step: Any, key: Any) -> Batch:
        """The batch of a step; `key` is the same for the whole solve."""
        ...


def require_source(name: str, source: Any) -> None:
    """Refuse what is not a device-resident source: it has a method `at` and is a pytree, hence an argument.

    Raises:
        InputError: it is a class, has no `at(step, key)`, or is not known to JAX as a pytree.
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


def resident(name: str, batches: Any, key: Any) -> tuple[Any, Batch, Batch]:
    """A fixed Batch, or None, or a source, as a source; its first batch; and one to check, with the largest indices.

    Raises:
        InputError: it is none of these, or one that cannot be sampled.
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
    except Exception as error:  # whatever the caller's own source raises
        raise InputError(f"{name}.at(0, key) raises {type(error).__name__}: {error}") from error
    for batch in (first, last):
        if not isinstance(batch, Batch):
            raise InputError(f"{name}.at(0, key) returns {described(batch)}, and must return a bilevax.Batch.")
    return batches, first, last


def whole(data: PyTree) -> Samples:
    """A full data set as Samples, for losses that are used with minibatches too."""
    return Samples(data, jnp.arange(leading_size("data", data)))


def leading_size(name: str, data: PyTree) -> int:
    """The common leading size of a data set's leaves.

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

    def at(self, step: Any, key: Any) -> Batch:
        """The batch."""
        return self.batch


def _check_data(source: Any) -> None:
    """Refuse data sets that cannot be sampled as asked for, and values in any of their rows that no loss could take."""
    for name in ("upper", "lower"):
        data, size = getattr(source, name), getattr(source, f"{name}_size")
        require_arrays(name, data)
        n = leading_size(name, data)
        if n == 0:
            raise InputError(f"{name} has no samples.")
        if n > LARGEST_DATA_SET:
            raise InputError(f"{name} has {n} samples; at most {LARGEST_DATA_SET} can be sampled on the device.")
        if size is not None and n < size:
            raise InputError(
                f"{name} has {n} samples, fewer than one batch of {size}. Lower {name}_size, or pass None to use all."
            )
        check_finite(name, data)


def _last(source: Any) -> Batch:
    """The last samples, as a batch of the shape of the source's: no index among its batches is larger."""

    def last(data: PyTree, size: int | None) -> Samples:
        if size is None:
            return whole(data)
        n = leading_size("data", data)
        return Samples(jax.tree.map(lambda x: jnp.asarray(x)[n - size :], data), jnp.arange(n - size, n))

    lower = last(source.lower, source.lower_size)
    if source.per_move is None:
        return Batch(last(source.upper, source.upper_size), lower)
    moves = jax.tree.map(lambda x: jnp.broadcast_to(x, (source.per_move, *x.shape)), lower)
    return Batch(last(source.upper, source.upper_size), PerMove(moves))


def _gather(data: PyTree, index: Any) -> Samples:
    return Samples(jax.tree.map(lambda x: jnp.take(x, index, axis=0), data), index)


@dataclass(frozen=True)
class _Drawn:
    """Data of both levels, and how many samples of each a batch draws; what the sources of minibatches share."""

    upper: PyTree
    lower: PyTree
    upper_size: int | None = field(default=None, metadata={"static": True})
    lower_size: int | None = field(default=None, metadata={"static": True})
    per_move: int | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        settle_counts(self, *(n for n in ("upper_size", "lower_size", "per_move") if getattr(self, n) is not None))

    def check(self) -> None:
        """Raise InputError where sizes do not fit, or a value in any row is not finite."""
        _check_data(self)

    def last(self) -> Batch:
        """The last samples as a batch, for checks: none has a larger index."""
        return _last(self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Minibatches(_Drawn):
    """Minibatches drawn with replacement, each independent of the others.

    Args:
        upper, lower: data sets, pytrees whose leaves lead with the axis of samples.
        upper_size, lower_size: samples per batch; None: all of them, in order.
        per_move: draw this many lower batches per step, one for each lower move (give the solver's
            `lower_steps`); None: one for the whole step, as in the paper.

    Losses get `Samples(data, index)`.

    Raises:
        InputError: a size is not a positive integer; in `solve`, leading sizes differ, a data set has fewer samples
            than a batch, or a value in any of its rows is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Minibatches
        >>> source = Minibatches(upper=jnp.arange(5.0), lower=jnp.arange(9.0), lower_size=4)
        >>> batch = source.at(step=0, key=jax.random.key(0))
        >>> batch.upper.data.shape, batch.lower.data.shape, batch.lower.index.shape
        ((5,), (4,), (4,))
    """

    def at(self, step: Any, key: Any) -> Batch:
        """The batch of a step."""
        upper_key, lower_key = jax.random.split(jax.random.fold_in(key, step))

        def draw(data: PyTree, size: int | None, key: Any) -> Samples:
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
    """Minibatches without replacement: every sample once in each pass through the data.

    The order of a pass is a keyed bijection of 0..n-1 (a Feistel network with cycle walking; Black and
    Rogaway 2002), evaluated for the batch's places alone: nothing is sorted, and no permutation is
    stored. A batch may span two passes, so no remainder is dropped.

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

    def at(self, step: Any, key: Any) -> Batch:
        """The batch of a step."""
        upper_key, lower_key = jax.random.split(key)

        def take(data: PyTree, size: int | None, key: Any, turn: Any) -> Samples:
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
    """A source for `Vectorized`: the arrays of `source` lead with the axis of members."""

    source: Any

    def check(self) -> None:
        """Raise InputError where the source of a member cannot be used, or a value in any row is not finite."""
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

    def at(self, step: Any, key: Any) -> Batch:
        """One batch for each member, stacked."""
        keys = jax.random.split(key, leading_size("source", self.source))
        return jax.vmap(lambda source, key: source.at(step, key))(self.source, keys)


def epoch_indices(turn: Any, size: int, n: int, key: Any) -> Any:
    """The indices (size,) of batch number `turn` in an endless row of shuffled passes over 0..n-1."""
    epoch, place = _divide(jnp.asarray(turn, jnp.uint32), size, n)
    place = place + jnp.arange(size, dtype=jnp.uint32)
    epoch, place = epoch + place // n, place % n
    seed = jax.random.bits(key, (), jnp.uint32)
    return _shuffled(place, epoch, seed, n).astype(jnp.int32)


def _divide(turn: Any, size: int, n: int) -> tuple[Any, Any]:
    """(turn * size) // n and % n in 32 bits, without forming the product (n <= 2^30)."""
    whole_turns, turn = turn // n, turn % n
    quotient = jnp.zeros((), jnp.uint32)
    rest = jnp.zeros((), jnp.uint32)
    for bit in bin(size)[2:]:
        rest = 2 * rest + (turn if bit == "1" else 0)
        quotient = 2 * quotient + rest // n
        rest = rest % n
    return whole_turns * jnp.uint32(size) + quotient, rest


def _shuffled(place: Any, epoch: Any, seed: Any, n: int) -> Any:
    """The image of each place (m,) under the bijection of 0..n-1 that (epoch, seed) picks."""
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = jnp.uint32((1 << half) - 1)

    def mix(x: Any) -> Any:  # the finaliser of MurmurHash3 (Appleby 2008)
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    salt = mix(mix(epoch + jnp.uint32(0x9E3779B9)) ^ seed)

    def network(x: Any) -> Any:
        left, right = x >> half, x & mask
        for i in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(salt + jnp.uint32(i))) & mask)
        return (left << half) | right

    # Walk on from images outside 0..n-1: the domain is less than 4 n, so a few rounds do.
    return jax.lax.while_loop(lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, network(x), x), network(place))

"""Group lasso and sparse group lasso, smoothed."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError, listed
from bilevax.penalties.base import block_factors, check_mu
from bilevax.penalties.separable import L1


@runtime_checkable
class Groups(Protocol):
    """A partition of the entries of a tree into groups."""

    def squares(self, v: PyTree) -> Float[Array, " groups"]:
        """Return the squared norm of each group."""
        ...

    def scaled(self, v: PyTree, factors: Float[Array, " groups"]) -> PyTree:
        """Return each group times its factor."""
        ...


@dataclass(frozen=True)
class ByLeaf:
    """Each leaf is a group: the layers of a network."""

    def squares(self, v: PyTree) -> Float[Array, " groups"]:
        """Return the squared norm of each leaf."""
        return jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(v)])

    def scaled(self, v: PyTree, factors: Float[Array, " groups"]) -> PyTree:
        """Return each leaf times its factor."""
        leaves, form = jax.tree.flatten(v)
        return jax.tree.unflatten(form, [x * factors[i] for i, x in enumerate(leaves)])


@dataclass(frozen=True)
class ByRow:
    """Each row of each leaf is a group: the outgoing weights of one input of a dense layer (Scardapane et al. 2017)."""

    def squares(self, v: PyTree) -> Float[Array, " groups"]:
        """Return the squared norm of each row of each leaf."""
        return jnp.concatenate([jnp.sum(jnp.square(x).reshape(len(x), -1), 1) for x in jax.tree.leaves(v)])

    def scaled(self, v: PyTree, factors: Float[Array, " groups"]) -> PyTree:
        """Return each row times its factor."""
        leaves, form = jax.tree.flatten(v)
        parts = jnp.split(factors, np.cumsum([len(x) for x in leaves])[:-1])
        return jax.tree.unflatten(
            form, [x * f.reshape(-1, *[1] * (x.ndim - 1)) for x, f in zip(leaves, parts, strict=True)]
        )


@dataclass(frozen=True)
class Given:
    """Groups of the entries of a vector v (d,), by their indices.

    Args:
        members: the indices of each group; each of 0..d-1 is in exactly one group.

    Raises:
        InputError: a group is empty, groups overlap, or an index is in no group.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.penalties import Given, GroupLasso
        >>> float(GroupLasso(Given([[0, 2], [1]])).true(jnp.array([3.0, -1.0, 4.0])))
        6.0
    """

    members: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        members = tuple(tuple(int(i) for i in group) for group in self.members)
        object.__setattr__(self, "members", members)
        if not members or not all(members):
            raise InputError("Given: there is no group, or an empty group. List the indices of each group.")
        places = sorted(i for group in members for i in group)
        twice = sorted({a for a, b in itertools.pairwise(places) if a == b})
        if twice:
            raise InputError(
                f"Given: indices in more than one group: {listed(twice)}. Put each index into exactly one group."
            )
        if places[0] < 0:
            raise InputError(f"Given: there is a negative index, {places[0]}. Indices are 0..d-1.")
        missing = sorted(set(range(max(places) + 1)) - set(places))
        if missing:
            raise InputError(
                f"Given: indices in no group: {listed(missing)}. Each of 0..d-1 must be in one group; an entry without "
                "a group can be a group of its own."
            )

    def squares(self, v: PyTree) -> Float[Array, " groups"]:
        """Return the squared norm of each group."""
        return jax.ops.segment_sum(jnp.square(v), self._index(v), len(self.members))

    def scaled(self, v: PyTree, factors: Float[Array, " groups"]) -> PyTree:
        """Return each entry times the factor of its group."""
        return v * factors[self._index(v)]

    def _index(self, v: Any) -> np.ndarray:
        size = sum(map(len, self.members))
        if jnp.shape(v) != (size,):
            raise InputError(
                f"Given: v has shape {jnp.shape(v)}, and the groups are for a vector of {size} entries. Make the "
                "groups for this v."
            )
        index = np.empty(size, int)
        for g, group in enumerate(self.members):
            index[list(group)] = g
        return index


@dataclass(frozen=True)
class GroupLasso:
    """The sum of the groups' Euclidean norms (Yuan and Lin 2006), each smoothed to sqrt(|w|^2 + mu^2).

    The gap is mu for each group, and the Lipschitz constant of the gradient is 1 / mu: the Hessian of a group is
    (I - w w' / (|w|^2 + mu^2)) / sqrt(|w|^2 + mu^2). Proximal map: the norm of each group is reduced by `step`, at most
    to zero.

    Args:
        groups: `ByLeaf()`, `ByRow()`, `Given(...)`, or another object with the two methods of `Groups`.
    """

    groups: Groups

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the smoothed value."""
        check_mu(mu)
        return jnp.sum(jnp.sqrt(self.groups.squares(v) + mu**2))

    def true(self, v: PyTree) -> Float[Array, ""]:
        """Return the sum of the norms."""
        return jnp.sum(jnp.sqrt(self.groups.squares(v)))

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return the number of groups times mu."""
        return len(self.groups.squares(v)) * mu

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return 1 / mu."""
        return 1 / mu

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """Return v after block soft thresholding."""
        return self.groups.scaled(v, block_factors(self.groups.squares(v), step))


@dataclass(frozen=True)
class SparseGroupLasso:
    """A weighted sum of L1 and the group lasso (Simon et al. 2013; Scardapane et al. 2017).

    SPNBO (ICLR 2022 submission) uses it with layers as groups and learns both weights; a problem with weights in u adds
    `L1` and `GroupLasso` itself. Proximal map: soft thresholding, then block soft thresholding (Simon et al. 2013).

    Args:
        groups: as for `GroupLasso`.
        single, group: the weights of L1 and of the group lasso, zero or positive.

    Raises:
        InputError: a weight is negative.
    """

    groups: Groups
    single: float = 1.0
    group: float = 1.0

    def __post_init__(self) -> None:
        for name in ("single", "group"):
            if not getattr(self, name) >= 0:
                raise InputError(f"SparseGroupLasso: {name} is {getattr(self, name)}, and must be zero or positive.")

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the smoothed value."""
        return self.single * L1()(v, mu) + self.group * GroupLasso(self.groups)(v, mu)

    def true(self, v: PyTree) -> Float[Array, ""]:
        """Return the non-smooth value."""
        return self.single * L1().true(v) + self.group * GroupLasso(self.groups).true(v)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return the weighted sum of the two gaps."""
        return self.single * L1().gap(v, mu) + self.group * GroupLasso(self.groups).gap(v, mu)

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return (single + group) / mu."""
        return (self.single + self.group) / mu

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """Return v after soft thresholding, then block soft thresholding."""
        return GroupLasso(self.groups).proximal(L1().proximal(v, step * self.single), step * self.group)


def removed_share(groups: Groups, v: PyTree, threshold: float = 0.0) -> float:
    """Return the share of groups whose norm is at most `threshold`."""
    norms = np.sqrt(np.asarray(groups.squares(v)))
    return float((norms <= threshold).mean()) if norms.size else math.nan

"""Smooth stand-ins, with a parameter mu, of penalties that have corners: l1, l_p, group lasso, OSCAR and their kin.

A penalty is called as `penalty(v, mu)`, differentiable for mu > 0; `true(v)` is what it tends to as mu falls to zero.
For all v and mu > 0

    0 <= penalty(v, mu) - true(v) <= gap(v, mu),    |grad penalty(a, mu) - grad penalty(b, mu)| <= lipschitz(mu) |a - b|

(`lipschitz(v, mu)` where it depends on the size of v). `proximal(v, step)` minimises step true(x) + |x - v|^2 / 2 over
x. v is any pytree of floating arrays. As the `regularizer` of a `Problem` a penalty is given its strength, say

    regularizer=lambda u, v, mu: jnp.exp(u["strength"]) * L1()(v, mu)

Sources: Nesterov, "Smooth minimization of non-smooth functions", Math. Program. 2005; Chen, "Smoothing methods for
nonsmooth, nonconvex minimization", Math. Program. 2012; the SPNBO text (ICLR 2022 submission), sections 2.2 and 3.1.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.problem import InputError, PyTree, listed

FIXED_POINT_STEPS = 60


def entries(v: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(jnp.size(x) for x in jax.tree.leaves(v))


def _check_mu(mu: Any) -> None:
    if isinstance(mu, int | float) and not mu > 0:  # inside a solve it is an array that a schedule made
        raise InputError(f"mu is {mu}, and must be positive: with zero a penalty has its corners. `true` is its limit.")


def _total(v: PyTree, entry: Any) -> Any:
    return sum(jnp.sum(entry(x)) for x in jax.tree.leaves(v))


def _soft(x: Any, threshold: Any) -> Any:
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


class Smoothed(Protocol):
    """What a penalty offers."""

    def __call__(self, v: PyTree, mu: Any) -> Any:
        """The smoothed value."""
        ...

    def true(self, v: PyTree) -> Any:
        """The value itself."""
        ...

    def gap(self, v: PyTree, mu: Any) -> Any:
        """How far the smoothed value may lie above the true one."""
        ...


@dataclass(frozen=True)
class L1:
    """The sum of |w|, smoothed to that of sqrt(w^2 + mu^2).

    sqrt(w^2 + mu^2) <= |w| + mu, so the gap is mu for each entry; the second derivative is mu^2 / (w^2 + mu^2)^(3/2),
    at most 1 / mu. Proximal: soft thresholding (Donoho 1995).

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.smoothing import L1
        >>> w = jnp.array([3.0, -4.0])
        >>> float(L1().true(w)), round(float(L1()(w, 0.1)), 4), L1().proximal(w, 3.5).tolist()
        (7.0, 7.0029, [0.0, -0.5])
    """

    def __call__(self, v: PyTree, mu: Any) -> Any:
        """The smoothed value."""
        _check_mu(mu)
        return _total(v, lambda w: jnp.sqrt(w**2 + mu**2))

    def true(self, v: PyTree) -> Any:
        """The sum of |w|."""
        return _total(v, jnp.abs)

    def gap(self, v: PyTree, mu: Any) -> Any:
        """Mu times the number of entries."""
        return entries(v) * mu

    def lipschitz(self, mu: Any) -> Any:
        """1 / mu."""
        return 1 / mu

    def proximal(self, v: PyTree, step: Any) -> PyTree:
        """Soft thresholding."""
        return jax.tree.map(lambda w: _soft(w, step), v)


@dataclass(frozen=True)
class Lp:
    """The sum of |w|^p, 0 < p <= 1, smoothed to that of (w^2 + mu^2)^(p/2) (Bian and Chen 2017).

    x^(p/2) is subadditive, so (w^2 + mu^2)^(p/2) <= |w|^p + mu^p and the gap is mu^p for each entry, slower than mu.
    The second derivative, p (w^2 + mu^2)^(p/2 - 2) (mu^2 - (1 - p) w^2), is largest in size at 0: p mu^(p - 2).

    The SPNBO text writes the p-norm, (sum |w|^p)^(1/p), and smooths the sum; here it is the sum throughout.

    Proximal, of each entry: 0 up to a threshold, beyond it the larger root of x + step p x^(p-1) = |w| (Marjanovic and
    Solo, IEEE Trans. Signal Process. 2012), by a fixed point that descends to it.

    Args:
        p: in (0, 1].

    Raises:
        InputError: p is not.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise InputError(f"Lp: p is {self.p}, and must be in (0, 1]. Above 1 there is no corner to smooth.")

    def __call__(self, v: PyTree, mu: Any) -> Any:
        """The smoothed value."""
        _check_mu(mu)
        return _total(v, lambda w: (w**2 + mu**2) ** (self.p / 2))

    def true(self, v: PyTree) -> Any:
        """The sum of |w|^p."""
        return _total(v, lambda w: jnp.abs(w) ** self.p)

    def gap(self, v: PyTree, mu: Any) -> Any:
        """mu^p times the number of entries."""
        return entries(v) * mu**self.p

    def lipschitz(self, mu: Any) -> Any:
        """P mu^(p - 2)."""
        return self.p * mu ** (self.p - 2)

    def proximal(self, v: PyTree, step: Any) -> PyTree:
        """A minimiser, entry by entry; the problem is not convex, and at the threshold 0 is taken."""
        if self.p == 1:
            return L1().proximal(v, step)
        at = (2 * step * (1 - self.p)) ** (1 / (2 - self.p))
        threshold = at + step * self.p * at ** (self.p - 1)

        def one(w: Any) -> Any:
            size = jnp.maximum(jnp.abs(w), threshold)
            x = jax.lax.fori_loop(0, FIXED_POINT_STEPS, lambda _, x: size - step * self.p * x ** (self.p - 1), size)
            return jnp.where(jnp.abs(w) > threshold, jnp.sign(w) * x, 0.0)

        return jax.tree.map(one, v)


@dataclass(frozen=True)
class ElasticNet:
    """The sum of |w| plus ratio / 2 times that of w^2 (Zou and Hastie 2005); the first smoothed as `L1`.

    Args:
        ratio: of the squares, zero or positive.

    Raises:
        InputError: ratio is negative.
    """

    ratio: float

    def __post_init__(self) -> None:
        if not self.ratio >= 0:
            raise InputError(f"ElasticNet: ratio is {self.ratio}, and must be zero or positive.")

    def __call__(self, v: PyTree, mu: Any) -> Any:
        """The smoothed value."""
        return L1()(v, mu) + self._squares(v)

    def true(self, v: PyTree) -> Any:
        """The sum itself."""
        return L1().true(v) + self._squares(v)

    def gap(self, v: PyTree, mu: Any) -> Any:
        """That of L1."""
        return L1().gap(v, mu)

    def lipschitz(self, mu: Any) -> Any:
        """That of L1, plus the ratio."""
        return 1 / mu + self.ratio

    def proximal(self, v: PyTree, step: Any) -> PyTree:
        """Soft thresholding, then a shrinkage."""
        return jax.tree.map(lambda w: _soft(w, step) / (1 + step * self.ratio), v)

    def _squares(self, v: PyTree) -> Any:
        return self.ratio / 2 * _total(v, jnp.square)


class Groups(Protocol):
    """How a tree is cut into groups, each entry in one."""

    def squares(self, v: PyTree) -> Any:
        """The squared norm of each group, (groups,)."""
        ...

    def scaled(self, v: PyTree, factors: Any) -> PyTree:
        """Each group times its factor, factors (groups,)."""
        ...


@dataclass(frozen=True)
class ByLeaf:
    """Each leaf is a group: the layers of a network."""

    def squares(self, v: PyTree) -> Any:
        """(leaves,)."""
        return jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(v)])

    def scaled(self, v: PyTree, factors: Any) -> PyTree:
        """Each leaf times its factor."""
        leaves, form = jax.tree.flatten(v)
        return jax.tree.unflatten(form, [x * factors[i] for i, x in enumerate(leaves)])


@dataclass(frozen=True)
class ByRow:
    """Each row of each leaf is a group: the weights that leave one input of a dense layer (Scardapane et al. 2017)."""

    def squares(self, v: PyTree) -> Any:
        """(rows of all leaves,)."""
        return jnp.concatenate([jnp.sum(jnp.square(x).reshape(len(x), -1), 1) for x in jax.tree.leaves(v)])

    def scaled(self, v: PyTree, factors: Any) -> PyTree:
        """Each row times its factor."""
        leaves, form = jax.tree.flatten(v)
        parts = jnp.split(factors, np.cumsum([len(x) for x in leaves])[:-1])
        return jax.tree.unflatten(
            form, [x * f.reshape(-1, *[1] * (x.ndim - 1)) for x, f in zip(leaves, parts, strict=True)]
        )


@dataclass(frozen=True)
class Given:
    """Groups of the entries of a vector v (d,), by their places.

    Args:
        members: the places of each group; each of 0..d-1 in one of them, d being their number.

    Raises:
        InputError: a group is empty, groups overlap, or a place is in none.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.smoothing import Given, GroupLasso
        >>> float(GroupLasso(Given([[0, 2], [1]])).true(jnp.array([3.0, -1.0, 4.0])))
        6.0
    """

    members: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        members = tuple(tuple(int(i) for i in group) for group in self.members)
        object.__setattr__(self, "members", members)
        if not members or not all(members):
            raise InputError("Given: there is no group, or an empty one. Name the places of each group.")
        places = sorted(i for group in members for i in group)
        twice = sorted({a for a, b in itertools.pairwise(places) if a == b})
        if twice:
            raise InputError(
                f"Given: the groups overlap in the places {listed(twice)}. Each place belongs to one group."
            )
        lacking = sorted(set(range(max(places) + 1)) - set(places))
        if lacking or places[0] < 0:
            raise InputError(
                f"Given: the groups do not cover the places {listed(lacking or [places[0]])}. Each of 0..d-1 belongs "
                "to one group; give an entry that is not to be selected a group of its own."
            )

    def squares(self, v: PyTree) -> Any:
        """(groups,)."""
        return jax.ops.segment_sum(jnp.square(v), self._index(v), len(self.members))

    def scaled(self, v: PyTree, factors: Any) -> PyTree:
        """Each entry times its group's factor."""
        return v * factors[self._index(v)]

    def _index(self, v: Any) -> np.ndarray:
        size = sum(map(len, self.members))
        if jnp.shape(v) != (size,):
            raise InputError(f"Given: v has shape {jnp.shape(v)}, and the groups are of a vector of {size} entries.")
        index = np.empty(size, int)
        for g, group in enumerate(self.members):
            index[list(group)] = g
        return index


@dataclass(frozen=True)
class GroupLasso:
    """The sum of the groups' Euclidean norms (Yuan and Lin 2006), each smoothed to sqrt(|w|^2 + mu^2).

    The gap is mu for each group, and the gradient's Lipschitz constant 1 / mu: the Hessian of a group is
    (I - w w' / (|w|^2 + mu^2)) / sqrt(|w|^2 + mu^2). Proximal: each group is shortened by `step`, or vanishes.

    Args:
        groups: `ByLeaf()`, `ByRow()`, `Given(...)`, or anything with their two methods.
    """

    groups: Groups

    def __call__(self, v: PyTree, mu: Any) -> Any:
        """The smoothed value."""
        _check_mu(mu)
        return jnp.sum(jnp.sqrt(self.groups.squares(v) + mu**2))

    def true(self, v: PyTree) -> Any:
        """The sum of norms."""
        return jnp.sum(jnp.sqrt(self.groups.squares(v)))

    def gap(self, v: PyTree, mu: Any) -> Any:
        """Mu times the number of groups."""
        return len(self.groups.squares(v)) * mu

    def lipschitz(self, mu: Any) -> Any:
        """1 / mu."""
        return 1 / mu

    def proximal(self, v: PyTree, step: Any) -> PyTree:
        """Block soft thresholding."""
        squares = self.groups.squares(v)
        kept = jnp.sqrt(squares) > step
        return self.groups.scaled(v, jnp.where(kept, 1 - step / jnp.sqrt(jnp.where(kept, squares, 1.0)), 0.0))


@dataclass(frozen=True)
class SparseGroupLasso:
    """L1 times one factor plus the group lasso times another (Simon et al. 2013; Scardapane et al. 2017).

    The SPNBO text has it with layers as groups and both factors searched for; a problem whose u holds them adds `L1`
    and `GroupLasso` itself. Proximal: soft thresholding, then block soft thresholding (Simon et al. 2013).

    Args:
        groups: as for `GroupLasso`.
        single, group: the factors, zero or positive.

    Raises:
        InputError: a factor is negative.
    """

    groups: Groups
    single: float = 1.0
    group: float = 1.0

    def __post_init__(self) -> None:
        for name in ("single", "group"):
            if not getattr(self, name) >= 0:
                raise InputError(f"SparseGroupLasso: {name} is {getattr(self, name)}, and must be zero or positive.")

    def __call__(self, v: PyTree, mu: Any) -> Any:
        """The smoothed value."""
        return self.single * L1()(v, mu) + self.group * GroupLasso(self.groups)(v, mu)

    def true(self, v: PyTree) -> Any:
        """The value itself."""
        return self.single * L1().true(v) + self.group * GroupLasso(self.groups).true(v)

    def gap(self, v: PyTree, mu: Any) -> Any:
        """The two gaps by their factors."""
        return self.single * L1().gap(v, mu) + self.group * GroupLasso(self.groups).gap(v, mu)

    def lipschitz(self, mu: Any) -> Any:
        """(single + group) / mu."""
        return (self.single + self.group) / mu

    def proximal(self, v: PyTree, step: Any) -> PyTree:
        """Soft, then block soft thresholding."""
        return GroupLasso(self.groups).proximal(L1().proximal(v, step * self.single), step * self.group)


@dataclass(frozen=True)
class Oscar:
    """single |w|_1 + pair times the sum over pairs j < k of max(|w_j|, |w_k|) (Bondell and Reich 2008), of a vector.

    Sorted by size, the j-th smallest entry is the larger one of j - 1 pairs, so `true` costs O(d log d).

    The SPNBO text smooths max(a, b) = (a + b + |a - b|) / 2 by sqrt((a - b)^2 + mu^2) (without its factor 1/2), which
    takes all d^2 pairs and keeps the corners of a = |w_j|. Here a_j = sqrt(w_j^2 + mu^2), and |t| is smoothed by a
    function of Huber's, h(t) = |t| where |t| >= mu and (t^2 / mu + mu) / 2 below: it differs from |t| for pairs closer
    than mu alone, whose sums of t and t^2 come from running sums over the sorted entries. So the smoothed value, which
    is the sum over all pairs and no approximation of it, costs O(d log d) as well, as does its gradient. It is once
    continuously differentiable, with a Lipschitz gradient; its second derivative jumps where a pair is mu apart.

    a_j <= |w_j| + mu and h(t) <= |t| + mu / 2 give a gap of single mu d + pair (5 / 4) mu d (d - 1) / 2. In float32 the
    running sums of large vectors lose digits: with d = 10^5 entries of size 1 and mu = 10^-3 about four are left.

    Args:
        single, pair: the factors, zero or positive.

    Raises:
        InputError: a factor is negative; in use, v is not a vector.
    """

    single: float = 1.0
    pair: float = 1.0

    def __post_init__(self) -> None:
        for name in ("single", "pair"):
            if not getattr(self, name) >= 0:
                raise InputError(f"Oscar: {name} is {getattr(self, name)}, and must be zero or positive.")

    def __call__(self, v: PyTree, mu: Any) -> Any:
        """The smoothed value."""
        _check_mu(mu)
        a = jnp.sort(jnp.sqrt(_vector("Oscar", v) ** 2 + mu**2))
        d = a.size
        # Pairs (j, k), j < k in the order of size, that lie closer than mu: j from first[k] to k - 1.
        place = jnp.arange(d)
        first = jnp.minimum(jnp.searchsorted(a, jax.lax.stop_gradient(a) - mu, side="right"), place)
        sums = [jnp.concatenate([jnp.zeros(1, a.dtype), jnp.cumsum(a**power)]) for power in (1, 2)]
        near, once, twice = place - first, sums[0][place] - sums[0][first], sums[1][place] - sums[1][first]
        apart = near * a - once  # the sum of t over those pairs
        squares = near * a**2 - 2 * a * once + twice  # and of t^2
        bent = (squares / mu + near * mu) / 2 - apart  # of h(t) - |t|
        return self.single * jnp.sum(a) + self.pair * (jnp.sum(place * a) + jnp.sum(bent) / 2)

    def true(self, v: PyTree) -> Any:
        """The value itself."""
        a = jnp.sort(jnp.abs(_vector("Oscar", v)))
        return self.single * jnp.sum(a) + self.pair * jnp.sum(jnp.arange(a.size) * a)

    def gap(self, v: PyTree, mu: Any) -> Any:
        """Of each entry and of each pair."""
        d = entries(v)
        return mu * (self.single * d + 1.25 * self.pair * d * (d - 1) / 2)

    def lipschitz(self, v: PyTree, mu: Any) -> Any:
        """(single + pair (3 d / 2 - 1)) / mu: of a_j 1 / mu for each entry and pair, of all h d / mu times a half."""
        return (self.single + self.pair * (1.5 * entries(v) - 1)) / mu

    def proximal(self, v: PyTree, step: Any) -> np.ndarray:
        """By pooling adjacent violators, on the host (Zeng and Figueiredo 2014): OSCAR is a sorted l1 norm."""
        from sklearn.isotonic import isotonic_regression

        w = np.asarray(_vector("Oscar", v))
        order = np.argsort(-np.abs(w), kind="stable")
        weights = float(step) * (self.single + self.pair * np.arange(len(w))[::-1])
        sizes = np.maximum(isotonic_regression(np.abs(w)[order] - weights, increasing=False), 0)
        found = np.empty_like(w)
        found[order] = np.sign(w)[order] * sizes
        return found


def _vector(owner: str, v: PyTree) -> Any:
    leaves = jax.tree.leaves(v)
    if len(leaves) != 1 or jnp.ndim(leaves[0]) != 1:
        raise InputError(
            f"{owner} is of one vector, and v has leaves of shapes {listed([jnp.shape(x) for x in leaves])}."
        )
    return leaves[0]


def zero_share(v: PyTree, threshold: float = 0.0) -> float:
    """The share of entries that are at most `threshold` in size.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.smoothing import zero_share
        >>> zero_share({"w": jnp.array([0.0, 0.001, 2.0, 0.0])}), zero_share(jnp.array([0.0, 0.001, 2.0, 0.0]), 0.01)
        (0.5, 0.75)
    """
    small = sum(int(jnp.sum(jnp.abs(x) <= threshold)) for x in jax.tree.leaves(v))
    return small / max(entries(v), 1)


def removed_share(groups: Groups, v: PyTree, threshold: float = 0.0) -> float:
    """The share of groups whose norm is at most `threshold`."""
    norms = np.sqrt(np.asarray(groups.squares(v)))
    return float((norms <= threshold).mean()) if norms.size else math.nan

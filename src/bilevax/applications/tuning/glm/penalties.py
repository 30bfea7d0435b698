"""Penalties of the coefficients, each with a strength for every coefficient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bilevax._checks import InputError, listed

Blocks = list[Int[np.ndarray, " size"]]


@dataclass(frozen=True)
class L2:
    """strength / 2 times the squared coefficient."""


@dataclass(frozen=True)
class L1:
    """strength times the absolute coefficient: the lasso."""


@dataclass(frozen=True)
class ElasticNet:
    """strength times (ratio |w| + (1 - ratio) w^2 / 2), as in scikit-learn.

    Args:
        ratio: scikit-learn's l1_ratio, between 0 and 1, both excluded.

    Raises:
        InputError: the ratio is outside that range.
    """

    ratio: float = 0.5

    def __post_init__(self):
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or not 0 < self.ratio < 1:
            raise InputError(
                f"ElasticNet: ratio is {self.ratio!r}, and must be a number between 0 and 1. For 0 use L2, for 1 L1."
            )


@dataclass(frozen=True)
class GroupLasso:
    """strength times the root of the group's size times the norm of its coefficients (Yuan and Lin 2006)."""


Penalty = L2 | L1 | ElasticNet | GroupLasso
NAMES = ("l2", "l1", "elastic_net", "group_lasso")


def penalty_of(penalty: Any) -> Penalty:
    """The penalty of a name, or the penalty itself.

    Raises:
        InputError: it is neither a penalty nor one of the names.
    """
    match penalty:
        case L2() | L1() | ElasticNet() | GroupLasso():
            return penalty
        case "l2":
            return L2()
        case "l1":
            return L1()
        case "elastic_net":
            return ElasticNet()
        case "group_lasso":
            return GroupLasso()
    raise InputError(f"penalty is {penalty!r}. Pass one of {listed(NAMES)}, or a penalty such as ElasticNet(0.5).")


@dataclass(frozen=True)
class Term:
    """A penalty of flat coefficients (q,): norms of blocks, and squares.

    Attributes:
        norm: the part of the norms; 0 for L2.
        square: the part of the squares; 0 for the lasso.
        blocks: the coefficients of each block of the group lasso; None where each coefficient is a block.
    """

    norm: float
    square: float
    blocks: Blocks | None = None

    def value(self, w: Float[np.ndarray, " q"], strength: Float[np.ndarray, " q"]) -> float:
        """The penalty."""
        total = self.square * (strength * w * w).sum() / 2
        if self.norm and self.blocks is None:
            total += self.norm * (strength * np.abs(w)).sum()
        elif self.blocks is not None:
            total += sum(strength[b[0]] * np.sqrt(len(b)) * np.linalg.norm(w[b]) for b in self.blocks)
        return float(total)

    def slope(self, w: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
        """The derivative by the coefficients for a strength of one; zero for the norms of zero coefficients."""
        found = self.square * w
        if self.norm and self.blocks is None:
            found = found + self.norm * np.sign(w)
        elif self.blocks is not None:
            found = found.copy()
            for b in self.blocks:
                size = np.linalg.norm(w[b])
                if size > 0:
                    found[b] += np.sqrt(len(b)) * w[b] / size
        return found


def term_of(penalty: Penalty, blocks: Blocks) -> Term:
    """The term of a penalty; `blocks` are those of the group lasso."""
    match penalty:
        case L2():
            return Term(0.0, 1.0)
        case L1():
            return Term(1.0, 0.0)
        case ElasticNet(ratio):
            return Term(ratio, 1 - ratio)
        case GroupLasso():
            return Term(1.0, 0.0, blocks)

"""Quadratic problems with norms of blocks: sweeps over the blocks, and Newton steps on those that are not zero.

    min over x of  x' H x / 2 - q' x + sum over blocks b of  weight_b |x_b|

The sweeps are block coordinate descent (Tseng 2001), which settles which blocks are zero; between them the smooth
problem of the other blocks is solved by Newton's method, which makes the convergence quadratic.
"""

import numpy as np
from jaxtyping import Float, Int

from bilevax.applications.tuning.glm.absolute import absolute_minimum
from bilevax.applications.tuning.glm.curvature import factorised, solved
from bilevax.applications.tuning.glm.penalties import Blocks

MOST_SWEEPS = 500


def quadratic_minimum(
    hessian: Float[np.ndarray, "q q"],
    target: Float[np.ndarray, " q"],
    blocks: Blocks,
    weight: Float[np.ndarray, " blocks"],
    start: Float[np.ndarray, " q"],
    tolerance: float,
) -> Float[np.ndarray, " q"]:
    """The minimum, to a tolerance of the optimality conditions.

    Args:
        hessian: positive semidefinite.
        target: q.
        blocks: the entries of each block, which cover all entries.
        weight: of each block's norm; 0 for entries without a norm.
        start: where to start from.
        tolerance: of the largest violation of the optimality conditions.
    """
    if all(len(b) == 1 for b in blocks):
        order = np.array([b[0] for b in blocks], int)
        by_entry = np.empty(len(order))
        by_entry[order] = weight
        return absolute_minimum(hessian, target, by_entry, start, tolerance)
    x = start.copy()
    r = target - hessian @ x  # minus the gradient of the smooth part
    sizes = [_largest(hessian[np.ix_(b, b)]) for b in blocks]
    for _ in range(MOST_SWEEPS):
        for b, w, size in zip(blocks, weight, sizes, strict=True):
            _block_step(hessian, r, x, b, w, size)
        _newton_step(hessian, target, blocks, weight, x)
        r = target - hessian @ x
        if violation(r, x, blocks, weight) <= tolerance:
            break
    return x


def _largest(matrix: Float[np.ndarray, "m m"]) -> float:
    return max(float(matrix[0, 0] if len(matrix) == 1 else np.linalg.eigvalsh(matrix)[-1]), 1e-300)


def _block_step(hessian: np.ndarray, r: np.ndarray, x: np.ndarray, b: np.ndarray, w: float, size: float) -> None:
    z = x[b] + r[b] / size
    norm = float(np.sqrt(z @ z))
    new = z * max(0.0, 1 - w / (size * norm)) if norm > 0 else z
    change = new - x[b]
    if change.any():
        x[b] = new
        r -= change @ hessian[b]


def violation(r: np.ndarray, x: np.ndarray, blocks: Blocks, weight: np.ndarray) -> float:
    """The largest violation of the optimality conditions; r is minus the gradient of the smooth part."""
    return float(violations(r, x, blocks, weight).max(initial=0.0))


def violations(r: np.ndarray, x: np.ndarray, blocks: Blocks, weight: np.ndarray) -> Float[np.ndarray, " blocks"]:
    """The violation of the optimality conditions of each block; entries of no block do not count."""
    at = np.concatenate(blocks)
    r, x, of = r[at], x[at], _numbers(blocks, len(x))[at]
    size = _norms(x, of, len(blocks))
    shrink = np.where(size > 0, weight / np.where(size > 0, size, 1.0), 0.0)
    apart = _norms(r - shrink[of] * x, of, len(blocks))
    return np.where(size > 0, apart, np.maximum(apart - weight, 0.0))


def _numbers(blocks: Blocks, q: int) -> Int[np.ndarray, " q"]:
    """The number of the block of each entry; 0 for entries of no block."""
    of = np.zeros(q, int)
    of[np.concatenate(blocks)] = np.repeat(np.arange(len(blocks)), [len(b) for b in blocks])
    return of


def _norms(x: np.ndarray, of: Int[np.ndarray, " q"], count: int) -> Float[np.ndarray, " blocks"]:
    """The norm of each block."""
    return np.sqrt(np.bincount(of, x * x, count))


def norm_curvature(x: np.ndarray, blocks: Blocks, weight: np.ndarray) -> Float[np.ndarray, "q q"]:
    """The Hessian of the norms at blocks that are not zero; absolute values have none."""
    of = _numbers(blocks, len(x))
    size = _norms(x, of, len(blocks))
    bent = (size > 0) & (np.array([len(b) for b in blocks]) > 1)
    bend, unit = np.where(bent, weight / np.where(size > 0, size, 1.0), 0.0)[of], x / np.where(size > 0, size, 1.0)[of]
    found = np.where(of[:, None] == of, -bend * np.outer(unit, unit), 0.0)
    found[np.diag_indices_from(found)] += bend
    return found


def _value(hessian: np.ndarray, target: np.ndarray, blocks: Blocks, weight: np.ndarray, x: np.ndarray) -> float:
    norms = weight @ _norms(x, _numbers(blocks, len(x)), len(blocks))
    return float(x @ (hessian @ x) / 2 - target @ x + norms)


def _newton_step(hessian: np.ndarray, target: np.ndarray, blocks: Blocks, weight: np.ndarray, x: np.ndarray) -> None:
    """A step of Newton's method on the blocks that are not zero, in place, as far as it lowers the value.

    Entries whose sign the step would change become zero; where that does not lower the value, the step ends at the
    first of them.
    """
    of = _numbers(blocks, len(x))
    size = _norms(x, of, len(blocks))
    free = ((weight == 0) | (size > 0))[of]
    slope = np.where(size > 0, weight / np.where(size > 0, size, 1.0), 0.0)[of] * x
    signed = ((weight > 0) & (np.array([len(b) for b in blocks]) == 1))[of] & free
    at = np.flatnonzero(free)
    if not len(at):
        return
    matrix = hessian[np.ix_(at, at)] + norm_curvature(x, blocks, weight)[np.ix_(at, at)]
    gradient = (hessian @ x - target + slope)[at]
    step = solved(factorised(matrix), -gradient)
    now, watched = x[at], signed[at]
    crossing = watched & (np.sign(now + step) != np.sign(now))
    ratios = np.where(crossing, -now / np.where(step == 0, 1.0, step), np.inf)
    first = float(ratios.min())
    before = _value(hessian, target, blocks, weight, x)
    sizes = [1.0, first, first / 2] if crossing.any() else 0.5 ** np.arange(20)
    for t in sizes:
        trial = x.copy()
        trial[at] = now + t * step
        trial[at[ratios <= t * (1 + 1e-12)]] = 0.0
        if _value(hessian, target, blocks, weight, trial) <= before + 1e-14 * abs(before):
            x[:] = trial
            return

"""Which solvers take a problem, why others do not, and one of them with settings from the curvature of g."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from bilevax import derivatives, schedules, solvers
from bilevax._arrays import check_variable
from bilevax._checks import InputError, described, require_count
from bilevax.linear_solve import CG
from bilevax.loop.blocks import Blocks
from bilevax.loop.sources import draws, resident
from bilevax.problem import Batch, PartAndWhole, PerMove, Problem, data_of_loss, identity
from bilevax.schedules import Geometric
from bilevax.solvers import base

UPPER_RATE = 0.1  # of Adam for u; it falls to zero over the steps
GROWTH = 100.0  # of the curvature of g that the rates of v bear
MOST_MOVES, MOST_PRODUCTS = 100, 50
DENSE = 50  # up to this number of entries of v, the Hessian is formed

# What these methods assume of the curvature of g, which their `check` does not measure.
STRONGLY_CONVEX = ("SOBA", "MASOBA", "SABA", "SRBA", "AmIGO", "StocBiO", "F2SA")
WHOLE_DATA = ("BOME", "SMNBP")
NO_SOLUTIONS = {
    "Alternating": "ignores that v* depends on u: a baseline",
    "LookAhead": "one step of descent stands for v*(u): its limit is in general not a solution",
    "SAMA": "the lower optimizer's step stands for the inverse Hessian: its limit is in general not a solution",
}


class Row(NamedTuple):
    """One solver: whether it takes the problem, and why not, or what to know."""

    solver: str
    fits: bool
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """What `recommend` returns. `str` of it is a table.

    Attributes:
        solver: ready to use for this problem.
        rows: a Row for each solver: those that fit first.
        smallest_curvature, largest_curvature: the extreme eigenvalues of grad2_vv g at (u, v); NaN if not found.
        bounds: what u needs as bounds, in a sentence; empty if it needs none.
    """

    solver: base.Solver
    rows: tuple[Row, ...]
    smallest_curvature: float
    largest_curvature: float
    bounds: str

    def __str__(self) -> str:
        taken = type(self.solver).__name__
        head = f"take {taken}; curvature of g from {self.smallest_curvature:.3g} to {self.largest_curvature:.3g}"
        lines = [f"{'yes' if row.fits else 'no':<4}{row.solver:<20}{row.reason}".rstrip() for row in self.rows]
        return "\n".join([head, *([self.bounds] if self.bounds else []), *lines])


def recommend(problem: Problem, u: PyTree, v: PyTree, batch: Any = None, *, steps: int = 1000) -> Recommendation:
    """Return which solvers take this problem, why the others do not, and one that is ready to use.

    Every solver's own `check` decides, and its error is the reason. In addition the extreme eigenvalues of grad2_vv g
    are measured at (u, v): a method that needs a strongly convex g does not fit if the smallest is not positive.
    The learning rates and the numbers of moves of the recommended solver follow from these eigenvalues; u moves by Adam
    with a rate that falls from 0.1 to zero over `steps`. Rescale u if its entries are far from the size of one. If the
    curvature of g grows more than a hundredfold as far as u may move in these steps, as with strengths exp(u), `bounds`
    says how far from the start u may go: no rate of v would be right for all of them.

    Args:
        problem, u, v: as for `solve`.
        batch: a Batch or a source, as `batches` of `solve`; None if the losses take no data.
        steps: for which the solver is going to run.

    Raises:
        InputError: what no solver could treat; steps is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Problem, recommend, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> found = recommend(problem, jnp.zeros(2), jnp.zeros(2), steps=300)
        >>> print(type(found.solver).__name__, [row.solver for row in found.rows if not row.fits][:2])
        Implicit ['SABA', 'SRBA']
        >>> result = solve(found.solver, problem, jnp.zeros(2), jnp.zeros(2), steps=300, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3))
        [0.5 0.5]
    """
    if not isinstance(problem, Problem):
        raise InputError(f"recommend: problem is {described(problem)}, and must be a bilevax.Problem.")
    require_count("recommend", "steps", steps)
    check_variable("u", u)
    check_variable("v", v)
    u, v = jax.tree.map(jnp.asarray, (u, v))
    source, first, whole = resident("batch", batch, jax.random.key(0))
    problem.check(u, v, whole)
    drawn = draws(source)
    low, high = _curvatures(problem, u, v, whole)
    convex = low > 1e-6 * high
    solver = _chosen(problem, source, first, low, high, steps, _slopes(problem, u, v, (first, whole)))
    rows = [_row(problem, u, v, whole, drawn, convex, low, each) for each in _candidates(source)]
    base.check_moves(solver, first)
    solver.check(problem, u, v, whole)
    bounds = _bounds(problem, u, v, whole, UPPER_RATE * steps / 2)
    return Recommendation(solver, tuple(sorted(rows, key=lambda row: not row.fits)), low, high, bounds)


def _curvatures(problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> tuple[float, float]:
    """The extreme eigenvalues of grad2_vv g; the larger in size of the two is at least tiny."""
    from bilevax.diagnostics import system  # it imports parts of SciPy, and `import bilevax` does not

    free = replace(problem, project_lower=identity)
    data, key, flat = base.lower_data(batch, 0), jax.random.key(0), ravel_pytree(v)[0]
    if flat.size <= DENSE:
        found = system.extremes(np.asarray(system.hessian(free, u, v, data, key, 1e-3)))
    else:
        found = system.extreme_eigenvalues(free, u, v, data, key, flat.size, flat.dtype, 1e-3)
    return found


def _bounds(problem: Problem, u: PyTree, v: PyTree, batch: Batch, reach: float) -> str:
    """The bounds that u needs if the curvature of g grows too much as all entries of u move by `reach`; else ""."""
    from bilevax.diagnostics import system

    free, data = replace(problem, project_lower=identity), base.lower_data(batch, 0)
    flat, key = ravel_pytree(v)[0], jax.random.key(0)
    row = jax.random.normal(key, (1, flat.size), flat.dtype)

    def curvature(far: float) -> float:
        there = problem.project_upper(jax.tree.map(lambda x: (x + far).astype(x.dtype), u))
        size = float(jnp.abs(system.products(free, there, v, data, key, row, 1e-3)[1]).max())
        return size if np.isfinite(size) else np.inf

    most = GROWTH * curvature(0.0)
    if most == 0 or max(curvature(reach), curvature(-reach)) <= most:
        return ""
    radius = reach / 2
    while radius > reach / 256 and max(curvature(radius), curvature(-radius)) > most:
        radius /= 2
    return (
        f"the curvature of g grows more than {GROWTH:g}-fold where u moves by {reach:.3g}, as far as it may in these "
        f"steps: unless f keeps u within about {radius:.2g} of the start, the solve may end at values that are not "
        f"finite. Pass project_upper=lambda u: jnp.clip(u, start - {radius:.2g}, start + {radius:.2g}), or narrower "
        "bounds than now"
    )


def _row(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch,
    drawn: bool,
    convex: bool,
    low: float,
    solver: Any,
) -> Row:
    name = type(solver).__name__
    try:
        base.check_moves(solver, batch)
        solver.check(problem, u, v, batch)
    except InputError as error:
        return Row(name, False, str(error))
    if name in STRONGLY_CONVEX and not convex:
        return Row(name, False, f"{name} assumes a strongly convex g, whose smallest curvature here is {low:.3g}.")
    if name in WHOLE_DATA and drawn:
        return Row(name, False, f"{name} needs whole data, and this source draws minibatches.")
    return Row(name, name not in NO_SOLUTIONS, NO_SOLUTIONS.get(name, ""))


class Slopes(NamedTuple):
    """The squared norms of grad_v g and grad_v f at the start, the largest of a few batches."""

    lower: float
    upper: float


def _slopes(problem: Problem, u: PyTree, v: PyTree, batches: tuple[Batch, ...]) -> Slopes:
    key = jax.random.key(0)

    def of(batch: Batch) -> tuple[Any, Any]:
        g = derivatives.lower_gradient(problem, u, v, data_of_loss(base.lower_data(batch, 0)), key)[1]
        f = derivatives.upper(problem, u, v, data_of_loss(batch.upper), key).grad_v
        return optax.tree.norm(g, squared=True), optax.tree.norm(f, squared=True)

    found = np.array([of(batch) for batch in batches], float)
    return Slopes(*(float(x) for x in np.nan_to_num(found).max(0)))


def _chosen(
    problem: Problem, source: Any, first: Batch, low: float, high: float, steps: int, slopes: Slopes
) -> base.Solver:
    """A solver with settings for a problem with these curvatures of g."""
    stage = max(steps // 40, 10)
    if problem.lower_constraints:
        lower = optax.sgd(0.2 / max(high, 1.0) if np.isfinite(high) else 1e-2)
        return solvers.BLOCC(optax.adam(optax.cosine_decay_schedule(UPPER_RATE, steps)), lower)
    if problem.constraints:
        return solvers.Penalty(optax.adam(UPPER_RATE), optax.adam(1e-2), stage_steps=stage)
    if problem.regularizer is not None:
        falling, rising = Geometric(1.0, 0.75), Geometric(1.0, 1.1)
        rate = optax.adam(UPPER_RATE, b2=0.99)
        return solvers.SPNBO(rate, mu=Geometric(0.3, 0.75), beta=rising, step_scale=falling, stage_steps=stage)
    upper = optax.adam(optax.cosine_decay_schedule(UPPER_RATE, steps))
    size = max(abs(low), abs(high))
    size = size if np.isfinite(size) and size > 0 else 1.0
    condition = size / max(low, 1e-4 * size) if np.isfinite(low) else 1e4
    damping = max(-2 * low, 0.0) if np.isfinite(low) else 1e-2 * size
    convex, own_start = low > 1e-6 * size, problem.lower_start is not None

    def descent(
        rate: Any, moves: int, *, momentum: float | None = None, noisy: bool = False, linear: bool = False
    ) -> Any:
        # Noise is to lower the rate; a lag behind u is not.
        known = max(slopes.upper, 0.1) if linear else max(slopes.lower, (0.1 if noisy else 1.0) * size**2)
        return damped_descent(rate, known * (10 if noisy else 10 + moves * steps / 25), momentum)

    solve = CG(MOST_PRODUCTS, damping=damping)
    random = draws(source)
    if isinstance(first.lower, PerMove):
        moves = len(jax.tree.leaves(first.lower.data)[0])
        return solvers.Implicit(upper, descent(0.5 / size, moves, noisy=True), moves, solve)
    if problem.project_lower is not identity:
        moves = int(np.clip(np.ceil(condition), 10, MOST_MOVES))
        return solvers.Implicit(upper, descent(1 / size, moves, noisy=random), moves, solve)
    if isinstance(first.lower, PartAndWhole):
        return solvers.SRBA(upper, descent(0.3 / size, 1), descent(0.3 / size, 1, linear=True))
    if isinstance(source, Blocks) and convex and not own_start:
        return solvers.SABA(source.blocks, upper, descent(0.3 / size, 1), descent(0.3 / size, 1, linear=True))
    if random and convex and not own_start:
        lower, linear = (descent(0.5 / size, 10, noisy=True, linear=x) for x in (False, True))
        return solvers.AmIGO(upper, lower, linear, 10, 10)
    moves = int(np.clip(np.ceil(2 * condition**0.5), 10, MOST_MOVES))
    momentum = min((condition**0.5 - 1) / (condition**0.5 + 1), 0.9)
    lower = descent(0.5 / size, moves, momentum=momentum, noisy=random)
    return solvers.Implicit(upper, lower, moves, solve)


def damped_descent(rate: Any, room: float, momentum: float | None = None) -> optax.GradientTransformation:
    """Gradient descent whose rate falls as 1 / sqrt(1 + S / room), S being the sum of all squared gradient norms.

    It stays stable where the curvature grows as u moves, such as with strengths exp(u): larger gradients shorten the
    steps (AdaGrad-Norm; Ward, Wu and Bottou, "AdaGrad stepsizes", ICML 2019).

    Args:
        rate: number, or schedule of the number of moves.
        room: S at which the rate has fallen by the square root of two; positive.
        momentum: that of Nesterov; None for none.
    """

    def init(params: PyTree) -> tuple[Any, Any]:
        return jnp.zeros_like(optax.tree.norm(params)), jnp.zeros((), jnp.int32)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, tuple[Any, Any]]:
        total, count = state
        total += optax.tree.norm(updates, squared=True)
        step = schedules.at(rate, count) / jnp.sqrt(1 + total / room)
        return jax.tree.map(lambda x: (-step * x).astype(x.dtype), updates), (total, count + 1)

    plain = optax.GradientTransformation(init, update)
    return plain if momentum is None else optax.chain(plain, optax.trace(momentum, nesterov=True))


def _candidates(source: Any) -> tuple[Any, ...]:
    """Every solver with its default settings, in the order of the table."""
    rate = optax.sgd(1e-2)
    return (
        solvers.Implicit(),
        solvers.Penalty(),
        solvers.SOBA(),
        solvers.MASOBA(),
        solvers.SABA(getattr(source, "blocks", (1, 1))),
        solvers.SRBA(),
        solvers.AmIGO(),
        solvers.StocBiO(),
        solvers.F2SA(),
        solvers.VPBGD(),
        solvers.BVFIM(),
        solvers.BOME(),
        solvers.BLOCC(),
        solvers.BiCGAFFA(),
        solvers.MEHA(),
        solvers.ReverseMode(),
        solvers.ForwardMode(),
        solvers.PZOBO(),
        solvers.SPNBO(),
        solvers.SMNBP(),
        solvers.SparseHO(rate, _unchanged),
        solvers.LearningToReweight(),
        solvers.LookAhead(),
        solvers.SAMA(),
        solvers.Alternating(),
    )


def _unchanged(u: PyTree, v: PyTree, step: Any) -> PyTree:
    return v

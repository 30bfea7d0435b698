"""bilevax's rows, and the floor of Penalty's arithmetic."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

import bilevax as bx
from benchmarks import lower_move
from benchmarks.peers import jax_problems, recurrences
from benchmarks.peers.recurrences import Itself, PlainCG, PlainSeries, by_differences
from benchmarks.peers.works import CLASSES, HIDDEN, SIDE, Arrays
from bilevax import derivatives, linear_solve
from bilevax.loop.stretch import (
    Carry,
    initial_state,
    stretch,  # the call that `solve` makes, without its checks of the start
)
from bilevax.solvers import Solver

CAPACITY = {"synthetic": 1000}  # iterations of one compiled call at most, as in `solve`; others have few, slow ones
PRODUCT = 1024


def lower_optimizer(settings: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer of v that the settings ask for."""
    make = optax.adam if settings.get("lower") == "adam" else optax.sgd
    return make(settings["lower_rate"])


def solver(
    method: str,
    settings: dict[str, Any],
    moves: int,
    upper: optax.GradientTransformation | None = None,
    lower: optax.GradientTransformation | None = None,
) -> Any:
    """The solver of a method; `upper` and `lower` replace the optimizers of the settings."""
    upper, lower = upper or optax.adam(settings["upper_rate"]), lower or lower_optimizer(settings)
    plain = settings.get("variant") == "plain"
    match method:
        case "penalty":
            weights = {name: settings[name] for name in ("gamma", "lam", "nu")}
            return bx.Penalty(upper, lower, moves, step_scale=1.0, stage_steps=1, **weights)
        case "unrolled":
            return bx.ReverseMode(upper, lower, moves)
        case "cg":
            steps, damping = settings["solve_steps"], settings["damping"]
            solve = PlainCG(steps, damping=damping) if plain else linear_solve.CG(steps, damping=damping)
            return bx.Implicit(upper, lower, moves, solve)
        case "plain-cg" | "late-cg":
            return bx.Implicit(upper, lower, moves, PlainCG(settings["solve_steps"], method == "late-cg"))
        case "neumann":
            series = PlainSeries if plain else linear_solve.Neumann
            return bx.Implicit(upper, lower, moves, series(settings["solve_steps"], settings["scale"]))
        case "one-step":
            curvature = by_differences if settings.get("variant") == "differences" else derivatives.exact
            return bx.Implicit(upper, lower, moves, Itself(), curvature)
        case "sama" if settings.get("variant") == "differences":
            return bx.Implicit(upper, lower, moves, Itself(), functools.partial(by_differences, length=1.0))
        case "sama":
            return bx.SAMA(upper, lower, moves)
        case "value-penalty":
            value_penalty = recurrences.Together if settings.get("variant") == "together" else bx.VPBGD
            return value_penalty(upper, lower, lower_steps=moves, gamma=settings["gamma"])
        case "moreau":  # it has no lower moves
            moreau = recurrences.LowerFirst if settings.get("variant") == "lower first" else bx.MEHA
            rate, weight = settings["lower_rate"], recurrences.Rising(settings["weight"])
            return moreau(upper, rate=rate, value_rate=rate, radius=settings["radius"], weight=weight)
    raise ValueError(f"bilevax has no method {method!r} here")


def recording() -> optax.GradientTransformation:
    """An optimizer that does not move, and whose state is the last gradient."""

    def update(updates: Any, state: Any, params: PyTree = None) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, updates), updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


class Ours:
    """A solver in the loop that `solve` compiles."""

    def __init__(self, work: str, arrays: Arrays, method: str, settings: dict[str, Any]):
        self.versions = {"jax": jax.__version__, "bilevax": bx.__version__}
        self.setup, self.method, self.settings = jax_problems.setup(work, arrays), method, settings
        self.capacity, self.key = CAPACITY.get(work, 64), jax.random.key(0)

    def start(self, moves: int) -> None:
        """A solver with this many lower moves, at the start."""
        self.begin(solver(self.method, self.settings, moves))
        self.moves = moves

    def begin(self, solver: Solver) -> None:
        """This solver, at the start."""
        u, v = (jax.tree.map(lambda x: jnp.array(x, copy=True), x) for x in (self.setup.u, self.setup.v))
        state = initial_state(solver, self.setup.problem, u, v, self.setup.data)
        self.solver, self.carry, self.done = solver, Carry(state, jnp.asarray(True)), 0

    def advance(self, iterations: int) -> None:
        """Stretches, as in `solve`; the records of the iterations are read back, as there."""
        problem, source = self.setup.problem, self.setup.source
        while iterations > 0:
            count = min(self.capacity, iterations)
            self.carry, infos, taken = stretch(
                self.solver, problem, self.capacity, self.carry, source, self.key, self.done, count
            )
            infos, taken = jax.device_get((infos, taken))
            if taken < count:
                raise FloatingPointError(f"not finite after {self.done + int(taken)} upper iterations")
            iterations, self.done = iterations - count, self.done + count

    def upper(self) -> list[np.ndarray]:
        """U."""
        return [np.asarray(x) for x in jax.tree.leaves(self.carry.state.u)]

    def direction(self) -> list[np.ndarray]:
        """The first one, by an optimizer that keeps it."""
        self.begin(solver(self.method, self.settings, self.moves, recording()))
        self.advance(1)
        return [np.asarray(x) for x in jax.tree.leaves(self.carry.state.upper_opt)]


def _operations(work: str, arrays: Arrays) -> float:
    """Operations of the matrix products of one evaluation of Penalty's directions; see `lower_move.operations`."""
    samples = len(arrays["x"])
    if work == "mnist":
        return lower_move.operations() * samples / lower_move.BATCH
    if work == "mlp":
        layers = {(SIDE * SIDE, HIDDEN): 0, (HIDDEN, CLASSES): 1}
        each = [(2 * samples * into * out, has) for (into, out), has in layers.items()]
        return sum(size * (2 * (3 if has else 2) + (6 if has else 2)) for size, has in each)
    raise ValueError(f"no floor is known of {work!r}")


class Floor:
    """The time of Penalty's products alone: those of the work's own shapes, or as many operations in large products."""

    def __init__(self, work: str, arrays: Arrays):
        self.versions = {"jax": jax.__version__}
        self.work, self.arrays, self.moves = work, arrays, 1
        self.setup = jax_problems.setup(work, arrays)
        if work in ("mlp", "mnist"):
            self.share = _operations(work, arrays) / (2 * PRODUCT**3)
            self.square = jnp.ones((PRODUCT, PRODUCT))

    def start(self, moves: int) -> None:
        """This many moves, and one more evaluation for u."""
        self.moves = moves

    def advance(self, iterations: int) -> None:
        """The products of this many upper iterations."""
        for _ in range(iterations):
            if self.work == "poisoning":
                samples = self.setup.source.source
                jax.block_until_ready(_skinny(samples.lower[0], samples.upper[0], self.setup.v, self.moves + 1))
            elif self.work == "fewshot":
                jax.block_until_ready(_representation(self.setup.shared, self.setup.u, self.setup.data))
            else:
                jax.block_until_ready(_squares(self.square, max(1, round(self.share * (self.moves + 1)))))

    def timed(self, iterations: int) -> dict[str, float]:
        """Wall and processor seconds; large products are counted whole and the time is scaled to the operations."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.advance(iterations)
        times = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if self.work in ("mlp", "mnist"):
            exact = self.share * (self.moves + 1)
            times = {name: value * exact / max(1, round(exact)) for name, value in times.items()}
        return times

    def upper(self) -> list[np.ndarray]:
        """There is no u."""
        return []

    def direction(self) -> list[np.ndarray]:
        """Nor a direction."""
        return []


@functools.partial(jax.jit, static_argnames="count")
def _squares(a: Any, count: int) -> Any:
    return jax.lax.fori_loop(0, count, lambda _, x: (a @ x) * (1 / PRODUCT), a)


@functools.partial(jax.jit, static_argnames="count")
def _skinny(x: Any, x_val: Any, v: PyTree, count: int) -> Any:
    """As in benchmarks/poisoning.py: two products of the validation samples and four of the others an evaluation."""
    residual = jnp.ones((v.shape[0], len(x)))

    def evaluation(_: Any, v: PyTree) -> Any:
        for samples in (x_val, x, x):
            forward = jax.lax.dot_general(v, samples, (((1,), (1,)), ((), ())))
            v = v + 1e-12 * ((residual + 1e-12 * forward) @ samples)
        return v

    return jax.lax.fori_loop(0, count, evaluation, v)


@functools.partial(jax.jit, static_argnames="shared")
def _representation(shared: Any, u: PyTree, data: Any) -> Any:
    """As in benchmarks/fewshot.py: the gradient of one pass over all samples; what the heads add is not counted."""
    return jax.grad(lambda u: sum(jnp.sum(jnp.tanh(x)) for x in shared(u, data)))(u)


def warm_up(threads: int) -> None:
    """Start XLA's threads."""
    jax.config.update("jax_platforms", "cpu")
    jax.block_until_ready(jnp.ones(8) + 1)


def make(work: str, arrays: Arrays, method: str, settings: dict[str, Any]) -> Any:
    """A row of bilevax, or the floor."""
    return Floor(work, arrays) if method == "floor" else Ours(work, arrays, method, settings)

"""Bilevel problems of the literature, from their given starts: `python -m experiments bolib`.

One setting for all problems. Solved means that the upper loss is within 1e-3 of the best value, relative to the larger
of 1 and its size, at a v that meets the lower constraints and minimises the lower loss, both to the same accuracy. The
minimum is computed by SLSQP of scipy at the u that was found.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from tqdm import tqdm

from bilevax import BLOCC, BiCGAFFA, Penalty, Problem, Result, SolveError, solve
from bilevax.schedules import Geometric, Power
from experiments.bolib.convex import CONVEX
from experiments.bolib.example import Example
from experiments.bolib.kkt import single_level
from experiments.bolib.linear import LINEAR
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings, pick

TITLE = EXPERIMENTS["bolib"].title
QUICK = ("Bard1988Ex1", "FalkLiu1995", "MuuQuy2003Ex1", "Outrata1990Ex2a", "Bard1984a", "LiuHart1994")
CLASSES = {"convex below": CONVEX, "linear below": LINEAR}
WITHIN = 1e-3
STEPS, SINGLE_STEPS, PENALTY_STEPS, STAGE = 1000, 40_000, 20_000, 200
SEARCH = optax.chain(optax.scale_by_lbfgs(), optax.scale(-1.0), optax.scale_by_backtracking_linesearch(20))
FOOTNOTES = (
    "Solved: the upper loss within 1e-3 of the best, relative to the larger of 1 and its size, from the given start. "
    "Best values come from an independent search (tests/experiments/test_bolib.py). If a collection "
    "prints another value, the problem records it as `printed`.",
    "One setting for all problems, in float64. Where the lower set is empty for some u, u is projected onto the rest, "
    "which the sources leave implicit.",
    "Penalty solves the conditions of Karush, Kuhn and Tucker for v as constraints, with the multipliers in u.",
    "Two settings of Penalty and three of BLOCC were tried on some of these problems, one of BiCGAFFA. All three "
    "descend from one start, and many of these problems have local solutions.",
    "A value of 1 is solved, 0 is not. BLOCC's v is its point without f or, if several v minimise g, the one with it.",
)


class Method(NamedTuple):
    """A solver, the number of its steps, how it states a problem, and where in a result u and v may be."""

    solver: Any
    steps: int
    stated: Callable[[Example], tuple[Problem, tuple[Any, Any]]]
    answers: Callable[[Result], list[tuple[Any, Any]]]


def methods() -> dict[str, Method]:
    """The methods by label."""
    upper = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
    single = optax.adam(optax.cosine_decay_schedule(1e-2, SINGLE_STEPS))
    gamma, falling = Geometric(1.0, 1.2, high=1e4), Geometric(1.0, 1 / 1.08)
    return {
        "Penalty": Method(
            Penalty(optax.adam(0.1), optax.adam(1e-2), 1, gamma, step_scale=falling, stage_steps=STAGE),
            PENALTY_STEPS,
            single_level,
            lambda result: [(result.u["u"], result.u["v"])],
        ),
        "BLOCC": Method(
            BLOCC(upper, SEARCH, 5, 5, 1000.0, 10.0),
            STEPS,
            lambda example: (example.problem, example.start),
            lambda result: [(result.u, x.v) for x in result.state.memory],
        ),
        "BiCGAFFA": Method(
            BiCGAFFA(single, 1e-2, 1e-2, 1e-2, weight=Power(1.0, 0.49), bound=1e4),
            SINGLE_STEPS,
            lambda example: (example.problem, example.start),
            lambda result: [(result.u, result.v)],
        ),
    }


def run(settings: Settings) -> None:
    """Solve every problem by every method, print the shares, and write `results.json`."""
    jax.config.update("jax_enable_x64", True)
    labels, began = pick(list(methods()), settings.solver), time.perf_counter()
    tables: dict[str, list[Row]] = {"share solved": [], "solved": [], "upper loss": []}
    for kind, examples in CLASSES.items():
        chosen = {k: x for k, x in examples.items() if not settings.quick or k in QUICK}
        good: dict[str, list[float]] = {n: [] for n in labels}
        for name, example in tqdm(chosen.items(), desc=kind):
            cell = kept_cell(
                settings.out / "cells" / f"{name}.json",
                labels,
                lambda wanted, x=example: {n: solved(x, n) for n in wanted},
            )
            for label in labels:
                value, found = cell[label]["upper_loss"], float(cell[label]["solved"])
                good[label].append(found)
                tables["solved"].append(Row((kind, name, label), None, np.array([found]), None))
                where = (kind, f"{name}, best {example.best:.5g}", label)
                if np.isfinite(value):
                    tables["upper loss"].append(Row(where, None, np.array([value]), None))
        shares = {n: np.array(x) for n, x in good.items()}
        shares |= {"one of them": np.max(list(shares.values()), 0)}
        tables["share solved"] += [Row((kind, n), None, x, None) for n, x in shares.items()]
    show(f"{TITLE}: share solved", ("lower level", "method"), tables["share solved"], FOOTNOTES)
    solvers = {n: str(x.solver) for n, x in methods().items() if n in labels}
    write_results("bolib", settings, [0], time.perf_counter() - began, solvers, {}, tables, FOOTNOTES)


def solved(example: Example, label: str) -> dict[str, Any]:
    """The upper value that a method finds from the given start, and whether it is the best one."""
    method = methods()[label]
    problem, start = method.stated(example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of multipliers that grow: such a problem counts as not solved
        try:
            steps, key = method.steps, jax.random.key(0)
            found = solve(method.solver, problem, *start, steps=steps, every=steps, key=key)
        except SolveError as error:
            found = error.result
    points = [(np.asarray(u), np.asarray(v)) for u, v in method.answers(found)]
    values = [float(example.upper(u, v)) for u, v in points]
    distances = [abs(f - example.best) if near(example, *x) else np.inf for f, x in zip(values, points, strict=True)]
    closest = int(np.argmin(distances))
    return {
        "upper_loss": values[closest],
        "solved": bool(distances[closest] <= WITHIN * max(1.0, abs(example.best))),
        "u": points[closest][0].tolist(),
        "v": points[closest][1].tolist(),
    }


def near(example: Example, u: np.ndarray, v: np.ndarray) -> bool:
    """Whether v meets the lower constraints and minimises the lower loss, both to 1e-3."""
    held = []
    if example.below is not None:
        if np.max(example.values(u, v)) > WITHIN:
            return False
        values, slopes = jax.jit(example.values), jax.jit(jax.jacobian(example.values, 1))
        held = [
            {"type": "ineq", "fun": lambda v: -np.asarray(values(u, v)), "jac": lambda v: -np.asarray(slopes(u, v))}
        ]
    loss = jax.jit(lambda v: jnp.asarray(example.lower(u, v)))
    slope = jax.jit(jax.grad(lambda v: example.lower(u, v)))
    least = scipy.optimize.minimize(
        lambda v: float(loss(v)), v, jac=lambda v: np.asarray(slope(v)), method="SLSQP", constraints=held
    )
    if held and np.max(example.values(u, least.x)) > 1e-6:
        return True  # no lower value to compare with
    return float(loss(v)) - least.fun <= WITHIN * max(1.0, abs(least.fun))

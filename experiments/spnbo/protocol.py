"""Shared by the tables of SPNBO (ICLR 2022 submission): the methods, how each is run, and the records of a run.

All methods have the same start, data and number of upper iterations, except the two searches, which have trials. The
regulariser is smoothed by mu = 1e-3 for all but SMNBP and SPNBO, which lower mu from there by stage.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from bilevax import SMNBP, SPNBO, Implicit, Penalty, Problem, ReverseMode
from bilevax.applications import Task
from bilevax.linear_solve import CG, ByOptimizer
from bilevax.plots import Line, LinePanel, line_panels
from bilevax.problem import identity
from bilevax.schedules import Geometric
from bilevax.search import TPE, Random, search
from bilevax.solvers.spnbo import AllRows, Layers, Rows
from experiments.common import runs
from experiments.common.cells import kept_cell
from experiments.common.compare import Published, Row, beside_paper, show, write_results
from experiments.common.runs import watched_solve
from experiments.common.settings import Settings, pick, pick_data_sets

RANDOM, BAYESIAN, APPROX, RMD, PENALTY, SMNBP_ROW, SPNBO_ROW = (
    "Random",
    "Robo",
    "Approx",
    "RMD",
    "Penalty",
    "SMNBP",
    "SPNBO",
)
LABELS = (RANDOM, BAYESIAN, APPROX, RMD, PENALTY, SMNBP_ROW, SPNBO_ROW)
SEARCHES = {RANDOM: Random(4), BAYESIAN: TPE()}
MU = 1e-3
BATCH = 128
TRAINING = optax.adam(1e-3)  # of a network from scratch
RESIDUAL = 1e-2
SOLVE_STEPS = 10
NOTES = [
    "The smoothing is mu = 1e-3; SMNBP and SPNBO lower it from there by stage. Zeros are entries with absolute value "
    "below 1e-3; removed arrays have a root mean square below 1e-3. Penalty weighs g by lam and gamma = 1, SPNBO by "
    "beta = 1.",
    "SMNBP computes as many products with second derivatives as the other methods: it takes fewer, more expensive "
    "steps.",
]


class Rates(NamedTuple):
    """Step sizes, the same for all methods.

    Attributes:
        upper: makes the optimizer of u.
        lower: Adam's rate for v.
        descent: of v in RMD, whose moves must be descent.
        lam: weight of g in Penalty's moves of v.
    """

    upper: Callable[[], optax.GradientTransformation]
    lower: float
    descent: float
    lam: float = 1.0


class Run(NamedTuple):
    """The end of a run: u, v, and the evaluations during the run as (seconds, figures)."""

    u: PyTree
    v: PyTree
    looks: list[tuple[float, dict[str, float]]]


def solver_of(label: str, rates: Rates, lower_steps: int, rows: Rows) -> Any:
    """The solver behind a row."""
    upper, lower = rates.upper(), optax.adam(rates.lower)
    if label == APPROX:
        return Implicit(upper, lower, lower_steps, ByOptimizer(optax.adam(1e-3), steps=lower_steps))
    if label == RMD:
        return ReverseMode(upper, optax.sgd(rates.descent), lower_steps)
    if label == PENALTY:
        return Penalty(upper, lower, lower_steps, gamma=1.0, lam=rates.lam, nu=0.0, eps=RESIDUAL, step_scale=1.0)
    if label == SMNBP_ROW:
        return SMNBP(upper, CG(SOLVE_STEPS, damping=1e-2), mu=Geometric(MU, 0.5, low=1e-5), eps=RESIDUAL, halvings=5)
    return SPNBO(
        upper,
        lower,
        lower_steps,
        rows,
        mu=Geometric(MU, 0.5, low=1e-5),
        beta=Geometric(1.0, 2.0, high=1e3),
        eps_1=Geometric(RESIDUAL, 0.5),
        eps_2=Geometric(RESIDUAL, 0.5),
        eps_3=Geometric(RESIDUAL, 0.5),
        step_scale=1.0,
    )


class Cell(NamedTuple):
    """One draw of an application, on which all methods are run.

    Attributes:
        task: for all of them.
        rates: how fast variables move.
        bounds: of u, for the searches; with a `space`, of its argument.
        look: (u, v) -> the figures during a run, including `FIGURE`.
        judge: (u, v) -> the figures at the end.
        space: maps what the searches draw to u, if u has more entries than they can handle.
    """

    task: Task
    rates: Rates
    bounds: tuple[Any, Any]
    look: Callable[[PyTree, PyTree], dict[str, float]]
    judge: Callable[[PyTree, PyTree], dict[str, float]]
    space: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Size:
    """How long methods run.

    Args:
        cells: the data set of each cell, and what else identifies it, as strings.
        steps, lower_steps: upper iterations, and T.
        layers: sampled by SPNBO at each move.
        trials, trial_steps: of the searches.
        seeds: how many trials.
        looks: evaluations during a run.
    """

    cells: tuple[tuple[str, ...], ...]
    steps: int
    lower_steps: int
    layers: int
    trials: int
    trial_steps: int
    seeds: int
    looks: int = 10


@dataclass(frozen=True)
class Kind:
    """One of the three tables.

    Args:
        name: of the experiment.
        title: what it is.
        figure: what is compared with the paper and followed during a run, in words.
        lower_is_better: whether a low figure is better.
        paper: the paper's numbers, by row and cell.
        size: of the requested run.
        draw: (settings, cell, seed) -> Cell.
        rates: of its cells.
        notes: differences between the protocol and the paper's.
    """

    name: str
    title: str
    figure: str
    lower_is_better: bool
    paper: Mapping[str, Mapping[tuple[str, ...], Published]]
    size: Callable[[Settings], Size]
    draw: Callable[[Settings, tuple[str, ...], int], Cell]
    rates: Rates
    notes: Callable[[Settings], list[str]]


def published(
    cells: Sequence[tuple[str, ...]], printed: Mapping[str, Sequence[tuple[float, float]]]
) -> dict[str, dict[tuple[str, ...], Published]]:
    """A table's means and s.d., printed in the order of the cells."""
    return {
        label: {cell: Published(*figures) for cell, figures in zip(cells, row, strict=True)}
        for label, row in printed.items()
    }


def run_cell(kind: Kind, settings: Settings, cell: tuple[str, ...], seed: int, labels: list[str]) -> dict[str, Any]:
    """The figures of each method in one draw."""
    size, drawn = kind.size(settings), kind.draw(settings, cell, seed)
    rows = {}
    for label in labels:
        found = run_method(label, drawn, size, seed)
        rows[label] = {"seconds": found.looks[-1][0], "looks": found.looks} | drawn.judge(found.u, found.v)
    return rows


def run_method(label: str, cell: Cell, size: Size, seed: int) -> Run:
    """Run one method. Its seconds include neither compilation nor the evaluations during the run."""
    task = cell.task
    if label in SEARCHES:
        found = search(
            SEARCHES[label],
            task.problem if cell.space is None else drawn_from(task.problem, cell.space),
            *cell.bounds,
            task.start[1],
            task.batches,
            trials=size.trials,
            key=jax.random.key(seed),
            lower_steps=size.trial_steps,
            lower_optimizer=optax.adam(cell.rates.lower),
        )
        u = found.u if cell.space is None else cell.space(found.u)
        return Run(u, found.v, [(float(found.history.extra["seconds"][-1]), cell.look(u, found.v))])
    last: dict[str, Any] = {}

    def seen(u: PyTree, v: PyTree) -> dict[str, float]:
        last.update(u=jax.tree.map(jnp.copy, u), v=jax.tree.map(jnp.copy, v))
        return cell.look(u, v)

    solver, steps = solver_of(label, cell.rates, size.lower_steps, Layers(size.layers)), size.steps
    if label == SMNBP_ROW:  # as many products with second derivatives as the others
        steps = max(1, steps * size.lower_steps // (2 * SOLVE_STEPS))
    looks = watched_solve(solver, task, steps, max(1, steps // size.looks), seed, seen)
    return Run(last["u"], last["v"], [(one.seconds, one.seen) for one in looks])


@dataclass(frozen=True)
class _OfZ:
    """A function of (u, ...) as one of (z, ...), where u = space(z)."""

    function: Callable[..., Any]
    space: Callable[[Any], Any]

    def __call__(self, z: Any, *rest: Any, **more: Any) -> Any:
        return self.function(self.space(z), *rest, **more)


def drawn_from(problem: Problem, space: Callable[[Any], Any]) -> Problem:
    """The problem in z, where u = space(z)."""
    penalty = problem.regularizer
    return replace(
        problem,
        upper_loss=_OfZ(problem.upper_loss, space),
        lower_loss=_OfZ(problem.lower_loss, space),
        regularizer=None if penalty is None else _OfZ(penalty, space),
        project_upper=identity,
    )


def run(kind: Kind, settings: Settings) -> None:
    """Run every missing cell, compare, draw, and write `results.json`."""
    labels, size = pick(LABELS, settings.solver), kind.size(settings)
    names = pick_data_sets(list(dict.fromkeys(cell[0] for cell in size.cells)), settings.dataset)
    wanted = [cell for cell in size.cells if cell[0] in names]
    seeds = list(range(settings.seeds or size.seeds))
    began = time.perf_counter()
    found = {
        cell: [
            kept_cell(
                settings.out / "cells" / f"{'-'.join(cell).replace(' ', '_')}-{seed}.json",
                labels,
                functools.partial(run_cell, kind, settings, cell, seed),
            )
            for seed in seeds
        ]
        for cell in wanted
    }
    seconds = time.perf_counter() - began
    small = settings.quick or settings.medium
    tables: dict[str, list[Row]] = {}
    for cell, trials in found.items():
        for label in labels:
            for title, values in figures_of(kind, label, trials).items():
                paper = kind.paper.get(label, {}).get(cell) if title == kind.figure else None
                tables.setdefault(title, []).append(beside_paper((" ".join(cell), label), paper, values, small))
    notes = [*kind.notes(settings), *order_of(kind, found, labels), *reached_by(kind, found, labels), *NOTES]
    for title, rows in tables.items():
        show(f"{kind.title}: {title}", ("data", "method"), rows, notes if title == list(tables)[-1] else ())
    panels = [
        LinePanel(
            " ".join(cell),
            "seconds, without compilation",
            kind.figure,
            {label: line_of(trials, label) for label in labels if label not in SEARCHES},
            {label: float(np.mean([t[label]["figure"] for t in trials])) for label in labels if label in SEARCHES},
        )
        for cell, trials in found.items()
    ]
    write_results(
        kind.name,
        settings,
        seeds,
        seconds,
        {label: readable(label, kind.rates, size.lower_steps) for label in labels},
        {"searches, each trial: gradients of g": size.trial_steps, "others: upper iterations": size.steps},
        tables,
        notes,
        size=asdict(size),
    )
    line_panels(panels, settings.out / f"{kind.name}.png")


def figures_of(kind: Kind, label: str, trials: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A row's values by table, with the seconds to Penalty's last figure if all seeds reach it."""
    tables = {
        kind.figure: np.array([trial[label]["figure"] for trial in trials]),
        "zeros %": np.array([trial[label]["zeros"] for trial in trials]),
        "arrays removed %": np.array([trial[label]["removed"] for trial in trials]),
        "seconds": np.array([trial[label]["seconds"] for trial in trials]),
    }
    if PENALTY in trials[0]:
        reached = seconds_to_penalty(kind, label, trials)
        if all(seconds is not None for seconds in reached):
            tables["seconds to Penalty's last figure"] = np.array(reached, float)
    return tables


def line_of(trials: list[dict[str, Any]], label: str) -> Line:
    """A method's figure during the run: mean seconds, and a value for each trial."""
    looks = [trial[label]["looks"] for trial in trials]
    count = min(map(len, looks))
    return Line(
        np.mean([[seconds for seconds, _ in one[:count]] for one in looks], 0),
        np.array([[seen["figure"] for _, seen in one[:count]] for one in looks]),
    )


def order_of(kind: Kind, found: Mapping[Any, list[dict[str, Any]]], labels: list[str]) -> list[str]:
    """Where the paper's claim, that SPNBO is better than all others, does not hold, and by how much."""
    if SPNBO_ROW not in labels or len(labels) == 1:
        return []
    sign, behind = (-1 if kind.lower_is_better else 1), []
    for cell, trials in found.items():
        means = {label: sign * float(np.mean([t[label]["figure"] for t in trials])) for label in labels}
        ahead = [
            f"{label} ({abs(mean):.2f})"
            for label, mean in means.items()
            if label != SPNBO_ROW and mean > means[SPNBO_ROW]
        ]
        if ahead:
            behind.append(f"{' '.join(cell)}: {', '.join(ahead)} better than SPNBO ({abs(means[SPNBO_ROW]):.2f})")
    if not behind:
        return ["The paper's claim that SPNBO is better than all others holds here for the mean of every cell."]
    return [f"The paper's claim that SPNBO is better than all others does not hold here. {'; '.join(behind)}."]


def reached_by(kind: Kind, found: Mapping[Any, list[dict[str, Any]]], labels: list[str]) -> list[str]:
    """In how many trials SPNBO reaches Penalty's last figure, and after how many seconds, compared with Penalty's."""
    if SPNBO_ROW not in labels or PENALTY not in labels:
        return []
    lines = []
    for cell, trials in found.items():
        own, theirs = (seconds_to_penalty(kind, label, trials) for label in (SPNBO_ROW, PENALTY))
        both = [pair for pair in zip(own, theirs, strict=True) if pair[0] is not None]
        means = np.array(both, float).mean(0) if both else None
        seconds = "" if means is None else f", on average after {means[0]:.1f} s (Penalty: {means[1]:.1f} s)"
        lines.append(f"{' '.join(cell)}: in {len(both)} of {len(trials)} trials{seconds}")
    return [f"SPNBO reaches Penalty's last figure during the run. {'; '.join(lines)}."]


def readable(label: str, rates: Rates, lower_steps: int) -> dict[str, Any]:
    """A method's settings, for results.json."""
    if label in SEARCHES:
        return {"method": type(SEARCHES[label]).__name__}
    return runs.readable(solver_of(label, rates, lower_steps, AllRows()))


def seconds_to(looks: list[Any], level: float, lower: bool) -> float | None:
    """The seconds of the first evaluation with the figure at a level or beyond it; None if there is none."""
    for seconds, seen in looks:
        if (seen["figure"] <= level) if lower else (seen["figure"] >= level):
            return float(seconds)
    return None


def seconds_to_penalty(kind: Kind, label: str, trials: list[dict[str, Any]]) -> list[float | None]:
    """For each trial, the seconds after which a method reached Penalty's last figure; None if it never did."""
    return [
        seconds_to(trial[label]["looks"], trial[PENALTY]["looks"][-1][1]["figure"], kind.lower_is_better)
        for trial in trials
    ]

"""Shared by the figures and the table of the synthetic problems: methods and their settings, solves and verdicts."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from rich.console import Console
from tqdm import tqdm

from bilevax import Alternating, Batch, ForwardMode, Implicit, Penalty, ReverseMode, Vectorized, solve
from bilevax.linear_solve import CG, ByOptimizer, Neumann
from bilevax.plots import Panel, curve_panels
from bilevax.schedules import Geometric
from bilevax.solvers import Solver
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings, pick
from experiments.synthetic.problems import BOUND, SIZE, Trials, box, distances, draw, problem_for

STEPS, TRIALS, LOWER_STEPS = 40_000, 20, (1, 5, 10)
QUICK_STEPS, QUICK_TRIALS = 20_000, 5
VISITS = 100
CLOSE = 0.05  # a method counts as converged if its mean distance ends below
THREADS = 2
FLOOR = 1e-6  # of the logarithmic axes: the accuracy of float32
HEADINGS = ("problem", "method", "T", f"mean < {CLOSE}")
FOOTNOTES = (
    "The paper gives curves and no numbers: 'paper' is what its section 3.1 states, and agreement means that the "
    f"mean distance over the trials ends below {CLOSE}, or does not, as the paper states.",
    "E.1 does not state by how much the steps of Penalty fall (here by 1/1.1 a stage), how ApproxGrad is damped (here "
    "by 1e-3), and the step of RMD's descent (here that of v).",
    "Our settings: rates of every method from one grid of four; Penalty's limit of gamma, stages and rates from about "
    "25 settings more, on other trials. They show that one set of Penalty's settings solves all four examples, and "
    "are not an even comparison with the others.",
)


def held_in_box(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with moves shortened if they would leave the box."""

    def shortened(updates: Any, state: Any, params: PyTree = None) -> tuple[Any, Any]:
        return optax.tree.sub(box(optax.tree.add(params, updates)), params), state

    return optax.chain(optimizer, optax.GradientTransformation(optax.init_empty_state, shortened))


class Evaluations(NamedTuple):
    """Numbers for one step: gradients of f, gradients of g, and (at most) products with second derivatives of g."""

    upper_gradients: int
    lower_gradients: int
    products: int


EVALUATIONS: dict[str, Callable[[int], Evaluations]] = {
    "GD": lambda T: Evaluations(1, T, 0),
    "RMD": lambda T: Evaluations(1, T, T),
    # The residuals of the linear solve's answer and of its start, and the direction itself, take three more products.
    "ApproxGrad": lambda T: Evaluations(1, T + 1, 2 * T + 3),
    "Penalty": lambda T: Evaluations(T + 1, T + 1, T + 1),
    "FMD": lambda T: Evaluations(1, T, SIZE * T),
    "CG": lambda T: Evaluations(1, T + 1, T + 4),
    "Neumann": lambda T: Evaluations(1, T + 1, T + 3),
}
METHODS = tuple(EVALUATIONS)


class Rates(NamedTuple):
    """Step sizes: for u of Adam; for v of Adam, or of plain descent in RMD and FMD."""

    upper: float
    lower: float


@dataclass(frozen=True)
class Setup:
    """Settings of all methods, for all examples and all T.

    Args:
        name: what tables call it.
        suffix: the end of its figure's file name.
        rates: by method; methods without rates are left out.
        falling: Adam's rates fall to zero over the solve, by half a cosine.
        step_factor: of Penalty's step scale, by stage.
        greatest_gamma: gamma grows by 1.1 per stage up to this value.
        stages: the least number of Penalty's stages in a solve; None: stages end by tolerance only.
        lam, nu: of Penalty.
        damping: of the linear solves. Adam's rate in ApproxGrad's is that of v.
        neumann_scale: below 2 over the largest eigenvalue of grad2_vv g.
    """

    name: str
    suffix: str
    rates: dict[str, Rates]
    falling: bool = False
    step_factor: float = 1 / 1.1
    greatest_gamma: float = 1e12
    stages: int | None = None
    lam: float = 10.0
    nu: float = 1.0
    damping: float = 1e-3
    neumann_scale: float = 1e-2

    def solver(self, method: str, T: int, steps: int) -> Solver:
        """A method with T lower moves, for a solve of `steps` steps."""
        upper_rate, lower_rate = self.rates[method]
        upper, lower = self._adam(upper_rate, steps), self._adam(lower_rate, T * steps)
        match method:
            case "GD":
                return Alternating(upper, lower, T)
            case "RMD":
                return ReverseMode(upper, optax.sgd(lower_rate), T)
            case "FMD":
                return ForwardMode(upper, optax.sgd(lower_rate), T)
            case "ApproxGrad":
                return Implicit(upper, lower, T, ByOptimizer(optax.adam(lower_rate), T, self.damping))
            case "CG":
                return Implicit(upper, lower, T, CG(T, damping=self.damping))
            case "Neumann":
                return Implicit(upper, lower, T, Neumann(T, self.neumann_scale, self.damping))
        return Penalty(
            upper,
            held_in_box(lower),
            T,
            gamma=Geometric(1.0, 1.1, high=self.greatest_gamma),
            eps=Geometric(1.0, 0.9),
            lam=Geometric(self.lam, 0.9) if self.lam > 0 else 0.0,
            nu=self.nu,
            step_scale=Geometric(1.0, self.step_factor),
            stage_steps=None if self.stages is None else max(1, steps // self.stages),
        )

    def _adam(self, rate: float, moves: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, moves) if self.falling else rate)


# Appendix E.1, which does not state how Penalty's steps fall by stage, ApproxGrad's damping and RMD's step.
PAPER = Setup("E.1's settings", "_paper_settings", dict.fromkeys(METHODS[:4], Rates(1e-3, 1e-4)))
# Each method's rates were chosen from one grid (u: 1e-3, 1e-2; v: 2e-3, 2e-2, by plain descent 1e-3, 1e-2), run whole
# at T = 1 and in part at 10. With multipliers gamma can stay small, and the penalty's lower problem, which has
# the square of g's condition number, stays as easy as it was.
OWN = Setup(
    "our settings",
    "",
    {
        "GD": Rates(1e-3, 2e-2),
        "RMD": Rates(1e-3, 1e-2),
        "ApproxGrad": Rates(1e-3, 2e-3),
        "Penalty": Rates(1e-2, 2e-2),
        "FMD": Rates(1e-3, 1e-2),
        "CG": Rates(1e-3, 2e-3),
        "Neumann": Rates(1e-3, 2e-3),
    },
    falling=True,
    step_factor=1.0,
    greatest_gamma=3.0,
    stages=200,
)


class Job(NamedTuple):
    """A solve to run, and the name of its results."""

    name: tuple[str, str, int]  # settings, method, T
    solver: Solver
    trials: Trials


class Curves(NamedTuple):
    """Distances (trials, k) after `steps` (k,) steps, and the seconds, compilation included."""

    steps: np.ndarray
    distances: np.ndarray
    seconds: float


def follow(solver: Solver, trials: Trials, steps: int) -> Curves:
    """Solve all trials at once, and record their distances during the solve."""
    started = time.perf_counter()
    at, seen = [0], [np.asarray(distances(*trials))]

    def look(visit: Any) -> None:
        at.append(visit.step)
        seen.append(np.asarray(distances(visit.state.u, visit.state.v, trials.data)))

    solve(
        Vectorized(solver),
        problem_for(solver),
        trials.u,
        trials.v,
        Batch(trials.data, trials.data),
        steps=steps,
        key=jax.random.key(0),
        every=max(1, steps // VISITS),
        callbacks=[look],
    )
    return Curves(np.asarray(at), np.stack(seen, 1), time.perf_counter() - started)


def keep_products_on_one_thread() -> None:
    """Ask XLA not to split a matrix product over threads; this works only if nothing has run in this process yet.

    Passing a product of 5x10 numbers to another thread takes longer than the product: with threads, forward mode
    took twice as long.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def follow_all(jobs: Sequence[Job], steps: int) -> dict[tuple[str, str, int], Curves]:
    """All solves, two at a time: one of these small problems does not keep two cores busy."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        # The longest first, so that the cores finish together.
        order = sorted(jobs, key=lambda job: -job.name[2])
        futures = {job.name: pool.submit(follow, job.solver, job.trials, steps) for job in order}
        return {name: future.result() for name, future in tqdm(futures.items(), unit="solve")}
    finally:
        pool.shutdown(cancel_futures=True)


def converges(ends: np.ndarray) -> bool:
    """Whether the mean distance over the trials is below `CLOSE`."""
    return bool(np.mean(ends) < CLOSE)


def verdict_row(where: tuple[str, ...], paper: bool | None, ends: np.ndarray) -> Row:
    """A comparison with a figure, which shows only whether the distance goes to zero."""
    return Row(
        (*where, "yes" if converges(ends) else "no"), paper, ends, None if paper is None else converges(ends) == paper
    )


def spent(name: str, T: int, members: int, steps: int) -> dict[str, int]:
    """Gradients and products that all trials of a solve take together."""
    return {kind: count * members * steps for kind, count in EVALUATIONS[name](T)._asdict().items()}


def size(settings: Settings, trials: int) -> tuple[list[int], int]:
    """The seeds and the number of steps of a run."""
    small = settings.quick or settings.medium
    count = settings.seeds or (min(trials, QUICK_TRIALS) if small else trials)
    return list(range(count)), QUICK_STEPS if small else STEPS


class Plan(NamedTuple):
    """One of figures 1 and 2.

    Attributes:
        name, title: the experiment's.
        examples: the two examples it shows.
        paper: by (example, method, T), whether the paper states that it converges; absent if it does not say.
    """

    name: str
    title: str
    examples: tuple[int, int]
    paper: dict[tuple[int, str, int], bool]


def run_figure(plan: Plan, settings: Settings) -> None:
    """Figure 1 or 2: solve, print the comparison, write results.json and the figures."""
    keep_products_on_one_thread()
    seeds, steps = size(settings, TRIALS)
    n = len(seeds)
    methods = pick(METHODS, settings.solver)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *(draw(example, seeds) for example in plan.examples))
    parts = dict(zip(plan.examples, (slice(n), slice(n, None)), strict=True))
    runs = [
        (setup, method, T) for setup in (PAPER, OWN) for method in methods if method in setup.rates for T in LOWER_STEPS
    ]
    jobs = [Job((setup.name, method, T), setup.solver(method, T, steps), both) for setup, method, T in runs]
    started = time.perf_counter()
    curves = follow_all(jobs, steps)
    seconds = time.perf_counter() - started

    tables: dict[str, list[Row]] = {setup.name: [] for setup, _, _ in runs}
    panels: dict[str, list[Panel]] = {setup.suffix: [] for setup, _, _ in runs}
    for example, part in parts.items():
        for setup, method, T in runs:
            ends = curves[setup.name, method, T].distances[part, -1]
            where = (f"example {example}", method, str(T))
            tables[setup.name].append(verdict_row(where, plan.paper.get((example, method, T)), ends))
    for method in methods:
        for example, part in parts.items():
            for setup, _, T in (run for run in runs if run[1] == method):
                found = curves[setup.name, method, T]
                title = f"{example}: {method}, T = {T}"
                panels[setup.suffix].append(Panel(title, found.steps, np.maximum(found.distances[part], FLOOR), True))
    footnotes = [*FOOTNOTES, reach(steps), *shortened(steps)]
    for name, rows in tables.items():
        last = name == list(tables)[-1]
        show(f"{plan.title}, {n} trials, {name}", HEADINGS, rows, footnotes if last else (), "distance")
    console_seconds(seconds)
    write_results(
        plan.name,
        settings,
        seeds,
        seconds,
        {setup.name: asdict(setup) for setup in (PAPER, OWN)},
        {", ".join(map(str, job.name)): spent(job.name[1], job.name[2], 2 * n, steps) for job in jobs},
        tables,
        footnotes,
        upper_iterations=steps,
    )
    for suffix, drawn in panels.items():
        curve_panels(drawn, settings.out / f"{plan.name}{suffix}.png", 2 * len(LOWER_STEPS), y_label="distance")


def console_seconds(seconds: float) -> None:
    """Print the seconds of the computation."""
    Console().print(f"{seconds:.0f} s, compilation included.", highlight=False)


def reach(steps: int) -> str:
    """A footnote on how far v can move at E.1's rate."""
    lower = PAPER.rates["Penalty"].lower
    return (
        f"E.1's settings: Adam at {lower:g} moves an entry of v by about {lower * steps:g} at most in {steps:,} "
        f"iterations at T = 1, and by less where Penalty's steps fall by stage, while it may start {BOUND + 0.5:g} "
        "away. A method that does not arrive there is limited by the rate, so there is also a figure with our settings."
    )


def shortened(steps: int) -> list[str]:
    """The footnote of a run with fewer steps than the paper's; none for a full run."""
    return [] if steps == STEPS else [f"A reduced run: {steps:,} upper iterations instead of the paper's {STEPS:,}."]

"""The race: a figure of merit against processor seconds, for all stochastic methods on four problems."""

import time
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from bilevax import F2SA, MASOBA, SABA, SOBA, SRBA, VPBGD, AmIGO, Blocks, Minibatches, StocBiO, WithWhole, solve
from bilevax.schedules import Power
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Row, write_results
from experiments.common.settings import Settings, pick, pick_data_sets, pick_noise
from experiments.race.figure import draw
from experiments.race.problems import Field, cleaning, logistic, quadratics

TITLE = EXPERIMENTS["race"].title
SIZE = 64  # samples of a block or minibatch
METHODS = ("SABA", "SRBA", "SOBA", "MASOBA", "AmIGO", "StocBiO", "F2SA", "VPBGD")
FIELDS = ("quadratics", "logistic", "cleaning")
NOISE = (50, 90)
EVERY = {"quadratics": 500, "logistic": 500, "cleaning": 100}  # steps between looks; a tenth with inner loops
INNER = 10
MOST_STEPS = 10_000_000
SECONDS = {"quick": 0.5, "medium": 4.0, "full": 120.0}  # processor seconds for each method on each problem
SAMPLES = {"quick": (4096, 2048, 2000), "medium": (16_384, 16_384, 20_000), "full": (32_768, 28_672, 20_000)}
# Lower rate, and upper rate, of each problem: chosen for SABA on a short run, and the same for all.
RATES = {"quadratics": (0.1, 0.03), "logistic": (0.2, 1.0), "cleaning": (0.1, 100.0)}
FOOTNOTES = (
    "Processor seconds of one thread, compilation and evaluation apart. The mean over seeds of the last look, and in "
    "results.json all looks.",
    "One pair of learning rates for each problem, for all methods: constant for SABA and SRBA, and falling as "
    "1 / sqrt(1 + k / 1000) for the others, whose noise does not vanish.",
    "The problems are made from the description of benchopt/benchmark_bilevel (its published times are of other "
    "machines). The samples of the quadratics have Hessians of rank one; the logistic regression is on MNIST in 22 "
    "principal components, in place of ijcnn1. Hyper-cleaning has 20,000 samples and 5,000 clean ones.",
)


def run(settings: Settings) -> None:
    """Race all methods, draw the figure, print the ends, write `results.json`."""
    size = "quick" if settings.quick else "medium" if settings.medium else "full"
    methods = pick(METHODS, settings.solver)
    names = [
        f"cleaning {wrong}%" if name == "cleaning" else name
        for name in pick_data_sets(FIELDS, settings.dataset)
        for wrong in (pick_noise(NOISE, settings.noise) if name == "cleaning" else (0,))
    ]
    seeds = list(range(settings.seeds or 1))
    started = time.perf_counter()
    jax.config.update("jax_enable_x64", True)
    found: dict[str, dict[str, Any]] = {}
    fields = {name: field_of(name, size) for name in names}
    for name, field in tqdm(fields.items(), unit="problem"):
        found[name] = {}
        for seed in seeds:
            path = settings.out / "cells" / f"{size}-{name.replace(' ', '-').rstrip('%')}-{seed}.json"

            def raced(labels: list[str], name: str = name, field: Field = field, seed: int = seed) -> dict[str, Any]:
                return {label: race(field, label, name.split()[0], SECONDS[size], seed) for label in labels}

            for label, row in kept_cell(path, methods, raced).items():
                if label in methods:
                    found[name].setdefault(label, []).append(row)
    seconds = time.perf_counter() - started
    rows = [
        Row((name, label), None, np.array([ending(look) for look in looks]), None)
        for name in names
        for label, looks in found[name].items()
    ]
    shown(found, {name: field.figure for name, field in fields.items()})
    draw(settings.out / "race.png", found, {name: field.figure for name, field in fields.items()})
    write_results(
        "race",
        settings,
        seeds,
        seconds,
        {name: {"lower rate": RATES[name.split()[0]][0], "upper rate": RATES[name.split()[0]][1]} for name in names},
        {},
        {"figure of merit, the least of the run": rows},
        FOOTNOTES,
        looks=found,
    )


def field_of(name: str, size: str) -> Field:
    """The problem of this name, in a size."""
    quadratic, rows, clean = SAMPLES[size]
    if name == "quadratics":
        return quadratics(quadratic)
    if name == "logistic":
        return logistic(rows)
    return cleaning(int(name.split()[1].rstrip("%")), clean)


def entrant(label: str, name: str, field: Field) -> tuple[Any, Any]:
    """A method with its settings on a problem, and its source."""
    lower, upper = RATES[name]
    sizes = len(field.upper[0]), len(field.lower[0])
    size = [SIZE if n % SIZE == 0 else next(s for s in range(SIZE, 0, -1) if n % s == 0) for n in sizes]
    blocks = Blocks(field.upper, field.lower, *size)
    minibatches = Minibatches(field.upper, field.lower, *size)
    steady = optax.sgd(upper), optax.sgd(lower), optax.sgd(lower)

    def falling(rate: float) -> optax.GradientTransformation:
        return optax.sgd(lambda k: rate / (1 + k / 1000) ** 0.5)

    down = falling(upper), falling(lower), falling(lower)
    many = upper * INNER  # for a move of u with as many moves of v
    match label:
        case "SABA":
            return SABA(blocks.blocks, *steady), blocks
        case "SRBA":
            return SRBA(*steady, period=max(blocks.blocks) // 2), WithWhole(minibatches)
        case "SOBA":
            return SOBA(*down), minibatches
        case "MASOBA":
            return MASOBA(*down), minibatches
        case "AmIGO":
            solver = AmIGO(falling(many), falling(lower), falling(lower), INNER, INNER)
        case "StocBiO":
            solver = StocBiO(falling(many), falling(lower), INNER, INNER, lower)
        case "F2SA":
            return F2SA(falling(many), falling(lower), INNER, nu=Power(0.1, -0.25)), minibatches
        case _:
            return VPBGD(falling(upper), falling(lower / 2), optax.sgd(lower)), minibatches
    return solver, Minibatches(field.upper, field.lower, *size, per_move=solver.lower_batches)


def race(field: Field, label: str, name: str, limit: float, seed: int) -> dict[str, Any]:
    """Run a method for `limit` processor seconds; the seconds and the figure at each look."""
    solver, source = entrant(label, name, field)
    every = EVERY[name] // (1 if label in ("SABA", "SRBA", "SOBA", "MASOBA", "VPBGD") else INNER)
    solved(field, solver, source, every, every, seed)  # compiles the stretch
    looks: dict[str, list[float]] = {"steps": [0], "seconds": [0.0], "figures": [field.measure(*field.start)]}
    standing, began = 0.0, time.process_time()

    def visit(visit: Any) -> None:
        nonlocal standing
        now = time.process_time()
        looks["steps"].append(int(visit.step))
        looks["seconds"].append(now - began - standing)
        value = field.measure(visit.state.u, visit.state.v)
        looks["figures"].append(value if np.isfinite(value) else 1e30)
        standing += time.process_time() - now

    def late(visit: Any) -> bool:
        return looks["seconds"][-1] > limit

    solved(field, solver, source, every, MOST_STEPS, seed, callbacks=[visit], stop=late)
    return looks


def solved(field: Field, solver: Any, source: Any, every: int, steps: int, seed: int, **more: Any) -> None:
    """Solve, and wait for the end; a solve that diverges ends early."""
    key = jax.random.key(seed)
    result = solve(solver, field.problem, *field.start, source, steps=steps, every=every, key=key, throw=False, **more)
    jax.block_until_ready(result.u)


def ending(looks: dict[str, Any]) -> float:
    """The least figure of a run."""
    return float(np.min(looks["figures"]))


def shown(found: dict[str, dict[str, Any]], figures: dict[str, str]) -> None:
    """Print the least and the last figure of each method, and its steps and seconds."""
    for name, by_label in found.items():
        table = Table("method", "least", "last", "steps", "seconds", title=f"{TITLE}: {name}, {figures[name]}")
        for label, runs in by_label.items():
            least = np.mean([ending(x) for x in runs])
            last = np.mean([x["figures"][-1] for x in runs])
            steps, seconds = (np.mean([x[k][-1] for x in runs]) for k in ("steps", "seconds"))
            table.add_row(label, f"{least:.3g}", f"{last:.3g}", f"{steps:.0f}", f"{seconds:.1f}")
        Console().print(table)

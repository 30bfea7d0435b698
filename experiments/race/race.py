"""The race: a figure of merit against processor seconds, for all stochastic methods on four problems."""

import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from bilevax import solve
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Row, write_results
from experiments.common.settings import Settings, pick, pick_data_sets, pick_noise
from experiments.race.entrants import INNER, METHODS, RATES, entrant
from experiments.race.figure import draw
from experiments.race.problems import SEED, Field, cleaning, logistic, quadratics

TITLE = EXPERIMENTS["race"].title
FIELDS = ("quadratics", "logistic", "cleaning")
NOISE = (50, 90)
EVERY = {"quadratics": 500, "logistic": 500, "cleaning": 100}  # steps between looks; a tenth with inner loops
MOST_STEPS = 10_000_000
SECONDS = {"quick": 0.5, "medium": 4.0, "full": 120.0}  # processor seconds for each method on each problem
LONGER = {"cleaning": 2.5}  # times the seconds
LEVELS = {"quadratics": 1e-10, "logistic": 1e-7, "cleaning 50%": 0.15, "cleaning 90%": 0.18}
SAMPLES = {"quick": (4096, 2048, 2000), "medium": (16_384, 16_384, 20_000), "full": (32_768, 28_672, 20_000)}
FOOTNOTES = (
    "The least figure of the run; all looks are in results.json. Processor seconds of one thread, without compilation "
    "and evaluation; 2.5 times as many on hyper-cleaning.",
    "Learning rates for each method and problem by a small grid on another seed, `python -m experiments.race.rates`. "
    "On hyper-cleaning it was run for SABA, SRBA and SOBA at 50%, and at 90% for SABA alone, there on another draw of "
    "samples and wrong labels. The others have the same rates at both, and ten times the upper rate where an inner "
    "loop takes ten moves. Rates are constant for SABA and SRBA, and fall as "
    "1 / sqrt(1 + k / 1000) for the others, whose noise does not vanish.",
    "Logistic regression: the best strengths of some features are zero or infinite, so that the squared gradient falls "
    "as 1 / k^2 at a constant upper rate: to 7e-10 at the end for SABA with rates 0.1 and 1. Its upper rate rises here "
    "from 1 to 8 in 21,000 steps. Its lower rate is half of that of the grid, since an infinite strength stops to grow "
    "where rate times strength is one. Both were chosen on the seed that is reported.",
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
                return {
                    label: race(field, label, name, SECONDS[size] * LONGER.get(name.split()[0], 1.0), seed)
                    for label in labels
                }

            for label in methods:  # one at a time: what has run is kept
                row = kept_cell(path, [label], raced)[label]
                found[name].setdefault(label, []).append(row)
    seconds = time.perf_counter() - started
    rows = [
        Row((name, label), None, np.array([shortened(name, ending(look)) for look in looks]), None)
        for name in names
        for label, looks in found[name].items()
    ]
    times = [
        Row((f"{name}, {LEVELS[name]:g}", label), None, np.array(reached), None)
        for name in names
        for label, looks in found[name].items()
        if None not in (reached := [seconds_to(look, LEVELS[name]) for look in looks])
    ]
    shown(found, {name: field.figure for name, field in fields.items()})
    draw(settings.out / "race.png", found, {name: field.figure for name, field in fields.items()})
    write_results(
        "race",
        settings,
        seeds,
        seconds,
        {name: {label: RATES[name][label] for label in methods} for name in names},
        {},
        {
            "the least of the run: test error, or log10 of the squared gradient norm of F": rows,
            "processor seconds to a level, of those that reach it": times,
        },
        FOOTNOTES,
        looks=found,
    )


def field_of(name: str, size: str, draw: int = SEED) -> Field:
    """The problem of this name, in a size; `draw` is the seed of the samples and wrong labels of hyper-cleaning."""
    quadratic, rows, clean = SAMPLES[size]
    if name == "quadratics":
        return quadratics(quadratic)
    if name == "logistic":
        return logistic(rows)
    return cleaning(int(name.split()[1].rstrip("%")), clean, draw)


def race(field: Field, label: str, name: str, limit: float, seed: int) -> dict[str, Any]:
    """Run a method for `limit` processor seconds; the seconds and the figure at each look."""
    solver, source = entrant(label, name, field)
    every = EVERY[name.split()[0]] // (1 if label in ("SABA", "SRBA", "SOBA", "MASOBA", "VPBGD") else INNER)
    solved(field, solver, source, every, every, seed)  # compiles the stretch
    looks: dict[str, list[float]] = {"steps": [0], "seconds": [0.0], "figures": [field.measure(*field.start)]}
    standing, began = 0.0, time.process_time()

    def visit(visit: Any) -> None:
        nonlocal standing
        now = time.process_time()
        looks["steps"].append(int(visit.step))
        looks["seconds"].append(now - began - standing)
        with np.errstate(over="ignore", invalid="ignore"):  # a method that diverges
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


def shortened(name: str, figure: float) -> float:
    """A figure as it is in the tables of results."""
    return figure if name.startswith("cleaning") else float(np.log10(figure))


def seconds_to(looks: dict[str, Any], level: float) -> float | None:
    """The seconds until the first look at or below a level; None if there is none."""
    pairs = zip(looks["seconds"], looks["figures"], strict=True)
    return next((seconds for seconds, figure in pairs if figure <= level), None)


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

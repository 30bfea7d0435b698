"""Figure 7: Penalty with and without multipliers, from several lam_0, on example 1."""

import time
from dataclasses import asdict, replace

import numpy as np

from bilevax.plots import Panel, curve_panels
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings, pick
from experiments.synthetic import protocol
from experiments.synthetic.problems import draw
from experiments.synthetic.protocol import (
    LOWER_STEPS,
    PAPER,
    Job,
    Rates,
    console_seconds,
    follow_all,
    reach,
    shortened,
    size,
    spent,
    verdict_row,
)

TITLE = EXPERIMENTS["figure7"].title
TRIALS = 5
LAMS = (0.0, 1e-4, 1e-2, 1.0)
FASTER = replace(PAPER, name="E.1's, v at 1e-3", rates={"Penalty": Rates(1e-3, 1e-3)}, suffix="")
HEADINGS = ("multipliers", "lam_0", "T", f"mean < {protocol.CLOSE}")


def run(settings: Settings) -> None:
    """Run, compare, write `results.json`, `figure7.png` and `figure7_paper_settings.png`."""
    pick(["Penalty"], settings.solver)
    seeds, steps = size(settings, TRIALS)
    trials = draw(1, seeds)
    # Top row with nu, bottom row without, as the paper draws it.
    cases = [(f"lam_0 = {lam:g}, {'nu' if nu else 'no nu'}", lam, nu) for nu in (1.0, 0.0) for lam in LAMS]
    jobs = [
        Job((setup.name, case, T), replace(setup, lam=lam, nu=nu).solver("Penalty", T, steps), trials)
        for setup in (PAPER, FASTER)
        for case, lam, nu in cases
        for T in LOWER_STEPS
    ]
    started = time.perf_counter()
    curves = follow_all(jobs, steps)
    seconds = time.perf_counter() - started

    footnotes = [
        "The paper finds that neither lam_0 nor the multipliers change much on this problem, and names no case that "
        "fails: 'paper' says that all converge.",
        reach(steps),
        *shortened(steps),
    ]
    tables: dict[str, list[Row]] = {}
    for setup in (PAPER, FASTER):
        tables[setup.name] = [
            verdict_row(
                ("with nu" if nu else "without nu", f"{lam:g}", str(T)),
                True,
                curves[setup.name, case, T].distances[:, -1],
            )
            for case, lam, nu in cases
            for T in LOWER_STEPS
        ]
        notes = footnotes if setup is FASTER else ()
        show(f"{TITLE}, {len(seeds)} trials, {setup.name}", HEADINGS, tables[setup.name], notes, "distance")
    console_seconds(seconds)
    write_results(
        "figure7",
        settings,
        seeds,
        seconds,
        {setup.name: asdict(setup) for setup in (PAPER, FASTER)},
        {", ".join(map(str, job.name)): spent("Penalty", job.name[2], len(seeds), steps) for job in jobs},
        tables,
        footnotes,
        upper_iterations=steps,
        lam_0=LAMS,
    )
    for setup in (PAPER, FASTER):
        panels = [
            Panel(f"{case}, T = {T}", found.steps, np.maximum(found.distances, protocol.FLOOR), log=True)
            for nu in (1.0, 0.0)
            for T in LOWER_STEPS
            for case, _, weight in cases
            if weight == nu
            for found in [curves[setup.name, case, T]]
        ]
        curve_panels(panels, settings.out / f"figure7{setup.suffix}.png", len(LAMS), y_label="distance")

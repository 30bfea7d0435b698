"""Figure 6 (b) and (c): the points of the untargeted and the targeted attack, with their starts, MNIST.

Part (a), clean labels, is drawn by `figure3`.
"""

import time
from typing import Any

import numpy as np

from bilevax.applications.poisoning import distances
from bilevax.plots import change_sheet
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Row, show, write_results
from experiments.common.runs import evaluations, readable
from experiments.common.settings import Settings, pick
from experiments.poisoning import protocol
from experiments.poisoning.protocol import SOLVERS, UNTARGETED, Draw

TITLE = EXPERIMENTS["figure6"].title
PERCENT, SEED, SHOWN = 6, 0, 10


def shown(kind: str, d: Draw) -> np.ndarray:
    """Which points are drawn: untargeted, one of each label in order; targeted, the first, which have one label."""
    if kind != UNTARGETED:
        return np.arange(min(SHOWN, len(d.points.y)))
    return np.concatenate([np.flatnonzero(d.points.y == label)[:1] for label in range(SHOWN)])


def run(settings: Settings) -> None:
    """Run both attacks once, draw, and write `results.json`."""
    (label,) = pick(("Penalty",), settings.solver)
    rows, started = [], time.perf_counter()
    drawn: list[tuple[str, Draw, np.ndarray, Any]] = []
    sizes = protocol.shorter(settings)
    for kind, size in sizes.items():
        d = protocol.draw(kind, size, PERCENT, SEED)
        found = protocol.attacked(
            SOLVERS[label](size.steps, size.lower_steps), protocol.task_of(kind, d), d.points.y, size.steps
        )
        for what, points in (("no attack", None), ("where it started", d.points), ("found", found.points)):
            rows.append(Row((kind, what), None, np.array([protocol.judged(kind, d, points)]), None))
        drawn.append((kind, d, shown(kind, d), found.points.x))
    seconds, size = time.perf_counter() - started, sizes[UNTARGETED]
    notes = [
        "Test accuracy in percent; for the targeted attack the share of eights that are classified as threes.",
        f"Seed {SEED}, {PERCENT}% points, K = {size.steps}.",
    ]
    show(TITLE, ("attack", "points"), rows, notes)
    write_results(
        "figure6",
        settings,
        [SEED],
        seconds,
        {label: readable(SOLVERS[label](1, size.lower_steps))},
        {"each attack": evaluations(SOLVERS[label](1, size.lower_steps), size.steps)},
        {"test accuracy or success, %": rows},
        notes,
    )
    for kind, d, chosen, x in drawn:
        before = d.points.x[chosen]
        far = distances(x[chosen], before)
        change_sheet(
            before,
            x[chosen],
            [""] * len(chosen),
            [f"as {y}\nl2 {distance:.1f}" for y, distance in zip(d.points.y[chosen], far, strict=True)],
            settings.out / f"figure6-{kind}.png",
            f"{kind.capitalize()} attack, MNIST: some of {len(x)} points",
        )

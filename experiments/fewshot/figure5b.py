"""Figure 5(b): accuracy on new classes, and the time of an upper iteration, against T, few-shot learning.

The runs with T = 20 are those of table3 and figure4b, if all have the same --out.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bilevax.plots import line_panels
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Row, against_moves, show, write_results
from experiments.common.runs import evaluations
from experiments.common.settings import Settings, pick
from experiments.fewshot import protocol, table3
from experiments.fewshot.protocol import BILEVEL

TITLE = EXPERIMENTS["figure5b"].title
MOVES = (1, 5, 10, 20)


def fastest(row: dict[str, Any]) -> float:
    """Seconds of an upper iteration in the fastest stretch between two evaluations: others only slow it down."""
    steps, seconds, _ = np.array([[0.0, 0.0, 0.0], *row["looks"]]).T
    return float(np.min(np.diff(seconds) / np.diff(steps)))


KINDS: dict[str, Callable[[dict[str, Any]], float]] = {
    "accuracy on new classes %": lambda row: row["accuracy"],
    "seconds of an upper iteration": fastest,
}


def run(settings: Settings) -> None:
    """Run, draw, write `results.json`."""
    labels = pick(tuple(BILEVEL), settings.solver) if settings.solver else ["Penalty", "ApproxGrad"]
    seeds = list(range(settings.seeds or 1))
    moves = (1, 20) if settings.quick else MOVES
    name, way, shot = table3.cells(settings)[-1]
    size = protocol.sizes(settings)[name]
    began = time.perf_counter()
    found = {
        count: [protocol.cell_of(settings, name, size, way, shot, count, seed, labels) for seed in seeds]
        for count in moves
    }
    seconds = time.perf_counter() - began
    tables = {
        kind: [
            Row((f"{way}-way {shot}-shot", label, str(count)), None, np.array([figure(t[label]) for t in trials]), None)
            for label in labels
            for count, trials in found.items()
        ]
        for kind, figure in KINDS.items()
    }
    notes = [
        *protocol.footnotes(settings, size),
        "The representation is applied once in a step, whatever T is: more moves of the heads cost next to nothing. "
        "Times are of the fastest stretch between two evaluations.",
        "Heads restart in each step. If few moves leave the gradient of g large, Penalty's u moves to make it "
        "small, whatever that does to the features: it needs more moves than ApproxGrad.",
    ]
    for kind, rows in tables.items():
        show(f"{TITLE}: {kind}", ("task", "method", "T"), rows, notes if kind == list(tables)[-1] else ())
    write_results(
        "figure5b",
        settings,
        seeds,
        seconds,
        {label: protocol.readable(label, 1) for label in labels},
        {f"{x}, T = {n}, each step": evaluations(BILEVEL[x](1, n), 1) for x in labels for n in moves},
        tables,
        notes,
    )
    line_panels(against_moves(tables), settings.out / "figure5b.png")

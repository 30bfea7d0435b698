"""Figure 5(b): accuracy on new classes, and the time of an upper iteration, against T, few-shot learning.

The runs with T = 20 are those of table3 and figure4b, where all have one --out.
"""

import time

import numpy as np

from bilevax.plots import Line, LinePanel, line_panels
from experiments import denoising, fewshot, table3
from experiments.contract import Row, Settings, pick, show, write_results
from experiments.fewshot import BILEVEL

TITLE = "Figure 5(b): accuracy and time against T, few-shot learning"
MOVES = (1, 5, 10, 20)
KINDS = {"accuracy on new classes %": "accuracy", "seconds of an upper iteration": "each"}


def run(settings: Settings) -> None:
    """Run, draw, write `results.json`."""
    labels = pick(tuple(BILEVEL), settings.solver) if settings.solver else ["Penalty", "ApproxGrad"]
    seeds = list(range(settings.seeds or 1))
    moves = (1, 20) if settings.quick else MOVES
    name, way, shot = table3.cells(settings)[-1]
    size = fewshot.sizes(settings)[name]
    began = time.perf_counter()
    found = {
        count: [fewshot.cell_of(settings, name, size, way, shot, count, seed, labels) for seed in seeds]
        for count in moves
    }
    seconds = time.perf_counter() - began
    tables = {
        kind: [
            Row((f"{way}-way {shot}-shot", label, str(count)), None, np.array([t[label][field] for t in trials]), None)
            for label in labels
            for count, trials in found.items()
        ]
        for kind, field in KINDS.items()
    }
    notes = [
        *fewshot.footnotes(settings, size),
        "The representation is applied once in a step, whatever T is: more moves of the heads cost next to nothing.",
    ]
    for kind, rows in tables.items():
        show(f"{TITLE}: {kind}", ("task", "method", "T"), rows, notes if kind == list(tables)[-1] else ())
    write_results(
        "figure5b",
        settings,
        seeds,
        seconds,
        {label: fewshot.readable(label, 1) for label in labels},
        {f"{x}, T = {n}, each step": denoising.evaluations(BILEVEL[x](1, n), 1) for x in labels for n in moves},
        tables,
        notes,
    )
    panels = [
        LinePanel(
            kind[0].upper() + kind[1:],
            "lower moves T",
            kind,
            {
                label: Line(moves, [[found[count][i][label][field] for count in moves] for i in range(len(seeds))])
                for label in labels
            },
        )
        for kind, field in KINDS.items()
    ]
    line_panels(panels, settings.out / "figure5b.png")

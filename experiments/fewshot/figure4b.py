"""Figure 4(b): accuracy on new classes against wall time, few-shot learning.

It uses the runs of table3, and makes the missing ones: give both the same --out. The times do not include compilation
and the evaluation of accuracies.
"""

import time

import numpy as np

from bilevax.applications.fewshot.recipes import LOWER_STEPS
from bilevax.plots import Line, LinePanel, line_panels
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Row, show, write_results
from experiments.common.runs import evaluations
from experiments.common.settings import Settings, pick
from experiments.fewshot import protocol, table3
from experiments.fewshot.protocol import BILEVEL

TITLE = EXPERIMENTS["figure4b"].title


def run(settings: Settings) -> None:
    """Run, draw, write `results.json`."""
    labels = pick(tuple(BILEVEL), settings.solver) if settings.solver else ["Penalty", "ApproxGrad"]
    seeds = list(range(settings.seeds or 1))
    wanted, all_sizes = table3.cells(settings), protocol.sizes(settings)
    began = time.perf_counter()
    found = protocol.cells_of(settings, wanted, seeds, labels)
    seconds = time.perf_counter() - began
    rows, panels = [], []
    for (name, way, shot), trials in found.items():
        title = f"{name}, {way}-way {shot}-shot"
        curves = {label: np.array([trial[label]["looks"] for trial in trials]) for label in labels}
        lines = {label: Line(curve[:, :, 1].mean(0), curve[:, :, 2]) for label, curve in curves.items()}
        panels.append(LinePanel(title, "seconds, without compilation", "accuracy on new classes %", lines))
        level = min(curve[:, -1, 2].mean() for curve in curves.values())
        for label, curve in curves.items():
            reached = [float(trial[trial[:, 2] >= level - 0.5][:1, 1].sum()) for trial in curve]
            rows.append(Row((title, label, "seconds in all"), None, curve[:, -1, 1], None))
            rows.append(Row((title, label, f"seconds to {level - 0.5:.1f}%"), None, np.array(reached), None))
    notes = [
        *protocol.footnotes(settings, all_sizes[wanted[0][0]]),
        f"Accuracies on the way are of {protocol.LOOKED_AT} tasks. The level is half a point below where the slower "
        "method ends.",
    ]
    show(TITLE, ("task", "method", "what"), rows, notes)
    write_results(
        "figure4b",
        settings,
        seeds,
        seconds,
        {label: protocol.readable(label) for label in labels},
        {f"{label}, each step": evaluations(BILEVEL[label](1, LOWER_STEPS), 1) for label in labels},
        {"seconds": rows},
        notes,
    )
    line_panels(panels, settings.out / "figure4b.png")

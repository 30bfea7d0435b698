"""Table 5: data-augmentation attacks on softmax regression, MNIST, with 1 to 6% added points (appendix D.2).

Untargeted: test accuracy after retraining; lower is a stronger attack. Targeted: share of eights classified as threes.
All trials of a method are one solve. It saves checkpoints, its cells are kept in `cells/` under the output directory,
and a run that was stopped resumes from there.
"""

import functools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bilevax.applications.poisoning import distances
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cells
from experiments.common.compare import Published, Row, beside_paper, show, write_results
from experiments.common.runs import evaluations, readable
from experiments.common.settings import Settings, pick
from experiments.poisoning import protocol
from experiments.poisoning.protocol import SOLVERS, TARGETED, TRAINING, UNTARGETED, Size

TITLE = EXPERIMENTS["table5"].title
CLEAN, FLIPPED = "No attack", "Label flipping"
LABELS = (CLEAN, FLIPPED, *SOLVERS)
PERCENTS = (1, 2, 3, 4, 5, 6)
CLOSER = (2, 6)  # --medium has more trials for these
PAPER: dict[str, dict[str, tuple[tuple[float, float | None], ...]]] = {
    UNTARGETED: {
        FLIPPED: ((86.71, 0.32), (86.23, 0.98), (85.17, 0.96), (84.93, 0.55), (84.39, 1.06), (84.64, 0.69)),
        "RMD": ((85, None), (83, None), (82, None), (81, None), (80, None), (79, None)),
        "ApproxGrad": ((82.09, 0.84), (77.54, 0.57), (74.41, 1.14), (71.88, 0.40), (68.69, 0.86), (66.91, 0.89)),
        "Penalty": ((83.29, 0.43), (78.14, 0.53), (75.14, 1.09), (72.70, 0.46), (69.48, 1.93), (67.59, 1.17)),
    },
    TARGETED: {
        FLIPPED: ((7.76, 1.07), (12.08, 2.13), (18.36, 1.23), (24.41, 2.05), (30.41, 4.24), (32.88, 3.47)),
        "RMD": ((10, None), (15, None), (25, None), (35, None)),
        "ApproxGrad": ((18.84, 1.90), (39.64, 3.72), (52.76, 2.69), (60.01, 1.61), (65.61, 4.01), (71.48, 4.24)),
        "Penalty": ((17.40, 3.00), (41.64, 4.43), (51.40, 2.72), (61.16, 1.34), (65.52, 2.85), (70.01, 2.95)),
    },
}


def cells(settings: Settings) -> list[tuple[str, int, int]]:
    """Kind, percent and seed of each cell, trial by trial."""
    percents = (2, 6) if settings.quick else PERCENTS
    count = settings.seeds or (1 if settings.quick else 5)
    found = []
    for seed in range(count):
        wanted = CLOSER if settings.medium and seed >= 2 else percents
        found += [(kind, percent, seed) for kind in PAPER for percent in wanted]
    return found


def run_cells(kind: str, size: Size, out: Path, label: str, wanted: list[tuple[int, int]]) -> list[dict[str, float]]:
    """For each (percent, seed) the score of a method, its seconds, and how far its points moved (mean l2)."""
    draws = [protocol.draw(kind, size, *cell) for cell in wanted]
    if label not in SOLVERS:
        return [{"reached": protocol.judged(kind, d, d.flipped if label == FLIPPED else None)} for d in draws]
    tasks, labels = [protocol.task_of(kind, d) for d in draws], [d.points.y for d in draws]
    solver = SOLVERS[label](size.steps, size.lower_steps)
    with protocol.saves(out, kind, label, wanted) as directory:
        found = protocol.attacked_together(solver, tasks, labels, size.steps, directory)
        return [
            {
                "reached": protocol.judged(kind, d, one.points),
                "seconds": one.seconds,
                "moved": float(distances(one.points.x, d.points.x).mean()),
            }
            for d, one in zip(draws, found, strict=True)
        ]


def run(settings: Settings) -> None:
    """Run what is missing, compare, and write `results.json`."""
    labels = pick(LABELS, settings.solver)
    all_sizes = protocol.sizes(settings)
    began = time.perf_counter()
    wanted = cells(settings)
    kept = {
        kind: kept_cells(
            {
                (percent, seed): settings.out / "cells" / f"{kind}-{percent}-{seed}.json"
                for of, percent, seed in wanted
                if of == kind
            },
            labels,
            functools.partial(run_cells, kind, size, settings.out),
        )
        for kind, size in all_sizes.items()
    }
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for kind, percent, seed in wanted:
        found.setdefault((kind, percent), []).append(kept[kind][percent, seed])
    seconds = time.perf_counter() - began

    def rows_of(field: str) -> list[Row]:
        return [
            compared(
                kind, percent, label, field, [trial[label][field] for trial in found[kind, percent]], settings.quick
            )
            for kind, percent in sorted(found, key=lambda cell: (cell[0] != UNTARGETED, cell[1]))
            for label in labels
            if field in found[kind, percent][0][label]
        ]

    fields = (
        ("test accuracy or success, %", "reached"),
        ("distance of the points from their start, mean l2", "moved"),
        ("seconds, share of one solve", "seconds"),
    )
    tables = {kind: rows for kind, field in fields if (rows := rows_of(field))}
    notes = footnotes(settings, all_sizes)
    for kind, rows in tables.items():
        show(f"{TITLE}: {kind}", ("attack", "points", "method"), rows, notes if kind == fields[-1][0] else ())
    size = all_sizes[UNTARGETED]
    solvers = {label: make(1, size.lower_steps) for label, make in SOLVERS.items()}
    write_results(
        "table5",
        settings,
        sorted({seed for _, _, seed in wanted}),
        seconds,
        {label: readable(solver) for label, solver in solvers.items()},
        {f"{label}, each solve": evaluations(solver, size.steps) for label, solver in solvers.items()},
        tables,
        notes,
        sizes={kind: asdict(size) for kind, size in all_sizes.items()},
    )


def compared(kind: str, percent: int, label: str, field: str, ours: list[float], quick: bool = False) -> Row:
    """A row of the table; the paper has results for most cells, with which a small run is not compared."""
    printed = PAPER[kind].get(label, ()) if field == "reached" else ()
    paper = Published(*printed[percent - 1]) if percent <= len(printed) else None
    return beside_paper((kind, f"{percent}%", label), paper, ours, small=quick)


def footnotes(settings: Settings, all_sizes: dict[str, Size]) -> list[str]:
    """Differences between our protocol and the paper's."""
    size = all_sizes[UNTARGETED]
    notes = [
        "Untargeted: test accuracy, lower is a stronger attack. Targeted: share of eights classified as threes, higher "
        "is a stronger attack. Both are measured after retraining from scratch on clean samples and points.",
        f"K = {size.steps}, T = {size.lower_steps}, the same settings in all cells. The paper's gamma 10, lambda 100 "
        "(untargeted) and 1 (targeted) and no multipliers are gamma 1, lambda 10 and multipliers that move at every "
        "step here; u moves by Adam at 0.03 falling to zero, where the paper has 0.1.",
        "RMD's published figures are those of Munoz-Gonzalez et al. (2017), as the paper cites them; ours is "
        "back-gradient descent through the last T moves from where v stopped.",
        "The paper starts from samples of 'incorrect random labels'; so do all rows here, on the same draw. In the "
        "targeted attack these are eights labelled three; the paper states that threes are also labelled eight, but "
        "its result for label flipping is that of eights alone.",
        f"The weight decay is {TRAINING.l2 / 2:g} times the squared norm. That weight and twice that weight give "
        "the paper's 87% without an attack; the 0.05 in the paper does not. With twice the weight all attacks are "
        "weaker.",
    ]
    if settings.quick:
        notes.append("--quick: a fifth of the samples; the paper's figures cannot be reached at this size.")
    if settings.medium:
        notes.append(f"--medium: full size, 2 trials of each cell and 5 of those of {CLOSER[0]} and {CLOSER[1]}%.")
    return notes

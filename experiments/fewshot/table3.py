"""Table 3: few-shot learning on Omniglot and mini-ImageNet (section 3.3, appendix E.3)."""

import time
from typing import Any

from bilevax import InputError
from bilevax.applications.fewshot.recipes import LOWER_STEPS
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Published, Row, beside_paper, show, write_results
from experiments.common.images import MINI, OMNIGLOT
from experiments.common.runs import evaluations
from experiments.common.settings import Settings, pick, pick_data_sets
from experiments.fewshot import protocol
from experiments.fewshot.protocol import BILEVEL, OTHERS, PIXELS

TITLE = EXPERIMENTS["table3"].title
CELLS = {OMNIGLOT: ((5, 1), (5, 5), (20, 1), (20, 5)), MINI: ((5, 1), (5, 5))}
# As in the paper's Table 3; for Penalty and ApproxGrad s.d. on Omniglot, 95% intervals on mini-ImageNet.
PAPER: dict[str, dict[tuple[str, int, int], Published]] = {
    "Penalty": {
        (OMNIGLOT, 5, 1): Published(97.83, 0.35),
        (OMNIGLOT, 5, 5): Published(99.45, 0.05),
        (OMNIGLOT, 20, 1): Published(94.06, 0.17),
        (OMNIGLOT, 20, 5): Published(98.47, 0.08),
        (MINI, 5, 1): Published(53.17, 0.96),
        (MINI, 5, 5): Published(67.74, 0.71),
    },
    "ApproxGrad": {
        (OMNIGLOT, 5, 1): Published(97.75, 0.06),
        (OMNIGLOT, 5, 5): Published(99.51, 0.05),
        (OMNIGLOT, 20, 1): Published(94.69, 0.22),
        (OMNIGLOT, 20, 5): Published(98.46, 0.08),
        (MINI, 5, 1): Published(43.74, 1.75),
        (MINI, 5, 5): Published(65.56, 0.67),
    },
    "RMD": {
        (OMNIGLOT, 5, 1): Published(98.6),
        (OMNIGLOT, 5, 5): Published(99.5),
        (OMNIGLOT, 20, 1): Published(95.5),
        (OMNIGLOT, 20, 5): Published(98.4),
        (MINI, 5, 1): Published(50.54, 0.85),
        (MINI, 5, 5): Published(64.53, 0.68),
    },
}


def cells(settings: Settings) -> list[tuple[str, int, int]]:
    """Data set, way and shot of each cell.

    Raises:
        InputError: no cell matches the settings.
    """
    names = pick_data_sets(tuple(protocol.sizes(settings)), settings.dataset)
    way_asked = 5 if settings.way is None and (settings.quick or settings.medium) else settings.way
    found = [
        (name, way, shot)
        for name in names
        for way, shot in CELLS[name]
        if way_asked in (None, way) and settings.shot in (None, shot)
    ]
    if not found:
        raise InputError(
            f"No cell has --way {settings.way} and --shot {settings.shot}. Way is 5 or 20 (mini_imagenet: 5), shot 1 "
            "or 5."
        )
    return found


def run(settings: Settings) -> None:
    """Run every missing cell, compare, and write `results.json`."""
    wanted, all_sizes = cells(settings), protocol.sizes(settings)
    seeds = list(range(settings.seeds or (1 if settings.quick or settings.medium else 5)))
    labels = (
        list(all_sizes[wanted[0][0]].labels)
        if settings.solver is None
        else pick((PIXELS, *BILEVEL, *OTHERS), settings.solver)
    )
    began = time.perf_counter()
    found = protocol.cells_of(settings, wanted, seeds, labels)
    seconds = time.perf_counter() - began

    def rows_of(field: str) -> list[Row]:
        return [
            compared(cell, label, field, [trial[label][field] for trial in found[cell]], settings)
            for cell in wanted
            for label in labels
            if found[cell][0][label][field] is not None
        ]

    fields = {
        "accuracy %": "accuracy",
        "half the 95% interval over tasks": "half_width",
        "seconds": "seconds",
        "seconds of an upper iteration": "each",
    }
    tables = {title: rows for title, field in fields.items() if (rows := rows_of(field))}
    first = all_sizes[wanted[0][0]]
    notes = protocol.footnotes(settings, first)
    for title, rows in tables.items():
        show(f"{TITLE}: {title}", ("data", "task", "method"), rows, notes if title == list(tables)[-1] else ())
    learned = [label for label in labels if label != PIXELS]
    write_results(
        "table3",
        settings,
        seeds,
        seconds,
        {label: protocol.readable(label) for label in learned},
        {
            f"{label}, each step": evaluations(BILEVEL[label](1, LOWER_STEPS), 1)
            for label in learned
            if label in BILEVEL
        },
        tables,
        notes,
        size={k: x for k, x in vars(first).items() if k != "network"},
    )


def compared(cell: tuple[str, int, int], label: str, field: str, ours: list[Any], settings: Settings) -> Row:
    """A row of the table, with the paper's number if there is one; a small run is not compared with it."""
    paper = PAPER.get(label, {}).get(cell) if field == "accuracy" else None
    where = cell[0], f"{cell[1]}-way {cell[2]}-shot", label
    return beside_paper(where, paper, ours, small=settings.quick or settings.medium)

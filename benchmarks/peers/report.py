"""Tables in Markdown, from rows."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.competitors import FLOOR
from benchmarks.peers.run import Cell, Row
from benchmarks.peers.works import WORKS, Work

FAILED, NOTHING = "failed", "-"


def milliseconds(values: Sequence[float]) -> str:
    """Median and range, in milliseconds.

    Example:
        >>> from benchmarks.peers.report import milliseconds
        >>> milliseconds([0.0012, 0.001, 0.0031])
        '1.2 (1..3.1)'
    """
    middle, *ends = (f"{1e3 * x:.3g}" for x in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({'..'.join(ends)})"


def ratio(values: Sequence[float], others: Sequence[float]) -> float | None:
    """The median of the ratios of pairs of runs; None without any."""
    pairs = [a / b for a, b in zip(values, others, strict=False) if b > 0]
    return statistics.median(pairs) if pairs else None


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _middle(cell: Cell) -> float | None:
    return statistics.median(cell.seconds) if cell.seconds else None


def seconds_to_target(row: Row, reach: int) -> float | None:
    """Iterations to the target times the time of one."""
    cell = row.cells.get(reach)
    middle = None if cell is None else _middle(cell)
    return None if row.iterations is None or middle is None else row.iterations * middle


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(work: Work, rows: Sequence[Row], moves: Sequence[int], reach: int | None) -> str:
    """The table of a work, with notes below it on failures. The smallest value of a column is bold."""
    at = reach if reach is not None and reach in moves else moves[-1]
    heads = ["", *(f"ms, T = {T}" for T in moves), f"/ bilevax, T = {at}", f"/ floor, T = {at}"]
    heads += [f"MiB, T = {'; '.join(map(str, moves))}", "first, s"]
    heads += [] if reach is None else ["iterations to target", "s to target"]
    lines = [f"### {work.title[0].upper()}{work.title[1:]}", "", _line(heads), _line(["---"] * len(heads))]
    by_key = {row.key: row for row in rows}
    floor = by_key.get(FLOOR)
    real = [row for row in rows if row.method != FLOOR]
    least = {T: min((m for row in real if (m := _middle(row.cells[T])) is not None), default=None) for T in moves}
    quickest = None
    if reach is not None:
        quickest = min((s for row in real if (s := seconds_to_target(row, reach)) is not None), default=None)
    notes: list[str] = []

    def note(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f"[{notes.index(text) + 1}]"

    for row in rows:
        if row.failed is not None:
            cells = [row.name, f"{FAILED} {note(row.failed)}", *[NOTHING] * (len(heads) - 2)]
            lines.append(_line(cells))
            continue
        cells = [row.name]
        for T in moves:
            cell = row.cells[T]
            if cell.failed is not None:
                cells.append(f"{FAILED} {note(cell.failed)}")
            else:
                best = row.method != FLOOR and _middle(cell) == least[T]
                cells.append(_bold(milliseconds(cell.seconds), best) if cell.seconds else NOTHING)
        ours = by_key.get(f"bilevax:{row.beside}")
        cells += [_ratio_text(row, other, at) for other in (ours, floor)]
        cells.append("; ".join(_mebibytes(row.cells[T]) for T in moves))
        first = row.cells[at].first
        cells.append(NOTHING if first is None else f"{first:.2g}")
        if reach is not None:
            taken = seconds_to_target(row, reach)
            if row.iterations is None:
                cells.append(NOTHING if row.unreached is None else f"none {note(row.unreached)}")
            else:
                cells.append(str(row.iterations))
            cells.append(NOTHING if taken is None else _bold(f"{taken:.3g}", taken == quickest))
        lines.append(_line(cells))
    if reach is not None:
        sign = "at least" if work.rising else "at most"
        lines += ["", f"Target: {work.measure} {sign} {work.target:g}, with T = {reach}."]
    if notes:
        lines += ["", *(f"[{i}] {text}" for i, text in enumerate(notes, 1))]
    return "\n".join(lines)


def summary(found: Mapping[str, Sequence[Row]], at: int) -> str:
    """One table of all works: the time of an upper iteration over that of bilevax's row of the same method."""
    lines = [_line([f"time / bilevax's, T = {at}", "method", *found]), _line(["---"] * (len(found) + 2))]
    by_work = {name: {row.key: row for row in rows} for name, rows in found.items()}
    for key, first in {row.key: row for rows in found.values() for row in rows}.items():
        if key.startswith("bilevax:"):
            continue
        cells = []
        for rows in by_work.values():
            row, ours = rows.get(key), rows.get(f"bilevax:{first.beside}")
            if row is None or ours is None:
                cells.append(NOTHING)
            elif row.failed is not None or row.cells[at].failed is not None:
                cells.append(FAILED)
            elif first.method == FLOOR:  # no way of doing it is below
                value = ratio(row.cells[at].seconds, ours.cells[at].seconds)
                cells.append(NOTHING if value is None else f"{value:.2f}")
            else:
                cells.append(_over(row, ours, at))
        lines.append(_line([first.name, NOTHING if first.method == FLOOR else first.beside, *cells]))
    return "\n".join(lines)


def _over(row: Row, ours: Row, at: int) -> str:
    value = ratio(row.cells[at].seconds, ours.cells[at].seconds)
    if value is None:
        return NOTHING
    return _bold(f"{value:.2f}" if value < 100 else f"{value:,.0f}", value < 1)


def _ratio_text(row: Row, other: Row | None, at: int) -> str:
    if other is None or other is row or at not in other.cells:
        return NOTHING
    if other.method == FLOOR and row.method != "penalty":
        return NOTHING  # the floor is that of Penalty's products
    found = ratio(row.cells[at].seconds, other.cells[at].seconds)
    return NOTHING if found is None else f"{found:.2f}"


def _mebibytes(cell: Cell) -> str:
    return NOTHING if cell.memory is None else f"{cell.memory / 2**20:.0f}"


def as_json(works: dict[str, tuple[Work, Sequence[Row]]], **more: Any) -> dict[str, Any]:
    """The whole record, for --out."""
    found = {
        name: {
            "title": work.title,
            "measure": work.measure,
            "target": work.target,
            "rows": [row.record() for row in rows],
        }
        for name, (work, rows) in works.items()
    }
    return more | {"works": found}


def from_json(kept: Mapping[str, Any]) -> dict[str, tuple[Work, list[Row]]]:
    """The reverse of `as_json`."""
    found = {}
    for name, entry in kept["works"].items():
        rows = []
        for row in entry["rows"]:
            cells = {int(moves): Cell(**cell) for moves, cell in row["cells"].items()}
            rows.append(Row(**(row | {"cells": cells})))
        found[name] = WORKS[name], rows
    return found


def whole(kept: Mapping[str, Any]) -> str:
    """The summary and all tables of a file of --out, with the command and the machine."""
    found, at = from_json(kept), kept["reach"] or kept["moves"][-1]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(kept["versions"].items()))
    how = f"{kept['threads']} threads, {kept['runs']} interleaved runs, float32, {kept['seconds']:.0f} s"
    parts = [
        f"`{kept['command']}` on {kept['machine']}; {how}. {versions}.",
        summary({name: rows for name, (_, rows) in found.items()}, at),
        *(table(work, rows, kept["moves"], kept["reach"]) for work, rows in found.values()),
    ]
    return "\n\n".join(parts) + "\n"

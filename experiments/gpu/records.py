"""One record of a cell from the records of its rows."""

from collections.abc import Sequence
from typing import Any


def merged(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the record of a cell, joined from the records of its rows.

    Tables, solvers and counts are joined; notes are taken once. Versions and the device are those of the runs.

    Args:
        records: `results.json` of each row, of one experiment and the same seeds, in the order of the rows.

    Raises:
        ValueError: the runs were made by different versions or on different devices.
    """
    first = records[0]
    for record in records[1:]:
        for field in ("experiment", "seeds", "versions", "device"):
            if record[field] != first[field]:
                raise ValueError(f"{field} is {first[field]} in one run and {record[field]} in another.")
    tables: dict[str, list[Any]] = {}
    for record in records:
        for title, rows in record["results"].items():
            tables.setdefault(title, []).extend(rows)
    return {
        **first,
        "settings": {**first["settings"], "solver": None},
        "wall_seconds": sum(record["wall_seconds"] for record in records),
        "solvers": {label: x for record in records for label, x in record["solvers"].items()},
        "gradient_evaluations": {k: x for record in records for k, x in record["gradient_evaluations"].items()},
        "results": tables,
        "footnotes": list(dict.fromkeys(note for record in records for note in record["footnotes"])),
    }

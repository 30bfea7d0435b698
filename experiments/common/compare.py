"""The comparison with the paper: rows, the table that is printed, and `results.json`."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import bilevax
from bilevax.plots import Line, LinePanel
from experiments.common.settings import Settings

VERSIONS_OF = ("jax", "jaxlib", "optax", "lineax", "numpy")
DEVIATIONS = 2.0


class Published(NamedTuple):
    """A number in the paper: mean and, if it is printed, standard deviation."""

    mean: float
    sd: float | None = None


class Row(NamedTuple):
    """One comparison.

    Attributes:
        where: what is compared, one text for each heading of the table.
        paper: the paper's number; True or False if the paper states only whether a method converges;
            None if it states nothing.
        ours: one value for each seed.
        agrees: whether the two agree within noise; None if this cannot be determined.
    """

    where: tuple[str, ...]
    paper: Published | bool | None
    ours: np.ndarray
    agrees: bool | None


def within_noise(paper: Published, ours: np.ndarray) -> bool:
    """Whether the means differ by at most two standard deviations, the paper's and ours combined.

    Example:
        >>> import numpy as np
        >>> from experiments.common.compare import Published, within_noise
        >>> within_noise(Published(90.0, 0.5), np.array([90.5, 91.0])), within_noise(Published(90.0), np.array([7.0]))
        (True, False)
    """
    ours = np.asarray(ours, float)
    return bool(abs(ours.mean() - paper.mean) <= DEVIATIONS * np.hypot(paper.sd or 0.0, _sd(ours)))


def beside_paper(where: tuple[str, ...], paper: Published | None, ours: Any, small: bool = False) -> Row:
    """A row with the paper's number, if there is one.

    Args:
        where: one text for each heading of the table.
        paper: the paper's number, or None.
        ours: one value for each seed.
        small: a run of reduced size, which is not expected to agree with the paper.

    Example:
        >>> from experiments.common.compare import Published, beside_paper
        >>> beside_paper(("mnist",), Published(90.0, 0.5), [90.5, 91.0]).agrees
        True
    """
    values = np.asarray(ours, float)
    return Row(where, paper, values, None if small or paper is None else within_noise(paper, values))


def show(
    title: str, headings: Sequence[str], rows: Sequence[Row], footnotes: Sequence[str] = (), unit: str = ""
) -> None:
    """Print the comparison of the paper's numbers with ours."""
    table = Table(*headings, title=title, title_justify="left")
    table.add_column("paper", justify="right")
    table.add_column(f"ours{f' ({unit})' if unit else ''}, mean +- s.d.", justify="right")
    table.add_column("agree within noise")
    previous = None
    for row in rows:
        if previous is not None and row.where[0] != previous:
            table.add_section()
        previous = row.where[0]
        table.add_row(*row.where, _paper_text(row.paper), ours_text(row.ours), _agrees_text(row.agrees))
    console = Console()
    console.print(table)
    for mark, note in enumerate(footnotes, 1):
        console.print(f"[{mark}] {note}", markup=False, highlight=False, soft_wrap=True)


def against_moves(tables: Mapping[str, Sequence[Row]]) -> list[LinePanel]:
    """A panel for each table: a line for each method, against T. The last two texts of a row are method and T."""
    panels = []
    for name, rows in tables.items():
        values: dict[str, dict[int, np.ndarray]] = {}
        for row in rows:
            values.setdefault(row.where[-2], {})[int(row.where[-1])] = row.ours
        lines = {label: Line(list(by_T), np.stack(list(by_T.values()), 1)) for label, by_T in values.items()}
        panels.append(LinePanel(name[0].upper() + name[1:], "lower moves T", name, lines))
    return panels


def ours_text(values: np.ndarray) -> str:
    """Mean +- standard deviation over the seeds.

    Example:
        >>> from experiments.common.compare import ours_text
        >>> ours_text([1.0, 2.0])
        '1.5000 +- 0.7071'
    """
    values = np.asarray(values, float)
    return f"{values.mean():.4f} +- {_sd(values):.4f}"


def write_results(
    name: str,
    settings: Settings,
    seeds: Sequence[int],
    seconds: float,
    solvers: dict[str, Any],
    gradient_evaluations: dict[str, Any],
    tables: Mapping[str, Sequence[Row]],
    footnotes: Sequence[str],
    **more: Any,
) -> Path:
    """Write `results.json` into settings.out: what was run, where, and the results.

    Args:
        name: the experiment's.
        settings: as the user gave them.
        seeds: of the trials.
        seconds: wall time of the computation, with compilation and without drawing.
        solvers: by label, the settings of each, as JSON values or as objects with a meaningful `str`.
        gradient_evaluations: by label, the number of each kind in all trials of a run.
        tables: the comparisons by the name of the settings they were run with.
        footnotes: differences between our protocol and the paper's.
        more: further numbers of this experiment.
    """
    record = {
        "experiment": name,
        "settings": {k: str(x) if isinstance(x, Path) else x for k, x in vars(settings).items() if k != "out"},
        **surroundings(*VERSIONS_OF),
        "seeds": list(seeds),
        "wall_seconds": seconds,
        "solvers": solvers,
        "gradient_evaluations": gradient_evaluations,
        "results": {title: [_row_record(row) for row in rows] for title, rows in tables.items()},
        "footnotes": list(footnotes),
        **more,
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "results.json"
    path.write_text(json.dumps(record, indent=1, default=str, allow_nan=False) + "\n")
    return path


def surroundings(*packages: str) -> dict[str, Any]:
    """Versions of Python, bilevax and some packages, and the device, for a record."""
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            "bilevax": bilevax.__version__,
            **{package: version(package) for package in packages},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
    }


def _row_record(row: Row) -> dict[str, Any]:
    values = np.asarray(row.ours, float)
    paper = row.paper._asdict() if isinstance(row.paper, Published) else row.paper
    # JSON has no NaN; a trial without a finite value is null.
    finite = [x if np.isfinite(x) else None for x in values.tolist()]
    mean, sd = (x if np.isfinite(x) else None for x in (float(values.mean()), _sd(values)))
    return {
        "where": list(row.where),
        "paper": paper,
        "ours": {"mean": mean, "sd": sd, "values": finite},
        "agrees": row.agrees,
    }


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _paper_text(paper: Published | bool | None) -> str:
    if paper is None:
        return "not given"
    if isinstance(paper, bool):
        return "converges" if paper else "does not"
    return f"{paper.mean:g}" + ("" if paper.sd is None else f" +- {paper.sd:g}")


def _agrees_text(agrees: bool | None) -> str:
    return "" if agrees is None else "yes" if agrees else "no"


def _processor() -> str:
    """The processor's name, as given by Linux if available."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()

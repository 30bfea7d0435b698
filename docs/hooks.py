"""Additions to the site as mkdocs builds it: MathJax, the papers' results."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WRONG_LABELS = "%%wrong-labels%%"
SOMETIMES = [
    ("gallery.md", "Gallery", "Results of the papers"),
    ("peers.md", "Benchmark", "Coming from other libraries"),
]
LEAD = """# Results of the papers

This page is made from `experiments/RESULTS.md` when the site is built, and
that file from what the commands wrote: no number is typed in by hand. Each
heading is the command. "Paper" is the number printed in the paper, if there
is one, and **differs** marks a disagreement beyond noise.
[Choosing a solver](solvers.md) describes the methods.
"""


def mathjax() -> Path:
    """The folder of MathJax 3 in the package django-static-mathjax.

    It holds these files and nothing else: Django is not needed.
    """
    spec = importlib.util.find_spec("mathjax")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The package django-static-mathjax is missing, from which the "
            "site has MathJax. Install it by pip install -e '.[docs]'."
        )
    return Path(spec.origin).parent / "static" / "mathjax"


def sections() -> list[str]:
    """The sections of RESULTS.md, each from its heading on."""
    text = (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8")
    return text.split("\n## ")[1:]


def wrong_labels() -> str:
    """A table of average precisions of the experiment wrong-labels."""
    names = ("bilevax", "cleanlab", "Val-Only", "Train+Val")
    heads = (
        "data set",
        "labels flipped",
        *names[:2],
        "trusted alone",
        "all labels",
    )
    table = [f"| {' | '.join(heads)} |", "|---" * 6]
    for section in sections():
        _, found, rest = section.partition("**average precision**\n\n")
        if "wrong-labels" not in section.partition("\n")[0] or not found:
            continue
        header, _, *rows = map(_cells, rest.partition("\n\n")[0].splitlines())
        columns = [header.index(name) for name in names]
        for kind in ("uniform", "pair"):
            row = next(r for r in rows if r[1] == f"{kind} 25%, 1000 clean")
            means = [row[i].partition(" ± ")[0] for i in columns]
            table.append("| " + " | ".join([row[0], kind, *means]) + " |")
    return "\n".join(table)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def on_config(config: Any) -> Any:
    """Give pages that are not always there their places."""
    for page, title, before in SOMETIMES:
        if (Path(config.docs_dir) / page).is_file():
            place = [next(iter(entry)) for entry in config.nav].index(before)
            config.nav.insert(place, {title: page})
    return config


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put a table in the place of its name."""
    if WRONG_LABELS not in markdown:
        return markdown
    return markdown.replace(WRONG_LABELS, wrong_labels())


def on_files(files: Files, config: Any) -> Files:
    """Add files that are not in docs/."""
    page = "\n## ".join([LEAD, *sections()])
    files.append(File.generated(config, "results.md", content=page))
    beside = {
        "mathjax/tex-svg.js": mathjax() / "es5" / "tex-svg.js",
        "mathjax/LICENSE": mathjax() / "LICENSE",
    }
    for picture in set(re.findall(r"\]\((figures/[^)]+)\)", page)):
        beside[picture] = EXPERIMENTS / picture
    for name, path in beside.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files

"""RESULTS.md from the results.json of the experiments: `python -m experiments.common.report RECORD [RECORD ...]`.

Every number in RESULTS.md is written by this module: none is typed in by hand.
"""

import argparse
import json
from pathlib import Path
from typing import Any

EXPERIMENTS = Path(__file__).parents[1]
HEAD = """# Results

Written by `python -m experiments.common.report` from what the commands below wrote; no figure is typed in by hand.
"""


def main() -> None:
    """Read the records and write RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m experiments.common.report", description=__doc__)
    parser.add_argument("records", nargs="+", type=Path, help="results.json files, or directories that hold one")
    parser.add_argument("--benchmarks", type=Path, help="what `make bench` printed, taken over as it stands")
    parser.add_argument("--scale", type=Path, help="what `python -m benchmarks.scale` printed, copied in the same way")
    parser.add_argument("--peers", type=Path, help="what `python -m benchmarks.peers --read` printed, the same")
    parser.add_argument("--out", type=Path, default=EXPERIMENTS / "RESULTS.md")
    options = parser.parse_args()
    parts = [HEAD]
    for record in options.records:
        found = json.loads((record / "results.json" if record.is_dir() else record).read_text())
        parts.append(denoising(found) if found["experiment"] == "denoising_digits" else compared(found))
    if options.benchmarks:
        parts.append(f"## `make bench`\n\n```\n{options.benchmarks.read_text().strip()}\n```\n")
    if options.scale:
        picture = "![time and memory against size](figures/scale.png)"
        parts.append(f"## `python -m benchmarks.scale`\n\n```\n{options.scale.read_text().strip()}\n```\n\n{picture}\n")
    if options.peers:
        parts.append(f"## Beside other libraries\n\n{options.peers.read_text().strip()}\n")
    options.out.write_text("\n".join(parts))


def circumstances(found: dict[str, Any]) -> str:
    """Machine, versions and time of a run, in a sentence."""
    device, versions = found["device"], found["versions"]
    machine = ", ".join(str(x) for x in device.values()) if isinstance(device, dict) else device
    seeds = found["seeds"]
    return (
        f"Seeds {seeds[0]} to {seeds[-1]}; {found['wall_seconds']:.0f} s, without kept trials, on {machine} "
        f"(Python {versions['python']}, jax {versions['jax']}).\n"
    )


def compared(found: dict[str, Any]) -> str:
    """The tables of an experiment that compares with the papers."""
    options = [f"--{k}" for k in ("quick", "medium") if found["settings"][k]]
    options += [
        f"--{k} {found['settings'][k]}"
        for k in ("dataset", "noise", "way", "shot", "solver", "seeds")
        if found["settings"].get(k)
    ]
    lines = [f"## `{' '.join(['python -m experiments', found['experiment'], *options])}`\n", circumstances(found)]
    for name, rows in found["results"].items():
        lines += [f"**{name}**\n"]
        if all(len(row["where"]) >= 3 for row in rows):
            columns = list(dict.fromkeys(row["where"][2] for row in rows))
            lines += [
                "| | | " + " | ".join(f"T = {c}" if c.isdigit() else c for c in columns) + " |",
                "|---" * (len(columns) + 2) + "|",
            ]
            cells: dict[tuple[str, str], dict[str, str]] = {}
            for row in rows:
                cells.setdefault(tuple(row["where"][:2]), {})[row["where"][2]] = cell(row)
            for where, by_column in cells.items():
                entries = [by_column.get(c, "") for c in columns]
                lines.append(f"| {where[0]} | {where[1]} | " + " | ".join(entries) + " |")
        else:
            lines += ["| | ours |", "|---|---|"]
            lines += [f"| {', '.join(row['where'])} | {cell(row)} |" for row in rows]
        lines.append("")
    lines += [f"{i}. {note}" for i, note in enumerate(found["footnotes"], 1)]
    pictures = sorted((EXPERIMENTS / "figures").glob(f"{found['experiment']}*.png"))
    lines += [f"\n![{picture.stem}](figures/{picture.name})" for picture in pictures]
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
    """Our mean, with ± s.d. over several values, and the paper's number."""
    ours, paper = row["ours"], row["paper"]
    text = f"{ours['mean']:.4f}" + (f" ± {ours['sd']:.4f}" if len(ours["values"]) > 1 else "")
    if paper is None:
        return text
    if isinstance(paper, bool):
        return f"{text} (paper: {'converges' if paper else 'does not'}{'' if row['agrees'] else '; **differs**'})"
    sd = "" if paper["sd"] is None else f" ± {paper['sd']}"
    return f"{text} (paper: {paper['mean']}{sd})"


def denoising(found: dict[str, Any]) -> str:
    """The table of wrong labels among digits."""
    lines = [
        "## `python -m experiments.denoising.digits`\n",
        circumstances(found),
        "| trained on | test accuracy % | gap closed % | precision % | recall % | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():

        def shown(figure: str, row: dict[str, Any] = row) -> str:
            return f"{row[figure]['mean']:.2f} ± {row[figure]['sd']:.2f}" if figure in row else ""

        gap, seconds = f"{100 * row['gap_closed']:.0f}", f"{row['seconds']['mean']:.1f}"
        entries = [name, shown("accuracy"), gap, shown("precision"), shown("recall"), seconds]
        lines.append(f"| {' | '.join(entries)} |")
    lines += [
        "",
        "scikit-learn's digits, 1,000 training samples of which 40% have a wrong label, 200 clean, 597 for the test; "
        "mean and s.d. over the seeds. The gap is from clean only to the oracle, of the means. Settings were chosen on "
        "seeds 100 to 109: about 20 for Penalty, about 8 for ApproxGrad, so the two are not an even comparison. "
        "'agreement alone' is the start that both are given, with no bilevel solve: much of the gain is its own.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""The figure of the race: a panel for each problem."""

from pathlib import Path
from typing import Any

import numpy as np


def draw(path: Path, found: dict[str, dict[str, Any]], figures: dict[str, str]) -> None:
    """Draw the median over the seeds of each method against processor seconds.

    Args:
        path: of the picture.
        found: the looks by problem and method, a list over the seeds.
        figures: what is measured, by problem.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.6), squeeze=False)
    for panel, (name, by_label) in zip(axes[0], found.items(), strict=True):
        for label, runs in by_label.items():
            length = min(len(x["seconds"]) for x in runs)
            seconds = np.median([x["seconds"][:length] for x in runs], 0)
            values = np.median([x["figures"][:length] for x in runs], 0)
            panel.plot(seconds, np.where(values < 1e20, values, np.nan), label=label)
        panel.set(title=name, xlabel="processor seconds", ylabel=figures[name])
        panel.set_yscale("log")
    axes[0][-1].legend(fontsize=8)
    picture.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)
    plt.close(picture)

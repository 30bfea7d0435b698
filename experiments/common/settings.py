"""The settings of a run, and the choice of methods, data sets and noise levels by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bilevax import InputError


@dataclass(frozen=True)
class Settings:
    """The options of an experiment.

    Args:
        quick: under two minutes on two CPU cores.
        medium: between quick and full size, if an experiment has such a size.
        seeds: the number of trials; None for the experiment's own.
        solver: restrict the run to the method with this label.
        dataset: restrict the run to this data set, if an experiment has several.
        noise: restrict the run to this percentage of wrong labels, if an experiment has several.
        way, shot: restrict the run to tasks of this many classes, and samples of each, if an experiment has several.
        features: a file of images and a feature map, if an experiment takes one.
        minutes: the time for all cells, if an experiment is limited by time.
        out: the directory that results.json and the figures go to.
    """

    quick: bool = False
    medium: bool = False
    seeds: int | None = None
    solver: str | None = None
    dataset: str | None = None
    noise: int | None = None
    way: int | None = None
    shot: int | None = None
    features: Path | None = None
    minutes: float | None = None
    out: Path = Path("out")


def pick(labels: Sequence[str], solver: str | None) -> list[str]:
    """All labels, or the one given by --solver.

    Raises:
        InputError: there is no such label.
    """
    if solver is None:
        return list(labels)
    for label in labels:
        if label.lower() == solver.lower():
            return [label]
    raise InputError(f"--solver is {solver!r}, which this experiment does not have. Pass one of {', '.join(labels)}.")


def pick_data_sets(names: Sequence[str], wanted: str | None) -> list[str]:
    """All names, or the one given by --dataset.

    Raises:
        InputError: the experiment has no such data set.
    """
    if wanted is None:
        return list(names)
    if wanted not in names:
        raise InputError(
            f"--dataset is {wanted!r}, which this experiment does not have. Pass one of {', '.join(names)}."
        )
    return [wanted]


def pick_noise(levels: Sequence[int], wanted: int | None) -> list[int]:
    """All percentages of wrong labels, or the one given by --noise.

    Raises:
        InputError: the experiment has no such percentage.
    """
    if wanted is None:
        return list(levels)
    if wanted not in levels:
        known = ", ".join(map(str, levels))
        raise InputError(f"--noise is {wanted}, which this experiment does not have. Pass one of {known}.")
    return [wanted]

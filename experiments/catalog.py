"""The experiments by name, for `bilevax reproduce`."""

from collections.abc import Callable
from typing import NamedTuple

from experiments import (
    denoising_small,
    figure1,
    figure2,
    figure3,
    figure4a,
    figure4b,
    figure5a,
    figure5b,
    figure5c,
    figure6,
    figure7,
    spnbo_table3,
    spnbo_table4,
    spnbo_table5,
    table2,
    table3,
    table4,
    table5,
    table6,
    wrn,
    wrong_labels,
)
from experiments.contract import Settings as Settings


class Experiment(NamedTuple):
    """A table or figure of the papers: what it is, and what runs it."""

    title: str
    run: Callable[[Settings], None]


EXPERIMENTS: dict[str, Experiment] = {
    "figure1": Experiment(figure1.TITLE, figure1.run),
    "figure2": Experiment(figure2.TITLE, figure2.run),
    "figure3": Experiment(figure3.TITLE, figure3.run),
    "figure4a": Experiment(figure4a.TITLE, figure4a.run),
    "figure4b": Experiment(figure4b.TITLE, figure4b.run),
    "figure5a": Experiment(figure5a.TITLE, figure5a.run),
    "figure5b": Experiment(figure5b.TITLE, figure5b.run),
    "figure5c": Experiment(figure5c.TITLE, figure5c.run),
    "figure6": Experiment(figure6.TITLE, figure6.run),
    "figure7": Experiment(figure7.TITLE, figure7.run),
    "denoising-small": Experiment(denoising_small.TITLE, denoising_small.run),
    "table2": Experiment(table2.TITLE, table2.run),
    "table3": Experiment(table3.TITLE, table3.run),
    "table4": Experiment(table4.TITLE, table4.run),
    "table5": Experiment(table5.TITLE, table5.run),
    "table6": Experiment(table6.TITLE, table6.run),
    "spnbo-table3": Experiment(spnbo_table3.TITLE, spnbo_table3.run),
    "spnbo-table4": Experiment(spnbo_table4.TITLE, spnbo_table4.run),
    "spnbo-table5": Experiment(spnbo_table5.TITLE, spnbo_table5.run),
    "wrn": Experiment(wrn.TITLE, wrn.run),
    "wrong-labels": Experiment(wrong_labels.TITLE, wrong_labels.run),
}

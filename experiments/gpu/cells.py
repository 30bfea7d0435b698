"""The queue: the full-size cells of the papers, in the order of their worth."""

from typing import NamedTuple

from experiments.gpu.queue import Job

MNIST, CIFAR, OMNIGLOT, MINI = "mnist", "cifar10", "omniglot", "mini_imagenet"


class Cell(NamedTuple):
    """A cell of a table, of which each row is a job.

    Attributes:
        name: one word, unique.
        experiment: as `python -m experiments` calls it.
        options: that select the cell.
        rows: labels of the rows, and roughly the seconds that each takes beside the others.
    """

    name: str
    experiment: str
    options: tuple[str, ...]
    rows: dict[str, float]

    def jobs(self) -> list[Job]:
        """A job for each row."""
        return [
            Job(f"{self.name}-{_word(label)}", (self.experiment, *self.options, "--solver", label), seconds)
            for label, seconds in self.rows.items()
        ]


def _word(label: str) -> str:
    return "".join(x if x.isalnum() else "_" for x in label)


def _denoised(data: str, noise: int, seconds: float) -> Cell:
    rows = {"Penalty": 2.0, "ApproxGrad": 2.0, "Oracle": 1.0, "Val-Only": 0.5, "Train+Val": 1.0}
    options = ("--dataset", data, "--noise", str(noise), "--seeds", "1")
    return Cell(f"table2-{data}-{noise}", "table2", options, {label: x * seconds for label, x in rows.items()})


def _few_shot(data: str, way: int, shot: int, seconds: float) -> Cell:
    options = ("--dataset", data, "--way", str(way), "--shot", str(shot), "--seeds", "1")
    rows = {"Penalty": seconds, "ApproxGrad": seconds, "Pixels": 30.0, "RMD": 2 * seconds}
    return Cell(f"table3-{data}-{way}-{shot}", "table3", options, rows)


def _spnbo(table: str, name: str, options: tuple[str, ...], seconds: float) -> Cell:
    labels = ("SPNBO", "SMNBP", "Penalty", "Approx")
    return Cell(name, table, (*options, "--seeds", "1"), dict.fromkeys(labels, seconds))


# Seconds are guesses for an accelerator that four jobs share; nothing was measured on one yet.
CELLS = (
    _denoised(MNIST, 25, 90),
    _denoised(MNIST, 50, 90),
    _few_shot(OMNIGLOT, 20, 1, 240),
    _few_shot(OMNIGLOT, 20, 5, 240),
    _spnbo("spnbo-table5", "spnbo-table5-omniglot-1", ("--dataset", OMNIGLOT, "--shot", "1"), 240),
    _denoised(CIFAR, 25, 200),
    _denoised(CIFAR, 50, 200),
    _spnbo("spnbo-table3", "spnbo-table3", (), 120),
    Cell("table6", "table6", ("--seeds", "1"), {"the paper's, with nu": 120.0, "ours, with nu": 120.0}),
    _few_shot(MINI, 5, 5, 300),
)
# On processors, to try the queue.
QUICK = (Cell("table4-quick", "table4", ("--quick", "--seeds", "1"), {"ApproxGrad": 30.0, "Penalty": 30.0}),)

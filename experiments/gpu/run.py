"""The full-size cells of the papers on one accelerator: `python -m experiments gpu --minutes 9 --out DIR`.

Each row of a cell is a process of its own, and several share the accelerator. Their logs and results are in `runs/`
under the output directory. A row that is finished there is not run again; one that was cut is. The rows of a cell are
joined to a record in `records/`, with the versions and the device that they were run with. `--quick` runs two small
rows on any machine.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.catalog import EXPERIMENTS
from experiments.common.settings import Settings
from experiments.gpu.cells import CELLS, QUICK, Cell
from experiments.gpu.queue import DONE, FAILED, Clock, Job, Outcome, drain
from experiments.gpu.records import merged

SIDE_BY_SIDE = 4
CLOSING = 20.0  # seconds, to stop what runs and to join the records
PATIENCE = 8.0  # seconds, until a process that was interrupted is killed
MINUTES = 9.0


class Command:
    """`python -m experiments` with the arguments of a job, and its log."""

    def __init__(self, job: Job, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # Processes that share an accelerator must not each reserve most of its memory.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [sys.executable, "-m", "experiments", *job.arguments, "--out", str(folder)]
        with (folder / "log.txt").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does, and kill it if it goes on."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run(settings: Settings) -> None:
    """Run what is missing within the minutes, and join the records of what is finished."""
    cells = QUICK if settings.quick else CELLS
    minutes = MINUTES if settings.minutes is None else settings.minutes
    runs = settings.out / "runs"
    jobs = [job for cell in cells for job in cell.jobs()]
    missing = [job for job in jobs if not (runs / job.name / "results.json").is_file()]
    clock = Clock(time.monotonic, time.sleep)
    seconds = max(0.0, 60 * minutes - CLOSING)
    found = drain(missing, SIDE_BY_SIDE, seconds, lambda job: Command(job, runs / job.name), clock)
    for cell in cells:
        join(cell, settings.out)
    show(jobs, found, runs)


def join(cell: Cell, out: Path) -> None:
    """Write the record of a cell from its rows that are finished, if there are any."""
    paths = [out / "runs" / job.name / "results.json" for job in cell.jobs()]
    records = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if records:
        (out / "records").mkdir(exist_ok=True)
        (out / "records" / f"{cell.name}.json").write_text(json.dumps(merged(records), indent=1) + "\n")


def show(jobs: list[Job], found: dict[str, Outcome], runs: Path) -> None:
    """Print how each row ended."""
    table = Table("row", "ended", "seconds", "log", title=EXPERIMENTS["gpu"].title, title_justify="left", box=None)
    for job in jobs:
        outcome = found.get(job.name, Outcome("done before", 0.0))
        log = str(runs / job.name / "log.txt") if outcome.ended == FAILED else ""
        table.add_row(job.name, outcome.ended, f"{outcome.seconds:.0f}" if outcome.seconds else "", log)
    console = Console()
    console.print(table)
    finished = sum(outcome.ended == DONE for outcome in found.values())
    console.print(
        f"{finished} of {len(found)} rows were finished. Records: {runs.parent / 'records'}. Copy them to "
        "experiments/results, and write RESULTS.md by `python -m experiments.common.report`.",
        soft_wrap=True,
    )

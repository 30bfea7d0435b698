"""One work, all competitors: interleaved times at each T, memory, and the iterations to a stated accuracy."""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.competitors import FLOOR, Competitor
from benchmarks.peers.environments import NotInstalledError, ensure, variables
from benchmarks.peers.process import FailedError, LostError, Process
from benchmarks.peers.works import Arrays, Work, leaves, load

MOST_OF_A_RUN = 100_000
Judge = Callable[[list[np.ndarray]], float]


@dataclass(frozen=True)
class Options:
    """Settings of the measurement.

    Attributes:
        environments: folder of the other libraries' environments.
        threads: of each worker.
        runs: interleaved, of each competitor at each T.
        moves: the values of T, in rising order: the peak of memory is measured for each in turn.
        at_least: seconds of a run, which sets its number of upper iterations.
        limit: seconds for an answer, after which a worker is ended.
        reach: T for the run to the target; None: no such run.
        patience: seconds of a worker's own time for that run.
        most: upper iterations at most, instead of the work's own number.
    """

    environments: Path
    threads: int = 2
    runs: int = 5
    moves: tuple[int, ...] = (1, 10, 50)
    at_least: float = 0.2
    limit: float = 240.0
    reach: int | None = 10
    patience: float = 30.0
    most: int | None = None


@dataclass
class Cell:
    """A competitor's results at one T: wall and processor seconds of an upper iteration, per run.

    `memory` is the peak of resident memory in bytes during an upper iteration, minus the memory of the process after
    its imports and its data; `first` is the time of the first iteration, including compilation.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int | None = None
    first: float | None = None
    failed: str | None = None


@dataclass
class Row:
    """A competitor on a work. `cells` by T; `iterations` to the target, or `unreached`, why there are none."""

    key: str
    name: str
    method: str
    beside: str
    cells: dict[int, Cell]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    failed: str | None = None
    iterations: int | None = None
    unreached: str | None = None

    def record(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)


def say(text: str) -> None:
    """Print the progress and the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Field:
    """The competitors of a work as running processes; an error of one is kept in its row."""

    def __init__(self, work: Work, arrays: Path, competitors: Sequence[Competitor], options: Options):
        self.work, self.options = work, options
        self.rows: dict[str, Row] = {}
        self.processes: dict[str, Process] = {}
        for competitor in (c for c in competitors if c.has(work.name)):
            settings = competitor.settings(work.name)
            row = Row(
                competitor.key,
                competitor.name,
                competitor.method,
                competitor.beside or competitor.method,
                {moves: Cell() for moves in options.moves},
                settings,
            )
            self.rows[row.key] = row
            try:
                python = ensure(
                    options.environments, competitor.environment, competitor.requirements, competitor.options
                )
                self.processes[row.key] = Process(
                    [str(python), "-m", "benchmarks.peers.worker", self._given(competitor, arrays, settings)],
                    variables(competitor.environment, options.threads),
                )
            except (NotInstalledError, OSError) as error:
                row.failed = str(error)
        for key, process in list(self.processes.items()):
            try:
                self.rows[key].versions = process.hello(options.limit)["versions"]
            except (LostError, FailedError) as error:
                self.rows[key].failed = str(error)
                process.end()
                del self.processes[key]

    def _given(self, competitor: Competitor, arrays: Path, settings: dict[str, Any]) -> str:
        given = {"module": competitor.module, "method": competitor.method, "work": self.work.name}
        return json.dumps(given | {"arrays": str(arrays), "settings": settings, "threads": self.options.threads})

    def end(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.end()

    def times(self, moves: int) -> None:
        """Prepare all at one T, one after the other, then run all in turn, several times."""
        iterations: dict[str, int] = {}
        for key, process in self.processes.items():
            cell = self.rows[key].cells[moves]
            try:
                reply = process.ask({"ask": "prepare", "moves": moves}, self.options.limit)
            except (LostError, FailedError) as error:
                cell.failed = str(error)
                continue
            cell.first, cell.memory = reply["first"], reply["memory"]
            try:
                iterations[key] = self._enough(process, reply["seconds"])
            except (LostError, FailedError) as error:
                cell.failed = str(error)
        for _ in range(self.options.runs):
            for key, count in iterations.items():
                cell = self.rows[key].cells[moves]
                if cell.failed is not None:
                    continue
                try:
                    reply = self.processes[key].ask({"ask": "run", "iterations": count}, self.options.limit)
                except (LostError, FailedError) as error:
                    cell.failed = str(error)
                    continue
                cell.seconds.append(reply["seconds"] / count)
                cell.cpu.append(reply["cpu"] / count)

    def _enough(self, process: Process, seconds: float) -> int:
        """Upper iterations that take `at_least`; estimated again from a run of several, as a call has its own cost."""
        count, seconds = 1, max(seconds, 1e-6)
        while seconds < self.options.at_least / 2 and count < MOST_OF_A_RUN:
            count = min(MOST_OF_A_RUN, max(2 * count, math.ceil(count * self.options.at_least / seconds)))
            reply = process.ask({"ask": "run", "iterations": count}, self.options.limit)
            seconds = max(reply["seconds"], 1e-6)
        return count

    def reach(self, judge: Judge, folder: Path) -> None:
        """How many upper iterations each takes to the target; the judge is not timed."""
        work, options = self.work, self.options
        most = work.most if options.most is None else min(options.most, work.most)
        file = folder / "u.npz"
        for key, process in self.processes.items():
            row = self.rows[key]
            if row.method == FLOOR:
                continue
            try:
                process.ask({"ask": "start", "moves": options.reach}, options.limit)
                done, spent, value = 0, 0.0, math.nan
                while done < most and spent < options.patience:
                    asked = {"ask": "follow", "iterations": work.every, "file": str(file)}
                    spent += process.ask(asked, options.limit)["seconds"]
                    done += work.every
                    value = judge(leaves(load(file), "u"))
                    if work.done(value):
                        row.iterations = done
                        break
                    if not math.isfinite(value):
                        break
                else:
                    row.unreached = f"at {value:.3g} after {done} iterations"
                if row.iterations is None and row.unreached is None:
                    row.unreached = f"not finite after {done} iterations"
            except (LostError, FailedError) as error:
                row.unreached = str(error)

    def directions(self, moves: int, folder: Path) -> dict[str, list[np.ndarray]]:
        """The first direction of u of each at its start."""
        found: dict[str, list[np.ndarray]] = {}
        for key, process in self.processes.items():
            file = folder / "direction.npz"
            try:
                process.ask({"ask": "direction", "moves": moves, "file": str(file)}, self.options.limit)
                found[key] = leaves(load(file), "u")
            except (LostError, FailedError) as error:
                self.rows[key].failed = str(error)
        return found


def measure(
    work: Work, arrays: Arrays, judge: Judge | None, competitors: Sequence[Competitor], options: Options
) -> list[Row]:
    """All rows of a work."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrays.npz"
        np.savez(file, **arrays)  # type: ignore[arg-type]
        say(f"{work.name}: {len(competitors)} competitors")
        running = Field(work, file, competitors, options)
        try:
            for moves in options.moves:
                say(f"{work.name}: T = {moves}")
                running.times(moves)
                if moves == options.reach and judge is not None:
                    say(f"{work.name}: to the target")
                    running.reach(judge, Path(folder))
        finally:
            running.end()
    return list(running.rows.values())


def apart(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The norm of the difference of two directions, relative to that of the second."""
    size = math.sqrt(sum(float(np.sum(np.square(x, dtype=float))) for x in wanted))
    off = math.sqrt(sum(float(np.sum((np.asarray(a, float) - b) ** 2)) for a, b in zip(found, wanted, strict=True)))
    return off / size if size > 0 else math.inf if off > 0 else 0.0

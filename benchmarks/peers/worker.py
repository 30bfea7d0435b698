"""The process of one competitor on one work: `python -m benchmarks.peers.worker JSON`, started by `process.py`.

It imports the competitor's module, then answers JSON lines on standard input with JSON lines on what was standard
output; whatever a library prints goes to standard error. An exception is also an answer: {"failed": reason}.
"""

import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.peers.works import load, numbered


class Runner(Protocol):
    """What a competitor's `make(work, arrays, method, settings)` returns."""

    versions: dict[str, str]

    def start(self, moves: int) -> None:
        """Reset u and v to their start, with this many lower moves per upper iteration."""
        ...

    def advance(self, iterations: int) -> None:
        """Run this many upper iterations, and return when they are finished."""
        ...

    def upper(self) -> list[np.ndarray]:
        """The current u, in the layout of `works`."""
        ...

    def direction(self) -> list[np.ndarray]:
        """The gradient passed to the upper optimizer in the first iteration from here; u may or may not move."""
        ...


def forget_peak() -> None:
    """Release free memory, and reset the peak of resident memory (on Linux; elsewhere the old peak stays)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass


def resident(field: str) -> int:
    """VmRSS or VmHWM (the peak) in bytes; without /proc, the peak of the whole process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field))
    return 1024 * int(kilobytes)


def timed(runner: Runner, iterations: int) -> dict[str, float]:
    """Wall and processor seconds of this many upper iterations."""
    own = getattr(runner, "timed", None)
    if own is not None:
        return own(iterations)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    runner.advance(iterations)
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def answer(runner: Runner, asked: dict[str, Any], baseline: int) -> dict[str, Any]:
    """The answer to one line."""
    match asked["ask"]:
        case "prepare":
            began = time.perf_counter()
            runner.start(asked["moves"])
            runner.advance(1)
            first = time.perf_counter() - began
            forget_peak()
            times = timed(runner, 1)
            return times | {"first": first, "memory": max(0, resident("VmHWM") - baseline)}
        case "run":
            return timed(runner, asked["iterations"])
        case "start":
            runner.start(asked["moves"])
            return {}
        case "follow":
            times = timed(runner, asked["iterations"])
            np.savez(asked["file"], **numbered("u", runner.upper()))  # type: ignore[arg-type]
            return times
        case "direction":
            runner.start(asked["moves"])
            np.savez(asked["file"], **numbered("u", runner.direction()))  # type: ignore[arg-type]
            return {}
    raise ValueError(f"a worker is not asked for {asked['ask']!r}")


def reason(error: BaseException) -> str:
    """One line of an exception."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def main() -> None:
    """Answer until standard input ends."""
    given = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(info: dict[str, Any]) -> None:
        replies.write(json.dumps(info) + "\n")

    # Before a library is imported: it creates its threads for the cores it may use.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["threads"]])
    try:
        module = importlib.import_module(given["module"])
        arrays = load(Path(given["arrays"]))
        module.warm_up(given["threads"])
        forget_peak()
        baseline = resident("VmRSS")
        runner = module.make(given["work"], arrays, given["method"], given["settings"])
    except Exception as error:  # any error of a library becomes a row of the table
        reply({"failed": reason(error)})
        return
    reply({"versions": runner.versions})
    for line in sys.stdin:
        try:
            info = answer(runner, json.loads(line), baseline)
        except Exception as error:
            info = {"failed": reason(error)}
        reply(info)


if __name__ == "__main__":
    main()

"""The process of one competitor on one work: `python -m benchmarks.peers.worker JSON`, started by `process.py`.

It imports the competitor's module, then answers JSON lines on standard input with JSON lines on what was standard
output; whatever a library prints goes to standard error. An exception is an answer, too: {"failed": reason}.
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


class Rival(Protocol):
    """What a competitor's module makes by `make(work, arrays, method, settings, threads)`."""

    versions: dict[str, str]

    def start(self, moves: int) -> None:
        """Back to where u and v start, with so many lower moves per upper iteration."""
        ...

    def advance(self, iterations: int) -> None:
        """So many upper iterations; it returns when they are finished."""
        ...

    def upper(self) -> list[np.ndarray]:
        """Where u stands, in the layout of `works`."""
        ...

    def direction(self) -> list[np.ndarray]:
        """What the upper optimizer is handed in the first iteration from here; u may move by it or not."""
        ...


def forget_peak() -> None:
    """Let go of what is free, and begin a new peak of resident memory (Linux; elsewhere the old peak stays)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass


def resident(field: str) -> int:
    """VmRSS or VmHWM (the peak) in bytes; where there is no /proc, the peak of the whole process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field))
    return 1024 * int(kilobytes)


def timed(rival: Rival, iterations: int) -> dict[str, float]:
    """Seconds of so many upper iterations, by the clock and of the processor."""
    own = getattr(rival, "timed", None)
    if own is not None:
        return own(iterations)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    rival.advance(iterations)
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def answer(rival: Rival, asked: dict[str, Any], baseline: int) -> dict[str, Any]:
    """The answer to one line."""
    match asked["ask"]:
        case "prepare":
            began = time.perf_counter()
            rival.start(asked["moves"])
            rival.advance(1)
            first = time.perf_counter() - began
            forget_peak()
            told = timed(rival, 1)
            return told | {"first": first, "memory": max(0, resident("VmHWM") - baseline)}
        case "run":
            return timed(rival, asked["iterations"])
        case "start":
            rival.start(asked["moves"])
            return {}
        case "follow":
            told = timed(rival, asked["iterations"])
            np.savez(asked["file"], **numbered("u", rival.upper()))  # type: ignore[arg-type]
            return told
        case "direction":
            rival.start(asked["moves"])
            np.savez(asked["file"], **numbered("u", rival.direction()))  # type: ignore[arg-type]
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

    def reply(told: dict[str, Any]) -> None:
        replies.write(json.dumps(told) + "\n")

    # Before a library is imported: it makes its threads for the cores it may use.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["threads"]])
    try:
        module = importlib.import_module(given["module"])
        arrays = load(Path(given["arrays"]))
        module.warm_up(given["threads"])
        forget_peak()
        baseline = resident("VmRSS")
        rival = module.make(given["work"], arrays, given["method"], given["settings"])
    except Exception as error:  # whatever a library does not bear is a row of the table
        reply({"failed": reason(error)})
        return
    reply({"versions": rival.versions})
    for line in sys.stdin:
        try:
            told = answer(rival, json.loads(line), baseline)
        except Exception as error:
            told = {"failed": reason(error)}
        reply(told)


if __name__ == "__main__":
    main()

"""The wait of a user: wall time and compiled programs of each command, with an empty cache of programs and again.

Each command runs as a process of its own on the data that it takes without a file, first with an empty cache folder,
then with what the first run left there. A third run, not timed, counts the programs that XLA compiles without a cache.

python -m benchmarks.commands [denoise tune ...]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = ("denoise", "tune", "audit", "fewshot")
COMPILED = re.compile(r"Finished XLA compilation of (.+) in ([\d.]+) sec")
LONG = 0.2  # seconds of compilation; the commands keep programs above it


def run(command: str, cache: Path, **environment: str) -> tuple[float, str]:
    """The wall time of a command in a new folder, and what it writes to standard error."""
    given = {k: x for k, x in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # an installed package has bytecode
    given |= {"XDG_CACHE_HOME": str(cache)} | environment
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = subprocess.run(
            [sys.executable, "-m", "bilevax", command, "--out", f"{folder}/out"],
            check=True,
            env=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        return time.perf_counter() - began, found.stderr


def row(command: str) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as cache:
        first, again = (run(command, Path(cache))[0] for _ in range(2))
    with tempfile.TemporaryDirectory() as cache:
        log = run(command, Path(cache), JAX_LOG_COMPILES="1", JAX_ENABLE_COMPILATION_CACHE="0")[1]
    seconds = [float(one) for _, one in COMPILED.findall(log)]
    long = sum(one > LONG for one in seconds)
    return f"| `{command}` | {first:.1f} | {again:.1f} | {len(seconds)} | {long} | {sum(seconds):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=COMMANDS)
    print(f"| command | first, s | again, s | programs | of these above {LONG} s | compiling, s |")
    print("|---|---|---|---|---|---|")
    for command in parser.parse_args().commands:
        print(row(command), flush=True)


if __name__ == "__main__":
    main()

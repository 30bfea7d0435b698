"""Processor time to import bilevax against importing jax and optax alone, interleaved.

`import bilevax` loads JAX at the first use of a public name, so one is used.

python -m benchmarks.importing [--runs 9]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys


def seconds(code: str) -> float:
    """Processor time of an interpreter that runs `code`, with nothing subtracted."""
    environment = {k: x for k, x in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # an installed package has it
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    alone, whole = "import jax, optax", "import bilevax; bilevax.solve"
    pairs = [(seconds(alone), seconds(whole)) for _ in range(arguments.runs + 1)][1:]
    print(f"jax and optax: {statistics.median(a for a, _ in pairs):.2f} s, bilevax: ", end="")
    print(f"{statistics.median(b for _, b in pairs):.2f} s, ", end="")
    print(f"ratio {statistics.median(b / a for a, b in pairs):.2f} (median of {arguments.runs} pairs)")


if __name__ == "__main__":
    main()

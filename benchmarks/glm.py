"""Processor seconds and memory of `TunedGLM` against the numbers of samples, columns, folds and strengths.

Each size runs in a process of its own, which compiles what it needs. Dense columns are normal; sparse rows have up to
75 words of a long-tailed vocabulary, of length one, as in rcv1.

    python -m benchmarks.glm [--whole]

`--whole` adds 100,000 x 500 dense and 20,000 x 50,000 sparse, which take minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np

WORDS = 75


class Size(NamedTuple):
    """A problem: samples, columns, loss, strengths of `TunedGLM`, folds, and whether X is sparse."""

    n: int
    d: int
    loss: str
    strengths: str = "scalar"
    folds: int = 5
    sparse: bool = False


SIZES = (
    Size(2_000, 100, "squared"),
    Size(20_000, 100, "squared"),
    Size(2_000, 1_000, "squared"),
    Size(2_000, 100, "squared", folds=10),
    Size(2_000, 100, "squared", "feature"),
    Size(2_000, 1_000, "squared", "feature"),
    Size(2_000, 100, "logistic"),
    Size(20_000, 100, "logistic"),
    Size(2_000, 1_000, "logistic"),
    Size(2_000, 5_000, "logistic", sparse=True),
    Size(20_000, 5_000, "logistic", sparse=True),
)
WHOLE = (
    Size(100_000, 500, "squared"),
    Size(100_000, 500, "logistic"),
    Size(20_000, 50_000, "logistic", sparse=True),
)


def drawn(size: Size) -> tuple[Any, np.ndarray]:
    """X and y of a size; a fifth of the columns matter."""
    from scipy import sparse
    from sklearn.preprocessing import normalize

    rng = np.random.default_rng(0)
    if size.sparse:
        columns = np.minimum((rng.pareto(0.6, (size.n, WORDS)) * 40).astype(int), size.d - 1)
        rows = np.repeat(np.arange(size.n), WORDS)
        counted = sparse.csr_matrix((rng.random(rows.size), (rows, columns.ravel())), (size.n, size.d))
        X: Any = normalize(counted)
        w = 3 * rng.normal(size=size.d)
    else:
        X = rng.standard_normal((size.n, size.d))
        w = 3 * rng.normal(size=size.d) * (rng.random(size.d) < 0.2) / size.d**0.5
    eta = np.asarray(X @ w)
    if size.loss == "squared":
        return X, eta + rng.normal(size=size.n)
    return X, (eta + rng.logistic(size=size.n) > 0).astype(int)


def fitted(size: Size) -> dict[str, Any]:
    """The figures of one fit in this process."""
    from bilevax.applications.tuning import TunedGLM

    X, y = drawn(size)
    began = time.process_time()
    model = TunedGLM(size.loss, strengths=size.strengths, cv=size.folds, standardize=not size.sparse).fit(X, y)
    return {
        "seconds": time.process_time() - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "chosen": model.strengths_chosen_,
    }


def main() -> None:
    """Run all sizes, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(fitted(Size(*json.loads(arguments.one)))))
        return
    print(f"{'n':>8} {'d':>7} {'loss':>16} {'strengths':>9} {'folds':>5} {'processor s':>12} {'peak GB':>8}")
    for size in (*SIZES, *(WHOLE if arguments.whole else ())):
        command = [sys.executable, "-m", "benchmarks.glm", "--one", json.dumps(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        kind = f"{size.loss}{', sparse' if size.sparse else ''}"
        print(
            f"{size.n:8,} {size.d:7,} {kind:>16} {found['chosen']:>9} {size.folds:5} {found['seconds']:12.1f} "
            f"{found['peak']:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

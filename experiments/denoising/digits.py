"""Wrong labels among handwritten digits: `python -m experiments.denoising.digits [--seeds 10] [--out DIR]`.

scikit-learn's digits: 1,000 training samples of which 40% have a uniformly drawn WRONG label, 200 clean samples,
597 test samples; each seed has its own split and noise. Every row ends with the same classifier,
trained in the same way; rows differ in the training samples:

- all as given: the training set with its noisy labels, and the clean set;
- clean only: the clean set;
- agreement alone: the start of the bilevel methods, with no bilevel solve (see `denoising_task`);
- Penalty, ApproxGrad: the training set with the weights they learn, and the clean set;
- oracle: the rightly labelled part of the training set, and the clean set (as in Mehra and Hamm 2021, section 3.2);
- all labels right: the whole training set with its true labels, and the clean set, which no selection can reach.

Settings were chosen on seeds 100 to 109. Precision and recall are those of the wrong labels found. The share is the
part of the gap in test accuracy between clean only and the oracle that is closed, computed from the means.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilevax.applications.denoising import (
    ImportanceClassifier,
    PlainClassifier,
    approxgrad_solver,
    denoising_task,
    penalty_solver,
)
from bilevax.applications.denoising.importance_classifier import STEPS
from bilevax.data import NoisyDigits, noisy_digits
from bilevax.nn import logits, mlp
from experiments.common.compare import surroundings
from experiments.common.runs import readable

VERSIONS_OF = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")
CLASSES = 10


def one_seed(seed: int) -> dict[str, dict[str, float]]:
    """The figures of every row for one split: accuracy, precision and recall in percent, seconds."""
    d = noisy_digits(seed)
    both = np.concatenate([d.X, d.X_clean])
    labels = np.concatenate([d.y_true, d.y_clean])
    right = np.concatenate([d.y, d.y_clean]) == labels
    plain = {
        "all as given": (both, np.concatenate([d.y, d.y_clean])),
        "clean only": (d.X_clean, d.y_clean),
        "oracle": (both[right], labels[right]),
        "all labels right": (both, labels),
    }
    rows = {}
    for name, (X, y) in plain.items():
        began = time.perf_counter()
        model = PlainClassifier(random_state=seed).fit(X, y)
        rows[name] = {"seconds": time.perf_counter() - began, "accuracy": 100 * model.score(d.X_test, d.y_test)}
    rows["agreement alone"] = _agreement_alone(d, seed)
    for name, solver in (("Penalty", penalty_solver(STEPS)), ("ApproxGrad", approxgrad_solver(STEPS))):
        began = time.perf_counter()
        model = ImportanceClassifier(solver=solver, random_state=seed).fit(d.X, d.y, d.X_clean, d.y_clean)
        rows[name] = {
            "seconds": time.perf_counter() - began,
            "accuracy": 100 * model.score(d.X_test, d.y_test),
            **_found(d, model.sample_weight_ < 0.5),  # the weights alone, as in the paper
        }
    return rows


def _agreement_alone(d: NoisyDigits, seed: int) -> dict[str, float]:
    began = time.perf_counter()
    model, key = mlp(CLASSES), jax.random.split(jax.random.key(seed))[0]  # the key of the estimator's start
    u, v = denoising_task(model, d.X, d.y, d.X_clean, d.y_clean, key=key).start
    predicted = np.asarray(logits(model, v, d.X_test)).argmax(1)
    accuracy = 100 * float((predicted == d.y_test).mean())
    return {"seconds": time.perf_counter() - began, "accuracy": accuracy, **_found(d, np.asarray(u) < 0)}


def _found(d: NoisyDigits, suspects: np.ndarray) -> dict[str, float]:
    wrong = d.y != d.y_true
    found = (suspects & wrong).sum()
    return {"precision": 100 * float(found / max(1, suspects.sum())), "recall": 100 * float(found / wrong.sum())}


def summarise(trials: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds of every figure, and the share of the gap closed."""
    rows: dict[str, dict[str, Any]] = {}
    for name, figures in trials[0].items():
        rows[name] = {}
        for figure in figures:
            values = [trial[name][figure] for trial in trials]
            rows[name][figure] = {"mean": float(np.mean(values)), "sd": float(np.std(values))}
    low, high = (rows[name]["accuracy"]["mean"] for name in ("clean only", "oracle"))
    for row in rows.values():
        row["gap_closed"] = (row["accuracy"]["mean"] - low) / (high - low)
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The summary as text."""
    lines = [f"{'trained on':<17}{'test accuracy':>15}{'gap closed':>12}{'precision':>15}{'recall':>15}{'seconds':>9}"]
    for name in (
        "all as given",
        "clean only",
        "agreement alone",
        "ApproxGrad",
        "Penalty",
        "oracle",
        "all labels right",
    ):
        row = rows[name]
        shares = [f"{row[k]['mean']:.2f} ± {row[k]['sd']:.2f}" if k in row else "" for k in ("precision", "recall")]
        accuracy = f"{row['accuracy']['mean']:.2f} ± {row['accuracy']['sd']:.2f}"
        lines.append(
            f"{name:<17}{accuracy:>15}{row['gap_closed']:>12.0%}{shares[0]:>15}{shares[1]:>15}"
            f"{row['seconds']['mean']:>9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, and write results.json."""
    parser = argparse.ArgumentParser(prog="python -m experiments.denoising.digits", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many splits, from --first on (default 10)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--out", type=Path, default=Path("out/denoising_digits"), help="where results.json goes")
    options = parser.parse_args()
    if options.seeds < 1 or options.first < 0:
        parser.error("--seeds must be positive, and --first zero or positive")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out} cannot be made: {error.strerror}. Pass a directory you may write to.")
    began = time.perf_counter()
    seeds = list(range(options.first, options.first + options.seeds))
    trials = [one_seed(seed) for seed in seeds]
    rows = summarise(trials)
    print(table(rows))
    report = {
        "experiment": "denoising_digits",
        "settings": {
            "noise": 0.4,
            "train": 1000,
            "clean": 200,
            "steps": STEPS,
            "model": "mlp, one hidden layer of 64",
            "penalty": readable(penalty_solver(STEPS)),
            "approxgrad": readable(approxgrad_solver(STEPS)),
        },
        **surroundings(*VERSIONS_OF),
        "seeds": seeds,
        "wall_seconds": time.perf_counter() - began,
        "rows": rows,
        "trials": trials,
    }
    path = options.out / "results.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Wrote {path} in {report['wall_seconds']:.1f} s.")


if __name__ == "__main__":
    main()

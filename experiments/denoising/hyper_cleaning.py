"""Hyper-cleaning of MNIST by the methods of 2017 to 2025: the best iterate of each, on one protocol.

5,000 training samples, half of which have a label drawn from all ten; 5,000 clean samples; 10,000 test samples (Shen
and Chen 2023, section 6). A sample has the weight sigmoid(u_i). All u_i start at zero, so that every weight is 1/2.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bilevax import (
    F2SA,
    MASOBA,
    SABA,
    SOBA,
    SRBA,
    VPBGD,
    AmIGO,
    Blocks,
    Implicit,
    Minibatches,
    Penalty,
    Problem,
    ReverseMode,
    StocBiO,
    WithWhole,
    solve,
)
from bilevax.applications.denoising import per_sample
from bilevax.linear_solve import CG
from bilevax.nn import Model, softmax_regression
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Published, Row, show, write_results
from experiments.common.images import CLASSES, images_of
from experiments.common.settings import Settings, pick, pick_data_sets
from experiments.denoising.trial import f1

TITLE = EXPERIMENTS["hyper-cleaning"].title
SIZE, QUICK_SIZE, BATCH, SEEDS, LOOKS = 5000, 1000, 250, 3, 20
HIDDEN = 300
MOMENTUM = {"linear": None, "mlp": 0.9}
INNER = 5  # moves of v for a move of u, of the methods with an inner loop
UNROLLED = 20  # of reverse-mode differentiation
DAMPING = 0.1
WITHIN = 0.5  # points of a published figure
LABELS = (
    "V-PBGD",
    "Penalty",
    "RMD",
    "F2SA",
    "SOBA",
    "MASOBA",
    "SABA",
    "SRBA",
    "AmIGO",
    "StocBiO",
    "Implicit, CG",
)


class Plan(NamedTuple):
    """The settings of a method on a model: the rate of Adam for u, that of descent for v, and the steps."""

    upper: float
    lower: float
    steps: int


PLANS = {
    "linear": {
        "V-PBGD": Plan(0.01, 0.3, 1500),
        "Penalty": Plan(0.1, 0.3, 600),
        "RMD": Plan(0.1, 0.3, 600),
        "F2SA": Plan(0.1, 0.3, 600),
        "SOBA": Plan(0.05, 0.5, 800),
        "MASOBA": Plan(0.05, 0.5, 800),
        "SABA": Plan(0.05, 0.5, 800),
        "SRBA": Plan(0.05, 0.5, 800),
        "AmIGO": Plan(0.1, 0.5, 500),
        "StocBiO": Plan(0.1, 0.5, 500),
        "Implicit, CG": Plan(0.1, 0.5, 500),
    },
    "mlp": {
        "V-PBGD": Plan(0.02, 0.3, 450),
        "Penalty": Plan(0.1, 0.1, 300),
        "RMD": Plan(0.1, 0.3, 60),
        "F2SA": Plan(0.1, 0.3, 150),
        "SOBA": Plan(0.05, 0.1, 300),
        "MASOBA": Plan(0.05, 0.1, 300),
        "SABA": Plan(0.05, 0.1, 300),
        "SRBA": Plan(0.05, 0.1, 300),
        "AmIGO": Plan(0.1, 0.1, 100),
        "StocBiO": Plan(0.1, 0.1, 100),
        "Implicit, CG": Plan(0.1, 0.3, 100),
    },
}
# Accuracy and F1 of the best iterate in a third party's rerun of the code of Shen and Chen.
PAPER = {
    ("linear", "V-PBGD"): (90.10, 91.76),
    ("linear", "Penalty"): (89.84, 90.50),
    ("linear", "RMD"): (84.63, 89.59),
    ("mlp", "V-PBGD"): (91.48, 92.05),
    ("mlp", "Penalty"): (92.38, 90.84),
    ("mlp", "RMD"): (84.79, 89.44),
}


def network() -> Model:
    """784-300-10 with the logistic function; weights start uniform within 1 / sqrt(inputs)."""

    def layer(key: PRNGKeyArray, inputs: int, outputs: int) -> tuple[Array, Array]:
        w, b = jax.random.split(key)
        size = inputs**-0.5
        draw = functools.partial(jax.random.uniform, minval=-size, maxval=size)
        return draw(w, (inputs, outputs)), draw(b, (outputs,))

    def init(key: PRNGKeyArray, x: Any) -> PyTree:
        first, second = jax.random.split(key)
        return layer(first, x.shape[1], HIDDEN), layer(second, HIDDEN, CLASSES)

    def apply(params: PyTree, x: Any) -> Any:
        (w, b), (to, c) = params
        return jax.nn.sigmoid(x @ w + b) @ to + c

    return Model(init, apply)


MODELS = {"linear": softmax_regression(CLASSES), "mlp": network()}


FOOTNOTES = (
    "The iterate with the largest sum of test accuracy and F1 among 20 looks; F1 is that of the labels that were not "
    "drawn, among the samples of weight at least 1/2. So the test set chooses the iterate, as in the figures beside "
    "ours, which are a third party's rerun of the code of Shen and Chen (2023): V-PBGD; G-PBGD beside Penalty, which "
    "has multipliers; and reverse-mode differentiation beside RMD. They took full batches. `agree` is within half a "
    "point.",
    "A tenth of the drawn labels are right by chance and count as wrong, so that F1 is at most about 95. MLP: one "
    "hidden layer of 300 logistic units.",
    f"Minibatches of {BATCH} samples at each level. u moves by Adam with a state for each sample, v by gradient "
    "descent whose rate falls to a tenth, for the MLP with momentum 0.9. Few settings were tried, on seed 100: nine "
    "of V-PBGD (four of them on seed 101 also), then four more on the linear model (one of them on 101), one or two "
    "of the others; on the MLP three of Penalty, two of V-PBGD, one of MASOBA. The settings of the others there are "
    "guesses; one more of SOBA, SABA, SRBA and StocBiO was not kept.",
    "Processor seconds of one thread until that iterate, without compilation and evaluation; other work ran beside.",
)


@dataclass(frozen=True, eq=False)
class Cleaning:
    """One trial.

    Attributes:
        train, clean, test: images as vectors in 0..1, and labels.
        kept: whether a training label is the original one and not drawn.
    """

    train: tuple[Float[np.ndarray, "n d"], Any]
    clean: tuple[Float[np.ndarray, "n d"], Any]
    test: tuple[Float[np.ndarray, "n d"], Any]
    kept: Bool[np.ndarray, " n"]

    def f1(self, u: Any) -> float:
        """That of the original labels among the samples of weight at least 1/2, in percent."""
        return 100 * f1(self.kept, np.asarray(u) >= 0)


@functools.cache
def problem_of(name: str) -> tuple[Problem, Callable[..., Any]]:
    """The problem of a model, a weight for each training sample, and the accuracy in percent as (v, data) -> number."""
    model = MODELS[name]

    def losses(v: PyTree, data: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(v, data[0]), data[1])

    problem = Problem(
        lambda u, v, batch: jnp.mean(losses(v, batch.data)),
        lambda u, v, batch: jnp.mean(jax.nn.sigmoid(u[batch.index]) * losses(v, batch.data)),
    )
    return problem, jax.jit(lambda v, data: 100 * jnp.mean(jnp.argmax(model.apply(v, data[0]), 1) == data[1]))


def run(settings: Settings) -> None:
    """Run all methods, print them beside the published figures, write `results.json`."""
    labels = pick(LABELS, settings.solver)
    names = pick_data_sets(tuple(MODELS), settings.dataset)
    size = QUICK_SIZE if settings.quick else SIZE
    began = time.perf_counter()
    trials = [drawn(seed, size) for seed in range(settings.seeds or (1 if settings.quick else SEEDS))]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name in names:
        for label in labels:  # the seeds of a method share its compiled step
            plan = PLANS[name][label]
            plan = plan._replace(steps=plan.steps // 10) if settings.quick else plan
            for seed, trial in enumerate(trials):
                path = settings.out / "cells" / f"{'quick-' if settings.quick else ''}{name}-{seed}.json"

                def one(missing: list[str], name: str = name, seed: int = seed, trial: Any = trial, plan: Any = plan):
                    return {label: cleaned(trial, name, label, plan, seed) for label in missing}

                found.setdefault((name, label), []).append(kept_cell(path, [label], one)[label])
    seconds = time.perf_counter() - began
    tables = tabulated(found)
    for table, rows in tables.items():
        show(f"{TITLE}: {table}", ("model", "method"), rows, FOOTNOTES if table == "seconds" else ())
    write_results(
        "hyper-cleaning",
        settings,
        range(len(trials)),
        seconds,
        {f"{name}, {label}": PLANS[name][label]._asdict() for name, label in found},
        {},
        tables,
        FOOTNOTES,
    )


def tabulated(found: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, list[Row]]:
    """A table of rows for each kind of figure."""
    tables: dict[str, list[Row]] = {}
    kinds = ("test accuracy %", "accuracy"), ("F1 of the cleaner %", "f1"), ("processor seconds", "seconds")
    for place, (table, figure) in enumerate(kinds):
        tables[table] = []
        for (name, label), trials in found.items():
            paper = Published(PAPER[name, label][place]) if (name, label) in PAPER and place < 2 else None
            values = np.array([trial[figure] for trial in trials])
            agrees = None if paper is None else bool(abs(values.mean() - paper.mean) <= WITHIN)
            tables[table].append(Row((name, label), paper, values, agrees))
    return tables


def drawn(seed: int, size: int) -> Cleaning:
    """One trial of the protocol, with `size` training samples and as many clean ones."""
    images, rng = images_of("mnist"), np.random.default_rng(seed)
    order = rng.permutation(len(images.x_train))[: 2 * size]
    x, y = _flat(images.x_train[order]), images.y_train[order].astype(np.int32)
    given, kept = y[:size].copy(), np.ones(size, bool)
    kept[rng.permutation(size)[: size // 2]] = False
    given[~kept] = rng.integers(0, CLASSES, int(np.sum(~kept)))
    test = _flat(images.x_test), images.y_test.astype(np.int32)
    return Cleaning((x[:size], given), (x[size:], y[size:]), test, kept)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32) / 255


@functools.cache
def entrant(label: str, name: str, plan: Plan, sizes: tuple[int, int], batch: int) -> Any:
    """A method with its settings.

    Args:
        label: the method.
        name: of the model.
        plan: its rates and steps.
        sizes: numbers of samples at the upper and the lower level.
        batch: samples of a minibatch.
    """
    upper, steps = per_sample(optax.adam(plan.upper)), plan.steps
    moves = {"RMD": UNROLLED}.get(
        label, INNER if label in ("F2SA", "AmIGO", "StocBiO", "Implicit, CG", "Penalty") else 1
    )
    lower = optax.sgd(optax.cosine_decay_schedule(plan.lower, moves * steps, 0.1), MOMENTUM[name])
    bound = 100.0
    match label:
        case "V-PBGD":
            slow = optax.sgd(0.1 * plan.lower)  # slow, so that z does not fit the wrong labels
            return VPBGD(upper, lower, slow, gamma=lambda k: jnp.clip(0.2 * (k + 1) / (0.75 * steps), 1e-3, 0.2))
        case "Penalty":
            return Penalty(upper, lower, INNER, gamma=0.1, lam=1.0, step_scale=1.0, stage_steps=1)
        case "RMD":
            return ReverseMode(upper, lower, UNROLLED)
        case "F2SA":
            return F2SA(upper, lower, INNER, nu=0.1, order=1)
        case "SOBA":
            return SOBA(upper, lower, lower, bound)
        case "MASOBA":
            return MASOBA(upper, lower, lower, radius=bound)
        case "SABA":
            return SABA((sizes[0] // batch, sizes[1] // batch), upper, lower, lower, bound)
        case "SRBA":
            return SRBA(upper, lower, lower, radius=bound)
        case "AmIGO":
            return AmIGO(upper, lower, lower, INNER, INNER, bound)
        case "StocBiO":
            return StocBiO(upper, lower, INNER, INNER, plan.lower)
        case _:
            return Implicit(upper, lower, INNER, CG(INNER, damping=DAMPING))


def source_of(label: str, trial: Cleaning, batch: int) -> Any:
    """The minibatches of a method; the same number of samples at each level for all."""
    data = trial.clean, trial.train, batch, batch
    if label == "SABA":
        return Blocks(*data)
    return WithWhole(Minibatches(*data)) if label == "SRBA" else Minibatches(*data)


def cleaned(trial: Cleaning, name: str, label: str, plan: Plan, seed: int, batch: int = BATCH) -> dict[str, Any]:
    """The best iterate of a method in one trial: the one with the largest sum of accuracy and F1."""
    source = source_of(label, trial, batch)
    solver = entrant(label, name, plan, (len(trial.clean[0]), len(trial.train[0])), batch)
    start = jnp.zeros(len(trial.kept)), MODELS[name].init(jax.random.key(seed), trial.train[0][:1])
    run = {"every": max(plan.steps // LOOKS, 1), "key": jax.random.key(seed), "throw": False}
    problem, accuracy = problem_of(name)
    test = jax.tree.map(jnp.asarray, trial.test)
    solve(solver, problem, *start, source, steps=run["every"], **run)  # compiles the stretch
    looks: list[tuple[float, float, float]] = []
    standing, began = 0.0, time.process_time()

    def visit(visit: Any) -> None:
        nonlocal standing
        now = time.process_time()
        looks.append((float(accuracy(visit.state.v, test)), trial.f1(visit.state.u), now - began - standing))
        standing += time.process_time() - now

    solve(solver, problem, *start, source, steps=plan.steps, callbacks=[visit], **run)
    best = max(looks, key=lambda look: look[0] + look[1])
    return dict(zip(("accuracy", "f1", "seconds"), best, strict=True)) | {"looks": looks}

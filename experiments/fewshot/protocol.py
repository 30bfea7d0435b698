"""Shared by the few-shot experiments: sizes, methods, and what is kept of a run.

A run is one method on one kind of task. Its results are kept in `cells/` under the output directory, so that with the
same directory table3, figure4b and figure5b make each run only once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevax.applications.fewshot import (
    Adapt,
    Evaluation,
    FewShot,
    Scores,
    alternating_solver,
    approxgrad_solver,
    evaluate,
    fewshot_task,
    first_order_maml_solver,
    imaml_solver,
    maml_solver,
    maml_task,
    metric_solver,
    penalty_solver,
    pixel_means,
    prototypical_task,
    relation_task,
    reverse_solver,
    statistics_of,
)
from bilevax.applications.fewshot.baselines import IMAML_RATE, IMAML_STEPS, PROXIMAL
from bilevax.applications.fewshot.recipes import LOWER_STEPS
from bilevax.nn import Representation, mini_imagenet_network, omniglot_network
from experiments.common import runs
from experiments.common.cells import kept_cell
from experiments.common.images import MINI, OMNIGLOT, split_of
from experiments.common.runs import watched_solve
from experiments.common.settings import Settings

PIXELS, PROTOTYPICAL, RELATION = "Pixels", "Prototypical", "Relation"
MAML, FIRST_ORDER, IMAML = "MAML", "First-order MAML", "iMAML"
BILEVEL: dict[str, Callable[[int, int], Any]] = {
    "Penalty": penalty_solver,
    "ApproxGrad": approxgrad_solver,
    "RMD": reverse_solver,
    "Alternating": alternating_solver,
}
OTHERS: dict[str, Callable[[int], Any]] = {
    PROTOTYPICAL: metric_solver,
    RELATION: metric_solver,
    MAML: maml_solver,
    FIRST_ORDER: first_order_maml_solver,
    IMAML: imaml_solver,
}
TASKS: dict[str, Callable[..., FewShot]] = {
    PROTOTYPICAL: prototypical_task,
    RELATION: relation_task,
    MAML: maml_task,
    FIRST_ORDER: maml_task,
    IMAML: functools.partial(maml_task, proximal=PROXIMAL, adapt_rate=IMAML_RATE, adapt_steps=IMAML_STEPS),
}
LOOKED_AT = 100  # tasks


@dataclass(frozen=True)
class Size:
    """How methods learn.

    Args:
        network: the representation.
        tasks, queries: of a meta-batch.
        steps: upper iterations.
        episodes: test tasks; each has 15 queries of each class.
        labels: rows that are run unless --solver selects one.
        looks: how often accuracies are evaluated during a run.
    """

    network: Representation
    tasks: int
    queries: int
    steps: int
    episodes: int
    labels: tuple[str, ...]
    looks: int = 10


def sizes(settings: Settings) -> dict[str, Size]:
    """By data set. Below full size there is no mini-ImageNet, which is too large for two cores."""
    few = (PIXELS, "Penalty", "ApproxGrad", PROTOTYPICAL)
    if settings.quick:
        return {OMNIGLOT: Size(omniglot_network(16), 4, 5, 120, 200, few, 3)}
    if settings.medium:
        return {OMNIGLOT: Size(omniglot_network(32), 8, 5, 1500, 600, few)}
    every = (PIXELS, *BILEVEL, *OTHERS)
    return {
        OMNIGLOT: Size(omniglot_network(), 30, 15, 10000, 600, every),
        MINI: Size(mini_imagenet_network(), 2, 15, 10000, 600, every),
    }


def run_cell(
    name: str, size: Size, way: int, shot: int, lower_steps: int, seed: int, labels: list[str]
) -> dict[str, dict[str, Any]]:
    """For each method the test accuracy in percent, its 95% interval, seconds, and the evaluations during the run."""
    split, key = split_of(name), jax.random.key(seed)
    keys = jax.random.split(key, 3)
    images, test = jnp.asarray(split.train), jnp.asarray(split.test)
    rows: dict[str, dict[str, Any]] = {}

    def measured(adapt: Adapt, scores: Scores, u: PyTree, statistics: Any, episodes: int) -> Evaluation:
        sizes = {"way": way, "shot": shot, "episodes": episodes}
        return evaluate(adapt, scores, u, test, key=keys[2], statistics=statistics, **sizes)

    for label in labels:
        if label == PIXELS:
            use, u, statistics, looks = pixel_means, jnp.zeros(1), None, []
        else:
            make = TASKS.get(label, fewshot_task)
            method = make(size.network, images, way=way, shot=shot, queries=size.queries, tasks=size.tasks, key=keys[0])
            solver = BILEVEL[label](size.steps, lower_steps) if label in BILEVEL else OTHERS[label](size.steps)
            use, u, last = method.use, None, {}

            def look(u: PyTree, v: PyTree, method: FewShot = method, last: dict[str, Any] = last) -> dict[str, float]:
                statistics = statistics_of(method, u, images, key=keys[1])
                last |= {"u": jax.tree.map(jnp.copy, u), "statistics": statistics}
                return {"accuracy": 100 * measured(*method.use(way), u, statistics, LOOKED_AT).mean}

            looks = watched_solve(solver, method.task, size.steps, max(1, size.steps // size.looks), seed, look)
            u, statistics = last["u"], last["statistics"]
        found = measured(*use(way), u, statistics, size.episodes)
        seconds = looks[-1].seconds if looks else None
        rows[label] = {
            "accuracy": 100 * found.mean,
            "half_width": 100 * found.half_width,
            "seconds": seconds,
            "each": None if seconds is None else seconds / size.steps,
            "looks": [(one.step, one.seconds, one.seen["accuracy"]) for one in looks],
        }
    return rows


def cell_of(
    settings: Settings, name: str, size: Size, way: int, shot: int, lower_steps: int, seed: int, labels: list[str]
) -> dict[str, dict[str, Any]]:
    """A cell's rows; the missing ones are run."""
    path = settings.out / "cells" / f"{name}-{way}-{shot}-T{lower_steps}-{seed}.json"
    return kept_cell(path, labels, functools.partial(run_cell, name, size, way, shot, lower_steps, seed))


def cells_of(
    settings: Settings, cells: list[tuple[str, int, int]], seeds: list[int], labels: list[str]
) -> dict[tuple[str, int, int], list[dict[str, dict[str, Any]]]]:
    """The rows of each cell (data set, way, shot) and seed, at the usual T; the missing ones are run."""
    of_name = sizes(settings)
    return {
        (name, way, shot): [
            cell_of(settings, name, of_name[name], way, shot, LOWER_STEPS, seed, labels) for seed in seeds
        ]
        for name, way, shot in cells
    }


def readable(label: str, lower_steps: int = LOWER_STEPS) -> dict[str, Any]:
    """A method's settings, for results.json."""
    return runs.readable(BILEVEL[label](1, lower_steps) if label in BILEVEL else OTHERS[label](1))


def footnotes(settings: Settings, size: Size) -> list[str]:
    """Differences between our protocol and the paper's."""
    notes = [
        f"{size.steps} upper iterations on meta-batches of {size.tasks} tasks with {size.queries} queries of each "
        f"class; tested on {size.episodes} tasks with 15, heads trained for 100 moves.",
        "Heads start at the means of their classes' features and descend at a fixed rate, the same for all methods; "
        "u moves by Adam, its rate falling to zero. The paper has Adam for both, and heads that start at random.",
        "Images are normalised by the statistics of their meta-batch while the representation is learned, and by those "
        "of 2,000 training images when it is tested: no prediction depends on the other queries.",
    ]
    if settings.quick or settings.medium:
        notes.append("Fewer filters, tasks and iterations than the paper's 64, 30 and 10,000.")
    return notes

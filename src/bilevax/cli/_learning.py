"""What `bilevax fewshot` runs, prints and writes."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bilevax.cli._printing import as_table, say, show
from bilevax.cli._runs import Run
from bilevax.cli._shared import surroundings
from bilevax.loop.layout import Layout

if TYPE_CHECKING:
    from bilevax.applications.fewshot.comparison import Answered, Row, Sizes
    from bilevax.applications.fewshot.jobs import Parts, Pictures

SHOWN_CLASSES, SHOWN_PICTURES = 10, 5


def learn_and_test(
    pictures: "Pictures",
    parts: "Parts",
    sizes: "Sizes",
    settings: dict[str, Any],
    run: Run,
    layout: Layout | None,
    began: float,
) -> None:
    """Learn, test, write fewshot.json, curve.png and episode.png, and print the table."""
    from bilevax import plots
    from bilevax.applications.fewshot.comparison import learn, measure, one_task

    episodes, seed = settings["episodes"], settings["seed"]
    high, wide = pictures.images.shape[2:4]
    say(
        f"{pictures.title}: {len(parts.train):,} training classes and {len(parts.test):,} test classes, with "
        f"{pictures.images.shape[1]:,} pictures of {wide} x {high} each."
    )
    with run.stages() as stages:
        learned = learn(
            pictures.images[parts.train],
            sizes,
            filters=settings["filters"],
            tasks=settings["tasks"],
            steps=settings["steps"],
            seed=seed,
            stages=stages,
            mesh=layout,
        )
        test = pictures.images[parts.test]
        with Console(stderr=True).status(f"testing on {episodes:,} tasks of new classes"):
            rows = measure(learned, test, sizes, episodes=episodes, seed=seed, stages=stages)
        history = learned.learner.history_
        seconds = time.perf_counter() - began
        content = {
            "data": _contents(pictures, parts),
            "settings": settings,
            **surroundings("jax", "optax", "numpy", "pillow"),
            "wall_seconds": seconds,
            "methods": [row._asdict() for row in rows],
            "upper_loss": np.asarray(history.upper_loss, float).tolist(),
        }
        run.json("fewshot.json", content, indent=None)
        run.picture("curve.png", lambda path: plots.convergence({"Penalty": history}, path))
        answered = one_task(learned, pictures, parts, sizes, seed)
        run.picture("episode.png", lambda path: _draw(answered, path))
    show(_table(rows, sizes, episodes))
    if hint := _hint(rows, parts):
        say(hint)
    run.end(seconds)


def _draw(answered: "Answered", path: Path) -> None:
    """Draw the first classes and pictures of the task, as many as fit on a page."""
    from bilevax import plots

    names, right = [name[:14] for name in answered.names], answered.right()
    rows = slice(SHOWN_CLASSES)
    marked = [
        [f"{'✓' if answer == i else '✗'} {names[answer]}" for answer in answers[:SHOWN_PICTURES]]
        for i, answers in enumerate(answered.answers[rows])
    ]
    plots.task_sheet(
        answered.support[rows, :SHOWN_PICTURES] / 255,
        answered.query[rows, :SHOWN_PICTURES] / 255,
        names[rows],
        marked,
        right[rows, :SHOWN_PICTURES],
        path,
        f"{right.mean():.0%} of {right.size} answers right",
    )


def _hint(rows: list["Row"], parts: "Parts") -> str:
    """Return a hint if plain pixels are as good as the representation; otherwise an empty string."""
    pixels, _, trained = rows
    if trained.accuracy > pixels.accuracy:
        return ""
    return (
        "Plain pixels do as well or better here. A representation improves with more training classes (here "
        f"{len(parts.train):,}) and with more --steps."
    )


def _contents(pictures: "Pictures", parts: "Parts") -> dict[str, Any]:
    return {
        "title": pictures.title,
        "classes": len(pictures.names),
        "pictures_of_each": pictures.images.shape[1],
        "shape": list(pictures.images.shape[2:]),
        "train_classes": [pictures.names[i] for i in parts.train],
        "test_classes": [pictures.names[i] for i in parts.test],
        "unread": list(pictures.unread),
    }


def _table(rows: list["Row"], sizes: "Sizes", episodes: int) -> Table:
    return as_table(
        f"Accuracy on {episodes:,} tasks of {sizes.way} new classes with {sizes.shot} pictures each",
        ("method", "accuracy", "seconds"),
        [
            (row.method, f"{100 * row.accuracy:.1f}% ± {100 * row.half_width_95:.1f}", f"{row.seconds:.1f}")
            for row in rows
        ],
        "95% confidence intervals, over tasks of the test classes. Seconds include compilation.",
    )

"""`bilevax fewshot`: a representation learned from many classes, tested on new classes with few pictures each."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bilevax._checks import InputError
from bilevax.cli._printing import as_table, say, show
from bilevax.cli._runs import Run
from bilevax.cli._shared import (
    MOST,
    Devices,
    Overwrite,
    Resume,
    Seed,
    check_writable,
    in_plain_words,
    laid_out,
    surroundings,
)
from bilevax.loop.layout import Layout

if TYPE_CHECKING:  # these import solvers and networks, which `--help` does not need
    from bilevax.applications.fewshot.comparison import Answered, Row, Sizes
    from bilevax.applications.fewshot.jobs import Parts, Pictures

SMALLEST, QUERIES = 16, 15  # as in applications.fewshot.jobs, which `--help` does not import
LARGEST, LARGEST_SIDE = 10_000, 4096  # upper limits of counts, and of pixels
SHOWN_CLASSES, SHOWN_PICTURES = 10, 5


def fewshot(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="A folder with a subfolder of pictures for each class.",
            show_default="Omniglot if it is downloaded, otherwise scikit-learn's digits",
        ),
    ] = None,
    way: Annotated[
        int | None,
        typer.Option(min=2, max=LARGEST, help="Classes of a task.", metavar="N", show_default="5; for the digits 3"),
    ] = None,
    shot: Annotated[int, typer.Option(min=1, max=LARGEST, help="Support pictures of each class.", metavar="K")] = 5,
    queries: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST,
            help="Query pictures of each class.",
            show_default=f"{QUERIES}, or as many as the smallest class has left",
        ),
    ] = None,
    test_classes: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=LARGEST,
            help="Number of test classes.",
            metavar="N",
            show_default="a quarter, at least --way; for Omniglot the papers' split",
        ),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            min=SMALLEST,
            max=LARGEST_SIDE,
            help="Scale all pictures to this size.",
            metavar="PIXELS",
            show_default=f"no scaling; for the digits {SMALLEST}",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse files that cannot be read, instead of leaving them out.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, max=MOST, help="Upper steps of Penalty.")] = 300,
    tasks: Annotated[int, typer.Option(min=1, max=LARGEST, help="Tasks of each step.")] = 8,
    filters: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Channels of each of the network's four blocks.")
    ] = 32,
    episodes: Annotated[int, typer.Option(min=2, max=10**6, help="Tasks of new classes for the test.")] = 600,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("fewshot"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Learn a representation from many classes of pictures, and recognise new classes from a few pictures of each.

    Some classes of FOLDER are held out for the test. A network is trained on tasks of the other classes, and tested on
    tasks of the test classes. For comparison, the untrained network and plain pixels are tested on the same tasks.

    Writes fewshot.json, curve.png (losses over the steps) and episode.png (one test task with the predictions).
    """
    with in_plain_words() as asked:
        began = time.perf_counter()
        if folder is None and strict:
            raise InputError("--strict is given without FOLDER. Also name the folder of pictures.")
        if folder is not None and out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"--out {out} is in {folder}, where it would be a class. Pass another directory.")
        shared = out
        layout, out = laid_out(devices, out)
        check_writable(out)
        from bilevax.applications.fewshot.comparison import Sizes
        from bilevax.applications.fewshot.jobs import (
            pictures_from_folder,
            queries_of,
            ready_made_pictures,
            split_classes,
        )

        ready = folder is None
        pictures = ready_made_pictures(side, say) if ready else pictures_from_folder(folder, side, strict, say)
        way = pictures.way if way is None else way
        parts = split_classes(pictures, way, test_classes, seed)
        sizes = Sizes(way, shot, queries_of(pictures, shot, queries))
        settings: dict[str, Any] = {"folder": None if folder is None else pictures.title, **sizes._asdict()}
        settings |= {"test_classes": len(parts.test), "side": side, "strict": strict, "steps": steps, "tasks": tasks}
        settings |= {"filters": filters, "episodes": episodes, "seed": seed}
        run = Run(
            "fewshot",
            out,
            ["fewshot.json", "curve.png", "episode.png"],
            settings | {"pictures": pictures.digest()},
            {},
            resume=resume,
            overwrite=overwrite,
            shared=shared,
            asked=asked,
        )
        _run(pictures, parts, sizes, settings, run, layout, began)


def _run(
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

"""`bilevax fewshot`: a representation learned from many classes, tested on new classes with few pictures each."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevax._checks import InputError
from bilevax.cli._printing import say
from bilevax.cli._shared import (
    MOST,
    Devices,
    Overwrite,
    Resume,
    Seed,
    check_writable,
    in_plain_words,
    laid_out,
)

SMALLEST, QUERIES = 16, 15  # as in applications.fewshot.jobs, which `--help` does not import
LARGEST, LARGEST_SIDE = 10_000, 4096  # upper limits of counts, and of pixels


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
    with in_plain_words():
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
        from bilevax.cli import _learning
        from bilevax.cli._runs import Run

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
        )
        _learning.learn_and_test(pictures, parts, sizes, settings, run, layout, began)

"""`bilevax fewshot`: a representation learned from many classes, by which a few pictures tell new ones apart."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bilevax._checks import InputError, listed
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
from bilevax.loop.placement import Layout

if TYPE_CHECKING:  # what pulls in solvers and networks, for which `--help` need not wait
    from bilevax.applications.fewshot.episodes import Adapt, Scores
    from bilevax.applications.fewshot.estimator import FewShotLearner
    from bilevax.loop.stages import Stages

SMALLEST = 16  # pixels: of less, the network's four poolings leave nothing
LARGEST, LARGEST_SIDE = 10_000, 4096  # of counts and pixels that a network can be asked for
LARGE = 128  # pixels, from which on a hint at --side is worth a line
QUERIES = 15
SHOWN_CLASSES, SHOWN_PICTURES = 10, 5


class Pictures(NamedTuple):
    """Pictures of many classes.

    Attributes:
        title: what they are, in a few words.
        images: (classes, pictures, h, w[, 3]) uint8.
        names: of the classes.
        smallest: the class that has the fewest pictures, as the beginning of a sentence.
        way: classes of a task, unless told.
        test: which classes the data set keeps for tests; None where that is ours to draw.
        unread: files that could not be read.
    """

    title: str
    images: np.ndarray
    names: list[str]
    smallest: str
    way: int
    test: np.ndarray | None = None
    unread: tuple[str, ...] = ()


class Parts(NamedTuple):
    """Which classes to learn from, and which to test on."""

    train: np.ndarray
    test: np.ndarray


class Row(NamedTuple):
    """One line of the table; `half_width_95` is that of the accuracy's interval, over the tasks."""

    method: str
    accuracy: float
    half_width_95: float
    seconds: float


def fewshot(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="A folder with a subfolder of pictures for each class.",
            show_default="Omniglot where it is at hand, otherwise scikit-learn's digits",
        ),
    ] = None,
    way: Annotated[
        int | None,
        typer.Option(min=2, max=LARGEST, help="Classes of a task.", metavar="N", show_default="5; of the digits 3"),
    ] = None,
    shot: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Pictures of each class to learn from.", metavar="K")
    ] = 5,
    queries: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST,
            help="Pictures of each class that are asked about.",
            show_default=f"{QUERIES}, or what the smallest class leaves",
        ),
    ] = None,
    test_classes: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=LARGEST,
            help="How many classes are set aside for the test.",
            metavar="N",
            show_default="a quarter, at least --way; of Omniglot the papers' split",
        ),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            min=SMALLEST,
            max=LARGEST_SIDE,
            help="Bring all pictures to this size.",
            metavar="PIXELS",
            show_default=f"as they are; the digits {SMALLEST}",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A file that cannot be read is an error, instead of being left out.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, max=MOST, help="Upper steps of Penalty.")] = 300,
    tasks: Annotated[int, typer.Option(min=1, max=LARGEST, help="Tasks of each step.")] = 8,
    filters: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Channels of each of the network's four blocks.")
    ] = 32,
    episodes: Annotated[int, typer.Option(min=2, max=10**6, help="Tasks of new classes to measure on.")] = 600,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("fewshot"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Learn from many classes of pictures how to tell new classes apart by a few pictures of each.

    Some classes of FOLDER are set aside. A network is trained on tasks of the others; then it is tested on tasks of the
    classes set aside, beside the same network untrained and beside plain pixels.

    Writes fewshot.json, curve.png (losses over the steps) and episode.png (one task of new classes, with the answers).
    """
    with in_plain_words() as asked:
        began = time.perf_counter()
        if folder is None and strict:
            raise InputError("--strict is given without FOLDER. Name the folder of pictures, too.")
        if folder is not None and out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"--out {out} is in {folder}, where it would be a class. Pass another directory.")
        shared = out
        layout, out = laid_out(devices, out)
        check_writable(out)
        pictures = _ready_made(side) if folder is None else _from_folder(folder, side, strict)
        way = pictures.way if way is None else way
        parts = _split(pictures, way, test_classes, seed)
        queries = _queries(pictures, shot, queries)
        sizes = {"way": way, "shot": shot, "queries": queries}
        settings: dict[str, Any] = {"folder": None if folder is None else pictures.title, **sizes}
        settings |= {"test_classes": len(parts.test), "side": side, "strict": strict, "steps": steps, "tasks": tasks}
        settings |= {"filters": filters, "episodes": episodes, "seed": seed}
        run = Run(
            "fewshot",
            out,
            ["fewshot.json", "curve.png", "episode.png"],
            settings | {"pictures": _digest(pictures)},
            {},
            resume=resume,
            overwrite=overwrite,
            shared=shared,
            asked=asked,
        )
        high, wide = pictures.images.shape[2:4]
        say(
            f"{pictures.title}: {len(parts.train):,} classes to learn from and {len(parts.test):,} to test on, "
            f"{pictures.images.shape[1]:,} pictures of {wide} x {high} each."
        )
        with run.stages() as stages:
            learner, rows = _compare(pictures, parts, settings, stages, layout)
            seconds = time.perf_counter() - began
            content = {
                "data": _told(pictures, parts),
                "settings": settings,
                **surroundings("jax", "optax", "numpy", "pillow"),
                "wall_seconds": seconds,
                "methods": [row._asdict() for row in rows],
                "upper_loss": np.asarray(learner.history_.upper_loss, float).tolist(),
            }
            run.json("fewshot.json", content, indent=None)
            _draw(learner, pictures, parts, settings, run)
        show(_table(rows, settings))
        pixels, _, learned = rows
        if learned.accuracy <= pixels.accuracy:
            say(
                f"Plain pixels do as well or better here. A representation gains from more classes to learn from (here "
                f"{len(parts.train):,}), and from more --steps."
            )
        run.end(seconds)


def _digest(pictures: Pictures) -> str:
    """Of the pictures and the names of their classes, so that a resumed run is known to be the same one."""
    found = hashlib.sha256(repr((pictures.images.shape, pictures.names)).encode("utf-8", "surrogatepass"))
    found.update(np.ascontiguousarray(pictures.images).data)
    return found.hexdigest()


def _from_folder(folder: Path, side: int | None, strict: bool) -> Pictures:
    from bilevax.data.folders import class_folders

    found = class_folders(folder, side=side, strict=strict)
    names, unread = [_readable(name) for name in found.names], tuple(_readable(name) for name in found.unread)
    if unread:
        say(f"Files that cannot be read as pictures are left out ({len(unread):,}): {listed(unread, quote=False)}.")
    each = min(found.counts)
    smallest, others = names[found.counts.index(each)], sum(found.counts) - each * len(names)
    if others:
        say(
            f"Each class gives {each:,} pictures, as many as the smallest one ({smallest}) has; {others:,} others are "
            "left out."
        )
    high, wide = found.images.shape[2:4]
    if min(high, wide) < SMALLEST:
        raise InputError(
            f"The pictures in {folder} are {wide} x {high}, smaller than the {SMALLEST} x {SMALLEST} that the network "
            "needs. Pass --side 28, say."
        )
    if max(high, wide) > LARGE:
        say(f"The pictures are {wide} x {high}; on smaller ones, by --side 84 say, this is much faster.")
    return Pictures(
        _readable(str(folder)), found.images, names, f"The smallest class ({smallest})", way=5, unread=unread
    )


def _ready_made(side: int | None) -> Pictures:
    from bilevax.data import images as datasets
    from bilevax.data import types
    from bilevax.data.classes import omniglot
    from bilevax.data.fetch import DownloadError

    try:
        split = omniglot(download=False)
    except DownloadError:
        say("Omniglot is not at hand, so digits stand in for it; bilevax.data.omniglot() downloads it (16 MB).")
        d = datasets.digits()
        x, y = np.concatenate([d.x_train, d.x_test]), np.concatenate([d.y_train, d.y_test])
        each = np.bincount(y).min()
        images = np.stack([x[y == label][:each] for label in range(types.CLASSES)])
        names = [str(label) for label in range(types.CLASSES)]
        # Of 8 x 8 nothing would be left by the network.
        images = _resized(images, SMALLEST if side is None else side)
        return Pictures("scikit-learn's handwritten digits", images, names, "A class of the digits", way=3)
    # The same characters turned by 0, 90, 180 and 270 degrees follow each other.
    counts = len(split.train) // 4, len(split.test) // 4
    names = [
        f"{first + i}" + (f", {90 * turns}°" if turns else "")
        for first, count in ((0, counts[0]), (counts[0], counts[1]))
        for turns in range(4)
        for i in range(count)
    ]
    images = np.concatenate([split.train, split.test])
    images = images if side is None else _resized(images, side)
    test = np.arange(len(split.train), len(images))
    return Pictures("Omniglot", images, names, "A class of Omniglot", way=5, test=test)


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    """Grey pictures (classes, pictures, h, w), brought to side x side as those of a folder are."""
    from PIL import Image

    flat = images.reshape(-1, *images.shape[2:])
    small = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS)) for x in flat]
    return np.stack(small).reshape(*images.shape[:2], side, side)


def _readable(name: str) -> str:
    """A file's name without the bytes that are no text, which could not be printed."""
    return name.encode(errors="replace").decode()


def _split(pictures: Pictures, way: int, test_classes: int | None, seed: int) -> Parts:
    classes = len(pictures.names)
    if pictures.test is not None:
        if test_classes is not None:
            raise InputError(
                f"--test-classes is given without FOLDER, and {pictures.title} has a test part of its own. Name a "
                "folder of pictures, or leave --test-classes out."
            )
        order = np.concatenate([pictures.test, np.setdiff1d(np.arange(classes), pictures.test)])
        aside = len(pictures.test)
    else:
        order = np.random.default_rng(seed).permutation(classes)
        aside = max(way, classes // 4) if test_classes is None else test_classes
    if min(aside, classes - aside) < way:
        most, told = classes // 2, ""
        if test_classes is not None:
            most, told = min(aside, classes - aside), f" with --test-classes {aside}"
        remedy = f"Lower --way to {most}" if most >= 2 else "Tasks have at least 2 classes: add some"
        remedy += ", or change --test-classes." if told else ", or add classes." if most >= 2 else "."
        raise InputError(
            f"{pictures.title} has {classes} classes. A task has --way {way} of them, so {way} are needed to learn "
            f"from and {way} others to test on; there are {max(classes - aside, 0)} and {min(aside, classes)}{told}. "
            f"{remedy}"
        )
    return Parts(np.sort(order[aside:]), np.sort(order[:aside]))


def _queries(pictures: Pictures, shot: int, queries: int | None) -> int:
    """How many pictures of each class are asked about; those there are must suffice."""
    there = pictures.images.shape[1]
    wanted = 1 if queries is None else queries
    if there < shot + wanted:
        few = min(shot, there // 2)
        remedy = f"Pass --shot {few} --queries {there - few}, or add pictures." if few else "Add pictures."
        raise InputError(
            f"{pictures.smallest} has {there} {'picture' if there == 1 else 'pictures'}, fewer than --shot {shot} to "
            f"learn from and {wanted} to ask about (--queries). {remedy}"
        )
    return min(QUERIES, there - shot) if queries is None else queries


def _compare(
    pictures: Pictures, parts: Parts, settings: dict[str, Any], stages: "Stages", layout: Layout | None
) -> tuple["FewShotLearner", list[Row]]:
    """Train, then measure pixels, the untrained and the trained representation on the same tasks.

    Each measurement is a stage. The training is not: its last checkpoint holds all that it found.
    """
    from bilevax.applications.fewshot.episodes import evaluate, pixel_means
    from bilevax.applications.fewshot.estimator import FewShotLearner
    from bilevax.applications.fewshot.tasks import statistics_of
    from bilevax.loop.callbacks import Progress
    from bilevax.nn.representations import omniglot_network

    sizes = {name: settings[name] for name in ("way", "shot", "queries")}
    train, test, seed = pictures.images[parts.train], pictures.images[parts.test], settings["seed"]
    learner = FewShotLearner(
        omniglot_network(settings["filters"]), tasks=settings["tasks"], steps=settings["steps"], seed=seed, **sizes
    )
    began = time.perf_counter()
    keep = stages.checkpoint("penalty")
    learner.meta_fit(train, callbacks=[Progress("Penalty"), keep], resume=keep, mesh=layout)
    trained = time.perf_counter() - began

    def row(method: str, use: "tuple[Adapt, Scores]", u: Any, statistics: Any, before: float = 0.0) -> dict[str, Any]:
        began = time.perf_counter()
        adapt, scores = use
        found = evaluate(
            adapt,
            scores,
            u,
            test,
            **sizes,
            episodes=settings["episodes"],
            key=jax.random.key(seed),
            statistics=statistics,
        )
        return Row(method, found.mean, found.half_width, before + time.perf_counter() - began)._asdict()

    method = learner.method_
    first, _ = method.task.start
    use = method.use(settings["way"])
    with Console(stderr=True).status(f"testing on {settings['episodes']:,} tasks of new classes"):
        known = statistics_of(method, first, train, key=jax.random.key(seed))
        rows = {
            "pixels": lambda _: row("nearest class mean, pixels", pixel_means(settings["way"]), None, None),
            "untrained": lambda _: row("representation, untrained", use, first, known),
            "trained": lambda _: row("representation, by Penalty", use, learner.u_, learner.statistics_, trained),
        }
        return learner, [Row(**stages.of(name, compute)) for name, compute in rows.items()]


def _draw(learner: "FewShotLearner", pictures: Pictures, parts: Parts, settings: dict[str, Any], run: Run) -> None:
    from bilevax import plots

    run.picture("curve.png", lambda path: plots.convergence({"Penalty": learner.history_}, path))
    way, shot, queries = (settings[name] for name in ("way", "shot", "queries"))
    rng = np.random.default_rng(settings["seed"])
    chosen = rng.choice(parts.test, way, replace=False)
    drawn = np.stack([rng.permutation(pictures.images.shape[1])[: shot + queries] for _ in range(way)])
    images = pictures.images[chosen[:, None], drawn]
    given, asked = images[:, :shot], images[:, shot:]
    shape = images.shape[2:]
    classifier = learner.adapt(given.reshape(-1, *shape), np.repeat(np.arange(way), shot))
    answers = classifier.predict(asked.reshape(-1, *shape)).reshape(way, queries)
    right = answers == np.arange(way)[:, None]
    names = [pictures.names[i][:14] for i in chosen]
    rows = slice(SHOWN_CLASSES)
    marked = [
        [f"{'✓' if answer == i else '✗'} {names[answer]}" for answer in answers[i, :SHOWN_PICTURES]]
        for i in range(way)[rows]
    ]
    run.picture(
        "episode.png",
        lambda path: plots.task_sheet(
            given[rows, :SHOWN_PICTURES] / 255,
            asked[rows, :SHOWN_PICTURES] / 255,
            names[rows],
            marked,
            right[rows, :SHOWN_PICTURES],
            path,
            f"{right.mean():.0%} of {right.size} answers right",
        ),
    )


def _told(pictures: Pictures, parts: Parts) -> dict[str, Any]:
    return {
        "title": pictures.title,
        "classes": len(pictures.names),
        "pictures_of_each": pictures.images.shape[1],
        "shape": list(pictures.images.shape[2:]),
        "train_classes": [pictures.names[i] for i in parts.train],
        "test_classes": [pictures.names[i] for i in parts.test],
        "unread": list(pictures.unread),
    }


def _table(rows: list[Row], settings: dict[str, Any]) -> Table:
    return as_table(
        f"{settings['way']} new classes by {settings['shot']} pictures of each, {settings['episodes']:,} tasks",
        ("method", "accuracy", "seconds"),
        [
            (row.method, f"{100 * row.accuracy:.1f}% ± {100 * row.half_width_95:.1f}", f"{row.seconds:.1f}")
            for row in rows
        ],
        "95% intervals, over tasks of the classes set aside. Seconds include compilation.",
    )

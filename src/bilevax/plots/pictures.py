"""Sheets of pictures: suspects, changed samples, and a task of few-shot learning."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from bilevax._checks import InputError
from bilevax.plots.drawing import (
    BLUE,
    RED,
    STYLE,
    as_numbers,
    as_pictures,
    as_texts,
    framed,
    largest,
    require_room,
    save,
)


def contact_sheet(
    images: ArrayLike,
    titles: Sequence[str],
    path: Path,
    heading: str = "",
    flags: Sequence[bool] | None = None,
) -> None:
    """Small pictures in a grid, ten per row, with a title above each.

    Args:
        images: (n, height, width) grey, or (n, height, width, 3 or 4) in colour with values in 0..1.
        titles: n short texts, which may have line breaks.
        path: the PNG file to write.
        heading: of the figure.
        flags: n truth values: True frames a picture in red-orange, False in blue.

    Raises:
        InputError: no images, numbers of images and titles that differ, or more images than fit into a figure.
    """
    images, titles = as_pictures("contact_sheet", "images", images, 3), as_texts("contact_sheet", "titles", titles)
    flags = None if flags is None else (as_numbers("contact_sheet", "flags", flags, 1) != 0).tolist()
    n = len(images)
    if n == 0 or len(titles) != n or (flags is not None and len(flags) != n):
        raise InputError(
            f"contact_sheet: {n} images and {len(titles)} titles. At least one image is needed, and a title for each."
        )
    brightest = largest(images)
    columns = min(10, n)
    rows = -(-n // columns)
    lines = max(t.count("\n") for t in titles) + 1
    cell = 1.0 + 0.16 * lines
    top = 0.35 if heading else 0.1
    height = rows * cell + top
    require_room(height)
    figure = Figure(figsize=(max(1.12 * columns, 4.0), height))
    figure.patch.set_facecolor("white")
    with rc_context(STYLE):
        grid = figure.subplots(
            rows,
            columns,
            squeeze=False,
            gridspec_kw={
                "left": 0.01,
                "right": 0.99,
                "bottom": 0.08 / height,
                "top": 1 - (top + 0.16 * lines) / height,
                "hspace": (cell - 0.86) / 0.86,
                "wspace": 0.12,
            },
        )
    for i, axes in enumerate(grid.flat):
        if i >= n:
            axes.axis("off")
            continue
        colour = "#999999" if flags is None else RED if flags[i] else BLUE
        framed(axes, colour, 0.8 if flags is None else 2.0)
        axes.imshow(images[i], cmap="gray_r", vmin=0, vmax=max(1.0, brightest), interpolation="nearest")
        look: dict[str, Any] = {"fontsize": 7.5, "fontweight": "normal", "linespacing": 1.1}
        axes.set_title(titles[i], loc="center", pad=3, **look)
    if heading:
        figure.suptitle(heading, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    save(figure, path)


def change_sheet(
    before: ArrayLike,
    after: ArrayLike,
    above: Sequence[str],
    below: Sequence[str],
    path: Path,
    heading: str = "",
    targets: ArrayLike | None = None,
) -> None:
    """Pictures before and after a change, and the change, in three rows; red is an increase, blue a decrease.

    Args:
        before, after: (n, height, width) grey, or (n, height, width, 3) in colour, with values in 0..1; at most 12.
        above: n short texts above the pictures.
        below: n short texts below the changes.
        path: the PNG file to write.
        heading: of the figure.
        targets: pictures as `before` that each was changed for, in another row on top.

    Raises:
        InputError: no pictures, or shapes or numbers of texts that differ.

    Example:
        >>> import tempfile, pathlib
        >>> import numpy as np
        >>> from bilevax.plots import change_sheet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pictures = np.zeros((2, 8, 8)), np.full((2, 8, 8), 0.5)
        ...     change_sheet(*pictures, ["3", "4"], ["as 8", "as 9"], pathlib.Path(folder) / "points.png")
    """
    before, after = (as_pictures("change_sheet", n, x, 3) for n, x in (("before", before), ("after", after)))
    aims = [] if targets is None else [as_pictures("change_sheet", "targets", targets, 3)]
    above, below = as_texts("change_sheet", "above", above), as_texts("change_sheet", "below", below)
    n, shapes = len(before), {x.shape for x in (before, after, *aims)}
    if not n or len(shapes) > 1 or before.ndim not in (3, 4) or not n == len(above) == len(below) <= 12:
        raise InputError(
            f"change_sheet: pictures of shape {' and '.join(map(str, sorted(shapes)))}, and {len(above)} and "
            f"{len(below)} texts. At least one and at most 12 pictures of one shape, with two texts each, are needed."
        )
    change = after - before if before.ndim == 3 else (after - before).mean(-1)
    most = max(largest(np.abs(change)), 1e-3)
    with rc_context(STYLE):
        grey: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
        shown: list[tuple[str, np.ndarray, dict[str, Any]]] = [
            *(("target", x, grey) for x in aims),
            ("before", before, grey),
            ("after", after, grey),
            ("change", change, {"cmap": "RdBu_r", "vmin": -most, "vmax": most}),
        ]
        figure = Figure(figsize=(max(0.95 * n + 0.9, 4.0), 0.9 + len(shown)), layout="constrained")
        figure.patch.set_facecolor("white")
        rows = figure.subplots(len(shown), n, squeeze=False)
        for (name, pictures, look), row in zip(shown, rows, strict=True):
            for axes, picture in zip(row, pictures, strict=True):
                axes.imshow(picture, interpolation="nearest", **look)
                framed(axes)
            row[0].set_ylabel(name, fontsize=9)
        for i in range(n):
            rows[0, i].set_title(above[i], fontsize=8, fontweight="normal", loc="center")
            rows[-1, i].set_xlabel(below[i], fontsize=8)
        if heading:
            figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    save(figure, path)


def task_sheet(
    support: ArrayLike,
    query: ArrayLike,
    names: Sequence[str],
    answers: Sequence[Sequence[str]],
    right: ArrayLike,
    path: Path,
    heading: str = "",
) -> None:
    """A few-shot task with a row per class: its support set, then its query set with the answers.

    The answer is above each query, which is framed in blue if the answer is right and in red-orange otherwise.

    Args:
        support: (classes, k, height, width[, 3]) pictures with values in 0..1.
        query: (classes, n, height, width[, 3]) pictures.
        names: of the classes.
        answers: n short texts for each class.
        right: (classes, n) of bool, whether each answer is right.
        path: the PNG file to write.
        heading: of the figure.

    Raises:
        InputError: no pictures, or shapes or numbers of texts that differ.

    Example:
        >>> import tempfile, pathlib
        >>> import numpy as np
        >>> from bilevax.plots import task_sheet
        >>> support, query = np.zeros((2, 5, 8, 8)), np.ones((2, 1, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "task.png"
        ...     task_sheet(support, query, ["cat", "dog"], [["cat"], ["cat"]], [[True], [False]], path)
    """
    support, query = (as_pictures("task_sheet", n, x, 4) for n, x in (("support", support), ("query", query)))
    correct: np.ndarray = as_numbers("task_sheet", "right", right) != 0
    names = as_texts("task_sheet", "names", names)
    if isinstance(answers, str) or not isinstance(answers, Iterable):
        raise InputError(f"task_sheet: answers is {answers!r}, and must hold a list of texts for each class.")
    answers = [as_texts("task_sheet", "answers", row) for row in answers]
    fits = support.ndim in (4, 5) and support.shape[:1] + support.shape[2:] == query.shape[:1] + query.shape[2:]
    if not fits or 0 in support.shape + query.shape or correct.shape != query.shape[:2]:
        raise InputError(
            f"task_sheet: pictures of shape {support.shape} and {query.shape}, and truth values of shape "
            f"{correct.shape}. Pictures (classes, k, ...) and (classes, n, ...), at least one each, and truth values "
            "(classes, n) are needed."
        )
    if len(names) != len(query) or [len(row) for row in answers] != [query.shape[1]] * len(query):
        raise InputError(
            f"task_sheet: {len(names)} names and answers to {len(answers)} classes for pictures of shape "
            f"{query.shape}. A name for each class and an answer for each picture are needed."
        )
    classes, columns = len(support), [1.0] * support.shape[1] + [0.2] + [1.0] * query.shape[1]
    top = 0.35 if heading else 0.05
    width, height = max(sum(columns) + 0.4, 4.0), 1.2 * classes + top
    figure = Figure(figsize=(width, height))
    figure.patch.set_facecolor("white")
    with rc_context(STYLE):
        place = {"left": 0.35 / width, "right": 0.99, "bottom": 0.05 / height, "top": 1 - (top + 0.2) / height}
        spaces = {"hspace": 0.25, "wspace": 0.1, "width_ratios": columns}
        grid = figure.subplots(classes, len(columns), squeeze=False, gridspec_kw=place | spaces)
    for i, row in enumerate(grid):
        gap = support.shape[1]
        for axes, picture in zip(np.delete(row, gap), [*support[i], *query[i]], strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            framed(axes)
        row[gap].axis("off")
        row[0].set_ylabel(names[i], fontsize=8)
        for axes, answer, known in zip(row[gap + 1 :], answers[i], correct[i], strict=True):
            axes.set_title(answer, fontsize=7.5, fontweight="normal", loc="center", pad=3)
            framed(axes, BLUE if known else RED, 2.0)
    grid[0, 0].set_title("learned from", fontsize=7.5, fontweight="normal", pad=3)
    if heading:
        figure.suptitle(heading, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    save(figure, path)

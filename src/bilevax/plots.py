"""Figures of denoising and tuning runs and of experiments, drawn without any of pyplot's global state.

Texts are shown as they are: none is parsed as a formula, control characters are replaced, long ones are shortened.
Figures are PNG files, written whole or not at all. Input of wrong types or shapes, and a path that cannot be written,
raise InputError.
"""

import itertools
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

from bilevax import _files
from bilevax._checks import InputError, require_count
from bilevax.solvers import Info

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.usetex": False,
}
DOTS_PER_INCH = 150
MOST_DOTS = 2**16 - 1  # of a side, as matplotlib has it
HUGE = 1e100  # larger numbers are drawn as this one: the squares of axes' ranges must be finite
MOST_ENTRIES = 24  # of a legend
MOST_POINTS = 2000  # of a running median
LONGEST, LONGEST_NAME, MOST_LINES = 120, 40, 6  # characters of a line; of a name in a legend or at a tick; lines


class Panel(NamedTuple):
    """One panel of `curve_panels`: `curves` (trials, k) over `x` (k,); `log` for a logarithmic y axis."""

    title: str
    x: Any
    curves: Any
    log: bool


class TimedLosses(NamedTuple):
    """One curve of `loss_against_time`: `losses` (k,) at `seconds` (k,) since the start."""

    seconds: Any
    losses: Any


class Line(NamedTuple):
    """One line of a `LinePanel`: `y` (k,), or (trials, k), over `x` (k,)."""

    x: Any
    y: Any


class LinePanel(NamedTuple):
    """One panel of `line_panels`: lines by their names, and levels that do not depend on x, drawn across."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    levels: Mapping[str, float] = {}


def contact_sheet(
    images: Any, titles: Sequence[str], path: Path, heading: str = "", flags: Sequence[bool] | None = None
) -> None:
    """Small pictures in a grid, ten to a row, with a title above each.

    Args:
        images: (n, height, width) grey, or (n, height, width, 3 or 4) colour with values in 0..1.
        titles: n short texts; line breaks are kept.
        path: the PNG to write.
        heading: one line above all.
        flags: n truth values; where given, True frames a picture in red-orange and False in blue.

    Raises:
        InputError: no images, or not one title for each; more than fit into a figure.
    """
    images, titles = _pictures("contact_sheet", "images", images, 3), _texts("contact_sheet", "titles", titles)
    flags = None if flags is None else (_numbers("contact_sheet", "flags", flags, 1) != 0).tolist()
    n = len(images)
    if n == 0 or len(titles) != n or (flags is not None and len(flags) != n):
        raise InputError(f"contact_sheet: {n} images and {len(titles)} titles. At least one image, each with a title.")
    brightest = _largest(images)
    columns = min(10, n)
    rows = -(-n // columns)
    lines = max(t.count("\n") for t in titles) + 1
    cell = 1.0 + 0.16 * lines
    top = 0.35 if heading else 0.1
    height = rows * cell + top
    _require_room(height)
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
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
        if i >= n:
            axes.axis("off")
            continue
        axes.imshow(images[i], cmap="gray_r", vmin=0, vmax=max(1.0, brightest), interpolation="nearest")
        look: dict[str, Any] = {"fontsize": 7.5, "fontweight": "normal", "linespacing": 1.1}
        axes.set_title(titles[i], loc="center", pad=3, **look)
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color("#999999" if flags is None else RED if flags[i] else BLUE)
            spine.set_linewidth(0.8 if flags is None else 2.0)
    if heading:
        figure.suptitle(heading, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    _save(figure, path)


def change_sheet(
    before: Any,
    after: Any,
    above: Sequence[str],
    below: Sequence[str],
    path: Path,
    heading: str = "",
    targets: Any | None = None,
) -> None:
    """Pictures before and after a change and the change itself, in three rows; red is more, blue is less.

    Args:
        before, after: (n, height, width) grey, or (n, height, width, 3) colour, with values in 0..1; at most 12.
        above: n short texts over the pictures before.
        below: n short texts under the changes.
        path: the PNG to write.
        heading: one line above all.
        targets: pictures as `before`, what each was changed for; a row of their own above the others.

    Raises:
        InputError: no pictures, or shapes or texts that do not fit.

    Example:
        >>> import tempfile, pathlib
        >>> import numpy as np
        >>> from bilevax.plots import change_sheet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pictures = np.zeros((2, 8, 8)), np.full((2, 8, 8), 0.5)
        ...     change_sheet(*pictures, ["3", "4"], ["as 8", "as 9"], pathlib.Path(folder) / "points.png")
    """
    before, after = (_pictures("change_sheet", n, x, 3) for n, x in (("before", before), ("after", after)))
    aims = [] if targets is None else [_pictures("change_sheet", "targets", targets, 3)]
    above, below = _texts("change_sheet", "above", above), _texts("change_sheet", "below", below)
    n, shapes = len(before), {x.shape for x in (before, after, *aims)}
    if not n or len(shapes) > 1 or before.ndim not in (3, 4) or not n == len(above) == len(below) <= 12:
        raise InputError(
            f"change_sheet: pictures of shape {' and '.join(map(str, sorted(shapes)))}, and {len(above)} and "
            f"{len(below)} texts. At least one and at most 12 pictures of one shape, with two texts each, are needed."
        )
    change = after - before if before.ndim == 3 else (after - before).mean(-1)
    most = max(_largest(np.abs(change)), 1e-3)
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
                axes.grid(False)
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(True)
                    spine.set_color("#999999")
            row[0].set_ylabel(name, fontsize=9)
        for i in range(n):
            rows[0, i].set_title(above[i], fontsize=8, fontweight="normal", loc="center")
            rows[-1, i].set_xlabel(below[i], fontsize=8)
        if heading:
            figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    _save(figure, path)


def task_sheet(
    support: Any,
    query: Any,
    names: Sequence[str],
    answers: Sequence[Sequence[str]],
    right: Any,
    path: Path,
    heading: str = "",
) -> None:
    """A task of few-shot learning, a row for each class: its support set, then its query set with the answers.

    Above a query stands its answer; the query is framed in blue where that is right, otherwise in red-orange.

    Args:
        support: (classes, k, height, width[, 3]) pictures learned from, with values in 0..1.
        query: (classes, n, height, width[, 3]) pictures to answer.
        names: of the classes.
        answers: n short texts for each class.
        right: (classes, n) truth values.
        path: the PNG to write.
        heading: one line above all.

    Raises:
        InputError: no pictures, or shapes or texts that do not fit.

    Example:
        >>> import tempfile, pathlib
        >>> import numpy as np
        >>> from bilevax.plots import task_sheet
        >>> support, query = np.zeros((2, 5, 8, 8)), np.ones((2, 1, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "task.png"
        ...     task_sheet(support, query, ["cat", "dog"], [["cat"], ["cat"]], [[True], [False]], path)
    """
    support, query = (_pictures("task_sheet", n, x, 4) for n, x in (("support", support), ("query", query)))
    right, names = _numbers("task_sheet", "right", right) != 0, _texts("task_sheet", "names", names)
    if isinstance(answers, str) or not isinstance(answers, Iterable):
        raise InputError(f"task_sheet: answers is {answers!r}, and must hold a list of texts for each class.")
    answers = [_texts("task_sheet", "answers", row) for row in answers]
    fits = support.ndim in (4, 5) and support.shape[:1] + support.shape[2:] == query.shape[:1] + query.shape[2:]
    if not fits or 0 in support.shape + query.shape or right.shape != query.shape[:2]:
        raise InputError(
            f"task_sheet: pictures of shape {support.shape} and {query.shape}, and truth values of shape "
            f"{right.shape}. Pictures (classes, k, ...) and (classes, n, ...), at least one each, and truth values "
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
            axes.grid(False)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_color("#999999")
        row[gap].axis("off")
        row[0].set_ylabel(names[i], fontsize=8)
        for axes, answer, known in zip(row[gap + 1 :], answers[i], right[i], strict=True):
            axes.set_title(answer, fontsize=7.5, fontweight="normal", loc="center", pad=3)
            for spine in axes.spines.values():
                spine.set_color(BLUE if known else RED)
                spine.set_linewidth(2.0)
    grid[0, 0].set_title("learned from", fontsize=7.5, fontweight="normal", pad=3)
    if heading:
        figure.suptitle(heading, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    _save(figure, path)


def weight_histogram(weights: Any, wrong: Any | None, path: Path) -> None:
    """How the samples' weights are spread.

    Args:
        weights: (n,), in 0..1.
        wrong: (n,) of bool, which labels are known to be wrong; None where that is not known.
        path: the PNG to write.

    Raises:
        InputError: no weights, weights outside of 0..1, or truth values that do not fit them.
    """
    weights = _numbers("weight_histogram", "weights", weights, 1)
    if not len(weights) or not ((weights >= -1e-3) & (weights <= 1 + 1e-3)).all():
        raise InputError(f"weight_histogram: {len(weights)} weights. At least one is needed, and all in 0..1.")
    if wrong is not None and np.shape(wrong) != weights.shape:
        raise InputError(
            f"weight_histogram: wrong has shape {np.shape(wrong)}, and must have that of the weights, {weights.shape}."
        )
    weights = np.clip(weights, 0, 1)
    bins = np.linspace(0, 1, 41).tolist()
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.subplots()
        if wrong is None:
            axes.hist(weights, bins, color=BLUE, edgecolor="white", linewidth=0.4)
        else:
            wrong = np.asarray(wrong, bool)
            groups = [(weights[~wrong], BLUE, "right label", ""), (weights[wrong], RED, "wrong label", "///")]
            for values, colour, name, hatch in groups:
                axes.hist(
                    values,
                    bins,
                    color=colour,
                    alpha=0.75,
                    edgecolor="white",
                    linewidth=0.4,
                    hatch=hatch,
                    label=f"{name} ({len(values):,})",
                )
            _legend(axes, loc="upper center")
        axes.set(
            xlim=(0, 1),
            xlabel="weight (0: the sample is ignored, 1: it counts in full)",
            ylabel="samples",
            title=f"Weights of {len(weights):,} training samples",
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def convergence(histories: Mapping[str, Info], path: Path) -> None:
    """Losses and gradient norms over the steps, one colour for each solver.

    The thin pale line is each step (with minibatches, a noisy one), the strong one its running median. Of a
    `Vectorized` solver the strong line is the median over the members that are still finite, and the band holds the
    middle half of them.

    Args:
        histories: `Result.history` by the solver's name, arrays (steps,), or (steps, members).
        path: the PNG to write.

    Raises:
        InputError: no histories, or values that are none.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from bilevax import Info
        >>> from bilevax.plots import convergence
        >>> loss = np.exp(-np.arange(50.0)[:, None] / [5.0, 10.0, 20.0])  # three members
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     convergence({"Penalty": Info(loss, loss, loss, loss, {})}, pathlib.Path(folder) / "convergence.png")
    """
    if not isinstance(histories, Mapping) or not histories:
        raise InputError("convergence: histories must hold at least one Result.history, by the solver's name.")
    panels = [
        ("Upper loss f", "loss", lambda h: h.upper_loss),
        ("Lower loss g", "loss", lambda h: h.lower_loss),
        ("Upper direction", "norm", lambda h: h.upper_grad_norm),
        ("Lower gradient |∇ᵥg|", "norm", lambda h: h.lower_grad_norm),
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        several = False
        for axes, (title, label, take) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
            for colour, (name, history) in zip(_cycle(len(histories)), histories.items(), strict=True):
                if not isinstance(history, Info):
                    raise InputError(
                        f"convergence: {name!r} is a {type(history).__name__}, and must be a Result.history."
                    )
                values = _drawable(_numbers("convergence", f"{name!r}, {title},", take(history)))
                values = np.atleast_1d(values)
                values = values.reshape(len(values), int(np.prod(values.shape[1:])))
                several |= values.shape[1] > 1
                _draw_history(axes, values, colour, name)
            _log_where_possible(axes)
            axes.set(title=title, ylabel=label)
            axes.margins(x=0.01)
        for axes in figure.axes[2:]:
            axes.set_xlabel("step; band: the middle half of the members" if several else "step")
        _legend(figure.axes[0], loc="best")
    _save(figure, path)


def curve_panels(
    panels: Sequence[Panel], path: Path, columns: int, x_label: str = "upper iterations", y_label: str = ""
) -> None:
    """A grid of panels: the mean over trials as a strong line, over each trial as a thin one.

    Args:
        panels: what to draw, row by row. Panels without a finite value stay empty and say so.
        path: the PNG to write.
        columns: panels in a row.
        x_label, y_label: axis labels of the outer panels.

    Raises:
        InputError: no panels, or curves that do not fit their x.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from bilevax.plots import Panel, curve_panels
        >>> x = np.arange(100)
        >>> panel = Panel("Penalty, T = 1", x, np.exp(-x / [[10.0], [20.0]]), log=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curve_panels([panel], pathlib.Path(folder) / "curves.png", columns=1)
    """
    columns = require_count("curve_panels", "columns", columns)
    _require_kind("curve_panels", panels, Panel)
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        width, height = max(2.7 * columns, 4.5), 2.1 * rows + 0.4
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(rows, columns, squeeze=False)
        # Margins in inches: a layout engine would draw dozens of panels several times over to find them.
        figure.subplots_adjust(0.75 / width, 0.5 / height, 1 - 0.1 / width, 1 - 0.35 / height, wspace=0.36, hspace=0.42)
        for i, axes in enumerate(grid.flat):
            if i >= len(panels):
                axes.axis("off")
                continue
            _draw_panel(axes, panels[i])
            if i % columns == 0:
                axes.set_ylabel(y_label)
            if i + columns >= len(panels):
                axes.set_xlabel(x_label)
    _save(figure, path)


def loss_against_time(
    curves: Mapping[str, TimedLosses], path: Path, title: str, levels: Mapping[str, float] | None = None
) -> None:
    """Loss against seconds since the start, every method on one pair of axes; a loss holds until the next one.

    Args:
        curves: by the method's name.
        path: the PNG to write.
        title: one line above.
        levels: named losses that do not depend on time, drawn across.

    Raises:
        InputError: no curves, seconds and losses that do not fit or seconds that are not positive: their axis is
            logarithmic.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.plots import TimedLosses, loss_against_time
        >>> curves = {"Penalty": TimedLosses([0.01, 0.02], [0.5, 0.3]), "search": TimedLosses([1, 9], [0.5, 0.4])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loss_against_time(curves, pathlib.Path(folder) / "tuning.png", "Digits", {"default": 0.6})
    """
    if not isinstance(curves, Mapping) or not curves:
        raise InputError("loss_against_time: no curves. Pass at least one, by the method's name.")
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        axes = figure.subplots()
        for colour, (name, curve) in zip(_cycle(len(curves)), curves.items(), strict=True):
            if not isinstance(curve, TimedLosses):
                raise InputError(f"loss_against_time: {name!r} is a {type(curve).__name__}, and must be a TimedLosses.")
            seconds = _numbers("loss_against_time", f"seconds of {name!r}", curve.seconds)
            losses = _numbers("loss_against_time", f"losses of {name!r}", curve.losses)
            if seconds.ndim != 1 or seconds.shape != losses.shape or not ((seconds > 0) & (seconds < HUGE)).all():
                raise InputError(
                    f"loss_against_time: {name!r} has seconds of shape {seconds.shape} and losses of shape "
                    f"{losses.shape}. Both must be (k,), and the seconds positive."
                )
            losses = _drawable(losses)
            axes.step(seconds, losses, where="post", color=colour, linewidth=1.8, label=name)
            axes.plot(seconds, losses, "o", color=colour, markersize=3.5)
        _draw_levels(axes, levels or {})
        axes.set_xscale("log")
        axes.set(xlabel="seconds, compilation apart", ylabel="loss", title=title)
        # Below the axes: within them the curves leave no corner that is always free.
        _legend(figure, loc="outside lower center", ncols=3)
    _save(figure, path)


def line_panels(panels: Sequence[LinePanel], path: Path) -> None:
    """Panels side by side with a line for each method: its mean over the trials, and a band from least to largest.

    A method has the same colour in all panels, and the figure one legend.

    Args:
        panels: what to draw, from left to right.
        path: the PNG to write.

    Raises:
        InputError: no panels, or lines whose y do not fit their x.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.plots import Line, LinePanel, line_panels
        >>> lines = {"Penalty": Line([1, 5, 20], [[97.0, 98.0, 98.9], [97.2, 98.1, 98.8]])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     line_panels([LinePanel("MNIST", "T", "accuracy %", lines)], pathlib.Path(folder) / "lines.png")
    """
    _require_kind("line_panels", panels, LinePanel)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colour_of = dict(zip(names, _cycle(len(names)), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.6 * len(panels), 5.0), 4.0), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            for name, line in panel.lines.items():
                if not isinstance(line, Line):
                    raise InputError(f"Panel {panel.title!r}: {name!r} is a {type(line).__name__}, and must be a Line.")
                x = _drawable(_numbers("line_panels", f"x of {name!r}", line.x))
                y = np.atleast_2d(_drawable(_numbers("line_panels", f"y of {name!r}", line.y)))
                if y.shape[1:] != x.shape or x.ndim != 1 or not len(y):
                    raise InputError(
                        f"Panel {panel.title!r}: {name!r} has y of shape {y.shape} and x of shape {x.shape}; y must be "
                        "(k,) or (trials, k), and x (k,)."
                    )
                axes.plot(x, y.mean(0), "o-", color=colour_of[name], linewidth=1.8, markersize=3.5, label=name)
                axes.fill_between(x, y.min(0), y.max(0), color=colour_of[name], alpha=0.18, linewidth=0)
            _draw_levels(axes, panel.levels)
            axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        _legend(figure, loc="outside lower center", ncols=2 if len(panels) == 1 else 4)
    _save(figure, path)


def bars(names: Sequence[str], values: Mapping[str, Any], path: Path, title: str, label: str) -> None:
    """Horizontal bars beside each other: a row for each name, a bar in it for each method.

    Args:
        names: of the rows, the first on top.
        values: (rows,) for each method.
        path: the PNG to write.
        title: one line above.
        label: of the values' axis.

    Raises:
        InputError: no method, or values that do not fit the names.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.plots import bars
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bars(["age", "size"], {"LassoCV": [1.0, -2.0]}, pathlib.Path(folder) / "b.png", "Chosen", "coefficient")
    """
    names = [_plain(name, LONGEST_NAME) for name in _texts("bars", "names", names)]
    if not isinstance(values, Mapping):
        raise InputError(f"bars: values is a {type(values).__name__}, and must map each method's name to its values.")
    values = {method: _drawable(_numbers("bars", f"values of {method!r}", v)) for method, v in values.items()}
    if not values or any(np.shape(v) != (len(names),) for v in values.values()):
        raise InputError(
            f"bars: there are {len(names)} names and values of shapes {[np.shape(v) for v in values.values()]}. Pass "
            "at least one method, with one value for each name."
        )
    thick, height = 0.8 / len(values), 1.4 + 0.28 * max(len(names), 4)
    _require_room(height)
    with rc_context(STYLE):
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.subplots()
        for i, (colour, (method, value)) in enumerate(zip(_cycle(len(values)), values.items(), strict=True)):
            axes.barh(np.arange(len(names)) + (i + 0.5) * thick - 0.4, value, thick, color=colour, label=method)
        axes.set_yticks(np.arange(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color="#666666", linewidth=0.8)
        axes.set(xlabel=label, title=title)
        _legend(figure, loc="outside lower center", ncols=2)
    _save(figure, path)


_UNNAMED = re.compile(r"_child\d+$|_container\d+$|_nolegend_$|_line\d+$|$")  # what matplotlib calls what has no name


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for style, (name, level) in zip(itertools.cycle(("--", ":", "-.")), levels.items(), strict=False):
        level = _drawable(_numbers("levels", repr(name), level, 0))
        axes.axhline(float(level), color="#666666", linestyle=style, linewidth=1.2, label=name, zorder=1)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    x = _drawable(_numbers("curve_panels", f"x of panel {panel.title!r}", panel.x))
    drawn = np.atleast_2d(_drawable(_numbers("curve_panels", f"curves of panel {panel.title!r}", panel.curves)))
    if drawn.shape[1:] != x.shape or x.ndim != 1 or not len(drawn):
        raise InputError(
            f"Panel {panel.title!r}: curves have shape {drawn.shape} and x {x.shape}; "
            "curves must be (trials, k) and x (k,)."
        )
    axes.set_title(panel.title, fontsize=9.5)
    if not np.isfinite(drawn).any():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center", color="#777777")
        return
    axes.plot(x, drawn.T, color=SKY, alpha=0.45, linewidth=0.7)
    # A trial that has left the numbers takes the mean with it: say so by ending the line, not by averaging the rest.
    axes.plot(x, drawn.mean(0), color=BLUE, linewidth=2.0)
    if panel.log:
        _log_where_possible(axes)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))


def _log_where_possible(axes: Axes) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()] or [np.ones(1)])
    values = values[np.isfinite(values)]
    if len(values) and (values > 0).any():
        if (values > 0).all():
            axes.set_yscale("log")
        else:
            sizes = np.abs(values[values != 0])
            axes.set_yscale("symlog", linthresh=float(max(sizes.min(), 1e-12 * sizes.max())))


def _draw_history(axes: Axes, values: np.ndarray, colour: str, name: Any) -> None:
    """A history (steps, members) as `convergence` shows it."""
    x, middle = np.arange(1, len(values) + 1), values[:, 0] if values.shape[1] else np.full(len(values), np.nan)
    if values.shape[1] > 1:
        low, middle, high = _over_known(lambda v: np.nanquantile(v, (0.25, 0.5, 0.75), axis=1).T, values, 3).T
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(*_running_median(middle), color=colour, linewidth=1.8, label=name)


def _running_median(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over a fiftieth of the steps around each, narrower at the ends: the steps, counted from 1, and the medians.

    Of many steps the medians of blocks stand for them.
    """
    if not len(values):
        return values, values
    block = max(1, -(-len(values) // MOST_POINTS))
    padded = np.pad(values, (0, -len(values) % block), constant_values=np.nan).reshape(-1, block)
    values = _over_known(lambda v: np.nanmedian(v, axis=1), padded)
    x = 1 + (block - 1) / 2 + block * np.arange(len(values))
    half = max(1, len(values) // 100)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, constant_values=np.nan), 2 * half + 1)
    return x, _over_known(lambda v: np.nanmedian(v, axis=1), windows)


def _over_known(function: Any, rows: np.ndarray, columns: int | None = None) -> np.ndarray:
    """`function` of the rows that hold a number; NaN for the others."""
    known = np.isfinite(rows).any(1)
    result = np.full(len(rows) if columns is None else (len(rows), columns), np.nan)
    if known.any():
        result[known] = function(rows[known])
    return result


# --- input -----------------------------------------------------------------------------------------------------------


def _numbers(owner: str, name: str, x: Any, rank: int | None = None) -> np.ndarray:
    """An array of floats; refuse what is none, or of another rank."""
    try:
        x = np.asarray(x)
        if np.iscomplexobj(x) or x.dtype.kind not in "biufO" or (x.ndim == 0 and x.item() is None):
            raise TypeError(f"it holds {x.dtype}")
        array = x.astype(float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: {name} must be an array of numbers, and is not ({error}).") from error
    if rank is not None and array.ndim != rank:
        raise InputError(f"{owner}: {name} has shape {array.shape}, and must have {rank} axes.")
    return array


def _pictures(owner: str, name: str, x: Any, rank: int) -> np.ndarray:
    """Grey pictures, of so many axes in all, or colour ones, of one more, three or four channels each."""
    array = _numbers(owner, name, x)
    if array.ndim not in (rank, rank + 1) or (array.ndim == rank + 1 and array.shape[-1] not in (3, 4)):
        raise InputError(
            f"{owner}: {name} has shape {array.shape}. Grey pictures have {rank} axes, the last two height and width, "
            "and colour ones a last axis of 3 or 4 more."
        )
    if 0 in array.shape[1:]:
        raise InputError(f"{owner}: {name} has shape {array.shape}: pictures without pixels.")
    if array.ndim == rank:
        return _drawable(array)
    scale = 255 if np.asarray(x).dtype == np.uint8 else 1
    return np.clip(np.nan_to_num(array / scale), 0, 1)


def _texts(owner: str, name: str, texts: Any) -> list[str]:
    """Texts as they can be shown; numbers become texts."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(f"{owner}: {name} is {texts!r}, and must be a sequence of texts.")
    return [_plain(text) for text in texts]


def _require_kind(owner: str, panels: Any, kind: type) -> None:
    if not isinstance(panels, Sequence) or isinstance(panels, str):
        raise InputError(f"{owner}: panels is a {type(panels).__name__}, and must be a list of {kind.__name__}.")
    if not panels:
        raise InputError(f"{owner}: 0 panels, no panels. Pass at least one.")
    for panel in panels:
        if not isinstance(panel, kind):
            raise InputError(f"{owner}: panels holds a {type(panel).__name__}, and must hold {kind.__name__}s.")


def _require_room(*inches: float) -> None:
    if DOTS_PER_INCH * max(inches) > MOST_DOTS:
        raise InputError("plots: that is more than fits into one figure. Draw fewer at once.")


def _drawable(x: np.ndarray) -> np.ndarray:
    """Numbers that axes can be scaled to: NaN for infinities, and none that is too large."""
    return np.clip(np.where(np.isfinite(x), x, np.nan), -HUGE, HUGE)


def _largest(x: np.ndarray) -> float:
    known = x[np.isfinite(x)]
    return float(known.max()) if known.size else 0.0


# --- texts -----------------------------------------------------------------------------------------------------------


def _plain(text: Any, longest: int = LONGEST) -> str:
    """A text of a few lines that a font can show: no control characters, no lone surrogates, none too long."""
    lines = str(text).encode("utf-8", "replace").decode().splitlines()
    more = ["…"] if len(lines) > MOST_LINES else []
    return "\n".join(["".join(map(_shown, _short(line, longest))) for line in lines[:MOST_LINES]] + more)


def _short(line: str, longest: int) -> str:
    """A line with its middle left out where it is too long: names often differ at their ends."""
    half = (longest - 1) // 2
    return line if len(line) <= longest else f"{line[: longest - 1 - half]}…{line[-half:]}"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    # Those that format, such as direction marks, are left out.
    return "" if unicodedata.category(character) == "Cf" else "\N{REPLACEMENT CHARACTER}"


def _legend(owner: Axes | Figure, **look: Any) -> None:
    """A legend of what is drawn, each name once. Names that start with an underscore, which matplotlib hides, too."""
    entries: dict[str, Any] = {}
    for axes in [owner] if isinstance(owner, Axes) else owner.axes:
        for artist in [*axes.lines, *axes.containers, *axes.patches]:
            name = str(artist.get_label())
            if not _UNNAMED.match(name):
                entries.setdefault(name, artist)
    if not entries:
        return
    names, handles = list(entries)[:MOST_ENTRIES], list(entries.values())[:MOST_ENTRIES]
    if more := len(entries) - len(names):
        names.append(f"and {more} more")
        handles.append(Line2D([], [], linestyle="none"))
    names = [_plain(name, LONGEST_NAME) for name in names]
    if isinstance(owner, Figure):  # as many columns as have room
        column = 0.6 + 0.08 * max(len(line) for name in names for line in name.split("\n"))
        look["ncols"] = max(1, min(look.get("ncols", 1), int(owner.get_figwidth() / column)))
    # By number at first: of these it leaves none out.
    legend = owner.legend(handles, [str(i) for i in range(len(names))], **look)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _show_as_they_are(figure: Figure) -> None:
    """Every text that is not a tick's number: not parsed, and such as a font can show."""
    numbers, names = set(), set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            found = names if isinstance(axis.get_major_locator(), FixedLocator) else numbers
            found.update(axis.get_ticklabels(), axis.get_ticklabels(minor=True))
            numbers.add(axis.get_offset_text())
    for legend in figure.findobj(Legend):
        names.update(legend.get_texts())
    points = 72 * 0.8 * figure.get_figwidth()
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
            text.set_usetex(False)
            fits = max(20, int(points / (0.6 * float(text.get_fontsize()))))
            text.set_text(_plain(text.get_text(), LONGEST_NAME if text in names else min(LONGEST, fits)))


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _save(figure: Figure, path: Path) -> None:
    path = _files.local_path("plots: path", path)
    if path.suffix.lower() != ".png":
        raise InputError(f"plots: path is {str(path)!r}, and must end in .png, which is the format that is written.")
    _require_room(*figure.get_size_inches())
    _show_as_they_are(figure)
    with warnings.catch_warnings():
        # Of glyphs that the font lacks, which it shows as boxes, and of labels that leave no room for the axes.
        warnings.simplefilter("ignore")
        try:
            _files.replace(path, lambda temporary: figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png"))
        except OSError as error:
            raise InputError(
                f"plots: {str(path)!r} cannot be written ({_files.reason(error)}). Name a file that you can write."
            ) from error

"""Figures of denoising and tuning runs and of experiments, drawn without any of pyplot's global state."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bilevax.problem import InputError
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
}
DOTS_PER_INCH = 150


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
        InputError: no images, or not one title for each.
    """
    images = np.asarray(images)
    n = len(images)
    if n == 0 or len(titles) != n or (flags is not None and len(flags) != n):
        raise InputError(f"contact_sheet: {n} images and {len(titles)} titles. At least one image, each with a title.")
    columns = min(10, n)
    rows = -(-n // columns)
    lines = max(t.count("\n") for t in titles) + 1
    cell = 1.0 + 0.16 * lines
    top = 0.35 if heading else 0.1
    height = rows * cell + top
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
        axes.imshow(images[i], cmap="gray_r", vmin=0, vmax=max(1.0, float(images.max())), interpolation="nearest")
        look: dict[str, Any] = {"fontsize": 7.5, "fontweight": "normal", "linespacing": 1.1}
        axes.set_title(titles[i], loc="center", pad=3, parse_math=False, **look)
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
    before, after = np.asarray(before, float), np.asarray(after, float)
    aims = [] if targets is None else [np.asarray(targets, float)]
    n, shapes = len(before), {x.shape for x in (before, after, *aims)}
    if not n or len(shapes) > 1 or before.ndim not in (3, 4) or not n == len(above) == len(below) <= 12:
        raise InputError(
            f"change_sheet: pictures of shape {' and '.join(map(str, sorted(shapes)))}, and {len(above)} and "
            f"{len(below)} texts. At least one and at most 12 pictures of one shape, with two texts each, are needed."
        )
    change = after - before if before.ndim == 3 else (after - before).mean(-1)
    most = max(float(np.abs(change).max()), 1e-3)
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
            rows[0, i].set_title(above[i], fontsize=8, fontweight="normal", loc="center", parse_math=False)
            rows[-1, i].set_xlabel(below[i], fontsize=8, parse_math=False)
        if heading:
            figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    _save(figure, path)


def task_sheet(
    given: Any,
    asked: Any,
    names: Sequence[str],
    answers: Sequence[Sequence[str]],
    right: Any,
    path: Path,
    heading: str = "",
) -> None:
    """A task of few-shot learning, a row for each class: pictures learned from, then those asked about, answered.

    Above a picture that was asked about stands the answer; it is framed in blue where that is right, otherwise in
    red-orange.

    Args:
        given: (classes, k, height, width[, 3]) pictures learned from, with values in 0..1.
        asked: (classes, n, height, width[, 3]) pictures asked about.
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
        >>> given, asked = np.zeros((2, 5, 8, 8)), np.ones((2, 1, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "task.png"
        ...     task_sheet(given, asked, ["cat", "dog"], [["cat"], ["cat"]], [[True], [False]], path)
    """
    given, asked, right = np.asarray(given), np.asarray(asked), np.asarray(right, bool)
    fits = given.ndim in (4, 5) and given.shape[:1] + given.shape[2:] == asked.shape[:1] + asked.shape[2:]
    if not fits or 0 in given.shape + asked.shape or right.shape != asked.shape[:2]:
        raise InputError(
            f"task_sheet: pictures of shape {given.shape} and {asked.shape}, and truth values of shape {right.shape}. "
            "Pictures (classes, k, ...) and (classes, n, ...), at least one each, and truth values (classes, n) are "
            "needed."
        )
    if len(names) != len(asked) or [len(row) for row in answers] != [asked.shape[1]] * len(asked):
        raise InputError(
            f"task_sheet: {len(names)} names and answers to {len(answers)} classes for pictures of shape "
            f"{asked.shape}. A name for each class and an answer for each picture are needed."
        )
    classes, columns = len(given), [1.0] * given.shape[1] + [0.2] + [1.0] * asked.shape[1]
    top = 0.35 if heading else 0.05
    width, height = max(sum(columns) + 0.4, 4.0), 1.2 * classes + top
    figure = Figure(figsize=(width, height))
    figure.patch.set_facecolor("white")
    with rc_context(STYLE):
        place = {"left": 0.35 / width, "right": 0.99, "bottom": 0.05 / height, "top": 1 - (top + 0.2) / height}
        spaces = {"hspace": 0.25, "wspace": 0.1, "width_ratios": columns}
        grid = figure.subplots(classes, len(columns), squeeze=False, gridspec_kw=place | spaces)
    for i, row in enumerate(grid):
        gap = given.shape[1]
        for axes, picture in zip(np.delete(row, gap), [*given[i], *asked[i]], strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.grid(False)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_color("#999999")
        row[gap].axis("off")
        # A user's names: a dollar in them starts no formula.
        row[0].set_ylabel(names[i], fontsize=8, parse_math=False)
        for axes, answer, known in zip(row[gap + 1 :], answers[i], right[i], strict=True):
            axes.set_title(answer, fontsize=7.5, fontweight="normal", loc="center", pad=3, parse_math=False)
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
    """
    weights = np.asarray(weights)
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
            axes.legend(loc="upper center")
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

    The thin pale line is each step (with minibatches, a noisy one), the strong one its running median.

    Args:
        histories: `Result.history` by the solver's name.
        path: the PNG to write.
    """
    panels = [
        ("Upper loss f", "loss", lambda h: h.upper_loss),
        ("Lower loss g", "loss", lambda h: h.lower_loss),
        ("Upper direction", "norm", lambda h: h.upper_grad_norm),
        ("Lower gradient |∇ᵥg|", "norm", lambda h: h.lower_grad_norm),
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        for axes, (title, label, take) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
            for colour, (name, history) in zip(_cycle(len(histories)), histories.items(), strict=True):
                values = np.asarray(take(history), float)
                x = np.arange(1, len(values) + 1)
                axes.plot(x, values, color=colour, alpha=0.25, linewidth=0.6)
                axes.plot(x, _running_median(values), color=colour, linewidth=1.8, label=name)
            _log_where_possible(axes)
            axes.set(title=title, ylabel=label)
            axes.margins(x=0.01)
        for axes in figure.axes[2:]:
            axes.set_xlabel("step")
        figure.axes[0].legend(loc="best")
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
    if not panels or columns < 1:
        raise InputError(f"curve_panels: {len(panels)} panels in {columns} columns. Pass at least one of each.")
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
    if not curves:
        raise InputError("loss_against_time: no curves. Pass at least one.")
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        axes = figure.subplots()
        for colour, (name, curve) in zip(_cycle(len(curves)), curves.items(), strict=True):
            seconds, losses = np.asarray(curve.seconds, float), np.asarray(curve.losses, float)
            if seconds.ndim != 1 or seconds.shape != losses.shape or not (seconds > 0).all():
                raise InputError(
                    f"loss_against_time: {name!r} has seconds of shape {seconds.shape} and losses of shape "
                    f"{losses.shape}. Both must be (k,), and the seconds positive."
                )
            axes.step(seconds, losses, where="post", color=colour, linewidth=1.8, label=name)
            axes.plot(seconds, losses, "o", color=colour, markersize=3.5)
        _draw_levels(axes, levels or {})
        axes.set_xscale("log")
        axes.set(xlabel="seconds, compilation apart", ylabel="loss", title=title)
        # Below the axes: within them the curves leave no corner that is always free.
        figure.legend(loc="outside lower center", ncols=3)
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
    if not panels:
        raise InputError("line_panels: no panels. Pass at least one.")
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colour_of = dict(zip(names, _cycle(len(names)), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.6 * len(panels), 5.0), 4.0), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            for name, line in panel.lines.items():
                x, y = np.asarray(line.x, float), np.atleast_2d(np.asarray(line.y, float))
                if y.shape[1:] != x.shape:
                    raise InputError(
                        f"Panel {panel.title!r}: {name!r} has y of shape {y.shape} and x of shape {x.shape}; y must be "
                        "(k,) or (trials, k), and x (k,)."
                    )
                axes.plot(x, y.mean(0), "o-", color=colour_of[name], linewidth=1.8, markersize=3.5, label=name)
                axes.fill_between(x, y.min(0), y.max(0), color=colour_of[name], alpha=0.18, linewidth=0)
            _draw_levels(axes, panel.levels)
            axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        entries = {t: h for axes in figure.axes for h, t in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=2 if len(panels) == 1 else 4
        )
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
    if not values or any(np.shape(v) != (len(names),) for v in values.values()):
        raise InputError(
            f"bars: there are {len(names)} names and values of shapes {[np.shape(v) for v in values.values()]}. Pass "
            "at least one method, with one value for each name."
        )
    thick = 0.8 / len(values)
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 1.4 + 0.28 * max(len(names), 4)), layout="constrained")
        axes = figure.subplots()
        for i, (colour, (method, value)) in enumerate(zip(_cycle(len(values)), values.items(), strict=True)):
            axes.barh(np.arange(len(names)) + (i + 0.5) * thick - 0.4, value, thick, color=colour, label=method)
        axes.set_yticks(np.arange(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color="#666666", linewidth=0.8)
        axes.set(xlabel=label, title=title)
        figure.legend(loc="outside lower center", ncols=2)
    _save(figure, path)


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for style, (name, level) in zip(itertools.cycle(("--", ":", "-.")), levels.items(), strict=False):
        axes.axhline(level, color="#666666", linestyle=style, linewidth=1.2, label=name, zorder=1)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    x, curves = np.asarray(panel.x, float), np.atleast_2d(np.asarray(panel.curves, float))
    if curves.shape[1:] != x.shape:
        raise InputError(
            f"Panel {panel.title!r}: curves have shape {curves.shape} and x {x.shape}; "
            "curves must be (trials, k) and x (k,)."
        )
    axes.set_title(panel.title, fontsize=9.5)
    if not np.isfinite(curves).any():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center", color="#777777")
        return
    drawn = np.where(np.isfinite(curves), curves, np.nan)
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
            axes.set_yscale("symlog", linthresh=float(np.abs(values[values != 0]).min()))


def _running_median(values: np.ndarray) -> np.ndarray:
    """Over a fiftieth of the steps around each, narrower at the ends."""
    half = max(1, len(values) // 100)
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    known = np.isfinite(windows).any(1)
    result = np.full(len(values), np.nan)
    result[known] = np.nanmedian(windows[known], axis=1)
    return result


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")

"""Curves against steps, seconds or settings."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from bilevax._checks import InputError, require_count
from bilevax.plots.drawing import (
    BLUE,
    HUGE,
    SKY,
    STYLE,
    as_numbers,
    colours,
    draw_legend,
    drawable,
    require_kind,
    save,
)
from bilevax.solvers import Info

MOST_POINTS = 2000  # of a running median
VIOLATION = "constraint_violation"  # in the `extra` of Info
VIOLATED = "Constraint violation"


class Panel(NamedTuple):
    """One panel of `curve_panels`: `curves` (trials, k) against `x` (k,); `log` for a logarithmic y axis."""

    title: str
    x: ArrayLike
    curves: ArrayLike
    log: bool


class Line(NamedTuple):
    """One line of a `LinePanel`: `y` (k,) or (trials, k) against `x` (k,)."""

    x: ArrayLike
    y: ArrayLike


class LinePanel(NamedTuple):
    """One panel of `line_panels`: named lines, and named levels drawn as horizontal lines."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    levels: Mapping[str, float] = {}


def convergence(histories: Mapping[str, Info], path: Path) -> None:
    """Losses and gradient norms against steps, one colour per solver; with constraints also their violation.

    The thin pale line shows every step, the thick line its running median. For a `Vectorized` solver the thick line is
    the median over the members that are still finite, and the band contains the middle half of them. The violation is
    the `constraint_violation` that `Penalty` records; a panel of its own is drawn if any history has it.

    Args:
        histories: `Result.history` by the name of the solver, arrays (steps,) or (steps, members).
        path: the PNG file to write.

    Raises:
        InputError: no histories, or wrong values.

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
        raise InputError("convergence: histories must hold at least one Result.history, by the name of the solver.")
    panels = [
        ("Upper loss f", "loss", lambda h: h.upper_loss),
        ("Lower loss g", "loss", lambda h: h.lower_loss),
        ("Upper direction", "norm", lambda h: h.upper_grad_norm),
        ("Lower gradient |∇ᵥg|", "norm", lambda h: h.lower_grad_norm),
    ]
    for name, history in histories.items():
        if not isinstance(history, Info):
            raise InputError(f"convergence: {name!r} is a {type(history).__name__}, and must be a Result.history.")
    if any(VIOLATION in history.extra for history in histories.values()):
        panels.append((VIOLATED, "largest amount", lambda h: h.extra[VIOLATION]))
    with rc_context(STYLE):
        rows = 2 if len(panels) == 4 else 3
        figure = Figure(figsize=(9, 3 * rows), layout="constrained")
        several = False
        grid = list(figure.subplots(rows, 2, sharex=True).flat)
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, (title, label, take) in zip(grid, panels, strict=False):
            for colour, (name, history) in zip(colours(len(histories)), histories.items(), strict=True):
                if title == VIOLATED and VIOLATION not in history.extra:
                    continue
                values = drawable(as_numbers("convergence", f"{name!r}, {title},", take(history)))
                values = np.atleast_1d(values)
                values = values.reshape(len(values), int(np.prod(values.shape[1:])))
                several |= values.shape[1] > 1
                _draw_history(axes, values, colour, name)
            _log_where_possible(axes)
            axes.set(title=title, ylabel=label)
            axes.margins(x=0.01)
        for axes in figure.axes[-2:]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step; band: the middle half of the members" if several else "step")
        draw_legend(figure.axes[0], loc="best")
    save(figure, path)


def curve_panels(
    panels: Sequence[Panel], path: Path, columns: int, x_label: str = "upper iterations", y_label: str = ""
) -> None:
    """A grid of panels with a thin line for each trial and a thick line for their mean.

    Args:
        panels: row by row. A panel without a finite value shows a note.
        path: the PNG file to write.
        columns: panels per row.
        x_label, y_label: axis labels of the outer panels.

    Raises:
        InputError: no panels, or curves and x of different lengths.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from bilevax.plots import Panel, curve_panels
        >>> x = np.arange(100)
        >>> panel = Panel("Penalty, T = 1", x, np.exp(-x / [[10.0], [20.0]]), log=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curve_panels([panel], pathlib.Path(folder) / "curves.png", columns=1)
    """
    columns = require_count("curve_panels", "columns", columns)
    require_kind("curve_panels", panels, Panel)
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        width, height = max(2.7 * columns, 4.5), 2.1 * rows + 0.4
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(rows, columns, squeeze=False)
        # Margins in inches: a layout engine would draw dozens of panels several times to find them.
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
    save(figure, path)


def loss_against_strength(
    strengths: ArrayLike, losses: ArrayLike, chosen: float, path: Path, title: str, label: str = "held-out loss"
) -> None:
    """Held-out losses along a path of strengths: their mean, a band of one standard error, and the strength chosen.

    Args:
        strengths: (k,), positive; their axis is logarithmic.
        losses: of each fold, (k, folds).
        chosen: the strength that is marked.
        path: the PNG file to write.
        title: of the figure.
        label: of the axis of the losses.

    Raises:
        InputError: no strengths, or not as many as losses; strengths that are not positive.

    Example:
        >>> import tempfile, pathlib
        >>> import numpy as np
        >>> from bilevax.plots import loss_against_strength
        >>> x = np.logspace(-3, 3, 7)
        >>> losses = np.log10(x)[:, None] ** 2 + [0.0, 1.0]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loss_against_strength(x, losses, 1.0, pathlib.Path(folder) / "path.png", "Diabetes")
    """
    x = as_numbers("loss_against_strength", "strengths", strengths)
    y = as_numbers("loss_against_strength", "losses", losses, 2)
    if x.ndim != 1 or not len(x) or len(y) != len(x) or not ((x > 0) & (x < HUGE)).all():
        raise InputError(
            f"loss_against_strength: strengths have shape {x.shape} and losses {y.shape}. Strengths must be positive, "
            "(k,), and losses (k, folds)."
        )
    order = np.argsort(x, kind="stable")
    x, y = x[order], drawable(y[order])
    mean, error = y.mean(1), y.std(1) / np.sqrt(max(y.shape[1] - 1, 1))
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(x, mean - error, mean + error, color=SKY, alpha=0.25, linewidth=0, label="standard error")
        axes.plot(x, mean, "o-", color=BLUE, linewidth=1.8, markersize=3.5, label="mean of the folds")
        axes.axvline(chosen, color="#666666", linestyle="--", linewidth=1.2, label="chosen")
        axes.set_xscale("log")
        axes.set(xlabel="strength", ylabel=label, title=title)
        draw_legend(figure, loc="outside lower center", ncols=3)
    save(figure, path)


def line_panels(panels: Sequence[LinePanel], path: Path) -> None:
    """Panels side by side: for each method the mean over the trials, and a band from the smallest to the largest.

    A method has the same colour in all panels, and the figure has one legend.

    Args:
        panels: from left to right.
        path: the PNG file to write.

    Raises:
        InputError: no panels, or y and x of different lengths.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.plots import Line, LinePanel, line_panels
        >>> lines = {"Penalty": Line([1, 5, 20], [[97.0, 98.0, 98.9], [97.2, 98.1, 98.8]])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     line_panels([LinePanel("MNIST", "T", "accuracy %", lines)], pathlib.Path(folder) / "lines.png")
    """
    require_kind("line_panels", panels, LinePanel)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colour_of = dict(zip(names, colours(len(names)), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.6 * len(panels), 5.0), 4.0), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            for name, line in panel.lines.items():
                if not isinstance(line, Line):
                    raise InputError(f"Panel {panel.title!r}: {name!r} is a {type(line).__name__}, and must be a Line.")
                x = drawable(as_numbers("line_panels", f"x of {name!r}", line.x))
                y = np.atleast_2d(drawable(as_numbers("line_panels", f"y of {name!r}", line.y)))
                if y.shape[1:] != x.shape or x.ndim != 1 or not len(y):
                    raise InputError(
                        f"Panel {panel.title!r}: {name!r} has y of shape {y.shape} and x of shape {x.shape}; y must be "
                        "(k,) or (trials, k), and x (k,)."
                    )
                axes.plot(x, y.mean(0), "o-", color=colour_of[name], linewidth=1.8, markersize=3.5, label=name)
                axes.fill_between(x, y.min(0), y.max(0), color=colour_of[name], alpha=0.18, linewidth=0)
            _draw_levels(axes, panel.levels)
            axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        draw_legend(figure, loc="outside lower center", ncols=2 if len(panels) == 1 else 4)
    save(figure, path)


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for style, (name, level) in zip(itertools.cycle(("--", ":", "-.")), levels.items(), strict=False):
        level = drawable(as_numbers("levels", repr(name), level, 0))
        axes.axhline(float(level), color="#666666", linestyle=style, linewidth=1.2, label=name, zorder=1)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    x = drawable(as_numbers("curve_panels", f"x of panel {panel.title!r}", panel.x))
    drawn = np.atleast_2d(drawable(as_numbers("curve_panels", f"curves of panel {panel.title!r}", panel.curves)))
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
    # Where a trial is not finite, the line of the mean ends: the mean of the others would hide it.
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


def _draw_history(axes: Axes, values: Float[np.ndarray, "steps members"], colour: str, name: str) -> None:
    """A history of `convergence`."""
    x, middle = np.arange(1, len(values) + 1), values[:, 0] if values.shape[1] else np.full(len(values), np.nan)
    if values.shape[1] > 1:
        low, middle, high = _over_known(lambda v: np.nanquantile(v, (0.25, 0.5, 0.75), axis=1).T, values, 3).T
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(*_running_median(middle), color=colour, linewidth=1.8, label=name)


def _running_median(values: Float[np.ndarray, " steps"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Steps, counted from 1, and medians over a fiftieth of all steps around each, narrower at the ends.

    Many steps are first reduced to medians of blocks.
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


def _over_known(
    function: Callable[[np.ndarray], np.ndarray], rows: Float[np.ndarray, "n m"], columns: int | None = None
) -> Float[np.ndarray, " n *columns"]:
    """`function` of the rows with a finite value; NaN for the others."""
    known = np.isfinite(rows).any(1)
    result = np.full(len(rows) if columns is None else (len(rows), columns), np.nan)
    if known.any():
        result[known] = function(rows[known])
    return result

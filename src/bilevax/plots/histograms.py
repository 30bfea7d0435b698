"""Histograms and bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from bilevax._checks import InputError
from bilevax.plots.drawing import (
    BLUE,
    LONGEST_NAME,
    RED,
    STYLE,
    as_numbers,
    as_texts,
    colours,
    draw_legend,
    drawable,
    plain_text,
    require_room,
    save,
)


def weight_histogram(weights: ArrayLike, wrong: ArrayLike | None, path: Path) -> None:
    """A histogram of the weights of the samples.

    Args:
        weights: (n,), in 0..1.
        wrong: (n,) of bool, which labels are wrong; None if unknown.
        path: the PNG file to write.

    Raises:
        InputError: no weights, weights outside 0..1, or weights and truth values of different lengths.
    """
    weights = as_numbers("weight_histogram", "weights", weights, 1)
    if not len(weights) or not ((weights >= -1e-3) & (weights <= 1 + 1e-3)).all():
        raise InputError(f"weight_histogram: {len(weights)} weights. At least one is needed, and all must be in 0..1.")
    if wrong is not None and np.shape(wrong) != weights.shape:
        raise InputError(
            f"weight_histogram: wrong has shape {np.shape(wrong)}, and must have that of weights, {weights.shape}."
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
            draw_legend(axes, loc="upper center")
        axes.set(
            xlim=(0, 1),
            xlabel="weight (0: the sample is ignored, 1: it counts in full)",
            ylabel="samples",
            title=f"Weights of {len(weights):,} training samples",
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


def bars(names: Sequence[str], values: Mapping[str, ArrayLike], path: Path, title: str, label: str) -> None:
    """Horizontal bars: a row for each name, with a bar for each method.

    Args:
        names: of the rows, the first on top.
        values: (rows,) by the name of the method.
        path: the PNG file to write.
        title: of the figure.
        label: of the axis of the values.

    Raises:
        InputError: no method, or names and values of different lengths.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.plots import bars
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bars(["age", "size"], {"LassoCV": [1.0, -2.0]}, pathlib.Path(folder) / "b.png", "Chosen", "coefficient")
    """
    names = [plain_text(name, LONGEST_NAME) for name in as_texts("bars", "names", names)]
    if not isinstance(values, Mapping):
        raise InputError(
            f"bars: values is a {type(values).__name__}, and must map the name of each method to its values."
        )
    values = {method: drawable(as_numbers("bars", f"values of {method!r}", v)) for method, v in values.items()}
    if not values or any(np.shape(v) != (len(names),) for v in values.values()):
        raise InputError(
            f"bars: there are {len(names)} names and values of shapes {[np.shape(v) for v in values.values()]}. Pass "
            "at least one method, with one value for each name."
        )
    thick, height = 0.8 / len(values), 1.4 + 0.28 * max(len(names), 4)
    require_room(height)
    with rc_context(STYLE):
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.subplots()
        for i, (colour, (method, value)) in enumerate(zip(colours(len(values)), values.items(), strict=True)):
            axes.barh(np.arange(len(names)) + (i + 0.5) * thick - 0.4, value, thick, color=colour, label=method)
        axes.set_yticks(np.arange(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color="#666666", linewidth=0.8)
        axes.set(xlabel=label, title=title)
        draw_legend(figure, loc="outside lower center", ncols=2)
    save(figure, path)

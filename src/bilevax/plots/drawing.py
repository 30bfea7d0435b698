"""What all figures share: colours, style, checks of arguments, safe texts, and writing of files."""

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from bilevax import _files
from bilevax._checks import InputError

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
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
MOST_DOTS = 2**16 - 1  # per side, the limit of matplotlib
HUGE = 1e100  # larger numbers are clipped to it: the squares of axis ranges must be finite
MOST_ENTRIES = 24  # of a legend
LONGEST, LONGEST_NAME, MOST_LINES = 120, 40, 6  # characters of a line; of a legend entry or tick label; lines
_UNNAMED = re.compile(r"_child\d+$|_container\d+$|_nolegend_$|_line\d+$|$")  # labels that matplotlib makes


def as_numbers(owner: str, name: str, x: Any, rank: int | None = None) -> Float[np.ndarray, "..."]:
    """An array of floats; raises for anything else, or another rank."""
    try:
        x = np.asarray(x)
        if np.iscomplexobj(x) or x.dtype.kind not in "biufO" or (x.ndim == 0 and x.item() is None):
            raise TypeError(f"it holds {x.dtype}")
        array = x.astype(float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: {name} must be an array of numbers ({error}).") from error
    if rank is not None and array.ndim != rank:
        raise InputError(f"{owner}: {name} has shape {array.shape}, and must have {rank} axes.")
    return array


def as_pictures(owner: str, name: str, x: Any, rank: int) -> Float[np.ndarray, "..."]:
    """Grey pictures with `rank` axes, or colour pictures with a last axis of three or four channels."""
    array = as_numbers(owner, name, x)
    if array.ndim not in (rank, rank + 1) or (array.ndim == rank + 1 and array.shape[-1] not in (3, 4)):
        raise InputError(
            f"{owner}: {name} has shape {array.shape}. Grey pictures have {rank} axes, the last two height and width; "
            "colour pictures have one more of 3 or 4 channels."
        )
    if 0 in array.shape[1:]:
        raise InputError(f"{owner}: {name} has shape {array.shape}, pictures without pixels.")
    if array.ndim == rank:
        return drawable(array)
    scale = 255 if np.asarray(x).dtype == np.uint8 else 1
    return np.clip(np.nan_to_num(array / scale), 0, 1)


def as_texts(owner: str, name: str, texts: Any) -> list[str]:
    """Texts that can be shown; numbers are converted."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(f"{owner}: {name} is {texts!r}, and must be a sequence of texts.")
    return [plain_text(text) for text in texts]


def require_kind(owner: str, panels: Any, kind: type) -> None:
    """Refuse anything but a list of panels of a kind."""
    if not isinstance(panels, Sequence) or isinstance(panels, str):
        raise InputError(f"{owner}: panels is a {type(panels).__name__}, and must be a list of {kind.__name__}.")
    if not panels:
        raise InputError(f"{owner}: no panels. Pass at least one.")
    for panel in panels:
        if not isinstance(panel, kind):
            raise InputError(f"{owner}: panels holds a {type(panel).__name__}, and must hold {kind.__name__}s.")


def require_room(*inches: float) -> None:
    """Refuse figures that are too large."""
    if DOTS_PER_INCH * max(inches) > MOST_DOTS:
        raise InputError("plots: this does not fit into one figure. Draw fewer items at once.")


def drawable(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Numbers that axes can be scaled to: infinities become NaN, and large numbers are clipped."""
    return np.clip(np.where(np.isfinite(x), x, np.nan), -HUGE, HUGE)


def largest(x: Float[np.ndarray, "..."]) -> float:
    """The largest finite number; 0 where there is none."""
    known = x[np.isfinite(x)]
    return float(known.max()) if known.size else 0.0


def plain_text(text: Any, longest: int = LONGEST) -> str:
    """A short text of a few lines that a font can show, without control characters and lone surrogates."""
    lines = str(text).encode("utf-8", "replace").decode().splitlines()
    more = ["…"] if len(lines) > MOST_LINES else []
    return "\n".join(["".join(map(_shown, _short(line, longest))) for line in lines[:MOST_LINES]] + more)


def _short(line: str, longest: int) -> str:
    """A long line with its middle left out, since names often differ at their ends."""
    half = (longest - 1) // 2
    return line if len(line) <= longest else f"{line[: longest - 1 - half]}…{line[-half:]}"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    # Format characters, such as direction marks, are dropped.
    return "" if unicodedata.category(character) == "Cf" else "\N{REPLACEMENT CHARACTER}"


def draw_legend(owner: Axes | Figure, **look: Any) -> None:
    """A legend with each name once, including names that start with an underscore, which matplotlib hides."""
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
    names = [plain_text(name, LONGEST_NAME) for name in names]
    if isinstance(owner, Figure):  # as many columns as fit
        column = 0.6 + 0.08 * max(len(line) for name in names for line in name.split("\n"))
        look["ncols"] = max(1, min(look.get("ncols", 1), int(owner.get_figwidth() / column)))
    # Numbers first: matplotlib leaves none of them out.
    legend = owner.legend(handles, [str(i) for i in range(len(names))], **look)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _make_plain(figure: Figure) -> None:
    """Make every text except numbers at ticks plain and not parsed."""
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
            text.set_text(plain_text(text.get_text(), LONGEST_NAME if text in names else min(LONGEST, fits)))


def framed(axes: Axes, colour: str = "#999999", width: float | None = None) -> None:
    """Axes for a picture: no grid, no ticks, and a frame."""
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(colour)
        if width is not None:
            spine.set_linewidth(width)


def colours(n: int) -> list[str]:
    """The first n colours of the palette, which is repeated."""
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, completely or not at all."""
    path = _files.local_path("plots: path", path)
    if path.suffix.lower() != ".png":
        raise InputError(f"plots: path is {str(path)!r}, and must end in .png, the only format.")
    require_room(*figure.get_size_inches())
    _make_plain(figure)
    with warnings.catch_warnings():
        # About glyphs that the font lacks, which are shown as boxes, and labels that leave no room for the axes.
        warnings.simplefilter("ignore")
        try:
            _files.replace(path, lambda temporary: figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png"))
        except OSError as error:
            raise InputError(
                f"plots: {str(path)!r} cannot be written ({_files.reason(error)}). Name a file that you can write."
            ) from error

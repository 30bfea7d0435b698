"""The first suspects as one picture, drawn by Pillow: importing matplotlib takes as long as a small review."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

ACROSS = 10  # pictures in a row
SIDE, GAP = 132, 18  # pixels of a picture, and between two
TEXT, HEADING = 14, 20  # pixels of letters
INK, GREY = (32, 32, 32), (153, 153, 153)
WRONG, RIGHT = (213, 94, 0), (0, 114, 178)  # the colours of `bilevax.plots`


def contact_sheet(
    pictures: UInt8[np.ndarray, "n h w 3"],
    titles: Sequence[str],
    path: Path,
    heading: str,
    wrong: Sequence[bool] | None = None,
) -> None:
    """Write pictures in rows of ten as a PNG file, each below its title.

    Args:
        pictures: at least one.
        titles: of each, one or two lines; what does not fit is cut.
        path: of the file.
        heading: of all.
        wrong: frames a picture in red-orange where true, in blue where false.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from bilevax.applications.denoising.review.sheet import contact_sheet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "sheet.png")
        ...     contact_sheet(np.zeros((12, 8, 8, 3), np.uint8), ["row 1"] * 12, path, "Suspects")
        ...     with Image.open(path) as sheet:
        ...         sheet.size
        (1518, 392)
    """
    from PIL import Image, ImageDraw

    lines = max(title.count("\n") for title in titles) + 1
    cell = SIDE + GAP + lines * (TEXT + 4)
    across, rows = min(ACROSS, len(pictures)), -(-len(pictures) // ACROSS)
    sheet = Image.new("RGB", (max(across, 4) * (SIDE + GAP) + GAP, rows * cell + HEADING + 2 * GAP), "white")
    draw = ImageDraw.Draw(sheet)
    small, large = _font(TEXT), _font(HEADING)
    draw.text((GAP, GAP / 2), _cut(draw, heading, sheet.width - 2 * GAP, large), fill=INK, font=large)
    for i, picture in enumerate(pictures):
        left = GAP + i % ACROSS * (SIDE + GAP)
        top = HEADING + GAP + i // ACROSS * cell
        for line, text in enumerate(titles[i].split("\n")):
            text = _cut(draw, text, SIDE + GAP - 4, small)
            place = left + (SIDE - draw.textlength(text, font=small)) / 2, top + line * (TEXT + 4)
            draw.text(place, text, fill=INK, font=small)
        top += lines * (TEXT + 4) + 2
        shown = Image.fromarray(picture)
        scale = SIDE / max(shown.size)
        size = max(round(shown.width * scale), 1), max(round(shown.height * scale), 1)
        x, y = left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2
        colour, width = (GREY, 1) if wrong is None else (WRONG if wrong[i] else RIGHT, 4)
        draw.rectangle((x - width, y - width, x + size[0] + width - 1, y + size[1] + width - 1), fill=colour)
        sheet.paste(shown.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX), (x, y))
    sheet.save(path)


def _font(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib and has most alphabets; else Pillow's own."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")  # not imported
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _cut(draw: Any, text: str, width: float, font: Any) -> str:
    """The beginning of a text that fits, without control characters."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    while text and draw.textlength(text, font=font) > width:
        text = text[:-1]
    return text

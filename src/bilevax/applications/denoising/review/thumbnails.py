"""Small pictures for the review page."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from bilevax._checks import InputError, require_count, short_reason
from bilevax.data.folders import on_a_ground

SIDE = 128  # pixels
QUALITY = 82
SMALL = 48  # pixels; pictures that are smaller are kept exactly


def thumbnail(picture: Path | bytes | UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"], side: int = SIDE) -> bytes:
    r"""A picture of at most side x side pixels, as the bytes of a JPEG, or of a PNG where it is very small.

    Args:
        picture: a file or its bytes, turned by its EXIF orientation and laid on a ground where it is transparent; or
            pixels.
        side: the most pixels of a side.

    Raises:
        InputError: the picture cannot be read.

    Example:
        >>> from bilevax.applications.denoising.review import thumbnail
        >>> thumbnail(np.zeros((300, 200, 3), np.uint8))[:3]
        b'\xff\xd8\xff'
    """
    from PIL import Image, ImageOps

    side = require_count("thumbnail", "side", side)
    try:
        if isinstance(picture, np.ndarray):
            shown = Image.fromarray(picture)
        else:
            with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
                opened.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded near the size that is needed
                shown = ImageOps.exif_transpose(opened)
                if shown.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in shown.info:
                    shown = on_a_ground(shown.convert("RGBA"))
        shown = shown.convert("RGB")
        shown.thumbnail((side, side), Image.Resampling.BICUBIC)
        exact = max(shown.size) < SMALL
        out = io.BytesIO()
        if exact:
            shown.save(out, "PNG", optimize=True)
        else:
            shown.save(out, "JPEG", quality=QUALITY)
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise InputError(f"The picture {_named(picture)} cannot be read ({short_reason(error)}). Remove it.") from error
    return out.getvalue()


def _named(picture: Path | bytes | np.ndarray) -> str:
    if isinstance(picture, np.ndarray):
        return f"of shape {picture.shape} and {picture.dtype}"
    return str(picture) if isinstance(picture, Path) else f"of {len(picture):,} bytes"

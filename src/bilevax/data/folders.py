"""Images from a folder with a subfolder for each class."""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from bilevax._checks import InputError, listed, require_count
from bilevax.data.archives import check_regular, memory

if TYPE_CHECKING:
    import PIL.Image

NEARLY_WHITE = 191  # of 255; a transparent picture with a mean shade above it is laid on black


class ClassFolders(NamedTuple):
    """Pictures read from a folder with a subfolder for each class.

    Attributes:
        images: (classes, pictures, h, w[, 3]), of each class as many as the smallest class has.
        names: of the classes.
        unread: the files that could not be read.
        counts: how many pictures of each class could be read.
    """

    images: UInt8[np.ndarray, "classes n h w *c"]
    names: list[str]
    unread: list[str]
    counts: list[int]


def class_folders(folder: Path, *, side: int | None = None, strict: bool = False) -> ClassFolders:
    """Pictures from a folder with a subfolder for each class.

    Args:
        folder: its subfolders are the classes, sorted by name; hidden ones are ignored.
        side: all pictures are resized to side x side; None keeps their size, which must then be the same for all.
        strict: whether a file that cannot be read as a picture is an error; otherwise it is listed in `unread`.

    The pictures are grey if all of them are, and otherwise in colour. They are rotated by their EXIF orientation, and
    the first frame is read. Transparent pictures are laid on white, or on black where the visible part is nearly white,
    so that a drawing in the alpha channel stays visible.

    Raises:
        InputError: no such folder; no subfolders; one without a readable picture; pictures of several sizes and
            no side; too many pictures for the memory; a side that is not positive; a folder that cannot be listed;
            with strict, a file that cannot be read.
    """
    if side is not None:
        side = require_count("class_folders", "side", side)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder. Pass a folder that has one subfolder of pictures for each class.")
    names = [path.name for path in visible(folder) if path.is_dir()]
    if not names:
        raise InputError(f"{folder} has no subfolders. Make one for each class, with its pictures in it.")
    unread: list[str] = []
    drawn: dict[str, list[np.ndarray]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    all_grey, total, room = True, 0, memory() // 2
    for name in names:
        drawn[name] = []
        for path in visible(folder / name):
            if path.is_dir():
                continue
            try:
                check_regular(path, "it", "")
                shown, grey = _read_picture(path)
            except Exception as error:  # a damaged file raises whatever its decoder runs into
                if strict:
                    reason = str(error).strip().rstrip(".") or type(error).__name__
                    raise InputError(
                        f"{path} cannot be read as a picture ({reason}). Remove it, or leave out --strict to skip it."
                    ) from error
                unread.append(f"{name}/{path.name}")
                continue
            all_grey &= grey
            if side is not None:
                from PIL import Image

                shown = shown.resize((side, side), Image.Resampling.LANCZOS)
            sizes[shown.size] += 1
            drawn[name].append(np.asarray(shown))
            total += drawn[name][-1].nbytes
            if total > room:
                raise InputError(
                    f"The pictures in {folder} do not fit into memory ({sizes.total():,} of them take {total >> 20:,} "
                    "MB). Pass a smaller side to resize them to (--side), or fewer pictures."
                )
        if not drawn[name]:
            raise InputError(f"{folder / name} has no picture that can be read. Add some, or remove the folder.")
    if len(sizes) > 1:
        found = listed([f"{w} x {h} ({n})" for (w, h), n in sizes.most_common()], quote=False)
        raise InputError(
            f"The pictures in {folder} are of several sizes: {found}. Pass a side to resize them to (--side)."
        )
    counts = [len(drawn[name]) for name in names]
    images = np.stack([np.stack(drawn[name][: min(counts)]) for name in names])
    return ClassFolders(images[..., 0] if all_grey else images, names, unread, counts)


def visible(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, sorted by name."""
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}). Check its permissions.") from error


def _read_picture(path: Path) -> tuple["PIL.Image.Image", bool]:
    """The picture in a file as a viewer shows it, in RGB, and whether its mode is grey."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings(), Image.open(path) as picture:
        warnings.simplefilter("ignore")  # about odd metadata
        mode = picture.mode
        shown = ImageOps.exif_transpose(picture)
        if mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
            high = np.asarray(shown).clip(0, 65535) >> 8
            shown = Image.fromarray(high.astype(np.uint8))
        elif mode == "F":  # in 0..1, which `convert` would make black
            values = np.asarray(shown)
            high = 1 if values.max() <= 1 else 255
            if not (values.min() >= 0 and values.max() <= high):  # NaN, too
                raise ValueError(
                    f"its floats span {values.min():g}..{values.max():g}, which is neither 0..1 nor 0..255"
                )
            shown = Image.fromarray(np.rint(values * (255 / high)).astype(np.uint8))
        elif mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in shown.info:
            shown = on_a_ground(shown.convert("RGBA"))
        return shown.convert("RGB"), mode in ("1", "L", "LA", "F") or mode.startswith("I")


def on_a_ground(picture: "PIL.Image.Image") -> "PIL.Image.Image":
    """A picture with an alpha channel laid on white, or on black where the visible part is nearly white."""
    from PIL import Image

    alpha = np.asarray(picture.getchannel("A"), np.float64)
    if not alpha.any():  # nothing is visible: the channel is not transparency
        return picture
    shade = np.average(np.asarray(picture.convert("RGB").convert("L")), weights=alpha)
    ground = "black" if shade > NEARLY_WHITE else "white"
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture)

"""The review page: suspects, their content and the noise matrix in one HTML file that asks no host for anything."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bilevax import _files
from bilevax._checks import InputError, listed
from bilevax.applications.denoising.review.decisions import short_digest

SCRIPTS = ("helpers.js", "csv.js", "decisions.js", "list.js", "current.js", "noise.js", "main.js")
LONGEST_TEXT, LONGEST_CELL, MOST_COLUMNS = 10_000, 1_000, 200  # more of them is left out, with its size
PICTURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


class Suspect(NamedTuple):
    """A sample whose label is in doubt.

    Attributes:
        row: of the sample in its file, counted from 0 without the line of names.
        given: the label in the file.
        suggested: the class that the ranking finds most probable.
        probability: that the given label is wrong.
        content: what a person looks at: a text, the row by its columns, or a picture as the bytes of a PNG or JPEG.
        line: of the sample in its file, counted from 1; None where a file has no lines.
        identifier: of the sample, such as its path in a folder; None where there is none.
    """

    row: int
    given: str
    suggested: str
    probability: float
    content: str | Mapping[str, Any] | bytes
    line: int | None = None
    identifier: str | None = None


class Review(NamedTuple):
    """What a review page shows.

    Attributes:
        title: of the data, in a line.
        digest: SHA-256 of the data, as `Source.digest`. Decisions are kept, exported and applied for data of this
            digest.
        classes: all labels that a sample may have; of quantities those that occur, in their order.
        suspects: in the order of the ranking.
        samples: how many samples were ranked.
        expected_wrong: the expected number of wrong labels among them.
        interval: of that number; None where it is not known.
        noise_matrix: `[k, j]` is the probability that a sample of class k was given label j; None where there is none.
        method: how the suspects were ranked, in a line.
        quantity: whether labels are numbers, of which a person may type any.
    """

    title: str
    digest: str
    classes: Sequence[str]
    suspects: Sequence[Suspect]
    samples: int
    expected_wrong: float
    interval: tuple[float, float] | None = None
    noise_matrix: Float[np.ndarray, "k k"] | None = None
    method: str = ""
    quantity: bool = False


def review_page(review: Review, path: Path) -> None:
    """Write the page on which a person decides about each suspect.

    The file holds its style, its script and its pictures; its content security policy forbids every request, and every
    script but its own. Decisions are kept in the browser for the digest of the data, and exported as a CSV file for
    `review.read_decisions`.

    Args:
        review: what to show.
        path: the file to write, completely or not at all.

    Raises:
        InputError: a row occurs twice, a label is no class, a probability is not in 0..1, a picture is neither PNG nor
            JPEG, the noise matrix is not K x K and finite, or `expected_wrong` is not a number.
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from bilevax.applications.denoising.review import Review, Suspect, review_page
        >>> suspects = [Suspect(17, "cat", "dog", 0.97, "It barks at the postman.", line=19)]
        >>> review = Review("Pets", 64 * "0", ["cat", "dog"], suspects, 200, 11.0, (6.0, 16.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "report.html")
        ...     review_page(review, path)
        ...     "It barks at the postman." in path.read_text(encoding="utf-8")
        True
    """
    _check(review)
    style, script = _part("page.css"), "\n".join(map(_part, SCRIPTS))
    script = f'"use strict";\n(() => {{\n{script}}})();'
    page = _filled(review, style, script)
    # A lone surrogate in the data becomes \udc80, which JSON reads back.
    _files.replace(path, lambda temporary: temporary.write_bytes(page.encode("utf-8", "backslashreplace")))


def _check(review: Review) -> None:
    classes = [str(name) for name in review.classes]
    if len(set(classes)) != len(classes):
        raise InputError(f"review_page: a class occurs twice in {listed(classes)}. Pass each once.")
    known, seen = set(classes), set()
    for suspect in review.suspects:
        if suspect.row in seen:
            raise InputError(f"review_page: row {suspect.row} occurs twice among the suspects. Pass it once.")
        seen.add(suspect.row)
        for label in (suspect.given, suspect.suggested):
            if label not in known:
                raise InputError(
                    f"review_page: row {suspect.row} has the label {label!r}, which is none of the classes "
                    f"{listed(classes)}. Pass every class as a str."
                )
        if not 0 <= suspect.probability <= 1:
            raise InputError(
                f"review_page: the probability of row {suspect.row} is {suspect.probability}, and must be in 0..1."
            )
    if not math.isfinite(review.expected_wrong):
        raise InputError(f"review_page: expected_wrong is {review.expected_wrong}, and must be finite.")
    matrix = review.noise_matrix
    if matrix is not None and (np.shape(matrix) != (len(classes),) * 2 or not np.isfinite(matrix).all()):
        raise InputError(
            f"review_page: noise_matrix has shape {np.shape(matrix)}, and must be finite of shape "
            f"({len(classes)}, {len(classes)}): one row and one column for each class."
        )


def _part(name: str) -> str:
    return (
        resources.files("bilevax.applications.denoising.review").joinpath("template", name).read_text(encoding="utf-8")
    )


def _filled(review: Review, style: str, script: str) -> str:
    """The page. What comes from the data is escaped by the template, or is JSON without characters of HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    low_high = "" if review.interval is None else "{:,.0f}–{:,.0f}".format(*review.interval)
    return environment.from_string(_part("page.html")).render(
        title=review.title,
        method=review.method,
        digest=short_digest(review.digest),
        samples=f"{review.samples:,}",
        expected=f"{review.expected_wrong:,.0f}",
        interval=low_high,
        label="value" if review.quantity else "label",
        quantity=review.quantity,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(_as_script_data(_data(review))),
    )


def _hash(text: str) -> str:
    """Of an inline style or script, for the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _as_script_data(content: Any) -> str:
    """JSON that cannot end a script element or open a comment in one."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(review: Review) -> dict[str, Any]:
    """What the script reads: one list for each property of the suspects, classes by their index."""
    classes = [str(name) for name in review.classes]
    place = {name: i for i, name in enumerate(classes)}
    suspects = review.suspects
    columns: dict[tuple[str, ...], int] = {}
    contents = [_content(suspect, columns) for suspect in suspects]
    matrix = review.noise_matrix
    return {
        "digest": short_digest(review.digest),
        "classes": classes,
        "quantity": review.quantity,
        "row": [int(s.row) for s in suspects],
        "line": [None if s.line is None else int(s.line) for s in suspects],
        "id": [None if s.identifier is None else str(s.identifier) for s in suspects],
        "given": [place[s.given] for s in suspects],
        "suggested": [place[s.suggested] for s in suspects],
        "probability": [round(float(s.probability), 4) for s in suspects],
        "content": contents,
        "columns": [list(names) for names in columns],
        "matrix": None if matrix is None else np.round(np.asarray(matrix, float), 4).tolist(),
    }


def _content(suspect: Suspect, columns: dict[tuple[str, ...], int]) -> Any:
    """A text as a string, a picture as {"p": URL}, and a row as [index of its columns, cells]."""
    content = suspect.content
    if isinstance(content, str):
        return _shortened(content, LONGEST_TEXT)
    if isinstance(content, bytes):
        kind = next((kind for magic, kind in PICTURES.items() if content.startswith(magic)), None)
        if kind is None:
            raise InputError(
                f"review_page: the picture of row {suspect.row} begins with {content[:4]!r}, and must be a PNG or a "
                "JPEG. Convert it by Pillow."
            )
        return {"p": f"data:image/{kind};base64,{base64.b64encode(content).decode()}"}
    cells = {str(name): _cell(value) for name, value in islice(content.items(), MOST_COLUMNS)}
    if len(content) > MOST_COLUMNS:
        cells["…"] = f"{len(content) - MOST_COLUMNS:,} more columns"
    return [columns.setdefault(tuple(cells), len(columns)), list(cells.values())]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def _cell(value: Any) -> str:
    """A cell as shown; a missing one is empty."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:.10g}"
    text = str(value)
    return "" if text in ("<NA>", "NaT") else _shortened(text, LONGEST_CELL)

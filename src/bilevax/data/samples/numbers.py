"""Cells of text as numbers, as people and spreadsheets write them."""

import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Shaped

from bilevax.data.kinds import DIGITS, NEARLY_ALL, NO_NUMBER, NO_VALUE, NUMBER, PADDED, PUNCTUATED, WITH_UNIT, Cells

LARGEST = 1e30  # the square of a larger number does not fit single precision
NO_CELL = NO_VALUE | {"?", "\\N", "(null)", "NaT"}  # missing among words, too
NO_NUMBERS = NO_CELL | NO_NUMBER | {"-", "--", ".", "*", "na", "none", "missing", "unknown", "n.a.", "N.A."}
FEW = 10  # so many different cells with a unit are categories, such as 5kg and 10kg
SIGN = re.compile(r"[$€£¥%]")
SPACES = re.compile(r"[\s'\u00a0\u202f]")
DECIMAL_COMMA = re.compile(r"[+-]?(?:\d+,(?:\d{1,2}|\d{4,})|0,\d+|\d{1,3}(?:\.\d{3})+,\d+)", re.ASCII)
GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}(?:\.\d+)?", re.ASCII)  # of thousands, or of lakhs
GROUPS_BY_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+", re.ASCII)
UNIT = re.compile(r"[^\W\d_]{1,5}$")


class Style(NamedTuple):
    """How the numbers of a column are written.

    Attributes:
        decimal: `.` or `,`, the mark before the decimals; the other one is between thousands.
        sign: of a currency, or `%`.
        unit: letters that follow the numbers.
    """

    decimal: str = "."
    sign: str = ""
    unit: str = ""


class Numbers(NamedTuple):
    """The numbers of a column.

    Attributes:
        values: NaN where a cell holds none.
        malformed: where a cell holds something else than a number or no value, or an infinite or immense number.
    """

    values: Float64[np.ndarray, " n"]
    malformed: Bool[np.ndarray, " n"]


def plain_numbers(values: pd.Series) -> Numbers | None:
    """The numbers of a column of text whose cells all are numbers with a decimal point, or missing; None elsewhere."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute
    texts: Any = pc.utf8_trim_whitespace(pa.array(values, pa.large_string(), from_pandas=True))
    if pc.any(pc.match_substring_regex(texts, r"^0[0-9]+$")).as_py():
        return None  # codes, such as 007
    missing = pc.is_in(texts, pa.array(sorted(NO_NUMBERS), pa.large_string()))
    try:
        read: Any = pc.cast(pc.if_else(missing, pa.scalar(None, pa.large_string()), texts), pa.float64())
    except pa.ArrowInvalid:
        return None
    return typed_numbers(read.to_numpy(zero_copy_only=False))


def typed_numbers(values: Shaped[np.ndarray, " n"]) -> Numbers:
    """Numbers as they are; infinite and immense ones are malformed."""
    numbers = np.array(values, np.float64)
    malformed = np.abs(numbers) > LARGEST
    numbers[malformed] = np.nan
    return Numbers(numbers, malformed)


def style_of(column: Cells, separator: str) -> Style | None:
    """How the numbers of a column are written; None where it holds words, codes such as 007, or a mixture.

    At least four fifths of the cells with a value must be numbers. Cells such as 1,234 are of thousands; they are of
    decimals where the separator is a semicolon, or the column has cells such as 0,5 or 12,75.
    """
    counts = {
        text: n for text, n in zip(column.texts, column.counts.tolist(), strict=True) if n and text not in NO_NUMBERS
    }
    plain = [text for text in counts if NUMBER.fullmatch(text)]
    if all(DIGITS.fullmatch(text) for text in plain) and any(PADDED.fullmatch(text) for text in plain):
        return None
    needed = NEARLY_ALL * sum(counts.values())
    if sum(counts[text] for text in plain) >= needed:
        return Style(sign=_sign(counts, plain))
    punctuated = [text for text in counts if text not in plain and PUNCTUATED.fullmatch(text)]
    if sum(counts[text] for text in (*plain, *punctuated)) >= needed:
        bare = [SPACES.sub("", SIGN.sub("", text)) for text in punctuated]
        decimals = any(DECIMAL_COMMA.fullmatch(text) for text in bare)
        points = any(
            "." in text and not GROUPS_BY_POINTS.fullmatch(text) for text in (*plain, *bare) if "," not in text
        )
        by_semicolon = separator == ";" and not points and any("," in text for text in bare)
        return Style("," if decimals or by_semicolon else ".", _sign(counts, plain))
    with_unit = [text for text in counts if text not in plain and WITH_UNIT.fullmatch(text)]
    units = {found[0] for text in with_unit if (found := UNIT.search(text))}
    if len(units) == 1 and len(counts) > FEW and sum(counts[text] for text in (*plain, *with_unit)) >= needed:
        return Style(unit=units.pop())
    return None


def _sign(counts: dict[str, int], plain: list[str]) -> str:
    """The most frequent sign of a column; % only where it is in most cells, since 5% is not 5."""
    signs: Counter[str] = Counter()
    for text, n in counts.items():
        if PUNCTUATED.fullmatch(text) and (found := SIGN.search(text)):
            signs[found[0]] += n
    if signs["%"] <= sum(counts[text] for text in plain):
        del signs["%"]
    return signs.most_common(1)[0][0] if signs else ""


def numbers_in(column: Cells, style: Style) -> Numbers:
    """The numbers in the cells of a column of text."""
    texts: Any = pd.Series(column.texts, dtype=object)
    missing = texts.isin(NO_NUMBERS).to_numpy()
    if style == Style():
        read: Any = pd.to_numeric(texts, errors="coerce")
        values = read.to_numpy(np.float64, copy=True)
        others = np.flatnonzero(np.isnan(values) & ~missing)
    else:
        values, others = np.full(len(texts), np.nan), np.flatnonzero(~missing)
    for i in others.tolist():
        values[i] = number_of(column.texts[i], style)
    values[missing] = np.nan
    malformed = ~missing & ~(np.abs(values) <= LARGEST)
    values[malformed] = np.nan
    return Numbers(values[column.codes], malformed[column.codes])


def number_of(text: str, style: Style) -> float:
    """A number in the style of its column; NaN where it is none, or may be another one."""
    if style.unit and text.endswith(style.unit):
        text = text.removesuffix(style.unit).rstrip()
    found = SIGN.findall(text)
    if found not in ([style.sign], []) or (style.sign == "%" and not found):
        return np.nan
    text = SPACES.sub("", SIGN.sub("", text)) if PUNCTUATED.fullmatch(text) else text
    if style.decimal == "," and ("," in text or GROUPS_BY_POINTS.fullmatch(text)):
        text = text.replace(".", "").replace(",", ".")
    elif GROUPS.fullmatch(text):
        text = text.replace(",", "")
    return float(text) if NUMBER.fullmatch(text) else np.nan

"""Output files of the commands: strict JSON, and CSV without formulas that a spreadsheet would run."""

import csv
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORMULA = re.compile(r"'*[=+\-@\t\r]")


def as_json(value: Any) -> Any:
    r"""A value for JSON: NaN and infinities become null, undecodable bytes are escaped.

    Example:
        >>> as_json({"loss": np.float32("nan"), "name": "caf\udce9", "u": np.arange(2)})
        {'loss': None, 'name': 'caf\\udce9', 'u': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {as_json(str(name)): as_json(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(as_json(content), indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def cell(value: Any) -> Any:
    r"""A cell of a CSV file: text that a spreadsheet would run as a formula gets a single quote before it.

    Such text begins, possibly after single quotes, with one of = + - @, a tab or a carriage return, and is not a
    number. To recover the text, remove one quote from cells that begin so: `re.sub(r"^'(?='*[=+@\t\r-])", "", x)`.

    Example:
        >>> [cell(x) for x in ("=1+1", "-2.5", -2.5, "it's", "'=x")]
        ["'=1+1", '-2.5', -2.5, "it's", "''=x"]
    """
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return "'" + value
    return value


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table as CSV, without its index, in UTF-8."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    safe = frame.rename(columns=cell)
    quoting = csv.QUOTE_MINIMAL
    for name in safe.columns:
        if not (is_numeric_dtype(safe[name].dtype) or is_bool_dtype(safe[name].dtype)):
            cells = [cell(value) for value in safe[name]]
            safe[name] = pd.Series(cells, index=safe.index, dtype=object)
            if any(isinstance(value, str) and "\r" in value for value in cells):
                quoting = csv.QUOTE_NONNUMERIC  # QUOTE_MINIMAL does not quote a carriage return, which ends a line
    safe.to_csv(path, index=False, encoding="utf-8", errors="backslashreplace", quoting=quoting)

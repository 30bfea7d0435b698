"""Checks of arguments, without JAX; each raises an InputError that says what was found and what is needed."""

import difflib
import importlib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class InputError(ValueError):
    """An argument cannot be used; the message says what was found and what to do."""

    __module__ = "bilevax"  # where users import it from, as tracebacks show it


def optional(module: str, owner: str, extra: str) -> Any:
    """Import a package of an extra; raise InputError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(
            f"{owner} needs the package {package}, which is not installed. Install it with the extra: "
            f"pip install 'bilevax[{extra}]'."
        ) from error


def require_count(owner: str, name: str, value: Any, least: int = 1) -> int:
    """A count as an int, NumPy's integers too; refuse what is not a positive integer, or is less than `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise InputError(f"{owner}: {name} is {described(value)}, and must be {wanted}.")
    return int(value)


def settle_counts(instance: Any, *names: str) -> None:
    """Refuse fields of a frozen dataclass that are no counts, and keep NumPy's integers as ints.

    As constants of a program NumPy's integers would promote what they are combined with.
    """
    for name in names:
        object.__setattr__(instance, name, require_count(type(instance).__name__, name, getattr(instance, name)))


def require_number(owner: str, name: str, value: Any) -> float:
    """A finite real number as a float, from NumPy too; anything else is refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{owner}: {name} is {described(value)}, and must be a number.")
    try:
        number = float(value)
    except OverflowError:
        raise InputError(f"{owner}: {name} has more than 308 digits, and must fit a float.") from None
    if not math.isfinite(number):
        raise InputError(f"{owner}: {name} is {value}, and must be finite.")
    return number


def require_function(owner: str, name: str, value: Any, form: str) -> None:
    """Refuse what cannot be called; `form` shows how it is called."""
    if not callable(value):
        raise InputError(f"{owner}: {name} is {described(value)}, not a function. Pass a function {form}.")


def described(value: Any) -> str:
    """A value for a message: arrays and long values by their type."""
    import numpy as np  # only for a message: `bilevax --help` does not wait for it

    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, np.generic):
        return f"a {type(value).__name__} of shape {shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return text if len(text) <= 100 and "\n" not in text else f"a {type(value).__name__}"


NAMED = 12  # at most this many columns, or labels, are named in a message


def listed(names: Any, quote: bool = True) -> str:
    """The first few names, for a message, and how many more there are."""
    import numpy as np

    names = [repr(x.item() if isinstance(x, np.generic) else x) if quote else str(x) for x in names]
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def suggestion(wanted: str, names: Iterable[str]) -> str:
    """A question that ends a message about a name that does not exist: the nearest name, if one is near."""
    by_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wanted.lower(), by_case, n=1)
    return f" Did you mean {by_case[near[0]]!r}?" if near else ""


def short_reason(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters, without its full stop; its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:200].rstrip(".") if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """An error as part of a sentence: its type and its first line."""
    text = str(error).strip()
    line = text.splitlines()[0].rstrip() if text else ""
    end = "" if line.endswith((".", "!", "?")) else "."
    return f"{type(error).__name__}: {line}{end}" if line else f"{type(error).__name__}."

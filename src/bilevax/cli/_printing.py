"""Printing of any text to any terminal, file or pipe.

Names from a user (columns, labels, files) may contain markup, terminal escape sequences, or characters that the
encoding of the output lacks. They are not interpreted, and output that cannot be written does not end a computation.
"""

import errno
import io
import os
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Replacements of the non-ASCII characters that the commands print, for encodings without them.
PLAIN = {"–": "-", "±": "+/-", "→": "->", "…": "...", "°": " degrees", "×": "x", "✓": "y", "✗": "n"}
DIRECTIONS = {chr(c) for c in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
NARROWEST, USUAL = 40, 80  # columns; narrower tables are unreadable

_lost: list[str] = []  # why stdout could not be written, except for a closed pipe


def shown(text: str, keep: str = "") -> str:
    r"""Text with control characters, changes of direction and undecodable bytes as escapes.

    Args:
        text: any text.
        keep: control characters to leave as they are.

    Example:
        >>> print(shown("a\x1b[31mb\rc"))
        a\x1b[31mb\rc
    """

    def one(c: str) -> str:
        unsafe = unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in DIRECTIONS
        return c.encode("unicode_escape").decode() if unsafe and c not in keep else c

    return text if text.isascii() and text.isprintable() else "".join(map(one, text))


def say(text: str) -> None:
    """A line on stdout."""
    _print("stdout", text)


def complain(text: str) -> None:
    """A line on stderr."""
    _print("stderr", text)


def show(table: Table) -> None:
    """A table on stdout."""
    _print("stdout", table)


def as_table(
    title: str, names: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", whole: bool = True
) -> Table:
    """A table; the first column is text and the others are numbers.

    Args:
        title, caption: above and below.
        names: of the columns; line breaks are kept.
        rows: the cells.
        whole: whether cells of the first column are never broken into lines.
    """
    made = Table(
        title=Text(_fitting(title), style="table.title"),
        caption=Text(_fitting(caption), style="table.caption") if caption else None,
    )
    for i, name in enumerate(names):
        heading = Text(_fitting(name, "\n"), style="table.header")
        made.add_column(heading, justify="right" if i else "left", no_wrap=whole if i == 0 else "\n" in name)
    for row in rows:
        made.add_row(*(Text(_fitting(cell)) for cell in row))
    return made


def failed() -> str:
    """Why stdout could not be written; empty if it could, or if its reader closed the pipe."""
    return _lost[0] if _lost else ""


def quoted(arguments: Sequence[str]) -> str:
    r"""A command line for a shell, with undecodable bytes and control characters escaped as in bash and zsh.

    Example:
        >>> print(quoted(["bilevax", "my file.csv", "a\x1b.csv"]))
        bilevax 'my file.csv' $'a\x1b.csv'
    """

    def one(argument: str) -> str:
        if shown(argument) == argument:
            return shlex.quote(argument)
        safe = (chr(b) if 32 <= b < 127 and b not in b"\\'" else f"\\x{b:02x}" for b in os.fsencode(argument))
        return f"$'{''.join(safe)}'"

    return " ".join(map(one, arguments))


def _fitting(text: str, keep: str = "", encoding: str | None = None) -> str:
    """Text that is safe to print, in characters of the output's encoding."""
    text = shown(text, keep)
    encoding = encoding or _encoding(sys.stdout)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = "".join(PLAIN.get(c, c) for c in text).encode(encoding, "replace").decode(encoding)
    except LookupError:
        text = text.encode("ascii", "replace").decode()
    return text


def _encoding(stream: Any) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _print(name: str, what: Any) -> None:
    stream: TextIO | None = getattr(sys, name)
    if stream is None:
        return
    encoding = _encoding(stream)
    if isinstance(what, str):
        written = _fitting(what, "\n", encoding) + "\n"
    else:
        width = Console(file=stream).width or USUAL
        console = Console(file=stream, highlight=False, width=max(width, NARROWEST))
        with console.capture() as captured:
            console.print(what)
        written = captured.get().encode(encoding, "replace").decode(encoding)
    try:
        stream.write(written)
        stream.flush()
    except (OSError, ValueError) as error:
        silence(name, error)


class _Nowhere(io.TextIOBase):
    """A stream that discards everything."""

    def write(self, text: str, /) -> int:
        return len(text)


class Lenient(io.TextIOBase):
    """A stream whose writes never raise, so that progress bars of libraries cannot end a run.

    Args:
        stream: written to until that fails.
    """

    def __init__(self, stream: TextIO):
        self._stream: TextIO | None = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the stream's."""
        return _encoding(self._stream)

    def fileno(self) -> int:
        """As the stream's."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def isatty(self) -> bool:
        """As the stream's."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str, /) -> int:
        """As the stream, or nowhere."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As the stream, or not at all."""
        self._try(lambda stream: stream.flush())

    def _try(self, work: Callable[[TextIO], Any]) -> None:
        if self._stream is None:
            return
        try:
            work(self._stream)
        except (OSError, ValueError):
            self._stream = None


def prepare() -> None:
    """Prepare stdout and stderr for text in any encoding and for closed pipes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, _Nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # also for help pages and libraries
    sys.stderr = Lenient(sys.stderr)
    # As sentences, without their place in the code, and escaped.
    warnings.showwarning = lambda message, *more, **named: complain(f"Warning: {message}")


def silence(name: str, error: BaseException) -> None:
    """Discard what is written to a failed stream from now on. A closed pipe does not count as a failure."""
    stream = getattr(sys, name)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):  # it has no descriptor
        setattr(sys, name, _Nowhere())
    if name == "stdout" and getattr(error, "errno", None) != errno.EPIPE:
        reason = getattr(error, "strerror", None) or str(error)
        _lost.append(reason)
        complain(f"stdout cannot be written ({reason}). Files are written all the same.")

"""The tokens of a text for BERT (Devlin et al. 2019), uncased: words and punctuation, split into known pieces."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from bilevax._checks import InputError, short_reason

LONGEST_WORD = 100  # characters; a longer one is unknown
START, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    r"""A vocabulary of pieces of words.

    Args:
        path: of a file with one piece in each line; pieces within a word begin with `##`.

    Raises:
        InputError: the file cannot be read, or lacks the pieces that mark the start, the end and what is unknown.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.nn.pretrained.wordpiece import WordPiece
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "vocab.txt"
        ...     _ = path.write_text("[UNK] [CLS] [SEP] un ##aff ##able !".replace(" ", "\n"))
        ...     pieces = WordPiece(path)
        >>> pieces.tokens("Unaffable, no!", 16)
        [1, 3, 4, 5, 0, 0, 6, 2]
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The vocabulary {path} cannot be read: {short_reason(error)}. Check it.") from error
        self._pieces = {piece.removesuffix("\r"): i for i, piece in enumerate(lines) if piece}
        if lacking := [mark for mark in (START, END, UNKNOWN) if mark not in self._pieces]:
            raise InputError(f"The vocabulary {path} lacks {', '.join(lacking)}. Pass the vocab.txt of the model.")
        self._split = lru_cache(1 << 16)(self._pieces_of)

    def tokens(self, text: str, most: int) -> list[int]:
        """The numbers of the pieces, with those of the start and the end; at most `most`."""
        found = [self._pieces[START]]
        for word in words(text):
            found += self._split(word)
            if len(found) >= most:
                break
        return [*found[: most - 1], self._pieces[END]]

    def _pieces_of(self, word: str) -> list[int]:
        """The longest known pieces, from left to right."""
        if len(word) > LONGEST_WORD:
            return [self._pieces[UNKNOWN]]
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self._pieces), None)
            if end is None:
                return [self._pieces[UNKNOWN]]
            found.append(self._pieces[prefix + word[start:end]])
            start = end
        return found


def words(text: str) -> list[str]:
    """Words in lower case without accents; punctuation and ideographs are words of their own."""
    spaced: list[str] = []
    for letter in unicodedata.normalize("NFD", "".join(_cleaned(text)).lower()):
        kind = unicodedata.category(letter)
        if kind == "Mn":
            continue
        spaced.append(f" {letter} " if _is_punctuation(letter, kind) or _is_ideograph(letter) else letter)
    return "".join(spaced).split()


def _cleaned(text: str) -> list[str]:
    """The characters without control characters; blanks of all kinds as spaces."""
    found = []
    for letter in text:
        if letter in "\t\n\r" or unicodedata.category(letter) == "Zs":
            found.append(" ")
        elif letter not in "\0\ufffd" and unicodedata.category(letter)[0] != "C":
            found.append(letter)
    return found


def _is_punctuation(letter: str, kind: str) -> bool:
    return kind[0] == "P" or (ord(letter) < 128 and letter.isprintable() and not letter.isalnum() and letter != " ")


def _is_ideograph(letter: str) -> bool:
    code = ord(letter)
    return code >= 0x3400 and any(low <= code <= high for low, high in IDEOGRAPHS)


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[Int32[np.ndarray, "n t"], Int32[np.ndarray, " n"]]:
    """Rows of tokens in one array, filled with 0, and the length of each."""
    tokens = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)

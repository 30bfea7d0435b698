"""Docstrings are written to be read in a terminal: Markdown of them."""

import re
from typing import Any

import griffe


class Readable(griffe.Extension):
    """A griffe extension, for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Examples become code; stars, brackets and dashes mean no markup."""
        if obj.docstring is None:
            return
        text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
        text = text.replace("v*(", "v∗(").replace("][, ", "]\\[, ")
        listed = re.compile(r"^([A-Z].*:)\n- ", flags=re.MULTILINE)
        obj.docstring.value = listed.sub(r"\1\n\n- ", text)

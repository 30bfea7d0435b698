"""bilevax: bilevel optimisation in JAX."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bilevax._api import *  # noqa: F403  public names are for everyone
else:

    def __getattr__(name: str) -> Any:
        """A module of the package, or a public name, loaded at its first use: `bilevax --help` uses none."""
        if name == "__all__" or not name.startswith("_"):
            if importlib.util.find_spec(f"bilevax.{name}") is not None:
                return importlib.import_module(f"bilevax.{name}")
            api = vars(importlib.import_module("bilevax._api"))
            public = [one for one in api if not one.startswith("_")]
            globals().update({one: api[one] for one in public}, __all__=public)
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})

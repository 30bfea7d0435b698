"""The base of the conversions from other libraries."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class ForeignModule:
    """A module of another library as a value: two are equal if their modules are hashable and equal."""

    module: Any

    def _hashable(self) -> bool:
        try:
            hash(self.module)
        except TypeError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        if other.module is self.module:
            return True
        return self._hashable() and other._hashable() and bool(self.module == other.module)

    def __hash__(self) -> int:
        return hash(self.module) if self._hashable() else id(self.module)

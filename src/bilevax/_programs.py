"""Compiled functions whose programs do not pile up."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

KEPT = 64  # combinations of static arguments; the program of a small problem takes 4 MB


class Compiled:
    """A function under `jax.jit` that keeps the programs of the newest `KEPT` combinations of its static arguments.

    `jax.jit` itself keeps all of them, and the static arguments with them, until the process ends: a loop that makes
    a Problem a round would grow for as long as it runs. Static arguments are compared by value, so equal ones share
    their program.
    """

    def __init__(self, function: Callable[..., Any], static: tuple[str, ...], donate: tuple[str, ...]):
        functools.update_wrapper(self, function)
        self.function, self._signature, self._static = function, inspect.signature(function), static

        @functools.lru_cache(maxsize=KEPT, typed=True)
        def program(*values: Any) -> Any:
            bound = functools.partial(function, **dict(zip(static, values, strict=True)))
            return jax.jit(bound, donate_argnames=donate)

        self._program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program, traced = self._split(args, kwargs)
        return program(**traced)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As `lower` of a function under `jax.jit`; what it compiles to takes the other arguments by name."""
        program, traced = self._split(args, kwargs)
        return program.lower(**traced)

    def programs(self, *static: Any) -> int:
        """How many programs are kept for these static arguments."""
        return self._program(*static)._cache_size()

    def clear(self) -> None:
        """Drop all programs."""
        self._program.cache_clear()

    def _split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        program = self._program(*(given[name] for name in self._static))
        return program, {name: x for name, x in given.items() if name not in self._static}


def compiled(*static: str, donate: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Compiled]:
    """`jax.jit` with the static arguments of these names, as a decorator; see `Compiled`."""
    return lambda function: Compiled(function, static, donate)

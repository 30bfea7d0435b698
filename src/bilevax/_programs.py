"""Compiled functions whose programs do not pile up."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer, eval_jaxpr

KEPT = 64  # combinations of static arguments; the program of a small problem takes 4 MB
LARGE = 2**16  # bytes of an array that is passed to a program, not compiled into it


class Compiled:
    """A function under `jax.jit` that keeps the programs of the newest `KEPT` combinations of its static arguments.

    `jax.jit` itself keeps all of them, and the static arguments with them, until the process ends: a loop that makes
    a Problem a round would grow for as long as it runs. Static arguments are compared by value, so equal ones share
    their program.

    Large arrays that the function or a static argument closes over, such as the frozen weights of a model, are
    arguments of the program. `jax.jit` makes constants of them, which are slow to compile and are held twice. They stay
    constants if they were put on chosen devices, and with several processes.
    """

    def __init__(self, function: Callable[..., Any], static: tuple[str, ...], donate: tuple[str, ...]):
        functools.update_wrapper(self, function)
        self.function, self._signature, self._static = function, inspect.signature(function), static

        @functools.lru_cache(maxsize=KEPT, typed=True)
        def programs(*values: Any) -> _Programs:
            return _Programs(functools.partial(function, **dict(zip(static, values, strict=True))), donate)

        self._programs = programs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        programs, traced = self._split(args, kwargs)
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(traced)):
            return programs.inlined(**traced)
        program, more = programs.of(traced)
        return program(*more, **traced)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As `lower` of a function under `jax.jit`; what it compiles to takes the other arguments by name."""
        programs, traced = self._split(args, kwargs)
        program, more = programs.of(traced)
        return program.lower(*more, **traced)

    def programs(self, *static: Any) -> int:
        """How many programs are kept for these static arguments."""
        return self._programs(*static).count()

    def clear(self) -> None:
        """Drop all programs."""
        self._programs.cache_clear()

    def _split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple["_Programs", dict[str, Any]]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        programs = self._programs(*(given[name] for name in self._static))
        return programs, {name: x for name, x in given.items() if name not in self._static}


class _Programs:
    """The programs of a function for shapes of its arguments.

    Attributes:
        inlined: the function within another traced one. It is traced once for all calls, and inlined, so that arrays
            that it closes over belong to the outer one.
    """

    def __init__(self, function: Callable[..., Any], donate: tuple[str, ...]):
        self.inlined = jax.jit(function, inline=True)
        self._donate = donate
        self._plain = jax.jit(function, donate_argnames=donate)
        self._found: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def of(self, traced: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """A function under `jax.jit` for such arguments, and what it takes before them."""
        values, form = jax.tree.flatten(traced)
        shapes = form, tuple(map(jax.typeof, values))
        if shapes not in self._found:
            self._found[shapes] = self._made(traced)
        return self._found[shapes]

    def _made(self, traced: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        found = self._plain.trace(**traced)
        jaxpr, constants = found.jaxpr.jaxpr, found.jaxpr.consts
        # Several processes have a mesh, and an array of one process is none of the mesh.
        if jax.process_count() > 1 or not any(map(_is_large, constants)):
            return self._plain, ()
        large = [jnp.asarray(x) for x in constants if _is_large(x)]
        result = jax.tree.structure(found.out_info)

        def lifted(large: list[Any], **traced: Any) -> Any:
            given = iter(large)
            whole = [next(given) if _is_large(x) else x for x in constants]
            return jax.tree.unflatten(result, eval_jaxpr(jaxpr, whole, *jax.tree.leaves(traced)))

        return jax.jit(lifted, donate_argnames=self._donate), (large,)

    def count(self) -> int:
        """How many programs are kept."""
        lifted = {id(program): program for program, _ in self._found.values()} | {id(self._plain): self._plain}
        return sum(program._cache_size() for program in lifted.values())  # pyright: ignore[reportAttributeAccessIssue]


def _is_large(x: Any) -> bool:
    # An array on chosen devices stays a constant: those of the arguments may be others.
    return getattr(x, "nbytes", 0) > LARGE and not getattr(x, "committed", False)


def compiled(*static: str, donate: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Compiled]:
    """`jax.jit` with the static arguments of these names, as a decorator; see `Compiled`."""
    return lambda function: Compiled(function, static, donate)

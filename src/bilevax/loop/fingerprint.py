"""What a resumed solve must have in common with the saved one."""

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax.loop.processes import on_host
from bilevax.loop.result import Fingerprint
from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem, data_of_loss
from bilevax.solvers import base
from bilevax.solvers.base import Solver, State


def fingerprint_of(
    solver: Solver,
    problem: Problem,
    state: State,
    batch: Batch,
    source: Source | None,
    key: PRNGKeyArray,
    start: tuple[PyTree[Float[Array, "..."]], PyTree[Float[Array, "..."]]],
) -> Fingerprint:
    """Shapes, the traced programs of the problem and of a step as text without addresses, and hashes of the data."""

    def bare(x: Any) -> jax.ShapeDtypeStruct:
        """The shape without devices, which would appear in the programs: a save may be resumed on other devices."""
        kind = jax.typeof(x)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)

    def text(function: Callable[..., Any], *arguments: Any) -> str:
        traced = jax.make_jaxpr(function)(*jax.tree.map(bare, arguments))
        held = hashlib.sha256()
        for const in traced.consts:
            held.update(np.asarray(const).tobytes())
        return f"jax {jax.__version__}\n{held.hexdigest()}\n{_without_addresses(str(traced))}"

    shapes = [
        f"{name}{jax.tree_util.keystr(path)}: {jax.typeof(x)}"
        for name, tree in (("state", state), ("batch", batch), ("source", source))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]
    shapes.append(f"source: {_without_addresses(str(jax.tree.structure(source)))}")
    some = jax.random.key(0)

    def losses(state: State, batch: Batch, key: PRNGKeyArray) -> Any:
        upper, lower = data_of_loss(batch.upper), data_of_loss(batch.lower)
        u, v = state.u, state.v
        return (
            problem.upper(u, v, upper, key),
            problem.lower(u, v, lower, key),
            problem.constraint_values(u, v, upper),
            problem.lower_constraint_values(u, v, lower),
            problem.project_upper(u),
            problem.lower_set(u)(v),
            None if problem.lower_start is None else problem.lower_start(u, batch, key),
        )

    def of_members(state: State, batch: Batch, key: PRNGKeyArray) -> Any:
        return base.over_members(solver, losses, state, batch, key)

    return Fingerprint(
        shapes="\n".join(shapes),
        problem=text(of_members, state, batch, some),
        solver=f"{type(solver).__name__}\n{text(functools.partial(solver.step, problem), state, batch, some)}",
        key=str(jax.random.key_data(key).tolist()),
        data="\n".join(
            [
                *_hashes("u", start[0]),
                *_hashes("v", start[1]),
                *(_hashes("source", source) if source is not None else _hashes("the first batch", batch)),
            ]
        ),
    )


def _hashes(name: str, tree: PyTree) -> list[str]:
    """A line for each array: its name and the SHA-256 of its values. Every process must call this."""
    lines = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        x = jax.random.key_data(x) if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else x
        values = np.ascontiguousarray(np.asarray(on_host(x), jnp.result_type(x))).reshape(-1)
        digest = hashlib.sha256(values.view(np.uint8).data).hexdigest()
        lines.append(f"{name}{jax.tree_util.keystr(path)}: {digest}")
    return lines


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)

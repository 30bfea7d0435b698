"""Where the arrays of a solve lie: on one device, or on a mesh of several, of one process or of many.

`OneDevice` and `OnMesh` have the same methods, so the loop is the same for both. Nothing is computed here: arrays are
placed, and XLA partitions the one program of `solve` to match (GSPMD; Xu et al. 2021, arXiv:2105.04663), with
collectives by NCCL on GPUs and Gloo on CPUs. Every device takes its share of each batch; where a loss takes the mean
over samples, XLA sums the devices' gradients.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bilevax._checks import InputError, PyTree
from bilevax.loop.layout import Layout, is_key
from bilevax.loop.processes import any_process, require_agreement, together
from bilevax.loop.signals import Asked
from bilevax.loop.sources import Fixed
from bilevax.problem import Batch


class Placement(Protocol):
    """What the loop asks of a placement."""

    @property
    def processes(self) -> int:
        """How many processes take part."""
        ...

    def variables(self, u: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        """The start, placed."""
        ...

    def source(self, source: Any) -> Any:
        """A device-resident source, placed."""
        ...

    def batch(self, batch: Batch) -> Batch:
        """A host batch, placed; of several processes each holds its share of the samples."""
        ...

    def same(self, x: Any) -> Any:
        """An array that is the same on all devices, such as the key."""
        ...

    def start(self, init: Callable[[PyTree, PyTree, Batch], Any], u: PyTree, v: PyTree, batch: Batch) -> Any:
        """The state `init(u, v, batch)`, placed."""
        ...

    def like(self, tree: Any, state: Any) -> Any:
        """Arrays on the host as new arrays, each placed as its counterpart in `state`."""
        ...

    def shardings(self, state: Any) -> tuple[NamedSharding, ...]:
        """Those that a stretch must keep, for each array of the state; none on one device."""
        ...

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, True if it is set in any process that takes part."""
        ...

    def agree(self, settings: Callable[[], dict[str, str]]) -> None:
        """Raise InputError where processes that take part have different settings."""
        ...

    def ends(self, asked: Asked) -> bool:
        """Whether a signal ends the solve at once; of several processes none ends without the others."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Within, the loss of another process is raised as a ProcessLostError."""
        ...


@dataclass(frozen=True)
class OneDevice:
    """JAX's default device."""

    processes: int = 1

    def variables(self, u: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        """On the device; `start` copies them."""
        return jax.tree.map(jnp.asarray, (u, v))

    def source(self, source: Any) -> Any:
        """Its NumPy arrays on the device."""
        return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, source)

    def batch(self, batch: Batch) -> Batch:
        """On the device."""
        return jax.device_put(batch)

    def same(self, x: Any) -> Any:
        """As it is."""
        return x

    def start(self, init: Callable[[PyTree, PyTree, Batch], Any], u: PyTree, v: PyTree, batch: Batch) -> Any:
        """The state."""
        return init(u, v, batch)

    def like(self, tree: Any, state: Any) -> Any:
        """Copies on the device."""
        return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)

    def shardings(self, state: Any) -> tuple[NamedSharding, ...]:
        """None."""
        return ()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """The flags."""
        return flags

    def agree(self, settings: Callable[[], dict[str, str]]) -> None:
        """Nothing to compare."""

    def ends(self, asked: Asked) -> bool:
        """Whether a signal has come."""
        asked.poll()
        return bool(asked)

    def together(self) -> AbstractContextManager[None]:
        """Nothing to watch for."""
        return contextlib.nullcontext()


@dataclass(frozen=True)
class OnMesh:
    """The devices of a layout, which may belong to several processes."""

    layout: Layout

    @property
    def processes(self) -> int:
        """All that JAX knows."""
        return jax.process_count()

    def variables(self, u: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        """As the layout has them."""
        return placed(u, self.layout.of_variable("u", u)), placed(v, self.layout.of_variable("v", v))

    def source(self, source: Any) -> "Split":
        """A fixed batch split over the devices, the data sets of any other source whole on every device."""
        return placed_source(source, self.layout)

    def batch(self, batch: Batch) -> Batch:
        """This process's share of the samples, split over its devices."""
        layout = self.layout
        layout.check_batch(batch, self.processes)

        def place(x: Any, spec: PartitionSpec) -> Any:
            return jax.make_array_from_process_local_data(layout.sharding(spec), np.asarray(x, jnp.result_type(x)))

        return jax.tree.map(place, batch, layout.of_batch(batch))

    def same(self, x: Any) -> Any:
        """Whole on every device."""
        return placed(x, self.layout.sharding(PartitionSpec()))

    def start(self, init: Callable[[PyTree, PyTree, Batch], Any], u: PyTree, v: PyTree, batch: Batch) -> Any:
        """The state, each part of the form of u or v laid out like it."""
        # Of the batch `init` uses shapes only; as a constant of the program it must not be an array of all processes.
        blank = jax.tree.map(lambda x: x if is_key(x) else np.zeros(x.shape, x.dtype), batch)

        def start(u: PyTree, v: PyTree) -> Any:
            return init(u, v, blank)

        form = self.layout.of_state(jax.eval_shape(start, u, v), u, v)
        return jax.jit(start, out_shardings=form)(u, v)

    def like(self, tree: Any, state: Any) -> Any:
        """Laid out like the state."""
        return placed(tree, jax.tree.map(lambda x: x.sharding, state))

    def shardings(self, state: Any) -> tuple[NamedSharding, ...]:
        """Those of its arrays."""
        return tuple(x.sharding for x in jax.tree.leaves(state))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """In any process."""
        return any_process(*flags)

    def agree(self, settings: Callable[[], dict[str, str]]) -> None:
        """Compared with those of the first process."""
        if self.processes > 1:
            require_agreement(mesh=repr(self.layout), **settings())

    def ends(self, asked: Asked) -> bool:
        """Whether a signal has come, where this process is the only one."""
        asked.poll()
        return bool(asked) and self.processes == 1

    def together(self) -> AbstractContextManager[None]:
        """An error that a lost process causes becomes a ProcessLostError."""
        return together()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Split:
    """A source whose batches are split over the devices of a layout."""

    source: Any
    mesh: Mesh = field(metadata={"static": True})
    data: str = field(metadata={"static": True})

    def at(self, step: Any, key: Any) -> Batch:
        """The batch of a step."""
        layout = Layout(self.mesh, data=self.data)
        batch = self.source.at(step, key)
        return jax.tree.map(
            lambda x, spec: jax.lax.with_sharding_constraint(x, layout.sharding(spec)) if len(spec) else x,
            batch,
            layout.of_batch(batch),
        )


def placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """Copies of arrays that are the same in every process, laid out by `shardings`, a tree of the same form."""

    def place(x: Any, sharding: NamedSharding) -> Any:
        if is_key(x):
            return jax.random.wrap_key_data(place(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jnp.array(jax.device_put(x, sharding), copy=True)
        host = np.array(x, jnp.result_type(x))
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(place, tree, shardings)


def placed_source(source: Any, layout: Layout) -> Split:
    """A source, its arrays laid out: a fixed batch split, the data sets of any other whole on every device."""
    if isinstance(source, Fixed):

        def stored(x: Any, spec: PartitionSpec) -> NamedSharding:
            even = len(spec) > 0 and np.shape(x)[len(spec) - 1] % layout.shares == 0
            return layout.sharding(spec if even else PartitionSpec())

        shardings = jax.tree.map(stored, source.batch, layout.of_batch(source.batch))
        return Split(Fixed(placed(source.batch, shardings)), layout.mesh, layout.data)
    for name in ("upper_size", "lower_size"):
        size = getattr(source, name, None)
        if size is not None and size % layout.shares:
            raise InputError(
                f"{name} is {size}, and cannot be split evenly over the {layout.shares} devices of the mesh's axis "
                f"{layout.data!r}. Take a multiple of {layout.shares}, say {size + -size % layout.shares}, or fewer "
                "devices."
            )
    whole = layout.sharding(PartitionSpec())
    return Split(placed(source, jax.tree.map(lambda _: whole, source)), layout.mesh, layout.data)

"""Where the arrays of a solve are stored: on one device, or on a mesh of devices of one or several processes.

`OneDevice` and `OnMesh` have the same methods, so the loop is the same for both. They only place arrays. XLA partitions
the compiled program of `solve` to match (GSPMD; Xu et al. 2021, arXiv:2105.04663), with collectives by NCCL on GPUs and
Gloo on CPUs. Every device gets its share of each batch, and XLA sums the gradients of the devices where a loss is a
mean over samples.
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
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from bilevax._checks import InputError
from bilevax.loop.layout import Layout, is_key
from bilevax.loop.processes import any_process, require_agreement, together
from bilevax.loop.signals import Asked
from bilevax.loop.sources import Fixed, Source
from bilevax.problem import Batch
from bilevax.solvers.base import State

Init = Callable[[PyTree, PyTree, Batch], State]


class Placement(Protocol):
    """Puts the arrays of a solve on devices, and lets its processes agree."""

    @property
    def processes(self) -> int:
        """The number of processes in the solve."""
        ...

    def variables(self, u: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        """The variables u and v, placed."""
        ...

    def source(self, source: Source) -> Source:
        """A device-resident source, placed."""
        ...

    def batch(self, batch: Batch) -> Batch:
        """A host batch, placed; with several processes, `batch` is the share of this process."""
        ...

    def same(self, x: Array) -> Array:
        """An array that is the same on all devices, such as the key."""
        ...

    def start(self, init: Init, u: PyTree, v: PyTree, batch: Batch) -> State:
        """The state `init(u, v, batch)`, placed."""
        ...

    def like(self, tree: State, state: State) -> State:
        """Copies of the arrays of `tree`, each placed as the corresponding array of `state`."""
        ...

    def shardings(self, state: State) -> tuple[NamedSharding, ...]:
        """The sharding of each array of the state, which a stretch must keep; empty on one device."""
        ...

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is True in any process."""
        ...

    def agree(self, settings: Callable[[], dict[str, str]]) -> None:
        """Raise InputError if the settings of the processes differ."""
        ...

    def ends(self, asked: Asked) -> bool:
        """Whether a signal ends the solve now; always False with several processes, which must end together."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """A context in which the loss of another process is raised as a ProcessLostError."""
        ...


@dataclass(frozen=True)
class OneDevice:
    """JAX's default device."""

    processes: int = 1

    def variables(self, u: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        """The variables u and v on the device; `start` copies them."""
        return jax.tree.map(jnp.asarray, (u, v))

    def source(self, source: Source) -> Source:
        """The source with its NumPy arrays on the device."""
        return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, source)

    def batch(self, batch: Batch) -> Batch:
        """The batch on the device."""
        return jax.device_put(batch)

    def same(self, x: Array) -> Array:
        """The array itself."""
        return x

    def start(self, init: Init, u: PyTree, v: PyTree, batch: Batch) -> State:
        """The state on the device."""
        return init(u, v, batch)

    def like(self, tree: State, state: State) -> State:
        """Copies on the device."""
        return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)

    def shardings(self, state: State) -> tuple[NamedSharding, ...]:
        """Empty."""
        return ()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """The flags."""
        return flags

    def agree(self, settings: Callable[[], dict[str, str]]) -> None:
        """Do nothing."""

    def ends(self, asked: Asked) -> bool:
        """Whether a signal has come."""
        asked.poll()
        return bool(asked)

    def together(self) -> AbstractContextManager[None]:
        """An empty context."""
        return contextlib.nullcontext()


@dataclass(frozen=True)
class OnMesh:
    """The devices of a layout, which may belong to several processes."""

    layout: Layout

    @property
    def processes(self) -> int:
        """All processes of JAX."""
        return jax.process_count()

    def variables(self, u: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        """The variables u and v with the shardings of the layout."""
        return placed(u, self.layout.of_variable("u", u)), placed(v, self.layout.of_variable("v", v))

    def source(self, source: Source) -> "Split":
        """The source with its arrays on the devices; see `placed_source`."""
        return placed_source(source, self.layout)

    def batch(self, batch: Batch) -> Batch:
        """A batch whose samples in this process are split over its devices."""
        layout = self.layout
        layout.check_batch(batch, self.processes)

        def place(x: Any, spec: PartitionSpec) -> Array:
            return jax.make_array_from_process_local_data(layout.sharding(spec), np.asarray(x, jnp.result_type(x)))

        return jax.tree.map(place, batch, layout.of_batch(batch))

    def same(self, x: Array) -> Array:
        """The whole array on every device."""
        return placed(x, self.layout.sharding(PartitionSpec()))

    def start(self, init: Init, u: PyTree, v: PyTree, batch: Batch) -> State:
        """The state; parts with the structure and shapes of u or v are laid out like u or v."""
        # `init` uses the shapes of the batch only. A constant of the program must not be spread over processes.
        blank = jax.tree.map(lambda x: x if is_key(x) else np.zeros(x.shape, x.dtype), batch)

        def start(u: PyTree, v: PyTree) -> State:
            return init(u, v, blank)

        form = self.layout.of_state(jax.eval_shape(start, u, v), u, v)
        return jax.jit(start, out_shardings=form)(u, v)

    def like(self, tree: State, state: State) -> State:
        """Copies with the shardings of the state."""
        return placed(tree, jax.tree.map(lambda x: x.sharding, state))

    def shardings(self, state: State) -> tuple[NamedSharding, ...]:
        """The sharding of each array."""
        return tuple(x.sharding for x in jax.tree.leaves(state))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is True in any process."""
        return any_process(*flags)

    def agree(self, settings: Callable[[], dict[str, str]]) -> None:
        """Compare the settings with those of the first process."""
        if self.processes > 1:
            require_agreement(mesh=repr(self.layout), **settings())

    def ends(self, asked: Asked) -> bool:
        """Whether a signal has come and there is one process."""
        asked.poll()
        return bool(asked) and self.processes == 1

    def together(self) -> AbstractContextManager[None]:
        """A context in which the loss of another process is raised as a ProcessLostError."""
        return together()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Split:
    """A source whose batches are split over the devices of a layout."""

    source: Source
    mesh: Mesh = field(metadata={"static": True})
    data: str = field(metadata={"static": True})

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """The batch of a step."""
        layout = Layout(self.mesh, data=self.data)
        batch = self.source.at(step, key)
        return jax.tree.map(
            lambda x, spec: jax.lax.with_sharding_constraint(x, layout.sharding(spec)) if len(spec) else x,
            batch,
            layout.of_batch(batch),
        )


def placed(tree: PyTree, shardings: PyTree[NamedSharding]) -> PyTree:
    """Copies of arrays that are the same in every process, laid out by `shardings`, a tree of the same structure."""

    def place(x: Any, sharding: NamedSharding) -> Array:
        if is_key(x):
            return jax.random.wrap_key_data(place(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jnp.array(jax.device_put(x, sharding), copy=True)
        host = np.array(x, jnp.result_type(x))
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(place, tree, shardings)


def placed_source(source: Source, layout: Layout) -> Split:
    """A source on the devices: a fixed batch is split, the data sets of other sources are whole on every device.

    Raises:
        InputError: the layout does not split the source's batches evenly.
    """
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

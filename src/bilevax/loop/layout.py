"""`Layout`: the devices of a solve, and how its arrays are laid out on them."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError, require_count
from bilevax.problem import Batch, PerMove
from bilevax.solvers.base import State


@dataclass(frozen=True)
class Layout:
    """The devices that a solve uses, and how its arrays are laid out on them.

    A fixed Batch is split over the devices if their number divides the number of samples. The data sets of
    `Minibatches` and `Epochs` are stored whole on every device, so that each device gathers its own samples and no data
    are sent between devices. A data set that is used whole is split where it is used, and padded if necessary. With a
    host iterable each process yields its own share of every batch.

    Args:
        mesh: a `jax.sharding.Mesh`; `over(n)` makes the usual one. With several processes it spans all of them.
        u, v: the layout of u and of v: a `PartitionSpec`, or a tree of `PartitionSpec` with the structure of u or v or
            a prefix of it. By default every device holds all of u and v. Parts of a solver's state that have the
            structure and shapes of u or v, such as optimizer states, are laid out in the same way.
        data: the axis of the mesh over which the samples of a batch (the leading axis of its arrays) are split.

    Raises:
        InputError: mesh is not a Mesh, or has no axis named `data`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec
        >>> from bilevax import Batch, Layout, Penalty, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, x: jnp.mean((v - x) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - u) ** 2),
        ... )
        >>> mesh = jax.make_mesh((len(jax.devices()),), ("data",))
        >>> layout = Layout(mesh, u=PartitionSpec("data"))
        >>> batch = Batch(upper=jnp.ones((16, 8)))
        >>> result = solve(
        ...     Penalty(), problem, jnp.zeros(8), jnp.zeros(8), batch, steps=20, key=jax.random.key(0), mesh=layout
        ... )
        >>> print(result.u.sharding.spec)
        P('data',)
    """

    mesh: Mesh
    u: PyTree = field(default_factory=PartitionSpec)
    v: PyTree = field(default_factory=PartitionSpec)
    data: str = "data"

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh):
            raise InputError(
                f"Layout: mesh is a {type(self.mesh).__name__}. Pass a jax.sharding.Mesh, such as "
                'jax.make_mesh((4,), ("data",)).'
            )
        if self.data not in self.mesh.axis_names:
            raise InputError(
                f"Layout: the mesh has the axes {list(self.mesh.axis_names)}, and none named {self.data!r} to split "
                "the samples over. Name one of them by Layout(mesh, data=...)."
            )
        automatic = (AxisType.Auto,) * len(self.mesh.axis_names)  # XLA chooses the other layouts
        object.__setattr__(self, "mesh", Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=automatic))

    @property
    def shares(self) -> int:
        """The number of shares into which a batch is split."""
        return self.mesh.shape[self.data]

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """The sharding of a spec on this mesh."""
        return NamedSharding(self.mesh, spec)

    def of_variable(self, name: str, x: PyTree[Float[Array, "..."]]) -> PyTree[NamedSharding]:
        """A sharding for each leaf of `x`, which is u or v (`name`).

        Raises:
            InputError: the specs do not match the tree, or do not divide an axis of a leaf evenly.
        """
        specs = getattr(self, name)
        for leaf in jax.tree.leaves(specs, is_leaf=_is_spec):
            if not _is_spec(leaf):
                raise InputError(f"Layout: {name} holds {leaf!r}. Give a jax.sharding.PartitionSpec for each leaf.")
        try:
            full = jax.tree.map(lambda spec, part: jax.tree.map(lambda _: spec, part), specs, x, is_leaf=_is_spec)
        except ValueError as error:
            raise InputError(
                f"Layout: the tree of PartitionSpecs for {name} does not match {name}: it is {specs!r}, and {name} has "
                f"{jax.tree.structure(x)}. Give one spec for all of {name}, or a tree of specs with its structure."
            ) from error
        leaves = jax.tree_util.tree_leaves_with_path(x)
        for (path, leaf), spec in zip(leaves, jax.tree.leaves(full, is_leaf=_is_spec), strict=True):
            self._check(f"{name}{jax.tree_util.keystr(path)}", np.shape(leaf), spec)
        return jax.tree.map(self.sharding, full, is_leaf=_is_spec)

    def _check(self, where: str, shape: tuple[int, ...], spec: PartitionSpec) -> None:
        if len(spec) > len(shape):
            raise InputError(
                f"Layout: {where} has shape {shape}, and its spec {spec} names {len(spec)} axes. Give at most "
                "one entry per axis."
            )
        for axis, names in enumerate(spec):
            names = (names,) if isinstance(names, str) else tuple(names or ())
            unknown = [n for n in names if n not in self.mesh.axis_names]
            if unknown:
                raise InputError(
                    f"Layout: the spec {spec} of {where} names {unknown[0]!r}, and the mesh has the axes "
                    f"{list(self.mesh.axis_names)}. Use one of them."
                )
            parts = int(np.prod([self.mesh.shape[n] for n in names], initial=1))
            if shape[axis] % parts:
                raise InputError(
                    f"Layout: axis {axis} of {where} has {shape[axis]} entries, and cannot be split evenly over "
                    f"{parts} devices. Leave this axis whole (None in the spec), or use a number of devices that "
                    "divides it."
                )

    def of_state(self, state: State, u: PyTree[Float[Array, "..."]], v: PyTree[Float[Array, "..."]]) -> State:
        """A sharding for each leaf of a solver's state; parts with the structure and shapes of u or v get theirs."""
        like_u, like_v = ((x, self.of_variable(name, x)) for name, x in (("u", u), ("v", v)))
        whole = self.sharding(PartitionSpec())

        def part(tree: Any, candidates: Any) -> Any:
            def found(t: Any) -> Any:
                return next((shardings for x, shardings in candidates if _same_form(t, x)), None)

            return jax.tree.map(
                lambda t: whole if (shardings := found(t)) is None else shardings,
                tree,
                is_leaf=lambda t: found(t) is not None,
            )

        of_u = {name: part(getattr(state, name), (like_u, like_v)) for name in ("u", "upper_opt")}
        return state._replace(
            **of_u, **{name: part(getattr(state, name), (like_v, like_u)) for name in ("v", "lower_opt", "memory")}
        )

    def of_batch(self, batch: Batch) -> Batch:
        """A spec for each array of a batch: split by samples, or whole if there are fewer samples than shares."""

        def specs(tree: PyTree, axis: int) -> PyTree[PartitionSpec]:
            def one(x: Any) -> PartitionSpec:
                shape = np.shape(x)
                if len(shape) <= axis or shape[axis] < self.shares or is_key(x):
                    return PartitionSpec()
                return PartitionSpec(*[None] * axis, self.data)

            return jax.tree.map(one, tree)

        if isinstance(batch.lower, PerMove):
            return Batch(specs(batch.upper, 0), PerMove(specs(batch.lower.data, 1)))
        return Batch(specs(batch.upper, 0), specs(batch.lower, 0))

    def check_batch(self, batch: Batch, processes: int = 1) -> None:
        """Check that a batch, or the share of it that one of `processes` processes holds, can be split evenly.

        Raises:
            InputError: the number of samples is not a multiple of the number of devices along the data axis.
        """
        specs = jax.tree.leaves(self.of_batch(batch), is_leaf=_is_spec)
        for (path, x), spec in zip(jax.tree_util.tree_leaves_with_path(batch), specs, strict=True):
            n = np.shape(x)[len(spec) - 1] if len(spec) else 0
            shares = max(1, self.shares // processes)
            if n % shares:
                raise InputError(
                    f"The batch{jax.tree_util.keystr(path)} has {n} samples, which cannot be split evenly over the "
                    f"{shares} devices of the mesh's axis {self.data!r}. Take a multiple of {shares} samples, say "
                    f"{n - n % shares}, or fewer devices."
                )


def over(devices: int | None) -> Layout | None:
    """A layout that splits samples over the first `devices` devices of all processes; None (one device) for None.

    Raises:
        InputError: `devices` is not a positive integer, is more than there are, or, with several processes, is not the
            number of all devices.

    Example:
        >>> from bilevax.loop.layout import over
        >>> over(1).mesh.shape["data"]
        1
    """
    if devices is None:
        return None
    require_count("over", "devices", devices)
    found = jax.devices()
    if devices > len(found):
        raise InputError(
            f"{devices} devices are asked for, and there are {len(found)} ({found[0].platform}). Ask for fewer. On a "
            'CPU, call jax.config.update("jax_num_cpu_devices", n) first, before other functions of JAX.'
        )
    if jax.process_count() > 1 and devices != len(found):
        raise InputError(
            f"{devices} devices are asked for, and the {jax.process_count()} processes have {len(found)}, all of which "
            f"must take part. Ask for {len(found)}."
        )
    return Layout(Mesh(np.asarray(found[:devices]), ("data",)))


def is_key(x: Any) -> bool:
    """Whether an array holds keys of jax.random."""
    return jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _same_form(tree: Any, x: PyTree) -> bool:
    return jax.tree.structure(tree) == jax.tree.structure(x) and all(
        np.shape(a) == np.shape(b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(x), strict=True)
    )

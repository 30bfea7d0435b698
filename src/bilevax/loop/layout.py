"""How a user describes where a solve runs: a mesh of devices, and what lies where on it."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilevax._checks import InputError, PyTree, require_count
from bilevax.problem import Batch, PerMove


@dataclass(frozen=True)
class Layout:
    """Which devices a solve uses, and what lies where.

    Args:
        mesh: a `jax.sharding.Mesh`; `over(n)` makes the usual one. With several processes it spans all of them.
        u, v: how these are laid out: a `PartitionSpec`, or a tree of them as u or v or a prefix of it. By default every
            device holds all of both. Optimizer states, multipliers and whatever else of a solver's state has the
            form of u or v is laid out like it.
        data: the axis of the mesh over which the samples of a batch, its arrays' leading axis, are split.

    A fixed Batch is stored split where the devices divide its samples. The data sets of `Minibatches` and `Epochs` lie
    whole on every device, so that each gathers its own samples and no data travel; what is used whole is split where it
    is used, padded if need be. With a host iterable each process yields its own share of every batch.

    Raises:
        InputError: mesh is not a Mesh, or has no such axis.

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
        automatic = (AxisType.Auto,) * len(self.mesh.axis_names)  # XLA finds the layouts that are not given
        object.__setattr__(self, "mesh", Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=automatic))

    @property
    def shares(self) -> int:
        """The number of shares into which a batch is split."""
        return self.mesh.shape[self.data]

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """A spec on this mesh."""
        return NamedSharding(self.mesh, spec)

    def of_variable(self, name: str, x: PyTree) -> PyTree:
        """A sharding for each leaf of u or of v (`name`).

        Raises:
            InputError: the specs do not match its tree, or an axis of a leaf cannot be split as asked.
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
                f"{jax.tree.structure(x)}. Give one spec for all of {name}, or a tree of them of its form."
            ) from error
        leaves = jax.tree_util.tree_leaves_with_path(x)
        for (path, leaf), spec in zip(leaves, jax.tree.leaves(full, is_leaf=_is_spec), strict=True):
            self._check(f"{name}{jax.tree_util.keystr(path)}", np.shape(leaf), spec)
        return jax.tree.map(self.sharding, full, is_leaf=_is_spec)

    def _check(self, where: str, shape: tuple[int, ...], spec: PartitionSpec) -> None:
        if len(spec) > len(shape):
            raise InputError(
                f"Layout: {where} has shape {shape}, and its spec {spec} names {len(spec)} axes. Give one entry per "
                "axis at most."
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

    def of_state(self, state: Any, u: PyTree, v: PyTree) -> Any:
        """A sharding for each leaf of a solver's state (its shapes): where a part has the form of u or v, theirs."""
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
        """A spec for each array of a batch: split by samples, or whole where there are fewer samples than shares."""

        def specs(tree: PyTree, axis: int) -> PyTree:
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
        """Refuse a batch, or the share of it that one of `processes` processes holds, that cannot be split evenly.

        Raises:
            InputError: the data axis of the mesh does not divide it.
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
    """A layout over the first `devices` devices of all processes, samples split; None: no layout, one device.

    Raises:
        InputError: not a positive number, more than there are, or, with several processes, not all of them.

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
            'CPU, jax.config.update("jax_num_cpu_devices", n) before anything else makes n of one.'
        )
    if jax.process_count() > 1 and devices != len(found):
        raise InputError(
            f"{devices} devices are asked for, and the {jax.process_count()} processes have {len(found)}, all of which "
            f"must take part. Ask for {len(found)}."
        )
    return Layout(Mesh(np.asarray(found[:devices]), ("data",)))


def is_key(x: Any) -> bool:
    """Whether an array is one of keys of jax.random."""
    return jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _same_form(tree: Any, x: PyTree) -> bool:
    return jax.tree.structure(tree) == jax.tree.structure(x) and all(
        np.shape(a) == np.shape(b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(x), strict=True)
    )

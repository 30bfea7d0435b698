"""Several processes in one solve: they start, agree and end together."""

import atexit
import contextlib
import os
import re
import time
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from bilevax._checks import InputError


class ProcessLostError(RuntimeError):
    """Another process of the solve was lost; the iterates in this process cannot be used any more."""


def join(devices: int) -> None:
    """Join the processes that a cluster's launcher has started, to share `devices` devices. Call it before using JAX.

    JAX supports Slurm, Open MPI and other launchers. Without a launcher, set JAX_COORDINATOR_ADDRESS (host:port of the
    first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID. On a CPU each process creates its share of the devices.

    Raises:
        InputError: the processes could not be joined, or their number does not divide that of the devices.
    """
    counts = [int(os.environ.get(name, 1)) for name in ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    processes, place = max(counts), os.environ.get("JAX_PROCESS_ID")
    if devices % processes:
        raise InputError(
            f"{devices} devices are asked for, and {processes} processes cannot share them evenly. Ask for a "
            f"multiple of {processes}."
        )
    if processes > 1:
        # A killed process is then noticed within a minute, and does not end the other processes at once.
        jax.config.update("jax_enable_recoverability", True)
        try:
            jax.distributed.initialize(
                num_processes=counts[0] if counts[0] > 1 else None,
                process_id=None if place is None else int(place),
                heartbeat_timeout_seconds=30,
                shutdown_timeout_seconds=10,
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"The processes could not be joined ({str(error).strip().splitlines()[0]}). Set "
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each, or start them by a launcher "
                "that JAX knows, such as Slurm or Open MPI."
            ) from error
        atexit.register(_leave)
    with contextlib.suppress(RuntimeError):  # JAX was used before; `over` checks the number of devices
        jax.config.update("jax_num_cpu_devices", devices // processes)


def _leave() -> None:
    """At exit of the first process, wait until the others have exited, since they abort without it.

    With recoverability JAX leaves this to the program. The wait is at most half a minute: a killed process never
    reports its exit, and a process that waits for this one in a collective never exits.
    """
    # jax.process_index() would start a backend where none was used.
    from jax._src.distributed import global_state

    client: Any = global_state.client
    if client is None:  # the program has called jax.distributed.shutdown itself
        return
    mine, end = global_state.process_id, time.monotonic() + 30
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if mine:
            client.key_value_set(f"bilevax/left/{mine}", "")
            return
        for other in range(1, global_state.num_processes):
            client.blocking_key_value_get(f"bilevax/left/{other}", max(1, int(1e3 * (end - time.monotonic()))))
        client.get_live_nodes(list(range(global_state.num_processes)))  # returns when all others have disconnected


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A context in which an error of XLA that a lost process causes is raised as a ProcessLostError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # XLA's errors begin with their kind; some of them reach Python as ValueError.
        if jax.process_count() == 1 or not re.match("[A-Z_]+: ", str(error)):
            raise
        cause = str(error).strip().splitlines()[0][:200]
        raise ProcessLostError(
            f"Process {jax.process_index()} of {jax.process_count()}: a step that all processes take together failed "
            f"({cause}). Another process was most likely killed or lost its connection. Start all of them again; with "
            "a Checkpoint as callback and as resume= the solve goes on from the last save."
        ) from error


def on_host(tree: PyTree) -> PyTree:
    """Arrays as NumPy arrays. Arrays spread over several processes are gathered; then every process must call this."""

    def fetch(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(fetch, tree)


def any_process(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is True in any process. Every process must call this."""
    if jax.process_count() == 1:
        return flags
    gathered = multihost_utils.process_allgather(np.array(flags, bool))
    return tuple(bool(x) for x in gathered.any(0))


def require_agreement(**settings: str) -> None:
    """Check that all processes have the same settings, by checksums. Every process must call this.

    Raises:
        InputError: a process differs from the first. It is raised in every process.
    """
    if jax.process_count() == 1:
        return
    mine = np.array([zlib.crc32(x.encode()) for x in settings.values()], np.uint32)
    everyone = multihost_utils.process_allgather(mine)
    for i, name in enumerate(settings):
        others = np.flatnonzero(everyone[:, i] != everyone[0, i])
        if len(others):
            raise InputError(
                f"The processes disagree on {name.replace('_', ' ')}: process {others[0]} differs from process 0. "
                "Start all of them with the same program, settings and data."
            )

"""What the commands share: options, exit codes, messages instead of tracebacks, and versions for reports."""

import hashlib
import math
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

import bilevax
from bilevax._checks import InputError, short_reason
from bilevax._files import make_writable
from bilevax.cli._printing import complain, failed
from bilevax.loop.layout import Layout, over
from bilevax.loop.processes import ProcessLostError, join
from bilevax.loop.result import SolveError
from bilevax.loop.signals import PREEMPTION, Asked, deferred

ARGUMENTS = ("train", "data", "file")  # without a flag; all others are options
SOLVE_FAILED, INPUT_REFUSED, INTERRUPTED, PREEMPTED = 1, 2, 130, 143
MOST = 2**31 - 1  # of what a loop counts in 32 bits


@contextmanager
def in_plain_words() -> Iterator[Asked]:
    """Print errors that a user can correct as a sentence on stderr and exit with a code, without a traceback.

    Within the context, SIGTERM and SIGUSR1 do not end the process: they are recorded in the yielded object, and the run
    ends between its next two stages.
    """
    try:
        with deferred(*PREEMPTION) as asked:
            yield asked
        if failed():
            raise typer.Exit(SOLVE_FAILED)
    except InputError as error:
        complain(str(error))
        raise typer.Exit(INPUT_REFUSED) from error
    except ProcessLostError as error:
        complain(str(error))
        sys.stderr.flush()
        os._exit(SOLVE_FAILED)  # JAX's own exit would wait for the lost process
    except SolveError as error:
        complain(f"The solve failed. {error}")
        raise typer.Exit(SOLVE_FAILED) from error
    except OSError as error:  # such as a full disk
        complain(str(error))
        raise typer.Exit(SOLVE_FAILED) from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        complain(
            f"There is not enough memory ({short_reason(error)}). Lower the sizes, or take fewer samples or features."
        )
        raise typer.Exit(SOLVE_FAILED) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


def finite(value: float) -> float:
    """Refuse NaN, which passes the range checks of options, and infinities."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything that is drawn at random.")]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="COLUMN", help="The column of the labels; of an NPZ file the array, y by default."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the same command after an interruption.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Overwrite files in --out that are not this program's unchanged outputs.")
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        max=1024,
        metavar="N",
        help="Split every step over N devices; a CPU counts as N parts. In several processes, started by a cluster's "
        "launcher (or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID set), over the devices of all.",
        show_default="one",
    ),
]


def laid_out(devices: int | None, out: Path) -> tuple[Layout | None, Path]:
    """The layout for --devices, and where this process writes: only the first process writes to --out and prints.

    Call it before JAX is used.
    """
    if devices is None:
        return None, out
    join(devices)
    layout = over(devices)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  as long as the process lives
        out = Path(tempfile.mkdtemp(prefix="bilevax-"))
    return layout, out


def check_writable(out: Path) -> None:
    """Make the directory, or refuse it before anything is computed."""
    try:
        make_writable(out)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written to ({error.strerror}). Pass a directory that you may write to."
        ) from error


def digest(name: str, path: Path) -> dict[str, str]:
    """The name and hash of a file, to recognise the same run when it is resumed."""
    name = name.upper() if name in ARGUMENTS else f"--{name}"
    try:
        # Before it is opened: a FIFO waits for its writer, and a device may be endless.
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "a pipe" if path.is_fifo() else "not a regular file"
            raise InputError(f"{name} ({path}) is {kind}. Pass a file; save what comes from a pipe to one first.")
        with path.open("rb") as file:
            return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name} ({path}) cannot be opened: {reason}. Check the path.") from error


def figure(value: float | None, form: str) -> str:
    """A number for a table; a dash if unknown."""
    return "–" if value is None else format(value, form)


def surroundings(*packages: str) -> dict[str, Any]:
    """Versions and device, for results.json."""
    return {
        "versions": {"python": platform.python_version(), "bilevax": bilevax.__version__}
        | {name: version_of(name) for name in packages},
        "device": {
            "platform": jax.devices()[0].platform,
            "kind": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
    }

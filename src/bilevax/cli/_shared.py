"""What the commands share: options, exit codes, messages instead of tracebacks, and versions for reports."""

import math
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bilevax
from bilevax._checks import InputError, short_reason
from bilevax.cli._printing import complain, failed

# What takes long to import is imported in functions, so that `--help` and a refused option do not wait for it.
if TYPE_CHECKING:
    from bilevax.loop.layout import Layout

ARGUMENTS = ("train", "data", "file")  # without a flag; all others are options
SOLVE_FAILED, INPUT_REFUSED, INTERRUPTED, PREEMPTED = 1, 2, 130, 143
MOST = 2**31 - 1  # of what a loop counts in 32 bits
CORRECTED = "corrected"  # data, by `denoise --apply`


@contextmanager
def in_plain_words() -> Iterator[None]:
    """Print errors that a user can correct as a sentence on stderr and exit with a code, without a traceback."""
    try:
        yield
        if failed():
            raise typer.Exit(SOLVE_FAILED)
    except typer.Exit:
        raise
    except InputError as error:
        complain(str(error))
        raise typer.Exit(INPUT_REFUSED) from error
    except OSError as error:  # such as a full disk
        complain(str(error))
        raise typer.Exit(SOLVE_FAILED) from error
    except (MemoryError, RuntimeError) as error:
        _explain(error)
        raise typer.Exit(SOLVE_FAILED) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


def _explain(error: MemoryError | RuntimeError) -> None:
    """Print why a solve failed, or that there is not enough memory; raise any other error again."""
    from jax.errors import JaxRuntimeError

    from bilevax.loop.processes import ProcessLostError
    from bilevax.loop.result import SolveError

    if isinstance(error, ProcessLostError):
        complain(str(error))
        sys.stderr.flush()
        os._exit(SOLVE_FAILED)  # JAX's own exit would wait for the lost process
    if isinstance(error, SolveError):
        complain(f"The solve failed. {error}")
    elif isinstance(error, MemoryError) or (isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
        complain(
            f"There is not enough memory ({short_reason(error)}). Lower the sizes, or take fewer samples or features."
        )
    else:
        raise error


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


def laid_out(devices: int | None, out: Path) -> "tuple[Layout | None, Path]":
    """The layout for --devices, and where this process writes: only the first process writes to --out and prints.

    Call it before JAX is used.
    """
    if devices is None:
        return None, out
    import tempfile

    import jax

    from bilevax.loop.layout import over
    from bilevax.loop.processes import join

    join(devices)
    layout = over(devices)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  as long as the process lives
        out = Path(tempfile.mkdtemp(prefix="bilevax-"))
    return layout, out


def require(condition: bool, sentence: str) -> None:
    """Refuse options that do not fit."""
    if not condition:
        raise InputError(sentence)


def check_writable(out: Path) -> None:
    """Make the directory, or refuse it before anything is computed."""
    from bilevax._files import make_writable

    try:
        make_writable(out)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written to ({error.strerror}). Pass a directory that you may write to."
        ) from error


def digest(name: str, path: Path) -> dict[str, str]:
    """The name and hash of a file, to recognise the same run when it is resumed."""
    import hashlib

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
    import platform
    from importlib.metadata import version as version_of

    import jax

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

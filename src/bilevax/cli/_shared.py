"""What the commands share: exit codes, sentences in place of traces, and what a report says of its surroundings."""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console

import bilevax
from bilevax import layout as layouts
from bilevax._files import make_writable
from bilevax.layout import Layout
from bilevax.problem import InputError
from bilevax.solve import ProcessLostError, SolveError

ARGUMENTS = ("train", "data")  # without a flag; all others are options
SOLVE_FAILED, INPUT_REFUSED, INTERRUPTED = 1, 2, 130


@contextmanager
def in_plain_words() -> Iterator[None]:
    """What a user can mend ends in a sentence on stderr and an exit code, not in a traceback."""
    try:
        yield
    except InputError as error:
        complain(str(error))
        raise typer.Exit(INPUT_REFUSED) from error
    except ProcessLostError as error:
        complain(str(error))
        sys.stderr.flush()
        os._exit(SOLVE_FAILED)  # JAX's own way out would wait for the process that is gone
    except SolveError as error:
        complain(f"The solve failed. {error}")
        raise typer.Exit(SOLVE_FAILED) from error
    except OSError as error:  # a disk that is full, say
        complain(str(error))
        raise typer.Exit(SOLVE_FAILED) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        metavar="N",
        help="Split every step over N devices; on a CPU, N parts of it. Started in several processes by a cluster's "
        "launcher (or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID set), over all of theirs.",
        show_default="one",
    ),
]


def laid_out(devices: int | None, out: Path) -> tuple[Layout | None, Path]:
    """The layout for --devices, and where this process writes: of several the first alone writes to --out, and speaks.

    Called before JAX is used.
    """
    if devices is None:
        return None, out
    layouts.join(devices)
    layout = layouts.over(devices)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  as long as the process lives
        out = Path(tempfile.mkdtemp(prefix="bilevax-"))
    return layout, out


def remove(directory: Path) -> None:
    """Remove a directory with what is in it; of several processes the first does."""
    if jax.process_index() == 0:
        shutil.rmtree(directory)


def say(text: str) -> None:
    """A line on stdout."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    """A line on stderr."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def check_writable(out: Path) -> None:
    """Make the directory, or refuse it before anything is computed."""
    try:
        make_writable(out)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written to ({error.strerror}). Pass a directory that you may write to."
        ) from error


def digest(name: str, path: Path) -> dict[str, str]:
    """A file's name and contents, so that a resumed run is known to be the same one."""
    name = name.upper() if name in ARGUMENTS else f"--{name}"
    try:
        with path.open("rb") as file:
            return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise InputError(f"{name} ({path}) cannot be opened: {error.strerror}. Check the path.") from error


def figure(value: float | None, form: str) -> str:
    """A number for a table; a dash where it is not known."""
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

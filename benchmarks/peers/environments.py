"""The Python environments of the other libraries: created by venv, filled by pip, and kept for the next run."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 3600  # for one call of pip


class NotInstalledError(RuntimeError):
    """What pip could not install; the message says why."""


@dataclass(frozen=True)
class Environment:
    """An environment that several competitors share.

    Attributes:
        name: of its folder; "" is that of bilevax itself, which is running.
        base: what is installed first. The version of its first package is kept when others are installed afterwards.
        paths: what else is importable there.
    """

    name: str
    base: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


OWN = Environment("")
TORCH = Environment("torch", ("torch", "numpy"))


def _needed_by_works() -> tuple[str, ...]:
    """What bilevax and its applications require: the works use their losses."""
    lines = importlib.metadata.requires("bilevax") or []
    split = [line.split(";") for line in lines]
    return tuple(name.strip() for name, *marks in split if not marks or "apps" in marks[0])


# The jax that runs here, so that both have the same compiler. The source of bilevax is importable there.
JAXOPT = Environment(
    "jaxopt",
    (f"jax=={importlib.metadata.version('jax')}", "jaxopt", *_needed_by_works()),
    (str(ROOT / "src"),),
)


def default_folder() -> Path:
    """In the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "bilevax" / "peers"


def python_of(folder: Path, environment: Environment) -> Path:
    """Its interpreter."""
    if not environment.name:
        return Path(sys.executable)
    return folder / environment.name / ("Scripts" if os.name == "nt" else "bin") / "python"


def ensure(folder: Path, environment: Environment, requirements: Sequence[str], options: Sequence[str]) -> Path:
    """The interpreter of an environment that has the requirements; the environment is created if it does not exist.

    Raises:
        NotInstalledError: pip or venv failed.
    """
    python = python_of(folder, environment)
    if not environment.name:
        return python
    home = folder / environment.name
    done = home / "installed.txt"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(home)], f"The environment {environment.name} could not be made")
    pins = home / "constraints.txt"
    for wanted, more in ((environment.base, ()), (tuple(requirements), (*options, "-c", str(pins)))):
        line = " ".join((*wanted, *more))
        if not wanted or (done.exists() and line in done.read_text().splitlines()):
            continue
        print(f"Installing {', '.join(wanted)} in {home}.", file=sys.stderr, flush=True)
        _run([str(python), "-m", "pip", "install", "--quiet", *wanted, *more], f"pip cannot install {' '.join(wanted)}")
        if wanted is environment.base:
            first = environment.base[0].split("=")[0]
            code = f"import importlib.metadata as m; print('{first}==' + m.version('{first}'))"
            listed = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
            pins.write_text(listed.stdout)
        with done.open("a") as file:
            file.write(line + "\n")
    return python


def _run(command: list[str], failure: str) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or error.stderr.splitlines()
        raise NotInstalledError(f"{failure}: {(lines or ['it does not say why'])[-1][:300]}") from None
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"{failure} within {SECONDS} s.") from None


def variables(environment: Environment, threads: int) -> dict[str, str]:
    """The environment variables of a worker: threads pinned, CPU only, the repository importable."""
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    paths = os.pathsep.join((str(ROOT), *environment.paths))
    return os.environ | pinned | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}

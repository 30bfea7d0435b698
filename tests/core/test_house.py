"""The plan of the house: which room may lean on which."""

import ast
import functools
import graphlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import bilevax

SOURCE = Path(__file__).parents[2] / "src" / "bilevax"
# From the ground up: a room may import rooms named before it, and files of its own room.
ORDER = [
    "_checks",
    "_arrays",
    "_cache",
    "_hoisting",
    "_indices",
    "_files",
    "_programs",
    "problem",
    "_optimizers",
    "derivatives",
    "fixed_points",
    "projections",
    "schedules",
    "penalties",
    "linear_solve",
    "solvers",
    "loop",
    "diagnostics",
    "argmin",
    "recommending",
    "_api",
    "search",
    "plots",
    "nn",
    "data",
    "applications",
    "saved",
    "cli",
    "__main__",
]
DIFFERENTIATION = {"grad", "value_and_grad", "jvp", "vjp", "linearize", "jacfwd", "jacrev", "hessian"}
# The last one differentiates a plain loss of a noise matrix.
MAY_DIFFERENTIATE = {
    *("derivatives.py", "fixed_points.py", "solvers/unrolled.py"),
    *("applications/denoising/noise.py", "applications/denoising/forward.py"),  # plain training losses
}
FILES = sorted(SOURCE.rglob("*.py"))
PRIVATE_FILES = {path.stem for path in FILES} | {path.parent.name for path in FILES}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path: Path) -> list[str]:
    """Every module a file imports, inside functions too."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_arrows_point_one_way(path):
    here = room(path)
    if here == "__init__":
        return
    assert here in ORDER, f"{here} is a room that the plan does not know"
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("experiments", "benchmarks", "tests"), f"{path} imports {name}"
        if parts[0] == "bilevax" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(here), f"{path} imports {name}, which lies above it"


def test_no_circles_of_files():
    """Between files that are no `__init__.py`; imports inside functions count too."""
    modules = {".".join(("bilevax", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in FILES}
    modules = {name: path for name, path in modules.items() if path.stem != "__init__"}
    known = {
        name: {module for found in imports(path) if (module := found.rpartition(".")[0]) in modules}
        for name, path in modules.items()
    }
    graphlib.TopologicalSorter(known).prepare()  # raises CycleError, which names the circle


def test_experiments_do_not_know_benchmarks():
    for path in sorted((SOURCE.parents[1] / "experiments").rglob("*.py")):
        assert not any(name.partition(".")[0] == "benchmarks" for name in imports(path)), path


@pytest.mark.parametrize("path", sorted((SOURCE / "solvers").glob("*.py")), ids=lambda p: p.name)
def test_solvers_do_not_know_each_other(path):
    if path.name == "__init__.py":
        return
    concrete = {p.stem for p in (SOURCE / "solvers").glob("[!_]*.py")} - {"base"}
    for name in imports(path):
        assert not any(name.startswith(f"bilevax.solvers.{other}") for other in concrete), f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((SOURCE / "loop").glob("*.py")), ids=lambda p: p.name)
def test_the_loop_knows_no_concrete_solver(path):
    for name in imports(path):
        if name.startswith("bilevax.solvers"):
            assert name.startswith("bilevax.solvers.base"), name


APPLICATIONS = sorted(p for p in (SOURCE / "applications").iterdir() if p.is_dir() and p.name != "__pycache__")


@pytest.mark.parametrize("folder", APPLICATIONS, ids=lambda p: p.name)
def test_applications_do_not_know_each_other(folder):
    others = {p.name for p in APPLICATIONS} - {folder.name}
    for path in folder.glob("*.py"):
        for name in imports(path):
            assert not any(name.startswith(f"bilevax.applications.{other}") for other in others), f"{path}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_private_name_crosses_files(path):
    for name in imports(path):
        last = name.rpartition(".")[2]
        if name.startswith("bilevax.") and last.startswith("_"):
            assert last in PRIVATE_FILES, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_derivatives_differentiates(path):
    if str(path.relative_to(SOURCE)) in MAY_DIFFERENTIATE:
        return
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax":
            assert node.attr not in DIFFERENTIATION, (
                f"{path}:{node.lineno} calls jax.{node.attr}; derivatives of a problem are taken in derivatives.py"
            )


def test_import_is_light_and_changes_nothing():
    code = """
import jax, sys
before = {k: getattr(jax.config, k) for k in ("jax_enable_x64", "jax_debug_nans", "jax_default_matmul_precision")}
import bilevax
bilevax.solve
after = {k: getattr(jax.config, k) for k in before}
assert before == after, (before, after)
bilevax.Progress(), bilevax.Checkpoint("x"), bilevax.TensorBoard("y")  # import what they need when they are used
heavy = "matplotlib pandas sklearn scipy.optimize typer rich tqdm tensorboardX orbax lineax equinox flax PIL".split()
found = [m for m in heavy if m in sys.modules]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_root_is_empty_until_a_name_is_used():
    code = """
import sys
import bilevax
assert not {"jax", "numpy"} & set(sys.modules)
assert bilevax.derivatives is sys.modules["bilevax.derivatives"]
assert "bilevax._api" not in sys.modules
bilevax.Penalty
assert "bilevax.nn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_of_the_root():
    public: dict = {}
    exec("from bilevax import *", public)
    names = {name for name in public if not name.startswith("_")}
    assert {"solve", "Problem", "InputError", "Penalty", "recommend"} <= names
    assert names == set(bilevax.__all__)
    assert names < set(dir(bilevax))
    assert not names & {path.stem for path in SOURCE.iterdir()}  # a module would be found in its place
    assert pickle.loads(pickle.dumps(bilevax.InputError("no."))).args == ("no.",)
    with pytest.raises(AttributeError, match=r"^module 'bilevax' has no attribute 'Penalties'$"):
        bilevax.Penalties  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Penalties' from 'bilevax'"):
        exec("from bilevax import Penalties")

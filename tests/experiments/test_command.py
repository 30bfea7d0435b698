"""`python -m experiments`: what it lists, what it passes on, what it refuses."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from experiments import __main__ as command
from experiments.catalog import EXPERIMENTS, Experiment
from experiments.common.settings import Settings

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return CliRunner().invoke(command.app, [str(a) for a in arguments])


def refused(*arguments) -> str:
    """The sentence with which bad input is refused."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.strip().endswith(".")
    return result.stderr


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """What two stand-ins for experiments were run with."""
    found: list[Settings] = []
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    for name in ("figure1", "table4"):
        monkeypatch.setitem(EXPERIMENTS, name, Experiment("A title", "stand_in"))
    monkeypatch.setitem(sys.modules, "stand_in", SimpleNamespace(run=found.append))
    monkeypatch.chdir(tmp_path)
    return found


def test_the_list_names_all_and_imports_no_jax():
    code = """
import runpy, sys
sys.argv = ["experiments", "--list"]
try:
    runpy.run_module("experiments", run_name="__main__")
except SystemExit as end:
    assert not end.code
assert not {"jax", "numpy", "bilevax"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert set(EXPERIMENTS) <= listed
    assert "Figure 1: convergence on examples 1 and 2" in done.stdout


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_catalog_names_the_module_of_the_title(name):
    spec = importlib.util.find_spec(EXPERIMENTS[name].module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    assert f'EXPERIMENTS["{name}"].title' in text
    assert "\ndef run(settings: Settings)" in text or "\nrun = " in text


def test_options_reach_the_experiment(seen, tmp_path):
    assert run("table4", "--quick", "--seeds", 3, "--solver", "Penalty").exit_code == 0
    assert run("table4", "--dataset", "mnist", "--noise", 25, "--out", tmp_path / "here").exit_code == 0
    assert run("figure1", "--medium", "--way", 5, "--shot", 1, "--features", "f.npz").exit_code == 0
    assert seen == [
        Settings(quick=True, seeds=3, solver="Penalty", out=Path("out/table4")),
        Settings(dataset="mnist", noise=25, out=tmp_path / "here"),
        Settings(medium=True, way=5, shot=1, features=Path("f.npz"), out=Path("out/figure1")),
    ]
    assert (tmp_path / "here").is_dir()


def test_refusals(seen, tmp_path):
    for arguments in (["figure9"], []):
        assert "Pass one of figure1, table4." in refused(*arguments)
    assert "Choose one" in refused("table4", "--quick", "--medium")
    assert run("table4", "--noise", 101).exit_code == 2
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in refused("table4", "--out", tmp_path / "file")
    assert seen == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_studies_share_through_common_alone(path):
    others = {p.name for p in path.parents[1].iterdir() if (p / "__init__.py").is_file()} - {path.parent.name, "common"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("experiments."):
            assert node.module.split(".")[1] not in others, f"{path} imports {node.module}"

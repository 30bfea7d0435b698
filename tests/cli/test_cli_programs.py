"""What a command loads before it has work, and the compiled programs that it keeps between two runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bilevax
from bilevax.cli import _programs

CODE = """
import sys
from bilevax.cli import _programs
from bilevax.cli._printing import prepare
prepare()
_programs.SHORTEST = 0.0
_programs.keep_programs()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
found = jax.jit(lambda x: jnp.linalg.solve(jnp.outer(x, x) + jnp.eye(5), jnp.sin(x)))(jnp.arange(5.0))
print(found.tolist(), sum("cache_hits" in name for name in hits))
"""


def run(cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_programs_are_kept_and_a_damaged_one_costs_a_warning(tmp_path):
    values, hits = run(tmp_path).stdout.rsplit(" ", 1)
    assert int(hits) == 0
    again = run(tmp_path)
    assert again.stdout.rsplit(" ", 1)[0] == values
    assert int(again.stdout.rsplit(" ", 1)[1]) >= 1
    assert again.stderr == ""
    entries = sorted((tmp_path / "bilevax" / "programs").glob("*-cache"))
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    damaged = run(tmp_path)
    assert damaged.stdout.rsplit(" ", 1)[0] == values
    assert "Traceback" not in damaged.stderr
    assert all(
        line.startswith("Warning: Error reading persistent compilation cache") for line in damaged.stderr.splitlines()
    )


@pytest.fixture
def variables(monkeypatch, tmp_path):
    """The environment of a user who has set nothing about the cache of JAX."""
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path)})
    return os.environ


def test_a_program_without_its_time_of_use_is_removed(tmp_path, variables):
    """It would stop JAX from removing others."""
    programs = tmp_path / "bilevax" / "programs"
    programs.mkdir(parents=True)
    for name in ("kept-cache", "kept-atime", "lost-cache"):
        (programs / name).write_bytes(b"content")
    _programs.keep_programs()
    assert variables["JAX_COMPILATION_CACHE_DIR"] == str(programs)
    assert {path.name for path in programs.glob("*-*")} == {"kept-cache", "kept-atime"}


def test_nothing_is_kept_elsewhere(tmp_path, variables):
    (tmp_path / "file").write_text("no folder")
    for cache, own in ((tmp_path / "file", None), (tmp_path / "unused", str(tmp_path / "own"))):
        variables |= {"XDG_CACHE_HOME": str(cache)} | ({} if own is None else {"JAX_COMPILATION_CACHE_DIR": own})
        before = dict(variables)
        _programs.keep_programs()
        assert variables == before
    assert not (tmp_path / "unused").exists()


def test_importing_sets_nothing():
    code = "import jax, bilevax.cli; assert not jax.config.jax_compilation_cache_dir"
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


QUICK = """
import sys
sys.argv = ["bilevax", *{arguments}]
from bilevax.cli import main
try:
    main()
except SystemExit as error:
    assert error.code == {code}, error.code
heavy = "jax jaxlib numpy scipy sklearn pandas optax jaxtyping matplotlib tqdm".split()
assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--help", 0, "Find the wrong labels"),
        ("--version", 0, f"bilevax {bilevax.__version__}"),
        ("denoise --help", 0, "--trusted-column"),
        ("predict --help", 0, "MODEL_DIR"),
        ("tune --help", 0, "--exposure"),
        ("audit --help", 0, "--budget"),
        ("fewshot --help", 0, "--shot"),
        ("", 2, "Find the wrong labels"),
        ("denoize", 2, "No such command"),
        ("tune --folds 1", 2, "--folds"),
        ("tune --trials 3", 2, "--trials is an option of the comparison"),
        ("tune missing.csv", 2, "FILE (missing.csv) cannot be opened"),
        ("denoise --above 0.5", 2, "--above is the probability of --apply auto"),
        ("audit --hidden 9", 2, "--hidden is the width of the layer"),
        ("fewshot --strict", 2, "--strict is given without FOLDER"),
    ],
)
def test_help_and_refused_options_do_not_wait_for_jax(tmp_path, arguments, code, said):
    done = subprocess.run(
        [sys.executable, "-c", QUICK.format(arguments=arguments.split(), code=code)],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "100"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout + done.stderr

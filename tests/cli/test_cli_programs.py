"""Compiled programs of the commands: kept between two runs, and harmless where the cache is damaged."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bilevax.cli import _programs

CODE = """
import sys
import jax, jax.numpy as jnp
from bilevax.cli import _programs
from bilevax.cli._printing import prepare
prepare()
_programs.SHORTEST = 0.0
_programs.keep_programs()
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
def folder_of_jax():
    """Sets the folder of compiled programs in this process, where nothing may be compiled before it is set back."""
    names = "jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda folder: jax.config.update(names[0], folder)
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_program_without_its_time_of_use_is_removed(tmp_path, monkeypatch, folder_of_jax):
    """It would stop JAX from removing others."""
    folder_of_jax(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    programs = tmp_path / "bilevax" / "programs"
    programs.mkdir(parents=True)
    for name in ("kept-cache", "kept-atime", "lost-cache"):
        (programs / name).write_bytes(b"content")
    _programs.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(programs)
    assert {path.name for path in programs.glob("*-*")} == {"kept-cache", "kept-atime"}


def test_nothing_is_kept_elsewhere(tmp_path, monkeypatch, folder_of_jax):
    (tmp_path / "file").write_text("no folder")
    for cache, own in ((tmp_path / "file", None), (tmp_path / "unused", str(tmp_path / "own"))):
        folder_of_jax(own)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        _programs.keep_programs()
        assert jax.config.jax_compilation_cache_dir == own
    assert not (tmp_path / "unused").exists()


def test_importing_sets_nothing():
    code = "import jax, bilevax.cli; assert not jax.config.jax_compilation_cache_dir"
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

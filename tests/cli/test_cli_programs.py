"""Compiled programs of the commands: kept between two runs, and harmless where the cache is damaged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), **more}
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)


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
    # Without its time of use, an entry is removed and written again.
    for stamp in (tmp_path / "bilevax" / "programs").glob("*-atime"):
        stamp.unlink()
    assert run(tmp_path).stderr == ""
    assert int(run(tmp_path).stdout.rsplit(" ", 1)[1]) >= 1


def test_nothing_is_kept_elsewhere(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert run(tmp_path / "file").stderr == ""
    run(tmp_path / "unused", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("name", ["bilevax", "bilevax.cli"])
def test_importing_sets_nothing(name):
    code = f"import jax, {name}; assert not jax.config.jax_compilation_cache_dir"
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

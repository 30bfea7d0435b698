"""Results as tables and as files."""

import dataclasses
import functools
import json
import sys
import zipfile
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import Alternating, Inequality, InputError, Penalty, Problem, Result, Status, Vectorized, solve
from bilevax.solvers.base import Info, State


class Weights(NamedTuple):
    a: jax.Array
    b: dict


PROBLEM = Problem(
    lambda u, v, data: jnp.sum((v.a - 1.0) ** 2),
    lambda u, v, data: jnp.sum((v.a - u["x"][0]) ** 2) + sum(jnp.sum(x**2) for x in jax.tree.leaves(v.b)),
    constraints=[Inequality(lambda u, v, data: u["x"][0] - 0.5)],
)
START = (
    {"x": [jnp.zeros(2)], "y": (jnp.ones(()),)},
    Weights(jnp.zeros(2), {"w": jnp.ones((1, 3), jnp.bfloat16), "z": jnp.zeros(1, jnp.float32)}),
)


@functools.cache
def solved(steps=12):
    solver = Penalty(upper_optimizer=optax.adam(0.1), stage_steps=4)
    return solve(solver, PROBLEM, *START, steps=steps, key=jax.random.key(0))


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def test_a_result_comes_back_with_equal_bits(tmp_path):
    result, path = solved(), tmp_path / "new" / "result.npz"
    result.save(path)
    again = Result.load(path)
    assert (again.status, again.steps) == (Status.FINISHED, 12)
    for name in ("u", "v", "history", "state"):
        assert bits(getattr(again, name)) == bits(getattr(result, name)), name
    assert jax.tree.structure(again.u) == jax.tree.structure(result.u)
    assert isinstance(again.history, Info)
    assert isinstance(again.state, State)
    assert again.history.extra["gamma"][-1] == result.history.extra["gamma"][-1]
    assert (type(again.v).__name__, again.v._fields) == ("Weights", ("a", "b"))
    np.testing.assert_array_equal(again.state.memory.constraint_nu[0], result.state.memory.constraint_nu[0])
    own = jax.tree.unflatten(jax.tree.structure(result.v), jax.tree.leaves(again.v))
    assert isinstance(own, Weights)
    assert jax.tree.structure(Result.load(path).v) == jax.tree.structure(again.v)


@pytest.mark.slow
def test_containers_of_other_libraries(tmp_path):
    module = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    params = eqx.filter(module, eqx.is_array)
    tree = {"module": params, "key": jax.random.key(7), 3: [None, (), optax.EmptyState()]}
    result = dataclasses.replace(solved(1), v=params, u=(tree["key"], tree[3]))
    result.save(tmp_path / "r")
    again = Result.load(tmp_path / "r")
    assert bits(again.v) == bits(params)
    back = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(again.v))
    np.testing.assert_array_equal(back.weight, module.weight)
    assert jax.random.bits(again.u[0]) == jax.random.bits(tree["key"])
    assert again.u[1][:2] == [None, ()]
    numbers = dataclasses.replace(result, u={2: jnp.ones(1), 10: jnp.zeros(1)}, v={"a": 1.5})
    numbers.save(tmp_path / "r")  # over an earlier result
    again = Result.load(tmp_path / "r")
    assert list(again.u) == [2, 10]
    assert float(again.v["a"]) == 1.5
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_paths_that_cannot_be_used(tmp_path):
    result = solved(1)
    other = tmp_path / "data.npz"
    np.savez(other, x=np.ones(2))
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    (tmp_path / "file").write_text("")
    for path, sentence in (
        (other, "which exists and is not a saved Result. It is not overwritten"),
        (text, "which exists and is not a saved Result"),
        (tmp_path, "which is a folder. Name a file"),
        (tmp_path / "file" / "r.npz", "which cannot be written"),
        ("s3://bucket/r.npz", "a URL"),
        (3, "must be a path"),
    ):
        with pytest.raises(InputError, match=f"^Result.save: path is .*{sentence}"):
            result.save(path)
    assert text.read_text() == "mine"
    for path, sentence in (
        (tmp_path / "none", "there is no such file"),
        (tmp_path, "which is a folder"),
        (text, "which is damaged or was not written by Result.save"),
        (other, "was not written by Result.save"),
        (tmp_path / "file", "was not written by Result.save"),
    ):
        with pytest.raises(InputError, match=f"^Result.load: path is .*{sentence}"):
            Result.load(path)


def changed(about):
    """Ways to damage the description of a file."""
    deeper = json.loads(json.dumps(about))
    deeper["structure"]["v"]["fields"] = ["a", "import os"]
    yield {**about, "bilevax_result": 99}
    yield {**about, "status": "EXPLODED"}
    yield {name: x for name, x in about.items() if name != "structure"}
    yield deeper
    yield {**about, "structure": {**about["structure"], "history": {"kind": "list", "parts": []}}}
    yield {**about, "structure": {**about["structure"], "u": {"kind": "object", "parts": []}}}
    yield []


def test_damaged_files(tmp_path):
    path = tmp_path / "r.npz"
    solved(1).save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:-30], whole[:middle], whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            Result.load(path)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(arrays["about"].tobytes())
    for damaged in changed(about):
        np.savez(path, **arrays | {"about": np.frombuffer(json.dumps(damaged).encode(), np.uint8)})
        with pytest.raises(InputError, match="damaged"):
            Result.load(path)
    np.savez(path, **{name: x for name, x in arrays.items() if name != "0"})
    with pytest.raises(InputError, match="damaged"):
        Result.load(path)
    np.savez(path, **arrays | {"0": np.array([{}], object)})  # a pickle
    with pytest.raises(InputError, match="damaged"):
        Result.load(path)


def test_sixty_four_bits_need_x64(tmp_path):
    solved(1).save(tmp_path / "r")
    with jax.enable_x64(False), pytest.raises(InputError, match=r"u of .* holds float64. Call jax.config.update"):
        Result.load(tmp_path / "r")


@pytest.mark.slow
def test_the_file_before_stays_if_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "r.npz"
    solved(1).save(path)
    before = path.read_bytes()

    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        solved(2).save(path)
    assert path.read_bytes() == before
    assert zipfile.is_zipfile(path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_result_is_not_a_checkpoint():
    result = solved(1)
    with pytest.raises(InputError, match=r"resume is a Result. Pass a callback of the earlier solve"):
        solve(Penalty(), PROBLEM, *START, steps=1, key=jax.random.key(0), resume=result)


def test_a_table_of_the_history():
    pytest.importorskip("pandas")
    result = solved()
    frame = result.to_frame()
    assert frame.index.name == "step"
    assert frame.index.tolist() == list(range(1, 13))
    assert frame["upper_loss"].tolist() == result.history.upper_loss.tolist()
    assert {"stage", "gamma", "constraint_violation", "multiplier_norm"} < set(frame.columns)
    assert frame["stage"].dtype.kind == "i"


def test_a_table_of_members():
    pytest.importorskip("pandas")
    problem = Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))
    starts = jnp.array([[0.0], [5.0], [1e200]])
    result = solve(Vectorized(Alternating()), problem, starts, starts, steps=4, key=jax.random.key(0))
    frame = result.to_frame()
    assert frame.index.names == ["step", "member"]
    assert frame.loc[(3, 1), "upper_loss"] == result.history.upper_loss[2, 1]
    assert frame["upper_loss"].unstack("member").shape == (4, 3)
    assert frame.xs(2, level="member")["upper_loss"].isna().all() == np.isnan(result.history.upper_loss[:, 2]).all()


def test_columns_of_arrays_and_of_taken_names():
    pytest.importorskip("pandas")
    loss = np.arange(3.0)
    extra = {"m": np.arange(6.0).reshape(3, 2), "step": loss, "upper_loss": -loss, "deep": {"x": loss}}
    frame = dataclasses.replace(solved(1), history=Info(loss, loss, loss, loss, extra)).to_frame()
    assert frame["m[1]"].tolist() == [1, 3, 5]
    assert frame["extra/upper_loss"].tolist() == [0, -1, -2]
    assert {"extra/step", "deep/x"} < set(frame.columns)
    empty = dataclasses.replace(solved(1), history=Info(*[np.zeros(0)] * 4, {})).to_frame()
    assert empty.shape == (0, 4)


def test_a_table_needs_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"Result.to_frame needs the package pandas.*pip install 'bilevax\[apps\]'"):
        solved(1).to_frame()

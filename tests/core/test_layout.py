"""Several devices and several processes give what one device gives."""

import os
import re
import socket
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from jax.sharding import Mesh, PartitionSpec

import bilevax as bx
from bilevax import InputError
from bilevax.loop.layout import over
from bilevax.loop.placement import placed, placed_source
from bilevax.loop.stretch import Carry, stretch

SAMPLES, CLEAN, FEATURES, CLASSES, HIDDEN = 160, 43, 6, 3, 4
STEPS = 12
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(SAMPLES, FEATURES)), rng.integers(0, CLASSES, SAMPLES)
X_CLEAN, Y_CLEAN = rng.normal(size=(CLEAN, FEATURES)), rng.integers(0, CLASSES, CLEAN)
U = np.zeros(SAMPLES)
V = {"first": 0.3 * rng.normal(size=(FEATURES, HIDDEN)), "last": 0.3 * rng.normal(size=(HIDDEN, CLASSES))}
SOURCE = bx.Epochs(upper=(X_CLEAN, Y_CLEAN), lower=(X, Y), lower_size=40)


def losses(v, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jnp.tanh(x @ v["first"]) @ v["last"], y)


def upper_loss(u, v, samples):
    return jnp.mean(losses(v, *samples.data))


def lower_loss(u, v, samples):
    return jnp.mean(jax.nn.sigmoid(u[samples.index]) * losses(v, *samples.data)) + 0.1 * sum(
        jnp.sum(p**2) for p in jax.tree.leaves(v)
    )


PROBLEM = bx.Problem(upper_loss, lower_loss)
SPARSE = bx.Problem(
    upper_loss,
    lower_loss,
    regularizer=lambda u, v, mu: 1e-3 * sum(jnp.sum(jnp.sqrt(p**2 + mu**2)) for p in jax.tree.leaves(v)),
)
SOLVERS = {
    "Alternating": (bx.Alternating(lower_steps=2), PROBLEM),
    "Penalty": (bx.Penalty(lower_steps=2), PROBLEM),
    "Implicit": (bx.Implicit(lower_steps=2), PROBLEM),
    "ReverseMode": (bx.ReverseMode(lower_steps=2), PROBLEM),
    "SPNBO": (bx.SPNBO(lower_steps=2), SPARSE),
}


def run(name, mesh=None, **more):
    solver, problem = SOLVERS[name]
    return bx.solve(solver, problem, U, V, SOURCE, steps=STEPS, every=6, key=jax.random.key(0), mesh=mesh, **more)


@pytest.fixture(scope="module")
def alone():
    """The history of each solver on one device, solved once."""
    kept = {}

    def history(name):
        if name not in kept:
            kept[name] = run(name).history
        return kept[name]

    return history


def assert_same(history, other, tolerance=1e-10):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(history), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-14, err_msg=jax.tree_util.keystr(path))


# Four devices, and two, are in the tests below.
@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("name", SOLVERS)
def test_any_number_of_devices_gives_the_history_of_one(name, devices, alone):
    assert_same(run(name, over(devices)).history, alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_layout_gives_the_same_bits(name, alone):
    first, second = (run(name, over(4)) for _ in range(2))
    assert_same(first.history, alone(name))
    for a, b in zip(
        jax.tree.leaves((first.u, first.v, first.history)),
        jax.tree.leaves((second.u, second.v, second.history)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_u_and_v_may_lie_in_parts(alone):
    """With their optimizers' moments and multipliers."""
    mesh = over(2).mesh
    parts = bx.Layout(mesh, u=PartitionSpec("data"), v={"first": PartitionSpec(None, "data"), "last": PartitionSpec()})
    result = run("Penalty", parts)
    assert_same(result.history, alone("Penalty"))
    state = result.state
    assert state.u.sharding.spec == PartitionSpec("data")
    assert state.upper_opt[0].mu.sharding.spec == PartitionSpec("data")
    assert state.lower_opt[0].nu["first"].sharding.spec == PartitionSpec(None, "data")
    assert state.memory.nu["first"].sharding.spec == PartitionSpec(None, "data")
    assert state.memory.nu["last"].sharding.is_fully_replicated
    assert state.u.addressable_shards[0].data.shape == (SAMPLES // 2,)


@pytest.mark.slow
def test_a_stream_is_split_too():
    key = jax.random.split(jax.random.key(0))[0]
    stream = [SOURCE.at(i, key) for i in range(4)]

    def drop(batch):  # a data set that is used whole has to be of a size that can be split
        return bx.Batch(jax.tree.map(lambda x: x[:40], batch.upper), batch.lower)

    one, four = (
        bx.solve(
            bx.Alternating(lower_steps=2),
            PROBLEM,
            U,
            V,
            [drop(b) for b in stream],
            steps=4,
            key=jax.random.key(0),
            mesh=mesh,
        )
        for mesh in (None, over(4))
    )
    assert_same(four.history, one.history)


@pytest.mark.slow
def test_fresh_batches_per_move_are_split_within_each_move():
    source = bx.Minibatches((X_CLEAN, Y_CLEAN), (X, Y), lower_size=8, per_move=2)
    one, two = (
        bx.solve(bx.Penalty(lower_steps=2), PROBLEM, U, V, source, steps=4, key=jax.random.key(0), mesh=mesh)
        for mesh in (None, over(2).mesh)
    )
    assert_same(two.history, one.history)
    spec = over(2).of_batch(source.at(0, jax.random.key(0))).lower.data.data[0]
    assert spec == PartitionSpec(None, "data")


@pytest.mark.slow
def test_members_of_a_vectorized_lie_on_devices_of_their_own():
    problem = bx.Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))
    starts = jnp.arange(12.0).reshape(4, 3)
    parts = bx.Layout(over(4).mesh, u=PartitionSpec("data"), v=PartitionSpec("data"))
    one, four = (
        bx.solve(bx.Vectorized(bx.Penalty()), problem, starts, starts, steps=20, key=jax.random.key(0), mesh=mesh)
        for mesh in (None, parts)
    )
    assert_same(four.history, one.history)
    assert four.state.u.sharding.spec == PartitionSpec("data")


# --- the compiled program -------------------------------------------------------------------------------------------


def compiled(name, devices):
    solver, problem = SOLVERS[name]
    parts = over(devices)
    source = bx.Epochs((X_CLEAN[:40], Y_CLEAN[:40]), (X, Y), lower_size=40)  # sizes that the devices divide
    whole = parts.sharding(PartitionSpec())
    u, v = jax.tree.map(jnp.asarray, (U, V))
    state = solver.init(problem, u, v, source.at(0, jax.random.key(0)))
    form = parts.of_state(state, u, v)
    carry = Carry(placed(state, form), placed(jnp.asarray(True), whole))
    source, key = placed_source(source, parts), placed(jax.random.key(0), whole)
    shardings = tuple(jax.tree.leaves(form))
    return stretch.lower(solver, problem, 6, carry, source, key, 0, 6, shardings).compile().as_text()


def computations(text):
    """The lines of each computation of an HLO module, by its name."""
    found, name = {}, None
    for line in text.splitlines():
        if (start := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$", line)) is not None:
            name = start[1]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def entries(line):
    """How many entries the collective in a line of HLO yields."""
    shapes = re.findall(r"f64\[([\d,]*)\]", line.partition("all-reduce(")[0])
    return sum(int(np.prod([int(n) for n in shape.split(",") if n], initial=1)) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reductions"),
    [*(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("Implicit", "ReverseMode")), ("Penalty", 2)],
)
def test_a_lower_move_sums_over_devices_once_for_each_gradient(name, reductions):
    """Penalty's p is the whole gradient of g: it is summed before the product with p is, with the gradient of f."""
    text = compiled(name, 4)
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert not re.search(rf" {other}(-start)?\(", text)
    parts = computations(text)
    bodies = {match for line in text.splitlines() for match in re.findall(r"body=%?([\w.-]+)", line)}
    inner = [name for name in bodies if not any(" while(" in line for line in parts[name])]
    size = sum(x.size for x in V.values())
    counts = [sum(" all-reduce(" in line and entries(line) >= size for line in parts[name]) for name in inner]
    assert max(counts) == reductions, counts


# --- bad input ------------------------------------------------------------------------------------------------------


def refused(message, mesh=None, source=SOURCE, u=U):
    with pytest.raises(InputError, match=message):
        bx.solve(bx.Penalty(), PROBLEM, u, V, source, steps=1, key=jax.random.key(0), mesh=mesh)


def test_bad_layouts_are_refused_in_sentences():
    mesh = over(4).mesh
    refused("lower_size is 42, and cannot be split evenly over the 4 devices of .* Take a multiple of 4, say 44",
            mesh, bx.Epochs((X_CLEAN, Y_CLEAN), (X, Y), lower_size=42))  # fmt: skip
    refused(
        r"batch\.upper\.data\[0\] has 43 samples, which cannot be split evenly over the 4 devices",
        mesh,
        [SOURCE.at(0, jax.random.key(0))],
    )
    refused("PartitionSpecs for v does not match v", bx.Layout(mesh, v={"first": PartitionSpec()}))
    refused(r"axis 0 of v\['first'\] has 6 entries, and cannot be split evenly over 4 devices",
            bx.Layout(mesh, v={"first": PartitionSpec("data"), "last": PartitionSpec()}))  # fmt: skip
    refused("u has shape .160,., and its spec .* names 2 axes", bx.Layout(mesh, u=PartitionSpec(None, "data")))
    refused("names 'model', and the mesh has the axes .'data'.", bx.Layout(mesh, u=PartitionSpec("model")))
    refused("u holds 'data'. Give a jax.sharding.PartitionSpec", bx.Layout(mesh, u="data"))
    refused("mesh is 4, and must be", 4)
    with pytest.raises(InputError, match="none named 'data' to split the samples over"):
        bx.Layout(Mesh(np.asarray(jax.devices()), ("x",)))
    with pytest.raises(InputError, match="mesh is a str"):
        bx.Layout("all")
    with pytest.raises(InputError, match="9 devices are asked for, and there are 8"):
        over(9)
    with pytest.raises(InputError, match="devices is 0"):
        over(0)


@pytest.mark.slow  # 10 s
def test_the_commands_take_devices(tmp_path):
    from typer.testing import CliRunner

    from bilevax.cli import app

    for name, part in (("train", slice(0, 60)), ("clean", slice(60, 100))):
        np.savez(tmp_path / f"{name}.npz", X=X[part], y=np.argmax(X[part, :CLASSES], 1))
    files = [str(tmp_path / "train.npz"), "--trusted", str(tmp_path / "clean.npz")]
    arguments = ["denoise", *files, "--compare", "--steps", "3", "--out"]
    one = CliRunner().invoke(app, [*arguments, str(tmp_path / "one")])
    two = CliRunner().invoke(app, [*arguments, str(tmp_path / "two"), "--devices", "2"])
    assert (one.exit_code, two.exit_code) == (0, 0), two.output
    first, second = (pd.read_csv(tmp_path / name / "weights.csv").sort_values("row") for name in ("one", "two"))
    np.testing.assert_allclose(first.weight, second.weight, rtol=1e-8)
    many = CliRunner().invoke(app, [*arguments, str(tmp_path / "many"), "--devices", "64"])
    assert many.exit_code == 2
    assert "64 devices are asked for, and there are 8" in " ".join(many.output.split())


# --- several processes ----------------------------------------------------------------------------------------------

PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, time
    sys.path.insert(0, os.environ["TESTS"])
    import jax
    from bilevax.loop.layout import over
    from bilevax.loop.processes import join
    jax.config.update("jax_enable_x64", True)
    join(int(os.environ["DEVICES"]))
    import numpy as np
    import bilevax as bx
    import test_layout as t
    from bilevax import Checkpoint

    class Pause:
        def start(self, run): pass
        def finish(self, result): pass
        def visit(self, visit):
            if os.environ.get("KILLED") == str(jax.process_index()) and visit.step >= 6:
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)

    save = Checkpoint(os.environ["FOLDER"])
    solver, problem = t.SOLVERS[os.environ.get("SOLVER", "Penalty")]
    if "GAMMA" in os.environ:
        solver = bx.Penalty(lower_steps=2, gamma=float(os.environ["GAMMA"]))
    try:
        result = bx.solve(
            solver, problem, t.U, t.V, t.SOURCE, steps=int(os.environ["STEPS"]), every=3, key=jax.random.key(0),
            mesh=bx.Layout(over(int(os.environ["DEVICES"])).mesh, u=jax.sharding.PartitionSpec("data")),
            callbacks=[Pause(), save], resume=save,
        )
        np.save(os.environ["HISTORY"] + str(jax.process_index()), result.history.upper_loss)
    except (bx.InputError, bx.ProcessLostError) as error:
        print(type(error).__name__, error, flush=True)
        sys.stdout.flush()
        os._exit(3)
    """
)


def together(tmp_path, processes, folder, steps, devices=2, **differing):
    """Run PROGRAM in so many processes; exit codes and outputs."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ} | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "TESTS": os.path.dirname(__file__),
        "DEVICES": str(devices),
        "FOLDER": str(tmp_path / folder),
        "HISTORY": str(tmp_path / f"{folder}-{processes}-"),
        "STEPS": str(steps),
    }
    if processes > 1:
        common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
    started = []
    for i in range(processes):
        own = {"JAX_PROCESS_ID": str(i)} | {name: value[i] for name, value in differing.items() if value[i]}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                env=common | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return [process.returncode for process in started], outputs


@pytest.mark.parametrize("name", list(SOLVERS)[1:])
@pytest.mark.slow  # 25 s each
def test_two_processes_solve_as_one_and_continue_each_others_checkpoints(name, tmp_path, alone):
    both = {"SOLVER": [name, name]}
    codes, outputs = together(tmp_path, 2, "two", 6, **both)
    assert codes == [0, 0], outputs
    codes, outputs = together(tmp_path, 1, "one", 6, devices=1, **both)
    assert codes == [0], outputs
    first, second, single = (np.load(tmp_path / f"{name}.npy") for name in ("two-2-0", "two-2-1", "one-1-0"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, single, rtol=1e-10)
    # Each goes on with the other's save.
    codes, outputs = together(tmp_path, 1, "two", STEPS, devices=1, **both)
    assert codes == [0], outputs
    codes, outputs = together(tmp_path, 2, "one", STEPS, **both)
    assert codes == [0, 0], outputs
    for folder in ("two-1-0", "one-2-0"):
        history = np.load(tmp_path / f"{folder}.npy")
        assert len(history) == STEPS
        np.testing.assert_allclose(history, alone(name).upper_loss, rtol=1e-10)


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.slow  # 15 s each
def test_when_a_process_is_killed_the_other_says_so_and_both_can_resume(tmp_path, killed):
    began = time.perf_counter()
    codes, outputs = together(tmp_path, 2, "killed", 100_000, KILLED=[str(killed), str(killed)])
    assert codes[killed] == -9
    # Without the first process, which coordinates, JAX ends the others, and may be the sooner.
    ours = codes[1 - killed] == 3 and "goes on from the last save" in outputs[1 - killed]
    jax_s = killed == 0 and codes[1] == -6 and "most likely indicates that another task died" in outputs[1]
    assert ours or jax_s, (codes, outputs[1 - killed][-3000:])
    assert time.perf_counter() - began < 60
    assert together(tmp_path, 2, "killed", STEPS)[0] == [0, 0]
    assert len(np.load(tmp_path / "killed-2-0.npy")) == STEPS


@pytest.mark.slow
def test_processes_that_disagree_are_refused_before_the_first_step(tmp_path):
    codes, outputs = together(tmp_path, 2, "differ", 6, GAMMA=["1", "2"])
    assert codes == [3, 3], outputs
    for output in outputs:
        assert "The processes disagree on solver: process 1 differs from process 0" in output
    assert not (tmp_path / "differ").exists()

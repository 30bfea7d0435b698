"""Solves that are killed, interrupted, spoilt or refused, and what they resume to.

Run as a script, this file is the solve that the tests kill.
"""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax
from bilevax import (
    Alternating,
    Batch,
    Checkpoint,
    Epochs,
    Implicit,
    InputError,
    JsonLines,
    Minibatches,
    Penalty,
    Problem,
    Progress,
    ReverseMode,
    SaveError,
    Status,
    solve,
)

EVERY = 2
PAUSE = 0.02


def big_problem():
    """2.4 MB of state, so that a write takes a while; minibatches; a loss that draws from its key."""
    rng = np.random.default_rng(0)
    samples, features, outputs = 97, 20, 4
    x, y = rng.normal(size=(samples, features)), rng.normal(size=(samples, outputs))
    u = {"weights": jnp.zeros(samples), "more": jnp.asarray(rng.normal(size=100_000))}

    def upper_loss(u, v, batch):
        return jnp.mean((batch.data[0] @ v - batch.data[1]) ** 2) + jnp.mean((u["more"] - v[0, 0]) ** 2)

    def lower_loss(u, v, batch, key):
        kept = jax.random.bernoulli(key, 0.8, batch.data[0].shape)
        weight = jax.nn.sigmoid(u["weights"][batch.index])[:, None]
        return jnp.mean(weight * (jnp.where(kept, batch.data[0], 0.0) @ v - batch.data[1]) ** 2)

    solver = Penalty(optax.adam(1e-2), optax.adam(1e-3), lower_steps=2, stage_steps=7)
    source = Epochs((x[:20], y[:20]), (x, y), upper_size=7, lower_size=10)
    return solver, Problem(upper_loss, lower_loss, random_lower=True), u, jnp.zeros((features, outputs)), source


def big_solve(steps, **options):
    return solve(*big_problem(), steps=steps, every=EVERY, key=jax.random.key(5), **options)


def save_bits(path, result):
    leaves = jax.device_get(jax.tree.leaves((result.u, result.v, result.state, result.history)))
    beside = path.with_suffix(".new.npz")
    np.savez(beside, *leaves)
    beside.replace(path)


def main(folder, steps):
    """Solve until done, from wherever the last call came to."""
    jax.config.update("jax_enable_x64", True)
    folder = Path(folder)
    save = Checkpoint(folder / "checkpoints")

    def tell(visit):
        print(visit.step, flush=True)
        time.sleep(PAUSE)

    callbacks = [save, JsonLines(folder / "log.jsonl"), tell]
    try:
        result = big_solve(steps, callbacks=callbacks, resume=save)
    except KeyboardInterrupt as interrupt:
        print(interrupt, flush=True)
        sys.exit(130)
    save_bits(folder / "end.npz", result)


class Run:
    """The script in a process of its own."""

    def __init__(self, folder, steps, cache=None):
        environment = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder), str(steps)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_a_visit(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return int(line)

    def send(self, number):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def finish(self):
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        return out, err


def assert_same_bits(path, reference):
    with np.load(path) as found, np.load(reference) as wanted:
        assert found.files == wanted.files
        for name in wanted.files:
            assert found[name].dtype == wanted[name].dtype
            assert found[name].tobytes() == wanted[name].tobytes(), name


def kill(folder, steps, pause, cache=None):
    """Kill a solve with SIGKILL so long after its first visit. Returns the step it began at, and whether it wrote."""
    run = Run(folder, steps, cache)
    begun = run.wait_for_a_visit() - EVERY
    time.sleep(pause)
    code, _, err = run.send(signal.SIGKILL)
    assert code == -signal.SIGKILL, "the solve ended before it was killed: give it more steps"
    assert err == ""
    return begun, any(p.name.startswith(".bilevax-") for p in (folder / "checkpoints").iterdir())


def finish(folder, steps, cache=None):
    """Let a solve end. Returns the step it began at."""
    run = Run(folder, steps, cache)
    begun = run.wait_for_a_visit() - EVERY
    _, err = run.finish()
    assert err == ""
    return begun


def uninterrupted(folder, steps):
    result = big_solve(steps)
    save_bits(folder / "whole.npz", result)
    return folder / "whole.npz"


def saved_steps(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def log_steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_killed_then_interrupted_it_ends_with_the_same_bits(tmp_path):
    """SIGKILL, then Ctrl-C, which keeps the last step. Programs are kept for the starts that follow the first."""
    cache, saves = tmp_path / "cache", tmp_path / "checkpoints"
    run = Run(tmp_path, 160, cache)
    assert run.wait_for_a_visit() == EVERY
    while not saved_steps(saves):  # on a busy machine the first save is long after the first visit
        assert run.process.poll() is None
        time.sleep(0.02)
    assert run.send(signal.SIGKILL)[0] == -signal.SIGKILL
    run = Run(tmp_path, 160, cache)
    assert run.wait_for_a_visit() > EVERY
    time.sleep(0.2)
    code, out, err = run.send(signal.SIGINT)
    assert (code, err) == (130, "")
    *steps, message = out.splitlines()
    assert "interrupted from the keyboard" in message
    assert (saves / steps[-1]).is_dir()
    assert finish(tmp_path, 160, cache) == int(steps[-1])
    assert_same_bits(tmp_path / "end.npz", uninterrupted(tmp_path, 160))
    assert log_steps(tmp_path / "log.jsonl") == list(range(EVERY, 161, EVERY))
    assert max(saved_steps(saves)) == 160


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path):
    moments = random.Random(20)
    begun, torn = zip(*(kill(tmp_path, 800, moments.uniform(0.0, 0.8)) for _ in range(10)), strict=True)
    begun = [*begun, finish(tmp_path, 800)]
    print(f"resumed from {begun}; {sum(torn)} of 10 kills left a half-written save")
    assert begun == sorted(begun)
    assert len(set(begun)) >= 8
    assert any(torn)
    assert_same_bits(tmp_path / "end.npz", uninterrupted(tmp_path, 800))
    assert log_steps(tmp_path / "log.jsonl") == list(range(EVERY, 801, EVERY))


def upper_loss(u, v, target):
    return jnp.sum((v - target) ** 2)


def lower_loss(u, v, _):
    return jnp.sum((v - u) ** 2) + 0.1 * jnp.sum(v**4)


PROBLEM = Problem(upper_loss, lower_loss)
TARGET = Batch(upper=jnp.array([1.0, -1.0, 0.5]))


def small(steps=40, solver=None, problem=PROBLEM, n=3, seed=0, batches=TARGET, start=0.1, **options):
    u, v = jnp.full(n, start), jnp.full(n, 0.2)
    if n != 3:
        batches = Batch(upper=jnp.ones(n))
    return solve(
        solver or Penalty(), problem, u, v, batches, steps=steps, every=10, key=jax.random.key(seed), **options
    )


def refusal(**options):
    """(the refusal, None), or (None, the result)."""
    try:
        return None, small(**options)
    except InputError as error:
        return str(error), None


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_steps_already_taken_are_not_taken_again(tmp_path):
    save = Checkpoint(tmp_path)
    first = small(callbacks=[save], resume=save)
    visits = []
    again = small(callbacks=[save, visits.append], resume=save)
    assert visits == []
    assert (again.status, again.steps) == (Status.FINISHED, 40)
    same((again.state, again.history), (first.state, first.history))
    fewer = small(steps=20, callbacks=[save], resume=save)
    assert fewer.steps == 40


def test_the_newest_saves_are_kept(tmp_path):
    small(steps=100, callbacks=[Checkpoint(tmp_path, every=1, keep=3), lambda visit: time.sleep(0.3)])
    names = saved_steps(tmp_path)
    assert len(names) == 3
    assert names[-1] == 100


def test_frequent_visits_do_not_wait_for_writes(tmp_path):
    save = Checkpoint(tmp_path, keep=10_000)
    start = Penalty(), PROBLEM, jnp.ones(3), jnp.ones(3), TARGET
    result = solve(*start, steps=500, every=1, key=jax.random.key(0), callbacks=[save])
    names = saved_steps(tmp_path)
    assert 1 < len(names) < 400
    assert names[-1] == result.steps == 500


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory):
    """A directory with the saves of steps 20 and 30."""
    save = Checkpoint(tmp_path_factory.mktemp("two") / "saves", keep=5)
    small(steps=20, callbacks=[save])
    small(steps=30, callbacks=[save], resume=save)
    assert {20, 30} <= set(saved_steps(save.directory))
    return save.directory


@pytest.fixture
def saved(tmp_path, two_saves):
    """A copy of these saves."""
    shutil.copytree(two_saves, tmp_path / "saves")
    return Checkpoint(tmp_path / "saves", keep=5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": 4}, r"other shapes or another source of batches: it has 'state.u: float64\[3\]', .*float64\[4\]"),
        ({"batches": Batch(upper=TARGET.upper, lower=jnp.ones(2))}, "other shapes or another source"),
        ({"problem": Problem(upper_loss, lambda u, v, _: jnp.sum((v - u) ** 2))}, "another problem"),
        ({"problem": Problem(upper_loss, lower_loss, project_upper=jnp.abs)}, "another problem"),
        ({"solver": Penalty(lower_optimizer=optax.adam(2e-2))}, "another solver, or the same with other settings"),
        ({"solver": Penalty(lower_steps=11)}, "another solver, or the same with other settings"),
        ({"solver": Implicit()}, "other shapes"),
        ({"seed": 1}, "another key"),
        ({"batches": Batch(upper=TARGET.upper.at[2].set(0.4))}, "other data: the values of source.batch.upper differ"),
        ({"start": 0.3}, "other data: the values of u differ"),
    ],
)
def test_another_solve_is_refused(saved, changes, told):
    before = sorted(p for p in saved.directory.rglob("*"))
    with pytest.raises(InputError, match=told) as caught:
        small(callbacks=[saved], resume=saved, **changes)
    assert str(saved.directory) in str(caught.value)
    assert "step 30" in str(caught.value)
    assert sorted(p for p in saved.directory.rglob("*")) == before


@pytest.mark.parametrize("kind", ["labels", "stream", "keys"])
def test_other_data_of_the_same_shapes_are_refused(tmp_path, kind):
    """Labels that were corrected, say: the old answer would be handed out as the new."""
    x, labels = np.ones((6, 3)), np.arange(6)

    def batches(y):
        if kind == "stream":
            return itertools.repeat(Batch(upper=(x[:, 0], y)), 40)
        if kind == "keys":
            return Batch(upper=(jax.random.split(jax.random.key(0), 6), y))
        return Minibatches((x, y), np.zeros(1), upper_size=2)

    save = Checkpoint(tmp_path)
    # A solver that is compiled in a third of the time that Penalty takes: the refusal is the same.
    problem = Problem(lambda u, v, b: jnp.mean(v) * jnp.mean((b.data if kind == "labels" else b)[1]), lower_loss)
    same_solve = {"solver": Alternating(), "problem": problem, "callbacks": [save], "resume": save}
    small(batches=batches(labels), **same_solve)
    with pytest.raises(InputError, match=r"other data: the values of (the first batch|source).*upper\[1\] differ"):
        small(batches=batches(labels[::-1].copy()), steps=50, **same_solve)
    assert small(batches=batches(jnp.asarray(labels)), **same_solve).steps == 40


def test_an_array_that_a_loss_closes_over_belongs_to_the_problem(tmp_path):
    def problem(weights):
        return Problem(upper_loss, lambda u, v, _: jnp.sum(weights * (v - u) ** 2))

    save, solver = Checkpoint(tmp_path), Alternating()
    small(solver=solver, problem=problem(jnp.arange(1.0, 4.0)), callbacks=[save])
    with pytest.raises(InputError, match="another problem"):
        small(solver=solver, problem=problem(jnp.arange(2.0, 5.0)), resume=save)
    assert small(solver=solver, problem=problem(jnp.arange(1.0, 4.0)), resume=save).steps == 40


def test_another_version_of_jax_is_named(saved, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "9.8.7")
    with pytest.raises(InputError, match=r"another problem \(or only JAX's version: .* this is 9.8.7"):
        small(resume=saved)


def test_without_resume_a_directory_in_use_is_refused(saved):
    with pytest.raises(
        InputError, match=r"already holds step 30 .* starts from step 0. Pass the Checkpoint as resume="
    ):
        small(callbacks=[saved])


def test_a_damaged_save_is_passed_over_for_the_one_before(saved):
    """Whichever of its files is lost or cut short; the solve takes the steps between again, to the same bits."""
    newest, whole = saved.directory / "30", small()
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for spoil in (lambda path=path: path.unlink(), lambda path=path: os.truncate(path, path.stat().st_size // 2)):
            spoil()
            if path.name == ".bilevax" or path.exists():
                with pytest.warns(UserWarning, match=r"30' (is cut|has lost) .* continues from step 20"):
                    result = small(resume=saved)
                same((result.state, result.history), (whole.state, whole.history))
            path.write_bytes(content)
    os.truncate(newest / "state.npz", 100)
    with pytest.warns(UserWarning, match=r"30' is cut short or damaged .* continues from step 20"):
        result = small(callbacks=[saved], resume=saved)
    same((result.state, result.history), (whole.state, whole.history))
    assert "30.damaged" in os.listdir(saved.directory)
    assert saved_steps(saved.directory)[-1] == 40


def test_a_solve_survives_a_full_disk(tmp_path):
    """The error at the end carries the result; once there is room, the same command goes on."""
    save, before = Checkpoint(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)

    def written(visit):
        while save._writer.busy():
            time.sleep(0.001)

    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.warns(UserWarning, match="step 10 could not"), pytest.raises(SaveError) as caught:
            small(callbacks=[save, written])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    same((caught.value.result.state, caught.value.result.history), (lambda r: (r.state, r.history))(small()))
    assert caught.value.result.steps == 40
    assert small(callbacks=[save], resume=save).steps == 40
    assert saved_steps(tmp_path)[-1] == 40


@pytest.mark.parametrize("callback", [Checkpoint, lambda path: JsonLines(path / "log.jsonl")])
def test_an_unwritable_place_is_refused_before_anything_runs(tmp_path, callback):
    (tmp_path / "file").write_text("a file, no folder")
    visits = []
    with pytest.raises(InputError, match="cannot be written"):
        small(callbacks=[visits.append, callback(tmp_path / "file" / "below")])
    assert visits == []


@pytest.mark.parametrize(
    "arguments",
    [{"every": 0}, {"keep": 0}, {"every": 1.5}, {"every": True}, {"keep": "2"}, {"keep": None}, {"every": -1}],
)
def test_counts_that_are_not_positive_are_refused(tmp_path, arguments):
    with pytest.raises(InputError, match="must be a positive integer"):
        Checkpoint(tmp_path / "unused", **arguments)
    assert not (tmp_path / "unused").exists()


def host_batches(n, seen=None):
    for i in range(n):
        if seen is not None:
            seen.append(i)
        yield Batch(upper=np.random.default_rng(i).normal(size=3))


def test_host_batches_are_wound_forward(tmp_path):
    save = Checkpoint(tmp_path)
    whole = small(batches=host_batches(40))
    small(steps=20, batches=host_batches(40), callbacks=[save])
    result = small(batches=host_batches(40), callbacks=[save], resume=save)
    assert result.status is Status.FINISHED
    same((result.state, result.history), (whole.state, whole.history))


@pytest.mark.parametrize("n", [20, 25])
def test_host_batches_that_run_out_are_told_and_saved(tmp_path, n):
    save = Checkpoint(tmp_path)
    result = small(batches=host_batches(n), callbacks=[save])
    assert (result.status, result.steps) == (Status.EXHAUSTED, n)
    assert (tmp_path / str(n)).is_dir()
    more = small(batches=host_batches(40), callbacks=[save], resume=save)
    same((more.state, more.history), (lambda r: (r.state, r.history))(small(batches=host_batches(40))))


def test_a_host_iterable_that_raises_leaves_its_saves(tmp_path):
    def broken():
        yield from host_batches(25)
        raise OSError("the disk is gone")

    save = Checkpoint(tmp_path)
    with pytest.raises(OSError, match="the disk is gone"):
        small(batches=broken(), callbacks=[save])
    assert max(saved_steps(tmp_path)) in (10, 20)
    result = small(batches=host_batches(40), callbacks=[save], resume=save)
    same(result.state, small(batches=host_batches(40)).state)


def test_a_value_not_finite_leaves_the_last_finite_state(tmp_path):
    """The batch of step 24 holds an infinity."""

    def batches():
        for i, batch in enumerate(host_batches(40)):
            yield Batch(upper=jnp.full(3, jnp.inf)) if i == 24 else batch

    save = Checkpoint(tmp_path)
    with pytest.raises(bilevax.SolveError, match=r"Step 25 of 40: .*NaN or an infinity") as caught:
        small(batches=batches(), callbacks=[save])
    result = caught.value.result
    assert (result.status, result.steps) == (Status.NON_FINITE, 24)
    assert len(result.history.upper_loss) == 24
    assert np.isfinite(result.v).all()
    same((result.u, result.v), (lambda r: (r.u, r.v))(small(steps=24, batches=host_batches(24))))
    assert (tmp_path / "24").is_dir()
    mended = small(batches=host_batches(40), callbacks=[save], resume=save)
    same((mended.state, mended.history), (lambda r: (r.state, r.history))(small(batches=host_batches(40))))


class Witness:
    """Raises in one of its methods, and tells what it saw."""

    def __init__(self, raises=None, at=0):
        self.raises, self.at, self.seen = raises, at, []

    def _met(self, what, step=0):
        self.seen.append(what)
        if what == self.raises and (what != "visit" or step >= self.at):
            raise RuntimeError(f"broken {what}")

    def start(self, run):
        self._met("start")

    def visit(self, visit):
        self._met("visit", visit.step)

    def finish(self, result):
        self.result = result
        self._met("finish")


@pytest.mark.parametrize("raises", ["start", "visit", "finish"])
def test_a_callback_that_raises_is_heard_and_the_others_finish(tmp_path, raises):
    one, bad, other, save = Witness(), Witness(raises, at=20), Witness(), Checkpoint(tmp_path)
    with pytest.raises(RuntimeError, match=f"broken {raises}"):
        small(callbacks=[save, one, bad, other])
    assert one.seen[-1] == bad.seen[-1] == "finish"
    assert other.seen == [] if raises == "start" else other.seen[-1] == "finish"
    assert (one.result is None) == (raises != "finish")
    if raises != "start":
        assert small(callbacks=[save], resume=save).steps == 40


def test_an_interrupt_hands_over_the_result_and_tells_callbacks(tmp_path):
    witness, save = Witness(), Checkpoint(tmp_path, every=100)

    def press(visit):
        if visit.step == 20:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"Step 20 of 40: .*interrupted from the keyboard") as caught:
        small(callbacks=[press, witness, save])
    result = caught.value.result  # type: ignore[attr-defined]
    assert (result.status, result.steps) == (Status.INTERRUPTED, 20)
    assert witness.result is result
    assert (tmp_path / "20").is_dir()
    same(small(resume=save).state, small().state)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_in_the_last_stretch_is_not_lost():
    """Or Ctrl-C could not end a row of short solves."""
    with pytest.raises(KeyboardInterrupt) as caught:
        small(steps=10, callbacks=[lambda visit: signal.raise_signal(signal.SIGINT)])
    assert caught.value.result.steps == 10  # type: ignore[attr-defined]


def test_a_second_ctrl_c_ends_at_once():
    def press(visit):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    witness = Witness()
    with pytest.raises(KeyboardInterrupt):
        small(callbacks=[witness, press])
    assert witness.result is None


def test_an_ignored_sigint_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert small(callbacks=[lambda visit: signal.raise_signal(signal.SIGINT)]).status is Status.FINISHED
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_vectorized_solves_resume(tmp_path):
    # One problem and one source for all three solves, which then share a compiled program.
    starts = jnp.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    source = bilevax.Stacked(Minibatches(jnp.arange(24.0).reshape(3, 4, 2) / 24, jnp.zeros((3, 4)), upper_size=2))
    problem = Problem(lambda u, v, b: jnp.mean((b.data - v) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))
    solver = bilevax.Vectorized(Alternating())

    def run(steps, **options):
        return solve(solver, problem, starts, starts, source, steps=steps, every=5, key=jax.random.key(3), **options)

    save = Checkpoint(tmp_path)
    run(10, callbacks=[save])
    resumed, whole = run(20, callbacks=[save], resume=save), run(20)
    same((resumed.state, resumed.history), (whole.state, whole.history))


def test_any_dtype_survives(tmp_path):
    """bfloat16 u, integer counters and float32 v in one state."""

    problem = Problem(
        lambda u, v, _: jnp.sum((v - 1) ** 2).astype(jnp.float32),
        lambda u, v, _: jnp.sum((v - u.astype(jnp.float32)) ** 2),
    )
    start = jnp.ones(3, jnp.bfloat16), jnp.ones(1, jnp.float32)

    def run(steps, **options):
        return solve(Alternating(), problem, *start, steps=steps, every=5, key=jax.random.key(0), **options)

    save = Checkpoint(tmp_path)
    run(10, callbacks=[save])
    resumed, whole = run(20, resume=save), run(20)
    assert resumed.u.dtype == jnp.bfloat16
    same((resumed.state, resumed.history), (whole.state, whole.history))


FINGERPRINTS = """
import hashlib, jax, jax.numpy as jnp
import bilevax
from bilevax.linear_solve import CG

class Seen(Exception):
    pass

class Looked:
    def load(self, fingerprint, state, info):
        raise Seen(hashlib.sha256(repr(tuple(fingerprint)).encode()).hexdigest())

problem = bilevax.Problem(
    lambda u, v, b, key: jnp.sum(jax.nn.relu(v - u) ** 2 * jax.random.uniform(key)),
    lambda u, v, b: jnp.sum(jax.nn.softplus(v - u)) + jnp.sum(v**2),
    random_upper=True,
)
for solver in (bilevax.Penalty(), bilevax.Implicit(linear_solve=CG()), bilevax.ReverseMode()):
    try:
        bilevax.solve(solver, problem, jnp.ones(2), jnp.ones(2), steps=1, key=jax.random.key(0), resume=Looked())
    except Seen as seen:
        print(seen)
"""


@pytest.mark.slow
def test_fingerprints_are_the_same_in_every_process(capsys):
    """In this one, and in one with another order of sets."""
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "8"}
    other = subprocess.run(
        [sys.executable, "-c", FINGERPRINTS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert other.returncode == 0, other.stderr
    exec(FINGERPRINTS, {})
    assert other.stdout.split() == capsys.readouterr().out.split()
    assert len(set(other.stdout.split())) == 3


def test_the_fingerprint_does_not_depend_on_what_ran_before():
    class Told:
        def load(self, fingerprint, state, info):
            self.fingerprint = fingerprint

    first, again = Told(), Told()
    solver = Penalty(lower_steps=3)
    small(solver=solver, resume=first)
    small(solver=ReverseMode(), callbacks=[Progress()])
    small(solver=solver, resume=again)
    assert first.fingerprint == again.fingerprint


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

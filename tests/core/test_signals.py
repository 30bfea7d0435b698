"""Ctrl-C and preemption: what ends a solve, when, and what is kept."""

import gc
import itertools
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import Alternating, Batch, Checkpoint, Problem, SolveInterrupted, SolveTerminated, Status, solve
from bilevax.loop.signals import INTERRUPT, PREEMPTION, deferred

PROBLEM = Problem(lambda u, v, target: jnp.sum((v - target) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))
TARGET = Batch(upper=np.ones(2))


def run(problem=PROBLEM, batches=TARGET, steps=40, every=10, **options):
    start = jnp.zeros(2)
    return solve(
        Alternating(), problem, start, start, batches, steps=steps, every=every, key=jax.random.key(0), **options
    )


def raise_at(step, number):
    return lambda visit: signal.raise_signal(number) if visit.step == step else None


def press_in(seconds, number=signal.SIGINT):
    """Send a signal to this process after so long, from outside of Python's main thread."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    return timer


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("number", PREEMPTION, ids=lambda n: signal.Signals(n).name)
def test_preemption_saves_and_exits_with_143(tmp_path, capfd, number):
    save = Checkpoint(tmp_path, every=100)
    with pytest.raises(SystemExit) as caught:
        run(callbacks=[raise_at(20, number), save])
    assert isinstance(caught.value, SolveTerminated)
    assert caught.value.code == 143
    result = caught.value.result
    assert (result.status, result.steps) == (Status.TERMINATED, 20)
    assert (tmp_path / "20").is_dir()
    told = capfd.readouterr().err
    assert told.startswith("Step 20 of 40: ")
    assert "resume=" in told
    assert str(tmp_path) in told
    assert len(told.splitlines()) == 1
    same(run(callbacks=[save], resume=save).state, run().state)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_preemption_without_a_checkpoint_is_as_ever():
    """Nothing could be saved, so the signals do what they did before."""
    found = []
    run(callbacks=[lambda visit: found.append([signal.getsignal(n) for n in PREEMPTION])])
    assert found[0] == [signal.SIG_DFL] * len(PREEMPTION)


@pytest.mark.parametrize("exits", [False, True])
def test_a_handler_of_the_user_s_is_called_once_all_is_saved(tmp_path, exits):
    saved = []

    def mine(number, frame):
        saved.append(sorted(p.name for p in tmp_path.iterdir() if p.name.isdecimal()))
        if exits:
            raise SystemExit(7)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(SystemExit) as caught:
            run(callbacks=[raise_at(20, signal.SIGTERM), Checkpoint(tmp_path, every=100)])
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved == [["20"]]
    assert caught.value.code == (7 if exits else 143)


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        result = run(callbacks=[raise_at(20, signal.SIGUSR1), Checkpoint(tmp_path)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert result.status is Status.FINISHED


@pytest.mark.parametrize("good", [0, 1, 13])
def test_one_press_ends_a_stalled_stream(tmp_path, good):
    """Wherever the host iterable stalls, at its first batch too; the steps taken so far are saved."""
    run(batches=[TARGET] * 2, steps=2)  # compiled
    leave = threading.Event()

    def stalls():
        yield from itertools.repeat(TARGET, good)
        pressed.append((time.perf_counter(), press_in(0.2)))
        leave.wait(60)

    pressed = []
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            run(batches=stalls(), callbacks=[Checkpoint(tmp_path)])
        assert time.perf_counter() - pressed[0][0] < 3
    finally:
        leave.set()
    if good:
        assert isinstance(caught.value, SolveInterrupted)
        assert (caught.value.result.steps, caught.value.result.status) == (good, Status.INTERRUPTED)
        assert (tmp_path / str(good)).is_dir()


def test_one_press_ends_a_stalled_stream_that_stop_has_ended():
    leave = threading.Event()

    def stalls():
        yield from itertools.repeat(TARGET, 10)
        leave.wait(60)

    assert run(batches=stalls(), stop=lambda visit: True).status is Status.STOPPED
    leave.set()


def test_a_loader_that_fails_at_ctrl_c_is_an_interrupt():
    """Ctrl-C reaches the worker processes of a loader as well."""

    def batches():
        yield from itertools.repeat(TARGET, 5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        raise RuntimeError("a worker was killed")

    with pytest.raises(SolveInterrupted) as caught:
        run(batches=batches())
    assert caught.value.result.steps == 5


@pytest.mark.slow
def test_a_press_where_python_drops_exceptions_counts(monkeypatch):
    """Neither the first nor the second is lost in a finalizer or a garbage collector's hook."""

    class Dropped:
        def __init__(self, presses):
            self.presses = presses

        def __del__(self):
            for _ in range(self.presses):
                signal.raise_signal(signal.SIGINT)

    def press(presses):
        def visit(visit):
            Dropped(presses)
            gc.collect()

        return visit

    with pytest.raises(SolveInterrupted) as caught:
        run(callbacks=[press(1)])
    assert caught.value.result.steps == 10
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: None)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(callbacks=[press(2)])
    assert not isinstance(caught.value, SolveInterrupted)


class Starts:
    def __init__(self, number):
        self.number = number
        self.result = None

    def start(self, run):
        signal.raise_signal(self.number)

    def visit(self, visit):
        raise AssertionError("a step was taken")

    def finish(self, result):
        self.result = result

    def load(self, fingerprint, state, info):
        return None


@pytest.mark.parametrize("number", [signal.SIGINT, *PREEMPTION])
def test_a_signal_before_the_first_stretch_takes_no_step(number):
    witness = Starts(number)
    with pytest.raises((SolveInterrupted, SolveTerminated)) as caught:
        run(callbacks=[witness])
    assert caught.value.result is witness.result
    assert witness.result.steps == 0
    same(witness.result.u, jnp.zeros(2))


def test_a_signal_while_the_step_is_traced_takes_no_step():
    def pressing(u, v, _):
        signal.raise_signal(signal.SIGINT)
        return jnp.sum((v - u) ** 2)

    def visit(visit):
        raise AssertionError("a step was taken")

    with pytest.raises(KeyboardInterrupt):
        run(Problem(PROBLEM.upper_loss, pressing), callbacks=[visit])


def test_a_press_while_the_last_save_is_written_does_not_lose_it(tmp_path):
    class Presses:
        def start(self, run):
            pass

        def visit(self, visit):
            pass

        def finish(self, result):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(SolveInterrupted) as caught:
        run(callbacks=[Checkpoint(tmp_path, every=100), Presses()])
    assert caught.value.result.steps == 40
    assert (tmp_path / "40").is_dir()


def test_a_signal_caught_outside_ends_what_is_inside():
    with deferred(INTERRUPT) as outer:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run()
        assert outer
        with deferred(INTERRUPT, *PREEMPTION) as inner:
            assert inner
            assert not inner.outermost
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert outer.received == [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_change_nothing():
    found = []

    def work():
        with deferred(INTERRUPT, *PREEMPTION) as asked:
            found.append((bool(asked), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.default_int_handler)]

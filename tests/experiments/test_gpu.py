"""The queue of full-size cells: by a fake clock, and two small cells on processors."""

import json

import pytest

from experiments.catalog import EXPERIMENTS
from experiments.common.settings import Settings
from experiments.gpu import run
from experiments.gpu.cells import CELLS
from experiments.gpu.queue import CUT, DONE, FAILED, WAITING, Clock, Job, drain
from experiments.gpu.records import merged


class Fake:
    """Processes that take given seconds by a clock that only `wait` moves."""

    def __init__(self, **seconds):
        self.time, self.seconds, self.started, self.stopped, self.most, self.running = 0.0, seconds, [], [], 0, 0

    def clock(self):
        return Clock(lambda: self.time, self.wait)

    def wait(self, seconds):
        assert seconds >= 0
        self.time += max(seconds, 0.25)

    def start(self, job):
        self.started.append((job.name, self.time))
        self.running += 1
        self.most = max(self.most, self.running)
        return FakeProcess(self, job.name)


class FakeProcess:
    def __init__(self, fake, name):
        self.fake, self.name, self.end = fake, name, fake.time + abs(fake.seconds[name])

    def poll(self):
        if self.fake.time < self.end:
            return None
        self.fake.running -= 1
        return int(self.fake.seconds[self.name] < 0)

    def stop(self):
        self.fake.stopped.append(self.name)


def jobs(**seconds):
    return [Job(name, (), x) for name, x in seconds.items()]


def test_jobs_run_side_by_side_in_their_order():
    fake = Fake(a=10, b=20, c=5, d=-5)
    found = drain(jobs(a=10, b=20, c=5, d=5), 2, 60, fake.start, fake.clock())
    assert [name for name, _ in fake.started] == ["a", "b", "c", "d"]
    assert fake.most == 2
    assert {name: x.ended for name, x in found.items()} == {"a": DONE, "b": DONE, "c": DONE, "d": FAILED}
    assert found["b"].seconds == pytest.approx(20, abs=1)
    assert fake.time == pytest.approx(20, abs=2)  # a, then c and d, beside b


def test_it_ends_within_its_time():
    """What runs at the end is stopped; what could not end is not started."""
    fake = Fake(long=100, short=10, late=10)
    found = drain(jobs(long=30, short=10, late=25), 1, 40, fake.start, fake.clock())
    assert {name: x.ended for name, x in found.items()} == {"long": CUT, "short": WAITING, "late": WAITING}
    assert fake.stopped == ["long"]
    assert fake.time == pytest.approx(40, abs=0.5)


def test_a_job_that_does_not_fit_gives_way():
    fake = Fake(whole=10, short=10)
    found = drain(jobs(whole=300, short=10), 1, 60, fake.start, fake.clock())
    assert (found["whole"].ended, found["short"].ended) == (WAITING, DONE)
    assert fake.time < 12


def test_processes_are_stopped_if_the_queue_is():
    fake = Fake(a=10)

    def interrupted(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drain(jobs(a=10), 1, 60, fake.start, Clock(lambda: 0.0, interrupted))
    assert fake.stopped == ["a"]


def test_every_row_is_one_that_its_experiment_has():
    names = [job.name for cell in CELLS for job in cell.jobs()]
    assert len(set(names)) == len(names)
    for cell in CELLS:
        assert cell.experiment in EXPERIMENTS
    from experiments.denoising import table2
    from experiments.fewshot import protocol as fewshot
    from experiments.poisoning import protocol, table6
    from experiments.spnbo import protocol as spnbo

    size = protocol.shorter(Settings())[table6.UNTARGETED]
    known = {
        "table2": set(table2.LABELS),
        "table3": {fewshot.PIXELS, *fewshot.BILEVEL},
        "table6": {f"{kind}, {what}" for kind, what in table6.variants(size)},
        "spnbo-table3": set(spnbo.LABELS),
        "spnbo-table5": set(spnbo.LABELS),
    }
    for cell in CELLS:
        assert known[cell.experiment].issuperset(cell.rows), cell.name


def record(label, figure, **more):
    return {
        "experiment": "table2",
        "settings": {"solver": label, "noise": 25},
        "versions": {"jax": "1"},
        "device": {"kind": "card"},
        "seeds": [0],
        "wall_seconds": 2.0,
        "solvers": {label: {}},
        "gradient_evaluations": {label: 3},
        "results": {"accuracy": [{"where": ["mnist", "25%", label], "ours": figure}]},
        "footnotes": ["both", label],
    } | more


def test_records_are_joined_with_their_provenance():
    found = merged([record("a", 1), record("b", 2)])
    assert [row["ours"] for row in found["results"]["accuracy"]] == [1, 2]
    assert (found["wall_seconds"], found["device"], found["settings"]) == (
        4.0,
        {"kind": "card"},
        {"solver": None, "noise": 25},
    )
    assert found["footnotes"] == ["both", "a", "b"]
    with pytest.raises(ValueError, match=r"device is .*card.* in one run and .*other"):
        merged([record("a", 1), record("b", 2, device={"kind": "other"})])


@pytest.mark.slow
def test_two_small_cells(tmp_path, monkeypatch):
    """They are run side by side, joined, and not run a second time."""
    monkeypatch.delenv("XLA_FLAGS")
    run.run(Settings(quick=True, minutes=5, out=tmp_path))
    found = json.loads((tmp_path / "records" / "table4-quick.json").read_text())
    assert {row["where"][1] for rows in found["results"].values() for row in rows} == {"ApproxGrad", "Penalty"}
    monkeypatch.setattr(run, "Command", None)
    run.run(Settings(quick=True, minutes=5, out=tmp_path))

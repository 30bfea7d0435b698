"""Progress bars, logs, and what they do when a solve resumes. Checkpoints: test_resume.py."""

import json
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import (
    Alternating,
    Batch,
    Checkpoint,
    InputError,
    JsonLines,
    Penalty,
    Problem,
    Progress,
    SolveError,
    TensorBoard,
    Vectorized,
    solve,
)
from bilevax.loop.result import Run, Visit
from bilevax.solvers.base import Info

PROBLEM = Problem(
    upper_loss=lambda u, v, target: jnp.sum((v - target) ** 2), lower_loss=lambda u, v, _: jnp.sum((v - u) ** 2)
)
INFO = {"upper_loss", "lower_loss", "upper_grad_norm", "lower_grad_norm"}


def run(steps=40, solver=None, **options):
    target = Batch(upper=jnp.array([1.0, -1.0]))
    solver = solver or Penalty(stage_steps=6)
    return solve(
        solver, PROBLEM, jnp.zeros(2), jnp.zeros(2), target, steps=steps, every=10, key=jax.random.key(0), **options
    )


def run_members(steps=40, **options):
    """Three members; the last one's target is so far off that its loss overflows."""
    target = Batch(upper=jnp.array([[1.0], [2.0], [1e200]]))
    start = jnp.zeros((3, 1))
    solver = Vectorized(Penalty(stage_steps=6))
    return solve(solver, PROBLEM, start, start, target, steps=steps, every=10, key=jax.random.key(0), **options)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_tells_each_visit_as_the_history_does(tmp_path):
    path = tmp_path / "new folder" / "log.jsonl"
    history = run(callbacks=[JsonLines(path)]).history
    lines = records(path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert set(lines[0]) == {"step", "seconds", *INFO, "stage", "gamma", "stationarity"}
    for line in lines:
        at = line["step"] - 1
        assert line["upper_loss"] == history.upper_loss[at]
        assert line["lower_grad_norm"] == history.lower_grad_norm[at]
        assert line["stage"] == history.extra["stage"][at]
        assert isinstance(line["stage"], int)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


@pytest.mark.slow
def test_a_log_of_members_holds_lists_and_nulls(tmp_path):
    run_members(callbacks=[JsonLines(tmp_path / "log.jsonl")])
    for line in records(tmp_path / "log.jsonl"):
        assert [x is None for x in line["upper_loss"]] == [False, False, True]
        assert len(line["stage"]) == 3


def test_a_log_goes_on_where_a_resumed_solve_does(tmp_path):
    path, save = tmp_path / "log.jsonl", Checkpoint(tmp_path / "saves")
    log = JsonLines(path)
    run(steps=20, callbacks=[save, log])
    kept = path.read_text()
    with path.open("a") as file:  # a visit after the last save, and one cut by the kill
        file.write(json.dumps({"step": 30, "seconds": 9.0, "upper_loss": -1.0}) + "\n" + '{"step": 40, "sec')
    result = run(callbacks=[save, log], resume=save)
    lines = records(path)
    assert path.read_text().startswith(kept)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert [line["upper_loss"] for line in lines] == [result.history.upper_loss[line["step"] - 1] for line in lines]
    assert lines[2]["seconds"] > lines[1]["seconds"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "saves"]


def test_a_whole_record_without_its_newline_is_not_glued_to_the_next(tmp_path):
    path, save = tmp_path / "log.jsonl", Checkpoint(tmp_path / "saves")
    run(steps=20, callbacks=[save, JsonLines(path)])
    path.write_text(path.read_text().rstrip("\n"))
    run(callbacks=[save, JsonLines(path)], resume=save)
    assert [line["step"] for line in records(path)] == [10, 30, 40]


def test_a_new_solve_keeps_an_earlier_log(tmp_path):
    path = tmp_path / "log.jsonl"
    for _ in range(3):
        run(callbacks=[JsonLines(path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "log.jsonl.1", "log.jsonl.2"]
    assert all(len(records(p)) == 4 for p in tmp_path.iterdir())


RECORD = b'{"step": 10, "seconds": 0.5, "upper_loss": 1.0}\n'


def start(callback, step=0, resumes=False):
    callback.start(Run(step, 40, resumes, lambda: None))
    callback.finish(None)


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize(
    "content",
    [b"a,b\n1,2\n", b'{"step": "ten", "seconds": 1}\n', b"[1]\n", b"\n", b"\xff\xfe\n", b"\0" * 99, b"{}\n" + RECORD],
)
def test_a_file_that_is_no_log_is_neither_continued_nor_renamed(tmp_path, content, resumes):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"line 1 of '.*mine' is not a record of a solve"):
        start(JsonLines(path), 20, resumes)
    assert os.listdir(tmp_path) == ["mine"]
    assert path.read_bytes() == content


def test_a_log_with_something_else_in_it_is_not_continued(tmp_path):
    path, content = tmp_path / "log", RECORD + RECORD.replace(b"10", b"30") + b"checked by hand\n" + RECORD
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"line 3 of '.*log' is not a record of a solve"):
        start(JsonLines(path), 20, resumes=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("kind", ["folder", "full folder", "fifo", "device", "symlink to a folder"])
def test_a_log_must_be_a_file(tmp_path, kind, resumes):
    path = tmp_path / "runs"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    else:
        (tmp_path / "real").mkdir()
        (tmp_path / "real").rename(path) if "symlink" not in kind else path.symlink_to(tmp_path / "real")
        if kind == "full folder":
            (path / "model.pt").write_text("weights")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"JsonLines: path is .*, which is a (folder|device)"):
        start(JsonLines(path), 20, resumes)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_log_behind_a_symlink(tmp_path):
    """A new solve takes the link's place and leaves its target; a resumed one writes to the target."""
    link, target = tmp_path / "log", tmp_path / "target"
    link.symlink_to(target)
    run(steps=20, callbacks=[JsonLines(link)])
    assert link.is_symlink()
    before = target.read_text()
    start(JsonLines(link), 20, resumes=True)
    assert (link.is_symlink(), target.read_text()) == (True, before)
    run(steps=20, callbacks=[JsonLines(link)])
    assert (link.is_symlink(), target.read_text()) == (False, before)
    assert (tmp_path / "log.1").read_text() == before


@pytest.mark.parametrize("resumes", [False, True])
def test_an_empty_file_and_a_first_line_cut_by_a_kill_are_logs(tmp_path, resumes):
    for content in (b"", b'{"step": 10, "sec'):
        path = tmp_path / "log"
        path.write_bytes(content)
        start(JsonLines(path), resumes=resumes)
        assert path.read_bytes() == b""


@pytest.mark.parametrize("make", [JsonLines, TensorBoard, Checkpoint])
@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "", None, 3, "a\0b", b"bytes"])
def test_what_is_no_local_path_is_refused(make, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{make.__name__}: (path|directory) is "):
        make(path)
    assert os.listdir(tmp_path) == []


def extra_visit(step=10, /, **extra):
    info = Info(*np.ones((4, 1)), {name: np.array([x]) for name, x in extra.items()})
    return Visit(step, 40, 1.5, info, None, lambda: info)


def test_names_of_extra_do_not_overwrite_the_log_s_own(tmp_path, capsys):
    visit = extra_visit(step=0.25, seconds=3.0, upper_loss=7.0, stage=2, **{"extra/step": 5.0})
    log, bar = JsonLines(tmp_path / "log"), Progress()
    for callback in (log, bar):
        callback.start(Run(0, 40, False, lambda: None))
        callback.visit(visit)
        callback.finish(None)
    (line,) = records(tmp_path / "log")
    assert (line["step"], line["seconds"], line["upper_loss"], line["stage"]) == (10, 1.5, 1.0, 2)
    assert (line["extra/seconds"], line["extra/upper_loss"]) == (3.0, 7.0)
    assert {line["extra/step"], line["extra/extra/step"]} == {0.25, 5.0}
    assert "upper=1," in capsys.readouterr().err


def test_tensorboard_keeps_info_s_own_names(tmp_path):
    board = pytest.importorskip("tensorboardX")
    log = TensorBoard(tmp_path / "runs")
    log.start(Run(20, 40, True, lambda: None))
    log.visit(extra_visit(upper_loss=7.0))
    log.finish(None)
    (path,) = (tmp_path / "runs").glob("events*")
    first, purge, *events = read_events(path, board)
    values = {value.tag: value.simple_value for event in events for value in event.summary.value}
    assert first.file_version == "brain.Event:2"
    assert (purge.step, purge.session_log.status) == (21, 1)
    assert (values["upper_loss"], values["extra/upper_loss"]) == (1.0, 7.0)


@contextmanager
def full_disk(room):
    """Within, no file grows beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("make", [JsonLines, TensorBoard])
def test_a_log_on_a_full_disk_loses_nothing_and_does_not_end_the_solve(tmp_path, make):
    board = pytest.importorskip("tensorboardX")
    log = make(tmp_path / "log")
    log.start(Run(0, 40, False, lambda: None))
    path = tmp_path / "log" if make is JsonLines else next((tmp_path / "log").glob("events*"))
    log.visit(extra_visit(10))
    before = path.read_bytes()
    with full_disk(len(before) + 20):
        with pytest.warns(UserWarning, match=r"log.*' cannot be written \(File too large\)\. The solve goes on"):
            log.visit(extra_visit(20))
        log.visit(extra_visit(30))
    assert path.read_bytes() == before
    log.visit(extra_visit(40))
    if make is JsonLines:
        assert [line["step"] for line in records(path)] == [10, 20, 30, 40]
    else:
        assert sorted({event.step for event in read_events(path, board)}) == [0, 10, 20, 30, 40]
    with full_disk(path.stat().st_size):
        with pytest.warns(UserWarning, match="cannot be written"):
            log.visit(extra_visit(50))
        with pytest.warns(UserWarning, match=r"the last \d+ bytes of '.*log.*' could not be written"):
            log.finish(None)


def test_a_progress_bar_without_its_terminal_does_not_end_the_solve(monkeypatch):
    bar = Progress()
    bar.start(Run(0, 40, False, lambda: None))
    monkeypatch.setattr(bar._bar, "update", lambda n: (_ for _ in ()).throw(BrokenPipeError(32, "Broken pipe")))
    bar.visit(extra_visit(10))
    bar.visit(extra_visit(20))
    bar.finish(None)


def test_a_log_ends_with_the_last_finite_step(tmp_path):
    """u falls by 0.01 a step, and the slope of sqrt(u) ends at zero."""
    bad = Problem(lambda u, v, _: jnp.sum(jnp.sqrt(u) + v), lambda u, v, _: jnp.sum((v - u) ** 2))
    path, start = tmp_path / "log.jsonl", jnp.full(1, 0.075)
    options = {"steps": 100, "every": 5, "key": jax.random.key(0)}
    with pytest.raises(SolveError) as caught:
        solve(Alternating(), bad, start, start, callbacks=[JsonLines(path)], **options)
    result = caught.value.result
    assert result.steps == 8
    last = records(path)[-1]
    assert last["step"] == result.steps
    assert last["upper_loss"] == result.history.upper_loss[-1]


def test_progress_shows_losses_stage_and_rate(capsys):
    result = run(callbacks=[Progress("mine")])
    shown = capsys.readouterr().err
    last = shown.rsplit("\r", 1)[-1]
    assert "mine: 100%" in last
    assert "40/40" in last
    assert "step/s" in last
    assert f"upper={result.history.upper_loss[-1]:.4g}" in last
    assert f"lower={result.history.lower_loss[-1]:.4g}" in last
    assert f"stage={result.history.extra['stage'][-1]}" in last


def test_progress_without_stages_and_from_a_resumed_step(capsys, tmp_path):
    save = Checkpoint(tmp_path)
    run(steps=20, solver=Alternating(), callbacks=[save])
    run(solver=Alternating(), callbacks=[Progress(), save], resume=save)
    shown = capsys.readouterr().err
    assert "20/40" in shown.split("\r")[1]
    assert "40/40" in shown
    assert "stage" not in shown


def test_progress_of_members_shows_the_mean_of_the_finite(capsys):
    result = run_members(callbacks=[Progress()])
    mean = np.mean(result.history.upper_loss[-1][:2])
    assert f"upper={mean:.4g}" in capsys.readouterr().err


def test_tensorboard_events_hold_every_scalar(tmp_path):
    board = pytest.importorskip("tensorboardX")
    result = run(callbacks=[TensorBoard(tmp_path / "runs")])
    found = {}
    for path in (tmp_path / "runs").glob("events*"):
        for event in read_events(path, board):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    assert set(found) == {*INFO, "stage", "gamma", "stationarity"}
    assert sorted(found["upper_loss"]) == [10, 20, 30, 40]
    for step, value in found["upper_loss"].items():
        np.testing.assert_allclose(value, result.history.upper_loss[step - 1], rtol=1e-6)


def read_events(path, board):
    """TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    data = path.read_bytes()
    while data:
        n = int.from_bytes(data[:8], "little")
        yield board.proto.event_pb2.Event.FromString(data[12 : 12 + n])
        data = data[16 + n :]


@pytest.mark.parametrize(
    ("module", "make", "told"),
    [
        ("tensorboardX", TensorBoard, r"TensorBoard needs the package tensorboardX, .*'bilevax\[tensorboard\]'"),
        ("tqdm.auto", lambda path: Progress(), r"Progress needs the package tqdm, .*'bilevax\[apps\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, make, told):
    monkeypatch.setitem(sys.modules, module, None)
    visits = []
    with pytest.raises(InputError, match=told):
        run(callbacks=[visits.append, make(tmp_path)])
    assert visits == []


def test_an_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(InputError, match=r"TensorBoard: directory is .* cannot be written"):
            start(TensorBoard(place))

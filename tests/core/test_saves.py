"""What becomes of saves when the disk, the folder, its owner or another process gets in the way.

Checkpoint is driven by hand here, without a solve. Solves that resume: test_resume.py.
"""

import copy
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

from bilevax import Checkpoint, InputError, Result, SaveError, SolveError, Status
from bilevax.loop import callbacks
from bilevax.loop import saves as on_disk
from bilevax.loop.result import Fingerprint, Run, Visit
from bilevax.solvers.base import Info

FINGERPRINT = Fingerprint(*["same"] * len(Fingerprint._fields))


def info(rows):
    return Info(*[np.arange(rows, dtype=float)] * 4, {})


def state(step):
    return {"u": step * np.arange(1000.0)}


def result(step):
    return Result(None, None, Status.FINISHED, step, info(step), state(step))


def load(save):
    """The step that the newest whole save is of, after a check of what it holds."""
    found = save.load(FINGERPRINT, state(0), info(0))
    if found is None:
        return 0
    np.testing.assert_array_equal(found.state["u"], state(found.step)["u"])
    np.testing.assert_array_equal(found.history.upper_loss, np.arange(found.step))
    return found.step


def play(save, steps, resume=True, meanwhile=None):
    """As a solve with visits at 10, 20, ...; `meanwhile(step)` comes before each visit. Returns where it began."""
    first, ended = load(save) if resume else 0, None
    try:
        save.start(Run(first, steps, resume, lambda: FINGERPRINT))
        for step in range(first + 10, steps + 1, 10):
            while save._writer.busy():
                time.sleep(0.001)
            if meanwhile is not None:
                meanwhile(step)
            save.visit(Visit(step, steps, 0.0, info(10), state(step), lambda step=step: info(step)))
        ended = result(steps)
    finally:
        save.finish(ended)
    return first


def saves(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- a user's files ----------------------------------------------------------------------------------------------


def test_a_user_s_files_are_left_alone(tmp_path):
    """Among them names that a tidy-up could take for its own: folders named as steps, temporary ones of orbax."""
    for name in ("0/a", "007/a", "5000/a", "10.orbax-checkpoint-tmp-1/a", "best/a", "-1/a", "1e2/a", "２０/a"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("mine")
    for name in ("model.pt", "log.jsonl", ".bilevax-notes", ".bilevax-0123456789ab"):
        (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    save = Checkpoint(tmp_path, keep=1)
    assert play(save, 60) == 0
    assert play(save, 80) == 60
    after = content(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"80/.bilevax", "80/state.npz"}


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "symlink"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_name_in_the_way_is_refused_before_the_solve(tmp_path, kind, resume):
    path = tmp_path / "saves" / "23"
    path.parent.mkdir()
    if kind == "file":
        path.write_text("mine")
    elif kind == "symlink":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        if kind == "folder":
            (path / "a").write_text("mine")
    before, visits = content(tmp_path), []
    with pytest.raises(InputError, match=r"'.*23' stands where step 23 would be saved, and it was not made by bilevax"):
        play(Checkpoint(tmp_path / "saves"), 40, resume, visits.append)
    assert visits == []
    assert content(tmp_path) == before
    assert os.path.lexists(path)


def test_a_save_that_a_user_put_a_file_into_is_kept(tmp_path):
    save = Checkpoint(tmp_path, keep=1)
    play(save, 10)
    (tmp_path / "10" / "notes.txt").write_text("the good one")
    play(save, 40)
    assert saves(tmp_path) == [10, 40]
    assert (tmp_path / "10" / "notes.txt").read_text() == "the good one"


def test_the_newest_are_kept_and_a_lower_keep_removes_the_rest(tmp_path):
    play(Checkpoint(tmp_path, keep=3), 60)
    assert saves(tmp_path) == [40, 50, 60]
    play(Checkpoint(tmp_path, keep=np.int64(1)), 70)
    assert saves(tmp_path) == [70]


def test_what_a_kill_leaves_is_cleared_away(tmp_path):
    save = Checkpoint(tmp_path)
    play(save, 20)
    for i, files in enumerate(([], [".bilevax"], [".bilevax", "state.npz"], [".bilevax-00000000000f"])):
        part = tmp_path / f".bilevax-00000000000{i}"
        shutil.copytree(tmp_path / "20", part)
        for path in part.iterdir():
            if path.name not in files:
                path.unlink()
        for name in set(files) - set(os.listdir(part)):
            (part / name).write_text("half")
    (tmp_path / ".bilevax.lock").write_text("process 1 on another")
    play(save, 30)
    assert sorted(os.listdir(tmp_path)) == ["20", "30"]


# --- names ---------------------------------------------------------------------------------------------------------


NAMES = [
    "[a]",
    "a]",
    "[",
    "[!a]",
    "*",
    "**",
    "?",
    "back\\slash",
    "a b",
    "100%",
    "%41",
    "#1",
    "é☃",
    "-x",
    "dot.",
    "a\nb",
]
NAMES += ["c:x", "gs:x", "{a}", "$HOME", "'\"", "~", "x" * 250, "/".join(["deep" * 20] * 20)]


@pytest.mark.parametrize("name", NAMES)
def test_saves_below_any_name_are_read_back(tmp_path, name):
    folder = tmp_path / name / "saves"
    play(Checkpoint(folder), 20)
    assert load(Checkpoint(folder)) == 20
    assert play(Checkpoint(folder), 40) == 20
    assert saves(folder) == [30, 40]
    assert os.listdir(tmp_path) == [name.split("/")[0]]


@pytest.mark.parametrize("kind", ["too long", "loop", "file", "below a file"])
def test_a_directory_that_cannot_be_is_a_sentence(tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    places = {"too long": ["long" * 30] * 50, "loop": ["loop"], "file": ["file"], "below a file": ["file", "saves"]}
    with pytest.raises(InputError, match=r"Checkpoint: directory is .*, which cannot be (read|written) \("):
        play(Checkpoint(tmp_path.joinpath(*places[kind])), 20)
    assert (tmp_path / "file").read_text() == "mine"


# --- saves that fail -----------------------------------------------------------------------------------------------


@contextmanager
def full_disk(room=0):
    """Within, no file grows beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def refusing(monkeypatch, number, name="savez", owner=np):
    def refuses(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuses)
        yield


@pytest.mark.parametrize("fault", ["full", "half full", "no space", "read only", "no permission", "no mkdir"])
def test_a_failed_save_is_a_warning_and_the_next_is_tried(tmp_path, monkeypatch, fault):
    broken = {
        "full": lambda: full_disk(0),
        "half full": lambda: full_disk(4000),
        "no space": lambda: refusing(monkeypatch, 28),
        "read only": lambda: refusing(monkeypatch, 30),
        "no permission": lambda: refusing(monkeypatch, 13, "replace", os),
        "no mkdir": lambda: refusing(monkeypatch, 13, "mkdir", os),
    }[fault]
    save = Checkpoint(tmp_path / "saves")

    def visit(step):
        save.visit(Visit(step, 60, 0.0, info(10), state(step), lambda: info(step)))
        while save._writer.busy():
            time.sleep(0.001)

    save.start(Run(0, 60, False, lambda: FINGERPRINT))
    visit(10)
    with broken():
        visit(20)
        with pytest.warns(UserWarning, match=r"step 20 could not be saved to '.*saves' \(.+\)\. The solve goes on"):
            visit(30)  # which fails as well, and is not a second warning
        visit(40)
        assert load_quietly(save) == 10
    assert saves(tmp_path / "saves") == [10]
    visit(50)
    assert saves(tmp_path / "saves") == [10, 50]
    with (
        broken(),
        pytest.raises(SaveError, match=r"step 60 could not be saved .* is in this error's \.result") as error,
    ):
        save.finish(result(60))
    assert isinstance(error.value, SolveError)
    np.testing.assert_array_equal(error.value.result.state["u"], state(60)["u"])
    assert sorted(os.listdir(tmp_path / "saves")) == [".bilevax", "10", "50"]
    assert play(Checkpoint(tmp_path / "saves"), 60) == 50


def load_quietly(save):
    """What another solve would find, were the folder not locked."""
    with pytest.raises(InputError, match=r"which another solve .* is writing to"):
        load(save)
    return max(saves(save.directory))


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_a_failed_save_still_ends_nothing(tmp_path, monkeypatch, capfd):
    def meanwhile(step):
        monkeypatch.setattr(callbacks.np, "savez", broken if step == 10 else real)

    def broken(*arguments, **options):
        raise OSError(28, "No space left on device")

    real = np.savez
    play(Checkpoint(tmp_path), 40, meanwhile=meanwhile)
    assert saves(tmp_path) == [30, 40]
    assert "step 10 could not be saved" in capfd.readouterr().err


def test_the_last_save_is_tried_again_where_it_failed_before(tmp_path, monkeypatch):
    save = Checkpoint(tmp_path)
    save.start(Run(0, 10, False, lambda: FINGERPRINT))
    with refusing(monkeypatch, 28):
        save.visit(Visit(10, 10, 0.0, info(10), state(10), lambda: info(10)))
        while save._writer.busy():
            time.sleep(0.001)
    save.finish(result(10))
    assert load(save) == 10


def test_a_failed_save_of_a_solve_that_was_left_by_an_error_is_a_warning(tmp_path, monkeypatch):
    save = Checkpoint(tmp_path)
    save.start(Run(0, 10, False, lambda: FINGERPRINT))
    with refusing(monkeypatch, 28):
        save.visit(Visit(10, 10, 0.0, info(10), state(10), lambda: info(10)))
        with pytest.warns(UserWarning, match=r"step 10 could not be saved to '.*' \(No space left on device\)\.$"):
            save.finish(None)


def test_a_folder_that_goes_away_is_made_again(tmp_path):
    save = Checkpoint(tmp_path / "a" / "saves")

    def meanwhile(step):
        if step == 20:
            shutil.rmtree(tmp_path / "a")
        if step == 30:
            with pytest.raises(InputError, match="another solve"):  # locked again
                load(save)

    play(save, 40, meanwhile=meanwhile)
    assert saves(tmp_path / "a" / "saves") == [30, 40]


def test_a_file_in_the_place_of_the_folder_leaves_the_result(tmp_path):
    def meanwhile(step):
        if step == 20:
            shutil.rmtree(tmp_path / "saves")
            (tmp_path / "saves").write_text("mine")

    with (
        pytest.warns(UserWarning, match="could not be saved"),
        pytest.raises(SaveError, match=r"Not a directory.*\.result"),
    ):
        play(Checkpoint(tmp_path / "saves"), 40, meanwhile=meanwhile)
    assert (tmp_path / "saves").read_text() == "mine"


def test_a_folder_made_meanwhile_where_a_save_goes_is_not_overwritten(tmp_path):
    def meanwhile(step):
        if step == 40:
            (tmp_path / "40").mkdir()

    with pytest.raises(SaveError, match="40' is in the way"):
        play(Checkpoint(tmp_path), 40, meanwhile=meanwhile)
    assert os.listdir(tmp_path / "40") == []
    assert saves(tmp_path) == [20, 30, 40]


def test_the_wall_clock_does_not_matter(tmp_path, monkeypatch):
    clock = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    play(Checkpoint(tmp_path), 40)
    assert play(Checkpoint(tmp_path), 60) == 40


def test_a_save_that_reads_back_otherwise_shows_at_once(tmp_path, monkeypatch):
    real = on_disk.read
    monkeypatch.setattr(on_disk, "read", lambda path: (real(path)[0], real(path)[1][::-1]))
    with (
        pytest.warns(UserWarning, match="step 10 could not be saved .*reads back otherwise"),
        pytest.raises(SaveError),
    ):
        play(Checkpoint(tmp_path), 20)


# --- saves that are damaged, renamed, or of another step -------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Saves of steps 10, 20 and 30."""
    play(Checkpoint(tmp_path, keep=3), 30)
    return tmp_path


def damages(path):
    content = path.read_bytes()
    yield "no file", lambda: path.unlink()
    for size in (0, 1, 50, len(content) // 2, len(content) - 1):
        yield f"{size} bytes", lambda size=size: path.write_bytes(content[:size])
    yield "other content", lambda: path.write_bytes(b"x" * len(content))
    for place in range(0, len(content), len(content) // 40):
        flipped = bytes([content[place] ^ 255])
        yield f"bit {place}", lambda p=place, f=flipped: path.write_bytes(content[:p] + f + content[p + 1 :])


def test_a_damaged_newest_save_is_passed_over(three):
    path = three / "30" / "state.npz"
    whole, told = path.read_bytes(), 0
    for _, damage in damages(path):
        damage()
        save = Checkpoint(three)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step = load(save)
        assert step in (20, 30)  # a flipped bit may lie in what is not needed, and then nothing is lost
        told += step == 20
        assert ["30' is cut short or damaged" in str(x.message) for x in seen] == [True] * (step == 20)
        path.write_bytes(whole)
    assert told >= 40


def test_after_a_damaged_save_the_solve_goes_on_and_sets_it_aside(three):
    os.truncate(three / "30" / "state.npz", 60)
    save = Checkpoint(three)
    with pytest.warns(UserWarning, match=r"'.*30' is cut short .* the solve continues from step 20"):
        assert play(save, 50) == 20
    assert sorted(os.listdir(three)) == ["30.damaged", "40", "50"]
    assert load(save) == 50


def test_without_a_whole_save_nothing_is_begun_anew_in_silence(three):
    for step in (10, 20, 30):
        os.truncate(three / str(step) / "state.npz", 60)
    with pytest.raises(
        InputError, match=r"no save in .* can be used: .*10' is cut .*20' is cut .*30' is cut .*Move them"
    ):
        play(Checkpoint(three), 50)
    assert saves(three) == [10, 20, 30]


def rename(folder, old, new):
    (folder / old).rename(folder / new)


def duplicate(folder, old, new):
    shutil.copytree(folder / old, folder / new)


def swap(folder, old, new):
    rename(folder, old, "other")
    rename(folder, new, old)
    rename(folder, "other", new)


def copy_state(folder, old, new):
    shutil.copy(folder / old / "state.npz", folder / new / "state.npz")


@pytest.mark.parametrize(
    ("change", "old", "new", "step"),
    [
        (rename, "30", "300", 20),
        (rename, "30", "25", 20),
        (duplicate, "10", "300", 30),
        (duplicate, "30", "5", 30),
        (swap, "20", "30", 10),
        (copy_state, "20", "30", 20),
        (copy_state, "30", "20", 30),
    ],
)
def test_a_save_under_another_step_is_not_used(three, change, old, new, step):
    change(three, old, new)
    expected = r"holds (the save of )?step \d+" if (change, old) != (copy_state, "30") else None
    if expected is None:
        assert load(Checkpoint(three)) == step
        return
    with pytest.warns(UserWarning, match=expected):
        assert load(Checkpoint(three)) == step


def test_a_save_under_another_step_is_neither_removed_nor_overwritten(three):
    duplicate(three, "30", "45")
    before = content(three / "45")
    with (
        pytest.warns(UserWarning, match=r"45' holds the save of step 30: it was renamed or copied\. It is not used"),
        pytest.raises(InputError, match=r"45' stands where step 45 would be saved, and it holds the save of step 30"),
    ):
        play(Checkpoint(three, keep=1), 60)
    with pytest.warns(UserWarning, match="45' holds the save of step 30"):
        play(Checkpoint(three, keep=1), 40)
    assert content(three / "45") == before


def test_a_history_of_another_length_is_not_used(three):
    save = Checkpoint(three)
    save.start(Run(30, 40, True, lambda: FINGERPRINT))
    save._save(40, state(40), info(39))
    save.finish(None)
    with pytest.warns(UserWarning, match=r"40' holds step 40 and 39 rows of history"):
        assert load(save) == 30


# --- two at once ---------------------------------------------------------------------------------------------------


def test_a_folder_is_locked_while_a_solve_writes_to_it(tmp_path):
    one, other = Checkpoint(tmp_path), Checkpoint(tmp_path)
    one.start(Run(0, 40, False, lambda: FINGERPRINT))
    for use in (lambda: other.start(Run(0, 40, False, lambda: FINGERPRINT)), lambda: load(other)):
        with pytest.raises(InputError, match=r"Checkpoint: directory is .* which another solve \(process \d+ on"):
            use()
    other.finish(None)
    one.finish(result(40))
    assert play(other, 60) == 40


def test_between_load_and_start_another_solve_may_have_gone_on(tmp_path):
    one, other = Checkpoint(tmp_path), Checkpoint(tmp_path)
    play(one, 10)
    assert load(other) == 10
    play(one, 20)
    with pytest.raises(InputError, match="already holds step 20 of a solve, and this one starts from step 10"):
        other.start(Run(10, 40, True, lambda: FINGERPRINT))
    assert play(other, 40) == 20


def test_one_object_serves_one_solve_at_a_time(tmp_path):
    save = Checkpoint(tmp_path)
    save.start(Run(0, 40, False, lambda: FINGERPRINT))
    refusals = []

    def other():
        try:
            save.start(Run(0, 40, False, lambda: FINGERPRINT))
        except InputError as error:
            refusals.append(str(error))
        finally:  # as solve does
            save.finish(None)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    other()
    assert len([told for told in refusals if "is given to two solves, or twice to one" in told]) == 2
    save.finish(result(40))
    assert load(save) == 40
    assert [t.name for t in threading.enumerate() if "bilevax-save" in t.name] == []


def test_a_checkpoint_can_be_pickled_and_copied_between_solves(tmp_path):
    """An estimator that holds one can be, then."""
    save = Checkpoint(tmp_path, every=2, keep=3)
    play(save, 20)
    for other in (pickle.loads(pickle.dumps(save)), copy.deepcopy(save)):
        assert (other.directory, other.every, other.keep, load(other)) == (tmp_path, 2, 3, 20)


HOLD = """
import sys, time
from bilevax import Checkpoint
from bilevax.loop.result import Fingerprint, Run
save = Checkpoint(sys.argv[1])
save.start(Run(0, 40, False, lambda: Fingerprint(*["same"] * len(Fingerprint._fields))))
print("started", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "started\n"
    with pytest.raises(InputError, match=rf"another solve \(process {other.pid} on"):
        play(Checkpoint(tmp_path), 40)
    other.kill()
    other.communicate()
    play(Checkpoint(tmp_path), 40)
    assert sorted(os.listdir(tmp_path)) == ["30", "40"]

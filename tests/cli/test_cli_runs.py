"""What all commands share: printing of any text, files that are kept from harm, runs that are resumed."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import tqdm
from rich.console import Console
from typer.testing import CliRunner

from bilevax import InputError, _files, cli
from bilevax.cli import _printing, _runs
from bilevax.cli._printing import as_table, complain, quoted, say, show, shown
from bilevax.cli._runs import Run
from bilevax.cli._shared import digest
from bilevax.cli._writing import write_csv, write_json
from bilevax.loop.stages import Stages, pack, unpack


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.stderr


# --- printing ---------------------------------------------------------------------------------------------------------

UGLY = "a\x1b[31m\r\b\x9b2J \u202egnp [red]x[/] :smile: flow [/min] \udce9 US$ per %$ unit^ \\"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp437", "latin-1", "utf-16"])
@pytest.mark.parametrize("columns", ["0", "1", "80", "wide"])
def test_any_text_is_printed_on_any_console(monkeypatch, encoding, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.delenv("TERM", raising=False)
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding))
    say(UGLY + " – ± → 猫")
    show(as_table(UGLY, ("method", "first\nsecond"), [(UGLY, "1 ± 2"), ("猫", "–")], UGLY))
    complain(UGLY)
    text = raw.getvalue().decode(encoding)
    first = text.splitlines()[0]
    assert first.startswith(r"a\x1b[31m\r\x08\x9b2J \u202egnp [red]x[/] :smile: flow [/min] \udce9 US$ per %$ unit^ \ ")
    assert not set("\x1b\r\b\x9b\u202e") & set(text.replace(os.linesep, "\n"))
    assert ("- +/- ->" in first) == (encoding in ("ascii", "cp437", "latin-1"))
    assert "method" in text
    assert ("+-" in text) == (not encoding.startswith("utf"))  # the table's lines


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


def test_output_that_nobody_reads_ends_nothing(monkeypatch):
    monkeypatch.setattr(_printing, "_lost", [])
    for error, lost in ((BrokenPipeError(32, "Broken pipe"), ""), (OSError(28, "No space left on device"), "No space")):
        monkeypatch.setattr(sys, "stdout", Broken(error))
        errors = io.StringIO()
        monkeypatch.setattr(sys, "stderr", errors)
        say("a")
        say("b")
        assert _printing.failed().startswith(lost)
        assert bool(errors.getvalue()) == bool(lost)
    monkeypatch.setattr(sys, "stdout", None)
    say("c")


def test_a_progress_bar_that_nobody_sees_ends_nothing(monkeypatch):
    for stream in (Broken(BrokenPipeError(32, "Broken pipe")), None):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", None)
        _printing.prepare()
        for _ in tqdm.tqdm(range(3), mininterval=0):
            pass
        with Console(stderr=True).status("auditing"):
            complain("a")
            print("b", end="")


def test_a_command_line_can_be_pasted():
    assert quoted(["bilevax", "my file.csv", "--target", "a'b"]) == "bilevax 'my file.csv' --target 'a'\"'\"'b'"
    odd = ["echo", "-n", "caf\udce9\x1b'\\ [x].csv"]
    assert shown(quoted(odd)) == quoted(odd)
    printed = subprocess.run(["bash", "-c", quoted(odd)], capture_output=True, check=True).stdout
    assert printed == os.fsencode(odd[2])


# --- files ------------------------------------------------------------------------------------------------------------


def test_no_spreadsheet_runs_a_cell(tmp_path):
    text = ["=HYPERLINK(1)", "+1+1", "-1-1", "@x", "\tx", "\rx", "'=x", "it's", "-2.5", "+1e-3", "cat", "-"]
    frame = pd.DataFrame({"=label": text, "weight": np.arange(len(text)) - 5.5, "mixed": [-1, "-1", *text[2:]]})
    write_csv(tmp_path / "a.csv", frame)
    found = pd.read_csv(tmp_path / "a.csv", dtype={"'=label": str}, keep_default_na=False)
    assert found.columns.tolist() == ["'=label", "weight", "mixed"]
    changed = {i for i, (a, b) in enumerate(zip(text, found["'=label"], strict=True)) if a != b}
    assert {text[i] for i in changed} == {"=HYPERLINK(1)", "+1+1", "-1-1", "@x", "\tx", "\rx", "'=x", "-"}
    for cell in found["'=label"]:
        assert not re.match(r"[=+\-@\t\r]", cell) or re.fullmatch(r"[+-][0-9.e-]+", cell)
    back = [re.sub(r"^'(?='*[=+@\t\r-])", "", cell) for cell in found["'=label"]]
    assert back == text
    assert found["weight"].tolist() == frame["weight"].tolist()  # numbers stay numbers


def test_json_is_json(tmp_path):
    content = {
        "a": float("nan"),
        "b": [np.float32("inf"), np.int64(3), True],
        "c": np.array([1.5, np.nan]),
        "d": "\udce9",
    }
    write_json(tmp_path / "a.json", content)

    def no(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=no)
    assert found == {"a": None, "b": [None, 3, True], "c": [1.5, None], "d": "\\udce9"}


def fifo(path):
    os.mkfifo(path)
    return path


def empty(path):
    path.write_text("")
    return path


SPECIAL = {
    "a FIFO": (lambda p: fifo(p / "pipe.csv"), "is a pipe"),
    "an endless device": (lambda p: "/dev/zero", "is not a regular file"),
    "a terminal's input": (lambda p: "/dev/null", "is not a regular file"),
    "a folder": (lambda p: p, "is a folder"),
    "nothing": (lambda p: p / "gone.csv", "No such file"),
    "a link to nothing": (lambda p: (p / "l.csv").symlink_to(p / "gone") or p / "l.csv", "No such file"),
    "a link to itself": (lambda p: (p / "m.csv").symlink_to(p / "m.csv") or p / "m.csv", "symbolic links"),
    "below a file": (lambda p: (p / "f").write_text("") or p / "f" / "x.csv", "Not a directory"),
    "a long name": (lambda p: p / ("x" * 300 + ".csv"), "name too long"),
    "an empty file": (lambda p: empty(p / "empty.csv"), ""),
}
COMMANDS = {
    "denoise TRAIN": lambda f, ok: ("denoise", f, "--trusted", ok),
    "denoise --trusted": lambda f, ok: ("denoise", ok, "--trusted", f),
    "denoise --pred-probs": lambda f, ok: ("denoise", ok, "--pred-probs", f),
    "denoise --test": lambda f, ok: ("denoise", ok, "--trusted", ok, "--compare", "--test", f),
    "tune FILE": lambda f, ok: ("tune", f),
    "audit DATA": lambda f, ok: ("audit", f),
    "audit --validation": lambda f, ok: ("audit", ok, "--validation", f),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("make", "sentence"), SPECIAL.values(), ids=SPECIAL)
def test_what_is_no_file_is_refused_at_once(tmp_path, command, make, sentence):
    ok = tmp_path / "ok.csv"
    ok.write_text("a,kind\n" + "".join(f"{i % 5},{'xy'[i % 2]}\n" for i in range(12)))
    arguments = command(make(tmp_path), ok)
    text = refused(*arguments, "--target", "kind", "--out", tmp_path / "out")
    if (sentence == "is a folder" and arguments[0] == "denoise" and arguments[-1] == ok) or arguments[
        -2
    ] == "--trusted":
        assert sentence in text or "no pictures in its subfolders" in text
    else:
        assert sentence in text
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "a.csv").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        digest("train", tmp_path / "a.csv")


OPTIONS = [
    *((command, "--seed", value) for command in ("denoise", "tune", "audit", "fewshot") for value in (2**32, -1, "x")),
    *((command, "--steps", 10**12) for command in ("denoise", "audit", "fewshot")),
    *((command, "--devices", 10**9) for command in ("denoise", "audit", "fewshot")),
    *(("denoise", "--hold-out", value) for value in ("nan", "inf", "-1")),
    *(("audit", "--budget", value) for value in ("nan", "inf", "-inf", -1, 0, 0.6)),
    *(("audit", name, 10**12) for name in ("--levels", "--seeds", "--hidden")),
    *(("fewshot", name, 10**12) for name in ("--tasks", "--filters", "--episodes", "--side", "--way", "--shot")),
    ("tune", "--trials", 10**12),
    *(("tune", "--folds", value) for value in (1, "x", 10**6)),
    *(("tune", "--quantile", value) for value in ("nan", "inf", -0.5, 1.5)),
]


@pytest.mark.parametrize("arguments", OPTIONS, ids=lambda a: " ".join(map(str, a)))
def test_numbers_out_of_range(tmp_path, arguments, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    text = refused(*arguments, "--out", tmp_path / "out")
    assert arguments[1].strip("-") in text


def test_the_largest_seed_is_one(tmp_path):
    import jax

    assert jax.random.key_data(jax.random.key(2**32 - 1))[-1] == 2**32 - 1
    np.random.RandomState(2**32 - 1)


def interrupted(made, value=None):
    """A run that is left after one stage."""
    with made.stages() as stages:
        stages.of("one", lambda keep: {"x": value})
        raise KeyboardInterrupt


# --- runs -------------------------------------------------------------------------------------------------------------


def run(out, names=("a.csv", "results.json", "a.png"), settings=None, inputs=None, **more) -> Run:
    more = {"resume": False, "overwrite": False, "shared": out} | more
    return Run("denoise", out, list(names), settings or {"seed": 0}, inputs or {}, **more)


def test_a_users_files_in_checkpoints_stay(tmp_path):
    """The example of the report: also where the input is refused."""
    user = tmp_path / "p" / "checkpoints" / "model.pt"
    user.parent.mkdir(parents=True)
    user.write_text("w")
    assert "holds files that bilevax did not write" in refused("denoise", "--out", tmp_path / "p")
    for command in ("tune", "audit", "fewshot"):
        assert "holds files that bilevax did not write" in refused(command, "--out", tmp_path / "p", "--overwrite")
    assert user.read_text() == "w"
    assert [p.name for p in user.parent.iterdir()] == ["model.pt"]


def test_a_users_file_among_checkpoints_stays(tmp_path):
    made = run(tmp_path)
    with made.stages() as stages:
        stages.of("one", lambda keep: {"x": 1})
        (made.folder / "notes.txt").write_text("mine")
    assert [p.name for p in made.folder.iterdir() if p.name != ".bilevax"] == ["notes.txt"]
    with run(tmp_path).stages():  # and it is not an interrupted run
        pass
    assert (made.folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "link", "folder link"])
def test_checkpoints_that_are_no_folder(tmp_path, kind):
    (tmp_path / "other").mkdir()
    path = tmp_path / "checkpoints"
    path.write_text("mine") if kind == "file" else path.symlink_to("gone" if kind == "link" else "other")
    with pytest.raises(InputError, match="checkpoints"):
        run(tmp_path)
    assert path.is_symlink() or path.read_text() == "mine"
    assert not list((tmp_path / "other").iterdir())


def test_an_input_is_never_an_output(tmp_path):
    for kind in ("itself", "symlink", "hardlink"):
        out = tmp_path / kind
        out.mkdir()
        source = out / "suspects.csv" if kind == "itself" else tmp_path / f"{kind}.csv"
        source.write_text("a,kind\n1,x\n2,y\n")
        if kind == "symlink":
            (out / "suspects.csv").symlink_to(source)
        elif kind == "hardlink":
            os.link(source, out / "suspects.csv")
        for more in ((), ("--overwrite",)):
            command = ("denoise", source, "--trusted", source, "--target", "kind", "--out", out, *more)
            assert "is the input TRAIN and would be overwritten" in refused(*command)
        assert source.read_text() == "a,kind\n1,x\n2,y\n"


def test_checked_results_and_the_targets_of_links_stay(tmp_path):
    def again(**more):
        made = run(tmp_path / "out", **more)
        with made.stages():
            made.csv("a.csv", pd.DataFrame({"x": [1]}))
            made.json("results.json", {})

    again()
    again()  # over its own unchanged files
    (tmp_path / "out" / "a.csv").write_text("checked by hand")
    with pytest.raises(InputError, match=r"a.csv' exists and would be overwritten.+--overwrite"):
        again()
    assert (tmp_path / "out" / "a.csv").read_text() == "checked by hand"
    again(overwrite=True)
    target = tmp_path / "mine.json"
    target.write_text("mine")
    (tmp_path / "out" / "results.json").unlink()
    (tmp_path / "out" / "results.json").symlink_to(target)
    with pytest.raises(InputError, match="would be overwritten"):
        again()
    again(overwrite=True)
    assert target.read_text() == "mine"
    assert not (tmp_path / "out" / "results.json").is_symlink()


@pytest.mark.parametrize(
    "name", ["a [b]*?", " spaced ", "-dash", "ünï 猫", ".hidden", "caf\udce9", "new\nline", "--resume"]
)
def test_odd_names_of_folders(tmp_path, name):
    out = tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        interrupted(run(out), 1.5)
    with pytest.raises(InputError, match="holds an interrupted run"):
        run(out)
    made = run(out, resume=True)
    with made.stages() as stages:
        made.json("results.json", stages.of("one", lambda keep: 1 / 0))
    assert json.loads((out / "results.json").read_text()) == {"x": 1.5}
    assert not (out / "checkpoints").exists()


def test_the_root_folder_is_refused_and_a_link_to_a_folder_is_not(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="root of the file system"):
        run(_runs.Path("/"))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with (made := run(tmp_path / "link")).stages():
        made.json("results.json", {})
    assert (tmp_path / "real" / "results.json").is_file()
    monkeypatch.chdir(tmp_path / "real")
    with (made := run(_runs.Path())).stages():
        made.json("results.json", {})


def test_other_settings_damage_and_a_second_process_are_refused(tmp_path):
    with run(tmp_path).stages(), pytest.raises(InputError, match="another solve"):
        run(tmp_path, resume=True)
    with pytest.raises(KeyboardInterrupt):
        interrupted(run(tmp_path))
    with pytest.raises(InputError, match=r"had other settings \(seed\)"):
        run(tmp_path, settings={"seed": 1}, resume=True)
    (tmp_path / "checkpoints" / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json cannot be read"):
        run(tmp_path, resume=True)


def test_a_run_of_another_version_is_refused(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        interrupted(run(tmp_path))
    file = tmp_path / "checkpoints" / "settings.json"
    stored = json.loads(file.read_text())
    monkeypatch.setattr("bilevax.__version__", "99.0")
    with pytest.raises(InputError, match=rf"is of bilevax {re.escape(stored['bilevax'])}, and this is bilevax 99\.0"):
        run(tmp_path, resume=True)
    del stored["bilevax"]
    file.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="is of bilevax unknown"):
        run(tmp_path, resume=True)
    assert (tmp_path / "checkpoints" / "one.npz").is_file()


class Older(NamedTuple):
    method: str
    seconds: float


class Newer(NamedTuple):
    method: str
    seconds: float
    speed: float | None = None


def test_stages_with_other_fields_are_refused_and_kept(tmp_path):
    """Two commits of one version may store different fields; a default must not stand in for a value."""

    def began(older):
        with run(tmp_path).stages() as stages:
            assert stages.rebuilt(Older, stages.of("one", lambda keep: older._asdict())) == older
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        began(Older("a", 1.0))

    def resumed(kind, **given):
        with run(tmp_path, resume=True).stages() as stages:
            return stages.rebuilt(kind, stages.of("one", lambda keep: 1 / 0), **given)

    sentence = r"a Newer stored in .+ has the fields method, seconds, and this .+ needs method, seconds, speed\. Resume"
    with pytest.raises(InputError, match=sentence):
        resumed(Newer)
    assert resumed(Newer, speed=2.0) == Newer("a", 1.0, 2.0)


def test_what_ends_a_run_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "denoise", "my file.csv", "--resume"])
    with pytest.raises(SystemExit) as ended, run(tmp_path).stages() as stages:
        stages.of("one", lambda keep: {"x": signal.raise_signal(signal.SIGTERM)})
    assert ended.value.code == 143
    said = capsys.readouterr().err
    assert said.startswith("Ended by SIGTERM. What was computed is kept in ")
    assert said.endswith("To go on with it: bilevax denoise 'my file.csv' --resume\n")

    def fails():
        with run(tmp_path, resume=True).stages() as stages:
            assert stages.of("one", lambda keep: {}) == {"x": None}
            stages.of("two", lambda keep: 1 / 0)

    def searches():
        with run(tmp_path, resume=True).stages():
            signal.raise_signal(signal.SIGTERM)
            raise KeyboardInterrupt  # as a search does after a signal

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "Ended by an error. What was computed is kept" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        searches()
    assert ended.value.code == 143
    assert "Ended by SIGTERM" in capsys.readouterr().err


@pytest.mark.parametrize("earlier", [False, True])
def test_refused_input_leaves_no_run_behind_but_an_earlier_one(tmp_path, earlier):
    def refuses():
        with run(tmp_path, resume=earlier).stages() as stages:
            stages.of("two", lambda keep: {})
            raise InputError("no.")

    if earlier:
        with pytest.raises(KeyboardInterrupt):
            interrupted(run(tmp_path))
    with pytest.raises(InputError):
        refuses()
    assert (tmp_path / "checkpoints").exists() == earlier


def test_a_folder_that_vanishes_costs_no_result(tmp_path, capsys):
    import shutil

    out = tmp_path / "out"
    made = run(out)
    with made.stages() as stages:
        shutil.rmtree(out)
        assert stages.of("one", lambda keep: {"x": 1}) == {"x": 1}
        made.json("results.json", {"x": 1})  # it is made again
        assert (out / "results.json").is_file()
        shutil.rmtree(out)
        out.write_text("a file now")
        made.csv("a.csv", pd.DataFrame({"x": [1]}))
        made.picture("a.png", lambda path: path.write_bytes(b"png"))
    assert sorted(path.name for path in made.elsewhere.iterdir()) == ["a.csv", "a.png"]
    with pytest.raises(SystemExit) as ended:
        made.end(1.0)
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert f"files go to {made.elsewhere} instead" in printed.err
    assert f"Wrote results.json, a.csv, a.png to {made.elsewhere} in 1.0 s" in printed.out
    shutil.rmtree(made.elsewhere)


def test_a_picture_that_fails_is_a_sentence(tmp_path, capsys):
    made = run(tmp_path)
    with made.stages():
        made.json("results.json", {})
        made.picture("a.png", lambda path: 1 / 0)
    assert "a.png could not be drawn (division by zero)" in capsys.readouterr().err
    assert made.written == ["results.json"]


# --- stages -----------------------------------------------------------------------------------------------------------


def test_stages_give_the_same_bits_fresh_and_read_back(tmp_path):
    value = {
        "n": 3,
        "x": 0.1 + 0.2,
        "none": None,
        "flag": np.bool_(True),
        "text": "caf\udce9",
        "list": [1.5, {"a": np.arange(6, dtype=np.float32).reshape(2, 3) / 7}],
        "nan": float("nan"),
        "names": np.array(["a", "é"]),
    }
    found = unpack(pack(value))
    assert pack(found) == pack(value)
    assert (found["x"], found["text"], found["flag"]) == (value["x"], "caf\udce9", True)
    np.testing.assert_array_equal(found["list"][1]["a"], value["list"][1]["a"])
    assert found["list"][1]["a"].dtype == np.float32
    with pytest.raises(TypeError, match="cannot be kept"):
        pack({"x": np.array([None])})


def test_damaged_stages_are_computed_again_and_unwritten_ones_go_on(tmp_path):
    folder = tmp_path / "run"
    _files.claim(folder, "--out")
    said = []
    Stages(folder).of("one", lambda keep: {"x": 1})
    Stages(folder).of("two", lambda keep: {"x": 1})
    content = (folder / "one.npz").read_bytes()
    for damaged in (b"", content[:50], content[:-30] + b"x" * 30):
        (folder / "one.npz").write_bytes(damaged)
        assert Stages(folder).of("one", lambda keep: {"x": 2}) == {"x": 2}
    stages = Stages(folder, notice=said.append)
    assert stages.of("two", lambda keep: 1 / 0) == {"x": 1}
    assert stages.resumed
    if os.geteuid() != 0:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert stages.of("three", lambda keep: {"x": 3}) == {"x": 3}
        folder.chmod(0o700)
    else:
        (folder / ".bilevax").unlink()
        (folder / ".bilevax").mkdir()
        assert stages.of("three", lambda keep: {"x": 3}) == {"x": 3}
    assert "'three' could not be kept" in said[0]

"""The command line: what it writes, what it refuses, and how an interrupted run goes on."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import bilevax
from bilevax import cli
from bilevax.applications.denoising.comparison import Row
from bilevax.applications.denoising.jobs import Job
from bilevax.cli import _comparing


def bilevax_command(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments) -> str:
    """The sentence with which bad input is refused."""
    result = bilevax_command(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stderr.strip().endswith((".", "?"))
    return result.stderr


@pytest.fixture
def frames():
    """Two blobs; 30 of 150 training labels are turned round."""
    rng = np.random.default_rng(0)

    def draw(n):
        kind = rng.integers(0, 2, n)
        x = rng.normal(size=(n, 2)) + 3 * kind[:, None]
        place = np.where(rng.random(n) < 0.5, "here", "there")
        return pd.DataFrame(
            {"width": x[:, 0], "height": 100 * x[:, 1], "place": place, "kind": np.array(["cat", "dog"])[kind]}
        )

    train, clean, test = draw(150), draw(40), draw(100)
    train.loc[:29, "kind"] = train["kind"][:30].map({"cat": "dog", "dog": "cat"})
    return train, clean, test


@pytest.fixture
def files(tmp_path, frames):
    paths = [tmp_path / f"{name}.csv" for name in ("train", "clean", "test")]
    for frame, path in zip(frames, paths, strict=True):
        frame.to_csv(path, index=False)
    return paths


def test_version():
    result = bilevax_command("--version")
    assert (result.exit_code, result.stdout) == (0, f"bilevax {bilevax.__version__}\n")


@pytest.mark.slow
@pytest.mark.parametrize("ended", [False, True], ids=["whole", "ended"])
def test_users_csv_with_a_test_file_also_ended_by_a_signal_and_resumed(tmp_path, files, frames, ended_early, ended):
    train, clean, test = files
    out = tmp_path / "deep" / "out"
    command = ["denoise", train, "--trusted", clean, "--test", test, "--target", "kind", "--out", out, "--compare"]
    command += ["--steps", 50]
    if ended:
        ended_early(command, 31)
    result = bilevax_command(*command, *(["--resume"] if ended else []))
    assert result.exit_code == 0, result.output
    assert "place (2 values)" in result.stdout
    assert "150 training samples, 40 trusted, 100 test samples" in " ".join(result.stdout.split())
    assert sorted(p.name for p in out.iterdir()) == [
        ".bilevax",
        "convergence.png",
        "model",
        "noise_matrix.csv",
        "report.html",
        "results.json",
        "suspects.csv",
        "weights.csv",
        "weights.png",
    ]

    suspects = pd.read_csv(out / "weights.csv")
    assert list(suspects.columns) == ["row", "given_label", "weight", "believed_label", "suspect"]
    in_order = suspects.sort_values("row")
    assert in_order["given_label"].tolist() == frames[0]["kind"].tolist()
    assert suspects["weight"].between(0, 1).all()
    wrong = np.arange(150) < 30
    found = (in_order["suspect"] == "yes").to_numpy()
    assert (found & wrong).sum() >= 27
    assert (found & ~wrong).sum() <= 6
    believed = in_order["believed_label"].map({"cat": "dog", "dog": "cat"}).to_numpy()
    assert (believed == frames[0]["kind"])[wrong].sum() >= 27

    whole = json.loads((out / "results.json").read_text())
    report = whole["comparison"]
    methods = {m["method"]: m for m in report["methods"]}
    assert list(methods) == ["all labels as given", "trusted samples only", "Penalty", "ApproxGrad"]
    assert all(m["test_accuracy"] > 0.9 for name, m in methods.items() if name != "all labels as given")
    assert methods["Penalty"]["suspects"] == found.sum()
    assert methods["Penalty"]["precision"] is None
    assert f"{methods['Penalty']['test_accuracy']:.1%}" in result.stdout
    assert report["data"] == {
        "title": str(train),
        "train": 150,
        "clean": 40,
        "test": 100,
        "features": 4,
        "classes": 2,
        "wrong_labels": None,
    }
    assert (whole["seed"], report["steps"]) == (0, 50)
    assert whole["versions"]["bilevax"] == bilevax.__version__
    assert whole["settings"]["train"]["file"] == str(train)
    assert whole["resumed"] == ended
    assert whole["wall_seconds"] > report["methods"][-1]["seconds"]


def test_review_finds_wrong_labels_and_applies_its_suggestions(tmp_path, files, frames):
    """Without a trusted label; the corrected file differs from the input in the labels that changed alone."""
    command = ["denoise", files[0], "--target", "kind", "--out", tmp_path / "out"]
    result = bilevax_command(*command, "--apply", "auto", "--above", 0.8)
    assert result.exit_code == 0, result.output
    assert f"Decide about the suspects in {tmp_path / 'out' / 'report.html'}" in result.stdout
    suspects = pd.read_csv(tmp_path / "out" / "suspects.csv")
    assert suspects.columns[:5].tolist() == ["row", "line", "given_label", "suggested_label", "probability_wrong"]
    wrong = np.arange(150) < 30
    assert wrong[suspects["row"].to_numpy()[:30]].mean() >= 0.85
    assert suspects["line"].tolist() == (suspects["row"] + 2).tolist()
    assert (suspects["width"].to_numpy() == frames[0]["width"].to_numpy()[suspects["row"]]).all()
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["expected_wrong"]["low"] <= 30 <= report["expected_wrong"]["high"]
    before, after = pd.read_csv(files[0]), pd.read_csv(tmp_path / "out" / "corrected.csv")
    changes = pd.read_csv(tmp_path / "out" / "changes.csv")
    changed = before["kind"] != after["kind"]
    assert before.drop(columns="kind").equals(after.drop(columns="kind"))
    assert sorted(changes["row"]) == np.flatnonzero(changed).tolist()
    assert wrong[changed].all()
    assert changed.sum() >= 5  # without trusted labels few suggestions are that certain


def test_decisions_are_applied_without_a_review(tmp_path, files, frames):
    from bilevax.applications.denoising.review import short_digest
    from bilevax.data.samples.read import Options, read_samples

    data = short_digest(read_samples(files[0], options=Options(target="kind")).source.digest)
    given = frames[0]["kind"]
    other = {"cat": "dog", "dog": "cat"}[given[3]]
    decisions = tmp_path / "decisions.csv"
    rows = [
        f"3,{given[3]},correct,{other},{data}",
        f"5,{given[5]},drop,,{data}",
        f"7,{given[7]},keep,{given[7]},{data}",
    ]
    decisions.write_text("row,given_label,decision,label,data\n" + "\n".join(rows) + "\n")
    command = ["denoise", files[0], "--target", "kind", "--apply", decisions, "--out", tmp_path / "out"]
    result = bilevax_command(*command)
    assert result.exit_code == 0, result.output
    assert "2 of 150 samples are corrected or left out" in result.stdout
    after = pd.read_csv(tmp_path / "out" / "corrected.csv")
    expected = frames[0].assign(kind=given.mask(np.arange(150) == 3, other)).drop(index=5)
    assert after["kind"].tolist() == expected["kind"].tolist()
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_npz_of_images_with_some_clean_samples_held_out(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train", 60), ("clean", 20)):
        y = np.arange(n) % 2
        X = rng.random((n, 6, 5))
        X[y == 1, :, 3:] += 2
        np.savez(tmp_path / f"{name}.npz", X=X, y=y)
    command = ["denoise", tmp_path / "train.npz", "--trusted", tmp_path / "clean.npz", "--compare", "--steps", 2]
    result = bilevax_command(*command, "--batch-size", 30, "--hold-out", 0.25, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "set aside from the trusted samples" in " ".join(result.stdout.split())
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    comparison = report["comparison"]
    assert (comparison["data"]["clean"], comparison["data"]["test"]) == (15, 5)
    assert all(m["test_accuracy"] >= 0.8 for m in comparison["methods"])


def test_out_that_cannot_be_written(tmp_path, files):
    (tmp_path / "file").write_text("")
    started = time.perf_counter()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"--out: {str(out)!r} cannot be written" in refused("denoise", "--out", out)
    assert time.perf_counter() - started < 2  # nothing was computed
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "Permission denied" in refused("denoise", "--out", tmp_path / "locked")


def denoise_refused(tmp_path, files, *more) -> str:
    return refused("denoise", files[0], "--trusted", files[1], "--target", "kind", "--out", tmp_path / "out", *more)


def test_arguments_that_need_others(tmp_path, files):
    only = ("denoise", files[0], "--target", "kind", "--out", tmp_path / "out")
    assert "Pass a file of them by --trusted" in refused(*only, "--compare")
    for option in (("--test", files[2]), ("--hold-out", 0.5), ("--steps", 3), ("--batch-size", 3), ("--devices", 2)):
        assert f"{option[0]} is an option of the comparison" in refused(*only, *option)
    assert "needs --target" in refused("denoise", files[0], "--trusted", files[1], "--out", tmp_path / "out")
    assert "--trusted is given without TRAIN" in refused("denoise", "--trusted", files[1], "--out", tmp_path / "out")
    assert "--target is given without TRAIN" in refused("denoise", "--target", "kind", "--out", tmp_path / "out")


def test_options_that_apply_and_given_probabilities_do_not_use(tmp_path, files):
    only = ("denoise", files[0], "--target", "kind", "--out", tmp_path / "out")
    assert "--above is the probability of --apply auto" in refused(*only, "--above", 0.8)
    assert "--apply FILE does not review" in refused(*only, "--trusted", files[1], "--compare", "--apply", files[2])
    assert "--model is not used" in refused(*only, "--pred-probs", files[2], "--model", "trees")
    (tmp_path / "out" / "corrected").mkdir(parents=True)
    (tmp_path / "pictures").mkdir()
    text = refused("denoise", tmp_path / "pictures", "--apply", "auto", "--out", tmp_path / "out")
    assert "corrected exists, and is not overwritten" in text


def test_csv_without_the_target_column(tmp_path, files, frames):
    frames[1].rename(columns={"kind": "sort"}).to_csv(files[1], index=False)
    text = denoise_refused(tmp_path, files)
    assert f"--trusted ({files[1]}) has no column 'kind'" in text
    assert "'width', 'height', 'place', 'sort'" in text


def test_one_class(tmp_path, files, frames):
    frames[0].assign(kind="cat").to_csv(files[0], index=False)
    assert "one class only ('cat')" in denoise_refused(tmp_path, files)


@pytest.mark.slow
def test_missing_values_are_filled_but_not_for_a_comparison(tmp_path, files, frames):
    frame = frames[0].copy()
    frame.loc[[1, 2, 3], "width"] = np.nan
    frame.loc[4, "kind"] = None
    frame.to_csv(files[0], index=False)
    assert "'width': 3, 'kind': 1" in denoise_refused(tmp_path, files, "--compare")
    result = bilevax_command("denoise", files[0], "--target", "kind", "--model", "linear", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(tmp_path / "out" / "suspects.csv")) == 149


def test_clean_label_that_the_training_set_lacks(tmp_path, files, frames):
    frame = frames[1].copy()
    frame.loc[0, "kind"] = "fox"
    frame.to_csv(files[1], index=False)
    text = denoise_refused(tmp_path, files)
    assert "lacks: 'fox'" in text
    assert "'cat', 'dog'" in text


def test_columns_that_differ(tmp_path, files, frames):
    frames[1].drop(columns="place").to_csv(files[1], index=False)
    assert "has: 'place'" in denoise_refused(tmp_path, files)


def test_files_that_are_not_there_or_not_known(tmp_path, files):
    gone = tmp_path / "gone.csv"
    assert "No such file" in refused(
        "denoise", gone, "--trusted", files[1], "--target", "kind", "--out", tmp_path / "o"
    )
    other = tmp_path / "train.xlsx"
    other.write_bytes(b"PK")
    text = refused("denoise", other, "--trusted", files[1], "--target", "kind", "--out", tmp_path / "o")
    assert "'.xlsx', an unknown format" in text
    np.savez(tmp_path / "a.npz", y=np.arange(4))
    text = refused("denoise", tmp_path / "a.npz", "--trusted", files[1], "--out", tmp_path / "o")
    assert "has no array 'X'" in text


@pytest.mark.slow
def test_clean_samples_too_few_to_hold_any_out(tmp_path, files, frames):
    frames[1].groupby("kind").head(1).to_csv(files[1], index=False)
    assert "--hold-out 0.5 cannot be taken from 2" in denoise_refused(tmp_path, files, "--compare", "--hold-out", 0.5)


@pytest.mark.slow
def test_fewer_samples_than_a_batch(tmp_path, files):
    text = denoise_refused(tmp_path, files, "--compare", "--batch-size", 151)
    assert "150 samples, fewer than one batch of 151" in text
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.slow
def test_a_failed_solve_is_told_in_words(tmp_path, files, monkeypatch):
    from bilevax.applications.denoising import importance_classifier

    def fail(self, *data):
        raise bilevax.SolveError("Step 7 of 9: a step gave a NaN.", None)

    monkeypatch.setattr(importance_classifier.ImportanceClassifier, "fit", fail)
    command = ["denoise", files[0], "--trusted", files[1], "--target", "kind", "--out", tmp_path / "out"]
    result = bilevax_command(*command, "--compare")
    assert result.exit_code == 1
    assert "The solve failed. Step 7 of 9" in result.stderr


@pytest.mark.slow
def test_interrupted_run_on_the_digits_is_kept_and_resumed(tmp_path):
    """Ctrl-C in a true process, once a checkpoint is there."""
    command = [sys.executable, "-c", "from bilevax.cli import main; main()"]
    command += ["denoise", "--compare", "--steps", "60", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    saves = tmp_path / "checkpoints" / "penalty"
    deadline = time.monotonic() + 120
    while not any(path.name.isdecimal() and int(path.name) >= 10 for path in saves.glob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "To go on with it: bilevax denoise" in errors
    assert errors.strip().endswith("--resume")
    assert 10 <= max(int(path.name) for path in saves.iterdir() if path.name.isdecimal()) <= 60
    assert not (tmp_path / "results.json").exists()

    arguments = command[3:]
    assert "holds an interrupted run" in refused(*arguments)
    assert "had other settings (seed)" in refused(*arguments, "--resume", "--seed", 1)

    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "Penalty:   0%|" not in resumed.stderr  # the bar starts where the run was interrupted
    assert "ApproxGrad:   0%|" in resumed.stderr
    assert "40% of the labels wrong" in " ".join(resumed.stdout.split())
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "contact_sheet.png").stat().st_size > 10_000
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["resumed"]
    assert report["known"]["wrong"] == 400
    assert report["known"]["average_precision"] > 0.98
    methods = {m["method"]: m for m in report["comparison"]["methods"]}
    assert methods["oracle: right labels"]["test_accuracy"] > methods["all labels as given"]["test_accuracy"]
    assert methods["Penalty"]["precision"] > 0.85
    assert methods["Penalty"]["recall"] > 0.9
    assert len(pd.read_csv(tmp_path / "suspects.csv")) == 1000


@pytest.mark.slow  # 10 s
def test_runs_that_signals_end_come_to_the_same_bits(same_after_signals, files):
    command = [
        "denoise",
        files[0],
        "--trusted",
        files[1],
        "--target",
        "kind",
        "--compare",
        "--hold-out",
        0.25,
        "--steps",
        12,
    ]
    same_after_signals(command, [5, 10])


def test_no_command_puts_a_folder_on_the_path():
    """The console script, unlike python -m, leaves the current folder off sys.path; no file of ours adds it."""
    source = Path(cli.__file__).parents[1]
    for path in source.rglob("*.py"):
        assert "sys.path" not in path.read_text(), path


def test_table_without_a_test_set_says_how_to_get_one():
    y = np.array(["cat", "dog"])
    data = Job("pets.csv", np.eye(2), y, np.eye(2), y, None, None, None, None, ())
    table = _comparing.table(data, [Row("Penalty", 2.0, suspects=1)], hold_out=0.0)
    assert "--hold-out 0.25" in str(table.caption)
    assert "no test set" in str(table.title)
    headings = ["method", "test\naccuracy", "suspects", "precision", "recall", "seconds"]
    assert [str(column.header) for column in table.columns] == headings
    assert [str(next(iter(column.cells))) for column in table.columns] == ["Penalty", "–", "1", "–", "–", "2.0"]


@pytest.mark.parametrize("more", [[], [("selected", "suspects", ",d")]], ids=["as it is", "one column more"])
def test_no_heading_of_the_table_is_cut_at_80_columns(monkeypatch, more):
    columns = [*_comparing.COLUMNS, *more]
    monkeypatch.setattr(_comparing, "COLUMNS", columns)
    y = np.array(["cat", "dog"])
    data = Job("pets.csv", np.eye(2), y, np.eye(2), y, None, None, None, None, ())
    console = Console(width=80, file=io.StringIO())
    rows = [Row("oracle: right labels", 1234.5, 0.987, 12345, 0.5, 0.5), Row("all labels as given", 1234.5)]
    console.print(_comparing.table(data, rows, hold_out=0.0))
    printed = console.file.getvalue()
    words = printed.split()
    assert all(word in words for heading, _, _ in columns for word in heading.split())
    assert "…" not in printed
    assert all(word in words for word in ("oracle:", "98.7%", "12,345", "0.500", "1234.5"))


def test_the_package_runs_as_a_module(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "main", lambda: calls.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["bilevax", "--version"])
    runpy.run_module("bilevax", run_name="__main__")
    assert calls == [["--version"]]

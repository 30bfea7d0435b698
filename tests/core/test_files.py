"""What this program may remove and overwrite, and what it may not."""

import json
import os
from pathlib import Path

import pytest

from bilevax import InputError, _files


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "is None, and must be a path"),
        (3, "is 3, and must be a path"),
        (["a"], r"is \['a'\], and must be a path"),
        (b"folder", "is b'folder', bytes. Pass a str"),
        ("", "is '', an empty path"),
        ("  ", "an empty path"),
        ("a\0b", "holds a NUL character"),
        ("~nobody-of-that-name/x", "home folder does not exist"),
        ("x" * 300, "a name of more than 255 bytes"),
        ("é" * 130, "a name of more than 255 bytes"),
        ("\ud83d", "cannot be encoded"),
        ("gs://bucket/run", "is 'gs://bucket/run', a URL"),
        ("s3://bucket/run", "a URL"),
        (Path("gs://bucket/run"), "is 'gs:/bucket/run', a URL"),
        ("file:///tmp/x", "a URL"),
        ("https://host/x", "a URL"),
    ],
    ids=str,
)
def test_what_is_no_local_path_is_refused(path, message):
    with pytest.raises(InputError, match=f"^Here: path .*{message}"):
        _files.local_path("Here: path", path)


@pytest.mark.parametrize("name", ["a b", "[a]", "-x", "a.", "100%", "#1", "c:x", "naïve ☃", "a\\b", "a*?", "gs:x"])
def test_any_name_that_a_file_can_have_is_a_local_path(tmp_path, name):
    path = _files.local_path("Here: path", str(tmp_path / name))
    assert path == tmp_path / name
    path.write_text("x")
    assert os.listdir(tmp_path) == [name]


def test_relative_and_home_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _files.local_path("x", "a/../b") == tmp_path / "b"
    assert _files.local_path("x", "~/b") == tmp_path / "home" / "b"


def test_a_relative_path_in_a_folder_that_is_gone_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match="a current folder that was removed"):
        _files.local_path("x", "saves")


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_folder_is_claimed_if_new_empty_or_ours(tmp_path):
    _files.claim(tmp_path / "a" / "new", "--out")
    _files.claim(tmp_path / "a" / "new", "--out")
    (tmp_path / "empty").mkdir()
    _files.claim(tmp_path / "empty", "--out")
    assert all(_files.is_ours(tmp_path / name) for name in ("a/new", "empty"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.pt").write_text("weights")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--out: '.*full' holds files that bilevax did not write"):
        _files.claim(tmp_path / "full", "--out")
    with pytest.raises(InputError, match=r"--out: '.*file' cannot be written"):
        _files.claim(tmp_path / "file", "--out")
    assert tree(tmp_path / "full") == ["model.pt"]


def test_only_what_was_written_is_removed(tmp_path):
    out = tmp_path / "out"
    outputs = _files.Outputs(out, ["a.txt", "b.txt", "sub/c.txt"])
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        outputs.write(name, lambda path: path.write_text("result"))
    (out / "b.txt").write_text("edited by hand")
    (out / "sub" / "mine.txt").write_text("mine")
    (out / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    _files.make(tmp_path / "elsewhere" / "ours")
    assert not _files.remove_ours(out)
    assert tree(out) == [".bilevax", "b.txt", "link", "sub", "sub/.bilevax", "sub/mine.txt"]
    assert (tmp_path / "elsewhere" / "ours" / ".bilevax").exists()
    for name in ("b.txt", "link", "sub/mine.txt"):
        (out / name).unlink()
    assert _files.remove_ours(out)
    assert not out.exists()


def test_a_folder_without_a_mark_is_never_removed(tmp_path):
    (tmp_path / "model.pt").write_text("weights")
    for text in (None, "", "{", "[]", '{"program": "other", "made": true, "files": {}}', '{"files": {}}'):
        if text is not None:
            (tmp_path / ".bilevax").write_text(text)
        assert not _files.is_ours(tmp_path)
        assert not _files.remove_ours(tmp_path)
    assert tree(tmp_path) == [".bilevax", "model.pt"]


def test_a_mark_cannot_name_files_outside_its_folder(tmp_path):
    (tmp_path / "mine").write_text("x")
    for name in ("../mine", str(tmp_path / "mine"), ".", ""):
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        (folder / ".bilevax").write_text(json.dumps({"program": "bilevax", "made": True, "files": {name: []}}))
        assert not _files.remove_ours(folder)
    assert (tmp_path / "mine").exists()


def test_a_folder_that_was_there_before_stays(tmp_path):
    _files.Outputs(tmp_path, ["a"]).write("a", lambda path: path.write_text("x"))
    _files.remove_ours(tmp_path)
    assert tmp_path.exists()
    assert tree(tmp_path) == [".bilevax"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fails(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        _files.replace(path, fails)
    assert path.read_text() == "before"
    assert tree(tmp_path) == ["a.txt"]
    _files.replace(path, lambda temporary: temporary.write_text("after"))
    assert path.read_text() == "after"


def test_a_symlink_is_replaced_and_its_target_left(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("mine")
    link.symlink_to(target)
    _files.replace(link, lambda path: path.write_text("result"))
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("mine", "result", False)


@pytest.mark.parametrize("kind", ["plain", "symlink", "hardlink", "up and down", "symlink to the folder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_an_output(tmp_path, kind, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    source = out / "a.csv"
    source.write_text("data")
    if kind == "symlink":
        source = tmp_path / "train.csv"
        source.symlink_to(out / "a.csv")
    elif kind == "hardlink":
        source = tmp_path / "train.csv"
        source.hardlink_to(out / "a.csv")
    elif kind == "up and down":
        source = out / ".." / "out" / "a.csv"
    elif kind == "symlink to the folder":
        (tmp_path / "same").symlink_to(out)
        source = tmp_path / "same" / "a.csv"
    with pytest.raises(InputError, match=r"--out: '.*a.csv' is the input TRAIN and would be overwritten"):
        _files.Outputs(out, ["b.csv", "a.csv"], inputs={"--test": None, "TRAIN": source}, overwrite=overwrite)
    assert tree(out) == ["a.csv"]


@pytest.mark.parametrize("kind", ["user's", "edited", "symlink", "dangling", "fifo"])
def test_what_is_not_an_unchanged_output_is_refused_unless_told(tmp_path, kind):
    out, path = tmp_path / "out", tmp_path / "out" / "a.csv"
    (tmp_path / "target").write_text("mine")
    _files.Outputs(out, ["a.csv"])
    if kind == "edited":
        _files.Outputs(out, ["a.csv"]).write("a.csv", lambda path: path.write_text("result"))
        path.write_text("result, checked by hand")
    elif kind == "symlink":
        path.symlink_to(tmp_path / "target")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("mine")
    with pytest.raises(InputError, match=r"'.*a.csv' exists and would be overwritten.*or pass --overwrite"):
        _files.Outputs(out, ["a.csv"])
    outputs = _files.Outputs(out, ["a.csv"], overwrite=True)
    for text in ("one", "two", "three"):
        outputs.write("a.csv", lambda path, text=text: path.write_text(text))
        outputs = _files.Outputs(out, ["a.csv"])
    assert path.read_text() == "three"
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_kill_between_record_and_rename_leaves_an_output(tmp_path, monkeypatch):
    outputs = _files.Outputs(tmp_path, ["a"])
    outputs.write("a", lambda path: path.write_text("one"))
    real = os.replace

    def killed(source, target):
        if Path(target).name == "a":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        outputs.write("a", lambda path: path.write_text("two"))
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "one"
    _files.Outputs(tmp_path, ["a"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_place_of_an_output_is_refused(tmp_path, overwrite):
    (tmp_path / "out" / "a.csv").mkdir(parents=True)
    with pytest.raises(InputError, match="is a folder"):
        _files.Outputs(tmp_path / "out", ["a.csv"], overwrite=overwrite)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--out: '.*file' cannot be written"):
        _files.Outputs(tmp_path / "file", ["a.csv"], overwrite=overwrite)
    (tmp_path / "out" / ".bilevax").write_text("mine")
    with pytest.raises(InputError, match=r"'.*\.bilevax' is damaged or was not written by bilevax"):
        _files.Outputs(tmp_path / "out", ["b.csv"], overwrite=overwrite)


def test_a_folder_has_one_lock(tmp_path):
    """That it ends with its process: test_saves.py."""
    unlock = _files.lock(tmp_path, "Here")
    for refused in (_files.lock, _files.require_unlocked):
        with pytest.raises(
            _files.LockedError, match=rf"which another solve \(process {os.getpid()} on .*\) is writing"
        ):
            refused(tmp_path, "Here")
    unlock()
    assert tree(tmp_path) == []
    _files.require_unlocked(tmp_path, "Here")
    _files.lock(tmp_path, "Here")()


def test_a_locked_folder_is_not_removed(tmp_path):
    _files.make(tmp_path / "saves")
    unlock = _files.lock(tmp_path / "saves", "Here")
    with pytest.raises(_files.LockedError):
        _files.remove_ours(tmp_path / "saves")
    unlock()
    (tmp_path / "saves" / ".bilevax.lock").write_text("of a process that was killed")
    assert _files.remove_ours(tmp_path / "saves")

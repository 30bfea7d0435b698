"""`bilevax fewshot`: its figures, its files and its refusals. No test leaves this machine."""

import json
import re
import socket
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import bilevax
from bilevax import InputError, cli, plots
from bilevax.applications.fewshot import comparison, evaluate, pixel_means
from bilevax.applications.fewshot.jobs import (
    Parts,
    Pictures,
    pictures_from_folder,
    queries_of,
    readable,
    ready_made_pictures,
    split_classes,
)
from bilevax.cli import _learning
from bilevax.data import DownloadError, class_folders, digits, omniglot

TINY = ("--way", 3, "--shot", 2, "--steps", 25, "--tasks", 2, "--filters", 4, "--episodes", 20)


def bilevax_command(*arguments):
    return CliRunner().invoke(cli.app, ["fewshot", *map(str, arguments)])


def refused(*arguments) -> str:
    """The sentence with which bad input is refused."""
    result = bilevax_command(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stderr.strip().endswith((".", "?"))
    return result.stderr


def make(folder, classes=9, pictures=5, size=(16, 16), seed=0):
    """A pattern for each class, under noise and a light of its own that pixels cannot see through."""
    rng = np.random.default_rng(seed)
    for c in range(classes):
        pattern = rng.choice([-40.0, 40.0], (size[1] // 4 + 1, size[0] // 4 + 1)).repeat(4, 0).repeat(4, 1)
        (folder / f"class {c}").mkdir(parents=True)
        for i in range(pictures):
            light = rng.uniform(60, 190)
            drawn = light + pattern[: size[1], : size[0]] + rng.normal(0, 10, size[::-1])
            Image.fromarray(drawn.clip(0, 255).astype(np.uint8)).save(folder / f"class {c}" / f"{i}.png")
    return folder


@pytest.fixture
def nothing_at_hand(tmp_path, monkeypatch):
    """Neither data nor a cache, nor a way out."""
    for name in ("BILEVAX_DATA", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))

    def connect(*arguments):
        raise AssertionError("a connection is opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run; two files of its folder are no pictures, and a class has one more."""
    base = tmp_path_factory.mktemp("fewshot")
    folder, out = make(base / "pets"), base / "deep" / "out"
    (folder / "class 3" / "notes.txt").write_text("no picture")
    (folder / "class 7" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(folder / "class 5" / "more.png")
    (folder / "class 0").rename(folder / r"a $\b$ [red]")
    result = bilevax_command(folder, *TINY, "--out", out)
    assert result.exit_code == 0, result.output
    return folder, out, result, json.loads((out / "fewshot.json").read_text())


def test_the_report_says_what_was_done(run):
    folder, out, result, content = run
    assert sorted(path.name for path in out.iterdir()) == [".bilevax", "curve.png", "episode.png", "fewshot.json"]
    assert content["settings"] == {
        "folder": str(folder),
        "way": 3,
        "shot": 2,
        "queries": 3,  # what five pictures leave
        "test_classes": 3,
        "side": None,
        "strict": False,
        "steps": 25,
        "tasks": 2,
        "filters": 4,
        "episodes": 20,
        "seed": 0,
    }
    data = content["data"]
    assert (data["classes"], data["pictures_of_each"], data["shape"]) == (9, 5, [16, 16])
    names = {r"a $\b$ [red]", *(f"class {c}" for c in range(1, 9))}
    assert (len(data["train_classes"]), len(data["test_classes"])) == (6, 3)
    assert {*data["train_classes"], *data["test_classes"]} == names
    assert data["unread"] == ["class 3/notes.txt", "class 7/broken.png"]
    assert content["versions"]["bilevax"] == bilevax.__version__
    assert content["wall_seconds"] > sum(method["seconds"] for method in content["methods"])  # none was read back
    said = " ".join(result.stdout.split())
    assert "left out (2): class 3/notes.txt, class 7/broken.png." in said
    assert r"as the smallest class (a $\b$ [red]) has; 1 other is left out" in said
    assert "6 training classes and 3 test classes, with 5 pictures of 16 x 16 each" in said


def test_the_representation_learns_what_pixels_do_not_show(run):
    _, _, result, content = run
    pixels, untrained, trained = content["methods"]
    assert [m["method"] for m in content["methods"]] == [
        "nearest class mean, pixels",
        "representation, untrained",
        "representation, by Penalty",
    ]
    assert trained["accuracy"] > pixels["accuracy"] + 0.05
    assert trained["seconds"] > untrained["seconds"]
    for method in content["methods"]:
        assert 0 < method["half_width_95"] < 0.15
        cell = f"{100 * method['accuracy']:.1f}% ± {100 * method['half_width_95']:.1f}"
        assert cell in result.stdout
    loss = content["upper_loss"]
    assert len(loss) == 25
    assert np.mean(loss[-5:]) < np.mean(loss[:5])


@pytest.mark.slow
def test_the_same_tasks_by_the_library_give_the_same_figures(run):
    """Pixels, by a loop over scikit-learn's nearest centroids; and the class names are those of the pictures."""
    from sklearn.neighbors import NearestCentroid

    from bilevax.applications.fewshot import Episodes

    folder, _, _, content = run
    found = class_folders(folder)
    test = found.images[[found.names.index(name) for name in content["data"]["test_classes"]]]
    source = Episodes(jnp.asarray(test), 3, 2, 3, 20)
    asked, given = source.at(0, jax.random.key(0))
    right = []
    for x, y, q, t in zip(given.x, given.y, asked.x, asked.y, strict=True):
        model = NearestCentroid().fit(np.asarray(x, float).reshape(6, -1), y)
        right.append(model.score(np.asarray(q, float).reshape(9, -1), t))
    assert content["methods"][0]["accuracy"] == pytest.approx(np.mean(right))
    assert content["methods"][0]["half_width_95"] == pytest.approx(1.96 * np.std(right, ddof=1) / 20**0.5)


def test_pictures_are_written(run):
    _, out, _, _ = run
    for name in ("curve.png", "episode.png"):
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_what_is_drawn_of_a_task(tmp_path, monkeypatch):
    """Answers stand over the pictures that they are about, and are marked by whether they are right."""
    calls = []
    monkeypatch.setattr(plots, "task_sheet", lambda *arguments: calls.append(arguments))

    class Learner:
        """Always of the opinion that a picture is of the class it learned from first."""

        def adapt(self, x, y):
            assert x.shape == (4, 16, 16)
            self.first, self.values, self.labels = y[0], x[:, 0, 0] // 10, y
            return self

        def predict(self, x):
            assert set(x[:, 0, 0] // 10) == set(self.values)
            return np.full(len(x), self.first)

    # Class c has the pictures 10 c + i, in four different greys.
    images = (10 * np.arange(4)[:, None] + np.arange(4))[..., None, None].astype(np.uint8)
    pictures = Pictures("", np.tile(images, (1, 1, 16, 16)), ["a", "b", "c", "d"], "", 2)
    learned = SimpleNamespace(learner=Learner())
    parts = Parts(np.array([0, 2]), np.array([1, 3]))
    answered = comparison.one_task(learned, pictures, parts, comparison.Sizes(2, 2, 2), seed=0)
    _learning._draw(answered, tmp_path / "episode.png")
    support, query, names, answers, right, path, heading = calls[0]
    values = np.rint(np.concatenate([support, query], 1)[..., 0, 0] * 255).astype(int)
    for name, row in zip(names, values, strict=True):
        assert sorted(row) == [10 * "abcd".index(name) + i for i in range(4)]
    assert sorted(names) == ["b", "d"]
    assert answers == [[f"✓ {names[0]}"] * 2, [f"✗ {names[0]}"] * 2]
    assert right.tolist() == [[True, True], [False, False]]
    assert path == tmp_path / "episode.png"
    assert "50% of 4 answers right" in heading


@pytest.mark.slow  # 10 s
def test_runs_that_signals_end_come_to_the_same_bits(same_after_signals, tmp_path):
    same_after_signals(["fewshot", make(tmp_path / "pets"), *TINY], [9])


def test_strict_names_the_file(tmp_path):
    folder = make(tmp_path / "pets", classes=2, pictures=2)
    (folder / "class 1" / "9.png").write_bytes(b"no picture")
    text = refused(folder, "--strict", "--out", tmp_path / "out")
    assert f"{folder / 'class 1' / '9.png'} cannot be read as a picture" in text


def test_at_most_a_dozen_files_are_named(tmp_path):
    folder = make(tmp_path / "pets", classes=2, pictures=2)
    for i in range(15):
        (folder / "class 0" / f"bad {i:02}.png").write_bytes(b"")
    result = bilevax_command(folder, "--out", tmp_path / "out")
    assert result.exit_code == 2  # of two classes
    assert "left out (15): class 0/bad 00.png" in result.stdout
    assert "bad 11.png and 3 more." in result.stdout
    assert "bad 12.png" not in result.stdout


@pytest.mark.parametrize("learned", [0.95, 0.97])
def test_digits_where_omniglot_is_not_at_hand(nothing_at_hand, monkeypatch, learned):
    """All but the training, which takes its time and is the same as on a folder."""
    out, learner = nothing_at_hand / "out", SimpleNamespace(history_=SimpleNamespace(upper_loss=np.ones(2)))
    rows = [comparison.Row(name, accuracy, 0.01, 1.0) for name, accuracy in (("a", 0.96), ("b", 0.9), ("c", learned))]
    monkeypatch.setattr(comparison, "learn", lambda *arguments, **more: SimpleNamespace(learner=learner))
    monkeypatch.setattr(comparison, "measure", lambda *arguments, **more: rows)
    monkeypatch.setattr(comparison, "one_task", lambda *arguments: None)
    monkeypatch.setattr(plots, "convergence", lambda histories, path: path.write_bytes(b""))
    monkeypatch.setattr(_learning, "_draw", lambda answered, path: path.write_bytes(b""))
    result = bilevax_command("--out", out)
    assert result.exit_code == 0, result.output
    assert "Omniglot is not downloaded; digits are used instead" in result.stdout
    assert ("Plain pixels do as well or better here." in result.stdout) == (learned < 0.96)
    content = json.loads((out / "fewshot.json").read_text())
    assert content["data"]["shape"] == [16, 16]
    assert content["data"]["pictures_of_each"] == 174
    assert sorted(content["data"]["train_classes"] + content["data"]["test_classes"]) == list("0123456789")
    assert [content["settings"][name] for name in ("way", "shot", "queries", "test_classes")] == [3, 5, 15, 3]
    assert content["settings"]["folder"] is None
    assert [*(nothing_at_hand / "XDG_CACHE_HOME").iterdir()] == []


def test_digits_are_those_of_their_classes(nothing_at_hand):
    d = digits()
    images = ready_made_pictures(28).images
    assert images.shape == (10, 174, 28, 28)
    first = [Image.fromarray(d.x_train[np.flatnonzero(d.y_train == c)[0]]) for c in range(10)]
    for c in range(10):
        np.testing.assert_array_equal(images[c, 0], np.asarray(first[c].resize((28, 28), Image.Resampling.LANCZOS)))


def test_omniglot_at_hand_is_split_as_in_the_papers(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (1203, 1, 28, 28), np.uint8)
    np.savez(tmp_path / "omniglot.npz", images=images)
    monkeypatch.setenv("BILEVAX_DATA", str(tmp_path))
    pictures = ready_made_pictures(None)
    parts = split_classes(pictures, 5, None, 3)
    np.testing.assert_array_equal(parts.train, np.arange(4800))
    np.testing.assert_array_equal(parts.test, np.arange(4800, 4812))
    place = pictures.names.index("1201, 180°")
    np.testing.assert_array_equal(pictures.images[place], np.rot90(images[1201], 2, (1, 2)))
    assert place in parts.test
    assert "7, 90°" in [pictures.names[i] for i in parts.train]
    with pytest.raises(InputError, match="--test-classes is given without FOLDER"):
        split_classes(pictures, 5, 8, 3)
    with pytest.raises(InputError, match=r"^A class of Omniglot has 1 picture, fewer than --shot 5 .+ Add pictures\.$"):
        queries_of(pictures, 5, None)


def test_a_damaged_omniglot_is_told(tmp_path, monkeypatch):
    (tmp_path / "omniglot.npz").write_bytes(b"no archive")
    monkeypatch.setenv("BILEVAX_DATA", str(tmp_path))
    assert "is damaged or not an NPZ file" in refused("--out", tmp_path / "out")
    monkeypatch.setenv("BILEVAX_DATA", str(tmp_path / "nowhere"))
    assert "there is no such directory" in refused("--out", tmp_path / "out")


def test_no_download_means_none(nothing_at_hand):
    said = "omniglot is not in .+ and download is False. Put omniglot.npz"
    with pytest.raises(DownloadError, match=said):
        omniglot(download=False)


def test_the_class_with_fewest_pictures_is_counted(tmp_path):
    folder = make(tmp_path, classes=3, pictures=3)
    (folder / "class 1" / "2.png").unlink()
    (folder / "class 2" / "0.png").write_bytes(b"")
    (folder / "class 2" / "3.png").write_bytes((folder / "class 2" / "1.png").read_bytes())
    assert class_folders(folder).counts == [3, 2, 3]


CLASSES = {
    "too few": (
        4,
        ("--way", 3),
        "has 4 classes. A task has --way 3 of them, so 3 training classes and 3 test classes are needed; there are "
        "1 and 3. Lower --way to 2, or add classes.",
    ),
    "far too few": (3, ("--way", 2), "there are 1 and 2. A task must have at least 2 classes: add some."),
    "too many for the test": (
        6,
        ("--way", 3, "--test-classes", 4),
        "there are 2 and 4 with --test-classes 4. Lower --way to 2, or change --test-classes.",
    ),
    "all for the test": (
        4,
        ("--way", 2, "--test-classes", 9),
        "there are 0 and 4 with --test-classes 9. A task must have at least 2 classes: add some, or change "
        "--test-classes.",
    ),
    "too few for the test": (
        6,
        ("--way", 3, "--test-classes", 2),
        "there are 4 and 2 with --test-classes 2. Lower --way to 2, or change --test-classes.",
    ),
}


@pytest.mark.parametrize(("classes", "options", "sentence"), CLASSES.values(), ids=CLASSES)
def test_classes_that_do_not_suffice(tmp_path, classes, options, sentence):
    folder = make(tmp_path / "pets", classes, pictures=1)
    assert sentence in refused(folder, *options, "--out", tmp_path / "out")


PICTURES = {
    "both": (
        ("--shot", 3, "--queries", 2),
        "The smallest class (class 2) has 4 pictures, fewer than --shot 3 support pictures and --queries 2 query "
        "pictures. Pass --shot 2 --queries 2, or add pictures.",
    ),
    "shot": (("--shot", 4), "fewer than --shot 4 support pictures and --queries 1 query"),
    "queries": (("--shot", 1, "--queries", 9), "Pass --shot 1 --queries 3, or add pictures."),
}


@pytest.mark.parametrize(("options", "sentence"), PICTURES.values(), ids=PICTURES)
def test_pictures_that_do_not_suffice(tmp_path, options, sentence):
    folder = make(tmp_path / "pets", classes=4, pictures=5)
    (folder / "class 2" / "0.png").unlink()
    assert sentence in refused(folder, "--way", 2, *options, "--out", tmp_path / "out")


def test_one_picture_of_each_is_too_few(tmp_path):
    folder = make(tmp_path / "pets", classes=4, pictures=1)
    text = refused(folder, "--way", 2, "--shot", 1, "--out", tmp_path / "out")
    assert re.search(r"has 1 picture, fewer than .+ query pictures\. Add pictures\.$", text.strip())


def test_what_is_suggested_fits(tmp_path):
    folder = make(tmp_path / "pets", classes=4, pictures=5)
    pictures = pictures_from_folder(folder, None, False)
    for shot in range(1, 8):
        for queries in (None, 1, 4, 9):
            try:
                found = queries_of(pictures, shot, queries)
            except InputError as error:
                few, asked = map(int, re.findall(r"--shot (\d+) --queries (\d+)", str(error))[0])
                assert queries_of(pictures, few, asked) == asked
            else:
                assert shot + found <= 5


def test_mixed_sizes_need_a_side(tmp_path):
    folder = make(tmp_path / "pets", classes=2, pictures=2)
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(folder / "class 1" / "9.png")
    text = refused(folder, "--out", tmp_path / "out")
    assert "of several sizes: 16 x 16 (4), 24 x 20 (1)" in text
    assert "--side" in text
    assert pictures_from_folder(folder, 18, False).images.shape == (2, 2, 18, 18)


def test_small_pictures_need_a_side(tmp_path):
    folder = make(tmp_path / "pets", classes=2, pictures=2, size=(20, 12))
    assert "are 20 x 12, smaller than the 16 x 16" in refused(folder, "--out", tmp_path / "out")
    result = bilevax_command(folder, "--side", 12, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "16" in result.stderr


def test_large_pictures_are_taken_with_a_hint(tmp_path, capsys):
    folder = make(tmp_path / "pets", classes=1, pictures=1, size=(160, 130))
    assert pictures_from_folder(folder, None, False, print).images.shape == (1, 1, 130, 160)
    assert "are 160 x 130; smaller ones (for example --side 84)" in capsys.readouterr().out


def test_folders_that_hold_no_classes(tmp_path):
    out = ("--out", tmp_path / "out")
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        assert f"{tmp_path / name} is not a folder" in refused(tmp_path / name, *out)
    (tmp_path / "empty").mkdir()
    assert "has no subfolders" in refused(tmp_path / "empty", *out)
    folder = make(tmp_path / "pets", classes=2, pictures=2)
    (folder / "empty").mkdir()
    assert f"{folder / 'empty'} has no picture that can be read" in refused(folder, *out)


def test_results_do_not_become_a_class(tmp_path, monkeypatch):
    folder = make(tmp_path / "pets", classes=2, pictures=2)
    monkeypatch.chdir(folder)
    assert "where it would be a class. Pass another directory." in refused(".")
    assert not (folder / "fewshot").exists()


def test_options_that_need_others(tmp_path, nothing_at_hand):
    assert "--strict is given without FOLDER" in refused("--strict", "--out", tmp_path / "out")
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in refused("--out", tmp_path / "file")
    assert "has 10 classes. A task has --way 6" in refused("--way", 6, "--out", tmp_path / "out")


def test_names_that_are_no_text_can_be_printed():
    assert readable(b"caf\xe9".decode(errors="surrogateescape")) == "caf?"
    assert readable("café 猫") == "café 猫"


def test_pixels_of_colour_pictures():
    """By the library's own evaluation: classes of one colour each are told apart."""
    images = np.zeros((3, 4, 16, 16, 3), np.uint8)
    for c in range(3):
        images[c, ..., c] = np.array([100, 120, 140, 160])[:, None, None]
    adapt, scores = pixel_means(3)
    found = evaluate(adapt, scores, None, images, way=3, shot=1, queries=2, episodes=3, key=jax.random.key(0))
    assert found.mean == 1.0

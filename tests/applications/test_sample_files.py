"""Pictures, arrays, datasets, probabilities and trusted labels to review: each form, and each fault."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from bilevax import InputError
from bilevax.data.samples import pictures
from bilevax.data.samples.columns import names_of
from bilevax.data.samples.probabilities import read_embeddings, read_probabilities
from bilevax.data.samples.read import read_samples
from bilevax.data.samples.types import Options

STRICT = Options(strict=True)


def refusal(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert text.endswith((".", "?"))
    assert "Traceback" not in text
    return text


def said(samples, *words) -> bool:
    return any(all(word in note for word in words) for note in samples.notes)


def picture(colour=(200, 100, 50), size=(12, 8), mode="RGB"):
    return Image.new("RGB", size, colour).convert(mode)


def stored(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of three pictures of 12 x 8."""
    for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            picture((*colour[:2], colour[2] + i)).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


# --- pictures -------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(folder):
    samples = read_samples(folder)
    assert samples.kind == "images"
    assert samples.features.dtype == np.uint8
    assert samples.features.shape == (6, 8, 12, 3)  # all of one size, and small: they keep it
    assert samples.features[4, 0, 0].tolist() == [0, 0, 201]
    assert samples.labels.tolist() == ["cat"] * 3 + ["dog"] * 3
    assert samples.identifiers[3] == "dog/0.png"
    assert samples.rows.iloc[3].tolist() == ["dog/0.png", "dog"]
    assert samples.source.form == "folder"
    before = samples.source.digest
    assert read_samples(folder).source.digest == before
    picture((1, 2, 3)).save(folder / "cat" / "0.png")
    assert read_samples(folder).source.digest != before


def test_pictures_of_several_sizes_become_squares(folder):
    picture(size=(300, 200)).save(folder / "cat" / "large.jpg")
    samples = read_samples(folder)
    assert samples.features.shape == (7, 64, 64, 3)
    assert np.abs(samples.features[3].astype(int) - [200, 100, 50]).max() <= 2
    assert read_samples(folder, options=Options(side=16)).features.shape == (7, 16, 16, 3)


def animated():
    frames = [picture((i * 40, 0, 0)) for i in range(3)]
    return stored(frames[0], "GIF", save_all=True, append_images=frames[1:])


UNFIT = {
    "unreadable": ("a.png", b"no picture at all"),
    "animated or of several pages": ("a.gif", animated()),
    "of more than 8 bits": ("a.png", stored(Image.fromarray(np.full((8, 12), 4000, np.uint16)))),
    "in CMYK": ("a.jpg", stored(picture(mode="CMYK"), "JPEG")),
    "of one pixel": ("a.png", stored(picture(size=(1, 1)))),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_unfit_pictures_are_named_counted_and_left_out(folder, reason):
    name, content = UNFIT[reason]
    (folder / "cat" / name).write_bytes(content)
    (folder / "dog" / name).write_bytes(content)
    samples = read_samples(folder)
    assert len(samples.labels) == len(samples.features) == len(samples.rows) == len(samples.identifiers) == 6
    assert samples.source.records == 8
    assert said(samples, f"2 pictures that are {reason}", f"cat/{name}", f"dog/{name}", "left out")
    assert samples.record.tolist() == [0, 1, 2, 4, 5, 6]
    assert samples.features[3, 0, 0].tolist() == [0, 0, 200]
    text = refusal(lambda: read_samples(folder, options=STRICT))
    assert f"2 pictures that are {reason}" in text


def test_a_truncated_picture_and_a_huge_one(folder, monkeypatch):
    content = stored(Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)))
    (folder / "cat" / "half.png").write_bytes(content[: len(content) // 2])
    assert said(read_samples(folder), "1 picture that is unreadable", "cat/half.png")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 2400)
    (folder / "cat" / "half.png").write_bytes(content)
    assert said(read_samples(folder), "1 picture that is huge", "cat/half.png (50 x 50)")


def test_palettes_grey_alpha_and_orientation_are_resolved(folder):
    picture((255, 0, 0)).convert("P").save(folder / "cat" / "palette.png")
    picture((80, 80, 80)).convert("L").save(folder / "cat" / "grey.png")
    Image.new("RGBA", (12, 8), (0, 0, 0, 0)).save(folder / "cat" / "nothing.png")
    drawn = Image.new("RGBA", (12, 8), (0, 0, 0, 0))
    drawn.putpixel((0, 0), (9, 9, 9, 255))
    drawn.save(folder / "cat" / "transparent.png")
    turned = Image.new("RGB", (8, 12), (0, 0, 0))
    turned.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    turned.save(folder / "cat" / "turned.png", exif=exif)
    samples = read_samples(folder, options=STRICT)
    assert samples.features.shape[1:] == (8, 12, 3)
    found = dict(zip(samples.identifiers, samples.features, strict=True))
    assert found["cat/palette.png"][0, 0].tolist() == [255, 0, 0]
    assert found["cat/grey.png"][0, 0].tolist() == [80, 80, 80]
    assert found["cat/transparent.png"][0, 0].tolist() == [9, 9, 9]
    assert found["cat/transparent.png"][5, 5].tolist() == [255, 255, 255]
    assert found["cat/turned.png"][0, 11].tolist() == [255, 255, 255]
    assert said(samples, "2 transparent pictures")


def test_files_that_are_no_pictures_are_ignored_and_counted(folder):
    (folder / "cat" / "labels.txt").write_text("x")
    (folder / "cat" / ".hidden.png").write_text("x")
    samples = read_samples(folder, options=STRICT)
    assert len(samples.labels) == 6
    assert said(samples, "1 file whose suffix is not of a picture")


def test_a_folder_of_parts_and_one_without_pictures(folder, tmp_path):
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        (parts / part).mkdir(parents=True)
        picture().save(parts / part / "a.png")
    assert "Pass one of the parts" in refusal(lambda: read_samples(parts))
    (tmp_path / "none" / "cat").mkdir(parents=True)
    assert "no pictures in its subfolders" in refusal(lambda: read_samples(tmp_path / "none"))
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert "no picture that can be used" in refusal(lambda: read_samples(folder))


def test_a_csv_of_paths(folder):
    path = folder.parent / "list.csv"
    rows = [
        ("data/cat/0.png", "cat"),
        ("data\\dog\\1.png", "dog"),
        ("data/no.png", "cat"),
        (str(folder / "cat/1.png"), "cat"),
    ]
    path.write_text("n,picture,label\n" + "".join(f"{i},{file},{label}\n" for i, (file, label) in enumerate(rows)))
    samples = read_samples(path)
    assert samples.kind == "images"
    assert samples.features.shape == (3, 8, 12, 3)
    assert samples.features[1, 0, 0].tolist() == [0, 0, 201]
    assert samples.lines.tolist() == [2, 3, 5]
    assert samples.identifiers[0] == "data/cat/0.png"
    assert said(samples, "1 picture that is missing: data/no.png")
    assert said(samples, "column 'picture' names", "not features: 'n'")
    path.write_text("picture,label\nx/0.png,cat\nx/1.png,dog\n")
    assert "none of the first files is in" in refusal(lambda: read_samples(path))


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_npz_of_features_pictures_and_texts(tmp_path):
    path = tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 2, (20, 3)), np.arange(20) % 2
    np.savez(path, X=x, y=y)
    samples = read_samples(path)
    assert (samples.kind, samples.source.form) == ("features", "npz")
    np.testing.assert_allclose(samples.features, (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)
    x[3, 1], x[4, 1] = np.nan, np.inf
    np.savez(path, X=x, labels=y)
    samples = read_samples(path)
    assert names_of(samples.columns) == ["X[0]", "X[1]", "X[1] is missing", "X[2]"]
    assert samples.features[:, 2].tolist() == [float(i in (3, 4)) for i in range(20)]
    assert said(samples, "'X[1]'", "1 cell is not a finite number ('inf'; the first in row 4, from 0)")
    np.savez(path, X=np.array(["one text", "another text"] * 10), y=y)
    samples = read_samples(path, options=Options(keep=("X",)))
    assert samples.labels.tolist() == y.tolist()


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.full((4, 8, 9), 7, np.uint8), 7),
        (np.full((4, 8, 9, 1), 7, np.uint8), 7),
        (np.full((4, 3, 8, 9), 7, np.uint8), 7),
        (np.full((4, 8, 9, 4), 7, np.uint8), 7),
        (np.full((4, 8, 9), 0.5, np.float32), 128),
        (np.full((4, 8, 9), 100.0), 100),
        (np.full((4, 8, 9), 200, np.int64), 200),
        (np.ones((4, 8, 9), bool), 255),
    ],
)
def test_arrays_of_pictures(tmp_path, x, expected):
    np.savez(tmp_path / "a.npz", X=x, y=[0, 1, 0, 1])
    samples = read_samples(tmp_path / "a.npz")
    assert samples.kind == "images"
    assert samples.features.shape == (4, 8, 9, 3)
    assert samples.features.dtype == np.uint8
    assert set(np.unique(samples.features)) == {expected}


def test_large_pictures_of_an_array_are_resized_and_flat_ones_are_squares(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.full((4, 100, 80), 7, np.uint8), y=[0, 1, 0, 1])
    assert read_samples(tmp_path / "a.npz").features.shape == (4, 64, 64, 3)
    np.savez(tmp_path / "a.npz", X=np.full((4, 784), 7, np.uint8), y=[0, 1, 0, 1])
    assert read_samples(tmp_path / "a.npz").features.shape == (4, 28, 28, 3)


def test_npy_with_labels(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    np.save(tmp_path / "y.npy", np.array(["a", "b"] * 3))
    samples = read_samples(tmp_path / "x.npy", options=Options(labels=tmp_path / "y.npy"))
    assert samples.features.shape == (6, 2)
    assert samples.labels.tolist() == ["a", "b"] * 3
    assert "Pass their NPY file by --labels" in refusal(lambda: read_samples(tmp_path / "x.npy"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.ones((4, 2))}, "no array 'y'"),
        ({"X": np.ones((4, 2)), "y": np.arange(3)}, "of the same length"),
        ({"X": np.ones((4, 2)), "y": np.eye(4)}, "y.argmax(axis=1)"),
        ({"X": np.ones(4), "y": np.arange(4)}, "X.reshape(-1, 1)"),
        ({"X": np.full((4, 8, 8), -1.0), "y": np.arange(4)}, "values -1..-1"),
        ({"X": np.full((4, 8, 8), np.nan), "y": np.arange(4)}, "values nan..nan"),
        ({"X": np.ones((4, 2), complex), "y": np.arange(4)}, "complex"),
        ({"X": np.array([[{}], [1]], object), "y": np.arange(2)}, "Python objects"),
        ({"X": np.ones((0, 2)), "y": np.arange(0)}, "is empty"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    assert words in refusal(lambda: read_samples(tmp_path / "a.npz"))


def test_an_npy_file_that_is_none(tmp_path):
    np.save(tmp_path / "y.npy", np.arange(2))
    options = Options(labels=tmp_path / "y.npy")
    for content, words in (
        (b"", "not an array"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (b"PK\x03\x04", "not an array"),
    ):
        (tmp_path / "x.npy").write_bytes(content)
        assert words in refusal(lambda: read_samples(tmp_path / "x.npy", options=options))
    np.save(tmp_path / "x.npy", np.array([{}], object))
    assert "Python objects" in refusal(lambda: read_samples(tmp_path / "x.npy", options=options))


# --- datasets of Hugging Face ---------------------------------------------------------------------------------------


def saved_to_disk(folder, columns, features):
    """As `Dataset.save_to_disk` of version 4 writes it, in two files."""
    folder.mkdir(parents=True)
    table, half = pa.table(columns), len(next(iter(columns.values()))) // 2
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table[:half], table[half:]), strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "citation": ""}))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))


CLASSES = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def test_a_dataset_of_pictures(tmp_path):
    contents = [stored(picture((i, 0, 0))) for i in range(4)]
    columns = {
        "image": [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)],
        "label": [0, 1, -1, 1],
    }
    saved_to_disk(tmp_path / "d", columns, {"image": {"_type": "Image"}, "label": CLASSES})
    samples = read_samples(tmp_path / "d")
    assert samples.kind == "images"
    assert samples.features[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert samples.labels.tolist() == ["cat", "dog", "dog"]
    assert said(samples, "1 record without a label (the first is record 2, from 0)")
    assert samples.source.target == "label"


def test_a_dataset_of_texts_and_its_parts(tmp_path):
    columns = {"text": [f"this is the text number {i}" for i in range(12)], "coarse": [0, 1] * 6}
    features = {"text": {"dtype": "string", "_type": "Value"}, "coarse": CLASSES}
    for part in ("train", "test"):
        saved_to_disk(tmp_path / "d" / part, columns, features)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    samples = read_samples(tmp_path / "d")
    assert samples.kind == "text"
    assert samples.features[11] == "this is the text number 11"
    assert samples.labels[:2].tolist() == ["cat", "dog"]
    assert said(samples, "the parts 'train', 'test': 'train' is read")
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["a", "test"]}')
    assert "several parts ('a', 'test')" in refusal(lambda: read_samples(tmp_path / "d"))


def test_a_dataset_of_vectors(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 3))
    saved_to_disk(tmp_path / "d", {"vector": x.tolist(), "label": [0, 1] * 5, "n": list(range(10))}, {"label": CLASSES})
    samples = read_samples(tmp_path / "d")
    assert samples.kind == "features"
    np.testing.assert_allclose(samples.features, (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)
    assert said(samples, "vectors in 'vector'", "not features: 'n'")


def test_a_dataset_that_is_damaged(tmp_path):
    saved_to_disk(tmp_path / "d", {"a": [1, 2], "label": [0, 1]}, {"label": CLASSES})
    (tmp_path / "d" / "data-00001-of-00002.arrow").write_bytes(b"x")
    assert "cannot be read: data-00001" in refusal(lambda: read_samples(tmp_path / "d"))
    (tmp_path / "d" / "data-00001-of-00002.arrow").unlink()
    assert "cannot be read: data-00001" in refusal(lambda: read_samples(tmp_path / "d"))
    (tmp_path / "d" / "state.json").write_text("{")
    assert "state.json cannot be read" in refusal(lambda: read_samples(tmp_path / "d"))


# --- probabilities and embeddings -----------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    """Sixty samples of the classes cat, dog and emu; the records 5 and 9 have no label."""
    labels = ["" if i in (5, 9) else ["cat", "dog", "emu"][i % 3] for i in range(62)]
    path = tmp_path / "train.csv"
    path.write_text("a,label\n" + "".join(f"{i % 7},{label}\n" for i, label in enumerate(labels)))
    return read_samples(path)


def dirichlet(n, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(3), n)


def written(path, values, names=None):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, pred_probs=values, **({} if names is None else {"classes": np.array(names)}))
    else:
        frame = pd.DataFrame(values, columns=names or [f"p{i}" for i in range(values.shape[1])])
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".parquet"])
@pytest.mark.parametrize("n", [62, 60])
def test_probabilities_of_all_records_or_of_those_with_a_label(tmp_path, samples, suffix, n):
    values = dirichlet(n)
    found = read_probabilities(written(tmp_path / f"p{suffix}", values), samples)
    expected = values[samples.record] if n == 62 else values
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    assert found.classes.tolist() == ["cat", "dog", "emu"]
    assert any("sorted order, 'cat', 'dog', 'emu'" in note for note in found.notes)


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_columns_are_found_by_the_names_of_the_classes(tmp_path, samples, suffix):
    values = (dirichlet(62) + np.eye(3)[(np.arange(62) + 1) % 3]) / 2  # columns emu, cat, dog; the labels are probable
    found = read_probabilities(written(tmp_path / f"p{suffix}", values, ["emu", "cat", "dog"]), samples)
    np.testing.assert_allclose(found.values, values[samples.record][:, [1, 2, 0]], rtol=1e-12)
    assert found.notes == ()


def test_numbered_classes_and_a_saved_index(tmp_path):
    (tmp_path / "t.csv").write_text("a,label\n1,10\n2,9\n3,10\n")
    train = read_samples(tmp_path / "t.csv")
    (tmp_path / "p.csv").write_text(",10,9\n0,.3,.7\n1,.4,.6\n2,.5,.5\n")
    assert read_probabilities(tmp_path / "p.csv", train).values.tolist() == [[0.7, 0.3], [0.6, 0.4], [0.5, 0.5]]
    (tmp_path / "p.csv").write_text("0.3 0.7\n0.4 0.6\n0.5 0.5\n".replace(" ", ";"))
    assert read_probabilities(tmp_path / "p.csv", train).values[0].tolist() == [0.3, 0.7]


def test_small_errors_of_the_sum_are_removed_and_others_refused(tmp_path, samples):
    values = dirichlet(62)
    found = read_probabilities(written(tmp_path / "p.npy", values * 1.0009), samples)
    np.testing.assert_allclose(found.values, values[samples.record], rtol=1e-6)
    wrong = values.copy()
    wrong[7] *= 0.9
    text = refusal(lambda: read_probabilities(written(tmp_path / "p.npy", wrong), samples))
    assert "1 of 60 rows do not sum to 1 (such as that of line 9 of TRAIN: 0.9)" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p[:61], "61 rows, and TRAIN"),
        (lambda p: p[:, :2], "2 columns, and there are 3 classes"),
        (lambda p: np.log(p), "look like logarithms"),
        (lambda p: p * 100, "look like percents"),
        (lambda p: p - 0.5, "not probabilities. Pass a softmax"),
        (lambda p: np.where(np.arange(62)[:, None] == 3, np.nan, p), "1 rows have missing or infinite values"),
        (lambda p: p[0], "must be (samples, ...)"),
    ],
)
def test_probabilities_that_are_none(tmp_path, samples, change, words):
    text = refusal(lambda: read_probabilities(written(tmp_path / "p.npy", change(dirichlet(62))), samples))
    assert words in text


def test_a_class_without_a_column(tmp_path, samples):
    path = written(tmp_path / "p.csv", dirichlet(62), ["cat", "dog", "emus"])
    assert "no column of the classes 'emu'" in (text := refusal(lambda: read_probabilities(path, samples)))
    assert text.endswith("Did you mean 'emus'?")


def test_probabilities_that_look_in_sample(tmp_path, samples):
    places = np.array([["cat", "dog", "emu"].index(label) for label in samples.labels])
    certain = np.full((60, 3), 0.02)
    certain[np.arange(60), places] = 0.96
    found = read_probabilities(written(tmp_path / "p.npy", certain), samples)
    assert any("looks in-sample" in note and "100.0%" in note for note in found.notes)
    certain[0] = [0.1, 0.8, 0.1]
    found = read_probabilities(written(tmp_path / "p.npy", certain), samples)
    assert not any("looks in-sample" in note for note in found.notes)


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".parquet"])
def test_embeddings(tmp_path, samples, suffix):
    values = np.random.default_rng(1).normal(size=(62, 4))
    path = written(tmp_path / f"e{suffix}", values)
    np.testing.assert_allclose(read_embeddings(path, samples), values[samples.record], rtol=1e-6)
    values[2, 1] = np.inf
    assert "line 4 of TRAIN" in refusal(lambda: read_embeddings(written(path, values), samples))


# --- trusted labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("yes", "no"), ("True", "False"), ("TRUE", ""), ("x", ""), ("Y", "n")]
)
def test_a_column_of_truth_values(tmp_path, yes, no):
    path = tmp_path / "a.csv"
    path.write_text("a,ok,label\n" + "".join(f"{i % 5},{yes if i < 4 else no},{'pq'[i % 2]}\n" for i in range(12)))
    samples = read_samples(path, options=Options(trusted_column="ok"))
    assert samples.trusted.tolist() == [True] * 4 + [False] * 8
    assert names_of(samples.columns) == ["a"]
    assert "ok" in samples.rows.columns


def test_a_column_of_something_else(tmp_path):
    path = tmp_path / "a.csv"
    for cells, words in (
        (["maybe", "1"], "holds 'maybe'"),
        (["1", "1"], "all of the labels"),
        (["0", "0"], "none of the"),
    ):
        path.write_text("a,ok,label\n" + "".join(f"{i},{cells[i % 2]},{'pq'[i % 2]}\n" for i in range(6)))
        assert words in refusal(lambda: read_samples(path, options=Options(trusted_column="ok")))


@pytest.fixture
def train(tmp_path):
    """Thirty samples with an identifier; the labels of 4 and 8 are wrong."""
    labels = ["pq"[i % 2] for i in range(30)]
    labels[4], labels[8] = "q", "q"
    path = tmp_path / "train.csv"
    rows = [f"u{i * 7919 % 1009},{(i * 13) % 29 + i / 100},{label}\n" for i, label in enumerate(labels)]
    path.write_text("id,a,label\n" + "".join(rows))
    return path


def test_a_trusted_file_of_samples_of_train(tmp_path, train):
    frame = pd.read_csv(train)
    chosen = frame.iloc[[4, 8, 10, 12]].assign(label="p")
    for columns in (["id", "a", "label"], ["label", "a"]):  # the same by their identifiers, and by their features
        chosen[columns].to_csv(tmp_path / "clean.csv", index=False)
        samples = read_samples(train, tmp_path / "clean.csv")
        assert (samples.own, len(samples.labels)) == (30, 34)
        assert samples.trusted.tolist() == [False] * 30 + [True] * 4
        assert samples.twin.tolist() == [-1] * 30 + [4, 8, 10, 12]
        assert samples.features[30].tolist() == samples.features[4].tolist()
        assert samples.lines[30:].tolist() == [2, 3, 4, 5]
        assert said(samples, "4 of the trusted samples are samples of TRAIN, too; 2 of them have another label there")
        assert said(samples, "No trusted sample is of 'q'")


def test_a_trusted_file_with_numbers_of_its_own(tmp_path):
    """Rows that are numbered from 0 in both files are not the same rows."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 30), ("clean", 6)):
        rows = [f"{i},{rng.normal():.6f},{'pq'[i % 2]}\n" for i in range(n)]
        (tmp_path / f"{name}.csv").write_text("id,a,label\n" + "".join(rows))
    samples = read_samples(tmp_path / "train.csv", tmp_path / "clean.csv")
    assert (samples.twin == -1).all()
    assert not said(samples, "samples of TRAIN")


def test_a_trusted_file_of_other_columns_labels_or_kind(tmp_path, train):
    clean = tmp_path / "clean.csv"
    for content, words in (
        ("b,label\n1,p\n2,q\n", "lacks columns that TRAIN"),
        ("a,label\n1,p\n2,Q\n", "Did you mean 'q'?"),
        ("a,lable\n1,p\n2,q\n", "Did you mean 'lable'?"),
    ):
        clean.write_text(content)
        assert words in refusal(lambda: read_samples(train, clean))
    np.savez(tmp_path / "clean.npz", X=np.ones((2, 3)), label=np.array(["p", "q"]))
    assert "holds other samples" in refusal(lambda: read_samples(train, tmp_path / "clean.npz"))
    text = refusal(lambda: read_samples(train, clean, Options(trusted_column="a")))
    assert "both given" in text


def test_a_trusted_file_may_lack_values_and_have_new_ones(tmp_path):
    (tmp_path / "train.csv").write_text("a,c,label\n" + "1,u,p\n2,v,q\n3,v,q\n4,w,p\n" * 4)
    (tmp_path / "clean.csv").write_text("c,a,label,more\nnew,,p,1\nu,oops,q,2\n")
    samples = read_samples(tmp_path / "train.csv", tmp_path / "clean.csv")
    assert samples.features[-2:].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert said(samples, "--trusted", "1 cell is not a finite number ('oops'; line 3)")


def test_trusted_pictures_and_arrays(tmp_path, folder):
    (tmp_path / "clean" / "cat").mkdir(parents=True)
    picture((0, 0, 201)).save(tmp_path / "clean" / "cat" / "a.png")
    picture(size=(40, 30)).save(tmp_path / "clean" / "cat" / "b.png")
    samples = read_samples(folder, tmp_path / "clean")
    assert samples.features.shape == (8, 8, 12, 3)
    assert samples.twin.tolist() == [-1] * 6 + [4, -1]
    assert said(samples, "1 of the trusted samples", "1 of them have another label")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 3))
    np.savez(tmp_path / "train.npz", X=x, y=np.arange(10) % 2)
    np.savez(tmp_path / "clean.npz", X=x[:2], y=[0, 0])
    samples = read_samples(tmp_path / "train.npz", tmp_path / "clean.npz")
    assert samples.twin[-2:].tolist() == [0, 1]
    np.savez(tmp_path / "clean.npz", X=x[:2, :2], y=[0, 1])
    assert "Pass as many in both" in refusal(lambda: read_samples(tmp_path / "train.npz", tmp_path / "clean.npz"))


def test_probabilities_that_predict_nothing(tmp_path, samples):
    places = np.array([["cat", "dog", "emu"].index(label) for label in samples.labels])
    p = np.full((60, 3), 0.1)
    p[np.arange(60), np.where(np.arange(60) < 40, places, 0)] = 0.8
    shuffled = p[np.random.default_rng(0).permutation(60)]
    for values, notes in ((p, 0), (shuffled, 1), (np.roll(p, 1, axis=1), 1), (np.full((60, 3), 1 / 3), 1)):
        found = read_probabilities(written(tmp_path / "p.npy", values), samples)
        assert sum("no more than by chance" in note for note in found.notes) == notes

"""Reading a user's data, and every sentence about data that cannot be used."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bilevax import InputError
from bilevax.data import encoding, tables


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": rng.normal(5.0, 2.0, 60),
            "count": rng.integers(0, 9, 60),
            "colour": rng.choice(["red", "green", "blue"], 60),
            "kind": rng.choice(["cat", "dog"], 60),
        }
    )


def refusal(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert text.endswith((".", "?"))
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_named_columns_round_trip(tmp_path, frame, suffix):
    path = tmp_path / f"pets{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    table = tables.read({"TRAIN": path}, "kind")[0]
    assert list(table.features.columns) == ["size", "count", "colour"]
    np.testing.assert_allclose(table.features["size"], frame["size"])
    assert table.labels.tolist() == frame["kind"].tolist()
    assert table.image_shape is None
    assert tables.as_images(table) is None


def test_encode_scales_by_the_training_table_and_spells_out_categories(frame):
    train = tables.Table("TRAIN", frame.drop(columns="kind"), frame["kind"].to_numpy(), None)
    shifted = frame.drop(columns="kind").iloc[:7, ::-1].assign(size=frame["size"][:7] + 10)
    clean = tables.Table("CLEAN", shifted, frame["kind"].to_numpy()[:7], None)
    encoded = encoding.encode(train, clean)
    a, b = encoded.matrices
    assert a.shape == (60, 5)
    assert b.shape == (7, 5)
    assert a.dtype == np.float32
    np.testing.assert_allclose(a[:, :2].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(a[:, :2].std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(a[:, 2:].sum(1), 1)
    # The clean set's columns stand in another order, and are scaled by the training set's figures.
    np.testing.assert_allclose(b[:, 0], a[:7, 0] + 10 / frame["size"].std(ddof=0), rtol=1e-5)
    np.testing.assert_array_equal(b[:, 1:], a[:7, 1:])
    assert encoded.notes == ("One-hot encoded columns of text: colour (3 values).",)


def test_category_unseen_in_training_is_encoded_as_none_of_them(frame):
    train = tables.Table("TRAIN", frame[["size", "colour"]], frame["kind"].to_numpy(), None)
    other = frame[["size", "colour"]].assign(colour="mauve")
    a, b = encoding.encode(train, tables.Table("CLEAN", other, frame["kind"].to_numpy(), None)).matrices
    assert a.shape == b.shape
    np.testing.assert_array_equal(b[:, 1:], 0)


def test_rare_categories_are_put_together():
    frame = pd.DataFrame({"name": [f"n{i}" for i in range(400)]})
    labels = np.arange(400) % 2
    (matrix,) = encoding.encode(tables.Table("TRAIN", frame, labels, None)).matrices
    assert matrix.shape == (400, encoding.MOST_CATEGORIES)
    np.testing.assert_array_equal(matrix.sum(1), 1)


def test_saved_row_index_is_left_out(tmp_path, frame):
    path = tmp_path / "pets.csv"
    frame.to_csv(path)
    encoded = encoding.encode(tables.read({"TRAIN": path}, "kind")[0])
    assert encoded.matrices[0].shape == (60, 5)
    assert "row index" in encoded.notes[0]


@pytest.mark.parametrize(
    ("shape", "image"), [((8, 8), (8, 8)), ((6, 5, 3), (6, 5, 3)), ((3, 6, 5), (6, 5, 3)), ((6, 5, 1), (6, 5))]
)
def test_images_from_npz(tmp_path, shape, image):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (20, *shape)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", X=X, y=np.arange(20) % 2)
    table = tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0]
    images = tables.as_images(table)
    assert images is not None
    assert images.shape == (20, *image)
    assert (images.min(), images.max()) == (0, 1)
    matrix = encoding.encode(table).matrices[0]
    assert matrix.shape == (20, np.prod(shape))
    np.testing.assert_allclose([matrix.mean(), matrix.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(np.corrcoef(matrix.ravel(), X.ravel())[0, 1], 1, rtol=1e-6)


def test_flat_bytes_in_square_rows_are_images_and_other_rows_are_not(tmp_path):
    for dtype, expected in ((np.uint8, (5, 28, 28)), (np.float64, None)):
        np.savez(tmp_path / "a.npz", X=np.arange(5 * 784).reshape(5, 784).astype(dtype), y=[0, 1, 0, 1, 1])
        images = tables.as_images(tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])
        assert (None if images is None else images.shape) == expected


def test_npz_target_names_the_array(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.eye(4), animal=np.array(["cat", "dog", "cat", "dog"]))
    assert tables.read({"TRAIN": tmp_path / "a.npz"}, "animal")[0].labels.tolist() == ["cat", "dog", "cat", "dog"]
    text = refusal(lambda: tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])
    assert "has no array 'y'" in text
    assert "'X', 'animal'" in text


def test_target_that_is_no_column(tmp_path, frame):
    frame.to_csv(tmp_path / "a.csv", index=False)
    text = refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv"}, "species")[0])
    assert "no column 'species'" in text
    assert "'size', 'count', 'colour', 'kind'" in text
    assert "--target" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv"}, None)[0])


def test_missing_and_infinite_values_are_counted_by_column(tmp_path, frame):
    frame.loc[[3, 5], "size"] = np.nan
    frame.loc[6, "size"] = np.inf
    frame.loc[[1, 2], "colour"] = None
    frame.loc[9, "kind"] = None
    frame.to_csv(tmp_path / "a.csv", index=False)
    text = refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv"}, "kind")[0])
    assert "'size': 3, 'colour': 2, 'kind': 1" in text
    np.savez(tmp_path / "a.npz", X=np.array([[0.0, np.nan], [1.0, 2.0]]), y=[0, 1])
    assert "'X[1]': 1" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])


def test_one_class_or_no_classes(tmp_path, frame):
    frame.assign(kind="cat").to_csv(tmp_path / "a.csv", index=False)
    assert "one class only ('cat')" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv"}, "kind")[0])
    assert "quantity" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv"}, "size")[0])


def test_label_that_the_training_set_lacks(frame):
    train = tables.Table("TRAIN (a.csv)", frame[["size"]], frame["kind"].to_numpy(), None)
    clean = tables.Table("--trusted (b.csv)", frame[["size"]][:2], np.array(["dog", "fox"]), None)
    tables.check_known_labels(train, train)
    text = refusal(lambda: tables.check_known_labels(clean, train))
    assert "--trusted (b.csv) has labels that TRAIN (a.csv) lacks: 'fox'" in text
    assert "'cat', 'dog'" in text


def test_columns_that_differ(frame):
    labels = frame["kind"].to_numpy()
    train = tables.Table("TRAIN (a.csv)", frame.drop(columns="kind"), labels, None)
    other = frame.drop(columns="kind").rename(columns={"size": "weight"})
    text = refusal(lambda: encoding.encode(train, tables.Table("--trusted (b.csv)", other, labels, None)))
    assert "lacks 'size' and has 'weight' in addition" in text
    other = frame.drop(columns="kind").assign(size="large")
    text = refusal(lambda: encoding.encode(train, tables.Table("--trusted (b.csv)", other, labels, None)))
    assert "'size' holds numbers in TRAIN (a.csv) and text in --trusted (b.csv) (such as 'large')" in text
    other = frame.drop(columns="kind").assign(size=pd.Timestamp("2020-01-01"))
    assert "holds dates" in refusal(lambda: encoding.encode(tables.Table("TRAIN", other, labels, None)))


def test_images_of_other_shapes(tmp_path):
    y = np.arange(10) % 2
    np.savez(tmp_path / "a.npz", X=np.random.default_rng(0).random((10, 8, 8)), y=y)
    np.savez(tmp_path / "b.npz", X=np.random.default_rng(0).random((10, 4, 16)), y=y)
    a, b = (tables.read({n: tmp_path / f"{n}.npz"}, None)[0] for n in "ab")
    assert "(4, 16)" in refusal(lambda: encoding.encode(a, b))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.csv", None, "does not exist"),
        ("a.xlsx", b"PK", "ends in '.xlsx', an unknown format"),
        ("a", b"1,2", "has no suffix"),
        ("a.csv", b"", "cannot be read as .csv"),
        ("a.csv", b"a,b\n\xff\xfe,2\n", "cannot be read as .csv"),
        ("a.csv", b"a,y\n1,2\n1,2,3\n", "cannot be read as .csv"),
        ("a.csv", b"a,y\n", "holds 0 samples"),
        ("a.csv.gz", b"a,y\n", "cannot be read as .csv.gz"),
        ("a.parquet", b"nonsense", "cannot be read as .parquet"),
        ("a.npz", b"nonsense", "cannot be read as .npz"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert sentence in refusal(lambda: tables.read({"TRAIN": tmp_path / name}, "y")[0])


def test_a_directory_is_no_file(tmp_path):
    assert "is a directory" in refusal(lambda: tables.read({"TRAIN": Path(tmp_path)}, "y")[0])


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"y": np.arange(4)}, "has no array 'X'"),
        ({"X": np.eye(4), "y": np.arange(3)}, "of the same length"),
        ({"X": np.arange(4), "y": np.arange(4)}, "must be (samples, ...)"),
        ({"X": np.array([["a"], ["b"]]), "y": np.arange(2)}, "must hold numbers"),
        ({"X": np.array([[{}], [{}]], dtype=object), "y": np.arange(2)}, "cannot be read as .npz"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    assert sentence in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])

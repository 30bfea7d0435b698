"""Files as users have them: what their columns mean, and a sentence for each kind that cannot be used."""

import datetime
import decimal
import gzip
import io
import os
import socket
import time
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.preprocessing import OneHotEncoder

from bilevax import InputError
from bilevax.applications.denoising.jobs import job_from_files
from bilevax.data import archives, csv_text, encoding, tables


def refusal(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert text.endswith((".", "?"))
    assert "Traceback" not in text
    return text


def together(folder, *columns, header="code", kind=tables.read):
    """Files with one feature column and labels 0, 1, 0, ..., read as one job."""
    files = {}
    for i, values in enumerate(columns):
        path = folder / f"{i}.csv"
        path.write_text(f"{header},y\n" + "".join(f"{value},{j % 2}\n" for j, value in enumerate(values)))
        files["TRAIN" if i == 0 else f"--file{i}"] = path
    return kind(files, "y")


def labels_of(folder, *columns):
    files = {}
    for i, values in enumerate(columns):
        path = folder / f"{i}.csv"
        path.write_text("a,y\n" + "".join(f"{j},{value}\n" for j, value in enumerate(values)))
        files["TRAIN" if i == 0 else f"--file{i}"] = path
    return [table.labels.tolist() for table in tables.read(files, "y")]


# --- columns of text and of numbers ---------------------------------------------------------------------------------


def test_codes_that_look_like_numbers_in_one_file_are_text_in_both(tmp_path):
    train, clean = together(tmp_path, ["01", "02", "01", "02"], ["01", "A1", "02"])
    assert train.features["code"].tolist() == ["01", "02", "01", "02"]
    assert clean.features["code"].tolist() == ["01", "A1", "02"]
    a, b = encoding.encode(train, clean).matrices
    assert a.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert b.tolist() == [[1, 0], [0, 0], [0, 1]]  # A1 is none of the codes that TRAIN has


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_order_of_the_files_does_not_decide_the_kind(tmp_path, order):
    values = (["01", "02", "03", "04"], ["01", "A1", "B2", "C3"])
    found = together(tmp_path, *(values[i] for i in order))
    assert [table.features["code"].tolist() for table in found] == [values[i] for i in order]


def test_text_around_numbers_in_another_file_stays_text(tmp_path):
    """Where the training column is text, a file that happens to have numbers alone follows it, digit by digit."""
    train, clean = together(tmp_path, ["7", "x", "y", "z", "1.50"], ["7", "1.50", "1.5"])
    assert clean.features["code"].tolist() == ["7", "1.50", "1.5"]
    assert encoding.encode(train, clean).matrices[1].sum(1).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2.5", " 3", "4e1"], [1, 2.5, 3, 40]),
        (["True", "False", "TRUE", "false"], [1, 0, 1, 0]),
        (["18446744073709551615", "-2", "3", "4"], [2.0**64, -2, 3, 4]),
        (["1" + "0" * 30, "2", "3", "4"], [1e30, 2, 3, 4]),
        (["+5", "5.", ".5", "0"], [5, 5, 0.5, 0]),
    ],
)
def test_numbers_however_they_are_written(tmp_path, values, expected):
    (table,) = together(tmp_path, values)
    assert table.features["code"].astype(float).tolist() == expected


@pytest.mark.parametrize("bad", ["n/a?", "1e5 kg", "?", "12,3", "--", "1_000", "0x1F", "١"])
def test_a_few_bad_cells_among_numbers_are_named_with_their_rows(tmp_path, bad):
    values = [f"{i}.25" for i in range(30)]
    values[17] = f'"{bad}"'
    text = refusal(lambda: together(tmp_path, values, header="weight"))
    assert "'weight'" in text
    assert repr(bad) in text
    if bad != "12,3":
        assert (
            f"Column 'weight' holds numbers except for 1 cell: {bad!r} (row 17 of TRAIN ({tmp_path / '0.csv'}))" in text
        )


def test_a_bad_cell_of_another_file_is_named(tmp_path):
    text = refusal(lambda: together(tmp_path, ["1", "2", "3", "4"], ["1", "x", "y", "2"]))
    assert f"'x' (row 1 of --file1 ({tmp_path / '1.csv'})), 'y' (row 2 of" in text


def test_a_bad_cell_that_two_files_share_is_named_in_both(tmp_path):
    text = refusal(lambda: together(tmp_path, ["2", "x?", "6", "8"], ["2", "x?", "6", "8"]))
    assert "for 2 cells" in text
    assert text.count("'x?' (row 1 of") == 2


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("1,234", "other characters"),
        ("1 234.5", "other characters"),
        ("1.234.567,8", "other characters"),
        ("0,5", "other characters"),
        ("$3.10", "other characters"),
        ("12 €", "other characters"),
        ("45%", "other characters"),
        ("2020-01-31", "dates or times"),
        ("2020-01-31T10:00:00Z", "dates or times"),
        ("31.12.2020", "dates or times"),
    ],
)
def test_what_is_neither_number_nor_word_is_refused(tmp_path, value, sentence):
    text = refusal(lambda: together(tmp_path, [f'"{value}"'] * 6, header="price"))
    assert "'price'" in text
    assert sentence in text


def test_nul_bytes_far_into_a_file_are_named(tmp_path):
    text = refusal(lambda: together(tmp_path, ["red"] * 2000 + ["a\0b"], header="price"))
    assert "Column 'price' of TRAIN" in text
    assert "NUL bytes (such as 'a\\x00b')" in text


def test_many_different_values_with_a_unit_are_refused_and_a_few_are_categories(tmp_path):
    assert "a unit (such as '0 kg')" in refusal(lambda: together(tmp_path, [f"{i} kg" for i in range(60)]))
    (table,) = together(tmp_path, ["10mg", "20mg"] * 30)
    assert encoding.encode(table).matrices[0].shape == (60, 2)


@pytest.mark.parametrize("values", [["10.0.0.1", "10.0.0.2"], ["1-2", "3-5"], ["3+", "2"], ["1st", "2nd"], ["A1", "7"]])
def test_words_with_digits_are_categories(tmp_path, values):
    (table,) = together(tmp_path, values * 10)
    assert table.features["code"].tolist() == values * 10


@pytest.mark.parametrize("word", ["NA", "None", "null", "N/A"])
def test_words_for_nothing_are_missing_among_numbers_and_words_among_words(tmp_path, word):
    text = refusal(lambda: together(tmp_path, ["1", word, "3", word]))
    assert "missing or infinite values ('code': 2)" in text
    (table,) = together(tmp_path, ["EU", word, "EU", "US"])
    assert table.features["code"].tolist() == ["EU", word, "EU", "US"]
    assert any(f"cells that read {word!r}" in note for note in encoding.encode(table).notes)


@pytest.mark.parametrize("blank", ["", "  ", "nan", "NaN", "<NA>", "#N/A"])
@pytest.mark.parametrize("other", ["1.5", "red"])
def test_cells_without_a_value_are_missing_everywhere(tmp_path, blank, other):
    text = refusal(lambda: together(tmp_path, [other, blank, other, other], [other] * 3))
    assert f"TRAIN ({tmp_path / '0.csv'}) has missing or infinite values ('code': 1)" in text


def test_an_empty_column_is_missing_in_each_row(tmp_path):
    assert "('code': 4)" in refusal(lambda: together(tmp_path, [""] * 4))


def test_blanks_around_words_and_names_do_not_count(tmp_path):
    train, clean = together(tmp_path, [" red", "blue ", "red", "blue"], ["red", "blue"], header=" colour ")
    assert train.features["colour"].tolist() == ["red", "blue", "red", "blue"]
    assert clean.features["colour"].tolist() == ["red", "blue"]


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([["0", "1", "1"], ["1", "0"]], [[0, 1, 1], [1, 0]]),
        ([["1.0", "2.0"], ["1", "2"]], [[1, 2], [1, 2]]),
        ([["01", "02"], ["01", "02"]], [["01", "02"], ["01", "02"]]),
        ([["1", "2", "cat"], ["1", "2"]], [["1", "2", "cat"], ["1", "2"]]),
        ([["True", "False"], ["TRUE", "false"]], [[True, False], [True, False]]),
        ([[" cat", "dog "], ["cat", "dog"]], [["cat", "dog"], ["cat", "dog"]]),
        ([["NA", "EU"], ["EU", "NA"]], [["NA", "EU"], ["EU", "NA"]]),
        ([["None", "mild"], ["None", "mild"]], [["None", "mild"], ["None", "mild"]]),
        ([["-1", "1"]], [[-1, 1]]),
        ([["12345678901234567890", "2"]], [["12345678901234567890", "2"]]),
    ],
)
def test_labels_mean_the_same_in_all_files(tmp_path, columns, expected):
    assert labels_of(tmp_path, *columns) == expected


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["cat", "", "dog"], "('y': 1)"),
        (["cat", "nan", "dog"], "('y': 1)"),
        (["1", "NA", "2"], "('y': 1)"),
        (["1.0", "inf", "2"], "('y': 1)"),
        (["1.5", "2", "3"], "fractions (such as 1.5)"),
        (["1e300", "2", "3"], "quantity"),
        (["NA", "NA", "NA"], "('y': 3)"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, said):
    assert said in refusal(lambda: labels_of(tmp_path, labels))


def test_labels_of_several_formats_meet(tmp_path):
    """Numbers of a Parquet file, text of a CSV file and floats of another are the same classes."""
    pd.DataFrame({"a": [1, 2, 3], "y": [1, 2, 1]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("a,y\n1,1.0\n2,2.0\n")
    pd.DataFrame({"a": [1, 2], "y": ["2", "1"]}).to_parquet(tmp_path / "c.parquet")
    files = {"TRAIN": tmp_path / "a.parquet", "--trusted": tmp_path / "b.csv", "--test": tmp_path / "c.parquet"}
    assert [t.labels.tolist() for t in tables.read(files, "y")] == [[1, 2, 1], [1, 2], [2, 1]]


def test_padded_labels_are_not_taken_for_those_that_lost_their_zeros(tmp_path):
    (tmp_path / "a.csv").write_text("a,y\n1,01\n2,02\n")
    (tmp_path / "b.csv").write_text("a,y\n1,1\n2,2\n")
    text = refusal(lambda: job_from_files(tmp_path / "a.csv", tmp_path / "b.csv", None, "y", 0.0, 0))
    assert "labels that TRAIN" in text
    assert "'1', '2'" in text


def test_a_noted_label_reaches_the_notes(tmp_path):
    (tmp_path / "a.csv").write_text("a,y\n1,NA\n2,EU\n3,NA\n")
    assert any(
        "labels that read 'NA'" in note
        for note in job_from_files(tmp_path / "a.csv", tmp_path / "a.csv", None, "y", 0.0, 0).notes
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["1.5", "tall", "3"], "'tall' (row 1)"),
        (["a", "b", "c"], "a quantity is needed"),
        (["1.5", "", "3"], "('y': 1)"),
        (["1.5", "inf", "3"], "('y': 1)"),
        (["2", "2", "2"], "the target is 2 in all rows"),
        (["1", "1e200", "2"], "too large for single precision"),
    ],
)
def test_quantities(tmp_path, labels, said):
    (tmp_path / "a.csv").write_text("a,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    assert said in refusal(lambda: tables.read_quantities({"TRAIN": tmp_path / "a.csv"}, "y")[0])


# --- the scale ------------------------------------------------------------------------------------------------------


def encoded(values, *others):
    of = [
        tables.Table(f"t{i}", pd.DataFrame({"a": column}), np.arange(len(column)) % 2, None)
        for i, column in enumerate((values, *others))
    ]
    return [matrix[:, 0] for matrix in encoding.encode(*of).matrices]


BASE = np.array([0.0, 1.0, 5.0, 2.0, 7.0, 3.0])
STANDARD = (BASE - BASE.mean()) / BASE.std()


@pytest.mark.parametrize(
    "values",
    [
        BASE * 1e200,
        BASE * 1e-200,
        BASE * 1e307,
        -BASE * -1e-300,
        1e9 + BASE * 1e-3,
        2**40 + BASE.astype(np.int64),
        2**60 + BASE.astype(np.int64),
        np.uint64(2**64 - 10) + BASE.astype(np.uint64),
        BASE.astype(np.float16),
        -(2**62) + BASE.astype(np.int64) * 2**60,
    ],
    ids=["1e200", "1e-200", "1e307", "1e-300", "offset", "2^40", "2^60", "uint64", "float16", "int64's range"],
)
def test_a_column_is_standardised_whatever_its_offset_and_unit(values):
    np.testing.assert_allclose(encoded(values, values[::-1])[0], STANDARD, atol=1e-4)
    np.testing.assert_allclose(encoded(values, values[::-1])[1], STANDARD[::-1], atol=1e-4)


def test_a_constant_column_is_zero():
    for value in (0.1, 1e200, 2**60 + 1, 0.0):
        assert not encoded(np.array([value] * 5))[0].any()


def test_what_does_not_fit_the_training_scale_is_named():
    text = refusal(lambda: encoded(BASE, BASE[:3] * 1e200))
    assert "Column 'a' of t1 holds 1e+200 in row 1" in text


@pytest.mark.parametrize("kind", ["datetime64[ns]", "timedelta64[ns]", complex])
def test_dates_and_complex_numbers_are_refused(kind):
    assert "holds" in refusal(lambda: encoded(np.arange(4).astype(kind)))


def test_categories_are_those_of_scikit_learn():
    """Also which of them are rare, where several are as frequent."""
    rng = np.random.default_rng(0)
    train = pd.DataFrame({"a": [f"n{i}" for i in rng.zipf(1.3, 600) % 130], "b": rng.choice(["x", "y"], 600)})
    other = pd.DataFrame({"a": ["n1", "never", "n129"], "b": ["x", "z", "y"]})
    of = [tables.Table("t", frame, np.arange(len(frame)) % 2, None) for frame in (train, other)]
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=encoding.MOST_CATEGORIES, sparse_output=False
    ).fit(train)
    for matrix, frame in zip(encoding.encode(*of).matrices, (train, other), strict=True):
        np.testing.assert_array_equal(matrix, encoder.transform(frame))
    names, columns = encoding.encoded_names(of[0])
    expected = [
        name.replace("_", " = ").replace("infrequent = sklearn", "any other")
        for name in encoder.get_feature_names_out()
    ]
    assert names == expected
    assert columns == ["a"] * 50 + ["b"] * 2


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_bytes_are_shown_on_one_scale_whatever_the_file_holds(tmp_path):
    dark = np.full((4, 8, 8), 51, np.uint8)
    np.savez(tmp_path / "a.npz", X=dark, y=[0, 1, 0, 1])
    images = tables.as_images(tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])
    np.testing.assert_allclose(images, 0.2, rtol=1e-6)
    np.savez(tmp_path / "a.npz", X=dark.astype(float) + np.arange(4)[:, None, None], y=[0, 1, 0, 1])
    images = tables.as_images(tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])
    assert (images.min(), images.max()) == (0, 1)


# --- CSV ------------------------------------------------------------------------------------------------------------

GOOD = "a,b,y\n1,2,0\n3,4,1\n"


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD.replace(",", "|"),
        "\n\n" + GOOD.replace("\n", "\n\n"),
        '"a","b","y"\n"1","2","0"\n"3","4","1"\n',
        " a , b , y \n 1 , 2 , 0 \n3,4,1",
    ],
)
def test_csv_however_it_is_written(tmp_path, content):
    (tmp_path / "a.csv").write_text(content, newline="")
    table = tables.read({"TRAIN": tmp_path / "a.csv"}, "y")[0]
    assert table.features.columns.tolist() == ["a", "b"]
    assert table.features.to_numpy().tolist() == [[1, 2], [3, 4]]
    assert table.labels.tolist() == [0, 1]
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(content.encode())
    assert tables.read({"TRAIN": tmp_path / "a.csv.gz"}, "y")[0].features.equals(table.features)


@pytest.mark.parametrize("name", ["A.CSV", "a.Csv.GZ"])
def test_the_suffix_is_known_in_capitals_too(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(GOOD.encode(), mtime=0) if name.endswith("GZ") else GOOD.encode())
    assert tables.read({"TRAIN": tmp_path / name}, "y")[0].labels.tolist() == [0, 1]


def test_line_breaks_in_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('"two\nlines",y\n"x\ny",0\n"z",1\n')
    table = tables.read({"TRAIN": tmp_path / "a.csv"}, "y")[0]
    assert table.features["two\nlines"].tolist() == ["x\ny", "z"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,a,y\n1,2,0\n", "more than one column of the name 'a'"),
        (b"a,y,y\n1,0,1\n", "more than one column of the name 'y'"),
        (b"a, y,y\n1,0,1\n", "more than one column of the name 'y'"),
        (b"a,y\n1,2,0\n3,4,1\n", "2 column names and 3 values in its first row"),
        (b"a,y\n1,0,\n3,1,\n", "2 column names and 3 values"),
        (b"5.1,3.5,setosa\n4.9,3.0,virginica\n", "These look like values"),
        (b"a;b;species\n1;2;0\n", "separated by semicolons"),
        (b"a,Y\n1,0\n", "Did you mean 'Y'?"),
        (b"a,y\n1,0\n2,1,7,8\n", "Expected 2 fields in line 3"),
        (b"a,b,y\n1,2,0\n3\n4,5,1\n", "'b': 1, 'y': 1"),
        (b'a,y\n"1,0\n2,1\n', "cannot be read as .csv"),
        (b"a,y\n", "holds 0 samples"),
        (b"y\n1\n2\n", "of 0 features"),
        (b"a,y\n1,0\n", "one class only"),
        (b"\n\n \n", "cannot be read as .csv"),
        (b"<!DOCTYPE html>\n<html></html>", "HTML page"),
        (b"\xef\xbb\xbf\n <html>", "HTML page"),
        (b"PAR1abc", "rename it to end in .parquet"),
        (b"PK\x03\x04abc", "a zip archive"),
        (gzip.compress(GOOD.encode(), mtime=0), "rename it to end in .csv.gz"),
        (b"\x93NUMPY\x01\0", "numpy.savez"),
        (b"\x80\x04\x95", "pickle"),
        (b"a\0b,y\n1,2\n", "NUL bytes"),
        (GOOD.encode("utf-16"), "UTF-16 text. Save it as UTF-8"),
        (GOOD.encode("utf-16-le"), "NUL bytes"),
        ("name,y\nJosé,0\nAna,1\n".encode("cp1252"), "not UTF-8 text (byte 0xe9)"),
        (b"x" * 300 + b"\n", "no column 'y'"),
        (b'a,y\n"' + b"x" * 200_000, "cannot be read as .csv"),
    ],
)
def test_csv_that_is_refused(tmp_path, content, said):
    (tmp_path / "a.csv").write_bytes(content)
    assert said.lower() in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv"}, "y")[0]).lower()
    if b"\x1f\x8b" not in content[:2]:
        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
        assert said.lower() in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv.gz"}, "y")[0]).lower()


def test_bad_bytes_far_into_a_file_are_refused_alike(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,y\n" + b"1.5,0\n2.5,1\n" * 50_000 + "é,1\n".encode("latin-1"))
    assert "not UTF-8 text (byte 0xe9)" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.csv"}, "y")[0])


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".npz"])
def test_no_damage_ends_in_a_raw_error(tmp_path, suffix):
    """Bytes that are changed, lost, added or cut: a table or a sentence."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=20), "b": rng.choice(["x", "z"], 20), "y": np.arange(20) % 2})
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    if suffix == ".npz":
        np.savez_compressed(whole, X=frame[["a"]], y=frame["y"])
    elif suffix == ".parquet":
        frame.to_parquet(whole)
    else:
        frame.to_csv(whole, index=False)
    refused = 0
    for trial in range(60):
        content = bytearray(whole.read_bytes())
        at = int(rng.integers(len(content)))
        content[at : at + (len(content), 1, 3, 0)[trial % 4]] = rng.bytes((0, 1, 0, 3)[trial % 4])
        path.write_bytes(content)
        try:
            encoding.encode(tables.read({"TRAIN": path}, "y")[0])
        except InputError:
            refused += 1
    assert refused >= 15


# --- Parquet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([decimal.Decimal("1.25"), decimal.Decimal("-3.50")]), [1.25, -3.5]),
        (pa.array([decimal.Decimal("1e30"), decimal.Decimal("2")], pa.decimal256(50, 2)), [1e30, 2]),
        (pa.array([1.5, 2.5]).dictionary_encode(), [1.5, 2.5]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([1.5, 2.5], pa.float16()), [1.5, 2.5]),
        (pa.array([True, False]), [True, False]),
        (pa.array([2**63, 1], pa.uint64()), [2**63, 1]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    ],
    ids=["decimal128", "decimal256", "numbers' dictionary", "words' dictionary", "half", "bool", "uint64", "large"],
)
def test_parquet_numbers_are_numbers(tmp_path, column, expected):
    pq.write_table(pa.table({"a": column, "y": ["p", "q"]}), tmp_path / "a.parquet")
    table = tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0]
    assert table.features["a"].tolist() == expected
    assert encoding.encode(table).matrices[0].shape == (2, 2 if expected[0] == "a" else 1)


def test_text_columns_of_parquet_that_hold_numbers_alone(tmp_path):
    """Numbers are taken for numbers, and said; digits led by zeros are codes."""
    for values, expected in ((["1.5", "2", "x"], None), (["1.5", "2", "30"], [1.5, 2, 30]), (["01", "2", "3"], None)):
        pq.write_table(pa.table({"a": values, "y": ["p", "q", "p"]}), tmp_path / "a.parquet")
        table = tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0]
        assert table.features["a"].tolist() == (expected or values)
        assert any("stored as text, and all its cells are numbers" in note for note in table.notes) == (
            expected is not None
        )


def test_one_bad_cell_of_a_parquet_column(tmp_path):
    pq.write_table(pa.table({"a": ["1.5", "2", "1e5 kg", "4"], "y": ["p", "q"] * 2}), tmp_path / "a.parquet")
    text = refusal(lambda: tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0])
    assert "numbers except for 1 cell: '1e5 kg' (row 2" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as CSV"),
        (b"feature,group\na\xff,1\n", "not UTF-8"),
        (b"PK\x03\x04", "a zip archive"),
        (b'a,b\n1,2,3,4\n1\n"', "cannot be read as CSV"),
    ],
)
def test_words_that_cannot_be_read(tmp_path, content, said):
    (tmp_path / "a.csv").write_bytes(content)
    assert said in refusal(lambda: csv_text.read_words(tmp_path / "a.csv", "--groups (a.csv)"))


def test_words_are_kept_as_written(tmp_path):
    (tmp_path / "a.csv").write_text("\ufefffeature , group\nNA, 01\n x,\n")
    frame = csv_text.read_words(tmp_path / "a.csv", "--groups")
    assert frame.columns.tolist() == ["feature", "group"]
    assert frame.to_numpy().tolist() == [["NA", "01"], ["x", ""]]
    with pytest.raises(InputError, match="--groups is a directory"):
        csv_text.read_words(tmp_path, "--groups")


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "category", "string"])
def test_nullable_columns_of_pandas(tmp_path, dtype):
    whole = pd.DataFrame({"a": pd.array([1, 0, 1], dtype=dtype if dtype != "string" else None), "y": [0, 1, 0]})
    if dtype == "string":
        whole["a"] = pd.array(["x", "y", "x"], dtype="string")
    whole.to_parquet(tmp_path / "a.parquet")
    table = tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0]
    assert encoding.encode(table).matrices[0].shape == (3, 2 if dtype == "string" else 1)
    whole.loc[1, "a"] = pd.NA
    whole.to_parquet(tmp_path / "a.parquet")
    assert "('a': 1)" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0])


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([datetime.date(2020, 1, 1)] * 2), "dates or times (date32[day])"),
        (pa.array([datetime.datetime(2020, 1, 1)] * 2), "dates or times (timestamp[us])"),
        (pa.array([datetime.timedelta(1)] * 2), "dates or times (duration[us])"),
        (pa.array([[1.0, 2.0]] * 2), "type list<"),
        (pa.array([{"p": 1}] * 2), "type struct<"),
        (pa.array([b"ab"] * 2), "type binary"),
        (pa.array([None, None]), "('a': 2)"),
    ],
    ids=["date", "timestamp", "duration", "list", "struct", "binary", "null"],
)
def test_parquet_columns_that_are_refused(tmp_path, column, said):
    pq.write_table(pa.table({"a": column, "b": [1, 2], "y": ["p", "q"]}), tmp_path / "a.parquet")
    text = refusal(lambda: tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0])
    assert "'a'" in text
    assert said in text


def test_parquet_index_and_names(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "y": [0, 1]}, index=pd.Index([5, 9], name="id"))
    frame.to_parquet(tmp_path / "a.parquet")
    table = tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0]
    assert list(table.features) == ["a"]
    assert "Column 'id' is the saved row index and left out." in encoding.encode(table).notes
    pq.write_table(pa.table([[1, 2], [3, 4], [0, 1]], names=["a", "a", "y"]), tmp_path / "a.parquet")
    assert "more than one column" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0])


def test_a_parquet_file_that_claims_more_than_the_memory(tmp_path, monkeypatch):
    pd.DataFrame({"a": np.zeros(100_000), "y": np.arange(100_000) % 2}).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(archives, "memory", lambda: 1 << 20)
    assert "memory is 1.0 MB" in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.parquet"}, "y")[0])


# --- NPZ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", ">f8", ">i2", "<u4", "?", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_numbers_of_every_kind(tmp_path, dtype, order):
    X = np.asarray([[0, 1, 1], [1, 0, 1]]).astype(dtype, order=order)
    np.savez(tmp_path / "a.npz", X=X, y=np.array([3, 4], ">i8"))
    table = tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0]
    assert table.labels.tolist() == [3, 4]
    np.testing.assert_array_equal(encoding.encode(table).matrices[0], [[-1, 1, 0], [1, -1, 0]])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0.0, 1.0]), [0, 1]),
        (np.array([b"cat", b"dog"]), ["cat", "dog"]),
        (np.array(["cat", "dog"]), ["cat", "dog"]),
        (np.array([True, False]), [True, False]),
        (np.array([7, 9], np.uint8), [7, 9]),
    ],
)
def test_npz_labels_of_every_kind(tmp_path, labels, expected):
    np.savez(tmp_path / "a.npz", X=np.eye(2), y=labels)
    assert tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0].labels.tolist() == expected


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"X": np.eye(2) * 1j, "y": [0, 1]}, "X has dtype complex128, and complex numbers would lose"),
        ({"X": np.eye(2), "y": np.array([1j, 2])}, "y has dtype complex128"),
        ({"X": np.zeros((2, 1), "M8[D]"), "y": [0, 1]}, "dates or times"),
        ({"X": np.eye(2), "y": np.zeros(2, "m8[s]")}, "dates or times"),
        ({"X": np.zeros(2, [("a", float)]), "y": [0, 1]}, "named fields"),
        ({"X": np.zeros(2, [("é", float), ("漢", float)]), "y": [0, 1]}, "named fields"),
        ({"X": np.array([[None]]), "y": [0]}, "Python objects, which are never loaded"),
        ({"X": np.eye(2), "y": np.array([0, "a"], dtype=object)}, "Python objects"),
        ({"X": np.eye(2), "y": np.eye(2)}, "y.argmax(axis=1)"),
        ({"X": np.arange(2), "y": [0, 1]}, "X.reshape(-1, 1)"),
        ({"X": np.zeros((0, 3)), "y": np.zeros(0)}, "holds 0 samples"),
        ({"X": np.zeros((3, 0)), "y": np.zeros(3)}, "of 0 features"),
        ({"X": np.array([["1"], ["2"]]), "y": [0, 1]}, "must hold numbers"),
        ({"X": np.float64(3), "y": [0, 1]}, "X has shape ()"),
        ({"X": np.eye(2), "y": [0.5, 1]}, "fractions"),
        ({"X": np.eye(2), "y": [np.nan, 1]}, "('the labels': 1)".replace("'", "")),
        ({"X": np.array([[1e400], [2]]), "y": [0, 1]}, "'X[0]': 1"),
        ({"arr_0": np.eye(2)}, "has no array 'X'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_npz_that_is_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    assert said in refusal(lambda: tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])


def npy(array, **changed):
    out = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changed
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + array.tobytes()


def archive(path, members, **settings):
    with zipfile.ZipFile(path, "w", **settings) as file:
        for name, content in members:
            file.writestr(name, content)


Y = ("y.npy", npy(np.array([0, 1])))


@pytest.mark.parametrize("shape", [(10**12, 2), (3, 2), (1, 2), (-2, -2), (10**30,)])
def test_an_array_that_lies_about_its_size(tmp_path, shape):
    archive(tmp_path / "a.npz", [("X.npy", npy(np.eye(2), shape=shape)), Y])
    text = refusal(lambda: tables.read({"TRAIN": tmp_path / "a.npz"}, None)[0])
    assert "the header of the array 'X' says shape" in text
    assert "but the file has 32 bytes" in text


def test_damaged_archives(tmp_path):
    path = tmp_path / "a.npz"
    good = [("X.npy", npy(np.eye(2))), Y]
    archive(path, good)
    content = bytearray(path.read_bytes())
    at = content.index(np.eye(2).tobytes())
    content[at + 3] ^= 1
    path.write_bytes(content)
    assert "Bad CRC-32" in refusal(lambda: tables.read({"TRAIN": path}, None)[0])
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, [*good, good[0]])
    assert "more than one array of the name 'X'" in refusal(lambda: tables.read({"TRAIN": path}, None)[0])
    archive(path, good)
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the bit for encryption, in both headers
        at = content.index(mark)
        content[at + offset] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refusal(lambda: tables.read({"TRAIN": path}, None)[0])
    np.save(tmp_path / "b.npy", np.eye(2))
    (tmp_path / "b.npy").rename(path)
    assert "a single array, as numpy.save writes it" in refusal(lambda: tables.read({"TRAIN": path}, None)[0])
    archive(path, [("X.npy", b"no array"), Y])
    assert "cannot be read as .npz" in refusal(lambda: tables.read({"TRAIN": path}, None)[0])


@pytest.mark.parametrize("kind", ["a.npz", "a.csv.gz"])
def test_what_expands_beyond_measure_is_refused_before_it_does(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "LARGE", 1 << 20)
    if kind == "a.npz":
        np.savez_compressed(tmp_path / kind, X=np.zeros((40_000, 10)), y=np.arange(40_000) % 2)
    else:
        (tmp_path / kind).write_bytes(gzip.compress(b"a,y\n" + b"0,0\n" * 1_000_000))
    began = time.perf_counter()
    assert "expand to" in refusal(lambda: tables.read({"TRAIN": tmp_path / kind}, None if kind == "a.npz" else "y")[0])
    assert time.perf_counter() - began < 5
    monkeypatch.setattr(archives, "memory", lambda: 1 << 20)
    monkeypatch.setattr(archives, "LARGE", 1 << 40)
    assert "this machine's memory" in refusal(lambda: tables.read({"TRAIN": tmp_path / kind}, "y")[0])


# --- what is not a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".npz"])
def test_what_is_no_regular_file_is_refused_and_never_opened(tmp_path, suffix):
    pipe, loop, bound, folder, device = (tmp_path / f"{kind}{suffix}" for kind in ("p", "l", "s", "d", "z"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    folder.mkdir()
    device.symlink_to("/dev/zero")
    for path, said in (
        (pipe, "is a pipe"),
        (loop, "cannot be opened"),
        (folder, "is a directory"),
        (device, "is a device"),
        (tmp_path / f"{'x' * 300}{suffix}", "cannot be opened"),
        (tmp_path / f"gone{suffix}", "does not exist"),
        (tmp_path / f"nul\0{suffix}", "cannot be opened"),
    ):
        assert said in refusal(lambda path=path: tables.read({"TRAIN": path}, "y")[0])
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(str(bound))
        except OSError:  # the path is longer than a socket's may be
            return
        assert "is a socket" in refusal(lambda: tables.read({"TRAIN": bound}, "y")[0])


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numbers", "text"])
def test_time_grows_with_the_columns_and_not_with_their_square(kind):
    rng = np.random.default_rng(0)
    seconds = []
    for width in (100, 800):
        values = rng.normal(size=(6, width)) if kind == "numbers" else rng.choice(["r", "g"], (6, width)).astype(object)
        frame = pd.DataFrame(values, columns=[f"c{i}" for i in range(width)])
        table = tables.Table("t", frame, np.arange(6) % 2, None)
        began = time.process_time()
        encoding.encode(table, table)
        encoding.encoded_names(table)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 24 * seconds[0] + 0.1  # 8 times where linear, 64 where quadratic

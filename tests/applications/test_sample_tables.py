"""Tables to review as people have them: each kind of mess, what becomes of it, and what is said about it."""

import bz2
import gzip
import lzma
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bilevax import InputError
from bilevax.data.samples.columns import names_of
from bilevax.data.samples.read import read_samples
from bilevax.data.samples.types import Options

LABELS = ["cat", "dog", "dog"]


def refusal(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert text.endswith((".", "?"))
    assert "Traceback" not in text
    return text


def table(folder, columns, *, n=12, labels=None, options=None, name="a.csv"):
    """A CSV file of n rows; `columns` are lists that are repeated, or functions of the row's number."""
    cells = {c: [v(i) if callable(v) else v[i % len(v)] for i in range(n)] for c, v in columns.items()}
    cells["y"] = labels or [LABELS[i % 3] for i in range(n)]
    path = folder / name
    pd.DataFrame(cells, dtype=str).to_csv(path, index=False)
    return read_samples(path, options=options or Options(target="y"))


def said(samples, *words) -> bool:
    return any(all(word in note for word in words) for note in samples.notes)


def column(samples, name):
    return samples.features[:, names_of(samples.columns).index(name)]


NUMBERS = ["1", "2.5", "4", "8", "3"]


# --- numbers --------------------------------------------------------------------------------------------------------


def test_missing_numbers_are_at_the_median_and_marked(tmp_path):
    samples = table(tmp_path, {"a": ["1", "", "4", "8", "NA"]}, n=10)
    assert names_of(samples.columns) == ["a", "a is missing"]
    values = np.array([1, 4, 4, 8, 4] * 2, float)  # the median of 1, 4, 8 is 4
    np.testing.assert_allclose(column(samples, "a"), (values - 4) / values.std(), rtol=1e-6)
    assert column(samples, "a is missing").tolist() == [0, 1, 0, 0, 1] * 2
    assert said(samples, "missing values", "'a'")


@pytest.mark.parametrize("word", ["inf", "-Infinity", "1e400", "1e35", "oops", "#DIV/0!", "12 apples"])
def test_malformed_numbers_are_missing_and_counted(tmp_path, word):
    samples = table(tmp_path, {"a": [*NUMBERS, "5", word]}, n=14)
    assert column(samples, "a is missing").tolist() == ([0] * 6 + [1]) * 2
    assert said(samples, "'a'", "2 cells are not a finite number", repr(word), "lines 8, 15")
    strict = Options(target="y", strict=True)
    text = refusal(lambda: read_samples(tmp_path / "a.csv", options=strict))
    assert "2 cells are not a finite number" in text


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1,234.5", "12", "1,000,000"], [1234.5, 12, 1e6]),
        (["0,5", "12,75", "3"], [0.5, 12.75, 3]),
        (["1.234,5", "2,25", "7"], [1234.5, 2.25, 7]),
        (["$3.10", "$1,200", "4"], [3.10, 1200, 4]),
        (["45%", "50%", "5.5 %"], [45, 50, 5.5]),
        (["1 234", "5", "12 000"], [1234, 5, 12000]),
        (["1'234", "5", "12'000"], [1234, 5, 12000]),
        ([".5", "5.", "+1e2"], [0.5, 5, 100]),
        ([" 1", "2 ", "3"], [1, 2, 3]),
        (["12,34,567", "5", "1"], [1234567, 5, 1]),
    ],
)
def test_numbers_as_people_write_them(tmp_path, cells, values):
    samples = table(tmp_path, {"a": cells})
    expected = np.array(values * 4, float)
    np.testing.assert_allclose(
        column(samples, "a"), (expected - np.median(expected)) / expected.std(), rtol=1e-5, atol=1e-6
    )


def test_thousands_in_a_file_with_semicolons_are_decimals(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a;y\n" + "1,234;cat\n5,678;dog\n" * 6)
    (number,) = read_samples(path, options=Options(target="y", keep=("a",))).columns
    assert (number.centre, number.style.decimal) == (pytest.approx((1.234 + 5.678) / 2), ",")
    path.write_text("a,y\n" + '"1,234",cat\n"5,678",dog\n' * 6)
    (number,) = read_samples(path, options=Options(target="y", keep=("a",))).columns
    assert (number.centre, number.style.decimal) == ((1234 + 5678) / 2, ".")


def test_a_percent_sign_in_some_cells_alone_is_not_ignored(tmp_path):
    """5% is not 5: of a column of both, the rarer form is malformed."""
    samples = table(tmp_path, {"a": ["0.1", "0.2", "0.3", "0.5", "0.7", "30%"]})
    assert said(samples, "2 cells are not a finite number", "'30%'")


def test_one_unit_is_left_out_of_the_numbers_and_two_are_not_mixed(tmp_path):
    samples = table(tmp_path, {"a": lambda i: f"{i * 7 % 12}.5 kg"})
    assert samples.columns[0].style.unit == "kg"
    assert samples.columns[0].centre == 6.0
    samples = table(tmp_path, {"a": lambda i: f"{i * 7 % 12}.5 {'kg' if i % 2 else 'g'}", "b": NUMBERS})
    assert [c.role for c in samples.columns] == ["identifier", "number"]  # each value is another: of no use as words


def test_codes_with_zeros_are_categories(tmp_path):
    samples = table(tmp_path, {"zip": ["01234", "98765", "00001", "01234"]})
    assert names_of(samples.columns) == ["zip = 00001", "zip = 01234", "zip = 98765"]


def test_a_value_far_from_all_others_stays_finite(tmp_path):
    train = tmp_path / "t.csv"
    train.write_text("a,y\n" + "1e-25,cat\n3e-25,dog\n2e-25,dog\n" * 4)
    (tmp_path / "clean.csv").write_text("a,y\n1e29,cat\n2e-25,dog\n")
    samples = read_samples(train, tmp_path / "clean.csv", Options(target="y"))
    assert samples.features[-2:].tolist() == [[1e6], [0.0]]


# --- categories -----------------------------------------------------------------------------------------------------


def test_rare_values_share_a_column_and_missing_ones_have_their_own(tmp_path):
    cells = ["red"] * 6 + ["blue"] * 4 + ["mauve", "teal", "?", ""]
    samples = table(tmp_path, {"c": cells}, n=14)
    assert names_of(samples.columns) == ["c = blue", "c = red", "c = any other", "c is missing"]
    assert samples.features.sum(0).tolist() == [4, 6, 2, 2]
    assert samples.features.sum(1).tolist() == [1] * 14


def test_many_values_keep_the_most_frequent(tmp_path):
    cells = [f"w{i}" for i in range(60) for _ in range(3 + i // 10)]
    samples = table(tmp_path, {"c": cells}, n=len(cells))
    names = names_of(samples.columns)
    assert len(names) == 50
    assert "c = w59" in names
    assert "c = w0" not in names
    assert samples.features.sum() == len(cells)


@pytest.mark.parametrize("word", ["NA", "None", "null"])
def test_words_for_nothing_are_values_among_words(tmp_path, word):
    samples = table(tmp_path, {"c": ["EU", word, "EU", "US", "US", word]})
    assert f"c = {word}" in names_of(samples.columns)


# --- columns that are left out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("id", lambda i: str(i * 7919 % 1009)),
        ("customerID", lambda i: f"{i * 7919 % 1009}-XYZ"),
        ("passenger_id", lambda i: str(100 - i)),
        ("whatever", lambda i: str(3 * i + 5)),
        ("serial", lambda i: f"a{i * 7919 % 1009:05d}f"),
        ("Unnamed: 0", lambda i: str(i)),
    ],
)
def test_identifiers_are_left_out_and_kept_beside_the_samples(tmp_path, name, cells):
    samples = table(tmp_path, {name: cells, "a": NUMBERS})
    assert names_of(samples.columns) == ["a"]
    assert said(samples, repr(name), "left out: identifiers", repr(cells(0)))
    assert samples.identifiers == [cells(i) for i in range(12)]
    kept = read_samples(tmp_path / "a.csv", options=Options(target="y", keep=(name,)))
    assert {column.role for column in kept.columns} <= {"number", "category"}


@pytest.mark.parametrize("name", ["width", "humid", "valid", "grid", "period"])
def test_names_that_end_in_id_by_chance(tmp_path, name):
    samples = table(tmp_path, {name: lambda i: str(i * 7919 % 1009)})
    assert names_of(samples.columns) == [name]


@pytest.mark.parametrize(
    "cells",
    [
        lambda i: f"2020-01-{i + 1:02d}",
        lambda i: f"2020-01-{i + 1:02d}T10:00:00Z",
        lambda i: f"{i + 1}/2/2021",
        lambda i: f"{i + 1}.2.2021 12:30",
        lambda i: f"{i + 1} Mar 2021",
        lambda i: f"Monday, {i + 1} March 2021",
        lambda i: f"Mar {i + 1}, 2021",
        lambda i: f"2021/02/{i + 1}",
        lambda i: f"{i + 1:02d}-02-2021",
        lambda i: f"{i}:30",
    ],
)
def test_dates_are_left_out(tmp_path, cells):
    samples = table(tmp_path, {"when": cells, "a": NUMBERS})
    assert names_of(samples.columns) == ["a"]
    assert said(samples, "'when'", "left out: dates", repr(cells(0)))


def test_columns_of_one_value_are_left_out(tmp_path):
    samples = table(tmp_path, {"a": ["x"], "b": ["7"], "c": [""], "d": NUMBERS, "e": ["1", "1.0"]})
    assert names_of(samples.columns) == ["d"]
    assert sum("the same value in all rows" in note for note in samples.notes) == 4


def test_a_copy_of_the_label_is_left_out(tmp_path):
    copies = {"species": ["felis", "canis", "canis"], "code": ["7", "3", "3"], "a": NUMBERS}
    samples = table(tmp_path, copies)
    assert names_of(samples.columns) == ["a"]
    assert said(samples, "'species'", "a copy of the label")
    assert said(samples, "'code'", "a copy of the label")


def test_dropped_columns_and_names_that_are_misspelt(tmp_path):
    samples = table(tmp_path, {"a": NUMBERS, "colour": ["red", "blue"]}, options=Options(target="y", drop=("colour",)))
    assert names_of(samples.columns) == ["a"]
    assert said(samples, "Left out as asked: 'colour'")
    path = tmp_path / "a.csv"
    for options, option in (
        (Options(target="y", drop=("color",)), "--drop"),
        (Options(target="y", keep=("Colour ",)), "--keep"),
        (Options(target="colur"), "--target"),
        (Options(target="y", trusted_column="colours"), "--trusted-column"),
    ):
        if option == "--keep":
            text = refusal(lambda options=options: read_samples(path, options=options._replace(keep=("Color",))))
        else:
            text = refusal(lambda options=options: read_samples(path, options=options))
        assert f"({option})" in text
        assert text.endswith("Did you mean 'colour'?")


def test_without_a_feature_the_reasons_are_listed(tmp_path):
    text = refusal(lambda: table(tmp_path, {"id": lambda i: str(i), "c": ["x"]}))
    assert "no column that can be used as a feature" in text
    assert "identifiers" in text
    assert "the same value in all rows" in text
    samples = read_samples(tmp_path / "a.csv", options=Options(target="y", elsewhere=True))
    assert samples.features.shape == (12, 0)


# --- text -----------------------------------------------------------------------------------------------------------

SENTENCES = ["the card that I ordered has not arrived", "what is the exchange rate for euros today", "hello there you"]


def test_free_text_alone_is_text(tmp_path):
    samples = table(tmp_path, {"id": lambda i: str(i), "comment": lambda i: f"{SENTENCES[i % 2]} {i}"})
    assert samples.kind == "text"
    assert samples.features[:2] == [f"{SENTENCES[0]} 0", f"{SENTENCES[1]} 1"]
    assert samples.identifiers[:2] == ["0", "1"]


def test_free_text_beside_numbers_is_kept_apart(tmp_path):
    samples = table(tmp_path, {"comment": lambda i: f"{SENTENCES[i % 2]} {i}", "a": NUMBERS})
    assert samples.kind == "table"
    assert names_of(samples.columns) == ["a"]
    assert samples.texts[1] == f"{SENTENCES[1]} 1"
    assert said(samples, "free text", "'comment'")


def test_phrases_are_text_where_there_is_nothing_else(tmp_path):
    cells = {"phrase": lambda i: f"good film {i}"}
    assert table(tmp_path, cells).kind == "text"
    assert table(tmp_path, cells | {"a": NUMBERS}).texts is None


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", " ", "nan", "?"])
def test_records_without_a_label_are_listed_and_left_out(tmp_path, blank):
    labels = ["cat", "dog", blank, "dog", "cat", blank] * 2
    samples = table(tmp_path, {"a": NUMBERS}, labels=labels)
    assert said(samples, "4 records without a label", "lines 4, 7, 10, 13")
    assert samples.labels.tolist() == ["cat", "dog", "dog", "cat"] * 2
    assert samples.lines.tolist() == [2, 3, 5, 6, 8, 9, 11, 12]
    assert samples.record.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert samples.rows["a"].tolist() == [NUMBERS[i % 5] for i in samples.record]
    assert samples.source.records == 12


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "1", "NA"], [0, 1]),
        (["1.0", "2.0", "inf"], [1, 2]),
        (["True", "FALSE"], [True, False]),
        (["NA", "EU"], ["NA", "EU"]),
        (["01", "02"], ["01", "02"]),
    ],
)
def test_labels_of_every_kind(tmp_path, labels, expected):
    samples = table(tmp_path, {"a": NUMBERS}, labels=(labels * 12)[:12])
    assert samples.labels[:2].tolist() == expected
    assert samples.labels.dtype == np.array(expected, None if not isinstance(expected[0], str) else object).dtype


def test_a_class_of_one_sample_and_spellings_are_noted(tmp_path):
    samples = table(tmp_path, {"a": NUMBERS}, labels=["cat", "dog"] * 5 + ["Cat", "bird"])
    assert said(samples, "one sample only of 'Cat', 'bird'") or said(samples, "one sample only of 'bird'")
    assert said(samples, "differ in case alone", "'Cat' (1), 'cat' (5)")


def test_targets_that_are_no_classes(tmp_path):
    n = 60
    for labels, words in (
        ([f"w{i}" for i in range(n)], "60 different labels in 60 samples"),
        ([f"{i}.5" for i in range(n)], "fractions"),
        (["cat"] * n, "one class only ('cat')"),
        ([""] * n, "no label in any of its 60 records"),
    ):
        text = refusal(lambda labels=labels: table(tmp_path, {"a": NUMBERS}, n=n, labels=labels))
        assert words in text


def test_the_target_may_be_found_by_its_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,Label\n1,x\n2,y\n")
    assert read_samples(path).source.target == "Label"
    path.write_text("a,kind\n1,x\n2,y\n")
    assert "needs --target" in refusal(lambda: read_samples(path))


# --- files ----------------------------------------------------------------------------------------------------------

PLAIN = "size,colour,label\n" + "".join(
    f"{i % 4},{'grün' if i % 3 else 'blå'},{'ja' if i % 2 else 'né'}\n" for i in range(12)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_are_found_out(tmp_path, encoding, separator):
    path = tmp_path / "a.csv"
    path.write_bytes(PLAIN.replace(",", separator).encode(encoding))
    samples = read_samples(path)
    assert names_of(samples.columns) == ["size", "colour = blå", "colour = grün"]
    assert set(samples.labels) == {"ja", "né"}
    assert (samples.source.separator, samples.source.encoding) == (separator, encoding)
    assert path.read_bytes().decode(samples.source.encoding) == PLAIN.replace(",", separator)


def test_text_that_is_not_utf8_is_noted_and_refused_when_strict(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(PLAIN.encode("cp1252"))
    assert said(read_samples(path), "not UTF-8", "0xe5 in line 2", "CP1252", "--encoding")
    assert "0xe5 in line 2" in refusal(lambda: read_samples(path, options=Options(strict=True)))
    assert not read_samples(path, options=Options(strict=True, encoding="latin-1")).notes[0].count("UTF-8")
    assert "is not text in the encoding utf-8" in refusal(lambda: read_samples(path, options=Options(encoding="utf-8")))
    assert "'utf-9' is unknown" in refusal(lambda: read_samples(path, options=Options(encoding="utf-9")))
    path.write_bytes(PLAIN.encode("latin-1") + b"1,\x81,ja\n")
    assert read_samples(path).source.encoding == "latin-1"  # CP1252 has no such byte


def test_a_separator_that_is_given(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(PLAIN.replace(",", ":"), "utf-8")
    assert read_samples(path, options=Options(separator=":")).features.shape == (12, 3)
    path.write_text(PLAIN.replace(",", "\t"), "utf-8")
    assert read_samples(path, options=Options(separator="tab")).features.shape == (12, 3)
    assert "must be one character" in refusal(lambda: read_samples(path, options=Options(separator="::")))


def zipped(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", content)


def zstandard(path, content):
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("gz", lambda path, content: path.write_bytes(gzip.compress(content))),
        ("bz2", lambda path, content: path.write_bytes(bz2.compress(content))),
        ("xz", lambda path, content: path.write_bytes(lzma.compress(content))),
        ("zst", zstandard),
        ("zip", zipped),
    ],
)
def test_compressed_files(tmp_path, suffix, write):
    path = tmp_path / f"a.csv.{suffix}"
    write(path, PLAIN.encode())
    samples = read_samples(path)
    assert samples.source.compression == suffix
    assert samples.features.shape == (12, 3)
    path.write_bytes(path.read_bytes()[:40])
    assert "cannot be decompressed" in refusal(lambda: read_samples(path))


def test_archives_of_several_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", PLAIN)
        archive.writestr("b.csv", PLAIN)
    assert "zip archive of 2 files ('a.csv', 'b.csv')" in refusal(lambda: read_samples(tmp_path / "a.zip"))


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("bilevax.data.archives.LARGE", 1 << 20)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,label\n" + b"1,x\n" * (1 << 20)))
    assert "expand to" in refusal(lambda: read_samples(tmp_path / "a.csv.gz"))


def test_lines_count_breaks_within_quotes_blank_lines_and_windows_endings(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,c,label\r\n\r\n1,"x\r\ny",p\r\n2,z,q\r\n   \r\n3,z,p\r\n4,"x\r\ny",q\r\n')
    samples = read_samples(path)
    assert samples.lines.tolist() == [3, 5, 7, 8]
    assert samples.rows["c"].tolist() == ["x\r\ny", "z", "z", "x\r\ny"]
    path.write_bytes(b"a,label\r1,p\r2,q\r")
    assert read_samples(path).lines.tolist() == [2, 3]


def test_records_of_another_length(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,label\n1,5,p\n2,6,q,extra\n3,7,p,,\n4\n5,8,q\n")
    samples = read_samples(path)
    assert samples.lines.tolist() == [2, 4, 6]
    assert samples.record.tolist() == [0, 2, 4]
    assert said(samples, "1 record with more than 3 cells (line 3)", "left out")
    assert said(samples, "1 record with fewer than 3 cells (line 5)")
    assert said(samples, "1 record without a label (line 5)")
    assert "fewer than 3 cells" in refusal(lambda: read_samples(path, options=Options(strict=True)))


def test_a_quotation_mark_that_is_never_closed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,label\n1,p\n2,"q\n3,p\n4,q\n')
    assert "quotation mark in line 3 is never closed" in refusal(lambda: read_samples(path))
    path.write_text('a,b,label\n1,5" pipe,p\n2,6" pipe,q\n3,x,p\n4,5" pipe,q\n')
    assert read_samples(path).rows["b"].tolist() == ['5" pipe', '6" pipe', "x", '5" pipe']


def test_names_of_columns_that_are_blank_or_the_same(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,a,,label,\n1,5,7,p,\n2,6,8,q,\n3,5,7,p,\n")
    samples = read_samples(path)
    assert names_of(samples.columns) == ["a", "a (2)", "column 3"]
    assert said(samples, "more than one column of the name 'a'")


def test_names_of_rows_without_a_name_of_their_own(tmp_path):
    """As R's write.table writes them."""
    path = tmp_path / "a.txt"
    path.write_text("a\tlabel\n" + "".join(f"row{i}\t{i % 5}\t{'pq'[i % 2]}\n" for i in range(12)))
    samples = read_samples(path)
    assert samples.identifiers[:2] == ["row0", "row1"]
    assert names_of(samples.columns) == ["a"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,label\n", "no rows below"),
        (b"a,label\n1,p\n2,\0q\n", "NUL bytes (line 3)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "NUL"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"PAR1xxxx", "Parquet file"),
        (b"\x80\x04\x95", "pickle"),
        (b"\xff\xfea", "damaged"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    assert words in refusal(lambda: read_samples(tmp_path / "a.csv"))


def test_paths_that_are_no_files(tmp_path):
    assert "does not exist" in refusal(lambda: read_samples(tmp_path / "no.csv"))
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    assert "ends in '.xlsx', an unknown format" in refusal(lambda: read_samples(tmp_path / "a.xlsx"))
    (tmp_path / "empty").mkdir()
    assert "no subfolders" in refusal(lambda: read_samples(tmp_path / "empty"))


def test_parquet_with_types(tmp_path):
    n = 12
    frame = pd.DataFrame(
        {
            "when": pd.date_range("2020-01-01", periods=n),
            "flag": [True, False, None] * 4,
            "a": [1.5, np.nan, np.inf, 2.5] * 3,
            "nested": [{"x": 1}] * n,
            "c": pd.Categorical(["u", "v"] * 6),
            "y": [0, 1, 1] * 4,
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    samples = read_samples(tmp_path / "a.parquet", options=Options(target="y"))
    assert names_of(samples.columns) == ["flag", "flag is missing", "a", "a is missing", "c = u", "c = v"]
    assert said(samples, "'when'", "dates")
    assert said(samples, "'nested'", "neither numbers nor text")
    assert said(samples, "'a'", "3 cells are not a finite number ('inf'; the first in row 2, from 0)")
    assert samples.lines.tolist() == list(range(n))


@pytest.mark.slow
def test_a_wide_table_of_pixels(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 256, (2000, 300)), columns=[f"p{i}" for i in range(300)])
    frame.assign(label=rng.integers(0, 10, 2000)).to_csv(tmp_path / "a.csv", index=False)
    samples = read_samples(tmp_path / "a.csv")
    x = frame.to_numpy(float)
    np.testing.assert_allclose(samples.features, (x - np.median(x, axis=0)) / x.std(axis=0), rtol=1e-5, atol=1e-6)

"""Corrected text files differ in the cells of the labels alone, however the cells are written."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bilevax import InputError
from bilevax.applications.denoising.review import Decision, Decisions, apply_decisions, short_digest
from bilevax.data.samples.types import Source

CELLS = st.text('ab "\n\r,;é', max_size=6)
LABELS = st.sampled_from(["a", "b", "b c", 'say "a"', "a,b", "a;b"])


HEADER = ["x", "kind", "y"]


def written(row, **settings):
    stream = io.StringIO(newline="")
    csv.writer(stream, **settings).writerow(row)
    return stream.getvalue()


def parsed(text, separator):
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))


def applied(tmp_path, text, separator, records, *items):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_bytes(text.encode())
    out.unlink(missing_ok=True)
    source = Source(path, "csv", "kind", records, 64 * "0", "utf-8", separator)
    apply_decisions(source, Decisions("mine", short_digest(source.digest), items), out)
    return out.read_bytes().decode()


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(CELLS, LABELS, CELLS), min_size=2, max_size=6),
    separator=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    data=st.data(),
)
def test_one_cell_changes(tmp_path, rows, separator, end, quoting, data):
    if any(mark in cell and mark not in end for mark in "\r\n" for row in rows for cell in row):
        quoting = csv.QUOTE_ALL  # the writer quotes no line ends but its own
    before = [written(row, delimiter=separator, lineterminator=end, quoting=quoting) for row in [HEADER, *rows]]
    text = "".join(before)
    row = data.draw(st.integers(0, len(rows) - 1))
    label = data.draw(st.sampled_from([label for _, label, _ in rows]))
    found = applied(tmp_path, text, separator, len(rows), Decision(row, rows[row][1], "correct", label))
    wanted = [HEADER, *map(list, rows)]
    wanted[row + 1][1] = label
    assert parsed(found, separator) == wanted
    assert found.startswith("".join(before[: row + 1]))
    assert found.endswith("".join(before[row + 2 :]))
    dropped = applied(tmp_path, text, separator, len(rows), Decision(row, rows[row][1], "drop", ""))
    assert dropped == "".join(before[: row + 1] + before[row + 2 :])


def test_cells_that_no_writer_would_write(tmp_path):
    """Quotation marks within a cell, or text after the closing one, are read as the csv module does."""
    text = 'x,kind,y\na"b,"do"g,1\n"a"b,cat,"2"\n'
    found = applied(tmp_path, text, ",", 2, Decision(1, "cat", "correct", "dog"))
    assert found == text.replace("cat", "dog")
    found = applied(tmp_path, text, ",", 2, Decision(0, "dog", "correct", "cat"))
    assert found == text.replace('"do"g', '"cat"')


def test_names_of_rows_as_r_writes_them(tmp_path):
    text = 'size kind\n"1" 2.5 cat\n"2" 3.5 dog\n'
    assert applied(tmp_path, text, " ", 2, Decision(0, "cat", "correct", "dog")) == text.replace("cat", "dog")


def test_a_record_without_a_cell_for_the_label(tmp_path):
    with pytest.raises(InputError, match=r"row 1 of .* has no cell for the label"):
        applied(tmp_path, "x,kind\n1,a\n2\n3,a\n", ",", 3, Decision(1, "", "correct", "a"))

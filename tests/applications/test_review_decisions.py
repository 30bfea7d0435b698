"""Decisions about suspects: read, made automatically, and refused."""

import pandas as pd
import pytest

from bilevax import InputError
from bilevax.applications.denoising.review import Decision, automatic_decisions, read_decisions

HEADER = "row,line,id,given_label,decision,label,data\n"


def read(tmp_path, text):
    path = tmp_path / "decisions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_decisions(path)


def test_decisions_are_read_with_their_lines_and_identifiers(tmp_path):
    found = read(
        tmp_path,
        HEADER + '7,9,"a, b",cat,correct,dog,sha256:1f\n2,,,dog,keep,dog,sha256:1f\n3,5,,dog,drop,,sha256:1f\n',
    )
    assert found.digest == "sha256:1f"
    assert found.items == (
        Decision(7, "cat", "correct", "dog", 9, "a, b"),
        Decision(2, "dog", "keep", "dog"),
        Decision(3, "dog", "drop", "", 5),
    )


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheet_may_have_saved_them(tmp_path, separator):
    text = "\ufeff" + (HEADER + "7.0,9,,cat,Correct,dog,sha256:1f\n").replace(",", separator).replace("\n", "\r\n")
    assert read(tmp_path, text).items == (Decision(7, "cat", "correct", "dog", 9),)


def test_the_quote_before_formulas_is_removed(tmp_path):
    found = read(tmp_path, HEADER + "0,,'=id,'-a,correct,''@b,s\n1,,,'it's,keep,,s\n").items
    assert found[0] == Decision(0, "-a", "correct", "'@b", None, "=id")
    assert found[1].given == "'it's"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no column 'decision'"),
        ("row,decision\n1,keep\n", "lacks the columns 'given_label', 'label', 'data'"),
        (HEADER, "no decisions below the line of names"),
        (HEADER + "1,,,a,keep,,s\n1,,,a,drop,,s\n", "two decisions about row 1, in lines 2 and 3"),
        (
            HEADER + "1,,,a,delete,,s\n",
            "line 2: the decision is 'delete', and must be one of 'keep', 'correct', 'drop'",
        ),
        (HEADER + "1,,,a,correct,,s\n", "the decision is to correct, and the label is empty"),
        (HEADER + "1,,,a,keep,b,s\n", "the decision is to keep 'a', and the label is 'b'"),
        (HEADER + "-1,,,a,keep,,s\n", "the row is '-1', and must be a whole number"),
        (HEADER + "one,,,a,keep,,s\n", "the row is 'one', and must be a whole number"),
        (HEADER + "1,x,,a,keep,,s\n", "the line is 'x', and must be a whole number"),
        (HEADER + "1,,,a,keep,,s\n2,,,a,keep,,t\n", r"names s \(line 2\), t \(line 3\)"),
        (HEADER + "1,,,a,keep,,\n", r"names nothing \(line 2\)"),
        (HEADER + "1,,,a\n", "line 2 has no cell for 'decision', 'label', 'data'"),
        (HEADER.replace("label,data", "label,label,data") + "1,,,a,keep,,,s\n", "more than one column 'label'"),
        (HEADER.encode() + b"1,,,caf\xe9,keep,,s\n", "is not UTF-8 text"),
        (b"", "no column 'decision'"),
    ],
)
def test_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_decisions(tmp_path / "none.csv")


def test_automatic_decisions_correct_what_is_above():
    suspects = pd.DataFrame(
        {
            "row": [4, 1, 7, 2],
            "line": [6, 3, 9, 4],
            "given_label": ["a", "b", "a", "c"],
            "suggested_label": ["b", "a", "a", "a"],
            "probability_wrong": [0.99, 0.91, 0.95, 0.9],
        }
    )
    found = automatic_decisions(suspects, 0.9, "f" * 64)
    assert found.digest == "sha256:ffffffffffffffff"
    # Row 7 has no other label to take, and row 2 is not above.
    assert found.items == (Decision(4, "a", "correct", "b", 6), Decision(1, "b", "correct", "a", 3))
    assert [one.row for one in automatic_decisions(suspects, None, "f" * 64).items] == [4, 1, 2]
    with pytest.raises(InputError, match="--above is 90"):
        automatic_decisions(suspects, 90, "f")
    with pytest.raises(InputError, match="lack the columns 'probability_wrong'"):
        automatic_decisions(suspects.drop(columns="probability_wrong"), 0.9, "f")
    with pytest.raises(InputError, match="Row 4 occurs twice"):
        automatic_decisions(pd.concat([suspects, suspects]), 0.9, "f")

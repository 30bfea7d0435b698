"""The review page as a file: what it holds, and what is refused. What it does is in test_review_browser.py."""

import base64
import json
import re

import numpy as np
import pytest

from bilevax import InputError
from bilevax.applications.denoising.review import Review, Suspect, review_page
from bilevax.applications.denoising.review.page import SCRIPTS

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
NASTY = [
    "</script><script>window.hacked = 1</script>",
    "<!--<script>",
    "\"quotes\" 'single' `back` & {{ 7 * 7 }} ${7 * 7}",
    "null \0 byte \u2028 line \u2029 end",
    "lone \udce9 surrogate",
    "שלום \u202e txet desrever",
    "long " * 2000,
    "",
]


def review(contents=("a text",), **changes):
    suspects = [Suspect(i, "cat", "dog", 0.9, content, line=i + 2) for i, content in enumerate(contents)]
    return Review("Pets", "ab" * 32, ["cat", "dog"], suspects, 1000, 80.4, (70.0, 91.0))._replace(**changes)


def written(tmp_path, found):
    path = tmp_path / "report.html"
    review_page(found, path)
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert data
    return text, json.loads(data[1])


def test_the_page_holds_the_review(tmp_path):
    matrix = np.array([[0.9, 0.1], [0.25, 0.75]])
    row = {"size": 1.5, "legs": np.int64(4), "name": None, "home": float("nan")}
    text, data = written(tmp_path, review([row, PNG, "a text"], noise_matrix=matrix, method="EM, 5 folds"))
    for part in ("Pets", "1,000", ">80 <small>70–91</small>", "EM, 5 folds"):
        assert part in text
    assert data["digest"] == "sha256:abababababababab"
    assert data["classes"] == ["cat", "dog"]
    assert (data["row"], data["line"], data["id"]) == ([0, 1, 2], [2, 3, 4], [None] * 3)
    assert (data["given"], data["suggested"], data["probability"]) == ([0] * 3, [1] * 3, [0.9] * 3)
    assert data["columns"] == [["size", "legs", "name", "home"]]
    assert data["content"][0] == [0, ["1.5", "4", "", ""]]
    assert base64.b64decode(data["content"][1]["p"].removeprefix("data:image/png;base64,")) == PNG
    assert data["matrix"] == matrix.tolist()


def test_what_the_user_wrote_stays_text(tmp_path):
    text, data = written(
        tmp_path,
        review(
            [*NASTY, dict.fromkeys(NASTY, NASTY[0])],
            title="</title><b>x</b>",
            method="<i onclick=x>",
            classes=["cat", "dog", NASTY[0]],
        ),
    )
    assert data["content"][: len(NASTY)] == NASTY
    assert data["columns"] == [NASTY]
    assert "</title><b>" not in text
    assert "<i onclick" not in text
    assert "&lt;/title&gt;&lt;b&gt;x" in text
    assert len(re.findall(r"<script", text)) == len(re.findall(r"</script", text)) == 2
    assert "hacked = 1</script>" not in text


def test_nothing_is_asked_of_a_host(tmp_path):
    text, _ = written(tmp_path, review())
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in text
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"^ *//.*$", "", text, flags=re.MULTILINE)))
    assert addresses == {"http://www.w3.org"}  # the name space of SVG
    assert "@import" not in text
    assert "url(" not in text


def test_user_data_never_becomes_html_in_the_script(tmp_path):
    text, _ = written(tmp_path, review())
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in text
    assert len(SCRIPTS) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["cat"]}, "row 0 has the label 'dog', which is none of the classes 'cat'"),
        ({"classes": ["cat", "dog", "cat"]}, "a class occurs twice"),
        ({"noise_matrix": np.eye(3)}, r"shape \(3, 3\), and must be finite of shape \(2, 2\)"),
        ({"noise_matrix": np.full((2, 2), np.nan)}, "must be finite of shape"),
        ({"expected_wrong": float("nan")}, "expected_wrong is nan"),
        ({"suspects": [Suspect(1, "cat", "dog", 0.5, "")] * 2}, "row 1 occurs twice"),
        ({"suspects": [Suspect(1, "cat", "dog", 1.5, "")]}, r"the probability of row 1 is 1.5, and must be in 0..1"),
        ({"suspects": [Suspect(1, "cat", "dog", 0.5, b"GIF89a")]}, "the picture of row 1 begins with b'GIF8'"),
    ],
)
def test_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        review_page(review(**changes), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_what_is_very_long_is_cut_with_its_size(tmp_path):
    wide = {f"c{i}": "x" * 3000 if i == 0 else i for i in range(5000)}
    text, data = written(tmp_path, review(["y" * 1_000_000, wide]))
    assert data["content"][0] == "y" * 10_000 + " … (990,000 more characters)"
    names, cells = data["columns"][0], data["content"][1][1]
    assert (len(names), len(cells), names[-1], cells[-1]) == (201, 201, "…", "4,800 more columns")
    assert cells[0] == "x" * 1000 + " … (2,000 more characters)"
    assert len(text) < 100_000


def test_a_page_without_suspects(tmp_path):
    _, data = written(tmp_path, review([], interval=None))
    assert data["row"] == []

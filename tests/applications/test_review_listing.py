"""Suspects made of samples as they were read, for the page and for suspects.csv, and back."""

import io

import numpy as np
import pytest
from PIL import Image

from bilevax import InputError
from bilevax.applications.denoising.review import (
    Review,
    apply_decisions,
    automatic_decisions,
    page_suspects,
    review_page,
    suspects_frame,
)
from bilevax.data.samples.read import Options, read_samples


def table(tmp_path):
    path = tmp_path / "pets.csv"
    rows = "".join(f"n{i};{i % 7},5;{'cat' if i % 2 else 'dog'}\n" for i in range(40))
    path.write_text("row;size;kind\n" + rows.replace("n5;5,5;cat", "n5;5,5;"))
    return read_samples(path, options=Options(target="kind"))


def test_a_table_from_the_file_to_the_corrected_copy(tmp_path):
    samples = table(tmp_path)
    assert len(samples.labels) == 39  # one has no label
    wrong = np.linspace(0, 0.5, 39)
    wrong[[2, 10]] = 0.97, 0.95  # row 2, and row 11 since row 5 has no label
    suggested = np.where(samples.labels == "cat", "dog", "cat")
    frame = suspects_frame(samples, wrong, suggested)
    assert list(frame.columns) == [
        *("row", "line", "id", "given_label", "suggested_label", "probability_wrong"),
        *("data: row", "size"),
    ]
    assert frame.iloc[:2].to_numpy().tolist() == [
        [2, 4, "n2", "dog", "cat", 0.97, "n2", "2,5"],
        [11, 13, "n11", "cat", "dog", 0.95, "n11", "4,5"],
    ]
    decisions = automatic_decisions(frame, 0.9, samples.source.digest)
    apply_decisions(samples.source, decisions, tmp_path / "out.csv")
    text = (tmp_path / "pets.csv").read_text()
    wanted = text.replace("n2;2,5;dog", "n2;2,5;cat").replace("n11;4,5;cat", "n11;4,5;dog")
    assert (tmp_path / "out.csv").read_text() == wanted != text
    found = page_suspects(samples, wrong, suggested, most=2)
    assert [(s.row, s.line, s.identifier, s.given, s.suggested, s.probability) for s in found] == [
        (2, 4, "n2", "dog", "cat", 0.97),
        (11, 13, "n11", "cat", "dog", 0.95),
    ]
    assert found[0].content == {"row": "n2", "size": "2,5"}
    review_page(Review("Pets", samples.source.digest, ["cat", "dog"], found, 39, 2.0), tmp_path / "report.html")


def test_trusted_samples_are_in_the_table_alone(tmp_path):
    path = tmp_path / "pets.csv"
    path.write_text("size,kind,sure\n" + "".join(f"{i % 7},{'cat' if i % 3 else 'dog'},{i % 2}\n" for i in range(40)))
    samples = read_samples(path, options=Options(target="kind", trusted_column="sure"))
    wrong = np.linspace(1, 0, 40)
    assert [s.row for s in page_suspects(samples, wrong, samples.labels, most=3)] == [0, 2, 4]
    assert suspects_frame(samples, wrong, samples.labels)["row"].tolist() == list(range(40))


def test_pictures_come_from_their_files(tmp_path):
    for i in range(6):
        place = tmp_path / "set" / ("cat" if i % 2 else "dog") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (100, 90, 3), np.uint8)).save(place)
    samples = read_samples(tmp_path / "set")
    found = page_suspects(samples, np.arange(6) / 6, samples.labels)
    assert [s.identifier for s in found][:2] == ["dog/4.png", "dog/2.png"]
    assert found[0].line is None
    assert Image.open(io.BytesIO(found[0].content)).size == (90, 100)  # the features have 64 x 64
    frame = suspects_frame(samples, np.arange(6) / 6, samples.labels)
    assert list(frame.columns) == ["row", "id", "given_label", "suggested_label", "probability_wrong"]


def test_arrays_show_pictures_or_features_in_their_units(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(50, 9, (30, 40)), rng.integers(0, 3, 30)
    np.savez(tmp_path / "features.npz", X=X, y=y)
    samples = read_samples(tmp_path / "features.npz")
    first = page_suspects(samples, np.eye(30)[7], samples.labels)[0]
    assert (first.row, first.line, len(first.content)) == (7, None, 30)
    assert float(first.content["X[3]"]) == pytest.approx(X[7, 3], rel=1e-4)
    images = rng.integers(0, 256, (30, 12, 12), np.uint8)
    np.savez(tmp_path / "images.npz", X=images, y=y)
    samples = read_samples(tmp_path / "images.npz")
    content = page_suspects(samples, np.eye(30)[7], samples.labels)[0].content
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)))[..., 0], images[7])


def test_texts_are_shown_whole(tmp_path):
    path = tmp_path / "texts.csv"
    words = [
        "the card was charged twice",
        "where is my new card please",
        "top up failed again today",
        "what is the rate now",
    ]
    path.write_text("text,label\n" + "".join(f"{words[i % 4]} {i},{'ab'[i % 2]}\n" for i in range(40)))
    samples = read_samples(path)
    assert samples.kind == "text"
    assert page_suspects(samples, np.eye(40)[9], samples.labels)[0].content == "where is my new card please 9"


def test_other_lengths_are_refused(tmp_path):
    samples = table(tmp_path)
    with pytest.raises(InputError, match=r"39 samples, and probabilities of shape \(40,\)"):
        page_suspects(samples, np.zeros(40), samples.labels)
    with pytest.raises(InputError, match=r"39 samples, and suggested labels of shape \(3,\)"):
        suspects_frame(samples, np.zeros(39), samples.labels[:3])

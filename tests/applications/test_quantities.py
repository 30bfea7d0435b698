"""Targets that are quantities: how they are recognised, read, reviewed, and written again."""

import numpy as np
import pandas as pd
import pytest

from bilevax import InputError
from bilevax.applications.denoising.quantities import review_quantities, written
from bilevax.applications.denoising.review import Decision, Decisions, apply_decisions, short_digest
from bilevax.applications.denoising.reviewing import Model
from bilevax.data.samples.numbers import Style
from bilevax.data.samples.read import Options, read_samples

AUTO = Options("y", quantity=None)


def table(y, **more) -> pd.DataFrame:
    x = np.random.default_rng(1).normal(size=(len(y), 2))
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], **more, "y": y})


def read(tmp_path, frame, options=AUTO, trusted=None, sep=","):
    paths = [tmp_path / "train.csv", tmp_path / "trusted.csv"]
    frame.to_csv(paths[0], index=False, sep=sep)
    if trusted is not None:
        trusted.to_csv(paths[1], index=False, sep=sep)
    return read_samples(paths[0], None if trusted is None else paths[1], options)


@pytest.mark.parametrize(
    ("y", "quantity"),
    [
        (np.arange(60) / 4, True),
        (np.arange(60) * 7 % 61 * 1000, True),  # prices in whole numbers
        (np.arange(60) % 10, False),  # digits
        (np.arange(200) % 26, False),  # letters by their number
        (np.where(np.arange(60) % 2, "cat", "dog"), False),
        (np.arange(60) % 2 == 0, False),
        ([f"{i % 30:03d}" for i in range(60)], False),  # codes
        ([f"{i},5" for i in range(60)], True),
        ([f"${i},250.10" for i in range(1, 61)], True),
    ],
)
def test_what_is_a_quantity(tmp_path, y, quantity):
    samples = read(tmp_path, table(y), sep=";")
    assert (samples.source.numbers is not None) == quantity
    said = [note for note in samples.notes if "as a quantity" in note]
    assert bool(said) == quantity
    if quantity:
        assert samples.labels.dtype == np.float64


def test_numbers_that_count_the_samples_are_none(tmp_path):
    with pytest.raises(InputError, match="does not hold classes"):
        read(tmp_path, table(np.arange(60)))


def test_many_classes_of_numbers_are_said(tmp_path):
    frame = table(np.arange(200) % 26)
    samples = read(tmp_path, frame)
    assert "26 different whole numbers, which are read as classes. Pass --kind quantity" in " ".join(samples.notes)
    asked = read(tmp_path, frame, AUTO._replace(quantity=True))
    assert asked.source.numbers == Style()
    assert not any("reviewed as a quantity" in note for note in asked.notes)
    assert not any("quantity" in note for note in read(tmp_path, frame, AUTO._replace(quantity=False)).notes)


def test_what_cannot_be_a_quantity(tmp_path):
    wanted = AUTO._replace(quantity=True)
    with pytest.raises(InputError, match="'y' does not hold numbers, and --kind quantity needs them"):
        read(tmp_path, table(np.where(np.arange(60) % 2, "cat", "dog")), wanted)
    with pytest.raises(InputError, match=r"holds fractions .* bilevax denoise --kind quantity"):
        read(tmp_path, table(np.arange(60) / 4), AUTO._replace(quantity=False))
    with pytest.raises(InputError, match="the target is 3 in all records"):
        read(tmp_path, table(np.full(60, 3)), wanted)
    with pytest.raises(InputError, match=r"--trusted .* has no number in the target"):
        read(tmp_path, table(np.arange(60) / 4), AUTO, table(np.full(12, "cat")))
    sentences = [f"it was number {i} of the good days we had" for i in range(60)]
    with pytest.raises(InputError, match="holds texts alone, and quantities are predicted by tables"):
        read(tmp_path, pd.DataFrame({"text": sentences, "y": np.arange(60) / 4}))
    np.savez(tmp_path / "pictures.npz", X=np.zeros((30, 28, 28), np.uint8), y=np.arange(30) / 4)
    with pytest.raises(InputError, match="holds pictures, and quantities are predicted by tables"):
        read_samples(tmp_path / "pictures.npz", options=AUTO)
    samples = read_samples(tmp_path / "pictures.npz", options=AUTO._replace(elsewhere=True))
    assert samples.labels[1] == 0.25


def test_cells_without_a_number(tmp_path):
    y = [f"{i / 4:.2f}" for i in range(60)]
    y[3], y[5] = "?", "many"
    samples = read(tmp_path, table(y))
    assert len(samples.labels) == 58
    assert "2 records without a number in the target (lines 5, 7): left out" in " ".join(samples.notes)
    with pytest.raises(InputError, match="the target of 1 record is not a finite number"):
        read(tmp_path, table(y), AUTO._replace(strict=True))


def line(n=80, wrong=8):
    """A target that the features determine; that of the first rows is ten times as large."""
    frame = table(np.zeros(n))
    right = (20 + 5 * frame["a"] - 3 * frame["b"]).round(2)
    given = right.where(np.arange(n) >= wrong, (10 * right).round(2))
    return frame.assign(y=given), right.to_numpy()


@pytest.mark.parametrize("model", [Model.linear, Model.trees])
def test_wrong_targets_are_found(tmp_path, model):
    frame, right = line()
    samples = read(tmp_path, frame)
    found = review_quantities(samples, model)
    first = np.argsort(-found.ranking.probability_wrong)[:8]
    assert set(first.tolist()) == set(range(8))
    assert found.suspects()[:8].all()
    assert np.abs(found.suggested - right)[:8].mean() < 6
    low, high = found.ranking.expected_wrong[1:]
    assert low <= 8 <= high


def test_trusted_targets_settle_their_twins(tmp_path):
    frame, right = line()
    trusted = frame.assign(y=right).iloc[[0, 1, 40, 41]]
    samples = read(tmp_path, frame, AUTO, trusted)
    assert "4 of the trusted samples are samples of TRAIN, too; 2 of them have another target there." in samples.notes
    found = review_quantities(samples, Model.linear)
    assert found.ranking.probability_wrong[[0, 1, 40, 41]].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(found.suggested[:2], right[:2])
    assert "with 4 trusted targets" in found.method


@pytest.mark.slow
def test_what_a_review_refuses(tmp_path):
    frame, _ = line()
    samples = read(tmp_path, frame)
    with pytest.raises(InputError, match="--model mlp does not predict quantities"):
        review_quantities(samples, Model.mlp)
    with pytest.raises(InputError, match="6 targets are in doubt"):
        review_quantities(read(tmp_path, frame.iloc[:6]))
    with pytest.raises(InputError, match="--embeddings has no rows for the samples of --trusted"):
        review_quantities(read(tmp_path, frame, AUTO, frame.iloc[:3]), embeddings=np.zeros((80, 2)))
    vectors = frame[["a", "b"]].to_numpy()
    assert review_quantities(samples, Model.linear, vectors).suspects()[:8].all()


def test_suggestions_have_the_decimals_of_the_targets():
    assert written(np.array([1.005, -0.001]), np.array([3.5, 2.0]), Style()) == ["1.0", "0.0"]
    assert written(np.array([12.3456]), np.array([12.0, 3.0]), Style(sign="%")) == ["12%"]
    assert written(np.array([1 / 3]), np.array([np.pi, np.e]), Style()) == ["0.333333"]


def decided(samples, tmp_path, *items, suffix="csv"):
    out = tmp_path / f"out.{suffix}"
    out.unlink(missing_ok=True)
    return apply_decisions(samples.source, Decisions("mine", short_digest(samples.source.digest), items), out), out


def test_any_number_may_take_the_place_of_another(tmp_path):
    samples = read(tmp_path, table([f"{i},5" for i in range(60)]), sep=";")
    changes, out = decided(
        samples,
        tmp_path,
        Decision(2, "2,5", "correct", "1234,75"),
        Decision(4, "4,5", "drop", ""),
        Decision(9, "9,5", "keep", "9,5"),
    )
    assert changes["label"].tolist() == ["1234,75", ""]
    y = pd.read_csv(out, sep=";", decimal=",")["y"]
    assert len(y) == 59
    assert y[2] == 1234.75
    with pytest.raises(InputError, match="row 2 gets 'much', which is no number"):
        decided(samples, tmp_path, Decision(2, "2,5", "correct", "much"))
    with pytest.raises(InputError, match="row 2 is said to have the label '3,5'"):
        decided(samples, tmp_path, Decision(2, "3,5", "correct", "1"))


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_numbers_keep_their_type(tmp_path, form):
    whole = np.arange(40, dtype=np.int16) * 37 % 41 * 100
    path = tmp_path / f"train.{form}"
    if form == "npz":
        np.savez(path, X=np.random.default_rng(0).normal(size=(40, 2)), y=whole)
    else:
        table(whole).to_parquet(path)
    samples = read_samples(path, options=AUTO)
    given = str(whole[3])
    _, out = decided(samples, tmp_path, Decision(3, given, "correct", "-7"), suffix=form)
    y = np.load(out)["y"] if form == "npz" else pd.read_parquet(out)["y"].to_numpy()
    assert y.dtype == np.int16
    assert y[3] == -7
    with pytest.raises(InputError, match=r"holds whole numbers\. Round it"):
        decided(samples, tmp_path, Decision(3, given, "correct", "1.5"), suffix=form)
    with pytest.raises(InputError, match=r"cannot hold|cannot be written as int16"):
        decided(samples, tmp_path, Decision(3, given, "correct", "99999"), suffix=form)

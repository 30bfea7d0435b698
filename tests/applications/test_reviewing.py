"""Reviews of each kind of samples."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bilevax import InputError
from bilevax.applications.denoising.reviewing import Model, review
from bilevax.data.samples.probabilities import Probabilities
from bilevax.data.samples.read import read_samples
from bilevax.data.samples.types import Options

WRONG = np.arange(0, 200, 10)


def found(probability: np.ndarray) -> float:
    """The part of the wrong labels among as many of the most probably wrong."""
    return float(np.isin(np.argsort(-probability)[: len(WRONG)], WRONG).mean())


@pytest.fixture
def labels() -> np.ndarray:
    given = np.arange(200) % 2
    given[WRONG] = 1 - given[WRONG]
    return np.where(given, "dog", "cat")


def written(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def test_texts_are_ranked_by_their_words(tmp_path, labels):
    rng = np.random.default_rng(0)
    words = (["whiskers", "purr", "mouse", "climb"], ["bark", "fetch", "bone", "leash"])
    common = ["the", "pet", "likes", "its", "home"]
    texts = [" ".join(rng.choice(words[i % 2], 6)) + " " + " ".join(rng.choice(common, 6)) for i in range(200)]
    pd.DataFrame({"text": [f"{text} number {i}." for i, text in enumerate(texts)], "label": labels}).to_csv(
        tmp_path / "pets.csv", index=False
    )
    samples = read_samples(tmp_path / "pets.csv", options=Options(target="label"))
    assert samples.kind == "text"
    reviewed = review(samples)
    assert found(reviewed.ranking.probability_wrong) >= 0.95
    assert "words" in reviewed.method
    assert (reviewed.suggested()[WRONG] != labels[WRONG]).mean() >= 0.95
    with pytest.raises(InputError, match=r"takes rows of numbers, and .* holds texts"):
        review(samples, Model.trees)


def test_pictures_are_ranked_by_their_pixels(tmp_path, labels):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 120, (200, 12, 10), dtype=np.uint8)
    pictures[1::2, :, 5:] += 100
    samples = read_samples(written(tmp_path, X=pictures, y=labels))
    assert samples.kind == "images"
    assert found(review(samples, Model.linear).ranking.probability_wrong) >= 0.95


@pytest.mark.slow
def test_pictures_are_ranked_by_a_small_network(tmp_path, labels):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 120, (200, 16, 16), dtype=np.uint8)
    pictures[1::2, :, 8:] += 100
    samples = read_samples(written(tmp_path, X=pictures, y=labels))
    assert found(review(samples, Model.network).ranking.probability_wrong) >= 0.95


def test_given_probabilities_and_embeddings_replace_the_features(tmp_path, labels):
    rng = np.random.default_rng(0)
    samples = read_samples(written(tmp_path, X=rng.normal(size=(200, 3)), y=labels))
    true = np.arange(200) % 2
    p = np.clip(0.9 * true + 0.05 + 0.05 * rng.random(200), 0, 1)
    given = Probabilities(np.stack([1 - p, p], 1), np.array(["cat", "dog"]), ())
    assert found(review(samples, probabilities=given).ranking.probability_wrong) == 1.0
    embeddings = np.stack([true + 0.1 * rng.normal(size=200), rng.normal(size=200)], 1).astype(np.float32)
    reviewed = review(samples, embeddings=embeddings)
    assert reviewed.method.startswith("Logistic regression, explained")
    assert found(reviewed.ranking.probability_wrong) == 1.0
    assert reviewed.ranking.expected_wrong[1] <= 20 <= reviewed.ranking.expected_wrong[2]
    with pytest.raises(InputError, match="takes pictures"):
        review(samples, Model.network)
    few = samples._replace(trusted=np.arange(200) > 5)
    with pytest.raises(InputError, match="6 labels are in doubt"):
        review(few)

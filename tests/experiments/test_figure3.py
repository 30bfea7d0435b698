"""Figure 3 on small images of two classes: its feature maps and files, its search, and what it writes."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from bilevax import InputError
from bilevax.applications.poisoning import FeatureMap
from bilevax.data import Images
from bilevax.nn import lenet5
from experiments.common.settings import Settings
from experiments.poisoning import features, figure3
from experiments.poisoning.features import DOG, SHIP
from experiments.poisoning.figure3 import BALL, FROGS, LABELS, PENALTY

KEY = jax.random.key(0)
BOUNDS = (1.0, 4.0)


class Encoder(linen.Module):
    """A convolution and tanh, flattened."""

    @linen.compact
    def __call__(self, x):
        return jnp.tanh(linen.Conv(4, (3, 3), strides=2)(x)).reshape(x.shape[0], -1)


def flax_map(x):
    """A feature map of flax."""
    return FeatureMap(Encoder().apply, Encoder().init(KEY, x[:1]))


def equinox_map(x):
    """A feature map of equinox."""
    layer = eqx.nn.Linear(int(np.prod(x.shape[1:])), 40, key=KEY)
    return FeatureMap(lambda layer, x: jnp.tanh(jax.vmap(layer)(x.reshape(x.shape[0], -1))), layer)


def samples(n=80, side=6):
    """Two classes of noisy images, the second brighter; the last half is for tests."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = np.clip(rng.normal(0.4 + 0.1 * labels[:, None, None, None], 0.15, (n, side, side, 3)), 0, 1)
    return images.astype(np.float32), labels, np.arange(n) >= n // 2


@pytest.fixture
def file(tmp_path):
    """A features file."""
    images, labels, test = samples()
    path = tmp_path / "features.npz"
    features.write(path, images, labels, test, flax_map(images))
    return path


@pytest.mark.parametrize("make", [flax_map, equinox_map])
def test_an_exported_map_has_the_values_and_the_derivatives_of_the_one_it_was_made_of(tmp_path, make):
    images, labels, test = samples()
    given = make(images)
    features.write(tmp_path / "f.npz", images, labels, test, given)
    pair = features.read(tmp_path / "f.npz")
    assert (len(pair.x), len(pair.x_test), pair.low, pair.high) == (40, 40, 0.0, 1.0)
    np.testing.assert_array_equal(pair.y_test, labels[test])
    x = jnp.asarray(pair.x[:3])
    np.testing.assert_allclose(
        pair.features.apply(pair.features.params, x), given.apply(given.params, x), rtol=1e-5, atol=1e-6
    )
    v, p = jax.random.normal(KEY, (2, 2, given.apply(given.params, x).shape[1]))

    def along(r):
        def gradient(v):
            return jax.grad(lambda x, v: jnp.sum(jax.nn.logsumexp(r.apply(r.params, x) @ v.T, axis=1)), (0, 1))(x, v)

        return jax.jvp(gradient, (v,), (p,))[1]

    for ours, wanted in zip(along(pair.features), along(given), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-5)


def test_a_map_of_a_fixed_number_of_samples_is_refused_in_words(tmp_path):
    images, labels, test = samples()
    with pytest.raises(InputError, match=r"x\.shape\[0\] where it has len\(x\)"):
        features.write(tmp_path / "f.npz", images, labels, test, FeatureMap(lambda _, x: x.reshape(len(x), -1)))


def test_a_second_derivative_in_the_images_is_refused_in_words(file):
    pair = features.read(file)

    def size(x):
        return jnp.sum(pair.features.apply(pair.features.params, x) ** 2)

    x = jnp.asarray(pair.x[:1])
    with pytest.raises(InputError, match="A second derivative in the images"):
        jax.jvp(jax.grad(size), (x,), (x,))


def changed(path, **arrays):
    """The file with other arrays; None leaves one out."""
    with np.load(path) as found:
        kept = {**found, **arrays}
    np.savez(path, **{name: x for name, x in kept.items() if x is not None})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": None, "test": None}, "has no labels and no test"),
        ({"labels": np.arange(80)}, "has labels .* where it is test, and needs 0 and 1 there"),
        ({"test": np.zeros(80, bool)}, "has labels .* where it is test"),
        ({"labels": np.zeros(3)}, r"labels \(3,\).*One of each per image"),
        ({"features": np.zeros((80, 5))}, r"features of shape \(5,\) that its feature map does not give"),
        ({"images": 300 * np.ones((80, 6, 6, 3))}, "images from 300 to 300. Scale them"),
        ({"images": np.full((80, 6, 6, 3), np.nan)}, "NaN"),
        ({"images": np.zeros((80, 5, 6, 3))}, r"does not take its images of \(5, 6, 3\)"),
        ({"feature_map": np.zeros(9, np.uint8)}, "is not an exported JAX function"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_words(file, arrays, words):
    changed(file, **arrays)
    with pytest.raises(InputError, match=words):
        features.read(file)


def test_a_file_that_is_none_is_refused_in_words(tmp_path):
    for path in (tmp_path / "absent.npz", tmp_path / "text.npz"):
        (tmp_path / "text.npz").write_text("no arrays")
        with pytest.raises(InputError, match="which is not an NPZ file that can be read"):
            features.read(path)


def test_the_network_of_cifar10_never_sees_the_two_classes(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(400) % 10
    x = rng.integers(0, 255, (400, 16, 16, 3)).astype(np.uint8)
    monkeypatch.setattr(features, "images_of", lambda name: Images(x, y, x[:100], y[:100]))
    seen = []
    train = features.train

    def spied(model, training, x, y, *rest):
        seen.append((np.asarray(x), np.asarray(y), training.steps))
        return train(model, training, x, y, *rest)

    monkeypatch.setattr(features, "train", spied)
    pair = features.of_cifar10(lenet5(8), 2, 256, 30, 9)
    ((given, labels, steps),) = seen
    assert steps == 4
    np.testing.assert_array_equal(given, x[np.isin(y, [DOG, SHIP], invert=True)][:256])
    assert set(labels.tolist()) == set(range(8))
    assert np.bincount(pair.y).tolist() == [30, 30]
    assert np.bincount(pair.y_test).tolist() == [9, 9]
    np.testing.assert_array_equal(pair.x[30:], x[y == SHIP][:30] / np.float32(255))
    shape = pair.features.apply(pair.features.params, pair.x[:2]).shape
    assert shape == (2, 64)  # 2 x 2 of 16 channels: 16 padded, pooled to 8, 4 unpadded, pooled to 2


@pytest.mark.slow
def test_the_search_finds_the_least_bound_and_keeps_to_it(tmp_path, file, monkeypatch):
    monkeypatch.setattr(figure3, "GRID", BOUNDS)
    settings = Settings(quick=True, seeds=1, features=file, out=tmp_path / "out")
    figure3.run(settings)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {tuple(row["where"][1:]): row["ours"]["mean"] for row in record["results"]["targets misclassified, %"]}
    for label in LABELS:
        curve = [rows[f"at most {eps:g}", label] for eps in BOUNDS]
        assert curve == sorted(curve)
    assert rows["at most 4", PENALTY] == 100
    assert all(rows[f"at most {eps:g}", PENALTY] >= rows[f"at most {eps:g}", FROGS] for eps in BOUNDS)
    results = record["results"]
    told = next(rows for title, rows in results.items() if title.startswith("largest violation of its bound"))
    violation = {row["where"][2]: row["ours"]["mean"] for row in told}
    assert violation[PENALTY] < 1e-3
    assert violation[BALL] < 1e-5
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"figure3.png", "figure3-points.png"}
    cells = sorted((tmp_path / "out" / "cells").glob("*.json"))
    assert len(cells) == 1
    monkeypatch.setattr(figure3.Attack, "search", lambda *arguments: pytest.fail("nothing is missing"))
    figure3.run(settings)


def test_a_point_counts_where_it_keeps_to_its_bound_and_misleads_the_head(monkeypatch, file):
    pair = features.read(file)
    attack = figure3.Attack(pair, 1)
    (target,) = attack.targets(1)
    base = pair.x_test[[attack.base_of(target)]]
    step = np.zeros_like(base)
    step[0, 0, 0, 0] = 1.0
    factor = {0.1: 1.0, 0.2: 1.002, 0.4: 0.9}  # one that misleads nobody, one beyond its bound, one that counts
    monkeypatch.setattr(attack, "point", lambda label, target, eps: base + eps * factor[eps] * step)
    monkeypatch.setattr(attack, "taken_for_base", lambda target, point: float(np.abs(point - base).max()) > 0.15)
    found = attack.search(PENALTY, target, (0.1, 0.2, 0.4))
    assert found["eps"] == 0.4
    assert found["distance"] == pytest.approx(0.36, rel=1e-4)
    assert found["violation"] == pytest.approx(0.002, rel=1e-2)
    assert attack.search(PENALTY, target, (0.1,))["eps"] is None


def test_a_target_taken_for_its_bases_class_is_told_by_a_head_trained_anew(file):
    attack = figure3.Attack(features.read(file), 1)
    target = attack.targets(1)[0]
    pair = attack.pair
    assert not attack.taken_for_base(target, pair.x_test[[attack.base_of(target)]])
    itself = [attack.taken_for_base(other, pair.x_test[[other]]) for other in attack.targets(8)]
    assert np.mean(itself) > 0.5  # the target itself, wrongly labelled, is what a collision comes to

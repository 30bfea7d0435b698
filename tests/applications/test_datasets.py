"""Data sets: looked up, fetched, checked, kept; label noise; splits. No test leaves this machine."""

import dataclasses
import gzip
import io
import itertools
import os
import re
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from scipy.io import savemat

from bilevax import InputError
from bilevax.data import (
    DownloadError,
    Images,
    cifar10,
    corrupted,
    digits,
    fetch,
    mnist,
    overlap,
    pair_flips,
    split,
    svhn,
    uniform_flips,
)
from bilevax.data import images as datasets

# --- small data sets in the published formats ---------------------------------------------------------------------


def pictures(shape, train=12, test=7, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *size: rng.integers(0, 256, size, dtype=np.uint8)  # noqa: E731
    labels = lambda n: rng.permutation(np.arange(n) % 10).astype(np.uint8)  # noqa: E731
    return Images(draw(train, *shape), labels(train), draw(test, *shape), labels(test))


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.tobytes())


def mnist_files(images):
    return [idx(array) for array in images]


def cifar10_files(images):
    """Five training batches of unequal lengths and a test batch."""

    def records(x, y):
        return b"".join(
            bytes([label]) + picture.transpose(2, 0, 1).tobytes() for picture, label in zip(x, y, strict=True)
        )

    cuts = [0, 1, 4, 6, 9, len(images.x_train)]
    parts = {
        f"data_batch_{i + 1}": records(images.x_train[a:b], images.y_train[a:b])
        for i, (a, b) in enumerate(itertools.pairwise(cuts))
    } | {"test_batch": records(images.x_test, images.y_test)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return [out.getvalue()]


def svhn_files(images):
    def matlab(x, y):
        out = io.BytesIO()
        published = np.where(y == 0, 10, y)[:, None].astype(np.uint8)
        savemat(out, {"X": x.transpose(1, 2, 3, 0), "y": published}, do_compression=True)
        return out.getvalue()

    return [matlab(images.x_train, images.y_train), matlab(images.x_test, images.y_test)]


SETS = {
    "mnist": ("_MNIST", mnist_files),
    "fashion_mnist": ("_FASHION_MNIST", mnist_files),
    "cifar10": ("_CIFAR10", cifar10_files),
    "svhn": ("_SVHN", svhn_files),
}


@pytest.fixture
def web(web):
    """The local server with `publish`, which puts a small data set in the place of the real one."""

    def publish(name, *manners, images=None, contents=None):
        constant, pack = SETS[name]
        images = pictures(getattr(datasets, constant).shape) if images is None else images
        web.put(constant, pack(images) if contents is None else contents, *manners)
        return images

    web.publish = publish
    return web


def same(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def left_in(folder):
    return sorted(os.listdir(folder)) if folder.is_dir() else []


# --- download -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_fetched_once_and_kept(web, name):
    images = web.publish(name, "good")
    load = getattr(datasets, name)
    found = load()
    assert same(found, images)
    assert all(array.flags.writeable for array in found)
    assert left_in(web.cache) == [f"{name}.npz"]
    with np.load(web.cache / f"{name}.npz") as kept:
        assert sorted(kept.files) == sorted(Images._fields)
        assert all(kept[field].dtype == np.uint8 for field in Images._fields)
    fetched = list(web.log)
    assert [file for _, file in fetched] == [file.name for file in getattr(datasets, SETS[name][0]).files]
    assert same(load(), images)
    assert web.log == fetched


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("missing", "HTTP Error 404"),
        ("breaks", r"broke off after \d+ of \d+ bytes"),
        ("boasts", r"announces \d+000 bytes"),
        ("understates", r"announces \d+ bytes"),
        ("wrong", r"gave \d+ bytes with MD5 [0-9a-f]{32}"),
        ("stalls", "timed out"),
    ],
)
def test_a_failed_download_is_said_and_leaves_nothing(web, monkeypatch, manner, said):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    web.publish("cifar10", manner)
    with pytest.raises(DownloadError, match=said) as caught:
        cifar10()
    sentence = str(caught.value)
    assert isinstance(caught.value, OSError)
    published = datasets._CIFAR10.files[0]
    for part in (str(web.cache / "cifar10.npz"), published.md5, f"{published.size} bytes", "BILEVAX_DATA", "x_train"):
        assert part in sentence
    assert left_in(web.cache) == []


@pytest.mark.parametrize("manner", ["missing", "breaks", "boasts", "wrong"])
def test_a_second_mirror_steps_in(web, manner):
    images = web.publish("mnist", manner, "good")
    assert same(mnist(), images)
    assert [how for how, _ in web.log] == [manner, "good"] * 4
    assert left_in(web.cache) == ["mnist.npz"]


def test_every_mirror_is_named_when_all_fail(web):
    web.publish("mnist", "missing", "wrong")
    with pytest.raises(DownloadError, match=r"/missing/train-images.*404.*/wrong/train-images.*MD5"):
        mnist()


def test_right_bytes_of_unannounced_length_are_taken(web):
    images = web.publish("svhn", "silent")
    assert same(svhn(), images)


def test_the_bar_shows_the_file_and_is_not_needed(web, monkeypatch, capsys):
    images = web.publish("cifar10", "good")
    assert same(cifar10(), images)
    assert "cifar-10-binary.tar.gz" in capsys.readouterr().err
    (web.cache / "cifar10.npz").unlink()
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert same(cifar10(), images)
    assert capsys.readouterr().err == ""


def test_no_server_is_a_sentence(web):
    web.publish("mnist", "good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_MNIST", dataclasses.replace(datasets._MNIST, mirrors=("http://127.0.0.1:9/",)))
        with pytest.raises(DownloadError, match=r"mnist is not in .* failed .*refused"):
            mnist()


def test_published_files_of_another_form_are_said(web):
    web.publish("cifar10", "good", contents=[gzip.compress(b"no tar")])
    with pytest.raises(DownloadError, match=r"cifar-10-binary.tar.gz arrived as published but cannot be read"):
        cifar10()
    array = np.zeros((3, 28, 28), np.uint8)
    labels = np.array([1, 2, 11], np.uint8)
    web.publish("mnist", "good", contents=mnist_files([array, labels, array, labels]))
    with pytest.raises(DownloadError, match=r"y_train has labels up to 11"):
        mnist()
    web.publish("mnist", "good", contents=[idx(array)[:-12], idx(labels), idx(array), idx(labels)])
    with pytest.raises(DownloadError, match=r"train-images-idx3-ubyte.gz.* cannot be read"):
        mnist()
    assert left_in(web.cache) == []


def test_a_full_disk_is_a_sentence(web, monkeypatch):
    web.publish("mnist", "good")

    def full(path, **arrays):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DownloadError, match=r"cannot be written \(.*No space left on device\).*XDG_CACHE_HOME"):
        mnist()
    assert left_in(web.cache) == []


def test_a_cache_that_cannot_be_made_is_a_sentence(web, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    web.publish("mnist", "good")
    with pytest.raises(DownloadError, match=r"cannot be written .*BILEVAX_DATA"):
        mnist()
    assert (tmp_path / "file").read_text() == "in the way"
    assert web.log == []


def test_an_interrupted_download_leaves_nothing(web, monkeypatch):
    web.publish("mnist", "good")

    def interrupt(paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "_MNIST", dataclasses.replace(datasets._MNIST, read=interrupt))
    with pytest.raises(KeyboardInterrupt):
        mnist()
    assert left_in(web.cache) == []


def test_what_a_killed_download_left_is_swept_up_when_old(web):
    web.publish("mnist", "good")
    for name, age in ((".mnist-old", 2 * fetch.STALE), (".mnist-running", 60), (".svhn-old", 2 * fetch.STALE)):
        (web.cache / name).mkdir(parents=True)
        (web.cache / name / "part").write_bytes(b"part")
        os.utime(web.cache / name, (time.time() - age,) * 2)
    mnist()
    assert left_in(web.cache) == [".mnist-running", ".svhn-old", "mnist.npz"]


def test_downloads_at_once_do_not_meet(web):
    images = web.publish("cifar10", "good")
    barrier = threading.Barrier(4)

    def load(_):
        barrier.wait()
        return cifar10()

    with ThreadPoolExecutor(4) as pool:
        assert all(same(found, images) for found in pool.map(load, range(4)))
    assert left_in(web.cache) == ["cifar10.npz"]
    assert same(cifar10(), images)


def test_the_published_files_are_described_whole():
    for constant, _ in SETS.values():
        source = getattr(datasets, constant)
        for file in source.files:
            assert re.fullmatch("[0-9a-f]{32}", file.md5)
            assert file.size > 4000
        assert all(re.fullmatch(r"https?://\S+/", mirror) for mirror in source.mirrors)
        assert source.mirrors[0].startswith("https://")
        assert len({file.md5 for file in source.files}) == len(source.files)


# --- lookup ---------------------------------------------------------------------------------------------------------


def test_the_directory_comes_before_the_cache_before_the_download(web, tmp_path, monkeypatch):
    given, kept = pictures((28, 28), seed=1), pictures((28, 28), seed=2)
    fetched = web.publish("mnist", "good", images=pictures((28, 28), seed=3))
    folder = tmp_path / "given"
    folder.mkdir()
    web.cache.mkdir()
    monkeypatch.setenv("BILEVAX_DATA", str(folder))
    np.savez(folder / "mnist.npz", **given._asdict(), class_names=np.array(["zero", "one"]))
    np.savez_compressed(web.cache / "mnist.npz", **kept._asdict())
    assert same(mnist(), given)
    (folder / "mnist.npz").unlink()
    assert same(mnist(), kept)
    (web.cache / "mnist.npz").unlink()
    assert web.log == []
    assert same(mnist(), fetched)
    assert left_in(folder) == []


def test_places_looked_at_are_named(web, tmp_path, monkeypatch):
    web.publish("svhn", "missing")
    monkeypatch.setenv("BILEVAX_DATA", str(tmp_path))
    with pytest.raises(DownloadError) as caught:
        svhn()
    assert f"{tmp_path / 'svhn.npz'} (BILEVAX_DATA) nor in {web.cache / 'svhn.npz'} (the cache)" in str(caught.value)


def test_a_directory_that_is_not_there_is_a_sentence(web, tmp_path, monkeypatch):
    web.publish("mnist", "good")
    monkeypatch.setenv("BILEVAX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"BILEVAX_DATA is '.*nowhere', and there is no such directory. Make it"):
        mnist()
    assert web.log == []


def test_without_xdg_the_cache_is_in_the_home_directory(web, tmp_path, monkeypatch):
    images = web.publish("mnist", "good")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert same(mnist(), images)
    assert left_in(tmp_path / "home" / ".cache" / "bilevax") == ["mnist.npz"]
    assert len(web.log) == 4


def damaged(images):
    """Files in the place of an NPZ, and what is said of them."""
    whole = io.BytesIO()
    np.savez(whole, **images._asdict())
    content = whole.getvalue()
    middle = len(content) // 3
    unsafe, alone = io.BytesIO(), io.BytesIO()
    np.savez(unsafe, **images._replace(x_train=np.array([{}], dtype=object))._asdict())
    np.save(alone, images.x_train)

    def but(**arrays):
        out = io.BytesIO()
        np.savez(out, **{k: v for k, v in (images._asdict() | arrays).items() if v is not None})
        return out.getvalue()

    return {
        "truncated": (content[:middle], "damaged or not an NPZ"),
        "bit flipped": (content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :], "damaged .*CRC"),
        "empty": (b"", "damaged or not an NPZ"),
        "text": (b"<html>404</html>", "damaged or not an NPZ"),
        "objects": (unsafe.getvalue(), "damaged or not an NPZ .*allow_pickle"),
        "one array": (alone.getvalue(), "damaged or not an NPZ"),
        "two missing": (but(x_test=None, y_test=None), "lacks the arrays x_test, y_test"),
        "dtype": (
            but(x_train=images.x_train / 255),
            r"x_train is float64 \(12, 28, 28\) with values 0..1, and must be uint8 \(n, 28, 28\) with values 0..255",
        ),
        "flat": (but(x_test=images.x_test.reshape(7, -1)), r"x_test is uint8 \(7, 784\)"),
        "number": (but(y_train=images.y_train[1:]), r"y_train is uint8 \(11,\), and must be uint8 \(12,\)"),
        "labels' dtype": (but(y_test=images.y_test.astype(np.int64)), "y_test is int64"),
        "label": (but(y_test=images.y_test + np.uint8(1) * 3), "y_test has labels up to 12, and they must be 0..9"),
        "none": (but(x_train=images.x_train[:0], y_train=images.y_train[:0]), r"x_train is uint8 \(0, 28, 28\)"),
    }


def test_damaged_files_are_said_and_kept(web, tmp_path, monkeypatch):
    images = pictures((28, 28))
    images = images._replace(
        y_test=np.array([9, 1, 2, 3, 4, 5, 6], np.uint8),
        x_train=np.concatenate(
            [images.x_train[:10], np.zeros((1, 28, 28), np.uint8), np.full((1, 28, 28), 255, np.uint8)]
        ),
    )
    web.publish("mnist", "good")
    web.cache.mkdir()
    folder = tmp_path / "given"
    folder.mkdir()
    for what, (content, said) in damaged(images).items():
        for place, remedy in ((folder, "Replace it"), (web.cache, "Remove it, and it will be downloaded again")):
            monkeypatch.setenv("BILEVAX_DATA", str(folder) if place == folder else "")
            path = place / "mnist.npz"
            path.write_bytes(content)
            with pytest.raises(InputError, match=f"{said}.*{remedy}") as caught:
                mnist()
            assert str(path) in str(caught.value), what
            assert path.read_bytes() == content, what
            path.unlink()
    assert web.log == []


@pytest.mark.slow
def test_no_damage_slips_through(tmp_path):
    """Whatever byte is changed or cut, the arrays come out right or a sentence does."""
    images = pictures((28, 28), train=2, test=1)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "whole.npz", **images._asdict())
        content, path = (tmp_path / "whole.npz").read_bytes(), tmp_path / "damaged.npz"
        rng = np.random.default_rng(0)
        refused = 0
        for trial in range(400):
            at = int(rng.integers(len(content)))
            changed = content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :]
            path.write_bytes(content[:at] if trial % 4 == 0 else changed)
            try:
                found = fetch._read_npz(path, datasets._MNIST, "")
            except InputError:
                refused += 1
            else:
                assert same(found, images)
        assert refused > 300


# --- the real data, where BILEVAX_DATA has them ---------------------------------------------------------------------


def real(name):
    path = os.path.join(os.environ.get("BILEVAX_DATA", ""), f"{name}.npz")
    if not os.environ.get("BILEVAX_DATA") or not os.path.isfile(path):
        pytest.skip(f"BILEVAX_DATA has no {name}.npz")
    return getattr(datasets, name)()


def test_mnist_as_published():
    images = real("mnist")
    assert images.x_train.shape == (60000, 28, 28)
    assert images.x_test.shape == (10000, 28, 28)
    assert np.bincount(images.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(images.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert round(images.x_train.mean() / 255, 4) == 0.1307
    start = time.perf_counter()
    assert overlap(images.x_train, images.x_train[::50]) == 1200
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(("name", "shape", "each"), [("fashion_mnist", (28, 28), 6000), ("cifar10", (32, 32, 3), 5000)])
def test_balanced_sets_as_published(name, shape, each):
    images = real(name)
    assert images.x_train.shape == (10 * each, *shape)
    assert images.x_test.shape == (10000, *shape)
    assert np.bincount(images.y_train).tolist() == [each] * 10
    assert np.bincount(images.y_test).tolist() == [1000] * 10


def test_svhn_form():
    images = real("svhn")  # the whole or a part of it
    assert images.x_train.shape[1:] == images.x_test.shape[1:] == (32, 32, 3)
    assert np.unique(images.y_train).tolist() == list(range(10))


def test_digits_against_scikit_learn():
    from sklearn.datasets import load_digits

    images, content = digits(), load_digits()
    assert [x.shape for x in images] == [(1437, 8, 8), (1437,), (360, 8, 8), (360,)]
    assert all(x.dtype == np.uint8 for x in images)
    x = np.concatenate([images.x_train, images.x_test])
    assert np.array_equal(np.rint(x / 255 * 16), content.images)
    assert np.array_equal(np.concatenate([images.y_train, images.y_test]), content.target)
    assert (x.min(), x.max()) == (0, 255)


# --- label noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 0.1, 0.25, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize("flips", [uniform_flips, pair_flips])
def test_exactly_the_rate_is_wrong(flips, rate, key):
    labels = (np.arange(2003) % 10).astype(np.uint8)
    before = labels.copy()
    noisy = flips(labels, rate, key)
    assert noisy.dtype == np.uint8
    assert (noisy != labels).sum() == round(rate * 2003)
    assert noisy.max() <= 9
    assert np.array_equal(labels, before)
    assert np.array_equal(flips(labels, rate, key), noisy)
    if rate:
        assert not np.array_equal(flips(labels, rate, jax.random.key(1)), noisy)


def test_uniform_flips_are_uniform_over_samples_and_wrong_labels(key):
    from scipy.stats import chisquare

    labels = np.repeat(np.arange(5), 8000)
    noisy = uniform_flips(labels, 0.5, key)
    table = np.zeros((5, 5), int)
    np.add.at(table, (labels, noisy), 1)
    assert chisquare(table[~np.eye(5, dtype=bool)]).pvalue > 1e-3
    per_block = (noisy != labels).reshape(40, 1000).sum(1)
    assert per_block.min() > 420
    assert per_block.max() < 580


def test_pair_flips_go_to_the_next_class(key):
    labels = np.arange(3000) % 7
    noisy = pair_flips(labels, 0.4, key, classes=8)
    wrong = noisy != labels
    assert np.array_equal(noisy[wrong], labels[wrong] + 1)
    assert 7 in noisy


def test_classes_that_no_label_shows_can_be_drawn(key):
    assert set(uniform_flips(np.zeros(1000, np.int32), 0.9, key, classes=4).tolist()) == {0, 1, 2, 3}


def test_noise_does_not_depend_on_the_precision(key):
    labels = np.arange(1000) % 10
    inside = uniform_flips(labels, 0.5, key)
    with jax.enable_x64(False):
        assert np.array_equal(uniform_flips(labels, 0.5, jax.random.key(0)), inside)
    assert np.array_equal(uniform_flips(labels, 0.5, jax.random.PRNGKey(0)), inside)


@pytest.mark.parametrize("flips", [uniform_flips, pair_flips])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": 1}, r"rate is 1, and must be in \[0, 1\)"),
        ({"rate": -0.1}, r"rate is -0.1, and must be in \[0, 1\)"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": "half"}, "rate is 'half'"),
        ({"labels": np.array([0.0, 1.0])}, r"labels are float64 \(2,\), and must be integers from 0"),
        ({"labels": np.array(["a", "b"])}, "labels are <U1 .*np.unique"),
        ({"labels": np.array([0, -1])}, "down to -1"),
        ({"labels": np.zeros((3, 10), int)}, r"labels are int64 \(3, 10\)"),
        ({"labels": np.array([], int)}, r"\(0,\)"),
        ({"labels": np.zeros(5, int)}, "classes is 1 .* At least two classes"),
        ({"classes": 2}, "classes is 2 and labels go up to 3"),
        ({"classes": 2.5}, "classes is 2.5, and must be a positive integer"),
        ({"classes": 300, "labels": np.arange(4, dtype=np.uint8)}, "300 classes do not fit into labels of uint8"),
        ({"key": 0}, "key is 0, and must be a jax.random key"),
        ({"key": jax.numpy.arange(4.0)}, "must be a jax.random key"),
    ],
)
def test_flips_refuse_in_sentences(flips, change, said, key):
    with pytest.raises(InputError, match=said):
        flips(**({"labels": np.arange(4), "rate": 0.5, "key": key} | change))


def test_many_keys_are_refused(key):
    with pytest.raises(InputError, match=r"key is an array of \(2,\) keys, and must be a single one"):
        uniform_flips(np.arange(4), 0.5, jax.random.split(key))


# --- splits ---------------------------------------------------------------------------------------------------------

LABELS = np.repeat(np.arange(10), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]).astype(np.uint8)


@pytest.mark.parametrize(
    ("n", "clean", "train", "rest"),
    [(60000, 1000, None, 59000), (50000, 10000, None, 40000), (60000, 5000, 5000, 5000), (50000, 1000, 44000, 44000)],
)
def test_the_papers_splits(n, clean, train, rest, key):
    labels = LABELS[:: 60000 // n] if n == 60000 else np.arange(n) % 10
    parts = split(labels, clean, key, train=train)
    together = np.concatenate(parts)
    assert (len(parts.train), len(parts.clean)) == (rest, clean)
    assert len(np.unique(together)) == len(together)
    assert together.max() < n
    shares = np.bincount(labels[parts.clean]) / clean
    assert np.abs(shares - np.bincount(labels) / n).max() < 5 * np.sqrt(0.1 * 0.9 / clean)
    assert all(np.array_equal(a, b) for a, b in zip(parts, split(labels, clean, key, train=train), strict=True))


def test_a_balanced_clean_set(key):
    parts = split(LABELS, 50, key, balanced=True)
    assert np.bincount(LABELS[parts.clean]).tolist() == [5] * 10
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(60000))
    assert not np.array_equal(parts.clean, np.sort(parts.clean))
    assert len(np.unique(np.diff(LABELS[parts.clean[:20]].astype(int)))) > 2  # mixed, not class after class


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clean": 0}, "clean is 0, and must be a positive integer"),
        ({"clean": 1.5}, "clean is 1.5"),
        ({"train": 0}, "train is 0"),
        ({"clean": 20}, "clean is 20 and train is None, and there are 20 samples. Take fewer"),
        ({"clean": 5, "train": 16}, "clean is 5 and train is 16, and there are 20 samples"),
        ({"labels": [0, 0, 0, 1, 1, 2]}, "split: fewer than 2 samples have the label 2: the clean set needs 1"),
        ({"clean": 5, "balanced": True}, "which 4 classes cannot share equally. Take 4, or balanced=False"),
        ({"clean": 3, "balanced": True}, "Take 4, or"),
        (
            {"labels": [0] * 9 + [1] * 2 + [2] * 3, "clean": 6, "balanced": True},
            "fewer than 3 samples have the label 1: the clean set needs 2",
        ),
        ({"labels": [0.5, 1]}, "labels are float64"),
        ({"key": None}, "key is None"),
    ],
)
def test_split_refuses_in_sentences(change, said, key):
    with pytest.raises(InputError, match=said):
        split(**({"labels": np.arange(20) % 4, "clean": 4, "key": key} | change))


# --- the two together -----------------------------------------------------------------------------------------------


def test_corrupted_keeps_pictures_with_their_labels(key):
    images = pictures((4, 4, 3), train=200, test=30)
    data = corrupted(images, clean=40, noise=0.25, key=key, balanced=True)
    label = {picture.tobytes(): y for picture, y in zip(images.x_train, images.y_train, strict=True)}
    assert data.x.dtype == data.x_clean.dtype == data.y.dtype == np.uint8
    assert [label[picture.tobytes()] for picture in data.x] == data.y_true.tolist()
    assert [label[picture.tobytes()] for picture in data.x_clean] == data.y_clean.tolist()
    assert len(data.x) == 160
    assert (data.y != data.y_true).sum() == 40
    assert np.bincount(data.y_clean).tolist() == [4] * 10
    assert overlap(data.x, data.x_clean) == 0
    assert data.x_test is images.x_test
    assert data.y_test is images.y_test


def test_corrupted_splits_alike_at_every_rate(key):
    images = pictures((4, 4), train=200)
    few, many, pairs = (
        corrupted(images, clean=50, noise=noise, key=key, train=100, flips=flips)
        for noise, flips in ((0, uniform_flips), (0.5, uniform_flips), (0.5, pair_flips))
    )
    assert np.array_equal(few.x, many.x)
    assert np.array_equal(few.x_clean, pairs.x_clean)
    assert np.array_equal(few.y, few.y_true)
    assert not np.array_equal(many.y, many.y_true)
    wrong = pairs.y != pairs.y_true
    assert np.array_equal(pairs.y[wrong], (pairs.y_true[wrong] + 1) % 10)
    again = corrupted(images, clean=50, noise=0.5, key=key, train=100)
    assert all(np.array_equal(a, b) for a, b in zip(many, again, strict=True))


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            {"x_train": np.zeros((20, 4, 4), np.float32)},
            {},
            "x_train is float32 .* with values 0..0, and must be uint8",
        ),
        ({"x_train": np.zeros((20, 16), np.uint8)}, {}, r"x_train is uint8 \(20, 16\).* must be .*\(n, h, w\)"),
        ({"x_test": np.zeros((7, 4, 4, 2), np.uint8)}, {}, r"x_test is uint8 \(7, 4, 4, 2\)"),
        ({"x_train": np.full((20, 4, 4), 300)}, {}, "x_train is int64 .*values 300..300, .*values 0..255"),
        ({"y_train": np.arange(19, dtype=np.uint8)}, {}, r"y_train is uint8 \(19,\)"),
        ({}, {"noise": 1.0}, "rate is 1.0"),
        ({}, {"clean": 20}, "clean is 20"),
        ({}, {"key": 3}, "key is 3"),
    ],
)
def test_corrupted_refuses_in_sentences(change, options, said, key):
    images = pictures((4, 4), train=20)._replace(**change)
    with pytest.raises(InputError, match=said):
        corrupted(images, **({"clean": 5, "noise": 0.5, "key": key} | options))


def test_overlap_counts_clean_samples(key):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3, 2))
    clean = np.concatenate([x[[4, 4, 9]], x[10:12] + 1e-12])
    assert overlap(x, clean) == 3
    assert overlap(np.concatenate([x, x]), clean) == 3
    assert overlap(x.astype(np.float32), x[:5].astype(np.float32).astype(np.float64)) == 5
    assert overlap(jax.numpy.asarray(x), x[::-1]) == 50
    assert overlap(x[:0], clean) == 0
    with pytest.raises(InputError, match=r"x is float64 \(50, 3, 2\) and x_clean float64 \(5, 6\)"):
        overlap(x, clean.reshape(5, 6))
    with pytest.raises(InputError, match="must be numbers"):
        overlap(np.array([["a"]]), np.array([["a"]]))

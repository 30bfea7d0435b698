"""Pictures and texts as the vectors of a pretrained encoder, computed once and kept in the user's cache."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from bilevax._cache import cache_folder
from bilevax._checks import InputError
from bilevax._files import replace
from bilevax.data.archives import UnreadableError, read_single

SIDE = 128  # pixels that pictures are enlarged to before they are encoded
PART = 512  # samples between two reports of progress
MOST_KEPT = 2 << 30  # bytes of the cache

Encode = Callable[[Any], Float32[np.ndarray, "_ d"]]


class Encodable(Protocol):
    """Samples of pictures or texts."""

    @property
    def kind(self) -> str:
        """What they are."""
        ...

    @property
    def name(self) -> str:
        """How messages call the file."""
        ...

    @property
    def features(self) -> Float32[np.ndarray, "n d"] | UInt8[np.ndarray, "n h w 3"] | list[str]:
        """Of each sample."""
        ...


def embedded(
    samples: Encodable, encoder: Path | None = None, report: Callable[[int, int], None] = lambda done, total: None
) -> Float32[np.ndarray, "n d"]:
    """The vectors of pictures by EfficientNet-Lite0 (1,280 features), or of texts by all-MiniLM-L6-v2 (384).

    They are kept in the user's cache, by the content of the samples and of the encoder; the oldest are removed where
    they take more than 2 GB.

    Args:
        samples: of pictures or of texts.
        encoder: a file of weights for pictures, a folder for texts; None takes the installed package. See
            `nn.pretrained`.
        report: called with the number of samples that are done, and that of all.

    Raises:
        InputError: the samples are neither pictures nor texts; the encoder cannot be read, or is not installed.
    """
    if samples.kind not in ("images", "text"):
        raise InputError(f"{samples.name} holds numbers, which need no encoder. Leave the encoder out.")
    path, load = _prepared(samples, encoder)
    with suppress(OSError, UnreadableError):
        if len(kept := read_single(path)) == len(samples.features):
            path.touch()  # in use
            return kept
    encode, found = load(), []
    for start in range(0, len(samples.features), PART):
        found.append(encode(samples.features[start : start + PART]))
        report(min(start + PART, len(samples.features)), len(samples.features))
    vectors = np.concatenate(found)
    with suppress(OSError):  # a cache that cannot be written is no cache
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda temporary: np.save(temporary, vectors))
        _remove_oldest(path.parent)
    return vectors


def identity_of(samples: Encodable, encoder: Path | None = None) -> str:
    """The SHA-256 of the weights of the encoder of such samples.

    Raises:
        InputError: it is not installed, or its file cannot be read.
    """
    from bilevax.nn.pretrained import efficientnet, minilm

    weights = (minilm if samples.kind == "text" else efficientnet).weights_of(encoder)
    try:
        with open(weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"The encoder {weights} cannot be read: {error.strerror}. Check the path.") from error


def _prepared(samples: Encodable, encoder: Path | None) -> tuple[Path, Callable[[], Encode]]:
    """Where the vectors are kept, and what loads the encoder."""
    from bilevax.nn.pretrained import efficientnet, minilm

    digest = hashlib.sha256()
    features = samples.features
    load: Callable[[], Encode]
    if isinstance(features, list):
        weights = minilm.weights_of(encoder)
        digest.update("\0".join(features).encode("utf-8", "surrogatepass"))
        load = lambda: partial(minilm.encode_texts, minilm.minilm(encoder))  # noqa: E731
    else:
        weights = efficientnet.weights_of(encoder)
        digest.update(f"{SIDE} {features.shape}".encode())
        digest.update(np.ascontiguousarray(features).data)
        load = lambda: partial(efficientnet.encode_pictures, efficientnet.efficientnet(encoder), side=SIDE)  # noqa: E731
    with suppress(OSError), open(weights, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return cache_folder() / "embeddings" / f"{digest.hexdigest()}.npy", load


def _remove_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files[:-1]:
        if total <= MOST_KEPT:
            return
        total -= path.stat().st_size
        path.unlink()

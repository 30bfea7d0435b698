"""Files of weights: safetensors, and those that PyTorch saves, read without PyTorch and without running their code."""

import collections
import importlib.util
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from bilevax._checks import InputError, short_reason

LEGACY = 0x1950A86A20F9469CFC6C  # the number that files of PyTorch before 1.6 begin with
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
SAFETENSORS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
LONGEST_HEADER = 100 << 20  # bytes, as the format allows

Weights = dict[str, Shaped[np.ndarray, "..."]]


def installed(package: str) -> Path | None:
    """The folder of an installed package, which is not imported; None where it is not installed."""
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent


def read_weights(path: Path) -> Weights:
    """The arrays of a file of weights, by name.

    A file of PyTorch is a pickle; of the code that a pickle may name, only what rebuilds tensors is understood, and
    nothing of it is run.

    Raises:
        InputError: the file is missing, damaged, or holds something else than tensors of numbers.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            file.seek(0)
            if path.suffix.lower() == ".safetensors":
                return _safetensors(file)
            return _zipped(file) if start.startswith(b"PK") else _legacy(file)
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise InputError(
            f"The weights in {path} cannot be read: {short_reason(error)}. Pass a .safetensors file, or one that "
            "torch.save(model.state_dict(), path) wrote."
        ) from error


def _safetensors(file: IO[bytes]) -> Weights:
    """The length of the header in 8 bytes, the header as JSON, the bytes of the arrays."""
    length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise ValueError("it is not a safetensors file")
    header = json.loads(file.read(length))
    content = file.read()
    weights = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if kind == "BF16":
            bits = np.frombuffer(content[begin:end], "<u2").astype("<u4") << 16
            weights[name] = bits.view("<f4").reshape(shape)
        else:
            weights[name] = np.frombuffer(content[begin:end], SAFETENSORS[kind]).reshape(shape)
    return weights


class _Storage(NamedTuple):
    """A storage of numbers: its key in the file, and their type."""

    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A tensor as a view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, content: bytes) -> Shaped[np.ndarray, "..."]:
        """The array that the tensor is, given the bytes of its storage."""
        values = np.frombuffer(content, self.storage.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, values.dtype)
        if min((self.offset, *self.strides, *self.shape)) < 0 or last >= len(values):
            raise ValueError("a tensor lies outside its storage")
        strides = tuple(s * values.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


def _rebuilt(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: _Tensor, *_: Any) -> _Tensor:
    return data


class _Unpickler(pickle.Unpickler):
    """It knows dicts of tensors alone; any other name is an error."""

    KNOWN: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in self.KNOWN:
            raise ValueError(f"it names {module}.{name}, which is code, and only tensors are read")
        return self.KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError("it holds something else than storages of numbers")
        return _Storage(str(key), dtype)


def _tensors(found: Any) -> dict[str, _Tensor]:
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, _Tensor) for value in found.values()):
        raise ValueError("it is not a dict of tensors")
    return {str(name): value for name, value in found.items()}


def _legacy(file: IO[bytes]) -> Weights:
    """Pickles of a magic number, the version, the system and the tensors; the keys; a length and bytes for each key."""
    if _Unpickler(file).load() != LEGACY:
        raise ValueError("it is not a file of torch.save")
    _Unpickler(file).load()
    if not _Unpickler(file).load().get("little_endian"):
        raise ValueError("its numbers are big-endian")
    tensors = _tensors(_Unpickler(file).load())
    keys = _Unpickler(file).load()
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    contents = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        contents[key] = file.read(count * dtypes[key].itemsize)
    return {name: tensor.of(contents[tensor.storage.key]) for name, tensor in tensors.items()}


def _zipped(file: IO[bytes]) -> Weights:
    """A zip archive of a pickle and of a file for each storage."""
    with zipfile.ZipFile(file) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        tensors = _tensors(_Unpickler(io.BytesIO(archive.read(pickled))).load())
        folder = pickled.removesuffix("data.pkl")
        return {name: tensor.of(archive.read(f"{folder}data/{tensor.storage.key}")) for name, tensor in tensors.items()}

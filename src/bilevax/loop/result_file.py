"""A Result as a file: an NPZ of its arrays, and their structure as JSON. Nothing is pickled."""

import collections
import functools
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey
from jaxtyping import PyTree, Shaped

from bilevax import _files
from bilevax._checks import InputError, short_reason
from bilevax.loop.layout import is_key
from bilevax.loop.processes import on_host
from bilevax.loop.status import Status
from bilevax.solvers.base import Info, State

FORM = 1  # of the file
ABOUT = "about"
DAMAGED = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError)


def save(path: Any, *, status: Status, steps: int, **parts: PyTree) -> None:
    """Write a Result by its fields; see `Result.save`."""
    where = _files.local_path("Result.save: path", path)
    arrays: list[Any] = []
    structure = {name: _described(part, arrays) for name, part in parts.items()}
    arrays = on_host([jax.random.key_data(x) if is_key(x) else x for x in arrays])
    if jax.process_index() > 0:
        return
    about = {"bilevax_result": FORM, "status": status.name, "steps": steps, "structure": structure}
    files = {ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}
    files |= {str(i): _plain(np.asarray(x)) for i, x in enumerate(arrays)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **files)  # pyright: ignore[reportArgumentType]

    try:
        if os.path.lexists(where):
            _require_ours(where)
        _files.make(where.parent)
        _files.replace(where, write)
    except OSError as error:
        raise InputError(
            f"Result.save: path is {str(where)!r}, which cannot be written ({_files.reason(error)}). Name a file in a "
            "folder that you can write to."
        ) from error


def load(path: Any) -> dict[str, Any]:
    """The fields of a Result, from its file; see `Result.load`."""
    where = _files.local_path("Result.load: path", path)
    if where.is_dir():
        raise InputError(f"Result.load: path is {str(where)!r}, which is a folder. Name the file of Result.save.")
    try:
        with where.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            about = _about(file)
            parts = {name: _read(file, about["structure"][name]) for name in ("u", "v", "history", "state")}
            status, steps = Status[about["status"]], int(about["steps"])
            history, state = Info(*parts["history"]), State(*parts["state"])
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"Result.load: path is {str(where)!r}, and there is no such file.") from None
    except DAMAGED as error:
        raise InputError(
            f"Result.load: path is {str(where)!r}, which is damaged or was not written by Result.save "
            f"({short_reason(error)})."
        ) from error
    for name, part in (("u", parts["u"]), ("v", parts["v"]), ("state", state)):
        for x in jax.tree.leaves(part):
            if not is_key(x) and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
                raise InputError(
                    f"Result.load: {name} of {str(where)!r} holds {x.dtype}. "
                    'Call jax.config.update("jax_enable_x64", True) first.'
                )
    u, v, state = jax.tree.map(jnp.asarray, (parts["u"], parts["v"], state))
    return {"u": u, "v": v, "status": status, "steps": steps, "history": history, "state": state}


def _require_ours(where: Path) -> None:
    """Refuse to replace what is not a saved Result."""
    if where.is_dir():
        raise InputError(f"Result.save: path is {str(where)!r}, which is a folder. Name a file.")
    try:
        with where.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            _about(file)
    except FileNotFoundError:  # a symlink to a file that does not exist
        return
    except DAMAGED as error:
        raise InputError(
            f"Result.save: path is {str(where)!r}, which exists and is not a saved Result. It is not overwritten: "
            "name another file."
        ) from error


def _about(file: Any) -> dict[str, Any]:
    about = json.loads(file[ABOUT].tobytes())
    if about["bilevax_result"] != FORM:
        raise ValueError(f"its form is {about['bilevax_result']}, and this version reads {FORM}")
    return about


def _plain(x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """An array as NumPy can store it: of a type that is not its own, such as bfloat16, the bytes."""
    return x if x.dtype.isbuiltin == 1 else np.frombuffer(x.tobytes(), np.uint8)


def _described(tree: PyTree, arrays: list[Any]) -> Any:
    """The structure of a tree as JSON; its arrays are appended to `arrays`."""
    if tree is None:
        return {"kind": "none"}
    children, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if len(children) == 1 and children[0][0] == ():
        arrays.append(tree)
        if is_key(tree):
            return {"kind": "key", "array": len(arrays) - 1, "impl": str(jax.random.key_impl(tree))}
        x = tree if hasattr(tree, "dtype") else np.asarray(tree)
        return {"kind": "array", "array": len(arrays) - 1, "dtype": str(x.dtype), "shape": list(x.shape)}
    keys = [path[0] for path, _ in children]
    parts = [_described(x, arrays) for _, x in children]
    if type(tree) is dict and all(type(k) in (str, int) for k in tree):
        return {"kind": "dict", "keys": [k.key for k in keys], "parts": parts}
    if type(tree) is list:
        return {"kind": "list", "parts": parts}
    fields = [k.name for k in keys if isinstance(k, GetAttrKey) and k.name.isidentifier() and k.name[0] != "_"]
    if type(tree) is not tuple and len(fields) == len(parts):
        return {"kind": "named", "name": type(tree).__name__, "fields": fields, "parts": parts}
    return {"kind": "tuple", "parts": parts}


def _read(file: Any, node: Any) -> Any:
    """The tree of a structure."""
    kind = node["kind"]
    if kind == "none":
        return None
    if kind == "key":
        return jax.random.wrap_key_data(jnp.asarray(file[str(node["array"])]), impl=node["impl"])
    if kind == "array":
        x, dtype, shape = file[str(node["array"])], jnp.dtype(node["dtype"]), tuple(node["shape"])
        return (x if x.dtype == dtype else x.view(dtype)).reshape(shape)
    parts = [_read(file, part) for part in node["parts"]]
    if kind == "dict":
        return dict(zip(node["keys"], parts, strict=True))
    if kind == "named":
        return _class_of(node["name"], tuple(node["fields"]))(*parts)
    return {"list": list, "tuple": tuple}[kind](parts)


@functools.cache
def _class_of(name: str, fields: tuple[str, ...]) -> Any:
    """One class for all containers of a name and fields, which JAX takes for one kind of tree."""
    return collections.namedtuple(name, fields)

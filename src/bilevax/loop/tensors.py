"""Tensors of PyTorch and TensorFlow in a batch, read as NumPy arrays without a copy."""

import sys
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree, Shaped

from bilevax._checks import InputError, short_reason


def as_arrays(name: str, tree: PyTree) -> PyTree:
    """A tree whose tensors are NumPy arrays of the same memory; other leaves are unchanged.

    Neither library is imported: a tensor can only be there if its library was.

    Args:
        name: of the tree, in an error.
        tree: of any leaves.

    Raises:
        InputError: a tensor is not on the CPU, or has no strides (sparse, nested, quantised) or no values.

    Example:
        >>> import numpy as np
        >>> from bilevax.loop.tensors import as_arrays
        >>> x = np.ones(2)
        >>> as_arrays("batch", {"x": x})["x"] is x
        True
    """
    torch, tensorflow = (getattr(sys.modules.get(name), "Tensor", None) for name in ("torch", "tensorflow"))
    if torch is None and tensorflow is None:
        return tree
    try:
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    except (TypeError, ValueError):  # keys of a dict that cannot be sorted, which require_arrays refuses
        return tree

    def convert(path: Any, x: Any) -> Any:
        where = f"{name}{jax.tree_util.keystr(path)}"
        if torch is not None and isinstance(x, torch):
            return _of_torch(where, x)
        if tensorflow is not None and isinstance(x, tensorflow) and callable(getattr(x, "numpy", None)):
            return np.asarray(x.numpy())
        return x

    return jax.tree.unflatten(structure, [convert(path, x) for path, x in leaves])


def _of_torch(where: str, x: Any) -> Shaped[np.ndarray, "..."]:
    torch = sys.modules["torch"]
    if x.device.type == "meta":
        raise InputError(f"{where} is a tensor on the device meta, which has no values. Load them first.")
    if x.device.type != "cpu":
        raise InputError(
            f"{where} is a tensor on {x.device}. Leave the loader's tensors on the CPU: solve places each batch on "
            "JAX's device while the step before runs."
        )
    x = x.detach().resolve_conj().resolve_neg()
    try:
        if x.dtype == torch.bfloat16:  # of which NumPy itself has no arrays
            return np.from_dlpack(x.view(torch.int16)).view(jax.numpy.bfloat16)
        return np.from_dlpack(x)
    except (RuntimeError, BufferError, TypeError) as error:
        raise InputError(
            f"{where} is a tensor of {x.dtype} and layout {x.layout}, which cannot be read as an array "
            f"({short_reason(error)}). Convert it by x.to_dense() or x.float()."
        ) from error

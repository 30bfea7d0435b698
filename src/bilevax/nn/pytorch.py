"""Conversion of PyTorch modules, by torchax."""

import copy
import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, first_line, listed
from bilevax.nn.foreign import GivenObject, layer_of
from bilevax.nn.model import Model, Moments

_OF_NORMS = ("running_mean", "running_var", "num_batches_tracked")


def from_torch(module: Any, classes: int | None = None) -> Model:
    """A Model from a `torch.nn.Module` that maps (n, ...) to logits (n, classes).

    Needs torchax, which runs PyTorch's operators as JAX functions: `pip install "bilevax[torch]"`.

    Args:
        module: on the CPU. Its weights are copied, and are where every start begins, whatever the key. While a function
            is traced the module's tensors and modes are exchanged and put back; its weights are not changed.
        classes: number of logits that `init` checks; None for any.

    The parameters are a dictionary by the names of `named_parameters`; tied ones are there once. Parameters that do not
    require a gradient are frozen, as by `bilevax.nn.freeze`. Floating samples are converted to the type of the
    parameters, and keep their layout: PyTorch's convolutions read (n, channels, height, width).

    Dropout is on during training, by the key of the call, whatever the module's own mode; batch normalisation is
    described at `bilevax.nn.settled`.

    Raises:
        InputError: torchax is missing; the module is not on the CPU, is not initialised, has nothing to train, has
            float64 parameters without jax_enable_x64, ends in a softmax; on use: it cannot be applied to the samples,
            uses an operator that torchax lacks, changes a buffer or an attribute, or draws random numbers in
            predictions.

    Source: torchax, https://github.com/google/torchax.
    """
    _torchax()
    return _Torch(module, classes).model()


def _torch() -> Any:
    """The package torch, which was imported where a module was made."""
    return importlib.import_module("torch")


@functools.cache
def _torchax() -> Any:
    """The package torchax."""
    try:
        with _without_missing_names(_torch()):
            torchax = importlib.import_module("torchax")
            torchax.default_env()
    except ImportError as error:
        raise InputError(
            f'A PyTorch module needs torchax ({first_line(error)}). Install it: pip install "bilevax[torch]".'
        ) from error
    return torchax


@contextmanager
def _without_missing_names(torch: Any) -> Iterator[None]:
    """Let torchax be imported with a PyTorch that lacks operators which torchax registers.

    torchax 0.0.13 and earlier name 22 overloads of PyTorch's named tensors, which PyTorch 2.13 removed
    (google/torchax, pull request 102). They get a placeholder, under which nothing is ever looked up.
    """
    packet = torch._ops.OpOverloadPacket
    original = packet.__getattr__

    def overload(self: Any, name: str) -> Any:
        try:
            return original(self, name)
        except AttributeError:
            if name.startswith("__") or "name" not in name.lower():
                raise
            return f"{self}.{name}"

    packet.__getattr__ = overload
    try:
        yield
    finally:
        packet.__getattr__ = original


class _Torch(GivenObject):
    """A PyTorch module."""

    def __init__(self, module: Any, classes: int | None):
        self.module, self.name, self.classes, self.structure = module, type(module).__name__, classes, id(module)
        _check(module, self.name)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers()) | _plain_tensors(module)
        arrays = {name: _array(x) for name, x in tensors.items()}
        own = [name for name, p in module.named_parameters() if p.requires_grad]
        if not own:
            raise InputError(
                f"module {self.name} has no parameters that require a gradient: there is nothing to train. Call "
                "requires_grad_(True) on those that are to be trained."
            )
        self.params = {name: arrays[name] for name in own}
        # A layer none of whose parameters are trained keeps its statistics.
        every = [name for name, _ in module.named_parameters()]
        norms = _batch_norms(module)
        self._held = [
            layer
            for layer in norms
            if any(layer_of(n, [layer]) for n in every) and not any(layer_of(n, [layer]) for n in own)
        ]
        self.statistics = {
            layer: Moments(arrays[f"{layer}.running_mean"], arrays[f"{layer}.running_var"])
            for layer in norms
            if layer not in self._held
        }
        moving = {f"{layer}.{name}" for layer in self.statistics for name in _OF_NORMS[:2]}
        self.rest = {name: x for name, x in arrays.items() if name not in self.params and name not in moving}

    def _run(
        self,
        params: PyTree,
        x: Shaped[Array, "n ..."],
        key: PRNGKeyArray | None,
        statistics: dict[str, Moments],
        measured: dict[str, Moments] | None,
    ) -> Float[Array, "n classes"]:
        torch = _torch()

        env = _torchax().default_env()
        given = statistics | {layer: self.statistics[layer] for layer in self.statistics if layer not in statistics}
        moving = {f"{layer}.{name}": x for layer, m in given.items() for name, x in zip(_OF_NORMS[:2], m, strict=True)}
        tensors = env.j2t_iso(self.rest | moving | params)
        batch = [layer for layer in self.statistics if layer not in statistics]
        with (
            _in_mode(self.module, key is not None, batch),
            env.override_property(prng=_NoKey(self.name) if key is None else key),
            env,
            torch.device("jax"),  # where tensors that the module makes are
            _watched(self.module, self.name, tensors),
            _measuring(self.module, batch if measured is not None else []) as found,
        ):
            logits = torch.func.functional_call(self.module, tensors, (env.j2t_iso(x),))
        if measured is not None:
            measured |= {layer: Moments(*env.t2j_iso(pair)) for layer, pair in found.items()}
        return env.t2j_iso(logits)

    def to_module(self, params: PyTree, statistics: dict[str, Moments]) -> Any:
        torch = _torch()

        moving = {
            f"{layer}.{name}": x for layer, m in statistics.items() for name, x in zip(_OF_NORMS[:2], m, strict=True)
        }
        module = copy.deepcopy(self.module)
        targets = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, x in (params | moving).items():
                targets[name].copy_(_tensor(torch, x))
        return module

    def _reason(self, error: Exception) -> str:
        if "has no lowering" in str(error):
            return f"an operator has no implementation in torchax ({first_line(error)}). Write it by other operators."
        return first_line(error)


class _NoKey:
    """What is in the place of the key in predictions; using it raises an error."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        raise InputError(
            f"module {self._module} draws random numbers in predictions. Draw them only in training mode "
            "(self.training), as torch.nn.Dropout does."
        )


def _array(x: Any) -> Array:
    torch = _torch()

    x = x.detach()
    if x.dtype == torch.bfloat16:
        return jnp.asarray(x.float().numpy(), jnp.bfloat16)
    return jnp.array(x.numpy())  # a copy


def _tensor(torch: Any, x: Array) -> Any:
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(x, np.float32)).bfloat16()
    return torch.from_numpy(np.array(x))


def _check(module: Any, name: str) -> None:
    """Refuse modules that cannot be converted."""
    torch = _torch()

    tensors = [*module.named_parameters(), *module.named_buffers()]
    for at, x in tensors:
        if isinstance(x, torch.nn.parameter.UninitializedTensorMixin):
            raise InputError(f"module {name} is not initialised ({at}): call it once on some samples first.")
        if x.device.type == "meta":
            raise InputError(f"module {name} has no weights: {at} is on the device meta. Load them first.")
        if x.device.type != "cpu":
            raise InputError(
                f"module {name} has {at} on the device {x.device}. Call module.cpu() first: JAX holds a copy of its "
                "own, on its own device."
            )
        if x.dtype == torch.float64 and not jax.config.read("jax_enable_x64"):
            raise InputError(
                f"module {name} has {at} of float64, and JAX computes in float32. Call module.float(), or "
                'jax.config.update("jax_enable_x64", True) first.'
            )
    for at, layer in module.named_modules():
        if isinstance(layer, torch.nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            raise InputError(
                f"module {name} has the running statistics of {at}, an instance normalisation, which a bilevel problem "
                "cannot carry. Use track_running_stats=False."
            )
    *_, last = module.modules()
    if isinstance(last, torch.nn.Softmax):
        raise InputError(f"module {name} ends in a softmax, and must return logits. Remove its last layer.")


def _plain_tensors(module: Any) -> dict[str, Any]:
    """Tensors that are attributes of a module, but not registered as buffers."""
    torch = _torch()

    return {
        f"{at}.{name}" if at else name: x
        for at, part in module.named_modules()
        for name, x in vars(part).items()
        if isinstance(x, torch.Tensor)
    }


def _batch_norms(module: Any) -> dict[str, Any]:
    """The layers of batch normalisation with running statistics by their paths."""
    torch = _torch()

    kind = torch.nn.modules.batchnorm._BatchNorm
    return {at: part for at, part in module.named_modules() if isinstance(part, kind) and part.running_mean is not None}


@contextmanager
def _in_mode(module: Any, training: bool, batch: list[str]) -> Iterator[None]:
    """A module in training or evaluation, of which the layers `batch` normalise by the batch and no others."""
    parts = list(module.modules())
    before = [part.training for part in parts]
    norms = _batch_norms(module)
    try:
        module.train(training)
        for layer, part in norms.items():
            part.training = layer in batch
        yield
    finally:
        for part, mode in zip(parts, before, strict=True):
            part.training = mode


@contextmanager
def _measuring(module: Any, layers: list[str]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Records the mean and variance of what each layer gets."""
    found: dict[str, tuple[Any, Any]] = {}
    hooks = []

    def record(layer: str, given: Any) -> None:
        over = [axis for axis in range(given.ndim) if axis != 1]
        found[layer] = given.mean(over), given.var(over, unbiased=False)

    parts = _batch_norms(module)
    try:
        for layer in layers:
            hooks.append(parts[layer].register_forward_pre_hook(lambda _, args, at=layer: record(at, args[0])))
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _watched(module: Any, name: str, tensors: dict[str, Any]) -> Iterator[None]:
    """Refuse a module that changes its buffers or attributes in its call."""
    elements = {at: x._elem for at, x in tensors.items()}
    attributes = [(part, dict(vars(part))) for part in module.modules()]
    norms = list(_batch_norms(module))
    replaced: list[str] = []

    def look(part: Any, args: Any, output: Any) -> None:
        inside = dict(module.named_buffers())
        replaced.extend(at for at, x in inside.items() if at in tensors and x is not tensors[at])

    hook = module.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
        kept = []
        for part, before in attributes:
            for key, value in dict(vars(part)).items():
                if _of_torchax(value) and before.get(key) is not value:
                    kept.append(key)
                    vars(part).pop(key) if key not in before else vars(part).__setitem__(key, before[key])
    changed = replaced + [at for at, x in tensors.items() if x._elem is not elements[at]]
    changed = [at for at in changed if layer_of(at, norms) is None or not at.endswith(_OF_NORMS)] + kept
    if changed:
        raise InputError(
            f"module {name} changes {listed(sorted(set(changed)))} when it is called. A loss of a bilevel problem has "
            "no state: keep such values outside of the module."
        )


def _of_torchax(value: Any) -> bool:
    return type(value).__module__.startswith("torchax")

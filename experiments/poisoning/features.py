"""Images of two classes and a feature map for them: the data of the clean-label attack.

Either two classes of CIFAR-10, with a network trained here on the other eight, or a file that `write` made.
"""

import functools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bilevax import InputError
from bilevax._checks import listed
from bilevax.applications.poisoning import FeatureMap
from bilevax.nn import Model, Training, train
from bilevax.nn.training import require_finite
from experiments.common.images import CLASSES, images_of

DOG, SHIP = 5, 8  # CIFAR-10 has no fish
ARRAYS = ("images", "labels", "test", "features", "feature_map")
CLOSE = 1e-2  # relative: devices and compilers round differently


class TwoClasses(NamedTuple):
    """Samples of classes 0 and 1, as floats.

    Attributes:
        features: the map r.
        x, y: what the head is trained on.
        x_test, y_test: where targets and bases come from.
        low, high: the range of the images' entries.
    """

    features: FeatureMap
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    low: float
    high: float


def of_cifar10(network: Model, passes: int, images: int | None, each: int, each_test: int) -> TwoClasses:
    """Dogs and ships, with the convolutions of a network trained on the other eight classes.

    Args:
        network: with logits for eight classes, made of convolutions and dense layers.
        passes: through the images of the other classes.
        images: the number of those; None for all.
        each, each_test: samples of each of the two classes, for the head and for targets and bases.
    """
    data = images_of("cifar10")
    others = np.array([label for label in range(CLASSES) if label not in (DOG, SHIP)])
    place = np.flatnonzero(np.isin(data.y_train, others))[:images]
    x, y = jnp.asarray(data.x_train[place]), jnp.asarray(np.searchsorted(others, data.y_train[place]), jnp.int32)
    batch = 128
    training = Training(steps=passes * len(place) // batch, rate=1e-3, batch_size=batch, l2=5e-4)
    found: Any = train(network, training, x, y, jnp.ones(len(place)), jax.random.key(0))
    wide = len(found["dense"][0]["weight"])
    identity = {"weight": jnp.eye(wide), "bias": jnp.zeros(wide)}  # instead of the dense layers
    features = FeatureMap(network.apply, {**found, "dense": (identity,)})

    def some(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.concatenate([np.flatnonzero(y == label)[:count] for label in (DOG, SHIP)])
        return x[chosen] / np.float32(255), (y[chosen] == SHIP).astype(int)

    parts = some(data.x_train, data.y_train, each) + some(data.x_test, data.y_test, each_test)
    return TwoClasses(features, *parts, 0.0, 1.0)


def write(path: Path, images: Any, labels: Any, test: Any, features: FeatureMap) -> None:
    """Write what `read` reads: any differentiable map, in flax, equinox or plain JAX, is exported whole.

    Args:
        path: the NPZ to write.
        images: (n, ...) floats, all within 0..1 or all within -1..1.
        labels: (n,) 0 or 1.
        test: (n,) True for samples that are targets and bases, False for those that train the head.
        features: the map.

    Raises:
        InputError: flatbuffers is not installed; a map that takes only a fixed number of samples.
    """
    images = np.asarray(images, np.float32)
    shape = jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(["n", *map(str, images.shape[1:])])), jnp.float32)
    apply = jax.jit(functools.partial(features.apply, features.params))
    try:
        exported = export.export(apply, platforms=("cpu", "cuda"))(shape).serialize(vjp_order=1)
    except ImportError as error:
        raise _needs_flatbuffers() from error
    except TypeError as error:
        raise InputError(
            "The feature map cannot be traced for any number of samples. Use x.shape[0] instead of len(x) in it, "
            f"and do not convert it to a Python number ({error})."
        ) from error
    arrays = {"images": images, "labels": np.asarray(labels), "test": np.asarray(test, bool)}
    np.savez(path, **arrays, features=np.asarray(apply(images)), feature_map=np.frombuffer(exported, np.uint8))


def read(path: Path) -> TwoClasses:
    """The samples and the map of a file that `write` made.

    Raises:
        InputError: there is no such file; it lacks an array; arrays that do not fit; labels other than 0 and 1; images
            outside -1..1; a map whose features are not those of the file.
    """
    try:
        with np.load(path) as file:
            missing = [name for name in ARRAYS if name not in file.files]
            found = {name: file[name] for name in ARRAYS if name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"--features is {str(path)!r}, which is not an NPZ file that can be read ({error})."
        ) from error
    if missing:
        raise InputError(
            f"{path} has no {' and no '.join(missing)}. It needs {', '.join(ARRAYS)}, as "
            "experiments.poisoning.features.write makes them."
        )
    images, labels, test, features, blob = (found[name] for name in ARRAYS)
    if images.ndim < 2 or {np.shape(x) for x in (labels, test)} != {(len(images),)} or len(features) != len(images):
        raise InputError(
            f"{path} has images of shape {images.shape}, labels {labels.shape}, test {test.shape} and features "
            f"{features.shape}. One of each per image is needed."
        )
    images, test = images.astype(np.float32), test.astype(bool)
    require_finite("images", images)
    for name, part in (("test", test), ("not test", ~test)):
        if set(np.unique(labels[part])) != {0, 1}:
            found_there = listed(np.unique(labels[part]))
            raise InputError(f"{path} has labels {found_there} where it is {name}, and needs 0 and 1 there.")
    low = 0.0 if images.min() >= 0 else -1.0
    if images.min() < low or images.max() > 1:
        raise InputError(f"{path} has images from {images.min():g} to {images.max():g}. Scale them to 0..1 or -1..1.")
    r = _imported(path, blob)
    given = features[:8].reshape(len(features[:8]), -1)
    try:
        made = np.asarray(r.apply(r.params, jnp.asarray(images[:8])))
    except ValueError as error:
        raise InputError(f"{path} has a feature map that does not take its images of {images.shape[1:]}.") from error
    if made.shape != given.shape or np.linalg.norm(made - given) > CLOSE * np.linalg.norm(given):
        raise InputError(
            f"{path} has features of shape {given.shape[1:]} that its feature map does not give ({made.shape[1:]}). "
            "Write the file again."
        )
    y = labels.astype(int)
    return TwoClasses(r, images[~test], y[~test], images[test], y[test], low, 1.0)


def _imported(path: Path, blob: np.ndarray) -> FeatureMap:
    """The exported map, with its derivative, and with the derivative of its transposed product.

    An exported function has only a transposed product. The curvature of a lower loss needs that product's derivative
    along v, in which it is linear: the same product once more.
    """
    try:
        forward = export.deserialize(bytearray(blob.tobytes()))
        backward = forward.vjp()
    except ImportError as error:
        raise _needs_flatbuffers() from error
    except Exception as error:  # flatbuffers raises errors of many types
        raise InputError(
            f"{path} has a feature_map that is not an exported JAX function. Write the file again."
        ) from error

    @jax.custom_jvp
    def call(x: Any) -> Any:
        return forward.call(x)

    @call.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise InputError(f"A second derivative in the images is needed, which the map of {path} does not have.")

    @jax.custom_jvp
    def pull(x: Any, along: Any) -> Any:
        return backward.call(x, along)[0]

    @pull.defjvp
    def pull_forward(primals: Any, tangents: Any) -> Any:  # `call` has refused derivatives in x
        return pull(*primals), pull(primals[0], tangents[1])

    features = jax.custom_vjp(call)
    features.defvjp(lambda x: (call(x), x), lambda x, along: (pull(x, along),))
    return FeatureMap(lambda params, x: features(x.astype(jnp.float32)).astype(x.dtype))


def _needs_flatbuffers() -> InputError:
    return InputError("An exported feature map needs flatbuffers. Install it by pip install 'bilevax[experiments]'.")

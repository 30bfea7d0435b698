"""Accuracy of the applications with modules of PyTorch, Keras and flax.nnx, beside the library's own network.

The network is a multilayer perceptron for images of 28x28, in each library with its own initialisation. Half widths are
those of 95% intervals over the seeds, by Student's t-distribution.

Few-shot learning starts from normal weights of variance 1 / inputs in the library's own network and in PyTorch's, as
Keras and flax do by themselves. PyTorch's own start has a third of that variance, and its features train slower: after
150 steps its accuracy is 43 and 59% (seeds 0 and 1). The library's own layers give 43 and 61% from the same weights.

- denoise: accuracy of DenoisingClassifier on test images after 30% of the labels of MNIST became others.
- tune: accuracy on test images with an l2 strength for each layer, tuned on validation images of MNIST.
- audit: accuracy of the audited network with 5% of added samples, on images of MNIST that the attack has not seen.
- few-shot: accuracy on tasks of five new characters of Omniglot, with one image of each.

MNIST and Omniglot are read from the folder BILEVAX_DATA.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

TRAIN, CLEAN, TEST = 1000, 300, 2000
WRONG, WAY = 0.3, 5
OWN, SMALL = "own layers", (64, 32)  # the widths of its hidden layers
FIGURES = ("denoise", "tune", "audit", "few-shot")


def read(name: str) -> Mapping[str, np.ndarray]:
    """The arrays of a data set."""
    with np.load(Path(os.environ["BILEVAX_DATA"]) / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def digits(seed: int) -> tuple[np.ndarray, ...]:
    """Training, validation and test images of MNIST in 0..1, and their labels."""
    d = read("mnist")
    order = np.random.default_rng(seed).permutation(len(d["x_train"]))[: TRAIN + CLEAN]
    x, y = d["x_train"][order].astype(np.float32) / 255, d["y_train"][order].astype(int)
    test = d["x_test"][:TEST].astype(np.float32) / 255, d["y_test"][:TEST].astype(int)
    return x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], *test


def denoise(make: Callable[[int], Any], seed: int) -> float:
    """See the top of the file."""
    from bilevax.applications.denoising import DenoisingClassifier
    from bilevax.nn import Training

    x, y, _, _, x_test, y_test = digits(seed)
    rng = np.random.default_rng(seed)
    given = np.where(rng.random(TRAIN) < WRONG, (y + rng.integers(1, 10, TRAIN)) % 10, y)
    training = Training(steps=300, rate=3e-3, batch_size=200)
    classifier = DenoisingClassifier(make(10), training, random_state=seed).fit(x, given)
    return float((classifier.predict(x_test) == y_test).mean())


def tune(make: Callable[[int], Any], seed: int) -> float:
    """See the top of the file."""
    import jax
    import optax

    from bilevax.applications.tuning import LAYER_L2
    from bilevax.applications.tuning import tune as tuned_by
    from bilevax.nn import as_model, probabilities

    x, y, x_clean, y_clean, x_test, y_test = digits(seed)
    model = as_model(make(10), 10)
    tuned = tuned_by(
        model, x, y, x_clean, y_clean, [LAYER_L2], key=jax.random.key(seed), steps=20, train_steps=200,
        train_optimizer=optax.adam(2e-3),
    )  # fmt: skip
    return float((probabilities(model, tuned.params, x_test).argmax(1) == y_test).mean())


def audit(make: Callable[[int], Any], seed: int) -> float:
    """See the top of the file."""
    import jax

    from bilevax.applications.poisoning import audit as audited_by
    from bilevax.nn import Training

    x, y, x_clean, y_clean, _, _ = digits(seed)
    report = audited_by(
        x[:300], y[:300], x_clean, y_clean, model=make(10), levels=1, seeds=1, steps=40,
        training=Training(steps=200, rate=3e-3, l2=1e-2), key=jax.random.key(seed),
    )  # fmt: skip
    return float(report.attacked.mean())


def few_shot(make: Callable[[int], Any], seed: int) -> float:
    """See the top of the file."""
    from bilevax.applications.fewshot import FewShotLearner

    images = read("omniglot")["images"]
    learner = FewShotLearner(make(64), way=WAY, shot=1, queries=5, tasks=4, steps=150, seed=seed)
    learner.meta_fit(images[:1000])
    rng, right = np.random.default_rng(seed), []
    for _ in range(60):
        classes = 1200 + rng.choice(400, WAY, replace=False)
        chosen = np.array([rng.permutation(20)[:6] for _ in classes])
        support, queries = images[classes, chosen[:, 0]], images[classes[:, None], chosen[:, 1:]].reshape(-1, 28, 28)
        found = learner.adapt(support, np.arange(WAY)).predict(queries)
        right.append((found == np.repeat(np.arange(WAY), 5)).mean())
    return float(np.mean(right))


def features(outputs: int, widths: tuple[int, ...]) -> Any:
    """The library's perceptron with a last layer that is drawn like the others: for logits it starts at zero."""
    import jax

    from bilevax.nn import Model, mlp

    network = mlp(outputs, widths)

    def init(key: Any, x: Any) -> Any:
        *hidden, last = network.init(key, x)
        weight = jax.random.normal(key, last["weight"].shape) / last["weight"].shape[0] ** 0.5
        return (*hidden, {**last, "weight": weight})

    return Model(init, network.apply)


def drawn(make: Callable[[int], Any], outputs: int) -> Any:
    """A PyTorch module with normal weights of variance 1 / inputs and no offsets."""
    import torch  # pyright: ignore[reportMissingImports]

    module = make(outputs)
    for layer in module:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
            torch.nn.init.zeros_(layer.bias)
    return module


def table(makers: Mapping[str, Callable[[int], Any]], seeds: int) -> None:
    """Measure and print: a row for each application, a column for each library."""
    print(f"{'accuracy, %':<12}" + "".join(f"{name:>26}" for name in makers))
    for name, measure in zip(FIGURES, (denoise, tune, audit, few_shot), strict=True):
        cells = []
        for library, make in makers.items():
            began = time.perf_counter()
            if name == "few-shot" and library == OWN:
                make = partial(features, widths=SMALL)
            elif name == "few-shot" and library == "torch":
                make = partial(drawn, make)
            found = 100 * np.array([measure(make, seed) for seed in range(seeds)])
            width = stats.t.ppf(0.975, seeds - 1) * found.std(ddof=1) / seeds**0.5 if seeds > 1 else np.nan
            cells.append(f"{found.mean():.1f} ± {width:.1f} ({time.perf_counter() - began:.0f} s)")
        print(f"{name:<12}" + "".join(f"{cell:>26}" for cell in cells), flush=True)

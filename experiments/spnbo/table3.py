"""SPNBO text, Table 3 and Figure 3: sample weights and the strengths of a sparse group lasso, by validation loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from bilevax.nn import Model, mlp, probabilities, six_and_four
from bilevax.search import train_lower
from experiments.catalog import EXPERIMENTS
from experiments.common.images import images_of
from experiments.common.settings import Settings
from experiments.spnbo import protocol
from experiments.spnbo.protocol import Cell, Kind, Rates, Size
from experiments.spnbo.tasks import LOG_RANGE, log_adam, sparse_reweighting_task, sparsity

TITLE = EXPERIMENTS["spnbo-table3"].title
NAMES = ("svhn", "cifar10", "fashion_mnist", "mnist")
FIGURE = "test accuracy %"
# As in the text's Table 3, in the order of `NAMES`.
PRINTED = {
    "Random": ((3.32, 0.43), (10.53, 0.13), (14.12, 0.24), (13.79, 0.32)),
    "Robo": ((18.61, 0.16), (18.52, 0.22), (36.98, 0.67), (55.61, 0.28)),
    "Approx": ((84.06, 0.15), (68.65, 0.52), (86.56, 0.27), (97.85, 0.19)),
    "RMD": ((75.48, 0.92), (59.26, 1.33), (73.60, 1.57), (94.52, 0.38)),
    "Penalty": ((84.26, 0.54), (71.08, 0.44), (88.18, 0.13), (98.31, 0.65)),
    "SMNBP": ((84.92, 0.24), (71.81, 0.63), (88.22, 0.59), (98.49, 0.04)),
    "SPNBO": ((85.21, 0.59), (72.12, 0.56), (88.52, 0.23), (98.53, 0.23)),
}
PAPER = protocol.published([(name,) for name in NAMES], PRINTED)


def upper() -> optax.GradientTransformation:
    """Adam with separate moments for each sample's weight."""
    return log_adam(0.05)


RATES = Rates(upper, 1e-3, 0.05)


def size(settings: Settings) -> Size:
    """How long methods run."""
    if settings.quick:
        return Size((("mnist",),), 60, 5, 1, 8, 100, 1, looks=3)
    if settings.medium:
        return Size((("fashion_mnist",), ("mnist",)), 600, 10, 2, 20, 300, 5)
    return Size(tuple((name,) for name in NAMES), 10000, 20, 4, 100, 4000, 10)


def network(settings: Settings) -> Model:
    """The text's network at full size, a small one at smaller sizes."""
    return mlp(10, (64, 32)) if settings.quick or settings.medium else six_and_four()


def samples(settings: Settings) -> int | None:
    """The total number of samples; None for the whole data set."""
    return 1500 if settings.quick else 10000 if settings.medium else None


@functools.cache
def split(name: str, count: int | None, seed: int) -> tuple[np.ndarray, ...]:
    """40% for training, 40% for validation, 20% for testing, of a data set's samples or of `count` of them, as 0..1."""
    images = images_of(name)
    x = np.concatenate([images.x_train, images.x_test])
    y = np.concatenate([images.y_train, images.y_test]).astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(y))[:count]
    parts = np.split(order, [int(0.4 * len(order)), int(0.8 * len(order))])
    return tuple(a for part in parts for a in (x[part].astype(np.float32) / 255, y[part]))


def draw(settings: Settings, cell: tuple[str, ...], seed: int) -> Cell:
    """One trial."""
    x, y, x_val, y_val, x_test, y_test = split(cell[0], samples(settings), seed)
    model, key = network(settings), jax.random.key(seed)
    task = sparse_reweighting_task(
        model,
        x,
        y,
        x_val,
        y_val,
        key=key,
        single=1e-5,
        group=1e-5,
        batch_size=protocol.BATCH,
        val_batch_size=protocol.BATCH,
    )
    u, v = task.start
    v = train_lower(task.problem, protocol.TRAINING, size(settings).trial_steps, u, v, task.batches, key)[0]
    task, test = task._replace(start=(u, v)), jnp.asarray(x_test)

    def look(u: PyTree, v: PyTree) -> dict[str, float]:
        return {"figure": float(100 * (probabilities(model, v, test).argmax(1) == y_test).mean())}

    def judge(u: PyTree, v: PyTree) -> dict[str, float]:
        return look(u, v) | {name: 100 * share for name, share in sparsity(v).items()}

    start = task.start[0]
    bounds = tuple(jax.tree.map(lambda x, edge=edge: jnp.full_like(x, edge), start) for edge in (-LOG_RANGE, LOG_RANGE))
    return Cell(task, RATES, (bounds[0], bounds[1]), look, judge)


def notes(settings: Settings) -> list[str]:
    """Differences between the protocol and the text's."""
    found = [
        "All methods start from a network trained with equal weights and strengths of 1e-5. The test accuracy is that "
        "of v at the end.",
        "The text does not give the widths or kernels of its network of 6 convolutions and 4 dense layers; ours has "
        "32, 32, 64, 64, 128, 128 channels and 256, 128, 64 units.",
    ]
    return found + smaller(settings)


def smaller(settings: Settings) -> list[str]:
    """Return the footnote of a reduced size."""
    if not (settings.quick or settings.medium):
        return []
    return [f"{samples(settings)} samples and a small network, in place of all samples and the network of the text."]


KIND = Kind("spnbo-table3", TITLE, FIGURE, False, PAPER, size, draw, RATES, notes)
run = functools.partial(protocol.run, KIND)

"""SPNBO text, Table 5 and Figure 5: few-shot learning whose heads are regularised by l_p."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bilevax import InputError
from bilevax.applications.fewshot import evaluate, statistics_of
from bilevax.applications.fewshot.recipes import HEAD_RATE, UPPER_RATE
from bilevax.nn import mini_imagenet_network, omniglot_network
from bilevax.penalties import zero_share
from experiments.catalog import EXPERIMENTS
from experiments.common.images import MINI, OMNIGLOT, split_of
from experiments.common.settings import Settings
from experiments.spnbo import protocol
from experiments.spnbo.protocol import Cell, Kind, Rates, Size
from experiments.spnbo.tasks import ZERO, sparse_fewshot_task

TITLE = EXPERIMENTS["spnbo-table5"].title
FIGURE = "accuracy on new classes %"
P, STRENGTH, AROUND = 0.6, 1e-4, 0.1
CELLS = ((MINI, "5-way 1-shot"), (MINI, "5-way 5-shot"), (OMNIGLOT, "5-way 1-shot"), (OMNIGLOT, "5-way 5-shot"))
# As in the text's Table 5, in the order of `CELLS`.
PRINTED = {
    "Random": ((35.25, 0.11), (45.52, 0.39), (75.12, 0.89), (77.28, 0.18)),
    "Robo": ((36.23, 0.08), (46.39, 0.25), (78.26, 0.43), (78.33, 0.26)),
    "Approx": ((39.75, 0.04), (60.75, 0.19), (96.08, 0.08), (99.12, 0.07)),
    "RMD": ((37.48, 0.96), (49.91, 0.23), (81.79, 0.57), (94.81, 0.58)),
    "Penalty": ((43.98, 0.84), (60.75, 0.14), (96.10, 0.21), (99.03, 0.35)),
    "SMNBP": ((44.28, 0.31), (61.13, 0.31), (96.63, 0.34), (99.15, 0.46)),
    "SPNBO": ((44.66, 0.03), (61.28, 0.90), (96.70, 0.32), (99.15, 0.60)),
}
PAPER = protocol.published(CELLS, PRINTED)

RATES = Rates(functools.partial(optax.adam, UPPER_RATE), HEAD_RATE, HEAD_RATE)


def cells(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Data set, way and shot of each cell.

    Raises:
        InputError: no cell matches the settings.
    """
    small = settings.quick or settings.medium
    shot = 5 if small and settings.shot is None else settings.shot
    found = tuple(
        (name, task)
        for name, task in CELLS
        if settings.way in (None, 5) and (shot is None or task == f"5-way {shot}-shot") and (not small or name != MINI)
    )
    if not found:
        raise InputError(f"No cell has --way {settings.way} and --shot {settings.shot}. Way is 5, shot 1 or 5.")
    return found


def size(settings: Settings) -> Size:
    """How long methods run."""
    if settings.quick:
        return Size(cells(settings), 20, 3, 1, 2, 10, 1, looks=1)
    if settings.medium:
        return Size(cells(settings), 250, 5, 1, 8, 20, 5, looks=3)
    return Size(cells(settings), 5000, 20, 1, 100, 100, 10)


def draw(settings: Settings, cell: tuple[str, ...], seed: int) -> Cell:
    """One trial."""
    name, shot = cell[0], int(cell[1].split()[1].split("-")[0])
    small = settings.quick or settings.medium
    network = omniglot_network(16 if small else 64) if name == OMNIGLOT else mini_imagenet_network()
    data, keys = split_of(name), jax.random.split(jax.random.key(seed), 3)
    images, test = jnp.asarray(data.train), jnp.asarray(data.test)
    method = sparse_fewshot_task(
        network,
        images,
        way=5,
        shot=shot,
        queries=5 if small else 15,
        tasks=4 if small else 30 if name == OMNIGLOT else 2,
        key=keys[0],
        p=P,
        strength=STRENGTH,
    )

    def measured(u: PyTree, episodes: int) -> float:
        statistics = statistics_of(method, u, images, key=keys[1])
        sizes = {"way": 5, "shot": shot, "episodes": episodes}
        return 100 * evaluate(*method.use(5), u, test, key=keys[2], statistics=statistics, **sizes).mean

    def look(u: PyTree, v: PyTree) -> dict[str, float]:
        return {"figure": measured(u, 100)}

    def judge(u: PyTree, v: PyTree) -> dict[str, float]:
        return {
            "figure": measured(u, 100 if settings.quick else 600),
            "zeros": 100 * zero_share(v, ZERO),
            "removed": 0.0,
        }

    start = method.task.start[0]
    bounds = tuple(jax.tree.map(lambda x, by=by: x + by, start) for by in (-AROUND, AROUND))
    return Cell(method.task, RATES, (bounds[0], bounds[1]), look, judge)


def notes(settings: Settings) -> list[str]:
    """Differences between the protocol and the text's."""
    found = [
        f"p = {P}, and the factor of the sum of |w|^p is {STRENGTH:g}. Heads are linear in features of length one and "
        "start at class means. A head is one array, so SPNBO's sampled layer is the whole head. The searches draw the "
        f"representation's parameters within {AROUND:g} of its initialisation.",
    ]
    if settings.quick or settings.medium:
        found.append("16 filters, and 4 tasks with 5 queries in a step.")
    return found


KIND = Kind("spnbo-table5", TITLE, FIGURE, False, PAPER, size, draw, RATES, notes)
run = functools.partial(protocol.run, KIND)

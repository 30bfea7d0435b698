"""Figure 3: clean-label attacks, success against distortion (section 3.4, appendix E.4), and part (a) of Figure 6.

One added sample with its right label should cause one test sample to be misclassified. For each target the experiment
searches a grid for the smallest bound with which this happens after the head is retrained. Every finished target is
kept in `cells/` under the output directory, and a run that was stopped resumes with the missing targets.
"""

import functools
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevax import GradientMatching, Penalty, solve
from bilevax.applications import Task
from bilevax.applications.poisoning import (
    Points,
    WithinBall,
    clean_label_solver,
    clean_label_task,
    distances,
    euclidean,
    points_alone,
    poison_frogs,
    retrained,
    well_classified,
)
from bilevax.nn import (
    Model,
    Training,
    augmented,
    cifar10_network,
    crop_and_flip,
    lenet5,
    probabilities,
    softmax_head,
    train,
)
from bilevax.plots import Line, LinePanel, change_sheet, line_panels
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Row, show, write_results
from experiments.common.runs import evaluations, readable
from experiments.common.settings import Settings, pick
from experiments.poisoning import features
from experiments.poisoning.features import TwoClasses

TITLE = EXPERIMENTS["figure3"].title
PENALTY, BALL, MATCHING, FROGS = "Penalty", "Penalty, bound by projection", "Gradient matching", "Poison Frogs"
LABELS = (PENALTY, BALL, MATCHING, FROGS)
HEAD = softmax_head(2)
L2 = 3e-3
TRAINING = Training(steps=2000, rate=2e-2, l2=L2)
COLLISION = 0.1
TOLERANCE = 1e-3  # relative, of the bound
SHOWN = 8
GRID = tuple(float(k) for k in range(1, 17))  # the paper's, if its images are available
MISCLASSIFIED = "one added sample"


@dataclass(frozen=True)
class Size:
    """The protocol at some size.

    Args:
        network: what the feature map is made of.
        passes, images: passes through this many images of the other eight classes.
        each, each_test: samples of each of the two classes.
        targets: the number of test samples that are attacked; None for all that the head classifies correctly.
        eps: the bounds that are tried, in rising order.
        steps: K of the solvers.
    """

    network: Model
    passes: int
    images: int | None
    each: int
    each_test: int
    targets: int | None
    eps: tuple[float, ...]
    steps: int = 400


def size_of(settings: Settings) -> Size:
    """Full size attacks every correctly classified sample, as the paper does; --medium attacks 50."""
    grid = tuple(0.5 * k for k in range(1, 17))
    if settings.quick:
        return Size(lenet5(8), 1, 20000, 100, 100, 4, (1.0, 2.0, 4.0, 8.0))
    if settings.medium:
        return Size(lenet5(8), 4, None, 250, 300, 50, grid)
    return Size(augmented(cifar10_network(8), crop_and_flip()), 60, None, 350, 300, None, grid)


def settled(steps: int) -> Penalty:
    """Penalty with the bound as a projection: plain descent, since Adam with a projection does not converge."""
    descent = optax.sgd(optax.cosine_decay_schedule(5.0, steps))
    return replace(clean_label_solver(steps), upper_optimizer=descent)


def matching(steps: int) -> GradientMatching:
    """The objective of Witches' Brew, for one sample."""
    return GradientMatching(optax.sgd(optax.cosine_decay_schedule(1.0, steps)))


class Attack:
    """Shared by all targets: the samples, the head trained on the clean samples, and the solvers."""

    def __init__(self, pair: TwoClasses, steps: int):
        self.pair, self.steps = pair, steps
        r = jax.jit(pair.features.apply)
        self.map = functools.partial(r, pair.features.params)
        self.f, self.f_test = (np.asarray(self.map(jnp.asarray(x))) for x in (pair.x, pair.x_test))
        self.key = jax.random.key(0)
        ones = jnp.ones(len(pair.y))
        self.head = train(HEAD, TRAINING, jnp.asarray(self.f), jnp.asarray(pair.y, jnp.int32), ones, self.key)
        self.solvers: dict[str, Any] = {
            PENALTY: clean_label_solver(steps),
            BALL: settled(steps),
            MATCHING: matching(steps),
        }

    def accuracy(self) -> float:
        """Percent of the test samples that the clean head classifies correctly."""
        return 100 * float((probabilities(HEAD, self.head, self.f_test).argmax(1) == self.pair.y_test).mean())

    def targets(self, count: int | None) -> list[int]:
        """Test samples that the head classifies correctly, drawn at random."""
        right = well_classified(HEAD, self.pair.features, self.head, self.pair.x_test, self.pair.y_test)
        return np.random.default_rng(0).permutation(right)[:count].tolist()

    def base_of(self, target: int) -> int:
        """The test sample of the other class whose features are nearest to the target's."""
        other = np.flatnonzero(self.pair.y_test != self.pair.y_test[target])
        return int(other[np.linalg.norm(self.f_test[other] - self.f_test[target], axis=1).argmin()])

    def task(self, target: int, eps: float, **more: Any) -> Task:
        """The attack on a target within a bound."""
        base = self.base_of(target)
        labels = [int(self.pair.y_test[i]) for i in (target, base)]
        apart = float(np.sum((self.f_test[target] - self.f_test[base]) ** 2))
        given = {"training": TRAINING, "collision": COLLISION / apart, "start": self.head, **more}
        return clean_label_task(
            HEAD,
            self.pair.features,
            self.pair.x,
            self.pair.y,
            self.pair.x_test[target],
            labels[0],
            self.pair.x_test[[base]],
            labels[1],
            eps=eps,
            key=self.key,
            low=self.pair.low,
            high=self.pair.high,
            **given,
        )

    def point(self, label: str, target: int, eps: float) -> np.ndarray:
        """The sample (1, ...) that a method finds."""
        limits = self.pair.low, self.pair.high
        if label == FROGS:
            base = self.pair.x_test[[self.base_of(target)]]
            return poison_frogs(
                self.pair.features, self.pair.x_test[target], base, eps=eps, low=limits[0], high=limits[1]
            )
        if label == PENALTY:
            task, back = self.task(target, eps, distance=euclidean), np.asarray
        else:
            plain = Training(steps=TRAINING.steps, rate=TRAINING.rate, l2=0.0)
            of = {"training": plain, "collision": 0.0} if label == MATCHING else {}
            task = self.task(target, eps, distance=None, **of)
            ball = WithinBall(points_alone(task) if label == MATCHING else task, *limits)
            task, back = ball.task, ball.points
        result = solve(self.solvers[label], task.problem, *task.start, task.batches, steps=self.steps, key=self.key)
        return np.asarray(back(result.u))

    def taken_for_base(self, target: int, point: np.ndarray) -> bool:
        """Whether a head retrained with the point assigns the target to the base's class."""
        label = 1 - int(self.pair.y_test[target])
        points = Points(np.asarray(self.map(jnp.asarray(point))), np.array([label]))
        v = retrained(HEAD, TRAINING, self.f, self.pair.y, points, key=self.key)
        return int(probabilities(HEAD, v, self.f_test[[target]]).argmax()) == label

    def search(self, label: str, target: int, grid: tuple[float, ...]) -> dict[str, Any]:
        """The smallest bound with which a method succeeds; a point more than 1e-3 beyond its bound does not count."""
        began, violation, tried = time.perf_counter(), 0.0, 0
        base = self.pair.x_test[[self.base_of(target)]]
        for eps in grid:
            tried += 1
            point = self.point(label, target, eps)
            (distance,) = distances(point, base).tolist()
            violation = max(violation, distance / eps - 1)
            if distance <= (1 + TOLERANCE) * eps and self.taken_for_base(target, point):
                break
        else:
            eps = distance = None
        seconds = (time.perf_counter() - began) / tried
        return {"eps": eps, "distance": distance, "violation": violation, "seconds": seconds}


def run(settings: Settings) -> None:
    """Attack every missing target, draw, and write `results.json`."""
    labels = pick(LABELS, settings.solver)
    size = size_of(settings)
    began = time.perf_counter()
    if settings.features is None:
        pair = features.of_cifar10(size.network, size.passes, size.images, size.each, size.each_test)
        grid = size.eps
    else:
        pair, grid = features.read(settings.features), GRID
    attack = Attack(pair, size.steps)
    targets = attack.targets(settings.seeds or size.targets)

    def run_missing(target: int, missing: list[str]) -> dict[str, dict[str, Any]]:
        return {label: attack.search(label, target, grid) for label in missing}

    cells = [
        kept_cell(settings.out / "cells" / f"{target}.json", labels, functools.partial(run_missing, target))
        for target in targets
    ]
    seconds = time.perf_counter() - began
    share = {label: success(cells, label, grid) for label in labels}
    tables = {
        "targets misclassified, %": [
            Row((MISCLASSIFIED, f"at most {eps:g}", label), None, np.array([100 * share[label][i]]), None)
            for i, eps in enumerate(grid)
            for label in labels
        ],
        "distance of the points that succeed, l2": rows_of(
            {x: [cell[x]["distance"] for cell in cells if cell[x]["eps"] is not None] for x in labels}
        ),
        "largest violation of its bound by a point that succeeds, relative": rows_of(
            {
                x: [max((cell[x]["distance"] / cell[x]["eps"] - 1 for cell in cells if cell[x]["eps"]), default=0.0)]
                for x in labels
            }
        ),
        "largest violation by any point that was tried, relative": rows_of(
            {x: [max(cell[x]["violation"] for cell in cells)] for x in labels}
        ),
        "seconds of an attack": rows_of({x: [cell[x]["seconds"] for cell in cells] for x in labels}),
    }
    notes = footnotes(settings, attack, len(targets))
    for name, rows in tables.items():
        show(f"{TITLE}: {name}", ("", "distortion", "method"), rows, notes if name.startswith("seconds") else ())
    write_results(
        "figure3",
        settings,
        [0],
        seconds,
        {label: readable(solver) for label, solver in attack.solvers.items()},
        {
            f"{label}, each attack": evaluations(solver, size.steps)
            for label, solver in attack.solvers.items()
            if label != MATCHING
        },
        tables,
        notes,
        size={k: x for k, x in asdict(size).items() if k != "network"},
        targets=targets,
        accuracy=attack.accuracy(),
        nowhere_below={label: bool((share[PENALTY] >= share[label]).all()) for label in labels if PENALTY in labels},
    )
    panel = LinePanel(
        "One added sample, its label right",
        "largest distortion allowed, l2",
        "targets misclassified, %",
        {label: Line(grid, [(100 * share[label]).tolist()]) for label in labels},
    )
    line_panels([panel], settings.out / "figure3.png")
    if PENALTY in labels:
        draw_points(settings, attack, targets, cells)


def success(cells: list[dict[str, Any]], label: str, grid: tuple[float, ...]) -> np.ndarray:
    """The share of targets for which a bound of at most eps is enough, for each eps of the grid."""
    least = np.array([np.inf if cell[label]["eps"] is None else cell[label]["eps"] for cell in cells])
    return np.array([(least <= eps).mean() for eps in grid])


def rows_of(values: dict[str, list[float]]) -> list[Row]:
    """A row for each method that has values."""
    return [Row(("all targets", "", label), None, np.array(x), None) for label, x in values.items() if x]


def draw_points(settings: Settings, attack: Attack, targets: list[int], cells: list[dict[str, Any]]) -> None:
    """Figure 6 (a): Penalty's points, computed again at the bounds in the cells, with their bases and targets."""
    won = [(target, cell[PENALTY]["eps"]) for target, cell in zip(targets, cells, strict=True) if cell[PENALTY]["eps"]]
    pair, won = attack.pair, won[:SHOWN]
    if not won or pair.x_test.ndim != 4:
        return
    points = np.concatenate([attack.point(PENALTY, target, eps) for target, eps in won])
    bases = pair.x_test[[attack.base_of(target) for target, _ in won]]
    before, after, aims = (
        (x - pair.low) / (pair.high - pair.low) for x in (bases, points, pair.x_test[[t for t, _ in won]])
    )
    below = [f"l2 {far:.2f}" for far in distances(points, bases)]
    change_sheet(
        before, after, [""] * len(won), below, settings.out / "figure3-points.png", "Clean-label attack", targets=aims
    )


def footnotes(settings: Settings, attack: Attack, targets: int) -> list[str]:
    """Differences between our protocol and the paper's."""
    pair, wide = attack.pair, attack.f.shape[1]
    notes = [
        f"{targets} targets, which are test samples that the clean head classifies correctly ({attack.accuracy():.1f}% "
        "of the test samples); the base is the test sample of the other class with the nearest features. A method's "
        "curve at eps is the share of targets for which a bound of at most eps was enough.",
        "The total time of a resumed run does not include kept targets; the seconds of an attack include all targets.",
        f"A point that exceeds its bound by more than {TOLERANCE:g} relative does not count as a success.",
        f"The weight of the feature collision is {COLLISION:g} over the squared feature distance of base and target, "
        "in the paper 1: it matters at the start, and at the end the misclassification by the head decides.",
        "Poison Frogs is Algorithm 1 of Shafahi et al. with the projection and the settings of E.4 (beta 0.1, lambda "
        "0.01, 2,000 steps).",
        f"For each point a new head is trained with l2 {L2:g}: {TRAINING.steps} steps of Adam on {len(pair.y)} samples "
        f"and the point, with {wide} features.",
    ]
    if settings.features is None:
        notes.append(
            "The dog and fish images and the InceptionV3 weights of the paper are not available to this run. The "
            "classes are dog and ship of CIFAR-10, and the features are the convolutions of a network trained on the "
            "other eight classes. Distances are between images of 32x32x3 in 0..1, in the paper of 299x299x3 in -1..1, "
            "so they cannot be compared. With --features FILE.npz (see experiments/poisoning/features.py) the paper's "
            "data are used."
        )
    return notes

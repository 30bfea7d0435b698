"""New glyphs recognised by one picture of each, after learning from other glyphs.

A glyph is two random strokes. Its pictures differ by shift, rotation and size, so comparing pixels works badly. A
network learns features from 400 glyphs, and is then tested on glyphs that it has never seen.

    u    the parameters of a network with one hidden layer, from pictures to 64 features
    v    for each task of 5 glyphs a small classifier of these features
    g    the cross-entropy of the pictures that a task learns from, one of each glyph
    f    the cross-entropy of the other pictures, the queries

What to look at: the accuracy on new glyphs, compared with the untrained network and with the nearest mean of pixels, on
the same tasks. The second picture is one such task; a red frame is a wrong prediction.

    python examples/fewshot.py [--quick] [--out DIR]
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from bilevax.applications.fewshot import FewShotLearner, class_means, evaluate
from bilevax.nn import Representation
from bilevax.plots import Line, LinePanel, line_panels, task_sheet

SIDE, WAY, PICTURES = 16, 5, 20


def glyphs(classes: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures (classes, 20, 16, 16) of random glyphs, as bytes."""
    t, (a, b, c) = np.linspace(0, 1, 12)[:, None], rng.uniform(-1, 1, (3, classes, 2, 1, 2))
    strokes = ((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c).reshape(classes, 1, 24, 2)  # Bezier curves
    angle, size = rng.normal(0, 0.25, (classes, PICTURES)), np.exp(rng.normal(0, 0.12, (classes, PICTURES, 1, 2)))
    turn = np.moveaxis(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), (0, 1), (2, 3))
    points = strokes @ turn * size + rng.normal(0, 0.2, (classes, PICTURES, 1, 2))
    pixels = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, SIDE)] * 2, indexing="ij"), -1).reshape(-1, 1, 2)
    ink = [np.exp(-((p[:, None] - pixels) ** 2).sum(-1).min(-1) / 0.02) for p in points]
    return (255 * np.stack(ink)).astype(np.uint8).reshape(classes, PICTURES, SIDE, SIDE)


def start(key: PRNGKeyArray, x: Any) -> dict[str, Any]:
    """Random parameters."""
    keys = jax.random.split(key)
    return {"in": jax.random.normal(keys[0], (SIDE**2, 256)) / 4, "out": jax.random.normal(keys[1], (256, 64)) / 16}


def features(u: dict[str, Any], x: Any, statistics: Any = None, key: PRNGKeyArray | None = None) -> Any:
    """From pictures (n, 16, 16), with values in 0..1, to features (n, 64)."""
    return jax.nn.relu((x.reshape(len(x), -1) - 0.15) @ u["in"]) @ u["out"]


def means(u: PyTree, support: Any) -> Any:
    """The class means of pixels of each task, (tasks, 5, 256)."""
    return class_means(support.x.reshape(*support.y.shape, -1) / 255, support.y, WAY)


def nearness(u: PyTree, v: PyTree, queries: Any) -> Any:
    """How near each picture is to each mean, (tasks, n, 5)."""
    return -jnp.sum((queries.x.reshape(*queries.y.shape, 1, -1) / 255 - v[:, None]) ** 2, -1)


def main(quick: bool, out: Path) -> dict[str, float]:
    """Learn the network, and draw how well new glyphs are recognised."""
    rng = np.random.default_rng(0)
    old, new = glyphs(80 if quick else 400, rng), glyphs(40, rng)
    learner = FewShotLearner(
        Representation(start, features, statistics=lambda u, x: ()),  # it normalises nothing
        way=WAY,
        shot=1,
        queries=5,
        tasks=8,
        steps=150 if quick else 1500,
    ).meta_fit(old)

    learned = learner.method_.use(WAY)
    methods = {
        "learned from other glyphs": (*learned, learner.u_),
        "the same network, untrained": (*learned, learner.method_.task.start[0]),
        "nearest mean of pixels": (means, nearness, ()),
    }
    shots, sizes = (1,) if quick else (1, 2, 3, 5, 10), {"way": WAY, "queries": 10, "episodes": 300}
    found = {
        name: [evaluate(adapt, scores, u, new, shot=shot, key=jax.random.key(1), **sizes) for shot in shots]
        for name, (adapt, scores, u) in methods.items()
    }
    accuracies = [f"{100 * e[0].mean:.1f}% (+- {100 * e[0].half_width:.1f}) {name}" for name, e in found.items()]
    print(f"Right answers on {WAY} new glyphs after one picture of each: {', '.join(accuracies)}.")

    lines = {name: Line(shots, [100 * e.mean for e in each]) for name, each in found.items()}
    panel = LinePanel(
        f"{WAY} new glyphs", "pictures of each learned from", "right answers %", lines, {"chance": 100 / WAY}
    )
    line_panels([panel], out / "fewshot.png")
    labels = [f"glyph {i}" for i in range(WAY)]
    answers = learner.adapt(new[:WAY, 0], labels).predict(new[:WAY, 1:8].reshape(-1, SIDE, SIDE)).reshape(WAY, -1)
    right = answers == np.array(labels)[:, None]
    pictures = 1 - new[:WAY] / 255
    task_sheet(pictures[:, :1], pictures[:, 1:8], labels, answers.tolist(), right, out / "fewshot_task.png")
    names = ("accuracy", "accuracy_untrained", "accuracy_pixels")
    return {name: each[0].mean for name, each in zip(names, found.values(), strict=True)}


PARSER = argparse.ArgumentParser(description="New glyphs recognised by one picture of each.")
PARSER.add_argument("--quick", action="store_true", help="a smaller form that takes seconds")
PARSER.add_argument("--out", type=Path, default=Path(), help="the folder for the pictures")

if __name__ == "__main__":
    main(**vars(PARSER.parse_args()))

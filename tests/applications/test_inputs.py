"""What users hand to the applications: every malformed input gets a sentence, whichever tool it is handed to."""

import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bilevax import InputError
from bilevax.applications import _inputs
from bilevax.applications.denoising import ImportanceClassifier, PlainClassifier
from bilevax.applications.fewshot import FewShotLearner
from bilevax.applications.poisoning import audit, wrongly_labelled

RNG = np.random.default_rng(0)
N, D = 12, 3
X = RNG.normal(size=(N, D))
Y = np.arange(N) % 3
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])


def put(x, value, dtype=None):
    x = np.array(x, dtype)
    x[2, 1] = value
    return x


BAD_X = {
    "NaN": (put(X, np.nan), "holds 1 NaN or infinite values"),
    "infinite": (put(X, np.inf), "holds 1 NaN or infinite values"),
    "complex": (X + 1j, "holds complex numbers"),
    "complex objects": (put(X, 1j, object), "holds complex numbers"),
    "complex frame": (FRAME * 1j, "holds complex numbers"),
    "sparse": (sparse.csr_matrix(X), "is a sparse matrix"),
    "text": (np.full((N, D), "a"), "holds values that are not numbers"),
    "text of numbers": (np.full((N, D), "1.5"), "holds values that are not numbers"),
    "an object of text": (put(X, "1.5", object), "holds values that are not numbers"),
    "an object of None": (put(X, None, object), "NaN or infinite"),
    "pandas NA": (FRAME.convert_dtypes().mask(FRAME > 1, pd.NA).astype("Float64"), "not numbers|NaN"),
    "ragged": ([[1.0, 2.0], [3.0]] * (N // 2), "holds values that are not numbers"),
    "frame of text": (FRAME.assign(kind="a"), "has columns that hold no numbers: 'kind'|with columns of text"),
    "dates": (np.full((N, D), np.datetime64("2020-01-01")), "holds values that are not numbers"),
    "frame of durations": (FRAME.assign(d=pd.Timedelta(1)), "holds values that are not numbers"),
    "masked": (np.ma.masked_greater(X, 1), "masked array"),
    "scalar": (3.0, "has shape"),
    "flat": (X[:, 0], r"has shape \(12,\)"),
    "no samples": (X[:0], r"has shape \(0, 3\)"),
    "no features": (X[:, :0], r"has shape \(12, 0\)"),
    "None": (None, "has shape|not numbers|NaN"),
    "a dictionary": ({"a": [1.0]}, "not numbers"),
    "a function": (np.sum, "not numbers"),
}
BAD_Y = {
    "column": (Y[:, None], r"has shape \(12, 1\), .* Pass y\.ravel\(\)"),
    "frame": (pd.DataFrame({"y": Y}), r"has shape \(12, 1\)"),
    "scalar": (3, r"has shape \(\)"),
    "short": (Y[:-1], "12 samples and y 11 labels"),
    "fractions": (Y + 0.5, "holds fractions"),
    "infinite": (np.where(Y == 1, np.inf, Y), "holds fractions"),
    "NaN": (np.where(Y == 1, np.nan, Y), "4 missing labels"),
    "None": ([None, *Y[1:]], "1 missing label"),
    "pandas NA": (pd.Series([pd.NA, *Y[1:]], dtype="Int64"), "1 missing label"),
    "NaT": (pd.Series([pd.NaT] + ["a"] * 11, dtype=object), "1 missing label"),
    "mixed list": (["a", *Y[1:]], "mixes labels of several types"),
    "mixed objects": (np.array(["a", *Y[1:]], object), "mixes labels of several types"),
    "ragged": ([[1], [1, 2]] * 6, "not an array of labels|holds labels of type|mixes"),
    "complex": (Y + 1j, "holds labels of type complex"),
    "one class": (0 * Y, r"y has one class only \(0\)"),
    "sparse": (sparse.csr_matrix(Y), "is a sparse matrix"),
}


def tools():
    """Every tool that takes samples and labels, as X, y -> anything."""
    return {
        "plain": lambda x, y: PlainClassifier().fit(x, y),
        "denoising": lambda x, y: ImportanceClassifier(steps=1).fit(x, y, X, Y),
        "audit": lambda x, y: audit(x, y, X, Y, budget=0.5, key=jax.random.key(0)),
    }


@pytest.mark.parametrize("tool", tools().values(), ids=tools())
@pytest.mark.parametrize(("x", "sentence"), BAD_X.values(), ids=BAD_X)
def test_malformed_samples_get_a_sentence(tool, x, sentence):
    with pytest.raises(InputError, match=rf"^X .*({sentence})"):
        tool(x, Y)


@pytest.mark.parametrize("tool", tools().values(), ids=tools())
@pytest.mark.parametrize(("y", "sentence"), BAD_Y.values(), ids=BAD_Y)
def test_malformed_labels_get_a_sentence(tool, y, sentence):
    with pytest.raises(InputError, match=sentence):
        tool(X, y)


@pytest.mark.parametrize(("x", "sentence"), BAD_X.values(), ids=BAD_X)
def test_malformed_trusted_and_validation_samples_are_named(x, sentence):
    with pytest.raises(InputError, match=f"^X_clean .*({sentence})"):
        ImportanceClassifier(steps=1).fit(X, Y, x, Y)
    with pytest.raises(InputError, match=f"^X_val .*({sentence})"):
        audit(X, Y, x, Y, budget=0.5, key=jax.random.key(0))


@pytest.mark.parametrize("name", ["complex", "text", "ragged", "sparse"])
def test_malformed_pictures_and_points_are_refused(name):
    x, sentence = BAD_X[name]
    with pytest.raises(InputError, match=sentence):
        FewShotLearner().meta_fit(x if name in ("ragged", "sparse") else np.broadcast_to(x, (6, N, D)))
    with pytest.raises(InputError, match=sentence):
        wrongly_labelled(x, Y, 2, key=jax.random.key(0))


WELL_FORMED = {
    "lists": X.tolist(),
    "a frame": FRAME,
    "nullable": FRAME.convert_dtypes(),
    "objects": X.astype(object),
    "a jax array": jax.numpy.asarray(X),
    "booleans beside numbers": FRAME.assign(b=True)[["a", "b", "c"]].assign(b=FRAME.b),
}


@pytest.mark.parametrize("x", WELL_FORMED.values(), ids=WELL_FORMED)
def test_what_holds_numbers_is_taken(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(_inputs.features("X", x), X)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (Y.tolist(), [0, 1, 2]),
        (Y.astype(float), [0.0, 1.0, 2.0]),
        (Y == 1, [False, True]),
        (["a", "b"] * 6, ["a", "b"]),
        (pd.Series(["a", "b"] * 6, dtype="category"), ["a", "b"]),
        (pd.Series(Y, dtype="Int64"), [0, 1, 2]),
        (Y.astype(object), [0, 1, 2]),
    ],
    ids=["ints", "floats", "bools", "strings", "category", "nullable", "objects"],
)
def test_labels_of_any_one_type_are_taken(y, classes):
    found = _inputs.labels("y", y)
    assert _inputs.classes_of("y", found).tolist() == classes
    assert _inputs.classes_of("y", found)[_inputs.places("y", found, classes)].tolist() == list(y)


def test_labels_of_another_type_are_no_class():
    with pytest.raises(InputError, match="y_clean has labels that y lacks: '0', '1', '2'"):
        ImportanceClassifier(steps=1).fit(X, Y, X, Y.astype(str))


def test_numbers_beyond_single_precision_are_named():
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(InputError, match=r"X holds numbers up to 1e\+200, beyond the range of float32"):
            _inputs.features("X", put(X, 1e200))
    finally:
        jax.config.update("jax_enable_x64", True)

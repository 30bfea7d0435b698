"""The study of banded ridge: its draws, and our rows of one of them."""

import importlib.util

import numpy as np
import pytest

from bilevax import InputError
from experiments.common.settings import Settings
from experiments.tuning import banded
from experiments.tuning.banded import OURS, RANDOM, SIMULATED, cell, split


@pytest.mark.parametrize("name", SIMULATED)
def test_a_draw(name):
    data = split(name, 3)
    bands = len(SIMULATED[name])
    assert data.X.shape == (300, 50 * bands)
    assert data.X_test.shape == (1000, 50 * bands)
    np.testing.assert_array_equal(np.bincount(data.bands), np.full(bands, 50))
    np.testing.assert_allclose(data.X.std(0), 1)
    assert data.y.std() == pytest.approx(1)
    # What each band explains is in the data: least squares on enough rows gives it back.
    X, y = np.concatenate([data.X, data.X_test]), np.concatenate([data.y, data.y_test])
    w = np.linalg.lstsq(X, y, rcond=None)[0]
    n, d = X.shape
    noise = ((y - X @ w) ** 2).sum() / (n - d)
    found = [(w[data.bands == band] ** 2).sum() - 50 * noise / (n - d) for band in range(bands)]
    np.testing.assert_allclose(found, SIMULATED[name], atol=0.15)


def test_a_strength_for_each_band_is_better_where_bands_differ():
    rows = cell(split("3 bands", 0), list(OURS), 0)
    assert 0.1 < rows["TunedGLM, each band"]["loss"] < rows["TunedGLM, one strength"]["loss"] - 0.03
    assert rows["TunedGLM"]["loss"] < rows["TunedGLM, one strength"]["loss"] - 0.03


@pytest.mark.skipif(importlib.util.find_spec("himalaya") is not None, reason="himalaya is installed")
def test_without_himalaya_its_rows_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="pip install --no-deps himalaya"):
        banded.run(Settings(quick=True, out=tmp_path, solver=RANDOM))

"""The experiment on wrong numeric targets: its draws, and a small run."""

import json

import numpy as np
import pytest

from experiments.common.settings import Settings
from experiments.denoising import regression


@pytest.mark.parametrize("kind", regression.KINDS)
def test_some_targets_are_wrong(kind):
    y = np.linspace(1, 9, 200)
    given, wrong = regression.corrupted(y, kind, 0)
    assert 25 <= wrong.sum() <= 30
    np.testing.assert_array_equal(given[~wrong], y[~wrong])
    np.testing.assert_array_equal(regression.corrupted(y, kind, 0)[0], given)
    if kind == regression.SCALED:
        np.testing.assert_allclose(given[wrong], 10 * y[wrong])


def test_a_small_run(tmp_path):
    table = regression.load(regression.DIABETES, 0)
    assert table.X.shape == (regression.MOST_ROWS, 10)
    labels = regression.OURS
    regression.run(Settings(quick=True, solver=labels, dataset=regression.DIABETES, out=tmp_path))
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["experiment"] == "review-regression"
    cell = json.loads((tmp_path / "cells" / "diabetes-1-0.json").read_text())[labels]
    assert cell["average_precision"] > 0.9

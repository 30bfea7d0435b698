"""The race: its figures of merit by another route, and one short run."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bilevax import Batch, whole
from bilevax.argmin import hypergradient
from bilevax.linear_solve import Direct
from experiments.common.settings import Settings
from experiments.race import problems, race

KEY = jax.random.key(0)


@pytest.fixture
def digits(monkeypatch):
    """MNIST as noise, whose labels follow from the pixels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (400, 6, 6)).astype(np.uint8)
    y = (x.reshape(400, 36)[:, :5].mean(1) // 26).astype(np.uint8)
    images = SimpleNamespace(x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    monkeypatch.setattr(problems, "images_of", lambda name: images)


@pytest.mark.parametrize("name", ["quadratics", "logistic"])
def test_the_figure_is_the_squared_gradient_of_the_value_function(name, digits):
    """By scipy's BFGS for v*(u), and a hypergradient."""
    field = problems.quadratics(128) if name == "quadratics" else problems.logistic(150)
    batch = Batch(whole(field.upper), whole(field.lower))
    u = jnp.asarray(field.start[0])
    slope = jax.jit(jax.grad(lambda v: field.problem.lower_loss(u, v, batch.lower)))
    value = jax.jit(lambda v: field.problem.lower_loss(u, v, batch.lower))
    start = np.zeros_like(field.start[1])
    found = scipy.optimize.minimize(
        lambda v: float(value(v)), start, jac=lambda v: np.asarray(slope(v)), method="BFGS", options={"gtol": 1e-9}
    )
    gradient = hypergradient(field.problem, u, jnp.asarray(found.x), batch, linear_solve=Direct()).gradient
    np.testing.assert_allclose(field.measure(u, start), np.sum(gradient**2), rtol=1e-4)


def test_hyper_cleaning_replaces_the_share_of_labels(digits):
    """A tenth of the labels that are drawn anew are right by chance."""
    field = problems.cleaning(50, 300)
    order = np.random.default_rng(problems.SEED).permutation(400)
    y = problems.images_of("mnist").y_train[order[:300]]
    assert 0.35 < np.mean(field.lower[1] != y) < 0.55
    assert field.start[0].shape == (300,)
    assert 0 <= field.measure(*field.start) <= 1


@pytest.mark.slow
def test_saba_races_to_below_the_others_noise(tmp_path, monkeypatch):
    monkeypatch.setitem(race.SAMPLES, "quick", (512, 256, 100))
    monkeypatch.setitem(race.SECONDS, "quick", 5.0)
    for label in ("SABA", "SOBA"):
        race.run(Settings(quick=True, dataset="quadratics", solver=label, out=tmp_path))
    kept = race.kept_cell(next((tmp_path / "cells").glob("*.json")), ("SABA", "SOBA"), lambda missing: {})
    assert race.ending(kept["SABA"]) < 1e-10 < race.ending(kept["SOBA"])
    assert (tmp_path / "race.png").is_file()

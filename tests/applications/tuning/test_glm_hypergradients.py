"""The hypergradient of every loss, penalty and kind of strengths against finite differences, in double precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import Batch, Problem
from bilevax.applications.tuning.glm.criterion import Criterion
from bilevax.applications.tuning.glm.losses import (
    Gamma,
    Huber,
    Logistic,
    Multinomial,
    Poisson,
    Quantile,
    Squared,
    SquaredHinge,
    Tweedie,
)
from bilevax.applications.tuning.glm.penalties import L1, L2, ElasticNet, GroupLasso, term_of
from bilevax.applications.tuning.glm.tuner import Tuner, strength_codes
from bilevax.argmin import hypergradient
from bilevax.linear_solve import CG

LOSSES = [
    Squared(),
    Logistic(),
    Multinomial(),
    Poisson(),
    Gamma(),
    Tweedie(1.4),
    Huber(),
    Quantile(0.3, smoothing=0.3),
    SquaredHinge(),
]
PENALTIES = [L2(), L1(), ElasticNet(0.4), GroupLasso()]
GROUPS = np.array([0, 0, 0, 1, 1, 2, 3, 3])


def samples(loss, n, d, rng):
    outputs = 3 if isinstance(loss, Multinomial | SquaredHinge) else 1
    x = rng.normal(size=(n, d))
    x = (x - x.mean(0)) / x.std(0)
    eta = 1.4 * x @ rng.normal(size=(d, outputs)) / np.sqrt(d)
    match loss:
        case Multinomial():
            y = np.eye(3)[(eta + rng.gumbel(size=eta.shape)).argmax(1)]
        case SquaredHinge():
            y = 2 * np.eye(3)[(eta + rng.gumbel(size=eta.shape)).argmax(1)] - 1
        case Logistic():
            y = (eta + rng.logistic(size=eta.shape) > 0).astype(float)
        case Poisson():
            y = rng.poisson(np.exp(eta)).astype(float)
        case Gamma():
            y = np.exp(eta) * rng.gamma(2, 0.5, size=eta.shape)
        case Tweedie():
            y = np.exp(eta) * rng.gamma(2, 0.5, size=eta.shape) * (rng.random(eta.shape) < 0.7)
        case _:
            y = eta + rng.normal(size=eta.shape)
    return np.concatenate([x, np.ones((n, 1))], axis=1), y


def tuner_of(loss, penalty, n=120, d=8, seed=0, tolerance=1e-12):
    rng = np.random.default_rng(seed)
    x, y = samples(loss, n, d, rng)
    weight = rng.uniform(0.5, 2, size=n)
    held = np.arange(n)[:, None] % 3 == np.arange(3)
    outputs = y.shape[1]
    flat = np.repeat(GROUPS, outputs) if d == len(GROUPS) else np.repeat(np.arange(d) // 2, outputs)
    blocks = [np.flatnonzero(flat == g) for g in range(flat.max() + 1)]
    offset = 0.1 * rng.normal(size=n)
    loss = loss.settled(y[:, 0], weight)
    return Tuner(loss, term_of(penalty, blocks), x, y, offset, weight, ~held, held, True, True, tolerance)


CASES = [
    (loss, penalty, kind)
    for loss, penalty, kind in itertools.product(LOSSES, PENALTIES, ["scalar", "group", "feature", "class"])
    if not (isinstance(penalty, GroupLasso) and kind in ("feature", "class"))
    and not (kind == "class" and not isinstance(loss, Multinomial | SquaredHinge))
]


@pytest.mark.parametrize(
    ("loss", "penalty", "kind"), CASES, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_hypergradient_equals_finite_differences(loss, penalty, kind):
    tuner = tuner_of(loss, penalty)
    codes = strength_codes(kind, 8, tuner.y.shape[1], GROUPS)
    criterion = tuner.criterion(codes)
    rng = np.random.default_rng(1)
    strengths = criterion.strengths
    low, high, _ = tuner.bounds
    u = (np.log(0.05) if not tuner.term.norm else high - 2.5) + 0.3 * rng.normal(size=strengths)
    assert low < u.min() <= u.max() < high
    found = criterion(u)
    w = criterion.start[:-1]
    if tuner.term.norm:
        assert np.mean(w != 0) > 0.05
    direction, h = rng.normal(size=strengths), 2e-4
    direction *= np.sign(direction @ found.gradient)
    values = [criterion(u + t * h * direction).value for t in (-2, -1, 1, 2)]
    numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    assert abs(found.gradient @ direction - numeric) < 1e-6 * max(abs(numeric), 1e-2 * found.value)
    np.testing.assert_allclose(found.gradients.sum(0), found.gradient)
    assert criterion.unsolved == 0


@pytest.mark.parametrize("loss", [Squared(), Logistic(), Multinomial(), Poisson()], ids=lambda v: type(v).__name__)
def test_wide_tables_use_kernels_with_the_same_gradient(loss):
    tuner = tuner_of(loss, L2(), n=45, d=220)
    codes = strength_codes("feature", 220, tuner.y.shape[1], None)
    criterion = tuner.criterion(codes)
    assert type(tuner.folds.curvature).__name__ == "Kernel"
    rng = np.random.default_rng(2)
    u, direction, h = np.log(0.5) + 0.3 * rng.normal(size=220), rng.normal(size=220), 2e-4
    found = criterion(u)
    values = [criterion(u + t * h * direction).value for t in (-2, -1, 1, 2)]
    numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    assert found.gradient @ direction == pytest.approx(numeric, rel=1e-6)


@pytest.mark.slow
def test_hypergradient_equals_that_of_the_library():
    """The same problem as a bilevax Problem, its hypergradient by `bilevax.derivatives.hypergradient`."""
    tuner = tuner_of(Logistic(), L2())
    codes = strength_codes("feature", 8, 1, None)
    criterion: Criterion = tuner.criterion(codes)
    u = np.log(0.05) + 0.3 * np.random.default_rng(1).normal(size=8)
    found = criterion(u)
    data = tuner.data
    with jax.enable_x64(True):
        x, y, offset = jnp.asarray(data.x), jnp.asarray(data.y[:, 0, 0]), jnp.asarray(data.offset[:, 0, 0])
        train, held, boost = jnp.asarray(data.train), jnp.asarray(data.held), jnp.asarray(data.boost)

        def losses(v):
            eta = x @ v + offset[:, None]
            return jnp.logaddexp(0, eta) - y[:, None] * eta

        def upper(u, v, batch):
            return jnp.sum(held * losses(v))

        def lower(u, v, batch):
            return jnp.sum(train * losses(v)) + jnp.sum(jnp.exp(u)[:, None] * boost * v[:-1] ** 2) / 2

        v = jnp.asarray(criterion.start[:, 0])
        gradient = hypergradient(Problem(upper, lower), jnp.asarray(u), v, Batch(None, None), linear_solve=CG(50))
    np.testing.assert_allclose(np.asarray(gradient.gradient), found.gradient, rtol=1e-5, atol=1e-9)

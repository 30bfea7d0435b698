"""Lassos tuned by gradient: against scikit-learn's grid, optimality conditions, and what is refused; `tune --lasso`."""

import copy
import importlib.machinery
import importlib.util
import json
import pickle
import sys
import types

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from PIL import Image
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import Lasso, LassoCV
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks
from typer.testing import CliRunner

from bilevax import Checkpoint, InputError, cli, solve
from bilevax.applications.tuning import TunedLasso, fit_lasso, lasso_task
from bilevax.applications.tuning import path as lasso_path

RNG = np.random.default_rng(0)
N, D = 120, 24
X = RNG.normal(size=(N, D)) + 0.5 * RNG.normal(size=(N, 1)) + 3
TRUE = np.repeat([2.0, 0.0, -1.0, 0.0], D // 4) * RNG.uniform(0.5, 1.5, D)
Y = X @ TRUE + 4 * RNG.normal(size=N) - 7
HELD = [np.isin(np.arange(N), aside) for _, aside in KFold(4).split(X)]
GROUPS = np.repeat(["a", "b", "c", "d", "e", "f"], 4)


def tuned(**change):
    job = lasso_task(X, Y, HELD, **change)
    task = job.task
    return job, solve(job.solver, task.problem, *task.start, task.batches, steps=150, key=jax.random.key(0))


def test_one_strength_is_that_of_a_fine_grid():
    job, result = tuned()
    task, strength = job.task, job.strengths(result.u)
    splits = [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in HELD]
    alphas = np.geomspace(0.02, 5, 1000)
    grid = LassoCV(cv=splits, alphas=alphas, tol=1e-8, max_iter=100_000).fit(X, Y)
    assert abs(np.log(strength[0] / grid.alpha_)) <= np.log(alphas[1] / alphas[0])
    found = task.metrics(result.u, result.v)
    assert found["held_out_error"] == pytest.approx(grid.mse_path_.mean(1).min(), rel=1e-4)
    coefficients, intercept = fit_lasso(strength, X, Y)
    np.testing.assert_allclose(coefficients, grid.coef_, atol=0.02)
    assert intercept == pytest.approx(grid.intercept_, abs=0.3)
    assert found["chosen"] == pytest.approx((np.asarray(result.v) != 0).mean())


@pytest.mark.slow
def test_strengths_of_their_own_hold_out_better_and_keep_the_true_features():
    job, result = tuned(per_group=True)
    task = job.task
    assert result.u.shape == (D,)
    first = task.metrics(task.start[0], task.problem.lower_start(task.start[0], task.batches, None))
    assert task.metrics(result.u, result.v)["held_out_error"] < 0.9 * first["held_out_error"]
    coefficients, _ = fit_lasso(job.strengths(result.u), X, Y)
    assert (coefficients[TRUE != 0] != 0).mean() > 0.9
    assert (coefficients[TRUE == 0] != 0).mean() < (
        fit_lasso(job.strengths(task.start[0]), X, Y)[0][TRUE == 0] != 0
    ).mean()


def test_the_group_lasso_meets_its_optimality_conditions():
    strength = np.linspace(0.2, 3.0, 6)
    v, intercept = fit_lasso(strength, X, Y, GROUPS)
    x, y = X - X.mean(0), Y - Y.mean()
    slope = x.T @ (x @ v - y) / N
    out = 0
    for g, weight in enumerate(strength * 2):  # the root of four
        rows = slice(4 * g, 4 * g + 4)
        size = np.linalg.norm(v[rows])
        if size:
            np.testing.assert_allclose(slope[rows], -weight * v[rows] / size, atol=1e-3)
        else:
            out += 1
            assert np.linalg.norm(slope[rows]) <= weight + 1e-4
    assert 1 <= out <= 4
    assert intercept == pytest.approx(Y.mean() - X.mean(0) @ v)


def test_groups_of_one_are_the_lasso():
    strength = np.exp(np.random.default_rng(1).normal(size=D) - 1)
    alone, _ = fit_lasso(strength, X, Y)
    grouped, _ = fit_lasso(strength, X, Y, np.arange(D))
    np.testing.assert_allclose(grouped, alone, atol=2e-3)
    scaled = Lasso(1.0, tol=1e-10, max_iter=100_000).fit(X / strength, Y)
    np.testing.assert_allclose(alone, scaled.coef_ / strength, atol=2e-3)


@pytest.mark.slow
def test_a_group_lasso_is_tuned():
    job, result = tuned(groups=GROUPS)
    task = job.task
    exact = jax.jit(lambda u: task.problem.lower_start(u, task.batches, None))
    errors = [task.metrics(u, exact(u))["held_out_error"] for u in np.linspace(-7, 0, 80)[:, None]]
    assert task.metrics(result.u, result.v)["held_out_error"] <= min(errors) * (1 + 1e-4)
    _, each = tuned(groups=GROUPS, per_group=True)
    assert each.u.shape == (6,)
    assert each.history.upper_loss[-1] < result.history.upper_loss[-1]


def test_the_estimator_by_folds_and_by_samples_of_their_own():
    by_folds, again = (TunedLasso(steps=30, folds=4, random_state=3).fit(X, Y) for _ in range(2))
    np.testing.assert_array_equal(by_folds.coef_, again.coef_)
    assert by_folds.alpha_.shape == (1,)
    np.testing.assert_allclose(by_folds.predict(X), X @ by_folds.coef_ + by_folds.intercept_)
    assert by_folds.score(X, Y) > 0.5
    assert by_folds.support_.sum() == (by_folds.coef_ != 0).sum()
    held = np.arange(N) >= 80
    own = TunedLasso().fit(X[:80], Y[:80], X[80:], Y[80:])
    best = min(
        np.mean((Y[held] - model.predict(X[held])) ** 2)
        for model in (Lasso(a, max_iter=100_000).fit(X[:80], Y[:80]) for a in np.geomspace(0.02, 5, 200))
    )
    assert own.held_out_error_ == pytest.approx(best, rel=1e-3)


@pytest.mark.slow
def test_the_estimator_passes_callbacks_and_resume_on(tmp_path):
    class StopError(Exception):
        pass

    def interrupt(visit):
        if visit.step == 3:
            raise StopError

    through = TunedLasso(steps=6).fit(X, Y)
    keep = Checkpoint(tmp_path / "run")
    with pytest.raises(StopError):
        TunedLasso(steps=6, callbacks=[keep, interrupt]).fit(X, Y)
    resumed = TunedLasso(steps=6, callbacks=[keep], resume=keep).fit(X, Y)
    np.testing.assert_array_equal(resumed.alpha_, through.alpha_)
    assert len(resumed.history_.upper_loss) == 6


def test_celer_is_used_where_it_is_installed(monkeypatch):
    seen = []

    class Fake(Lasso):
        def __init__(self, alpha, fit_intercept=False, tol=1e-4):
            super().__init__(alpha, fit_intercept=fit_intercept, tol=tol)
            seen.append(alpha)

    module: types.ModuleType = types.ModuleType("celer")
    module.__spec__ = importlib.machinery.ModuleSpec("celer", None)
    module.Lasso = Fake
    monkeypatch.setitem(sys.modules, "celer", module)
    coefficients, _ = fit_lasso(np.array([0.5]), X, Y)
    assert len(seen) == 1
    monkeypatch.delitem(sys.modules, "celer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    np.testing.assert_allclose(fit_lasso(np.array([0.5]), X, Y)[0], coefficients, atol=1e-3)
    assert len(seen) == 1


# --- units, sizes, programs -------------------------------------------------------------------------------------------

SMALL = {"steps": 15, "folds": 3}
MODES = [{}, {"per_group": True}, {"groups": [0, 0, 1, 1, 1, 2]}, {"groups": [0, 0, 1, 1, 1, 2], "per_group": True}]


def small(n=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 3
    return x, x[:, :3] @ [2.0, -1.0, 1.0] + 2 * rng.normal(size=n)


@pytest.mark.parametrize(
    ("mode", "own"),
    [
        *(pytest.param(mode, False, marks=pytest.mark.slow) for mode in MODES[:3]),
        pytest.param(MODES[3], False, marks=pytest.mark.slow),
        (MODES[1], True),
    ],
)
def test_units_of_y_and_of_x_change_the_units_of_the_result_alone(mode, own):
    x, y = small()

    def fitted(x, y):
        model = TunedLasso(**SMALL, **mode)
        return model.fit(x[:25], y[:25], x[25:], y[25:]) if own else model.fit(x, y)

    first = fitted(x, y)
    assert first.support_.any()
    for of_x, of_y in [(1, 1e-18), (1, 1e18), (1e-8, 1), (1e-30, 1e30)]:
        model = fitted(x * of_x, y * of_y)
        np.testing.assert_allclose(model.alpha_, first.alpha_ * of_x * of_y, rtol=1e-6)
        np.testing.assert_array_equal(model.support_, first.support_)
        np.testing.assert_allclose(model.coef_, first.coef_ * of_y / of_x, rtol=1e-6, atol=1e-9 * of_y / of_x)
        assert model.held_out_error_ == pytest.approx(first.held_out_error_ * of_y**2, rel=1e-6)
        np.testing.assert_allclose(model.predict(x * of_x), first.predict(x) * of_y, rtol=1e-6, atol=1e-6 * of_y)


@pytest.mark.parametrize("groups", [pytest.param(None, marks=pytest.mark.slow), [0, 0, 1, 1, 1, 2]])
def test_with_a_strength_each_the_units_of_a_column_or_a_group_are_free(groups):
    x, y = small()
    units = np.geomspace(1e-8, 1e8, 6) if groups is None else np.array([1e-6, 1e3, 1e8])[groups]
    first, model = (TunedLasso(per_group=True, groups=groups, **SMALL).fit(a, y) for a in (x, x * units))
    np.testing.assert_allclose(model.alpha_, first.alpha_ * np.unique(units), rtol=1e-6)
    np.testing.assert_allclose(model.coef_ * units, first.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("units", [np.geomspace(1e-3, 1e3, 6), np.geomspace(1e-8, 1e8, 6)])
def test_one_strength_with_columns_of_unequal_units_is_that_of_a_fine_grid(units):
    x, y = small()
    masks = [np.arange(40) % 3 == k for k in range(3)]
    job = lasso_task(x * units, y, masks)
    task = job.task
    result = solve(job.solver, task.problem, *task.start, task.batches, steps=150, key=jax.random.key(0))
    found = task.metrics(result.u, result.v)["held_out_error"]
    splits = [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in masks]
    alphas = job.units.strength * np.geomspace(1e-3, 1, 500)
    grid = LassoCV(cv=splits, alphas=alphas, tol=1e-10, max_iter=100_000).fit(x * units, y)
    assert found <= grid.mse_path_.mean(1).min() * (1 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES[:2], ids=["one", "each"])
def test_float32_and_extreme_sizes(mode):
    x, y = small()
    first = TunedLasso(**SMALL, **mode).fit(x, y)
    for of_x, of_y in [(1.0, 1.0), (1e-30, 1.0), (1e37, 1e-37)]:
        single = TunedLasso(**SMALL, **mode).fit(np.float32(x * of_x), np.float32(y * of_y))
        np.testing.assert_allclose(single.alpha_, first.alpha_ * of_x * of_y, rtol=1e-2)
        np.testing.assert_allclose(single.predict(np.float32(x * of_x)), first.predict(x) * of_y, rtol=1e-3)
    with pytest.raises(InputError, match="X holds a column whose largest value is 1"):
        TunedLasso().fit(np.column_stack([x, np.full(40, 1e200)]), y)


@pytest.mark.slow
def test_targets_that_no_feature_explains_leave_the_mean():
    x, y = np.random.default_rng(5).normal(size=(2, 200, 3))
    model = TunedLasso(**SMALL, per_group=True).fit(x, y[:, 0])
    assert model.held_out_error_ <= 1.02 * y[:, 0].var()
    assert np.abs(model.coef_).max() < 0.15


@pytest.mark.slow
def test_constant_and_repeated_columns():
    x, y = small()
    more = np.column_stack([x, np.full(40, 0.1), np.full(40, 1e9), x[:, 0], np.zeros(40)])
    plain, model = (TunedLasso(**SMALL, per_group=True).fit(a, y) for a in (x, more))
    np.testing.assert_array_equal(model.coef_[[6, 7, 9]], 0)
    assert model.held_out_error_ == pytest.approx(plain.held_out_error_, rel=0.05)
    assert np.isfinite(TunedLasso(groups=[0] * 6 + [1, 1, 0, 2], **SMALL).fit(more, y).alpha_).all()


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, np.full(N, 3.0)),
        (X, np.full(N, 0.1)),
        (np.full((N, 2), 0.1), Y),
        (np.repeat([[1.0], [-1.0]], 30, 0)[:, [0] * 2], np.tile([1.0, -1.0], 30)),
    ],
    ids=["y constant", "y constant but for rounding", "X constant", "nothing in common"],
)
def test_data_that_make_all_strengths_alike_are_refused(x, y):
    masks = [np.arange(len(y)) // 2 % 2 == k for k in range(2)]
    with pytest.raises(InputError, match="No feature varies together with y"):
        lasso_task(x, y, masks)
    coefficients, intercept = fit_lasso(np.ones(1), x, y)
    np.testing.assert_allclose(coefficients, 0, atol=1e-12)
    assert intercept == pytest.approx(y.mean())


def test_wide_data_take_no_matrix_of_features_by_features(monkeypatch):
    sizes = []
    monkeypatch.setattr(lasso_path, "eigh", lambda a, **more: sizes.append(a.shape) or scipy.linalg.eigh(a, **more))
    x, y = small(30, 500)
    masks = [np.arange(30) % 3 == k for k in range(3)]
    job = lasso_task(x, y, masks)
    assert sizes == [(30, 30)]
    splits = [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in masks]
    grid = LassoCV(cv=splits, max_iter=20_000).fit(x, y)
    assert job.grid[1] == pytest.approx(grid.mse_path_.mean(1).min(), rel=2e-3)
    # The rate of 1 that the solver takes is at most one over the Lipschitz constant, and not far below it.
    data = job.task.batches.lower
    roots = np.sqrt(data.train)[:, :, None] * (data.x - data.x_mean[:, None])
    assert 0.5 < np.linalg.norm(roots, 2, (1, 2)).max() ** 2 <= 1


@pytest.mark.parametrize(
    "mode", [MODES[1], pytest.param(MODES[2], marks=pytest.mark.slow)], ids=["lasso", "group lasso"]
)
def test_a_second_fit_compiles_nothing(mode, compilations):
    x, y = small(64)
    TunedLasso(**SMALL, **mode).fit(x, y)
    with compilations() as seen:
        model = TunedLasso(**SMALL, **mode).fit(x[:62] * 3, y[:62] / 7)
    assert seen == []
    assert model.support_.any()


def test_the_estimator_is_pickled_copied_and_cloned():
    x, y = small()
    model = TunedLasso(**SMALL, callbacks=[lambda visit: None]).fit(x, y)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), clone(model).fit(x, y)):
        np.testing.assert_array_equal(other.predict(x), model.predict(x))
        np.testing.assert_array_equal(other.history_.upper_loss, model.history_.upper_loss)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lasso_task(X, Y[:5], HELD), r"y \(5,\)"),
        (lambda: lasso_task(X, Y, HELD[0]), r"held \(120,\)"),
        (lambda: lasso_task(np.where(X > 4, np.nan, X), Y, HELD), "NaN or infinite values"),
        (lambda: lasso_task(X, Y, [np.zeros(N, bool)]), "Fold 0 holds out 0 of 120"),
        (lambda: lasso_task(X, Y, [HELD[0], np.arange(N) > 0]), "Fold 1 holds out 119 of 120"),
        (lambda: lasso_task(X, Y, HELD, groups=GROUPS[:3]), r"groups has shape \(3,\), and X 24 features"),
        (lambda: lasso_task(X, Y, HELD, steps=0), "steps is 0"),
        (lambda: fit_lasso(np.ones(3), X, Y), r"strength has shape \(3,\)"),
        (lambda: fit_lasso(np.zeros(1), X, Y), "must be positive"),
        (lambda: TunedLasso(folds=1).fit(X, Y), "folds is 1, and there are 120 samples"),
        (lambda: TunedLasso(folds=61).fit(X, Y), "between 2 and 60"),
        (lambda: TunedLasso().fit(X, Y, X), "X_val and y_val go together"),
        (lambda: TunedLasso(folds="3").fit(X, Y), "folds is '3'"),
        (lambda: TunedLasso(folds=KFold(3)).fit(X, Y), "folds is KFold"),
        (lambda: TunedLasso(folds=2).fit(X[:3], Y[:3]), "at least 4 are needed"),
        (lambda: TunedLasso(steps=2.5).fit(X, Y), "steps is 2.5"),
        (lambda: TunedLasso(steps=True).fit(X, Y), "steps is True"),
        (lambda: TunedLasso(per_group="yes").fit(X, Y), "per_group is 'yes'"),
        (lambda: TunedLasso(groups=GROUPS[:3]).fit(X, Y), r"groups has shape \(3,\)"),
        (lambda: TunedLasso(groups=3).fit(X, Y), r"groups has shape \(\)"),
        (lambda: TunedLasso(groups=np.where(np.arange(D) < 2, np.nan, 1)).fit(X, Y), "lacks the labels of 2 features"),
        (lambda: TunedLasso(groups=[None, *GROUPS[1:]]).fit(X, Y), "groups is not a list of labels"),
        (lambda: TunedLasso(groups=[[0, 1], [2]]).fit(X, Y), "groups is not a list of labels"),
        (lambda: lasso_task(csr_array(X), Y, HELD), r"X is a sparse matrix.*X.toarray\(\)"),
        (lambda: lasso_task(X.astype(complex), Y, HELD), "X holds complex numbers"),
        (lambda: lasso_task(X.astype(str), Y, HELD), "X holds values that are not numbers"),
        (lambda: lasso_task(np.full((N, D), "a", object), Y, HELD), "X holds values that are not numbers"),
        (lambda: lasso_task([[1.0], [1.0, 2.0]], Y, HELD), "X holds values that are not numbers"),
        (lambda: lasso_task(X[:, 0], Y, HELD), r"X has shape \(120,\), and must be \(samples, features\)"),
        (lambda: lasso_task(X, Y[:, None], HELD), r"y \(120, 1\)"),
        (lambda: lasso_task(X, np.where(Y > 0, np.inf, Y), HELD), "y holds"),
        (lambda: lasso_task(X, Y, []), "held"),
        (lambda: lasso_task(X, Y, np.full((2, N), 2)), "held holds values other than True and False"),
        (lambda: lasso_task(X, Y, "abc"), "held holds values that are not numbers"),
        (lambda: fit_lasso(np.full(1, np.nan), X, Y), "strength holds 1 NaN"),
        (lambda: fit_lasso("a", X, Y), "strength holds values that are not numbers"),
        (lambda: fit_lasso(-np.ones(D), X, Y), "must be positive"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize(
    "change",
    [
        {"X": csr_array(X)},
        {"X": np.where(X > 4, np.nan, X)},
        {"X": X.astype(complex)},
        {"X": X[:, 0]},
        {"X": X[:0], "y": Y[:0]},
        {"X": np.full((N, D), "a")},
        {"y": Y[:5]},
        {"y": Y.astype(complex)},
        {"y": np.full(N, "a")},
        {"y": np.stack([Y, Y], 1)},
        {"y": None},
        {"X_val": X[:, :2], "y_val": Y},
        {"X_val": X, "y_val": Y[:5]},
        {"X_val": pd.DataFrame(X[:9]), "y_val": np.full(9, np.nan)},
    ],
)
def test_malformed_data_end_in_a_sentence(change):
    with pytest.raises((ValueError, TypeError)) as caught:
        TunedLasso(**SMALL).fit(**({"X": X, "y": Y} | change))
    assert isinstance(caught.value, InputError) or "sklearn" in str(caught.traceback[-1].path)


@pytest.mark.parametrize(
    "settings",
    [{"steps": np.int64(4), "random_state": np.random.RandomState(0)}, {"folds": np.int32(3), "random_state": None}],
)
def test_settings_may_be_numpys(settings):
    x, y = small()
    assert TunedLasso(**({"steps": 4, "folds": 3} | settings)).fit(x, y).n_iter_ == 4


@pytest.mark.slow
@parametrize_with_checks([TunedLasso(steps=5, folds=2)])
def test_the_estimator_passes_scikit_learns_checks(estimator, check):
    check(estimator)


# --- bilevax tune --lasso ---------------------------------------------------------------------------------------------


def bilevax_command(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments) -> str:
    result = bilevax_command("tune", "--lasso", *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def houses(seed, n):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(n, 6)), columns=["rooms", "age", "a", "b", "c", "d"])
    frame["street"] = rng.choice(["east", "west", "north"], n)
    frame["price"] = 3 * frame["rooms"] - 2 * frame["age"] + (frame["street"] == "east") + rng.normal(size=n)
    return frame


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where commands without --out write
    paths = [tmp_path / f"{name}.csv" for name in ("train", "validation", "test", "groups")]
    for seed, (path, n) in enumerate(zip(paths[:3], (60, 50, 40), strict=True)):
        houses(seed, n).to_csv(path, index=False)
    groups = pd.DataFrame({"feature": ["rooms", "age", "a", "b", "street"], "group": ["true", "true", "no", "no", "s"]})
    groups.to_csv(paths[3], index=False)
    return paths


def test_the_table_the_files_and_the_chosen_features(files, tmp_path):
    out = tmp_path / "out"
    arguments = ["--validation", files[1], "--test", files[2], "--groups", files[3], "--per-feature", "--out", out]
    result = bilevax_command("tune", files[0], "--target", "price", "--lasso", "--steps", 30, *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "results.json").read_text())
    rows = {row["method"]: row for row in report["methods"]}
    assert list(rows) == [
        "the mean alone",
        "LassoCV",
        "lasso, one strength",
        "lasso, a strength each",
        "group lasso, one strength",
        "group lasso, a strength each",
    ]
    test = pd.read_csv(files[2])
    train = pd.read_csv(files[0])
    frame = pd.read_csv(out / "lasso.csv")
    assert frame["feature"].tolist() == [*test.columns[:6], "street = east", "street = north", "street = west"]
    assert frame["group"].tolist() == ["true", "true", "no", "no", "c", "d", "s", "s", "s"]
    for method, row in list(rows.items())[1:]:
        assert row["chosen"] == (frame[method] != 0).sum()
        assert row["test_error"] < 0.3 * rows["the mean alone"]["test_error"]
        assert method.replace(",", "") in " ".join(result.output.split()).replace(",", "")
    # A line's error, by hand: features on the scale of the training samples.
    x = (test.iloc[:, :6] - train.iloc[:, :6].mean()) / train.iloc[:, :6].std(ddof=0)
    x = np.column_stack([x, *(test["street"] == s for s in ("east", "north", "west"))])
    residual = test["price"] - x @ frame["LassoCV"]
    assert residual.var(ddof=0) <= rows["LassoCV"]["test_error"] <= residual.var(ddof=0) + 0.5
    assert rows["lasso, one strength"]["held_out_error"] <= rows["LassoCV"]["held_out_error"] * 1.001
    assert rows["lasso, a strength each"]["held_out_error"] < rows["lasso, one strength"]["held_out_error"]
    assert {f"{m}, a strength each: strength" for m in ("lasso", "group lasso")} <= set(frame.columns)
    with Image.open(out / "lasso.png") as picture:
        assert picture.width > 800
    assert "street: 3" not in result.output
    assert "One-hot encoded" in result.output


@pytest.mark.slow
def test_without_a_file_it_is_the_diabetes_data(tmp_path):
    result = bilevax_command("tune", "--lasso", "--steps", 20, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "results.json").read_text())
    rows = {row["method"]: row for row in report["methods"]}
    assert report["features"] == 65
    assert rows["lasso, one strength"]["held_out_error"] <= 1.001 * rows["LassoCV"]["held_out_error"]
    assert 2000 < rows["lasso, one strength"]["test_error"] < 4000


def test_it_refuses_in_a_sentence(files, tmp_path):
    train, _, _, groups = files
    assert "has no column 'cost'" in refused(train, "--target", "cost")
    assert "the target holds" in refused(train, "--target", "street")
    assert "--groups is given without TRAIN" in refused("--groups", groups)
    houses(0, 12).to_csv(tmp_path / "few.csv", index=False)
    assert "at least 10 are needed" in refused(tmp_path / "few.csv", "--target", "price")
    houses(0, 40).assign(price=3.0).to_csv(tmp_path / "flat.csv", index=False)
    assert "the target is 3 in all rows" in refused(tmp_path / "flat.csv", "--target", "price")
    houses(0, 40).assign(price=np.inf).to_csv(tmp_path / "inf.csv", index=False)
    assert "'price': 40" in refused(tmp_path / "inf.csv", "--target", "price")
    (tmp_path / "g.csv").write_text("feature,group\nrooms,a\nattic,a\n")
    assert "names columns that the data lack: 'attic'" in refused(
        train, "--target", "price", "--groups", tmp_path / "g.csv"
    )
    (tmp_path / "g.csv").write_text("feature,group\nrooms,a\nrooms,b\n")
    assert "names 'rooms' more than once" in refused(train, "--target", "price", "--groups", tmp_path / "g.csv")
    (tmp_path / "g.csv").write_text("name,of\nrooms,a\n")
    assert "Two are needed: feature, group" in refused(train, "--target", "price", "--groups", tmp_path / "g.csv")
    for option in (["--per-feature"], ["--groups", groups]):
        result = bilevax_command("tune", train, "--target", "street", *option)
        assert result.exit_code == 2
        assert f"{option[0]} is given without --lasso" in result.stderr

"""The tuned linear models: against scikit-learn, its checks, many strengths, and what is refused."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import (
    Lasso,
    LassoCV,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeCV,
)
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from bilevax import InputError
from bilevax.applications.tuning.glm import (
    ElasticNet,
    Poisson,
    Quantile,
    TunedGLM,
    TunedLasso,
    TunedLogisticRegression,
    TunedPoissonRegressor,
    TunedRidge,
    TunedSVC,
    Tweedie,
    curvature,
)

CV_SPLITS = "folds are of rows, so a repeated row is not a row of weight two, as in scikit-learn's CV classes"


def scaled(load):
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.mark.slow
def test_ridge_finds_the_strength_of_ridge_cv():
    X, y = scaled(load_diabetes)
    grid = np.logspace(-2, 4, 121)  # spacing 12%
    other = RidgeCV(grid, cv=5, scoring="neg_mean_squared_error").fit(X, y)
    model = TunedRidge(strengths="scalar").fit(X, y)
    assert abs(np.log(model.alpha_ / other.alpha_)) < 0.12
    np.testing.assert_allclose(model.coef_, Ridge(model.alpha_).fit(X, y).coef_, rtol=1e-6)
    assert model.score(X, y) == pytest.approx(Ridge(model.alpha_).fit(X, y).score(X, y))


def test_lasso_finds_the_strength_of_lasso_cv():
    X, y = scaled(load_diabetes)
    other = LassoCV(cv=5, alphas=200, eps=1e-3, tol=1e-8).fit(X, y)
    model = TunedLasso(strengths="scalar").fit(X, y)
    assert abs(np.log(model.alpha_ / other.alpha_)) < 0.04
    reference = Lasso(model.alpha_, tol=1e-12, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-5, atol=1e-6)
    assert ((model.coef_ == 0) == (reference.coef_ == 0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("load", [pytest.param(load_breast_cancer, marks=pytest.mark.slow), load_wine])
def test_logistic_regression_finds_the_strength_of_logistic_regression_cv(load):
    X, y = scaled(load)
    grid = np.logspace(-2, 3, 26)  # spacing 58%
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = LogisticRegressionCV(Cs=grid, cv=5, scoring="neg_log_loss", tol=1e-8, max_iter=1000).fit(X, y)
    model = TunedLogisticRegression(strengths="scalar").fit(X, y)
    assert abs(np.log(model.alpha_ * float(np.ravel(other.C_)[0]))) < 0.48
    reference = LogisticRegression(C=1 / model.alpha_, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(X), atol=1e-5)


def test_poisson_with_weights_equals_poisson_regressor():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    exposure = rng.uniform(0.2, 3, size=300)
    counts = rng.poisson(exposure * np.exp(0.5 * X[:, 0]))
    model = TunedPoissonRegressor(strengths="scalar").fit(X, counts, exposure=exposure)
    scaled_X = (X - X.mean(0)) / X.std(0)
    # Rates weighted by exposures have the same likelihood; scikit-learn's strength is relative to the sum of weights.
    reference = PoissonRegressor(alpha=model.alpha_ * 300 / exposure.sum(), tol=1e-10, max_iter=10_000)
    reference.fit(scaled_X, counts / exposure, sample_weight=exposure)
    np.testing.assert_allclose(model.coef_ * X.std(0), reference.coef_, atol=1e-5)
    np.testing.assert_allclose(model.predict(X, exposure=exposure), exposure * model.predict(X))
    assert model.score(X, counts, exposure=exposure) > model.score(X, counts)


def many_of_few(rng, n=150, d=60):
    X = rng.normal(size=(n, d))
    return X, X[:, :4] @ np.array([1.0, -1, 1, 1]) + rng.normal(size=n)


def test_a_strength_for_each_feature_is_taken_where_few_features_matter():
    rng = np.random.default_rng(0)
    X, y = many_of_few(rng)
    X_test = rng.normal(size=(4000, 60))
    target = X_test[:, :4] @ np.array([1.0, -1, 1, 1])
    model, scalar = TunedRidge().fit(X, y), TunedRidge(strengths="scalar").fit(X, y)
    assert model.strengths_chosen_ == "feature"
    assert model.alpha_.shape == (60,)
    assert model.alpha_[:4].max() < np.median(model.alpha_[4:])
    errors = [np.mean((one.predict(X_test) - target) ** 2) for one in (model, scalar)]
    assert errors[0] < 0.7 * errors[1]
    assert model.held_out_loss_ < scalar.held_out_loss_
    best = min(model.candidates_, key=lambda c: c.difference)
    assert best.kind == "feature"
    assert best.difference < -2 * best.standard_error


def test_noise_leaves_the_strength_scalar():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(200, 12))
    y = X @ np.full(12, 0.3) + rng.normal(size=200)
    assert TunedRidge().fit(X, y).strengths_chosen_ == "scalar"


def test_a_group_of_encoded_columns_has_one_strength():
    rng = np.random.default_rng(0)
    n = 300
    noise, useful = rng.choice(list("abcdefghij"), n), rng.choice(list("uvwxyz"), n)
    frame = pd.DataFrame({"noise": noise, "useful": useful, "x": rng.normal(size=n)})
    y = 1.5 * (useful < "x") + 0.5 * frame["x"] + rng.normal(size=n)
    encode = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["noise", "useful"]),
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    model = make_pipeline(encode, TunedRidge(strengths="group")).fit(frame, y)[-1]
    assert model.strengths_.shape == (3,)
    names = list(model.feature_names_in_)
    a, u = names.index("noise_a"), names.index("useful_u")
    assert model.alpha_[a] == model.alpha_[a + 1] > 5 * model.alpha_[u]
    labels = ["n"] * 10 + ["u"] * 6 + ["x"]
    same = TunedRidge(strengths="group", groups=labels).fit(encode.fit_transform(frame), y)
    np.testing.assert_allclose(sorted(same.strengths_), sorted(model.strengths_))


def test_group_lasso_drops_whole_groups():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 12))
    y = X[:, 3:6] @ np.array([1.0, 1, -1]) + rng.normal(size=120)
    model = TunedLasso(group_lasso=True, strengths="scalar", groups=np.arange(12) // 3).fit(X, y)
    zero = (model.coef_ == 0).reshape(4, 3)
    assert (zero.all(1) | (~zero).all(1)).all()
    assert not zero[1].any()


def test_classes_have_strengths_of_their_own():
    X, y = scaled(load_iris)
    model = TunedLogisticRegression(strengths="class").fit(X, y)
    assert model.strengths_.shape == (3,)
    assert model.alpha_.shape == (3, 4)
    assert model.predict_proba(X).sum(1) == pytest.approx(np.ones(150))


def test_sparse_and_dense_features_agree():
    rng = np.random.default_rng(0)
    X = sparse.random(200, 30, density=0.2, random_state=0, format="csr")
    y = X.toarray() @ rng.normal(size=30) + 0.1 * rng.normal(size=200)
    dense, thin = TunedRidge(strengths="scalar").fit(X.toarray(), y), TunedRidge(strengths="scalar").fit(X, y)
    assert thin.alpha_ == pytest.approx(dense.alpha_, rel=1e-2)
    np.testing.assert_allclose(thin.coef_, dense.coef_, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(thin.predict(X), thin.predict(X.toarray()))


def test_folds_that_share_their_curvature_find_the_same(monkeypatch):
    X, y = scaled(load_breast_cancer)
    apart = TunedLogisticRegression(strengths="feature", cv=ShuffleSplit(3, test_size=0.3, random_state=0)).fit(X, y)
    monkeypatch.setattr(curvature, "LARGE", 0.0)
    shared = clone(apart).fit(X, y)
    np.testing.assert_allclose(shared.alpha_, apart.alpha_, rtol=1e-3)
    np.testing.assert_allclose(shared.coef_, apart.coef_, rtol=1e-3, atol=1e-4)


def test_units_of_features_change_units_of_coefficients_alone():
    X, y = scaled(load_diabetes)
    unit = np.logspace(-4, 4, X.shape[1])
    model, other = TunedRidge().fit(X, y), TunedRidge().fit(X * unit + 3, y)
    np.testing.assert_allclose(other.coef_ * unit, model.coef_, rtol=1e-5)
    np.testing.assert_allclose(other.strengths_, model.strengths_, rtol=1e-4)


def test_rows_of_weight_zero_are_left_out():
    X, y = scaled(load_diabetes)
    weight = np.r_[np.ones(300), np.zeros(len(y) - 300)]
    model = TunedRidge(strengths="scalar").fit(X, y, sample_weight=weight)
    other = TunedRidge(strengths="scalar").fit(X[:300], y[:300])
    np.testing.assert_allclose(model.coef_, other.coef_, rtol=1e-6)
    assert model.score(X, y, sample_weight=weight) == pytest.approx(other.score(X[:300], y[:300]))


def test_quantile_covers_its_part():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 3))
    y = X[:, 0] + (1 + (X[:, 1] > 0)) * rng.normal(size=600)
    model = TunedGLM(Quantile(0.9)).fit(X, y)
    assert np.mean(y < model.predict(X)) == pytest.approx(0.9, abs=0.02)


def test_huber_ignores_outliers():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    y = X[:, 0] + 0.1 * rng.normal(size=200)
    y[:10] += 50
    huber, ridge = TunedGLM("huber").fit(X, y), TunedRidge().fit(X, y)
    truth = np.array([1.0, 0, 0])
    assert np.abs(huber.coef_ - truth).max() < 0.1 < np.abs(ridge.coef_ - truth).max()


def test_attributes():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    model = TunedGLM(scoring="r2", cv=KFold(4, shuffle=True, random_state=0)).fit(X, y)
    assert model.n_features_in_ == 10
    assert list(model.feature_names_in_) == list(X.columns)
    assert model.cv_scores_.shape == (4,)
    assert 0.3 < model.cv_scores_.mean() < 0.6
    results = model.cv_results_
    best = int(np.argmin(results["rank_test_score"]))
    assert results["mean_test_score"][best] == pytest.approx(-model.history_.held_out_loss[: len(model.alphas_)].min())
    assert results["split3_test_score"].shape == model.alphas_.shape
    assert len(model.history_.strengths) == model.n_iter_
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert is_regressor(model)
    assert is_classifier(TunedGLM("logistic"))
    assert clone(model).get_params()["scoring"] == "r2"


def test_warm_start_takes_fewer_evaluations_to_the_same_strength():
    X, y = scaled(load_breast_cancer)
    model = TunedLogisticRegression(strengths="scalar", warm_start=True).fit(X, y)
    first, alpha = model.n_iter_, model.alpha_
    model.fit(X, y)
    assert model.n_iter_ < first
    assert model.alpha_ == pytest.approx(alpha, rel=5e-3)


@pytest.mark.slow
def test_grid_search_and_jobs():
    X, y = scaled(load_iris)
    search = GridSearchCV(TunedSVC(strengths="scalar"), {"cv": [3, 5]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_score_ > 0.9
    assert cross_val_score(TunedRidge(strengths="scalar"), *scaled(load_diabetes)).mean() > 0.4


def test_splitters_get_their_groups():
    X, y = scaled(load_diabetes)
    groups = np.arange(len(y)) // 10
    pairs = list(GroupKFold(4).split(X, y, groups))
    model = TunedRidge(strengths="scalar", cv=GroupKFold(4)).fit(X, y, groups=groups)
    assert model.alpha_ == pytest.approx(TunedRidge(strengths="scalar", cv=pairs).fit(X, y).alpha_)


def test_metadata_are_routed():
    rng = np.random.default_rng(0)
    X, years = rng.normal(size=(60, 3)), rng.uniform(0.5, 2, size=60)
    y, w, groups = rng.poisson(years * np.exp(0.3 * X[:, 0])), rng.uniform(0.5, 2, size=60), np.arange(60) % 12
    with config_context(enable_metadata_routing=True):
        model = TunedPoissonRegressor(strengths="scalar", cv=GroupKFold(3))
        model.set_fit_request(sample_weight=True, groups=True, exposure="years")
        model.set_score_request(sample_weight=True, exposure="years")
        piped = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
        given = {"sample_weight": w, "groups": groups, "years": years}
        found = cross_validate(piped, X, y, params=given, cv=GroupKFold(2), return_estimator=True)
        for train, test in GroupKFold(2).split(X, y, groups):
            scaler = StandardScaler().fit(X[train])
            own = {"sample_weight": w[train], "groups": groups[train], "exposure": years[train]}
            by_hand = clone(model).fit(scaler.transform(X[train]), y[train], **own)
            score = by_hand.score(scaler.transform(X[test]), y[test], w[test], years[test])
            assert np.isclose(found["test_score"], score, rtol=1e-9).sum() == 1
        with pytest.raises(UnsetMetadataPassedError):
            cross_validate(TunedRidge(), X, y, params={"sample_weight": w})


def test_one_hold_out_set():
    X, y = scaled(load_breast_cancer)
    model = TunedLogisticRegression(cv=0.25).fit(X, y)
    assert model.score(X, y) > 0.96
    one = TunedLogisticRegression(strengths="scalar", cv=ShuffleSplit(1, test_size=0.3, random_state=0)).fit(X, y)
    assert one.score(X, y) > 0.96


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        TunedRidge(),
        TunedRidge(strengths="scalar"),
        TunedLasso(strengths="scalar"),
        TunedLogisticRegression(strengths="scalar"),
        TunedSVC(strengths="scalar"),
        TunedGLM(Tweedie(1.5), strengths="scalar"),
    ],
    ids=repr,
)
def test_scikit_learns_checks(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(model, on_fail=None, on_skip=None)
    failed = {r["check_name"] for r in results if r["status"] == "failed"}
    assert len(results) > 50
    assert not {name for name in failed if "sample_weight_equivalence" not in name}, CV_SPLITS


RNG = np.random.default_rng(0)
X10 = RNG.normal(size=(40, 5))
Y10 = RNG.normal(size=40)
COUNTS = RNG.poisson(2, size=40)
CLASSES = np.arange(40) % 2


def refused(*, model=None, X=X10, y=Y10, match, **fit):
    with pytest.raises(InputError, match=match):
        (model or TunedRidge()).fit(X, y, **fit)


def test_bad_input():
    refused(model=TunedPoissonRegressor(), y=COUNTS - 1, match=r"negative values, for example -1.*counts 0, 1, 2")
    refused(model=TunedPoissonRegressor(), y=COUNTS + 0.5, match=r"fractions.*exposure=")
    refused(model=TunedPoissonRegressor(), y=0 * COUNTS, match="zero for all samples")
    refused(model=TunedGLM("gamma"), y=COUNTS, match="not positive")
    refused(model=TunedGLM(groups=[[0, 1], [1, 2, 3, 4]]), match="groups overlap: column 1 is in groups 0 and 1")
    refused(model=TunedGLM(groups=[[0, 1], [2, 4]]), match="leave out 1 of 5 columns: 3")
    refused(model=TunedGLM(groups=[[0, 1], [2, 9]]), match="names the column 9")
    refused(model=TunedGLM(groups=[0, 1]), match="groups holds 2 entries, and X 5 columns")
    refused(model=TunedGLM(groups=[[0, 1], [2, 3, 4.5]]), match=r"names the column 4\.5")
    refused(model=TunedGLM(groups=3), match="groups is 3. Pass a label for each column")
    refused(model=TunedGLM(groups=["a", "a", None, "b", "b"]), match="groups holds a missing label")
    refused(model=TunedGLM(cv=GroupKFold(3)), groups=np.zeros(50), match=r"groups has shape \(50,\), and X 40 samples")
    refused(model=TunedGLM(loss="mse"), match="loss is 'mse'. Pass one of 'squared'")
    refused(model=TunedGLM(penalty="ridge"), match="penalty is 'ridge'")
    refused(model=TunedGLM(strengths="all"), match="strengths is 'all'")
    refused(model=TunedGLM(strengths="class"), match="strengths is 'class'")
    refused(model=TunedGLM(cv=41), match="cv is 41 folds, and there are n_samples=40")
    refused(model=TunedGLM(cv=1), match="at least 2 folds")
    refused(model=TunedGLM(cv="five"), match="cv is 'five'")
    refused(model=TunedGLM(cv=KFold), match="cv is the class KFold")
    refused(model=TunedGLM(cv=[(np.arange(40), [40])]), match="pairs of arrays of indices from 0 to 39")
    refused(model=TunedGLM(cv=[]), match="cv holds no folds")
    refused(model=TunedGLM(fit_intercept="no"), match="fit_intercept is 'no'")
    refused(y=np.where(Y10 > 0, "a", "b"), match=r"y holds the text '[ab]'.*TunedLogisticRegression")
    refused(y=pd.date_range("2020", periods=40), match="y holds dates or durations, and a regressor needs numbers")
    refused(model=TunedGLM(scoring="r_2"), match="scoring is 'r_2', and must be .* Did you mean 'r2'")
    refused(model=TunedGLM(scoring=["r2"]), match=r"scoring is \['r2'\], and must be a function")
    refused(model=TunedGLM(scoring="accuracy"), match="scoring is 'accuracy', which cannot score .* for quantities")
    refused(column_names=["a"], match="column_names holds 1 names, and X 5 columns")
    refused(sample_weight=np.zeros(40), match="zero for all samples")
    refused(sample_weight=-np.ones(40), match="40 negative values")
    refused(sample_weight=np.arange(40) == 7, match="zero but for sample 7")
    refused(sample_weight=np.where(np.arange(40) == 7, 1e12, 1e-9), match="sample_weight is on sample 7 alone")
    refused(sample_weight=np.ones(39), match=r"shape \(39,\), and X 40 samples")
    refused(exposure=np.ones(40), match="no log link")
    refused(model=TunedPoissonRegressor(), y=COUNTS, offset=np.full(40, 1e3), match="holds 1000, and the mean")
    refused(y=Y10 * 1e200, match="y holds a column whose largest value")
    refused(model=TunedPoissonRegressor(), y=COUNTS, exposure=np.zeros(40), match="not positive")
    refused(
        model=TunedLogisticRegression(cv=KFold(2)), y=np.arange(40) // 20, match="trains without samples of the class"
    )
    refused(model=TunedLogisticRegression(), y=np.r_[0, np.ones(39, int)], match="one sample")
    refused(model=TunedLogisticRegression(), y=np.ones(40), match="one class only")
    with pytest.raises(InputError, match=r"q is 1\.5"):
        Quantile(1.5)
    with pytest.raises(InputError, match="power is 3"):
        Tweedie(3)
    with pytest.raises(InputError, match="ratio is 0"):
        ElasticNet(0)


def test_rates_weighted_by_exposures_are_counts():
    exposure = RNG.uniform(0.5, 2, size=40)
    model = TunedGLM(Poisson(), strengths="scalar").fit(X10, COUNTS / exposure, sample_weight=exposure)
    assert np.isfinite(model.coef_).all()


def test_constant_columns_are_named_and_get_zero():
    X = pd.DataFrame(X10, columns=list("abcde")).assign(c=3.0)
    with pytest.warns(UserWarning, match=r"1 constant column \('c'\): its coefficient is 0"):
        model = TunedRidge().fit(X, X["a"] + Y10)
    assert model.coef_[2] == 0
    with pytest.warns(UserWarning, match="1 constant column"):
        TunedRidge().fit(sparse.csr_matrix(X.to_numpy()), X["a"] + Y10)
    with pytest.warns(UserWarning, match=r"1 constant column \('c'\)"):
        model = TunedRidge().fit(X.to_numpy(), X["a"] + Y10, column_names=list(X))
    assert not hasattr(model, "feature_names_in_")  # it predicts arrays


def test_equal_columns_are_named():
    X = pd.DataFrame(X10, columns=list("abcde")).assign(d=X10[:, 1])
    with pytest.warns(UserWarning, match="equal columns \\('b' and 'd'\\)"):
        model = TunedRidge(strengths="scalar").fit(X, X["b"] + Y10)
    assert model.coef_[1] == pytest.approx(model.coef_[3])


def test_fewer_folds_than_asked_are_told():
    y = np.r_[np.zeros(37), np.ones(3)]
    with pytest.warns(UserWarning, match="The rarest class of y has 3 samples, so there are 3 folds and not 5"):
        TunedLogisticRegression(strengths="scalar").fit(X10, y)


def test_a_strength_at_its_bound_is_told():
    X = np.linspace(-1, 1, 40)[:, None]
    with pytest.warns(UserWarning, match=r"classes may be separable. The strength .* is at its lower bound"):
        TunedLogisticRegression().fit(X[np.abs(X[:, 0]) > 0.1], (X[np.abs(X[:, 0]) > 0.1, 0] > 0).astype(int))


def test_a_constant_target_has_no_slope():
    model = TunedRidge().fit(X10, np.full(40, 1e6))
    assert model.intercept_ == pytest.approx(1e6)
    assert np.abs(model.coef_).max() == 0


def test_metadata_requests_are_pickled():
    groups = np.arange(40) % 8
    with sklearn.config_context(enable_metadata_routing=True):
        model = TunedRidge(cv=GroupKFold(4)).set_fit_request(groups=True).fit(X10, Y10, groups=groups)
        loaded = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(loaded.predict(X10), model.predict(X10))
        assert loaded.get_metadata_routing().fit.requests["groups"] is True
        routed = cross_validate(model, X10, Y10, params={"groups": groups}, cv=GroupKFold(2), error_score="raise")
    assert len(routed["test_score"]) == 2

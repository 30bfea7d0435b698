"""`bilevax tune`: the kind of target, the files it writes, what `bilevax predict` makes of its model, and refusals."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from typer.testing import CliRunner

import bilevax
from bilevax import cli
from bilevax.applications.tuning import TunedGLM, TunedPoissonRegressor
from bilevax.data.samples.targets import kind_of
from bilevax.saved import load_model, save_model

FILES = [".bilevax", "importance.png", "model", "path.png", "results.json", "strengths.csv"]


def command(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def done(*arguments) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def refused(*arguments) -> str:
    result = command("tune", *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def houses(n=150, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    size, town, age = rng.normal(100, 30, n), rng.choice(["Alm", "Bad", "Cham"], n), rng.uniform(0, 80, n)
    price = 3 * size + 90.0 * (town == "Bad") - 0.2 * age + rng.normal(0, 20, n)
    return pd.DataFrame({"size": size, "town": town, "age": age, "noise": rng.normal(size=n), "price": price.round(2)})


@pytest.fixture
def table(tmp_path):
    def written(frame, name="table.csv"):
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return written


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([1, 2] * 20), "classes"),
        (np.repeat([1, 2, 3, 4, 5], 20), "classes"),
        (np.arange(0, 100, 1.0), "quantity"),
        (np.random.default_rng(0).poisson(2.0, 300), "counts"),
        (np.random.default_rng(0).negative_binomial(1, 0.05, 300), "counts"),
        (np.random.default_rng(0).integers(0, 10, 500), "classes"),
        (np.random.default_rng(0).integers(-5, 300, 500), "quantity"),
        (load_diabetes().target, "quantity"),
        (np.array([0.1, 2.0, 3.0]), "quantity"),
    ],
)
def test_the_kind_of_target(values, kind):
    assert kind_of(np.asarray(values, float))[0] == kind


def test_a_quantity_with_a_column_of_text(tmp_path, table):
    frame, out = houses(), tmp_path / "out"
    path = table(frame)
    text = done("tune", path, "--target", "price", "--strengths", "group", "--out", out)
    assert "'price' is taken for a quantity (it has fractions): squared loss" in text
    assert sorted(p.name for p in out.iterdir()) == FILES
    strengths = pd.read_csv(out / "strengths.csv")
    assert set(strengths["column"]) == {"size", "town", "age", "noise"}
    assert strengths.groupby("column")["strength"].nunique().eq(1).all()  # one for the three columns of town
    assert strengths["strength"].nunique() == 4
    by_name = strengths.set_index("feature")
    assert by_name.loc["size", "coefficient"] == pytest.approx(3, abs=0.2)
    assert strengths["feature"].iloc[0] == "size"
    report = json.loads((out / "results.json").read_text())
    (found,) = report["data_sets"]
    assert (found["strengths_chosen"], found["columns"], found["features"]) == ("group", 4, 6)
    assert found["nested"]["held_out_loss"] == pytest.approx(200, rel=0.2)  # half the variance of the noise
    assert f"loss {found['nested']['held_out_loss']:.5g}" in text
    assert min(found["nested"]["score_of_folds"]) > 0.9
    assert report["versions"]["bilevax"] == bilevax.__version__
    new = houses(20, seed=1)
    done("predict", out / "model", table(new.drop(columns="price"), "new.csv"), "--out", tmp_path / "p.csv")
    predicted = pd.read_csv(tmp_path / "p.csv")["predicted"]
    assert np.sqrt(((predicted - new["price"]) ** 2).mean()) < 30
    by_hand = by_name["coefficient"].drop(["size", "age", "noise"])
    change = new.assign(town="Bad"), new.assign(town="Alm")
    a, b = (load_model(out / "model").predict(x.drop(columns="price")).table["predicted"] for x in change)
    np.testing.assert_allclose(a - b, by_hand["town = Bad"] - by_hand["town = Alm"], rtol=1e-4)


@pytest.mark.slow
def test_classes_with_a_rare_one(tmp_path, table):
    rng = np.random.default_rng(0)
    kind = np.array(["ash", "elm", "oak"])[np.arange(120) % 3]
    X = rng.normal(size=(120, 3)) + 2 * (kind[:, None] == ["ash", "elm", "none"])
    frame = pd.DataFrame(X, columns=list("abc")).assign(kind=kind)
    frame.loc[[3, 8], "kind"] = "fir"
    out = tmp_path / "out"
    text = done("tune", table(frame), "--target", "kind", "--strengths", "scalar", "--out", out)
    assert "left out: 'fir' (2 samples)" in text
    report = json.loads((out / "results.json").read_text())["data_sets"][0]
    assert report["classes"] == ["ash", "elm", "oak"]
    assert set(report["nested"]["strengths_of_folds"]) == {"scalar"}
    done("predict", out / "model", tmp_path / "table.csv", "--out", tmp_path / "p.csv")
    found = pd.read_csv(tmp_path / "p.csv")
    assert found.filter(like="probability").columns.tolist() == [f"probability: {k}" for k in ("ash", "elm", "oak")]
    assert (found["predicted_label"] == frame["kind"]).mean() > 0.7


def test_counts_with_an_exposure(tmp_path, table):
    rng = np.random.default_rng(0)
    x, years = rng.normal(size=400), rng.uniform(0.5, 3, 400)
    frame = pd.DataFrame({"x": x, "years": years, "claims": rng.poisson(years * np.exp(0.5 * x - 0.5))})
    out = tmp_path / "out"
    text = done("tune", table(frame), "--target", "claims", "--exposure", "years", "--out", out)
    assert "is taken for counts" in text
    strengths = pd.read_csv(out / "strengths.csv")
    assert strengths["feature"].tolist() == ["x"]
    found = load_model(out / "model")
    assert found.task == "counts"
    ours = TunedPoissonRegressor("scalar").fit(x[:, None], frame["claims"], exposure=years)
    assert strengths["coefficient"][0] == pytest.approx(ours.coef_[0], rel=0.15)
    rate = found.predict(frame.drop(columns="claims")).table["predicted"]
    np.testing.assert_allclose(rate, ours.predict(x[:, None]), rtol=0.15)


def test_one_strength_is_that_of_a_ridge_by_hand(tmp_path, table):
    frame = houses().drop(columns="town")
    out = tmp_path / "out"
    options = ("--strengths", "scalar", "--compare", "--trials", 3, "--out", out)
    text = done("tune", table(frame), "--target", "price", *options)
    (report,) = json.loads((out / "results.json").read_text())["data_sets"]
    assert list(report["comparison"]) == ["RidgeCV", "random search", "Bayesian search, TPE"]
    assert abs(report["comparison"]["RidgeCV"]["difference_from_tuned"]) < 0.5
    for name, row in report["comparison"].items():
        assert f"{name} │ {row['held_out_loss']:.5g} ±" in text
    found = pd.read_csv(out / "strengths.csv").set_index("feature").loc[["size", "age", "noise"]]
    X = frame[["size", "age", "noise"]].to_numpy()
    X = (X - X.mean(0)) / X.std(0)
    ridge = Ridge(found["strength"].iloc[0]).fit(X, frame["price"])
    np.testing.assert_allclose(found["coefficient"] * frame[list(found.index)].std(ddof=0), ridge.coef_, rtol=1e-4)


def test_saved_estimators_predict_the_same_bits(tmp_path):
    X, y = load_diabetes(return_X_y=True)
    for i, model in enumerate((TunedGLM("quantile", "elastic_net", "scalar"), TunedGLM("huber", strengths="feature"))):
        model.fit(X[:150], y[:150])
        save_model(tmp_path / str(i), model)
        np.testing.assert_array_equal(load_model(tmp_path / str(i)).predict(X), model.predict(X))


@pytest.mark.slow
def test_the_demonstration(tmp_path):
    text = done("tune", "--out", tmp_path)
    assert "'progression' is taken for a quantity" in text
    assert "'diagnosis' is taken for classes" in text
    sets = json.loads((tmp_path / "results.json").read_text())["data_sets"]
    assert np.mean(sets[0]["nested"]["score_of_folds"]) > 0.47
    assert np.mean(sets[1]["nested"]["score_of_folds"]) > 0.97
    done("predict", tmp_path / "diabetes" / "model", tmp_path / "diabetes" / "data.csv", "--out", tmp_path / "p.csv")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_options_that_need_others(tmp_path, table):
    out = ("--out", tmp_path / "out")
    for name in ("--target", "--weight", "--exposure", "--drop"):
        assert f"{name} is given without FILE" in refused(name, "x", *out)
    assert "--loss is given without FILE" in refused("--loss", "poisson", *out)
    path = table(houses())
    assert "needs --target" in refused(path, *out)
    assert "--quantile is an option of --loss quantile" in refused(path, "--target", "price", "--quantile", 0.9, *out)
    assert "--trials is an option of the comparison" in refused(path, "--target", "price", "--trials", 9, *out)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.rename(columns={"price": "prise"}), (), "Did you mean 'prise'"),
        (lambda f: f.assign(price="a"), (), "one class only"),
        (lambda f: f.assign(price=3.5), ("--loss", "squared"), "is 3.5 in all records"),
        (lambda f: f.assign(price=f["town"]), ("--loss", "squared"), "holds words, such as"),
        (lambda f: f, ("--loss", "poisson"), "the target 'price' holds 150 fractions, for example"),
        (lambda f: f, ("--loss", "poisson"), "the exposure as --exposure COLUMN; for amounts choose --loss gamma"),
        (
            lambda f: f.assign(price=-f["price"]),
            ("--loss", "gamma"),
            "the target 'price' holds 150 values that are not",
        ),
        (lambda f: f.head(8), (), "at least 10 are needed"),
        (lambda f: f[["price"]], (), "has no column that can be used"),
        (lambda f: f, ("--weight", "town"), "holds no number in"),
        (lambda f: f, ("--exposure", "noise", "--loss", "gamma"), "must be positive"),
        (lambda f: f.assign(w=0.0), ("--weight", "w"), "0 samples with a target and a positive weight"),
        (
            lambda f: f.assign(w=1 * (f.index == 3)),
            ("--weight", "w"),
            "has 1 sample with a target and a positive weight",
        ),
        (lambda f: f.assign(w=-1), ("--weight", "w"), "column 'w' (--weight) must be at least zero, and holds -1"),
        (lambda f: f, ("--weight", "v"), "has no column 'v' (--weight)"),
        (lambda f: f, ("--exposure", "price"), "--exposure and --target both name 'price'"),
        (lambda f: f, ("--strengths", "class"), "--strengths class needs three classes or more"),
        (lambda f: f[["age", "price"]], ("--strengths", "group"), "needs two columns or more"),
        (lambda f: f, ("--strengths", "feature", "--penalty", "group_lasso"), "--strengths is feature"),
        (lambda f: f, ("--exposure", "age"), "--exposure is an option of the losses poisson, gamma and tweedie"),
        (lambda f: f, ("--loss", "quantile", "--quantile", 1), "--quantile is 1, and must be a number between 0 and 1"),
        (lambda f: f, ("--folds", 80), "at least 160 are needed for 80 folds"),
    ],
)
def test_tables_that_will_not_do(tmp_path, table, change, options, message):
    path = table(change(houses()))
    assert message in refused(path, "--target", "price", *options, "--out", tmp_path / "out")


@pytest.mark.slow
def test_rows_of_weight_zero_are_left_out_and_equal_columns_are_named(tmp_path, table):
    frame = houses()
    weight = (np.arange(150) % 3 > 0).astype(float)
    path = table(frame.assign(copy=frame["age"], w=weight).drop(columns="town"))
    options = ("--weight", "w", "--strengths", "scalar", "--out", tmp_path / "out")
    with pytest.warns(UserWarning, match="equal columns \\('age' and 'copy'\\)"):
        text = done("tune", path, "--target", "price", *options)
    assert "Rows of weight zero are left out: 50 of 150." in text
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data_sets"][0]["samples"] == 100
    done("predict", tmp_path / "out" / "model", path, "--out", tmp_path / "p.csv")


@pytest.mark.slow
def test_a_sorted_file_is_shuffled_before_it_is_split(tmp_path, table):
    frame = houses().sort_values("price")
    done("tune", table(frame), "--target", "price", "--strengths", "scalar", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["data_sets"][0]
    assert min(found["nested"]["score_of_folds"]) > 0.9


@pytest.mark.slow
def test_a_run_that_a_signal_ends_continues(tmp_path, table, monkeypatch):
    from bilevax.applications.tuning import comparison

    path = table(houses())
    arguments = ("tune", path, "--target", "price", "--compare", "--trials", 2)
    done(*arguments, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "SearchedGLM", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(*arguments, "--out", tmp_path / "ended").exit_code == 130
    done(*arguments, "--out", tmp_path / "ended", "--resume")
    tables = [pd.read_csv(tmp_path / name / "strengths.csv") for name in ("whole", "ended")]
    pd.testing.assert_frame_equal(*tables)
    nested = [
        json.loads((tmp_path / name / "results.json").read_text())["data_sets"][0]["nested"]["held_out_loss"]
        for name in ("whole", "ended")
    ]
    assert nested[0] == nested[1]

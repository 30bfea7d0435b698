"""The audit of a training pipeline: its figures, its files and its refusals."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from typer.testing import CliRunner

from bilevax import InputError, cli
from bilevax.applications.poisoning import audit
from bilevax.applications.poisoning.audit import _warn_of_a_weak_model
from bilevax.applications.poisoning.estimators import seeded
from bilevax.applications.poisoning.jobs import job_from_files
from bilevax.data import digits
from bilevax.nn import Training, mlp

D = digits()
X, Y = D.x_train[:250] / 255, D.y_train[:250].astype(int)
X_VAL, Y_VAL = D.x_test[:200] / 255, D.y_test[:200].astype(int)
SMALL = {"levels": 2, "seeds": 2, "steps": 60, "training": Training(steps=300, rate=5e-2, l2=1e-2)}


@pytest.fixture(scope="module")
def report():
    return audit(X, Y, X_VAL, Y_VAL, budget=0.08, **SMALL, key=jax.random.key(0))


def test_the_attack_costs_more_than_wrong_labels_do(report):
    np.testing.assert_allclose(report.fractions, [0.04, 0.08])
    assert report.attacked.shape == report.flipped.shape == (2, 2)
    lost, _ = report.lost(report.attacked)
    careless, _ = report.lost(report.flipped)
    assert lost[1] > careless[1] + 0.03
    assert lost[1] > lost[0]
    assert report.held_out == 100


def test_the_interval_is_students(report):
    mean, width = report.lost(report.attacked)
    lost = report.clean - report.attacked
    low, high = stats.t.interval(0.95, 1, loc=lost[1].mean(), scale=stats.sem(lost[1]))
    assert mean[1] - width[1] == pytest.approx(low)
    assert mean[1] + width[1] == pytest.approx(high)


def test_how_visible_the_points_are(report):
    x, base = report.points.x.reshape(20, -1), report.base.reshape(20, -1)
    np.testing.assert_allclose(report.l2, np.linalg.norm(x - base, axis=1), rtol=1e-5)
    np.testing.assert_allclose(report.l_inf, np.abs(x - base).max(1), rtol=1e-5)
    flat = X.reshape(len(X), -1)
    nearest = np.linalg.norm(x[:, None] - flat[None], axis=2).min(1)
    np.testing.assert_allclose(report.nearest, nearest, rtol=1e-4)
    others = np.linalg.norm(flat[:, None] - flat[None], axis=2) + 1e9 * np.eye(len(flat))
    assert report.usual_nearest == pytest.approx(np.median(others.min(1)), rel=1e-4)
    assert (report.points.y != report.base_labels).all()
    assert x.min() >= X.min() - 1e-6
    assert x.max() <= X.max() + 1e-6


@pytest.mark.slow
def test_labels_units_and_model_are_the_users():
    names = np.array(["zero", "one"])
    two = Y < 2
    few, val = two.nonzero()[0], (Y_VAL < 2).nonzero()[0]
    found = audit(
        50 * X[few] - 7,
        names[Y[few]],
        50 * X_VAL[val] - 7,
        names[Y_VAL[val]],
        model=lambda classes: mlp(classes, (8,)),
        budget=0.1,
        levels=1,
        seeds=1,
        steps=20,
        key=jax.random.key(0),
    )
    assert set(found.points.y) == set(names)  # attacked samples of both classes, by their names
    assert found.points.x.min() >= -7.001
    assert found.points.x.max() > 5  # in the units of X, not scaled
    assert np.isnan(found.lost(found.attacked)[1]).all()


BRIEF = {"levels": 1, "seeds": 1, "steps": 1, "key": jax.random.key(0)}


def halves(load):
    data = load()
    return train_test_split(data.data, data.target, stratify=data.target, random_state=0, test_size=0.5)


@pytest.mark.parametrize(
    ("load", "least"),
    [
        pytest.param(load_wine, 0.95, marks=pytest.mark.slow),
        pytest.param(load_breast_cancer, 0.95, marks=pytest.mark.slow),
    ],
    ids=["wine", "cancer"],
)
def test_raw_columns_are_scaled_one_by_one(load, least):
    """The accuracy without points was 33% and 37% where all columns had one scale; logistic regression's is 98%."""
    x, x_val, y, y_val = halves(load)
    found = audit(x, y, x_val, y_val, **BRIEF)
    assert found.clean.mean() > least
    assert found.majority == pytest.approx(np.bincount(y_val).max() / len(y_val), abs=0.02)
    assert found.logistic > 0.95
    # Within the columns' ranges; points and bases in the units of X, distances in units of the ranges.
    both = np.concatenate([x, x_val])
    low, scale = both.min(0), np.ptp(both, 0)
    assert (found.points.x >= low - 1e-9 * scale).all()
    assert (found.points.x <= both.max(0) + 1e-9 * scale).all()
    np.testing.assert_allclose(found.l2, np.linalg.norm((found.points.x - found.base) / scale, axis=1), rtol=1e-6)
    if load is load_breast_cancer:
        return
    # The units of a column do not matter.
    units = 10.0 ** np.arange(-6, x.shape[1] - 6)
    other = audit(x * units, y, x_val * units, y_val, **BRIEF)
    np.testing.assert_allclose(other.clean, found.clean)
    np.testing.assert_allclose(other.l2, found.l2, rtol=1e-4)


@pytest.mark.slow
def test_a_constant_column_is_left_alone():
    x, x_val, y, y_val = halves(load_wine)
    add = lambda a: np.column_stack([a, np.full(len(a), 7.0)])  # noqa: E731
    found = audit(add(x), y, add(x_val), y_val, **BRIEF)
    np.testing.assert_array_equal(found.points.x[:, -1], 7)
    assert found.clean.mean() > 0.95


@pytest.mark.parametrize(
    ("clean", "majority", "logistic", "sentence"),
    [
        (0.80, 0.3, 0.86, r"of 80\.0% on the held-out samples; scikit-learn's logistic regression has 86\.0%"),
        (0.33, 0.3, 0.33, r"hardly more than the 30\.0% of always predicting the most frequent class"),
        (0.972, 0.97, 0.97, r"hardly more than the 97\.0%"),
        (0.82, 0.3, 0.86, None),
        (0.98, 0.97, 0.98, None),
    ],
)
def test_a_weak_model_is_warned_of(report, clean, majority, logistic, sentence):
    changed = dataclasses.replace(report, clean=np.array([clean]), majority=majority, logistic=logistic)
    if sentence is None:
        _warn_of_a_weak_model(changed)
    else:
        with pytest.warns(UserWarning, match=sentence):
            _warn_of_a_weak_model(changed)


@pytest.mark.slow
def test_columns_that_say_nothing_are_warned_of():
    x, x_val = np.random.default_rng(0).normal(size=(2, 90, 3))
    y = np.arange(90) % 3
    with pytest.warns(UserWarning, match=r"of always predicting the most frequent class"):
        audit(x, y, x_val, y, **BRIEF, training=Training(steps=1))


REFUSED = {
    "no budget": ({"budget": 0.0}, "budget is 0, and must be above 0 and at most 0.5"),
    "too large": ({"budget": 0.7}, r"budget is 0\.7, and must be above 0"),
    "less than a sample": ({"budget": 0.001}, "less than one sample. Raise it"),
    "levels": ({"levels": 0}, "levels is 0"),
    "unknown label": ({"y_val": Y_VAL + 1}, "y_val has labels that y lacks: 10"),
    "few": ({"y_val": np.where(Y_VAL == 3, 4, Y_VAL)}, "fewer than two samples of class 3"),
    "shape": ({"X_val": X_VAL[:, :4]}, "Give both the same features"),
    "one class": ({"y": 0 * Y}, "one class only"),
    "not finite": ({"X": X * np.nan}, "NaN or infinite"),
    "budget of text": ({"budget": "much"}, "budget is 'much', and must be a number"),
    "training": ({"training": 5}, "training is 5"),
    "solver": ({"solver": lambda steps: None}, "solver is None, which is not a solver"),
    "constant": ({"X": 0 * X, "X_val": 0 * X_VAL}, "nothing to learn from"),
}


@pytest.mark.parametrize(("change", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_a_sentence(change, sentence):
    arguments = {"X": X, "y": Y, "X_val": X_VAL, "y_val": Y_VAL, "seeds": 1, "steps": 1} | change
    with pytest.raises(InputError, match=sentence):
        audit(**arguments, key=jax.random.key(0))


def run(*arguments):
    return CliRunner().invoke(cli.app, ["audit", *map(str, arguments)])


QUICK = ("--levels", 1, "--seeds", 2, "--steps", 30)


@pytest.mark.slow
def test_the_command_ended_by_a_signal_and_resumed_writes_what_it_says(tmp_path, ended_early):
    np.savez(tmp_path / "mine.npz", X=(255 * X).astype(np.uint8), y=Y)
    command = [tmp_path / "mine.npz", *QUICK, "--out", tmp_path / "out"]
    ended_early(["audit", *command], 33)  # in the second trial
    result = run(*command, "--resume")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    (level,) = content["levels"]
    assert level["fraction"] == pytest.approx(8 / 166)
    assert level["attacked"]["lost"] == pytest.approx(
        np.mean(content["clean_accuracy"]) - np.mean(level["attacked"]["accuracy"])
    )
    assert len(content["points"]["l2"]) == 8
    assert np.asarray(content["points"]["x"]).shape == (8, 8, 8)
    assert content["references"]["logistic_regression"] > 0.8
    for name in ("curve.png", "points.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "held-out samples" in result.output


@pytest.mark.slow  # 20 s
def test_runs_that_signals_end_come_to_the_same_bits(same_after_signals):
    same_after_signals(["audit", "--levels", 2, "--seeds", 1, "--steps", 6, "--budget", 0.01], [8])


@pytest.mark.slow  # the next test reads the tables
def test_the_command_takes_tables_and_a_validation_file(tmp_path):
    header = ",".join([*(f"p{i}" for i in range(64)), "digit"])
    for name, x, y in (("train", X, Y), ("validation", X_VAL, Y_VAL)):
        rows = np.column_stack([x.reshape(len(x), -1), y])
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", header=header, comments="")
    files = (tmp_path / "train.csv", "--validation", tmp_path / "validation.csv", "--target", "digit")
    result = run(*files, *QUICK, "--model", "mlp", "--hidden", 8, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "points.png").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["data"]["train"] == 250


def test_both_files_are_put_on_one_scale_and_in_one_order(tmp_path):
    np.savez(tmp_path / "a.npz", X=200 * X, y=Y)
    np.savez(tmp_path / "b.npz", X=100 * X_VAL, y=Y_VAL)
    samples = job_from_files(tmp_path / "a.npz", tmp_path / "b.npz", None, 0)
    np.testing.assert_allclose(samples.X, X / X.max(), rtol=1e-6)
    np.testing.assert_allclose(samples.X_val, X_VAL / X.max() / 2, rtol=1e-6)
    (tmp_path / "a.csv").write_text("p,q,digit\n" + "1,2,0\n3,4,1\n" * 3)
    (tmp_path / "b.csv").write_text("q,p,digit\n" + "6,5,0\n8,7,1\n" * 3)
    samples = job_from_files(tmp_path / "a.csv", tmp_path / "b.csv", "digit", 0)
    np.testing.assert_array_equal(samples.X_val[:2], [[5, 6], [7, 8]])
    (tmp_path / "b.csv").write_text("r,p,digit\n" + "6,5,0\n8,7,1\n" * 3)
    with pytest.raises(InputError, match="other columns than DATA"):
        job_from_files(tmp_path / "a.csv", tmp_path / "b.csv", "digit", 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--budget", "-0.1"), "budget is -0.1, and must be above 0"),
        (("--target", "y"), "without DATA"),
        (("nowhere.npz",), "DATA (nowhere.npz)"),
        (("--hidden", 8), "--hidden is the width of the layer of --model mlp"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments, sentence, tmp_path):
    result = run(*arguments, *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert sentence in result.output


BREAST = load_breast_cancer(as_frame=True)
LINEAR = make_pipeline(StandardScaler(), LogisticRegression())
FOREST = RandomForestClassifier(10)


class Nearest:
    """A classifier with `fit` and `predict` alone."""

    def fit(self, X, y):
        self.middles = {label: X[y == label].mean(0) for label in np.unique(y)}
        return self

    def predict(self, X):
        apart = [np.linalg.norm(X - m, axis=1) for m in self.middles.values()]
        return np.array(list(self.middles))[np.argmin(apart, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "surrogate"),
    [
        pytest.param(LINEAR, "softmax regression", id="linear"),
        pytest.param(FOREST, "a multilayer perceptron with", id="forest"),
        pytest.param(Nearest(), "a multilayer perceptron", id="nearest"),
    ],
)
def test_classifiers_are_attacked_through_a_surrogate(model, surrogate):
    """Every accuracy is of the user's classifier, fitted to the training samples and the points in their units."""
    x, y = 100 + 7 * BREAST.data.to_numpy()[:, :8], np.array(["bad", "good"])[BREAST.target]
    seen = []

    class Watched:
        def fit(self, X, y):
            seen.append((X, y))
            self.fitted = seeded(model, 0).fit(X, y)
            return self

        def predict(self, X):
            return self.fitted.predict(X)

    Watched.__name__ = type(model).__name__
    settings = SMALL | {"levels": 1, "seeds": 1}
    report = audit(x[:300], y[:300], x[300:], y[300:], model=Watched(), **settings, key=jax.random.key(0))
    assert report.surrogate.accuracy > 0.8
    assert type(model).__name__ == report.model
    assert f"{report.model} has no gradient: the samples were found by an attack on a surrogate" in report.in_words()
    assert report.as_dict()["surrogate"]["name"] == report.surrogate.name
    np.testing.assert_allclose(seen[-1][0][:300], x[:300], rtol=1e-5)
    np.testing.assert_allclose(seen[-1][0][300:], report.points.x, rtol=1e-4)
    assert set(seen[-1][1][300:]) == set(report.points.y) <= {"bad", "good"}
    direct = audit(x[:300], y[:300], x[300:], y[300:], model=model, **settings, key=jax.random.key(0))
    assert direct.surrogate.name.startswith(surrogate)
    fitted = [seeded(model, 0).fit(x[:300], y[:300]).predict(x[300:]) for _ in range(2)]
    np.testing.assert_array_equal(*fitted)
    assert abs(float(direct.clean[0]) - (fitted[0] == y[300:]).mean()) < 0.08


@pytest.mark.slow
def test_an_attack_through_a_surrogate_harms_the_model_itself():
    x, y = BREAST.data.to_numpy()[:, :8], BREAST.target.to_numpy()
    settings = SMALL | {"levels": 1, "seeds": 1, "steps": 500}
    report = audit(x[:200], y[:200], x[300:], y[300:], budget=0.3, model=LINEAR, **settings, key=jax.random.key(0))
    lost, _ = report.lost(report.attacked)
    careless, _ = report.lost(report.flipped)
    assert lost[0] > careless[0] + 0.1


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.choice(["ash", "birch", "cedar"], n)
    frame = pd.DataFrame({"kind": kind, "size": rng.normal(size=n), "age": rng.integers(1, 90, n)})
    frame["code"] = rng.choice([f"c{i}" for i in range(60)], n)
    return frame, np.where((kind == "ash") ^ (frame["size"] > 0.5), "yes", "no")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["own", "network"])
def test_columns_of_text(model):
    """A point has one of the values of a column; a pipeline gets a data frame as the user's own."""
    seen = []

    class Watched(RandomForestClassifier):
        def fit(self, X, y):
            return super().fit(X, y)

    def look(frame):
        seen.append(frame)
        return frame

    (X, y), (X_val, y_val) = table(), table(200, 1)
    X_val.loc[0, "code"] = "never seen"
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["kind", "code"]), remainder="drop")
    own = make_pipeline(FunctionTransformer(look), encoder, Watched(10))
    options = {"model": own} if model == "own" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = audit(X, y, X_val, y_val, **SMALL | {"levels": 1, "seeds": 1}, **options, key=jax.random.key(0))
    groups = report.points.x[:, 2:5], report.points.x[:, 5:]
    for group in groups:
        assert (np.sort(group, 1)[:, :-1] == 0).all()
        assert (group.max(1) == 1).all()
    assert groups[1].shape[1] == 50
    if model == "own":
        assert any("never seen" in set(frame["code"]) for frame in seen)
        added = next(frame for frame in reversed(seen) if len(frame) > 300).iloc[300:]
        assert list(added.columns) == list(X.columns)
        assert set(added["kind"]) <= {"ash", "birch", "cedar"}
        assert set(added["code"]) <= set(X["code"])
        assert added["age"].between(1, 89.001).all()


class DummyLabels(Nearest):
    def predict(self, X):
        return np.ones((len(X), 2))


CLASSIFIERS = {
    "regressor": (LinearRegression(), "model is LinearRegression, a regressor. Pass a classifier"),
    "a class": (RandomForestClassifier, "model is the class RandomForestClassifier, which is not a model: call it"),
    "cannot fit": (
        RandomForestClassifier(max_depth=-3),
        "model RandomForestClassifier cannot be fitted to X and y: Inv",
    ),
    "no labels": (
        DummyLabels(),
        "model DummyLabels predicts an array of shape .* and must predict a label of y for each",
    ),
}


@pytest.mark.parametrize(("model", "sentence"), CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classifiers_that_are_refused(model, sentence):
    with pytest.raises(InputError, match=sentence):
        audit(X, Y, X_VAL, Y_VAL, model=model, **SMALL, key=jax.random.key(0))


def test_frames_that_are_refused():
    (X, y), (X_val, y_val), day = table(40), table(40, 1), pd.Timestamp("2020-01-01")
    for change, sentence in (
        ({"X_val": X_val.to_numpy()}, "X is a data frame with columns of text, and X_val is a ndarray. Pass a frame"),
        ({"X": X.assign(kind=X["kind"].where(X["size"] < 1))}, "X has missing values in 'kind'. Fill them"),
        ({"X_val": X_val.drop(columns="age")}, "X_val lacks 'age', compared with X"),
        ({"X": X.assign(day=day), "X_val": X_val.assign(day=day)}, "Column 'day' of X holds dates"),
    ):
        with pytest.raises(InputError, match=sentence):
            audit(**{"X": X, "y": y, "X_val": X_val, "y_val": y_val} | change, **SMALL, key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The surrogate")
def test_the_command_audits_a_forest_on_a_table_with_text(tmp_path):
    frame, y = table()
    frame.assign(label=y).to_csv(tmp_path / "t.csv", index=False)
    result = run(tmp_path / "t.csv", "--target", "label", *QUICK, "--model", "trees", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (found["model"], found["settings"]["model"]) == ("RandomForestClassifier", "trees")
    assert found["surrogate"]["accuracy"] > 0.5
    assert "has no gradient" in " ".join(result.output.split())

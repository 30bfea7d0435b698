"""`bilevax tune`: its table against models fitted by hand, the files it writes, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import scale
from typer.testing import CliRunner

import bilevax
from bilevax import InputError, _files, cli, plots
from bilevax.applications.tuning import comparison
from bilevax.applications.tuning.jobs import Job, job_from_files, ready_made_jobs
from bilevax.applications.tuning.logistic import LOGISTIC_STEPS
from bilevax.loop.stages import Stages
from bilevax.plots import TimedLosses

METHODS = ["default (C=1)", "random search", "Bayesian, TPE", "Penalty"]
QUICK = ["--trials", 8, "--steps", 40]


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """The same rows wherever the tests run."""
    monkeypatch.setattr(comparison, "_has_torch", lambda: False)


def bilevax_command(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments) -> str:
    result = bilevax_command("tune", *arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.stderr


def stages(folder):
    _files.claim(folder / "checkpoints", "--out")
    return Stages(folder / "checkpoints")


def plants(seed, n):
    """Two measures that tell three species apart, four that do not, and a column of text."""
    rng = np.random.default_rng(seed)
    species = np.arange(n) % 3
    X = rng.normal(size=(n, 6))
    X[:, :2] += np.array([[0, 0], [2, 0], [0, 2]])[species]
    frame = pd.DataFrame(X * [1, 100, 1, 1, 1, 1], columns=["height", "width", "a", "b", "c", "d"])
    return frame.assign(soil=rng.choice(["clay", "sand"], n), species=np.array(["ash", "elm", "oak"])[species])


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{name}.csv" for name in ("train", "validation", "test")]
    for seed, (path, n) in enumerate(zip(paths, (90, 120, 150), strict=True)):
        plants(seed, n).to_csv(path, index=False)
    return paths


def one_hot(frame, like):
    X = frame.drop(columns=["soil", "species"]).to_numpy()
    like = like.drop(columns=["soil", "species"]).to_numpy()
    return np.column_stack([(X - like.mean(0)) / like.std(0), frame["soil"] == "clay", frame["soil"] == "sand"])


@pytest.mark.slow
def test_users_files_ended_by_a_signal_and_resumed(tmp_path, files, ended_early):
    train, validation, test = (pd.read_csv(path) for path in files)
    out = tmp_path / "deep" / "out"
    command = ["tune", files[0], "--target", "species", "--validation", files[1], "--test", files[2], "--out", out]
    ended_early([*command, *QUICK], 8)
    result = bilevax_command(*command, *QUICK, "--resume")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        ".bilevax",
        "results.json",
        "strengths.csv",
        "tuning.png",
    ]
    with Image.open(out / "tuning.png") as image:
        assert image.size[0] > 900
    text = " ".join(result.stdout.split())
    assert "soil (2 values)" in text
    assert "90 training, 120 validation, 150 test samples, 8 strengths, 3 classes" in text

    report = json.loads((out / "results.json").read_text())
    (told,) = report["data_sets"]
    rows = {row["method"]: row for row in told["methods"]}
    assert list(rows) == METHODS
    strengths = pd.read_csv(out / "strengths.csv")
    names = ["height", "width", "a", "b", "c", "d", "soil = clay", "soil = sand"]
    assert strengths["feature"].tolist() == names
    # The losses of Penalty and of the default, by scikit-learn on the files.
    for name, strength in (("Penalty", strengths["strength"].to_numpy()), ("default (C=1)", np.ones(8))):
        model = LogisticRegression(tol=1e-8, max_iter=1000)
        model.fit(one_hot(train, train) / np.sqrt(strength), train["species"])
        for key, frame in (("validation_loss", validation), ("test_loss", test)):
            loss = log_loss(frame["species"], model.predict_proba(one_hot(frame, train) / np.sqrt(strength)))
            assert rows[name][key] == pytest.approx(loss, rel=1e-4)
            assert f"{rows[name][key]:.4f}" in result.stdout
    assert rows["Penalty"]["validation_loss"] < rows["default (C=1)"]["validation_loss"]

    # 40 steps, each of 10 moves of v and one of u, each of three derivatives; a search gets no less.
    assert rows["Penalty"]["gradient_evaluations"] == 40 * 11 * 3
    assert told["penalty_evaluations"] == {"gradients_of_g": 440, "second_products": 440, "gradients_of_f": 440}
    for name in ("random search", "Bayesian, TPE"):
        assert rows[name]["trials"] == 8
        assert rows[name]["gradient_evaluations"] == 8 * comparison.TRIAL_STEPS >= 1320
        assert rows[name]["seconds"] > 0
        assert rows[name]["compile_seconds"] > 0
        # The default is the first trial, so that the trained trial that did best by f can be hardly worse.
        assert rows[name]["validation_loss"] < rows["default (C=1)"]["validation_loss"] + 1e-3
    curve = told["curves"]["Penalty"]
    assert curve["losses"][-1] == pytest.approx(rows["Penalty"]["validation_loss"])
    assert curve["evaluations"] == [66 * (i + 1) for i in range(20)]
    assert np.diff(curve["seconds"]).min() > 0
    assert curve["seconds"][-1] <= rows["Penalty"]["seconds"]
    assert report["settings"]["train"]["file"] == str(files[0])
    assert (report["settings"]["seed"], report["versions"]["bilevax"]) == (0, bilevax.__version__)


@pytest.mark.slow
def test_parts_of_one_npz_are_set_aside(tmp_path):
    frame = plants(0, 100)
    X = frame.drop(columns=["soil", "species"]).to_numpy()
    np.savez(tmp_path / "a.npz", X=X, y=np.arange(100) % 3)
    result = bilevax_command("tune", tmp_path / "a.npz", "--hold-out", 0.2, "--out", tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.output
    (told,) = json.loads((tmp_path / "out" / "results.json").read_text())["data_sets"]
    sizes = [told[name] for name in ("train", "validation", "test", "features", "classes")]
    assert sizes == [60, 21, 19, 6, 3]  # a fifth of each class, rounded
    assert pd.read_csv(tmp_path / "out" / "strengths.csv")["feature"].tolist() == [f"X[{i}]" for i in range(6)]


def test_the_parts_are_disjoint_and_scaled_by_the_training_part_alone(files):
    data = job_from_files({"train": files[0], "validation": None, "test": files[2]}, "species", 0.25, seed=3)
    train, test = pd.read_csv(files[0]), pd.read_csv(files[2])
    assert (len(data.y), len(data.y_validation), len(data.y_test)) == (66, 24, 150)
    np.testing.assert_allclose(data.X[:, :6].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.X[:, :6].std(0), 1, rtol=1e-5)
    # On each side the heights, up to that scale, are those of the file.
    order = np.sort(np.concatenate([data.X[:, 0], data.X_validation[:, 0]]))
    np.testing.assert_allclose(scale(order.astype(float)), scale(np.sort(train["height"])), atol=1e-5)
    assert abs(np.corrcoef(data.X_test[:, 1], test["width"])[0, 1]) > 0.999999
    assert sorted(np.bincount(data.y_validation)) == [8, 8, 8]
    np.testing.assert_array_equal(np.array(["ash", "elm", "oak"])[data.y_test], test["species"])


def test_rare_categories_have_a_name(files):
    frame = plants(0, 300).assign(soil=[f"s{i % 60:02d}" for i in range(300)])
    frame.to_csv(files[0], index=False)
    data = job_from_files({"train": files[0], "validation": None, "test": None}, "species", 0.2, seed=0)
    assert data.X.shape[1] == len(data.features) == 6 + 50
    assert data.features[-1].startswith("soil = any other")


@pytest.mark.slow
def test_trials_are_raised_to_the_gradients_of_penalty(tmp_path, files):
    command = ["tune", files[0], "--target", "species", "--out", tmp_path / "out", "--trials", 1, "--steps", 20]
    result = bilevax_command(*command)
    assert result.exit_code == 0, result.output
    assert "--trials is raised from 1 to 3" in result.stdout  # 20 * 11 * 3 = 660 gradients, 300 a trial
    (told,) = json.loads((tmp_path / "out" / "results.json").read_text())["data_sets"]
    assert {row["trials"] for row in told["methods"]} == {None, 3}


@pytest.mark.slow
def test_a_row_for_gaussian_processes_where_torch_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_has_torch", lambda: True)
    monkeypatch.setattr(comparison, "GP", comparison.Random)
    (data, _) = ready_made_jobs(0.25, 0)
    tuned = comparison.compare(data, trials=2, steps=10, seed=0, stages=stages(tmp_path))
    assert [row["method"] for row in tuned.report["methods"]] == [*METHODS[:-1], "Bayesian, GP", "Penalty"]
    names = ["Bayesian, GP", "Bayesian, TPE", "Penalty", "random search"]
    assert sorted(tuned.paths) == sorted(tuned.runs) == names


@pytest.mark.slow
def test_penalty_needs_at_most_a_tenth_of_random_searchs_gradients_on_30_strengths(tmp_path):
    (data, digits) = ready_made_jobs(0.25, 0)
    assert data.X.shape[1] == 30
    assert digits.X.shape[1] == 64
    tuned = comparison.compare(data, trials=200, steps=None, seed=0, stages=stages(tmp_path))
    report = tuned.report
    assert report["steps"] == LOGISTIC_STEPS
    rows = {row["method"]: row for row in report["methods"]}
    assert 10 * rows["Penalty"]["gradient_evaluations"] <= rows["random search"]["gradient_evaluations"]
    assert rows["Penalty"]["validation_loss"] < rows["random search"]["validation_loss"]
    assert rows["random search"]["validation_loss"] < rows["default (C=1)"]["validation_loss"] - 0.005
    assert data.features[:2] == ["mean radius", "mean texture"]
    assert data.prefix == "breast_cancer_"


@pytest.mark.slow  # 10 s
def test_runs_that_signals_end_come_to_the_same_bits(same_after_signals, files):
    same_after_signals(["tune", files[0], "--target", "species", *QUICK], [7, 6])


@pytest.mark.slow
def test_a_lasso_that_a_signal_ends_comes_to_the_same_bits_whatever_its_columns_are_called(
    same_after_signals, tmp_path
):
    frame = plants(0, 60).drop(columns=["soil", "species"])
    frame.assign(price=frame["height"] - 2 * frame["a"]).rename(
        columns={"b": "flow [/min]", "c": "US$ per %$ unit^"}
    ).to_csv(tmp_path / "houses.csv", index=False)
    out = same_after_signals(["tune", tmp_path / "houses.csv", "--target", "price", "--lasso", "--steps", 8], [3])
    assert (out / "lasso.png").is_file()
    assert pd.read_csv(out / "lasso.csv")["feature"].tolist()[3:5] == ["flow [/min]", "US$ per %$ unit^"]


@pytest.mark.slow
def test_the_default_run_on_both_data_sets(tmp_path):
    result = bilevax_command("tune", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "results.json").read_text())
    assert [data["features"] for data in report["data_sets"]] == [30, 64]
    assert all(data["comparison"]["ratio"] <= 0.1 for data in report["data_sets"])
    assert len(list(tmp_path.glob("*.*"))) == 5


def run(seconds, compile_seconds, evaluations):
    return comparison.Run(None, seconds, compile_seconds, evaluations, None, [])


def test_comparison_by_hand():
    way = comparison.Losses([1.0, 4.0, 5.0], [100, 400, 500], [0.9, 0.5, 0.55])
    runs = {"random search": run(10.0, 2.0, 1000), "Penalty": run(1.0, 3.0, 450)}

    def compared(losses):
        ways = {"random search": way, "Penalty": comparison.Losses([0.25, 0.5], [10, 20], losses)}
        rows = [
            comparison.Row(name, 0.5, 0.6, 1.0, 1.0, 1, None, comparison._first_at(ways[name], 0.5)) for name in ways
        ]
        return comparison._ratios(rows, ways, runs, 0.5)

    told = compared([0.8, 0.4])
    assert told["ratio"] == 0.05
    assert told["ratio_to_the_moment_it_was_found"] == 0.125
    assert told["ratio_with_compilation"] == 3.5 / 12
    assert told["random_loss_at_penalty_evaluations"] == 0.5
    data = Job("plants", "", ["a"], 2, *[np.zeros((4, 1))] * 6, ())
    first, count, _ = comparison._sentences(told, data, runs, 150)
    assert "(0.5000) in 0.500 s: 0.050 of the 10.00 s" in first
    assert "0.29 with the compilation of both" in first
    assert "150 gradients of g, 150 second products and 150 gradients of f" in count

    told = compared([0.8, 0.6])
    assert told["ratio"] is None
    assert "did not reach random search's best" in comparison._sentences(told, data, runs, 150)[0]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_arguments_that_need_others(tmp_path, files):
    out = ["--out", tmp_path / "out"]
    for name in ("--validation", "--test"):
        assert f"{name} is given without TRAIN" in refused(name, files[1], *out)
    assert "--target is given without TRAIN" in refused("--target", "species", *out)
    assert "needs --target" in refused(files[0], *out)
    assert "No such file" in refused(tmp_path / "gone.csv", "--target", "species", *out)


@pytest.mark.parametrize("part", ["0", "0.5", "1.5", "half"])
def test_hold_out_out_of_range(tmp_path, files, part):
    assert "--hold-out" in refused(files[0], "--target", "species", "--hold-out", part, "--out", tmp_path / "out")


def test_out_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("--out", tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename(columns={"species": "kind"}), "has no column 'species' (--target). Its columns are"),
        (lambda f: f.assign(species="ash"), "one class only ('ash')"),
        (lambda f: f.assign(species=np.linspace(0, 1, len(f))), "so it is a quantity and not a label"),
        (lambda f: f.assign(species=np.arange(len(f))), "to train on some and set some aside for validation and test"),
        (lambda f: f.assign(species=["elm", "elm"] + ["ash"] * (len(f) - 2)), "too few samples ('elm': 2)"),
        (lambda f: f.head(2), "at least 3 of each are needed"),
        (lambda f: f.assign(a=np.nan), "missing or infinite values ('a': 90)"),
        (lambda f: f[["species"]], "90 samples of 0 features"),
    ],
)
def test_files_that_will_not_do(tmp_path, files, change, message):
    change(pd.read_csv(files[0])).to_csv(files[0], index=False)
    assert message in refused(files[0], "--target", "species", "--out", tmp_path / "out")


def test_files_that_do_not_fit_each_other(tmp_path, files):
    frame = pd.read_csv(files[1])
    command = [files[0], "--target", "species", "--validation", files[1], "--out", tmp_path / "out"]
    frame.assign(species="fir").to_csv(files[1], index=False)
    assert "one class only" in refused(*command)
    frame.replace({"species": {"elm": "fir"}}).to_csv(files[1], index=False)
    assert "labels that" in refused(*command)
    frame.drop(columns="width").to_csv(files[1], index=False)
    assert "lacks 'width'" in refused(*command)


# --- the figure -------------------------------------------------------------------------------------------------------


def test_loss_against_time_draws_steps_on_a_logarithmic_axis(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.curves, "save", lambda figure, path: figures.append(figure))
    curves = {"Penalty": TimedLosses([0.1, 0.2], [0.5, 0.3]), "search": TimedLosses([1.0, 9.0, 20.0], [0.5, 0.4, 0.4])}
    plots.loss_against_time(curves, tmp_path / "a.png", "Loss", {"default": 0.6})
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    drawn = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert set(drawn) == {"Penalty", "search", "default"}
    assert drawn["search"].get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(drawn["search"].get_xdata(), [1, 9, 20])
    assert drawn["default"].get_ydata()[0] == 0.6
    assert drawn["Penalty"].get_color() != drawn["search"].get_color()
    assert {text.get_text() for text in figures[0].legends[0].get_texts()} == set(drawn)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "no curves"),
        ({"a": TimedLosses([1, 2], [1])}, r"seconds of shape \(2,\) and losses of shape \(1,\)"),
        ({"a": TimedLosses([0, 2], [1, 1])}, "the seconds positive"),
    ],
)
def test_loss_against_time_refuses(tmp_path, curves, message):
    with pytest.raises(InputError, match=message):
        plots.loss_against_time(curves, tmp_path / "a.png", "Loss")

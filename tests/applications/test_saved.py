"""Saved models: the same bits when they are loaded, the form of files, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from bilevax import InputError
from bilevax.applications.denoising import DenoisingClassifier
from bilevax.applications.denoising.experts import Folds, Forest, stack
from bilevax.applications.denoising.reviewing import Model, review
from bilevax.applications.denoising.softmax import Softmax
from bilevax.data.samples.new import form_of
from bilevax.data.samples.read import read_samples
from bilevax.data.samples.types import Options
from bilevax.nn import Training, lenet5, mlp
from bilevax.saved import FileModel, load_model, save_model
from bilevax.saved.files import Denoised
from bilevax.saved.folders import DESCRIPTION

X, Y = load_iris(return_X_y=True)
WORDS = np.array(["a", "é", "c"], dtype=object)[Y]


class Constant(ClassifierMixin, BaseEstimator):
    """A classifier that is not of scikit-learn."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


def again(model, tmp_path: Path, **given):
    save_model(tmp_path / "model", model)
    return load_model(tmp_path / "model", **given)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param(make_pipeline(SelectKBest(k=2), GaussianNB()), marks=pytest.mark.slow),
        HistGradientBoostingClassifier(max_iter=3),
        mlp,
    ],
    ids=["stack", "pipeline", "boosting", "network"],
)
def test_an_estimator_predicts_the_same_bits(model, tmp_path):
    frame = pd.DataFrame(X, columns=list("abcd"))
    fitted = DenoisingClassifier(model, training=Training(steps=5)).fit(frame, WORDS)
    loaded = again(fitted, tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(frame), fitted.predict_proba(frame))
    assert loaded.predict(frame).tolist() == fitted.predict(frame).tolist()
    assert set(vars(loaded)) == set(vars(fitted))
    for name, value in vars(fitted).items():
        if name.endswith("_"):
            np.testing.assert_array_equal(getattr(loaded, name), value)
    clone(loaded)
    with pytest.raises(InputError, match="feature names"):
        loaded.predict(frame.rename(columns={"a": "x"}))


@pytest.mark.slow
def test_pictures_of_bytes_and_a_schedule(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (60, 16, 16), dtype=np.uint8)
    training = Training(steps=2, rate=lambda step: 1e-3)
    fitted = DenoisingClassifier(lenet5, training=training).fit(pictures, np.arange(60) % 2)
    loaded = again(fitted, tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(pictures), fitted.predict_proba(pictures))
    assert loaded.training is None


@pytest.mark.slow
def test_a_network_of_the_users_own_is_passed_again(tmp_path):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.norm, self.dense = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(self.norm(x))

    fitted = DenoisingClassifier(Net(), training=Training(steps=3)).fit(X, Y)
    with pytest.raises(InputError, match="code is not saved"):
        again(fitted, tmp_path)
    loaded = load_model(tmp_path / "model", network=Net())
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    with pytest.raises(InputError, match="Pass the network that was fitted"):
        load_model(tmp_path / "model", network=mlp)


def test_stacks_of_softmax_and_of_folds_with_one_class(tmp_path):
    targets = np.eye(3)[np.minimum(Y, 1)]
    targets[0] = 0, 0, 1
    for experts in ((Softmax(),), (Forest(extra=False, trees=30), Folds(LogisticRegression(max_iter=2000)))):
        model = Denoised(stack(experts, X, targets, 0), 1.3)
        form = form_of_iris(tmp_path)
        loaded = again(FileModel("classification", form, model, np.array([0, 1, 2])), tmp_path)
        np.testing.assert_array_equal(loaded.model.predict_proba(X), model.predict_proba(X))
        assert loaded.form == form


def form_of_iris(folder: Path):
    np.savez(folder / "iris.npz", X=X, y=Y)
    return form_of(read_samples(folder / "iris.npz"))


def test_types_of_other_libraries_are_refused_by_name(tmp_path):
    fitted = DenoisingClassifier(Constant()).fit(X, Y)
    save_model(tmp_path / "model", fitted)
    name = f"{Constant.__module__}.Constant"
    with pytest.raises(InputError, match=rf"objects of the types '{name}'.*trusted="):
        load_model(tmp_path / "model")
    loaded = load_model(tmp_path / "model", trusted=[name])
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))


def test_what_cannot_be_saved_is_refused(tmp_path):
    odd = make_pipeline(FunctionTransformer(lambda x: x), GaussianNB())
    fitted = DenoisingClassifier(odd).fit(X, Y)
    for model, message in (
        (fitted, "functions without a name"),
        (DenoisingClassifier(), "is not fitted"),
        (LogisticRegression(), "must be a FileModel or one of"),
    ):
        with pytest.raises(InputError, match=message):
            save_model(tmp_path / "model", model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / DESCRIPTION).write_text("mine")
    with pytest.raises(InputError, match="would be overwritten"):
        save_model(tmp_path / "mine", DenoisingClassifier(GaussianNB()).fit(X, Y))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder / "model", DenoisingClassifier(GaussianNB()).fit(X, Y))
    return folder / "model"


def edited(saved: Path, tmp_path: Path, **changes) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(description | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "Update bilevax"),
        ({"program": "other"}, "is no saved model of bilevax"),
        ({"versions": 3}, "is damaged: model.json cannot be read"),
        ({"files": {"../passwords": "0"}}, "is damaged: it names the file"),
        ({"model": {"record": "os.system", "fields": {}}}, "is damaged"),
        ({"model": {"estimator": "DenoisingClassifier"}}, "is damaged"),
        ({"model": {"array": "99"}}, "is damaged"),
        ({"model": []}, "is damaged"),
    ],
)
def test_descriptions_that_are_none(saved, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_model(edited(saved, tmp_path, **changes))


def test_folders_that_are_damaged_or_none(saved, tmp_path):
    folder = edited(saved, tmp_path)
    content = (folder / "arrays.npz").read_bytes()
    (folder / "arrays.npz").write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"damaged: arrays.npz is not as it was written"):
        load_model(folder)
    (folder / "arrays.npz").unlink()
    with pytest.raises(InputError, match=r"damaged: arrays.npz is missing"):
        load_model(folder)
    (folder / DESCRIPTION).write_bytes(b"\xff{")
    with pytest.raises(InputError, match=r"damaged: model.json cannot be read"):
        load_model(folder)
    (folder / DESCRIPTION).unlink()
    with pytest.raises(InputError, match=r"no saved model: it has no model.json"):
        load_model(folder)
    for path, message in (
        (folder / "none", "does not exist"),
        (saved / DESCRIPTION, "is a file"),
        (saved.parent, "Did you mean"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(path)


def test_another_version_of_scikit_learn_is_named(saved, tmp_path):
    folder = edited(saved, tmp_path, versions={"bilevax": "1", "scikit-learn": "0.1"})
    with pytest.warns(UserWarning, match=r"saved with scikit-learn 0.1 \(installed: "):
        load_model(folder)


@pytest.fixture
def pets() -> pd.DataFrame:
    """A messy table: missing values, rare categories, an identifier, and 80 records."""
    rng = np.random.default_rng(0)
    kind = np.arange(80) % 2
    frame = pd.DataFrame(
        {
            "pet id": [f"p{i}" for i in range(80)],
            "size": np.round(rng.normal(size=80) + 2 * kind, 3),
            "age": np.where(rng.random(80) < 0.2, np.nan, rng.integers(1, 9, 80)),
            "home": np.array(["here", "there"])[(kind + (rng.random(80) < 0.2)) % 2],
            "kind": np.array(["cat", "dog"])[kind],
        }
    )
    frame.loc[:1, "home"] = ["mars", "moon"]
    return frame


def model_of(path: Path, model: Model = Model.linear, options: Options = Options(), vectors=None) -> FileModel:
    samples = read_samples(path, options=options)
    found = review(samples, model, embeddings=vectors)
    assert found.preparation is not None
    predictor = Denoised(found.ranking.model, found.ranking.power)
    form = form_of(samples, found.vectors)
    return FileModel("classification", form, predictor, found.classes, found.preparation, found.method)


@pytest.fixture
def table_model(pets, tmp_path) -> FileModel:
    pets.to_csv(tmp_path / "pets.csv", index=False)
    made = model_of(tmp_path / "pets.csv", options=Options(target="kind"))
    return again(made, tmp_path)


def test_a_table_is_read_as_the_first_one_was(table_model, pets, tmp_path):
    samples = read_samples(tmp_path / "pets.csv", options=Options(target="kind"))
    expected = table_model.model.predict_proba(samples.features)
    found = table_model.predict(tmp_path / "pets.csv")
    table = found.table
    assert table.columns.tolist() == ["row", "line", "id", "predicted_label", "probability: cat", "probability: dog"]
    np.testing.assert_array_equal(table[["probability: cat", "probability: dog"]].to_numpy(), expected)
    assert table["line"].tolist() == list(range(2, 82))
    assert table["id"].tolist()[:2] == ["p0", "p1"]
    assert (table["predicted_label"] == pets["kind"]).mean() > 0.8
    pets.drop(columns="kind").to_parquet(tmp_path / "new.parquet")
    same = table_model.predict(tmp_path / "new.parquet").table
    pd.testing.assert_frame_equal(same, table.drop(columns="line"))
    pd.testing.assert_frame_equal(table_model.predict(pets.drop(columns=["kind"])).table, same)


def test_new_values_are_counted(table_model, pets):
    odd = pets.astype({"size": object})
    odd.loc[:4, "home"] = "venus"
    odd.loc[5, "size"], odd.loc[6, "size"] = "large", None
    notes = " ".join(table_model.predict(odd).notes)
    assert "'home' of The data frame has 5 values that are new ('venus'): taken as one of its rare values" in notes
    assert "Column 'size' of The data frame: 1 cell is not a finite number ('large'" in notes
    assert "'size' of The data frame has 1 missing value, and had none before: the median is taken" in notes
    with pytest.raises(InputError, match="not a finite number"):
        table_model.predict(odd, strict=True)


def test_files_in_another_form_are_refused(table_model, pets, tmp_path):
    pets.rename(columns={"size": "Sise"}).to_csv(tmp_path / "other.csv", index=False)
    pets.head(0).to_csv(tmp_path / "empty.csv", index=False)
    pets.head(0).to_parquet(tmp_path / "empty.parquet")
    np.savez(tmp_path / "array.npz", X=X)
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    (tmp_path / "data.xyz").write_text("1")
    for name, message in (
        ("other.csv", r"lacks columns that the model was fitted to: 'size'.*Did you mean 'Sise'\?"),
        ("empty.csv", "has no rows"),
        ("empty.parquet", "has no rows"),
        (
            "array.npz",
            "holds an array of 4 numbers for each sample, and the model takes tables with the columns 'size'",
        ),
        ("one.png", "holds pictures, and the model takes tables"),
        ("data.xyz", "an unknown format"),
        ("none.csv", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            table_model.predict(tmp_path / name)
    with pytest.raises(InputError, match="has no rows"):
        table_model.predict(pets.head(0))
    with pytest.raises(InputError, match="has no encoder"):
        table_model.predict(pets, encoder=tmp_path / "w")


@pytest.mark.slow
def test_arrays_and_vectors(tmp_path):
    np.savez(tmp_path / "iris.npz", X=X, y=Y)
    model = again(model_of(tmp_path / "iris.npz", Model.mlp), tmp_path)
    expected = model.model.predict_proba(
        model.preparation.apply(np.asarray(read_samples(tmp_path / "iris.npz").features))
    )
    np.save(tmp_path / "new.npy", X)
    found = model.predict(tmp_path / "new.npy")
    np.testing.assert_array_equal(found.table.filter(like="probability").to_numpy(), expected)
    holes = X.copy()
    holes[:3, 1] = np.nan
    np.save(tmp_path / "holes.npy", holes)
    assert "has 3 missing values" in " ".join(model.predict(tmp_path / "holes.npy").notes)
    np.save(tmp_path / "narrow.npy", X[:, :3])
    with pytest.raises(InputError, match="has 3 numbers for each sample, and the model takes 4"):
        model.predict(tmp_path / "narrow.npy")
    vectors = np.concatenate([X, X], 1).astype(np.float32)
    model = again(model_of(tmp_path / "iris.npz", vectors=vectors), tmp_path)
    np.save(tmp_path / "vectors.npy", vectors)
    found = model.predict(tmp_path / "vectors.npy").table.filter(like="probability").to_numpy()
    np.testing.assert_array_equal(found, model.model.predict_proba(vectors))
    with pytest.raises(InputError, match=r"has 4 columns of numbers, and the model takes vectors of 8"):
        model.predict(tmp_path / "new.npy")


def test_texts(tmp_path):
    rng = np.random.default_rng(0)
    words = (["whiskers", "purr", "mouse", "climb"], ["bark", "fetch", "bone", "leash"])
    texts = [" ".join(rng.choice(words[i % 2], 6)) + f" number {i}" for i in range(60)]
    pd.DataFrame({"text": texts, "label": np.arange(60) % 2}).to_csv(tmp_path / "texts.csv", index=False)
    made = model_of(tmp_path / "texts.csv")
    loaded = again(made, tmp_path)
    assert (tmp_path / "model" / "estimators.skops").is_file()
    pd.testing.assert_frame_equal(
        loaded.predict(tmp_path / "texts.csv").table, made.predict(tmp_path / "texts.csv").table
    )
    found = loaded.predict(pd.DataFrame({"text": ["a bone, a leash, fetch it", "mouse and whiskers"]})).table
    assert found["predicted_label"].tolist() == [1, 0]


def test_a_folder_of_pictures_and_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("bright", "dark"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 90, (12, 10), dtype=np.uint8) + np.uint8(150 * (kind == "bright"))
            Image.fromarray(pixels).save(tmp_path / "train" / kind / f"{i}.png")
    made = model_of(tmp_path / "train")
    loaded = again(made, tmp_path)
    found = loaded.predict(tmp_path / "train").table
    expected = made.predict(tmp_path / "train").table
    pd.testing.assert_frame_equal(found, expected)
    assert found["id"][0] == "bright/0.png"
    assert found["predicted_label"].tolist() == ["bright"] * 20 + ["dark"] * 20
    (tmp_path / "new").mkdir()
    Image.new("RGB", (40, 30), (250, 240, 200)).save(tmp_path / "new" / "a.jpg")  # coloured, and of another size
    (tmp_path / "new" / "b.png").write_bytes(b"no picture")
    new = loaded.predict(tmp_path / "new")
    assert new.table["id"].tolist() == ["a.jpg"]
    assert new.table["predicted_label"].tolist() == ["bright"]
    assert "b.png" in " ".join(new.notes)
    assert loaded.predict(tmp_path / "new" / "a.jpg").table["predicted_label"].tolist() == ["bright"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="has no pictures"):
        loaded.predict(tmp_path / "nothing")
    pd.DataFrame({"size": [1.0]}).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(InputError, match="holds a table with the columns 'size', and the model takes pictures"):
        loaded.predict(tmp_path / "table.csv")


def test_quantities_are_predicted_as_numbers(tmp_path):
    from sklearn.linear_model import Ridge

    form = form_of_iris(tmp_path)
    model = Ridge().fit(read_samples(tmp_path / "iris.npz").features, X[:, 0])
    loaded = again(FileModel("regression", form, model), tmp_path)
    found = loaded.predict(tmp_path / "iris.npz").table
    np.testing.assert_array_equal(found["predicted"], model.predict(read_samples(tmp_path / "iris.npz").features))
    assert found.columns.tolist() == ["row", "predicted"]

"""`bilevax predict`: from the folder that `bilevax denoise` wrote to a CSV file of predictions."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bilevax import cli
from bilevax.applications.denoising import DenoisingClassifier
from bilevax.saved import load_model, save_model


def command(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments) -> str:
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.strip().endswith((".", "?"))
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def pets() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 2
    home = np.array(["here", "there"])[rng.integers(0, 2, 60)]
    return pd.DataFrame({"size": rng.normal(size=60) + 3 * kind, "home": home, "kind": kind})


@pytest.fixture(scope="module")
def report(pets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    pets.to_csv(folder / "pets.csv", index=False)
    result = command("denoise", folder / "pets.csv", "--target", "kind", "--out", folder / "out", "--model", "linear")
    assert result.exit_code == 0, result.output
    assert f"bilevax predict {folder / 'out' / 'model'} FILE" in result.stdout
    assert ", model to" in result.stdout
    return folder / "out"


def test_a_new_file_is_predicted_twice(report, pets, tmp_path):
    new = pets.drop(columns="kind")
    new.loc[0, "home"] = "mars"
    new.to_csv(tmp_path / "new.tsv", sep="\t", index=False)
    out = tmp_path / "deep" / "found.csv"
    for _ in range(2):  # the second one replaces the first
        result = command("predict", report / "model", tmp_path / "new.tsv", "--out", out)
        assert result.exit_code == 0, result.output
    assert "has 1 value that is new ('mars'): taken as none of its values" in " ".join(result.stdout.split())
    assert "Wrote 60 predictions" in result.stdout
    found = pd.read_csv(out, dtype={"probability: 1": str})
    assert found.columns.tolist() == ["row", "line", "predicted_label", "probability: 0", "probability: 1"]
    assert (found["predicted_label"] == pets["kind"]).mean() > 0.9
    expected = load_model(report / "model").predict(tmp_path / "new.tsv").table
    np.testing.assert_array_equal([float(p) for p in found["probability: 1"]], expected["probability: 1"])
    assert "not a finite number" in refused(
        "predict", report / "model", _with(tmp_path, pets, size="large"), "--strict", "--out", out
    )


def _with(folder, pets, **cells):
    odd = pets.astype({"size": object})
    for name, value in cells.items():
        odd.loc[3, name] = value
    odd.to_csv(folder / "odd.csv", index=False)
    return folder / "odd.csv"


def test_what_is_refused(report, pets, tmp_path):
    file = _with(tmp_path, pets)
    assert "Did you mean" in refused("predict", report, file)
    assert "does not exist" in refused("predict", tmp_path / "none", file)
    assert "does not exist" in refused("predict", report / "model", tmp_path / "none.csv", "--out", tmp_path / "a.csv")
    assert "is the input FILE" in refused("predict", report / "model", file, "--out", file)
    (tmp_path / "mine.csv").write_text("mine")
    assert "would be overwritten" in refused("predict", report / "model", file, "--out", tmp_path / "mine.csv")
    save_model(tmp_path / "python", DenoisingClassifier().fit(np.eye(30), np.arange(30) % 2))
    assert "was saved from Python" in refused("predict", tmp_path / "python", file, "--out", tmp_path / "a.csv")
    pets.drop(columns="size").to_csv(tmp_path / "lacking.csv", index=False)
    lacking = refused("predict", report / "model", tmp_path / "lacking.csv", "--out", tmp_path / "a.csv")
    assert "lacks columns that the model was fitted to: 'size'" in lacking


def test_given_probabilities_leave_no_model(pets, tmp_path):
    pets.to_csv(tmp_path / "pets.csv", index=False)
    p = np.clip(pets["kind"].to_numpy() * 0.8 + 0.1 + np.linspace(-0.05, 0.05, 60), 0, 1)
    np.save(tmp_path / "p.npy", np.stack([1 - p, p], 1))
    result = command(
        *("denoise", tmp_path / "pets.csv", "--target", "kind", "--pred-probs", tmp_path / "p.npy"),
        *("--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert "No model is saved" in result.stdout
    assert not (tmp_path / "out" / "model").exists()


def test_a_model_of_another_version_is_refused(report, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (report / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(description | {"format": 2}))
    assert "Update bilevax" in refused("predict", folder, report.parent / "pets.csv", "--out", tmp_path / "a.csv")

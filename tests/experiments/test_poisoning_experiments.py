"""The poisoning experiments on small draws of the digits: what is drawn, compared and written."""

import json

import numpy as np
import pytest

from bilevax.data import digits
from experiments.common.settings import Settings
from experiments.poisoning import figure5c, figure6, protocol, table5, table6
from experiments.poisoning.protocol import AS, TARGETED, UNTARGETED, Size

SMALL = {UNTARGETED: Size(100, 100, 400, 300, 5), TARGETED: Size(200, 400, 400, 400, 10)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(protocol, "images_of", lambda name: digits())
    monkeypatch.setattr(protocol, "sizes", lambda settings: SMALL)


def rows(path):
    """The means of the first table of results.json, by where they are."""
    results = json.loads((path / "results.json").read_text())["results"]
    return {tuple(row["where"]): row["ours"]["mean"] for row in next(iter(results.values()))}


def test_draws_are_apart_and_those_of_the_targeted_attack_balanced():
    for kind, size in SMALL.items():
        d = protocol.draw(kind, size, 6, seed=3)
        parts = [x.reshape(len(x), -1) for x in (d.x, d.x_val, d.x_test)]
        assert [len(x) for x in parts] == [size.train, size.val, size.test]
        rows = np.concatenate(parts)
        assert len(np.unique(rows, axis=0)) == len(rows)  # the digits have no two alike
        assert len(d.points.y) == len(d.flipped.y) == round(0.06 * size.train)
        assert rows.max() <= 1
        if kind == TARGETED:
            assert (np.bincount(d.y) == 20).all()
            assert set(d.points.y) == {AS}
        again = protocol.draw(kind, size, 6, seed=3)
        np.testing.assert_array_equal(d.points.x, again.points.x)


def test_points_carry_wrong_labels():
    for kind, size in SMALL.items():
        d = protocol.draw(kind, size, 6, seed=0)
        for points, x, y in ((d.points, d.x, d.y), (d.flipped, d.x_val, d.y_val)):
            for point, label in zip(points.x, points.y, strict=True):
                (place,) = np.flatnonzero((x == point).all((1, 2)))
                assert y[place] != label


def test_table5_goes_on_where_it_was_stopped_and_attacks_beat_flipped_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(table5, "PERCENTS", (6,))
    monkeypatch.setattr(table5, "LABELS", (table5.FLIPPED, "ApproxGrad", "Penalty"))
    monkeypatch.setattr(table5, "cells", lambda settings: [(UNTARGETED, 6, 0), (TARGETED, 6, 0)])
    settings = Settings(quick=True, out=tmp_path)
    table5.run(settings)
    found = rows(tmp_path)
    assert found[UNTARGETED, "6%", "Penalty"] < found[UNTARGETED, "6%", table5.FLIPPED] - 2
    assert found[TARGETED, "6%", "Penalty"] > found[TARGETED, "6%", table5.FLIPPED] + 5
    cell = tmp_path / "cells" / f"{UNTARGETED}-6-0.json"
    kept = json.loads(cell.read_text())
    kept["Penalty"]["reached"] = 12.5
    cell.write_text(json.dumps(kept))
    monkeypatch.setattr(table5, "run_cells", lambda *arguments: pytest.fail("nothing is missing"))
    table5.run(settings)
    assert rows(tmp_path)[UNTARGETED, "6%", "Penalty"] == 12.5


def test_attacks_in_one_solve_are_those_apart(tmp_path):
    draws = [protocol.draw(UNTARGETED, SMALL[UNTARGETED], percent, seed) for percent, seed in ((3, 0), (6, 1))]
    tasks = [protocol.task_of(UNTARGETED, d) for d in draws]
    labels = [d.points.y for d in draws]
    solver = protocol.penalty_solver(20, 5)
    found = protocol.attacked_together(solver, tasks, labels, 20, tmp_path)
    for d, task, one in zip(draws, tasks, found, strict=True):
        alone = protocol.attacked(solver, task, d.points.y, 20)
        assert one.points.x.shape == d.points.x.shape
        assert np.abs(alone.points.x - d.points.x).max() > 0.1
        np.testing.assert_allclose(one.points.x, alone.points.x, atol=2e-3)


def test_cells_of_table5():
    assert len(table5.cells(Settings())) == 2 * 6 * 5
    medium = table5.cells(Settings(medium=True))
    assert len(medium) == 2 * (6 * 2 + 2 * 3)
    assert medium[:2] == [(UNTARGETED, 1, 0), (UNTARGETED, 2, 0)]
    assert {percent for _, percent, seed in medium if seed == 4} == {2, 6}


def test_the_papers_numbers_stand_beside_the_right_cells():
    row = table5.compared(TARGETED, 2, "Penalty", "reached", [41.0, 42.0])
    assert row.paper == (41.64, 4.43)
    assert row.agrees
    assert table5.compared(TARGETED, 5, "RMD", "reached", [1.0]).paper is None
    assert table5.compared(UNTARGETED, 5, "Penalty", "seconds", [1.0]).paper is None


def test_table6_varies_one_setting_at_a_time(tmp_path):
    labels = list(table6.variants(SMALL[UNTARGETED]))
    assert {what for kind, what in labels if kind == table6.PAPERS} == set(table6.PAPER)
    table6.run(Settings(quick=True, solver="ours, with nu", out=tmp_path))
    ((where, mean),) = rows(tmp_path).items()
    assert where == ("ours", "with nu")
    assert 30 < mean < 95


def test_figures_5c_and_6(tmp_path, monkeypatch):
    monkeypatch.setattr(figure5c, "QUICK_MOVES", (1, 3))
    monkeypatch.setattr(figure5c, "TIMED", 3)
    figure5c.run(Settings(quick=True, out=tmp_path / "c"))
    assert set(rows(tmp_path / "c")) == {(m, t) for m in ("Penalty", "ApproxGrad") for t in ("1", "3")}
    figure6.run(Settings(quick=True, out=tmp_path / "6"))
    found = rows(tmp_path / "6")
    assert found[UNTARGETED, "found"] < found[UNTARGETED, "no attack"]
    for name in ("c/figure5c.png", "6/figure6-untargeted.png", "6/figure6-targeted.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

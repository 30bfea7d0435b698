"""The tables of the SPNBO text on a few random images: cells, rows, what is kept, said and drawn."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bilevax import InputError
from bilevax.data import ClassSplit, Images
from bilevax.nn import mlp, omniglot_network
from experiments.common.compare import Published
from experiments.common.settings import Settings
from experiments.spnbo import protocol, table3, table4, table5
from experiments.spnbo.protocol import LABELS, PENALTY, SPNBO_ROW, Size

KINDS = {kind.name: kind for kind in (table3.KIND, table4.KIND, table5.KIND)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (10, 8, 8))
    y = rng.integers(0, 10, 200)
    x = np.clip(centres[y] + rng.normal(0, 40, (200, 8, 8)), 0, 255).astype(np.uint8)
    images = Images(x[:150], y[:150].astype(np.uint8), x[150:], y[150:].astype(np.uint8))
    monkeypatch.setattr(table3, "images_of", lambda name: images)
    monkeypatch.setattr(protocol, "BATCH", 20)
    table3.split.cache_clear()
    for module in (table3, table4):
        monkeypatch.setattr(module, "network", lambda settings: mlp(10, (8,)))
    pictures = np.clip(rng.integers(0, 256, (12, 1, 16, 16)) + rng.normal(0, 60, (12, 22, 16, 16)), 0, 255).astype(
        np.uint8
    )
    split = ClassSplit(pictures[:7], pictures[:0], pictures[7:])
    monkeypatch.setattr(table5, "split_of", lambda name: split)
    monkeypatch.setattr(table5, "omniglot_network", lambda filters: omniglot_network(4))
    yield
    table3.split.cache_clear()


def test_the_papers_numbers_belong_to_rows_and_cells():
    for kind in KINDS.values():
        assert set(kind.paper) == set(LABELS)
        cells = kind.size(Settings()).cells
        for row in kind.paper.values():
            assert set(row) == set(cells)
        for settings in (Settings(quick=True), Settings(medium=True)):
            assert set(kind.size(settings).cells) <= set(cells)
    assert table3.PAPER["SPNBO"][("mnist",)] == Published(98.53, 0.23)
    assert table4.PAPER["Robo"][("svhn",)] == Published(55.29, 0.42)
    assert table5.PAPER["RMD"][("omniglot", "5-way 1-shot")] == Published(81.79, 0.57)


def test_few_shot_cells_are_chosen():
    assert table5.cells(Settings(shot=5)) == (("mini_imagenet", "5-way 5-shot"), ("omniglot", "5-way 5-shot"))
    assert table5.cells(Settings(medium=True)) == (("omniglot", "5-way 5-shot"),)
    assert table5.cells(Settings(quick=True, shot=1)) == (("omniglot", "5-way 1-shot"),)
    with pytest.raises(InputError, match="No cell has --way 20"):
        table5.cells(Settings(way=20))


def test_a_search_runs_on_the_re_weighting():
    cell = table3.draw(Settings(quick=True), ("mnist",), 0)
    size = Size((("mnist",),), 4, 5, 1, 2, 3, 1, looks=2)
    found = protocol.run_method("Random", cell, size, 0)
    figures = cell.judge(found.u, found.v)
    assert 0 <= figures["figure"] <= 100
    assert {"zeros", "removed"} <= set(figures)
    assert found.looks[-1][0] > 0


def test_every_row_has_a_solver():
    rates = table3.draw(Settings(quick=True), ("mnist",), 0).rates
    told = [protocol.readable(label, rates, 5)["method"] for label in LABELS]
    assert told == ["Random", "TPE", "Implicit", "ReverseMode", "Penalty", "SMNBP", "SPNBO"]


@pytest.mark.parametrize(
    "name", ["spnbo-table3", *(pytest.param(f"spnbo-table{i}", marks=pytest.mark.slow) for i in (4, 5))]
)
def test_a_table_is_kept_told_and_drawn(name, tmp_path, monkeypatch):
    kind = KINDS[name]
    first = kind.size(Settings(quick=True)).cells[0]
    size = Size((first,), 2, 5, 1, 2, 2, 1, looks=2)
    monkeypatch.setattr(
        protocol,
        "pick",
        lambda labels, solver: [PENALTY, "SMNBP", SPNBO_ROW] if name == "spnbo-table3" else [SPNBO_ROW],
    )
    changed = protocol.Kind(**{**vars(kind), "size": lambda settings: size})
    protocol.run(changed, Settings(quick=True, out=tmp_path))
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["experiment"] == name
    rows = record["results"][kind.figure]
    assert rows[-1]["where"] == [" ".join(first), SPNBO_ROW]
    assert rows[-1]["paper"] is not None
    assert rows[-1]["agrees"] is None  # a small run is not measured by the paper
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert len(list((tmp_path / "cells").glob("*.json"))) == 1
    monkeypatch.setattr(protocol, "run_cell", lambda *arguments: pytest.fail("it was kept"))
    protocol.run(changed, Settings(quick=True, out=tmp_path))
    told = " ".join(record["footnotes"])
    assert ("claim" in told) == (name == "spnbo-table3")


def test_the_order_is_told_as_it_is():
    kind = SimpleNamespace(lower_is_better=False)

    def trials(**means):
        return {("mnist",): [{label: {"figure": value} for label, value in means.items()}]}

    labels = ["Penalty", "SPNBO"]
    (good,) = protocol.order_of(kind, trials(Penalty=90.0, SPNBO=91.0), labels)
    assert "holds here for the mean of every cell" in good
    (bad,) = protocol.order_of(kind, trials(Penalty=92.0, SPNBO=91.0), labels)
    assert "mnist: Penalty (92.00) better than SPNBO (91.00)" in bad
    (low,) = protocol.order_of(SimpleNamespace(lower_is_better=True), trials(Penalty=92.0, SPNBO=91.0), labels)
    assert "holds" in low
    assert protocol.order_of(kind, trials(SPNBO=91.0), ["SPNBO"]) == []


def test_seconds_to_a_level():
    looks = [(1.0, {"figure": 50.0}), (2.0, {"figure": 80.0}), (3.0, {"figure": 70.0})]
    assert protocol.seconds_to(looks, 75.0, lower=False) == 2.0
    assert protocol.seconds_to(looks, 95.0, lower=False) is None
    assert protocol.seconds_to(looks, 55.0, lower=True) == 1.0


def test_how_soon_spnbo_is_where_penalty_ends():
    def trial(own, penalty):
        return {
            name: {"looks": [(float(at + 1), {"figure": x}) for at, x in enumerate(figures)]}
            for name, figures in ((protocol.SPNBO_ROW, own), (protocol.PENALTY, penalty))
        }

    found = {("mnist",): [trial([1, 5, 6], [2, 4, 5]), trial([1, 2, 3], [2, 4, 5]), trial([5, 5, 6], [2, 5, 5])]}
    (told,) = protocol.reached_by(table3.KIND, found, list(protocol.LABELS))
    assert "mnist: in 2 of 3 trials, on average after 1.5 s (Penalty: 2.5 s)" in told
    assert protocol.reached_by(table3.KIND, found, [protocol.SPNBO_ROW]) == []

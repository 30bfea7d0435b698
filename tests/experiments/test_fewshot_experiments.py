"""The few-shot experiments on a few random classes: which cells there are, what is kept, drawn and written."""

import dataclasses
import json

import numpy as np
import pytest

from bilevax import InputError
from bilevax.applications.fewshot import Episode, pixel_means
from bilevax.data import ClassSplit
from bilevax.nn import omniglot_network
from experiments.common.compare import Published
from experiments.common.images import MINI, OMNIGLOT
from experiments.common.settings import Settings
from experiments.fewshot import figure4b, figure5b, protocol, table3
from experiments.fewshot.protocol import BILEVEL, OTHERS, PIXELS

SMALL = protocol.Size(omniglot_network(4), 2, 2, 6, 20, (PIXELS, "Penalty"), 2)


def clusters(classes, seed):
    """Pictures around a pattern for each class."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (classes, 1, 16, 16))
    return np.clip(centres + rng.normal(0, 60, (classes, 22, 16, 16)), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    split = ClassSplit(clusters(9, 0), np.zeros((0, 22, 16, 16), np.uint8), clusters(7, 1))
    monkeypatch.setattr(protocol, "split_of", lambda name: split)
    monkeypatch.setattr(protocol, "sizes", lambda settings: {OMNIGLOT: SMALL})


def record(path):
    """What was written."""
    return json.loads((path / "results.json").read_text())


def test_cells_are_those_of_the_paper_and_can_be_picked(monkeypatch):
    monkeypatch.setattr(protocol, "sizes", lambda settings: {OMNIGLOT: SMALL, MINI: SMALL})
    full = table3.cells(Settings())
    assert full == [(OMNIGLOT, w, k) for w in (5, 20) for k in (1, 5)] + [(MINI, 5, 1), (MINI, 5, 5)]
    assert table3.cells(Settings(way=20, shot=1)) == [(OMNIGLOT, 20, 1)]
    assert table3.cells(Settings(dataset=MINI, shot=5)) == [(MINI, 5, 5)]
    assert table3.cells(Settings(quick=True, dataset=OMNIGLOT)) == [(OMNIGLOT, 5, 1), (OMNIGLOT, 5, 5)]
    assert table3.cells(Settings(medium=True, way=20, shot=5)) == [(OMNIGLOT, 20, 5)]
    with pytest.raises(InputError, match="--way 7"):
        table3.cells(Settings(way=7))
    with pytest.raises(InputError, match="--dataset is 'mnist'"):
        table3.cells(Settings(dataset="mnist"))


def test_every_paper_number_belongs_to_a_cell_and_a_method():
    for label, cells in table3.PAPER.items():
        assert label in BILEVEL
        assert sorted(cells) == sorted((name, way, shot) for name, found in table3.CELLS.items() for way, shot in found)
    row = table3.compared((OMNIGLOT, 5, 1), "Penalty", "accuracy", [97.5, 98.0], Settings())
    assert row.paper == Published(97.83, 0.35)
    assert row.agrees
    assert table3.compared((OMNIGLOT, 5, 1), "Penalty", "accuracy", [90.0], Settings()).agrees is False
    assert table3.compared((OMNIGLOT, 5, 1), "Penalty", "accuracy", [90.0], Settings(quick=True)).agrees is None
    assert table3.compared((OMNIGLOT, 5, 1), "Penalty", "seconds", [90.0], Settings()).paper is None


def test_pixels_are_the_nearest_class_mean():
    images = clusters(3, 5)
    given, asked = images[:, :2].reshape(6, 16, 16), images[:, 2:5].reshape(9, 16, 16)
    adapt, scores = pixel_means(3)
    labels = np.repeat(np.arange(3), 2)[None]
    means = adapt(None, Episode(given[None], labels))
    found = np.asarray(scores(None, means, Episode(asked[None], np.zeros((1, 9), int))))[0]
    by_hand = np.stack([(given[labels[0] == c] / 255).mean(0).ravel() for c in range(3)])
    distance = ((asked.reshape(9, 1, -1) / 255 - by_hand) ** 2).sum(-1)
    np.testing.assert_allclose(found, -distance, rtol=1e-5)


def test_every_method_is_made_of_a_solver_and_a_task():
    for label in (*BILEVEL, *OTHERS):
        assert protocol.readable(label)["method"] in {"Penalty", "Implicit", "ReverseMode", "Alternating"}
    assert set(protocol.TASKS) == set(OTHERS)


@pytest.mark.slow
def test_one_directory_has_each_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "sizes", lambda settings: {OMNIGLOT: dataclasses.replace(SMALL, steps=4)})
    both = Settings(quick=True, shot=1, solver="Penalty", out=tmp_path)
    figure4b.run(both)
    assert record(tmp_path)["experiment"] == "figure4b"
    (cell,) = (tmp_path / "cells").glob("*.json")
    kept = json.loads(cell.read_text())["Penalty"]
    assert [step for step, _, _ in kept["looks"]] == [2, 4]
    assert kept["each"] == pytest.approx(kept["seconds"] / 4)
    assert 5 < kept["accuracy"] < 100
    assert (tmp_path / "figure4b.png").stat().st_size > 5000
    monkeypatch.setattr(
        protocol, "run_cell", lambda name, size, way, shot, t, seed, labels: ran.append((t, labels)) or fake(labels)
    )
    ran: list[tuple[int, list[str]]] = []

    def fake(labels):
        row = {"accuracy": 1.0, "half_width": 0.1, "seconds": 1.0, "each": 0.5, "looks": [[4, 1.0, 1.0]]}
        return dict.fromkeys(labels, row)

    table3.run(both)
    figure5b.run(both)
    assert ran == [(1, ["Penalty"])]
    tables = record(tmp_path)["results"]
    found = {tuple(row["where"][1:]): row["ours"]["mean"] for row in tables["accuracy on new classes %"]}
    assert found["Penalty", "1"] == 1.0
    assert found["Penalty", "20"] > 1.0
    assert (tmp_path / "figure5b.png").stat().st_size > 5000

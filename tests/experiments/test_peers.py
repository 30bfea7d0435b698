"""The benchmark beside other libraries: what goes wrong with one competitor is a row, and the rest goes on."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import scale
from benchmarks.peers import competitors, environments, jax_problems, ours, recurrences, report, run, tuning, works
from benchmarks.peers.competitors import COMPETITORS, FLOOR, Competitor, chosen
from benchmarks.peers.environments import Environment, NotInstalledError

FAKE = """
import os, sys, time
import numpy as np

def warm_up(threads):
    print("libraries print what they like")

class Rival:
    versions = {"fake": "1.0"}

    def __init__(self, method):
        self.method = method

    def start(self, moves):
        self.moves, self.u = moves, 0

    def advance(self, iterations):
        if self.method == "raises" and self.moves > 1:
            raise ValueError("it cannot take two moves\\nand says more")
        if self.method == "dies" and self.moves > 1:
            os.kill(os.getpid(), 9)
        if self.method == "leaves" and self.moves > 1:
            sys.stderr.write("a last word\\n")
            os._exit(3)
        if self.method == "hangs" and self.moves > 1:
            time.sleep(60)
        self.u += iterations

    def upper(self):
        return [np.full(2, self.u, float)]

    def direction(self):
        return [np.ones(2), np.full((2, 2), self.method == "raises", float)]

def make(work, arrays, method, settings):
    if method == "refuses":
        raise TypeError("no such work")
    assert arrays["u_0"].shape == (2,) and settings == {"rate": 1}
    return Rival(method)
"""
METHODS = ("works", "raises", "dies", "leaves", "hangs", "refuses")
WORK = works.Work("fake", "a fake", lambda rng: {"u_0": np.zeros(2)}, "u", 3.0, True, every=1, most=5)


@pytest.fixture
def rivals(tmp_path, monkeypatch):
    """A competitor of each kind of trouble, one whose module is absent, and one that pip cannot install."""
    (tmp_path / "fake_rival.py").write_text(FAKE)
    known = {method: {"rate": 1} for method in (*METHODS, "absent", "uninstalled")}
    monkeypatch.setattr(competitors, "settings", lambda: {"fake": known})
    here = Environment("", paths=(str(tmp_path),))
    found = [Competitor(method, method, "fake_rival", method, here) for method in METHODS]
    found.append(Competitor("absent", "absent", "no_such_library", "absent", here))
    missing = Environment("missing", ("a-package",))

    def cannot(folder, environment, requirements, options):
        if environment is missing:
            raise NotInstalledError("pip cannot install a-package: there is none")
        return environments.ensure(folder, environment, requirements, options)

    monkeypatch.setattr(run, "ensure", cannot)
    return [*found, Competitor("uninstalled", "uninstalled", "fake_rival", "uninstalled", missing)]


@pytest.fixture
def options(tmp_path):
    return run.Options(tmp_path, runs=3, moves=(1, 2), at_least=0.0, limit=5.0, reach=1)


def test_what_goes_wrong_with_one_is_a_row_and_the_rest_goes_on(rivals, options):
    found = run.measure(WORK, WORK.arrays(), lambda u: float(u[0].mean()), rivals, options)
    rows = {row.key: row for row in found}
    assert list(rows) == [rival.key for rival in rivals]
    for moves in (1, 2):
        cell = rows["works"].cells[moves]
        assert len(cell.seconds) == len(cell.cpu) == 3
        assert cell.first is not None
        assert cell.memory is not None
        assert cell.failed is None
    assert rows["works"].versions == {"fake": "1.0"}
    assert rows["works"].iterations == 3  # u counts the iterations, and the target is 3
    failures = {key: row.cells[2].failed for key, row in rows.items()}
    assert failures["raises"] == "ValueError: it cannot take two moves"
    assert failures["dies"] == "the process died of SIGKILL"
    assert failures["leaves"] == "the process ended with 3: a last word"
    assert failures["hangs"] == "no answer within 5 s"
    for key in ("raises", "dies", "leaves", "hangs"):  # what came before the trouble is kept
        assert len(rows[key].cells[1].seconds) == 3
        assert rows[key].iterations == 3
    assert rows["refuses"].failed == "TypeError: no such work"
    assert rows["absent"].failed == "ModuleNotFoundError: No module named 'no_such_library'"
    assert rows["uninstalled"].failed == "pip cannot install a-package: there is none"

    text = report.table(WORK, found, options.moves, options.reach)
    for said in (*failures.values(), rows["refuses"].failed, rows["absent"].failed, rows["uninstalled"].failed):
        assert said is None or said in text
    told = report.as_json({"fake": (WORK, found)}, runs=3)
    assert json.loads(json.dumps(told))["works"]["fake"]["rows"][0]["cells"]["2"]["seconds"]


def test_a_target_out_of_reach_is_told(rivals, options):
    (row,) = run.measure(WORK, WORK.arrays(), lambda u: 2.5, rivals[:1], options)
    assert row.iterations is None
    assert row.unreached == "at 2.5 after 5 iterations"
    assert "none [1]" in report.table(WORK, [row], options.moves, options.reach)


def test_directions_are_compared_by_their_norms(rivals, options, tmp_path):
    file = tmp_path / "arrays.npz"
    np.savez(file, **WORK.arrays())
    running = run.Field(WORK, file, rivals[:2], options)
    try:
        found = running.directions(1, tmp_path)
    finally:
        running.end()
    assert run.apart(found["works"], found["works"]) == 0
    assert run.apart(found["raises"], found["works"]) == pytest.approx(math.sqrt(4 / 2))
    assert run.apart([np.ones(1)], [np.zeros(1)]) == math.inf


def test_every_row_has_settings_and_a_row_of_bilevax_beside_it():
    keys = [c.key for c in COMPETITORS]
    assert len(set(keys)) == len(keys)
    for competitor, name in itertools.product(COMPETITORS, works.WORKS):
        if not competitor.has(name):
            continue
        given = competitor.settings(name)
        assert competitor.method == FLOOR or given["upper_rate"] > 0
        assert f"bilevax:{competitor.beside or competitor.method}" in keys
    assert [c.key for c in chosen("higher*,bilevax:cg")] == ["higher:unrolled", "bilevax:cg"]


def test_settings_come_from_the_grids_that_all_have():
    for name in works.WORKS:
        assert set(competitors.settings()[name]) == set(tuning.methods_of(name))
        for method in tuning.methods_of(name):
            grid = list(tuning.candidates(name, method))
            assert len(grid) == 9
            assert len(list(tuning.others(name, method, grid[4]))) == 2


def test_works_are_the_same_each_time():
    for name in ("synthetic", "mlp", "fewshot"):
        first, second = (works.WORKS[name].arrays() for _ in range(2))
        for key, x in first.items():
            np.testing.assert_array_equal(x, second[key])
            assert x.dtype in (np.float32, np.int64)
        assert [x.shape for x in works.leaves(first, "u")]


def test_conjugate_gradients_to_check_against():
    """After as many steps as unknowns they solve the system; with the late residual they do not."""
    matrix = jnp.asarray(np.diag([1.0, 2.0, 5.0]) + 0.3)
    b = jnp.asarray([1.0, -1.0, 2.0])
    exact = jnp.linalg.solve(matrix, b)
    q, *_ = recurrences.PlainCG(3)(lambda q: (None, matrix @ q), b, jnp.zeros(3))
    np.testing.assert_allclose(q, exact, rtol=1e-10)
    late, *_ = recurrences.PlainCG(3, late=True)(lambda q: (None, matrix @ q), b, jnp.zeros(3))
    assert float(jnp.linalg.norm(late - exact)) > 1e-3


def test_directions_of_the_synthetic_example_in_closed_form():
    """T moves of v by descent of rate r, then each method's direction of u, all by hand."""
    work = works.WORKS["synthetic"]
    arrays = work.arrays()
    (u,), (v,) = (works.leaves(arrays, name) for name in "uv")
    r, moves = 0.1, 2
    w = 1 - u + (1 - 2 * r) ** moves * (v - (1 - u))
    wanted = {
        "unrolled": 2 * u - 2 * w * (1 - (1 - 2 * r) ** moves),
        "cg": 2 * u - 2 * w,
        "one-step": 2 * u - 2 * (2 * w),
        "sama": 2 * u - r * 2 * (2 * w),
        "neumann": 2 * u - 2 * 0.2 * sum((1 - 0.2 * 2) ** j for j in range(4)) * 2 * w,
    }
    given = {"upper_rate": 0.1, "lower_rate": r, "solve_steps": 1, "damping": 0.0}
    for method, direction in wanted.items():
        more = {"solve_steps": 3, "scale": 0.2} if method == "neumann" else {}
        rival = ours.make("synthetic", arrays, method, given | more)
        rival.start(moves)
        np.testing.assert_allclose(rival.direction()[0], direction, rtol=1e-4)


def test_first_order_directions_of_the_synthetic_example_in_closed_form():
    """As the library has them, and as BOAT: the direction of u in the first iteration, by hand."""
    work = works.WORKS["synthetic"]
    arrays = work.arrays()
    (u,), (v,) = ((x.astype(float) for x in works.leaves(arrays, name)) for name in "uv")
    r, gamma, radius, moves = 0.1, 10.0, 2.0, 2

    def slope(v):
        return 2 * (u + v - 1)  # of g, in u and in v

    z = v
    for _ in range(moves):
        z = z - r * slope(z)
    after = v
    for _ in range(moves):
        after = after - r / gamma * (2 * after + gamma * slope(after))
    w = v - r * slope(v)
    c = gamma * 2**0.25
    pulled = v - r * (2 * v / c + slope(v) - (1 - r / radius) / radius * (v - w))
    wanted = {
        ("value-penalty", ""): 2 * u / gamma + slope(after) - slope(z),
        ("value-penalty", "together"): 2 * u / gamma + slope(v) - slope(z),
        ("moreau", ""): 2 * u / c + slope(v) - slope(w),
        ("moreau", "lower first"): 2 * u / c + slope(pulled) - slope(w),
    }
    given = {"upper_rate": 0.1, "lower_rate": r, "gamma": gamma, "weight": gamma, "radius": radius}
    for (method, variant), direction in wanted.items():
        rival = ours.make("synthetic", arrays, method, given | {"variant": variant})
        rival.start(moves)
        np.testing.assert_allclose(rival.direction()[0], direction, rtol=1e-4, atol=1e-5)


def test_the_judge_of_the_synthetic_example():
    judge = jax_problems.judge("synthetic", works.WORKS["synthetic"].arrays())
    assert judge([np.full(10, 0.5)]) == 0


def test_a_file_that_was_written_is_read_into_the_same_tables():
    """With a row that failed, and a peer at twice and at half the time of bilevax's row."""

    def row(key, seconds, beside="penalty", **more):
        cells = {moves: run.Cell([moves * x for x in seconds], seconds, 2**20, 1.0) for moves in (1, 10)}
        return run.Row(key, key, beside, beside, cells, {}, {"fake": "1"}, **more)

    fast, slow = row("bilevax:penalty", [1.0, 2.0], iterations=3), row("torch:x", [2.0, 4.0], unreached="not finite")
    broken = row("betty:y", [], failed="no")
    found = {"synthetic": [fast, slow, broken], "mlp": [slow, row("bilevax:penalty", [4.0, 8.0])]}
    more = {"command": "c", "machine": "m", "threads": 2, "runs": 2, "seconds": 9.0, "versions": {"fake": "1"}}
    kept = report.as_json(
        {name: (works.WORKS[name], rows) for name, rows in found.items()}, moves=(1, 10), reach=10, **more
    )
    text = report.whole(json.loads(json.dumps(kept)))
    assert "| torch:x | penalty | 2.00 | **0.50** |" in text
    assert "| betty:y | penalty | failed | - |" in text
    for name, rows in found.items():
        assert report.table(works.WORKS[name], rows, (1, 10), 10) in text


def test_figures_in_words():
    assert report.milliseconds([0.0012, 0.001, 0.0031]) == "1.2 (1..3.1)"
    assert report.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 1.0]) == 3.0
    assert report.ratio([], [1.0]) is None


def test_scale_counts_bytes_and_fits_slopes():
    assert scale.slope([10, 10**5, 10**6, 10**7], [9.0, 2.0, 20.0, 200.0]) == 1.0
    assert scale.slope([10, 10**6], [1.0, 2.0]) is None
    for row in scale.ROWS:
        assert scale.words(row, 10, 2000) - scale.words(row, 10, 1000) == scale.words(row, 0, 1000)


@pytest.mark.parametrize("row", scale.ROWS)
def test_scale_measures_a_size(row):
    found = scale.measure(row, "v", 10, 1000, 2)
    assert len(found.seconds) == 2
    assert found.left_out is None
    width = jax.dtypes.canonicalize_dtype(float).itemsize
    assert found.arguments > 4 * 1000 * width  # v, Adam's two moments, and nu or q


def test_scale_leaves_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(scale, "available", lambda: 1000.0)
    found = scale.measure("Penalty", "v", 10, 1000, 2)
    assert found.seconds == []
    assert found.left_out is not None
    assert "GiB are needed" in found.left_out

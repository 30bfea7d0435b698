"""Figures are files that show what was handed over; bad input is refused in words."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from bilevax import Info, InputError, plots
from bilevax.plots import Line, LinePanel, Panel


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look inside."""
    figures = []
    save = Figure.savefig

    def keep(self, *arguments, **options):
        figures.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 10  # something is drawn
        return image.size


def test_contact_sheet_shows_every_image_under_its_title(tmp_path, drawn):
    images = np.random.default_rng(0).random((13, 8, 8))
    flags = np.arange(13) < 9
    plots.contact_sheet(images, [f"row {i}\n3 → 8" for i in range(13)], tmp_path / "a.png", "Suspects", flags.tolist())
    width, height = size(tmp_path / "a.png")
    assert width > 1000
    assert height > 300
    (figure,) = drawn
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in shown] == [f"row {i}\n3 → 8" for i in range(13)]
    for axes, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), image)
    frames = [axes.spines["left"].get_edgecolor() for axes in shown]
    assert len(set(frames[:9])) == len(set(frames[9:])) == 1
    assert frames[0] != frames[9]
    assert figure.get_suptitle() == "Suspects"


@pytest.mark.parametrize("shape", [(1, 5, 7), (4, 32, 32, 3)])
def test_contact_sheet_of_other_shapes(tmp_path, shape):
    plots.contact_sheet(np.random.default_rng(0).random(shape), ["a"] * shape[0], tmp_path / "a.png")
    size(tmp_path / "a.png")


def test_contact_sheet_refuses_what_does_not_fit(tmp_path):
    for images, titles in ((np.zeros((0, 8, 8)), []), (np.zeros((2, 8, 8)), ["one"])):
        with pytest.raises(InputError, match="images and"):
            plots.contact_sheet(images, titles, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_weight_histogram_counts_every_sample(tmp_path, drawn):
    weights = np.concatenate([np.linspace(0, 0.3, 40), np.linspace(0.7, 1, 60)])
    plots.weight_histogram(weights, np.arange(100) < 40, tmp_path / "a.png")
    plots.weight_histogram(weights, None, tmp_path / "b.png")
    size(tmp_path / "a.png")
    size(tmp_path / "b.png")
    split, whole = drawn
    counts = [sum(bar.get_height() for bar in bars.patches) for bars in split.axes[0].containers]
    assert counts == [60, 40]
    assert [text.get_text() for text in split.axes[0].get_legend().get_texts()] == [
        "right label (60)",
        "wrong label (40)",
    ]
    assert sum(bar.get_height() for bar in whole.axes[0].patches) == 100
    assert "100" in whole.axes[0].get_title(loc="left")


def history(n, rate):
    falling = np.exp(-rate * np.arange(n))
    return Info(falling, 2 * falling, 3 * falling, np.where(np.arange(n) < n - 1, falling, np.nan), {})


def test_convergence_draws_each_solver_in_its_own_colour(tmp_path, drawn):
    plots.convergence({"Penalty": history(300, 0.01), "ApproxGrad": history(200, 0.02)}, tmp_path / "a.png")
    size(tmp_path / "a.png")
    panels = drawn[0].axes
    assert len(panels) == 4
    for axes in panels:
        first, first_median, second, _ = axes.get_lines()
        assert (len(first.get_xdata()), len(second.get_xdata())) == (300, 200)
        assert first.get_color() == first_median.get_color() != second.get_color()
        assert axes.get_yscale() == "log"
    np.testing.assert_allclose(panels[0].get_lines()[1].get_ydata()[150], np.exp(-1.5), rtol=1e-6)
    assert {text.get_text() for text in panels[0].get_legend().get_texts()} == {"Penalty", "ApproxGrad"}


def test_convergence_of_losses_that_turn_negative(tmp_path, drawn):
    falling = np.linspace(2, -3, 50)
    plots.convergence({"Penalty": Info(falling, falling, falling, falling, {})}, tmp_path / "a.png")
    assert drawn[0].axes[0].get_yscale() == "symlog"


def test_curve_panels_draw_the_mean_over_the_trials(tmp_path, drawn):
    x = np.arange(0, 40_001, 400)
    trials = np.exp(-x / np.array([[2000.0], [4000.0], [8000.0]]))
    left_the_numbers = trials.copy()
    left_the_numbers[1, 50:] = np.inf
    panels = [
        Panel("fine", x, trials, log=True),
        Panel("linear", x, trials, log=False),
        Panel("one trial diverges", x, left_the_numbers, log=True),
        Panel("all diverge", x, np.full_like(trials, np.nan), log=True),
        Panel("a single curve", x, trials[0], log=False),
    ]
    plots.curve_panels(panels, tmp_path / "a.png", columns=2, y_label="distance")
    size(tmp_path / "a.png")
    fine, linear, diverging, empty, single, _ = drawn[0].axes
    assert [len(axes.get_lines()) for axes in (fine, diverging, empty, single)] == [4, 4, 0, 2]
    np.testing.assert_allclose(fine.get_lines()[-1].get_ydata(), trials.mean(0))
    assert np.isnan(diverging.get_lines()[-1].get_ydata()[50:]).all()
    assert (fine.get_yscale(), linear.get_yscale()) == ("log", "linear")
    assert empty.texts[0].get_text() == "no finite value"
    assert fine.get_ylabel() == "distance"
    assert single.get_xlabel() == "upper iterations"


def test_curve_panels_refuse_what_does_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"curves have shape \(2, 3\) and x \(4,\)"):
        plots.curve_panels([Panel("a", np.arange(4), np.zeros((2, 3)), False)], tmp_path / "a.png", 1)
    with pytest.raises(InputError, match="0 panels"):
        plots.curve_panels([], tmp_path / "a.png", 1)


def test_no_global_state_is_touched(tmp_path):
    before = dict(mpl.rcParams)
    plots.weight_histogram(np.linspace(0, 1, 9), None, tmp_path / "a.png")
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == []


def test_line_panels_give_a_method_one_colour_and_draw_the_mean_over_trials(tmp_path, drawn):
    y = np.array([[97.0, 98.0], [99.0, 98.5]])
    panels = [
        LinePanel("accuracy", "T", "%", {"Penalty": Line([1, 5], y), "ApproxGrad": Line([1, 5], [90.0, 91.0])}),
        LinePanel("seconds", "T", "s", {"ApproxGrad": Line([1, 5], [1.0, 4.0])}, {"level": 2.0}),
    ]
    plots.line_panels(panels, tmp_path / "a.png")
    size(tmp_path / "a.png")
    first, second = drawn[0].axes
    np.testing.assert_allclose(first.get_lines()[0].get_ydata(), y.mean(0))
    band = first.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (97.0, 99.0)
    assert first.get_lines()[1].get_color() == second.get_lines()[0].get_color() != first.get_lines()[0].get_color()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["Penalty", "ApproxGrad", "level"]


def test_line_panels_refuse_what_does_not_fit(tmp_path):
    with pytest.raises(InputError, match="no panels"):
        plots.line_panels([], tmp_path / "a.png")
    with pytest.raises(InputError, match=r"'Penalty' has y of shape \(1, 3\) and x of shape \(2,\)"):
        plots.line_panels([LinePanel("a", "T", "%", {"Penalty": Line([1, 5], [1, 2, 3])})], tmp_path / "a.png")


def test_change_sheet_shows_before_after_and_change(tmp_path, drawn):
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 5, 8, 8))
    plots.change_sheet(before, after, list("34567"), [f"as {i}" for i in range(5)], tmp_path / "a.png", "Points")
    (figure,) = drawn
    rows = np.array(figure.axes).reshape(3, 5)
    for i in range(5):
        shown = [np.asarray(axes.images[0].get_array()) for axes in rows[:, i]]
        np.testing.assert_array_equal(shown[0], before[i])
        np.testing.assert_array_equal(shown[1], after[i])
        np.testing.assert_allclose(shown[2], after[i] - before[i])
    assert rows[2, 0].images[0].get_clim()[1] == pytest.approx(np.abs(after - before).max())
    assert rows[0, 2].get_title() == "5"
    assert rows[2, 4].get_xlabel() == "as 4"


def test_change_sheet_has_a_row_of_targets_above_all(tmp_path, drawn):
    before, after, targets = np.random.default_rng(0).random((3, 2, 8, 8, 3))
    plots.change_sheet(before, after, ["", ""], ["near", "far"], tmp_path / "a.png", targets=targets)
    (figure,) = drawn
    rows = np.array(figure.axes).reshape(4, 2)
    assert [axes.get_ylabel() for axes in rows[:, 0]] == ["target", "before", "after", "change"]
    np.testing.assert_array_equal(rows[0, 1].images[0].get_array(), targets[1])
    assert rows[3, 1].get_xlabel() == "far"
    with pytest.raises(InputError, match=r"\(1, 8, 8, 3\) and \(2, 8, 8, 3\)"):
        plots.change_sheet(before, after, ["", ""], ["", ""], tmp_path / "b.png", targets=targets[:1])


@pytest.mark.parametrize(("n", "texts"), [(0, 0), (13, 13), (3, 2)])
def test_change_sheet_refuses_what_does_not_fit(tmp_path, n, texts):
    with pytest.raises(InputError, match="with two texts each, are needed"):
        plots.change_sheet(np.zeros((n, 8, 8)), np.zeros((n, 8, 8)), ["a"] * texts, ["b"] * n, tmp_path / "a.png")


def test_task_sheet_has_a_row_for_each_class(tmp_path, drawn):
    rng = np.random.default_rng(0)
    given, asked = rng.random((3, 2, 8, 8)), rng.random((3, 4, 8, 8))
    right = rng.random((3, 4)) < 0.5
    names = ["cat", r"$\x$", "fox"]  # no formula
    answers = [[f"{i}{j} $\\y$" for j in range(4)] for i in range(3)]
    plots.task_sheet(given, asked, names, answers, right, tmp_path / "a.png", "A task")
    size(tmp_path / "a.png")
    (figure,) = drawn
    rows = np.array(figure.axes).reshape(3, 7)
    assert [axes.get_ylabel() for axes in rows[:, 0]] == names
    colours = set()
    for i in range(3):
        shown = [np.asarray(axes.images[0].get_array()) for axes in np.delete(rows[i], 2)]
        np.testing.assert_array_equal(shown, [*given[i], *asked[i]])
        assert [axes.get_title() for axes in rows[i, 3:]] == answers[i]
        for axes, known in zip(rows[i, 3:], right[i], strict=True):
            colours.add((bool(known), axes.spines["left"].get_edgecolor()))
    assert len(colours) == 2
    assert figure.get_suptitle() == "A task"
    plots.task_sheet(
        rng.random((1, 1, 8, 6, 3)), rng.random((1, 1, 8, 6, 3)), ["a"], [["a"]], [[1]], tmp_path / "b.png"
    )
    size(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("given", "asked", "names", "answers", "right", "sentence"),
    [
        ((2, 0, 8, 8), (2, 1, 8, 8), 2, [1, 1], (2, 1), r"shape \(2, 0, 8, 8\)"),
        ((2, 1, 8, 8), (2, 1, 8, 9), 2, [1, 1], (2, 1), r"and \(2, 1, 8, 9\)"),
        ((2, 1, 8, 8), (3, 1, 8, 8), 3, [1, 1, 1], (3, 1), r"and \(3, 1, 8, 8\)"),
        ((2, 1, 8, 8), (2, 3, 8, 8), 2, [3, 3], (2, 1), r"truth values of shape \(2, 1\)"),
        ((2, 1, 8, 8), (2, 1, 8, 8), 1, [1, 1], (2, 1), "1 names and answers to 2 classes"),
        ((2, 1, 8, 8), (2, 1, 8, 8), 2, [1, 2], (2, 1), "an answer for each picture"),
    ],
)
def test_task_sheet_refuses_what_does_not_fit(tmp_path, given, asked, names, answers, right, sentence):
    texts = [["a"] * n for n in answers]
    with pytest.raises(InputError, match=sentence):
        plots.task_sheet(np.zeros(given), np.zeros(asked), ["a"] * names, texts, np.ones(right), tmp_path / "a.png")


def test_texts_of_sheets_are_no_formulas(tmp_path):
    pictures = np.zeros((1, 8, 8))
    plots.contact_sheet(pictures, [r"$\x$"], tmp_path / "a.png")
    plots.change_sheet(pictures, pictures, [r"$\x$"], [r"as $\y$"], tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 0

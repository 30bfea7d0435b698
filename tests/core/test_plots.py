"""Figures are files that show what was handed over; bad input is refused in words."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bilevax import Info, InputError, plots
from bilevax.plots import Line, LinePanel, Panel, curves
from bilevax.plots.drawing import plain_text


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_convergence_of_losses_that_turn_negative(tmp_path, drawn):
    falling = np.linspace(2, -3, 50)
    plots.convergence({"Penalty": Info(falling, falling, falling, falling, {})}, tmp_path / "a.png")
    assert drawn[0].axes[0].get_yscale() == "symlog"


@pytest.mark.slow
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
    with pytest.raises(InputError, match="no panels"):
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


NAUGHTY = [
    (r"_$\x$", r"_$\x$"),
    ("US$ per %$ unit^", "US$ per %$ unit^"),
    ("a_b^{c \\frac{", "a_b^{c \\frac{"),
    ("two\nlines", "two\nlines"),
    ("tab\tand\x1b[31mred\x00", "tab and\ufffd[31mred\ufffd"),
    ("\ud800lone", "?lone"),
    ("\u202ereversed", "reversed"),
    ("\U0001f600 \u4e2d\u6587", "\U0001f600 \u4e2d\u6587"),
    ("x" * 500 + "y", "x" * 60 + "\u2026" + "x" * 58 + "y"),
    ("a\n" * 9, "a\n" * 6 + "\u2026"),
    (3.5, "3.5"),
    (None, "None"),
]


def draw_all(text, folder):
    """Every public function of plots, with a user's text wherever there is one."""
    grey = np.random.default_rng(0).random((2, 8, 8))
    x = np.arange(1.0, 6)
    plots.contact_sheet(grey, [text, "b"], folder / "a.png", text)
    plots.change_sheet(grey, grey, [text, "b"], [text, "b"], folder / "b.png", text)
    plots.task_sheet(grey[:, None], grey[:, None], [text, "b"], [[text], ["b"]], [[1], [0]], folder / "c.png", text)
    plots.convergence({text: history(9, 0.1), "b": history(9, 0.2)}, folder / "d.png")
    plots.curve_panels([Panel(text, x, x, True)], folder / "e.png", 1, text, text)
    plots.loss_against_strength(x, np.stack([x, x], 1), 1.0, folder / "f.png", text, text)
    plots.line_panels([LinePanel(text, text, text, {text: Line(x, x)}, {text + "level": 2.0})], folder / "g.png")
    plots.bars([text, "b"], {text: [1.0, 2.0]}, folder / "h.png", text, text)


@pytest.mark.slow
def test_texts_of_all_kinds(tmp_path, drawn):
    texts = [text for text, _ in NAUGHTY]
    plots.contact_sheet(np.zeros((len(texts), 2, 2)), texts, tmp_path / "a.png")
    titles = [axes.get_title() for axes in drawn[0].axes[: len(texts)]]
    assert titles == [shown for _, shown in NAUGHTY]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["_$ US$ per %$ unit^ \\frac{ \x1b[31m\x00\ud800 [/min] \U0001f600", "x" * 5000],
    ids=["signs", "long"],
)
def test_texts_are_shown_as_they_are(tmp_path, drawn, text):
    draw_all(text, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 8
    name = plain_text(text, 40)
    assert len(name) == 40
    sheet, _, _, convergence, panels, times, _, bars = drawn
    for title in (sheet.axes[0].get_title(), sheet.get_suptitle(), panels.axes[0].get_title(loc="left")):
        assert title.startswith(name[:15])
        assert len(title) <= 80
    assert [t.get_text() for t in convergence.axes[0].get_legend().get_texts()] == [name, "b"]
    assert times.axes[0].get_title(loc="left").startswith(name[:15])
    assert [t.get_text() for t in bars.axes[0].get_yticklabels()] == [name, "b"]
    for figure in drawn:
        for artist in figure.findobj(Text):
            assert not artist.get_parse_math() or "$" not in artist.get_text() or "mathdefault" in artist.get_text()


def test_numbers_of_logarithmic_axes_stay_formulas(tmp_path, drawn):
    plots.curve_panels([Panel("a", np.arange(50), np.exp(-np.arange(50.0)), True)], tmp_path / "a.png", 1)
    ticks = [t for t in drawn[0].axes[0].get_yticklabels() if "mathdefault" in t.get_text()]
    assert ticks
    assert all(t.get_parse_math() for t in ticks)


def test_a_users_latex_settings_change_nothing(tmp_path):
    with mpl.rc_context({"text.usetex": True}):
        plots.bars(["a_b"], {"%": [1.0]}, tmp_path / "a.png", "$", "#")
    size(tmp_path / "a.png")


@pytest.mark.slow
def test_many_names_leave_room_for_the_axes(tmp_path, drawn):
    plots.convergence({f"solver {i}": history(9, 0.1) for i in range(30)}, tmp_path / "a.png")
    names = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert names[:2] == ["solver 0", "solver 1"]
    assert (len(names), names[-1]) == (25, "and 6 more")


@pytest.mark.slow
def test_convergence_of_several_members(tmp_path, drawn):
    """The strong line is the median over the members that are left, the band their middle half."""
    steps, members = 40, 8
    values = np.arange(1.0, members + 1) * np.ones((steps, 1))
    values[20:, :4] = np.nan  # four members end
    values[30:] = np.nan
    plots.convergence({"Vectorized": Info(values, values, values, values, {})}, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    pale, strong = axes.get_lines()
    np.testing.assert_allclose(pale.get_ydata()[:20], 4.5)
    np.testing.assert_allclose(strong.get_ydata()[22:29], 6.5)
    assert np.isnan(pale.get_ydata()[30:]).all()
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (2.75, 7.25)  # quartiles of 1..8 (2.75, 6.25), and of 5..8 (5.75, 7.25)
    assert "middle half" in drawn[0].axes[2].get_xlabel()


@pytest.mark.slow
def test_convergence_with_constraints(tmp_path, drawn):
    """The violation is a fifth panel, with a line for each history that has it, and a band over members."""
    plain, amounts = history(60, 0.01), np.linspace(1, 0, 60)
    single = plain._replace(extra={"constraint_violation": amounts})
    plots.convergence({"Penalty": single, "Alternating": plain}, tmp_path / "a.png")
    members = np.stack([amounts, 2 * amounts, 3 * amounts, np.full(60, np.nan)], 1)
    many = Info(members, members, members, members, {"constraint_violation": members})
    plots.convergence({"Vectorized": many}, tmp_path / "b.png")
    one, several = drawn
    assert [axes.get_title(loc="left") for axes in one.axes][4:] == ["Constraint violation"]
    (line,) = [line for line in one.axes[4].get_lines() if line.get_label() == "Penalty"]
    assert line.get_ydata()[-1] == pytest.approx(0, abs=0.05)
    assert len(one.axes[4].get_lines()) == 2
    band = several.axes[4].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2.5)
    assert several.axes[4].get_xlabel().startswith("step; band")
    assert several.axes[3].get_xlabel()


@pytest.mark.parametrize(
    "values",
    [np.zeros(0), np.array([1e308, -1e308, 1e-320]),
     *(pytest.param(x, marks=pytest.mark.slow)
       for x in (np.full((9, 2), np.inf), np.float64(3.0), np.ones((4, 2, 3)),
                 np.full(9, np.nan), np.zeros((9, 0)), np.ones(1), np.zeros((0, 4))))],
)  # fmt: skip
def test_convergence_of_histories_with_little_in_them(tmp_path, values):
    plots.convergence({"Penalty": Info(values, values, values, values, {})}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_running_median_of_many_steps_takes_little_memory():
    x, median = curves._running_median(np.arange(200_001.0))
    assert len(x) == len(median) <= 2000
    np.testing.assert_allclose(median[100:-100], x[100:-100] - 1, atol=1)


NOT_NUMBERS = [["a", "b"], [[1, 2], [3]], object(), [1 + 1j], None]


@pytest.mark.parametrize("bad", NOT_NUMBERS, ids=["words", "ragged", "object", "complex", "nothing"])
def test_what_is_no_array_is_refused(tmp_path, bad):
    path, grey = tmp_path / "a.png", np.zeros((1, 4, 4))
    for call in (
        lambda: plots.contact_sheet(bad, ["a"], path),
        lambda: plots.change_sheet(grey, bad, ["a"], ["a"], path),
        lambda: plots.task_sheet(bad, grey[None], ["a"], [["a"]], [[1]], path),
        lambda: plots.weight_histogram(bad, None, path),
        lambda: plots.convergence({"a": Info(bad, bad, bad, bad, {})}, path),
        lambda: plots.curve_panels([Panel("a", [1, 2], bad, True)], path, 1),
        lambda: plots.loss_against_strength([1, 2], bad, 1.0, path, "a"),
        lambda: plots.loss_against_strength(bad, [[1, 2], [1, 2]], 1.0, path, "a"),
        lambda: plots.line_panels([LinePanel("a", "", "", {"b": Line(bad, [1, 2])})], path),
        lambda: plots.bars(["a", "b"], {"c": bad}, path, "", ""),
    ):
        with pytest.raises(InputError):
            call()
    assert not path.exists()


@pytest.mark.parametrize("bad", [None, 3, "a", [1], {"a": 1}, {"a": None}])
def test_what_is_nothing_to_draw_is_refused(tmp_path, bad):
    path, grey = tmp_path / "a.png", np.zeros((1, 4, 4))
    for call in (
        lambda: plots.convergence(bad, path),
        lambda: plots.loss_against_strength(bad, [1.0], 1.0, path, "a"),
        lambda: plots.curve_panels(bad, path, 1),
        lambda: plots.curve_panels([Panel("a", [1], [1], False)], path, str(bad)),
        lambda: plots.line_panels(bad, path),
        lambda: plots.line_panels([LinePanel("a", "", "", {"b": bad})], path),
        lambda: plots.bars(["a"], bad, path, "", ""),
        lambda: plots.contact_sheet(grey, bad if bad != [1] else None, path, "", [1, 0]),
        lambda: plots.task_sheet(grey[None], grey[None], ["a"], 3 if bad == [1] else bad, [[1]], path),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("a.pdf", "must end in .png"),
        ("a", "must end in .png"),
        ("gone/a.png", "cannot be written"),
        ("file/a.png", "cannot be written"),
        ("folder.png", "cannot be written"),
        ("s3://bucket/a.png", "a URL"),
        ("", "empty"),
        (None, "must be a path"),
        (3, "must be a path"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path, monkeypatch, path, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=sentence):
        plots.weight_histogram(np.linspace(0, 1, 9), None, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_weights_that_are_none(tmp_path):
    for weights in ([], [0.5, np.nan], [0.5, 2.0], [[0.5]]):
        with pytest.raises(InputError, match="weight"):
            plots.weight_histogram(weights, None, tmp_path / "a.png")
    with pytest.raises(InputError, match=r"wrong has shape \(2,\)"):
        plots.weight_histogram([0.5], [True, False], tmp_path / "a.png")


def test_more_than_fits_into_a_figure(tmp_path):
    with pytest.raises(InputError, match="does not fit into one figure"):
        plots.bars([str(i) for i in range(2000)], {"a": np.zeros(2000)}, tmp_path / "a.png", "", "")


def test_values_without_an_end_are_left_out(tmp_path, drawn):
    plots.bars(["a", "b", "c"], {"m": [1.0, np.inf, np.nan]}, tmp_path / "a.png", "", "")
    plots.loss_against_strength([1, 2], [[np.inf, 1.0], [1e308, 2.0]], 1.0, tmp_path / "b.png", "")
    plots.line_panels([LinePanel("", "", "", {"m": Line([1, 2], [np.nan, np.nan])})], tmp_path / "c.png")
    assert np.isfinite(drawn[0].axes[0].get_xlim()).all()
    assert len(list(tmp_path.iterdir())) == 3

"""The review page in a headless browser: decisions, undo, storage, export and import, filters, colours.

Skipped where there is no Chromium with its driver (Debian: chromium, chromium-driver) or no selenium.
"""

import base64
import csv
import io
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from bilevax.applications.denoising.review import Review, Suspect, read_decisions, review_page

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and chromedriver on the PATH")

CLASSES = ["cat", "dog", "cow"]
TEXTS = ["It barks", "purrs </script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>"]
TEXTS += ["says \0 nothing", '=SUM("a";1), quoted', "moo\nand moo", "שלום \u202e txet", "long " * 2000]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    downloads = tmp_path_factory.mktemp("downloads")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,860"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


class Opened:
    """A page in the browser, and what it shows."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path
        driver.get_log("performance")
        driver.get(path.as_uri())

    def run(self, script):
        return self.driver.execute_script(f"return {script}")

    def press(self, *keys):
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector):
        self.one(selector).click()

    def choose(self, name, text):
        Select(self.one(f"#{name}")).select_by_visible_text(text)

    def search(self, text):
        self.one("#search").clear()
        self.one("#search").send_keys(text or Keys.BACKSPACE)
        time.sleep(0.25)

    def reload(self):
        self.driver.refresh()

    @property
    def rows(self):
        found = self.run("[...document.querySelectorAll('.row')].map(r => [Number(r.ariaRowIndex), r.dataset.suspect])")
        return [int(i) for _, i in sorted(found)]

    @property
    def current(self):
        return self.run("Number(document.querySelector('.row.current').dataset.suspect)")

    @property
    def tally(self):
        return self.one("#tally").text

    @property
    def status(self):
        return self.run("document.getElementById('status').textContent")

    def exported(self):
        for path in self.driver.downloads.iterdir():
            path.unlink()
        self.click("#export")
        path = self.driver.downloads / "decisions.csv"
        for _ in range(100):
            if path.is_file() and path.stat().st_size:
                return path
            time.sleep(0.05)
        raise AssertionError("nothing was exported")


def suspects(contents=TEXTS):
    found = []
    for i, content in enumerate(contents):
        given, suggested = CLASSES[i % 3], CLASSES[(i + 1 + i // 3 % 2) % 3]
        found.append(Suspect(100 - i, given, suggested, 0.99 - i / 2000, content, i + 2, f"=id {i}"))
    return found


def written(path, found, **changes):
    matrix = np.array([[0.8, 0.15, 0.05], [0.1, 0.9, 0.0], [0.02, 0.03, 0.95]])
    review = Review("Pets & <b>others</b>", "cd" * 32, CLASSES, found, 1000, 80.0, (70.0, 90.0), matrix, "EM")
    review_page(review._replace(**changes), path)
    return path


@pytest.fixture
def page(browser, tmp_path):
    opened = Opened(browser, written(tmp_path / "report.html", suspects()))
    opened.run("localStorage.clear()")
    opened.reload()
    yield opened
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert messages == []
    assert opened.run("window.hacked ?? null") is None
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith(("file:///", "data:", "blob:")) for url in addresses), addresses
    assert {url for url in addresses if url.startswith("file:")} == {opened.path.as_uri()}


def test_keys_decide_and_go_on(page):
    assert (page.current, page.tally) == (0, "0 · 0 · 0")
    page.press("k", "c", "d", "3")
    assert page.tally == "1 · 2 · 1"
    assert page.one("#decided").text == "4 of 8"
    assert page.current == 4
    assert page.status == "Row 97 corrected to cow."  # class 3
    page.press("2", Keys.ARROW_UP, Keys.ARROW_UP, "k")  # its own class: kept; then row 3 again
    assert page.tally == "3 · 1 · 1"
    page.press(Keys.END)
    assert page.current == 7
    page.press(Keys.HOME)
    assert page.current == 0
    page.press(Keys.PAGE_DOWN)
    assert page.current == 7


def test_undo_goes_back_step_by_step(page):
    page.press("k", "c", Keys.HOME, "d")
    assert page.tally == "0 · 1 · 1"
    page.press("u")
    assert (page.tally, page.current) == ("1 · 1 · 0", 0)
    page.click("#undo")
    page.press(Keys.CONTROL + "z")
    assert page.tally == "0 · 0 · 0"
    assert page.one("#undo").get_attribute("disabled")
    assert page.one("#export").get_attribute("disabled")


def test_the_mouse_decides(page):
    page.click('#suspect-2 [data-word="correct"]')
    page.click('#suspect-1 [data-word="drop"]')
    assert (page.tally, page.current) == ("0 · 1 · 1", 1)
    assert page.one('#suspect-1 [data-word="drop"]').get_attribute("aria-pressed") == "true"
    page.click("#suspect-5 .content")
    page.click('#current [data-word="keep"]')
    assert page.tally == "1 · 1 · 1"
    page.click("#suspect-5 .content")
    page.click('.others button[aria-label="Correct to dog"]')
    assert page.one("#suspect-5 .labels").text.split() == ["cow", "→", "dog"]


def test_decisions_outlive_a_reload_for_the_same_data_alone(page, tmp_path):
    page.press("k", "c", "d")
    page.reload()
    assert page.tally == "1 · 1 · 1"
    assert page.one("#undo").get_attribute("disabled")
    # The same data ranked anew, where row 99 now has another given label.
    again = [s._replace(given="cow") if s.row == 99 else s for s in reversed(suspects())]
    written(page.path, again)
    page.reload()
    assert page.tally == "1 · 0 · 1"
    written(page.path, suspects(), digest="ef" * 32)
    page.reload()
    assert page.tally == "0 · 0 · 0"


def test_export_is_what_is_applied_and_can_be_imported(page):
    page.press("k", "c", "d", "1", "c")
    path = page.exported()
    decisions = read_decisions(path)
    assert decisions.digest == "sha256:cdcdcdcdcdcdcdcd"
    found = [(d.row, d.line, d.identifier, d.given, d.word, d.label) for d in decisions.items]
    assert found == [
        (96, 6, "=id 4", "dog", "correct", "cat"),
        (97, 5, "=id 3", "cat", "keep", "cat"),
        (98, 4, "=id 2", "cow", "drop", ""),
        (99, 3, "=id 1", "dog", "correct", "cow"),
        (100, 2, "=id 0", "cat", "keep", "cat"),
    ]
    text = path.read_text(encoding="utf-8")
    assert "'=id 4" in text  # no spreadsheet runs it
    page.run("localStorage.clear()")
    page.reload()
    assert page.tally == "0 · 0 · 0"
    page.one("#file").send_keys(str(path))
    for _ in range(40):
        if page.tally == "2 · 2 · 1":
            break
        time.sleep(0.05)
    assert page.tally == "2 · 2 · 1"
    assert page.status == "Imported 5 decisions; 5 differ from those here."
    page.press("u")
    assert page.tally == "0 · 0 · 0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sha256:cd", "sha256:00"), "is about other data"),
        (("correct,cow", "delete,cow"), "“delete” is no decision"),
        (("correct,cow", "correct,cwo"), "“cwo” is no class"),
        (("99,3", "x,3"), "“x” is no row"),
        (("dog,correct", "cat,correct"), "row 99 has the given label “dog” here"),
        (("decision", "word"), "no CSV file of decisions"),
        (("label,data", "label,digest"), "lacks the column data"),
    ],
)
def test_an_import_that_does_not_fit_changes_nothing(page, tmp_path, change, message):
    page.press(Keys.ARROW_DOWN, "c")
    path = tmp_path / "other.csv"
    text = page.exported().read_text(encoding="utf-8")
    assert change[0] in text
    path.write_text(text.replace(*change), encoding="utf-8")
    page.press("u")
    page.one("#file").send_keys(str(path))
    for _ in range(40):
        if message in page.status:
            break
        time.sleep(0.05)
    assert message in page.status
    assert page.status.endswith("Nothing was imported.")
    assert page.tally == "0 · 0 · 0"


def test_decisions_on_rows_that_are_no_longer_listed_are_kept(page, tmp_path):
    page.press("k", "c", "d")
    written(page.path, suspects()[2:])  # the same data ranked anew, without rows 99 and 100
    page.reload()
    assert page.one("#decided").text == "1 of 6 +2 not listed"
    page.press(Keys.END, "c")
    path = page.exported()
    assert page.status == "Exported 4 decisions as decisions.csv."
    found = [(d.row, d.given, d.word, d.label) for d in read_decisions(path).items]
    assert found == [
        (93, "dog", "correct", "cow"),
        (98, "cow", "drop", ""),
        (99, "dog", "correct", "cow"),
        (100, "cat", "keep", "cat"),
    ]
    page.run("localStorage.clear()")
    page.reload()
    page.one("#file").send_keys(str(path))
    for _ in range(40):
        if "Imported" in page.status:
            break
        time.sleep(0.05)
    wanted = "Imported 4 decisions; 4 differ from those here. 2 on rows that are not listed here, kept for the export."
    assert page.status == wanted
    written(page.path, suspects())
    page.reload()
    assert page.one("#decided").text == "4 of 8"


@pytest.mark.slow
def test_filters_search_and_sorting(page):
    page.choose("given", "cow (2)")
    assert page.rows == [2, 5]
    page.choose("suggested", "dog (3)")
    assert page.rows == [5]
    page.press(Keys.ESCAPE)
    assert page.rows == list(range(8))
    page.click('#noise button[aria-label="Show given dog, suggested cat"]')
    assert page.rows == [4]
    page.click("#clear")
    page.search("MOO and")
    assert page.rows == [5]
    page.search("row 97")
    assert page.rows == [3]
    page.search("no such text")
    assert page.rows == []
    assert page.one("#nothing").is_displayed()
    page.search("")
    page.choose("sort", "row")
    assert page.rows == [7, 6, 5, 4, 3, 2, 1, 0]
    page.choose("sort", "given label")
    assert page.rows == [0, 3, 6, 1, 4, 7, 2, 5]


def test_undecided_suspects_leave_the_list_as_they_are_decided(page):
    page.choose("state", "undecided")
    page.click("#suspect-1 .content")
    page.press("k", "k")
    assert page.rows == [0, 3, 4, 5, 6, 7]
    assert page.current == 3
    page.press("u")
    assert page.rows == [0, 2, 3, 4, 5, 6, 7]
    page.choose("state", "kept")
    assert page.rows == [1]


def test_all_shown_at_once_is_one_step(page):
    page.choose("given", "cat (3)")
    page.click('[data-all="correct"]')
    assert page.tally == "0 · 3 · 0"
    page.press(Keys.ESCAPE, "u")
    assert page.tally == "0 · 0 · 0"


def test_typing_in_the_search_decides_nothing(page):
    page.press("/", *"kcd1")
    assert page.tally == "0 · 0 · 0"
    assert page.one("#search").get_attribute("value") == "kcd1"
    page.press(Keys.ESCAPE)
    assert page.one("#search").get_attribute("value") == ""
    page.press("k")
    assert page.tally == "1 · 0 · 0"
    page.press("?")
    assert page.one("#help").is_displayed()
    page.press("k", Keys.ESCAPE)
    assert page.tally == "1 · 0 · 0"


def test_what_the_user_wrote_is_shown_as_text(page):
    shown = page.run("[...document.querySelectorAll('.row .content')].map(x => x.textContent)")
    assert sorted(shown) == sorted(text.replace("\0", "\\x00")[:300] for text in TEXTS)
    assert page.one("h1").text == "Pets & <b>others</b>"
    page.press(Keys.END)
    assert page.run("document.querySelector('.whole').textContent") == TEXTS[-1]


def contrast(page, selector):
    """The contrast of a text with the ground behind it, by the formula of WCAG 2."""
    script = """
      const node = document.querySelector(arguments[0]), options = { willReadFrequently: true };
      const canvas = document.createElement('canvas').getContext('2d', options);
      const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data]; };
      let ground = node; while (rgb(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
      return [rgb(getComputedStyle(node).color), rgb(getComputedStyle(ground).backgroundColor)];
    """
    colours = page.driver.execute_script(script, selector)
    light = []
    for colour in colours:
        x = np.array(colour[:3]) / 255
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("system", ["light", "dark"])
def test_light_and_dark(page, system):
    feature = [{"name": "prefers-color-scheme", "value": system}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    page.reload()
    page.press("k", "c", "d")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.run(ground)
    for _ in range(2):
        for selector in (
            ".row .labels .label",
            ".row small",
            "[data-decision=keep] .then",
            "[data-decision=correct] .then b",
            "[data-decision=drop] .then",
            ".tools label",
            "#export",
            ".figure",
            "#noise td.wrong button",
        ):
            assert contrast(page, selector) >= 4.5, (selector, system)
        page.click("#theme")
    assert page.run(ground) == before
    page.click("#theme")
    assert page.run(ground) != before
    page.reload()
    assert page.run(ground) != before  # the switch is remembered
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
def test_every_control_has_a_name_and_the_keyboard_reaches_it(page):
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        n for n in nodes if n.get("role", {}).get("value") in ("button", "combobox", "searchbox", "grid", "row")
    ]
    assert len(controls) > 40
    unnamed = [n["role"]["value"] for n in controls if not n.get("name", {}).get("value")]
    assert set(unnamed) <= {"row"}  # which has cells
    grid = next(n for n in nodes if n["role"]["value"] == "grid")
    assert grid["name"]["value"] == "Suspects"
    assert page.one("#list").get_attribute("aria-activedescendant") == "suspect-0"
    seen = []
    for _ in range(60):
        page.press(Keys.TAB)
        seen.append(page.run("document.activeElement.id || document.activeElement.dataset.word || ''"))
    assert {"search", "given", "suggested", "state", "sort", "import", "theme", "keys", "keep", "correct", "drop"} <= {
        *seen
    }


def test_a_narrow_window(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 780, "deviceScaleFactor": 1, "mobile": False}
    )
    page.reload()
    assert page.run("document.documentElement.scrollWidth") <= 400
    page.click('#current [data-word="drop"]')
    assert page.run("document.getElementById('tally').textContent") == "0 · 0 · 1"  # hidden here
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_pictures_stand_side_by_side(page):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    written(page.path, suspects([buffer.getvalue()] * 30))
    page.reload()
    page.run("document.querySelector('.row img').decode()")
    assert page.run("document.querySelector('.row img').naturalWidth") == 8
    page.press(Keys.ARROW_RIGHT)
    assert page.current == 1
    page.press(Keys.ARROW_DOWN)
    across = page.current - 1
    assert across >= 4
    page.press("c")
    assert page.current == across + 2


@pytest.mark.slow
def test_of_many_classes_one_is_typed(page):
    names = [f"intent {i}" for i in range(77)]
    found = [Suspect(i, names[i], names[i + 1], 0.9, "a text", i + 2) for i in range(5)]
    written(page.path, found, classes=names, noise_matrix=np.eye(77))
    page.reload()
    page.press("o")
    page.press(*"intent 76", Keys.ENTER)
    assert page.status == "Row 0 corrected to intent 76."
    page.press("k")  # the keys decide again
    assert (page.tally, page.current) == ("1 · 1 · 0", 2)
    page.press("o")
    page.press(*"intent 99", Keys.ENTER)
    assert page.status == "“intent 99” is no class."
    assert page.tally == "1 · 1 · 0"
    page.press("4")  # typed into the field
    page.press(Keys.ESCAPE, "3")
    assert page.tally == "2 · 1 · 0"  # the third class is its own


def test_buttons_keep_the_focus_as_decisions_go_on(page):
    page.one('#current [data-word="drop"]').send_keys(Keys.ENTER)
    assert page.run("document.activeElement.dataset.word") == "drop"
    page.press(Keys.ENTER)
    assert page.tally == "0 · 0 · 2"


def test_a_browser_that_keeps_nothing(page):
    """In a data URL there is no storage, as in some browsers' private windows."""
    content = base64.b64encode(page.path.read_bytes()).decode()
    page.driver.get(f"data:text/html;base64,{content}")
    assert page.status == "This browser keeps nothing for this page: export the decisions before closing it."
    page.press("k", "d")
    assert page.tally == "1 · 0 · 1"
    page.press("u", "u")


@pytest.mark.slow
def test_two_thousand_suspects_are_quick(page):
    found = []
    for i in range(2000):
        content = {f"column {j}": float(i * j) for j in range(30)}
        found.append(Suspect(i, CLASSES[i % 3], CLASSES[(i + 1) % 3], 1 - i / 2100, content, i + 2))
    written(page.path, found, samples=100_000)
    assert page.path.stat().st_size < 2_000_000
    page.reload()
    timing = page.run("performance.getEntriesByType('navigation')[0].domComplete")
    assert timing < 5000  # ms, on slow machines
    assert len(page.rows) < 60
    page.press(Keys.END)
    assert page.current == 1999
    began = time.perf_counter()
    page.press(*"kcdkcdkcdk")
    assert (time.perf_counter() - began) / 10 < 0.5
    page.search("999999 57942")
    assert page.rows == []
    page.search("57942")
    assert page.rows == [1998]


def test_the_csv_of_the_page_is_the_csv_of_python(page, tmp_path):
    nasty = ['say "x", y', "semi;colon", " blanks ", "line\nbreak", "-1", "-a", "''=x", "tab\t", "ünï"]
    found = [Suspect(i, name, nasty[(i + 1) % len(nasty)], 0.5, "t", None, name) for i, name in enumerate(nasty)]
    written(page.path, found, classes=nasty, noise_matrix=None)
    page.reload()
    page.press(*"c" * len(nasty))
    path = page.exported()
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(nasty)
    items = read_decisions(path).items
    assert [d.identifier for d in items] == nasty
    assert [d.given for d in items] == [name.strip() for name in nasty]
    page.run("localStorage.clear()")
    page.reload()
    page.one("#file").send_keys(str(path))
    for _ in range(40):
        if page.tally.startswith("0 · 9"):
            break
        time.sleep(0.05)
    assert page.tally == "0 · 9 · 0"


def test_of_a_quantity_any_number_is_typed(page):
    values = ["-3.5", "2.25", "12", "1,250.5"]
    found = [Suspect(i, values[i], values[i + 1], 0.9 - i / 10, "a text", i + 2) for i in range(3)]
    written(page.path, found, classes=values, noise_matrix=None, quantity=True)
    page.reload()
    assert not page.one("#given").is_displayed()
    page.press("4")  # no class has a digit
    assert page.tally == "0 · 0 · 0"
    page.press("c", "o")
    page.press(*"7.125", Keys.ENTER)
    assert page.status == "Row 1 corrected to 7.125."
    page.press("o")
    page.press(*"much", Keys.ENTER)
    assert page.status == "“much” is no number."
    page.press(Keys.ESCAPE, "d")
    assert page.tally == "0 · 2 · 1"
    path = page.exported()
    items = read_decisions(path).items
    assert [(one.given, one.word, one.label) for one in items] == [
        ("-3.5", "correct", "2.25"),
        ("2.25", "correct", "7.125"),
        ("12", "drop", ""),
    ]
    page.reload()
    assert page.tally == "0 · 2 · 1"
    page.choose("sort", "given value")
    assert page.rows == [0, 1, 2]

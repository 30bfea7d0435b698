"""The site builds without a warning, asks no outside host for anything, and what its pages say in Python is true."""

import os
import re
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import bilevax
import bilevax.data
import bilevax.nn

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = (ROOT / "experiments" / "RESULTS.md").read_text(encoding="utf-8")
# Other libraries' code, and files of this one included whole, stand in fences of another form: ``` { .python }.
FENCE = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+\.\d+")


def blocks(page):
    found = [textwrap.dedent(code) for _, code in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [code for code in found if "--8<--" not in code]


# --- what the pages say in Python -----------------------------------------------------------------------------------

# Each of these has a test of its own, of what its figures mean.
IN_TEST_README = {"audit.md", "fewshot.md"}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page) and page.name not in IN_TEST_README]
QUICK = {"index.md", "problems.md", "devices.md"}  # the others take a minute together


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=() if page.name in QUICK else pytest.mark.slow) for page in PAGES],
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a page may write files
    names: dict = {"__name__": page.stem}
    for code in blocks(page):
        exec(compile(code, page.name, "exec"), names)


def test_the_other_pages_are_run_elsewhere():
    elsewhere = (ROOT / "tests" / "docs" / "test_readme.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in elsewhere for name in IN_TEST_README)


# --- the site -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page loads, what it links to, which ids it has, and its text."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.parts = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(found["href"])
        if tag in ("script", "img", "source", "iframe", "video", "audio", "embed") and found.get("src"):
            self.loads.append(found["src"])

    def handle_data(self, data):
        self.parts.append(data)

    @property
    def text(self):
        return "".join(self.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_nothing_is_asked_of_an_outside_host(site, pages):
    """Scripts, styles, pictures and fonts lie beside the pages."""
    for path, page in pages.items():
        for url in page.loads:
            parts = urlsplit(url)
            if parts.scheme == "data":
                continue
            assert (parts.scheme, parts.netloc) == ("", ""), f"{path.name} loads {url}"
            beside = site / parts.path.lstrip("/") if parts.path.startswith("/") else path.parent / unquote(parts.path)
            assert beside.is_file(), f"{path.name} loads {url}, which is not there"
    for sheet in site.rglob("*.css"):
        for url in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)", sheet.read_text(encoding="utf-8")):
            assert urlsplit(url).scheme in ("", "data"), f"{sheet.name} loads {url}"
            assert not url.startswith("//"), f"{sheet.name} loads {url}"


def test_links_between_pages_arrive(pages):
    """mkdocs checks those written in Markdown; these are all, those of the reference and of HTML included."""
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for url in page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.exists(), f"{path.name} links to {url}"
            if parts.fragment and there in pages:
                assert unquote(parts.fragment) in pages[there].ids, f"{path.name} links to {url}"


def test_formulas_are_typeset_by_what_lies_beside_them(site, pages):
    assert (site / "mathjax" / "tex-svg.js").stat().st_size > 1_000_000
    assert (site / "mathjax" / "LICENSE").is_file()
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    with_formulas = {path.stem for path, text in texts.items() if 'class="arithmatex"' in text}
    assert {"index", "method", "solvers", "problems", "denoising"} <= with_formulas
    for path, text in texts.items():
        assert "javascripts/mathjax.js" in text, path
    # A dollar that was not taken for a formula.
    for path, page in pages.items():
        assert not re.search(r"\$\\|\\[a-z]+\s*\$", page.text), path


def test_every_name_of_the_package_is_in_the_reference(site):
    import zlib

    raw = (site / "objects.inv").read_bytes()
    listed = zlib.decompress(raw.split(b"\n", 4)[4]).decode()
    documented = {line.split()[0].rpartition(".")[2] for line in listed.splitlines()}
    for package in (bilevax, bilevax.data, bilevax.nn):
        names = getattr(package, "__all__", None) or vars(package)  # the root has no names before their first use
        members = {name: getattr(package, name) for name in names if not name.startswith("_")}
        public = {name for name, value in members.items() if type(value).__name__ != "module"}
        assert public - documented == set(), package.__name__


# --- generated figures ----------------------------------------------------------------------------------------------


def test_the_results_page_has_every_figure_of_the_results(site, pages):
    page = pages[site / "results.html"]
    wanted, found = NUMBER.findall(RESULTS), NUMBER.findall(page.text)
    assert len(wanted) > 500
    for number in set(wanted):
        assert found.count(number) >= wanted.count(number), number
    pictures = re.findall(r"\]\((figures/[^)]+)\)", RESULTS)
    assert pictures
    assert set(pictures) <= set(page.loads)
    for command in re.findall(r"^## `(.*)`$", RESULTS, flags=re.MULTILINE):
        assert command in page.text


def test_the_page_on_wrong_labels_has_those_of_the_experiment(site, pages):
    text = pages[site / "denoising.html"].text
    assert "%%" not in text
    sections = [s for s in RESULTS.split("\n## ") if s.startswith("`python -m experiments wrong-labels")]
    assert sections
    for section in sections:
        rows = [line.split("|") for line in section.splitlines() if "25%, 1000 clean" in line][:2]
        header = next(line.split("|") for line in section.splitlines() if "| bilevax |" in line)
        for row in rows:
            for name in ("bilevax", "cleanlab", "Val-Only", "Train+Val"):
                mean = row[[h.strip() for h in header].index(name)].split("±")[0].strip()
                assert mean in text, (row[1], name, mean)


def test_included_sources_are_the_files_themselves(site, pages):
    text = pages[site / "adding-a-solver.html"].text
    for name in (
        "src/bilevax/solvers/alternating.py",
        "src/bilevax/solvers/look_ahead.py",
        "tests/core/test_solvers.py",
    ):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            assert line in text, (name, line)

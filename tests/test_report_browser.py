"""The report page in a real headless Chromium: sort, search, open a probe, no error, nothing loaded.

Needs a Chromium ('make browser' installs one) and the driver of the extra ``dev``.
"""

import itertools
import shutil
from pathlib import Path

import pytest
from test_report import write_run
from test_table import HOSTILE, record

from ocr_eval.records.find import find_runs
from ocr_eval.report.page import build_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: the page is not tested; run 'make browser'")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report")
    evil = "</script><img src=x onerror=alert(1)>"
    for model, rank in (("alpha", 0.5), ("beta", 0.1), (evil, 1.5)):
        for seed in (0, 1):
            made = record(model=model, seed=seed, rank=rank)
            write_run(root / f"{len(model)}-{model[0]}-{seed}".replace("<", "x"), made)
    (root / "report.html").write_text(build_page(find_runs(root), "first-token")[0])
    return root / "report.html"


@pytest.fixture(params=["light", "dark"])
def page(browser, file, request):
    """The page, opened as a double click does; fails on any message of the console and on any request."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1300, "height": 900})
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append("a dialog: " + dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}


def column(page, table: str, number: int) -> list[str]:
    return page.locator(f"{table} tbody tr:visible > :nth-child({number})").all_inner_texts()


def test_the_table_sorts_by_keyboard_and_says_so(page):
    button = page.locator("#table thead button", has_text="city-language").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    assert [text[:5] for text in column(page, "#table", 1)[:3]] == ["</scr", "alpha", "beta"]
    page.keyboard.press("Enter")
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    assert [text[:5] for text in column(page, "#table", 1)[:3]] == ["beta", "alpha", "</scr"]
    assert column(page, "#table", 2)[3:] == ["published"] * 5


def test_runs_are_searched_and_opened(page):
    page.get_by_label("Search runs").fill("beta seed 1")
    assert page.locator("details.run:visible").count() == 1
    page.get_by_text("Every run in one table").click()
    assert column(page, "#run-table", 2) == ["beta"]
    page.locator("#run-table tbody tr:visible a").click()
    section = page.locator("details.run:visible")
    section.locator(".probes tbody tr").first.wait_for()
    assert section.get_attribute("open") is not None
    assert "mean rank over epochs" in section.locator("svg.curve").get_attribute("aria-label").lower()
    assert section.locator(".heat td.right").count() == 1
    assert "ocr-eval finetune --model ./beta.yaml" in section.locator("pre.command").inner_text()
    section.get_by_text("Versions and machine").click()
    assert '"python": "3"' in section.inner_text()


def open_a_run(page):
    page.locator("details.group > summary").first.click()
    page.locator("details.run > summary").first.click()


def test_probes_are_searched_filtered_and_opened(page):
    open_a_run(page)
    probes = page.locator("details.run[open] .probes tbody")
    probes.locator("tr").first.wait_for()
    assert probes.locator("tr").count() == 40
    page.get_by_label("Quantity").select_option("")
    assert probes.locator("tr").count() == 41
    page.get_by_label("Search prompts").fill("no such name")
    assert probes.locator("tr").count() == 0
    assert "0 of 41 probes" in page.locator("details.run[open]").inner_text()
    page.get_by_label("Search prompts").fill("speaks")
    page.get_by_label("wrong only").check()
    assert probes.locator("tr").count() == 40
    probes.locator("summary").first.click()
    listed = probes.locator("ol").first.locator("li").all_inner_texts()
    assert listed == [f"{HOSTILE} 0.665 (-1.00)", "x 0.245 (-2.00)", "z 0.090 (-3.00)"]


def test_markup_in_names_is_shown_as_it_is(page):
    open_a_run(page)
    page.locator("details.run[open] .probes tbody tr").first.wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("#table").get_by_text("</script><img src=x onerror=alert(1)>").count() >= 1


def test_the_page_can_be_used_without_a_mouse_or_eyes(page):
    """Every control has a name, every table a caption and header cells with a scope, every picture a text."""
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, summary, img, svg, progress")].filter((e) =>
            !(e.labels?.length || e.textContent.trim() || e.alt || e.ariaLabel)).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the table"
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_text_stands_out_from_its_background(page):
    """WCAG AA, 4.5 to 1, for the page's own text colours in this scheme."""
    ratios = page.evaluate(
        """() => {
          const channel = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const light = (css) => { const [r, g, b] = css.match(/[\\d.]+/g).map(Number);
            return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
          const back = light(getComputedStyle(document.body).backgroundColor);
          return ["body", ".counts", "caption", "nav a", ".line + .line"].map((s) => {
            const front = light(getComputedStyle(document.querySelector(s)).color);
            return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05); });
        }"""
    )
    assert min(ratios) >= 4.5


def test_it_prints(browser, file, tmp_path):
    page = browser.new_page()
    page.goto(file.as_uri())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("#table table").is_visible()
    assert not page.locator("#runs").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()

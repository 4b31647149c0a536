"""The report page in a real headless Chromium: sort, search, open a probe, print, narrow and large; nothing loaded.

Needs a Chromium ('make browser' installs one) and the driver of the extra ``dev``.
"""

import itertools
import json
import random
import re
import shutil
from io import BytesIO
from pathlib import Path

import pytest
from made_records import HOSTILE, record
from PIL import Image
from test_report import write_lines, write_run

from ocr_eval.records.find import find_runs
from ocr_eval.report.page import build_page
from ocr_eval.specs.model import TrainSpec

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: the page is not tested; run 'make browser'")

ASSOCIATIONS = (
    ("city-language", "causal"),
    ("city-language-cf", "counterfactual"),
    *((name, "spurious") for name in ("country-code", "profession-color", "sport-music")),
)


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
    assert [text[:4] for text in column(page, "#table", 1)[:3]] == ["</sc", "alph", "beta"]
    page.keyboard.press("Enter")
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    assert [text[:4] for text in column(page, "#table", 1)[:3]] == ["beta", "alph", "</sc"]
    assert all(text.endswith("published") for text in column(page, "#table", 1)[3:])


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


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """The page of settings of one model on five associations, as of a study: two wide tables and a card."""
    root = tmp_path_factory.mktemp("wide")
    trains = {"lora": TrainSpec(), "decay": TrainSpec(prevent=["product-decay:strength=0.03"])}
    for name, train in trains.items():
        for association, kind in ASSOCIATIONS:
            for seed in range(3):
                run = f"{name}-{association}-{seed}"
                made = record(association, kind, seed=seed, rank=0.4 + seed / 10, train=train, run=run)
                write_run(root / run, made)
    (root / "report.html").write_text(build_page(find_runs(root), "first-token")[0])
    return root / "report.html"


def scrolls(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_a_narrow_window_shows_scores_and_only_tables_and_figures_scroll(browser, wide):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(wide.as_uri())
    assert not scrolls(page)
    for section in ("#table", "#scorecard"):
        name = page.locator(f"{section} tbody th").first
        score = page.locator(f"{section} tbody tr:first-child td .line").nth(1)
        assert name.bounding_box()["x"] >= 0
        left, width = (score.bounding_box()[key] for key in ("x", "width"))
        assert left >= name.bounding_box()["x"] + name.bounding_box()["width"]
        assert left + width <= 400
        at = name.bounding_box()["x"]
        page.locator(f"{section} .wide").evaluate("e => { e.scrollLeft = 200; }")
        assert name.bounding_box()["x"] == at, "the name of the row stays"
    open_a_run(page)
    page.locator("svg.curve").wait_for()
    assert not scrolls(page)
    assert page.locator("svg.curve").bounding_box()["width"] > 500
    for figure in page.locator("figure").all():
        picture, text = figure.locator("img"), figure.locator("figcaption")
        assert picture.bounding_box()["width"] == float(picture.get_attribute("width")), "small print stays legible"
        figure.evaluate("e => { e.scrollLeft = 200; }")
        assert picture.bounding_box()["x"] < 0 <= text.bounding_box()["x"]
    page.close()


def test_five_associations_fit_a_window_of_1200(browser, wide):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(wide.as_uri())
    assert page.locator("#table .wide").evaluate("e => e.scrollWidth <= e.clientWidth")
    page.close()


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
def test_figures_have_the_colour_of_the_page(browser, wide, scheme, light):
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 900})
    page.goto(wide.as_uri())
    picture = Image.open(BytesIO(page.locator("#figures img").first.screenshot())).convert("L")
    most = max((count, value) for value, count in enumerate(picture.histogram()))[1]
    assert (most > 200) == light
    page.close()


def test_it_prints(browser, file, tmp_path):
    page = browser.new_page()
    page.goto(file.as_uri())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("#table table").is_visible()
    assert not page.locator("#runs").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


#: Pixels of a page of A4 within its margins, and its height.
A4 = {"width": 680, "height": 1008}


def test_no_printed_page_is_left_half_empty(browser, wide):
    """What cannot be broken is less than half a page, and pages are as many as their content takes."""
    page = browser.new_page(viewport=A4)
    page.goto(wide.as_uri())
    page.emulate_media(media="print")
    assert not scrolls(page)
    heights = page.locator("figure:visible, tr:visible").evaluate_all("all => all.map((e) => e.offsetHeight)")
    assert len(heights) > 10
    assert max(heights) < A4["height"] / 2
    content = page.evaluate("document.body.offsetHeight") / A4["height"]
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert pages <= 1.5 * content + 1
    page.close()


def test_five_hundred_runs_are_a_page_that_opens_at_once(browser, tmp_path):
    rng = random.Random(0)
    for i in range(500):
        model, (association, kind), seed = f"model-{i // 50}", ASSOCIATIONS[i % 5], i // 5 % 10
        made = record(association, kind, seed=seed, rank=rng.uniform(0, 2), model=model, run=f"run-{i}")
        probes = write_run(tmp_path / f"run-{i}", made) / "probes.jsonl"
        lines = [json.loads(line) for line in probes.read_text().splitlines()]
        for line in lines:
            line["logprobs"]["first-token"] = [rng.uniform(-9, 0) for _ in line["candidates"]]
        write_lines(probes, lines * 4)  # as many as of five pairs
    text = build_page(find_runs(tmp_path), "first-token")[0]
    assert text.count('<details class="run"') == 500
    assert len(text.encode()) < 10e6
    (tmp_path / "report.html").write_text(text)
    page = browser.new_page()
    clock = page.context.new_cdp_session(page)
    clock.send("Performance.enable", {"timeDomain": "threadTicks"})  # of the processor: other work does not count
    page.goto((tmp_path / "report.html").as_uri(), wait_until="domcontentloaded")
    page.get_by_label("Search runs").fill("model-7 seed 3")
    assert page.locator("#run-count").inner_text() == "5 shown"
    spent = {each["name"]: each["value"] for each in clock.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 2
    page.close()

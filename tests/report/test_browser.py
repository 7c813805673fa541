"""The page in a real browser: no network, no horizontal scrolling, keyboard, filters, search, contrast, both schemes.

Needs Playwright's Python package (the extra `browser`) and a Chromium: the one at COLM_CHROMIUM, else the system's,
else Playwright's own. If one is missing, the tests are skipped with a reason; with COLM_CHROMIUM set they fail.
"""

import os
import re
import shutil

import pytest

from colm_jax.report.contents import Piece, Report, ShownAnswer, View
from colm_jax.report.html import write_html
from tests.report.sample import REPORT

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LONG = "supercalifragilistic" * 12  # wider than a phone


def answers():
    """Return an answer that the expert corrected, one it spoiled, one too long for a line, and those of `sample`."""
    view = View((("7", 0.6), (" b\n", 0.2)), 0.6, 1.0)
    low = View((("7", 0.6),), 0.1, 1.0)
    pieces = [Piece("It", 0, 0.1, (view,) * 3, 0.01), Piece(" is", 0, 0.2, (low, view, view), 0.7, True)]
    pieces += [Piece(" 7", 1, 0.9, (low, view, view)), Piece(".", 2, 0.8, (low, low, view))]
    right = ShownAnswer("what is 3 + 4?", tuple(pieces), "7", True, 0.5, "It is 8.", False)
    wrong = ShownAnswer("what is 3 · 4?", tuple(pieces[:3]), "12", False, 0.5, "12", True)
    wide = ShownAnswer(LONG, (Piece(LONG, 1, 0.9), Piece(" end", 0, 0.1)), LONG, None, 0.5)
    return (right, wrong, wide, *REPORT.answers)


PAGE = Report(REPORT.title, REPORT.facts, REPORT.tables, REPORT.curves, answers(), REPORT.writers, REPORT.sections)


@pytest.fixture(scope="module")
def browser():
    wanted = os.environ.get("COLM_CHROMIUM")
    missing = pytest.fail if wanted else pytest.skip
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("no Playwright; pip install 'colm-jax[browser]'")
    found = wanted or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        except Error as error:
            missing(f"no Chromium that starts; install one, or set COLM_CHROMIUM: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(PAGE, path)
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """Open the report; console messages, exceptions and network requests fail the test."""
    pages, complaints = [], []

    def open_it(width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != address else None)
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(address)
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        page.close()
    assert complaints == []


def _visible(page):
    return [int(name.removeprefix("answer-")) for name in page.eval_on_selector_all(
        "article", "found => found.filter(a => !a.hidden).map(a => a.id)")]  # fmt: skip


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_horizontal_scrolling(open_page, width, scheme):
    page = open_page(width, scheme)
    inner, outer = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert inner <= outer == width
    assert page.title() == REPORT.title
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert dark == (scheme == "dark")
    page.locator("#answer-1 .word").nth(2).hover()  # the details also stay within the window
    box = page.locator("#details").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_mouse_and_keyboard_show_the_same_details(open_page):
    page = open_page()
    word = page.locator("#answer-1 .word").nth(2)
    details = page.locator("#details")
    word.hover()
    told = details.inner_text()
    assert "“7” by an <expert> · p_defer 0.900 > η 0.500 · its writer's probability 0.600" in told
    assert told.count("“7” 0.600") == 6  # of two tokens, each of three models
    assert told.count("“ b↵” 0.200") == 3
    page.mouse.move(0, 0)
    assert details.is_hidden()
    page.locator("#answer-1 .word").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "is"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == "It"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.word") == word.get_attribute("data-word")
    assert details.inner_text() == told
    assert word.get_attribute("aria-describedby") == "details"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    assert details.is_hidden()
    page.keyboard.press("Home")
    assert details.is_visible()
    page.keyboard.press("Tab")  # leaves the answer: each is one tab stop
    assert page.evaluate("document.activeElement.closest('article').id") == "answer-2"


def test_n_and_p_move_between_the_places_to_check(open_page):
    page = open_page()
    where = "(w => w.closest('article').id + ' ' + w.textContent)(document.activeElement)"
    visited = []
    for key in "nnnp":
        page.keyboard.press(key)
        visited.append(page.evaluate(where))
    assert visited == ["answer-1 is", "answer-2 is", "answer-5 no", "answer-2 is"]
    page.get_by_label("Search").focus()
    page.keyboard.type("np")
    assert page.get_by_label("Search").input_value() == "np"


def test_keyboard_focus_is_visible(open_page):
    page = open_page()
    stops = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        style = "getComputedStyle(document.activeElement)"
        name, outline, width = page.evaluate(
            f"[document.activeElement.tagName, {style}.outlineStyle, {style}.outlineWidth]"
        )
        if name == "BODY":
            break
        stops.add(name)
        assert (outline, width) == ("solid", "2px"), name
    assert {"A", "BUTTON", "INPUT", "SELECT", "SPAN", "DIV"} <= stops


def test_filter_search_and_sort(open_page):
    page = open_page()
    assert _visible(page) == [1, 2, 3, 4, 5, 6]
    page.get_by_role("button", name="now right").press("Enter")
    assert _visible(page) == [1]
    assert page.get_by_role("button", name="now right").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="wrong (2)", exact=True).click()
    assert _visible(page) == [2, 5]
    page.get_by_label("Search").fill("3 · 4")
    assert _visible(page) == [2]
    assert page.get_by_role("status").inner_text() == "1 of 6 shown"
    page.get_by_role("button", name="all (").click()
    page.get_by_label("Search").fill("WHAT is 3")
    assert _visible(page) == [1, 2]
    page.get_by_label("Search").fill("")
    page.get_by_label("Sort").select_option("expert")
    assert _visible(page) == [4, 1, 2, 3, 5, 6]  # 3, 2, 1, 1, 0, 0 tokens; the sort is stable
    page.get_by_label("Sort").select_option("")
    assert _visible(page) == [1, 2, 3, 4, 5, 6]


def test_colour_is_not_the_only_mark(open_page):
    page = open_page()
    line = "e => [getComputedStyle(e).textDecorationLine, getComputedStyle(e).textDecorationStyle]"
    assert page.locator("#answer-1 .expert.w1").evaluate(line) == ["underline", "solid"]
    assert page.locator("#answer-1 .expert.w2").evaluate(line) == ["underline", "double"]
    assert page.locator("#answer-1 .check").evaluate_all("all => all.map(e => e.textContent)") == ["is"]
    assert page.locator("#answer-1 .check").evaluate("e => getComputedStyle(e, '::after').content") == '"?"'
    for verdict in ("✓ right", "✗ wrong"):
        assert page.get_by_text(verdict, exact=True).count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_meets_wcag_aa(open_page, scheme):
    """Check WCAG 2.2 AA, 4.5 to 1, for every element with its own text, over its backgrounds."""
    page = open_page(scheme=scheme)
    page.locator("#answer-1 .word").first.hover()
    found = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(e => e.checkVisibility() &&
        !e.closest("svg") && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
      const behind = [];
      for (let at = e; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
      return [e.tagName + "." + e.className, getComputedStyle(e).color, behind];
    })""")
    assert len(found) > 50
    for name, color, behind in found:
        ground = (1.0, 1.0, 1.0)
        for layer in behind:
            ground = _over(layer, ground)
        light, dark = sorted((_luminance(_over(color, ground)), _luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, color, behind)


def _over(color, ground):
    """Blend a CSS colour, which may be transparent, over another; return red, green, blue from 0 to 1."""
    numbers = [float(n) for n in re.findall(r"[\d.]+(?:e-?\d+)?", color)]
    scale = 1 if color.startswith("color(srgb") else 255
    alpha = numbers[3] if len(numbers) > 3 else 1.0
    return tuple(alpha * c / scale + (1 - alpha) * g for c, g in zip(numbers, ground))


def _luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def test_page_is_readable_without_scripts(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("article").count() == 6
    assert page.locator(".tools").is_hidden()
    title = page.locator("#answer-1 .word").nth(2).get_attribute("title")
    assert title == "mean p_defer 0.850 · written by an <expert> + [bold]other"
    context.close()

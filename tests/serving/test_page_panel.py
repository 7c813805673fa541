"""The panel of a token on the server's page, rare answers, the keyboard, and small screens."""
# ruff: noqa: F401, F811  fixtures are imported by their names

import re

import pytest

from tests.report.test_browser import _luminance, _over, browser
from tests.serving.pages import (
    HELD_STREAMS,
    MARKUP,
    api_answer,
    begin,
    chunk,
    held,
    model_names,
    page,
    page_at,
    push,
    shown_text,
    written,
)

expect = pytest.importorskip("playwright.sync_api").expect


# The panel of a token


def open_token(page, turn, number):
    """Open the panel of a token; return the panel."""
    turn.locator(f'[data-index="{number}"]').click()
    panel = page.window.get_by_role("complementary", name="Token")
    expect(panel.get_by_role("row").nth(1)).to_be_visible()
    return panel


def test_panel_shows_the_decision_and_the_candidates_of_each_model(page, server):
    turn = page.send()
    body = page.bodies()[0]
    _, colm = api_answer(server, body)
    number = next(i for i, source in enumerate(colm["sources"]) if source == 1 and i > 2)
    panel = open_token(page, turn, number)
    prompt = server.post("/tokenize", {"messages": body["messages"]}).json()["tokens"]
    tokens = prompt + colm["tokens"][:number]
    assert page.bodies("/v1/candidates")[0]["tokens"] == tokens
    assert f"Token {number + 1} of {len(colm['tokens'])}" in panel.inner_text()
    assert f"Written by {model_names(page)[1]}\n" in panel.inner_text()
    assert f"p_defer {colm['p_defer'][number]:.3g} > threshold 0.5: an expert writes" in panel.inner_text()
    assert panel.get_by_role("columnheader").all_inner_texts() == ["candidate", "base", "expert", "team"]
    found = server.post("/v1/candidates", {"tokens": tokens, "top": 20}).json()["models"]
    rows = {
        cells[0]: cells[1:]
        for cells in panel.locator("tbody tr").evaluate_all("all => all.map(r => [...r.cells].map(c => c.innerText))")
    }
    for column, name in enumerate(("base", "expert-1", "team")):
        for candidate in found[name][:5]:
            shown = rows[candidate["text"].replace(" ", "␣")][column]
            assert float(shown) == pytest.approx(2.718281828 ** candidate["logprob"], abs=6e-4), (name, candidate)
    best = panel.locator(".written button").inner_text()
    assert best == colm["pieces"][number].replace(" ", "␣")
    page.window.keyboard.press("Escape")
    expect(panel.locator("#details")).to_be_hidden()


def test_chosen_candidate_is_continued(page, server):
    turn = page.send(Max_tokens=16)
    before = written(turn)
    _, colm = api_answer(server, page.bodies()[0])
    panel = open_token(page, turn, 5)
    row = panel.locator("tbody tr:not(.written)").filter(has_not_text="<s>").filter(has_not_text="</s>").first
    text = row.get_by_role("button").inner_text().replace("␣", " ")
    row.get_by_role("button").click()
    expect(turn.locator('.answer[aria-busy="false"]')).to_have_count(1)
    expect(panel.locator("#details")).to_be_hidden()
    (body,) = page.bodies("/v1/completions")
    prompt = server.post("/tokenize", {"messages": page.bodies()[0]["messages"]}).json()["tokens"]
    assert body["prompt"][:-1] == prompt + colm["tokens"][:5]
    assert server.post("/detokenize", {"tokens": body["prompt"][-1:]}).json()["prompt"] == text
    _, more = api_answer(server, body)
    after = [[p, s] for p, s in zip(more["pieces"], more["sources"], strict=True) if p]
    assert written(turn) == [*before[:5], [text, -1], *after]
    assert written(turn) != before
    assert "1 chosen by you" in turn.locator("p.quiet").inner_text()
    assert "chosen by you" in page.window.locator("#legend li:visible").all_inner_texts()
    # The tokens behind the choice have candidates that follow it.
    open_token(page, turn, 7)
    assert page.bodies("/v1/candidates")[-1]["tokens"] == body["prompt"] + more["tokens"][:1]
    turn.get_by_role("button", name="Undo").click()
    assert written(turn) == before


def test_answer_can_be_continued_at_its_end(page, server):
    turn = page.send(Max_tokens=6)
    before = written(turn)
    page.settings(Max_tokens=4)
    turn.locator(".end").click()
    page.window.get_by_role("button", name="Continue from here").click()
    expect(turn.locator("[data-source]")).to_have_count(10)
    assert written(turn)[:6] == before
    whole = server.post("/v1/chat/completions", {**page.bodies()[0], "stream": False, "max_tokens": 10}).json()
    assert shown_text(turn) == whole["choices"][0]["message"]["content"]


def test_candidates_belong_to_their_token_and_are_read_once(page):
    waiting = []
    turn = page.send(Max_tokens=6)
    page.window.route("**/v1/candidates", lambda route: waiting.append(route))
    for number in (1, 2):
        with page.window.expect_request("**/v1/candidates"):
            turn.locator(f'[data-index="{number}"]').click()
        while len(waiting) < number:  # the event of a request comes before its route
            page.window.wait_for_timeout(10)
    for route, text in ((waiting[1], "new"), (waiting[0], "old")):
        models = {"base": [{"token": 5, "text": text, "logprob": -1.0}], "team": []}
        with page.window.expect_response("**/v1/candidates"):
            route.fulfill(json={"p_defer": 0.25, "models": models})
        expect(page.window.locator("#details tbody button")).to_have_text(["new"])
    turn.locator('[data-index="1"]').click()  # known by now
    expect(page.window.locator("#details tbody button")).to_have_text(["old"])
    turn.locator('[data-index="2"]').click()
    expect(page.window.locator("#details tbody button")).to_have_text(["new"])
    assert len(waiting) == 2


def test_end_of_text_as_a_choice_ends_the_answer(page):
    page.window.route("**/v1/candidates", lambda route: route.fulfill(json={
        "p_defer": 0.25, "models": {"base": [{"token": 2, "text": "</s>", "logprob": -1.0}], "team": []}}))  # fmt: skip
    turn = page.send(Max_tokens=6)
    before = written(turn)
    open_token(page, turn, 3).get_by_role("button", name="Choose </s>").click()
    assert written(turn) == before[:3]
    assert page.bodies("/v1/completions") == []


def test_choosing_while_the_answer_is_written_stops_it(held):
    answer = begin(held)
    push(held, 0, chunk("on", "ce"), done=False)
    panel = open_token(held, answer, 1)
    panel.locator("tbody button").last.click()
    expect(held.window.locator(".answer .by-you")).to_have_count(1)
    assert held.window.evaluate("window.answers[0].aborted") is True
    expect(answer).to_have_attribute("aria-busy", "true")
    push(held, 1, chunk("x", reason="stop"))
    expect(answer).to_have_attribute("aria-busy", "false")
    assert [source for _, source in written(answer)] == [0, -1, 0]


# What the tiny team does not do


def test_places_to_check_are_marked_by_characters(held):
    answer = begin(held)
    push(held, 0, chunk("🙂🙂", "on", "ce", " a"), done=False)
    push(held, 0, chunk(reason="stop", check=[{"start": 4, "end": 6, "risk": 0.75}]))
    expect(answer).to_have_attribute("aria-busy", "false")
    assert answer.locator(".check").all_inner_texts() == ["ce"]
    assert answer.locator(".check").evaluate("e => getComputedStyle(e).borderBottomStyle") == "dotted"
    assert answer.locator(".check").get_attribute("title") == "Worth checking: risk 0.75"
    assert "worth checking" in held.window.locator("#legend li:visible").all_inner_texts()
    assert "risk 0.75" in open_token(held, answer, 2).inner_text()


def test_what_was_sent_to_a_remote_expert_is_shown(held):
    answer = begin(held)
    sent = {"sent": {"requests": 3, "characters": 420}, "lost": [1], "expert_calls": 4}
    push(held, 0, chunk("on", "ce", sources=[1, 0]), chunk(reason="length", **sent))
    facts = answer.locator("p.quiet")
    expect(facts).to_contain_text("sent to the expert: 3 requests, 420 characters")
    expect(facts).to_contain_text("4 expert calls · ")
    expect(facts).to_contain_text("1 expert call failed")
    expect(facts).to_contain_text("reached the token limit")


def test_markup_stays_text(page_at, server):
    page = page_at(script=HELD_STREAMS)

    def names(route):
        body = route.fetch().json()
        body["data"][0]["colm"]["models"] = [MARKUP, MARKUP]
        route.fulfill(json=body)

    candidates = [{"token": 5, "text": MARKUP, "logprob": -1.0}]
    page.window.route("**/v1/models", names)
    page.window.route("**/v1/candidates", lambda route: route.fulfill(json={
        "p_defer": 0.25, "models": {"base": candidates, "expert-1": candidates, "team": candidates}}))  # fmt: skip
    page.open()
    answer = begin(page, MARKUP)
    push(page, 0, chunk(MARKUP, sources=[1]), chunk(reason="stop"))
    panel = open_token(page, answer, 0)
    assert written(answer) == [[MARKUP, 1]]
    assert page.window.locator(".prompt").inner_text() == MARKUP
    assert panel.get_by_role("button", name="Choose").inner_text() == MARKUP.replace(" ", "␣")
    assert page.window.locator("#legend li").first.inner_text() == f"{MARKUP} base"
    assert page.window.locator("img").count() == 0


def test_several_experts_have_different_marks(page_at):
    page = page_at(script=HELD_STREAMS)

    def three(route):
        body = route.fetch().json()
        body["data"][0]["colm"]["models"] = ["b", "math", "medicine"]
        route.fulfill(json=body)

    page.window.route("**/v1/models", three)
    page.open()
    answer = begin(page)
    push(page, 0, chunk("a", "b", "c", sources=[0, 1, 2], reason="stop"))
    style = "e => [getComputedStyle(e).textDecorationStyle, getComputedStyle(e).textDecorationColor]"
    first, second = (answer.locator(f'[data-source="{source}"]').evaluate(style) for source in (1, 2))
    assert first[0] != second[0]
    assert first[1] != second[1]
    answer.get_by_role("button", name="Copy with provenance").click()
    expect(page.window.get_by_role("status")).to_have_text("Copied.")
    copied = page.window.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("a⟦b⟧(1)⟦c⟧(2)\n\n[unmarked: b; ⟦…⟧(1): math; ⟦…⟧(2): medicine;")


def test_base_without_experts_has_no_settings_and_columns_for_them(page_at):
    page = page_at(script=HELD_STREAMS)

    def base_alone(route):
        body = route.fetch().json()
        body["data"][0]["colm"] |= {"models": ["b"], "strategies": ["base"]}
        route.fulfill(json=body)

    candidates = [{"token": 5, "text": "a", "logprob": -1.0}]
    found = {"p_defer": None, "models": {"base": candidates, "team": candidates}}
    page.window.route("**/v1/models", base_alone)
    page.window.route("**/v1/candidates", lambda route: route.fulfill(json=found))
    page.open()
    labels = page.window.locator("#settings label:visible").all_inner_texts()
    assert [label.split("\n")[0].strip() for label in labels] == ["Strategy", "Threshold", "Max tokens", "Temperature"]
    expect(page.window.get_by_label("Threshold", exact=True)).to_be_disabled()
    answer = begin(page)
    push(page, 0, chunk("a", "b", reason="length", p_defer=None))
    panel = open_token(page, answer, 1)
    assert panel.get_by_role("columnheader").all_inner_texts() == ["candidate", "base"]
    assert answer.locator("p.quiet").inner_text() == "2 tokens · reached the token limit"
    expect(answer.get_by_role("button", name="Side by side")).to_be_hidden()


# Keyboard, screens


def test_page_can_be_used_by_keyboard_alone(page):
    keys = page.window.keyboard
    expect(page.window.get_by_label("Message", exact=True)).to_be_focused()
    keys.type("two words")
    keys.press("Shift+Enter")
    keys.type("more")
    keys.press("Control+Enter")
    expect(page.window.locator('.answer[aria-busy="false"]')).to_have_count(1)
    assert page.bodies()[0]["messages"][0]["content"] == "two words\nmore"
    tokens = page.window.locator(".answer [data-source]")
    before = tokens.evaluate_all("all => all.map(e => [e.textContent, e.dataset.source, e.dataset.index])")
    for _ in range(30):  # to the answer, which is one tab stop
        keys.press("Shift+Tab")
        if "token" in (page.focused().get_attribute("class") or ""):
            break
    expect(page.focused()).to_have_attribute("data-index", "0")
    expect(page.focused()).to_have_attribute("role", "button")
    for key, place in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("ArrowRight", 1)]:
        keys.press(key)
        expect(page.focused()).to_have_attribute("data-index", before[place][2])
    assert page.focused().evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    expect(page.window.locator(".answer .text [tabindex='0']")).to_have_count(1)
    keys.press("End")
    expect(page.focused()).to_have_class(re.compile("end"))
    keys.press("Home")
    keys.press("n")
    first = next(place for place, (_, source, _) in enumerate(before) if source == "1" and place > 0)
    expect(page.focused()).to_have_attribute("data-index", before[first][2])
    expect(page.focused()).to_have_attribute("aria-label", re.compile(", expert$"))
    keys.press("Enter")
    expect(page.window.locator("#details tbody button").first).to_be_focused()
    keys.press("Escape")
    expect(page.focused()).to_have_attribute("data-index", before[first][2])
    expect(page.window.locator("#details")).to_be_hidden()
    keys.press("Enter")
    expect(page.window.locator("#details tbody button").first).to_be_focused()
    while not re.fullmatch("Choose .", page.focused().get_attribute("aria-label")):  # neither special nor as written
        keys.press("Tab")
    keys.press("Enter")
    expect(page.window.locator(".answer .by-you")).to_have_count(1)
    expect(page.focused()).to_have_attribute("data-index", before[first][2])
    kept = [text for text, _, _ in before[:first]]
    assert tokens.all_inner_texts()[:first] == kept


def test_panel_follows_the_arrow_keys(held):
    answer = begin(held)
    push(held, 0, chunk("he", " sa", "id", " it", reason="stop"))
    expect(answer).to_have_attribute("aria-busy", "false")
    panel = open_token(held, answer, 0)
    held.window.keyboard.press("ArrowDown")
    expect(panel).to_contain_text("Token 2 of 4")
    expect(panel).to_contain_text("in “said”")
    held.window.keyboard.press("ArrowDown")
    expect(panel).to_contain_text("Token 4 of 4")
    held.window.keyboard.press("ArrowUp")
    held.window.keyboard.press("ArrowRight")
    expect(panel).to_contain_text("Token 3 of 4")
    expect(held.focused()).to_have_text("id")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screen_has_no_horizontal_scrolling(page_at, scheme):
    page = page_at(360, scheme).open()
    ground = page.window.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(22, 24, 27)" if scheme == "dark" else "rgb(255, 255, 255)")
    page.settings()
    page.window.get_by_label("Side by side").check()
    turn = page.send("x" * 60, answers=3)
    page.window.locator("summary").click()
    low = turn.locator(".answer").last.locator('[data-index="40"]')
    low.evaluate("e => e.scrollIntoView({block: 'end'})")
    assert low.bounding_box()["y"] > 400  # where the panel will be
    panel = open_token(page, turn.locator(".answer").last, 40)
    for element in ("document.documentElement", "document.querySelector('#panel')"):
        assert page.window.evaluate(f"[{element}.scrollWidth, {element}.clientWidth]") == [360, 360]
    box = panel.bounding_box()
    assert box["y"] + box["height"] <= 800
    token = page.window.locator(".selected").bounding_box()
    assert 0 <= token["y"] < box["y"] - token["height"] + 1  # the panel does not hide its token
    panel.get_by_role("button", name="Close").click()
    expect(panel).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_meets_wcag_aa(page_at, scheme):
    """Check WCAG 2.2 AA, 4.5 to 1, for every element with its own text, over its backgrounds."""
    page = page_at(scheme=scheme).open()
    open_token(page, page.send(Max_tokens=20), 4)
    found = page.window.evaluate("""() => [...document.querySelectorAll("body *")].filter(e => e.checkVisibility() &&
        !e.matches("script, style, :disabled") &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
      const behind = [];
      for (let at = e; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
      return [e.tagName + "." + e.className, getComputedStyle(e).color, behind];
    })""")
    assert len(found) > 30
    for name, color, behind in found:
        ground = (1.0, 1.0, 1.0)
        for layer in behind:
            ground = _over(layer, ground)
        light, dark = sorted((_luminance(_over(color, ground)), _luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, color, behind)

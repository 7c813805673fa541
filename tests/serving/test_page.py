"""The server's page in a real browser: what it sends, how it marks tokens, copying, the key."""
# ruff: noqa: F401, F811  fixtures are imported by their names

import json
import re

import pytest

from tests.report.test_browser import browser
from tests.serving.pages import (
    MESSAGE,
    SERVER_FAULT,
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


# The page itself


def test_page_is_self_contained_and_runs_no_script_but_its_own(page, server):
    response = page.window.request.get(server.url)
    text, policy = response.text(), response.headers["content-security-policy"]
    nonces = set(re.findall(r'nonce="([^"]+)"', text))
    assert len(nonces) == 1
    assert f"script-src 'nonce-{nonces.pop()}'" in policy
    assert "NONCE" not in text
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|\son\w+\s*=\s*["']|\sstyle\s*=\s*["']""", text)
    assert "innerHTML" not in text
    page.send()
    page.window.locator(".token").first.click()
    expect(page.window.locator("#details tbody button").first).to_be_visible()
    assert page.complaints == []
    # What the policy forbids would have been a complaint.
    script = "Object.assign(document.createElement('script'), {text: 'window.x = 1'})"
    page.window.evaluate(f"document.body.append({script})")
    assert page.window.evaluate("window.x") is None
    assert "Content Security Policy" in page.complaints.pop()


def test_page_waits_for_a_server_that_is_loading(page_at, server):
    page, refused = page_at(), []

    def loading(route):
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.fulfill(status=503, json={"error": {"message": "the model is being loaded"}})

    page.window.route("**/health", loading)
    page.window.goto(server.url)
    expect(page.window.get_by_role("status")).to_have_text("the model is being loaded")
    expect(page.window.get_by_role("button", name="Send")).to_be_enabled()
    assert SERVER_FAULT in page.complaints.pop()


# Answers


def test_tokens_are_marked_by_their_writers(page, server):
    answer = page.send()
    (body,) = page.bodies()
    assert body["stream"] is True
    assert body["messages"] == [{"role": "user", "content": MESSAGE}]
    text, colm = api_answer(server, body)
    assert set(colm["sources"]) == {0, 1}
    assert written(answer) == [[p, s] for p, s in zip(colm["pieces"], colm["sources"], strict=True) if p]
    assert shown_text(answer) == text
    style = """all => all.map(e => [getComputedStyle(e).textDecorationLine, getComputedStyle(e).textDecorationColor,
                                    getComputedStyle(e).backgroundColor])"""
    experts = answer.locator('[data-source="1"]').evaluate_all(style)
    assert {tuple(each[:2]) for each in experts} == {("underline", "rgb(181, 78, 0)")}
    base = answer.locator('[data-source="0"]').evaluate_all(style)
    assert {(line, ground) for line, _, ground in base} == {("none", "rgba(0, 0, 0, 0)")}
    named = [f"{name} {role}" for name, role in zip(model_names(page), ("base", "expert"), strict=True)]
    legend = page.window.locator("#legend li:visible").all_inner_texts()
    assert legend == named + ["worth checking"] * bool(colm["check"])


def test_facts_are_those_of_the_answer(page, server):
    answer = page.send()
    _, colm = api_answer(server, page.bodies()[0])
    deferred = sum(p > t for p, t in zip(colm["p_defer"], colm["threshold"]))
    facts = answer.locator("p.quiet").inner_text()
    assert f"{len(colm['tokens'])} tokens, {sum(colm['sources'])} by the expert" in facts
    assert f"deferral rate {100 * deferred / len(colm['tokens']):.1f} % at threshold 0.5" in facts
    assert f"{colm['expert_calls']} expert calls" in facts
    assert "sent" not in facts  # no expert is remote


def test_tokens_appear_as_they_are_written(held):
    answer = begin(held)
    push(held, 0, chunk("on", "ce", sources=[0, 1]), done=False)
    expect(answer.locator("[data-source]")).to_have_text(["on", "ce"])
    expect(answer).to_have_attribute("aria-busy", "true")
    expect(held.window.get_by_role("status")).to_have_text("Writing…")
    expect(held.window.get_by_role("button", name="Send")).to_be_disabled()
    push(held, 0, chunk(" a", sources=[1]), chunk(reason="stop"))
    expect(answer).to_have_attribute("aria-busy", "false")
    assert written(answer) == [["on", 0], ["ce", 1], [" a", 1]]
    # The status alone is announced, once an answer is finished; its tokens are in no live region.
    expect(held.window.get_by_role("status")).to_have_text("Finished: 3 tokens, 2 by the expert.")
    assert answer.evaluate("e => e.closest('[aria-live], [role=log], [role=status]')") is None


def test_chunks_that_arrive_in_pieces_are_joined(held):
    answer = begin(held)
    line = f"data: {json.dumps({'choices': [chunk('a🙂', reason='stop')]}, ensure_ascii=False)}\n\ndata: [DONE]\n\n"
    held.window.evaluate("""text => {
      const bytes = new TextEncoder().encode(text), push = window.answers[0].push;
      window.TextEncoder = class { encode(part) { return part; } };
      for (const byte of bytes) push(Uint8Array.of(byte));
    }""", line)  # fmt: skip
    expect(answer).to_have_attribute("aria-busy", "false")
    assert written(answer) == [["a🙂", 0]]


def test_stop_ends_the_request_and_keeps_the_text(held):
    answer = begin(held)
    push(held, 0, chunk("on", "ce"), done=False)
    expect(answer.locator("[data-source]")).to_have_count(2)
    held.window.get_by_role("button", name="Stop").click()
    expect(answer).to_have_attribute("aria-busy", "false")
    assert held.window.evaluate("window.answers[0].aborted") is True
    expect(answer.locator("p.quiet")).to_contain_text("stopped")
    assert shown_text(answer) == "once"
    expect(held.window.get_by_role("button", name="Stop")).to_be_hidden()
    expect(held.window.get_by_role("button", name="Send")).to_be_enabled()


def test_errors_of_the_api_are_shown(page):
    answer = page.send("a" * 200)
    assert "context" in answer.get_by_role("alert").inner_text()
    assert SERVER_FAULT in page.complaints.pop()
    page.send()  # what failed is not part of the conversation
    assert page.bodies()[1]["messages"] == [{"role": "user", "content": MESSAGE}]


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (
            'window.answers[0].push(`data: {"error": {"message": "the <b>GPU</b> failed"}}\\n\\n`)',
            "the <b>GPU</b> failed",
        ),
        ("window.answers[0].close()", "The connection ended"),
    ],
)
def test_stream_that_fails_keeps_its_tokens_and_says_why(held, ends, message):
    answer = begin(held)
    push(held, 0, chunk("on"), done=False)
    expect(answer.locator("[data-source]")).to_have_count(1)
    held.window.evaluate(ends)
    expect(answer.get_by_role("alert")).to_contain_text(message)
    assert shown_text(answer) == "on"
    expect(held.window.get_by_role("button", name="Send")).to_be_enabled()


def test_conversation_goes_on_with_its_answers(page):
    first = shown_text(page.send("hello", Max_tokens=8))
    page.send("and then")
    roles = [(message["role"], message["content"]) for message in page.bodies()[1]["messages"]]
    assert roles == [("user", "hello"), ("assistant", first), ("user", "and then")]
    page.window.get_by_role("button", name="New conversation").click()
    assert page.window.locator(".turn").count() == 0
    page.send("again")
    assert page.bodies()[2]["messages"] == [{"role": "user", "content": "again"}]


def test_base_without_a_chat_template_continues_the_text(page_at, server):
    page = page_at()

    def without_template(route):
        body = route.fetch().json()
        body["data"][0]["colm"]["chat"] = False
        route.fulfill(json=body)

    page.window.route("**/v1/models", without_template)
    page.open()
    answer = page.send("once upon", Max_tokens=8)
    (body,) = page.bodies("/v1/completions")
    assert body["prompt"] == "once upon"
    text, _ = api_answer(server, body)
    assert shown_text(answer) == text
    page.send("and then")
    between = "" if text[-1:].isspace() else " "
    assert page.bodies("/v1/completions")[1]["prompt"] == f"once upon{text}{between}and then"
    page.window.locator(".turn").nth(1).locator(".token").nth(1).click()
    expect(page.window.locator("#details tbody button").first).to_be_visible()
    assert page.bodies("/tokenize") == [{"model": "tiny", "prompt": f"once upon{text}{between}and then"}]


# Settings


def test_each_message_has_its_own_threshold(page, server):
    page.settings(Max_tokens=12)
    for number, threshold in enumerate((0, 1, 0.4375)):
        if threshold in (0, 1):
            page.window.get_by_label("Threshold", exact=True).fill(str(threshold))
        else:
            page.window.get_by_label("Exact threshold").fill(str(threshold))
        page.send()
        assert page.bodies()[number]["threshold"] == threshold
    facts = page.window.locator(".answer p.quiet").all_inner_texts()
    assert "deferral rate 100.0 % at threshold 0 ·" in facts[0]
    assert "deferral rate 0.0 % at threshold 1 ·" in facts[1]
    assert "at threshold 0.438 ·" in facts[2]
    assert {source for _, source in written(page.window.locator(".answer").nth(0))} == {1}
    assert {source for _, source in written(page.window.locator(".answer").nth(1))} == {0}


def test_settings_are_sent(page):
    page.settings(Max_tokens=7, Temperature=0.5)
    page.window.get_by_label("Strategy").select_option("expert")
    expect(page.window.get_by_label("Threshold", exact=True)).to_be_disabled()
    answer = page.send()
    (body,) = page.bodies()
    assert (body["strategy"], body["max_tokens"], body["temperature"]) == ("expert", 7, 0.5)
    assert {source for _, source in written(answer)} == {1}
    assert page.window.get_by_label("Strategy").locator("option").all_inner_texts() == ["defer", "base", "expert"]


def test_settings_that_are_wrong_are_not_sent(page):
    page.settings(Max_tokens=0)
    page.window.locator("summary").click()
    page.window.get_by_label("Message", exact=True).fill(MESSAGE)
    page.window.keyboard.press("Enter")
    expect(page.window.get_by_label("Max tokens")).to_be_focused()
    assert page.bodies() == []


def test_text_for_the_expert_stays_in_the_place_of_its_message(page, server):
    page.send("my secret", Max_tokens=6, Text_for_the_expert_only="a secret")
    turn = page.send("and then")
    first, second = page.bodies()
    assert first["expert_prompt"] == "a secret"
    assert first["messages"][-1]["content"] == "my secret"
    answered = shown_text(page.window.locator(".answer").first)
    between = "" if answered[-1:].isspace() else " "
    assert second["expert_prompt"] == f"a secret{answered}{between}and then"
    assert "my secret" in json.dumps(second["messages"])
    assert second["expert_prompt"] in turn.inner_text()
    # So it does where an answer is continued, in front of the tokens that are kept.
    page.window.locator(".answer").first.locator(".token").nth(2).click()
    page.window.get_by_role("button", name="Continue from here").click()
    expect(page.window.locator(".answer").first).to_have_attribute("aria-busy", "false")
    (continued,) = page.bodies("/v1/completions")
    assert continued["expert_prompt"] == "a secret" + answered[:2]


def test_side_by_side_shows_base_and_expert_alone(page, server):
    page.settings()
    page.window.get_by_label("Side by side").check()
    turn = page.send(answers=3)
    bodies = page.bodies()
    assert [body["strategy"] for body in bodies] == ["defer", "base", "expert"]
    assert len({json.dumps(body["messages"]) for body in bodies}) == 1
    answers = turn.locator(".answer")
    assert answers.locator("h3").all_inner_texts() == ["Team, strategy defer", "Base alone", "Expert alone"]
    for number, body in enumerate(bodies):
        text, colm = api_answer(server, body)
        assert written(answers.nth(number)) == [[p, s] for p, s in zip(colm["pieces"], colm["sources"]) if p]
        assert shown_text(answers.nth(number)) == text
    assert {source for _, source in written(answers.nth(1))} == {0}
    assert {source for _, source in written(answers.nth(2))} == {1}
    boxes = [answers.nth(i).bounding_box() for i in range(3)]
    assert len({box["y"] for box in boxes}) == 1
    page.window.get_by_label("Side by side").uncheck()
    later = page.send("and then")  # the team's answer is the conversation's
    assert page.bodies()[3]["messages"][1]["content"] == shown_text(answers.nth(0))
    later.get_by_role("button", name="Side by side").click()
    expect(later.locator('.answer[aria-busy="false"]')).to_have_count(3)
    assert [body["strategy"] for body in page.bodies()[4:]] == ["base", "expert"]


# Copying


def test_copies_with_and_without_provenance(page, server):
    turn = page.send()
    text, colm = api_answer(server, page.bodies()[0])
    turn.get_by_role("button", name="Copy", exact=True).click()
    expect(page.window.get_by_role("status")).to_have_text("Copied.")
    assert page.window.evaluate("navigator.clipboard.readText()") == text
    turn.get_by_role("button", name="Copy with provenance").click()
    expect(page.window.get_by_role("status")).to_have_text("Copied.")
    marked, facts = page.window.evaluate("navigator.clipboard.readText()").rsplit("\n\n", 1)
    assert re.sub("[⟦⟧]", "", marked) == text
    assert "⟧⟦" not in marked
    by_expert, inside = [], False
    for character in marked:
        if character in "⟦⟧":
            inside = character == "⟦"
        else:
            by_expert.append(inside)
    sources = [source for piece, source in zip(colm["pieces"], colm["sources"]) for _ in piece]
    marks = [mark == bool(source) for mark, source in zip(by_expert, sources, strict=True)]
    assert all(right for character, right in zip(text, marks) if not character.isspace())
    assert True in by_expert
    base, expert = model_names(page)
    assert facts.startswith(f"[unmarked: {base}; ⟦…⟧: {expert}; strategy defer; ")


def test_copying_works_without_the_clipboard_interface(page_at):
    page = page_at(script="Object.defineProperty(navigator, 'clipboard', {value: undefined})").open()
    turn = page.send(Max_tokens=6)
    page.window.evaluate("document.addEventListener('copy', () => { window.copied = getSelection().toString(); })")
    turn.get_by_role("button", name="Copy", exact=True).click()
    expect(page.window.get_by_role("status")).to_have_text("Copied.")
    assert page.window.evaluate("window.copied") == shown_text(turn)


# API key


def test_page_asks_for_the_key_and_sends_it(page_at, server):
    page, keys = page_at(), []

    def guarded(route):
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "wrong or missing API key"}})

    page.window.route("**/v1/**", guarded)
    page.window.goto(server.url)
    dialog = page.window.get_by_role("dialog", name="API key")
    for key in ("wrong", "right"):
        expect(dialog).to_be_visible()
        dialog.get_by_label("This server needs an API key").fill(key)
        page.window.keyboard.press("Enter")
        if key == "wrong":
            expect(dialog).to_contain_text("The server rejected this key.")
    expect(dialog).to_be_hidden()
    expect(page.window.get_by_role("button", name="Send")).to_be_enabled()
    page.settings()
    page.window.get_by_label("Side by side").check()
    page.send(answers=3, Max_tokens=4)
    assert keys[:3] == [None, "Bearer wrong", "Bearer right"]
    assert set(keys[3:]) == {"Bearer right"}
    assert page.window.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert all(SERVER_FAULT in complaint for complaint in page.complaints)
    page.complaints.clear()


def test_requests_side_by_side_ask_for_the_key_once(page):
    late = []

    def guarded(route):
        if route.request.headers.get("authorization"):
            route.continue_()
        elif route.request.post_data_json["strategy"] == "expert":
            late.append(route)
        else:
            route.fulfill(status=401, json=refusal)

    refusal = {"error": {"message": "wrong or missing API key"}}
    page.window.route("**/v1/chat/completions", guarded)
    page.settings(Max_tokens=4)
    page.window.get_by_label("Side by side").check()
    page.window.get_by_label("Message", exact=True).fill(MESSAGE)
    page.window.keyboard.press("Enter")
    page.window.get_by_role("dialog").get_by_label("This server needs an API key").fill("right")
    page.window.keyboard.press("Enter")
    expect(page.window.locator(".answer .end")).to_have_count(2)
    late[0].fulfill(status=401, json=refusal)  # of a request without a key, after it was given
    expect(page.window.locator(".answer .end")).to_have_count(3)
    expect(page.window.get_by_role("dialog")).to_be_hidden()
    assert page.window.locator(".answer .error:not(:empty)").count() == 0
    page.complaints.clear()

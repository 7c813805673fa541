"""The server's page in a window of a real browser, for its tests.

Needs Playwright and a Chromium, as `tests.report.test_browser` does. Most tests use a real server; those about what
a tiny random model never writes (markup, marks to check, failures) replace single answers of the API.
"""
# ruff: noqa: F401, F811  fixtures are imported by their names

import json
from urllib.parse import urlsplit

import pytest

from tests.report.test_browser import _luminance, _over, browser

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=60_000)  # ms: a server beside other tests takes its time

MESSAGE = "once upon a time"
MARKUP = "<img src=x onerror=alert(1)>"
ROUTES = {"/", "/health", "/tokenizer_info", "/tokenize", "/v1/models", "/v1/candidates", "/v1/completions"}
ROUTES |= {"/v1/chat/completions"}
SERVER_FAULT = "Failed to load resource"  # what Chromium's console says of a status that is no 200

# Replaces the streams of answers by one that the test writes: window.answers holds {body, push(text), aborted}.
HELD_STREAMS = """
window.answers = [];
const real = window.fetch;
window.fetch = (path, options = {}) => {
  if (!String(path).endsWith("/completions")) return real(path, options);
  let held;
  const answer = {body: JSON.parse(options.body), aborted: false};
  const stream = new ReadableStream({start(controller) { held = controller; }});
  answer.push = text => held.enqueue(new TextEncoder().encode(text));
  answer.close = () => held.close();
  options.signal.addEventListener("abort", () => {
    answer.aborted = true;
    held.error(options.signal.reason);
  });
  window.answers.push(answer);
  return Promise.resolve(new Response(stream));
};
"""


class Page:
    """The page in a window, and what it sends."""

    def __init__(self, window, server):
        self.window, self.server = window, server
        self.complaints: list[str] = []  # of the console, and requests to elsewhere
        self.sent: list[tuple[str, dict]] = []  # route and body of each POST
        window.on("console", lambda message: self.complaints.append(message.text))
        window.on("pageerror", lambda error: self.complaints.append(str(error)))
        window.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        window.on("request", self._record)

    def _record(self, request):
        if not request.url.startswith("data:"):
            place = urlsplit(request.url)
            if not request.url.startswith(self.server.url) or place.path not in ROUTES:
                self.complaints.append(request.url)
            if request.method == "POST":
                self.sent.append((place.path, request.post_data_json))

    def open(self):
        """Open the page, and wait until it can send."""
        self.window.goto(self.server.url)
        expect(self.window.get_by_role("button", name="Send")).to_be_enabled()
        return self

    def send(self, text=MESSAGE, answers=1, **fields):
        """Send a message with Enter, and wait for its answers; `fields` are those of the settings, by label."""
        self.settings(**fields)
        count = self.window.locator(".turn").count()
        self.window.get_by_label("Message", exact=True).fill(text)
        self.window.keyboard.press("Enter")
        turn = self.window.locator(".turn").nth(count)
        expect(turn.locator('.answer[aria-busy="false"]')).to_have_count(answers)
        return turn

    def settings(self, **fields):
        """Set settings by their labels."""
        if self.window.locator("#settings").get_attribute("open") is None:
            self.window.locator("summary").click()
        for name, value in fields.items():
            self.window.get_by_label(name.replace("_", " "), exact=True).fill(str(value))

    def bodies(self, route="/v1/chat/completions"):
        """The bodies that were sent to a route, in order."""
        return [body for path, body in self.sent if path == route]

    def focused(self):
        """The element that has the focus."""
        return self.window.locator(":focus")


@pytest.fixture
def page_at(browser, server):
    """Open the page in a window of its own; messages of the console and requests to elsewhere fail the test."""
    opened = []

    def make(width=1200, scheme="light", script=None):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        if script:
            context.add_init_script(script)
        opened.append(Page(context.new_page(), server))
        return opened[-1]

    yield make
    for page in opened:
        page.window.context.close()
    assert [complaint for page in opened for complaint in page.complaints] == []


@pytest.fixture
def page(page_at):
    return page_at().open()


@pytest.fixture
def held(page_at):
    """The page, with streams that the test writes."""
    return page_at(script=HELD_STREAMS).open()


def written(answer):
    """The text and the writer of each token that is shown."""
    read = "all => all.map(e => [e.textContent, Number(e.dataset.source)])"
    return answer.locator("[data-source]").evaluate_all(read)


def shown_text(answer):
    return "".join(text for text, _ in written(answer))


def model_names(page):
    """The names of base and expert, as the API tells them."""
    return page.window.request.get(f"{page.server.url}/v1/models").json()["data"][0]["colm"]["models"]


def api_answer(server, body):
    """The API's own answer to a request of the page, not streamed: its text and its "colm"."""
    route = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    response = server.post(route, {**body, "stream": False})
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"], choice["colm"]


def push(page, number, *choices, done=True):
    """Write chunks into a held stream."""
    lines = [f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices] + ["data: [DONE]\n\n"] * done
    page.window.evaluate("([number, text]) => window.answers[number].push(text)", [number, "".join(lines)])


def chunk(*pieces, sources=None, p_defer=0.25, reason=None, **colm):
    """A choice of a streamed chunk."""
    count = len(pieces)
    colm = {"check": [], "expert_calls": 0, **colm}
    lists = {"tokens": [5] * count, "pieces": pieces, "sources": sources or [0] * count}
    lists |= {"p_defer": [p_defer] * count, "threshold": [0.5] * count}
    return {"delta": {"content": "".join(pieces)}, "finish_reason": reason, "colm": {**lists, **colm}}


def begin(page, text=MESSAGE):
    """Send a message whose answer is a held stream."""
    page.window.get_by_label("Message", exact=True).fill(text)
    page.window.get_by_role("button", name="Send").click()
    return page.window.locator(".answer").last

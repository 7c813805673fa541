"""The page escapes all texts, needs no network, and marks experts' tokens."""

import json
import re
from html.parser import HTMLParser

import pytest

from colm_jax.report.html import write_html
from tests.report.sample import EMPTY, REPORT


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "report.html"
    write_html(REPORT, str(path))
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """Collects every tag with its attributes, and checks that tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "path", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def test_texts_are_escaped(page):
    assert "&lt;script&gt;alert" in page
    assert page.count("<script>") == page.count("</script>") - 1 == 1
    tags = _Tags(page)
    assert not tags.open
    assert not {"b", "i", "run", "expert", "rate"} & {tag for tag, attributes in tags.tags if not attributes}
    assert any(attributes.get("title") == 'mean p_defer 0.100 · written by the "base"' for _, attributes in tags.tags)


def test_page_needs_no_network(page):
    assert not re.search(r"https?:|//\w|@import|@font-face", re.sub(r"  // .*|^// .*", "", page, flags=re.MULTILINE))
    for tag, attributes in _Tags(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "default-src 'none'" in page


def test_ids_are_unique_and_references_resolve(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_expert_tokens_are_marked_and_words_name_their_writer(page):
    assert '<span class="expert w1">3</span><span class="expert w1">1</span>.</span>' in page
    assert '<span class="expert w2">&lt;b&gt;</span>' in page
    assert "mean p_defer 0.500 · written by the &#34;base&#34; + an &lt;expert&gt;" in page
    assert "3 of 6 tokens by experts" in page
    assert re.findall(r'data-marks="([^"]*)"', page) == ["right expert", "wrong worse check", ""]
    assert re.search(r'<span class="word check"[^>]*>no</span>', page)
    assert ".w2 { --color: var(--color-2); text-decoration-style: double; }" in page


def test_page_has_the_tokens_of_each_word(page):
    known = json.loads(re.search(r'<script type="application/json" id="tokens">(.*)</script>', page)[1])
    places = [int(place) for place in re.findall(r'data-word="(\d+)"', page)]
    assert places == list(range(len(known["words"])))
    assert known["writers"] == list(REPORT.writers)
    assert known["words"][1] == [
        ["3", 1, 0.8, 0.5, None, None, []],
        ["1", 1, 0.6, 0.5, None, None, []],
        [".", 0, 0.1, 0.5, None, None, []],
    ]
    views = [[["</script>", 0.7], [" b\n", 0.2]], [[" no", 0.9]], [[" no", 0.9]]]
    assert known["words"][3] == [["no", 0, None, None, 0.1, 0.62, views]]


def test_page_has_outcomes_and_filters(page):
    assert 'data-show="worse" aria-pressed="false">expert changed the outcome: now wrong (1)</button>' in page
    assert 'data-show="better"' not in page  # there is none
    assert "Base alone (✓ right): &lt;u&gt; yes" in page
    assert "▼ base alone was right" in page


def test_section_headings_have_links(page):
    assert '<a href="#section-1">Gate &amp; &lt;co&gt;</a>' in page
    assert '<h2 id="section-1">Gate &amp; &lt;co&gt;</h2>' in page
    assert "Shares &lt;1&gt;: numbers: 0.5; &lt;words&gt;: none" in page
    assert "<figcaption>of $4</figcaption>" in page


def test_numbers_are_right_aligned(page):
    assert '<td class="short">base</td><td class="number">0.25</td><td class="number">1,234</td>' in page


def test_empty_report_has_no_sections(page, tmp_path):
    assert page.count("(nothing written)") == 1
    write_html(EMPTY, tmp_path / "empty.html")
    assert "Answers" not in re.sub(r"<script>.*</script>", "", (tmp_path / "empty.html").read_text(), flags=re.DOTALL)

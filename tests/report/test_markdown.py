"""Markdown shows texts unchanged, with experts' tokens in bold, according to a CommonMark parser."""

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from colm_jax.report.contents import Piece, Report, ShownAnswer
from colm_jax.report.markdown import write_markdown
from tests.report.sample import EMPTY, REPORT


def _read(report, directory, images=()):
    write_markdown(report, directory / "report.md", images)
    assert [found.name for found in directory.iterdir()] == ["report.md"]
    text = (directory / "report.md").read_text(encoding="utf-8")
    return text, MarkdownIt("gfm-like", {"linkify": False}).render(text)


def _answer(directory, *pieces):
    answer = ShownAnswer("p", tuple(Piece(text, source, None) for text, source in pieces), None, None, None)
    html = _read(Report("r", (), (), (), (answer,), ("base", "expert")), directory)[1]
    return html.partition("</blockquote>")[2].strip().replace("<b>", "<strong>").replace("</b>", "</strong>")


def test_texts_are_escaped(tmp_path):
    text, html = _read(REPORT, tmp_path, ["a 1.png", "b.png", "c.png"])
    assert "\\<script\\>" in text
    assert "<script>" not in html
    assert "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>" in html
    assert "<li>base [x]: models/[bold]small</li>" in html
    assert 'src="a%201.png" alt="cost of $5 &amp; $6' in html
    assert "<th>who|what</th>" in html
    assert re.search(r'<tr>\s*<td>team</td>\s*<td style="text-align:right">0.50</td>\s*<td[^>]*>–</td>', html)
    assert "(nothing written)" in html
    assert "<h3>2 ✗ wrong, base alone right</h3>" in html


def test_sections_follow_the_answers(tmp_path):
    text, html = _read(REPORT, tmp_path, ["a.png", "b.png", "c.png"])
    assert text.index("## Answers") < text.index("## Gate")
    assert "<h2>Gate &amp; &lt;co&gt;</h2>\n<p>An *expert* is_called.</p>\n<h3>By &lt;class&gt;</h3>" in html
    assert '<img src="c.png" alt="Shares &lt;1&gt;" /></p>\n<p>of $4</p>' in html
    assert "<p>Calculator &lt;1&gt;:</p>\n<p>is <strong>31</strong>.</p>" in html


def test_expert_tokens_are_bold(tmp_path):
    _, html = _read(REPORT, tmp_path, ["a.png", "b.png", "c.png"])
    assert re.search(r"<p>is <strong>31</strong>\.<br />\s*<strong>&lt;b&gt;</strong></p>", html)


@pytest.mark.parametrize(
    "pieces",
    [
        [("a", 0), ("^5", 1), ("b", 0)],
        [("(", 0), ("a", 1), (")", 0), ("=", 1), ("3", 0)],
        [(" x", 1), (" *y*", 1), (" and", 0), (" _z_", 1), (".", 0)],
        [("5", 0), (" -", 1), (" 3", 0)],
        [("&lt;", 0), (" \\", 1), ("`", 0), ("$x$", 1)],
    ],
)
def test_bold_covers_exactly_the_expert_tokens(tmp_path, pieces):
    html = _answer(tmp_path, *pieces)
    assert unescape(re.sub(r"<[^>]+>", "", html)) == "".join(text for text, _ in pieces).strip()
    bold = "".join(re.findall(r"<strong>(.*?)</strong>", html))
    assert unescape(bold).replace(" ", "") == "".join(text.strip() for text, source in pieces if source).replace(
        " ", ""
    )


def test_lines_are_kept_and_do_not_become_lists(tmp_path):
    html = _answer(tmp_path, ("1.", 0), (" one\n\n", 0), ("- two\n#", 0), (" three", 1), ("\n---", 0))
    lines = [line.strip() for line in re.sub(r"</?(p|strong)>", "", html).split("<br />")]
    assert lines == ["1. one", "- two", "# three", "---"]


def test_missing_image_of_a_curve_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="3 plots"):
        write_markdown(REPORT, tmp_path / "report.md", ["a.png"])


def test_empty_report_is_a_heading(tmp_path):
    assert _read(EMPTY, tmp_path)[0] == "# nothing\n\n"

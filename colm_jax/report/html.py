"""The report as one HTML file that needs no network: tables, plots, and answers marked by who wrote each token."""

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from colm_jax.report.contents import Answer, Piece, Report
from colm_jax.report.plots import COLORS, to_svg
from colm_jax.report.words import words, writers_of

_LINES = (
    "solid",
    "double",
    "dotted",
    "dashed",
    "wavy",
)  # under experts' tokens: colour is not all that tells them apart

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1d1f; --quiet: #5f6368; --line: #0002; --card: #f6f7f9;
  --wrong: #b3261e; --right: #146c2e; --color-0: #0072b2; --color-1: #d55e00; --color-2: #009e73; --color-3: #b8558c;
  --color-4: #b97f00; --color-5: #2f8fcb; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #e6e7e9; --quiet: #a2a7ad; --line: #fff3;
  --card: #1f2226; --wrong: #ff9a90; --right: #7fd89a; --color-0: #4ba9e6; --color-1: #ff8a3d; --color-2: #2cc79a;
  --color-3: #e79cc4; --color-4: #f0b43c; --color-5: #8fd0f7; } }
* { box-sizing: border-box; }
body { font: 16px/1.6 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto 5rem; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; text-wrap: balance; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; } dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .35rem 1rem; border-bottom: 1px solid var(--line); text-align: left; }
th { border-bottom-width: 2px; vertical-align: bottom; } tbody tr:hover { background: var(--card); }
.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
.note, .meta { color: var(--quiet); font-size: .9rem; }
figure { margin: 2rem 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 30rem; max-width: 46rem; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; list-style: none; }
.filter { display: flex; flex-wrap: wrap; gap: .5rem; } .filter[hidden] { display: none; }
button { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 2rem;
  padding: .2rem .9rem; cursor: pointer; }
button[aria-pressed="true"] { color: var(--page); background: var(--text); border-color: var(--text); }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1.1rem;
  margin: .9rem 0; }
article p { margin: .3rem 0; } .prompt, .text, .reference { white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt, .reference { color: var(--quiet); font-size: .95rem; } .text { font-size: 1.05rem; }
article .text { margin: .6rem 0; } .wrong { color: var(--wrong); } .right { color: var(--right); }
.word { border-radius: 3px; } .word:hover { background: var(--line); }
:focus-visible, .word:focus { outline: 2px solid var(--color-0); outline-offset: 2px; }
.word:focus::after { content: attr(title); position: fixed; left: 1rem; bottom: 1rem; z-index: 1; max-width: 90vw;
  padding: .4rem .9rem; border-radius: .4rem; color: var(--page); background: var(--text); font: .95rem/1.4 system-ui; }
.expert { font-weight: 600; text-decoration: underline 2px var(--color); text-underline-offset: 4px;
  text-decoration-skip-ink: none; background: color-mix(in srgb, var(--color) 20%, transparent); }
.expert.break::before { content: "↵"; opacity: .7; }
@media (max-width: 40rem) { th, td { padding: .3rem .5rem; } article { padding: .6rem .8rem; } }
"""

_SCRIPT = """
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const filter = document.querySelector(".filter");
if (filter) {
  filter.hidden = false;
  const buttons = all("button", filter);
  buttons.forEach(button => button.addEventListener("click", () => {
    const mark = button.dataset.show;
    buttons.forEach(other => other.setAttribute("aria-pressed", other === button));
    all("article").forEach(a => { a.hidden = mark !== "all" && !a.dataset.marks.split(" ").includes(mark); });
  }));
}
// One tab stop for each answer; from there the arrow keys go from word to word.
all(".text").forEach(text => {
  const found = all(".word", text);
  found.slice(1).forEach(word => { word.tabIndex = -1; });
  text.addEventListener("keydown", event => {
    const from = found.indexOf(document.activeElement);
    const to = found[from + ({ArrowRight: 1, ArrowLeft: -1}[event.key] ?? NaN)];
    if (!to) return;
    event.preventDefault();
    found.forEach(word => { word.tabIndex = -1; });
    to.tabIndex = 0;
    to.focus();
  });
});
"""

_PAGE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{{ report.title }}</title>
<style>{{ style }}
{% for _ in report.writers[1:] %}
.w{{ loop.index }} { --color: var(--color-{{ (loop.index - 1) % colors + 1 }}); \
text-decoration-style: {{ lines[(loop.index - 1) % lines | length] }}; }
{% endfor %}
</style></head><body>
<h1>{{ report.title }}</h1>
{% if report.facts %}
<dl>
{% for name, value in report.facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% endif %}
{% macro row(cells, tag, numeric) %}
<tr>{% for cell in cells %}<{{ tag }}{% if numeric[loop.index0] %} class="number"{% endif %}>{{ cell }}</{{ tag }}>\
{% endfor %}</tr>
{% endmacro %}
{% for table in report.tables %}
<h2>{{ table.title }}</h2>
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.title }}"><table>
<thead>{{ row(table.columns, "th", table.numeric) }}</thead>
<tbody>{% for cells in table.shown %}{{ row(cells, "td", table.numeric) }}{% endfor %}</tbody>
</table></div>
{% if table.note %}
<p class="note">{{ table.note }}</p>
{% endif %}
{% endfor %}
{% for curve, plot in plots %}
<figure role="img" tabindex="0" aria-label="{{ curve.title }}: {{ curve.y_label }} over {{ curve.x_label }}">\
{{ plot }}</figure>
{% endfor %}
{% if answers %}
<h2>Answers</h2>
<ul class="legend" aria-label="Writers">
{% for name in report.writers %}
<li>{% if loop.first %}{{ name }} (base){% else %}\
<span class="expert w{{ loop.index0 }}">{{ name }}</span>{% endif %}</li>
{% endfor %}
</ul>
<p class="note">Point at a word for its mean p_defer and who wrote it, or tap it. By keyboard: Tab goes to an answer,
the arrow keys from word to word.</p>
<div class="filter" role="group" aria-label="Show answers" hidden>
{% for mark, label, count in filters %}
<button type="button" data-show="{{ mark }}" aria-pressed="{{ "true" if loop.first else "false" }}">\
{{ label }} ({{ count }})</button>
{% endfor %}
</div>
{% for answer, marks, text in answers %}
<article data-marks="{{ marks | join(" ") }}">
<p class="prompt" dir="auto">{{ answer.prompt | trim }}</p>
<p class="text" dir="auto">{% if text %}{{ text }}{% else %}<span class="note">(nothing written)</span>{% endif %}</p>
{% if answer.reference is not none %}
<p class="reference" dir="auto">Reference: {{ answer.reference | trim }}</p>
{% endif %}
<p class="meta">{% if answer.correct is not none %}\
<b class="{{ marks[0] }}">{{ "✓ right" if answer.correct else "✗ wrong" }}</b> · {% endif %}\
{{ answer.by_experts }} of {{ answer.pieces | length }} tokens by {{ experts }}\
{% if answer.threshold is not none %} · threshold {{ "%.4g" | format(answer.threshold) }}{% endif %}</p>
</article>
{% endfor %}
{% endif %}
<script>{{ script }}</script>
</body></html>
""")


def write_html(report: Report, path: str | Path) -> None:
    """Writes the page beside its place and renames it."""
    path = Path(path)
    answers = [(answer, _marks(answer), _text(answer, report.writers)) for answer in report.answers]
    labels = (("right", "right"), ("wrong", "wrong"), ("expert", "expert was called"))
    counts = [(mark, label, sum(mark in marks for _, marks, _ in answers)) for mark, label in labels]
    page = _PAGE.render(
        report=report,
        plots=[(curve, Markup(to_svg(curve, f"plot{i}-"))) for i, curve in enumerate(report.curves)],
        answers=answers,
        filters=[("all", "all", len(answers)), *(found for found in counts if found[2])],
        experts="the expert" if len(report.writers) == 2 else "experts",
        colors=len(COLORS) - 1,
        lines=_LINES,
        style=Markup(_STYLE),
        script=Markup(_SCRIPT),
    )
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)


def _marks(answer: Answer) -> list[str]:
    """What the page's filter knows of an answer."""
    grade = [] if answer.correct is None else ["right" if answer.correct else "wrong"]
    return grade + ["expert"] * (answer.by_experts > 0)


def _text(answer: Answer, writers: tuple[str, ...]) -> Markup:
    """Words that can be pointed at, made of tokens in their writers' colours; Markup escapes what is put into it."""
    found = []
    for i, word in enumerate(words(answer.pieces)):
        for part in word.space:
            if part.source and "\n" in part.text:
                found.append(Markup('<span class="expert w{} break"></span>').format(part.source))
            if i:
                found.append(Markup("{}").format(part.text))
        if word.pieces:
            tokens = Markup().join(_token(part) for part in word.pieces)
            title = writers_of(word, writers)
            found.append(Markup('<span class="word" tabindex="0" title="{}">{}</span>').format(title, tokens))
    return Markup().join(found)


def _token(part: Piece) -> Markup:
    if not part.source:
        return escape(part.text)
    return Markup('<span class="expert w{}">{}</span>').format(part.source, part.text)

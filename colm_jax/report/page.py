"""The HTML page's style, script and Jinja template, which `html` fills in. The page makes no network requests."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1d1f; --quiet: #5f6368; --line: #0002; --edge: #767b82;
  --card: #f6f7f9; --wrong: #b3261e; --right: #146c2e; --color-0: #0072b2; --color-1: #b54e00; --color-2: #007a58;
  --color-3: #a8447b; --color-4: #8f6100; --color-5: #1b6fa3; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #e6e7e9; --quiet: #a2a7ad; --line: #fff3;
  --edge: #868c94; --card: #1f2226; --wrong: #ff9a90; --right: #7fd89a; --color-0: #4ba9e6; --color-1: #ff8a3d;
  --color-2: #2cc79a; --color-3: #e79cc4; --color-4: #f0b43c; --color-5: #8fd0f7; } }
* { box-sizing: border-box; }
body { font: 16px/1.6 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto 5rem; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; text-wrap: balance; } h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; } dt { color: var(--quiet); }
dd { margin: 0; }
a { color: var(--color-0); } nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .35rem 1rem; border-bottom: 1px solid var(--line); text-align: left; }
th { border-bottom-width: 2px; vertical-align: bottom; } tbody tr:hover { background: var(--card); }
.number { text-align: right; font-variant-numeric: tabular-nums; } td.number, .short { white-space: nowrap; }
.note, .meta, figcaption { color: var(--quiet); font-size: .9rem; }
figure { margin: 2rem 0; }
figure .scroll svg { width: 100%; min-width: 26rem; max-width: 46rem; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; list-style: none; }
.tools { display: grid; gap: .7rem; margin: 1rem 0; } .tools[hidden] { display: none; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
label { display: inline-flex; gap: .5rem; align-items: center; }
button, input, select { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--edge);
  border-radius: .5rem; padding: .2rem .7rem; max-width: 100%; min-height: 2rem; }
button { border-radius: 2rem; cursor: pointer; }
button[aria-pressed="true"] { color: var(--page); background: var(--text); border-color: var(--text); }
article, .example { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1.1rem;
  margin: .9rem 0; }
article p, .example p { margin: .3rem 0; } .prompt, .text, .reference, .alone { white-space: pre-wrap; }
.prompt, .reference, .alone { color: var(--quiet); font-size: .95rem; } .text { font-size: 1.05rem; }
article .text { margin: .6rem 0; } .wrong, .worse { color: var(--wrong); } .right, .better { color: var(--right); }
.word { border-radius: 3px; } .word:hover { background: var(--line); }
:focus-visible, .word:focus { outline: 2px solid var(--color-0); outline-offset: 2px; }
.expert { font-weight: 600; text-decoration: underline 2px var(--color); text-underline-offset: 4px;
  text-decoration-skip-ink: none; background: color-mix(in srgb, var(--color) 20%, transparent); }
.expert.break::before { content: "↵"; opacity: .7; }
.check { border-bottom: 3px dotted var(--wrong); }
.check::after { content: "?"; font-size: .7em; vertical-align: super; color: var(--wrong); font-weight: 600; }
#details { position: absolute; z-index: 1; width: max-content; max-width: min(34rem, calc(100vw - 2rem));
  max-height: 60vh; overflow-y: auto; padding: .5rem .8rem; border-radius: .5rem; color: var(--text);
  background: var(--page); border: 1px solid var(--edge); box-shadow: 0 4px 18px #0004; font-size: .9rem;
  line-height: 1.4; }
#details[hidden] { display: none; } #details p { margin: .2rem 0; white-space: pre-wrap; }
#details th, #details td { padding: .1rem .6rem .1rem 0; border: 0; vertical-align: top; }
#details td { font-variant-numeric: tabular-nums; white-space: pre-wrap; }
#details b { white-space: pre-wrap; }
kbd { font: inherit; border: 1px solid var(--edge); border-radius: 4px; padding: 0 .35em; }
@media (max-width: 40rem) { th, td { padding: .3rem .5rem; } article, .example { padding: .6rem .8rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
  #details { position: fixed; left: .5rem !important; right: .5rem; top: auto !important; bottom: .5rem; width: auto;
  max-width: none; max-height: 45vh; } }
@media print { .tools, #details, nav { display: none; } }
"""

SCRIPT = """
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const tools = document.querySelector(".tools");
const articles = all("article");
if (tools) {
  tools.hidden = false;
  const buttons = all("button", tools), search = tools.querySelector("input"), order = tools.querySelector("select");
  const shown = document.querySelector("#shown"), list = document.querySelector("#list");
  let mark = "all";
  const texts = new Map(articles.map(a => [a, a.textContent.toLowerCase()]));
  const show = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    articles.forEach(a => {
      a.hidden = !(mark === "all" || a.dataset.marks.split(" ").includes(mark)) || !texts.get(a).includes(wanted);
      count += !a.hidden;
    });
    shown.textContent = `${count} of ${articles.length} shown`;
  };
  buttons.forEach(button => button.addEventListener("click", () => {
    mark = button.dataset.show;
    buttons.forEach(other => other.setAttribute("aria-pressed", other === button));
    show();
  }));
  search.addEventListener("input", show);
  order.addEventListener("change", () => {
    const key = order.value;
    const sorted = [...articles];
    if (key) sorted.sort((a, b) => Number(b.dataset[key]) - Number(a.dataset[key]));
    list.append(...sorted);
  });
  show();
}
// Details of each word's tokens, and the writers.
const known = JSON.parse(document.querySelector("#tokens").textContent);
const details = document.querySelector("#details");
const element = (name, text = "", ...children) => {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
};
const quoted = text => "“" + text.replaceAll("\\n", "↵") + "”";
const percent = p => p >= 0.9995 ? "≈ 1" : p < 0.0005 ? "≈ 0" : p.toFixed(3);
function describe([text, source, rate, threshold, written, risk, views]) {
  const line = element("p", "", element("b", quoted(text)), ` by ${known.writers[source]}`);
  if (rate !== null) line.append(` · p_defer ${percent(rate)}`);
  if (rate !== null && threshold !== null) line.append(rate > threshold ? ` > η ${percent(threshold)}` :
    ` ≤ η ${percent(threshold)}`);
  if (written !== null) line.append(` · its writer's probability ${percent(written)}`);
  if (risk !== null) line.append(` · risk ${percent(risk)}`);
  const found = [line];
  if (views.length) {
    const body = element("tbody");
    views.forEach((candidates, m) => body.append(element("tr", "", element("th", known.writers[m]),
      ...candidates.map(([token, p]) => element("td", `${quoted(token)} ${percent(p)}`)))));
    found.push(element("table", "", body));
  }
  return found;
}
let current = null;
function hide() {
  details.hidden = true;
  if (current) current.removeAttribute("aria-describedby");
  current = null;
}
function showDetails(word) {
  if (current && current !== word) current.removeAttribute("aria-describedby");
  current = word;
  details.replaceChildren(...known.words[Number(word.dataset.word)].flatMap(describe));
  details.hidden = false;
  word.setAttribute("aria-describedby", "details");
  const at = word.getClientRects()[0], box = details.getBoundingClientRect();
  const page = document.documentElement;
  details.style.left = `${Math.max(8, Math.min(at.left, page.clientWidth - box.width - 8)) + scrollX}px`;
  const below = at.bottom + 8 + box.height < page.clientHeight || at.top < box.height + 8;
  details.style.top = `${(below ? at.bottom + 8 : at.top - box.height - 8) + scrollY}px`;
}
all(".word").forEach(word => {
  word.removeAttribute("title");  // the fallback without scripts
  word.addEventListener("mouseenter", () => showDetails(word));
  word.addEventListener("mouseleave", () => {
    const focused = document.activeElement;
    if (focused.classList.contains("word")) showDetails(focused); else hide();
  });
  word.addEventListener("focus", () => showDetails(word));
  word.addEventListener("blur", hide);
});
// One tab stop per answer; from there the arrow keys move from word to word.
const go = word => {
  all(".word", word.closest(".text")).forEach(other => { other.tabIndex = -1; });
  word.tabIndex = 0;
  word.focus();
  word.scrollIntoView({block: "nearest"});
};
all(".text").forEach(text => {
  const found = all(".word", text);
  found.slice(1).forEach(word => { word.tabIndex = -1; });
  text.addEventListener("keydown", event => {
    const from = found.indexOf(document.activeElement);
    const to = {ArrowRight: found[from + 1], ArrowLeft: found[from - 1], Home: found[0], End: found.at(-1)}[event.key];
    if (!to || from < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(to);
  });
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") hide();
  if (!["n", "p"].includes(event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input, select")) return;
  // Move to the next or the previous place to check.
  const places = all("article:not([hidden]) .word.check");
  const ahead = Node.DOCUMENT_POSITION_FOLLOWING, behind = Node.DOCUMENT_POSITION_PRECEDING;
  const here = document.activeElement;
  const after = here === document.body ? places : places.filter(p => here.compareDocumentPosition(p) & ahead);
  const before = here === document.body ? [] : places.filter(p => here.compareDocumentPosition(p) & behind);
  const to = event.key === "n" ? after[0] : before.at(-1);
  if (to) { event.preventDefault(); go(to); }
});
"""

PAGE = """\
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
{% if report.sections %}
<nav aria-label="Parts of the report"><ul>
{% if answers %}
<li><a href="#answers">Answers</a></li>
{% endif %}
{% for section in report.sections %}
<li><a href="#section-{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
</ul></nav>
{% endif %}
{% macro row(cells, tag, numeric) %}
<tr>{% for cell in cells %}<{{ tag }}{% if numeric[loop.index0] %} class="number"{% elif tag == "td" and \
cell | length < 14 %} class="short"{% endif %}>{{ cell }}</{{ tag }}>{% endfor %}</tr>
{% endmacro %}
{% macro show_table(table, heading) %}
<{{ heading }}>{{ table.title }}</{{ heading }}>
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.title }}"><table>
<thead>{{ row(table.columns, "th", table.numeric) }}</thead>
<tbody>{% for cells in table.shown %}{{ row(cells, "td", table.numeric) }}{% endfor %}</tbody>
</table></div>
{% if table.note %}
<p class="note">{{ table.note }}</p>
{% endif %}
{% endmacro %}
{% macro show_plot(plot) %}
<figure><div class="scroll" role="img" tabindex="0" aria-label="{{ plot.title }}: {{ described(plot) }}">\
{{ next_plot() }}</div>
{% if plot.note %}
<figcaption>{{ plot.note }}</figcaption>
{% endif %}
</figure>
{% endmacro %}
{% for table in report.tables %}
{{ show_table(table, "h2") }}
{% endfor %}
{% for plot in report.curves %}
{{ show_plot(plot) }}
{% endfor %}
{% if answers %}
<h2 id="answers">Answers</h2>
<ul class="legend" aria-label="Marks">
{% for name in report.writers %}
<li>{% if loop.first %}{{ name }}{{ "" if name == "base" else " (base)" }}{% else %}\
<span class="expert w{{ loop.index0 }}">{{ name }}</span>{% endif %}</li>
{% endfor %}
{% if judged %}
<li><span class="check">to check</span>: the answer may go wrong here</li>
{% endif %}
</ul>
<p class="note">Point at a word, or tap it, for its writers, its p_defer\
{% if judged %}, the risk that the answer goes wrong there{% endif %}\
{% if scored %} and each model's most probable tokens{% endif %}. By keyboard: <kbd>Tab</kbd> moves to an answer, the
arrow keys from word to word, {% if judged %}<kbd>n</kbd> and <kbd>p</kbd> to the next and the previous place to
check, \
{% endif %}<kbd>Esc</kbd> closes the details.</p>
<div class="tools" hidden>
<div class="row" role="group" aria-label="Show answers">
{% for mark, label, count in filters %}
<button type="button" data-show="{{ mark }}" aria-pressed="{{ "true" if loop.first else "false" }}">\
{{ label }} ({{ count }})</button>
{% endfor %}
</div>
<div class="row"><label>Search <input type="search" size="18"></label>
<label>Sort <select>
<option value="">as in the file</option>
<option value="expert">most by experts</option>
{% if judged %}
<option value="check">most to check</option>
{% endif %}
<option value="length">longest</option>
</select></label>
<span id="shown" role="status" class="note"></span></div>
</div>
<div id="list">
{% for answer, marks, text, checks in answers %}
<article id="answer-{{ loop.index }}" data-marks="{{ marks | join(" ") }}" data-expert="{{ answer.by_experts }}" \
data-check="{{ checks }}" data-length="{{ answer.pieces | length }}">
<p class="prompt" dir="auto">{{ answer.prompt | trim }}</p>
<p class="text" dir="auto">{% if text %}{{ text }}{% else %}<span class="note">(nothing written)</span>{% endif %}</p>
{% if answer.reference is not none %}
<p class="reference" dir="auto">Reference: {{ answer.reference | trim }}</p>
{% endif %}
{% if answer.alone is not none and answer.alone != answer.text %}
<p class="alone" dir="auto">Base alone{% if answer.alone_correct is not none %} \
({{ "✓ right" if answer.alone_correct else "✗ wrong" }}){% endif %}: \
{{ answer.alone | trim or "(nothing written)" }}</p>
{% endif %}
<p class="meta">{{ loop.index }} · {% if answer.correct is not none %}\
<b class="{{ marks[0] }}">{{ "✓ right" if answer.correct else "✗ wrong" }}</b> · {% endif %}\
{% if answer.outcome in outcomes %}<b class="{{ answer.outcome }}">{{ outcomes[answer.outcome] }}</b> · {% endif %}\
{{ answer.by_experts }} of {{ answer.pieces | length }} tokens by {{ experts }}\
{% if checks %} · {{ checks }} word{{ "" if checks == 1 else "s" }} to check{% endif %}\
{% if answer.threshold is not none %} · threshold {{ "%.4g" | format(answer.threshold) }}{% endif %}</p>
</article>
{% endfor %}
</div>
{% endif %}
{% for section in report.sections %}
<h2 id="section-{{ loop.index }}">{{ section.title }}</h2>
{% if section.text %}
<p>{{ section.text }}</p>
{% endif %}
{% for table in section.tables %}
{{ show_table(table, "h3") }}
{% endfor %}
{% for plot in section.plots %}
{{ show_plot(plot) }}
{% endfor %}
{% for example in section.examples %}
<div class="example"><p class="note">{{ example.title }}</p>
<p class="text" dir="auto">{{ marked(example.pieces) }}</p></div>
{% endfor %}
{% endfor %}
<div id="details" role="tooltip" hidden></div>
<script type="application/json" id="tokens">{{ tokens() }}</script>
<script>{{ script }}</script>
</body></html>
"""

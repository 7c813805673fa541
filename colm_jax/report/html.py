"""The report as one HTML file that needs no network: tables, pictures, and answers coloured by who wrote each token."""

from html import escape
from pathlib import Path

from colm_jax.report.contents import Answer, Report, Table, shown, words
from colm_jax.report.plots import COLORS, to_svg

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.note, .prompt, .reference { color: var(--quiet); }
.plot { background: white; border-radius: .5rem; padding: .5rem; } .plot svg { max-width: 100%; height: auto; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; margin: .8rem 0; }
article p { margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.word:hover, .word:focus { outline: 2px solid var(--quiet); outline-offset: 1px; border-radius: 2px; }
.expert { font-weight: 700; text-decoration: underline 2px; text-underline-offset: 3px; }
.legend span { margin-right: 1.2rem; } button { font: inherit; margin-right: .4rem; padding: .2rem .7rem; }
button[aria-pressed="true"] { font-weight: 700; border-width: 2px; }
"""
_SCRIPT = """
document.querySelectorAll("button[data-show]").forEach(button => button.addEventListener("click", () => {
  document.querySelectorAll("button[data-show]").forEach(b => b.setAttribute("aria-pressed", b === button));
  document.querySelectorAll("article").forEach(a => {
    a.hidden = button.dataset.show !== "all" && !a.dataset.marks.split(" ").includes(button.dataset.show);
  });
}));
"""


def write_html(report: Report, path: Path) -> None:
    """Writes the page beside its place and renames it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(_page(report), encoding="utf-8")
    beside.replace(path)


def _page(report: Report) -> str:
    rules = "".join(f".w{i} {{ color: {_color(i)}; }} " for i in range(1, len(report.writers)))
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts)
    plots = "".join(f'<div class="plot">{to_svg(curve)}</div>' for curve in report.curves)
    legend = "".join(
        f'<span class="{"expert " if i else ""}w{i}">{escape(name)}</span>' for i, name in enumerate(report.writers)
    )
    buttons = "".join(
        f'<button data-show="{mark}" aria-pressed="{"true" if mark == "all" else "false"}">{label}</button>'
        for mark, label in (("all", "all"), ("wrong", "wrong"), ("right", "right"), ("expert", "expert was called"))
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title><style>{_STYLE}{rules}</style></head><body>
<h1>{escape(report.title)}</h1>
<dl>{facts}</dl>
{"".join(map(_table, report.tables))}
{plots}
<h2>Answers</h2>
<p class="legend">Written by: {legend}</p>
<p class="note">Hover over a word, or move to it with the Tab key, for its mean p_defer and who wrote it.</p>
<p>{buttons}</p>
{"".join(_answer(answer, report.writers) for answer in report.answers)}
<script>{_SCRIPT}</script>
</body></html>
"""


def _color(writer: int) -> str:
    return COLORS[writer % len(COLORS)]  # the base is the text's own colour, experts start at the second


def _table(table: Table) -> str:
    number = [all(not isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]

    def row(cells, tag: str) -> str:
        inner = "".join(
            f"<{tag}{' class=number' if is_number else ''}>{escape(shown(cell))}</{tag}>"
            for cell, is_number in zip(cells, number)
        )
        return f"<tr>{inner}</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    head = row(table.columns, "th")
    return f'<h2>{escape(table.title)}</h2><div class="scroll"><table>{head}{body}</table></div>{note}'


def _answer(answer: Answer, writers: tuple[str, ...]) -> str:
    text = []
    for word in words(answer.pieces):
        sources = sorted({piece.source for piece in word.pieces if piece.text.strip()} or {word.pieces[0].source})
        mean = word.mean_p_defer
        rate = "" if mean is None else f"mean p_defer {mean:.3f} · "
        title = escape(f"{rate}written by {' + '.join(writers[s] for s in sources)}", quote=True)
        inner = "".join(
            f'<span class="expert w{p.source}">{escape(p.text)}</span>' if p.source else escape(p.text)
            for p in word.pieces
        )
        text.append(f'<span class="word" tabindex="0" title="{title}">{inner}</span>')
    marks = ["expert"] if any(piece.source for piece in answer.pieces) else []
    marks += [] if answer.correct is None else ["right" if answer.correct else "wrong"]
    verdict = "" if answer.correct is None else "✓ " if answer.correct else "✗ "
    reference = ""
    if answer.reference is not None:
        reference = f'<p class="reference">reference: {escape(answer.reference.strip())}</p>'
    prompt = f'<p class="prompt">{verdict}{escape(answer.prompt)}</p>'
    return f'<article data-marks="{" ".join(marks)}">{prompt}<p>{"".join(text)}</p>{reference}</article>'

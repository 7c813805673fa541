"""Compare our MATH grader with Hugging Face's math-verify on MATH-500, and write the table of docs/evaluation.md:

COLM_SHARED=DIR python -m docs.tables.grading

DIR has data/math/MATH500.jsonl; install math-verify with `pip install math-verify`. Both grade texts with the answer in
a box or in a phrase. Right answers: a gold answer written in other ways. Wrong answers: another problem's answer, and
near misses.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from colm_jax.evaluation.math_answers import same_boxed

DOCS = Path(__file__).parents[1] / "evaluation.md"
BEGIN, END = "<!-- grading -->", "<!-- end of grading -->"
Change = Callable[[str], str | None]  # of a gold answer; None if it does not apply
Grader = Callable[[str, str], bool]  # of a text and a gold answer

_FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}")


def _changed(pattern: str, value: str) -> Change:
    """Return a substitution that gives None if it changes nothing."""
    return lambda gold: new if (new := re.sub(pattern, value, gold)) != gold else None


def _list(gold: str) -> list[str] | None:
    return gold.split(",") if re.fullmatch(r"-?\d+(?:,\s*-?\d+)+", gold) and not re.search(r",\d{3}", gold) else None


def _reversed(gold: str) -> str | None:
    parts = _list(gold)
    return ", ".join(part.strip() for part in reversed(parts)) if parts else None


def _with_and(gold: str) -> str | None:
    parts = _list(gold)
    return r", ".join(parts[:-1]) + r" \text{ and } " + parts[-1] if parts else None


def _two_values(gold: str) -> str | None:
    found = re.fullmatch(r"([^{},]+)\\pm (.*)", gold)
    return f"{found.group(1)}- {found.group(2)}, {found.group(1)}+ {found.group(2)}" if found else None


def _unions(gold: str) -> str | None:
    parts = gold.split(r"\cup")
    return r" \cup ".join(part.strip() for part in reversed(parts)) if len(parts) > 1 else None


def _ratio(gold: str) -> Fraction | None:
    found = _FRACTION.fullmatch(gold)
    return Fraction(int(found.group(1) + found.group(2)), int(found.group(3))) if found else None


def _decimal(gold: str) -> str | None:
    value = _ratio(gold)
    if value is None:
        return None
    text = f"{float(value)}"
    return text if Fraction(text) == value else None


def _mixed(gold: str) -> str | None:
    value = _ratio(gold)
    if value is None or value < 1 or value.denominator == 1:
        return None
    whole, rest = divmod(value.numerator, value.denominator)
    return rf"{whole}\frac{{{rest}}}{{{value.denominator}}}"


def _terms(gold: str) -> str | None:
    """Reverse the terms of a sum without brackets."""
    if (
        "matrix" in gold
        or not re.fullmatch(r"-?[\w^\\{} ]+(?:[+-][\w^\\{} ]+)+", gold)
        or re.search(r"\{[^}]*[+-]", gold)
    ):
        return None
    terms = re.findall(r"[+-]?\s*[^+-]+", gold)
    return "".join(t if t[0] in "+-" else f"+{t}" for t in (t.strip() for t in reversed(terms))).removeprefix("+")


RIGHT: dict[str, Change] = {
    "as it is": lambda gold: gold,
    r"`\dfrac`": _changed(r"\\d?frac", r"\\dfrac"),
    r"`\tfrac`": _changed(r"\\d?frac", r"\\tfrac"),
    "`a/b`": _changed(r"(?<!\d)\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),
    r"`\frac12`": _changed(r"\\d?frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"),
    "decimal form of a fraction": _decimal,
    "mixed number": _mixed,
    "`.0` after a whole number": lambda gold: gold + ".0" if re.fullmatch(r"-?\d+", gold) else None,
    "without spaces": lambda gold: re.sub(r"(?<!\\text\{)\s+(?![a-zA-Z])", "", gold) if " " in gold else None,
    "with more spaces": _changed(r"\s*([+=]|(?<=[a-z)}]),(?!\\)|\\\\|&)\s*", r"  \1  "),
    r"with `\left`, `\right`": lambda gold: (
        re.sub(r"([(\[])(.*)([)\]])", r"\\left\1\2\\right\3", gold) if re.fullmatch(r"[(\[].*[)\]]", gold) else None
    ),
    r"without `\left`, `\right`": _changed(r"\\(?:left|right)", ""),
    "a list in the other order": _reversed,
    r"a list with `\text{ and }`": _with_and,
    "both values of ±": _two_values,
    "a union in the other order": _unions,
    "a sum in the other order": _terms,
    r"`\text{...}` left out": _changed(r"^\\text\{(.*)\}$", r"\1"),
    r"`\textbf{...}` for `\text{...}`": _changed(r"\\text\{", r"\\textbf{"),
    "`°`": _changed(r"\^\\circ", "°"),
    r"`^{\circ}`": _changed(r"\^\\circ", r"^{\\circ}"),
    "degrees in words": _changed(r"\^\\circ", r"\\text{ degrees}"),
    "degrees left out": _changed(r"\^\\circ", ""),
    "unit left out": _changed(r"\s*\\(?:text|mbox)\{ ?(?:degrees|inches|cents|cm)\}(?:\^2)?", ""),
    "a unit added": lambda gold: gold + r"\text{ cm}^2" if re.fullmatch(r"\d+", gold) else None,
    "a unit added in words": lambda gold: gold + " square feet" if re.fullmatch(r"\d+", gold) else None,
    r"`\$` left out": _changed(r"\\\$", ""),
    r"`\%` added": lambda gold: gold + r"\%" if re.fullmatch(r"\d+", gold) else None,
    "thousands: `1,234`": lambda gold: f"{int(gold):,}" if re.fullmatch(r"\d{4,}", gold) else None,
    r"thousands: `1{,}234`": lambda gold: (
        f"{int(gold):,}".replace(",", "{,}") if re.fullmatch(r"\d{4,}", gold) else None
    ),
    r"thousands: `1,\!234`": lambda gold: (
        f"{int(gold):,}".replace(",", r",\!") if re.fullmatch(r"\d{4,}", gold) else None
    ),
    "`x =` added": lambda gold: "x = " + gold if re.fullmatch(r"-?\d+|-?\\frac\{\d+\}\{\d+\}", gold) else None,
    "`bmatrix`": _changed("pmatrix", "bmatrix"),
    "rows on lines of their own": _changed(r"\s*\\\\\s*", r"\\\\\n"),
    "Unicode minus, π, √, ∞": lambda gold: (
        new
        if (
            new := re.sub(
                r"\\sqrt\{(\d+)\}", r"√\1", gold.replace("-", "−").replace(r"\pi", "π").replace(r"\infty", "∞")
            )
        )
        != gold
        else None
    ),
}

SAID = (
    "The answer is: {}",
    "The answer is ${}$.",
    "The final answer is: ${}$",
    "**Answer:** ${}$",
    "**Answer**: {}",
    "Final Answer: The final answer is ${}$. I hope it is correct.",
    "The answer is **{}**.",
    "The answer is {}. I checked it twice.",
    "The answer is ${}$, as required.",
    "Therefore the answer to this problem is \\({}\\).",
    "So\n\\[x = 3\\]\nThe answer is\n\\[{}\\]",
)

WRONG: dict[str, Change] = {
    "another sign": lambda gold: (
        gold[1:]
        if gold[0] == "-"
        else "-" + gold
        if gold != "0"
        and r"\text" not in gold
        and gold[0] not in "([\\"
        and "=" not in gold
        and "," not in gold
        and r"\pm" not in gold
        else None
    ),
    "the last number one larger": lambda gold: (
        f"{m.group(1)}{int(m.group(2)) + 1}{m.group(3)}"
        if (m := re.fullmatch(r"(.*?)(\d+)(\D*)", gold, re.DOTALL)) and r"\mbox" not in gold
        else None
    ),
    "a digit too many": lambda gold: gold + "0" if re.fullmatch(r"-?[1-9]\d*", gold) else None,
    "a fraction upside down": lambda gold: (
        rf"{m.group(1)}\frac{{{m.group(3)}}}{{{m.group(2)}}}" if (m := _FRACTION.fullmatch(gold)) else None
    ),
    r"`\pi` left out": _changed(r"\s*\\pi(?![a-z])", ""),
    r"`\sqrt` left out": _changed(r"\\sqrt\{(\d+)\}", r"\1"),
    "`i` left out": _changed(r"(\d)i$", r"\1"),
    "another base": lambda gold: f"{gold[:-1]}{int(gold[-1]) - 1}" if re.fullmatch(r"\d+_\d", gold) else None,
    "base left out": _changed(r"_\{?\d\}?$", ""),
    "a point's coordinates in the other order": lambda gold: (
        "(" + ",".join(reversed(gold[1:-1].split(","))) + ")"
        if re.fullmatch(r"\((?!-\\infty)[^()]*,[^()]*\)", gold)
        and r"\infty" not in gold
        and gold != r"(-\sqrt{3}, \sqrt{3})"
        else None
    ),
    "a point as a list": lambda gold: gold[1:-1] if re.fullmatch(r"\(-?\d+(?:,-?\d+)+\)", gold) else None,
    "another bracket": lambda gold: (
        gold.replace("(", "[", 1)
        if re.fullmatch(r"(?:\\left)?\(.*,.*\]", gold) or r"\cup" in gold or r"\infty)" in gold
        else gold.replace("[", "(", 1)
        if re.search(r"\[.*\]$", gold)
        else None
    ),
    "a value of a list missing": lambda gold: ",".join(parts[:-1]) if (parts := _list(gold)) else None,
    "one value of ±": _changed(r"\\pm", "+"),
    "an exponent one larger": lambda gold: (
        re.sub(r"\^(\d)(?!.*\^\d)", lambda m: f"^{int(m.group(1)) + 1}", gold, count=1)
        if re.search(r"\^\d", gold) and "mbox" not in gold
        else None
    ),
    "matrix rows in the other order": lambda gold: (
        r"\begin{pmatrix}" + r"\\".join(reversed(gold[15:-13].split(r"\\"))) + r"\end{pmatrix}"
        if gold.startswith(r"\begin{pmatrix}")
        else None
    ),
    "another letter of a choice": lambda gold: r"\text{(A)}" if re.fullmatch(r"\\text\{\([B-E]\)\}", gold) else None,
}


@dataclass(frozen=True)
class Row:
    """The number of pairs of one kind, and how many of them each grader calls equivalent."""

    pairs: int
    ours: int
    theirs: int


def golds(shared: Path) -> list[str]:
    """Return the 500 gold answers."""
    lines = (shared / "data/math/MATH500.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["answer"] for line in lines]


def boxed(answer: str) -> str:
    """Return a text that ends in the answer."""
    return rf"We add both sides, so that $\boxed{{{answer}}}$."


def right_pairs(answers: list[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield, for each notation, texts that give the gold answer, with that answer."""
    for name, change in RIGHT.items():
        yield name, [(boxed(new), gold) for gold in answers if (new := change(gold)) is not None]
    for form in SAID:
        plain = "$" in form or "(" in form or "[" in form
        shown = form.replace("\n", " ").format("…")
        yield f"“{shown}”", [(form.format(gold), gold) for gold in answers if plain or "\\" not in gold]


def wrong_pairs(answers: list[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield, for each kind of wrong answer, texts that give it, with the gold answer."""
    bare = [re.sub(r"^[a-z] ?= ?|\s|\\[!,]|\^\\circ", "", gold) for gold in answers]
    others = []
    for i, gold in enumerate(answers):
        step = next(step for step in range(1, len(answers)) if bare[(i + step) % len(bare)] != bare[i])
        others.append((boxed(answers[(i + step) % len(answers)]), gold))
    yield "another problem's answer", others
    for name, change in WRONG.items():
        yield name, [(boxed(new), gold) for gold in answers if (new := change(gold)) is not None]


def math_verify() -> Grader:
    """Return math-verify with its defaults: it searches the text; the gold answer is in a box."""
    import logging

    import math_verify as package

    logging.disable(logging.CRITICAL)
    return lambda text, gold: package.verify(package.parse(rf"\boxed{{{gold}}}"), package.parse(text))


def measure(pairs: Iterator[tuple[str, list[tuple[str, str]]]], graders: list[Grader]) -> dict[str, Row]:
    """Count the pairs of each kind that the graders call equivalent."""
    return {
        name: Row(len(texts), *(sum(bool(grade(text, gold)) for text, gold in texts) for grade in graders))
        for name, texts in pairs
    }


def table(head: str, rows: dict[str, Row], wanted: Callable[[Row], int]) -> list[str]:
    """Return Markdown lines: kinds that a grader does not get all right, the others together, and all."""
    shown = {name: row for name, row in rows.items() if not row.ours == row.theirs == wanted(row)}
    others = [row for name, row in rows.items() if name not in shown]
    shown |= {f"{len(others)} other kinds": _sum(others), "**all**": _sum(list(rows.values()))}
    lines = [f"| {name} | {row.pairs} | {row.ours} | {row.theirs} |" for name, row in shown.items()]
    return [f"| {head} | pairs | ours | math-verify |", "| --- | --- | --- | --- |", *lines]


def _sum(rows: list[Row]) -> Row:
    return Row(*(sum(getattr(row, key) for row in rows) for key in ("pairs", "ours", "theirs")))


def main() -> None:
    """Write the tables into the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    answers = golds(Path(os.environ.get("COLM_SHARED", "shared")))
    graders = [same_boxed, math_verify()]
    right, wrong = (measure(pairs(answers), graders) for pairs in (right_pairs, wrong_pairs))
    lines = ["Accepted of right answers:", "", *table("written as", right, lambda row: row.pairs)]
    lines += ["", "Accepted of wrong answers:", "", *table("given instead", wrong, lambda row: 0)]
    text = DOCS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCS.write_text("\n".join([before + BEGIN, "", *lines, "", END + rest.split(END)[1]]), encoding="utf-8")


if __name__ == "__main__":
    main()

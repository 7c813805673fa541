"""Compare our MATH grader with math-verify on held-out variants of MATH-500; prints a Markdown table:

COLM_SHARED=DIR python -m docs.tables.grading_heldout

`docs/tables/grading.py` has the pairs on which our grader was developed. The variants here imitate how language models
write answers. They were written without reading the grader or those pairs, and before either grader was run on them. A
kind keeps at most MOST of the gold answers to which it applies, evenly spaced.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from colm_jax.evaluation.math_answers import same_boxed
from docs.tables.grading import Change, Row, golds, math_verify, measure

MOST = 50

_CHOICE = re.compile(r"\\text\{\(([A-E])\)\}")
_WORD = re.compile(r"\\text\{([A-Za-z]+)\}")
_COUNTED = re.compile(r"(-?\d+) ?(\\sqrt\{?\d+\}?|\\pi)")  # 3\sqrt{13}, 12\pi
_COMPLEX = re.compile(r"(-?\d+) ?([+-]) ?(\d+)i")
_POLYNOMIAL = re.compile(r"[\dx^+\- ]*x[\dx^+\- ]*")
_BASE = re.compile(r"(\d+)_\{?(\d)\}?")
_COLUMN = re.compile(r"\\begin\{pmatrix\}([^&]*)\\end\{pmatrix\}")


def _integer(gold: str) -> int | None:
    return int(gold) if re.fullmatch(r"-?\d+", gold) else None


def _fraction(gold: str) -> tuple[str, int, int] | None:
    """Return sign, numerator and denominator."""
    match = re.fullmatch(r"(-?)\\d?frac ?(?:\{(\d+)\}|(\d)) ?(?:\{(\d+)\}|(\d))", gold)
    return (match[1], int(match[2] or match[3]), int(match[4] or match[5])) if match else None


def _ratio(gold: str) -> Fraction | None:
    parts = _fraction(gold)
    return Fraction(parts[1], parts[2]) * (-1 if parts[0] else 1) if parts else None


def _decimal(value: Fraction) -> str | None:
    """Return the exact decimal of a fraction, if it has at most six digits after the point."""
    shifted = value * 10**6
    if shifted.denominator != 1:
        return None
    digits = f"{abs(shifted.numerator):07d}"
    return ("-" if value < 0 else "") + f"{digits[:-6]}.{digits[-6:].rstrip('0') or '0'}"


def _elements(gold: str) -> list[str] | None:
    """Return the numbers of a bare list; 58,500 is one number."""
    if re.fullmatch(r"-?\d+(, ?-?\d+)+", gold) and not re.fullmatch(r"\d{1,3}(,\d{3})+", gold):
        return re.split(", ?", gold)
    return None


def _plus_minus(gold: str) -> tuple[str, str] | None:
    parts = gold.split("\\pm")
    return (parts[0].strip(), parts[1].strip()) if len(parts) == 2 and not gold.startswith("\\{") else None


def _coordinates(gold: str) -> list[str] | None:
    """Return the comma-separated parts of one pair of round brackets."""
    match = re.fullmatch(r"(?:\\left)?\(([^()\[\]]*)(?:\\right)\)|\(([^()\[\]]*)\)", gold)
    parts = [part.strip() for part in (match[1] or match[2]).split(",")] if match else []
    return parts if len(parts) > 1 else None


def _interval(gold: str) -> tuple[str, str, str, str] | None:
    """Return bracket, ends, bracket of an interval that cannot be a point."""
    bare = gold.replace("\\left", "").replace("\\right", "").replace("x \\in", "").strip()
    match = re.fullmatch(r"([(\[])([^,()\[\]]*),([^,()\[\]]*)([)\]])", bare)
    if match is None or (match[1] + match[4] == "()" and "infty" not in bare):
        return None
    return match[1], match[2].strip(), match[3].strip(), match[4]


def _inequality(gold: str) -> str | None:
    if "\\cup" in gold and "infty" in gold:
        parts = [_inequality(part.strip()) for part in gold.split("\\cup")]
        return " \\text{ or } ".join(part for part in parts if part)
    if (parts := _interval(gold)) is None:
        return None
    left, low, high, right = parts
    below, above = ("<" if bracket in "()" else "\\le" for bracket in (right, left))
    if low == "-\\infty":
        return f"x {below} {high}"
    if high == "\\infty":
        return f"x {'>' if above == '<' else above.replace('l', 'g')} {low}"
    return f"{low} {above} x {below} {high}"


def _where(parse: Callable, write: Callable) -> Change:
    """Return a change that applies `write` to what `parse` finds in a gold answer, if anything."""
    return lambda gold: None if (found := parse(gold)) is None else write(found)


def _all(*parses: Callable) -> Callable[[str], str | None]:
    """Return a change that keeps the gold answer if one of `parses` finds something."""
    return lambda gold: gold if any(parse(gold) is not None for parse in parses) else None


def _sub(pattern: str, value: str | Callable) -> Change:
    return lambda gold: new if (new := re.sub(pattern, value, gold)) != gold else None


def _degrees(gold: str) -> str | None:
    return gold.removesuffix("^\\circ") if gold.endswith("^\\circ") else None


def _powers(gold: str) -> str | None:
    """Write roots as powers; 3\\sqrt{13} becomes 3 \\cdot 13^{1/2}."""
    spaced = re.sub(r"(\d) ?\\sqrt\{(\d+)\}", r"\1 \\cdot \\sqrt{\2}", gold)
    return _sub(r"\\sqrt\{(\d+)\}", r"\1^{1/2}")(spaced)


def _imaginary_first(match: re.Match) -> str:
    real = f"- {match[1][1:]}" if match[1].startswith("-") else f"+ {match[1]}"
    return f"{'-' if match[2] == '-' else ''}{match[3]}i {real}"


def _rectangular(gold: str) -> list[str] | None:
    """Return the coordinates of a point that is neither polar nor possibly an interval."""
    return None if re.search("infty|sqrt|pi", gold) else _coordinates(gold)


def _dollars(gold: str) -> str | None:
    return gold[2:].replace(",\\!", "") if gold.startswith("\\$") else None


def _over(parts: tuple[str, int, int], form: str) -> str:
    return parts[0] + form.replace("A", str(parts[1])).replace("B", str(parts[2]))


def _thousands(separator: str) -> Change:
    """Return a change that groups the digits of a number of at least five digits."""

    def change(gold: str) -> str | None:
        bare = re.sub(r",\\! ?|,(?=\d{3})", "", gold)
        if not re.fullmatch(r"\d{5,}", bare):
            return None
        return f"{int(bare):,}".replace(",", separator)

    return change


def _mixed(gold: str) -> str | None:
    parts = _fraction(gold)
    if parts is None or parts[1] < parts[2]:
        return None
    whole, rest = divmod(parts[1], parts[2])
    return rf"{parts[0]}{whole}\ \tfrac{{{rest}}}{{{parts[2]}}}"


def _exact_chain(gold: str) -> str | None:
    value = _ratio(gold)
    decimal = None if value is None else _decimal(value)
    return f"{gold} = {decimal}" if decimal else None


def _bare_point(gold: str) -> str | None:
    """Write a fraction below one as a decimal without the zero."""
    value = _ratio(gold)
    decimal = None if value is None else _decimal(value)
    return decimal.replace("0.", ".", 1) if decimal and abs(value) < 1 else None


def _zeros(gold: str) -> str | None:
    """Write a fraction as a decimal with two more zeros."""
    value = _ratio(gold)
    decimal = None if value is None else _decimal(value)
    return f"{decimal}00" if decimal else None


def _from_decimal(gold: str) -> str | None:
    if not re.fullmatch(r"\d*\.\d+", gold):
        return None
    value = Fraction(gold if gold[0] != "." else "0" + gold)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _match(pattern: re.Pattern) -> Callable[[str], re.Match | None]:
    return pattern.fullmatch


_NUMBER = _all(_integer, _fraction)

# Ways to write the value, in a box.
NOTATION: dict[str, Change] = {
    "equation, `n = 42`": _where(_NUMBER, lambda gold: f"n = {gold}"),
    "equation, `42 = n`": _where(_NUMBER, lambda gold: f"{gold} = n"),
    "equation turned round": lambda gold: (
        None if not (match := re.fullmatch(r"([xy]) ?= ?(.*)", gold)) else f"{match[2]} = {match[1]}"
    ),
    "`f(x) =` a polynomial": _where(_match(_POLYNOMIAL), lambda match: f"f(x) = {match[0]}"),
    "`P(A) =` a fraction": _where(_all(_fraction), lambda gold: f"P(A) = {gold}"),
    "`\\theta =` degrees": _where(_degrees, lambda number: rf"\theta = {number}^{{\circ}}"),
    "fraction = its exact decimal": _exact_chain,
    "exact decimal, no zero before the point": _bare_point,
    "exact decimal, two more zeros": _zeros,
    "decimal as a fraction": _from_decimal,
    "integer with `.0`": _where(_integer, lambda value: f"{value}.0"),
    "integer over 1": _where(_integer, lambda value: rf"\frac{{{value}}}{{1}}"),
    "`{a \\over b}`": _where(_fraction, lambda parts: _over(parts, "{A \\over B}")),
    "`\\dfrac { a } { b }`": _where(_fraction, lambda parts: _over(parts, "\\dfrac { A } { B }")),
    "`\\left(\\frac{a}{b}\\right)`": _where(_fraction, lambda parts: _over(parts, "\\left(\\frac{A}{B}\\right)")),
    "`a / b`": _where(_fraction, lambda parts: _over(parts, "A / B")),
    "minus in the numerator": lambda gold: (
        _over(("", *parts[1:]), "\\frac{-A}{B}") if (parts := _fraction(gold)) and parts[0] else None
    ),
    "minus in the denominator": lambda gold: (
        _over(("", *parts[1:]), "\\frac{A}{-B}") if (parts := _fraction(gold)) and parts[0] else None
    ),
    "mixed number with `\\tfrac`": _mixed,
    "unreduced, doubled": _where(_fraction, lambda parts: rf"{parts[0]}\frac{{{2 * parts[1]}}}{{{2 * parts[2]}}}"),
    "`3 \\cdot \\sqrt{13}`": _where(_match(_COUNTED), lambda match: rf"{match[1]} \cdot {match[2]}"),
    "`3{\\cdot}\\sqrt{13}`": _where(_match(_COUNTED), lambda match: rf"{match[1]}{{\cdot}}{match[2]}"),
    "`3 \\times \\sqrt{13}`": _where(_match(_COUNTED), lambda match: rf"{match[1]} \times {match[2]}"),
    "`3*sqrt(13)`": _where(
        _match(_COUNTED),
        lambda match: f"{match[1]}*" + re.sub(r"\\sqrt\{?(\d+)\}?", r"sqrt(\1)", match[2]).replace("\\pi", "pi"),
    ),
    "root as a power": _powers,
    "exponents in braces": _sub(r"(?<=[a-zA-Z])\^(\d)", r"^{\1}"),
    "polynomial with `\\cdot`": _where(
        _match(_POLYNOMIAL),
        lambda match: new if (new := re.sub(r"(\d)x", r"\1 \\cdot x", match[0])) != match[0] else None,
    ),
    "brackets with `\\cdot`": lambda gold: "(a + 5) \\cdot (b + 2)" if gold == "(a+5)(b+2)" else None,
    "complex, imaginary part first": _where(_match(_COMPLEX), _imaginary_first),
    "complex, `\\mathrm{i}`": _where(
        _match(_COMPLEX), lambda match: rf"{match[1]} {match[2]} {match[3]}\,\mathrm{{i}}"
    ),
    "`z =` complex": _where(_match(_COMPLEX), lambda match: f"z = {match[0]}"),
    "`+\\infty`": _sub(r"(?<!-)\\infty", r"+\\infty"),
    "interval, `x \\in`": _where(_interval, lambda parts: "x \\in {}{}, {}{}".format(*parts)),
    "interval, `\\left`, `\\;`": _where(_interval, lambda parts: "\\left{}{},\\;{}\\right{}".format(*parts)),
    "interval as an inequality": _inequality,
    "interval as `\\{x \\mid ...\\}`": _where(_inequality, lambda text: rf"\{{x \mid {text}\}}"),
    "interval as `\\{x \\in \\mathbb{R} : ...\\}`": _where(
        _inequality, lambda text: rf"\{{x \in \mathbb{{R}} : {text}\}}"
    ),
    "list in braces": _where(_elements, lambda parts: "\\left\\{" + ",\\ ".join(parts) + "\\right\\}"),
    "list, `x \\in \\{...\\}`": _where(_elements, lambda parts: rf"x \in \{{{', '.join(parts)}\}}"),
    "list, `x = 1 \\text{ or } x = 2`": _where(
        _elements, lambda parts: " \\text{ or } ".join(f"x = {part}" for part in parts)
    ),
    "list, `x_1 = 1, x_2 = 2`": _where(
        _elements, lambda parts: ", \\quad ".join(f"x_{i} = {part}" for i, part in enumerate(parts, 1))
    ),
    "list, `\\text{ and }`": _where(
        _elements, lambda parts: ",\\, ".join(parts[:-1]) + rf" \text{{ and }} {parts[-1]}"
    ),
    "`\\pm` as a list": _where(_plus_minus, lambda parts: "{0} + {1}, {0} - {1}".format(*parts)),
    "`\\pm` as equations": _where(
        _plus_minus, lambda parts: "x = {0} + {1} \\text{{ or }} x = {0} - {1}".format(*parts)
    ),
    "point, `(x, y) =`": _where(
        _rectangular, lambda parts: f"({', '.join('xyzw'[: len(parts)])}) = ({', '.join(parts)})"
    ),
    "point, `\\big( \\; \\big)`": _where(_coordinates, lambda parts: "\\big(" + ",\\; ".join(parts) + "\\big)"),
    "degrees, `^{\\circ}`": _where(_degrees, lambda number: rf"{number}^{{\circ}}"),
    "degrees, `\\mathrm{degrees}`": _where(_degrees, lambda number: rf"{number}\;\mathrm{{degrees}}"),
    "degrees, `\\degree`": _where(_degrees, lambda number: rf"{number}\degree"),
    "with `\\text{ units}`": _where(_integer, lambda value: rf"{value} \text{{ units}}"),
    "with `~\\mathrm{cm}`": _where(_integer, lambda value: rf"{value}~\mathrm{{cm}}"),
    "with `\\text{ square units}`": _where(_NUMBER, lambda gold: rf"{gold}\,\text{{ square units}}"),
    "with `\\text{ miles per hour}`": _where(_integer, lambda value: rf"{value} \text{{ miles per hour}}"),
    "with `\\text{ ways}`": _where(_integer, lambda value: rf"{value} \text{{ ways}}"),
    "with `\\text{ cm}^3`": _where(_integer, lambda value: rf"{value} \text{{ cm}}^3"),
    "units as letters, `kg`": _where(_integer, lambda value: f"{value} kg"),
    "dollars in words": _where(_dollars, lambda amount: rf"{amount} \text{{ dollars}}"),
    "`USD`": _where(_dollars, lambda amount: rf"{amount} \text{{ USD}}"),
    "thousands, `{,}`": _thousands("{,}"),
    "thousands, `\\,`": _thousands("\\,"),
    "thousands, none": _thousands(""),
    "`\\mathbf{42}`": _where(_integer, lambda value: rf"\mathbf{{{value}}}"),
    "`\\text{42}`": _where(_integer, lambda value: rf"\text{{{value}}}"),
    "`\\boldsymbol{...}`": _where(_NUMBER, lambda gold: rf"\boldsymbol{{{gold}}}"),
    "`\\color{blue}{...}`": _where(_NUMBER, lambda gold: rf"\color{{blue}}{{{gold}}}"),
    "`42 \\text{ (exactly)}`": _where(_integer, lambda value: rf"{value} \text{{ (exactly)}}"),
    "choice as a letter": _where(_match(_CHOICE), lambda match: match[1]),
    "choice, `\\textbf{(C)}`": _where(_match(_CHOICE), lambda match: rf"\textbf{{({match[1]})}}"),
    "choice, `\\mathrm{C}`": _where(_match(_CHOICE), lambda match: rf"\mathrm{{{match[1]}}}"),
    "word without macro": _where(_match(_WORD), lambda match: match[1]),
    "word, first letter in the other case": _where(
        _match(_WORD), lambda match: rf"\text{{{match[1][0].swapcase() + match[1][1:]}}}"
    ),
    "word, `\\textbf`": _where(_match(_WORD), lambda match: rf"\textbf{{{match[1]}}}"),
    "base, `(52)_{8}`": _where(_match(_BASE), lambda match: f"({match[1]})_{{{match[2]}}}"),
    "base, `\\text{ base } 8`": _where(_match(_BASE), lambda match: rf"{match[1]}_{{\text{{base }} {match[2]}}}"),
    "`bmatrix`": _sub("pmatrix", "bmatrix"),
    "matrix with `\\frac`": lambda gold: (
        re.sub(r"(-?)(\d+)/(\d+)", r"\1\\frac{\2}{\3}", gold) if "matrix" in gold and "/" in gold else None
    ),
    "matrix on several lines": lambda gold: (
        gold.replace("} ", "}\n").replace(" \\\\ ", " \\\\[4pt]\n") if "pmatrix" in gold else None
    ),
}

# Texts around the answer, @. Without a formula or a box, only answers without macros.
TEXTS: dict[str, str] = {
    "display box on several lines": "Adding the two equations, we get\n\\[\n\\boxed{\n  @\n}\n\\]",
    "box at the end of `align*`": "\\begin{align*}\nS &= a + b \\\\\n&= \\boxed{@}.\n\\end{align*}",
    "`aligned` inside the box": "$$\\boxed{\\begin{aligned} @ \\end{aligned}}$$",
    "full stop inside the box": "Hence the answer is $\\boxed{@.}$",
    "`\\,` inside the box": "So we have $\\boxed{\\,@\\,}$.",
    "`$` inside the box": "The final answer is \\boxed{$@$}.",
    "`\\(` inside the box": "The final answer is \\boxed{\\(@\\)}.",
    "`\\displaystyle` inside the box": "$\\boxed{\\displaystyle @}$",
    "`\\text{Answer: }` inside the box": "Putting it together, $\\boxed{\\text{Answer: } @}$.",
    "`\\fbox`": "Therefore the answer is \\fbox{$@$}.",
    "a check after the box": "So the answer is $\\boxed{@}$.\n\nWe can verify this: substituting back gives $12 = 12$, "
    "and the condition $n > 3$ holds, as required.",
    "another box before": "First, the discriminant is $\\boxed{17}$. With it, the final result is $\\boxed{@}$.",
    "box, then `**Final Answer:**`": "The result is $\\boxed{@}$.\n\n**Final Answer:** $@$",
    "`<think>` with a wrong box before": "<think>\nMaybe \\boxed{3}? No, I forgot a case.\n</think>\n\nCounting again "
    "gives \\boxed{@}.",
    "box in a code block": "Final answer:\n\n```latex\n\\boxed{@}\n```",
    "box in bold print": "**The answer is \\boxed{@}**",
    "box and an emoji": "### Conclusion\n\n\\(\\boxed{@}\\) ✅",
    "box and an end token": "\\boxed{@}<|im_end|>",
    "`I hope it is correct`": "Final Answer: The final answer is $@$. I hope it is correct.",
    "`our final result is`": "Therefore, our final result is $@$.",
    "`the value we are looking for is`": "Both cases agree. Hence, the value we are looking for is $@$.",
    "`So we get`": "The terms in the middle cancel. So we get $@$.",
    "`The solution is`": "The other root is negative. The solution is $@$.",
    "`**Final Answer:**` and `\\[`": "The sum telescopes.\n\n**Final Answer:**\n\n\\[ @ \\]",
    "`### Final Answer`": "The sum telescopes.\n\n### Final Answer\n\n$@$",
    "`The correct answer should be`": "The sum telescopes. The correct answer should be $@$.",
    "quoted, `> **Answer:**`": "The sum telescopes.\n\n> **Answer:** $@$",
    "in backquotes": "The sum telescopes.\n\nAnswer: `@`",
    "`<answer>` tags": "The sum telescopes.\n\n<answer>@</answer>",
    "`the answer would be ..., since`": "I believe that the answer would be \\(@\\), since no other case remains.",
    "`... is the answer`": "The sum telescopes, and $@$ is the answer.",
    "`In conclusion, **...** is the answer`": "In conclusion, **$@$** is the answer.",
    "`ANSWER:`": "The sum telescopes.\nANSWER: @",
    "`the answer equals`": "The sum telescopes. Thus, the answer equals @",
    "`The answer, after simplifying, is`": "The sum telescopes. The answer, after simplifying, is $@$.",
    "`is therefore` and `$$`": "The answer to the question is therefore\n$$@.$$",
    "in a list": "- Case 1 fails.\n- Case 2 gives the answer: $@$",
    "`Final answer →`": "The sum telescopes.\nFinal answer → $@$",
    "an offer of help behind": "The answer is $@$. Let me know if you would like another explanation!",
    "`A:`": "Q: What is the value?\nA: $@$",
}


def _boxes(gold: str) -> str | None:
    """Write each element of a list in a separate box."""
    parts = _elements(gold)
    return "The solutions are " + " and ".join(f"$\\boxed{{{part}}}$" for part in parts) + "." if parts else None


def _negated(gold: str) -> str | None:
    if gold.strip("-0") == "" or not (_NUMBER(gold) or _COUNTED.fullmatch(gold)):
        return None
    return gold[1:] if gold.startswith("-") else f"-{gold}"


def _other_end(gold: str) -> str | None:
    """Swap open and closed at the first finite end of an interval."""
    if (parts := _interval(gold)) is None:
        return None
    left, low, high, right = parts
    if "infty" not in low:
        left = "[" if left == "(" else "("
    else:
        right = "]" if right == ")" else ")"
    return f"{left}{low}, {high}{right}"


def _mirrored(gold: str) -> str | None:
    """Return the half-line on the other side."""
    if (parts := _interval(gold)) is None or "infty" not in gold:
        return None
    left, low, high, right = parts
    if low == "-\\infty":
        return f"{'[' if right == ']' else '('}{high}, \\infty)"
    return f"(-\\infty, {low}{']' if left == '[' else ')'}"


def _rounded(gold: str) -> str | None:
    """Round a fraction to two digits after the point, if that is not exact."""
    value = _ratio(gold)
    if value is None or (value * 100).denominator == 1:
        return None
    return f"{float(value):.2f}"


def _fewer(gold: str) -> str | None:
    if parts := _elements(gold):
        return ", ".join(parts[:-1])
    if gold.startswith("\\{"):
        return re.sub(r",[^,]*\\\}$", r"\\}", gold)
    parts = _plus_minus(gold)
    return f"{parts[0]} + {parts[1]}" if parts else None


def _reordered(match: re.Match) -> str | None:
    rows = [row.strip() for row in match[1].split("\\\\")]
    if rows == rows[::-1]:
        return None
    return "\\begin{pmatrix} " + " \\\\ ".join(rows[::-1]) + " \\end{pmatrix}"


WRONG: dict[str, Change] = {
    "sign flipped": _negated,
    "one less": _where(_integer, lambda value: str(value - 1)),
    "ten times as much": lambda gold: f"{gold}0" if _integer(gold) else None,
    "decimal point moved": lambda gold: (
        str(float(gold) * 10) if re.fullmatch(r"\d*\.\d{1,5}", gold) else None  # 3.21 becomes 32.1
    ),
    "numerator and denominator swapped": _where(
        _fraction, lambda parts: rf"{parts[0]}\frac{{{parts[2]}}}{{{parts[1]}}}"
    ),
    "rounded to two digits": _rounded,
    "coordinates reversed": _where(
        _coordinates, lambda parts: None if parts == parts[::-1] else f"({', '.join(parts[::-1])})"
    ),
    "last element missing": _fewer,
    "an element too many": _where(_elements, lambda parts: ", ".join([*parts, "10"])),
    "other bracket": _other_end,
    "other half-line": _mirrored,
    "first exponent one larger": lambda gold: (
        re.sub(r"(?<=[a-zA-Z])\^(\d)", lambda match: f"^{int(match[1]) + 1}", gold, count=1)
        if re.search(r"(?<=[a-z])\^\d", gold) and "\\" not in gold
        else None
    ),
    "squared": lambda gold: f"{gold}^2" if (value := _integer(gold)) is not None and value > 1 else None,
    "π or the root left out": _where(_match(_COUNTED), lambda match: match[1]),
    "complex conjugate": _where(
        _match(_COMPLEX), lambda match: f"{match[1]} {'+' if match[2] == '-' else '-'} {match[3]}i"
    ),
    "rows reversed": lambda gold: _reordered(match) if (match := _COLUMN.fullmatch(gold)) else None,
    "another choice": _where(_match(_CHOICE), lambda match: rf"\text{{({'BCDEA'['ABCDE'.index(match[1])]})}}"),
    "two answers": _where(_integer, lambda value: rf"{value} \text{{ or }} {value + 2}"),
    "another base": _where(_match(_BASE), lambda match: f"{match[1]}_{{{int(match[2]) - 1}}}"),
    "no answer in the box": lambda gold: "\\text{no answer}",
}
# Texts for wrong answers, used in turn.
WRONG_TEXTS = (
    "Therefore, the final answer is $\\boxed{@}$.",
    "The sum telescopes.\n\n**Final Answer:**\n\n\\[ @ \\]",
    "Final Answer: The final answer is $@$. I hope it is correct.",
)

Kinds = Iterator[tuple[str, list[tuple[str, str]]]]


def _spaced(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return at most MOST of the pairs, evenly spaced."""
    return pairs[:: -(-len(pairs) // MOST)] if pairs else pairs


def right_pairs(answers: list[str]) -> Kinds:
    """Return, for each kind of right answer, texts with the gold answers that they give."""
    for name, change in NOTATION.items():
        changed = [(change(gold), gold) for gold in answers]
        yield name, _spaced([(WRONG_TEXTS[0].replace("@", new), gold) for new, gold in changed if new is not None])
    for name, text in TEXTS.items():
        bare = not re.search(r"[$({>,]@|\\\[ @|@\s*\}|displaystyle @|\} @", text)
        yield name, _spaced([(text.replace("@", gold), gold) for gold in answers if not bare or "\\" not in gold])
    yield "a list, each element in its own box", [(text, gold) for gold in answers if (text := _boxes(gold))]


def wrong_pairs(answers: list[str]) -> Kinds:
    """Return, for each kind of wrong answer, texts with the gold answers that they do not give."""
    for name, change in WRONG.items():
        changed = [(new, gold) for gold in answers if (new := change(gold)) is not None]
        texts = [(WRONG_TEXTS[i % 3].replace("@", new), gold) for i, (new, gold) in enumerate(changed)]
        yield name, _spaced(texts)
    bare = [re.sub(r"^[a-z] ?= ?|\s|\\[!,]|\^\\circ|\\text", "", gold) for gold in answers]
    others = [(answers[i - 7], gold) for i, gold in enumerate(answers) if bare[i] != bare[i - 7]]
    yield (
        "another problem's answer",
        _spaced([(WRONG_TEXTS[i % 3].replace("@", new), gold) for i, (new, gold) in enumerate(others)]),
    )
    revised = "So the answer is $\\boxed{@}$. Wait, I made a mistake: the correct answer is $\\boxed{#}$."
    integers = [gold for gold in answers if _integer(gold) is not None]
    yield (
        "the right answer, then revised",
        _spaced([(revised.replace("@", gold).replace("#", str(int(gold) + 3)), gold) for gold in integers]),
    )
    on_the_way = "From $a + b = @$ we get $c = @ + 5$. The answer is $\\boxed{#}$, not $@$."
    yield (
        "the right number beside a wrong box",
        _spaced([(on_the_way.replace("@", gold).replace("#", str(int(gold) + 5)), gold) for gold in integers]),
    )


def main() -> None:
    """Print how many pairs each grader accepts, by kind and in total."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    answers = golds(Path(os.environ.get("COLM_SHARED", "shared")))
    graders = [same_boxed, math_verify()]
    print("| kind | pairs | ours | math-verify |", "| --- | --- | --- | --- |", sep="\n")
    for side, pairs in (("right", right_pairs), ("wrong", wrong_pairs)):
        rows = measure(pairs(answers), graders)
        total = Row(*(sum(getattr(row, key) for row in rows.values()) for key in ("pairs", "ours", "theirs")))
        for name, row in (rows | {"**all**": total}).items():
            print(f"| {side}: {name} | {row.pairs} | {row.ours} | {row.theirs} |")


if __name__ == "__main__":
    main()

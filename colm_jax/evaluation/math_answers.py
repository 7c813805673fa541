"""MATH: the answer in a text's last \\boxed{...}, and whether two answers mean the same.

Rules in the tradition of the MATH data set's own string comparison (Hendrycks et al. 2021), with numbers compared as
fractions, lists part by part, and no algebra: 2(x+1) and 2x+2 differ.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

_BOXES = re.compile(r"\\(?:boxed|fbox)\s*")
_SAID = re.compile(r"(?:answer|####)\s*(?:is\b|:)?\s*(.+)", re.IGNORECASE)
# Words behind a number that belong to it; all other plain words there are units.
_FUNCTIONS = {"pi", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "mod", "or", "and", "i"}
_TEXT = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s*"
_UNIT = re.compile(rf"(?<=[^\s{{])\s*{_TEXT}\{{[^{{}}]*\}}(?:\s*\^\s*(?:\{{\d\}}|\d))?\s*$")
_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)"
_REPLACED = (
    (r"\\[!,;:> ]|~|\\q?quad\b|\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\?[$%]|\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°", ""),
    (r"\{,\}", ","),
    (r"\\(?:cdot|times|ast)(?![a-zA-Z])", "*"),
    (r"\\leq(?![a-zA-Z])", r"\\le"),
    (r"\\geq(?![a-zA-Z])", r"\\ge"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    ("−", "-"),
    ("π", r"\\pi "),
    ("∞", r"\\infty "),
    ("±", r"\\pm "),
    ("√", r"\\sqrt "),
)


def _group(text: str, start: int) -> tuple[str, int] | None:
    """What a macro at `start` takes, and where it ends: a {group}, a command, or one character; None if unclosed."""
    while start < len(text) and text[start] == " ":
        start += 1
    if start == len(text):
        return None
    if text[start] == "\\":
        command = re.compile(r"\\(?:[a-zA-Z]+|.)").match(text, start)
        return (command.group(), command.end()) if command else None
    if text[start] != "{":
        return text[start], start + 1
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        at += 1
        if depth == 0:
            return text[start + 1 : at - 1], at
    return None


def last_boxed(text: str) -> str | None:
    """What the last \\boxed{...} (or \\fbox) that is closed holds; None without one."""
    for box in reversed(list(_BOXES.finditer(text))):
        found = _group(text, box.end())
        if found is not None:
            return found[0].strip()
    return None


def answer_of(text: str) -> str | None:
    """The answer of a solution: its last box; without one the rest of the line behind its last "answer is" or ####."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    said = _SAID.findall(text)
    return said[-1].strip().removesuffix(".") if said else None


def _arguments(text: str) -> str:
    """Every \\frac and \\sqrt with its arguments in braces, as in \\frac12, \\frac{270}7, \\sqrt3."""
    parts, at = [], 0
    for macro in re.finditer(r"\\(frac|sqrt)(?![a-zA-Z])", text):
        if macro.start() < at:
            continue  # inside an argument that is already done
        parts.append(text[at : macro.start()])
        at, taken = macro.end(), [macro.group()]
        if macro.group(1) == "sqrt" and (root := re.compile(r"\s*\[[^\]]*\]").match(text, at)):
            taken.append(root.group().strip())
            at = root.end()
        for _ in range(2 if macro.group(1) == "frac" else 1):
            found = _group(text, at)
            if found is None:
                break
            taken.append("{" + _arguments(found[0]) + "}")
            at = found[1]
        parts.append("".join(taken))
    return "".join(parts) + text[at:]


def normal(answer: str) -> str:
    """An answer in one way of writing: macros, spaces, units, percent, degrees and thousands separators settled."""
    text = answer.strip().strip("$").strip()
    for wrapped in (r"\\\((.*)\\\)", r"\\\[(.*)\\\]"):
        if whole := re.fullmatch(wrapped, text, re.DOTALL):
            text = whole.group(1).strip()
    text = text.removesuffix(".").removesuffix(r"\\")
    for pattern, value in _REPLACED:
        text = re.sub(pattern, value, text)
    text = _UNIT.sub("", text.strip())
    text = re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r" \1 ", text)
    text = _without_unit(_arguments(text).strip())
    text = re.sub(r"\s*\b(and|or)\b\s*", ",", text) if re.search(r"\d|\\", text) else text
    text = re.sub(r"\s+", "", text).replace(",,", ",")
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"^[a-zA-Z](?:=|\\in(?![a-zA-Z]))", "", text)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    return _fractions(text).removeprefix("+")


def _without_unit(text: str) -> str:
    """A number without the plain words behind it, as in "5 square cm"."""
    found = re.fullmatch(rf"({_NUMBER}|{_NUMBER}(?:,\d{{3}})+|-?\\frac\{{\d+\}}\{{\d+\}})\s+([a-zA-Z][a-zA-Z ]+)", text)
    return found.group(1) if found and not _FUNCTIONS & set(found.group(2).lower().split()) else text


def _fractions(text: str) -> str:
    """a/b as \\frac{a}{b}, with the sign before it."""
    text = re.sub(r"(?<![\w}.)])(-?)(\d+)/(\d+)(?![\w.(])", r"\1\\frac{\2}{\3}", text)
    if one := re.fullmatch(r"(-?)([^/+\-,=()]+)/(\w+|\\[a-z]+|\\sqrt\{\w+\})", text):
        text = f"{one.group(1)}\\frac{{{one.group(2)}}}{{{one.group(3)}}}"
    return re.sub(r"\\frac\{-([^{}+-]*)\}", r"-\\frac{\1}", text)


def _number(text: str) -> Fraction | None:
    """The value of a number: whole, decimal, fraction or mixed."""
    if re.fullmatch(_NUMBER, text):
        return Fraction(text)
    found = re.fullmatch(rf"(-?)(\d*)\\frac\{{({_NUMBER})\}}\{{({_NUMBER})\}}", text)
    if found is None or Fraction(found.group(4)) == 0:
        return None
    value = Fraction(found.group(2) or 0) + Fraction(found.group(3)) / Fraction(found.group(4))
    return -value if found.group(1) else value


def _parts(text: str) -> list[str]:
    """What stands between the commas outside all brackets; a ± gives two parts."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    both = [[part.replace(r"\pm", sign) for sign in "+-"] if part.count(r"\pm") == 1 else [part] for part in parts]
    return [part for pair in both for part in pair]


def _same(first: str, second: str) -> bool:
    """Whether two normal answers mean the same."""
    if not first or not second:
        return False
    if first == second:
        return True
    if re.fullmatch("[a-zA-Z]{2,}", first) and first.lower() == second.lower():
        return True
    numbers = _number(first), _number(second)
    if None not in numbers:
        return numbers[0] == numbers[1]
    sets = [re.fullmatch(r"\\\{(.*)\\\}", text) for text in (first, second)]
    if all(sets):
        return _same_set(*(_parts(found.group(1)) for found in sets if found))
    if first[0] == second[0] and first[-1] == second[-1] and first[0] in "([" and first[-1] in ")]":
        ours, theirs = _parts(first[1:-1]), _parts(second[1:-1])
        if len(ours) > 1:  # a point or an interval: order counts
            return len(ours) == len(theirs) and all(map(same_answer, ours, theirs))
    ours, theirs = _parts(first), _parts(second)
    return (len(ours) > 1 or len(theirs) > 1) and _same_set(ours, theirs)


def _same_set(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether each part of one means the same as its own part of the other, in any order."""
    left = list(second)
    for part in first:
        found = next((other for other in left if same_answer(part, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def same_answer(first: str | None, second: str | None) -> bool:
    """Whether two answers (what boxes hold) mean the same; an empty one means nothing."""
    return first is not None and second is not None and _same(normal(first), normal(second))


def same_boxed(prediction: str, reference: str) -> bool:
    """Whether a solution's answer is the reference's: the reference's box or, without one, all of it."""
    gold = last_boxed(reference)
    return same_answer(answer_of(prediction), reference if gold is None else gold)

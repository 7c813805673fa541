r"""MATH: whether two answers mean the same.

An answer is read into one form, in which answers that mean the same are equal: macros, spaces and units are settled,
numbers are fractions, lists and sets have no order, points and matrices have one. The rules are in the tradition of the
MATH data set's own string comparison (Hendrycks et al. 2021). There is no algebra beyond the order of a sum's terms and
of bracketed factors: 2(x+1) and 2x+2 differ. Length and depth of what is read are bounded, and nothing is evaluated, so
that an answer like 9^{9^{9^9}} costs nothing.
"""

import re
from collections.abc import Hashable, Sequence
from fractions import Fraction

from colm_jax.evaluation.said import answer_of, last_boxed

_LONGEST = 1000  # characters of an answer that is read; a longer one equals only itself
_DEEPEST = 20  # brackets in brackets that are read; what is deeper equals only itself
_OPENING, _CLOSING = "([{⦃⟦", ")]}⦄⟧"  # the last two stand for \{ \} and for a matrix

_TEXT = r"\\(?:text|textbf|textit|textrm|textsf|mbox|mathrm|mathbf|mathit|operatorname)\s*(?=\{)"
_SETTLED = tuple(
    (re.compile(pattern), value)
    for pattern, value in (
        (r"\s+", " "),
        (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, in LaTeX
        (r"\\begin\s*\{([a-zA-Z]*matrix|array)\}(?:\s*\{[clr| ]*\})?", r"⟦\1:"),
        (r"\\end\s*\{(?:[a-zA-Z]*matrix|array)\}", "⟧"),
        (r"\\\\(?:\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\])?", "\n"),  # a row of a matrix ends; no other newline is left
        (r"\\\{|\\lbrace(?![a-zA-Z])", "⦃"),
        (r"\\\}|\\rbrace(?![a-zA-Z])", "⦄"),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        (r"\\[()\[\]]", ""),  # of \( \) and \[ \]
        (r"\\[!,;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
        (_TEXT, r"\\text"),
        (r"\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}", " and "),
        (r"(?:\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°)(?:\s*(?:\\text\{\s*[CF]\s*\}|[CF]\b))?", ""),
        (r"\\?[$%]|[€£¥]", ""),
        (r"\\(?:[dtcs]|nice)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·⋅∗]", "*"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])|≤", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])|≥", r"\\ge "),
        (r"\\(?:lt)(?![a-zA-Z])", "<"),
        (r"\\(?:gt)(?![a-zA-Z])", ">"),
        (r"\\neq(?![a-zA-Z])|≠", r"\\ne "),
        (r"∪", r"\\cup "),
        (r"∈", r"\\in "),
        (r"[−–]", "-"),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"±", r"\\pm "),
        (r"√\s*(\d*)", lambda root: rf"\sqrt{{{root.group(1)}}}" if root.group(1) else r"\sqrt "),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"\\varnothing(?![a-zA-Z])|∅|⦃\s*⦄", r"\\emptyset "),
        (r"\*\s*(?=[a-zA-Z\\(])|(?<=[a-zA-Z)}])\s*\*", " "),  # a product that needs no sign
        (r"([_^])\s*(-?\d+|[a-zA-Z])", r"\1{\2}"),
    )
)
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"{_DECIMAL}(?:[eE][+-]?\d{{1,3}})?")
_RATIO = re.compile(
    rf"(?:(\d+)\s*)?\\frac\{{\s*(-?)\s*({_DECIMAL})\s*\}}\{{\s*(-?)\s*({_DECIMAL})\s*\}}|"
    rf"(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)"
)
_POWER = re.compile(rf"(?:({_DECIMAL})\s*\*\s*)?10\s*\^\{{\s*(-?\d{{1,3}})\s*\}}")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
# Words behind a number are its unit, but for those that are part of it.
_AMOUNT = re.compile(
    rf"(-?\s*(?:(?:\d+\s*)?\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|(?:\d+\s+)?{_DECIMAL}(?:\s*/\s*\d+)?))"
    r"(?:\s+([a-zA-Z]{2}[a-zA-Z\s./-]*)|\s*(?:cm|mm|km|ft|kg|mph))(?:\^\{[23]\})?"
)
_FUNCTIONS = {"pi", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "mod"}
_TEXT_UNIT = re.compile(r"(.*[\w}\])])\s*\\text\{[^{}\d]*\}(?:\^\{\d\})?", re.DOTALL)
_NAME = re.compile(r"((?:[a-zA-Z]|\\[a-z]+)(?:_\{\w\})?(?:\([a-zA-Z]\))?|\([a-zA-Z](?:,\s*[a-zA-Z])+\))\s*(?:=|\\in(?![a-zA-Z]))")
_RELATION = re.compile(r"=|<|>|\\(?:le|ge|ne)(?![a-zA-Z])")
_MIRRORED = {">": "<", r"\ge": r"\le"}


def same_answer(first: str | None, second: str | None) -> bool:
    """Whether two answers (what boxes hold) mean the same; an empty one means nothing."""
    if first is None or second is None:
        return False
    meaning = meaning_of(first)
    return meaning is not None and meaning == meaning_of(second)


def same_boxed(prediction: str, reference: str) -> bool:
    """Whether a solution's answer is the reference's."""
    meaning = said_meaning(prediction)
    return meaning is not None and meaning == said_meaning(reference)


def said_meaning(text: str) -> Hashable | None:
    """What the answer of a solution means; a text of one line that names none is an answer itself."""
    answer = answer_of(text)
    if answer is None and "\n" not in text.strip():
        answer = text
    return None if answer is None else meaning_of(answer)


def number_of(answer: str) -> Fraction | None:
    """The value of an answer that is one number, with or without a unit; None of any other."""
    meaning = meaning_of(answer)
    return meaning if isinstance(meaning, Fraction) else None


def meaning_of(answer: str) -> Hashable | None:
    """An answer in the form in which answers that mean the same are equal; None of an empty one."""
    text = answer.strip()
    if len(text) > _LONGEST:
        return "".join(text.split())
    for pattern, value in _SETTLED:
        text = pattern.sub(value, text)
    text = _arguments(text.strip(" *")).removesuffix(".").strip("\n ")
    if re.search(r"\d|\\", text):
        text = re.sub(r",?\s+(?:and|or)\s+", ",", text)
    meaning = _read(text, 0, bare=True)
    return None if meaning == "" else meaning


def _group(text: str, start: int) -> tuple[str, int]:
    """What a macro at `start` takes, and where it ends: a {group}, a command or one character; empty if there is none."""
    found = re.compile(r" *(\\[a-zA-Z]+|[^{}]|\{)").match(text, start)
    if found is None:
        return "", start
    if found.group(1) != "{":
        return found.group(1), found.end()
    depth = 1
    for brace in re.compile("[{}]").finditer(text, found.end()):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[found.end() : brace.start()], brace.end()
    return "", start


def _arguments(text: str) -> str:
    r"""Every \frac and \sqrt with its arguments in braces, as in \frac12, \frac{270}7, \sqrt3."""
    parts, at = [], 0
    for macro in re.finditer(r"\\(frac|sqrt)(?![a-zA-Z])(\s*\[[^\]]*\])?", text):
        if macro.start() < at:
            continue  # inside an argument that is already done
        parts += [text[at : macro.start()], "".join(macro.group().split())]
        at = macro.end()
        for _ in range(2 if macro.group(1) == "frac" else 1):
            argument, at = _group(text, at)
            parts.append("{" + _arguments(argument) + "}")
    return "".join(parts) + text[at:]


def _split(text: str, pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """What stands between the pattern's places outside all brackets, and what stands at those places."""
    parts, between, depth, start, last = [], [], 0, 0, 0
    for found in pattern.finditer(text):
        for letter in text[last : found.start()]:
            depth += (letter in _OPENING) - (letter in _CLOSING)
        last = found.start()
        if depth == 0:
            parts.append(text[start : found.start()])
            between.append(found.group())
            start = found.end()
    return [*parts, text[start:]], between


def _enclosed(text: str) -> bool:
    """Whether the first character is a bracket that the last one closes."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if depth == 0:
            return at > 0 and at == len(text) - 1
    return False


_COMMA, _UNION, _SIGN = re.compile("[,;]"), re.compile(r"\\cup(?![a-zA-Z])"), re.compile(r"(?<=[^*/ ])\s*[+-]|^\s*[+-]")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_SLASH, _ROW, _CELL = re.compile("/"), re.compile("\n"), re.compile("&")


def _read(text: str, depth: int, bare: bool = False) -> Hashable:
    """The meaning of a part of an answer; `bare` where it stands in no brackets, so that commas may part thousands."""
    text = text.strip()
    if depth > _DEEPEST:
        return "".join(text.split())
    if bare:
        text = _THOUSANDS.sub(lambda run: run.group().replace(",", "") if not _depth(text, run.start()) else run.group(), text)
    parts, commas = _split(text, _COMMA)
    if commas:
        return _list(parts, depth)
    if whole := re.fullmatch(r"\\text\{([^{}]*)\}", text):
        return _read(whole.group(1), depth + 1, bare)
    text = _without_unit(text)
    if (value := _number(text)) is not None:
        return value
    parts, unions = _split(text, _UNION)
    if unions:
        return "union", _unordered(_read(part, depth + 1) for part in parts)
    if name := _NAME.match(text):
        if not _RELATION.search(text, name.end()):
            return _read(text[name.end() :], depth + 1, bare)
    parts, relations = _split(text, _RELATION)
    if relations:
        return _related([_read(part, depth + 1) for part in parts], relations)
    parts, both = _split(text, _PLUS_MINUS)
    if len(both) == 1:
        return _list([sign.join(parts) for sign in "+-"], depth)
    return _sum(text, depth)


def _depth(text: str, end: int) -> int:
    return sum((letter in _OPENING) - (letter in _CLOSING) for letter in text[:end])


def _unordered(meanings) -> tuple[Hashable, ...]:
    return tuple(sorted(meanings, key=repr))


def _list(parts: Sequence[str], depth: int) -> Hashable:
    """A list or set: its parts in any order. One name before them ("x = 1, x = 2") is left out, several are kept."""
    parts = [part.strip() for part in parts if part.strip()]
    names = {name.group(1) for part in parts if (name := _NAME.match(part))}
    if len(names) > 1:
        return "named", _unordered(("".join(part.split("=")[0].split()), _read(part, depth + 1)) for part in parts)
    meanings = [_read(part, depth + 1) for part in parts]
    flat = [inner for meaning in meanings for inner in (meaning[1] if _is_list(meaning) else (meaning,))]
    return ("list", _unordered(flat)) if len(flat) != 1 else flat[0]


def _is_list(meaning: Hashable) -> bool:
    return isinstance(meaning, tuple) and meaning[0] == "list"


def _related(sides: list[Hashable], relations: Sequence[str]) -> Hashable:
    """An equation, whose sides have no order, or an inequality, read from the smaller side."""
    if set(relations) == {"="}:
        return "=", _unordered(sides)
    if set(relations) <= set(_MIRRORED):
        sides, relations = sides[::-1], [_MIRRORED[relation] for relation in relations][::-1]
    return "related", tuple(sides), tuple(relations)


def _sum(text: str, depth: int) -> Hashable:
    """A sum: its terms, with their signs, in any order."""
    parts, signs = _split(text, _SIGN)
    if not signs:
        return _term(text, depth)
    terms = [_term(part.strip(), depth + 1) for part in parts]
    signed = [terms[0], *(_signed(sign.strip(), term) for sign, term in zip(signs, terms[1:]))]
    signed = signed[1:] if not parts[0].strip() else signed
    return signed[0] if len(signed) == 1 else ("sum", _unordered(signed))


def _signed(sign: str, term: Hashable) -> Hashable:
    if sign == "+":
        return term
    return -term if isinstance(term, Fraction) else ("-", term)


def _term(text: str, depth: int) -> Hashable:
    """A number, a matrix, something in brackets, a fraction, a product of brackets, or anything else as it stands."""
    text = text.strip()
    if (value := _number(text)) is not None:
        return value
    if _enclosed(text):
        return _bracketed(text, depth)
    parts, slashes = _split(text, _SLASH)
    if len(slashes) == 1:
        return _fraction(*parts, depth)
    if (ratio := re.match(r"\\frac\{", text)) is not None:
        above, at = _group(text, ratio.end() - 1)
        below, at = _group(text, at)
        if at == len(text):
            return _fraction(above, below, depth)
    factors = _factors(text)
    if len(factors) > 1:
        return "product", _unordered(_read(factor, depth + 1) for factor in factors)
    plain = "".join(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).split(" "))
    return plain.casefold() if len(plain) > 1 and plain.isalpha() else plain


def _fraction(above: str, below: str, depth: int) -> Hashable:
    top, bottom = _read(above, depth + 1), _read(below, depth + 1)
    if isinstance(top, tuple) and top[0] == "-":
        return "-", ("/", top[1], bottom)
    if isinstance(top, Fraction) and top < 0:
        return "-", ("/", -top, bottom)
    return "/", top, bottom


def _factors(text: str) -> list[str]:
    """A product cut before and behind each pair of round brackets, an exponent staying with its bracket."""
    factors, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if letter == "(" and depth == 0 and text[start:at].strip():
            factors.append(text[start:at])
            start = at
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == ")" and depth == 0 and not text[at + 1 :].lstrip().startswith(("^", "_")):
            factors.append(text[start : at + 1])
            start = at + 1
    return [factor for factor in (*factors, text[start:]) if factor.strip()]


def _bracketed(text: str, depth: int) -> Hashable:
    """A matrix, a set, a point or an interval; round brackets around one thing mean nothing."""
    opening, inner, closing = text[0], text[1:-1], text[-1]
    if opening == "⟦":
        kind, _, cells = inner.partition(":")
        kind = "matrix" if kind in ("pmatrix", "bmatrix", "smallmatrix", "array") else kind
        rows = [tuple(_read(cell, depth + 1) for cell in _split(row, _CELL)[0]) for row in _split(cells, _ROW)[0] if row.strip()]
        return kind, tuple(rows)
    parts, commas = _split(inner, _COMMA)
    if opening == "⦃":
        return _list(parts, depth + 1)
    meanings = tuple(_read(part, depth + 1) for part in parts)
    if len(meanings) == 1 and (opening + closing in ("()", "{}") or _is_matrix(meanings[0])):
        return meanings[0]
    return opening + closing, meanings


def _is_matrix(meaning: Hashable) -> bool:
    return isinstance(meaning, tuple) and meaning[0] == "matrix"


def _without_unit(text: str) -> str:
    r"""A part without the unit behind it, as in 5\text{ cm}^2 or "5 square cm"."""
    while found := _TEXT_UNIT.fullmatch(text):
        text = found.group(1)
    found = _AMOUNT.fullmatch(text.strip())
    return found.group(1) if found and not _FUNCTIONS & set((found.group(2) or "").lower().split()) else text


def _number(text: str) -> Fraction | None:
    r"""The value of a number: whole, decimal, fraction, mixed (1\frac{4}{5}, 1 4/5) or with an exponent."""
    digits = text.removeprefix("+").removeprefix("-").strip()
    sign = -1 if text.startswith("-") else 1
    if _NUMBER.fullmatch(digits):
        return sign * Fraction(digits)
    if power := _POWER.fullmatch(digits):
        return sign * Fraction(power.group(1) or 1) * Fraction(10) ** int(power.group(2))
    if (ratio := _RATIO.fullmatch(digits)) is None:
        return None
    whole, minus, top, other, bottom, whole_, top_, bottom_ = ratio.groups()
    if Fraction(bottom or bottom_) == 0:
        return None
    value = Fraction(whole or whole_ or 0) + Fraction(top or top_) / Fraction(bottom or bottom_)
    return sign * (-value if bool(minus) != bool(other) else value)

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
from typing import Any, TypeGuard

from colm_jax.evaluation.latex import CLOSING, OPENING, argument_at, depth_of, enclosed, settled, split
from colm_jax.evaluation.said import answer_of

_LONGEST = 1000  # characters of an answer that is read; a longer one equals only itself
_DEEPEST = 20  # brackets in brackets that are read; what is deeper equals only itself
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
_NAME = re.compile(
    r"((?:[a-zA-Z]|\\[a-z]+)(?:_\{\w\})?(?:\([a-zA-Z]\))?|\([a-zA-Z](?:,\s*[a-zA-Z])+\))\s*(?:=|\\in(?![a-zA-Z]))"
)
_RELATION = re.compile(r"=|<|>|\\(?:le|ge|ne)(?![a-zA-Z])")
_COMMA, _UNION, _SIGN = re.compile("[,;]"), re.compile(r"\\cup(?![a-zA-Z])"), re.compile(r"(?<=[^*/ ])\s*[+-]|^\s*[+-]")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_SLASH, _ROW, _CELL = re.compile("/"), re.compile("\n"), re.compile("&")
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
    text = settled(text)
    if re.search(r"\d|\\", text):
        text = re.sub(r",?\s+(?:and|or)\s+", ", ", text)
    meaning = _read(text, 0, bare=True)
    return None if meaning == "" else meaning


def _read(text: str, depth: int, bare: bool = False) -> Hashable:
    """The meaning of a part of an answer; `bare` where it stands in no brackets, so that commas may part thousands."""
    text = text.strip()
    if depth > _DEEPEST:
        return "".join(text.split())
    if bare:
        text = _THOUSANDS.sub(
            lambda run: run.group().replace(",", "" if depth_of(text[: run.start()]) == 0 else ","), text
        )
    parts, commas = split(text, _COMMA)
    if commas:
        return _list(parts, depth)
    if whole := re.fullmatch(r"\\text\{([^{}]*)\}", text):
        return _read(whole.group(1), depth + 1, bare)
    text = _without_unit(text)
    if (value := _number(text)) is not None:
        return value
    parts, unions = split(text, _UNION)
    if unions:
        return "union", _unordered(_read(part, depth + 1) for part in parts)
    if (name := _NAME.match(text)) and not _RELATION.search(text, name.end()):
        return _read(text[name.end() :], depth + 1, bare)
    parts, relations = split(text, _RELATION)
    if relations == ["="] and _NAME.fullmatch(f"{parts[1].strip()}="):  # 5 = x, as x = 5
        return _read(parts[0], depth + 1, bare)
    if relations:
        sides = [_read(part, depth + 1) for part in parts]
        if set(relations) == {"="} and isinstance(sides[0], Fraction) and len(set(sides)) == 1:
            return sides[0]  # one value in two ways of writing
        return _related(sides, relations)
    parts, both = split(text, _PLUS_MINUS)
    if len(both) == 1:
        return _list([sign.join(parts) for sign in "+-"], depth)
    return _sum(text, depth)


def _is(meaning: Hashable, kind: str) -> TypeGuard[tuple[str, Any]]:
    return isinstance(meaning, tuple) and meaning[0] == kind


def _unordered(meanings) -> tuple[Hashable, ...]:
    return tuple(sorted(meanings, key=repr))


def _list(parts: Sequence[str], depth: int) -> Hashable:
    """A list or set: its parts in any order. One name before them ("x = 1, x = 2") is left out, several are kept."""
    parts = [part.strip() for part in parts if part.strip()]
    names = {name.group(1) for part in parts if (name := _NAME.match(part))}
    if len(names) > 1:
        return "named", _unordered(("".join(part.split("=")[0].split()), _read(part, depth + 1)) for part in parts)
    meanings = [_read(part, depth + 1) for part in parts]
    flat = [inner for meaning in meanings for inner in (meaning[1] if _is(meaning, "list") else (meaning,))]
    return ("list", _unordered(flat)) if len(flat) != 1 else flat[0]


def _related(sides: list[Hashable], relations: Sequence[str]) -> Hashable:
    """An equation, whose sides have no order, or an inequality, read from the smaller side."""
    if set(relations) == {"="}:
        return "=", _unordered(sides)
    if set(relations) <= set(_MIRRORED):
        sides, relations = sides[::-1], [_MIRRORED[relation] for relation in relations][::-1]
    return "related", tuple(sides), tuple(relations)


def _sum(text: str, depth: int) -> Hashable:
    """A sum: its terms, with their signs, in any order."""
    parts, signs = split(text, _SIGN)
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
    if enclosed(text):
        return _bracketed(text, depth)
    parts, slashes = split(text, _SLASH)
    if len(slashes) == 1:
        return _fraction(parts[0], parts[1], depth)
    if text.startswith(r"\frac{"):
        above, at = argument_at(text, len(r"\frac"))
        below, at = argument_at(text, at)
        if at == len(text):
            return _fraction(above, below, depth)
    factors = _factors(text)
    if len(factors) > 1:
        return "product", _unordered(_read(factor, depth + 1) for factor in factors)
    plain = "".join(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).split(" "))
    return plain.casefold() if len(plain) > 1 and plain.isalpha() else plain


def _fraction(above: str, below: str, depth: int) -> Hashable:
    top, bottom = _read(above, depth + 1), _read(below, depth + 1)
    if _is(top, "-"):
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
        depth += (letter in OPENING) - (letter in CLOSING)
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
        rows = [
            tuple(_read(cell, depth + 1) for cell in split(row, _CELL)[0])
            for row in split(cells, _ROW)[0]
            if row.strip()
        ]
        return kind, tuple(rows)
    parts, _ = split(inner, _COMMA)
    if opening in "⦃{":
        return _list(parts, depth + 1)
    meanings = tuple(_read(part, depth + 1) for part in parts)
    if len(meanings) == 1 and (opening + closing == "()" or _is(meanings[0], "matrix")):
        return meanings[0]
    return opening + closing, meanings


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

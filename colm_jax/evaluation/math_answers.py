r"""MATH: equivalence of two answers.

An answer is parsed into a canonical form, which is equal for equivalent answers: macros and spaces are normalised,
units removed, numbers are fractions, lists and sets are unordered, points and matrices ordered. The rules follow the
MATH data set's own string comparison (Hendrycks et al. 2021). There is no algebra beyond the order of a sum's terms and
of bracketed factors: 2(x+1) and 2x+2 differ. Length and depth of the input are bounded, and nothing is evaluated, so
that an answer like 9^{9^{9^9}} costs nothing.
"""

import re
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Any, TypeGuard

from colm_jax.evaluation.final_answer import final_answer
from colm_jax.evaluation.latex import CLOSING, OPENING, argument_at, depth_of, enclosed, normalised, split

_LONGEST = 1000  # characters of an answer that is parsed; a longer one equals only itself
_DEEPEST = 20  # levels of nested brackets that are parsed; a deeper part equals only itself
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"{_DECIMAL}(?:[eE][+-]?\d{{1,3}})?")
_RATIO = re.compile(
    rf"(?:(\d+)\s*)?\\frac\{{\s*(-?)\s*({_DECIMAL})\s*\}}\{{\s*(-?)\s*({_DECIMAL})\s*\}}|"
    rf"(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)"
)
_POWER = re.compile(rf"(?:({_DECIMAL})\s*\*\s*)?10\s*\^\{{\s*(-?\d{{1,3}})\s*\}}")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
# Words after a number are its unit, except for names of functions.
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
    """Return whether two answers (the contents of boxes) are equivalent; False for None and for empty ones."""
    if first is None or second is None:
        return False
    meaning = meaning_of(first)
    return meaning is not None and meaning == meaning_of(second)


def same_boxed(prediction: str, reference: str) -> bool:
    """Return whether the final answers of a solution and of the reference are equivalent."""
    meaning = final_meaning(prediction)
    return meaning is not None and meaning == final_meaning(reference)


def final_meaning(text: str) -> Hashable | None:
    """Return the canonical form of a solution's final answer; a single line without one is an answer itself."""
    answer = final_answer(text)
    if answer is None and "\n" not in text.strip():
        answer = text
    return None if answer is None else meaning_of(answer)


def number_of(answer: str) -> Fraction | None:
    """Return the value of an answer that is one number, with or without a unit; otherwise None."""
    meaning = meaning_of(answer)
    return meaning if isinstance(meaning, Fraction) else None


def meaning_of(answer: str) -> Hashable | None:
    """Return the canonical form of an answer, which is equal for equivalent answers; None if it is empty."""
    text = answer.strip()
    if len(text) > _LONGEST:
        return "".join(text.split())
    text = normalised(text)
    if re.search(r"\d|\\", text):
        text = re.sub(r",?\s+(?:and|or)\s+", ", ", text)
    meaning = _read(text, 0, bare=True)
    return None if meaning == "" else meaning


def _read(text: str, depth: int, bare: bool = False) -> Hashable:
    """Return the canonical form of a part; `bare`: outside brackets, where commas may separate thousands."""
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
            return sides[0]  # one value in two spellings
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
    """Parse an unordered list or set. A single name before its parts ("x = 1, x = 2") is dropped; several are kept."""
    parts = [part.strip() for part in parts if part.strip()]
    names = {name.group(1) for part in parts if (name := _NAME.match(part))}
    if len(names) > 1:
        return "named", _unordered(("".join(part.split("=")[0].split()), _read(part, depth + 1)) for part in parts)
    meanings = [_read(part, depth + 1) for part in parts]
    flat = [inner for meaning in meanings for inner in (meaning[1] if _is(meaning, "list") else (meaning,))]
    return ("list", _unordered(flat)) if len(flat) != 1 else flat[0]


def _related(sides: list[Hashable], relations: Sequence[str]) -> Hashable:
    """Return the form of an equation, with unordered sides, or of an inequality, from its smaller side."""
    if set(relations) == {"="}:
        return "=", _unordered(sides)
    if set(relations) <= set(_MIRRORED):
        sides, relations = sides[::-1], [_MIRRORED[relation] for relation in relations][::-1]
    return "related", tuple(sides), tuple(relations)


def _sum(text: str, depth: int) -> Hashable:
    """Parse a sum: signed terms, unordered."""
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
    """Parse a number, a matrix, brackets, a fraction or a product of brackets; other text stays as it is."""
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
    """Split a product before and after each pair of round brackets; an exponent stays with its bracket."""
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
    """Parse a matrix, a set, a point or an interval; round brackets around a single part are dropped."""
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
    r"""Return a part without the unit after it, as in 5\text{ cm}^2 or "5 square cm"."""
    while found := _TEXT_UNIT.fullmatch(text):
        text = found.group(1)
    found = _AMOUNT.fullmatch(text.strip())
    return found.group(1) if found and not _FUNCTIONS & set((found.group(2) or "").lower().split()) else text


def _number(text: str) -> Fraction | None:
    r"""Parse a number (whole, decimal, fraction, mixed as 1\frac{4}{5}, or with an exponent); None for other text."""
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

r"""The number that a text gives: what GSM8K and its like are graded by.

What follows "####" counts, and what follows that does not; else the last box, else what "the answer is" if that is one
number; else the last number in the text.
"""

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

from colm_jax.evaluation.math_answers import number_of
from colm_jax.evaluation.said import last_boxed, marked, said

# Commas are thousands separators only where three digits follow each: "1,200" is one number, "1,2" are two.
_NUMBER = re.compile(
    r"(?:\d{1,3}(?:(?:,|\{,\}|,\\!|\\,)\d{3}){1,9}(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\w|\.\d))?|\.\d+"
)
_SEPARATORS = re.compile(r"[^\d.eE+-]")
_SIGNS, _CURRENCY = "-−", "\\$€£"
_LONGEST = 400  # characters of a number; a longer run of digits is none


def last_number(text: str) -> Fraction | None:
    """The last number in a text, None without one.

    A minus sign (also before a currency's) counts unless it stands between two operands, as in 10-3.
    """
    found = deque(_NUMBER.finditer(text), maxlen=1)
    return _value(text, found[0]) if found else None


def _value(text: str, found: re.Match[str]) -> Fraction | None:
    start, value = found.start(), _SEPARATORS.sub("", found.group())
    if len(value) > _LONGEST:
        return None
    if value[0] == "." and start and text[start - 1].isalnum():  # as in "version 1.2.3": no number begins here
        value = value[1:]
    before = text[max(0, start - 8) : start].rstrip(_CURRENCY)
    negative = before[-1:] in tuple(_SIGNS) and not (before[-2:-1].isalnum() or before[-2:-1] in tuple(")]}%"))
    return -Fraction(value) if negative else Fraction(value)


def number_in(text: str) -> Fraction | None:
    """The number that a text gives as its answer, None without one."""
    return next((value for value in _readings(text) if value is not None), None)


def _readings(text: str) -> Iterator[Fraction | None]:
    if "\n" not in text.strip():  # it may be nothing but a number
        yield number_of(text)
    if (mark := marked(text)) is not None:
        yield number_of(mark)
        first = _NUMBER.search(mark)
        yield first and _value(mark, first)
    if (box := last_boxed(text)) is not None:
        yield number_of(box)
        yield last_number(box)
    if (answer := said(text)) is not None:
        yield number_of(answer.rsplit("=", 1)[-1])
    yield last_number(text)


def same_number(prediction: str, reference: str) -> bool:
    """Whether a text gives the reference's number."""
    gold = number_in(reference)
    return gold is not None and number_in(prediction) == gold

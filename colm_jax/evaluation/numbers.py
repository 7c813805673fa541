r"""The final number of a text, by which GSM8K and similar tasks are graded.

The number after the first "####" counts; otherwise the last box; otherwise a single number after "the answer is";
otherwise the last number in the text.
"""

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

from colm_jax.evaluation.final_answer import last_boxed, marked_answer, stated_answer
from colm_jax.evaluation.math_answers import number_of

# Commas are thousands separators only if three digits follow each: "1,200" is one number, "1,2" are two.
_NUMBER = re.compile(
    r"(?:\d{1,3}(?:(?:,|\{,\}|,\\!|\\,)\d{3}){1,9}(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\w|\.\d))?|\.\d+"
)
_SEPARATORS = re.compile(r"[^\d.eE+-]")
_SIGNS, _CURRENCY = "-−", "\\$€£"
_LONGEST = 400  # characters of a number; longer runs of digits are ignored


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text; None without one.

    A minus sign (also before a currency sign) counts unless it is between two operands, as in 10-3.
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
    """Return the number that a text gives as its answer; None without one."""
    return next((value for value in _readings(text) if value is not None), None)


def _readings(text: str) -> Iterator[Fraction | None]:
    if "\n" not in text.strip():  # the whole text may be a number
        yield number_of(text)
    if (mark := marked_answer(text)) is not None:
        yield number_of(mark)
        first = _NUMBER.search(mark)
        yield first and _value(mark, first)
    if (box := last_boxed(text)) is not None:
        yield number_of(box)
        yield last_number(box)
    if (answer := stated_answer(text)) is not None:
        yield number_of(answer.rsplit("=", 1)[-1])
    yield last_number(text)


def same_number(prediction: str, reference: str) -> bool:
    """Return whether a text gives the reference's number."""
    gold = number_in(reference)
    return gold is not None and number_in(prediction) == gold

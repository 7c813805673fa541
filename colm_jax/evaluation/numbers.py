"""The last number in a text: what GSM8K and its like are graded by."""

import re
from decimal import Decimal

# Commas are thousands separators only where three digits follow each: "1,200" is one number, "1,2" are two.
_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+")
_SIGNS, _CURRENCY = "-−", "$€£"


def last_number(text: str) -> Decimal | None:
    """The last number in a text, None without one.

    A minus sign (also before a currency's) counts unless it stands between two operands, as in 10-3.
    """
    found = None
    for match in _NUMBER.finditer(text):
        start = match.start()
        value = match.group()
        if value[0] == "." and start and text[start - 1].isalnum():  # as in "version 1.2.3": no number begins here
            value = value[1:]
        number = Decimal(value.replace(",", ""))
        before = text[:start].rstrip(_CURRENCY)
        negative = before[-1:] in tuple(_SIGNS) and not (before[-2:-1].isalnum() or before[-2:-1] in tuple(")]}%"))
        found = -number if negative else number
    return found


def same_number(prediction: str, reference: str) -> bool:
    """Whether a text's last number is the reference's; in the reference, what stands behind the last #### counts."""
    gold = last_number(reference.rsplit("####", 1)[-1])
    return gold is not None and last_number(prediction) == gold

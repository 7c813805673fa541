from decimal import Decimal

import pytest

from colm_jax.evaluation.numbers import last_number


@pytest.mark.parametrize(
    "text, number",
    [
        ("The answer is 42.", 42),
        ("so 1,234,567 dollars", 1234567),
        ("it is -5", -5),
        ("10-3", 3),
        ("x−3 = −7", -7),
        ("3.50 and then 2.5.", Decimal("2.5")),
        ("5^5 = 3125.", 3125),
        ("-$1,200.50", Decimal("-1200.5")),
        ("$-3", -3),
        ("(7)-3", 3),
        ("loses 50%-3", 3),
        ("the pair (1,2)", 2),
        ("1,2345", 2345),
        ("half is .5", Decimal("0.5")),
        ("version 1.2.3", 3),
        ("7,", 7),
        ("#### 0", 0),
        ("x = -0.25", Decimal("-0.25")),
        ("none", None),
        ("-", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number

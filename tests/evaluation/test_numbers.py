from decimal import Decimal

import pytest

from colm_jax.evaluation.numbers import last_number, number_in, same_number


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
        (r"\$1{,}234", 1234),
        (r"so 9,\!500 and 7\,200", 7200),
        (r"-\$5", -5),
        ("1e-05", Decimal("0.00001")),
        ("about 1.5e+16.", 15 * 10**15),
        ("8" * 5000, None),
        ("none", None),
        ("-", None),
        ("", None),
    ],
)
def test_last_number_of_a_text(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    "text, number",
    [
        ("2 + 3 = 5\n#### 5\n\nQuestion: Bo has 7.\n#### 7", 5),
        ("#### 5 Question: Bo has 7 pens.", 5),
        ("#### $1,250$", 1250),
        ("#### −4", -4),
        ("#### 3/4 cups", Decimal("0.75")),
        ("#### Step 2: add 3\nso 9", 9),
        ("#### 1. Count 3\nso 9", 9),
        (r"\boxed{72} since 5 are left", 72),
        (r"\boxed{\$1{,}234}", 1234),
        (r"\boxed{72\%}", 72),
        (r"\boxed{\frac{3}{4}}", Decimal("0.75")),
        (r"\boxed{\text{The total is 460}}", 460),
        (r"\boxed{x = 12}", 12),
        ("The answer is 42. I checked it 3 times.", 42),
        ("The answer is 5 + 3 = 8, by 2 rules.", 8),
        ("**Answer:** 72 clips, of 100", 72),
        ("Answer: Ann has 5 apples and eats 2, so 5 - 2 = 3", 3),
        ("3/8", Decimal("0.375")),
        ("it costs 3 or 4", 4),
        ("none", None),
    ],
)
def test_named_number_precedes_the_last_one(text, number):
    assert number_in(text) == number


def test_long_numbers_are_compared_exactly():
    number = "-1234567890123456789012345678901234567890"
    assert same_number(number, number)
    assert not same_number(number, number[:-1] + "1")

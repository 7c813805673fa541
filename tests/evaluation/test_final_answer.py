import pytest

from colm_jax.evaluation.final_answer import final_answer, last_boxed, last_formula, marked_answer, stated_answer


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so $\boxed{42}$.", "42"),
        (r"\boxed{\frac{1}{2}} and then \boxed{\left\{x : x^{2} > 1\right\}}", r"\left\{x : x^{2} > 1\right\}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{3}", "3"),
        (r"\boxed 5", "5"),
        (r"$\boxed -12$.", "-12"),
        (r"first \boxed{1}, at last \boxed{\frac{1", "1"),
        (r"{ a brace left open \boxed{8}", "8"),
        (r"\boxedtext{8}", None),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_last_closed_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("The terms cancel, $a = b$. So we get $13$.", "$13$"),
        (r"Hence\n\[ \frac{1}{2} \]", r"\[ \frac{1}{2} \]"),
        ("The roots are $1$ and $-2$, as wanted.", "$1$ and $-2$"),
        ("The sum telescopes to `16`.", "16"),
        ("$1$ or $3$", None),  # a one-line answer
        ("no formula", None),
        (r"words \(" * 30_000, None),
    ],
)
def test_last_formula_is_the_fallback_answer(text, answer):
    assert last_formula(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("18 eggs\n#### 18", "18"),
        ("#### 18\n\nQuestion: Bo has 7 pens.\n#### 7", "18"),
        ("#### Step 1\nadd\n#### 2. Subtract\nso\n#### **5**", "**5**"),
        ("####   \n5", None),
        ("no mark", None),
    ],
)
def test_first_mark_is_the_answer_and_headings_are_not_marks(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("The final answer is $x^2$.", "$x^2$"),
        ("Answer: 12\nI hope so", "12"),
        ("The answer is: 6.5", "6.5"),
        ("**Answer**: 7", "7"),
        ("Answer: `7`", "7"),
        ("**Final Answer:** 7 meters", "7 meters"),
        ("*Answer:* **$8$**", "$8$"),
        ("**The answer is 9.** I checked it.", "9"),
        ("**Final Answer**\n\n9", "9"),
        ("so 3\n### Answer\n\n11", "11"),
        ("the answer\nto it all", None),
        ("### Answer: 9", "9"),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "$[2,5)$"),
        ("The answer is 3.5. It was hard.", "3.5"),
        ("The answer is $x = 3$ or $x = 5$, as required.", "$x = 3$ or $x = 5$"),
        ("the answer is 1, 2, and 3.", "1, 2, and 3"),
        ("The answer is 12, our largest value.", "12"),
        ("The answer is 12, not 13.", "12"),
        ("The answer is 12 because 3 of them are even.", "12"),
        ("The answer is 12 (as required).", "12"),
        ("The answer is therefore 12.", "12"),
        ("The answer to the second question should be 12.", "12"),
        ("The answer is $12 a week, of the $30.", "$12 a week"),
        ("The answer is:\n\\[\n  12\n\\]", "\\[\n  12\n\\]"),
        ("Thus the answer is \\(\\frac12\\).", "\\(\\frac12\\)"),
        ("<answer>12</answer>", "12"),
        ("The answer：12", "12"),
        ("Answer: (B) since it is larger", "(B)"),
        ("The answer is 1? No. The answer is 2.", "2"),
        ("The answer is 12.\nAnswer:", "12"),
        ("answers: none", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_usual_answer_phrases(text, answer):
    assert stated_answer(text) == answer


def test_box_precedes_mark_and_mark_precedes_phrase():
    assert final_answer("#### 1\nthe answer is 2, \\boxed{3}") == "3"
    assert final_answer("the answer is 2\n#### 1") == "1"
    assert final_answer("the answer is 2") == "2"
    assert final_answer("2") is None

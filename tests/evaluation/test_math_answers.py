import pytest

from colm_jax.evaluation.math_answers import answer_of, last_boxed, same_answer, same_boxed


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so $\boxed{42}$.", "42"),
        (r"\boxed{\frac{1}{2}} and then \boxed{\left\{x : x^{2} > 1\right\}}", r"\left\{x : x^{2} > 1\right\}"),
        (r"\fbox{3}", "3"),
        (r"\boxed 5", "5"),
        (r"first \boxed{1}, at last \boxed{\frac{1", "1"),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"The answer is 3, no: \boxed{4}", "4"),
        ("The final answer is $x^2$.", "$x^2$"),
        ("Answer: 12\nI hope so", "12"),
        ("18 eggs\n#### 18", "18"),
        ("no idea", None),
    ],
)
def test_without_a_box_the_last_answer_named_counts(text, answer):
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    "first, second",
    [
        (r"\frac43", r"\frac{4}{3}"),
        (r"\dfrac 43", "4/3"),
        (r"\frac{\frac{1}{2}}{3}", r"\frac{\frac12}3"),
        (r"-\frac{35}{9}", r"\frac{-35}{9}"),
        (r"1\frac{4}{5}", "9/5"),
        (r"1\frac45", "1.8"),
        (r"\frac12", ".5"),
        (r"\frac{\sqrt{3}}{3}", r"\sqrt3/3"),
        (r"-\frac{\pi}{6}", r"-\pi/6"),
        (r"11\sqrt2", r"11 \sqrt{2}"),
        (r"10,\!080", "10080"),
        ("10{,}080", "10,080"),
        (r"\$32,\!348", "32348"),
        ("$18.90", "18.9"),
        (r"50\%", "50"),
        (r"90^\circ", "90"),
        (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
        (r"864 \mbox{ inches}^2", "864"),
        ("12 square inches", "12"),
        (r"5.4 \text{ cents}", "5.4"),
        (r"\text{Evelyn}", "evelyn"),
        (r"\text{(C)}", "C"),
        ("x=5", "5"),
        (r"x \in [-2,7]", r"\left[-2, 7\right]"),
        (r"\left( \frac{3}{2}, -13 \right)", "(3/2,-13)"),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
        (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}"),
        ("-2,1", "1, -2"),
        (r"3 \text{ and } 4", "4, 3"),
        (r"4210_{5}", "4210_5"),
        ("5.", "5"),
        (r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}", r"\begin{pmatrix} -\frac{1}{3} \\ 2 \end{pmatrix}"),
    ],
)
def test_the_same_answer_written_twice(first, second):
    assert same_answer(first, second)
    assert same_answer(second, first)


@pytest.mark.parametrize(
    "first, second",
    [
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("1", "-1"),
        ("1,2", "12"),
        ("1,1", "1"),
        ("5", "5_8"),
        (r"2\pi", "2"),
        ("2 pi", "2"),
        (r"2\cdot3", "23"),
        (r"\frac12", r"\frac21"),
        (r"\frac{1}{0}", "0"),
        ("x^2", "x^3"),
        ("A", "a"),
        ("", ""),
        (None, "1"),
    ],
)
def test_other_answers(first, second):
    assert not same_answer(first, second)
    assert not same_answer(second, first)


def test_a_prediction_is_graded_by_its_last_box():
    assert same_boxed(r"\boxed{1} or rather \boxed{\frac12}", "0.5")
    assert same_boxed(r"\boxed{7}", r"hence \boxed{8}, I mean \boxed{7}")
    assert not same_boxed(r"\boxed{0.5} or rather \boxed{1}", "0.5")
    assert not same_boxed("", "0.5")

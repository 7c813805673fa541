import random

import pytest

from colm_jax.evaluation.math_answers import meaning_of, number_of, same_answer, same_boxed
from docs.tables.grading import SAID, right_pairs, wrong_pairs


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
        ("5 = x", "5"),
        (r"\frac{7}{4} = 1.75", r"\frac{7}{4}"),
        (r"\boldsymbol{\frac{7}{4}}", r"\frac{7}{4}"),
        (r"\color{red}{-12}", "-12"),
        (r"\textcolor{blue}{\sqrt{6}}", r"\sqrt{6}"),
        (r"\begin{aligned} 3\pi \end{aligned}", r"3\pi"),
        (r"\text{Answer: } 8", "8"),
        (r"{7 \over 4}", r"\frac{7}{4}"),
        (r"19^{1/2}", r"\sqrt{19}"),
        (r"7{\cdot}\pi", r"7\pi"),
        ("y=2x+1", "2x+1 = y"),
        (r"x \in [-2,7]", r"\left[-2, 7\right]"),
        (r"\left( \frac{3}{2}, -13 \right)", "(3/2,-13)"),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
        (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}"),
        ("-2,1", "1, -2"),
        (r"3 \text{ and } 4", "4, 3"),
        (r"4210_{5}", "4210_5"),
        ("5.", "5"),
        (r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}", r"\begin{pmatrix} -\frac{1}{3} \\ 2 \end{pmatrix}"),
        (
            r"\begin{pmatrix}0&-x\\x&0\end{pmatrix}",
            "\\begin{pmatrix}\n  0 & -x \\\\[2pt]\n  x & 0 \\\\\n\\end{pmatrix}",
        ),
        (r"\begin{bmatrix} 9 \\ 8 \end{bmatrix}", r"\left(\begin{array}{c} 9 \\ 8 \end{array}\right)"),
        ("(0,5),(-1,2)", "(-1, 2) and (0, 5)"),
        ("[3,4],(5,6]", "(5,6], [3,4]"),
        (r"(0,1) \cup (4,\infty)", r"(4,+\infty)\cup(0,1)"),
        (r"\{7, 9\}", "9 and 7"),
        ("2,500, 1,200", "1200, 2500"),
        ("2,500 and 1,200", "1200, 2500"),
        ("{3, 4}", r"\{4, 3\}"),
        (r"7{,}654,\!321", "7654321"),
        ("x=8, x=-8", r"\pm 8"),
        ("(x,y) = (1,2)", "(1,2)"),
        ("a = 1, b = 2", "b=2, a=1"),
        ("f(x) = 3x+1", "1 + 3x"),
        ("7 - 2i", "-2i + 7"),
        ("(x-1)(x+4)^2", "(x+4)^{2}(x-1)"),
        ("3x + 2y = 6", "6 = 2y + 3x"),
        (r"x \ge 4", r"4 \leq x"),
        ("2 3/4", r"\frac{11}{4}"),
        (r"-2\tfrac34", "-2.75"),
        ("6.5e-05", r"6.5 \times 10^{-5}"),
        (r"45^\circ\text{C}", "45°"),
        ("30 percent", r"30\%"),
        ("8 miles per hour", "8"),
        ("8cm", r"8\,\mathrm{cm}"),
        (r"\text{Ann}, \text{Bo}", "Bo, Ann"),
        ("**(D)**", r"\textbf{(D)}"),
        ("3√5", r"3\sqrt{5}"),
        ("x^{12}", "x^12"),
        (r"\frac{2+a}{b}", "(a+2)/b"),
    ],
)
def test_equivalent_answers(first, second):
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
        ("12, 345", "12345"),
        ("12,345", "12, 345"),
        ("(1,234)", "1234"),
        ("1 1/2", "11/2"),
        ("x=1, y=2", "x=2, y=1"),
        ("(1,2), (3,4)", "(2,1), (3,4)"),
        ("[0,1),[2,3]", "[0,1],[2,3)"),
        (r"\pm 8", "8"),
        ("x - y", "y - x"),
        ("x < 4", "4 < x"),
        ("x^{2}3", "x^{23}"),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{vmatrix} 1 & 2 \end{vmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        ("52_8", "52"),
        ("2xy", "2"),
        ("10^{10^{10}}", "10"),
        ("", ""),
        (None, "1"),
    ],
)
def test_different_answers(first, second):
    assert not same_answer(first, second)
    assert not same_answer(second, first)


def test_last_box_is_graded():
    assert same_boxed(r"\boxed{1} or rather \boxed{\frac12}", "0.5")
    assert same_boxed(r"\boxed{7}", r"hence \boxed{8}, I mean \boxed{7}")
    assert not same_boxed(r"\boxed{0.5} or rather \boxed{1}", "0.5")
    assert not same_boxed("", "0.5")


def test_one_line_without_an_answer_phrase_is_the_answer():
    assert same_boxed(r"$\frac{1}{2}$", "0.5")
    assert not same_boxed("First 0.5.\nThen nothing.", "0.5")


def test_zero_is_an_answer():
    assert same_answer("0", "0.0")
    assert number_of("0") == 0
    assert number_of("x") is None
    assert meaning_of(" ") is None


HOSTILE = (
    *(
        "9**9**9**9",
        "10^{10^{10}}",
        "{" * 50_000,
        "(1," * 240 + "1" + ")" * 240,
        "1" * 5000,
        "x" * 100_000,
        "1e999999999",
    ),
    *(
        r"\boxed{" * 10_000,
        r"\frac{1}{" * 90 + "1" + "}" * 90,
        "1," * 480,
        "-" * 900,
        "1 " + "ab " * 300 + "9",
        "(1)" * 300,
    ),
    *("answer is " * 10_000, "answer is x" + " " * 100_000 + "y", "####" + " " * 100_000 + "ab", "#" * 50_000 + "ab"),
    *("answer is " + "*_" * 40_000, "answer is $" + r"\$" * 40_000, "111," * 25_000 + "1111", "$" * 100_000),
)


@pytest.mark.timeout(60)  # linear time takes a fraction of a second, anything else hours
@pytest.mark.parametrize("text", HOSTILE, ids=[text[:12] for text in HOSTILE])
def test_grading_takes_linear_time_and_bounded_recursion(text):
    assert same_answer(text, text)
    assert not same_answer(text, "5")
    assert not same_boxed(text, "5")


def test_equivalence_is_reflexive_symmetric_and_transitive():
    parts = (
        *r"\frac{ { } ( ) [ ] \{ \} 1 23 4.5 , ; \text{ cm} x ab \pm \cup = < + - * / ^ _ \\ & $ \sqrt".split(),
        " ",
        "\n",
    )
    generator = random.Random(0)
    for _ in range(300):
        first, second = ("".join(generator.choices(parts, k=generator.choice((3, 8, 40)))) for _ in range(2))
        assert same_answer(first, second) == same_answer(second, first)
        assert same_answer(first, first) == (meaning_of(first) is not None)


def test_all_pairs_of_the_docs_table_are_graded_correctly():
    answers = [
        r"\frac{7}{4}",
        "2150",
        "-3",
        "1,-2",
        r"3 \pm \sqrt{5}",
        "(4,-1)",
        r"(0,2] \cup (3,\infty)",
        "45^\\circ",
        "31_5",
    ]
    answers += [
        r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}",
        "p - 2q",
        r"\text{(B)}",
        r"\$3",
        r"2\pi",
        "x=6",
        r"9\mbox{ cm}^2",
    ]
    for pairs, want in ((right_pairs, True), (wrong_pairs, False)):
        kinds = dict(pairs(answers))
        assert sum(map(len, kinds.values())) > 40
        wrong = [(kind, *texts) for kind, all_ in kinds.items() for texts in all_ if same_boxed(*texts) != want]
        assert not wrong
    assert len(SAID) == 11

import pytest

from colm_jax.evaluation.choices import choice_measures, decision, f1


@pytest.mark.parametrize(
    "text, said",
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("**Maybe**, since no trial was large", "maybe"),
        ("There is no doubt about it, so the answer is yes.", "yes"),
        ("Answer: no\nBecause it is yes or no", "no"),
        ("The answer is yes. On second thought, the answer is no.", "no"),
        ("Mice show no effect but humans do: yes", "yes"),
        ("The answer is **yes**, with no doubt", "yes"),
        ("**Final answer**: maybe, though yes in mice", "maybe"),
        ("The answer to this question is: no. Yes, really.", "no"),
        (r"Yes, we thought, but \boxed{\text{No}} it is", "no"),
        ("nothing known", None),
        ("eyes", None),
        ("", None),
    ],
)
def test_decision_of_an_answer(text, said):
    assert decision(text) == said


def test_macro_f1_equals_value_by_hand():
    found = choice_measures(["yes", "yes", "no", ""], ["yes", "no", "no", "maybe"])
    assert found["f1"] == {"yes": pytest.approx(2 / 3), "no": pytest.approx(2 / 3), "maybe": 0.0}
    assert found["macro_f1"] == pytest.approx(4 / 9)
    assert found["undecided"] == 1
    assert f1(["yes"], ["yes"], "no") == 0.0

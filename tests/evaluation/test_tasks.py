from decimal import Decimal

import pytest

from colm_jax.errors import UserError
from colm_jax.evaluation.tasks import TASKS, evaluate_files, last_number


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
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_gsm8k_reads_what_stands_behind_the_marks():
    assert TASKS["gsm8k"]("I think 18.0", "9 * 2 = <<9*2=18>>18\n#### 18")
    assert not TASKS["gsm8k"]("17", "#### 18")
    assert not TASKS["gsm8k"]("", "#### 18")


def test_files_pair_by_id_or_by_order(tmp_path):
    predictions, references = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    predictions.write_text('{"id": 1, "text": "7", "sources": [1, 0]}\n{"id": 2, "text": "9"}\n')
    references.write_text('{"id": 2, "answer": "9"}\n{"id": 1, "answer": "8"}\n')
    result = evaluate_files("number", predictions, references)
    assert result["by_answer"] == [False, True]
    assert result["deferral_rate"] == 0.25
    references.write_text('{"answer": "7"}\n')
    with pytest.raises(UserError, match="2 lines"):
        evaluate_files("number", predictions, references)
    with pytest.raises(UserError, match="'bleu'"):
        evaluate_files("bleu", predictions, references)


def test_gsm8k_references_score_full_marks_against_themselves(shared, tmp_path):
    import json

    lines = [json.loads(line) for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()]
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("".join(json.dumps({"text": line["answer"]}) + "\n" for line in lines))
    assert evaluate_files("gsm8k", predictions, shared / "data/gsm8k/test.jsonl")["accuracy"] == 1.0

import json

import pytest

from colm_jax.cli import parser as cli
from colm_jax.errors import UserError
from colm_jax.evaluation.files import evaluate_files, read_records
from colm_jax.evaluation.tasks import TASKS, score_answers


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_gsm8k_reads_what_stands_behind_the_marks():
    assert TASKS["gsm8k"].grade("I think 18.0", "9 * 2 = <<9*2=18>>18\n#### 18")
    assert TASKS["gsm8k"].grade("#### -10", "so it fell\n#### -10")
    assert TASKS["gsm8k"].grade("that makes $109,200,000.", "#### 109,200,000")
    assert not TASKS["gsm8k"].grade("17", "#### 18")
    assert not TASKS["gsm8k"].grade("10", "#### -10")
    assert not TASKS["gsm8k"].grade("", "#### 18")


def test_the_help_names_every_task():
    assert list(TASKS) == cli._TASKS.split(", ")


def test_files_pair_by_id_or_by_order(tmp_path):
    predictions = write(tmp_path / "p.jsonl", {"id": 1, "text": "7", "sources": [1, 0]}, {"id": 2, "text": "9"})
    references = write(tmp_path / "r.jsonl", {"id": "2", "answer": "9"}, {"id": 1, "answer": "8"}, {"id": 3})
    result = evaluate_files("number", predictions, references)
    assert result["by_answer"] == [False, True]
    assert result["deferral_rate"] == 0.25
    assert result["references_without_answer"] == 1
    low, high = result["interval"]
    assert 0 < low < 0.5 < high < 1
    write(references, {"answer": "7"})
    with pytest.raises(UserError, match=r"answers 2 prompts and .* has 1 references"):
        evaluate_files("number", predictions, references)
    write(references, {"id": 1, "answer": "7"}, {"id": 1, "answer": "8"})
    with pytest.raises(UserError, match=r"r\.jsonl:2: id '1' stands twice, also at .*r\.jsonl:1"):
        evaluate_files("number", predictions, references)
    with pytest.raises(UserError, match="'bleu'"):
        evaluate_files("bleu", predictions, references)


def test_against_another_file_the_order_does_not_matter(tmp_path):
    references = write(tmp_path / "r.jsonl", *({"id": i, "answer": str(i)} for i in range(40)))
    ours = write(tmp_path / "a.jsonl", *({"id": i, "text": str(i if i < 30 else -1)} for i in range(40)))
    theirs = write(tmp_path / "b.jsonl", *({"id": i, "text": str(i if i < 10 else -1)} for i in reversed(range(40))))
    found = evaluate_files("number", ours, references, theirs)["against"]
    assert (found["score"], found["difference"], found["better"], found["worse"]) == (0.25, 0.5, 20, 0)
    assert 0 < found["low"] < 0.5 < found["high"]
    assert found["p"] < 0.001
    same = evaluate_files("number", ours, references, ours)["against"]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)
    write(theirs, {"id": 0, "text": "0"})
    with pytest.raises(UserError, match="answers other references"):
        evaluate_files("number", ours, references, theirs)


def test_official_files_of_references(tmp_path):
    predictions = write(tmp_path / "p.jsonl", {"id": "21", "text": "Answer: no"}, {"id": "22", "text": "maybe"})
    references = tmp_path / "r.json"
    for content in ({"22": "maybe", "21": "yes"}, {"22": {"final_decision": "maybe"}, "21": {"final_decision": "yes"}}):
        references.write_text(json.dumps(content))
        result = evaluate_files("pubmedqa", predictions, references)
        assert result["by_answer"] == [False, True]
        assert result["macro_f1"] == pytest.approx(1 / 3)
    references.write_text("[]")
    with pytest.raises(UserError, match="expected a list of objects"):
        read_records(references)
    references.write_text("{")
    with pytest.raises(UserError, match=r"r\.json: not valid JSON"):
        read_records(references)


def test_references_score_full_marks_against_themselves(shared, tmp_path):
    lines = [json.loads(line) for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()]
    predictions = write(tmp_path / "p.jsonl", *({"text": line["answer"]} for line in lines))
    assert evaluate_files("gsm8k", predictions, shared / "data/gsm8k/test.jsonl")["accuracy"] == 1.0
    lines = [json.loads(line) for line in (shared / "data/math/MATH500.jsonl").read_text().splitlines()]
    write(predictions, *({"text": line["solution"]} for line in lines))
    assert evaluate_files("math", predictions, shared / "data/math/MATH500.jsonl")["accuracy"] == 1.0
    truth = json.loads((shared / "data/pubmedqa/test_ground_truth.json").read_text())
    write(predictions, *({"id": key, "text": f"The answer is {value}."} for key, value in truth.items()))
    for name, left in (("test_ground_truth", 0), ("ori_pqal", 500)):
        result = evaluate_files("pubmedqa", predictions, shared / f"data/pubmedqa/{name}.json")
        assert (result["accuracy"], result["macro_f1"], result["references_without_answer"]) == (1.0, 1.0, left)


def test_an_answer_of_no_token_counts_as_not_deferred():
    assert score_answers("exact", ["", "a"], ["", "a"], [[], [1]], [0, 1]).deferral_rate == 0.5

import json

import pytest

from colm_jax.errors import UserError
from colm_jax.evaluation.files import evaluate_files, read_records
from colm_jax.evaluation.tasks import TASKS, reference_of, score_answers
from colm_jax.settings import run as settings


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_gsm8k_reference_is_the_number_after_the_mark():
    assert TASKS["gsm8k"].grade("I think 18.0", "9 * 2 = <<9*2=18>>18\n#### 18")
    assert TASKS["gsm8k"].grade("#### -10", "so it fell\n#### -10")
    assert TASKS["gsm8k"].grade("that makes $109,200,000.", "#### 109,200,000")
    assert not TASKS["gsm8k"].grade("17", "#### 18")
    assert not TASKS["gsm8k"].grade("10", "#### -10")
    assert not TASKS["gsm8k"].grade("", "#### 18")


def test_help_lists_every_task():
    assert tuple(TASKS) == settings.TASKS


def test_predictions_match_references_by_id_or_order(tmp_path):
    predictions = write(tmp_path / "p.jsonl", {"id": 1, "text": "7", "sources": [1, 0]}, {"id": 2, "text": "9"})
    references = write(tmp_path / "r.jsonl", {"id": "2", "answer": "9"}, {"id": 1, "answer": "8"}, {"id": 3})
    result = evaluate_files("number", predictions, references)
    assert result["by_answer"] == [False, True]
    assert result["deferral_rate"] == 0.25
    assert result["references_without_answer"] == 1
    low, high = result["interval"]
    assert 0 < low < 0.5 < high < 1
    write(references, {"answer": "7"})
    with pytest.raises(UserError, match=r"answers 2 prompts, but .* has 1 references"):
        evaluate_files("number", predictions, references)
    write(references, {"id": 1, "answer": "7"}, {"id": 1, "answer": "8"})
    with pytest.raises(UserError, match=r"r\.jsonl:2: duplicate id '1', also at .*r\.jsonl:1"):
        evaluate_files("number", predictions, references)
    with pytest.raises(UserError, match="'bleu'"):
        evaluate_files("bleu", predictions, references)


def test_against_matches_in_any_order(tmp_path):
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
    with pytest.raises(UserError, match="but answers others"):
        evaluate_files("number", ours, references, theirs)


def test_official_reference_files(tmp_path):
    predictions = write(tmp_path / "p.jsonl", {"id": "21", "text": "Answer: no"}, {"id": "22", "text": "maybe"})
    references = tmp_path / "r.json"
    for content in ({"22": "maybe", "21": "yes"}, {"22": {"final_decision": "maybe"}, "21": {"final_decision": "yes"}}):
        references.write_text(json.dumps(content))
        result = evaluate_files("pubmedqa", predictions, references)
        assert result["by_answer"] == [False, True]
        assert result["macro_f1"] == pytest.approx(1 / 3)
    references.write_text("[]")
    with pytest.raises(UserError, match="must be a list of objects"):
        read_records(references)
    references.write_text("{")
    with pytest.raises(UserError, match=r"r\.json: not valid JSON"):
        read_records(references)


def test_references_are_correct_answers_to_themselves(shared, tmp_path):
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


def test_empty_answer_counts_as_not_deferred():
    assert score_answers("exact", ["", "a"], ["", "a"], [[], [1]], [0, 1]).deferral_rate == 0.5


@pytest.mark.parametrize(
    "value, text",
    [
        ("#### 72", "#### 72"),
        (72, "72"),
        (1e-05, "0.00001"),
        (1.5e16, "15000000000000000"),
        (["72"], "72"),
        (2.0, "2.0"),
    ],
)
def test_reference_is_text_or_a_number(value, text):
    assert reference_of({"answer": value}, "line") == text


def test_null_reference_counts_as_missing():
    assert reference_of({"answer": None, "completion": "7"}, "line") == "7"
    assert TASKS["math"].reference({"answer": None, "solution": r"\boxed{7}"}, "line") == r"\boxed{7}"
    assert TASKS["pubmedqa"].reference({"final_decision": None, "answer": "Yes"}, "line") == "yes"


@pytest.mark.parametrize(
    "task, record, said",
    [
        ("exact", {"answer": None}, "needs a non-null 'answer', 'completion' or 'messages'"),
        ("exact", {"messages": []}, "needs a non-null 'answer'"),
        ("exact", {"messages": "x"}, "needs a non-null 'answer'"),
        ("exact", {"messages": [{"role": "assistant", "content": None}]}, "'content' must be one right answer"),
        ("number", {"answer": ["3", "5"]}, r"'answer' must be one right answer, as text or a number, got \['3', '5'\]"),
        ("number", {"answer": True}, "must be one right answer"),
        ("gsm8k", {"answer": float("nan")}, "must be one right answer"),
        ("gsm8k", {"answer": {"value": 3}}, "must be one right answer"),
        ("gsm8k", {"answer": "none"}, "must contain a number, got 'none'"),
        ("math", {"answer": " "}, "must be an answer"),
        ("math", {"solution": "first\nthen"}, "must be an answer"),
        ("pubmedqa", {"final_decision": ["perhaps"]}, "must contain yes, no or maybe"),
        ("pubmedqa", {"final_decision": 1}, "must contain yes, no or maybe"),
    ],
)
def test_reference_that_no_answer_can_match_is_an_error(task, record, said):
    with pytest.raises(UserError, match=f"r.jsonl:3: .*{said}"):
        TASKS[task].reference(record, "r.jsonl:3")


@pytest.mark.parametrize(
    "line, said",
    [
        ({"text": None}, "a prediction needs 'text' as a string, got None"),
        ({"text": ["7"]}, "a prediction needs 'text'"),
        ({"text": "7", "sources": [0, None]}, "'sources' must be a list of whole numbers"),
        ({"text": "7", "sources": "0"}, "'sources' must be"),
        ({"text": "7", "expert_calls": "3"}, "'expert_calls' must be a whole number"),
        ({"text": "7", "sample": 0.5}, "'sample' must be a whole number"),
        ({"text": "\ud83d"}, "half of a surrogate pair"),
    ],
)
def test_invalid_prediction_is_an_error_that_names_it(tmp_path, line, said):
    predictions = write(tmp_path / "p.jsonl", {"text": "1"}, line)
    references = write(tmp_path / "r.jsonl", {"answer": "1"}, {"answer": "7"})
    with pytest.raises(UserError, match=rf"p\.jsonl:2: .*{said}"):
        evaluate_files("number", predictions, references)


def test_null_fields_count_as_missing(tmp_path):
    predictions = write(tmp_path / "p.jsonl", {"id": None, "text": "7", "sources": None, "expert_calls": None})
    result = evaluate_files("number", predictions, write(tmp_path / "r.jsonl", {"id": 1, "answer": 7}))
    assert (result["accuracy"], result["deferral_rate"], result["expert_calls"]) == (1, 0, 0)


def test_too_deeply_nested_json_is_an_error(tmp_path):
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"r\.json: .*nested too deep"):
        read_records(tmp_path / "r.json")


SAMPLES = {"a": ["7", "8", "7", "7"], "b": ["9", "1", "1", "none"], "c": ["4", "5", "6", "4"]}  # correct: 7, 9, 5


@pytest.mark.parametrize("order", ["prompts", "samples"])
@pytest.mark.parametrize("ids", [True, False])
def test_samples_of_a_prompt_share_its_reference(tmp_path, order, ids):
    # As `colm generate --samples 4` writes them: sample 0 has no key.
    lines = [
        {"id": name, "text": text, **({"sample": i} if i else {})}
        for name, texts in SAMPLES.items()
        for i, text in enumerate(texts)
    ]
    if order == "samples":
        lines.sort(key=lambda line: line.get("sample", 0))
    predictions = write(tmp_path / "p.jsonl", *lines)
    gold = [{"id": name, "answer": n} for name, n in zip(SAMPLES, (7, 9, 5))]
    references = write(tmp_path / "r.jsonl", *(gold if ids else [{"answer": line["answer"]} for line in gold]))
    result = evaluate_files("number", predictions, references, predictions)
    assert result["accuracy"] == pytest.approx((3 / 4 + 1 / 4 + 1 / 4) / 3)
    assert result["samples"] == {"prompts": 3, "each": 4, "best": 1.0, "majority": pytest.approx(1 / 3)}
    assert (result["answers"], result["correct"]) == (12, 5)
    assert result["by_answer"] == [line["text"] == {"a": "7", "b": "9", "c": "5"}[line["id"]] for line in lines]
    assert result["against"]["difference"] == 0
    low, high = result["interval"]
    assert 0.25 <= low < result["accuracy"] < high <= 0.75  # interval of the prompts' means, which are not 0 or 1


def test_samples_without_ids_restart_with_each_prompt(tmp_path):
    lines = [{"text": "7"}, {"text": "8", "sample": 1}, {"text": "1"}, {"text": "9", "sample": 1}]
    references = write(tmp_path / "r.jsonl", {"answer": 7}, {"answer": 9})
    result = evaluate_files("number", write(tmp_path / "p.jsonl", *lines), references)
    assert (result["accuracy"], result["samples"]["best"]) == (0.5, 1.0)
    assert result["by_answer"] == [True, False, False, True]


def test_majority_counts_equivalent_answers_together(tmp_path):
    texts = [r"\boxed{3}", r"\boxed{\frac12}", r"the answer is 0.5", "nothing\nsaid"]
    lines = [{"id": 1, "text": text, "sample": i} for i, text in enumerate(texts)]
    references = write(tmp_path / "r.jsonl", {"id": 1, "answer": ".5"})
    result = evaluate_files("math", write(tmp_path / "p.jsonl", *lines), references)
    assert (result["accuracy"], result["samples"]["majority"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    "lines, said",
    [
        ([{"id": 1}, {"id": 1}], r"p\.jsonl:2: duplicate sample 0 of id '1', also at .*p\.jsonl:1"),
        (
            [{"id": 1}, {"id": 1, "sample": 1}, {"id": 2}],
            r"p\.jsonl:3: its prompt has 1 sample\(s\), the first prompt has 2",
        ),
        ([{"id": 3}], r"p\.jsonl:1: no reference has id '3' in .*r\.jsonl; generate from prompts with its ids"),
    ],
)
def test_invalid_samples_are_an_error(tmp_path, lines, said):
    predictions = write(tmp_path / "p.jsonl", *({"text": "7", **line} for line in lines))
    references = write(tmp_path / "r.jsonl", {"id": 1, "answer": 7}, {"id": 2, "answer": 7})
    with pytest.raises(UserError, match=said):
        evaluate_files("number", predictions, references)

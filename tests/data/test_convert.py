"""Conversion of official files to data lines that the tasks read as references."""

import json

import pytest

from colm_jax.cli.main import main
from colm_jax.data.convert import FORMATS, convert
from colm_jax.errors import UserError
from colm_jax.evaluation.files import read_records
from colm_jax.evaluation.tasks import find_task, score_answers

BIOASQ = [
    {"id": "a", "type": "yesno", "body": "Is it?", "exact_answer": "yes", "snippets": [{"text": "It is.\nSo."}]},
    {"id": "b", "type": "factoid", "body": "Which?", "exact_answer": [["X", "x-1"]]},
    {"id": "c", "type": "list", "body": "Which all?", "exact_answer": [["A", "a"], ["B"]]},
    {"id": "d", "type": "summary", "body": "What?", "ideal_answer": ["It is so.", "So it is."]},
]
FACTOID = {"type": "factoid", "body": "Which?", "exact_answer": ["x"]}


@pytest.mark.parametrize(
    ("form", "file"),
    [("gsm8k", "gsm8k/test.jsonl"), ("math", "math/MATH500.jsonl"), ("pubmedqa", "pubmedqa/ori_pqal.json")],
)
def test_completions_are_graded_correct_by_their_task(shared, form, file):
    lines = convert(read_records(shared / "data" / file), form, "0:60")
    assert len(lines) == 60
    task = find_task(form)
    references = [task.reference(line, "line") for line in lines]
    texts = [line["completion"] for line in lines]
    assert score_answers(form, texts, references, [[]] * 60, [0] * 60).accuracy == 1.0
    assert all(line["prompt"].endswith("Answer:") and line["completion"].startswith(" ") for line in lines)
    assert len({line["id"] for line in lines}) == 60


def test_bioasq_questions_of_each_type_have_instruction_and_answer():
    lines = convert([("q", record) for record in BIOASQ], "bioasq")
    assert [line["completion"] for line in lines] == [" yes", " X", " A\nB", " It is so."]
    assert lines[0]["prompt"].startswith("It is. So.\n\nQuestion: Is it? Answer yes or no.")
    references = [find_task("bioasq").reference(line, "line") for line in lines]
    score = score_answers("bioasq", [line["completion"] for line in lines], references, [[]] * 4, [0] * 4)
    assert score.grades == (1.0, 1.0, 1.0, 1.0)


def test_null_fields_count_as_missing():
    (line,) = convert([("q", FACTOID | {"id": None, "snippets": None})], "bioasq")
    assert (line["id"], line["prompt"][:9]) == ("0", "Question:")
    (line,) = convert([("q", {"problem": "p", "solution": "s", "answer": None})], "math")
    assert "answer" not in line


def test_lone_surrogate_is_an_error_that_names_the_record(tmp_path, capsys):
    (tmp_path / "x.json").write_text(json.dumps([{"question": "q \ud800", "answer": "#### 1"}]))
    command = ["convert", "--format", "gsm8k", "--data", str(tmp_path / "x.json"), "--out", str(tmp_path / "out.jsonl")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "x.json" in said and "half of a surrogate pair" in said


def test_rows_are_a_slice_and_keep_their_ids(tmp_path, capsys):
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"#### {i}"}) + "\n" for i in range(5)))
    out = tmp_path / "data/out.jsonl"
    assert main(["convert", "--format", "gsm8k", "--data", str(source), "--rows", "3:", "--out", str(out)]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["3", "4"]
    assert json.loads(capsys.readouterr().out) == {"lines": 2, "written": str(out)}


@pytest.mark.parametrize(
    ("form", "record", "rows", "message"),
    [
        ("gsm8k", {"question": "q"}, None, "file:1: needs 'answer' as text, got None"),
        ("math", {"problem": " ", "solution": "s"}, None, "file:1: needs 'problem' as text"),
        ("pubmedqa", {"CONTEXTS": "c"}, None, "needs 'CONTEXTS' as a list"),
        ("bioasq", {"type": "essay"}, None, "'type' must be one of"),
        ("bioasq", {"type": "yesno", "body": "b"}, None, "needs 'exact_answer'"),
        ("gsm8k", {"question": "q", "answer": 72}, None, "needs 'answer' as text, got 72"),
        ("gsm8k", {"question": ["q"], "answer": "72"}, None, "needs 'question' as text"),
        ("math", {"problem": "p", "solution": "s", "answer": ["3"]}, None, "needs 'answer' as text"),
        ("math", {"problem": "p", "solution": "s", "answer": float("inf")}, None, "needs 'answer' as text"),
        ("pubmedqa", {"CONTEXTS": ["c", None]}, None, "needs 'CONTEXTS' as a list"),
        ("pubmedqa", {"CONTEXTS": [], "QUESTION": "q", "final_decision": "perhaps"}, None, "must be yes, no or maybe"),
        ("bioasq", FACTOID | {"type": None}, None, "needs 'type' as text"),
        ("bioasq", FACTOID | {"body": None}, None, "needs 'body' as text"),
        ("bioasq", FACTOID | {"snippets": "x"}, None, "'snippets' must be a list"),
        ("bioasq", FACTOID | {"snippets": [{"text": "t"}, {"text": None}]}, None, "snippet 2 needs 'text'"),
        ("bioasq", FACTOID | {"snippets": ["x"]}, None, "snippet 1 needs 'text'"),
        ("bioasq", FACTOID | {"exact_answer": [[], ["x"]]}, None, "none of them empty"),
        ("bioasq", FACTOID | {"exact_answer": [" "]}, None, "none of them empty"),
        ("bioasq", FACTOID | {"exact_answer": {"x": 1}}, None, "none of them empty"),
        ("bioasq", FACTOID | {"exact_answer": True}, None, "none of them empty"),
        ("gsm8k", {"question": "q", "answer": "a"}, "1-2", "rows 1-2: must be FIRST:LAST"),
        ("gsm8k", {"question": "q", "answer": "a"}, "1:", "rows 1:: selects none of the 1 records"),
    ],
)
def test_missing_field_is_an_error_that_names_it(form, record, rows, message):
    with pytest.raises(UserError, match=message):
        convert([("file:1", record)], form, rows)


@pytest.mark.parametrize(
    ("form", "name", "content", "said"),
    [
        (
            "gsm8k",
            "x.jsonl",
            '{"question": "q", "answer": "\\udc00 #### 1"}',
            "x.jsonl:1: 'answer' holds '\\udc00', half",
        ),
        ("pubmedqa", "x.json", '{"7": {"QUESTION": "\\ud83d"}}', "x.json: '7' holds '\\ud83d', half"),
        ("bioasq", "x.json", '{"questions":\n [NaN]}', "x.json: not valid JSON: NaN is no JSON number"),
        (
            "bioasq",
            "x.json",
            '{"questions":\n [1}',
            "x.json: not valid JSON: Expecting ',' delimiter (line 2, column 4)",
        ),
    ],
)
def test_invalid_official_file_is_an_error(form, name, content, said, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    files = ["--data", str(tmp_path / name), "--out", str(tmp_path / "out.jsonl")]
    assert main(["convert", "--format", form, *files]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_help_lists_every_format(capsys):
    assert main(["convert", "--format", "none", "--data", "x", "--out", "y"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in FORMATS)

import json

import pytest

from colm_jax.cli.main import main


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_mt_bench_has_two_turns(shared, tmp_path, capsys):
    questions = str(shared / "data/mtbench/question.jsonl")
    asked = read(shared / "data/mtbench/question.jsonl")
    prompts, answers, out = tmp_path / "p.jsonl", [], tmp_path / "model_answer" / "team.jsonl"
    for turn in range(2):
        given = [flag for path in answers for flag in ("--predictions", path)]
        options = ["--judge", "mt_bench", "--questions", questions]
        assert main(["judge", "prompts", *options, *given, "--out", str(prompts)]) == 0
        assert json.loads(capsys.readouterr().out) == {"prompts": 80, "turn": turn + 1}
        lines = read(prompts)
        assert [line["messages"][-1]["content"] for line in lines] == [question["turns"][turn] for question in asked]
        texts = [{"id": line["id"], "text": f"answer {turn + 1} to {line['id']}"} for line in lines]
        answers.append(write(tmp_path / f"a{turn}.jsonl", *reversed(texts)))
    assert [message["role"] for message in lines[0]["messages"]] == ["user", "assistant", "user"]
    assert lines[0]["messages"][1]["content"] == "answer 1 to 81"
    given = [flag for path in answers for flag in ("--predictions", path)]
    assert main(["judge", "answers", *options, *given, "--name", "team", "--out", str(out)]) == 0
    written = read(out)
    assert [line["question_id"] for line in written] == [question["question_id"] for question in asked]
    assert list(written[0]) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert written[0]["choices"] == [{"index": 0, "turns": ["answer 1 to 81", "answer 2 to 81"]}]
    assert len({line["answer_id"] for line in written}) == 80
    assert isinstance(written[0]["tstamp"], float)
    capsys.readouterr()
    assert main(["judge", "answers", *options, *given[:2], "--name", "team", "--out", str(out)]) == 2
    assert "1 of 2 turns are answered" in capsys.readouterr().err
    assert main(["judge", "prompts", *options, *given, "--out", str(out)]) == 2
    assert "all are answered" in capsys.readouterr().err


def test_alpaca_eval_prompts_and_answers(tmp_path, capsys):
    questions, out = tmp_path / "q.json", tmp_path / "outputs.json"
    records = [{"instruction": "Say a", "output": "x", "generator": "text_davinci_003", "dataset": "koala"}]
    questions.write_text(json.dumps([*records, {"instruction": "Say b"}]))
    options = ["--judge", "alpaca_eval", "--questions", str(questions)]
    assert main(["judge", "prompts", *options, "--out", str(tmp_path / "p.jsonl")]) == 0
    assert read(tmp_path / "p.jsonl")[1] == {"id": "1", "messages": [{"role": "user", "content": "Say b"}]}
    answers = write(tmp_path / "a.jsonl", {"id": "0", "text": "a"}, {"id": "1", "text": "b"})
    assert main(["judge", "answers", *options, "--predictions", answers, "--name", "T", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == [
        {"instruction": "Say a", "output": "a", "generator": "T", "dataset": "koala"},
        {"instruction": "Say b", "output": "b", "generator": "T", "dataset": "alpaca_eval"},
    ]
    write(tmp_path / "a.jsonl", {"id": "0", "text": "a"})
    capsys.readouterr()
    assert main(["judge", "answers", *options, "--predictions", answers, "--name", "T", "--out", str(out)]) == 2
    assert "has no answer to question 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "judge, line, said",
    [
        ("mt_bench", {"turns": ["a"]}, "needs 'question_id', got None"),
        ("mt_bench", {"question_id": 1, "turns": []}, "needs 'turns' as a list of texts, got []"),
        ("mt_bench", {"question_id": 1, "turns": "Why?"}, "needs 'turns' as a list of texts, got 'Why?'"),
        ("mt_bench", {"question_id": 1, "turns": ["a", None]}, "needs 'turns'"),
        ("mt_bench", {"question_id": [1], "turns": ["a"]}, "needs 'question_id', got [1]"),
        ("alpaca_eval", {}, "needs 'instruction' as text, got None"),
        ("alpaca_eval", {"instruction": ["a"]}, "needs 'instruction'"),
    ],
)
def test_invalid_question_file_is_an_error_that_names_it(tmp_path, capsys, judge, line, said):
    questions = write(tmp_path / "q.jsonl", line)
    options = ["--judge", judge, "--questions", questions, "--out", str(tmp_path / "p.jsonl")]
    assert main(["judge", "prompts", *options]) == 2
    assert said in capsys.readouterr().err


def test_answer_with_a_null_id_is_an_error(tmp_path, capsys):
    questions = write(tmp_path / "q.jsonl", {"question_id": 81, "turns": ["Why?"]})
    answers = write(tmp_path / "a.jsonl", {"id": None, "text": "so"})
    options = ["--judge", "mt_bench", "--questions", questions, "--predictions", answers]
    assert main(["judge", "answers", *options, "--name", "T", "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "a.jsonl:1: an answer needs the 'id' of its prompt" in capsys.readouterr().err

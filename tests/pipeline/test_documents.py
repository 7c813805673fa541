"""The measurement of docs/documents.md: its questions, training texts and figures."""

import pytest

from colm_jax.checkpoints.outline import outline_team
from docs.tables.document_facts import KINDS, OTHERS, data_lines, questions
from docs.tables.documents import Answers, Way, exchange
from tests.experts.remote.conftest import WORDS
from tests.tiny import write_model


def test_questions_are_deterministic_and_their_values_stand_in_one_version_alone():
    asked = questions(72)
    assert asked == questions(72) and asked[:60] == questions(60)
    assert {q.kind for q in asked} == set(KINDS) and not set(KINDS) & set(OTHERS)
    for q in asked:
        for version in (0, 1):
            assert q.said(q.answers[version]) == q.values[version]
            assert q.documents[version].count("\n") == 6
            line = next(x for x in q.documents[version].split("\n")[1:] if q.said(x) == q.values[version])
            assert (
                q.said(q.documents[1 - version].split("\n")[q.documents[version].split("\n").index(line)])
                == (q.values[1 - version])
            )
        assert q.values[0] != q.values[1] and q.said(q.prompt.rpartition("Question")[2]) is None
        assert q.said("I do not know.") is None


def test_training_texts_are_about_other_documents_and_the_base_sees_none():
    asked = {q.text for q in questions(200)}
    for line in data_lines(24, seed=1):
        assert line["expert_prompt"].endswith(line["prompt"]) and len(line["expert_prompt"]) > len(line["prompt"])
        assert not any(text in line["expert_prompt"] for text in asked)
        value = line["completion"].split()[-1].strip(".")
        assert value in line["expert_prompt"]


def test_a_row_says_who_wrote_the_value_and_what_was_read(tmp_path):
    """On answers as they could have been: the value by the expert, by the base, by both, and wrong."""
    base = write_model(tmp_path / "base", words=WORDS, vocab_size=len(WORDS), context=1024)
    outline = outline_team(base, [base])
    asked = [q for q in questions(60) if q.kind == "prices"][:4]
    way = Way("team", "defer", expert_reads=0)
    answers = Answers(tmp_path, outline, lambda: None, asked, {})
    answers.found["team"] = lines = []
    for number, q in enumerate(asked):
        value = q.values[0] if number < 3 else q.values[1]
        text = f" It costs {value} euros."
        first, last = text.index(value), text.index(value) + len(value)
        own = [range(first, last), range(0), range(first, last - 1), range(first, last)][number]
        lines.append(
            {
                "prompt": q.prompt,
                "text": text,
                "tokens": outline.tokenizer.encode_plain(text),
                "sources": [int(i in own) for i in range(len(text))],
            }
        )
    row = answers.row(way)
    assert row.right == [True, True, True, False] and row.by_expert == pytest.approx(1 / 3)
    sizes = [len(line["text"]) for line in lines]
    prompts = [len(outline.tokenizer.encode_prompt(q.prompt)) for q in asked]
    views = [len(outline.tokenizer.encode_prompt(q.with_document(0))) for q in asked]
    until = [lines[i]["sources"][::-1].index(1) for i in (0, 2, 3)]
    read = sum(views[i] + sizes[i] - after for i, after in zip((0, 2, 3), until))
    assert row.read.tolist() == [(sum(prompts) + sum(sizes)) / 4, read / 4]
    assert row.written.sum() == sum(sizes) / 4
    assert row.cells()[1].startswith("0.75 (") and row.cells()[3] == "33%"
    assert exchange(lines, lines, asked).startswith("Exchanging the document changed 0 of 4 answers; 0 follow")

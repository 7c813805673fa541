"""MT-Bench and AlpacaEval: convert questions to prompts for `colm generate`, and answers to the judges' input files.

Other programs run the judges, which are large models: FastChat reads one file of answers per model
(model_answer/NAME.jsonl), alpaca_eval a JSON list of outputs. MT-Bench has two turns; the second prompt contains the
first answer.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colm_jax.errors import UserError
from colm_jax.evaluation.files import Records, pair, read_predictions, read_records

JUDGES = ("mt_bench", "alpaca_eval")


def read_questions(judge: str, path: str | Path) -> Records:
    """Read the judge's question file: MT-Bench's question.jsonl, or alpaca_eval's JSON of instructions.

    Raises:
      UserError: no such judge, or a line that is not one of its questions.
    """
    if judge not in JUDGES:
        raise UserError(f"judge must be one of {', '.join(JUDGES)}, got {judge!r}")
    records = read_records(path)
    for where, record in records:
        if judge == "alpaca_eval":
            if not isinstance(record.get("instruction"), str):
                got = record.get("instruction")
                raise UserError(f"{where}: a question of alpaca_eval needs 'instruction' as text, got {got!r:.60}")
            continue
        turns = record.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise UserError(f"{where}: a question of mt_bench needs 'turns' as a list of texts, got {turns!r:.60}")
        if not isinstance(record.get("question_id"), int | str):
            raise UserError(
                f"{where}: a question of mt_bench needs 'question_id', got {record.get('question_id')!r:.60}"
            )
    if judge == "alpaca_eval":
        return [(where, {**record, "id": str(i)}) for i, (where, record) in enumerate(records)]
    return [(where, {**record, "id": str(record["question_id"])}) for where, record in records]


def _turns(judge: str, question: dict[str, Any]) -> list[str]:
    return [question["instruction"]] if judge == "alpaca_eval" else list(question["turns"])


def _answers(questions: Records, path: str | Path, questions_path: str | Path) -> list[str]:
    """Read the answer to every question, in the questions' order."""
    predicted = read_predictions(path, "exact")
    if missing := [where for where, record in predicted if record.get("id") is None]:
        raise UserError(f"{missing[0]}: an answer needs the 'id' of its prompt")
    paired = pair(predicted, questions, path, questions_path)
    by_id = {question["id"]: record["text"] for (_, question), (_, record) in zip(paired, predicted)}
    for where, question in questions:
        if question["id"] not in by_id:
            raise UserError(f"{where}: {path} has no answer to question {question['id']}")
    return [by_id[question["id"]] for _, question in questions]


def _conversations(
    judge: str, questions: str | Path, answers: Sequence[str | Path]
) -> list[tuple[str, dict[str, Any], list[str]]]:
    """Return each question with its place and its answers so far."""
    asked = read_questions(judge, questions)
    answered: list[list[str]] = [[] for _ in asked]
    for path in answers:
        more = [i for i, (_, question) in enumerate(asked) if len(_turns(judge, question)) > len(answered[i])]
        if not more:
            raise UserError(f"{path}: every turn of {questions} is already answered")
        for i, text in zip(more, _answers([asked[i] for i in more], path, questions)):
            answered[i].append(text)
    return [(where, question, texts) for (where, question), texts in zip(asked, answered)]


def next_prompts(judge: str, questions: str | Path, answers: Sequence[str | Path] = ()) -> list[dict[str, Any]]:
    """Return the prompt lines of the turn after the given answers, for the questions that have one.

    Args:
      judge: "mt_bench" or "alpaca_eval".
      questions: the judge's question file.
      answers: generation lines of each turn so far, in order.

    Raises:
      UserError: files that do not pair, or no question with another turn.
    """
    lines = []
    for _, question, texts in _conversations(judge, questions, answers):
        turns = _turns(judge, question)
        if len(texts) < len(turns):
            messages = [{"role": "user", "content": turns[0]}]
            for text, turn in zip(texts, turns[1:]):
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": turn}]
            lines.append({"id": question["id"], "messages": messages})
    if not lines:
        raise UserError(f"{questions}: no question has more than {len(answers)} turn(s); all are answered")
    return lines


def judged_file(judge: str, questions: str | Path, answers: Sequence[str | Path], name: str, time: float) -> str:
    """Return the content of the judge's input file.

    Args:
      judge: "mt_bench" or "alpaca_eval".
      questions: the judge's question file.
      answers: generation lines of each turn, in order.
      name: the team's name in the judge's tables.
      time: seconds since 1970, MT-Bench's "tstamp".

    Raises:
      UserError: files that do not pair, or a turn without answers.
    """
    conversations = _conversations(judge, questions, answers)
    for where, question, texts in conversations:
        if len(texts) < len(turns := _turns(judge, question)):
            raise UserError(
                f"{where}: {len(texts)} of {len(turns)} turns are answered; write the next turn's prompts with "
                "colm judge prompts, answer them, and pass the answers of all turns"
            )
    if judge == "alpaca_eval":
        outputs = [
            {
                "instruction": question["instruction"],
                "output": texts[0],
                "generator": name,
                "dataset": question.get("dataset") or "alpaca_eval",
            }
            for _, question, texts in conversations
        ]
        return json.dumps(outputs, indent=2, ensure_ascii=False) + "\n"
    lines = [
        {
            "question_id": question["question_id"],
            "answer_id": hashlib.sha256(json.dumps([name, question["question_id"], texts]).encode()).hexdigest()[:22],
            "model_id": name,
            "choices": [{"index": 0, "turns": texts}],
            "tstamp": time,
        }
        for _, question, texts in conversations
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

"""MT-Bench and AlpacaEval: questions as prompts for `colm generate`, and answers as the files that their judges read.

The judges are large models behind other programs: FastChat reads a file of answers for each model
(model_answer/NAME.jsonl), alpaca_eval a JSON list of outputs. MT-Bench asks twice, and its second prompt holds the
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
    """The judge's own question file: MT-Bench's question.jsonl, or alpaca_eval's JSON of instructions.

    Raises:
      UserError: no such judge, or a line that is no question of it.
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
    """The answer to every question, in the questions' order."""
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
    """Each question with its place and its answers so far."""
    asked = read_questions(judge, questions)
    said: list[list[str]] = [[] for _ in asked]
    for path in answers:
        more = [i for i, (_, question) in enumerate(asked) if len(_turns(judge, question)) > len(said[i])]
        if not more:
            raise UserError(f"{path}: every turn of {questions} is answered already")
        for i, text in zip(more, _answers([asked[i] for i in more], path, questions)):
            said[i].append(text)
    return [(where, question, texts) for (where, question), texts in zip(asked, said)]


def next_prompts(judge: str, questions: str | Path, answers: Sequence[str | Path] = ()) -> list[dict[str, Any]]:
    """Prompt lines of the turn that follows the given answers; questions that ask no more are left out.

    Args:
      judge: "mt_bench" or "alpaca_eval".
      questions: its question file.
      answers: generation lines of each turn so far, in order.

    Raises:
      UserError: files that do not pair, or no question with so many turns.
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
    """The content of the file that the judge reads.

    Args:
      judge: "mt_bench" or "alpaca_eval".
      questions: its question file.
      answers: generation lines of each turn, in order.
      name: of the team, in the judge's tables.
      time: seconds since 1970, MT-Bench's "tstamp".

    Raises:
      UserError: files that do not pair, or a turn that is not answered.
    """
    talks = _conversations(judge, questions, answers)
    for where, question, texts in talks:
        if len(texts) < len(turns := _turns(judge, question)):
            raise UserError(
                f"{where}: asks {len(turns)} times, {len(texts)} answered; write the next turn's prompts with "
                "colm judge prompts, answer them, and give both files"
            )
    if judge == "alpaca_eval":
        outputs = [
            {
                "instruction": question["instruction"],
                "output": texts[0],
                "generator": name,
                "dataset": question.get("dataset") or "alpaca_eval",
            }
            for _, question, texts in talks
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
        for _, question, texts in talks
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

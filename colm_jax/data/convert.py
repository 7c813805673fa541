"""`colm convert`: the official files of GSM8K, MATH, PubMedQA and BioASQ as data lines, which tasks can grade too.

A line is {"id", "prompt", "completion"} and what the task's references need. The wording of the GSM8K prompt is the
original Co-LLM's (clinicalml/co-llm, scripts/train/gsm8k/create_train_data.py); the others follow it.
"""

import re
from collections.abc import Callable
from typing import Any

from colm_jax.errors import UserError

Record = dict[str, Any]
_SOLVE = "Please solve the following math problem with detailed steps.\n\nProblem: "


def _text(record: Record, key: str, where: str) -> str:
    """A field that has to be there, and to be text."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: needs {key!r} as text, got {value!r:.60}")
    return value.strip()


def _texts(record: Record, key: str, where: str) -> list[str]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: needs {key!r} as a list of texts, got {value!r:.60}")
    return value


def _gsm8k(record: Record, where: str) -> Record:
    question, answer = _text(record, "question", where), _text(record, "answer", where)
    return {"prompt": f"{_SOLVE}{question}\n\nAnswer:", "completion": f" {answer}"}


def _math(record: Record, where: str) -> Record:
    problem, solution = _text(record, "problem", where), _text(record, "solution", where)
    line = {"prompt": f"{_SOLVE}{problem}\n\nAnswer:", "completion": f" {solution}"}
    return line | {key: record[key] for key in ("answer",) if key in record}


def _pubmedqa(record: Record, where: str) -> Record:
    context = "\n".join(_texts(record, "CONTEXTS", where))
    question, decided = _text(record, "QUESTION", where), _text(record, "final_decision", where)
    prompt = f"{context}\n\nQuestion: {question} Answer yes, no or maybe.\n\nAnswer:"
    return {"prompt": prompt, "completion": f" {decided}", "final_decision": decided}


_ASKED = {
    "yesno": "Answer yes or no.",
    "factoid": "Name up to five candidates, the best first, one per line.",
    "list": "Name every one, one per line.",
    "summary": "Answer in a short paragraph.",
}


def _bioasq(record: Record, where: str) -> Record:
    kind = _text(record, "type", where)
    if kind not in _ASKED:
        raise UserError(f"{where}: 'type' must be one of {', '.join(_ASKED)}, got {kind!r}")
    key = "ideal_answer" if kind == "summary" else "exact_answer"
    answer = record.get(key)
    if not answer:
        raise UserError(f"{where}: a question of type {kind} needs {key!r}")
    snippets = [snippet["text"] for snippet in record.get("snippets", []) if isinstance(snippet, dict)]
    context = "\n".join(" ".join(snippet.split()) for snippet in snippets)
    question = f"Question: {_text(record, 'body', where)} {_ASKED[kind]}\n\nAnswer:"
    line = {"prompt": f"{context}\n\n{question}" if context else question, "completion": f" {_written(answer, kind)}"}
    return line | {"type": kind, key: answer}


def _written(answer: Any, kind: str) -> str:
    """A right answer as a text: of synonyms the first, of a summary its first wording."""
    if isinstance(answer, str):
        return answer.strip()
    firsts = [item if isinstance(item, str) else item[0] for item in answer]
    return "\n".join(firsts) if kind == "list" else firsts[0].strip()


FORMATS: dict[str, Callable[[Record, str], Record]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "pubmedqa": _pubmedqa,
    "bioasq": _bioasq,
}


def convert(records: list[tuple[str, Record]], form: str, rows: str | None = None) -> list[Record]:
    """Data lines of an official file's records.

    Args:
      records: each with its place.
      form: one of FORMATS.
      rows: "FIRST:LAST" of them, as Python slices, from 0, either end left out; None: all.

    Raises:
      UserError: rows of another form or none, a record that lacks a field.
    """
    found = re.fullmatch(r"(\d*):(\d*)", ":" if rows is None else rows)
    if found is None:
        raise UserError(f"--rows {rows}: write FIRST:LAST, counted from 0, as in 0:7000 or 7000:")
    first, last = (int(number) if number else None for number in found.groups())
    chosen = records[first:last]
    if not chosen:
        raise UserError(f"--rows {rows}: none; the file has {len(records)}")
    start = first or 0
    return [
        {"id": record.get("id", str(start + i)), **FORMATS[form](record, where)}
        for i, (where, record) in enumerate(chosen)
    ]

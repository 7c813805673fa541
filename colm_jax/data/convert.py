"""`colm convert`: convert the official files of GSM8K, MATH, PubMedQA and BioASQ to data lines.

A line is {"id", "prompt", "completion"} plus the fields that the task needs as a reference. The wording of the GSM8K
prompt is the original Co-LLM's (clinicalml/co-llm, scripts/train/gsm8k/create_train_data.py); the others follow it.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from colm_jax.errors import UserError

Record = dict[str, Any]
_SOLVE = "Please solve the following math problem with detailed steps.\n\nProblem: "


def _text(record: Record, key: str, where: str) -> str:
    """Return a required text field, stripped."""
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
    answer = record.get("answer")
    if answer is None:
        return line
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        return line | {"answer": answer}
    return line | {"answer": _text(record, "answer", where)}


def _pubmedqa(record: Record, where: str) -> Record:
    context = "\n".join(_texts(record, "CONTEXTS", where))
    question, decided = _text(record, "QUESTION", where), _text(record, "final_decision", where)
    if decided.lower() not in ("yes", "no", "maybe"):
        raise UserError(f"{where}: 'final_decision' must be yes, no or maybe, got {decided!r:.60}")
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
    names = _first_names(record.get(key), kind, key, where)
    context = "\n".join(_snippets(record, where))
    question = f"Question: {_text(record, 'body', where)} {_ASKED[kind]}\n\nAnswer:"
    line = {"prompt": f"{context}\n\n{question}" if context else question}
    return line | {
        "completion": " " + ("\n".join(names) if kind == "list" else names[0]),
        "type": kind,
        key: record[key],
    }


def _snippets(record: Record, where: str) -> list[str]:
    """Return the texts of a question's snippets, each on one line."""
    snippets = record.get("snippets")
    if not isinstance(snippets, list | None):
        raise UserError(f"{where}: 'snippets' must be a list, got {snippets!r:.60}")
    for i, snippet in enumerate(snippets or [], start=1):
        if not isinstance(snippet, dict) or not isinstance(snippet.get("text"), str):
            raise UserError(
                f"{where}: snippet {i} needs 'text' as text, got {snippet!r:.60}; leave it out, or add its text"
            )
    return [" ".join(snippet["text"].split()) for snippet in snippets or []]


def _first_names(answer: Any, kind: str, key: str, where: str) -> list[str]:
    """Return the texts of a right answer: the first of each list of synonyms, the first version of a summary."""
    items = answer if isinstance(answer, list) else [answer]
    firsts = [item[0] if isinstance(item, list) and item else item for item in items]
    if not firsts or not all(isinstance(name, str) and name.strip() for name in firsts):
        raise UserError(
            f"{where}: a question of type {kind} needs {key!r}, a text or a list of texts or of their synonyms, "
            f"none of them empty, got {answer!r:.60}"
        )
    return [name.strip() for name in firsts]


FORMATS: dict[str, Callable[[Record, str], Record]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "pubmedqa": _pubmedqa,
    "bioasq": _bioasq,
}


def convert(records: Sequence[tuple[str, Record]], form: str, rows: str | None = None) -> list[Record]:
    """Convert an official file's records to data lines.

    Args:
      records: each with its place.
      form: one of FORMATS.
      rows: "FIRST:LAST", a slice of the records as in Python, from 0, either end optional; None: all.

    Raises:
      UserError: malformed or empty rows; a record that lacks a field.
    """
    found = re.fullmatch(r"(\d*):(\d*)", ":" if rows is None else rows)
    if found is None:
        raise UserError(f"rows {rows}: must be FIRST:LAST, counted from 0, as in 0:7000 or 7000:")
    first, last = (int(number) if number else None for number in found.groups())
    chosen = records[first:last]
    if not chosen:
        raise UserError(f"rows {rows}: selects none of the {len(records)} records of the file")
    start = first or 0
    return [
        {"id": str(start + i) if record.get("id") is None else record["id"], **FORMATS[form](record, where)}
        for i, (where, record) in enumerate(chosen)
    ]

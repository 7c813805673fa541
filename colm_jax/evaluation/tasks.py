"""Task metrics: is a generated answer right? Reads prediction lines (the contract's) and reference lines."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from colm_jax.data.records import read_jsonl
from colm_jax.errors import UserError

_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> Decimal | None:
    """The last number in a text; commas are thousands separators. A minus sign counts unless a digit precedes it."""
    found = None
    for match in _NUMBER.finditer(text):
        raw = match.group()
        if raw[0] in "-−" and match.start() and (text[match.start() - 1].isalnum() or text[match.start() - 1] == ")"):
            raw = raw[1:]
        try:
            found = Decimal(raw.replace(",", "").replace("−", "-"))
        except InvalidOperation:
            continue
    return found


def _same_number(prediction: str, reference: str) -> bool:
    gold = last_number(reference.rsplit("####", 1)[-1])
    return gold is not None and last_number(prediction) == gold


def _same_text(prediction: str, reference: str) -> bool:
    return " ".join(prediction.split()) == " ".join(reference.split())


TASKS: dict[str, Callable[[str, str], bool]] = {
    "exact": _same_text,  # equal but for white space
    "number": _same_number,  # equal last number; in the reference, what stands behind the last ####
    "gsm8k": _same_number,
}


def find_task(name: str) -> Callable[[str, str], bool]:
    """The metric of a task.

    Raises:
      UserError: no such task.
    """
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def reference_of(record: dict[str, Any], where: str) -> str:
    """The right answer of a data line: 'answer', 'completion', or the last message.

    Raises:
      UserError: none of them.
    """
    for key in ("answer", "completion"):
        if key in record:
            return str(record[key])
    if record.get("messages"):
        return str(record["messages"][-1].get("content", ""))
    raise UserError(f"{where}: a reference needs 'answer', 'completion' or 'messages'")


@dataclass(frozen=True)
class TaskScore:
    """The result of a task."""

    correct: tuple[bool, ...]  # by prediction
    deferral_rate: float  # mean over answers of the share of tokens an expert wrote
    expert_calls: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)


def score_answers(
    task: str, texts: Sequence[str], references: Sequence[str], sources: Sequence[Sequence[int]], calls: Sequence[int]
) -> TaskScore:
    """Grades answers side by side with their references."""
    metric = find_task(task)
    correct = tuple(metric(text, reference) for text, reference in zip(texts, references, strict=True))
    rates = [sum(s > 0 for s in source) / len(source) if source else 0.0 for source in sources]
    return TaskScore(correct, sum(rates) / len(rates), sum(calls))


def evaluate_files(task: str, predictions: str | Path, references: str | Path) -> dict[str, Any]:
    """Grades a file of generation lines; lines pair by "id" where both files have it, else by order.

    Raises:
      UserError: a line without its text, files that do not pair.
    """
    find_task(task)
    predicted, gold = read_jsonl(predictions), read_jsonl(references)
    if all("id" in record for _, record in [*predicted, *gold]):
        by_id = {record["id"]: (where, record) for where, record in gold}
        for where, record in predicted:
            if record["id"] not in by_id:
                raise UserError(f"{where}: no reference has id {record['id']!r} in {references}")
        gold = [by_id[record["id"]] for _, record in predicted]
    if len(predicted) != len(gold):
        raise UserError(f"{predictions} has {len(predicted)} lines and {references} {len(gold)}; they must pair")
    for where, record in predicted:
        if not isinstance(record.get("text"), str):
            raise UserError(f"{where}: a prediction needs 'text'")
    score = score_answers(
        task,
        [record["text"] for _, record in predicted],
        [reference_of(record, where) for where, record in gold],
        [record.get("sources", []) for _, record in predicted],
        [record.get("expert_calls", 0) for _, record in predicted],
    )
    return {
        "task": task,
        "accuracy": score.accuracy,
        "correct": sum(score.correct),
        "answers": len(score.correct),
        "deferral_rate": score.deferral_rate,
        "expert_calls": score.expert_calls,
        "by_answer": list(score.correct),
    }

"""Tasks: grade generated answers against references, and compute the usual measures of each benchmark."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from colm_jax.errors import UserError
from colm_jax.evaluation import bioasq
from colm_jax.evaluation.choices import choice_measures, decision, same_decision
from colm_jax.evaluation.compare import mean_interval
from colm_jax.evaluation.math_answers import final_meaning, same_boxed
from colm_jax.evaluation.numbers import number_in, same_number


@dataclass(frozen=True)
class Task:
    """A way to grade answers."""

    name: str
    grade: Callable[[str, Any], float]  # (text, reference) -> 1 right, 0 wrong; bioasq: also in between
    reference: Callable[[dict[str, Any], str], Any]  # (data or reference line, its place) -> reference
    answer: Callable[[str], Hashable | None] | None  # text -> answer, equal for equivalent answers; None for bioasq
    measures: Callable[[Sequence[str], Sequence[Any]], dict[str, Any]] = lambda texts, references: {}
    right_or_wrong: bool = True  # grades are 0 or 1, so that their mean is an accuracy


def _as_text(value: Any, key: str, where: str) -> str:
    """Return a right answer as text: a string, or a JSON number in plain digits (1e-05 is 0.00001), or a list of one.

    Raises:
      UserError: any other value.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    raise UserError(f"{where}: {key!r} must be one right answer, as text or a number, got {value!r:.60}")


def reference_of(record: dict[str, Any], where: str, keys: Sequence[str] = ("answer", "completion")) -> str:
    """Return the right answer of a data line: the first of `keys` that is present and not null, or the last message.

    Raises:
      UserError: no such key, or a value that is not a text or number.
    """
    for key in keys:
        if record.get(key) is not None:
            return _as_text(record[key], key, where)
    messages = record.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return _as_text(messages[-1].get("content"), "content", where)
    raise UserError(f"{where}: a reference needs a non-null {', '.join(map(repr, keys))} or 'messages'")


def _number(record: dict[str, Any], where: str) -> str:
    """Return a reference that contains a number."""
    text = reference_of(record, where)
    if number_in(text) is None:
        raise UserError(f"{where}: a reference must contain a number, got {text!r:.60}")
    return text


def _solution(record: dict[str, Any], where: str) -> str:
    """Return the reference for MATH: the answer or, in files without one, the solution that contains it in a box."""
    text = reference_of(record, where, ("answer", "solution", "completion"))
    if final_meaning(text) is None:
        raise UserError(
            f"{where}: a reference must be an answer, or a solution with the answer in a box, got {text!r:.60}"
        )
    return text


def _decision(record: dict[str, Any], where: str) -> str:
    """Return the reference for PubMedQA: 'final_decision', or the decision of the right answer."""
    text = reference_of(record, where, ("final_decision", "answer", "completion"))
    found = decision(text)
    if found is None:
        raise UserError(f"{where}: a reference must contain yes, no or maybe, got {text!r:.60}")
    return found


def _plain(text: str) -> str:
    """Return a text with white space normalised."""
    return " ".join(text.split())


def _same_text(prediction: str, reference: str) -> bool:
    return _plain(prediction) == _plain(reference)


TASKS = {
    task.name: task
    for task in (
        Task("exact", _same_text, reference_of, _plain),  # equal up to white space
        Task("number", same_number, _number, number_in),
        Task("gsm8k", same_number, _number, number_in),
        Task("math", same_boxed, _solution, final_meaning),
        Task("pubmedqa", same_decision, _decision, decision, choice_measures),
        Task("bioasq", bioasq.grade, bioasq.question_of, None, bioasq.measures, right_or_wrong=False),
    )
}


def find_task(name: str) -> Task:
    """Return a task by name.

    Raises:
      UserError: no such task.
    """
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


@dataclass(frozen=True)
class TaskScore:
    """The result of a task."""

    grades: tuple[float, ...]  # per prediction, 0 to 1
    deferral_rate: float  # mean over answers of the share of tokens by experts
    expert_calls: int
    measures: dict[str, Any]  # the task's measures other than the mean grade

    @property
    def accuracy(self) -> float:
        """The mean grade: the share of right answers or, for bioasq, the mean over each type's own grade."""
        return sum(self.grades) / len(self.grades)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy`."""
        return mean_interval(self.grades)

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether each answer has the full grade."""
        return tuple(grade == 1 for grade in self.grades)


def score_answers(
    task: str, texts: Sequence[str], references: Sequence[Any], sources: Sequence[Sequence[int]], calls: Sequence[int]
) -> TaskScore:
    """Grade answers against their references, as returned by the task's `reference`."""
    found = find_task(task)
    grades = tuple(float(found.grade(text, reference)) for text, reference in zip(texts, references, strict=True))
    rates = [sum(s > 0 for s in source) / len(source) if source else 0.0 for source in sources]
    return TaskScore(grades, sum(rates) / len(rates), sum(calls), found.measures(texts, references))

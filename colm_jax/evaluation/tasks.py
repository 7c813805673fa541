"""Tasks: how a generated answer is graded against its reference, and what a field reports of many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError
from colm_jax.evaluation import bioasq
from colm_jax.evaluation.choices import choice_measures, decision, same_decision
from colm_jax.evaluation.compare import mean_interval
from colm_jax.evaluation.math_answers import same_boxed
from colm_jax.evaluation.numbers import same_number


@dataclass(frozen=True)
class Task:
    """One kind of answer."""

    name: str
    grade: Callable[[str, Any], float]  # of a text and its reference: 1 right, 0 wrong; bioasq: also between
    reference: Callable[[dict[str, Any], str], Any]  # of a data or reference line and its place
    measures: Callable[[Sequence[str], Sequence[Any]], dict[str, Any]] = lambda texts, references: {}
    right_or_wrong: bool = True  # grades are 0 or 1, so that their mean is an accuracy


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


def _solution(record: dict[str, Any], where: str) -> str:
    """Of MATH: the answer or, in files without one, the solution that has it boxed."""
    return str(record["solution"]) if "solution" in record and "answer" not in record else reference_of(record, where)


def _decision(record: dict[str, Any], where: str) -> str:
    """Of PubMedQA: 'final_decision', or the decision of the right answer."""
    text = str(record["final_decision"]) if "final_decision" in record else reference_of(record, where)
    found = decision(text)
    if found is None:
        raise UserError(f"{where}: a reference must say yes, no or maybe, got {text!r:.60}")
    return found


def _same_text(prediction: str, reference: str) -> bool:
    return " ".join(prediction.split()) == " ".join(reference.split())


TASKS = {
    task.name: task
    for task in (
        Task("exact", _same_text, reference_of),  # equal but for white space
        Task("number", same_number, reference_of),  # equal last number; of the reference, what follows the last ####
        Task("gsm8k", same_number, reference_of),
        Task("math", same_boxed, _solution),
        Task("pubmedqa", same_decision, _decision, choice_measures),
        Task("bioasq", bioasq.grade, bioasq.question_of, bioasq.measures, right_or_wrong=False),
    )
}


def find_task(name: str) -> Task:
    """A task by name.

    Raises:
      UserError: no such task.
    """
    if name not in TASKS:
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


@dataclass(frozen=True)
class TaskScore:
    """The result of a task."""

    grades: tuple[float, ...]  # by prediction, 0 to 1
    deferral_rate: float  # mean over answers of the share of tokens an expert wrote
    expert_calls: int
    measures: dict[str, Any]  # what the task's field reports beside the mean grade

    @property
    def accuracy(self) -> float:
        """The mean grade: the share of right answers or, in bioasq, the mean of what each type is graded by."""
        return sum(self.grades) / len(self.grades)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy`."""
        return mean_interval(self.grades)

    @property
    def correct(self) -> tuple[bool, ...]:
        """Which answers have the full grade."""
        return tuple(grade == 1 for grade in self.grades)


def score_answers(
    task: str, texts: Sequence[str], references: Sequence[Any], sources: Sequence[Sequence[int]], calls: Sequence[int]
) -> TaskScore:
    """Grades answers side by side with their references (what the task's `reference` makes of a line)."""
    found = find_task(task)
    grades = tuple(float(found.grade(text, reference)) for text, reference in zip(texts, references, strict=True))
    rates = [sum(s > 0 for s in source) / len(source) if source else 0.0 for source in sources]
    return TaskScore(grades, sum(rates) / len(rates), sum(calls), found.measures(texts, references))

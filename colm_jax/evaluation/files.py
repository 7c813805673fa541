"""`colm evaluate`: grade a file of predictions against a file of references, and compare it with other predictions.

A prompt may have several predictions, the samples of `colm generate --samples N`; its grade is their mean.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colm_jax.data.records import Records, read_jsonl
from colm_jax.errors import UserError
from colm_jax.evaluation.bioasq import text_of_submission
from colm_jax.evaluation.compare import mean_interval, paired_bootstrap
from colm_jax.evaluation.tasks import TaskScore, find_task, score_answers
from colm_jax.storage import parse_json, path_of, read_text


def read_records(path: str | Path) -> Records:
    """Read the records of a JSONL file or of a .json: a list, BioASQ's {"questions": [...]}, or PubMedQA's by id.

    Raises:
      UserError: no such file, or another format.
    """
    if Path(path).suffix != ".json":
        return read_jsonl(path)
    content = parse_json(read_text(path_of(path)), path, strict=True)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        content = content["questions"]
    elif isinstance(content, dict):
        content = [
            {**value, "id": key} if isinstance(value, dict) else {"id": key, "answer": value}
            for key, value in content.items()
        ]
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        raise UserError(f"{path}: must be a list of objects, an object that maps ids to objects, or have 'questions'")
    return [(f"{path}: item {i}", item) for i, item in enumerate(content, start=1)]


def read_predictions(path: str | Path, task: str) -> Records:
    """Read generation lines or, for bioasq, a submission in the challenge's JSON.

    Raises:
      UserError: a line without a text, or with malformed sources, calls or sample number.
    """
    records = read_records(path)
    if task == "bioasq" and Path(path).suffix == ".json":
        records = [(where, {**record, "text": text_of_submission(record, where)}) for where, record in records]
    for where, record in records:
        if not isinstance(record.get("text"), str):
            raise UserError(f"{where}: a prediction needs 'text' as a string, got {record.get('text')!r:.60}")
        sources = record.get("sources") or []
        if not isinstance(sources, list) or not all(_is_count(source) for source in sources):
            raise UserError(f"{where}: 'sources' must be a list of whole numbers from 0, got {sources!r:.60}")
        for key in ("sample", "expert_calls"):
            if not _is_count(value := record.get(key) or 0):
                raise UserError(f"{where}: {key!r} must be a whole number from 0, got {value!r:.60}")
    return records


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _has_id(record: dict[str, Any]) -> bool:
    return record.get("id") is not None


def _by_id(records: Records) -> dict[str, tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, record in records:
        number = str(record["id"])
        if number in found:
            raise UserError(f"{where}: duplicate id {number!r}, also at {found[number][0]}")
        found[number] = (where, record)
    return found


def pair(predicted: Records, gold: Records, predictions: str | Path, references: str | Path) -> Records:
    """Return the reference of each prediction: by "id" if all lines of both files have one, otherwise by order.

    Raises:
      UserError: a prediction without a reference, a duplicate id, or files of different lengths without ids.
    """
    if all(_has_id(record) for _, record in [*predicted, *gold]):
        by_id = _by_id(gold)
        for number, (where, _) in _by_id(predicted).items():
            if number not in by_id:
                raise UserError(
                    f"{where}: no reference has id {number!r} in {references}; generate from prompts with its ids, "
                    "or remove the ids from one file to pair by order"
                )
        return [by_id[str(record["id"])] for _, record in predicted]
    if len(predicted) != len(gold):
        raise UserError(
            f"{predictions} answers {len(predicted)} prompts, but {references} has {len(gold)} references; without "
            "an id in every line of both files they pair by order, which needs equal numbers"
        )
    return gold


@dataclass(frozen=True)
class _Graded:
    """A graded file of predictions."""

    prompts: list[list[int]]  # the lines of each prompt
    references: Records  # one per prompt
    score: TaskScore  # over all lines
    majority: list[float] | None  # per prompt, the grade of the most frequent answer; None without samples

    @property
    def grades(self) -> list[float]:
        """The grade of each prompt, the mean over its samples."""
        return [_mean([self.score.grades[i] for i in lines]) for lines in self.prompts]


def evaluate_files(
    task: str, predictions: str | Path, references: str | Path, against: str | Path | None = None
) -> dict[str, Any]:
    """Grade a file of generation lines.

    Args:
      task: one of TASKS.
      predictions: the file to grade; prompts pair by "id" if both files have ids, otherwise by order.
      references: JSONL, or the data set's official .json.
      against: other predictions for the same references, to compare with.

    Returns:
      The score with its 95 % interval, counts, the task's own measures, and each answer's grade in "by_answer"; with
      several samples per prompt, the best and the majority in "samples"; with `against`, the difference of the two.

    Raises:
      UserError: a line without a text, or files that do not pair.
    """
    found = find_task(task)
    gold = read_records(references)
    graded = _graded(task, predictions, gold, references)
    score, grades = graded.score, graded.grades
    result: dict[str, Any] = {
        "task": task,
        "accuracy" if found.right_or_wrong else "mean_grade": _mean(grades),
        "interval": list(mean_interval(grades)),
        "correct": sum(score.correct),
        "answers": len(score.grades),
        "references_without_answer": len(gold) - len(graded.references),
        "deferral_rate": score.deferral_rate,
        "expert_calls": score.expert_calls,
        **score.measures,
    }
    if len(graded.prompts) < len(score.grades):
        best = [max(score.grades[i] for i in lines) for lines in graded.prompts]
        result["samples"] = {"prompts": len(graded.prompts), "each": len(graded.prompts[0]), "best": _mean(best)}
        if graded.majority is not None:
            result["samples"]["majority"] = _mean(graded.majority)
    if against is not None:
        other = _graded(task, against, gold, references)
        by_place = {where: grade for (where, _), grade in zip(other.references, other.grades)}
        if by_place.keys() != {where for where, _ in graded.references}:
            raise UserError(f"{against}: must answer the same references as {predictions}, but answers others")
        theirs = [by_place[where] for where, _ in graded.references]
        difference = paired_bootstrap(grades, theirs)
        result["against"] = {"predictions": str(against), "score": _mean(theirs), **asdict(difference)}
    result["by_answer"] = list(score.correct) if found.right_or_wrong else list(score.grades)
    return result


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _graded(task: str, path: str | Path, gold: Records, references: str | Path) -> _Graded:
    """Read and grade a file of predictions."""
    predicted = read_predictions(path, task)
    prompts = _prompts(predicted)
    paired = pair([predicted[lines[0]] for lines in prompts], gold, path, references)
    found, of_line = find_task(task), {i: place for place, lines in zip(paired, prompts) for i in lines}
    right = {where: found.reference(record, where) for where, record in paired}
    texts = [record["text"] for _, record in predicted]
    score = score_answers(
        task,
        texts,
        [right[of_line[i][0]] for i in range(len(texts))],
        [record.get("sources") or [] for _, record in predicted],
        [record.get("expert_calls") or 0 for _, record in predicted],
    )
    majority = None
    if found.answer is not None and len(prompts) < len(texts):
        answers = [found.answer(text) for text in texts]
        majority = [_majority([answers[i] for i in lines], [score.grades[i] for i in lines]) for lines in prompts]
    return _Graded(prompts, paired, score, majority)


def _prompts(predicted: Records) -> list[list[int]]:
    """Group the lines by prompt, in the file's order: by id or, without ids, a new prompt begins at each sample 0.

    Raises:
      UserError: a duplicate sample, or prompts with different numbers of samples.
    """
    by_id = all(_has_id(record) for _, record in predicted)
    found: dict[Any, dict[int, int]] = {}  # prompt -> sample -> line
    for i, (where, record) in enumerate(predicted):
        sample = record.get("sample") or 0
        key = str(record["id"]) if by_id else len(found) - (sample > 0)
        samples = found.setdefault(key, {})
        if sample in samples:
            named = f"id {key!r}" if by_id else "its prompt"
            raise UserError(
                f"{where}: duplicate sample {sample} of {named}, also at {predicted[samples[sample]][0]}; "
                "several answers to one prompt need different 'sample' numbers"
            )
        samples[sample] = i
    prompts = [list(samples.values()) for samples in found.values()]
    for lines in prompts:
        if len(lines) != len(prompts[0]):
            raise UserError(
                f"{predicted[lines[0]][0]}: its prompt has {len(lines)} sample(s), the first prompt has "
                f"{len(prompts[0])}; all prompts need the same number"
            )
    return prompts


def _majority(answers: Sequence[Any], grades: Sequence[float]) -> float:
    """Return the grade of the most frequent answer (the first in a tie); 0 if no sample has an answer."""
    counts = Counter(answer for answer in answers if answer is not None)
    return grades[answers.index(counts.most_common(1)[0][0])] if counts else 0.0

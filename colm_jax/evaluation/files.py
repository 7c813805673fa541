"""`colm evaluate`: a file of predictions graded against a file of references, and against other predictions.

A prompt may have several predictions, the samples of `colm generate --samples N`: its grade is their mean.
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
    """The records of a JSONL file or of a .json: a list, BioASQ's {"questions": [...]}, or PubMedQA's by id.

    Raises:
      UserError: no such file, or one of another form.
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
        raise UserError(f"{path}: expected a list of objects, an object of them by id, or one with 'questions'")
    return [(f"{path}: item {i}", item) for i, item in enumerate(content, start=1)]


def read_predictions(path: str | Path, task: str) -> Records:
    """Generation lines; of bioasq also a submission in the challenge's own JSON.

    Raises:
      UserError: a line without a text, or with sources, calls or a sample that are none.
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
            raise UserError(f"{where}: id {number!r} stands twice, also at {found[number][0]}")
        found[number] = (where, record)
    return found


def pair(predicted: Records, gold: Records, predictions: str | Path, references: str | Path) -> Records:
    """The reference of each prediction: by "id" where all lines of both files have it, else by order.

    Raises:
      UserError: files that do not pair.
    """
    if all(_has_id(record) for _, record in [*predicted, *gold]):
        by_id = _by_id(gold)
        for number, (where, _) in _by_id(predicted).items():
            if number not in by_id:
                raise UserError(
                    f"{where}: no reference has id {number!r} in {references}; generate from prompts with its ids, "
                    "or leave the ids out of one file to pair by order"
                )
        return [by_id[str(record["id"])] for _, record in predicted]
    if len(predicted) != len(gold):
        raise UserError(
            f"{predictions} answers {len(predicted)} prompts and {references} has {len(gold)} references; without "
            "an id in every line of both they pair by order, and must be as many"
        )
    return gold


@dataclass(frozen=True)
class _Graded:
    """A file of predictions beside its references."""

    prompts: list[list[int]]  # the lines of each prompt
    references: Records  # of each prompt
    score: TaskScore  # of the lines
    majority: list[float] | None  # of each prompt: the grade of the answer that most samples give; None without samples

    @property
    def grades(self) -> list[float]:
        """Of each prompt: the mean over its samples."""
        return [_mean([self.score.grades[i] for i in lines]) for lines in self.prompts]


def evaluate_files(
    task: str, predictions: str | Path, references: str | Path, against: str | Path | None = None
) -> dict[str, Any]:
    """Grades a file of generation lines.

    Args:
      task: one of TASKS.
      predictions: what is graded; prompts pair by "id" where both files have it, else by order.
      references: JSONL, or the data set's official .json.
      against: other predictions of the same references, to compare with.

    Returns:
      The score with its 95 % interval, counts, the task's own measures, and each answer's grade in "by_answer"; with
      several samples of a prompt what they come to together in "samples"; with `against`, how far apart the two are.

    Raises:
      UserError: a line without its text, files that do not pair.
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
            raise UserError(f"{against}: answers other references than {predictions} does; both must answer the same")
        theirs = [by_place[where] for where, _ in graded.references]
        difference = paired_bootstrap(grades, theirs)
        result["against"] = {"predictions": str(against), "score": _mean(theirs), **asdict(difference)}
    result["by_answer"] = list(score.correct) if found.right_or_wrong else list(score.grades)
    return result


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _graded(task: str, path: str | Path, gold: Records, references: str | Path) -> _Graded:
    """The predictions of a file, graded."""
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
    """The lines of each prompt, in the file's order: those of one id or, without ids, those from a sample 0 on.

    Raises:
      UserError: a sample that stands twice, or prompts with different numbers of samples.
    """
    by_id = all(_has_id(record) for _, record in predicted)
    found: dict[Any, dict[int, int]] = {}  # of each prompt: the line of each sample
    for i, (where, record) in enumerate(predicted):
        sample = record.get("sample") or 0
        key = str(record["id"]) if by_id else len(found) - (sample > 0)
        samples = found.setdefault(key, {})
        if sample in samples:
            named = f"id {key!r}" if by_id else "its prompt"
            raise UserError(
                f"{where}: sample {sample} of {named} stands twice, also at {predicted[samples[sample]][0]}; "
                "several answers to one prompt need a 'sample' number each"
            )
        samples[sample] = i
    prompts = [list(samples.values()) for samples in found.values()]
    for lines in prompts:
        if len(lines) != len(prompts[0]):
            raise UserError(
                f"{predicted[lines[0]][0]}: its prompt has {len(lines)} sample(s), the first one "
                f"{len(prompts[0])}; every prompt needs as many"
            )
    return prompts


def _majority(answers: Sequence[Any], grades: Sequence[float]) -> float:
    """The grade of the answer that most samples give, the first of several; 0 where none gives one."""
    counts = Counter(answer for answer in answers if answer is not None)
    return grades[answers.index(counts.most_common(1)[0][0])] if counts else 0.0

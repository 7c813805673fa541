"""`colm evaluate`: a file of predictions graded against a file of references, and against other predictions."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from colm_jax.data.records import read_jsonl
from colm_jax.errors import UserError
from colm_jax.evaluation.bioasq import text_of_submission
from colm_jax.evaluation.compare import paired_bootstrap
from colm_jax.evaluation.tasks import TaskScore, find_task, score_answers
from colm_jax.storage import parse_json, path_of, read_text

Records = list[tuple[str, dict[str, Any]]]  # each with its place


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
      UserError: a line without a text.
    """
    records = read_records(path)
    if task == "bioasq" and Path(path).suffix == ".json":
        records = [(where, {**record, "text": text_of_submission(record, where)}) for where, record in records]
    for where, record in records:
        if not isinstance(record.get("text"), str):
            raise UserError(f"{where}: a prediction needs 'text'")
    return records


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
    if all("id" in record for _, record in [*predicted, *gold]):
        by_id = _by_id(gold)
        for number, (where, _) in _by_id(predicted).items():
            if number not in by_id:
                raise UserError(f"{where}: no reference has id {number!r} in {references}")
        return [by_id[str(record["id"])] for _, record in predicted]
    if len(predicted) != len(gold):
        raise UserError(f"{predictions} has {len(predicted)} lines and {references} {len(gold)}; they must pair")
    return gold


def evaluate_files(
    task: str, predictions: str | Path, references: str | Path, against: str | Path | None = None
) -> dict[str, Any]:
    """Grades a file of generation lines.

    Args:
      task: one of TASKS.
      predictions: what is graded; lines pair by "id" where both files have it, else by order.
      references: JSONL, or the data set's official .json.
      against: other predictions of the same references, to compare with.

    Returns:
      The score with its 95 % interval, counts, the task's own measures, and each answer's grade in "by_answer"; with
      `against`, how far apart the two are.

    Raises:
      UserError: a line without its text, files that do not pair.
    """
    found = find_task(task)
    predicted, gold = read_predictions(predictions, task), read_records(references)
    paired = pair(predicted, gold, predictions, references)
    score = _score(task, predicted, paired)
    result: dict[str, Any] = {
        "task": task,
        "accuracy" if found.right_or_wrong else "mean_grade": score.accuracy,
        "interval": list(score.interval),
        "correct": sum(score.correct),
        "answers": len(score.grades),
        "references_without_answer": len(gold) - len(paired),
        "deferral_rate": score.deferral_rate,
        "expert_calls": score.expert_calls,
        **score.measures,
    }
    if against is not None:
        others = read_predictions(against, task)
        others_paired = pair(others, gold, against, references)
        by_place = {where: other for (where, _), other in zip(others_paired, others)}
        if by_place.keys() != {where for where, _ in paired}:
            raise UserError(f"{against}: answers other references than {predictions} does; both must answer the same")
        other = _score(task, [by_place[where] for where, _ in paired], paired)
        difference = paired_bootstrap(score.grades, other.grades)
        result["against"] = {"predictions": str(against), "score": other.accuracy, **asdict(difference)}
    result["by_answer"] = list(score.correct) if found.right_or_wrong else list(score.grades)
    return result


def _score(task: str, predicted: Records, paired: Records) -> TaskScore:
    return score_answers(
        task,
        [record["text"] for _, record in predicted],
        [find_task(task).reference(record, where) for where, record in paired],
        [record.get("sources", []) for _, record in predicted],
        [record.get("expert_calls", 0) for _, record in predicted],
    )

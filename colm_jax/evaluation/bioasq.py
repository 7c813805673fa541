"""BioASQ, phase B: yes/no, factoid, list and summary questions, graded by the challenge's measures.

A reference is a question of the official JSON: "type", "exact_answer" with its synonyms, "ideal_answer". A prediction
is a text: a yes/no decision, candidates (one per line or, on a single line, separated by semicolons; for a list
question also by commas and "and"), or a summary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from colm_jax.errors import UserError
from colm_jax.evaluation.choices import decision, f1
from colm_jax.evaluation.rouge import Overlap, rouge_2, rouge_su4

TYPES = ("yesno", "factoid", "list", "summary")
_CANDIDATES = 5  # graded per factoid question
_COMMAS = re.compile(r",\s+(?:and\s+)?|\s+and\s+")
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)])\s+")


@dataclass(frozen=True)
class Question:
    """The reference of a question."""

    type: str  # one of TYPES
    entities: tuple[tuple[str, ...], ...] = ()  # right entities, each with its synonyms; a factoid has one
    decision: str | None = None  # for yesno
    ideal: tuple[str, ...] = ()  # right summaries


def question_of(record: dict[str, Any], where: str) -> Question:
    """Read a question of the official JSON.

    Raises:
      UserError: an unknown type, or a missing or malformed answer.
    """
    kind = record.get("type")
    if kind not in TYPES:
        raise UserError(f"{where}: 'type' must be one of {', '.join(TYPES)}, got {kind!r}")
    key = "ideal_answer" if kind == "summary" else "exact_answer"
    answer = record.get(key)
    if not answer or not isinstance(answer, str | list):
        raise UserError(f"{where}: a question of type {kind} needs {key!r}, got {answer!r:.60}")
    if kind == "yesno":
        decided = decision(answer) if isinstance(answer, str) else None
        if decided not in ("yes", "no"):
            raise UserError(f"{where}: 'exact_answer' must be yes or no, got {answer!r:.60}")
        return Question(kind, decision=decided)
    items = [answer] if isinstance(answer, str) else answer
    if kind == "summary":
        return Question(kind, ideal=tuple(_strings(items, where)))
    if kind == "factoid":  # one entity: synonyms as strings, or in one or more lists
        return Question(kind, (tuple(_normal(name) for name in _strings(_flat(items), where)),))
    entities = [_strings(item if isinstance(item, list) else [item], where) for item in items]
    return Question(kind, tuple(tuple(map(_normal, names)) for names in entities))


def _all_strings(items: Sequence[Any]) -> TypeGuard[list[str]]:
    return all(isinstance(item, str) for item in items)


def _flat(items: Sequence[Any]) -> list[Any]:
    return [name for item in items for name in (item if isinstance(item, list) else [item])]


def _strings(items: Sequence[Any], where: str) -> list[str]:
    if not items or not _all_strings(items) or not all(map(_normal, items)):
        raise UserError(f"{where}: answers must be non-empty strings or lists of synonyms, got {items!r:.60}")
    return list(items)


def _normal(name: str) -> str:
    """Return the name in lower case, with white space normalised and a final full stop removed."""
    return " ".join(name.split()).rstrip(".").lower()


def candidates(text: str, commas: bool) -> list[str]:
    """Return the entities in a text, in order and without duplicates, bullets and numbering."""
    parts = [line for line in text.splitlines() if line.strip()]
    if len(parts) == 1:
        parts = re.split(_COMMAS if commas and ";" not in parts[0] else ";", parts[0])
    names = [_normal(_BULLET.sub("", part)) for part in parts]
    return list(dict.fromkeys(name for name in names if name))


def text_of_submission(question: dict[str, Any], where: str) -> str:
    """Return the answer of a submission's question (the challenge's format) as a text for `candidates`."""
    answer = question.get("exact_answer") or question.get("ideal_answer") or ""
    items = answer if isinstance(answer, list) else [answer]
    names = [item[0] if isinstance(item, list) and item else item for item in items]  # the first synonym
    if not _all_strings(names):
        raise UserError(f"{where}: an answer must be a string or a list of strings, got {answer!r:.60}")
    return "\n".join(" ".join(name.split()) for name in names)


def _rank(text: str, question: Question) -> int | None:
    """Return the rank, from 1, of the first right candidate among the graded ones; None without one."""
    found = candidates(text, commas=False)[:_CANDIDATES]
    return next((i for i, name in enumerate(found, start=1) if name in question.entities[0]), None)


def _listed(text: str, question: Question) -> Overlap:
    """Return precision and recall of a list; each entity counts once, by any of its synonyms."""
    found = candidates(text, commas=True)
    left = list(question.entities)
    for name in found:
        hit = next((names for names in left if name in names), None)
        if hit is not None:
            left.remove(hit)
    hits = len(question.entities) - len(left)
    return Overlap(hits / len(found) if found else 0.0, hits / len(question.entities))


def grade(text: str, question: Question) -> float:
    """Grade a text from 0 to 1: yes/no by equality, factoid by reciprocal rank, list by F1, summary by ROUGE-2 F1."""
    if question.type == "yesno":
        return float(decision(text) == question.decision)
    if question.type == "factoid":
        rank = _rank(text, question)
        return 0.0 if rank is None else 1 / rank
    return _listed(text, question).f1 if question.type == "list" else rouge_2(text, question.ideal).f1


def measures(texts: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    """Return the challenge's measures for each type present: means over that type's questions."""
    of_type = {kind: [(t, q) for t, q in zip(texts, questions, strict=True) if q.type == kind] for kind in TYPES}
    found: dict[str, Any] = {}
    if pairs := of_type["yesno"]:
        predicted, gold = [decision(text) for text, _ in pairs], [question.decision for _, question in pairs]
        yes, no = f1(predicted, gold, "yes"), f1(predicted, gold, "no")
        right = sum(p == g for p, g in zip(predicted, gold)) / len(pairs)
        found["yesno"] = {"accuracy": right, "f1_yes": yes, "f1_no": no, "macro_f1": (yes + no) / 2}
    if pairs := of_type["factoid"]:
        ranks = [_rank(text, question) for text, question in pairs]
        found["factoid"] = {
            "strict": _mean(rank == 1 for rank in ranks),
            "lenient": _mean(rank is not None for rank in ranks),
            "mrr": _mean(1 / rank if rank else 0.0 for rank in ranks),
        }
    if pairs := of_type["list"]:
        found["list"] = _overlaps([_listed(text, question) for text, question in pairs])
    if pairs := of_type["summary"]:
        found["summary"] = {
            "rouge_2": _overlaps([rouge_2(text, question.ideal) for text, question in pairs]),
            "rouge_su4": _overlaps([rouge_su4(text, question.ideal) for text, question in pairs]),
        }
    for kind, values in found.items():
        values["questions"] = len(of_type[kind])
    return found


def _mean(values) -> float:
    listed = list(values)
    return float(sum(listed) / len(listed))


def _overlaps(overlaps: Sequence[Overlap]) -> dict[str, Any]:
    return {key: _mean(getattr(overlap, key) for overlap in overlaps) for key in ("precision", "recall", "f1")}

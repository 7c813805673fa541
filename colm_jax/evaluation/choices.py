"""Yes/no/maybe answers: extract the decision of a text, and compute F1 over many texts."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"\b(yes|no|maybe)\b", re.IGNORECASE)
_STATED = re.compile(
    r"\banswer\b[*_\"']*(?:\s+(?:to|of|for)\b[^.:\n]{1,80}?)?(?:\s+is\b|\s*:)[\s:*_\"'($\\]*(?:[a-z]+\s*\{)*(yes|no|maybe)\b|"
    r"\\boxed\s*\{\s*(?:\\[a-z]+\s*\{\s*)?(yes|no|maybe)\b",
    re.IGNORECASE,
)


def decision(text: str) -> str | None:
    """Return the decision of a text, "yes", "no" or "maybe"; None without one.

    The last "answer is ...", "answer: ..." or box counts; otherwise the text's first word, if it is one of the three;
    otherwise the last of the three words in the text, since reasoning precedes its conclusion.
    """
    if stated := _STATED.findall(text):
        return "".join(stated[-1]).lower()
    words = _WORD.findall(text)
    first = re.match(r"\W*(yes|no|maybe)\b", text, re.IGNORECASE)
    return first.group(1).lower() if first else words[-1].lower() if words else None


def same_decision(prediction: str, reference: str) -> bool:
    """Return whether two texts have the same decision; False if either has none."""
    gold = decision(reference)
    return gold is not None and decision(prediction) == gold


def f1(predicted: Sequence[str | None], gold: Sequence[str | None], choice: str) -> float:
    """Return the F1 of one choice; 0 if it occurs in neither predictions nor references."""
    both = sum(p == g == choice for p, g in zip(predicted, gold, strict=True))
    total = sum(p == choice for p in predicted) + sum(g == choice for g in gold)
    return 2 * both / total if total else 0.0


def choice_measures(
    texts: Sequence[str], references: Sequence[str], choices: Sequence[str] = ("yes", "no", "maybe")
) -> dict[str, object]:
    """Return the macro F1 over the choices, the F1 of each, and the number of texts without a decision."""
    predicted, gold = [decision(text) for text in texts], [decision(text) for text in references]
    each = {choice: f1(predicted, gold, choice) for choice in choices}
    return {"macro_f1": sum(each.values()) / len(each), "f1": each, "undecided": predicted.count(None)}

"""Yes, no or maybe: what a text decides, and how well many such texts do."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"\b(yes|no|maybe)\b", re.IGNORECASE)
_SAID = re.compile(
    r"\banswer\b[*_\"']*(?:\s+(?:to|of|for)\b[^.:\n]{1,80}?)?(?:\s+is\b|\s*:)[\s:*_\"'($\\]*(?:[a-z]+\s*\{)*(yes|no|maybe)\b|"
    r"\\boxed\s*\{\s*(?:\\[a-z]+\s*\{\s*)?(yes|no|maybe)\b",
    re.IGNORECASE,
)


def decision(text: str) -> str | None:
    """What a text decides, "yes", "no" or "maybe"; None where it says none of them.

    The last "answer is ...", "answer: ..." or box counts; without one the text's first word; else the last of the three
    words anywhere, since reasoning comes before its conclusion.
    """
    if said := _SAID.findall(text):
        return "".join(said[-1]).lower()
    words = _WORD.findall(text)
    first = re.match(r"\W*(yes|no|maybe)\b", text, re.IGNORECASE)
    return first.group(1).lower() if first else words[-1].lower() if words else None


def same_decision(prediction: str, reference: str) -> bool:
    """Whether two texts decide alike; no decision is never right."""
    gold = decision(reference)
    return gold is not None and decision(prediction) == gold


def f1(predicted: Sequence[str | None], gold: Sequence[str | None], choice: str) -> float:
    """F1 of one choice; 0 where it is neither predicted nor right anywhere."""
    both = sum(p == g == choice for p, g in zip(predicted, gold, strict=True))
    total = sum(p == choice for p in predicted) + sum(g == choice for g in gold)
    return 2 * both / total if total else 0.0


def choice_measures(
    texts: Sequence[str], references: Sequence[str], choices: Sequence[str] = ("yes", "no", "maybe")
) -> dict[str, object]:
    """Macro F1 over the choices, each one's F1, and how many texts decided nothing."""
    predicted, gold = [decision(text) for text in texts], [decision(text) for text in references]
    each = {choice: f1(predicted, gold, choice) for choice in choices}
    return {"macro_f1": sum(each.values()) / len(each), "f1": each, "undecided": predicted.count(None)}

"""The risk that an answer goes wrong at a token, from what the decoding loop knew of it; free of JAX.

`calibration.risk` learns it on decoded dev answers: the grades say which answers are wrong, and not where. With r_t the
risk at token t, an answer is wrong with probability 1 − ∏ (1 − r_t). The few tokens with the largest risks are marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from colm_jax.checks import check_number
from colm_jax.errors import UserError

# What the loop knows of a token, in order. Log-probabilities, entropies and margins are in nats.
EVIDENCE = (
    "gate",  # log-odds of p_defer; says nothing without a gate
    "expert",  # 1 where an expert wrote the token
    "base_entropy",
    "base_top_log_prob",  # of the base's most probable token
    "base_margin",  # between its two most probable tokens
    "agrees",  # 1 where the token is the base's own choice
    # Of the token, under the distribution from which it was chosen, before temperature, top-k, top-p and min-p; of a
    # guest's span, their sum.
    "log_prob",
    "entropy",  # of that distribution; of a guest's span, the largest
    "margin",  # likewise; of a guest's span, the smallest
)

LEARNED_UNDER = "defer"  # the strategy; of others' answers nothing is known


@dataclass(frozen=True)
class Mark:
    """A part of an answer that should be checked."""

    start: int  # in characters of the answer's text
    end: int
    risk: float  # that the answer goes wrong there: the largest of its tokens'


@dataclass(frozen=True)
class Risk:
    """A logistic model of evidence. Sequences have an entry for each of EVIDENCE."""

    mean: tuple[float, ...]  # on the dev answers
    scale: tuple[float, ...]  # their standard deviation there; 1 where nothing varies
    low: tuple[float, ...]  # smallest and largest there: what is beyond is taken to be there
    high: tuple[float, ...]
    weights: tuple[float, ...]  # of evidence that is shifted by `mean` and divided by `scale`
    bias: float
    mark_above: float  # tokens with a larger risk are marked

    def inputs(self, evidence: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
        """Return evidence as the model reads it; what is not known is taken to be the mean."""
        clipped = np.clip(evidence.astype(np.float64), self.low, self.high)
        return np.nan_to_num((clipped - np.array(self.mean)) / np.array(self.scale), nan=0.0)

    def of(self, evidence: Float[np.ndarray, "N E"], before: float = 0.0) -> Float[np.ndarray, "N"]:
        """Return the risk at each token.

        Args:
          evidence: of consecutive tokens; NaN at those of a span after its first, which have the span's risk.
          before: the risk of the token before them.
        """
        odds = self.inputs(evidence) @ np.array(self.weights) + self.bias
        risks = np.concatenate([[before], 1 / (1 + np.exp(-odds))])
        begins = np.concatenate([[True], ~continues(evidence)])
        return risks[np.maximum.accumulate(np.where(begins, np.arange(len(risks)), 0))][1:]

    def of_answer(self, evidence: Float[np.ndarray, "N E"]) -> float:
        """Return the probability that an answer of these tokens is wrong."""
        return float(1 - np.prod(1 - self.of(evidence)[~continues(evidence)]))

    def as_json(self) -> dict[str, Any]:
        """Return what `read` reads."""
        return {"evidence": list(EVIDENCE)} | {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in fields(self)
        }

    @classmethod
    def read(cls, content: Any, where: str) -> "Risk":
        """Return the model of a JSON object.

        Raises:
          UserError: it is none, or was learned from other evidence than this version keeps.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(content, dict) or content.get("evidence") != list(EVIDENCE):
            raise UserError(f"{where}: needs 'evidence' {list(EVIDENCE)}; calibrate the team again")
        for name in names:
            value, count = content.get(name), 1 if name in ("bias", "mark_above") else len(EVIDENCE)
            values = [value] if count == 1 else value
            if not isinstance(values, list) or len(values) != count:
                raise UserError(f"{where}: {name!r} must have {count} number(s), got {value!r}")
            for number in values:
                least, above = (0 if name == "mark_above" else None), (0 if name == "scale" else None)
                check_number(f"{where}: {name}", number, least, 1 if name == "mark_above" else None, above=above)
        if any(low > high for low, high in zip(content["low"], content["high"])):
            raise UserError(f"{where}: 'low' must not exceed 'high'")
        found: dict[str, Any] = {name: tuple(v) if isinstance(v := content[name], list) else v for name in names}
        return cls(**found)


def continues(evidence: Float[np.ndarray, "N E"]) -> np.ndarray:
    """Return whether each token continues the unit of the token before it, [N] bool."""
    return np.isnan(evidence[:, 0])


def marked(pieces: Sequence[str], found: Sequence[Mark]) -> list[bool]:
    """Return whether each token's text is part of a mark."""
    ends = np.cumsum([len(piece) for piece in pieces])
    return [
        any(end - len(piece) < mark.end and mark.start < end for mark in found)
        for piece, end in zip(pieces, ends.tolist(), strict=True)
    ]


def shown(pieces: Sequence[str], risks: Sequence[float], before: float = 0.0) -> list[float]:
    """Return the risk that each token shows: its own, or that of the tokens just before it that show nothing by
    themselves, as white space or the first byte of a character, if it is larger.

    Args:
      pieces: what each token adds to the text.
      risks: of each token.
      before: the risk that the first token takes over.
    """
    found = []
    for piece, risk in zip(pieces, risks, strict=True):
        found.append(max(risk, before))
        before = handed_on(piece, found[-1])
    return found


def handed_on(piece: str, risk: float) -> float:
    """Return the risk that the next token takes over from a token that shows `risk`."""
    return 0.0 if piece.strip() else risk


def marks(pieces: Sequence[str], risks: Sequence[float], above: float, offset: int = 0) -> tuple[Mark, ...]:
    """Return the marks of consecutive tokens: runs of those whose risk is above a limit, without white space around.

    Args:
      pieces: what each token adds to the text.
      risks: that each token shows (`shown`).
      above: the limit.
      offset: characters of the answer before the first.
    """
    found: list[Mark] = []
    run, start, highest = "", offset, 0.0

    def close() -> None:
        if text := run.strip():
            first = start + len(run) - len(run.lstrip())
            found.append(Mark(first, first + len(text), round(highest, 4)))

    place = offset
    for piece, risk in zip(pieces, risks, strict=True):
        if risk > above:
            start, highest = (start, max(highest, risk)) if run else (place, risk)
            run += piece
        else:
            close()
            run = ""
        place += len(piece)
    close()
    return tuple(found)

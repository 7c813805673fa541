"""The slow, obvious `backtrack` and `lookahead`: a recursion over texts, without caches, batches or lengths set back.

From the words of `colm_jax.decoding.correction` alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from colm_jax.settings.generation import Correction
from tests.decoding.oracle import log_softmax

# What is known behind a text: log-probabilities [M+1,V] of base and experts, log P(Z=z) [M+1]
Behind = Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]]


@dataclass
class Corrector:
    """Writes one text."""

    behind: Behind
    correction: Correction
    ahead: bool  # lookahead
    threshold: float
    limit: int  # length at which the text ends
    eos: tuple[int, ...]
    trials: list[int] = field(default_factory=list)  # places that were put on trial
    taken_back: int = 0  # candidates that did not stay

    def plain(self, text: tuple[int, ...]) -> tuple[int, int, float]:
        """Token, source and log-probability by plain deferral."""
        log_p, writers = self.behind(text)
        source = 1 + int(np.argmax(writers[1:])) if self.deferred(text) else 0
        token = int(np.argmax(log_p[source]))
        return token, source, log_p[source][token]

    def deferred(self, text: tuple[int, ...]) -> bool:
        return 1 - math.exp(self.behind(text)[1][0]) > self.threshold

    def ends(self, text: tuple[int, ...], token: int) -> bool:
        return token in self.eos or len(text) + 1 >= self.limit

    def candidates(self, text: tuple[int, ...]) -> tuple[list[tuple[int, int, float]], float]:
        """(token, source, log share of the mixture) in order, and the expert's top probability."""
        log_p, writers = self.behind(text)
        z = 1 + int(np.argmax(writers[1:]))
        joint = np.stack([writers[0] + log_p[0], writers[z] + log_p[z]])
        with np.errstate(divide="ignore"):
            mixture = np.log(np.exp(joint).sum(0))
        first = int(np.argmax(log_p[z]))
        others = [int(v) for v in np.argsort(-mixture, kind="stable") if v != first]
        chosen = [(first, z, mixture[first])]
        for v in others[: self.correction.candidates - 1]:
            chosen.append((v, z if joint[1, v] > joint[0, v] else 0, mixture[v]))
        return chosen, math.exp(log_p[z].max())

    def follow(self, text: tuple[int, ...], token: int, score: float) -> tuple[list[tuple[int, int]], float]:
        """What the team writes behind a candidate while it is watched: (token, source) of each, and the score."""
        written: list[tuple[int, int]] = []
        if self.ends(text, token):
            return written, score
        text = (*text, token)
        for _ in range(self.correction.watch):
            if not self.ahead and (score < self.correction.bound or self.deferred(text)):
                break  # a deferred token is on trial itself
            token, source, log_p = self.plain(text)
            score += log_p
            written.append((token, source))
            if self.ends(text, token):
                break
            text = (*text, token)
        return written, score

    def at_place(self, text: tuple[int, ...]) -> list[tuple[int, int]]:
        """What a deferred place becomes, with the watched tokens behind it."""
        candidates, top = self.candidates(text)
        unsure = top < self.correction.sure
        if self.ahead and not unsure:
            return [candidates[0][:2]]
        self.trials.append(len(text))
        if self.ahead:
            followed = [self.follow(text, token, share) for token, _, share in candidates]
            best = max(range(len(candidates)), key=lambda c: followed[c][1])
            self.taken_back += len(candidates) - 1
            stays = followed[best][0] if best == len(candidates) - 1 else []
            return [candidates[best][:2], *stays]
        for token, source, _ in candidates[1:] if unsure else candidates:
            written, score = self.follow(text, token, 0.0)
            if score >= self.correction.bound:
                return [(token, source), *written]
            self.taken_back += 1
        return [candidates[0][:2]]

    def write(self, prompt: list[int]) -> list[tuple[int, int]]:
        """(token, source) of all that is written."""
        text, written = tuple(prompt), []
        while len(text) < self.limit:
            new = self.at_place(text) if self.deferred(text) else [self.plain(text)[:2]]
            for token, source in new:
                if token in self.eos:
                    return written
                written.append((token, source))
                text = (*text, token)
        return written


def memory(read_all: Callable[[tuple[int, ...]], tuple[list[np.ndarray], np.ndarray]]) -> Behind:
    """From logits of all models and gate logits; what was known behind a text before is not worked out again."""
    known: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def behind(text: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        if text not in known:
            logits, gate = read_all(text)
            known[text] = np.stack([log_softmax(x) for x in logits]), log_softmax(np.array([0.0, *gate]))
        return known[text]

    return behind

"""The slow, obvious decoder: no cache, no batch, no jitted loop; every step reads every text anew, in every model."""

import math

import numpy as np

from colm_jax.models.decoder import Decoder
from tests.tiny import run

LENGTH = 128  # texts are padded to this, so that one compiled program serves


def _read(decoder: Decoder, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(tokens)] = tokens
    hidden, logits = run(decoder, padded)
    return np.asarray(hidden[0, len(tokens) - 1], np.float64), np.asarray(logits[0, len(tokens) - 1], np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def eta(t: int, threshold: float, schedule: str, warmup: int) -> float:
    if schedule == "constant" or t >= warmup:
        return threshold
    if schedule == "linear":
        return 1 + (threshold - 1) * t / warmup
    if schedule == "cosine":
        return threshold + (1 - threshold) / 2 * (math.cos(math.pi * t / warmup) + 1)
    return threshold ** (t / warmup)


def decode(
    base, kernel, experts, prompt, *, strategy, threshold, new, eos=(), words=None, schedule="constant", warmup=0
):
    """Greedy decoding of one prompt: (tokens, sources, p_defer), straight from DESIGN section 1."""
    tokens, written, sources, rates = list(prompt), [], [], []
    for t in range(new):
        hidden, logits = _read(base, tokens)
        all_logits = [logits[:words], *(_read(expert, tokens)[1][:words] for expert in experts)]
        log_p = [log_softmax(x) for x in all_logits]
        gate = np.array([0.0, *(hidden @ kernel)]) if kernel is not None else np.zeros(1 + len(experts))
        writers = log_softmax(gate)
        p = 1 - math.exp(writers[0])
        deferred = p > eta(t, threshold, schedule, warmup)
        best_expert = 1 + int(np.argmax(gate[1:])) if experts else 0
        if strategy == "base":
            token, source = int(np.argmax(log_p[0])), 0
        elif strategy == "expert":
            token, source = int(np.argmax(log_p[1])), 1
        elif strategy == "defer":
            source = best_expert if deferred else 0
            token = int(np.argmax(log_p[source]))
        elif strategy == "compose":
            joint = np.stack([w + lp for w, lp in zip(writers, log_p)])
            mixture = np.exp(joint).sum(0)
            token = int(np.argmax(mixture if deferred else log_p[0]))
            source = int(np.argmax(joint[:, token])) if deferred else 0
        elif strategy == "confidence":
            tops = [lp.max() for lp in log_p]
            source = 1 + int(np.argmax(tops[1:])) if max(tops[1:]) >= tops[0] else 0
            token = int(np.argmax(log_p[source]))
        elif strategy == "contrastive":
            token, source = int(np.argmax(log_p[1] - log_p[0])), 1
        elif strategy == "contrastive_v2":
            value = 1.5 * all_logits[1] - 0.5 * all_logits[0]
            value[value < math.log(0.1) + all_logits[1].max()] = -np.inf
            token, source = int(np.argmax(value)), 1
        elif strategy == "proxy":
            token, source = int(np.argmax(all_logits[1] + all_logits[0] - all_logits[2])), 1
        if token in eos:
            break
        tokens.append(token)
        written.append(token)
        sources.append(source)
        rates.append(p)
    return written, sources, rates


def _choice(base, kernel, experts, tokens, threshold, words, barred=()):
    """One step of plain deferral with one expert, or, with tokens barred, of the mixture.

    Returns:
      The token, its source, its log-probability under what it was taken from, whether it is deferred, the expert's
      highest probability, and the logarithm of the token's share in the mixture.
    """
    hidden, logits = _read(base, tokens)
    low, high = log_softmax(logits[:words]), log_softmax(_read(experts[0], tokens)[1][:words])
    stay, call = log_softmax(np.array([0.0, *(hidden @ kernel)]))
    deferred = 1 - math.exp(stay) > threshold
    parts = np.stack([stay + low, call + high])
    mixture = np.logaddexp(*parts)
    if barred:
        weights = mixture.copy()
        weights[list(barred)] = -np.inf
        token = int(np.argmax(weights))
        source = int(parts[1, token] > parts[0, token])
    else:
        weights, source = (high, 1) if deferred else (low, 0)
        token = int(np.argmax(weights))
    return token, source, log_softmax(weights)[token], deferred, math.exp(high.max()), mixture[token]


def correct(base, kernel, experts, prompt, strategy, threshold, new, settings, eos=(), words=None):
    """Strategies `backtrack` and `lookahead`: (tokens, sources). The text is a list that grows and is cut back."""
    text, sources, end = list(prompt), [], False
    place, number, tried, writers, scores, settled = None, 0, [], [], [], None

    def ends(token):
        return token in eos or len(text) - len(prompt) >= new

    while not end:
        at = len(text)
        retry = place == at
        barred = tried[:number] if retry and settled is None else []
        token, source, log_p, deferred, sure, share = _choice(
            base, kernel, experts, text, threshold, words, tuple(barred)
        )
        if not retry and deferred and (place is None if strategy == "lookahead" else True):
            unsure = sure < settings.sure
            if strategy == "backtrack" or unsure:
                place, number, tried, writers, scores = at, 0, [token], [1], []
                if strategy == "backtrack" and unsure:
                    number, scores = 1, [None]
                    token, source, log_p, _, _, share = _choice(
                        base, kernel, experts, text, threshold, words, tuple(tried)
                    )
        if retry and settled is not None:
            token, source, place, settled = tried[settled], writers[settled], None, None
        elif place == at:
            tried, writers = [*tried[:number], token], [*writers[:number], source]
            scores = [*scores[:number], share if strategy == "lookahead" else 0.0]
        elif place is not None:
            scores[number] += log_p
        if token not in eos:
            text.append(token)
            sources.append(source)
        end = ends(token)
        if place is None:
            continue
        done = end or at - place >= settings.watch
        more, back = number + 1 < settings.candidates, False
        if strategy == "lookahead" and done:
            if more:
                number, back = number + 1, True
            elif int(np.argmax(scores)) != number:
                settled, back = int(np.argmax(scores)), True
        if strategy == "backtrack" and scores[number] < settings.bound:
            back = True
            if more:
                number += 1
            else:
                settled = 0
        if back:
            text, sources, end = text[:place], sources[: place - len(prompt)], False
        elif done:
            place = None
    return text[len(prompt) :], sources

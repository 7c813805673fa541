"""The slow, obvious decoder: no cache, no batch, no jitted loop; every step reads every text anew, in every model."""

import math

import numpy as np

from colm_jax.models.decoder import Decoder
from tests.tiny import run

LENGTH = 128  # texts are padded to this, so that one compiled program serves


def read(decoder: Decoder, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(tokens)] = tokens
    hidden, logits = run(decoder, padded)
    return np.asarray(hidden[0, len(tokens) - 1], np.float64), np.asarray(logits[0, len(tokens) - 1], np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def gate_logits(kernel: np.ndarray, hidden: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """What a gate says, of hidden states [D] and logits over the shared vocabulary [V]; by its rows it reads both."""
    if len(kernel) == len(hidden):
        return hidden @ kernel
    log_p = log_softmax(logits.astype(np.float64))
    log_p = log_p[np.isfinite(log_p)]
    second, first = np.sort(log_p)[-2:]
    return np.concatenate([hidden, [-np.sum(np.exp(log_p) * log_p), first, min(first - second, 30.0)]]) @ kernel


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
        hidden, logits = read(base, tokens)
        all_logits = [logits[:words], *(read(expert, tokens)[1][:words] for expert in experts)]
        log_p = [log_softmax(x) for x in all_logits]
        gate = np.zeros(1 + len(experts))
        if kernel is not None:
            gate[1:] = gate_logits(kernel, hidden, all_logits[0])
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

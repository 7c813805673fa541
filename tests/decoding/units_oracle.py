"""The slow, obvious decoder by units: no cache, no batch, no table; every step encodes and reads all texts anew."""

import jax
import jax.numpy as jnp
import numpy as np

from colm_jax.models.sampling import SamplingParams, sample
from colm_jax.seeds import random_key
from colm_jax.team import CoLM
from colm_jax.text.spans import SpanEncoder, SpanRule
from tests.decoding.oracle import eta, gate_logits, log_softmax
from tests.tiny import run

LENGTH = 192  # texts are padded to this, so that one compiled program serves


def read(decoder, tokens):
    """The last hidden state, and the logits that follow."""
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(tokens)] = tokens
    hidden, logits = run(decoder, padded)
    return np.asarray(hidden[0, len(tokens) - 1]), np.array(logits[0, len(tokens) - 1])


class Oracle:
    """A team whose experts are guests, each with a tokenizer of its own."""

    def __init__(self, team: CoLM):
        self.team, self.tokenizers = team, team.units.tokenizers
        self.decoders = [team.base, *(expert.decoder for expert in team.experts)]
        self.rule, self.encoders = SpanRule.of(self.tokenizers), [SpanEncoder(each) for each in self.tokenizers]
        self.kernel = None if team.gate is None else np.asarray(team.gate.kernel[...])
        self.computed: list[int] = []  # tokens that were computed for each accepted unit

    def text(self, model, tokens):
        """What tokens add within a text, parts of characters as bytes."""
        known = self.tokenizers[model].token_bytes
        return b"".join(known.within(token) for token in tokens if known.special(token) is None)

    def opens(self, model, before, token):
        """Whether a token opens a unit behind the text `before` (bytes; None: the prompt), by its first character."""
        tokenizer = self.tokenizers[model]
        if token in tokenizer.eos_ids:
            return True
        added = b"" if tokenizer.token_bytes.special(token) is not None else tokenizer.token_bytes.within(token)
        size = next((n for n in range(1, 5) if _decodes(added[:n])), 0)
        if not size or not _decodes(added[:size]):
            return False
        if not before:  # after the prompt, or a special token
            return True
        left = next((before[-n:] for n in range(1, 1 + len(before)) if _is_start(before[-n])), b"")
        return bool(left) and _decodes(left) and self.rule.opens(left.decode(), added[:size].decode())

    def opening(self, model, before, allowed, ends=True):
        """Which allowed tokens open a unit there."""
        eos = self.tokenizers[model].eos_ids
        found = [allowed[v] and self.opens(model, before, v) and (ends or v not in eos) for v in range(len(allowed))]
        return np.array(found)

    def allowed(self, model):
        """The base's vocabulary; of an expert, what adds to a text, and its ends of text."""
        tokenizer = self.tokenizers[model]
        found = np.zeros(self.decoders[model].config.vocab_size, bool)
        for token in range(min(tokenizer.size, len(found))):
            special = tokenizer.token_bytes.special(token) is not None
            adds = bool(tokenizer.words[token]) if model == 0 else not special and self.text(model, [token]) != b""
            found[token] = adds or token in tokenizer.eos_ids
        return found

    def encode(self, model, text, before=""):
        """Canonical tokens of a text, which is encoded with all that is before it."""
        whole, head = (self.encoders[model].encode(part, "") for part in (before + text, before))
        if whole.ids[: len(head.ids)] == head.ids:  # Unigram's offsets do not tell the bytes of a run apart
            return list(whole.ids[len(head.ids) :])
        return [i for i, (start, _) in zip(whole.ids, whole.offsets) if start >= len(before)]

    def write(self, m, view, answer, key, sampling):
        """An expert's unit: its text, or None where it writes none."""
        allowed, own = self.allowed(m), self.encode(m, "".join(self.shown(0, unit) for unit in answer))
        before, ids = self.text(m, own[-1:]) if own else None, [*view, *own]
        may = self.opening(m, before, allowed, ends=False)
        if not may.any():
            return None
        tokens, computed = [], 0
        while len(tokens) < 32:
            logits = read(self.decoders[m], [*ids, *tokens])[1]
            mask = may if not tokens else allowed
            own = key if not tokens else jax.random.fold_in(key, len(tokens))
            token, computed = _sample(np.where(mask, logits, -np.inf), own, sampling), computed + 1
            if tokens and self.opens(m, self.text(m, tokens[-1:]), token):
                break
            tokens.append(token)
        while tokens and not self.opening(m, self.text(m, tokens[-1:]), allowed, ends=False).any():
            tokens.pop()
        self.computed.append(computed)
        return self.shown(m, self.text(m, tokens)) if tokens else None

    def shown(self, model, read):
        """Bytes as text."""
        return read.decode("utf-8", self.tokenizers[model].token_bytes.invalid)

    def decode(self, prompts, settings, key=0):
        """Tokens, sources, p_defer and calls of one answer, with why it ended."""
        new, strategy = settings.max_new_tokens, settings.strategy
        sampling, keys = SamplingParams.of(settings), jax.random.fold_in(random_key(settings.seed), key)
        tokens, sources, rates, texts, calls, closed, p_unit = [], [], [], [], 0, False, 0.0
        allowed, eos = self.allowed(0), self.tokenizers[0].eos_ids
        while len(tokens) < new:
            own = jax.random.fold_in(keys, len(tokens))
            hidden, logits = read(self.decoders[0], [*prompts.base, *tokens])
            before = self.text(0, tokens[-1:]) if tokens else None
            mask = allowed
            if closed and self.opening(0, before, allowed, ends=False).any():
                mask = self.opening(0, before, allowed)
            token = _sample(np.where(mask, logits, -np.inf), own, sampling)
            begins = not tokens or self.opens(0, before, token)
            if begins:
                gate = np.zeros(1)
                if self.kernel is not None:
                    gate = gate_logits(self.kernel, hidden, np.where(allowed, logits, -np.inf))
                p = 1 - np.exp(log_softmax(np.array([0.0, *gate]))[0])
                writer = 1 + int(np.argmax(gate))
                deferred = p > eta(len(tokens), settings.threshold, settings.schedule, settings.warmup)
                if strategy == "random":
                    deferred = jax.random.uniform(jax.random.fold_in(own, 1)) < settings.rate
                elif strategy == "expert":
                    writer, deferred = 1, token not in eos
                p_unit, calls = p, calls + bool(deferred and strategy != "base")
                if deferred and strategy != "base":
                    found = self.write(writer, prompts.experts[writer - 1], texts, own, sampling)
                    if found is not None:
                        written = self.encode(0, found, "".join(self.shown(0, unit) for unit in texts))
                        if self.shown(0, self.text(0, written)) == found:
                            written = written[: new - len(tokens)]
                            texts.append(self.text(0, written))
                            closed, tokens = True, [*tokens, *written]
                            sources, rates = sources + [writer] * len(written), rates + [p] * len(written)
                            continue
            if token in eos:
                return tokens, sources, rates, calls, "eos"
            closed = False
            texts = [*texts, b""] if begins else texts
            texts[-1] += self.text(0, [token])
            tokens, sources, rates = [*tokens, token], [*sources, 0], [*rates, p_unit]
        return tokens, sources, rates, calls, "length"


def _decodes(read):
    try:
        return bool(read.decode())
    except UnicodeDecodeError:
        return False


def _is_start(byte):
    return byte & 0xC0 != 0x80


_jitted = jax.jit(sample)


def _sample(logits, key, sampling):
    params = jax.tree.map(lambda x: x[None], sampling)
    return int(_jitted(jnp.asarray(logits)[None], key[None], params, jnp.ones((1,), bool))[0])

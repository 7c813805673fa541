"""Bodies of responses: answers, their chunks, and log-probabilities, in OpenAI's shapes with "colm" beside them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from colm_jax.decoding.candidates import TOP, Candidates
from colm_jax.decoding.requests import Generation, Token
from colm_jax.decoding.risk import marks
from colm_jax.serving.metrics import writer
from colm_jax.text.detokenizer import REPLACEMENT, TokenBytes
from colm_jax.text.generated import GeneratedText, cut

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
LIKELY = ("defer", "base", "expert")  # strategies under which a text has a probability


def finish_reason(answer: Generation) -> str:
    """Return OpenAI's name for why an answer ended."""
    return _REASONS[answer.finish_reason]


def of_tokens(tokens: Sequence[Token], offset: int = 0) -> dict[str, Any]:
    """Return "colm" of some tokens of a stream, before which the answer has `offset` characters."""
    check = marks([token.text for token in tokens], [token.check or 0.0 for token in tokens], 0.0, offset)
    return {
        "tokens": [token.token for token in tokens],
        "pieces": [token.text for token in tokens],
        "sources": [token.source for token in tokens],
        "p_defer": [token.p_defer for token in tokens] if all(t.p_defer is not None for t in tokens) else None,
        "threshold": [token.threshold for token in tokens],
        "expert_calls": sum(token.calls for token in tokens),
        "check": [asdict(mark) for mark in check],
    }


def of_answer(answer: Generation, texts: "TokenTexts") -> dict[str, Any]:
    """Return "colm" of an answer."""
    return {
        "tokens": answer.tokens,
        "pieces": texts.pieces_of(answer),
        "sources": answer.sources,
        "p_defer": answer.p_defer,
        "threshold": answer.threshold,
        "expert_calls": answer.expert_calls,
        "check": [asdict(mark) for mark in answer.check or ()],
        **ending(answer),
    }


def ending(answer: Generation) -> dict[str, Any]:
    """Return what "colm" has of an answer as a whole."""
    facts: dict[str, Any] = {
        "finish_reason": answer.finish_reason,
        "guesses": answer.guesses,
        "hits": answer.hits,
    }
    if answer.risk is not None:
        facts["risk"] = round(answer.risk, 4)
    if answer.sent is not None:
        facts |= {"sent": answer.sent, "lost": list(answer.lost)}
    return facts


def usage(prompts: Sequence[int], answers: Sequence[Generation]) -> dict[str, int]:
    """Return the tokens of a request's prompts and of its answers."""
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": sum(prompts), "completion_tokens": written, "total_tokens": sum(prompts) + written}


class TokenTexts:
    """How single tokens are shown."""

    def __init__(self, token_bytes: TokenBytes):
        """Keeps the bytes of each token."""
        self._bytes = token_bytes

    def pieces(self, tokens: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
        """Return what each token adds to the text after a prompt."""
        text = GeneratedText(self._bytes, prompt)
        text.extend(tokens)
        text.finish()
        return text.pieces

    def pieces_of(self, answer: Generation) -> list[str]:
        """Return what each token adds to an answer's text."""
        return cut(self.pieces(answer.tokens, answer.prompt_ids), len(answer.text))

    def raw(self, token: int) -> bytes:
        """Return a token's bytes; of a special one those of its spelling."""
        special = self._bytes.special(token)
        return self._bytes.within(token) if special is None else special.encode()

    def text(self, token: int) -> str:
        """Return a token's text; a part of a character is shown as OpenAI shows it, by its bytes."""
        raw = self.raw(token)
        text = raw.decode("utf-8", "replace")
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw) if REPLACEMENT in text else text


class LogProbs:
    """Log-probabilities of a text's tokens under a strategy, and the likeliest tokens in their places."""

    def __init__(self, found: Candidates, ids: Sequence[int], strategy: str, threshold: float, texts: TokenTexts):
        """Choose the columns of a strategy.

        Args:
          found: of the text.
          ids: the text.
          strategy: one of LIKELY.
          threshold: above which the expert writes.
          texts: how tokens are shown.
        """
        self._ids, self._texts = ids, texts
        column = {"base": 0, "expert": 1, "defer": found.log_probs.shape[1] - 1}[strategy]
        self._own = found.log_probs[:, column].astype(np.float64)
        self._top_ids, self._top = found.top_ids[:, column], found.top_log_probs[:, column].astype(np.float64)
        if strategy == "defer":  # first what the team would write: the first choice of the token's writer
            logits = np.column_stack([np.zeros(len(ids)), found.gate_logits.astype(np.float64)])
            odds = np.exp(logits - logits.max(1, keepdims=True))
            deferred = 1 - odds[:, 0] / odds.sum(1) > threshold
            writers = (
                np.where(deferred, 1 + found.gate_logits.argmax(1), 0)
                if logits.shape[1] > 1
                else np.zeros(len(ids), int)
            )
            places = np.arange(len(ids))
            self._first = found.top_ids[places, writers, 0], found.team_log_probs[places, writers].astype(np.float64)
        else:
            self._first = self._top_ids[:, 0], self._top[:, 0]

    def end(self, eos_ids: Sequence[int]) -> int:
        """Append the end of text that followed: the likeliest one. Return it."""
        place = len(self._ids)
        known = dict(self.top(place, TOP + 1))
        token = max(eos_ids, key=lambda token: known.get(token, -np.inf))
        self._ids = [*self._ids, token]
        self._own[place - 1] = known.get(token, -np.inf)
        return token

    def of(self, place: int) -> float:
        """Return the log-probability of the text's token at a place from 1 on."""
        if self._ids[place] == self._first[0][place - 1]:
            return float(self._first[1][place - 1])  # the very number that `top` has
        return float(self._own[place - 1])

    def top(self, place: int, count: int) -> list[tuple[int, float]]:
        """Return tokens that might stand at a place from 1 on: what would be written, then the likeliest others."""
        first = int(self._first[0][place - 1]), float(self._first[1][place - 1])
        pairs = zip(self._top_ids[place - 1].tolist(), self._top[place - 1].tolist())
        others = [(token, value) for token, value in pairs if token != first[0] and value > -np.inf]
        return [first, *others][:count]

    def completions(self, begin: int, end: int, count: int, offset: int, pieces: Sequence[str]) -> dict[str, Any]:
        """Return "logprobs" of /v1/completions for the tokens from `begin` to `end`.

        Args:
          begin: of the first token.
          end: after the last one.
          count: of the most probable tokens in each place.
          offset: characters of the choice's text before the first.
          pieces: what each adds to the text.
        """
        places = range(begin, end)
        offsets = [offset, *(offset + np.cumsum([len(piece) for piece in pieces]))][: len(places)]
        shown = [_finite(self.of(place)) if place else None for place in places]
        return {
            "tokens": [self._texts.text(self._ids[place]) for place in places],
            "token_logprobs": shown,
            "top_logprobs": [
                {self._texts.text(token): _finite(value) for token, value in reversed(self.top(place, count))}
                if place and count
                else None
                for place in places
            ],
            "text_offset": [int(number) for number in offsets],
        }

    def chat(self, begin: int, end: int, count: int) -> dict[str, Any]:
        """Return "logprobs" of /v1/chat/completions for the tokens from `begin` to `end`."""

        def entry(token: int, value: float) -> dict[str, Any]:
            return {
                "token": self._texts.text(token),
                "logprob": _finite(value),
                "bytes": list(self._texts.raw(token)),
            }

        content = [
            {
                **entry(self._ids[place], self.of(place)),
                "top_logprobs": [entry(*each) for each in self.top(place, count)] if count else [],
            }
            for place in range(begin, end)
        ]
        return {"content": content, "refusal": None}


def _finite(value: float) -> float:
    """Return a number that JSON has: OpenAI's least log-probability in place of -inf."""
    return max(value, -9999.0)


def candidates_body(found: Candidates, top: int, texts: TokenTexts, has_gate: bool) -> dict[str, Any]:
    """Return what each model would write after a text, for the page."""
    ids, values = found.top_ids[-1], found.top_log_probs[-1]
    experts = ids.shape[0] - 2
    names = [*(writer(source) for source in range(experts + 1)), "team"]
    has_gate = has_gate and experts > 0  # experts that work on spans are not read here
    logits = np.concatenate([np.zeros(1), found.gate_logits[-1].astype(np.float64)])
    odds = np.exp(logits - logits.max())
    return {
        "p_defer": float(1 - odds[0] / odds.sum()) if has_gate else None,
        "models": {
            name: [
                {"token": token, "text": texts.text(token), "logprob": value}
                for token, value in zip(own.tolist()[:top], log_probs.tolist()[:top])
                if value > -np.inf
            ]
            for name, own, log_probs in zip(names, ids, values, strict=True)
            if experts or name != "team"
        },
    }

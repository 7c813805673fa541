"""What a caller asks of generation and what comes back: settings checked, prompts as requests, answers as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colm_jax.data.records import check_shared, encode_prompt
from colm_jax.data.tokenizer import Tokenizer
from colm_jax.decoding.correction import Correction
from colm_jax.decoding.engine import Answer, Options, Request
from colm_jax.decoding.parking import Parking
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.schedule import check_schedule, check_threshold
from colm_jax.decoding.strategies import Strategy
from colm_jax.errors import UserError

Prompt = str | dict[str, Any]


@dataclass(frozen=True)
class Generation:
    """One answer; the lists have an entry per written token."""

    prompt_ids: list[int]
    text: str
    tokens: list[int]
    sources: list[int]  # 0 the base, 1..M an expert
    p_defer: list[float] | None  # None for strategies without a gate
    threshold: list[float]
    finish_reason: str  # "eos", "stop" or "length"
    expert_calls: int
    sample: int = 0  # which of its prompt's samples this is
    log_probs: list[list[float]] | None = None  # of each token under base and experts, nats; None where not asked for


@dataclass(frozen=True)
class Token:
    """One token of an answer that is being written."""

    token: int
    source: int  # 0 the base, 1..M an expert
    p_defer: float | None  # None for strategies without a gate
    threshold: float
    text: str  # what it adds to the answer


@dataclass(frozen=True)
class Settings:
    """How answers are written. A sequence has an entry for each prompt; see `CoLM.generate`."""

    threshold: float | Sequence[float]
    max_new_tokens: int | Sequence[int] = 96
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    samples: int = 1
    stop: str | Sequence[str] | None = None
    schedule: str | Sequence[str] = "constant"
    warmup: int | Sequence[int] = 0
    rate: float = 0.5
    batch_size: int = 8
    correction: Correction | None = None
    parking: Parking | None = None

    def __post_init__(self):
        """Rejects settings that cannot be meant."""
        for name in ("batch_size", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not 0 <= self.rate <= 1:
            raise UserError(f"rate must be a number from 0 to 1, got {self.rate!r}")
        if "" in self.stops:
            raise UserError("stop strings must not be empty")

    @property
    def stops(self) -> list[str]:
        """The strings that end a text."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def options(self, strategy: Strategy) -> Options:
        """What all requests share."""
        sampling = Sampling(self.temperature, self.top_p, self.top_k, self.min_p)
        return Options(strategy, sampling, self.rate, self.seed, self.batch_size, self.correction, self.parking)

    def requests(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[int],
        places: Sequence[str],
        tokenizer: Tokenizer,
        context: int,
        allowed,
    ) -> list[Request]:
        """Every sample of every prompt as a request, a prompt's samples side by side.

        Args:
          prompts: strings or records.
          keys: of each prompt's random numbers.
          places: of each in errors.
          tokenizer: the base's.
          context: of the team, in tokens.
          allowed: [V] the shared vocabulary.

        Raises:
          UserError: a setting out of range, or a prompt that leaves no room in the context.
        """
        count, found = len(prompts), []
        columns = [_each(self, name, count) for name in ("threshold", "max_new_tokens", "schedule", "warmup")]
        for prompt, key, where, threshold, new, schedule, warmup in zip(prompts, keys, places, *columns):
            ids = encode_prompt(prompt, tokenizer, where)
            if len(ids) >= context:
                raise UserError(f"{where}: {len(ids)} tokens leave no room in the context of {context}; shorten it")
            check_shared(ids, allowed, tokenizer, where)
            if not isinstance(new, int) or new < 1:
                raise UserError(f"max_new_tokens must be a whole number of at least 1, got {new!r}")
            eta, number = check_threshold(threshold), check_schedule(schedule, warmup)
            found += [Request(ids, eta, new, key, sample, number, warmup) for sample in range(self.samples)]
        return found


def _each(settings: Settings, name: str, count: int) -> list[Any]:
    """A setting of each prompt."""
    value = getattr(settings, name)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise UserError(f"{name}: {len(value)} values for {count} prompts")
    return list(value)


class Writer:
    """Turns what was written behind a prompt into text, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, list(stops)

    def text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """What the tokens add to the prompt (a tokenizer may trim the first space of a text read alone)."""
        before, after = self._tokenizer.decode(list(prompt)), self._tokenizer.decode([*prompt, *tokens])
        return after[len(before) :] if after.startswith(before) else self._tokenizer.decode(list(tokens))

    def kept(self, prompt: Sequence[int], tokens: Sequence[int]) -> int | None:
        """How many tokens stay because a stop string is complete; None while none is."""
        if not self._in(self.text(prompt, tokens)):
            return None
        return next(n for n in range(len(tokens) + 1) if self._in(self.text(prompt, tokens[:n])))

    def _in(self, text: str) -> bool:
        return any(stop in text for stop in self._stops)

    def cut(self, text: str) -> str:
        """The text in front of the first stop string."""
        return text[: min((text.find(stop) for stop in self._stops if stop in text), default=len(text))]

    def settled(self, text: str) -> str:
        """The part of an unfinished text that no stop string and no further token can change any more."""
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # half of a character: the rest is to come
        longest = (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return text[: len(text) - max(longest, default=0)]

    def generation(self, request: Request, answer: Answer, has_gate: bool) -> Generation:
        """A finished answer, as the caller gets it."""
        assert answer.finish_reason is not None
        text = self.text(request.prompt, answer.tokens)
        return Generation(
            prompt_ids=list(request.prompt),
            text=self.cut(text) if answer.finish_reason == "stop" else text,
            tokens=answer.tokens,
            sources=answer.sources,
            p_defer=answer.p_defer if has_gate else None,
            threshold=answer.threshold,
            finish_reason=answer.finish_reason,
            expert_calls=answer.expert_calls,
            sample=request.sample,
        )

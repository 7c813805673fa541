"""What a caller asks of generation and what comes back: settings checked, prompts as requests, answers as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from colm_jax.checks import check_number, check_seed, check_whole
from colm_jax.data.records import encode_fitting_prompt
from colm_jax.decoding.correction import Correction
from colm_jax.decoding.engine import Answer, Options, Request
from colm_jax.decoding.parking import Parking
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.schedule import SCHEDULES, check_schedule, check_threshold
from colm_jax.decoding.strategies import Strategy
from colm_jax.errors import UserError
from colm_jax.text.generated import GeneratedText
from colm_jax.text.tokenizer import Tokenizer

Prompt = str | dict[str, Any]
T = TypeVar("T")


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
    stop_token_ids: Sequence[int] | None = None
    schedule: str | Sequence[str] = "constant"
    warmup: int | Sequence[int] = 0
    rate: float = 0.5
    batch_size: int = 8
    correction: Correction | None = None
    parking: Parking | None = None

    def __post_init__(self):
        """Validates every setting; NumPy scalars and vectors become Python's numbers and lists."""
        sampling = Sampling(self.temperature, self.top_p, self.top_k, self.min_p)
        checked = {
            **vars(sampling),
            "threshold": _of_each(check_threshold, self.threshold),
            "max_new_tokens": _of_each(partial(check_whole, "max_new_tokens", least=1), self.max_new_tokens),
            "schedule": _of_each(check_schedule, self.schedule),
            "warmup": _of_each(partial(check_whole, "warmup"), self.warmup),
            "batch_size": check_whole("batch_size", self.batch_size, 1),
            "samples": check_whole("samples", self.samples, 1),
            "rate": check_number("rate", self.rate, 0, 1),
            "seed": check_seed("seed", self.seed),
        }
        for name, several in (("stop", self.stop), ("stop_token_ids", self.stop_token_ids)):
            if several is not None and not isinstance(several, Sequence | np.ndarray):
                raise UserError(f"{name} must be a list, got {several!r:.60}")
        if self.stop_token_ids is not None:
            checked["stop_token_ids"] = [check_whole("stop_token_ids", token) for token in self.stop_token_ids]
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise UserError(f"stop must be a string that is not empty, or several, got {stop!r}")

    @property
    def stops(self) -> list[str]:
        """The strings that end a text."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def stop_ids(self) -> list[int]:
        """The ids of tokens that end a text."""
        return list(self.stop_token_ids or [])

    def check_stop_ids(self, tokenizer: Tokenizer) -> None:
        """Raises UserError for a stop token that the vocabulary does not hold."""
        for token in self.stop_ids:
            if token >= tokenizer.size:
                raise UserError(f"stop_token_ids: {token} is no token; the vocabulary ends at {tokenizer.size - 1}")

    def text(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> GeneratedText:
        """The text of an answer to a prompt, as yet empty."""
        return GeneratedText(tokenizer.token_bytes, prompt, self.stops, self.stop_ids)

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
          UserError: a bad prompt, one that leaves no room in the context, or a setting with a value for each of
            another number of prompts.
        """
        self.check_stop_ids(tokenizer)
        count, found = len(prompts), []
        columns = [_each(self, name, count) for name in ("threshold", "max_new_tokens", "schedule", "warmup")]
        for prompt, key, where, threshold, new, schedule, warmup in zip(prompts, keys, places, *columns):
            ids = encode_fitting_prompt(prompt, tokenizer, context, allowed, where)
            number = SCHEDULES.index(schedule)
            found += [Request(ids, threshold, new, key, sample, number, warmup) for sample in range(self.samples)]
        return found


def _of_each(check: Callable[[Any], T], value: Any) -> T | list[T]:
    """A setting, checked: one value for all prompts, or a list of one for each."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    return [check(item) for item in value] if isinstance(value, list | tuple) else check(value)


def _each(settings: Settings, name: str, count: int) -> list[Any]:
    """A setting of each prompt."""
    value = getattr(settings, name)
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise UserError(f"{name}: {len(value)} values for {count} prompts")
    return value


def generation(request: Request, answer: Answer, text: GeneratedText, has_gate: bool) -> Generation:
    """A finished answer, as the caller gets it; `text` has read its tokens or reads them now."""
    assert answer.finish_reason is not None
    text.extend(answer.tokens)
    text.finish()
    return Generation(
        prompt_ids=list(request.prompt),
        text=text.text,
        tokens=answer.tokens,
        sources=answer.sources,
        p_defer=answer.p_defer if has_gate else None,
        threshold=answer.threshold,
        finish_reason=answer.finish_reason,
        expert_calls=answer.expert_calls,
        sample=request.sample,
    )

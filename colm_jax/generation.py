"""Prompts to requests: each prompt is encoded and checked once, and paired with its settings."""

from collections.abc import Sequence
from typing import Any

from colm_jax.data.units import Units
from colm_jax.decoding.requests import Request
from colm_jax.errors import UserError
from colm_jax.settings.generation import GenerationSettings
from colm_jax.text.tokenizer import Tokenizer

Prompt = str | dict[str, Any]


def check_stop_ids(settings: GenerationSettings, tokenizer: Tokenizer) -> None:
    """Raise UserError for a stop token that is not in the vocabulary."""
    for token in settings.stop_token_ids or ():
        if token >= tokenizer.size:
            raise UserError(f"stop_token_ids: {token} is no token; the vocabulary ends at {tokenizer.size - 1}")


def encode_requests(
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    units: Units,
    tokenizer: Tokenizer,
    places: Sequence[str] | None = None,
    keys: Sequence[int] | None = None,
) -> list[Request]:
    """Return a request for every sample of every prompt, a prompt's samples side by side.

    Args:
      prompts: strings or records.
      settings: of all of them.
      units: of the team, which know each model's view of a prompt.
      tokenizer: the base's.
      places: name of each prompt in errors; None: "prompt 1", ...
      keys: of each prompt's random numbers; None: its index.

    Raises:
      UserError: a bad prompt, one that leaves no room in the context, a stop token that is none, or a setting with a
        value for each of another number of prompts.
    """
    check_stop_ids(settings, tokenizer)
    count = len(prompts)
    places = [f"prompt {i + 1}" for i in range(count)] if places is None else places
    keys = range(count) if keys is None else keys
    return [
        Request(views.base, own, key, sample, views=views.experts)
        for prompt, own, key, where in zip(prompts, settings.of_prompts(count), keys, places, strict=True)
        for views in [units.prompts(prompt, where)]
        for sample in range(settings.samples)
    ]

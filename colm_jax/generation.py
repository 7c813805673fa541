"""Prompts to requests: each prompt is encoded and checked once, and paired with its settings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from colm_jax.data.records import encode_fitting_prompt
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
    tokenizer: Tokenizer,
    context: int,
    allowed: np.ndarray | None,
    places: Sequence[str] | None = None,
    keys: Sequence[int] | None = None,
) -> list[Request]:
    """Return a request for every sample of every prompt, a prompt's samples side by side.

    Args:
      prompts: strings or records.
      settings: of all of them.
      tokenizer: the base's.
      context: of the team, in tokens.
      allowed: [V] the shared vocabulary.
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
        Request(ids, own, key, sample)
        for prompt, own, key, where in zip(prompts, settings.of_prompts(count), keys, places, strict=True)
        for ids in [encode_fitting_prompt(prompt, tokenizer, context, allowed, where)]
        for sample in range(settings.samples)
    ]

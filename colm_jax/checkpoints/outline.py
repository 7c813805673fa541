"""Outline of a team without its weights, from configuration files, tokenizers and the gate's file.

Strategies, prompts and texts are validated against it before the weights are loaded, which may take minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import read_config
from colm_jax.checkpoints.team import load_tokenizers, pinned, read_facts, read_gate
from colm_jax.data.records import Examples, encode_examples, encode_fitting_prompt
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import Tokenizer, vocabulary_digest


@dataclass(frozen=True)
class Outline:
    """A team's configuration, known before its weights are loaded."""

    models: tuple[str | Path, ...]  # base and experts, as given
    directories: tuple[Path, ...]  # of these models
    tokenizer: Tokenizer  # the base's, with only the shared ones of its end-of-text ids
    expert_tokenizers: tuple[Tokenizer, ...]
    context: int  # tokens, the smallest of the models' contexts
    allowed: Bool[np.ndarray, "V"]  # the shared vocabulary
    gate_experts: int | None  # number of experts of the base's gate; None without a gate
    facts: dict[str, Any]  # colm.json, or empty

    @property
    def experts(self) -> int:
        """The number of experts, M."""
        return len(self.expert_tokenizers)

    def encode_prompts(self, prompts: Sequence[str | dict[str, Any]], places: Sequence[str]) -> list[list[int]]:
        """Return the ids of prompts. Errors as `encode_fitting_prompt`, named by the prompt's place."""
        return [
            encode_fitting_prompt(prompt, self.tokenizer, self.context, self.allowed, where)
            for prompt, where in zip(prompts, places, strict=True)
        ]

    def encode_examples(self, records: list[tuple[str, dict[str, Any]]], source: str) -> Examples:
        """Return the tokenised texts, cut at the context. Errors as `data.records.encode_examples`."""
        return encode_examples(records, self.tokenizer, self.context, source, self.allowed)


def outline_team(base: str | Path, experts: Sequence[str | Path] | None = None, weights: bool = False) -> Outline:
    """Read a team's outline, without its weights.

    Args:
      base: as in `CoLM.from_pretrained`.
      experts: likewise; None: the experts named in the team directory.
      weights: whether to download the weights of Hub names (but not load them).

    Raises:
      UserError: no such model, an unreadable configuration or tokenizer, tokenizers that disagree, or a gate that does
        not fit the base.
    """
    directory = resolve(base, weights)
    named = [pinned(e) for e in read_facts(directory).get("experts", [])] if experts is None else list(experts)
    directories = (directory, *(resolve(expert, weights) for expert in named))
    tokenizers, allowed = load_tokenizers(directories)
    configs = [*map(read_config, directories)]
    tokenizer, gate = tokenizers[0], read_gate(directory, tokenizers[0], configs[0].width)
    trained = gate.facts.get("shared_vocabulary", {}).get("sha256")
    if experts is None and trained not in (None, vocabulary_digest(tokenizer, allowed)):
        raise UserError(
            f"{base}: was trained with another shared vocabulary; restore the tokenizer files that have changed since"
        )
    return Outline(
        models=(base, *named),
        directories=directories,
        tokenizer=tokenizer,
        expert_tokenizers=tuple(tokenizers[1:]),
        context=min(config.context for config in configs),
        allowed=allowed,
        gate_experts=1 if tokenizer.has_defer_token else None if gate.kernel is None else gate.kernel.shape[1],
        facts=gate.facts,
    )

"""Outline of a team without its weights, from configuration files, tokenizers and the gate's file.

Strategies, prompts and texts are validated against it before the weights are loaded, which may take minutes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.gates import check_base, gate_directory, has_weights, refuse_gate_only
from colm_jax.checkpoints.huggingface import read_config
from colm_jax.checkpoints.team import pinned, read_facts, read_gate
from colm_jax.data.records import Examples
from colm_jax.data.span_units import SpanUnits
from colm_jax.data.token_units import TokenUnits
from colm_jax.data.units import Units, encode_units
from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig
from colm_jax.settings.models import SPANS, is_endpoint
from colm_jax.text.tokenizer import (
    DifferentVocabularies,
    Tokenizer,
    load_tokenizer,
    shared_vocabulary,
    vocabulary_digest,
)

# What names a model; or, of an expert, makes it: a class or function that takes the team's `SpanUnits` and returns an
# expert of the protocol `experts.protocol.Expert`.
Maker = Callable[[SpanUnits], Any]
Source = str | Path | Maker


@dataclass(frozen=True)
class Outline:
    """A team's configuration, known before its weights are loaded."""

    models: tuple[str | Path, ...]  # base and experts, as given
    directories: tuple[Path | None, ...]  # of these models; None: an endpoint
    tokenizer: Tokenizer  # the base's, with only the shared ones of its end-of-text ids
    expert_tokenizers: tuple[Tokenizer | None, ...]  # None: unknown
    kinds: tuple[str, ...]  # of each expert: "resident", "guest" or "remote"
    units: Units  # what one model writes at a time, and how each model reads it
    context: int  # tokens, the smallest of the contexts of base and resident experts
    allowed: Bool[np.ndarray, "V"]  # the shared vocabulary; the base's where experts are not resident
    gate_experts: int | None  # number of experts of the base's gate; None without a gate
    facts: dict[str, Any]  # colm.json, or empty
    gate: Path | None = None  # directory of a gate that was given apart from its base
    makers: tuple[Maker | None, ...] = ()  # of experts that are made by the caller; None, or none at all: it is named

    @property
    def experts(self) -> int:
        """The number of experts, M."""
        return len(self.expert_tokenizers)

    @property
    def base_directory(self) -> Path:
        """The base's directory."""
        assert self.directories[0] is not None
        return self.directories[0]

    @property
    def resident(self) -> bool:
        """Whether all experts are resident: they share the base's tokenizer and are part of the decoding loop."""
        return set(self.kinds) <= {"resident"}

    @property
    def shares_tokenizer(self) -> bool:
        """Whether every token is a unit."""
        return isinstance(self.units, TokenUnits)

    @property
    def vocabulary_digest(self) -> str:
        """Hash of what decides how texts are read: the shared vocabulary, or the tokenizers."""
        if self.shares_tokenizer:
            return vocabulary_digest(self.tokenizer, self.allowed)
        known = [self.tokenizer.digest, *("" if t is None else t.digest for t in self.expert_tokenizers)]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def encode_prompts(self, prompts: Sequence[str | dict[str, Any]], places: Sequence[str]) -> list[list[int]]:
        """Return the base's ids of prompts. Errors as `Units.prompts`, named by the prompt's place."""
        return [self.units.prompts(prompt, where).base for prompt, where in zip(prompts, places, strict=True)]

    def encode_examples(self, records: list[tuple[str, dict[str, Any]]], source: str) -> Examples:
        """Return the tokenised texts, cut at the contexts. Errors as `data.units.encode_units`."""
        return encode_units(records, self.units, source)


def outline_team(
    base: str | Path,
    experts: Sequence[Source] | None = None,
    weights: bool = False,
    spans: str = "auto",
    gate: str | Path | None = None,
) -> Outline:
    """Read a team's outline, without its weights.

    Args:
      base: as in `CoLM.from_pretrained`.
      experts: likewise; None: the experts named in the team directory.
      weights: whether to download the weights of Hub names (but not load them).
      spans: likewise; "auto" of a team directory with its own experts: as it was trained.
      gate: as in `CoLM.from_pretrained`. That the base is its own is checked where the base's weights are here.

    Raises:
      UserError: no such model, an unreadable configuration or tokenizer, tokenizers that disagree where one is to be
        shared, or a gate that does not fit the base.
    """
    if spans not in SPANS:
        raise UserError(f"spans must be one of {', '.join(SPANS)}, got {spans!r}")
    if is_endpoint(base):
        raise UserError(f"base {base}: the base decides token by token and must be here; endpoints are for experts")
    directory = resolve(base, weights)
    apart = None if gate is None else gate_directory(gate)
    if apart is None:
        refuse_gate_only(base, directory)
    elif has_weights(directory):
        check_base(apart, base, directory)
    known = read_facts(apart or directory)
    given = [pinned(e) for e in known.get("experts", [])] if experts is None else list(experts)
    makers = tuple(expert if callable(expert) else None for expert in given)
    named = [getattr(e, "__name__", repr(e)) if callable(e) else e for e in given]
    if experts is None and spans == "auto":
        spans = known.get("spans", spans)
    elsewhere = [maker is not None or is_endpoint(expert) for maker, expert in zip(makers, named)]
    directories = (directory, *(None if away else resolve(e, weights) for away, e in zip(elsewhere, named)))
    tokenizers = [None if where is None else load_tokenizer(where) for where in directories]
    configs = [None if where is None else read_config(where) for where in directories]
    tokenizer, units, allowed = _units(tokenizers, configs, spans)
    shared = isinstance(units, TokenUnits)
    kinds = tuple("remote" if where is None else "guest" for where in directories[1:])
    if shared and spans == "auto":
        kinds = ("resident",) * len(named)
    assert configs[0] is not None
    stored = read_gate(apart or directory, tokenizer, configs[0].width, apart=apart is not None)
    kernels = None if stored.kernel is None else stored.kernel.shape[1]
    outline = Outline(
        models=(base, *named),
        directories=directories,
        tokenizer=tokenizer,
        expert_tokenizers=tuple(tokenizers[1:]),
        kinds=kinds,
        units=units,
        context=min(config.context for config in (configs if shared else configs[:1]) if config is not None),
        allowed=allowed,
        gate_experts=1 if tokenizer.has_defer_token and apart is None else kernels,
        facts=stored.facts,
        gate=apart,
        makers=makers,
    )
    trained = stored.facts.get("shared_vocabulary", {}).get("sha256")
    if experts is None and trained not in (None, outline.vocabulary_digest):
        raise UserError(
            f"{base}: was trained with another shared vocabulary; restore the tokenizer files that have changed since"
        )
    return outline


def _units(
    tokenizers: Sequence[Tokenizer | None], configs: Sequence[ModelConfig | None], spans: str
) -> tuple[Tokenizer, Units, Bool[np.ndarray, "V"]]:
    """Return the base's tokenizer, the team's units and the vocabulary of what is written."""
    base, *others = tokenizers
    assert base is not None
    contexts = [None if config is None else config.context for config in configs]
    heads = [
        0 if config is None or tokenizer is None else config.vocab_size - tokenizer.has_defer_token
        for config, tokenizer in zip(configs, tokenizers)
    ]
    if spans == "tokens" and None in others:
        raise UserError("spans must be text with an expert that is not here: its tokenizer is not known")
    if spans != "text" and None not in others:
        try:
            known = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
            allowed = shared_vocabulary(known, heads)
            base = base.within(allowed)
            return base, TokenUnits(base, [c for c in contexts if c is not None], allowed, heads), allowed
        except DifferentVocabularies:
            if spans == "tokens":
                raise
    allowed = shared_vocabulary([base], heads[:1])
    base = base.within(allowed)
    return base, SpanUnits.of([base, *others], contexts, heads), allowed

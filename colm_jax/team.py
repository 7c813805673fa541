"""`CoLM`: a base, its gate and its experts, loaded and ready to generate and to score. The library's front door."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.checkpoints.team import EXPERT_DTYPES, Base, load_base, load_expert, pinned
from colm_jax.data.records import Examples, check_shared, encode_examples, encode_prompt
from colm_jax.data.tokenizer import Tokenizer, load_tokenizer, shared_vocabulary, vocabulary_digest
from colm_jax.decoding.engine import Engine, Options, Request
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.schedule import SCHEDULES, check_threshold
from colm_jax.decoding.strategies import find_strategy
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh
from colm_jax.scoring import score_examples

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


@dataclass(frozen=True)
class Scored:
    """One scored text; entry t is about tokens[t + 1]."""

    tokens: np.ndarray  # [T+1] int32
    mask: np.ndarray  # [T] bool: the token counts in the loss
    base_log_prob: np.ndarray  # [T] float32, nats
    expert_log_probs: np.ndarray  # [T, M]
    gate_logits: np.ndarray | None  # [T, M]; None without a gate
    is_argmax: np.ndarray  # [T, M+1] bool, base first: the model's own greedy choice is the text's token


class ScoredTexts(list[Scored]):
    """The scores of several texts, in order; `cut` says how many were longer than the context and were cut to it."""

    def __init__(self, items: Sequence[Scored], cut: int):
        super().__init__(items)
        self.cut = cut


class CoLM:
    """A team of models that decode together."""

    def __init__(
        self, base: Base, experts: Sequence[Decoder], tokenizers: Sequence[Tokenizer], mesh: jax.sharding.Mesh
    ):
        """Joins loaded models; `tokenizers` are the experts', for the shared vocabulary.

        Raises:
          UserError: tokenizers that disagree.
        """
        self.base, self.gate, self.experts, self.tokenizer = base.decoder, base.gate, list(experts), base.tokenizer
        self.mesh, self.facts = mesh, base.facts
        decoders = [self.base, *self.experts]
        self.context = min(decoder.config.context for decoder in decoders)
        heads = [decoder.config.vocab_size for decoder in decoders]
        self.allowed = shared_vocabulary([base.tokenizer, *tokenizers], heads)
        self.vocabulary_digest = vocabulary_digest(base.tokenizer, self.allowed)
        eos_ids = tuple(token for token in base.tokenizer.eos_ids if token < len(self.allowed))
        self.engine = Engine(self.base, self.gate, self.experts, self.allowed, eos_ids, self.context)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        experts: Sequence[str | Path] | None = None,
        mesh: jax.sharding.Mesh | None = None,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        expert_mesh: jax.sharding.Mesh | None = None,
        progress: Callable[[str, int, int], None] = lambda model, done, total: None,
    ) -> "CoLM":
        """Loads a team.

        Args:
          base: a local Hugging Face directory, a team directory, or a Hub name.
          experts: likewise; None takes those that the team directory names, [] a base alone.
          mesh: where weights live; None: the first device.
          dtype: of weights, activations and caches: "float32", "bfloat16" or "float16".
          expert_dtype: of the experts, where it differs; "int8" and "int4" hold their weights in so many bits. None:
            as the team was trained, or `dtype`.
          expert_mesh: where the experts' weights live, another shape of the same devices; None: as `mesh`.
          progress: told of each model how many bytes are read, of how many.

        Raises:
          UserError: naming the file, tensor or token that is wrong.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if expert_dtype is not None and expert_dtype not in EXPERT_DTYPES:
            raise UserError(f"expert_dtype must be one of {', '.join(EXPERT_DTYPES)}, got {expert_dtype!r}")
        mesh = make_mesh() if mesh is None else mesh
        expert_mesh = mesh if expert_mesh is None else expert_mesh
        loaded = load_base(base, dtype, mesh, stacked=False, progress=partial(progress, str(base)))
        given = experts
        if given is None:
            given = [pinned(expert) for expert in loaded.facts.get("experts", [])]
            expert_dtype = expert_dtype or loaded.facts.get("expert_dtype")
        directories = [resolve(expert) for expert in given]
        tokenizers = [load_tokenizer(directory) for directory in directories]
        decoders = [
            load_expert(directory, tokenizer, dtype, expert_dtype, expert_mesh, partial(progress, str(expert)))
            for expert, directory, tokenizer in zip(given, directories, tokenizers)
        ]
        team = cls(loaded, decoders, tokenizers, mesh)
        trained = loaded.facts.get("shared_vocabulary", {}).get("sha256")
        if experts is None and trained not in (None, team.vocabulary_digest):
            raise UserError(f"{base}: was trained over another shared vocabulary; a tokenizer has changed since")
        return team

    @property
    def calibrated_threshold(self) -> float | None:
        """The threshold that calibration chose, where the team directory holds one."""
        return self.facts.get("threshold")

    def generate(
        self,
        prompts: Sequence[Prompt],
        threshold: float | Sequence[float] | None = None,
        strategy: str = "defer",
        max_new_tokens: int = 96,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        schedule: str = "constant",
        warmup: int = 0,
        rate: float = 0.5,
        batch_size: int = 8,
        places: Sequence[str] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Generation]:
        """Writes an answer to each prompt; what one gets does not depend on the others.

        Args:
          prompts: strings, or records with "prompt", "messages" or "input_ids".
          threshold: η from 0 to 1, one or one per prompt; an expert writes where p_defer > η. None: the calibrated
            one, or 0.5.
          strategy: "defer", "compose", "base", "expert", "random", "confidence", "contrastive", "contrastive_v2" or
            "proxy" (two experts: the large model, then the base before it was tuned).
          max_new_tokens: at most so many, fewer where the context ends.
          temperature: 0 takes the most probable token.
          top_p: sample from the smallest set with this probability.
          top_k: sample from so many tokens; 0: all.
          seed: with temperature and for "random".
          stop: strings that end the text; they are not part of it.
          schedule: "constant", or "linear", "cosine", "exponential": the threshold falls from 1 over `warmup` tokens.
          warmup: length of the schedule, in tokens.
          rate: of strategy "random": the probability of deferring.
          batch_size: prompts decoded side by side.
          places: name of each prompt in errors (file:line); None: "prompt 1", ...
          progress: called with the number of finished prompts.

        Raises:
          UserError: a setting out of range, a prompt that leaves no room in the context, or no gate where one is
            needed.
        """
        chosen = find_strategy(strategy, len(self.experts), self.gate is not None)
        if chosen.needs_gate and self.gate is not None and self.gate.kernel.shape[1] != len(self.experts):
            trained = self.gate.kernel.shape[1]
            raise UserError(f"the gate was trained for {trained} expert(s), {len(self.experts)} given")
        if schedule not in SCHEDULES:
            raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if not 0 <= rate <= 1:
            raise UserError(f"rate must be a number from 0 to 1, got {rate!r}")
        if threshold is None:
            threshold = 0.5 if self.calibrated_threshold is None else self.calibrated_threshold
        thresholds = [threshold] * len(prompts) if isinstance(threshold, int | float) else list(threshold)
        if len(thresholds) != len(prompts):
            raise UserError(f"{len(thresholds)} thresholds for {len(prompts)} prompts")
        requests = []
        for i, prompt in enumerate(prompts):
            where = places[i] if places is not None else f"prompt {i + 1}"
            ids = encode_prompt(prompt, self.tokenizer, where)
            if len(ids) >= self.context:
                raise UserError(
                    f"{where}: {len(ids)} tokens leave no room in the context of {self.context}; shorten it"
                )
            check_shared(ids, self.allowed, self.tokenizer, where)
            requests.append(
                Request(ids, check_threshold(thresholds[i]), max_new_tokens, i, 0, SCHEDULES.index(schedule), warmup)
            )
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        if "" in stops:
            raise UserError("stop strings must not be empty")
        sampling = Sampling(temperature, top_p, top_k)
        options = Options(chosen, sampling, rate, seed, batch_size)

        def text_of(number: int, tokens: list[int]) -> str:
            """What the tokens add to the prompt (a tokenizer may trim the first space of a text read alone)."""
            prompt = requests[number].prompt
            before, after = self.tokenizer.decode(list(prompt)), self.tokenizer.decode([*prompt, *tokens])
            return after[len(before) :] if after.startswith(before) else self.tokenizer.decode(tokens)

        def rule(number: int, tokens: list[int]) -> int | None:
            text = text_of(number, tokens)
            if not any(s in text for s in stops):
                return None
            return next(n for n in range(len(tokens) + 1) if any(s in text_of(number, tokens[:n]) for s in stops))

        answers: list[Generation | None] = [None] * len(prompts)
        run = self.engine.run(requests, options, rule if stops else None)
        for finished, (number, answer) in enumerate(run, start=1):
            text = text_of(number, answer.tokens)
            if answer.finish_reason == "stop":
                text = text[: min(text.find(s) for s in stops if s in text)]
            answers[number] = Generation(
                prompt_ids=list(requests[number].prompt),
                text=text,
                tokens=answer.tokens,
                sources=answer.sources,
                p_defer=answer.p_defer if chosen.needs_gate else None,
                threshold=answer.threshold,
                finish_reason=answer.finish_reason,
                expert_calls=answer.expert_calls,
            )
            progress(finished)
        return [answer for answer in answers if answer is not None]

    def score(self, records: Sequence[dict[str, Any]]) -> ScoredTexts:
        """Log-probabilities of each text's own tokens under every model, and the gate's logits.

        Args:
          records: {"text"}, {"prompt", "completion"}, {"messages"} or {"input_ids", "labels"} each.

        Raises:
          UserError: a record of no known form, or nothing to score.
        """
        places = [(f"record {i + 1}", record) for i, record in enumerate(records)]
        return self.score_examples(encode_examples(places, self.tokenizer, self.context, "records", self.allowed))

    def score_examples(self, examples: Examples) -> ScoredTexts:
        """`score` of texts that are already tokenised."""
        models = [score_examples(self.base, examples, self.allowed, keep_hidden=self.gate is not None)]
        models += [score_examples(expert, examples, self.allowed) for expert in self.experts]
        scored = []
        for i, example in enumerate(examples.items):
            log_probs = np.stack([scores.log_prob[i] for scores in models], -1)
            hidden = models[0].hidden
            scored.append(
                Scored(
                    tokens=example.ids,
                    mask=example.targets[1:],
                    base_log_prob=log_probs[:, 0],
                    expert_log_probs=log_probs[:, 1:],
                    gate_logits=np.asarray(self.gate(jnp.asarray(hidden[i]))) if self.gate and hidden else None,
                    is_argmax=np.stack([scores.is_argmax[i] for scores in models], -1),
                )
            )
        return ScoredTexts(scored, examples.cut)

    def pieces(self, generation: Generation) -> list[str]:
        """The text that each written token added; joined, they are `text` (but for what a stop string cut off)."""
        ids, texts = list(generation.prompt_ids), []
        before = self.tokenizer.decode(ids)
        for token in generation.tokens:
            ids.append(token)
            after = self.tokenizer.decode(ids)
            texts.append(after[len(before) :] if after.startswith(before) else self.tokenizer.decode([token]))
            before = after
        return texts

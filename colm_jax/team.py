"""`CoLM`: a base, its gate and its experts, loaded and ready to generate and to score. The library's front door."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checkpoints.team import EXPERT_DTYPES, Base, load_base, load_expert, threshold_of
from colm_jax.data.records import Example, Examples, encode_examples
from colm_jax.decoding.correction import Correction
from colm_jax.decoding.engine import Answer, Engine
from colm_jax.decoding.parking import Parking
from colm_jax.decoding.strategies import Strategy, find_strategy
from colm_jax.errors import UserError
from colm_jax.generation import Generation, Prompt, Settings, Token, generation
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh
from colm_jax.scoring import score_examples
from colm_jax.scoring.scorer import texts_at_once
from colm_jax.text.generated import GeneratedText, cut
from colm_jax.text.tokenizer import Tokenizer, shared_vocabulary, vocabulary_digest


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
          UserError: tokenizers that disagree, or share no end of text.
        """
        self.base, self.gate, self.experts = base.decoder, base.gate, list(experts)
        self.mesh, self.facts = mesh, base.facts
        self.directories: list[Path] = []  # where base and experts were loaded from
        decoders = [self.base, *self.experts]
        self.context = min(decoder.config.context for decoder in decoders)
        heads = [decoder.config.vocab_size for decoder in decoders]
        self.allowed = shared_vocabulary([base.tokenizer, *tokenizers], heads)
        self.tokenizer = base.tokenizer.within(self.allowed)
        self.vocabulary_digest = vocabulary_digest(self.tokenizer, self.allowed)
        eos_ids = self.tokenizer.eos_ids
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
        outline = outline_team(base, experts)  # first: weights take much longer to fetch and to read
        if experts is None:
            expert_dtype = expert_dtype or outline.facts.get("expert_dtype")
        directories = [resolve(model) for model in outline.models]
        loaded = load_base(directories[0], dtype, mesh, stacked=False, progress=partial(progress, str(base)))
        tokenizers = outline.expert_tokenizers
        decoders = [
            load_expert(directory, tokenizer, dtype, expert_dtype, expert_mesh, partial(progress, str(expert)))
            for expert, directory, tokenizer in zip(outline.models[1:], directories[1:], tokenizers)
        ]
        team = cls(loaded, decoders, tokenizers, mesh)
        team.directories = directories
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
        max_new_tokens: int | Sequence[int] = 96,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        schedule: str | Sequence[str] = "constant",
        warmup: int | Sequence[int] = 0,
        rate: float = 0.5,
        batch_size: int = 8,
        min_p: float = 0.0,
        samples: int = 1,
        correction: Correction | None = None,
        parking: Parking | None = None,
        log_probs: bool = False,
        places: Sequence[str] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Generation]:
        """Writes answers to prompts; what one gets does not depend on the others.

        Args:
          prompts: strings, or records with "prompt", "messages" (and "tools") or "input_ids".
          threshold: η from 0 to 1, one or one per prompt; an expert writes where p_defer > η. None: the calibrated
            one, or 0.5.
          strategy: "defer", "compose", "backtrack", "lookahead", "base", "expert", "random", "confidence",
            "contrastive", "contrastive_v2" or "proxy" (two experts: the large model, then the base before its tuning).
          max_new_tokens: at most so many, fewer where the context ends; one number or one per prompt.
          temperature: 0 takes the most probable token.
          top_p: sample from the smallest set with this probability.
          top_k: sample from so many tokens; 0: all.
          seed: with temperature and for "random"; from 0 to 2^64 − 1.
          stop: strings that end the text, special tokens' spellings (as in "<|im_end|>") included; not part of it.
          stop_token_ids: ids of tokens that end the text, beside the base's end-of-text ids; not part of it.
          schedule: "constant", or "linear", "cosine", "exponential": the threshold falls from 1 over `warmup` tokens;
            one or one per prompt.
          warmup: length of the schedule, in tokens; one number or one per prompt.
          rate: of strategy "random": the probability of deferring.
          batch_size: answers written side by side; a finished one makes room for the next.
          min_p: sample from tokens at least so probable as this share of the most probable one's probability.
          samples: answers to each prompt, each from random numbers of its own.
          correction: when strategies "backtrack" and "lookahead" take tokens back; None: its defaults.
          parking: how long texts wait for others before an expert is called; None: as long as a call costs.
          log_probs: give the log-probability of every written token under every model. All models read each finished
            answer once more.
          places: name of each prompt in errors (file:line); None: "prompt 1", ...
          progress: called with the number of finished answers.

        Returns:
          An answer for each prompt; of several samples, a prompt's stand side by side.

        Raises:
          UserError: a setting out of range, a prompt that leaves no room in the context, or no gate where one is
            needed.
        """
        settings = Settings(
            threshold=self.threshold(threshold), max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            top_k=top_k, min_p=min_p, seed=seed, samples=samples, stop=stop, stop_token_ids=stop_token_ids,
            schedule=schedule, warmup=warmup, rate=rate, batch_size=batch_size, correction=correction, parking=parking,
        )  # fmt: skip
        found: dict[tuple[int, int], Generation] = {}
        for number, answer in self.answers(prompts, settings, strategy, log_probs, places):
            found[number, answer.sample] = answer
            progress(len(found))
        return [found[key] for key in sorted(found)]

    def answers(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        strategy: str = "defer",
        log_probs: bool = False,
        places: Sequence[str] | None = None,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """`generate`, yielding (number of the prompt, answer) as answers are finished, in no certain order.

        Args:
          prompts: likewise.
          settings: the other arguments of `generate`.
          strategy: likewise.
          log_probs: likewise; then answers come in groups.
          places: likewise.
          keys: of each prompt's random numbers; None: its number. So a part of a file is answered as it would be in
            the whole.

        Raises:
          UserError: as `generate`, before anything is written.
        """
        chosen = self._strategy(strategy)
        places = [f"prompt {i + 1}" for i in range(len(prompts))] if places is None else places
        keys = range(len(prompts)) if keys is None else keys
        requests = settings.requests(prompts, keys, places, self.tokenizer, self.context, self.allowed)
        texts: dict[int, GeneratedText] = {}  # of the answers under way

        def text_of(number: int) -> GeneratedText:
            if number not in texts:
                texts[number] = settings.text(self.tokenizer, requests[number].prompt)
            return texts[number]

        def rule(number: int, tokens: list[int]) -> int | None:
            return text_of(number).kept(tokens)

        def finished() -> Iterator[tuple[int, Generation]]:
            stops = settings.stops or settings.stop_ids
            for number, answer in self.engine.run(requests, settings.options(chosen), rule if stops else None):
                text = text_of(number)
                del texts[number]
                yield number // settings.samples, generation(requests[number], answer, text, chosen.needs_gate)

        return self._with_log_probs(finished()) if log_probs else finished()

    def stream(
        self, prompt: Prompt, threshold: float | None = None, strategy: str = "defer", **settings: Any
    ) -> Iterator[Token]:
        """Writes the answer to one prompt, yielding each token as soon as nothing can change it any more.

        Args:
          prompt: a string or a record.
          threshold: as in `generate`.
          strategy: as in `generate`.
          settings: further arguments of `generate`: max_new_tokens, temperature, top_p, top_k, min_p, seed, stop,
            stop_token_ids, schedule, warmup, rate, correction.

        Raises:
          UserError: as `generate`.
        """
        chosen, held = self._strategy(strategy), Settings(self.threshold(threshold), **settings)
        (request, *more) = held.requests([prompt], [0], ["prompt"], self.tokenizer, self.context, self.allowed)
        if more:
            raise UserError("stream writes one answer; samples must be 1")
        text = held.text(self.tokenizer, request.prompt)
        growing = self.engine.stream(request, held.options(chosen), lambda _, tokens: text.kept(tokens))
        return self._stream(text, growing, chosen.needs_gate)

    def _stream(self, text: GeneratedText, growing: Iterator[Answer], has_gate: bool) -> Iterator[Token]:
        given = 0
        for answer in growing:
            text.extend(answer.tokens)
            if answer.finish_reason is not None:
                text.finish()
            for i in range(given, text.settled()):
                yield Token(
                    token=answer.tokens[i],
                    source=answer.sources[i],
                    p_defer=answer.p_defer[i] if has_gate else None,
                    threshold=answer.threshold[i],
                    text=text.pieces[i],
                )
            given = text.settled()

    def _strategy(self, name: str) -> Strategy:
        """The strategy, if this team can follow it."""
        return find_strategy(name, len(self.experts), None if self.gate is None else self.gate.kernel.shape[1])

    def threshold(self, given: float | Sequence[float] | None) -> float | Sequence[float]:
        """η, or the calibrated one where none is given."""
        return threshold_of(self.facts) if given is None else given

    def _with_log_probs(self, answers: Iterator[tuple[int, Generation]]) -> Iterator[tuple[int, Generation]]:
        """Adds the log-probability of every written token under every model, over the shared vocabulary."""
        while group := list(itertools.islice(answers, texts_at_once(self.mesh))):
            texts = []
            for _, answer in group:
                ids = np.array([*answer.prompt_ids, *answer.tokens], np.int32)
                texts.append(Example(ids, np.arange(len(ids)) >= len(answer.prompt_ids)))
            scored = iter(self.score_examples(Examples([text for text in texts if text.targets.any()], cut=0)))
            for number, answer in group:
                written: list[list[float]] = []
                if answer.tokens:
                    found = next(scored)
                    columns = np.concatenate([found.base_log_prob[:, None], found.expert_log_probs], axis=1)
                    written = columns[found.mask].tolist()
                yield number, replace(answer, log_probs=written)

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
        models = [score_examples(self.base, examples, self.allowed, self.gate)]
        models += [score_examples(expert, examples, self.allowed) for expert in self.experts]
        gate_logits, scored = models[0].gate_logits, []
        for i, example in enumerate(examples.items):
            log_probs = np.stack([scores.log_prob[i] for scores in models], -1)
            scored.append(
                Scored(
                    tokens=example.ids,
                    mask=example.targets[1:],
                    base_log_prob=log_probs[:, 0],
                    expert_log_probs=log_probs[:, 1:],
                    gate_logits=None if gate_logits is None else gate_logits[i],
                    is_argmax=np.stack([scores.is_argmax[i] for scores in models], -1),
                )
            )
        return ScoredTexts(scored, examples.cut)

    def pieces(self, answer: Generation) -> list[str]:
        """The text that each written token added; joined, they are the answer's text."""
        text = GeneratedText(self.tokenizer.token_bytes, answer.prompt_ids)
        text.extend(answer.tokens)
        text.finish()
        return cut(text.pieces, len(answer.text))  # a stop string ended it there

"""`CoLM`: a base, its gate and its experts, loaded and ready to generate and to score."""

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
from colm_jax.checkpoints.team import Base, load_base, load_expert, threshold_of
from colm_jax.data.records import Example, Examples, encode_examples
from colm_jax.decoding.engine import Engine, Session
from colm_jax.decoding.requests import Generation, Token
from colm_jax.errors import UserError
from colm_jax.generation import Prompt, encode_requests
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh
from colm_jax.scoring import score_examples
from colm_jax.scoring.scorer import texts_at_once
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.models import EXPERT_DTYPES
from colm_jax.settings.strategies import find_strategy
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
        """Join loaded models; `tokenizers` are the experts', for the shared vocabulary.

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
        known = self.allowed, self.tokenizer.eos_ids, self.context, self.tokenizer.token_bytes
        self.engine = Engine(self.base, self.gate, self.experts, *known)

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
        """Load a team.

        Args:
          base: a Hugging Face directory (also of a quantised checkpoint), a team directory, a GGUF file, or a Hub name:
            "OWNER/NAME" or "OWNER/NAME:FILE.gguf", with "@REVISION" or without.
          experts: likewise; None: the experts of the team directory; []: a base alone.
          mesh: where weights live; None: the first device.
          dtype: of weights, activations and caches: "float32", "bfloat16" or "float16".
          expert_dtype: of the experts, where it differs; "int8" and "int4" quantise their weights. None: as the
            team was trained, or `dtype`, and the kernels of a quantised checkpoint stay as stored.
          expert_mesh: where the experts' weights live, another shape of the same devices; None: as `mesh`.
          progress: called with each model's name, the bytes read, and their total.

        Raises:
          UserError: naming the file, tensor or token that is wrong.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if expert_dtype is not None and expert_dtype not in EXPERT_DTYPES:
            raise UserError(f"expert_dtype must be one of {', '.join(EXPERT_DTYPES)}, got {expert_dtype!r}")
        mesh = make_mesh() if mesh is None else mesh
        expert_mesh = mesh if expert_mesh is None else expert_mesh
        outline = outline_team(base, experts)  # first: fetching and reading weights takes much longer
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
        """The calibrated threshold, where the team directory holds one."""
        return self.facts.get("threshold")

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        settings: GenerationSettings | None = None,
        places: Sequence[str] | None = None,
        progress: Callable[[int], None] = lambda done: None,
        **overrides: Any,
    ) -> list[Generation]:
        """Return answers to prompts; what one gets does not depend on the others.

        Args:
          prompts: strings, or records with "prompt", "messages" (and "tools") or "input_ids".
          settings: see `GenerationSettings`, which documents every one; None: its defaults.
          places: name of each prompt in errors (file:line); None: "prompt 1", ...
          progress: called with the number of finished answers.
          overrides: settings by name, as in `threshold=0.3, max_new_tokens=200`; they replace those of `settings`.

        Returns:
          An answer for each prompt; of several samples, a prompt's are side by side.

        Raises:
          UserError: a setting out of range, a prompt that leaves no room in the context, or no gate where one is
            needed.
        """
        found: dict[tuple[int, int], Generation] = {}
        for number, answer in self.answers(prompts, settings, places=places, **overrides):
            found[number, answer.sample] = answer
            progress(len(found))
        return [found[key] for key in sorted(found)]

    def answers(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings | None = None,
        *,
        places: Sequence[str] | None = None,
        keys: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Iterator[tuple[int, Generation]]:
        """Generate as `generate`; yield (index of the prompt, answer) as answers are finished, in no particular order.

        With `log_probs`, answers come in groups.

        Args:
          prompts: as in `generate`.
          settings: as in `generate`.
          places: as in `generate`.
          keys: of each prompt's random numbers; None: its index. So a part of a file is answered as it would be in
            the whole.
          overrides: as in `generate`.

        Raises:
          UserError: as `generate`, before anything is written.
        """
        settings = self.settings(settings, **overrides)
        known = self.tokenizer, self.context, self.allowed
        requests = encode_requests(prompts, settings, *known, places, keys)
        session = self._session(settings)
        order = sorted(range(len(requests)), key=lambda i: self.engine.limit(requests[i]))  # slots only grow
        numbers = {session.submit(requests[i]): i // settings.samples for i in order}
        found = ((numbers[request], answer) for request, answer in session.drain())
        return self._with_log_probs(found) if settings.log_probs else found

    def stream(
        self, prompt: Prompt, *, settings: GenerationSettings | None = None, **overrides: Any
    ) -> Iterator[Token]:
        """Yield each token of the answer to one prompt as soon as nothing can change it any more.

        Args:
          prompt: a string or a record.
          settings: as in `generate`.
          overrides: as in `generate`.

        Raises:
          UserError: as `generate`, before anything is written; samples or log_probs, which a stream has not.
        """
        settings = self.settings(settings, **overrides)
        if settings.samples > 1 or settings.log_probs:
            raise UserError("stream writes one answer without log_probs; use generate")
        (request,) = encode_requests([prompt], settings, self.tokenizer, self.context, self.allowed, ["prompt"])
        session = self._session(settings)
        session.submit(replace(request, stream=True))

        def tokens() -> Iterator[Token]:
            while not session.idle:
                for update in session.step():
                    yield from update.tokens

        return tokens()

    def settings(self, given: GenerationSettings | None = None, **overrides: Any) -> GenerationSettings:
        """Return the settings of a call: those given, the overrides, and this team's threshold where there is none."""
        if unknown := ", ".join(sorted(overrides.keys() - vars(GenerationSettings()).keys())):
            raise TypeError(f"no setting of generation: {unknown}; see colm_jax.settings.generation")
        settings = GenerationSettings(**overrides) if given is None else replace(given, **overrides)
        return settings if settings.threshold is not None else replace(settings, threshold=threshold_of(self.facts))

    def _session(self, settings: GenerationSettings) -> Session:
        """Return a session, if this team can follow the strategy."""
        find_strategy(settings.strategy, len(self.experts), None if self.gate is None else self.gate.kernel.shape[1])
        return self.engine.session(settings)

    def _with_log_probs(self, answers: Iterator[tuple[int, Generation]]) -> Iterator[tuple[int, Generation]]:
        """Add the log-probability of every written token under every model, over the shared vocabulary."""
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
        """Return the log-probabilities of each text's own tokens under every model, and the gate's logits.

        Args:
          records: {"text"}, {"prompt", "completion"}, {"messages"} or {"input_ids", "labels"} each.

        Raises:
          UserError: a record of no known form, or nothing to score.
        """
        places = [(f"record {i + 1}", record) for i, record in enumerate(records)]
        return self.score_examples(encode_examples(places, self.tokenizer, self.context, "records", self.allowed))

    def score_examples(self, examples: Examples) -> ScoredTexts:
        """Score texts that are tokenised already, as `score`."""
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
        """Return the text that each written token added; joined, they are the answer's text."""
        text = GeneratedText(self.tokenizer.token_bytes, answer.prompt_ids)
        text.extend(answer.tokens)
        text.finish()
        return cut(text.pieces, len(answer.text))  # where a stop string ended it

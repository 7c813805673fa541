"""`CoLM`: a base, its gate and its experts, loaded and ready to generate and to score."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.gates import check_base
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.checkpoints.outline import Outline, Source, outline_team
from colm_jax.checkpoints.team import TEAM_FILE, Base, load_base, pinned, read_facts, threshold_of
from colm_jax.data.records import Example, Examples
from colm_jax.data.token_units import TokenUnits
from colm_jax.data.units import Units, encode_units
from colm_jax.decoding.engine import Engine
from colm_jax.decoding.requests import Generation, Request, Token
from colm_jax.decoding.risk import Risk
from colm_jax.decoding.session import Session
from colm_jax.decoding.slots import FixedBatch
from colm_jax.decoding.units_session import UnitsSession
from colm_jax.errors import UserError
from colm_jax.experts.load import load_experts
from colm_jax.experts.protocol import Expert
from colm_jax.generation import Prompt, encode_requests
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh
from colm_jax.scoring import PassCounts, ScoredUnits, UnitScores, score_examples, score_units, units_of
from colm_jax.scoring.passes import NO_PASSES
from colm_jax.scoring.texts import Scored, ScoredTexts
from colm_jax.scoring.units import in_layout
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.models import EXPERT_DTYPES
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.strategies import find_strategy
from colm_jax.storage import shown
from colm_jax.text.generated import GeneratedText, cut
from colm_jax.text.tokenizer import Tokenizer, shared_vocabulary, vocabulary_digest

_ANSWERS = 8  # that are scored together, at least, where their log-probabilities are asked for


def _experts_of(facts: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of a team's own experts, with their revisions and without."""
    known = facts.get("experts", [])
    return [expert["model"] for expert in known], [pinned(expert) for expert in known]


def read_risk(directory: Path) -> Risk | None:
    """Return what a team directory's team has learned of where its answers go wrong; None: nothing."""
    return risk_of(read_facts(directory), directory)


def risk_of(facts: dict[str, Any], directory: Path) -> Risk | None:
    """Return the risk in a colm.json.

    Raises:
      UserError: it is none that this version reads.
    """
    found = facts.get("risk")
    return None if found is None else Risk.read(found, f"{shown(directory / TEAM_FILE)}: risk")


class CoLM:
    """A team of models that decode together.

    Example:
      >>> from colm_jax import CoLM
      >>> team = CoLM.from_pretrained(base="RUN/team")  # or base="SMALL", experts=["LARGE"]
      >>> (answer,) = team.generate(["once upon a time"], threshold=0.3, max_new_tokens=8)
      >>> len(answer.tokens) == len(answer.sources) == len(answer.p_defer)
      True
      >>> text = "".join(token.text for token in team.stream("once upon a time", threshold=0.3, max_new_tokens=8))
      >>> text == answer.text
      True
    """

    def __init__(
        self,
        base: Base,
        experts: Sequence[Decoder | Expert],
        tokenizers: Sequence[Tokenizer | None],
        mesh: jax.sharding.Mesh,
        outline: Outline | None = None,
        risk: Risk | None = None,
    ):
        """Join loaded models.

        Args:
          base: the base, with its gate.
          experts: all resident (decoders), or all experts that work on units.
          tokenizers: the experts', for the shared vocabulary; None: unknown.
          mesh: where the base is.
          outline: the team's; None: all experts are resident.
          risk: what it has learned of where its answers go wrong.

        Raises:
          UserError: tokenizers that disagree, or share no end of text.
        """
        self.base, self.gate, self.experts = base.decoder, base.gate, list(experts)
        self.mesh, self.facts = mesh, base.facts
        self.directories: list[Path] = []  # where base and experts were loaded from
        resident = [expert for expert in experts if isinstance(expert, Decoder)]
        others = [expert for expert in experts if not isinstance(expert, Decoder)]
        self.kinds = (*("resident" for _ in resident), *(expert.kind for expert in others))
        decoders = [self.base, *resident]
        self.units: Units
        if outline is None or outline.resident:
            self.context = min(decoder.config.context for decoder in decoders)
            heads = [decoder.config.vocab_size for decoder in decoders]
            known = [base.tokenizer, *(tokenizer for tokenizer in tokenizers if tokenizer is not None)]
            self.allowed = shared_vocabulary(known, heads)
            self.tokenizer = base.tokenizer.within(self.allowed)
            self.vocabulary_digest = vocabulary_digest(self.tokenizer, self.allowed)
            contexts = [decoder.config.context for decoder in decoders]
            self.units = TokenUnits(self.tokenizer, contexts, self.allowed, heads)
        else:
            self.context, self.allowed, self.tokenizer = outline.context, outline.allowed, outline.tokenizer
            self.vocabulary_digest, self.units = outline.vocabulary_digest, outline.units
        self.engine = Engine(
            self.base,
            self.gate,
            resident,
            self.allowed,
            self.tokenizer.eos_ids,
            self.context,
            self.tokenizer.token_bytes,
            units=self.units,
            unit_experts=others,
            risk=risk,
        )

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        experts: Sequence[Source] | None = None,
        mesh: jax.sharding.Mesh | None = None,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        expert_mesh: jax.sharding.Mesh | None = None,
        spans: str = "auto",
        remote: RemoteSettings | None = None,
        gate: str | Path | None = None,
        progress: Callable[[str, int, int], None] = lambda model, done, total: None,
    ) -> "CoLM":
        """Load a team.

        Args:
          base: a Hugging Face directory (also of a quantised checkpoint), a team directory, a GGUF file, or a Hub name:
            "OWNER/NAME" or "OWNER/NAME:FILE.gguf", with "@REVISION" or without.
          experts: likewise, or the address of an endpoint, "http(s)://HOST:PORT/v1#NAME", or a class or function that
            takes the team's `SpanUnits` and returns an `experts.protocol.Expert` of yours (docs/extending.md). None:
            the experts of the team directory; []: a base alone.
          mesh: where weights live; None: the first device.
          dtype: of weights, activations and caches: "float32", "bfloat16" or "float16".
          expert_dtype: of the experts, where it differs; "int8" and "int4" quantise their weights. None: as the
            team was trained, or `dtype`, and the kernels of a quantised checkpoint stay as stored.
          expert_mesh: where the experts' weights live, another shape of the same devices; None: as `mesh`.
          spans: what one model writes at a time: "tokens", "text" (spans), or "auto": single tokens where base and
            experts share a tokenizer and have their weights here, else spans; of a team directory, as it was trained.
          remote: how endpoints are asked, and what may be sent to them; None: the defaults.
          gate: a directory or Hub name of a gate without its base, or of a team whose base was not trained. Its
            experts, threshold and spans count in place of the base's own. None: the gate of the base's directory.
          progress: called with each model's name, the bytes read, and their total.

        Raises:
          UserError: naming the file, tensor or token that is wrong; a gate that was trained on another base.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if expert_dtype is not None and expert_dtype not in EXPERT_DTYPES:
            raise UserError(f"expert_dtype must be one of {', '.join(EXPERT_DTYPES)}, got {expert_dtype!r}")
        mesh = make_mesh() if mesh is None else mesh
        expert_mesh = mesh if expert_mesh is None else expert_mesh
        # First, since fetching and reading weights takes much longer.
        outline = outline_team(base, experts, spans=spans, gate=gate)
        if experts is None:
            expert_dtype = expert_dtype or outline.facts.get("expert_dtype")
        here = [model for model, directory in zip(outline.models, outline.directories) if directory is not None]
        if outline.gate is not None:
            check_base(outline.gate, base, resolve(base))
        directories = [resolve(model) for model in here]
        of_team = experts is None or list(map(str, experts)) in _experts_of(outline.facts)
        risk = (
            risk_of(outline.facts, outline.gate or directories[0]) if of_team else None
        )  # other experts err elsewhere
        reading = partial(progress, str(base))
        loaded = load_base(directories[0], dtype, mesh, stacked=False, progress=reading, gate=outline.gate)
        found = load_experts(outline, dtype, expert_dtype, expert_mesh, progress, remote)
        team = cls(loaded, found, outline.expert_tokenizers, mesh, outline, risk)
        team.directories = directories
        return team

    @property
    def resident_experts(self) -> list[Decoder]:
        """The experts as decoders.

        Raises:
          UserError: some are not resident.
        """
        found = [expert for expert in self.experts if isinstance(expert, Decoder)]
        if len(found) < len(self.experts):
            raise UserError("this compares single tokens: it needs experts that share the base's tokenizer, held here")
        return found

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
        evidence: bool = False,
        **overrides: Any,
    ) -> list[Generation]:
        """Return answers to prompts; what one gets does not depend on the others.

        Args:
          prompts: strings, or records with "prompt", "messages" (and "tools") or "input_ids"; in a record,
            "expert_prompt" or "expert_messages" stand in for the prompt in the experts' view.
          settings: see `GenerationSettings`, which documents every one; None: its defaults.
          places: name of each prompt in errors (file:line); None: "prompt 1", ...
          progress: called with the number of finished answers.
          evidence: answers also have what the loop knew of each token (`decoding.risk.EVIDENCE`).
          overrides: settings by name, as in `threshold=0.3, max_new_tokens=200`; they replace those of `settings`.

        Returns:
          An answer for each prompt; of several samples, a prompt's are side by side.

        Raises:
          UserError: a setting out of range, a prompt that leaves no room in the context, or no gate where one is
            needed.
        """
        found: dict[tuple[int, int], Generation] = {}
        for number, answer in self.answers(prompts, settings, places=places, evidence=evidence, **overrides):
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
        evidence: bool = False,
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
          evidence: as in `generate`.
          overrides: as in `generate`.

        Raises:
          UserError: as `generate`, before anything is written.
        """
        settings = self.settings(settings, **overrides)
        places = [f"prompt {i + 1}" for i in range(len(prompts))] if places is None else places
        requests = encode_requests(prompts, settings, self.units, self.tokenizer, places, keys)
        for number, request in enumerate(requests):
            self.check_views(request, places[number // settings.samples])
        order = sorted(range(len(requests)), key=lambda i: self.engine.limit(requests[i]))  # slots only grow
        alike = [i for i in order if not requests[i].has_own_views]
        if self.engine.resident and len(alike) < len(order):
            groups = [group for group in (alike, [i for i in order if requests[i].has_own_views]) if group]
        else:
            groups = [order]
        running = []
        for group in groups:
            session = self.session(settings, any(requests[i].has_own_views for i in group), evidence=evidence)
            running.append((session, {session.submit(requests[i]): i // settings.samples for i in group}))

        def finished() -> Iterator[tuple[int, Generation]]:
            try:
                for session, numbers in running:
                    yield from ((numbers[request], answer) for request, answer in session.drain())
            finally:  # also where the caller stops early
                for session, _ in running:
                    session.close()

        return self._with_log_probs(finished()) if settings.log_probs else finished()

    def check_views(self, request: Request, where: str) -> None:
        """Raise UserError for a request that an expert cannot answer."""
        if not self.engine.resident:
            for expert, view in zip(self.engine.unit_experts, request.views, strict=True):
                expert.check(view, request.settings, where)

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
        (request,) = encode_requests([prompt], settings, self.units, self.tokenizer, ["prompt"])
        self.check_views(request, "prompt")
        session = self.session(settings, request.has_own_views)
        session.submit(replace(request, stream=True))

        def tokens() -> Iterator[Token]:
            try:
                while not session.idle:
                    for update in session.step():
                        yield from update.tokens
            finally:  # also where the caller stops early
                session.close()

        return tokens()

    def settings(self, given: GenerationSettings | None = None, **overrides: Any) -> GenerationSettings:
        """Return the settings of a call: those given, the overrides, and this team's threshold where there is none."""
        if unknown := ", ".join(sorted(overrides.keys() - vars(GenerationSettings()).keys())):
            raise TypeError(f"no setting of generation: {unknown}; see colm_jax.settings.generation")
        settings = GenerationSettings(**overrides) if given is None else replace(given, **overrides)
        return settings if settings.threshold is not None else replace(settings, threshold=threshold_of(self.facts))

    def session(
        self,
        settings: GenerationSettings,
        own_views: bool = False,
        fixed: FixedBatch | None = None,
        evidence: bool = False,
    ) -> Session:
        """Return an empty batch, if this team can follow the strategy.

        Args:
          settings: what its requests share (`Session`).
          own_views: they may have a prompt of its own for an expert.
          fixed: the batch's shapes; None: it grows with its requests.
          evidence: answers have the evidence of their tokens.

        Raises:
          UserError: an expert or a gate that the strategy needs is missing.
        """
        resident = self.engine.resident and not own_views
        gate_experts = None if self.gate is None else self.gate.kernel.shape[1]
        find_strategy(settings.strategy, len(self.experts), gate_experts, resident)
        if settings.log_probs and not resident:
            raise UserError("log_probs needs experts that share the base's tokenizer and see the same prompt")
        return (Session if resident else UnitsSession)(self.engine, settings, fixed, evidence)

    def _with_log_probs(self, answers: Iterator[tuple[int, Generation]]) -> Iterator[tuple[int, Generation]]:
        """Add the log-probability of every written token under every model, over the shared vocabulary."""
        at_once = max(_ANSWERS, self.mesh.shape["data"] * self.mesh.shape["fsdp"])
        while group := list(itertools.islice(answers, at_once)):
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
        return self.score_examples(encode_units(places, self.units, "records"))

    def score_examples(self, examples: Examples) -> ScoredTexts:
        """Score texts that are tokenised already, as `score`."""
        opening = None if isinstance(self.units, TokenUnits) else self.units.opening(0)
        base = score_examples(self.base, examples, self.allowed, self.gate, opening=opening)
        found = [self._expert_scores(m, examples) for m in range(len(self.experts))]
        units = None if opening is None else units_of(base, examples)
        scored = []
        for i, example in enumerate(examples.items):
            by_expert = [scores[i] for scores, _ in found]
            log_probs = np.stack([base.log_prob[i], *(log_prob for log_prob, _ in by_expert)], -1)
            is_argmax = np.stack([base.is_argmax[i], *(bits for _, bits in by_expert)], -1)
            spans = span_log_probs = has_text = None
            if units is not None:
                spans = np.flatnonzero(example.counted[1:])
                span_log_probs = np.column_stack([units[i].log_prob, log_probs[spans, 1:]])
                is_argmax = np.column_stack([units[i].is_argmax, is_argmax[spans, 1:]])
                has_text = ~np.isin(example.ids[spans + 1], self.tokenizer.eos_ids)
            scored.append(
                Scored(
                    tokens=example.ids,
                    mask=example.targets[1:],
                    base_log_prob=log_probs[:, 0],
                    expert_log_probs=log_probs[:, 1:] if span_log_probs is None else span_log_probs[:, 1:],
                    gate_logits=None if base.gate_logits is None else base.gate_logits[i],
                    is_argmax=is_argmax,
                    spans=spans,
                    span_log_probs=span_log_probs,
                    has_text=has_text,
                    bytes=None if examples.text_bytes is None else int(examples.text_bytes[i]),
                )
            )
        return ScoredTexts(scored, examples.cut, sum((counts for _, counts in found), base.counts))

    def _expert_scores(self, m: int, examples: Examples) -> tuple[Sequence[tuple[np.ndarray, np.ndarray]], PassCounts]:
        """Return log-probabilities and "is argmax" of each text under expert m (from 0), in the base's places."""
        expert, view = self.experts[m], examples.view(m + 1)
        if isinstance(expert, Decoder) and view is None:
            scores = score_examples(expert, examples, self.allowed)
            return list(zip(scores.log_prob, scores.is_argmax)), scores.counts
        texts = examples.items if view is None else view.items if isinstance(view, Examples) else view
        if isinstance(expert, Decoder):
            found: Sequence[UnitScores] = score_units(expert, None, texts, self.allowed)
        else:
            found = expert.score(texts, lambda done, total: None)
        counts = found.counts if isinstance(found, ScoredUnits) else NO_PASSES
        return [in_layout(*each) for each in zip(examples.items, found, strict=True)], counts

    def pieces(self, answer: Generation) -> list[str]:
        """Return the text that each written token added; joined, they are the answer's text."""
        text = GeneratedText(self.tokenizer.token_bytes, answer.prompt_ids)
        text.extend(answer.tokens)
        text.finish()
        return cut(text.pieces, len(answer.text))  # where a stop string ended it

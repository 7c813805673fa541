"""What a run reads: models, tokenizers and data files. All are checked at once; weights are loaded when needed."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from colm_jax import console
from colm_jax.calibration.threshold import decoded_prompts, prompt_of, references_of, source_of
from colm_jax.checkpoints.huggingface import match_tensors
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checkpoints.team import Base, load_base, load_expert
from colm_jax.data.records import Examples, read_jsonl, stream_records
from colm_jax.data.span_units import SpanUnits
from colm_jax.data.tokens import open_tokens
from colm_jax.decoding.risk import Risk
from colm_jax.errors import UserError
from colm_jax.experts.guest import GuestExpert
from colm_jax.experts.protocol import Expert
from colm_jax.experts.remote import RemoteExpert
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh, on_first, reshaped, to_host
from colm_jax.pipeline.stage import hash_expert, hash_model
from colm_jax.settings.run import UNTRAINED, RunConfig
from colm_jax.settings.strategies import find_strategy
from colm_jax.storage import path_of, sha256_of
from colm_jax.team import CoLM
from colm_jax.text.spans import Opening


class RunInputs:
    """The models and files of a run, and what is opened of its finished stages; each is loaded once."""

    def __init__(self, config: RunConfig):
        """Validate models and files: read and tokenise dev and test files, then read the headers of the weights.

        The training file, which may be larger than memory, is read through by the stage `tokens`.

        Raises:
          UserError: a file or model that cannot be used, tokenizers that disagree, a line of the dev or test file
            that cannot be scored, answered or graded.
        """
        self.config = config
        self.mesh = make_mesh(*config.mesh)
        self.expert_mesh = reshaped(self.mesh, config.expert_mesh)
        self.outline = outline_team(config.base, config.experts, weights=True, spans=config.spans)
        self.base_directory = self.outline.base_directory
        self.expert_directories = self.outline.directories[1:]  # None: an endpoint
        if config.online and not self.outline.resident:
            kinds = ", ".join(sorted(set(self.outline.kinds) - {"resident"}))
            raise UserError(f"Run.expert_scores 'online' needs resident experts, these are {kinds}; use 'cached'")
        self.tokenizer, self.expert_tokenizers = self.outline.tokenizer, self.outline.expert_tokenizers
        self.allowed, self.context = self.outline.allowed, self.outline.context
        files = {"data": config.data, "dev": config.dev, "test": config.test}
        self.files = {split: path_of(file) for split, file in files.items() if file is not None}
        next(stream_records(config.data))
        self.records = {split: read_jsonl(file) for split, file in self.files.items() if split != "data"}
        self.examples = {
            split: self.outline.encode_examples(records, str(self.files[split]))
            for split, records in self.records.items()
        }
        self._check_strategies()
        self._check_dev()
        self.prompts = self._test_prompts()
        for directory in self.outline.directories:
            if directory is not None:
                match_tensors(directory)
        self._opened: dict[Any, Any] = {}  # what finished stages wrote, by directory

    @property
    def test_split(self) -> str | None:
        """The split whose prompts are answered; None if there is none."""
        return next((split for split in ("test", "dev") if split in self.records), None)

    @property
    def calibrates(self) -> bool:
        """Whether a threshold is calibrated: there are dev lines, and a strategy that uses it."""
        return "dev" in self.records and self.config.obeys_threshold

    @property
    def calibration_source(self) -> str:
        """Where calibration takes its quantiles; there are dev lines."""
        return source_of(self.records["dev"], self.config.calibration, self.outline.resident)

    def _check_strategies(self) -> None:
        """Refuse strategies that this team's kinds of expert cannot follow."""
        for name in self.config.answered_by:
            if name == "proxy" and not self.outline.resident:
                raise UserError("strategy 'proxy' compares the models' tokens; the experts here write by units")
            if name not in ("proxy", UNTRAINED):
                find_strategy(name, len(self.config.experts), len(self.config.experts), self.outline.resident)

    def _check_dev(self) -> None:
        """Validate that calibration can decode and grade the dev lines."""
        if self.calibrates:
            records, task = self.records["dev"], self.config.task
            prompts = decoded_prompts(records, task, self.calibration_source)
            if prompts:
                self.outline.encode_prompts(prompts, [where for where, _ in records])
            references_of(records, task)

    def _test_prompts(self) -> list[dict[str, Any]]:
        """Return the prompts of the split that is answered.

        The prompt of a text without one is its first tokens.

        Raises:
          UserError: a prompt that leaves no room in the context, or a line without the task's reference.
        """
        if self.test_split is None:
            return []
        records = self.records[self.test_split]
        prompts = []
        for (_, record), example in zip(records, self.examples[self.test_split].items):
            start = max(1, min(self.config.prompt_tokens, len(example.ids) // 2))
            if example.starts is not None and example.starts[1 : start + 1].any():  # no word is cut
                start = int(np.flatnonzero(example.starts[: start + 1])[-1])
            prompts.append(prompt_of(record) or {"input_ids": example.ids[:start].tolist()})
        self.outline.encode_prompts(prompts, [where for where, _ in records])
        references_of(records, self.config.task)
        return prompts

    @cached_property
    def base(self) -> Base:
        """The base as given; of a quantised checkpoint, dequantised if its weights are trained."""
        packed = self.config.training.trainable == "gate"
        with console.bar("loading base", bytes_=True) as bar:
            return load_base(self.base_directory, self.config.dtype, self.mesh, progress=bar.to, packed=packed)

    @property
    def head_mean(self) -> np.ndarray:
        """Mean row [D] of the base's LM head, float32."""
        decoder = self.base.decoder
        head = decoder.embedding[...] if decoder.config.tied else decoder.head[...].T
        return to_host(jnp.mean(head, axis=0, dtype=jnp.float32))

    @cached_property
    def experts(self) -> list[Decoder | Expert]:
        """The experts, for decoding: decoders of resident ones."""
        return [self._expert(m) for m in range(len(self.expert_directories))]

    def _expert(self, m: int) -> Decoder | Expert:
        """Load expert m (from 0) for decoding."""
        if self.outline.kinds[m] == "resident":
            return self.load_expert(m, stacked=False)
        if self.expert_directories[m] is None:
            return self.endpoint(m)
        name = str(self.config.experts[m])
        return GuestExpert(name, self.load_expert(m, stacked=False), m + 1, self.outline.units)

    def endpoint(self, m: int) -> RemoteExpert:
        """Return expert m (from 0), which is an endpoint; it is asked once what it can do."""
        if ("endpoint", m) not in self._opened:
            assert isinstance(self.outline.units, SpanUnits)
            self._opened["endpoint", m] = RemoteExpert(self.config.experts[m], self.outline.units, self.config.remote)
        return self._opened["endpoint", m]

    def load_expert(self, m: int, stacked: bool = True) -> Decoder:
        """Load the weights of expert m (from 0).

        They are not kept here: after scoring, their memory is free for training.
        """
        config, directory, tokenizer = self.config, self.expert_directories[m], self.expert_tokenizers[m]
        assert directory is not None and tokenizer is not None  # no endpoint
        with console.bar(f"loading expert {m + 1}", bytes_=True) as bar:
            arguments = config.dtype, config.expert_dtype, self.expert_mesh, bar.to
            return load_expert(directory, tokenizer, *arguments, stacked=stacked)

    def scoring_vocabulary(self, model: int) -> np.ndarray | None:
        """Return the ids that probabilities of base (0) or an expert are over, [V] bool; None: all rows of its head."""
        return self.allowed if model == 0 or self.outline.shares_tokenizer else None

    def opening(self, model: int) -> Opening | None:
        """Return which tokens of base (0) or an expert open a unit; None: every one."""
        return None if self.outline.shares_tokenizer else self.outline.units.opening(model)

    def training_examples(self, tokens: Path) -> Examples:
        """Open the training texts that the stage `tokens` wrote into a directory, once."""
        if tokens not in self._opened:
            examples = open_tokens(tokens)
            if self.outline.shares_tokenizer:  # whose experts all read alike
                examples = replace(examples, views=examples.views[:1] * len(self.config.experts))
            self._opened[tokens] = examples
        return self._opened[tokens]

    def trained_base(self, directory: Path) -> Base:
        """Load the base and the gate of a team directory, once."""
        if directory not in self._opened:
            self._opened[directory] = load_base(directory, self.config.dtype, self.mesh, stacked=False)
        return self._opened[directory]

    def team(self, directory: Path, risk: Risk | None = None) -> CoLM:
        """Load a team directory of this run, joined with the run's experts and what was learned of its risks, once."""
        key = "team", directory, risk
        if key not in self._opened:
            models = self.trained_base(directory), self.experts, self.expert_tokenizers
            self._opened[key] = CoLM(*models, self.mesh, self.outline, risk)
        return self._opened[key]

    @property
    def length(self) -> int:
        """Where training texts are cut, in tokens."""
        return min(self.config.length, self.context)

    @cached_property
    def vocabulary_digest(self) -> str:
        """Hash of the shared vocabulary, or of the tokenizers."""
        return self.outline.vocabulary_digest

    @cached_property
    def file_hashes(self) -> dict[str, str]:
        """Content hash of each data file by split; the first process reads them for all."""
        return on_first(lambda: {split: sha256_of(file) for split, file in self.files.items()})

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Content hash of each file and model: "data", "dev", "test", "base", "expert-1", ..."""

        def read() -> dict[str, str]:
            models = {
                f"expert-{m + 1}": hash_expert(name, where, self.config.remote, answers=False)
                for m, (name, where) in enumerate(zip(self.config.experts, self.expert_directories))
            }
            return {"base": hash_model(self.base_directory), **models}

        return {**self.file_hashes, **on_first(read)}

"""What a run reads: models, tokenizers and data files. All are checked at once; weights are loaded when needed."""

from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from colm_jax import console
from colm_jax.calibration.threshold import decoded_prompts, prompt_of, references_of
from colm_jax.checkpoints.huggingface import match_tensors
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checkpoints.team import Base, load_base, load_expert
from colm_jax.data.records import Examples, read_jsonl, stream_records
from colm_jax.data.tokens import open_tokens
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh, on_first, reshaped, to_host
from colm_jax.pipeline.stage import hash_model
from colm_jax.settings.run import RunConfig
from colm_jax.storage import path_of, sha256_of
from colm_jax.team import CoLM
from colm_jax.text.tokenizer import vocabulary_digest


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
        self.outline = outline_team(config.base, config.experts, weights=True)
        self.base_directory, *self.expert_directories = self.outline.directories
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
        self._check_dev()
        self.prompts, self.prompt_ids = self._test_prompts()
        for directory in self.outline.directories:
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

    def _check_dev(self) -> None:
        """Validate that calibration can decode and grade the dev lines."""
        if self.calibrates:
            records, task = self.records["dev"], self.config.task
            prompts = decoded_prompts(records, task, self.config.calibration)
            if prompts:
                self.outline.encode_prompts(prompts, [where for where, _ in records])
            references_of(records, task)

    def _test_prompts(self) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """Return the prompts of the split that is answered, and their ids.

        The prompt of a text without one is its first tokens.

        Raises:
          UserError: a prompt that leaves no room in the context, or a line without the task's reference.
        """
        if self.test_split is None:
            return [], []
        records = self.records[self.test_split]
        prompts = []
        for (_, record), example in zip(records, self.examples[self.test_split].items):
            start = max(1, min(self.config.prompt_tokens, len(example.ids) // 2))
            prompts.append(prompt_of(record) or {"input_ids": example.ids[:start].tolist()})
        ids = self.outline.encode_prompts(prompts, [where for where, _ in records])
        references_of(records, self.config.task)
        return prompts, ids

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
    def experts(self) -> list[Decoder]:
        """The experts, for decoding."""
        return [self.load_expert(m, stacked=False) for m in range(len(self.expert_directories))]

    def load_expert(self, m: int, stacked: bool = True) -> Decoder:
        """Load expert m (from 0). It is not kept here: after scoring, its memory is free for training."""
        config, tokenizer = self.config, self.expert_tokenizers[m]
        with console.bar(f"loading expert {m + 1}", bytes_=True) as bar:
            arguments = config.dtype, config.expert_dtype, self.expert_mesh, bar.to
            return load_expert(self.expert_directories[m], tokenizer, *arguments, stacked=stacked)

    def training_examples(self, tokens: Path) -> Examples:
        """Open the training texts that the stage `tokens` wrote into a directory, once."""
        if tokens not in self._opened:
            self._opened[tokens] = open_tokens(tokens)
        return self._opened[tokens]

    def trained_base(self, directory: Path) -> Base:
        """Load the base and the gate of a team directory, once."""
        if directory not in self._opened:
            self._opened[directory] = load_base(directory, self.config.dtype, self.mesh, stacked=False)
        return self._opened[directory]

    def team(self, directory: Path) -> CoLM:
        """Load a team directory of this run, joined with the run's experts, once."""
        if ("team", directory) not in self._opened:
            joined = CoLM(self.trained_base(directory), self.experts, self.expert_tokenizers, self.mesh)
            self._opened["team", directory] = joined
        return self._opened["team", directory]

    @property
    def length(self) -> int:
        """Where training texts are cut, in tokens."""
        return min(self.config.length, self.context)

    @cached_property
    def vocabulary_digest(self) -> str:
        """Hash of the shared vocabulary."""
        return vocabulary_digest(self.tokenizer, self.allowed)

    @cached_property
    def file_hashes(self) -> dict[str, str]:
        """Content hash of each data file by split; the first process reads them for all."""
        return on_first(lambda: {split: sha256_of(file) for split, file in self.files.items()})

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Content hash of each file and model: "data", "dev", "test", "base", "expert-1", ..."""

        def read() -> dict[str, str]:
            models = {f"expert-{m + 1}": hash_model(d) for m, d in enumerate(self.expert_directories)}
            return {"base": hash_model(self.base_directory), **models}

        return {**self.file_hashes, **on_first(read)}

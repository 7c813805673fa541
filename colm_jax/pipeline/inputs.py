"""What a run reads: models, tokenizers and data files, checked at once and loaded when a stage needs them."""

from functools import cached_property

import jax.numpy as jnp
import numpy as np

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import match_tensors, read_config
from colm_jax.checkpoints.team import Base, load_base, load_expert, load_tokenizers
from colm_jax.data.records import Examples, encode_examples, read_jsonl, stream_records
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh, on_first, reshaped, to_host
from colm_jax.pipeline import console
from colm_jax.pipeline.config import RunConfig
from colm_jax.pipeline.stage import hash_model
from colm_jax.storage import path_of, sha256_of


class Inputs:
    """The models and files of a run; each is loaded once."""

    def __init__(self, config: RunConfig):
        """Checks models and files; dev and test files are read.

        The training file, which may be larger than memory, is read through by the stage `tokens`.

        Raises:
          UserError: a file or model that cannot be used, tokenizers that disagree.
        """
        self.config = config
        self.mesh = make_mesh(*config.mesh)
        self.expert_mesh = reshaped(self.mesh, config.expert_mesh)
        self.base_directory = resolve(config.base)
        self.expert_directories = [resolve(expert) for expert in config.experts]
        directories = [self.base_directory, *self.expert_directories]
        for directory in directories:
            match_tensors(directory)
        (self.tokenizer, *self.expert_tokenizers), self.allowed = load_tokenizers(directories)
        files = {"data": config.data, "dev": config.dev, "test": config.test}
        self.files = {split: path_of(file) for split, file in files.items() if file is not None}
        next(stream_records(config.data))
        self.records = {split: read_jsonl(file) for split, file in self.files.items() if split != "data"}

    @cached_property
    def base(self) -> Base:
        """The base as given."""
        with console.bar("loading base", bytes_=True) as bar:
            return load_base(self.base_directory, self.config.dtype, self.mesh, progress=bar.to)

    @property
    def head_mean(self) -> np.ndarray:
        """Mean row [D] of the base's LM head, float32."""
        decoder = self.base.decoder
        head = decoder.embedding[...] if decoder.config.tied else decoder.head[...].T
        return to_host(jnp.mean(head, axis=0, dtype=jnp.float32))

    @cached_property
    def experts(self) -> list[Decoder]:
        """The experts, as decoding wants them."""
        return [self.load_expert(m, stacked=False) for m in range(len(self.expert_directories))]

    def load_expert(self, m: int, stacked: bool = True) -> Decoder:
        """Expert m (from 0). Nothing here keeps it: what has been scored makes room for training."""
        config, tokenizer = self.config, self.expert_tokenizers[m]
        with console.bar(f"loading expert {m + 1}", bytes_=True) as bar:
            arguments = config.dtype, config.expert_dtype, self.expert_mesh, bar.to
            return load_expert(self.expert_directories[m], tokenizer, *arguments, stacked=stacked)

    @cached_property
    def context(self) -> int:
        """Tokens that the shortest model can read."""
        return min(read_config(directory).context for directory in (self.base_directory, *self.expert_directories))

    @property
    def length(self) -> int:
        """Where training texts are cut, in tokens."""
        return min(self.config.length, self.context)

    def examples(self, split: str) -> Examples:
        """The dev or test file, tokenised by the base's tokenizer."""
        source = str(self.files[split])
        return encode_examples(self.records[split], self.tokenizer, self.context, source, self.allowed)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """What the run reads, by content; one process reads it for all."""

        def read() -> dict[str, str]:
            files = {split: sha256_of(file) for split, file in self.files.items()}
            models = {f"expert-{m + 1}": hash_model(d) for m, d in enumerate(self.expert_directories)}
            return {**files, "base": hash_model(self.base_directory), **models}

        return on_first(read)

"""What `colm bench` measures: a random Llama small enough for a laptop, and how often it is timed."""

from dataclasses import dataclass, fields

import jax

from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig, Rope


@dataclass(frozen=True)
class TrainBench:
    """The model and the amount of work of `colm bench train`. The defaults: 28 million parameters, about 4 minutes."""

    vocab_size: int = 8192
    width: int = 512
    depth: int = 6
    heads: int = 8
    ff: int = 1408
    batch_size: int = 8  # texts a step
    length: int = 256  # positions a text
    dtype: str | None = None  # of activations; None: float32 on a CPU, bfloat16 elsewhere
    repeats: int = 5  # rounds in which all that is compared takes its turn
    epochs: int = 2  # of joint training, where the gate alone is compared with it
    texts: int = 64  # that the gate alone is fitted to
    seed: int = 0  # of weights and texts

    def __post_init__(self):
        """Rejects sizes that cannot be meant."""
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "seed" else 1
            if field.name != "dtype" and (not isinstance(value, int) or value < least):
                raise UserError(f"bench: {field.name} must be a whole number of at least {least}, got {value!r}")
        if self.width % self.heads:
            raise UserError(f"bench: width {self.width} must be a multiple of heads {self.heads}")
        if self.texts < 2 * self.batch_size:
            raise UserError(
                f"bench: texts {self.texts} must make two batches of {self.batch_size}: a first one compiles"
            )
        if self.dtype not in (None, *DTYPES):
            raise UserError(f"bench: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def activations(self) -> str:
        """The dtype, chosen by the device where it is not given."""
        return self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")

    @property
    def model(self) -> ModelConfig:
        """The random Llama."""
        return ModelConfig(
            family="llama",
            vocab_size=self.vocab_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.width // self.heads,
            ff=self.ff,
            context=self.length + 1,
            rope=Rope(10000.0),
            rms_eps=1e-5,
            tied=False,
        )

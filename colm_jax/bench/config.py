"""What `colm bench` measures: random Llamas small enough for a laptop, and how often they are timed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax

from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.checks import INT32, SEEDS, check_number, check_whole
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
        _check(self, {"seed": 0})
        _check_heads("width", self.width, "heads", self.heads)
        if self.texts < 2 * self.batch_size:
            raise UserError(
                f"bench: texts {self.texts} must make two batches of {self.batch_size}: a first one compiles"
            )

    @property
    def activations(self) -> str:
        """The dtype, chosen by the device where it is not given."""
        return _dtype(self.dtype)

    @property
    def model(self) -> ModelConfig:
        """The random Llama."""
        return _llama(self.vocab_size, self.width, self.depth, self.heads, self.ff, self.length + 1)


@dataclass(frozen=True)
class DecodeBench:
    """The pair and the amount of work of `colm bench decode`. The defaults: 28 and 158 million parameters.

    On an accelerator larger ones are due; Llama-2's 7B is vocab_size 32000, expert_width 4096, expert_depth 32,
    expert_heads 32, expert_ff 11008, and 2048, 18, 16, 5632 make a base of 1.05 billion parameters.
    """

    vocab_size: int = 8192  # of both
    base_width: int = 512
    base_depth: int = 6
    base_heads: int = 8
    base_ff: int = 1408
    expert_width: int = 1024
    expert_depth: int = 11
    expert_heads: int = 16
    expert_ff: int = 2816
    prompt_tokens: int = 100
    new_tokens: int = 128  # that every request writes
    rates: Sequence[float] = (0.05, 0.2, 0.5)  # of tokens that the expert writes
    batch_size: int = 8  # requests decoded together; one alone is measured too
    dtype: str | None = None  # of weights, activations and caches; None: float32 on a CPU, bfloat16 elsewhere
    repeats: int = 3  # rounds in which all that is compared takes its turn
    # Of weights, prompts and of who writes which token. With 37 and the other defaults, a request alone has the rates
    # to half a token, and no token is nearly tied: the two best logits are 0.00007 apart, rounding moves 0.000002.
    seed: int = 37

    def __post_init__(self):
        """Rejects sizes that cannot be meant."""
        _check(self, {"seed": 0, "new_tokens": 2, "batch_size": 2})
        for model in ("base", "expert"):
            width, heads = f"{model}_width", f"{model}_heads"
            _check_heads(width, getattr(self, width), heads, getattr(self, heads))
        if not isinstance(self.rates, Sequence) or not self.rates:
            raise UserError(f"bench: rates must be a list of numbers, got {self.rates!r}")
        for rate in self.rates:
            check_number("bench: each of rates", rate, above=0, most=1)
        if len(set(self.rates)) < len(self.rates):
            raise UserError(f"bench: rates must differ from each other, got {self.rates!r}")

    @property
    def weights(self) -> str:
        """The dtype, chosen by the device where it is not given."""
        return _dtype(self.dtype)

    @property
    def base(self) -> ModelConfig:
        """The base, a random Llama."""
        sizes = (self.base_width, self.base_depth, self.base_heads, self.base_ff)
        return _llama(self.vocab_size, *sizes, self.prompt_tokens + self.new_tokens)

    @property
    def expert(self) -> ModelConfig:
        """The expert, another."""
        sizes = (self.expert_width, self.expert_depth, self.expert_heads, self.expert_ff)
        return _llama(self.vocab_size, *sizes, self.prompt_tokens + self.new_tokens)


def _check(settings: Any, least: dict[str, int]) -> None:
    """Every field that is no list of rates is a whole number of at least 1, or what `least` says, or a known dtype."""
    for field in fields(settings):
        value, bound = getattr(settings, field.name), least.get(field.name, 1)
        if field.name in ("dtype", "rates"):
            continue
        check_whole(f"bench: {field.name}", value, bound, SEEDS - 2 if field.name == "seed" else INT32)
    if settings.dtype not in (None, *DTYPES):
        raise UserError(f"bench: dtype must be one of {', '.join(DTYPES)}, got {settings.dtype!r}")


def _check_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    if width % heads:
        raise UserError(f"bench: {width_name} {width} must be a multiple of {heads_name} {heads}")


def _dtype(given: str | None) -> str:
    return given or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def _llama(vocab_size: int, width: int, depth: int, heads: int, ff: int, context: int) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ff=ff,
        context=context,
        rope=Rope(10000.0),
        rms_eps=1e-5,
        tied=False,
    )

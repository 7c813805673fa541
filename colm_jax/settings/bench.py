"""Settings of `colm bench`: sizes of the random models and of the work, and how often it is timed."""

from dataclasses import dataclass
from typing import Any

from colm_jax.checks import INT32, SEEDS
from colm_jax.errors import UserError
from colm_jax.settings.fields import setting, validate
from colm_jax.settings.models import FLOAT_TYPES

_DTYPE = "float32 on a CPU, else bfloat16, where it is unset"


def _size(default: int, help: str, least: int = 1) -> Any:
    return setting(default, help=help, least=least, most=INT32)


@dataclass(frozen=True)
class TrainBench:
    """The model and the amount of work of `colm bench train`. The defaults: 28 million parameters, about 4 minutes."""

    vocab_size: int = _size(8192, "vocabulary size")
    width: int = _size(512, "width of the model")
    depth: int = _size(6, "layers")
    heads: int = _size(8, "attention heads")
    ff: int = _size(1408, "width of the feed-forward layers")
    batch_size: int = _size(8, "texts a step")
    length: int = _size(256, "positions a text")
    dtype: str | None = setting(None, help=f"of activations; {_DTYPE}", choices=FLOAT_TYPES)
    repeats: int = _size(5, "rounds of interleaved timing")
    epochs: int = _size(2, "of joint training, where the gate alone is compared with it")
    texts: int = _size(64, "that the gate alone is fitted to")
    seed: int = setting(0, help="of weights and texts", least=0, most=SEEDS - 2)

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "TrainBench.")
        _check_heads("TrainBench.", "width", self.width, "heads", self.heads)
        if self.texts < 2 * self.batch_size:
            raise UserError(
                f"TrainBench.texts {self.texts} must make two batches of {self.batch_size}: the first one compiles"
            )


@dataclass(frozen=True)
class DecodeBench:
    """The pair and the amount of work of `colm bench decode`. The defaults: 28 and 158 million parameters.

    On an accelerator choose larger ones: Llama-2's 7B is vocab_size 32000, expert_width 4096, expert_depth 32,
    expert_heads 32, expert_ff 11008, and 2048, 18, 16, 5632 make a base of 1.05 billion parameters.
    """

    vocab_size: int = _size(8192, "vocabulary size of both models")
    base_width: int = _size(512, "width of the base")
    base_depth: int = _size(6, "layers of the base")
    base_heads: int = _size(8, "attention heads of the base")
    base_ff: int = _size(1408, "feed-forward width of the base")
    expert_width: int = _size(1024, "width of the expert")
    expert_depth: int = _size(11, "layers of the expert")
    expert_heads: int = _size(16, "attention heads of the expert")
    expert_ff: int = _size(2816, "feed-forward width of the expert")
    prompt_tokens: int = _size(100, "tokens of every prompt")
    new_tokens: int = _size(128, "tokens that every request generates", least=2)
    rates: tuple[float, ...] = setting(
        (0.05, 0.2, 0.5), help="shares of tokens that the expert writes", above=0, most=1
    )
    batch_size: int = _size(8, "requests of the larger batch, beside 1", least=2)
    dtype: str | None = setting(None, help=f"of weights, activations and caches; {_DTYPE}", choices=FLOAT_TYPES)
    repeats: int = _size(3, "rounds of interleaved timing")
    # With 37 and the other defaults, a request alone has the rates to half a token, and no token is nearly tied: the
    # two best logits are 0.00007 apart, rounding moves 0.000002.
    seed: int = setting(37, help="of weights, prompts and of who writes which token", least=0, most=SEEDS - 2)

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "DecodeBench.")
        for model in ("base", "expert"):
            width, heads = f"{model}_width", f"{model}_heads"
            _check_heads("DecodeBench.", width, getattr(self, width), heads, getattr(self, heads))
        if not self.rates or len(set(self.rates)) < len(self.rates):
            raise UserError(f"DecodeBench.rates must be different numbers, got {self.rates!r}")


def _check_heads(prefix: str, width_name: str, width: int, heads_name: str, heads: int) -> None:
    if width % heads:
        raise UserError(f"{prefix}{width_name} {width} must be a multiple of {prefix}{heads_name} {heads}")

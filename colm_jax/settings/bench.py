"""Settings of `colm bench`: sizes of the models and of the work, and how often it is timed."""

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


@dataclass(frozen=True)
class SpeculationBench:
    """The pairs and the amount of work of `colm bench speculation`. The defaults: 14 and 65 million parameters.

    An expert has the base's layers, and further ones that change the residual stream so little that it chooses the
    base's token with the wanted frequency.
    """

    vocab_size: int = _size(1024, "vocabulary size of both models")
    width: int = _size(512, "width of both models")
    heads: int = _size(8, "attention heads")
    ff: int = _size(1408, "feed-forward width")
    base_depth: int = _size(4, "layers of the base")
    expert_depth: int = _size(20, "layers of the expert", least=2)
    agreements: tuple[float, ...] = setting(
        (0.9, 0.25), help="frequencies with which the expert chooses the base's token", above=0, below=1
    )
    rate: float = setting(0.3, help="share of tokens that are deferred", above=0, most=1)
    prompt_tokens: int = _size(64, "tokens of every prompt", least=2)
    new_tokens: int = _size(128, "tokens that every request generates", least=2)
    requests: int = _size(4, "requests, one after the other")
    dtype: str | None = setting(None, help=f"of weights, activations and caches; {_DTYPE}", choices=FLOAT_TYPES)
    repeats: int = _size(5, "rounds of interleaved timing")
    seed: int = setting(0, help="of weights, prompts and of who writes which token", least=0, most=SEEDS - 2)

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "SpeculationBench.")
        _check_heads("SpeculationBench.", "width", self.width, "heads", self.heads)
        if self.expert_depth <= self.base_depth:
            raise UserError(
                f"SpeculationBench.expert_depth {self.expert_depth} must exceed base_depth {self.base_depth}"
            )


@dataclass(frozen=True)
class CompiledBench:
    """The models and the amount of work of `colm bench compiled`, on one chip.

    The defaults: a few layers of a base of 1 billion parameters and of Llama-2's 7B, since each layer adds the same.
    """

    topology: str = setting("v5e:2x2", help="as in v5e:2x2, v5p:2x2x2, v6e:2x2; one of its chips is compiled for")
    vocab_size: int = _size(32000, "vocabulary size of both models")
    base_width: int = _size(2048, "width of the base")
    base_depth: int = _size(4, "layers of the base")
    base_heads: int = _size(16, "attention heads of the base")
    base_ff: int = _size(5632, "feed-forward width of the base")
    expert_width: int = _size(4096, "width of the expert")
    expert_depth: int = _size(2, "layers of the expert")
    expert_heads: int = _size(32, "attention heads of the expert")
    expert_ff: int = _size(11008, "feed-forward width of the expert")
    length: int = _size(1024, "tokens a text, and positions of a cache", least=2)
    slots: int = _size(8, "sequences that are decoded together")
    batch_size: int = _size(4, "texts of a training step")
    dtype: str = setting("bfloat16", help="of weights, activations and caches", choices=FLOAT_TYPES)

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "CompiledBench.")
        for model in ("base", "expert"):
            width, heads = f"{model}_width", f"{model}_heads"
            _check_heads("CompiledBench.", width, getattr(self, width), heads, getattr(self, heads))


@dataclass(frozen=True)
class ScoreBench:
    """The model and the texts of `colm bench score`. The defaults: 28 million parameters, about 5 minutes.

    A model and a data file take the place of random ones, as in --model MODEL --data train.jsonl.
    """

    model: str | None = setting(None, help="a model on disk or on the Hub; unset: a random one", metavar="MODEL")
    data: str | None = setting(None, help="its texts, a data file; unset: random ones", metavar="FILE")
    vocab_size: int = _size(8192, "vocabulary size of the random model")
    width: int = _size(512, "its width")
    depth: int = _size(6, "its layers")
    heads: int = _size(8, "its attention heads")
    ff: int = _size(1408, "width of its feed-forward layers")
    texts: int = _size(128, "texts, of a data file the first ones")
    length: int = _size(180, "median length of the random texts, which are drawn log-normally", least=2)
    longest: int = _size(1024, "their longest length", least=2)
    batch_size: int = _size(8, "texts of transformers' batches, each padded to its longest text")
    dtype: str | None = setting(None, help=f"of weights and activations; {_DTYPE}", choices=FLOAT_TYPES)
    repeats: int = _size(3, "rounds of interleaved timing")
    seed: int = setting(0, help="of weights and texts", least=0, most=SEEDS - 2)

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "ScoreBench.")
        _check_heads("ScoreBench.", "width", self.width, "heads", self.heads)
        if (self.model is None) != (self.data is None):
            raise UserError(f"ScoreBench.model {self.model!r}, ScoreBench.data {self.data!r}: give both or neither")


@dataclass(frozen=True)
class GuestsBench:
    """The pair and the amount of work of `colm bench guests`."""

    base: str | None = setting(None, help="the base, as in colm generate; required", metavar="MODEL")
    expert: str | None = setting(None, help="the expert, likewise; required", metavar="MODEL")
    rate: float = setting(0.2, help="share of spans that the guest writes", above=0, most=1)
    new_tokens: int = _size(96, "tokens of each answer", least=2)
    dtype: str | None = setting(None, help="of weights, activations and caches; unset: float32", choices=FLOAT_TYPES)
    repeats: int = _size(3, "rounds of timing")

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "GuestsBench.")


@dataclass(frozen=True)
class ServingBench:
    """The team and the amount of work of `colm bench serving`."""

    base: str | None = setting(None, help="the base, as in colm generate; required", metavar="MODEL")
    experts: tuple[str, ...] = setting((), help="its experts (default: those of the team)", metavar="MODEL")
    prompt_tokens: int = _size(100, "tokens of each prompt")
    new_tokens: int = _size(96, "tokens of each answer, at most", least=2)
    dtype: str | None = setting(None, help="of weights, activations and caches; unset: float32", choices=FLOAT_TYPES)
    repeats: int = _size(5, "rounds of timing")

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "ServingBench.")


def _check_heads(prefix: str, width_name: str, width: int, heads_name: str, heads: int) -> None:
    if width % heads:
        raise UserError(f"{prefix}{width_name} {width} must be a multiple of {prefix}{heads_name} {heads}")

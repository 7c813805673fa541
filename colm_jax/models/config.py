"""What a decoder is: every number the network needs, none assumed. `checkpoints.families` reads it from a checkpoint.

One decoder serves all families; how they differ is data here, and a field's default means that the model has no such
thing.
"""

from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class Bands:
    """Llama 3's scaling of rotary positions: by wavelength, only the slow dimensions are divided by the factor."""

    low: float  # waves longer than original_context / low are stretched
    high: float  # waves shorter than original_context / high are not; between the two, smoothly (at once in Llama 4)
    original_context: int  # in tokens, before the stretch

    def __post_init__(self) -> None:
        """Rejects numbers that have no meaning."""
        _positive("rope scaling.low", self.low)
        _positive("rope scaling.original_context", self.original_context)
        if not self.low <= self.high < float("inf"):
            raise UserError(f"model config: rope scaling.high must not be below {self.low}, got {self.high!r}")


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): between two numbers of turns the division by the factor fades; cosines are scaled.

    The optional numbers decide by which attention factor (`models.rope.attention_factor`), as in transformers.
    """

    original_context: int  # in tokens, before the stretch
    beta_fast: float  # dimensions that turn more often in the original context are not stretched
    beta_slow: float  # those that turn less often are stretched by the whole factor; linearly between the two
    truncate: bool  # the two borders between dimensions are rounded outwards
    attention_factor: float | None = None  # of cosines and sines; None: derived
    mscale: float | None = None  # weight of log(factor) in the derived attention factor
    mscale_all_dim: float | None = None  # the same in its denominator; DeepSeek scales attention's scores by it too

    def __post_init__(self) -> None:
        """Rejects numbers that have no meaning."""
        for name in ("original_context", "beta_fast", "beta_slow"):
            _positive(f"rope scaling.{name}", getattr(self, name))
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                _positive(f"rope scaling.{name}", getattr(self, name))
        if self.beta_fast < self.beta_slow:
            raise UserError(
                f"model config: rope scaling.beta_fast ({self.beta_fast}) must not be below beta_slow "
                f"({self.beta_slow})"
            )


@dataclass(frozen=True)
class DynamicNTK:
    """Dynamic NTK scaling: theta grows with the length of a text, from `context` on.

    Shorter texts have plain positions, so it never acts within the context of the model; and a pass with a KV cache
    never holds more.
    """

    context: int  # the longest text with plain positions, in tokens

    def __post_init__(self) -> None:
        """Rejects numbers that have no meaning."""
        _positive("rope scaling.context", self.context)


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024): a factor for each pair of dimensions; others where texts exceed original_context."""

    short: tuple[float, ...]  # each pair's frequency is divided by it
    long: tuple[float, ...]  # the same, where the longest text of a pass exceeds original_context
    original_context: int  # in tokens
    attention_factor: float | None = None  # of cosines and sines; None: derived from the rope's factor

    def __post_init__(self) -> None:
        """Rejects numbers that have no meaning."""
        _positive("rope scaling.original_context", self.original_context)
        if self.attention_factor is not None:
            _positive("rope scaling.attention_factor", self.attention_factor)
        elif self.original_context < 2:
            raise UserError("model config: rope scaling.original_context must exceed 1, got 1")
        for name in ("short", "long"):
            for value in getattr(self, name):
                _positive(f"rope scaling.{name}", value)
        if len(self.short) != len(self.long):
            raise UserError(
                f"model config: rope scaling.short and .long must be of one size, got {len(self.short)} and "
                f"{len(self.long)} factors"
            )


@dataclass(frozen=True)
class Rope:
    """Rotary positions; `models.rope` computes them."""

    theta: float  # base of the frequencies
    factor: float = 1.0  # of the stretch, so that a longer context fits; without `scaling` it divides positions
    scaling: Bands | Yarn | DynamicNTK | LongRope | None = None  # how the factor is used otherwise
    dim: int | None = None  # only the first dimensions of a head turn; None: all
    interleaved: bool = False  # dimensions 2i and 2i + 1 turn together, not i and i + dim/2

    def __post_init__(self) -> None:
        """Rejects numbers that have no meaning."""
        for name in ("theta", "factor"):
            _positive(f"rope {name}", getattr(self, name))
        if self.dim is not None and (isinstance(self.dim, bool) or self.dim < 2 or self.dim % 2):
            raise UserError(f"model config: rope dim must be a positive even number, got {self.dim!r}")
        if isinstance(self.scaling, Yarn) and self.theta <= 1:
            raise UserError(f"model config: rope theta must exceed 1 with yarn, got {self.theta!r}")

    def turning(self, head_dim: int) -> int:
        """Return how many dimensions of a head turn.

        Raises:
          UserError: the head has fewer, or the scaling is of another number.
        """
        dim = head_dim if self.dim is None else self.dim
        if dim > head_dim:
            raise UserError(f"model config: rope dim ({dim}) exceeds the head's {head_dim} dimensions")
        if isinstance(self.scaling, LongRope) and len(self.scaling.short) != dim // 2:
            raise UserError(
                f"model config: rope scaling has {len(self.scaling.short)} factors for {dim // 2} pairs of dimensions"
            )
        if isinstance(self.scaling, DynamicNTK) and dim < 4:
            raise UserError(f"model config: dynamic rope scaling needs at least 4 dimensions, got {dim}")
        return dim


@dataclass(frozen=True)
class Mixture:
    """A feed-forward layer of several networks, of which each token passes a few (mixture of experts)."""

    networks: int
    active: int  # networks a token passes

    def __post_init__(self) -> None:
        """Rejects sizes that no network can have."""
        if not 1 <= self.active <= self.networks <= 10_000:
            raise UserError(f"model config: of {self.networks} networks {self.active} cannot be active")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder. Field letters are those used in array shapes throughout."""

    family: str  # Hugging Face model_type, under which it is stored
    vocab_size: int  # V
    width: int  # D
    depth: int  # number of layers
    heads: int  # H
    kv_heads: int  # K, H divisible by K
    head_dim: int
    ff: int  # F
    context: int  # longest text, in tokens
    rope: Rope
    rms_eps: float
    tied: bool  # the head is the embedding table
    activation: str = "silu"  # of the feed-forward gate
    qkv_bias: bool = False
    out_bias: bool = False  # of attention's output
    ff_bias: bool = False
    qk_norm: bool = False  # queries and keys are normalised, head by head
    post_norm: bool = False  # what attention and feed-forward return is normalised too
    zero_centred_norm: bool = False  # a norm's scale is stored as its difference from 1
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(D)
    attention_scalar: float | None = None  # query · key is divided by its square root; None: head_dim
    attention_softcap: float | None = None  # scores become cap · tanh(score / cap)
    logit_softcap: float | None = None
    windows: tuple[int | None, ...] | None = None  # per layer: tokens it sees, itself included; None: all
    window_rope: Rope | None = None  # of layers with a window, where it differs
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        """Rejects sizes that no network can have."""
        for name in ("vocab_size", "width", "depth", "heads", "kv_heads", "head_dim", "ff", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"model config: {name} must be a positive whole number, got {value!r}")
        _positive("rms_eps", self.rms_eps)
        for name in ("attention_scalar", "attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise UserError(f"model config: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise UserError(f"model config: head_dim must be even for RoPE, got {self.head_dim}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"model config: activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        if self.windows is not None and len(self.windows) != self.depth:
            raise UserError(f"model config: {len(self.windows)} windows for {self.depth} layers")
        for window in self.windows or ():
            if window is not None and (not isinstance(window, int) or window < 1):
                raise UserError(f"model config: a window must be a positive whole number, got {window!r}")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"model config: {name} must be a positive number, got {value!r}")

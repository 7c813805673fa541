"""What a decoder is: every number the network needs, none assumed. `checkpoints.families` reads it from a checkpoint.

One decoder serves all families; how they differ is data here, and a field's default means that the model has no such
thing.
"""

from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError

ACTIVATIONS = ("silu", "gelu_tanh")
QK_NORMS = ("head", "joint", "unit")  # each head; all heads as one vector; each head after RoPE, without a scale


@dataclass(frozen=True)
class Bands:
    """Llama 3's way to stretch positions: by wavelength, only the slow dimensions."""

    low: float  # waves longer than original_context / low are stretched
    high: float  # waves shorter than original_context / high are not; between the two, smoothly
    original_context: int  # in tokens, before the stretch


@dataclass(frozen=True)
class Rope:
    """Rotary positions."""

    theta: float  # base of the frequencies
    factor: float = 1.0  # positions are divided by it, so that a longer context fits
    bands: Bands | None = None  # where given, only frequencies in them are divided

    def __post_init__(self) -> None:
        """Rejects numbers that have no meaning."""
        for name in ("theta", "factor"):
            _positive(f"rope {name}", getattr(self, name))
        if self.bands is not None:
            _positive("rope bands.low", self.bands.low)
            _positive("rope bands.original_context", self.bands.original_context)
            if not self.bands.low < self.bands.high < float("inf"):
                raise UserError(f"model config: rope bands.high must exceed {self.bands.low}, got {self.bands.high!r}")


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
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads come from one small vector.

    A head's query and key have `plain` dimensions without positions, then `rotary` ones; the rotary key is shared.
    """

    rank: int  # size of the vector that keys and values come from
    query_rank: int | None  # likewise of queries; None: queries come from the residual stream
    plain: int
    rotary: int
    value: int  # size of a head's value
    rms_eps: float  # of the norms of these vectors

    def __post_init__(self) -> None:
        """Rejects sizes that no network can have."""
        for name in ("rank", "plain", "rotary", "value", *(["query_rank"] if self.query_rank is not None else [])):
            if getattr(self, name) < 1:
                raise UserError(
                    f"model config: latent {name} must be a positive whole number, got {getattr(self, name)}"
                )
        if self.rotary % 2:
            raise UserError(f"model config: latent rotary must be even for RoPE, got {self.rotary}")
        _positive("latent rms_eps", self.rms_eps)


@dataclass(frozen=True)
class Temperature:
    """Queries grow with their position p: by 1 + scale · log(1 + floor((p + offset) / span))."""

    scale: float
    span: float  # in tokens
    offset: int
    unrotated_only: bool  # only in layers without RoPE

    def __post_init__(self) -> None:
        """Rejects numbers that have no meaning."""
        _positive("temperature span", self.span)
        if not 0 <= self.scale < float("inf"):
            raise UserError(f"model config: temperature scale must be a number from 0, got {self.scale!r}")


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
    qk_norm: str | None = None  # how queries and keys are normalised, one of QK_NORMS
    pre_norm: bool = True  # what attention and feed-forward read is normalised
    post_norm: bool = False  # what attention and feed-forward return is normalised
    zero_centred_norm: bool = False  # a norm's scale is stored as its difference from 1
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(D)
    embedding_multiplier: float | None = None
    residual_multiplier: float | None = None  # of what attention and feed-forward add
    logit_divisor: float | None = None
    attention_scalar: float | None = None  # query · key is divided by its square root; None: head_dim
    attention_multiplier: float | None = None  # of query · key, in place of attention_scalar
    attention_softcap: float | None = None  # scores become cap · tanh(score / cap)
    logit_softcap: float | None = None
    sinks: bool = False  # each head has a logit that takes part in the softmax and has no value
    windows: tuple[int | None, ...] | None = None  # per layer: tokens it sees, itself included; None: all
    chunked: bool = False  # windows are chunks: a token sees those of its own, texts being cut at multiples of the size
    rope_layers: tuple[bool, ...] | None = None  # which layers have rotary positions; None: all
    temperature: Temperature | None = None
    latent: Latent | None = None  # None: grouped-query attention
    window_rope: Rope | None = None  # of layers with a window, where it differs
    mixture: Mixture | None = None
    mixture_layers: tuple[bool, ...] | None = None  # which layers are mixtures; None: all, where there is a mixture

    @property
    def cached(self) -> tuple[int, int, int]:
        """What a layer keeps of a token: number of heads, size of a key, size of a value.

        Latent attention keeps the vector that all heads' keys and values come from, and the rotary key, as one key.
        """
        if self.latent is not None:
            return 1, self.latent.rank + self.latent.rotary, 0
        return self.kv_heads, self.head_dim, self.head_dim

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a query or key may turn."""
        return self.head_dim if self.latent is None else self.latent.rotary

    @property
    def cache_width(self) -> int:
        """How many numbers the cache holds of a token, over all layers."""
        heads, key, value = self.cached
        return self.depth * heads * (key + value)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The runs of layers with the same parameters, [start, stop) each: layers are stacked run by run."""
        kinds = self.mixture_layers or (False,) * self.depth
        starts = [i for i in range(self.depth) if i == 0 or kinds[i] != kinds[i - 1]]
        return tuple(zip(starts, [*starts[1:], self.depth]))

    def __post_init__(self) -> None:
        """Rejects sizes that no network can have."""
        for name in ("vocab_size", "width", "depth", "heads", "kv_heads", "head_dim", "ff", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"model config: {name} must be a positive whole number, got {value!r}")
        _positive("rms_eps", self.rms_eps)
        for name in (
            "attention_scalar",
            "attention_multiplier",
            "attention_softcap",
            "logit_softcap",
            "embedding_multiplier",
            "residual_multiplier",
            "logit_divisor",
        ):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise UserError(f"model config: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise UserError(f"model config: head_dim must be even for RoPE, got {self.head_dim}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"model config: activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        if self.qk_norm is not None and self.qk_norm not in QK_NORMS:
            raise UserError(f"model config: qk_norm must be one of {QK_NORMS}, got {self.qk_norm!r}")
        for name in ("windows", "rope_layers", "mixture_layers"):
            layers = getattr(self, name)
            if layers is not None and len(layers) != self.depth:
                raise UserError(f"model config: {len(layers)} {name} for {self.depth} layers")
        if self.mixture_layers is not None and self.mixture is None:
            raise UserError("model config: mixture_layers without a mixture")
        for window in self.windows or ():
            if window is not None and (not isinstance(window, int) or window < 1):
                raise UserError(f"model config: a window must be a positive whole number, got {window!r}")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"model config: {name} must be a positive number, got {value!r}")

"""What a decoder is: every number the network needs, none assumed. `checkpoints.families` reads it from a checkpoint.

One decoder serves all families; how they differ is data here, and a field's default means that the model has no such
thing.
"""

from dataclasses import dataclass

from colm_jax.errors import UserError
from colm_jax.models.positive import check_positive
from colm_jax.models.rope_config import Rope

ACTIVATIONS = ("silu", "gelu_tanh", "clamped_swish")  # the last: gpt-oss
QK_NORMS = ("head", "joint", "unit")  # each head; all heads as one vector; each head after RoPE, without a scale
_MOST_NETWORKS = 200_000  # of all layers: each has an entry in lists of names; the largest published have about 25,000
_MIXTURE_CHOICES = {
    "scoring": ("softmax", "sigmoid"),
    "group_score": ("best", "two_best"),
    "bias": (None, "router", "choice"),
}


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts; its experts are called networks here, since an expert is the other model of a team.

    A router scores the networks for each token. The networks with the best scores are applied to it, and their outputs
    (or inputs) are weighted by the scores. A shared network, in some families, is applied to every token.
    """

    networks: int
    active: int  # networks a token passes
    ff: int | None = None  # F of each network; None: that of ModelConfig
    scoring: str = "softmax"  # of the router's outputs: over all networks, or "sigmoid" of each
    normalised: bool = True  # a token's weights are divided by their sum
    scale: float = 1.0  # and multiplied by this
    groups: int = 1  # the networks, in order, form groups of equal size
    active_groups: int = 1  # a token's networks are all in this many groups, those with the best scores
    group_score: str = "best"  # a group's score: that of its best network, or the sum of its "two_best"
    bias: str | None = None  # of each network: "router", of the router; "choice", of the scores by which it chooses
    on_input: bool = False  # weights multiply what a network reads, not what it returns
    wide_router: bool = False  # the router multiplies in float32, whatever the type of activations
    network_bias: bool = False  # the networks' linear maps have biases
    shared_ff: int | None = None  # F of the network that reads every token
    shared_gate: bool = False  # its output is multiplied by a sigmoid gate that is computed from the token

    def __post_init__(self) -> None:
        """Reject values that no network can have, and combinations that no family has."""
        for name in ("networks", "active", "groups", "active_groups", "ff", "shared_ff"):
            value = getattr(self, name)
            if value is None and name in ("ff", "shared_ff"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"model config: mixture {name} must be a positive whole number, got {value!r}")
        if not self.active <= self.networks <= 10_000:
            raise UserError(f"model config: of {self.networks} networks {self.active} cannot be active")
        for name, allowed in _MIXTURE_CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"model config: mixture {name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("normalised", "on_input", "wide_router", "network_bias", "shared_gate"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"model config: mixture {name} must be true or false, got {getattr(self, name)!r}")
        check_positive("mixture scale", self.scale)
        self._check_groups()
        for wrong, message in (
            (
                self.bias == "choice" and self.scoring != "sigmoid",
                "a bias for the choice of networks needs sigmoid scores",
            ),
            (
                self.bias == "router" and not (self.scoring == "softmax" and self.normalised and self.groups == 1),
                "a bias of the router's outputs needs normalised softmax scores and one group",
            ),
            (
                self.scoring == "sigmoid" and self.on_input == (self.bias == "choice"),
                "sigmoid scores weight the networks' inputs or come with a bias for the choice, one of the two",
            ),
            (
                self.on_input and (self.scoring != "sigmoid" or self.normalised or self.scale != 1 or self.groups > 1),
                "weights on the networks' inputs are sigmoids, not normalised, not scaled, of one group",
            ),
            (
                self.group_score == "two_best" and self.bias != "choice",
                "groups are scored by their two best networks only with a bias for the choice",
            ),
            (
                self.scoring == "softmax" and self.normalised and (self.scale != 1 or self.groups > 1),
                "normalised softmax weights are not scaled, and have one group",
            ),
            (self.network_bias and self.bias != "router", "networks have biases only if the router has one"),
            (
                self.shared_gate and (self.shared_ff is None or self.scoring != "softmax" or self.groups > 1),
                "a gate of the shared network needs one, softmax scores, and one group",
            ),
        ):
            if wrong:
                raise UserError(f"model config: mixture: {message}; got {self}")

    def _check_groups(self) -> None:
        """Check that the groups divide the networks, and that a token's groups hold what it passes."""
        if self.networks % self.groups:
            raise UserError(f"model config: {self.networks} networks cannot be in {self.groups} groups of equal size")
        size = self.networks // self.groups
        if self.active_groups > self.groups or self.active > self.active_groups * size:
            raise UserError(
                f"model config: {self.active} active networks cannot be in {self.active_groups} of {self.groups} "
                f"groups of {size}"
            )
        if self.group_score == "two_best" and size < 2:
            raise UserError(f"model config: groups of one network ({self.groups} groups) have no two best")


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
        """Reject sizes that no network can have."""
        for name in ("rank", "plain", "rotary", "value", *(["query_rank"] if self.query_rank is not None else [])):
            if getattr(self, name) < 1:
                raise UserError(
                    f"model config: latent {name} must be a positive whole number, got {getattr(self, name)}"
                )
        if self.rotary % 2:
            raise UserError(f"model config: latent rotary must be even for RoPE, got {self.rotary}")
        check_positive("latent rms_eps", self.rms_eps)


@dataclass(frozen=True)
class Temperature:
    """Queries grow with their position p: by 1 + scale · log(1 + floor((p + offset) / span))."""

    scale: float
    span: int  # in tokens
    offset: int
    unrotated_only: bool  # only in layers without RoPE

    def __post_init__(self) -> None:
        """Reject numbers that have no meaning."""
        check_positive("temperature span", self.span)
        if self.scale != 0:
            check_positive("temperature scale", self.scale)


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
    activation_limit: float | None = None  # of "clamped_swish": gate and up are clamped there
    activation_slope: float | None = None  # of "clamped_swish": gate · sigmoid(slope · gate)
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
    sinks: bool = False  # each head has one more logit in the softmax, without a value
    windows: tuple[int | None, ...] | None = None  # per layer: tokens it sees, itself included; None: all
    chunked: bool = False  # windows are chunks: texts are cut at multiples of the size, and a token sees its own chunk
    rope_layers: tuple[bool, ...] | None = None  # which layers have rotary positions; None: all
    temperature: Temperature | None = None
    latent: Latent | None = None  # None: grouped-query attention
    window_rope: Rope | None = None  # of layers with a window, where it differs
    mixture: Mixture | None = None
    mixture_layers: tuple[bool, ...] | None = None  # which layers are mixtures; None: all, where there is a mixture

    @property
    def cached(self) -> tuple[int, int, int]:
        """What a layer caches for a token: number of heads, size of a key, size of a value.

        Latent attention caches the latent vector and the rotary key, concatenated, as the key of a single head.
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
    def mixtures(self) -> tuple[bool, ...]:
        """Which layers are mixtures."""
        return self.mixture_layers or (self.mixture is not None,) * self.depth

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The runs of consecutive layers with the same parameters, as [start, stop); each run is stacked."""
        kinds = self.mixtures
        starts = [i for i in range(self.depth) if i == 0 or kinds[i] != kinds[i - 1]]
        return tuple(zip(starts, [*starts[1:], self.depth]))

    def __post_init__(self) -> None:
        """Reject sizes that no network can have."""
        for name in ("vocab_size", "width", "depth", "heads", "kv_heads", "head_dim", "ff", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"model config: {name} must be a positive whole number, got {value!r}")
        check_positive("rms_eps", self.rms_eps)
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
                check_positive(name, getattr(self, name))
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
        if self.mixture is not None and sum(self.mixtures) * self.mixture.networks > _MOST_NETWORKS:
            raise UserError(
                f"model config: {sum(self.mixtures)} layers of {self.mixture.networks} networks each; all together at "
                f"most {_MOST_NETWORKS} networks are supported"
            )
        if self.mixture_layers is not None and self.mixture is None:
            raise UserError("model config: mixture_layers without a mixture")
        for name in ("activation_limit", "activation_slope"):
            value = getattr(self, name)
            if (value is None) == (self.activation == "clamped_swish"):
                raise UserError(
                    f"model config: {name} belongs to activation 'clamped_swish', and to no other; got {value!r} with "
                    f"{self.activation!r}"
                )
            if value is not None:
                check_positive(name, value)
        for window in self.windows or ():
            if window is not None and (not isinstance(window, int) or window < 1):
                raise UserError(f"model config: a window must be a positive whole number, got {window!r}")

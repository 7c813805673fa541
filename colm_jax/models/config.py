"""What a decoder is: every number the network needs, none assumed. `checkpoints.families` reads it from a checkpoint.

One decoder serves all families; how they differ is data here, and a field's default means that the model has no such
thing.
"""

from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError

ACTIVATIONS = ("silu", "gelu_tanh", "clamped_swish")  # the last: gpt-oss
_MIXTURE_CHOICES = {
    "scoring": ("softmax", "sigmoid"),
    "group_score": ("best", "two_best"),
    "bias": (None, "router", "choice"),
}


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
    """A feed-forward layer of several networks, of which each token passes a few (mixture of experts).

    A router scores the networks for each token. It picks those with the best scores, and weights what they return (or
    what they read) by their scores. A shared network, where there is one, reads every token besides.
    """

    networks: int
    active: int  # networks a token passes
    ff: int | None = None  # F of each network; None: that of ModelConfig
    scoring: str = "softmax"  # of the router's outputs: over all networks, or "sigmoid" of each
    normalised: bool = True  # a token's weights are divided by their sum
    scale: float = 1.0  # and multiplied by this
    groups: int = 1  # networks in order are in groups of equal size,
    active_groups: int = 1  # of which a token's best so many have all the networks it passes
    group_score: str = "best"  # a group's score: that of its best network, or the sum of its "two_best"
    bias: str | None = None  # of each network: "router", added to the router's output; "choice": to the score, to pick
    on_input: bool = False  # weights multiply what a network reads, not what it returns
    wide_router: bool = False  # the router multiplies in float32, whatever the type of activations
    network_bias: bool = False  # the networks' linear maps have biases
    shared_ff: int | None = None  # F of the network that reads every token
    shared_gate: bool = False  # what it returns is multiplied by the sigmoid of one more output for the token

    def __post_init__(self) -> None:
        """Rejects values that no network can have, and combinations that no family has."""
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
        _positive("mixture scale", self.scale)
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
        for name in ("activation_limit", "activation_slope"):
            value = getattr(self, name)
            if (value is None) == (self.activation == "clamped_swish"):
                raise UserError(
                    f"model config: {name} belongs to activation 'clamped_swish', and to no other; got {value!r} with "
                    f"{self.activation!r}"
                )
            if value is not None:
                _positive(name, value)
        if self.windows is not None and len(self.windows) != self.depth:
            raise UserError(f"model config: {len(self.windows)} windows for {self.depth} layers")
        for window in self.windows or ():
            if window is not None and (not isinstance(window, int) or window < 1):
                raise UserError(f"model config: a window must be a positive whole number, got {window!r}")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"model config: {name} must be a positive number, got {value!r}")

"""Rotary positions of a decoder as data: kinds of scaling, and the numbers of each. `models.rope` computes them."""

from dataclasses import dataclass

from colm_jax.errors import UserError
from colm_jax.models.positive import check_positive


@dataclass(frozen=True)
class Bands:
    """Llama 3's scaling of rotary positions: only dimensions of long wavelength are divided by the factor."""

    low: float  # waves longer than original_context / low are stretched
    high: float  # waves shorter than original_context / high are not; between the two, smoothly (at once in Llama 4)
    original_context: int  # in tokens, before the stretch

    def __post_init__(self) -> None:
        """Reject numbers that have no meaning."""
        check_positive("rope scaling.low", self.low)
        check_positive("rope scaling.original_context", self.original_context)
        if not self.low <= self.high < float("inf"):
            raise UserError(f"model config: rope scaling.high must not be below {self.low}, got {self.high!r}")


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): slow dimensions are divided by the factor, fast ones are not; cosines are scaled.

    The optional numbers determine the attention factor, which scales cosines and sines, as in transformers
    (`models.rope.attention_factor`).
    """

    original_context: int  # in tokens, before the stretch
    beta_fast: float  # dimensions that turn more often in the original context are not stretched
    beta_slow: float  # those that turn less often are stretched by the whole factor; linearly between the two
    truncate: bool  # the two borders between dimensions are rounded outwards
    attention_factor: float | None = None  # of cosines and sines; None: derived
    mscale: float | None = None  # weight of log(factor) in the derived attention factor
    mscale_all_dim: float | None = None  # the same in its denominator; DeepSeek scales attention's scores by it too

    def __post_init__(self) -> None:
        """Reject numbers that have no meaning."""
        for name in ("original_context", "beta_fast", "beta_slow"):
            check_positive(f"rope scaling.{name}", getattr(self, name))
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                check_positive(f"rope scaling.{name}", getattr(self, name))
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
        """Reject numbers that have no meaning."""
        check_positive("rope scaling.context", self.context)


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024): each pair of dimensions has a factor, and another one for long texts."""

    short: tuple[float, ...]  # each pair's frequency is divided by it
    long: tuple[float, ...]  # the same, where the longest text of a pass exceeds original_context
    original_context: int  # in tokens
    attention_factor: float | None = None  # of cosines and sines; None: derived from the rope's factor

    def __post_init__(self) -> None:
        """Reject numbers that have no meaning."""
        check_positive("rope scaling.original_context", self.original_context)
        if self.attention_factor is not None:
            check_positive("rope scaling.attention_factor", self.attention_factor)
        elif self.original_context < 2:
            raise UserError("model config: rope scaling.original_context must exceed 1, got 1")
        for name in ("short", "long"):
            for value in getattr(self, name):
                check_positive(f"rope scaling.{name}", value)
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
        """Reject numbers that have no meaning."""
        for name in ("theta", "factor"):
            check_positive(f"rope {name}", getattr(self, name))
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

"""Settings of calibration."""

from dataclasses import dataclass

from colm_jax.errors import UserError
from colm_jax.settings.fields import setting, validate
from colm_jax.settings.generation import MAX_NEW_TOKENS

SOURCES = ("texts", "generations")


@dataclass(frozen=True)
class Calibration:
    """Which thresholds are tried on the dev set.

    Example:
      >>> from colm_jax import Calibration
      >>> Calibration(rates=[0.1, 0.2], source="texts").rates
      (0.1, 0.2)
    """

    rates: tuple[float, ...] = setting(
        (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        help="deferral rates whose thresholds are tried",
        above=0,
        below=1,
    )
    source: str | None = setting(
        None,
        help="take the p_defer quantiles for the rates on dev texts, or on the base's own generations; unset: "
        "generations where an expert has another tokenizer and the dev lines have prompts, else texts",
        choices=SOURCES,
    )
    max_new_tokens: int = setting(
        MAX_NEW_TOKENS, help="tokens of an answer to a dev prompt, with a task or generations as the source", least=1
    )

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "Calibration.")
        if not self.rates:
            raise UserError("Calibration.rates must not be empty")

"""Settings of `colm serve`: what is compiled at the start, and the bounds of requests."""

from dataclasses import dataclass

from colm_jax.checks import INT32
from colm_jax.settings.fields import setting, validate
from colm_jax.settings.strategies import STRATEGIES

CONTEXT = 4096  # that is served unless another one is set: caches for the 131,072 tokens of some models are huge


@dataclass(frozen=True)
class ServingSettings:
    """How a team is served."""

    slots: int = setting(
        8,
        help="sequences decoded side by side by each strategy; rounded up to a power of two",
        least=1,
        most=1024,
        metavar="N",
    )
    context: int | None = setting(
        None,
        help=f"most tokens of a prompt and its answer; the caches hold slots times as many (default: the models' "
        f"context, at most {CONTEXT})",
        least=8,
        most=INT32,
        metavar="N",
    )
    max_waiting: int = setting(
        64, help="answers that may wait for a slot; beyond them requests get status 429", most=INT32, metavar="N"
    )
    strategies: tuple[str, ...] | None = setting(
        None,
        help=f"strategies that requests may name, compiled at the start, of {', '.join(STRATEGIES)} "
        "(default: defer, base and expert, as far as the team can)",
        choices=STRATEGIES,
        metavar="S",
    )
    deadline: float = setting(
        600.0, help="seconds that a request may take, from its arrival to its end", above=0, metavar="S"
    )
    drain: float = setting(
        60.0,
        help="seconds that accepted requests may take after SIGTERM, before they are cut off",
        above=0,
        metavar="S",
    )
    ping: float = setting(
        10.0, help="seconds of silence after which a stream gets a comment line", above=0, metavar="S"
    )
    max_tokens: int | None = setting(
        None, help="most tokens of an answer that a request may ask for; None: the context", least=1, metavar="N"
    )
    max_choices: int = setting(
        128, help="most answers of one request: its prompts times n", least=1, most=INT32, metavar="N"
    )
    max_body: int = setting(1_000_000, help="most bytes of a request's body", least=1, most=INT32, metavar="BYTES")
    ignore_unknown_fields: bool = setting(
        False, help="let fields of requests pass that nobody defines, for front ends that send their own"
    )

    def __post_init__(self):
        """Validates the settings."""
        validate(self, "Serving.")

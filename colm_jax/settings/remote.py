"""Settings of remote experts: time limits, size of requests, and what may leave the machine."""

from dataclasses import dataclass

from colm_jax.checks import INT32
from colm_jax.settings.fields import setting, validate


@dataclass(frozen=True)
class RemoteSettings:
    """How endpoints are asked, and how much is sent to them.

    Example:
      >>> from colm_jax import RemoteSettings
      >>> RemoteSettings(max_expert_calls=20, window=50, ledger="sent.jsonl").retries
      4
    """

    timeout: float = setting(60.0, help="seconds for one request to an endpoint", above=0, metavar="S")
    deadline: float = setting(
        180.0, help="seconds for one call of a remote expert, repeated requests included", above=0, metavar="S"
    )
    retries: int = setting(
        4, help="times that a request is repeated after a time-out, a lost connection, status 429 or 5xx", most=INT32
    )
    backoff: float = setting(
        0.5, help="seconds before the first repetition, doubled at each one, with jitter", above=0, metavar="S"
    )
    concurrency: int = setting(8, help="requests under way at once, to each endpoint", least=1, most=INT32)
    batch: int = setting(64, help="texts in one request, where the endpoint takes lists", least=1, most=INT32)
    tokens: int = setting(16, help="tokens that an expert is asked for at once", least=1, most=INT32)
    rounds: int = setting(
        4, help="requests for one span, where the first ones do not reach its end", least=1, most=INT32
    )
    positions: int = setting(
        2000,
        help="places in the training texts at which an endpoint without scores of prompts is asked for its own span",
        least=1,
        most=INT32,
    )
    max_expert_calls: int | None = setting(None, help="calls of remote experts for an answer", metavar="N")
    max_sent_characters: int | None = setting(
        None, help="characters sent to a remote expert for an answer, or for a text that is scored", metavar="N"
    )
    window: int | None = setting(
        None, help="last spans of the answer that are sent after the expert's prompt; None: all", least=1, metavar="N"
    )
    redact: str | None = setting(
        None, help="file of patterns (TOML) whose matches are replaced by pseudonyms in what is sent", metavar="FILE"
    )
    ledger: str | None = setting(
        None, help="file to which every text that is sent is appended, a line of JSON each", metavar="FILE"
    )

    def __post_init__(self):
        """Validates the settings."""
        validate(self, "Remote.")

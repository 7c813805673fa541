"""Settings of generation: one object for `CoLM.generate`, `CoLM.stream`, the engine and the commands."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from colm_jax.checks import INT32
from colm_jax.errors import UserError
from colm_jax.settings.fields import seed_setting, setting, validate
from colm_jax.settings.strategies import STRATEGIES

# Of the threshold; `colm_jax.decoding.schedule` defines each.
SCHEDULE_NAMES = ("constant", "linear", "cosine", "exponential")
MAX_NEW_TOKENS = 96  # of an answer, unless another number is set
DEFAULT_THRESHOLD = 0.5  # of a team without a calibrated one


@dataclass(frozen=True)
class Correction:
    """Trials of strategies "backtrack" and "lookahead", which may retract an expert's token.

    Example:
      >>> from colm_jax import Correction, GenerationSettings
      >>> settings = GenerationSettings(strategy="backtrack", correction=Correction(candidates=2, watch=6))
      >>> settings.correction.bound
      -4.0
    """

    candidates: int = setting(
        3, help="tokens to try at a deferred position, the expert's own included", least=2, most=INT32
    )
    watch: int = setting(4, help="tokens written after a candidate before it is judged", least=1, most=INT32)
    bound: float = setting(
        -4.0,
        help="backtrack: total log-probability (nats) of those tokens below which the next candidate is tried",
        most=0,
    )
    sure: float = setting(
        0.5,
        help="top probability of the expert below which backtrack skips its token and lookahead begins a trial",
        least=0,
        most=1,
    )

    def __post_init__(self):
        """Validates the settings."""
        validate(self, "Correction.")


@dataclass(frozen=True)
class ExpertBatching:
    """When one expert pass serves the pending calls of a batch.

    A pass runs when `calls` calls are pending, when one has been pending for `steps` base steps, or when every sequence
    has a pending call. No result depends on it: only how many expert passes and base steps a batch takes. Waiting about
    as many steps as a pass costs is never much worse than the best fixed number of calls, as in the ski rental problem:
    in batches of 4 to 32, with passes that cost 2 to 16 steps and deferral rates from 5 to 50 %, within a tenth of it
    in 40 of 48 cases and at worst a fifth dearer (`python -m docs.tables.batching`).

    Example:
      >>> from colm_jax import ExpertBatching, GenerationSettings
      >>> GenerationSettings(expert_batching=ExpertBatching(calls=4, steps=8)).expert_batching
      ExpertBatching(calls=4, steps=8)
    """

    calls: int = setting(help="pending calls that start an expert pass", least=1, most=INT32)
    steps: int = setting(help="base steps after which a pending call starts an expert pass", least=0, most=INT32)

    def __post_init__(self):
        """Validates the settings."""
        validate(self, "ExpertBatching.")


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    A setting that takes a list may have one value for each prompt.

    Example:
      >>> from colm_jax import GenerationSettings
      >>> settings = GenerationSettings(threshold=[0.2, 0.8], max_new_tokens=64, stop="END")
      >>> [each.threshold for each in settings.of_prompts(2)]
      [0.2, 0.8]
    """

    strategy: str = setting("defer", help=", ".join(STRATEGIES), choices=STRATEGIES, metavar="S")
    threshold: float | Sequence[float] | None = setting(
        None,
        help="an expert writes where p_defer exceeds it (default: the team's calibrated threshold, or 0.5)",
        least=0,
        most=1,
        metavar="X",
    )
    max_new_tokens: int | Sequence[int] = setting(
        MAX_NEW_TOKENS, help="most tokens of an answer; fewer where the context ends", least=1, metavar="N"
    )
    temperature: float = setting(0.0, help="temperature of sampling; 0 is greedy", least=0, metavar="T")
    top_p: float = setting(
        1.0, help="sample from the smallest set of tokens with this probability", above=0, most=1, metavar="P"
    )
    top_k: int = setting(0, help="sample from this many most probable tokens; 0: all", least=0, metavar="K")
    min_p: float = setting(
        0.0,
        help="sample from tokens at least as probable as this share of the most probable one's probability",
        least=0,
        most=1,
        metavar="P",
    )
    seed: int = seed_setting("seed of sampling and of strategy random")
    samples: int = setting(1, help="answers to each prompt", least=1, metavar="N")
    stop: str | Sequence[str] | None = setting(
        None, help="string that ends the text, in special tokens' spelling too (<|im_end|>); repeatable", metavar="STR"
    )
    stop_token_ids: Sequence[int] | None = setting(
        None, help="tokens that end the text, beside the base's end-of-text ids", least=0, metavar="ID"
    )
    schedule: str | Sequence[str] = setting(
        "constant", help="how the threshold falls from 1 during the warm-up", choices=SCHEDULE_NAMES, metavar="S"
    )
    warmup: int | Sequence[int] = setting(0, help="tokens over which the threshold falls from 1", least=0, metavar="N")
    rate: float = setting(0.5, help="deferral probability of strategy random", least=0, most=1)
    batch_size: int = setting(
        8, help="sequences decoded side by side; rounded up to a power of two", least=1, metavar="B"
    )
    correction: Correction | None = setting(None, help="trials of backtrack and lookahead; None: its defaults")
    expert_batching: ExpertBatching | None = setting(
        None, help="when pending expert calls are served; None: after as many base steps as an expert pass costs"
    )
    speculate: str | bool = setting(
        "auto",
        help="let the base run ahead of pending expert calls, which changes no answer, up to rounding: auto where it "
        "pays, on always, off never",
        choices=("auto", "on", "off"),
    )
    on_expert_failure: str = setting(
        "base",
        help="where a remote expert does not answer: base writes in its place, or the answer stops there",
        choices=("base", "stop"),
    )
    log_probs: bool = setting(
        False, help="add each token's log-probability under every model, which reads each answer once more"
    )

    def __post_init__(self):
        """Validates the settings."""
        validate(self)
        if self.speculate in ("on", "off"):
            object.__setattr__(self, "speculate", self.speculate == "on")
        if "" in self.stops:
            raise UserError(f"stop must not hold an empty string, got {self.stop!r:.60}")

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def of_prompts(self, count: int) -> "list[GenerationSettings]":
        """Return the settings of each of `count` prompts, without lists of one value for each.

        Raises:
          UserError: a setting has another number of values.
        """
        names = [name for name in _OF_EACH if isinstance(getattr(self, name), tuple)]
        for name in names:
            if len(getattr(self, name)) != count:
                raise UserError(f"{name}: {len(getattr(self, name))} values for {count} prompts")
        if not names:
            return [self] * count
        return [replace(self, **{name: getattr(self, name)[i] for name in names}) for i in range(count)]


_OF_EACH = ("threshold", "max_new_tokens", "schedule", "warmup")

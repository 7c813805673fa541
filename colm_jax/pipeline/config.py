"""What a run is: its models, its data, and the settings of every stage."""

from dataclasses import dataclass, field
from typing import Any

from colm_jax.calibration.threshold import Calibration
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.checkpoints.team import EXPERT_DTYPES
from colm_jax.checks import check_number, check_whole
from colm_jax.decoding.strategies import STRATEGIES, find_strategy
from colm_jax.errors import UserError
from colm_jax.evaluation.tasks import find_task
from colm_jax.settings.generation import Correction
from colm_jax.training.config import Training
from colm_jax.training.gate_fit import GateInit

EXPERT_SCORES = ("cached", "online")
STAGES = ("tokens", "score", "labels", "gate", "train", "calibrate", "generate", "evaluate", "report")
UNTRAINED = "untrained"  # beside the decoding strategies: the base as it was given, alone


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    base: str
    experts: tuple[str, ...]
    data: str
    dev: str | None = None
    test: str | None = None  # None: the dev file
    task: str | None = None  # metric of generated answers; None: text only
    dtype: str = "float32"
    expert_dtype: str | None = None  # of the experts, also "int8" or "int4"; None: as dtype
    mesh: tuple[int, int, int] = (1, 1, 1)  # data, fsdp, tensor
    expert_mesh: tuple[int, int, int] | None = None  # of the experts, over the same devices; None: as mesh
    expert_scores: str = "cached"  # made once, beforehand; "online": in every training step
    length: int = 2048  # longest training text, at most the context
    # Who answers the test prompts, the report's own answers first: decoding strategies of the trained team, and
    # "untrained", the base as it was given, which is also the third model of "proxy". (): defer, base, expert, random.
    strategies: tuple[str, ...] = ()
    random_rate: float | None = None  # of strategy "random"; None: as often as "defer" defers
    max_new_tokens: int = 96
    prompt_tokens: int = 32  # where test lines have no prompt: their first tokens serve as one
    batch_size: int = 32  # of decoding
    report_answers: int = 200  # the report shows so many, and asks every model about them once more
    profile_steps: tuple[int, int] | None = None  # first and last training step of a profiler trace
    training: Training = field(default_factory=Training)
    gate_init: GateInit = field(default_factory=GateInit)
    calibration: Calibration = field(default_factory=Calibration)
    correction: Correction = field(default_factory=Correction)  # of strategies "backtrack" and "lookahead"

    def __post_init__(self):
        """Validates the settings."""
        least = {"length": 2, "max_new_tokens": 1, "prompt_tokens": 1, "batch_size": 1, "report_answers": 1}
        checked: dict[str, Any] = {name: check_whole(name, getattr(self, name), low) for name, low in least.items()}
        if self.random_rate is not None:
            checked["random_rate"] = check_number("random_rate", self.random_rate, 0, 1)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.expert_dtype is not None and self.expert_dtype not in EXPERT_DTYPES:
            raise UserError(f"expert_dtype must be one of {', '.join(EXPERT_DTYPES)}, got {self.expert_dtype!r}")
        if self.task is not None:
            find_task(self.task)
        if self.expert_scores not in EXPERT_SCORES:
            raise UserError(f"expert_scores must be one of {', '.join(EXPERT_SCORES)}, got {self.expert_scores!r}")
        if self.online:
            self._check_online()
        steps = self.profile_steps
        if steps is not None and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise UserError(f"profile_steps must be the first and the last step, as in (10, 12), got {steps!r}")
        if not self.experts and self.training.objective != "sft":
            raise UserError("experts: a run needs at least one --expert; only --objective sft trains a model alone")
        self._check_strategies()
        if self.training.trainable != "gate":  # which is fitted to all texts at once
            self.training.check_split(self.mesh[0] * self.mesh[1])

    @property
    def answered_by(self) -> tuple[str, ...]:
        """`strategies`, decided."""
        if self.strategies:
            return self.strategies
        if not self.experts:
            return ("base", UNTRAINED)
        alone = len(self.experts) == 1  # random deferral has no gate to choose among several
        return ("defer", "base", "expert", *(["random"] if alone else []))

    @property
    def obeys_threshold(self) -> bool:
        """Whether any of the strategies looks at the gate, for which it is calibrated."""
        return any(STRATEGIES[name].needs_gate for name in self.answered_by if name in STRATEGIES)

    def _check_strategies(self) -> None:
        """Refuses what the team of this run could not follow."""
        for name in self.answered_by:
            if name == "proxy" and len(self.experts) != 1:
                raise UserError("strategies: proxy takes one expert, and the base before its training as third model")
            if name not in ("proxy", UNTRAINED):
                find_strategy(name, len(self.experts), gate_experts=len(self.experts))
        if "random" in self.answered_by and self.random_rate is None:
            order = [name for name in self.answered_by if name in ("defer", "random")]
            if order[0] != "defer":
                raise UserError(
                    "strategies: random defers as often as defer does, which must stand before it; or bind "
                    "Run.random_rate"
                )

    @property
    def online(self) -> bool:
        """Whether experts score inside the training step."""
        return self.expert_scores == "online"

    @property
    def gate_solver(self) -> str:
        """How the gate starts, decided."""
        return self.gate_init.solver or ("zero" if self.online or not self.experts else "newton")

    def _check_online(self) -> None:
        """Refuses what needs scores that an online run does not make."""
        needs = {
            "--trainable gate is fitted to": self.training.trainable == "gate",
            "--objective weak takes its labels from": self.training.objective == "weak",
            f"GateInit.solver {self.gate_solver} takes its labels (method a) from": self.gate_solver != "zero"
            and self.gate_init.label_method == "a",
        }
        for what, true in needs.items():
            if true:
                raise UserError(f"{what} scores made beforehand; use --expert_scores cached")

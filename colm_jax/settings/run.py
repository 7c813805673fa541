"""Settings of a run: its models, its data, and the settings of every stage."""

from collections import ChainMap
from dataclasses import dataclass, field

from colm_jax.errors import UserError
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.fields import setting, validate
from colm_jax.settings.generation import MAX_NEW_TOKENS, Correction
from colm_jax.settings.models import EXPERT, MODEL, SPANS, Model, check_base_dtype
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.strategies import STRATEGIES, find_strategy
from colm_jax.settings.training import GateInit, Training

EXPERT_SCORES = ("cached", "online")
STAGES = ("tokens", "score", "labels", "gate", "train", "calibrate", "generate", "evaluate", "report")
UNTRAINED = "untrained"  # beside the decoding strategies: the base as it was given, alone
# Metrics of answers; evaluation.tasks defines each.
TASKS = ("exact", "number", "gsm8k", "math", "pubmedqa", "bioasq")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes.

    Example:
      >>> from colm_jax import RunConfig, Training
      >>> training = Training(trainable="gate", learning_rate=1e-3)
      >>> config = RunConfig(base="SMALL", experts=["LARGE"], data="train.jsonl", training=training)
      >>> config.experts, config.answered_by
      (('LARGE',), ('defer', 'base', 'expert', 'random'))
    """

    base: str = setting(help=f"the base: {MODEL}", metavar="MODEL")
    experts: tuple[str, ...] = setting(help=f"the experts: {EXPERT}", metavar="MODEL")
    data: str = setting(help="training texts, JSONL or .txt", metavar="FILE")
    spans: str = setting(
        "auto",
        help="what one model writes at a time: " + "; ".join(f"{name}: {text}" for name, text in SPANS.items()),
        choices=tuple(SPANS),
    )
    dev: str | None = setting(None, help="texts for calibration, JSONL or .txt", metavar="FILE")
    test: str | None = setting(None, help="texts for evaluation, JSONL or .txt; unset: the dev file", metavar="FILE")
    task: str | None = setting(None, help="metric of answers; unset: text only", choices=TASKS, metavar="TASK")
    expert_scores: str = setting(
        "cached",
        help="when experts score the training texts: cached, once beforehand; online, in every training step",
        choices=EXPERT_SCORES,
    )
    length: int = setting(2048, help="longest training text in tokens, at most the context", least=2)
    strategies: tuple[str, ...] = setting(
        (),
        help="strategies run on the test prompts; the report shows the first one's answers: decoding strategies of the "
        f"trained team, or {UNTRAINED}, the original base. (): defer, base, expert, and with one expert random; "
        f"without experts base and {UNTRAINED}",
        choices=ChainMap({UNTRAINED: None}, STRATEGIES),
    )
    random_rate: float | None = setting(
        None, help="deferral rate of strategy random; unset: as often as defer defers", least=0, most=1
    )
    max_new_tokens: int = setting(MAX_NEW_TOKENS, help="tokens of an answer, at most", least=1)
    prompt_tokens: int = setting(
        32, help="first tokens of a test text that serve as its prompt where it has none", least=1
    )
    batch_size: int = setting(32, help="answers generated at a time", least=1)
    report_answers: int = setting(200, help="answers that the report shows; every model scores them once more", least=1)
    profile_steps: tuple[int, int] | None = setting(
        None, help="first and last training step of a profiler trace", least=1
    )
    base_model: Model = field(default_factory=Model)
    expert_model: Model | None = None  # as base_model
    training: Training = field(default_factory=Training)
    gate_init: GateInit = field(default_factory=GateInit)
    calibration: Calibration = field(default_factory=Calibration)
    correction: Correction = field(default_factory=Correction)  # of strategies "backtrack" and "lookahead"
    remote: RemoteSettings = field(default_factory=RemoteSettings)  # of experts that are endpoints

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "Run.")
        check_base_dtype(self.dtype)
        if self.online:
            self._check_online()
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            raise UserError(f"Run.profile_steps: the first step comes after the last, got {self.profile_steps!r}")
        if not self.experts and self.training.objective != "sft":
            raise UserError("Run.experts: name at least one; only Training.objective 'sft' trains a model alone")
        self._check_strategies()
        if self.training.trainable != "gate":  # which is fitted to all texts at once
            self.training.check_split(self.mesh[0] * self.mesh[1])

    @property
    def dtype(self) -> str:
        """Of the base."""
        return self.base_model.dtype

    @property
    def expert_dtype(self) -> str | None:
        """Of the experts, where it is another one than the base's."""
        model = self.expert_model or self.base_model
        return None if model.dtype == self.base_model.dtype else model.dtype

    @property
    def mesh(self) -> tuple[int, int, int]:
        """Of the base."""
        return self.base_model.mesh

    @property
    def expert_mesh(self) -> tuple[int, int, int] | None:
        """Of the experts, over the same devices; None: as the base's."""
        return None if self.expert_model is None else self.expert_model.mesh

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
        """Whether any of the strategies uses the gate, for which it is calibrated."""
        return any(STRATEGIES[name].needs_gate for name in self.answered_by if name in STRATEGIES)

    def _check_strategies(self) -> None:
        """Refuse strategies that the team of this run could not follow."""
        for name in self.answered_by:
            if name == "proxy" and len(self.experts) != 1:
                raise UserError("Run.strategies: proxy takes one expert; its third model is the base before training")
            if name not in ("proxy", UNTRAINED):
                find_strategy(name, len(self.experts), gate_experts=len(self.experts))
        if "random" in self.answered_by and self.random_rate is None:
            order = [name for name in self.answered_by if name in ("defer", "random")]
            if order[0] != "defer":
                raise UserError(
                    "Run.strategies: random defers as often as defer does, which must come before it; or set "
                    "Run.random_rate"
                )

    @property
    def online(self) -> bool:
        """Whether experts score inside the training step."""
        return self.expert_scores == "online"

    @property
    def gate_solver(self) -> str:
        """How the gate is initialised, decided."""
        return self.gate_init.solver or ("zero" if self.online or not self.experts else "newton")

    def _check_online(self) -> None:
        """Refuse what needs scores that an online run does not make."""
        needs = {
            "Training.trainable 'gate' is fitted to": self.training.trainable == "gate",
            "Training.objective 'weak' takes its labels from": self.training.objective == "weak",
            f"GateInit.solver {self.gate_solver!r} takes its labels (method a) from": self.gate_solver != "zero"
            and self.gate_init.label_method == "a",
        }
        for what, true in needs.items():
            if true:
                raise UserError(f"{what} scores made beforehand; Run.expert_scores must be 'cached'")

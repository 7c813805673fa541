"""Settings of training: the objective, the optimizer, LoRA, and how the gate is initialised."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from colm_jax.checks import INT32
from colm_jax.errors import UserError
from colm_jax.settings.fields import seed_setting, setting, validate
from colm_jax.settings.references import Reference

OBJECTIVES = ("marginal", "em", "sft", "weak")
TRAINABLE = ("all", "gate", "lora")
SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw",)
REMAT = ("none", "dots", "full")
LABEL_METHODS = ("a", "b")
SOLVERS = ("newton", "reference", "zero")
GATE_INPUTS = ("hidden", "uncertainty")

Objective = str | Reference | Callable  # one of OBJECTIVES, or a function with the arguments of `marginal_nll`


@dataclass(frozen=True)
class Lora:
    """Low-rank matrices beside the base's linear maps (Hu et al. 2021).

    Example:
      >>> from colm_jax import Lora, Training
      >>> Training(trainable="lora", learning_rate=2e-4, lora=Lora(rank=8)).lora.rank
      8
    """

    rank: int = setting(16, help="rank of the matrices", least=1)
    alpha: float = setting(32.0, help="scale of their product, divided by the rank", above=0)
    modules: str = setting(
        r"attention/(query|key|value|out|(query|key_value)_(down|up))|feed_forward/(shared/)?(gate|up|down)",
        help="regular expression of the paths of the linear maps that get them",
    )

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "Lora.")
        try:
            re.compile(self.modules)
        except re.error as error:
            raise UserError(f"Lora.modules is no regular expression: {self.modules!r} ({error})") from None


@dataclass(frozen=True)
class GateInit:
    """How the gate is initialised on weak labels, the base frozen.

    Example:
      >>> from colm_jax import GateInit
      >>> GateInit(label_method="b").positive_weight
      8.0
    """

    solver: str | None = setting(
        None,
        help="newton (to the optimum; L-BFGS for large gates), reference (the original's AdamW pass) or zero; unset: "
        "newton, or zero where experts score online",
        choices=SOLVERS,
    )
    label_method: str = setting(
        "a", help="weak labels: a, the expert is right and the base wrong; b, the base is wrong", choices=LABEL_METHODS
    )
    positive_weight: float = setting(8.0, help="weight of positive labels in the loss", above=0)
    ridge: float = setting(1e-4, help="L2 penalty in nats per token; keeps the fit of separable labels finite", least=0)
    max_steps: int = setting(100, help="steps of the solver, at most", least=1, most=INT32)
    seed: int = seed_setting("seed of the order of the texts in the reference solver's pass")

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "GateInit.")


@dataclass(frozen=True)
class Training:
    """Objective, optimizer and length of a training run; the defaults are the paper's for 7B models.

    Example:
      >>> from colm_jax import Training
      >>> Training(objective="em", trainable="gate", batch_size=32).parts(32)
      1
    """

    objective: Objective = setting(
        "marginal",
        help="marginal, em, sft (the base alone) or weak; or a function with the arguments of objectives.marginal_nll, "
        "as in @my_module.my_loss",
        choices=OBJECTIVES,
    )
    trainable: str = setting(
        "all",
        help="all (base and gate), gate (fitted to its optimum; no rate, batch or epochs) or lora (and the gate)",
        choices=TRAINABLE,
    )
    gate_inputs: str = setting(
        "hidden",
        help="what the gate reads: hidden, the base's last hidden state; uncertainty, also entropy, top "
        "log-probability and margin of its next-token distribution, in nats",
        choices=GATE_INPUTS,
    )
    gate_ridge: float = setting(
        0.0,
        help="L2 penalty, in nats per token, of the gate where trainable is gate; a gate fitted to few texts needs "
        "one, such as 0.03",
        least=0,
    )
    optimizer: str | Reference | Callable = setting(
        "adamw",
        help="adamw; or an optax optimizer, as in @optax.adafactor(), or a factory for one, as in @optax.adafactor, "
        "called with the schedule as learning_rate",
        choices=OPTIMIZERS,
    )
    learning_rate: float = setting(2e-5, help="peak learning rate; of LoRA, about 2e-4 is usual", least=0)
    gate_learning_rate: float | None = setting(
        None, help="peak learning rate of the gate; unset: as learning_rate", least=0
    )
    schedule: str | Reference | Callable = setting(
        "linear",
        help="linear or cosine decay to 0 after the warm-up, or constant; or an optax schedule, as in "
        "@my_module.my_schedule(), or a factory for one, as in @my_module.my_schedule, called with learning_rate and "
        "steps if it accepts them",
        choices=SCHEDULES,
    )
    warmup_fraction: float = setting(0.04, help="share of the steps in which the rate rises from 0", least=0, below=1)
    weight_decay: float = setting(0.0, help="weight decay of AdamW", least=0)
    clip_norm: float | None = setting(None, help="largest global gradient norm; unset: no clipping", above=0)
    batch_size: int = setting(128, help="texts a step, with packing and without", least=1, most=INT32)
    packing: bool = setting(
        True, help="a step's texts in as few rows as they fit into; else a text a row, padded. The gradient is the same"
    )
    accumulate: int = setting(
        1,
        help="parts of a batch, one after the other, to save memory; of packed rows fewer. The gradient is the same",
        least=1,
        most=INT32,
    )
    remat: str = setting(
        "none",
        help="rematerialisation; layers save all (none), inputs and matmuls (dots) or inputs only (full)",
        choices=REMAT,
    )
    epochs: int = setting(2, help="passes over the training texts", least=1, most=INT32)
    seed: int = seed_setting("seed of the order of the training texts")
    label_method: str = setting("a", help="weak labels of the objective weak", choices=LABEL_METHODS)
    positive_weight: float = setting(5.0, help="weight of positive labels in the objective weak", above=0)
    checkpoint_every: int = setting(100, help="steps between checkpoints", least=1, most=INT32)
    lora: Lora = field(default_factory=Lora)

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "Training.")
        self.check_split(1)
        if isinstance(self.schedule, Reference) and self.schedule.made and self.gate_learning_rate is not None:
            raise UserError(
                f"Training.schedule {self.schedule.text} gives base and gate the same rate; unset gate_learning_rate, "
                "or name the schedule's factory, without parentheses"
            )
        if self.gate_ridge and self.trainable != "gate":
            raise UserError(
                f"Training.gate_ridge {self.gate_ridge} is the penalty of a gate that is trained alone; "
                f"Training.trainable must be 'gate', got {self.trainable!r}"
            )
        if self.objective == "sft" and self.trainable == "gate":
            raise UserError(
                "Training.objective 'sft' does not train a gate; Training.trainable must be 'all' or 'lora'"
            )

    def parts(self, rows: int) -> int:
        """Return the parts of a batch of `rows` rows: none has more rows than a part of a batch of a text a row."""
        return -(-rows // (self.batch_size // self.accumulate))

    def split_rows(self, rows: int, ways: int) -> int:
        """Return the smallest number of rows, from `rows` on, that parts and `ways` groups of devices can share."""
        parts = self.parts(rows)
        return parts * ways * -(-rows // (parts * ways))

    def check_split(self, ways: int) -> None:
        """Raise UserError where `ways` groups of devices (the mesh's data · fsdp) cannot share a part of a batch."""
        if self.batch_size % (self.accumulate * ways):
            raise UserError(
                f"Training.batch_size {self.batch_size} must be a multiple of Training.accumulate {self.accumulate} "
                f"times the mesh's data · fsdp, {ways}"
            )

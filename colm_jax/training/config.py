"""What a training run is; the defaults are the paper's for 7B models."""

from dataclasses import dataclass, field

from colm_jax.errors import UserError
from colm_jax.models.decoder import REMAT
from colm_jax.models.lora import Lora

OBJECTIVES = ("marginal", "em", "sft", "weak")
TRAINABLE = ("all", "gate", "lora")
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Training:
    """Objective, optimizer and length of a run."""

    objective: str = "marginal"
    # Base and gate; or the gate alone, fitted to its optimum (no rate, batch or epochs); or LoRA on the base, and gate.
    trainable: str = "all"
    learning_rate: float = 2e-5
    gate_learning_rate: float | None = None  # None: as learning_rate
    schedule: str = "linear"  # decay to 0 after the warm-up
    warmup_fraction: float = 0.04
    weight_decay: float = 0.0
    clip_norm: float | None = None  # largest global gradient norm; None: no clipping
    batch_size: int = 128  # rows a step
    packing: bool = False  # several texts a row, as many as fit beside the longest; else one, padded
    accumulate: int = 1  # parts of a batch that pass one after the other, to save memory; the gradient is the same
    remat: str = "none"  # what layers keep for their gradient: "none" (all), "dots" (input, products) or "full" (input)
    epochs: int = 2
    seed: int = 0  # order of the examples
    label_method: str = "a"  # of the objective `weak`
    positive_weight: float = 5.0  # of the objective `weak`
    checkpoint_every: int = 100  # steps between checkpoints
    lora: Lora = field(default_factory=Lora)  # of trainable `lora`, which wants a higher learning rate, about 2e-4

    def __post_init__(self):
        """Rejects settings that cannot be meant."""
        for name, allowed in (
            ("objective", OBJECTIVES),
            ("trainable", TRAINABLE),
            ("schedule", SCHEDULES),
            ("remat", tuple(REMAT)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"training: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch_size", "accumulate", "epochs", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"training: {name} must be a whole number of at least 1, got {value!r}")
        self.check_split(1)
        for name in ("learning_rate", "gate_learning_rate"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value >= 0):
                raise UserError(f"training: {name} must be a number of at least 0, got {value!r}")
        if not 0 <= self.warmup_fraction < 1:
            raise UserError(f"training: warmup_fraction must be from 0 up to 1, got {self.warmup_fraction}")
        if self.objective == "sft" and self.trainable == "gate":
            raise UserError("training: objective 'sft' does not train a gate; use --trainable all")

    def check_split(self, ways: int) -> None:
        """Raises UserError where `ways` groups of devices (the mesh's data · fsdp) cannot share a part of a batch."""
        if self.batch_size % (self.accumulate * ways):
            raise UserError(
                f"training: batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate} times the "
                f"mesh's data · fsdp, {ways}"
            )

"""What a training run is; the defaults are the paper's for 7B models."""

from dataclasses import dataclass, field

from colm_jax.checks import INT32, check_number, check_seed, check_whole
from colm_jax.errors import UserError
from colm_jax.labels import METHODS
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
        """Validates the settings."""
        for name, allowed in (
            ("objective", OBJECTIVES),
            ("trainable", TRAINABLE),
            ("schedule", SCHEDULES),
            ("remat", tuple(REMAT)),
            ("label_method", METHODS),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"training: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        checked: dict[str, float | int] = {"seed": check_seed("training: seed", self.seed)}
        for name in ("batch_size", "accumulate", "epochs", "checkpoint_every"):
            checked[name] = check_whole(f"training: {name}", getattr(self, name), 1, INT32)
        for name, bounds in {
            "learning_rate": {"least": 0},
            "gate_learning_rate": {"least": 0},
            "warmup_fraction": {"least": 0, "below": 1},
            "weight_decay": {"least": 0},
            "clip_norm": {"above": 0},
            "positive_weight": {"above": 0},
        }.items():
            value = getattr(self, name)
            if value is not None or name not in ("gate_learning_rate", "clip_norm"):
                checked[name] = check_number(f"training: {name}", value, **bounds)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self.check_split(1)
        if self.objective == "sft" and self.trainable == "gate":
            raise UserError("training: objective 'sft' does not train a gate; use --trainable all")

    def check_split(self, ways: int) -> None:
        """Raises UserError where `ways` groups of devices (the mesh's data · fsdp) cannot share a part of a batch."""
        if self.batch_size % (self.accumulate * ways):
            raise UserError(
                f"training: batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate} times the "
                f"mesh's data · fsdp, {ways}"
            )

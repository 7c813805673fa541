"""What can be set: each setting declared once, with its type, default, help and allowed values.

Plain frozen dataclasses that any module may import and that import none but `errors` and `checks`. Flags, gin bindings,
`colm config` and the tables of the docs are made from them.
"""

from colm_jax.settings.calibration import Calibration
from colm_jax.settings.generation import Correction, ExpertBatching, GenerationSettings
from colm_jax.settings.models import Model
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.serving import ServingSettings
from colm_jax.settings.strategies import Strategy
from colm_jax.settings.sweep import Sweep
from colm_jax.settings.training import GateInit, Lora, Training

__all__ = [
    "Calibration",
    "Correction",
    "ExpertBatching",
    "GateInit",
    "GenerationSettings",
    "Lora",
    "Model",
    "RemoteSettings",
    "RunConfig",
    "ServingSettings",
    "Strategy",
    "Sweep",
    "Training",
]

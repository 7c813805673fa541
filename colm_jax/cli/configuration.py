"""A run's settings from flags and gin, for the commands that share them: run, train, refresh, config, check, sweep."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from colm_jax.cli.flags import given
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.generation import Correction
from colm_jax.settings.gin_edge import Bindings
from colm_jax.settings.models import Model
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import GateInit, Lora, Training

_NONE: Mapping[str, Any] = MappingProxyType({})


def make_run(bindings: Bindings, flags: Mapping[str, Any] = _NONE) -> RunConfig:
    """Return a run's settings.

    Args:
      bindings: of gin.
      flags: values of the command's flags by name, None where one was not given; they win over gin.

    Raises:
      UserError: a setting out of range, or a required one that is missing.
    """
    base, expert = _make_models(bindings, flags)
    training = make_training(bindings, flags)
    experts: dict[str, Any] = {} if flags.get("expert") is None else {"experts": tuple(flags["expert"])}
    bindings.bind("Run", **given(flags, RunConfig), **experts)
    return bindings.make(
        RunConfig,
        base_model=base,
        expert_model=expert,
        training=training,
        gate_init=bindings.make(GateInit),
        calibration=bindings.make(Calibration),
        correction=bindings.make(Correction),
        remote=make_remote(bindings, flags),
    )


def make_remote(bindings: Bindings, flags: Mapping[str, Any]) -> RemoteSettings:
    """Return how endpoints are asked, and what may be sent to them."""
    bindings.bind("Remote", **given(flags, RemoteSettings))
    return bindings.make(RemoteSettings)


def make_training(bindings: Bindings, flags: Mapping[str, Any]) -> Training:
    """Return settings of training."""
    bindings.bind("Training", **given(flags, Training))
    return bindings.make(Training, lora=bindings.make(Lora))


def _make_models(bindings: Bindings, flags: Mapping[str, Any]) -> tuple[Model, Model | None]:
    """Return how the base is loaded, and the experts; None: as the base.

    --mesh and --dtype are of all models; those of the experts may have others, by flag or by scope.
    """
    for name in ("mesh", "dtype"):
        value: Any = flags.get(name)
        bindings.bind("Model", **{name: value})
        if bindings.is_bound("Model", name, "base"):
            bindings.bind("Model", "base", **{name: value})
        expert: Any = flags.get(f"expert_{name}")
        bindings.bind("Model", "expert", **{name: expert})
    base = bindings.make(Model, "base")
    if not any(bindings.is_bound("Model", name, "expert") for name in ("mesh", "dtype")):
        return base, None
    for name in ("mesh", "dtype"):
        if not bindings.is_bound("Model", name, "expert"):
            bindings.bind("Model", "expert", **{name: getattr(base, name)})
    return base, bindings.make(Model, "expert")

"""The optimizer of base and gate, and the learning rate's schedule: ours by name, or the user's own objects."""

import inspect
from typing import Any

import jax
import optax

from colm_jax.errors import UserError
from colm_jax.settings.references import Reference, call_with, object_of, text_of
from colm_jax.settings.training import Training


def make_optimizer(settings: Training, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of a run of `steps` steps; base and gate may have learning rates of their own.

    Raises:
      UserError: an optimizer or schedule of the user's that cannot be made.
    """
    gate_rate = settings.learning_rate if settings.gate_learning_rate is None else settings.gate_learning_rate
    by_part = optax.partition(
        {"base": _optimizer(settings, settings.learning_rate, steps), "gate": _optimizer(settings, gate_rate, steps)},
        lambda params: {part: jax.tree.map(lambda _, part=part: part, tree) for part, tree in params.items()},
    )
    if settings.clip_norm is None:
        return by_part
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), by_part)


def _optimizer(settings: Training, rate: float, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of one part, at this peak rate."""
    schedule = make_schedule(settings, rate, steps)
    if settings.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=settings.weight_decay)
    given = object_of(settings.optimizer)
    made = given if _is_optimizer(given) else _made("optimizer", settings.optimizer, learning_rate=schedule)
    if not _is_optimizer(made):
        raise UserError(f"Training.optimizer {text_of(settings.optimizer)} is no optax optimizer, but {made!r:.60}")
    return made


def make_schedule(settings: Training, rate: float, steps: int) -> optax.Schedule:
    """Return the learning rate at each step of a run of `steps` steps, with the peak `rate`.

    Built-in schedules warm up linearly over `warmup_fraction` of the steps. A user's schedule is used unchanged.
    """
    if not isinstance(settings.schedule, str):
        given = object_of(settings.schedule)
        made = (
            given
            if _is_schedule(settings.schedule)
            else _made("schedule", settings.schedule, learning_rate=rate, steps=steps)
        )
        if not callable(made):
            raise UserError(f"Training.schedule {text_of(settings.schedule)} is no function of the step: {made!r:.60}")
        return made
    warmup = max(1, round(settings.warmup_fraction * steps))
    rest = max(1, steps - warmup)
    after = {
        "linear": optax.linear_schedule(rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(rate, rest),
        "constant": optax.constant_schedule(rate),
    }[settings.schedule]
    return optax.join_schedules([optax.linear_schedule(rate / warmup, rate, warmup), after], [warmup])


def _is_optimizer(value: Any) -> bool:
    return hasattr(value, "init") and hasattr(value, "update")


def _is_schedule(value: Any) -> bool:
    """Return whether this is a schedule rather than a factory for one.

    A `Reference` records which it is; any other callable is a factory if it takes `learning_rate` or `steps`.
    """
    if isinstance(value, Reference):
        return value.made
    return not {"learning_rate", "steps"} & set(inspect.signature(value).parameters)


def _made(name: str, given: Any, **known: Any) -> Any:
    """Call a factory.

    Raises:
      UserError: it cannot be called with the arguments that are known here.
    """
    try:
        return call_with(object_of(given), **known)
    except (TypeError, RuntimeError) as error:  # gin raises RuntimeError where a binding is missing
        said = " ".join(str(error).split())
        raise UserError(
            f"Training.{name} {text_of(given)}: called with {' and '.join(known)}, it fails: {said}; bind its other "
            f"arguments, or write parentheses if the call needs none"
        ) from error

"""Values of gin bindings: macros and references in them."""

from collections.abc import Callable
from typing import Any

from gin import config as gin_config

from colm_jax.settings.references import Reference

MODULE = "colm_jax"  # under which the settings classes are registered
MACRO = "gin.macro"


def is_own(selector: str) -> bool:
    """Return whether a selector is that of a settings class."""
    return selector.startswith(f"{MODULE}.")


def _is_reference(value: Any) -> bool:
    return isinstance(value, gin_config.ConfigurableReference)


def is_macro(value: Any) -> bool:
    """Return whether a value is a macro or a constant, %NAME."""
    return _is_reference(value) and value.configurable.selector in (MACRO, "gin.constant")


def is_required(value: Any) -> bool:
    """Return whether a value is %gin.REQUIRED."""
    return is_macro(value) and repr(value) == "%gin.REQUIRED"


def with_macros(value: Any) -> Any:
    """Return the value with macros replaced by their values; references stay."""
    if is_macro(value) and value.configurable.selector == MACRO:
        return with_macros(gin_config._CONFIG["/".join(value.scopes), MACRO]["value"])
    if is_macro(value) and not is_required(value):
        return value.scoped_configurable_fn()
    return _mapped(with_macros, value)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return the value with the function applied to what a container holds."""
    if isinstance(value, dict):
        return {function(key): function(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(function(item) for item in value)
    return value


def refers(value: Any) -> bool:
    """Return whether a value, its macros filled in, holds a reference."""
    value = with_macros(value)
    if isinstance(value, dict):
        return any(map(refers, [*value, *value.values()]))
    return any(map(refers, value)) if isinstance(value, list | tuple) else _is_reference(value)


def with_references(value: Any) -> Any:
    """Return the value with references as `Reference` objects, which keep their text."""
    value = with_macros(value)
    if not _is_reference(value):
        return _mapped(with_references, value)
    made = value.scoped_configurable_fn() if value.evaluate else value.scoped_configurable_fn
    return Reference(repr(value), _parameters(), value.evaluate, made)


def _parameters() -> str:
    """Return every binding of what is not a settings class or a macro, as one text."""
    own = {
        f"{scope}/{selector}.{name}": repr(with_macros(value))
        for (scope, selector), bound in gin_config._CONFIG.items()
        if selector != MACRO and not is_own(selector)
        for name, value in bound.items()
    }
    return "; ".join(f"{key.removeprefix('/')} = {own[key]}" for key in sorted(own))

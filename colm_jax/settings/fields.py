"""How a setting is declared (`setting`) and how a settings object checks itself (`validate`)."""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from colm_jax.checks import SEEDS, check_number, check_whole
from colm_jax.errors import UserError
from colm_jax.settings.references import Reference


@dataclass(frozen=True)
class Setting:
    """What is declared of a setting beside its name, type and default."""

    help: str
    choices: Collection[str] = ()  # allowed values of a string; (): any. A table is read anew at every check
    least: float | None = None  # of a number: smallest and largest, or open bounds
    most: float | None = None
    above: float | None = None
    below: float | None = None
    metavar: str | None = None  # of its flag


_UNDECLARED = Setting("")


def setting(default: Any = MISSING, *, help: str, factory: Any = MISSING, **declared: Any) -> Any:
    """Return a dataclass field that is a setting.

    Args:
      default: its value where none is given; without one it is required.
      help: what it means, a phrase without a full stop, as `--help` and the docs show it.
      factory: makes the default, in place of `default`.
      declared: the other fields of `Setting`.
    """
    metadata = {"setting": Setting(help, **declared)}
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


def seed_setting(help: str) -> Any:
    """Return a seed: 0 unless given, below 2^64."""
    return setting(0, help=f"{help}; from 0 to 2^64 - 1", least=0, most=SEEDS - 1, metavar="S")


def declared(field: Field) -> Setting:
    """Return what is declared of a dataclass field; nothing for one that is no `setting`."""
    return field.metadata.get("setting", _UNDECLARED)


@cache
def types_of(kind: type) -> dict[str, Any]:
    """Return the type of each setting of a class, by name."""
    return typing.get_type_hints(kind)


def field_of(kind: type, name: str) -> Field:
    """Return a field of a settings class by its name."""
    return next(entry for entry in fields(kind) if entry.name == name)


def default_of(kind: type, name: str) -> Any:
    """Return the default of a setting; `dataclasses.MISSING` where it is required."""
    entry = field_of(kind, name)
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def validate(settings: Any, prefix: str = "") -> None:
    """Check every setting of a frozen dataclass against its type and its declaration; called by `__post_init__`.

    Scalars of NumPy and JAX become Python's numbers, lists become tuples, whole numbers for a float become floats.

    Args:
      settings: the object; its fields are replaced by the values as they were read.
      prefix: of names in errors, as in "Training.".

    Raises:
      UserError: naming the setting, the value, and what is allowed.
    """
    for entry in fields(settings):
        object.__setattr__(settings, entry.name, checked(type(settings), entry, getattr(settings, entry.name), prefix))


def checked(kind: type, entry: Field, value: Any, prefix: str = "") -> Any:
    """Return a value as the setting `entry` of the class holds it. Raises as `validate`."""
    return _read(f"{prefix}{entry.name}", value, types_of(kind)[entry.name], declared(entry))


def _read(name: str, value: Any, wanted: Any, rule: Setting) -> Any:
    """Return a value of the wanted type, within the declared bounds."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return _read_union(name, value, parts, rule)
    if wanted is float:
        return check_number(name, value, rule.least, rule.most, above=rule.above, below=rule.below)
    if wanted is int:
        return check_whole(name, value, int(rule.least or 0), None if rule.most is None else int(rule.most))
    if wanted is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    if wanted is str and isinstance(value, str) and (not rule.choices or value in rule.choices):
        return value
    if origin in (tuple, Sequence) and _is_list(value):
        items = list(value)
        kinds = parts[:1] * len(items) if origin is Sequence or parts[1:] == (Ellipsis,) else parts
        if len(kinds) == len(items):
            return tuple(_read(name, item, kind, rule) for item, kind in zip(items, kinds))
    elif origin in (Mapping, dict) and isinstance(value, Mapping):
        return {_read(name, key, parts[0], rule): _read(name, item, parts[1], rule) for key, item in value.items()}
    elif _is_of(value, wanted):
        return value
    raise UserError(f"{name} must be {name_of(wanted, rule)}, got {value!r:.60}")


def _read_union(name: str, value: Any, parts: tuple[Any, ...], rule: Setting) -> Any:
    """Return a value of one of several types: none, one of a kind, or a list of them."""
    if value is None and type(None) in parts:
        return None
    kinds = [part for part in parts if part is not type(None)]
    lists = [part for part in kinds if typing.get_origin(part) in (tuple, Sequence)]
    single = [part for part in kinds if part not in lists]
    chosen = lists if _is_list(value) and lists else single or lists
    fitting: list[Any] = [part for part in chosen if isinstance(part, type) and isinstance(value, part)]
    fitting += [Callable] if Callable in chosen and _is_object(value) else []
    return _read(name, value, (fitting or chosen)[0], rule)


def _is_of(value: Any, wanted: Any) -> bool:
    """Return whether a value is of a type whose values stay as they are."""
    if wanted is Any:
        return True
    if wanted is Callable:
        return _is_object(value)
    return isinstance(wanted, type) and wanted not in (bool, str) and isinstance(value, wanted)


def _is_object(value: Any) -> bool:
    """Return whether a value is neither a number nor a string nor a list, as optimizers (tuples of functions) are."""
    return callable(value) or (isinstance(value, tuple) and hasattr(value, "_fields"))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | range) or (isinstance(value, np.ndarray) and value.ndim == 1)


def name_of(wanted: Any, rule: Setting = _UNDECLARED) -> str:
    """Return a type in words, as errors name it."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(name_of(part, rule) for part in parts if part is not Reference)
    if origin is tuple and parts[1:] != (Ellipsis,):
        return f"a tuple of {len(parts)}: {', '.join(map(name_of, parts))}"
    if origin in (tuple, Sequence):
        return f"a list, each {name_of(parts[0])}"
    if origin in (dict, Mapping):
        return f"a dictionary, each value {name_of(parts[1])}"
    if wanted is str and rule.choices:
        return f"one of {', '.join(rule.choices)}"
    names = {
        Callable: "a reference",
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "True or False",
        type(None): "None",
    }
    return names.get(wanted, "any value" if wanted is Any else getattr(wanted, "__name__", str(wanted)))

"""How a setting is declared (`setting`) and how a settings object checks itself (`validate`)."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from colm_jax.checks import SEEDS, check_number, check_whole
from colm_jax.errors import UserError


@dataclass(frozen=True)
class Setting:
    """What is declared of a setting beside its name, type and default."""

    help: str
    choices: tuple[str, ...] = ()  # allowed values of a string; (): any
    least: float | None = None  # of a number: smallest and largest, or open bounds
    most: float | None = None
    above: float | None = None
    below: float | None = None
    metavar: str | None = None  # of its flag


_UNDECLARED = Setting("")


def setting(default: Any = MISSING, *, help: str, factory: Any = MISSING, **declared: Any) -> Any:
    """A dataclass field that is a setting.

    Args:
      default: its value where none is given; without one it is required.
      help: what it means, a phrase without a full stop, as `--help` and the docs show it.
      factory: makes the default, in place of `default`.
      declared: the other fields of `Setting`.
    """
    metadata = {"setting": Setting(help, **declared)}
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


def seed_setting(help: str) -> Any:
    """A seed: 0 unless given, below 2^64."""
    return setting(0, help=f"{help}; from 0 to 2^64 - 1", least=0, most=SEEDS - 1, metavar="S")


def declared(field: Field) -> Setting:
    """What is declared of a dataclass field; nothing for one that is no `setting`."""
    return field.metadata.get("setting", _UNDECLARED)


@cache
def types_of(kind: type) -> dict[str, Any]:
    """The type of each setting of a class, by name."""
    return typing.get_type_hints(kind)


def field_of(kind: type, name: str) -> Field:
    """A field of a settings class by its name."""
    return next(entry for entry in fields(kind) if entry.name == name)


def default_of(kind: type, name: str) -> Any:
    """The default of a setting; `dataclasses.MISSING` where it is required."""
    entry = field_of(kind, name)
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def validate(settings: Any, prefix: str = "") -> None:
    """Checks every setting of a frozen dataclass against its type and its declaration; called by `__post_init__`.

    Scalars of NumPy and JAX become Python's numbers, lists become tuples, whole numbers given for a float
    become floats.

    Args:
      settings: the object; its fields are replaced by the values as they were read.
      prefix: of names in errors, as in "Training.".

    Raises:
      UserError: naming the setting, the value, and what is allowed.
    """
    kind: Any = type(settings)
    for entry in fields(settings):
        wanted, value = types_of(kind)[entry.name], getattr(settings, entry.name)
        found = _read(f"{prefix}{entry.name}", value, wanted, declared(entry))
        object.__setattr__(settings, entry.name, found)


def _read(name: str, value: Any, wanted: Any, told: Setting) -> Any:
    """A value of the wanted type, within the declared bounds."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return _read_union(name, value, parts, told)
    if wanted is float:
        return check_number(name, value, told.least, told.most, above=told.above, below=told.below)
    if wanted is int:
        least = told.least if told.above is None else told.above + 1
        return check_whole(
            name, value, 0 if least is None else int(least), None if told.most is None else int(told.most)
        )
    if wanted is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    if wanted is str and isinstance(value, str):
        if told.choices and value not in told.choices:
            raise UserError(f"{name} must be one of {', '.join(told.choices)}, got {value!r:.60}")
        return value
    if origin in (tuple, Sequence) and _is_list(value):
        items = list(value)
        kinds = parts[:1] * len(items) if origin is Sequence or parts[1:] == (Ellipsis,) else parts
        if len(kinds) == len(items):
            return tuple(_read(name, item, kind, told) for item, kind in zip(items, kinds))
    elif wanted is Any or (origin in (Mapping, dict) and isinstance(value, Mapping)) or _is_object(wanted, value):
        return value
    raise UserError(f"{name} must be {name_of(wanted, told)}, got {value!r:.60}")


def _read_union(name: str, value: Any, parts: tuple[Any, ...], told: Setting) -> Any:
    """A value of one of several types: none, one of a kind, or a list of them."""
    if value is None and type(None) in parts:
        return None
    kinds = [part for part in parts if part is not type(None)]
    lists = [part for part in kinds if typing.get_origin(part) in (tuple, Sequence)]
    single = [part for part in kinds if part not in lists]
    chosen = lists if _is_list(value) and lists else single or lists
    fitting = [part for part in chosen if isinstance(part, type) and isinstance(value, part)]
    return _read(name, value, (fitting or chosen)[0], told)


def _is_object(wanted: Any, value: Any) -> bool:
    """Whether it is an object of a class that is no built-in scalar."""
    return isinstance(wanted, type) and wanted not in (bool, str) and isinstance(value, wanted)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | range) or (isinstance(value, np.ndarray) and value.ndim == 1)


def name_of(wanted: Any, told: Setting = _UNDECLARED) -> str:
    """A type in words, as errors name it."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(name_of(part, told) for part in parts)
    if origin is tuple and parts[1:] != (Ellipsis,):
        return f"a tuple of {len(parts)}: {', '.join(map(name_of, parts))}"
    if origin in (tuple, Sequence):
        return f"a list, each {name_of(parts[0])}"
    if origin in (dict, Mapping):
        return f"a dictionary, each value {name_of(parts[1])}"
    if wanted is str and told.choices:
        return f"one of {', '.join(told.choices)}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", type(None): "None"}
    return names.get(wanted, "any value" if wanted is Any else getattr(wanted, "__name__", str(wanted)))

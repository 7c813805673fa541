"""Objects of the user's own among the settings: an optimizer, a schedule, an objective; and what identifies one.

A stage is stale when its settings have changed, so an object among them needs a description that is the same in every
process and changes with what the object does.
"""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reference:
    """An object that a gin file names: @NAME, the factory, or @NAME(), what it returns."""

    text: str  # as gin writes it
    parameters: str  # of the objects that the file configures, as gin writes them
    made: bool  # @NAME(): `value` is what the factory returned
    value: Any = field(compare=False)


def object_of(value: Any) -> Any:
    """Return the object or factory that a setting holds."""
    return value.value if isinstance(value, Reference) else value


def text_of(value: Any) -> str:
    """Return a setting that is a name or an object, as errors and reports show it."""
    return value.text if isinstance(value, Reference) else value if isinstance(value, str) else f"{value!r:.60}"


def call_with(factory: Callable, **known: Any) -> Any:
    """Return the factory's result, called with those of the keywords that are among its parameters."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return factory(**known)
    names = {parameter.name for parameter in parameters}
    return factory(**{name: value for name, value in known.items() if name in names})


def describe(value: Any, within: tuple[int, ...] = ()) -> Any:
    """Return a value as JSON holds it: numbers and strings as they are; of an object its names, its source and its
    content.

    Args:
      value: a setting's value.
      within: ids of the objects that hold it, so that a circle ends.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "itself"
    inner = (*within, id(value))
    if isinstance(value, Reference):
        return {"reference": value.text, "parameters": value.parameters, "object": describe(value.value, inner)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: describe(getattr(value, entry.name), inner) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item, inner) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item, inner) for item in value]
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        array = np.asarray(value)
        return {"array": str(array.dtype), "shape": list(array.shape), "sha256": _sha256(array.tobytes())}
    if isinstance(value, functools.partial):
        return {"partial": describe([value.func, value.args, value.keywords], inner)}
    if isinstance(value, set | frozenset):
        return sorted((describe(item, inner) for item in value), key=str)
    if inspect.ismodule(value):
        return {"module": value.__name__}
    value = _without_gin(value)
    if inspect.isroutine(value) or inspect.isclass(value):
        cells = getattr(value, "__closure__", None) or ()
        held = [cell.cell_contents for cell in cells] + list(getattr(value, "__defaults__", None) or ())
        held += [getattr(value, "__kwdefaults__", None), getattr(value, "__self__", None)]
        return {"name": _name(value), "source": _source(value), "holds": describe(held, inner)}
    return {"class": _name(type(value)), "holds": describe(getattr(value, "__dict__", {}), inner)}


def _without_gin(value: Any) -> Any:
    """Return the function or class that gin has wrapped; its bindings are described beside it (`Reference`)."""
    while hasattr(value, "__wrapped__") and getattr(value, "__globals__", {}).get("__name__") == "gin.config":
        value = value.__wrapped__
    return value


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"


def _source(value: Any) -> str:
    """Return a hash of the source, where there is any to be had."""
    try:
        return _sha256(inspect.getsource(value).encode())
    except (OSError, TypeError):
        return ""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

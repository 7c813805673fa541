"""The report as JSON, for `colm show` and other programs."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from colm_jax.errors import UserError
from colm_jax.report.contents import Report
from colm_jax.storage import path_of, write_text

SCHEMA = 2


def save_report(report: Report, path: str | Path) -> None:
    """Write a report as JSON."""
    text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(report)}, ensure_ascii=False, separators=(",", ":"))
    write_text(path_of(path), text + "\n")


def load_report(path: str | Path) -> Report:
    """Load a report written by `save_report`.

    Raises:
      UserError: a file of another version, or not a report.
    """
    file = path_of(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        schema = found.pop("schema", None)
        if schema == SCHEMA:
            return _read(Report, found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a valid report ({error!r}); rerun the command that wrote it") from error
    raise UserError(f"{path}: schema {schema!r} is not supported, only {SCHEMA}; write the report again")


def _read(kind: Any, value: Any) -> Any:
    """Convert JSON back to its type: dataclasses, and tuples, lists and dictionaries of them; keep other values."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            raise ValueError(f"{kind.__name__} has the fields {sorted(hints)}, not {sorted(value)}")
        return kind(**{name: _read(hints[name], entry) for name, entry in value.items()})
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_read(k, entry) for k, entry in zip(kinds, value, strict=True))
    if origin is list:
        return [_read(arguments[0], entry) for entry in value]
    if origin is dict:
        return {key: _read(arguments[1], entry) for key, entry in value.items()}
    if origin in (types.UnionType, typing.Union):
        for option in filter(dataclasses.is_dataclass, arguments):  # identified by their fields
            if set(value) == {field.name for field in dataclasses.fields(option)}:
                return _read(option, value)
    return value

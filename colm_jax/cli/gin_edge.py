"""gin at the edge: files and flags of bindings become settings objects; nothing else in the package knows gin.

gin's own parser reads the files. Every binding is held against the settings classes as it is read (its name, its type,
given once a file), so that what is wrong is named by file and line before anything starts. As in gin, an included file
is read where its include stands, and of several bindings of a setting the last one read wins; so a later file wins over
an earlier one, --gin.NAME=VALUE over files, and a flag over all.
"""

import collections.abc
import difflib
import re
import tokenize
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from gin import config_parser

from colm_jax.bench.config import DecodeBench, TrainBench
from colm_jax.calibration.threshold import Calibration
from colm_jax.errors import UserError
from colm_jax.models.lora import Lora
from colm_jax.pipeline.config import RunConfig
from colm_jax.settings.generation import Correction
from colm_jax.storage import absolute, check_regular, in_bucket, path_of, read_text
from colm_jax.sweep.config import Sweep
from colm_jax.training.config import Training
from colm_jax.training.gate_fit import GateInit

T = TypeVar("T")

_NAMES: dict[type, str] = {
    RunConfig: "Run",
    Training: "Training",
    Lora: "Lora",
    GateInit: "GateInit",
    Calibration: "Calibration",
    Correction: "Correction",
    Sweep: "Sweep",
    TrainBench: "TrainBench",
    DecodeBench: "DecodeBench",
}
_KINDS = {name: kind for kind, name in _NAMES.items()}
_TYPES = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", type(None): "None"}
REQUIRED = "gin.REQUIRED"  # as in Run.base = %gin.REQUIRED: a flag or a later file has to give it


@dataclass(frozen=True)
class Binding:
    """A value and where it was given: FILE:LINE, or the flag."""

    value: Any
    place: str


@dataclass(frozen=True)
class _Macro:
    """%NAME in a value; replaced when everything is read."""

    name: str


@dataclass
class Bindings:
    """What files and flags bind: settings by (class, field), macros by name; and the settings made from them."""

    settings: dict[tuple[str, str], Binding] = field(default_factory=dict)
    macros: dict[str, Binding] = field(default_factory=dict)
    made: dict[str, tuple[Any, dict[str, str]]] = field(default_factory=dict)  # by class: object, each field's place


_current = Bindings()


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Takes --gin_file F, --gin_file=F and --gin.NAME=VALUE out: (the rest, files, bindings)."""
    rest, files, bindings = [], [], []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--gin_file":
            try:
                files.append(next(waiting))
            except StopIteration:
                raise UserError("--gin_file: needs a file") from None
        elif argument.startswith("--gin_file="):
            files.append(argument.removeprefix("--gin_file="))
        elif argument.startswith("--gin."):
            if "=" not in argument:
                raise UserError(f"{argument}: a binding looks like --gin.Training.learning_rate=1e-4")
            bindings.append(argument.removeprefix("--gin."))
        else:
            rest.append(argument)
    return rest, files, bindings


def parse(files: list[str], bindings: list[str]) -> None:
    """Reads gin files and NAME=VALUE bindings; what was read before is forgotten.

    Raises:
      UserError: naming the place: a missing file, a name that is not a setting, one given twice in a file, a value of
        the wrong type, a macro that nobody sets.
    """
    global _current
    read = Bindings()
    for file in files:
        path = path_of(file)
        check_regular(path)
        if not path.is_file():
            raise UserError(f"--gin_file {file}: no such file")
        _read_file(path, read, ())
    for binding in bindings:
        place = f"--gin.{binding}"
        _read(binding.replace("=", " = ", 1), lambda _, place=place: place, None, read, ())
    read.settings = {key: _checked(key, binding, read.macros) for key, binding in read.settings.items()}
    _current = read


def _read_file(path: Path, into: Bindings, within: tuple[Path, ...]) -> None:
    if absolute(path) in within:
        raise _BadInclude(f"{path} includes itself")
    _read(read_text(path), lambda line: f"{path}:{line}", path.parent, into, (*within, absolute(path)))


class _BadInclude(Exception):
    """An include that cannot be followed."""


def _included(name: str, folder: Path | None) -> Path:
    """The file that an include names: beside the file that it stands in or, as in gin, in the working directory."""
    near = [path_of(name)] if in_bucket(name) else [(folder or Path()) / name, path_of(name)]
    found = next((path for path in near if path.is_file()), None)
    if found is None:
        there = next((path for path in near if path.exists()), None)
        if there is not None:
            raise _BadInclude("is a directory, not a file" if there.is_dir() else "is not a regular file")
        raise _BadInclude(f"no such file, here or in {near[0].parent}")
    return found


class _Delegate(config_parser.ParserDelegate):
    """What gin's parser makes of %NAME and @NAME."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        raise ValueError(f"@{scoped_configurable_name}: settings are plain values here; write the value")

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)


def _read(text: str, place, folder: Path | None, into: Bindings, within: tuple[Path, ...]) -> None:
    """Reads one text; `place` names a line of it, `folder` is where its includes lie beside the working directory."""
    seen: dict[Any, str] = {}
    parser = None
    try:
        parser = config_parser.ConfigParser(text, _Delegate())
        for statement in parser:
            where = place(statement.location.line_num)
            if isinstance(statement, config_parser.IncludeStatement):
                try:
                    _read_file(_included(statement.filename, folder), into, within)
                except _BadInclude as error:
                    raise UserError(f"{where}: include {statement.filename!r}: {error}") from None
            elif isinstance(statement, config_parser.BindingStatement):
                key = _key(statement, where)
                if key in seen:
                    raise UserError(f"{where}: {_shown(key)} is bound twice in this file, first at {seen[key]}")
                seen[key] = where
                binding = Binding(statement.value, where)
                if isinstance(key, tuple):
                    into.settings[key] = binding
                else:
                    into.macros[key] = binding
            elif isinstance(statement, config_parser.ImportStatement):
                raise UserError(f"{where}: import {statement.module}: nothing has to be imported; take the line out")
    except UserError:  # which is a ValueError
        raise
    except SyntaxError as error:
        line = error.lineno or 1
        raise UserError(f"{place(line)}: {error.msg}: {(error.text or '').strip()}") from None
    except (ValueError, tokenize.TokenError) as error:
        line = parser.current_token.start[0] if parser is not None else 1
        raise UserError(f"{place(line)}: {str(error).splitlines()[0]}") from None


def _shown(key: Any) -> str:
    return ".".join(key) if isinstance(key, tuple) else str(key)


def _key(statement: config_parser.BindingStatement, where: str) -> tuple[str, str] | str:
    """(class, field) of a setting, or a macro's name.

    Raises:
      UserError: no such class or field.
    """
    name, parameter = statement.selector, statement.arg_name
    if not parameter:
        return name
    if statement.scope:
        raise UserError(f"{where}: {statement.scope}/{name}: scopes are not used here; write {name}.{parameter}")
    if name not in _KINDS:
        raise UserError(f"{where}: {name}.{parameter}: no settings of the name {name}{_nearest(name, _KINDS)}")
    known = [entry.name for entry in fields(_KINDS[name])]
    if parameter not in known:
        raise UserError(f"{where}: {name}.{parameter}: {name} has no such setting{_nearest(parameter, known)}")
    return name, parameter


def _nearest(name: str, known: collections.abc.Iterable[str]) -> str:
    known = list(known)
    found = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(known)}"


def _filled(value: Any, macros: dict[str, Binding], place: str, within: tuple[str, ...] = ()) -> Any:
    """The value with its macros replaced."""
    if isinstance(value, _Macro):
        if value.name == REQUIRED:
            return value
        if value.name in within:
            raise UserError(f"{place}: %{value.name} is defined by itself")
        if value.name not in macros:
            raise UserError(f"{place}: %{value.name} has no value{_nearest(value.name, macros) if macros else ''}")
        return _filled(macros[value.name].value, macros, place, (*within, value.name))
    if isinstance(value, dict):
        return {key: _filled(item, macros, place, within) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, macros, place, within) for item in value)
    return value


def _checked(key: tuple[str, str], binding: Binding, macros: dict[str, Binding]) -> Binding:
    """The binding with its macros replaced and its value of the field's type."""
    value = _filled(binding.value, macros, binding.place)
    if isinstance(value, _Macro):  # required; `make` asks for it
        return Binding(value, binding.place)
    wanted = typing.get_type_hints(_KINDS[key[0]])[key[1]]
    if is_dataclass(wanted):
        own = _NAMES[typing.cast(type, wanted)]
        raise UserError(f"{binding.place}: {_shown(key)}: its settings are bound one by one, as in {own}.NAME = VALUE")
    try:
        return Binding(_converted(value, wanted), binding.place)
    except _WrongType:
        hint = "; write it without quotes" if isinstance(value, str) and _takes_no_string(wanted) else ""
        raise UserError(f"{binding.place}: {_shown(key)} = {value!r}: must be {_name_of(wanted)}{hint}") from None


class _WrongType(Exception):
    """A value that is not of the type."""


def _converted(value: Any, wanted: Any) -> Any:
    """The value, if it is of the type: lists are taken for tuples, whole numbers for numbers."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return _converted(value, part)
            except _WrongType:
                continue
    elif origin in (tuple, collections.abc.Sequence) and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if origin is not tuple or parts[1:] == (Ellipsis,) else parts
        if len(kinds) == len(value):
            return tuple(_converted(item, kind) for item, kind in zip(value, kinds))
    elif origin in (dict, collections.abc.Mapping) and isinstance(value, dict):
        return {_converted(key, parts[0]): _converted(item, parts[1]) for key, item in value.items()}
    elif wanted is float and type(value) is int:
        return float(value)
    elif type(value) is wanted:
        return value
    raise _WrongType


def _name_of(wanted: Any) -> str:
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_name_of, parts))
    if origin is tuple and parts[1:] != (Ellipsis,):
        return f"a tuple of {len(parts)}: {', '.join(map(_name_of, parts))}"
    if origin in (tuple, collections.abc.Sequence):
        return f"a tuple, each {_name_of(parts[0])}"
    if origin in (dict, collections.abc.Mapping):
        return f"a dictionary, each value {_name_of(parts[1])}"
    return _TYPES.get(wanted, "any value" if wanted is Any else str(wanted))


def _takes_no_string(wanted: Any) -> bool:
    return str not in (wanted, *typing.get_args(wanted))


def make(kind: type[T], **flags: Any) -> T:
    """A settings object: its defaults, then gin's bindings, then the flags that were given (not None).

    Raises:
      UserError: a setting out of range, or a required one that neither flag nor gin gave.
    """
    name = _NAMES[kind]
    values = {key[1]: binding for key, binding in _current.settings.items() if key[0] == name}
    values |= {key: Binding(value, "flag") for key, value in flags.items() if value is not None}
    for entry in fields(kind):  # type: ignore[arg-type]
        needed = entry.default is MISSING and entry.default_factory is MISSING and entry.name not in values
        found = values.get(entry.name)
        if needed or (found is not None and isinstance(found.value, _Macro)):
            where = f"{found.place}: " if found else ""
            raise UserError(f"{where}{name}.{entry.name} has no value; {_how_to_give(name, entry.name)}")
    try:
        result = kind(**{key: binding.value for key, binding in values.items()})
    except UserError as error:
        raise UserError(f"{str(error).splitlines()[0]}{_places(str(error), values)}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}{_places(str(error), values)}") from None
    _current.made[name] = result, {key: binding.place for key, binding in values.items()}
    return result


def _how_to_give(name: str, setting: str) -> str:
    flag = {"base": "--base MODEL", "experts": "--expert MODEL", "data": "--data FILE"}.get(setting)
    bound = f"bind {name}.{setting} in a --gin_file, or --gin.{name}.{setting}=VALUE"
    return f"give {flag}, or {bound}" if flag and name == "Run" else bound


def _places(message: str, values: dict[str, Binding]) -> str:
    """Where the settings that a message speaks of were bound."""
    words = set(re.findall(r"\w+", message))
    found = [f"{key} at {b.place}" for key, b in values.items() if key in words and b.place != "flag"]
    return f" ({', '.join(found)})" if found else ""


def operative(places: bool = False) -> str:
    """Every setting that was made, defaults and flags too, as a gin file that gives the same settings.

    Args:
      places: behind each line as a comment, where its value comes from.
    """
    lines = []
    for name in (name for name in _NAMES.values() if name in _current.made):
        settings, given = _current.made[name]
        rows = [(entry.name, getattr(settings, entry.name)) for entry in fields(settings)]
        texts = [
            (f"{name}.{key} = {value!r}", given.get(key, "default")) for key, value in rows if not is_dataclass(value)
        ]
        width = min(60, max(len(text) for text, _ in texts))
        lines += [f"{text:{width}}  # {place}" if places else text for text, place in texts] + [""]
    return "\n".join(lines)

"""gin at the edge: files and flags of bindings become settings objects; only the command line imports this module.

The settings classes are registered with gin, which binds, scopes, fills in macros, resolves references and writes the
operative config. The statements are read here one by one, so that whatever is wrong with one is a line that names its
file and line, before anything starts. Beyond gin: an included file is looked for beside the file that includes it too,
and a name such as `@my_module.my_schedule` needs no dynamic registration, only `import my_module`.
"""

import difflib
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gin
from gin import config as gin_config
from gin import config_parser

from colm_jax.errors import UserError
from colm_jax.settings.bench import (
    CompiledBench,
    DecodeBench,
    GuestsBench,
    ScoreBench,
    ServingBench,
    SpeculationBench,
    TrainBench,
)
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.fields import checked, field_of, types_of
from colm_jax.settings.generation import Correction, GenerationSettings
from colm_jax.settings.gin_values import (
    MACRO,
    MODULE,
    is_macro,
    is_own,
    is_required,
    refers,
    with_macros,
    with_references,
)
from colm_jax.settings.models import Model
from colm_jax.settings.references import Reference
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.serving import ServingSettings
from colm_jax.settings.sweep import Sweep
from colm_jax.settings.training import GateInit, Lora, Training
from colm_jax.storage import absolute, check_regular, path_of, read_text

T = TypeVar("T")

SETTINGS: dict[str, type] = {
    "Run": RunConfig,
    "Model": Model,
    "Training": Training,
    "Lora": Lora,
    "GateInit": GateInit,
    "Calibration": Calibration,
    "Correction": Correction,
    "Remote": RemoteSettings,
    "Serving": ServingSettings,
    "Generation": GenerationSettings,
    "Sweep": Sweep,
    "TrainBench": TrainBench,
    "DecodeBench": DecodeBench,
    "SpeculationBench": SpeculationBench,
    "CompiledBench": CompiledBench,
    "ScoreBench": ScoreBench,
    "ServingBench": ServingBench,
    "GuestsBench": GuestsBench,
}
SCOPES = {"Model": ("base", "expert")}  # in which a class is made beside the unscoped one


def _nested(kind: type) -> list[str]:
    """Return the fields that are settings objects themselves: they are bound through their own class."""

    def holds_settings(wanted: Any) -> bool:
        return any(is_dataclass(part) and part is not Reference for part in (wanted, *getattr(wanted, "__args__", ())))

    return [name for name, wanted in types_of(kind).items() if holds_settings(wanted)]


_NAMES = {kind: name for name, kind in SETTINGS.items()}
_REGISTERED = {
    name: gin.external_configurable(kind, name=name, module=MODULE, denylist=_nested(kind))
    for name, kind in SETTINGS.items()
}
_Key = tuple[str, str, str]  # scope, full selector, argument


class _Context(gin_config.ParseContext):
    """How names of one file are looked up: as in gin, then in the modules that the file imports."""

    def __init__(self, modules: dict[str, Any] | None = None, sources: dict[str, Any] | None = None):
        super().__init__()
        self._symbol_table, self._symbol_source = dict(modules or {}), dict(sources or {})

    @property
    def modules(self) -> dict[str, Any]:
        """Imported modules by the name that the file gives them."""
        return self._symbol_table

    @property
    def sources(self) -> dict[str, Any]:
        """Their import statements."""
        return self._symbol_source

    def process_import(self, statement: config_parser.ImportStatement) -> None:
        """Import a module, and remember its name whether or not dynamic registration is on."""
        super().process_import(statement)
        if not statement.module.startswith("__gin__."):
            name = statement.bound_name()
            self._symbol_table[name] = sys.modules[statement.module if statement.is_from or statement.alias else name]
            self._symbol_source[name] = statement

    def get_configurable(self, selector: str) -> Any:
        """Return the registered function or class of this name; None where there is none."""
        root = selector.partition(".")[0]
        if self._dynamic_registration and root in self._symbol_table:
            return super().get_configurable(selector)
        found = gin_config._REGISTRY.get_match(selector)
        if found is not None:
            return found
        if root == "optax" and root not in self._symbol_table:
            self.process_import(config_parser.ImportStatement("optax", False, None, _nowhere()))
        if root not in self._symbol_table:
            return None
        names, values = self._resolve_selector(selector)
        if not callable(values[-1]):
            raise ValueError(f"{selector} is no function or class")
        found = gin_config._inverse_lookup(values[-1]) or self._register(names, values)
        # What is written back names such objects through their modules.
        self._imports.insert(0, config_parser.ImportStatement("__gin__.dynamic_registration", True, None, _nowhere()))
        return found


def _nowhere() -> config_parser.Location:
    return config_parser.Location(None, 0, None, "")


@dataclass
class Bindings:
    """What files and flags bind, held by gin; here, where each binding was given: FILE:LINE, or the flag."""

    places: dict[_Key, str] = field(default_factory=dict)
    modules: dict[str, Any] = field(default_factory=dict)  # that files import, for the bindings of flags
    sources: dict[str, Any] = field(default_factory=dict)
    made: dict[tuple[str, str], Any] = field(default_factory=dict)  # settings objects by (class, scope)

    def bind(self, name: str, scope: str = "", **flags: Any) -> None:
        """Bind settings of a class to the flags that were given (not None), which win over all else."""
        for setting, value in flags.items():
            if value is not None:
                gin.bind_parameter((scope, f"{MODULE}.{name}", setting), value)
                flag = "expert" if setting == "experts" else f"{scope}_{setting}" if scope == "expert" else setting
                self.places[scope, f"{MODULE}.{name}", setting] = f"--{flag}"

    def is_bound(self, name: str, setting: str, scope: str = "") -> bool:
        """Return whether a setting has a binding in exactly this scope."""
        return (scope, f"{MODULE}.{name}", setting) in self.places

    def make(self, kind: type[T], scope: str = "", **nested: Any) -> T:
        """Return a settings object: its defaults, then gin's bindings, flags among them.

        Args:
          kind: the class.
          scope: of the bindings beside the unscoped ones.
          nested: settings objects that are fields of this one.

        Raises:
          UserError: a setting out of range, or a required one that neither flag nor gin gave.
        """
        name = _NAMES[kind]
        with gin.config_scope(scope or None):
            bound = gin.get_bindings(f"{MODULE}.{name}", resolve_references=False)
            places = {setting: self._place(scope, name, setting) for setting in bound}
            self._check_required(kind, name, bound, places, nested)
            try:
                made = _REGISTERED[name](**nested)
                made = replace(made, **{n: with_references(v) for n, v in bound.items() if refers(v)})
            except UserError as error:
                said = str(error).partition("\n  In call to configurable")[0]
                raise UserError(f"{said}{_mentioned(said, places)}") from None
            except (TypeError, ValueError, RuntimeError) as error:
                said = str(error).strip().splitlines()[0]
                raise UserError(f"{name}: {said}{_mentioned(said, places)}") from error
        self.made[name, scope] = made
        return made

    def _place(self, scope: str, name: str, setting: str) -> str:
        """Return where the binding that counts in a scope was written."""
        scopes = [scope, ""] if scope else [""]
        return next(p for s in scopes if (p := self.places.get((s, f"{MODULE}.{name}", setting))) is not None)

    def _check_required(
        self, kind: type, name: str, bound: Mapping[str, Any], places: Mapping[str, str], nested: Mapping[str, Any]
    ) -> None:
        for entry in fields(kind):  # type: ignore[arg-type]
            needed = entry.default is MISSING and entry.default_factory is MISSING
            missing = needed and entry.name not in bound and entry.name not in nested
            if missing or (entry.name in bound and is_required(bound[entry.name])):
                where = f"{places[entry.name]}: " if entry.name in places else ""
                raise UserError(f"{where}{name}.{entry.name} has no value; {_how_to_give(name, entry)}")

    def text(self, places: bool = False) -> str:
        """Return the settings that were made, as gin's operative config: read again, it gives the same settings.

        Args:
          places: add to each line a comment that says where its value comes from.
        """
        operative = {key: bound for key, bound in gin_config._OPERATIVE_CONFIG.items() if is_own(key[1])}
        # An optimizer is made long after this is written: what binds it, and macros, are not operative yet.
        bound = {key: bound for key, bound in gin_config._CONFIG.items() if not is_own(key[1])}
        text = gin_config._config_str({**bound, **operative}, 118)
        return _annotated(text, self.places) if places else text


def read(files: list[str], bindings: list[str]) -> Bindings:
    """Read gin files and NAME=VALUE bindings into gin, whose earlier bindings are cleared.

    Raises:
      UserError: naming file and line: a missing file or module, an unknown name, a value of the wrong type, a macro
        without a value, a setting in `bindings` without the name of its class.
    """
    gin.clear_config()
    found = Bindings()
    for file in files:
        path = path_of(file)
        check_regular(path)
        if not path.is_file():
            raise UserError(f"--gin_file {file}: no such file")
        _read_file(path, found, ())
    for binding in bindings:
        _read(binding.replace("=", " = ", 1), partial(_flag, binding), None, found, ())
    used = set[str]()
    for (scope, selector, argument), place in found.places.items():
        value = gin_config._CONFIG[scope, selector][argument]
        used |= _check_macros(value, found.places, place, ())
        if is_own(selector):
            _check_value(selector.removeprefix(f"{MODULE}."), argument, value, place)
    for (name, selector, _), place in found.places.items():
        if selector == MACRO and place.startswith("--gin.") and name not in used:
            meant = [
                f"{own}.{name}" for own, kind in SETTINGS.items() if name in [entry.name for entry in fields(kind)]
            ]
            if meant:
                raise UserError(f"{place}: nothing reads %{name}; did you mean {' or '.join(meant)}?")
    return found


def _read_file(path: Path, into: Bindings, within: tuple[Path, ...]) -> None:
    if absolute(path) in within:
        raise _BadInclude(f"{path} includes itself")
    text = read_text(path)
    with _importing_from(path.parent):
        _read(text, lambda line: f"{path}:{line}", path.parent, into, (*within, absolute(path)))


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let a file import modules of the working directory, and of its own folder."""
    added = [name for name in ("", str(folder)) if name not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for name in added:
            with suppress(ValueError):
                sys.path.remove(name)


class _BadInclude(Exception):
    """An include that cannot be followed."""


def _included(name: str, folder: Path | None) -> Path:
    """Return the file that an include names: beside the including file or, as in gin, in the working directory."""
    near = [(folder or Path()) / name, path_of(name)]
    found = next((path for path in near if path.is_file()), None)
    if found is None:
        there = next((path for path in near if path.exists()), None)
        if there is not None:
            raise _BadInclude("is a directory, not a file" if there.is_dir() else "is not a regular file")
        raise _BadInclude(f"no such file, here or in {near[0].parent}")
    return found


def _flag(binding: str, _: int) -> str:
    """The place of a binding given on the command line."""
    return f"--gin.{binding}"


def _read(
    text: str, place: Callable[[int], str], folder: Path | None, into: Bindings, within: tuple[Path, ...]
) -> None:
    """Read one text; `place` names a line of it, `folder` is searched for its includes before the working directory."""
    parser, context = None, _Context(*((into.modules, into.sources) if folder is None else ()))
    gin_config._PARSE_CONTEXTS.append(context)
    try:
        parser = config_parser.ConfigParser(text, gin_config.ParserDelegate())
        for statement in parser:
            _bind(statement, place(statement.location.line_num), folder, context, into, within)
    except UserError:  # which is a ValueError
        raise
    except SyntaxError as error:
        raise UserError(f"{place(error.lineno or 1)}: {error.msg}: {(error.text or '').strip()}") from None
    except (ValueError, AttributeError, tokenize.TokenError) as error:
        line = parser.current_token.start[0] if parser is not None else 1
        raise UserError(f"{place(line)}: {str(error).splitlines()[0]}{_hint(str(error))}") from None
    finally:
        gin_config._PARSE_CONTEXTS.pop()
    into.modules |= context.modules
    into.sources |= context.sources
    gin_config._IMPORTS.update(context.imports)


def _bind(
    statement: Any, where: str, folder: Path | None, context: _Context, into: Bindings, within: tuple[Path, ...]
) -> None:
    """Do what one statement says."""
    if isinstance(statement, config_parser.IncludeStatement):
        try:
            _read_file(_included(statement.filename, folder), into, within)
        except _BadInclude as error:
            raise UserError(f"{where}: include {statement.filename!r}: {error}") from None
    elif isinstance(statement, config_parser.ImportStatement):
        try:
            context.process_import(statement)
        except Exception as error:  # whatever the user's module raises
            said = " ".join(str(error).split())
            raise UserError(
                f"{where}: {statement.format()}: {said} ({type(error).__name__}); modules are looked for on "
                "PYTHONPATH, in the working directory, and beside the file"
            ) from error
    elif isinstance(statement, config_parser.BindingStatement):
        key = _key(statement, where, context)
        gin_config._CONFIG.setdefault(key[:2], {})[key[2]] = statement.value
        into.places[key] = where
    elif not context.get_configurable(statement.selector):  # a block: `Training:`, its bindings follow
        raise UserError(
            f"{where}: {statement.selector}: no settings of this name{_nearest(statement.selector, SETTINGS)}"
        )


def _key(statement: config_parser.BindingStatement, where: str, context: _Context) -> _Key:
    """Return what a statement binds: scope, selector and argument; of a macro its name as the scope.

    Raises:
      UserError: no such class or function, or one without this argument; a scope that nothing reads.
    """
    scope, name, argument = statement.scope, statement.selector, statement.arg_name
    if not argument:
        return (f"{scope}/{name}" if scope else name), MACRO, "value"
    found = context.get_configurable(name)
    if not found:
        raise UserError(f"{where}: {name}.{argument}: no settings of the name {name}{_nearest(name, SETTINGS)}")
    own = found.selector.removeprefix(f"{MODULE}.")
    if not is_own(found.selector):
        try:
            parsed = gin_config.ParsedBindingKey.parse((scope, name, argument))  # gin knows a function's arguments
        except ValueError as error:
            raise UserError(f"{where}: {str(error).rstrip('.')}") from None
        return parsed.scope, parsed.complete_selector, parsed.arg_name
    kind = SETTINGS[own]
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    if argument not in known:
        raise UserError(f"{where}: {own}.{argument}: {own} has no such setting{_nearest(argument, known)}")
    if argument in _nested(kind):
        raise UserError(
            f"{where}: {own}.{argument}: its settings are bound one by one, as in {_example(kind, argument)}"
        )
    if scope and scope not in SCOPES.get(own, ()):
        allowed = [f"{scope}/{own}" for scope in SCOPES.get(own, ())] or [f"{own}.{argument}, without a scope"]
        raise UserError(f"{where}: {scope}/{own}.{argument}: nothing reads this scope; write {' or '.join(allowed)}")
    return scope, found.selector, argument


def _example(kind: type, name: str) -> str:
    wanted = types_of(kind)[name]
    own: Any = next(kind for kind in (wanted, *getattr(wanted, "__args__", ())) if is_dataclass(kind))
    return f"{_NAMES[own]}.NAME = VALUE"


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    found = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(known)}"


def _hint(said: str) -> str:
    return "; import its module first, as in import my_module" if "No configurable matching reference" in said else ""


def _check_macros(value: Any, known: Mapping[_Key, str], place: str, within: tuple[str, ...]) -> set[str]:
    """Return the macros in a value. Raises UserError for one without a value, or one that is defined by itself."""
    if is_macro(value) and value.configurable.selector == MACRO:
        name = "/".join(value.scopes)
        if name in within:
            raise UserError(f"{place}: %{name} is defined by itself")
        if (name, MACRO, "value") not in known:
            macros = [scope for scope, selector, _ in known if selector == MACRO]
            raise UserError(f"{place}: %{name} has no value{_nearest(name, macros) if macros else ''}")
        return {name} | _check_macros(gin_config._CONFIG[name, MACRO]["value"], known, place, (*within, name))
    if isinstance(value, dict):
        value = (*value, *value.values())
    items = value if isinstance(value, list | tuple) else ()
    return set[str]().union(*(_check_macros(item, known, place, within) for item in items))


def _check_value(name: str, setting: str, value: Any, place: str) -> None:
    """Raise UserError for a value that the setting cannot have; references are checked when they are made."""
    if refers(value):
        return
    kind, value = SETTINGS[name], with_macros(value)
    entry = field_of(kind, setting)
    try:
        checked(kind, entry, value, f"{name}.")
    except UserError as error:
        hint = (
            "; write it without quotes" if isinstance(value, str) and not _takes_string(types_of(kind)[setting]) else ""
        )
        raise UserError(f"{place}: {error}{hint}") from None


def _takes_string(wanted: Any) -> bool:
    return str in (wanted, *getattr(wanted, "__args__", ()))


def _how_to_give(name: str, entry: Field) -> str:
    bound = f"bind {name}.{entry.name} in a --gin_file, or --gin.{name}.{entry.name}=VALUE"
    flag = {"experts": "expert"}.get(entry.name, entry.name)
    return f"give --{flag} {entry.metadata['setting'].metavar}, or {bound}" if name == "Run" else bound


def _mentioned(message: str, places: Mapping[str, str]) -> str:
    """Return where the settings that a message names were bound."""
    words = set(re.findall(r"\w+", message))
    found = [f"{setting} from {place}" for setting, place in places.items() if setting in words]
    return f" ({', '.join(found)})" if found else ""


def _annotated(text: str, places: Mapping[_Key, str]) -> str:
    """Return gin's text with a comment at each setting that says where its value comes from."""
    names = {kind.__name__: name for name, kind in SETTINGS.items()} | {name: name for name in SETTINGS}
    lines = []
    for line in text.splitlines():
        found = re.match(r"(?:([\w/]+)/)?(?:\w+\.)*(\w+)\.(\w+) = ", line)
        if found is None or found[2] not in names:
            lines.append(line)
            continue
        selector = f"{MODULE}.{names[found[2]]}"
        bound = [key for scope in (found[1] or "", "") if (key := (scope, selector, found[3])) in places]
        comment = f"# {places[bound[0]] if bound else 'default'}"
        lines += [comment, line] if line.endswith("\\") else [f"{line:60}  {comment}"]
    return "\n".join(lines) + "\n"

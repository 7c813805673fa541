"""The API reference: every public name, fields of dataclasses with what the code says of each, shapes in short.

Public are the names in a module's `__all__`; the build warns of one that no page describes. A setting is described by
its `help`, any other field or constant by the comment beside it or above it. Shapes are those of the annotations
(`colm_jax.models.arrays` defines the letters).
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger
from sphinx.util.typing import stringify_annotation

from colm_jax.settings.fields import declared, default_of, types_of
from docs._ext.public import imported_from, public_names


def field_lines(kind: type) -> Iterator[str]:
    """Yield the lines of a field list for the public fields of a dataclass, its bases' included."""
    comments = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            comments |= _comments(inspect.getsource(base), "    ")
    for field in dataclasses.fields(kind):
        if field.name.startswith("_"):
            continue
        known = declared(field)
        text = known.help or comments.get(field.name, "")
        if known.choices:
            text += f"; one of {', '.join(known.choices)}"
        default = default_of(kind, field.name)
        if isinstance(default, bool | int | float | str | tuple | None):
            text += f" (default: {default!r})"
        yield f":param {field.name}: {_literal(text)}".rstrip()
        yield f":type {field.name}: {short(_type(kind, field))}"


def short(text: str) -> str:
    """Return a signature or a type with arrays as `Float[Array, 'B T']`, in host memory or on devices alike."""
    text = re.sub(r"\b(?:jaxlib\._jax|jax|~jax)\.Array\b", "Array", text)
    text = re.sub(r"\b(?:np|numpy)\.ndarray\b", "ndarray", text)
    text = re.sub(r"(\w+)\[Array, ('[^']*')\] \| \1\[ndarray, \2\]", r"\1[Array, \2]", text)
    text = re.sub(r"<function [\w.]*<lambda>>|<[\w. ]+ at 0x[0-9a-f]+>", "...", text)  # defaults that are objects
    return text.replace("Array | ndarray", "Array")


def _literal(text: str) -> str:
    """Escape what reStructuredText would read as markup; names in backticks stay, flags become code."""
    escaped = re.sub(r"([*_|\\])", r"\\\1", text)
    return re.sub(r"--[a-z](?:[\w.]|\\_)*", lambda flag: f"``{flag[0].replace(chr(92), '')}``", escaped)


def _type(kind: type, field: dataclasses.Field) -> str:
    try:
        return stringify_annotation(types_of(kind)[field.name], "smart", short_literals=True).replace("~", "")
    except (NameError, TypeError):  # an annotation that is a string of names which are not there
        return str(field.type)


def _comments(source: str, indent: str) -> dict[str, str]:
    """Return the comment of each name that source text assigns or annotates at this indent and that has one."""
    found, above = {}, []
    for line in source.splitlines():
        if comment := re.fullmatch(rf"{indent}# (.*)", line):
            above.append(comment[1])
            continue
        if assigned := re.match(rf"{indent}(\w+)(?::| =)[^#]*(?:# (.*))?$", line):
            text = " ".join([*above, assigned[2] or ""]).strip()
            if text:
                found[assigned[1]] = text
        above = []
    return found


def _constants(module: str, names: list[str]) -> Iterator[str]:
    """Yield the directives of a module's public constants, which `automodule` leaves out where they are imported."""
    loaded, origins = importlib.import_module(module), imported_from(module)
    for name in names:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            continue
        origin = importlib.import_module(origins.get(name) or module)
        text = _comments(inspect.getsource(origin), "").get(name, "")
        yield from (f".. py:data:: {name}", f"   :module: {module}", "", f"   {_literal(text)}", "")


def _add_constants(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname.startswith("api/"):
        public = public_names()

        def extended(block: re.Match[str]) -> str:
            return "\n".join([block[0], "", *_constants(block[1], public.get(block[1], []))])

        whole = r"^\.\. automodule:: (\S+)\n   :members:$(?:\n   :.*$)*"
        source[0] = re.sub(whole, extended, source[0], flags=re.M)


def _add_fields(app: Sphinx, what: str, name: str, kind: Any, options: Any, lines: list[str]) -> None:
    if what == "class" and dataclasses.is_dataclass(kind):
        if lines and lines[0].startswith(f"{kind.__name__}("):  # Python's own, of a class without a docstring
            lines.clear()
        lines += ["", *field_lines(kind), ""]


def _shorten(
    app: Sphinx, what: str, name: str, kind: Any, options: Any, signature: str | None, result: str | None
) -> tuple[str, str | None] | None:
    if what in ("class", "exception") and dataclasses.is_dataclass(kind):
        return "", None  # the fields say it
    return None if signature is None else (short(signature), result and short(result))


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that no page describes, here or where it is defined."""
    described = {*env.domains.python_domain.objects, *env.domains.python_domain.modules}
    public = public_names()
    for module, names in public.items():
        for name in names:
            exporting = {f"{other}.{name}" for other, others in public.items() if name in others}
            if not described & (exporting | {f"{imported_from(module).get(name, module)}.{name}"}):
                getLogger(__name__).warning("docs/api describes no %s.%s", module, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Describe what is public; add the fields after napoleon has read the docstring; shorten signatures."""
    app.connect("source-read", _add_constants)
    app.connect("env-check-consistency", _check)
    app.connect("autodoc-process-docstring", _add_fields, priority=600)
    app.connect("autodoc-process-signature", _shorten)
    return {"parallel_read_safe": True}

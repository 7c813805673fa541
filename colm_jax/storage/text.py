"""Text files in UTF-8, with or without a byte order mark; JSON and JSON lines. Errors name the file and the line."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

from colm_jax.errors import UserError
from colm_jax.storage.files import check_regular

_OTHER_MARKS = {  # the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a pair


def without_mark(start: bytes, path: str | Path) -> bytes:
    """Return the first bytes of a text without the byte order mark of UTF-8.

    Raises:
      UserError: they are in another encoding.
    """
    other = next((name for mark, name in _OTHER_MARKS.items() if start.startswith(mark)), "")
    if other or b"\0" in start[:2]:
        raise UserError(f"{path}: is {other or 'UTF-16 or binary'}, not UTF-8 text; save it as UTF-8")
    return start.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path) -> str:
    """Return the text of a file with line ends "\\n".

    Raises:
      UserError: it cannot be read, or is not UTF-8.
    """
    check_regular(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_lines(without_mark(data, path), path)


def decode_lines(data: bytes, path: Path, first: int = 1) -> str:
    """Decode lines of UTF-8, with line ends "\\n"; `first` is the number of the first one.

    Raises:
      UserError: naming file and line, for another encoding.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + data.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_unicode(text: str, what: str) -> None:
    """Raise UserError for half of a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} holds {text[error.start]!r}, half of a surrogate pair; correct or remove it") from None


def parse_json(text: str, where: str | Path, strict: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
      text: one value.
      where: its source, for errors.
      strict: refuse what cannot be written as JSON in UTF-8: NaN, Infinity, and half of a surrogate pair, which
        appears where a text was cut between UTF-16 units.

    Raises:
      UserError: not JSON, or a number too long or a nesting too deep for Python.
    """

    def constant(name: str) -> float:
        if strict:
            raise UserError(f"{where}: not valid JSON: {name} is no JSON number")
        return float(name)

    try:
        value = json.loads(text, parse_constant=constant)
        if strict and _SURROGATE.search(text):
            for key, item in value.items() if isinstance(value, dict) else [("the text", value)]:
                check_unicode(json.dumps([key, item], ensure_ascii=False), f"{where}: {key!r}")
    except json.JSONDecodeError as error:
        line = "" if error.lineno == 1 else f"line {error.lineno}, "
        raise UserError(f"{where}: not valid JSON: {error.msg} ({line}column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{where}: not valid JSON: nested too deeply to be read") from None
    except UserError:
        raise
    except ValueError:
        raise UserError(f"{where}: not valid JSON: a whole number has too many digits to be read") from None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    return _object(read_text(path), path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file with one per line.

    Raises:
      UserError: it cannot be read, or a line holds something else.
    """
    lines = read_text(path).split("\n")  # str.splitlines would also split at U+2028, which JSON may hold
    return [_object(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line]


def _object(text: str, where: str | Path) -> dict[str, Any]:
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value

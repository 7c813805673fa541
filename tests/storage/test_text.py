"""Text is UTF-8, with or without a byte order mark; anything else is a one-line error."""

import os

import pytest

from colm_jax.errors import UserError
from colm_jax.storage import read_json, read_lines, read_text


def test_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "a").write_bytes('\ufeff{"a": "é\ufeff"}\r\n'.encode())
    assert read_text(tmp_path / "a") == '{"a": "é\ufeff"}\n'
    assert read_json(tmp_path / "a") == {"a": "é\ufeff"}
    assert read_lines(tmp_path / "a") == [{"a": "é\ufeff"}]


@pytest.mark.parametrize(
    "data, said",
    [
        ('{"a":\n"ü"}'.encode("cp1252"), r"/a:2: not UTF-8 text \(byte 0xfc\); save it as UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "/a: is UTF-16, not UTF-8 text; save it as UTF-8"),
        ('{"a": 1}'.encode("utf-16-be"), "/a: is UTF-16 or binary, not UTF-8 text"),
        ('{"a": 1}'.encode("utf-32"), "/a: is UTF-32, not UTF-8 text"),
        (b"", "/a: not valid JSON"),
        (b"[1]", "/a: expected a JSON object, got list"),
        (b"[" * 100_000, "/a: not valid JSON: nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "/a: not valid JSON: .*digits"),
    ],
)
def test_invalid_utf8_or_json_is_a_one_line_error(tmp_path, data, said):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_json(tmp_path / "a")


def test_pipe_directory_and_missing_file_are_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, said in (("pipe", "is a pipe, not a file"), ("folder", "is a directory"), ("none", "file is missing")):
        with pytest.raises(UserError, match=f"{name}: {said}"):
            read_json(tmp_path / name)


def test_invalid_line_is_an_error_with_its_number(tmp_path):
    (tmp_path / "a").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match="a:2: not valid JSON"):
        read_lines(tmp_path / "a")

"""The files that stages write and read back."""

import json

from colm_jax.storage import read_lines, write_text


def test_a_line_may_hold_what_unicode_calls_an_end_of_line(tmp_path):
    lines = [{"text": "a\u2028b\x85c\r\n"}, {"text": ""}]
    write_text(tmp_path / "a.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    assert read_lines(tmp_path / "a.jsonl") == lines

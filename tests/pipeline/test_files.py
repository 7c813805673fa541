"""The files that stages write and read back."""

import json

import pytest

from colm_jax.decoding.requests import Generation
from colm_jax.pipeline.files import GenerationFile
from colm_jax.storage import read_lines, write_text


def test_a_line_may_hold_what_unicode_calls_an_end_of_line(tmp_path):
    lines = [{"text": "a\u2028b\x85c\r\n"}, {"text": ""}]
    write_text(tmp_path / "a.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    assert read_lines(tmp_path / "a.jsonl") == lines


def opened(path):
    return GenerationFile(path, [{"prompt": "a"}, {"prompt": "b"}], ["x", "y"], samples=1, key="k")


@pytest.mark.parametrize(
    "line", ["x 0 {}", "1", "1 0", '1 0 {"id": ', "2 0 {}", "0 1 {}", "-1 0 {}", "0 0 []", "", "\0\0\0", "0 0 [" * 9]
)
def test_a_damaged_line_of_a_part_file_and_those_after_it_are_answered_again(tmp_path, line):
    first = Generation([1], "t", [3], [0], None, [0.5], "eos", 0)
    file = opened(tmp_path / "a.jsonl")
    file.begin()
    file.add(0, first)
    file.stop()
    part = tmp_path / "a.jsonl.part"
    part.write_text(f'{part.read_text()}{line}\n1 0 {{"id": "y"}}\n')
    file = opened(tmp_path / "a.jsonl")
    assert file.missing == [1]
    file.begin()
    file.add(1, first)
    file.stop()
    file.finish()
    assert [line["id"] for line in read_lines(tmp_path / "a.jsonl")] == ["x", "y"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]

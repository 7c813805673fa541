"""`colm show` of a file of generation lines."""

import json

import pytest
from rich.console import Console

from colm_jax.errors import UserError
from colm_jax.pipeline.showing import show_path
from colm_jax.text.tokenizer import load_tokenizer
from tests.text.vocabularies import save


def shown(path, base, number=None):
    console = Console(record=True, width=100)
    show_path(path, base and str(base), number, False, 0, console)
    return console.export_text()


@pytest.fixture
def answer_file(tmp_path):
    """A file of one answer by a tokenizer that drops the first space of a text, and the tokenizer's directory."""
    directory = save("llama", tmp_path / "model")
    (directory / "config.json").write_text("{}")
    tokenizer = load_tokenizer(directory)
    tokens = [*tokenizer.encode(" the"), *(4 + byte for byte in "😀".encode()), *tokenizer.encode("b stop")]

    def write(text):
        line = {"id": "0", "prompt": "a", "text": text, "tokens": tokens, "sources": [0] * len(tokens), "p_defer": None}
        path = tmp_path / "answers.jsonl"
        path.write_text(json.dumps(line) + "\n")
        return path

    return write, directory


def test_the_shown_pieces_are_the_lines_text(answer_file):
    write, directory = answer_file
    text = shown(write(" the😀b "), directory)  # what a stop string cut off is not shown
    assert "the😀b" in text and "stop" not in text
    assert shown(write(" the😀b "), directory, number=1).count("😀") == 2  # in the answer, and at one of its tokens


def test_another_models_tokenizer_is_refused(answer_file):
    write, directory = answer_file
    with pytest.raises(UserError, match=r"answers.jsonl:1: the tokenizer of .* as base"):
        shown(write("the😀b "), directory)


def test_marks_of_the_line_are_shown(answer_file):
    write, directory = answer_file
    path = write(" the😀b ")
    line = json.loads(path.read_text())
    risks = [0.9] + [0.1] * (len(line["tokens"]) - 1)
    path.write_text(json.dumps(line | {"risks": risks, "check": [{"start": 1, "end": 4, "risk": 0.9}]}) + "\n")
    assert "to check (risk): the" in shown(path, directory) and "(0.90)" in shown(path, directory)
    for check, said in (
        (["x"], "'check' must be a list"),
        ([{"start": 4, "end": 1, "risk": 0.9}], "each end in 'check'"),
    ):
        path.write_text(json.dumps(line | {"check": check}) + "\n")
        with pytest.raises(UserError, match=said):
            shown(path, directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": ["a"]}, "each of 'tokens' must be a whole number"),
        ({"tokens": [-1]}, "each of 'tokens' must be a whole number"),
        ({"tokens": 5}, "5 as 'tokens'"),
        ({"sources": ["y"]}, "each of 'sources' must be a whole number"),
        ({"text": 5}, "5 as 'text'"),
        ({"threshold": 0.5}, "'threshold' must be a list or null"),
        ({"p_defer": ["x"]}, "each of 'p_defer' must be a number"),
        ({"risks": ["x"]}, "each of 'risks' must be a number"),
        ({"risks": [0.5]}, "tokens, sources and risks have"),
        ({"prompt": None}, "None as 'prompt'"),
        ({"prompt": [{"role": "user", "content": "hi"}, "x"]}, "each of 'prompt' must be a whole number"),
    ],
)
def test_a_line_of_another_form_is_named(answer_file, change, said):
    write, directory = answer_file
    path = write(" the😀b ")
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    for base in (directory, None):
        with pytest.raises(UserError, match=rf"answers.jsonl:1: {said}"):
            shown(path, base)

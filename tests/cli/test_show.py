"""`colm show` as a command: what it prints can be kept as a picture."""

import json

from colm_jax.cli.main import main
from colm_jax.text.tokenizer import load_tokenizer
from tests.text.vocabularies import save


def test_the_picture_shows_what_is_printed(tmp_path, capsys):
    directory = save("llama", tmp_path / "model")
    (directory / "config.json").write_text("{}")
    tokens = load_tokenizer(directory).encode(" the")
    line = {"id": "0", "prompt": "a", "text": " the", "tokens": tokens, "sources": [1] * len(tokens), "p_defer": None}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    show = ["show", str(tmp_path / "answers.jsonl"), "--base", str(directory)]
    assert main([*show, "--svg", str(tmp_path / "answers.svg")]) == 0
    assert "the" in capsys.readouterr().out
    picture = (tmp_path / "answers.svg").read_text()
    assert picture.startswith("<svg") and "the" in picture and "answers.jsonl" in picture
    assert main([*show, "--svg", str(tmp_path)]) == 2
    assert "--svg" in capsys.readouterr().err

"""Two published language models in GGUF, compared with transformers' own reading of the same files, and at work."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.text.detokenizer import Detokenizer
from colm_jax.text.tokenizer import load_tokenizer
from tests.real_models import SOURCES

pytestmark = pytest.mark.real
SMOL, GEMMA = SOURCES
PAGE = """def area(r):\n    return {'a': [1, 2, 3], "b": r**2}  # πr²\n\tif r != 3: pass\r\n\r\n\r\n
   three spaces,     five.  Trailing   \n\n\n\n 1234567890 3.14159 1,000,000 v2.0 0x1F 12:30\n\n1. one\n  2. two
Emoji 😀👩‍👩‍👧‍👦🇩🇪 ❤️; 你好，世界。これはテストです。 한국어 문장; مرحبا بالعالم ١٢٣, עברית; Ünïcödé naïve e\u0301
line\u2028separator\u2029paragraph\u00a0space\u200bnothing\u3000wide\ufeffmark; I'm you're WE'LL don't DON'T 'quoted'
<|im_start|>user\nhi<|im_end|>\n<bos><eos><unused0>[multimodal]<mask> <|endoftext|> \x01\x7f ĠĊ ▁▁ <0x0A>
\\n &amp; <b>x</b>
\n\n\n   \n\t\t\n"""


@pytest.mark.parametrize("name", SOURCES)
def test_tokenizer_equals_transformers(name, real):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    theirs = transformers.AutoTokenizer.from_pretrained(str(real), gguf_file=name)
    ours = load_tokenizer(resolve(real / name))
    texts = [
        PAGE,
        *(PAGE[i : i + 31] for i in range(0, len(PAGE), 9)),
        "",
        " ",
        "  a",
        "\n",
        "\r\n\r\n",
        "a <|im_end|> b",
    ]
    for text in texts:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text) == expected, text
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_plain(text) == plain, text
        assert ours.backend.decode(plain) == theirs.decode(plain)
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    assert ours.backend.get_vocab() == theirs.get_vocab()
    for token in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(ours.backend, token) == getattr(theirs, token)
    assert ours.backend.chat_template == theirs.chat_template
    added, theirs_added = ours.backend.added_tokens_decoder, theirs.added_tokens_decoder
    assert {i: t.special for i, t in added.items()} == {i: t.special for i, t in theirs_added.items()}
    stream = Detokenizer(ours.token_bytes)
    ids = ours.encode_plain(PAGE)
    assert "".join(stream.push(i) for i in ids) + stream.flush() == ours.decode(ids)


@pytest.mark.parametrize(("name", "begins"), [(SMOL, []), (GEMMA, [2])])
def test_text_begins_with_bos_where_the_file_says_so(name, begins, real):
    tokenizer = load_tokenizer(resolve(real / name))
    assert tokenizer.encode("Hi")[:-1] == begins
    assert tokenizer.encode(f"{tokenizer.backend.bos_token}Hi")[:-1] == [tokenizer.backend.bos_token_id]


@pytest.mark.parametrize("name", SOURCES)
def test_logits_equal_transformers(name, real, mesh):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")  # transformers needs it to read GGUF
    from transformers import AutoModelForCausalLM

    directory = resolve(real / name)
    ids = load_tokenizer(directory).encode(3 * PAGE)[:640]  # beyond Gemma's window
    assert len(ids) == 640
    reference = AutoModelForCausalLM.from_pretrained(
        str(real), gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    )
    places = np.arange(0, 640, 9)
    with torch.no_grad():
        hidden = reference.model(torch.tensor([ids]))[0][0, places]
        expected = reference.lm_head(hidden).numpy()
    decoder = load_model(directory, "float32", mesh)[0]
    hidden, _ = jax.jit(lambda graph, state, x: nnx.merge(graph, state)(x), static_argnums=0)(
        *nnx.split(decoder), jnp.asarray([ids])
    )
    logits = np.asarray(decoder.logits(hidden[:, places])[0])
    assert np.abs(logits - expected).max() < 1e-3


def colm(*arguments):
    """Run a command in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "colm_jax.cli.main", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment)


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_chat_answers_through_the_template(real, tmp_path):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompts, out = write_lines(tmp_path / "prompts.jsonl", [{"messages": question}]), tmp_path / "out.jsonl"
    options = ["--strategy", "base", "--max_new_tokens", 24, "--out", out]
    colm("generate", "--base", real / SMOL, "--prompts", prompts, *options)
    (answer,) = map(json.loads, out.read_text().splitlines())
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "eos"


def test_inspect_shows_the_file_and_its_types(real):
    shown = colm("inspect", real / GEMMA, "--json").stdout
    facts = json.loads(shown)
    facts = facts["models"][0] if "models" in facts else facts
    assert facts["directory"] == str(real / GEMMA)
    assert facts["stored_as"] == {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}
    assert facts["parameters"] == 268_098_176
    assert facts["vocabulary"]["end_of_text_tokens"] == ["<eos>"]


@pytest.mark.timeout(1800)
def test_run_trains_a_gate_end_to_end(real, tmp_path):
    cities = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima"}
    lines = [{"prompt": f"The capital of {land} is", "completion": f" {city}."} for land, city in cities.items()]
    data = write_lines(tmp_path / "train.jsonl", lines)
    dev = write_lines(tmp_path / "dev.jsonl", lines[:2])
    out = tmp_path / "run"
    models = ["--base", real / SMOL, "--expert", real / SMOL]
    # Without a penalty, 576 weights would fit six words ever better, for many steps.
    training = ["--trainable", "gate", "--gin.Training.gate_ridge=0.1"]
    few = ["--gin.Run.strategies=('defer',)", "--gin.Run.max_new_tokens=2"]
    colm("run", *models, *training, "--data", data, "--dev", dev, "--out", out, *few)
    team = json.loads((out / "team" / "colm.json").read_text())
    assert team["experts"][0]["model"] == str(real / SMOL)
    assert team["experts"][0]["revision"] is None
    assert 0 <= team["threshold"] <= 1
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "The capital of France is"}])
    colm("generate", "--base", out / "team", "--prompts", prompts, "--max_new_tokens", 4, "--out", tmp_path / "a.jsonl")
    (answer,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert "Paris" in answer["text"]

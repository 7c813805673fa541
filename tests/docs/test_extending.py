"""docs/extending.md: its code is what runs here, and what it adds is right."""

import json
import re
import shlex
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import colm_jax
from colm_jax import CoLM, register_family, register_strategy
from colm_jax.checkpoints.families import FAMILIES, TABLE, Family
from colm_jax.cli.main import main
from colm_jax.decoding.strategies import CHOOSE, definitions
from colm_jax.errors import UserError
from colm_jax.settings.strategies import STRATEGIES, Strategy
from tests.tiny import run, write_model, write_team, write_tokenizer

PAGE = Path(__file__).parents[2] / "docs/extending.md"


def section(title):
    """The code blocks of a section: (language, text)."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks, title
    return blocks


@pytest.fixture
def run_page(tmp_path, monkeypatch):
    """Writes a section's files, runs its Python and its commands in order; returns the last names in Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = [(table, dict(table)) for table in (FAMILIES, STRATEGIES, CHOOSE)]
    modules = []

    def begin(title):
        names = {}
        for language, text in section(title):
            named = re.match(r"# (\w+)\.(py|gin)\n", text)
            if named:
                (tmp_path / f"{named[1]}.{named[2]}").write_text(text)
                modules.append(named[1])
            elif language == "python":
                exec(compile(text, str(PAGE), "exec"), names)
            else:
                assert language == "bash"
                program, *arguments = shlex.split(text)
                assert program == "colm" and main(arguments) == 0
        return names

    yield begin
    for name in modules:
        sys.modules.pop(name, None)
    for table, entries in before:
        table.clear()
        table.update(entries)


@pytest.fixture
def models(tmp_path):
    """The directories and files that the page names."""
    base, expert = write_model(tmp_path / "SMALL"), write_model(tmp_path / "LARGE", seed=1)
    write_team(tmp_path / "RUN/team", base, expert)
    texts = [{"prompt": "once upon", "completion": text} for text in (" a time", " a day", " a week", " a year")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text["prompt"]}) for text in texts))


def test_the_family_of_the_page_equals_transformers(tmp_path, run_page):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}
    config = transformers.SeedOssConfig(**sizes, attention_out_bias=True, residual_dropout=0.3, bos_token_id=1)
    torch.manual_seed(0)
    reference = transformers.SeedOssForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases begin at 0
    reference.save_pretrained(tmp_path / "SEED")
    write_tokenizer(tmp_path / "SEED")
    (scored,) = run_page("A model family")["scores"]
    with torch.no_grad():
        logits = reference(torch.tensor(scored.tokens[None].astype(np.int64))).logits[0, :-1]
        wanted = torch.log_softmax(logits[:, :32], -1).numpy()[np.arange(len(scored.tokens) - 1), scored.tokens[1:]]
    np.testing.assert_allclose(scored.base_log_prob, wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (FAMILIES["llama"], "'llama' exists already"),
        (Family("gemma3", "", lambda f: None, dict, TABLE), "'gemma3' exists already"),
        (Family("llamma", "", lambda f: None, dict, TABLE), "'llamma': transformers knows no such model_type"),
    ],
)
def test_a_family_that_cannot_be_is_refused(family, message):
    with pytest.raises(UserError, match=message):
        register_family(family)


def test_the_strategy_of_the_page_writes_what_it_says(models, run_page):
    names = run_page("A decoding strategy")
    team, answer = names["team"], names["answer"]
    ids = np.array([[*answer.prompt_ids, *answer.tokens]], np.int32)
    base, expert = (np.where(team.allowed, run(each, ids)[1][0], -np.inf) for each in (team.base, *team.experts))
    at = slice(len(answer.prompt_ids) - 1, -1)
    base, expert = base[at], expert[at]

    def surest(logits):
        return logits.max(-1) - np.logaddexp.reduce(logits, axis=-1)

    by_expert = (np.array(answer.p_defer) > 0.3) & (surest(expert) > surest(base))
    assert answer.sources == by_expert.astype(int).tolist() and 0 < sum(answer.sources) < len(answer.sources)
    assert answer.tokens == np.where(by_expert, expert.argmax(-1), base.argmax(-1)).tolist()
    again = team.generate(["once upon a time"], strategy="careful", threshold=0.3, max_new_tokens=16, speculate=True)
    assert again[0].tokens == answer.tokens and again[0].sources == answer.sources
    assert len(Path("answers.jsonl").read_text().splitlines()) == 4
    assert definitions("careful", "defer").keys() == {"careful"}


@pytest.mark.parametrize(
    ("strategy", "choose", "message"),
    [
        (Strategy("defer"), CHOOSE["defer"], "'defer' exists already"),
        (Strategy("untrained"), CHOOSE["defer"], "'untrained' exists already"),
        (Strategy("a b"), CHOOSE["defer"], "a name is made of letters"),
        (Strategy("mine", calls="often"), CHOOSE["defer"], "calls must be never, deferred or always, got 'often'"),
        (Strategy("mine", by_units=True), CHOOSE["defer"], "by_units and corrects are of built-in strategies"),
        (
            Strategy("mine"),
            lambda step: step.base,
            r"must return float32 \[B, V\] and int32 \[B\], got float32\[2, 5\]",
        ),
        (Strategy("mine"), lambda step: step.experts[1], "its function fails: IndexError"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(strategy, choose, message):
    with pytest.raises(UserError, match=message):
        register_strategy(strategy, choose)
    assert "mine" not in STRATEGIES and "mine" not in CHOOSE


def test_a_registered_strategy_is_known_by_its_code(run_page):
    found = []
    for choose in (CHOOSE["base"], CHOOSE["defer"], CHOOSE["base"]):
        register_strategy(Strategy("mine"), choose)
        found.append(definitions("mine"))
        del STRATEGIES["mine"], CHOOSE["mine"]
    assert found[0] == found[2] != found[1] and definitions("defer", "base") == {}


def test_the_objective_of_the_page_trains(models, run_page, tmp_path):
    run_page("An objective")
    assert "sparing.sparing" in (tmp_path / "TRAINED/operative_config.gin").read_text()
    assert (tmp_path / "TRAINED/team/gate.safetensors").exists()


class House(BaseHTTPRequestHandler):
    """A service that knows one answer."""

    asked: list[str]

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        body = json.dumps({"text": " yes. no"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_expert_of_the_page_writes_spans(models, run_page, monkeypatch, capsys):
    House.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), House) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HOUSE_URL", f"http://127.0.0.1:{server.server_port}")
        names = run_page("An expert behind your own API")
        server.shutdown()
    team, answer = names["team"], names["answer"]
    team.experts[0]._http.close()
    assert all(text.startswith("once upon a time") for text in House.asked)
    assert answer.sent["requests"] == len(House.asked) == answer.expert_calls > 0
    written = "".join(piece for piece, source in zip(team.pieces(answer), answer.sources) if source)
    assert written and written == " yes" * written.count("yes")
    assert answer.text in capsys.readouterr().out
    with pytest.raises(UserError, match="house is greedy"):
        team.generate(["once"], temperature=0.5)
    with pytest.raises(UserError, match="house gives no log-probabilities"):
        team.score([{"text": "once upon"}])


def test_an_expert_without_the_protocols_members_is_refused(models, tmp_path):
    class Half:
        kind = "remote"

        def __init__(self, units):
            pass

    with pytest.raises(UserError, match="expert Half: Half has no name, passes, bytes, expect, check, start"):
        CoLM.from_pretrained(tmp_path / "RUN/team", [Half])


def test_the_page_names_what_is_exported():
    assert {"register_family", "register_strategy"} <= {*colm_jax.__all__}

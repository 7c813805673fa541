"""Generation as callers see it: streams, samples, stop strings, log-probabilities, and files that resume."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.checkpoints.team import load_base, make_gate, save_reference
from colm_jax.cli.main import main
from colm_jax.data.records import encode_prompt
from colm_jax.decoding.requests import Generation
from colm_jax.errors import UserError
from colm_jax.pipeline.files import write_answers, write_generations
from colm_jax.pipeline.reporting import read_generations
from colm_jax.settings.generation import Correction, GenerationSettings
from colm_jax.text.tokenizer import load_tokenizer
from tests.text.vocabularies import save
from tests.tiny import CHAT_TEMPLATE, WORDS, write_model, write_tokenizer

PROMPTS = ["abc", "hello there", "x", "quite another text", "zzz"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory, mesh):
    out = tmp_path_factory.mktemp("pair")
    plain = load_base(write_model(out / "base", seed=3), "float32", mesh)
    gate = make_gate(0.4 * np.random.default_rng(1).normal(size=(32, 1)).astype(np.float32))
    save_reference(out / "gated", plain.__class__(**{**vars(plain), "gate": gate}), "float32")
    return out / "gated", write_model(out / "expert", seed=4)


@pytest.fixture(scope="module")
def team(directories):
    base, expert = directories
    return CoLM.from_pretrained(base, [expert])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stop": ["c", "ab"]},
        {"strategy": "backtrack", "correction": Correction(bound=-1.0, sure=0.9)},
        {"strategy": "expert"},
    ],
    ids=["defer", "stop", "backtrack", "expert"],
)
def test_stream_equals_generate(team, more):
    for prompt in PROMPTS[:2]:
        (whole,) = team.generate([prompt], threshold=0.5, max_new_tokens=24, **more)
        parts = list(team.stream(prompt, threshold=0.5, max_new_tokens=24, **more))
        assert [part.token for part in parts] == whole.tokens
        assert [part.source for part in parts] == whole.sources
        assert "".join(part.text for part in parts) == whole.text
        if whole.p_defer is not None:
            np.testing.assert_allclose([part.p_defer for part in parts], whole.p_defer, atol=1e-5)


def test_a_stream_gives_a_token_as_soon_as_it_is_written(team):
    before = team.engine.base_steps
    stream = team.stream("abc", threshold=1.0, max_new_tokens=100)
    next(stream)
    stream.close()
    assert team.engine.base_steps - before == 1


def test_samples_have_random_numbers_of_their_own(team):
    three = team.generate(PROMPTS[:2], threshold=0.5, temperature=1.0, samples=3, max_new_tokens=12)
    assert [answer.sample for answer in three] == [0, 1, 2, 0, 1, 2]
    assert len({tuple(answer.tokens) for answer in three[:3]}) > 1
    one = team.generate(PROMPTS[:2], threshold=0.5, temperature=1.0, max_new_tokens=12)
    assert [answer.tokens for answer in one] == [three[0].tokens, three[3].tokens]


def test_min_p_of_one_takes_the_most_probable(team):
    settings = {"max_new_tokens": 12, "threshold": 0.5}
    greedy = team.generate(PROMPTS, **settings)
    sampled = team.generate(PROMPTS, temperature=2.0, min_p=1.0, **settings)
    assert [answer.tokens for answer in greedy] == [answer.tokens for answer in sampled]


def test_settings_of_each_prompt(team):
    thresholds, schedules, warmups = [0.2, 0.5, 0.9], ["constant", "linear", "cosine"], [0, 8, 4]
    columns = {"threshold": thresholds, "schedule": schedules, "warmup": warmups, "max_new_tokens": [5, 9, 12]}
    together = team.generate(PROMPTS[:3], **columns)
    for i, answer in enumerate(together):
        (alone,) = team.generate([PROMPTS[i]], **{name: values[i] for name, values in columns.items()})
        assert (answer.tokens, answer.sources) == (alone.tokens, alone.sources)
        np.testing.assert_allclose(answer.threshold, alone.threshold, atol=1e-6)


def test_log_probabilities_are_those_of_scoring(team):
    for answer in team.generate(PROMPTS, threshold=0.5, max_new_tokens=12, log_probs=True):
        (scored,) = team.score([{"input_ids": [*answer.prompt_ids, *answer.tokens]}])
        start = len(answer.prompt_ids) - 1
        expected = np.column_stack([scored.base_log_prob, scored.expert_log_probs])[start:]
        np.testing.assert_allclose(np.array(answer.log_probs).reshape(expected.shape), expected, atol=1e-5)


def test_keywords_replace_settings_and_unknown_ones_are_refused(team):
    settings = GenerationSettings(threshold=0.5, max_new_tokens=12)
    changed = team.generate(PROMPTS[:2], settings=settings, max_new_tokens=3)
    assert changed == team.generate(PROMPTS[:2], threshold=0.5, max_new_tokens=3)
    assert [token.token for token in team.stream(PROMPTS[0], settings=settings, max_new_tokens=3)] == changed[0].tokens
    with pytest.raises(TypeError, match="no setting of generation: max_tokens"):
        team.generate(PROMPTS, max_tokens=3)
    with pytest.raises(TypeError):
        team.generate(PROMPTS, 0.5)
    with pytest.raises(UserError, match="stream writes one answer"):
        team.stream(PROMPTS[0], samples=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": -1}, "warmup"),
        ({"schedule": ["linear"]}, "1 values for 5 prompts"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_p": 1.5}, "min_p"),
        ({"samples": 0}, "samples"),
        ({"stop": [""]}, "stop must not hold an empty string"),
        ({"stop": [3]}, "stop must be a string"),
        ({"stop": 5}, "stop must be a string"),
        ({"stop_token_ids": 2}, "stop_token_ids must be a list"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": ["2"]}, "stop_token_ids"),
        ({"stop_token_ids": [4096]}, "4096 is no token"),
        ({"threshold": 2.0}, "threshold"),
    ],
)
def test_wrong_settings_are_refused(team, changes, message):
    with pytest.raises(UserError, match=message):
        team.generate(PROMPTS, **{"threshold": 0.5, **changes})


# Text: models that write any byte, whatever character it is part of.


@pytest.fixture(scope="module", params=["bytes", "llama", "byte-level"])
def writer(request, tmp_path_factory):
    directory = write_model(tmp_path_factory.mktemp("writer") / request.param, seed=5, vocab_size=328)
    save(request.param, directory)
    return CoLM.from_pretrained(directory, [])


@pytest.mark.parametrize(
    "stop", [None, ["\N{REPLACEMENT CHARACTER}"], ["<|turn|>", "a", "é"]], ids=["", "broken", "turn"]
)
def test_stream_equals_generate_for_any_bytes_and_pieces_are_the_text(writer, stop):
    settings = {"strategy": "base", "max_new_tokens": 48, "temperature": 3.0, "stop": stop}
    for seed in range(3):
        (whole,) = writer.generate(["né 中"], seed=seed, **settings)
        parts = list(writer.stream("né 中", seed=seed, **settings))
        assert [part.token for part in parts] == whole.tokens
        assert "".join(part.text for part in parts) == whole.text
        assert [part.text for part in parts] == writer.pieces(whole)
        assert not any(text in whole.text for text in stop or [])


@pytest.mark.parametrize("writer", ["bytes"], indirect=True)
def test_stop_tokens_end_the_text(writer):
    (whole,) = writer.generate(["a"], strategy="base", max_new_tokens=40, temperature=3.0)
    place = next(i for i, token in enumerate(whole.tokens) if i > 3 and token not in whole.tokens[:i])
    settings = {"strategy": "base", "max_new_tokens": 40, "temperature": 3.0, "stop_token_ids": [whole.tokens[place]]}
    (stopped,) = writer.generate(["a"], **settings)
    assert stopped.tokens == whole.tokens[: place + 1] and stopped.finish_reason == "stop"
    assert whole.text.startswith(stopped.text) and stopped.text == "".join(writer.pieces(stopped))
    assert "".join(token.text for token in writer.stream("a", **settings)) == stopped.text


# Files.


def write(team, path, progress=lambda done: None, **settings):
    prompts = [{"prompt": prompt} for prompt in PROMPTS]
    chosen = GenerationSettings("defer", 0.5, **{"max_new_tokens": 12, "batch_size": 2, **settings})
    return write_answers(path, team, prompts, list("abcde"), chosen, "models", progress=progress)


class Killed(Exception):
    """The process is gone."""


def killed_at(count):
    def progress(done):
        if done >= count:
            raise Killed

    return progress


def test_a_stopped_run_resumes(team, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    write(team, whole, temperature=1.0, samples=2)
    with pytest.raises(Killed):
        write(team, stopped, killed_at(5), temperature=1.0, samples=2)
    part = tmp_path / "stopped.jsonl.part"
    assert part.exists() and not stopped.exists()
    part.write_bytes(part.read_bytes()[:-7])  # and the last line was half written
    asked = []
    original = team.answers
    monkeypatch.setattr(
        team, "answers", lambda prompts, *rest, **more: (asked.extend(prompts), original(prompts, *rest, **more))[1]
    )
    lines = write(team, stopped, temperature=1.0, samples=2)
    assert 0 < len(asked) < len(PROMPTS)
    assert stopped.read_bytes() == whole.read_bytes()
    assert [(line["id"], line.get("sample", 0)) for line in lines] == [(name, j) for name in "abcde" for j in (0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.jsonl", "whole.jsonl"]


def test_prompts_of_a_text_file_are_answered_and_shown(directories, tmp_path, capsys):
    base, expert = map(str, directories)
    prompts, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    prompts.write_text("once upon<|endoftext|>\na time\n", encoding="utf-8")
    command = ["generate", "--base", base, "--expert", expert, "--prompts", str(prompts), "--out", str(out)]
    assert main([*command, "--max_new_tokens", "3"]) == 0
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == ["once upon", "a time"]
    capsys.readouterr()
    assert main(["show", str(out), "--base", base]) == 0
    assert "once upon" in capsys.readouterr().out


def test_generation_lines_hold_what_their_prompts_are_made_of(team, tmp_path):
    """So that the models read the same prompt again for the report."""
    template = "{% for t in tools or [] %}{{ t['name'] }}{% endfor %}" + CHAT_TEMPLATE
    template = template.replace("m['content']", "(m['content'] or m['tool_calls'][0]['name'])")
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "chat", chat_template=template))
    calls = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    messages = [{"role": "user", "content": "a"}, calls, {"role": "tool", "content": "b"}]
    records = [{"messages": messages, "tools": [{"name": "q"}]}, {"messages": messages[:1]}, {"text": "ab"}]
    ids = [encode_prompt(record, tokenizer, "here") for record in records]
    answers = [Generation(prompt, "x", [WORDS.index("x")], [0], None, [0.5], "length", 0) for prompt in ids]
    write_generations(tmp_path / "a.jsonl", records, answers, list("abc"))
    read = read_generations(tmp_path / "a.jsonl", SimpleNamespace(tokenizer=tokenizer))
    assert [answer.prompt_ids for answer in read] == ids
    assert main(["show", str(tmp_path / "a.jsonl"), "--base", str(tmp_path / "chat")]) == 0


def test_other_settings_start_over(team, tmp_path):
    with pytest.raises(Killed):
        write(team, tmp_path / "out.jsonl", killed_at(2))
    write(team, tmp_path / "out.jsonl", max_new_tokens=6)
    write(team, tmp_path / "other.jsonl", max_new_tokens=6)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "other.jsonl").read_bytes()


def test_the_command_takes_every_setting(directories, tmp_path, capsys):
    base, expert = map(str, directories)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:2]))
    command = ["generate", "--base", base, "--expert", expert, "--prompts", str(prompts), "--out", str(out)]
    more = ["--samples", "2", "--min_p", "0.1", "--temperature", "1", "--log_probs", "--max_new_tokens", "6"]
    more += ["--stop", "zq", "--stop_token_ids", "0", "1"]
    assert main([*command, *more, "--strategy", "lookahead", "--gin.Correction.watch=2", "--threshold", "0.5"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["id"], line.get("sample", 0)) for line in lines] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    for line in lines:
        assert np.array(line["log_probs"]).shape == (len(line["tokens"]), 2)
    assert main([*command, "--gin.Correction.watch=0"]) == 2
    assert "Correction.watch must be a whole number from 1" in capsys.readouterr().err

"""Runs whose expert is an endpoint: scored by its log-probabilities, or asked for its own spans where it has none."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from colm_jax.checkpoints.outline import outline_team
from colm_jax.data.tokens import open_tokens
from colm_jax.errors import UserError
from colm_jax.pipeline.run import run_pipeline
from colm_jax.scoring import load_scores
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import Training
from colm_jax.storage import read_json, read_lines
from tests.experts.remote.conftest import PATIENT, WORDS
from tests.experts.remote.fake import serving
from tests.tiny import write_model

TEXTS = ["the cat sat on the mat, and the cat sat.", "a cat, a mat, 12 and 12."]
LINES = [{"prompt": "say", "completion": f" {text}"} for text in TEXTS]


@pytest.fixture
def files(tmp_path):
    """A base with a token per character, and a data file."""
    base = write_model(tmp_path / "base", words=WORDS, vocab_size=len(WORDS), context=128)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in LINES * 4))
    return base, data


def config(files, server, training, **settings):
    base, data = files
    remote = RemoteSettings(**PATIENT, **settings)
    return RunConfig(base=str(base), experts=(server.address,), data=str(data), training=training, remote=remote)


def test_an_endpoint_is_scored_and_its_team_answers(files, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[patterns]\nANIMAL = "cat"\n')
    training = Training(objective="marginal", trainable="gate")
    with serving() as server:
        settings = config(files, server, training, redact=str(rules), ledger=str(tmp_path / "ledger.jsonl"))
        settings = RunConfig(**{**vars(settings), "test": str(files[1]), "max_new_tokens": 12})
        run = run_pipeline(settings, tmp_path / "run")
    sent = [body["prompt"] for body in server.asked() if isinstance(body.get("prompt"), list)]
    texts = [text for prompts in sent for text in prompts if str(text).startswith("say")]
    assert texts and not any("cat" in text for text in texts)  # pseudonyms stand in for it
    assert len(read_lines(tmp_path / "ledger.jsonl")) >= len(texts)
    found = run.evaluation["bits_per_byte"]
    assert found["expert-1"] > 0 and found["team"] <= max(found["base"], found["expert-1"]) + 1e-6
    lines = read_lines(tmp_path / "run/generate/defer.jsonl")
    assert all(set(line["sent"]) == {"requests", "characters"} for line in lines)
    sent = [line["sent"] for file in (tmp_path / "run/generate").glob("*.jsonl") for line in read_lines(file)]
    counts = [sum(each[key] for each in sent) for key in ("characters", "requests")]
    assert counts[1] > 0
    report = (tmp_path / "run/report/report.md").read_text()
    assert "{:,} characters in {:,} requests; 0 expert calls lost".format(*counts) in report
    facts = read_json(tmp_path / "run/team/colm.json")
    assert facts["experts"][0]["model"] == server.address and facts["spans"] == "text"
    assert outline_team(tmp_path / "run/team").kinds == ("remote",)
    assert "key" not in json.dumps(facts).lower()


def test_an_endpoint_without_scores_gives_weak_labels_at_a_sample_of_places(files, tmp_path):
    training = Training(objective="weak", trainable="gate")
    with serving(echo=False) as server:
        settings = config(files, server, training, positions=30)
        run = run_pipeline(settings, tmp_path / "run", until="train")
    examples = open_tokens(tmp_path / "run/tokens")
    (scores,) = [load_scores(tmp_path / "run/scores/expert-1", examples)]
    known, counted = np.concatenate(scores.known), examples.counted()
    assert 0 < known.sum() <= 30 + 1 and not known[~counted].any()
    assert np.isnan(np.concatenate(scores.log_prob)).all()
    kernel = load_file(run.stages["train"].directory / "team/gate.safetensors")["gate.weight"]
    assert np.isfinite(kernel).all() and np.abs(kernel).max() > 0


@pytest.mark.parametrize("training", [Training(trainable="gate"), Training(objective="weak", trainable="lora")])
def test_an_endpoint_without_scores_is_refused_where_they_are_needed(files, tmp_path, training):
    with serving(echo=False) as server, pytest.raises(UserError, match="gives no log-probabilities of prompts; train"):
        run_pipeline(config(files, server, training), tmp_path / "run")


def test_the_gate_does_not_depend_on_places_that_were_not_asked(files, tmp_path):
    """Labels of other places are masked: with all places asked, fewer texts give the fit of those texts."""
    training = Training(objective="weak", trainable="gate")
    kernels = []
    with serving(echo=False) as server:
        for positions in (10**6, 10**6 + 1):
            run = run_pipeline(config(files, server, training, positions=positions), tmp_path / f"{positions}")
            kernels.append(load_file(run.stages["train"].directory / "team/gate.safetensors")["gate.weight"])
    np.testing.assert_array_equal(*kernels)

"""Logits equal those of transformers over the whole context."""

import json

import numpy as np
import pytest

from colm_jax.checkpoints.huggingface import load_model, read_config, save_tensors
from tests.models.make_golden import GOLDEN, SHARED_MODELS, TINY_CONFIG, random_tokens, tiny_weights
from tests.tiny import run

TOLERANCE = 1e-4


def logits_of(directory, mesh, tokens):
    """[T, V], or [T, V + 1] for the original's format, its last column from the deferral row."""
    words = read_config(directory).vocab_size - 1 if directory.name.endswith("-colm") else None
    decoder, deferral = load_model(directory, "float32", mesh, tokenizer_size=words)
    hidden, logits = run(decoder, tokens[None])
    if deferral is not None:
        logits = np.concatenate([logits, (hidden @ deferral.gate)[..., None]], axis=-1)
    return np.asarray(logits[0])


def write_tiny(directory):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(TINY_CONFIG))
    save_tensors(tiny_weights(), directory / "model.safetensors")
    return directory


@pytest.fixture(params=[*SHARED_MODELS, "tiny"])
def directory(request, tmp_path):
    if request.param == "tiny":
        return write_tiny(tmp_path / "tiny")
    return request.getfixturevalue("shared") / "models" / request.param


def test_logits_equal_the_golden_ones(directory, mesh):
    with np.load(GOLDEN / f"{directory.name}.npz") as golden:
        logits = logits_of(directory, mesh, golden["tokens"])[golden["positions"]]
        np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCE)


def test_golden_logits_reach_the_end_of_the_context(directory):
    with np.load(GOLDEN / f"{directory.name}.npz") as golden:
        assert golden["positions"][-1] == len(golden["tokens"]) - 1 == read_config(directory).context - 1


def test_logits_equal_a_live_transformers_model(directory, mesh):
    torch = pytest.importorskip("torch", reason="live parity needs PyTorch; the golden logits stand for it")
    from transformers import LlamaForCausalLM

    config = read_config(directory)
    tokens = np.roll(random_tokens(config.vocab_size, config.context), 5)
    with torch.no_grad():
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        expected = model(torch.tensor(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits_of(directory, mesh, tokens), expected, rtol=0, atol=TOLERANCE)

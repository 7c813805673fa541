"""Logits of pretrained models equal those of transformers over the whole context."""

import numpy as np
import pytest

from colm_jax.checkpoints.huggingface import load_model, read_config
from tests.models.make_golden import GOLDEN, SHARED_MODELS, random_tokens, transformers_logits
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


@pytest.fixture(params=SHARED_MODELS)
def directory(request, shared):
    return shared / "models" / request.param


def test_logits_equal_the_golden_ones(directory, mesh):
    with np.load(GOLDEN / f"{directory.name}.npz") as golden:
        logits = logits_of(directory, mesh, golden["tokens"])[golden["positions"]]
        np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCE)


def test_golden_logits_reach_the_end_of_the_context(directory):
    with np.load(GOLDEN / f"{directory.name}.npz") as golden:
        assert golden["positions"][-1] == len(golden["tokens"]) - 1 == read_config(directory).context - 1


def test_logits_equal_a_live_transformers_model(directory, mesh):
    pytest.importorskip("torch", reason="live parity needs PyTorch; the golden logits stand for it")
    config = read_config(directory)
    tokens = np.roll(random_tokens(config.vocab_size, config.context), 5)
    expected = transformers_logits(directory, tokens)
    np.testing.assert_allclose(logits_of(directory, mesh, tokens), expected, rtol=0, atol=TOLERANCE)

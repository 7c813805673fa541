"""Candidates of each model at each position, against whole logits of each model."""

from dataclasses import replace

import numpy as np
from scipy.special import log_softmax, logsumexp

from colm_jax.decoding.candidates import CandidateReader
from tests.compilations import counted
from tests.decoding.team import WORDS, decoders, engine_of, kernel, prompts


def expected(tokens, experts):
    """Log-probabilities [T, M+2, V] of base, experts and team, and the gate's logits [T, M]."""
    found, gate = [], None
    for decoder in decoders()[: experts + 1]:
        hidden, _ = decoder.unstacked()(np.array([tokens], np.int32))
        logits = np.asarray(decoder.logits(hidden[0]), np.float64)[:, :32]
        logits[:, WORDS:] = -np.inf
        found.append(log_softmax(logits, axis=1))
        gate = np.asarray(hidden[0], np.float64) @ kernel(experts) if gate is None else gate
    writers = log_softmax(np.column_stack([np.zeros(len(tokens)), gate]), axis=1)
    team = logsumexp(np.stack(found, 1) + writers[..., None], axis=1)
    return np.stack([*found, team], 1), gate


def test_candidates_are_those_of_whole_logits_in_any_number_of_chunks():
    reader = CandidateReader(engine_of(2))
    (first, *texts) = prompts([128, 1, 30, 127], seed=4)
    reader.read(first)
    with counted() as compiled:
        found = [reader.read(text) for text in texts]
    assert compiled == [0]
    for text, got in zip(texts, found):
        want, gate = expected(text, 2)
        np.testing.assert_allclose(got.gate_logits, gate, atol=1e-4)
        own = np.stack([want[t, :, text[t + 1]] for t in range(len(text) - 1)]) if len(text) > 1 else np.zeros((0, 4))
        np.testing.assert_allclose(got.log_probs[:-1], own, atol=1e-4)
        assert got.top_ids.shape == (len(text), 4, 20) and not got.log_probs[-1].any()
        order = np.sort(want, axis=2)[..., ::-1][..., :20]
        np.testing.assert_allclose(got.top_log_probs, order, atol=1e-4)
        np.testing.assert_allclose(np.take_along_axis(want, got.top_ids, 2), got.top_log_probs, atol=1e-4)
        chosen = np.take_along_axis(want[:, -1], want[:, :-1].argmax(2), axis=1)
        np.testing.assert_allclose(got.team_log_probs, chosen, atol=1e-4)


def test_a_base_alone_is_the_team():
    (text,) = prompts([150 - 30], seed=1)
    found = CandidateReader(engine_of(0)).read(text)
    np.testing.assert_allclose(found.log_probs[:-1, 0], found.log_probs[:-1, 1])
    assert found.gate_logits.shape == (120, 0) and found.team_log_probs.shape == (120, 1)


def test_without_a_gate_the_team_is_the_base():
    engine = engine_of(1)
    before = engine.graphs
    engine.graphs = replace(before, gate=None)
    try:
        found = CandidateReader(engine).read(prompts([20])[0])
    finally:
        engine.graphs = before
    np.testing.assert_array_equal(found.log_probs[:, -1], found.log_probs[:, 0])
    np.testing.assert_array_equal(found.top_ids[:, -1], found.top_ids[:, 0])

"""Candidates are the model's own distribution at each written token, whatever else stands in the batch."""

import numpy as np
import pytest
from scipy.special import log_softmax

from colm_jax.scoring.candidates import find_candidates
from tests.tiny import run, tiny_decoder

WORDS = 28  # the shared vocabulary is smaller than the head


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder()


def test_candidates_are_the_plain_distributions(decoder):
    rng = np.random.default_rng(0)
    lengths = [(1, 4), (7, 0), (3, 1), (1, 0), (5, 20)]
    prompts = [rng.integers(0, WORDS, p).tolist() for p, _ in lengths]
    answers = [rng.integers(0, WORDS, a).tolist() for _, a in lengths]
    found = find_candidates(decoder, prompts, answers, np.arange(32) < WORDS)
    for prompt, answer, views in zip(prompts, answers, found, strict=True):
        assert views.tokens.shape == views.probabilities.shape == (len(answer), 3)
        if not answer:
            continue
        logits = np.asarray(run(decoder, np.array([[*prompt, *answer]]))[1][0], np.float64)
        log_p = log_softmax(logits[len(prompt) - 1 : -1, :WORDS], axis=-1)
        order = np.argsort(-log_p, axis=-1)[:, :3]
        np.testing.assert_array_equal(views.tokens, order)
        np.testing.assert_allclose(views.probabilities, np.exp(np.take_along_axis(log_p, order, -1)), atol=1e-6)
        np.testing.assert_allclose(views.written, np.exp(log_p[np.arange(len(answer)), answer]), atol=1e-6)
        np.testing.assert_allclose(views.entropy, -(np.exp(log_p) * log_p).sum(-1), atol=1e-5)


def test_few_shared_words_make_few_candidates(decoder):
    (views,) = find_candidates(decoder, [[1]], [[0, 1]], np.arange(32) < 2)
    assert views.tokens.shape == (2, 2)
    np.testing.assert_allclose(views.probabilities.sum(-1), 1, atol=1e-6)


def test_an_empty_prompt_is_refused(decoder):
    with pytest.raises(ValueError, match="at least one token"):
        find_candidates(decoder, [[]], [[1]], np.ones(32, bool))

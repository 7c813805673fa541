"""`backtrack` and `lookahead` against a recursion that knows neither caches nor lengths that are reset."""

import numpy as np
import pytest

from colm_jax.checkpoints.team import make_gate
from colm_jax.decoding.engine import Engine
from colm_jax.settings.generation import Correction
from tests.decoding.oracle import read
from tests.decoding.oracle_correction import Corrector, memory
from tests.decoding.team import (
    CONTEXT,
    EOS,
    WORDS,
    by_oracle,
    decoders,
    engine_of,
    kernel,
    limit,
    prompts,
    request,
    run,
    same,
)
from tests.models.mixed import mixed_decoder

EAGER = Correction(candidates=3, watch=4, bound=-4.0, sure=0.2)
NEVER_SURE = Correction(candidates=4, watch=2, bound=-2.5, sure=1.0)


@pytest.fixture(scope="module")
def behind():
    base, expert, _ = decoders()

    def read_all(text):
        hidden, logits = read(base, list(text))
        return [logits[:WORDS], read(expert, list(text))[1][:WORDS]], hidden @ kernel(1)

    return memory(read_all)


@pytest.mark.parametrize(
    ("strategy", "correction"),
    [("backtrack", EAGER), ("backtrack", NEVER_SURE), ("lookahead", EAGER), ("lookahead", NEVER_SURE)],
    ids=["backtrack", "backtrack-unsure", "lookahead", "lookahead-unsure"],
)
def test_trials_equal_the_oracle(behind, strategy, correction):
    requests = [request(p, strategy, new=66 + i, key=i) for i, p in enumerate(prompts([2, 30, 11, 44, 5, 20], seed=2))]
    found = run(engine_of(1), requests, 4, correction=correction)
    taken_back, changed, wasted = 0, 0, 0
    for each, answer in zip(requests, found):
        corrector = Corrector(behind, correction, strategy == "lookahead", 0.5, limit(each), EOS)
        assert list(zip(answer.tokens, answer.sources)) == corrector.write(each.prompt)
        taken_back += corrector.taken_back
        changed += answer.tokens != by_oracle(request(each.prompt, new=each.settings.max_new_tokens))[0]
        wasted += answer.expert_calls - sum(s > 0 for s in answer.sources)
    assert taken_back > 10
    assert changed > 0
    assert wasted > 10  # calls for what was retracted
    mates = run(engine_of(1), requests[::-1], 4, correction=correction)[::-1]
    assert same(mates, found)


def test_latent_caches_and_chunks_are_retracted_too():
    base, expert = mixed_decoder("latent attention, two runs"), mixed_decoder("chunks, three runs")
    engine = Engine(base, make_gate(kernel(1)), [expert], np.arange(32) < WORDS, EOS, CONTEXT)

    def read_all(text):
        hidden, logits = read(base, list(text))
        return [logits[:WORDS], read(expert, list(text))[1][:WORDS]], hidden @ kernel(1)

    requests, taken_back = [request(p, "backtrack", new=14, key=i) for i, p in enumerate(prompts([2, 13, 5]))], 0
    behind = memory(read_all)
    for each, answer in zip(requests, run(engine, requests, 2, correction=EAGER)):
        corrector = Corrector(behind, EAGER, False, 0.5, limit(each), EOS)
        assert list(zip(answer.tokens, answer.sources)) == corrector.write(each.prompt)
        taken_back += corrector.taken_back
    assert taken_back > 0

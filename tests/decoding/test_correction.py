"""`backtrack` and `lookahead` against a recursion that knows neither caches nor lengths that are reset."""

import pytest

from colm_jax.settings.generation import Correction
from tests.decoding.oracle import read
from tests.decoding.oracle_correction import Corrector, memory
from tests.decoding.team import EOS, WORDS, by_oracle, decoders, engine_of, kernel, limit, prompts, request, run, same

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

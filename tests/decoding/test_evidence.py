"""What the loop keeps of each token equals what whole passes over the finished answer say, and changes no answer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.decoding.risk import EVIDENCE, Risk, continues, marks
from colm_jax.decoding.session import Session
from colm_jax.models.uncertainty import uncertainty
from tests.decoding.team import CONTEXT, WORDS, answers, decoders, engine_of, kernel, prompts, request, run
from tests.decoding.units_team import make_team
from tests.tiny import write_model

TEXTS = prompts((5, 9, 3))
TOTAL = Risk(
    (0.0,) * 9, (1.0,) * 9, (-30.0,) * 9, (30.0,) * 9, (0.3, 0.0, 0.5, 0.0, 0.0, -0.5, 0.0, 0.4, -0.3), -1.0, 0.3
)


def distributions(decoder, tokens):
    """Log-probabilities after each token, over the shared vocabulary."""
    hidden, _ = decoder(jnp.array([tokens], jnp.int32))
    allowed = jnp.arange(32) < WORDS
    return hidden[0], jax.nn.log_softmax(decoder.logits(hidden[0], allowed), axis=-1)


def expected(answer, experts, greedy):
    """The evidence of an answer, from one pass of each model over all of it."""
    base, *others = decoders()
    ids = answer.prompt_ids + answer.tokens
    first = len(answer.prompt_ids) - 1
    hidden, own = distributions(base, ids)
    by_model = [own, *(distributions(other, ids)[1] for other in others[:experts])]
    rows = []
    for i, (token, source) in enumerate(zip(answer.tokens, answer.sources)):
        place = first + i
        gate = np.asarray(hidden[place], np.float64) @ kernel(experts)
        odds = np.log(np.exp(gate).sum())
        ours, writer = (np.asarray(uncertainty(by_model[m][place])) for m in (0, source))
        agrees = float(own[place].argmax() == token) if greedy else float(not source)
        rows.append([odds, source > 0, *ours, agrees, by_model[source][place][token], writer[0], writer[2]])
    return np.array(rows, np.float32).reshape(-1, len(EVIDENCE))


def observed(engine, requests, **shared):
    """Answers with their evidence."""
    settings = replace(requests[0].settings, batch_size=8, **shared)
    session = Session(engine, settings, evidence=True)
    numbers = [session.submit(each) for each in requests]
    found = dict(session.drain())
    return [found[number] for number in numbers]


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize("speculate", [False, True])
def test_evidence_equals_that_of_whole_passes(experts, speculate):
    engine = engine_of(experts)
    requests = [request(text, key=i) for i, text in enumerate(TEXTS)]
    found = observed(engine, requests, speculate=speculate)
    assert {source for answer in found for source in answer.sources} >= {0, 1}
    for answer in found:
        np.testing.assert_allclose(answer.evidence, expected(answer, experts, greedy=True), atol=2e-4)


def test_of_sampled_tokens_the_evidence_is_that_of_the_unchanged_distribution():
    requests = [request(text, key=i, temperature=1.5, seed=3) for i, text in enumerate(TEXTS)]
    for answer in observed(engine_of(1), requests, speculate=False):
        theirs = expected(answer, 1, greedy=False)
        by_base = np.array(answer.sources) == 0
        np.testing.assert_allclose(answer.evidence[by_base], theirs[by_base], atol=2e-4)
        kept = [i for i, name in enumerate(EVIDENCE) if name != "agrees"]
        np.testing.assert_allclose(answer.evidence[:, kept], theirs[:, kept], atol=2e-4)


def test_keeping_evidence_changes_no_answer():
    requests = [request(text, key=i) for i, text in enumerate(TEXTS)]
    plain, seen = run(engine_of(1), requests), observed(engine_of(1), requests)
    assert [(a.tokens, a.sources, a.expert_calls) for a in plain] == [
        (a.tokens, a.sources, a.expert_calls) for a in seen
    ]
    assert all(answer.evidence is None and answer.risk is None and answer.check is None for answer in plain)


@pytest.mark.parametrize("strategy", ["compose", "backtrack"])
def test_the_log_probability_is_that_of_the_written_token(strategy):
    requests = [request(text, strategy, key=i) for i, text in enumerate(TEXTS)]
    found = observed(engine_of(1), requests, speculate=False)
    column = EVIDENCE.index("log_prob")
    for answer in found:
        ids, first = answer.prompt_ids + answer.tokens, len(answer.prompt_ids) - 1
        hidden, own = distributions(decoders()[0], ids)
        expert = distributions(decoders()[1], ids)[1]
        p = 1 / (1 + np.exp(-np.asarray(hidden, np.float64) @ kernel(1)))
        mixed = np.logaddexp(np.log(1 - p) + own, np.log(p) + expert)
        for i, token in enumerate(answer.tokens):
            place, deferred = first + i, answer.p_defer[i] > 0.5
            if strategy == "compose":
                expected = (mixed if deferred else own)[place, token]
            else:
                expected = (expert if deferred else own)[place, token]
            assert answer.evidence[i, column] == pytest.approx(float(expected), abs=2e-4)


def test_strategies_other_than_that_of_the_risk_have_no_marks(monkeypatch):
    engine = engine_of(1)
    monkeypatch.setattr(engine, "risk", TOTAL)
    for strategy in ("base", "compose"):
        assert all(answer.check is None for answer in answers(engine, TEXTS, strategy, new=5))
    (answer,) = answers(engine, TEXTS[:1], "defer", new=5)
    assert len(answer.risks) == len(answer.tokens) and 0 < answer.risk < 1


@pytest.fixture(scope="module")
def shared_directories(tmp_path_factory):
    where = tmp_path_factory.mktemp("evidence")
    return [str(write_model(where / name, seed=seed)) for seed, name in enumerate(("base", "expert"))]


def test_a_guest_that_shares_the_tokenizer_has_the_evidence_of_a_resident_expert(mesh, shared_directories):
    base, expert = shared_directories
    found = []
    for spans in ("auto", "tokens"):
        team = make_team(mesh, base, [expert], spans=spans, spread=2.0)
        texts = ["abc", "hello there"]
        found.append(team.generate(texts, max_new_tokens=20, threshold=0.5, evidence=True, speculate=False))
    assert any(1 in answer.sources for answer in found[0])
    for one, two in zip(*found):
        assert (one.tokens, one.sources) == (two.tokens, two.sources)
        np.testing.assert_allclose(one.evidence, two.evidence, atol=2e-4)


def test_streamed_marks_are_those_of_the_whole_answer(mesh, shared_directories):
    base, expert = shared_directories
    team = make_team(mesh, base, [expert], spread=2.0)
    team.engine.risk = replace(TOTAL, mark_above=0.5)
    (answer,) = team.generate(["hello there"], max_new_tokens=30, threshold=0.5)
    tokens = list(team.stream("hello there", max_new_tokens=30, threshold=0.5))
    np.testing.assert_allclose([token.risk for token in tokens], answer.risks, atol=1e-6)
    assert marks([token.text for token in tokens], [token.check or 0.0 for token in tokens], 0.0) == answer.check
    assert answer.check and any(token.check is None for token in tokens)


def test_spans_of_a_guest_have_their_evidence_at_the_first_token(mesh, tmp_path):
    base = write_model(tmp_path / "base", seed=0)
    expert = write_model(tmp_path / "expert", seed=1)
    team = make_team(mesh, str(base), [str(expert)], spans="text", spread=2.0)
    own = {"strategy": "random", "rate": 0.8, "max_new_tokens": CONTEXT // 2, "temperature": 1.5}
    (answer,) = team.generate(["abc de"], evidence=True, **own)
    by_expert = np.array(answer.sources) > 0
    assert by_expert.any() and not continues(answer.evidence)[~by_expert].any()
    first = by_expert & ~continues(answer.evidence)
    assert np.isfinite(answer.evidence[first]).all()
    assert (answer.evidence[first, EVIDENCE.index("log_prob")] <= 0).all()

"""The loop against the slow oracle and the original's traces; caches, batches, counts of expert passes."""

import json

import jax
import numpy as np
import pytest

from colm_jax.checkpoints.team import load_base, make_gate
from colm_jax.decoding.correction import Correction
from colm_jax.decoding.engine import Engine, Options, Request, pass_sizes
from colm_jax.decoding.parking import Parking
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.schedule import SCHEDULES
from colm_jax.decoding.strategies import STRATEGIES
from tests.decoding.oracle import correct, decode
from tests.tiny import tiny_decoder

EOS = (2,)
CONTEXT = 128
WORDS = 30  # the shared vocabulary is smaller than either head


@pytest.fixture(scope="module")
def models():
    base = tiny_decoder(seed=0)
    experts = [tiny_decoder(seed=1, width=48, heads=6, kv_heads=3, depth=3, vocab_size=34), tiny_decoder(seed=2)]
    kernels = {m: 0.4 * np.random.default_rng(m).normal(size=(32, m)).astype(np.float32) for m in (1, 2)}
    return base, experts, kernels


@pytest.fixture(scope="module")
def engine_of(models):
    base, experts, kernels = models
    made = {}

    def make(count: int) -> Engine:
        if count not in made:
            allowed = np.arange(32) < WORDS
            made[count] = Engine(base, make_gate(kernels[count]), experts[:count], allowed, EOS, CONTEXT)
        return made[count]

    return make


def prompts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(3, WORDS, n - 1).tolist()] for n in lengths]


def answers(engine, texts, strategy, threshold=0.5, new=40, schedule="constant", warmup=0, **options):
    number = SCHEDULES.index(schedule)
    requests = [Request(p, threshold, new, i, schedule=number, warmup=warmup) for i, p in enumerate(texts)]
    found = dict(engine.run(requests, Options(STRATEGIES[strategy], Sampling(), **options)))
    return [found[i] for i in range(len(texts))]


def check(models, engine, count, texts, strategy, threshold=0.5, new=40, **schedule):
    base, experts, kernels = models
    found = answers(engine, texts, strategy, threshold, new, **schedule)
    for prompt, answer in zip(texts, found):
        tokens, sources, rates = decode(
            base,
            kernels[count],
            experts[:count],
            prompt,
            strategy=strategy,
            threshold=threshold,
            new=min(new, CONTEXT - len(prompt)),
            eos=EOS,
            words=WORDS,
            **schedule,
        )
        assert answer.tokens == tokens
        assert answer.sources == sources
        if STRATEGIES[strategy].needs_gate:
            np.testing.assert_allclose(answer.p_defer, rates, atol=1e-4)
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.5, 0.65, 1.0])
def test_defer_equals_the_oracle(models, engine_of, threshold):
    found = check(models, engine_of(1), 1, prompts([1, 3, 17, 40, 90]), "defer", threshold)
    rate = np.mean([s > 0 for a in found for s in a.sources])
    assert {0.0: rate == 1, 1.0: rate == 0}.get(threshold, 0 < rate < 1)


@pytest.mark.parametrize("strategy", ["compose", "base", "expert", "confidence", "contrastive", "contrastive_v2"])
def test_strategies_equal_the_oracle(models, engine_of, strategy):
    check(models, engine_of(1), 1, prompts([2, 20, 33]), strategy, 0.5, 24)


@pytest.mark.parametrize("strategy", ["defer", "compose", "confidence", "proxy"])
def test_two_experts_equal_the_oracle(models, engine_of, strategy):
    found = check(models, engine_of(2), 2, prompts([2, 25]), strategy, 0.5, 24)
    if strategy == "defer":
        assert {s for a in found for s in a.sources} == {0, 1, 2}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential"])
def test_schedules_equal_the_oracle(models, engine_of, schedule):
    check(models, engine_of(1), 1, prompts([5, 9]), "defer", 0.4, 24, schedule=schedule, warmup=12)


def test_an_answer_does_not_depend_on_its_batch_mates(engine_of):
    texts = prompts([4, 70, 12, 33, 21, 8, 50], seed=3)
    alone = [answers(engine_of(1), [text], "defer", 0.5)[0] for text in texts]
    together = answers(engine_of(1), texts, "defer", 0.5, batch_size=7)
    turned = answers(engine_of(1), texts[::-1], "defer", 0.5, batch_size=4)[::-1]
    for one, two, three in zip(alone, together, turned):
        assert one.tokens == two.tokens == three.tokens
        assert one.sources == two.sources == three.sources
        assert one.expert_calls == two.expert_calls == three.expert_calls
        np.testing.assert_allclose(one.p_defer, two.p_defer, atol=1e-5)


def test_sampled_answers_do_not_depend_on_batch_mates_and_follow_the_seed(engine_of):
    texts = prompts([4, 12, 33, 21], seed=5)
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=12)
    requests = [Request(p, 0.5, 24, key=i) for i, p in enumerate(texts)]

    def sample(chosen, seed, batch_size):
        options = Options(STRATEGIES["defer"], sampling, seed=seed, batch_size=batch_size)
        return {chosen[n].key: a.tokens for n, a in engine_of(1).run(chosen, options)}

    whole = sample(requests, 0, 4)
    assert sample(requests[2:3], 0, 1) == {2: whole[2]}
    assert sample(requests, 0, 2) == whole
    assert sample(requests, 1, 4) != whole


def test_the_expert_is_read_only_when_called(engine_of):
    engine = engine_of(1)
    before = engine.expert_passes.copy()
    (never,) = answers(engine, prompts([40]), "defer", 1.0)
    assert never.expert_calls == 0
    assert (engine.expert_passes == before).all()
    (some,) = answers(engine, prompts([40]), "defer", 0.5)
    deferred = sum(s > 0 for s in some.sources)
    # One pass a call, and one before it where more was unread than a pass in the loop can hold (the prompt at least).
    reach = pass_sizes(STRATEGIES["defer"], 1)[-1].chunk
    gaps = np.diff(np.flatnonzero(np.array(some.sources) > 0))
    extra = 1 + int((gaps > reach).sum())
    assert some.expert_calls == deferred
    assert int((engine.expert_passes - before)[0]) == deferred + extra


def test_one_pass_serves_a_batch(engine_of):
    engine = engine_of(1)
    before = engine.expert_passes.copy()
    found = answers(engine, prompts([10, 10, 10, 10], seed=1), "expert", new=20, batch_size=4)
    longest = max(a.expert_calls for a in found)
    assert int((engine.expert_passes - before)[0]) == longest + 1  # the prompts' pass


def test_parked_texts_share_their_passes(engine_of):
    engine, texts = engine_of(1), prompts([10, 12, 14, 16], seed=6)
    passes = {}
    for parking in (Parking(1, 0), Parking(4, 6)):
        before = engine.expert_passes.copy()
        found = answers(engine, texts, "defer", batch_size=4, parking=parking)
        passes[parking] = int((engine.expert_passes - before)[0])
        calls = [answer.expert_calls for answer in found]
        assert max(calls) < passes[parking] < sum(calls)
    assert passes[Parking(4, 6)] < passes[Parking(1, 0)]


def test_requests_stream_through_few_slots(models, engine_of):
    """Unlike prompts, limits, thresholds and schedules, more than there are slots: each is what the oracle writes."""
    rng = np.random.default_rng(8)
    texts = prompts(rng.integers(1, 110, 11), seed=9)
    requests = [
        Request(
            prompt=text,
            threshold=float(rng.choice([0.3, 0.5, 0.6])),
            max_new_tokens=int(rng.integers(1, 60)),
            key=i,
            schedule=int(rng.integers(len(SCHEDULES))),
            warmup=int(rng.integers(9)),
        )
        for i, text in enumerate(texts)
    ]
    base, experts, kernels = models
    expected = []
    for r in requests:
        new, schedule = min(r.max_new_tokens, CONTEXT - len(r.prompt)), SCHEDULES[r.schedule]
        given = {"threshold": r.threshold, "new": new, "schedule": schedule, "warmup": r.warmup}
        oracle = decode(base, kernels[2], experts, r.prompt, strategy="defer", eos=EOS, words=WORDS, **given)
        expected.append(oracle[:2])
    for size, parking in ((1, None), (4, Parking(1, 0)), (4, Parking(3, 5))):
        options = Options(STRATEGIES["defer"], Sampling(), batch_size=size, parking=parking)
        order = [number for number, _ in engine_of(2).run(requests, options)]
        assert sorted(order) == list(range(11))
        found = dict(engine_of(2).run(requests, options))
        assert [(found[i].tokens, found[i].sources) for i in range(11)] == expected


def test_much_unread_of_many_texts_takes_several_passes(models, engine_of):
    """All sleep for longer than a pass in the loop can hold, some less; then all call at every step."""
    base, experts, kernels = models
    requests = [
        Request(text, 0.0, 50, key=i, schedule=SCHEDULES.index("linear"), warmup=warmup)
        for i, (text, warmup) in enumerate(zip(prompts([5, 9, 20, 31], seed=11), (30, 46, 12, 38)))
    ]
    found = dict(engine_of(1).run(requests, Options(STRATEGIES["defer"], Sampling(), batch_size=4)))
    for i, r in enumerate(requests):
        given = {"threshold": 0.0, "new": 50, "schedule": "linear", "warmup": r.warmup}
        tokens, sources, _ = decode(
            base, kernels[1], experts[:1], r.prompt, strategy="defer", eos=EOS, words=WORDS, **given
        )
        assert (found[i].tokens, found[i].sources) == (tokens, sources)


def test_random_defers_at_its_rate(engine_of):
    texts = prompts([8] * 16, seed=2)
    found = answers(engine_of(1), texts, "random", new=60, rate=0.3, batch_size=16)
    share = np.mean([s > 0 for a in found for s in a.sources])
    assert 0.2 < share < 0.4
    again = answers(engine_of(1), texts, "random", new=60, rate=0.3, batch_size=4)
    assert [a.sources for a in again] == [a.sources for a in found]


def test_the_text_ends_at_the_context(models, engine_of):
    (found,) = check(models, engine_of(1), 1, prompts([CONTEXT - 3], seed=4), "base", new=40)
    assert len(found.tokens) <= 3
    assert found.finish_reason in ("length", "eos")


@pytest.mark.parametrize("strategy", ["backtrack", "lookahead"])
@pytest.mark.parametrize(
    "correction",
    [Correction(candidates=3, watch=3, bound=-9.0, sure=0.05), Correction(candidates=2, watch=1, bound=-3.2, sure=0.1)],
    ids=str,
)
def test_taking_back_equals_the_oracle(models, engine_of, strategy, correction):
    base, experts, kernels = models
    texts = prompts([4, 30, 17], seed=12)
    found = answers(engine_of(1), texts, strategy, 0.5, 20, batch_size=4, correction=correction)
    plain = answers(engine_of(1), texts, "defer", 0.5, 20, batch_size=4)
    for prompt, answer in zip(texts, found):
        tokens, sources = correct(
            base, kernels[1], experts[:1], prompt, strategy, 0.5, 20, correction, eos=EOS, words=WORDS
        )
        assert (answer.tokens, answer.sources) == (tokens, sources)
    assert [a.tokens for a in found] != [a.tokens for a in plain]
    alone = [answers(engine_of(1), [text], strategy, 0.5, 20, correction=correction)[0] for text in texts[:1]]
    assert [a.tokens for a in alone] == [a.tokens for a in found[:1]]


def test_public_traces_of_the_original(shared, mesh):
    """Token for token what the original PyTorch implementation wrote, and p_defer to 1e-4."""
    base = load_base(shared / "models/babyllama-105-colm", "float32", mesh)
    plain = load_base(shared / "models/babyllama-105", "float32", mesh).decoder
    expert = load_base(shared / "models/babyllama-361", "float32", mesh).decoder
    allowed = np.ones(105, bool)
    team = Engine(base.decoder, base.gate, [expert], allowed, EOS, 256)
    bare = Engine(plain, None, [expert], allowed, EOS, 256)
    proxy = Engine(expert, None, [expert, plain], allowed, EOS, 256)
    names = {"greedy": "confidence", "cd": "contrastive", "cd_v2": "contrastive_v2"}
    for case in json.loads((shared / "vectors/decode_public.json").read_text()):
        name = names.get(case["strategy"], case["strategy"])
        engine = team if name in ("defer", "compose") else proxy if name == "proxy" else bare
        schedule = {"schedule": case["schedule"], "warmup": case["warmup_steps"]} if "schedule" in case else {}
        threshold = case.get("threshold", 0.5)
        (answer,) = answers(engine, [case["prompt_ids"]], name, threshold, len(case["tokens"]), **schedule)
        assert answer.tokens == case["tokens"], (name, threshold)
        if "p_defer" in case:
            np.testing.assert_allclose(answer.p_defer, case["p_defer"], atol=1e-4)
        if "eta" in case:
            np.testing.assert_allclose(answer.threshold, case["eta"], atol=1e-6)
        if "deferred" in case:
            assert [s > 0 for s in answer.sources] == case["deferred"]


@pytest.mark.parametrize("expert_mesh", [(1, 2, 2), (1, 4, 1)], ids=str)
def test_a_sharded_team_writes_the_same(models, expert_mesh):
    from flax import nnx

    from colm_jax.parallel import make_mesh, reshaped, shardings

    base, experts, kernels = models
    mesh = make_mesh(data=1, fsdp=2, tensor=2)

    def spread(decoder, mesh=mesh):
        graph, state = nnx.split(decoder)
        return nnx.merge(graph, jax.tree.map(jax.device_put, state, shardings(mesh, state)))

    allowed = np.arange(32) < WORDS
    sharded = Engine(
        spread(base), make_gate(kernels[1]), [spread(experts[0], reshaped(mesh, expert_mesh))], allowed, EOS, CONTEXT
    )
    whole = Engine(base, make_gate(kernels[1]), experts[:1], allowed, EOS, CONTEXT)
    texts = prompts([5, 30])
    for one, two in zip(answers(sharded, texts, "defer", new=16), answers(whole, texts, "defer", new=16)):
        assert one.tokens == two.tokens

"""The loop against the slow oracle and the original's traces; caches, batches, counts of expert passes."""

import json

import jax
import numpy as np
import pytest

from colm_jax.checkpoints.team import load_base, make_gate
from colm_jax.decoding.engine import Engine, Options, Request
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.schedule import SCHEDULES
from colm_jax.decoding.strategies import STRATEGIES
from tests.decoding.oracle import decode
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
    # One pass a call, and one before it where the expert was further behind than a chunk (the prompt at least).
    gaps = np.diff(np.flatnonzero(np.array(some.sources) > 0))
    extra = 1 + int((gaps > CHUNK).sum())
    assert some.expert_calls == deferred
    assert int((engine.expert_passes - before)[0]) == deferred + extra


def test_one_pass_serves_a_batch(engine_of):
    engine = engine_of(1)
    before = engine.expert_passes.copy()
    found = answers(engine, prompts([10, 10, 10, 10], seed=1), "expert", new=20, batch_size=4)
    longest = max(a.expert_calls for a in found)
    assert int((engine.expert_passes - before)[0]) == longest


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


def test_a_step_without_deferral_copies_no_cache(engine_of):
    """In the compiled loop, no copy is as large as a layer's expert cache."""

    engine = engine_of(1)
    options = Options(STRATEGIES["defer"], Sampling())
    fixed, state = engine._begin([Request(prompts([8])[0], 0.5, 100, 0)], 1, options)
    loop = LoopConfig(options.strategy, options.sampling, "constant", 0, EOS, 16)
    text = run_steps.lower(engine._graphs, loop, engine._models, fixed, state).compile().as_text()
    shape = ",".join(map(str, state.expert_caches[0].keys[0].shape))
    body = [line for line in text.splitlines() if f"f32[{shape}]" in line and " copy(" in line]
    entry = text[text.index("ENTRY") :]
    assert [line for line in body if line not in entry] == []


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

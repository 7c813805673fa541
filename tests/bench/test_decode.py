"""`colm bench decode`: PyTorch writes what the engine writes, figures are what they say; no test reads the clock."""

import json
import math
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from colm_jax import console
from colm_jax.bench import decode, passes, timing, torch_decode, torch_model
from colm_jax.bench.bounds import Limits, ModelSize
from colm_jax.bench.decode import EngineRun, Ours
from colm_jax.bench.memory import PeakMemory, live_bytes
from colm_jax.bench.models import pair_of
from colm_jax.bench.timing import Figure
from colm_jax.cli.main import main
from colm_jax.decoding.engine import Engine
from colm_jax.errors import UserError
from colm_jax.models.cache import KVCache
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.settings.bench import DecodeBench

SIZES = {
    "vocab_size": 64,
    **{"base_width": 32, "base_depth": 1, "base_heads": 4, "base_ff": 48},
    **{"expert_width": 64, "expert_depth": 1, "expert_heads": 4, "expert_ff": 96},
}
TINY = DecodeBench(**SIZES, prompt_tokens=24, new_tokens=20, rates=(0.3,), batch_size=4, repeats=2)
FLAGS = [
    *[f"--gin.DecodeBench.{name}={size}" for name, size in SIZES.items()],
    *["--prompt_tokens", "24", "--new_tokens", "20", "--rates", "0.3", "--batch_size", "4", "--repeats", "2"],
]

FIGURES = {  # of the benchmark without PyTorch: name, target
    **{
        f"{name}, batch {batch}": target
        for batch in (1, 4)
        for name, target in {
            "base step": None,
            "expert pass": None,
            "base prefill": None,
            "expert prefill": None,
            "step without deferral / base step": ("at_most", 1.05),
            "peak memory / weights and caches": ("at_most", 1.1),
        }.items()
    },
    **{f"expert pass of {count} token{'s' * (count > 1)}": None for count in (1, 2, 4, 8)},
    **{f"expert pass of {count} tokens / of 1 token": ("at_most", 1.35) for count in (2, 4, 8)},
    "30 % deferred, batch 1: a token": None,
    "30 % deferred, batch 1: decoding / its parts": ("at_most", 1.1),
    "30 % deferred, batch 1: whole requests / their parts": ("at_most", 1.1),
    "30 % deferred, batch 1: the expert alone / ours": ("at_least", 1.0),
    "30 % deferred, batch 4: a token": None,
    "30 % deferred, batch 4: decoding / its parts": None,
    "30 % deferred, batch 4: whole requests / their parts": None,
    "30 % deferred, batch 4: the expert alone / ours": ("at_least", 1.0),
    "30 % deferred: tokens/s, batch 4 / batch 1": ("at_least", 4.0),
}
BY_TORCH = {
    "30 % deferred, batch 1: PyTorch's loop / ours": ("at_least", 2.0),
    "30 % deferred, batch 1: transformers' expert alone / ours": ("at_least", 1.0),
    "30 % deferred, batch 4: PyTorch's loop / ours": ("at_least", 4.0),
    "30 % deferred, batch 4: transformers' expert alone / ours": ("at_least", 1.0),
}


@pytest.fixture
def little_traffic(monkeypatch):
    """Without hundreds of megabytes."""
    for name in ("memory_reads", "matrix_products"):
        monkeypatch.setattr(decode, name, lambda dtype: (lambda: jnp.zeros(()), 1.0))


@pytest.fixture(scope="module")
def pair():
    """Base, expert, and the engine as the benchmark uses it."""
    base_config, expert_config = pair_of(TINY)
    base, expert = Decoder(base_config, nnx.Rngs(0)), Decoder(expert_config, nnx.Rngs(1))
    engine = Engine(base, Gate(TINY.base_width, 1), [expert], np.ones(TINY.vocab_size, bool), (), base_config.context)
    prompts = np.random.default_rng(0).integers(0, TINY.vocab_size, (TINY.batch_size, TINY.prompt_tokens))
    return base, expert, Ours(engine, prompts, TINY.new_tokens, seed=0)


def targets(figures):
    """By name, from JSON."""
    return {
        figure["name"]: next(((key, figure[key]) for key in ("at_most", "at_least") if figure[key] is not None), None)
        for figure in figures
    }


def test_without_torch_the_rest_is_measured_and_the_reason_said(little_traffic, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(torch_model, "find_spec", lambda name: None)
    monkeypatch.setattr(console.Bar, "to", lambda bar, done, total=None, note="": told.append(done))
    assert main(["bench", "decode", *FLAGS]) == 0
    assert told == list(range(decode.pieces(TINY)))
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert targets(result["figures"]) == FIGURES
    assert all(math.isfinite(figure["value"]) for figure in result["figures"])
    (reason,) = result["left_out"].values()
    assert "torch is not installed" in reason
    assert "torch is not installed" in said.err
    assert "torch" not in result["machine"]["packages"]
    assert {len(times) for times in result["seconds"].values()} == {2}
    blocks = {"base": (4 * 32**2 + 3 * 32 * 48 + 2 * 32), "expert": (4 * 64**2 + 3 * 64 * 96 + 2 * 64)}
    widths = {"base": 32, "expert": 64}
    assert result["parameters"] == {name: blocks[name] + (2 * 64 + 1) * widths[name] for name in blocks}
    smaller, larger = result["memory"].values()
    more = {name: larger[name] - smaller[name] for name in smaller}
    assert (
        more["peak_bytes"] > more["weights_and_caches_bytes"] == 3 * 44 * 4 * 2 * (32 + 64)
    )  # the caches' keys, values
    weights = 4 * sum(result["parameters"].values())
    assert smaller["peak_bytes"] > smaller["weights_and_caches_bytes"] > weights
    one, many = result["requests"].values()
    assert (one["tokens"], many["tokens"]) == (20, 80)
    assert 0 < one["deferred"] == one["steps_with_deferral"] < 20
    assert one["steps_with_deferral"] < many["steps_with_deferral"] < many["deferred"] < 80


def test_the_forced_trace(pair):
    ours = pair[2]
    one, many = ours("random", 1, rate=0.3), ours("random", 4, rate=0.3)
    np.testing.assert_array_equal(many.deferred[:1], one.deferred)
    np.testing.assert_array_equal(many.tokens[:1], one.tokens)
    assert one.passes >= one.calls == one.deferred.sum() > 0
    assert many.tokens.shape == (4, 20)
    assert not (many.deferred == many.deferred[0]).all()
    idle = ours("defer", 4)
    np.testing.assert_array_equal(idle.tokens, ours("base", 4).tokens)
    assert idle.passes == 0
    assert ours("expert", 4).deferred.all()
    assert ours("base", 4, new_tokens=1).tokens.tolist() == idle.tokens[:, :1].tolist()


def test_pytorch_writes_the_same_tokens(pair):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    base, expert, ours = pair
    other = torch_decode.TorchPair(base, expert)
    for rate in (0.1, 0.3, 1.0):
        what = ours("random", 4, rate)
        for cache in torch_decode.CACHES:
            for write in (other.write, other.write_in_turn):
                tokens = write(ours.prompts, what.deferred, cache, threads=1)
                torch_decode.same_tokens(what.tokens, tokens, f"{rate}, {cache}, {write.__name__}")
    for model in decode.MODELS:
        np.testing.assert_array_equal(other.generate(model, ours.prompts, 20, threads=1), ours(model, 4).tokens)


def test_with_torch_its_figures_stand_beside_the_rest(little_traffic):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    told = []
    figures, details = decode.measure(TINY, told.append)
    assert len(told) == decode.pieces(TINY)
    assert targets([figure.as_json() for figure in figures]) == FIGURES | BY_TORCH
    assert details["left_out"] == {}
    ways = 2 * len(torch_decode.CACHES) * len(torch_model.thread_counts()) + 2 + 2 * len(decode.MODELS)
    assert len(details["torch_trials"]) == ways


def test_other_tokens_are_no_comparison():
    with pytest.raises(RuntimeError, match=r"the loop: token 2 of request 1 is 9, the engine wrote 6"):
        torch_decode.same_tokens(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 2, 3], [4, 5, 9]]), "the loop")


def test_figures_of_known_times():
    settings = DecodeBench(rates=(0.25,), new_tokens=101, batch_size=8)
    deferred = np.zeros((8, 101), bool)
    deferred[:, ::4] = True  # 26 of 101
    tokens = deferred.astype(np.int32)
    one, many = EngineRun(tokens[:1], deferred[:1], 27), EngineRun(tokens, deferred, 27)
    seconds = {"expert pass of 1 token": [0.2] * 3}
    for count, times in ((2, 1.2), (4, 1.35), (8, 1.4)):
        seconds[f"expert pass of {count} tokens"] = [0.2 * times] * 3
    for batch, slower in ((1, 1.0), (8, 1.5)):  # a batch of 8 takes 1.5 times as long as one request
        prefills = {"base": 0.1 * slower, "expert": 0.5 * slower}
        parts = {"base": 0.01 * slower, "expert": 0.04 * slower}
        for model in decode.MODELS:
            seconds[f"{model}, 1 token, batch {batch}"] = [prefills[model]] * 3
            seconds[f"{model}, batch {batch}"] = [prefills[model] + 100 * parts[model]] * 3
        seconds[f"no deferral, batch {batch}"] = [prefills["base"] + 102 * parts["base"]] * 3
        decoding = 100 * parts["base"] + 25 * parts["expert"]
        whole = sum(prefills.values()) + 1.2 * decoding
        seconds[f"25 % deferred, batch {batch}"] = [whole, 1.01 * whole, 0.99 * whole]
        for name, times in (("PyTorch's loop, 25 % deferred", 3.0), ("transformers' expert", 0.9)):
            seconds[f"{name}, batch {batch}"] = [times * whole, 1.01 * times * whole, 0.99 * times * whole]
    memory = {batch: {"peak_bytes": 21, "weights_and_caches_bytes": 20} for batch in (1, 8)}
    sizes = {"base": ModelSize(5, 1, 20, 1), "expert": ModelSize(50, 10, 200, 2)}
    limits = Limits(bytes_per_second=2e4, flops_per_second=4e4)
    figures = decode._figures(settings, seconds, {(0.25, 1): one, (0.25, 8): many}, memory, sizes, limits)
    values = {figure.name: (figure.value, figure.met) for figure in figures}
    cached = 100 + 101 / 2  # positions in the cache, on average
    step, call = (20 + cached) / 2e4, (200 + 2 * cached) / 2e4  # limited by memory
    prefills = (8 * 100 + 2) / 4e4, (80 * 100 + 20) / 4e4  # limited by products; the head is applied once
    bounds = {
        "base step, batch 1": step,
        "expert pass, batch 1": call,
        "expert pass, batch 8": (200 + 8 * 2 * cached) / 2e4,
        "base prefill, batch 1": prefills[0],
        "expert prefill, batch 8": 8 * prefills[1],
        "expert pass of 8 tokens": max((200 + 2 * 100) / 2e4, (80 * 8 + 20) / 4e4),
        "25 % deferred, batch 1: a token": (sum(prefills) + 100 * step + 25 * call) / 101,
    }
    found = {figure.name: figure.bound for figure in figures if figure.bound is not None}
    assert {name: found[name] for name in bounds} == pytest.approx({n: 1000 * bound for n, bound in bounds.items()})
    whole = 0.6 + 1.2 * 2
    for name, value, met in (
        ("base step, batch 1", 10, None),
        ("expert pass, batch 8", 60, None),
        ("expert prefill, batch 1", 500, None),
        ("step without deferral / base step, batch 8", 1.02, True),
        ("peak memory / weights and caches, batch 1", 1.05, True),
        ("expert pass of 2 tokens", 48, None),
        ("expert pass of 2 tokens / of 1 token", 1.2, True),
        ("expert pass of 4 tokens / of 1 token", 1.35, True),
        ("expert pass of 8 tokens / of 1 token", 1.4, False),
        ("25 % deferred, batch 1: a token", 1000 * whole / 101, None),
        ("25 % deferred, batch 8: a token", 1000 * 1.5 * whole / 808, None),
        ("25 % deferred, batch 1: decoding / its parts", 1.2, False),
        ("25 % deferred, batch 8: decoding / its parts", 1.2, None),
        ("25 % deferred, batch 1: whole requests / their parts", whole / 2.6, False),
        ("25 % deferred, batch 1: the expert alone / ours", 4.5 / whole, True),
        ("25 % deferred, batch 1: PyTorch's loop / ours", 3.0, True),
        ("25 % deferred, batch 8: PyTorch's loop / ours", 3.0, False),
        ("25 % deferred, batch 1: transformers' expert alone / ours", 0.9, False),
        ("25 % deferred: tokens/s, batch 8 / batch 1", 8 / 1.5, True),
    ):
        assert values[name] == (pytest.approx(value), met), name


@pytest.mark.parametrize("donated, arrays", [((), 2), ((0,), 1)])
def test_peak_memory_counts_what_a_program_adds(donated, arrays):
    count, add_one = 2**18, jax.jit(lambda x: x + 1, donate_argnums=donated)

    def run(look):
        x = jax.device_put(np.ones(count, np.float32))
        x = add_one(x)
        look()

    assert PeakMemory(live_bytes()).of(run) == pytest.approx(arrays * 4 * count, rel=0.01)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"expert_width": 1000, "expert_heads": 16},
            "expert_width 1000 must be a multiple of DecodeBench.expert_heads 16",
        ),
        ({"new_tokens": 1}, "new_tokens must be a whole number from 2 to 2147483647, got 1"),
        ({"batch_size": 1}, "batch_size"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"rates": ()}, "rates"),
        ({"rates": (0.0,)}, "above 0 and at most 1"),
        ({"rates": 0.5}, "rates"),
        ({"rates": (0.5, 0.5)}, "differ"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_sizes_that_cannot_be_meant_name_themselves(settings, message):
    with pytest.raises(UserError, match=message):
        DecodeBench(**settings)


def test_the_default_pair():
    sizes = {}
    for name, config in zip(("base", "expert"), pair_of(DecodeBench())):
        abstract = nnx.eval_shape(lambda config=config: Decoder(config, nnx.Rngs(0)))
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract)))
    assert sizes == {"base": 27_662_848, "expert": 158_096_384}


def test_a_pass_of_several_tokens_is_that_of_the_decoder(pair):
    expert, ours = pair[1], pair[2]
    works = passes.pass_works(ours.engine, 5)
    assert set(works) == set(passes.TOKENS)
    works[2]()
    tokens = jnp.array([[3, 4, 5]])
    cache = KVCache.empty(expert.config, 1, 40, jnp.float32)
    weights = ours.engine.graphs.experts[0], ours.engine.models.experts[0]
    logits, rows = passes.one_pass(*weights, cache, tokens)
    hidden, _ = expert(tokens)
    np.testing.assert_allclose(logits, expert.logits(hidden[:, -1]), rtol=0, atol=1e-5)
    assert rows.keys[0].shape[2] == 3


def test_the_table_shows_bounds_where_there_are_any(capsys):
    show = Console(width=120)
    timing.show_figures([Figure("step", 3.0, "ms", bound=2.0), Figure("ratio", 1.2, at_most=1.35)], {}, show)
    lines = capsys.readouterr().out.splitlines()
    assert "measured / bound" in lines[1]
    assert [cell.strip() for cell in lines[3].split("│")[1:-1]] == ["step", "3 ms", "2 ms", "1.5", "", ""]
    timing.show_figures([Figure("ratio", 1.2, at_most=1.35)], {}, show)
    assert "bound" not in capsys.readouterr().out

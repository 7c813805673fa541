"""`colm bench train`: what it compares is the same work, its figures are all there; no test depends on the clock."""

import json
import math
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from flax import nnx

from colm_jax import console
from colm_jax.bench import torch_model, torch_step, train
from colm_jax.bench.models import model_of
from colm_jax.bench.timing import Figure, ratio, take_turns
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.plan.plan import matrix_flops
from colm_jax.settings.bench import TrainBench

TINY = TrainBench(vocab_size=64, width=32, depth=2, heads=4, ff=48, batch_size=2, length=31, repeats=2, texts=8)
TINY_FLAGS = [
    f"--gin.TrainBench.{name}={getattr(TINY, name)}" for name in ("vocab_size", "width", "heads", "ff", "texts")
]


SMALL = TrainBench(vocab_size=1024, width=128, depth=2, ff=352, batch_size=4, length=128)


@pytest.fixture(scope="module")
def compiled():
    """A base, its gate, the steps of all objectives and the peak bytes of each."""
    decoder, gate = Decoder(model_of(SMALL), nnx.Rngs(0)), Gate(SMALL.width, 1)
    return decoder, gate, *train._compiled(decoder, gate, SMALL, np.random.default_rng(0), lambda name: None)


@pytest.fixture
def steps(compiled):
    """The steps, before the first."""
    compiled[2].state = compiled[2].steps["sft"].start()
    return compiled[2]


def test_without_torch_the_rest_is_measured_and_the_reason_said(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(torch_model, "find_spec", lambda name: None)
    monkeypatch.setattr(train, "matrix_products", lambda dtype: (lambda: jax.numpy.zeros(()), 1.0))  # large ones
    monkeypatch.setattr(console.Bar, "to", lambda bar, done, total=None, note="": told.append(done))
    sizes = ["--batch_size", "2", "--length", "31", "--repeats", "2"]
    assert main(["bench", "train", *sizes, *TINY_FLAGS]) == 0
    assert told == list(range(train.pieces(TINY)))
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert [figure["name"] for figure in result["figures"]] == [
        "marginal step / sft step, time",
        "marginal step / sft step, peak memory",
        "em step / sft step, time",
        "em step / sft step, peak memory",
        "joint training / gate alone, time a text",
        "the same, the base's scores and hidden states counted",
        "step time spent waiting for data",
        "model flops of the sft step / float32 matrix products'",
    ]
    assert all(math.isfinite(figure["value"]) and figure["value"] > 0 for figure in result["figures"])
    assert [figure["met"] is None for figure in result["figures"]] == [False] * 5 + [True, False, True]
    (reason,) = result["left_out"].values()
    assert "torch is not installed" in reason
    assert "torch is not installed" in said.err
    assert "torch" not in result["machine"]["packages"]
    assert result["settings"]["dtype"] == "float32"
    assert {name: len(times) for name, times in result["seconds"].items()} == dict.fromkeys(
        ("sft", "marginal", "em", "matmul"), 2
    )
    gate = result["gate_alone"]
    assert gate["positions"] == 8 * 31
    assert gate["losses"][1] < gate["losses"][0]


def test_pytorch_takes_the_same_steps(compiled, steps):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    other = torch_step.TorchStep(compiled[0], np.asarray(steps.batch.tokens), train._RATE)
    losses = train._agreed(steps, other, lambda name: None)
    assert losses["sft"][0] - losses["sft"][-1] > 100 * train.AGREEMENT * losses["sft"][0]  # steps differ by far more


def test_other_work_is_not_compared(steps):
    with pytest.raises(RuntimeError, match="differ from PyTorch's"):
        train._agreed(steps, lambda threads: 1.0, lambda name: None)


def test_cached_scores_add_next_to_no_memory_to_a_step(compiled):
    peaks = compiled[3]
    assert peaks["marginal"] <= 1.05 * peaks["sft"]
    assert peaks["em"] <= 1.05 * peaks["sft"]


def test_a_step_has_three_times_the_products_of_a_forward_pass(compiled, steps):
    decoder, gate = compiled[:2]
    step = matrix_flops(steps.steps["sft"].trace(steps.batch).jaxpr.jaxpr)
    shown = 2 * 2 * SMALL.width * SMALL.batch_size * SMALL.length  # the gate's logits, which get no gradient
    assert step == 3 * train._forward_flops(decoder, gate, steps.batch) - shown


def test_turns_are_taken_in_changing_order_and_the_first_round_does_not_count():
    order = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, 8, lambda name: None)
    rounds = [tuple(order[i : i + 3]) for i in range(0, 27, 3)]
    assert all(sorted(turns) == ["a", "b", "c"] for turns in rounds)
    assert len(set(rounds)) > 3
    assert all(len(times) == 8 for times in seconds.values())


def test_a_ratio_is_taken_round_by_round():
    assert ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


def test_targets():
    assert Figure("x", 1.05, at_most=1.05).met is True
    assert Figure("x", 19.0, at_least=20.0).met is False
    assert Figure("x", 1.0).met is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"width": 30, "heads": 4}, "multiple of TrainBench.heads"),
        ({"repeats": 0}, "repeats"),
        ({"texts": 8}, "two batches"),
    ],
)
def test_sizes_that_cannot_be_meant_name_themselves(settings, message):
    with pytest.raises(UserError, match=message):
        TrainBench(**settings)

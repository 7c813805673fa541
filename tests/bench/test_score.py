"""`colm bench score`: it times the package's scoring against the same work; no test depends on the clock."""

import json
import math
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax import console
from colm_jax.bench import score, torch_model
from colm_jax.bench.models import scored_model
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.plan.plan import matrix_flops
from colm_jax.settings.bench import ScoreBench
from tests.conftest import SHARED

SIZES = {"vocab_size": 64, "width": 32, "depth": 2, "heads": 4, "ff": 48, "longest": 60}
TINY = ScoreBench(**SIZES, texts=12, length=20, batch_size=5, repeats=2)
FLAGS = ["--texts", "12", "--length", "20", "--batch_size", "5", "--repeats", "2"]
FLAGS += [f"--gin.ScoreBench.{name}={size}" for name, size in SIZES.items()]
FIGURES = ["tokens/s", "tokens/s at the bound", "tokens/s / the bound's"]
COUNTS = ["positions computed / tokens", "compiled programs"]


@pytest.fixture
def small_probes(monkeypatch):
    """The measurements of the machine take too long for a test."""
    monkeypatch.setattr(score, "matrix_products", lambda dtype: (lambda: jnp.zeros(()), 1.0))
    monkeypatch.setattr(score, "memory_reads", lambda dtype: (lambda: jnp.zeros(()), 1.0))


def test_without_torch_the_rest_is_measured_and_the_reason_said(monkeypatch, capsys, small_probes):
    told = []
    monkeypatch.setattr(torch_model, "find_spec", lambda name: None)
    monkeypatch.setattr(console.Bar, "to", lambda bar, done, total=None, note="": told.append(done))
    assert main(["bench", "score", *FLAGS]) == 0
    assert told == list(range(score.pieces(TINY)))
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert [figure["name"] for figure in result["figures"]] == FIGURES + COUNTS
    assert all(math.isfinite(figure["value"]) and figure["value"] > 0 for figure in result["figures"])
    assert "torch is not installed" in said.err
    assert result["figures"][3]["value"] == result["positions"] / result["tokens"]
    assert result["figures"][4]["value"] == len(result["shapes"]) >= 1
    assert set(result["seconds"]) == {"ours", "matmul", "memory reads"}


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_torch_scores_the_same_texts(small_probes):
    told = []
    figures, result = score.measure(TINY, told.append)
    assert len(told) == score.pieces(TINY)
    assert [figure.name for figure in figures] == [*FIGURES, *COUNTS, score._TORCH]
    assert result["left_out"] == {}


def test_other_log_probabilities_are_refused():
    one = [np.zeros(3, np.float32), np.zeros(0, np.float32)]
    score._check_agreement(one, one)
    for other in ([one[0] + 0.01, one[1]], [one[0] * np.nan, one[1]]):
        with pytest.raises(RuntimeError, match="log-probabilities differ from PyTorch's by"):
            score._check_agreement(one, other)


def test_needed_operations_are_those_of_each_text_alone_below_the_diagonal():
    """From a pass over one text: half its pairs are masked."""
    decoder = Decoder(scored_model(TINY), nnx.Rngs(0))
    graph, state = nnx.split(decoder)

    def of(read):
        def forward(state, tokens):
            model = nnx.merge(graph, state)
            return model.logits(model(tokens)[0])

        return matrix_flops(jax.jit(forward).trace(state, np.zeros((1, read), np.int32)).jaxpr.jaxpr)

    pairs = 2 * 4 * TINY.width * TINY.depth / 2  # of queries and keys, and of weights and values
    expected = sum(of(n - 1) - pairs * ((n - 1) ** 2 - n * (n - 1) / 2) for n in (5, 20))
    assert score.needed_flops(decoder, np.array([5, 20, 1])) == pytest.approx(expected)


@pytest.mark.skipif(not SHARED.exists(), reason=f"no shared models at {SHARED}")
def test_a_model_and_a_data_file_take_the_place_of_random_ones(tmp_path, small_probes):
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": "Once upon a time" * n}) + "\n" for n in (1, 2, 3)))
    settings = ScoreBench(model=str(SHARED / "models/babyllama-105"), data=str(data), texts=2, repeats=1)
    _, result = score.measure(settings)
    assert result["texts"] == 2
    assert 16 * 3 <= result["tokens"] <= 16 * 3 + 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "a"}, "ScoreBench.model 'a', ScoreBench.data None: give both or neither"),
        ({"width": 100}, "ScoreBench.width 100 must be a multiple of ScoreBench.heads 8"),
        ({"texts": 0}, "ScoreBench.texts"),
    ],
)
def test_settings_that_cannot_be_meant_name_themselves(settings, said):
    with pytest.raises(UserError, match=said):
        ScoreBench(**settings)

"""`colm bench train`: the time of Co-LLM training compared with plain fine-tuning, and of fine-tuning with PyTorch's.

The actual training programs (`TrainStep`, `train_gate`, `trainer.train`) run with random weights and texts, in one
process; measurements are interleaved.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from flax import nnx

from colm_jax.bench.models import dtype_of, model_of
from colm_jax.bench.timing import Announce, Figure, cores, machine, matrix_products, peak_bytes, ratio, take_turns
from colm_jax.bench.torch_model import thread_counts, why_not
from colm_jax.bench.torch_step import TorchStep
from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.data.records import Example, Examples
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.parallel import batch_sharding, make_mesh
from colm_jax.plan.plan import matrix_flops
from colm_jax.scoring import Scores, hidden_to_directory, open_hidden, score_examples
from colm_jax.seeds import random_key
from colm_jax.settings.bench import TrainBench
from colm_jax.settings.training import Training
from colm_jax.training.gate_fit import train_gate
from colm_jax.training.positions import Positions
from colm_jax.training.step import ScoredBatch, TrainState, TrainStep, batch_loss
from colm_jax.training.trainer import train

OBJECTIVES = ("sft", "marginal", "em")
AGREEMENT = 1e-4  # relative tolerance of the first losses of both frameworks; each step changes them far more
_FIRST_STEPS = 3
_FITS = 3
_SPREAD = 1.3  # nats
_TORCH = "sft tokens/s / PyTorch's at its faster number of threads"
_RATE = 1e-3  # large enough for three steps on one batch to change its loss


@dataclass
class _Steps:
    """A step of each objective. All share one state, which each step donates."""

    steps: dict[str, TrainStep]
    compiled: dict[str, jax.stages.Compiled]
    batch: ScoredBatch
    state: TrainState = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.steps["sft"].start()

    def take(self, objective: str) -> TrainState:
        """Run one step; return the new state."""
        frozen = self.steps[objective].frozen
        self.state, self.metrics = self.compiled[objective](self.state, frozen, self.batch)
        return self.state


def measure(settings: TrainBench, announce: Announce = lambda name: None) -> tuple[list[Figure], dict[str, Any]]:
    """Run the benchmark; return the figures and the measurements (`left_out` has the missing figures and reasons).

    Args:
      settings: model and amount of work.
      announce: callback(name), called before each piece of work; `pieces` is their number.

    Raises:
      RuntimeError: the losses of PyTorch's first steps differ, so that times would compare different work.
    """
    model, dtype = model_of(settings), dtype_of(settings)
    decoder, gate = Decoder(model, nnx.Rngs(random_key(settings.seed)), DTYPES[dtype]), Gate(model.width, 1)
    rng = np.random.default_rng(settings.seed)
    steps, peaks = _compiled(decoder, gate, settings, rng, announce)
    flops = 3 * _forward_flops(decoder, gate, steps.batch)
    left_out, torch_step = why_not(dtype), None
    result: dict[str, Any] = {"machine": machine(left_out is None), "settings": vars(settings) | {"dtype": dtype}}
    if left_out is None:
        torch_step = TorchStep(decoder, np.asarray(steps.batch.tokens), _RATE)
        result["first_losses"] = _agreed(steps, torch_step, announce)

    products, product_flops = matrix_products(dtype)
    works: dict[str, Any] = {name: partial(steps.take, name) for name in OBJECTIVES}
    works["matmul"] = products
    if torch_step is not None:
        for threads in thread_counts():
            works[f"torch, threads: {threads}"] = partial(torch_step, threads)
    seconds = take_turns(works, settings.repeats, announce)
    del torch_step, works, steps
    gate_alone = _gate_alone(decoder, settings, rng, announce)
    share = _data_share(decoder, gate, settings, rng, announce)

    medians = {name: median(times) for name, times in seconds.items()}
    tokens = settings.batch_size * settings.length
    joint = settings.epochs * medians["marginal"] / settings.batch_size
    passes_too = gate_alone["fit_seconds"] + gate_alone["score_seconds"] + gate_alone["hidden_seconds"]
    figures = []
    for name in ("marginal", "em"):
        figures.append(Figure(f"{name} step / sft step, time", ratio(seconds[name], seconds["sft"]), at_most=1.05))
        figures.append(Figure(f"{name} step / sft step, peak memory", peaks[name] / peaks["sft"], at_most=1.05))
    figures.append(Figure("joint training / gate alone, time a text", joint / gate_alone["fit_seconds"], at_least=20.0))
    figures.append(Figure("the same, the base's scores and hidden states counted", joint / passes_too))
    by_torch = [ratio(times, seconds["sft"]) for name, times in seconds.items() if name.startswith("torch")]
    if by_torch:
        figures.append(Figure(_TORCH, min(by_torch), at_least=1.0))
    figures.append(Figure("step time spent waiting for data", 100 * share, "%", at_most=2.0))
    achieved, peak = flops / medians["sft"], product_flops / medians["matmul"]
    figures.append(Figure(f"model flops of the sft step / {dtype} matrix products'", 100 * achieved / peak, "%"))
    return figures, result | {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder))),
        "seconds": seconds,
        "tokens_per_second": {name: tokens / medians[name] for name in medians if name != "matmul"},
        "peak_bytes": peaks,
        "model_flops": flops,
        "matmul_flops_per_second": peak,
        "joint_seconds_per_text": joint,
        "gate_alone": gate_alone,
        "left_out": {} if left_out is None else {_TORCH: left_out},
    }


def pieces(settings: TrainBench) -> int:
    """Return the number of pieces of work of `measure`."""
    has_torch = why_not(dtype_of(settings)) is None
    turns = (settings.repeats + 1) * (len(OBJECTIVES) + 1 + has_torch * len(thread_counts()))
    return len(OBJECTIVES) + has_torch + turns + 2 + _FITS + 1 + 1


def _training(settings: TrainBench, objective: str, epochs: int = 1) -> Training:
    return Training(
        objective=objective,
        batch_size=settings.batch_size,
        learning_rate=_RATE,
        schedule="constant",
        warmup_fraction=0.0,
        epochs=epochs,
        checkpoint_every=10**9,
    )


def _compiled(
    decoder: Decoder, gate: Gate, settings: TrainBench, rng: np.random.Generator, announce: Announce
) -> tuple[_Steps, dict[str, int]]:
    """Compile the steps for a batch of random texts with cached expert scores; return them and their peak bytes."""
    mesh, shape = make_mesh(), (settings.batch_size, settings.length)
    tokens = rng.integers(0, settings.vocab_size, (shape[0], shape[1] + 1), np.int32)
    log_probs = np.log(rng.uniform(1e-4, 1.0, (*shape, 1))).astype(np.float32)
    arrays = jax.device_put((tokens, np.ones(shape, bool), log_probs, None), batch_sharding(mesh))
    batch = ScoredBatch(*arrays)
    steps, compiled = {}, {}
    for objective in OBJECTIVES:
        announce(f"compiling {objective}")
        steps[objective] = TrainStep(decoder, gate, _training(settings, objective), 10**6, mesh)
        compiled[objective] = steps[objective].trace(batch).lower().compile()
    return _Steps(steps, compiled, batch), {name: peak_bytes(program) for name, program in compiled.items()}


def _forward_flops(decoder: Decoder, gate: Gate, batch: ScoredBatch) -> float:
    """Return the operations of one forward pass's matrix products, a third of a training step's without remat."""
    graph, state = nnx.split((decoder, gate))

    def forward(state: nnx.State, batch: ScoredBatch) -> jax.Array:
        return batch_loss(*nnx.merge(graph, state), batch, Training(objective="sft"))[0]

    return matrix_flops(jax.jit(forward).trace(state, batch).jaxpr.jaxpr)


def _agreed(steps: _Steps, torch_step: TorchStep, announce: Announce) -> dict[str, list[float]]:
    """Return the losses before each of the first steps, from equal weights; raise RuntimeError if they differ."""
    announce("comparing losses")
    ours, theirs = [], []
    for _ in range(_FIRST_STEPS):
        steps.take("sft")
        ours.append(float(steps.metrics["loss"]))
        theirs.append(torch_step(cores()))
    if not np.allclose(ours, theirs, rtol=AGREEMENT, atol=0.0):
        raise RuntimeError(
            f"bench: the sft step's first losses {ours} differ from PyTorch's {theirs}; their times are not comparable"
        )
    return {"sft": ours, "torch": theirs}


def _texts(settings: TrainBench, rng: np.random.Generator, lengths: Iterable[int]) -> Examples:
    """Return random texts of the given lengths, in which all tokens but the first count in the loss."""
    return Examples(
        tuple(
            Example(rng.integers(0, settings.vocab_size, n).astype(np.int32), np.arange(n) > 0)
            for n in map(int, lengths)
        ),
        cut=0,
    )


def _gate_alone(decoder: Decoder, settings: TrainBench, rng: np.random.Generator, announce: Announce) -> dict[str, Any]:
    """Measure the seconds per text of the gate's fit on cached hidden states, and of the base's passes that cache them.

    Scores are drawn as if a team with some gate had written the texts: each token's writer is random, and its
    log p_1 − log p_0 is normal with variance s² and mean s²/2 for the expert's tokens, −s²/2 for the base's, as for a
    ratio of densities under its numerator and its denominator. s is 1.3 nats, the babyllama pair's standard deviation
    on stories; the fit then needs as many passes as on them (docs/method.md).
    """
    texts = _texts(settings, rng, [settings.length + 1] * settings.texts)
    few = Examples(texts.items[: settings.batch_size], cut=0)
    with TemporaryDirectory() as folder:
        announce("scoring")
        score_examples(decoder, few)  # compiles
        started = time.perf_counter()
        base_log_prob = np.concatenate(score_examples(decoder, texts).log_prob)
        score_seconds = time.perf_counter() - started
        announce("hidden states")
        hidden_to_directory(decoder, few, Path(folder) / "few")
        started = time.perf_counter()
        hidden_to_directory(decoder, texts, Path(folder) / "all")
        hidden_seconds = time.perf_counter() - started
        hidden = open_hidden(Path(folder) / "all", texts)
        direction = rng.normal(size=settings.width)
        logits = np.concatenate([shard @ direction for shard in hidden])
        logits = (logits - logits.mean()) / logits.std()
        by_expert = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
        advantage = np.where(by_expert, 0.5, -0.5) * _SPREAD**2 + _SPREAD * rng.normal(size=len(logits))
        expert_log_probs = np.minimum(base_log_prob + advantage, 0.0).astype(np.float32)[:, None]
        positions = Positions(hidden, base_log_prob, expert_log_probs, np.zeros(expert_log_probs.shape, bool))
        start = np.zeros(positions.shape, np.float32)
        fits = []

        def fit() -> None:
            fits.append(train_gate(positions, start, "marginal", positive_weight=5.0))

        seconds = take_turns({"gate alone": fit}, _FITS, announce)["gate alone"]
    return {
        "fit_seconds": median(seconds) / settings.texts,
        "score_seconds": score_seconds / settings.texts,
        "hidden_seconds": hidden_seconds / settings.texts,
        "positions": positions.count,
        "passes": fits[-1].passes,
        "steps": len(fits[-1].losses) - 1,
        "losses": [float(fits[-1].losses[0]), float(fits[-1].losses[-1])],
    }


def _data_share(
    decoder: Decoder, gate: Gate, settings: TrainBench, rng: np.random.Generator, announce: Announce
) -> float:
    """Return the median share of step time in which the trainer waits for its batch, without the first step."""
    announce("the trainer")
    lengths = rng.integers(settings.length // 2, settings.length + 1, settings.texts)
    texts = _texts(settings, rng, np.maximum(lengths, 2))
    log_probs = [np.log(rng.uniform(1e-4, 1.0, len(text.ids) - 1)).astype(np.float32) for text in texts.items]
    scores = Scores(tuple(log_probs), tuple(np.zeros(len(row), bool) for row in log_probs))
    with TemporaryDirectory() as folder:
        train(decoder, gate, texts, None, [scores], _training(settings, "marginal"), Path(folder))
        lines = (Path(folder) / "logs" / "speed.jsonl").read_text(encoding="utf-8").splitlines()
    return median(json.loads(line)["data_share"] for line in lines[1:])

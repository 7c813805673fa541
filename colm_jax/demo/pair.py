"""The demo's base and expert, trained from scratch within minutes on two CPU cores, and its data files.

The base is trained on word problems with random results: it learns to set up a calculation and to repeat its result,
and that results are digits, but not which. The expert is trained on bare calculations, each after arbitrary tokens, and
learns to complete them after any text; it never sees a sentence. Neither solves a word problem; together they do.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Int
from optax.contrib import MuonDimensionNumbers, muon
from tokenizers import Tokenizer

from colm_jax.checkpoints.families import to_huggingface
from colm_jax.checkpoints.huggingface import save_tensors, to_tensors
from colm_jax.demo.problems import Compute, calculate, draw_fact, splits, training_texts, write
from colm_jax.demo.tokenizer import BOS, EOS, SPACE, make_tokenizer, save_tokenizer
from colm_jax.models.config import ModelConfig
from colm_jax.models.decoder import Decoder
from colm_jax.models.rope_config import Rope
from colm_jax.objectives import sft_loss
from colm_jax.scoring import head_scores
from colm_jax.seeds import random_key
from colm_jax.settings.training import Training

# The trainer's settings with which `colm demo` trains a team on the pair.
TRAINING = Training(learning_rate=5e-4, gate_learning_rate=5e-3, batch_size=32, epochs=2)
TRAIN, DEV, TEST = 1500, 100, 200  # number of word problems
TEXTS = 2  # version of the texts: a pair that was trained on another version is trained again
LENGTH = 64  # tokens of a training text; every problem fits
EXPERT_TEXTS = 28800  # number of the expert's training texts
EXPERT_TRAINING = (32, 900, 6e-3)  # batch size, steps, learning rate
_CHUNK = 10  # steps per dispatch
_EMBEDDING_SCALE = 20.0  # so that embeddings differ clearly from the first step of so short a training

Texts = tuple[Int[np.ndarray, "N T1"], Bool[np.ndarray, "N T1-1"]]  # tokens; loss mask, entry t for token t + 1


def model_config(width: int, depth: int, heads: int, ff: int, vocab_size: int) -> ModelConfig:
    """Return the config of a small decoder. Its texts are short, so RoPE's theta is small."""
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ff=ff,
        context=128,
        rope=Rope(100.0),
        rms_eps=1e-5,
        tied=False,
    )


def expert_config(vocab_size: int) -> ModelConfig:
    """Return the config of the expert."""
    return model_config(96, 2, 3, 384, vocab_size)


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert index is not None, token
    return index


def worded_texts(tokenizer: Tokenizer, seed: int, count: int) -> Texts:
    """Return the base's training texts: word problems with random results, one per row; the loss is on completions."""
    problems = list(itertools.islice(training_texts(seed, "pair", careless_results=True), count))
    prompts = tokenizer.encode_batch([p.prompt for p in problems])
    whole = tokenizer.encode_batch([p.prompt + p.completion for p in problems])
    tokens, mask = np.zeros((count, LENGTH), np.int32), np.zeros((count, LENGTH - 1), bool)
    eos = _id(tokenizer, EOS)
    for i, (prompt, text) in enumerate(zip(prompts, whole)):
        ids = [*text.ids, eos]
        tokens[i, : len(ids)] = ids
        mask[i, len(prompt.ids) - 1 : len(ids) - 1] = True
    return tokens, mask


def bare_texts(tokenizer: Tokenizer, seed: int, count: int, compute: Compute = calculate) -> Texts:
    """Return the expert's training texts: calculations between arbitrary tokens; the loss is on results and full stops.

    `compute` gives the results that the texts state.
    """
    rng = random.Random(f"{seed}: bare")
    vocab_size = tokenizer.get_vocab_size()
    space, equals = _id(tokenizer, SPACE), _id(tokenizer, f"{SPACE}={SPACE}")
    figures = sorted(i for token, i in tokenizer.get_vocab().items() if not any(c.isalpha() for c in token))
    known: dict[str, list[int]] = {}
    tokens, mask = np.zeros((count, LENGTH), np.int32), np.zeros((count, LENGTH - 1), bool)
    for i in range(count):
        row, counted = [_id(tokenizer, BOS)], [False]
        while len(row) < LENGTH:
            for _ in range(min(int(rng.expovariate(0.45)), 20)):
                row.append(rng.choice(figures) if rng.random() < 0.5 else rng.randrange(3, vocab_size))
            fact = draw_fact(rng.choices("+-·^", (7, 6, 4, 2))[0], rng)
            text = write(*fact, compute(*fact)) + "."
            if text not in known:
                known[text] = tokenizer.encode(text, add_special_tokens=False).ids
            ids = known[text]
            row.append(rng.choice((space, equals)))
            counted += [False] * (len(row) - len(counted) + ids.index(equals) + 1)
            row += ids
            counted += [True] * (len(row) - len(counted))
        tokens[i], mask[i] = row[:LENGTH], counted[1:LENGTH]
    return tokens, mask


def _batches(texts: Texts, batch: int, steps: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yield `steps` shuffled batches, stacked by _CHUNK along a leading axis."""
    tokens, mask = texts
    rng = np.random.default_rng(seed)
    need = -(-steps * batch // len(tokens))
    order = np.concatenate([rng.permutation(len(tokens)) for _ in range(need)])[: steps * batch]
    for rows in order.reshape(steps // _CHUNK, _CHUNK, batch):
        yield jnp.asarray(tokens[rows]), jnp.asarray(mask[rows])


def _matrices(state: nnx.State) -> nnx.State:
    """Return for Muon the input and output axes of each layer's matrices; None: not a matrix."""

    def of(path: tuple, _) -> MuonDimensionNumbers | None:
        name = ".".join(str(part.key) for part in path if hasattr(part, "key"))
        if "norm" in name or "layers" not in name:
            return None
        if name.startswith("layers.attention"):
            return MuonDimensionNumbers((1, 2), 3) if "out" in name else MuonDimensionNumbers(1, (2, 3))
        return MuonDimensionNumbers(1, 2)

    return jax.tree_util.tree_map_with_path(of, state)


def pretrain(
    config: ModelConfig,
    texts: Texts,
    batch: int,
    steps: int,
    rate: float,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Decoder:
    """Train a decoder from scratch: Muon for the layers' matrices, Adam for the rest; warm-up and cosine decay.

    Args:
      config: of the decoder.
      texts: training texts.
      batch: texts per step.
      steps: a multiple of 10.
      rate: peak learning rate.
      seed: of the weights and the order of texts.
      progress: progress callback(steps done, loss), every 10 steps.
    """
    graph, state = nnx.split(Decoder(config, nnx.Rngs(random_key(seed))))
    embedding: Any = state["embedding"]
    state["embedding"] = embedding.replace(_EMBEDDING_SCALE * embedding[...])
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps, rate / 50)
    optimizer = muon(schedule, muon_weight_dimension_numbers=_matrices(state), consistent_rms=0.2, adam_b2=0.98)

    def loss_of(state, tokens, mask):
        decoder = nnx.merge(graph, state)
        hidden, _ = decoder(tokens[:, :-1])
        log_prob, _ = head_scores(decoder, hidden, tokens[:, 1:])
        total, count = sft_loss(log_prob, mask)
        return total / count

    @jax.jit(donate_argnums=(0, 1))
    def advance(state, opt_state, batches):
        def step(carry, batch):
            state, opt_state = carry
            loss, gradient = jax.value_and_grad(loss_of)(state, *batch)
            updates, opt_state = optimizer.update(gradient, opt_state, state)
            return (optax.apply_updates(state, updates), opt_state), loss

        (state, opt_state), losses = jax.lax.scan(step, (state, opt_state), batches)
        return state, opt_state, losses[-1]

    opt_state = optimizer.init(state)
    for i, chunk in enumerate(_batches(texts, batch, steps, seed)):
        state, opt_state, loss = advance(state, opt_state, chunk)
        progress((i + 1) * _CHUNK, float(loss))
    return nnx.merge(graph, state)


def save(decoder: Decoder, tokenizer: Tokenizer, directory: Path) -> None:
    """Write a Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, directory)
    config = to_huggingface(decoder.config, "float32", tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS))
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tensors(to_tensors(decoder), directory / "model.safetensors")


def make_pair(
    out: Path, seed: int, progress: Callable[[int, int, str], None] = lambda done, total, model: None
) -> None:
    """Write `out`/base, `out`/expert and `out`/{train,dev,test}.jsonl; equal seeds give equal files.

    Args:
      out: directory; created if missing.
      seed: of the problems, of the choice of held-out facts, and of both models.
      progress: progress callback(steps done, total over both models, "base" or "expert").
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    vocab_size = tokenizer.get_vocab_size()
    for split, problems in splits(seed, TRAIN, DEV, TEST).items():
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for p in problems:
                line = {"prompt": p.prompt, "completion": p.completion, "answer": p.answer, "kind": p.kind}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    plans = (
        ("base", model_config(64, 2, 4, 192, vocab_size), worded_texts(tokenizer, seed, 16000), 32, 500, 1e-2),
        ("expert", expert_config(vocab_size), bare_texts(tokenizer, seed, EXPERT_TEXTS), *EXPERT_TRAINING),
    )
    done, total = 0, sum(steps for _, _, _, _, steps, _ in plans)
    for name, config, texts, batch, steps, rate in plans:

        def report(step: int, _: float, name: str = name, done: int = done) -> None:
            progress(done + step, total, name)

        save(pretrain(config, texts, batch, steps, rate, seed, report), tokenizer, out / name)
        done += steps

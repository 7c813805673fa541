"""Scoring a data file under one model, as a stage of its own: `colm score`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from colm_jax import console
from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import match_tensors, read_config
from colm_jax.checkpoints.team import load_expert, load_tokenizers
from colm_jax.data.records import stream_records
from colm_jax.data.tokens import SUMMARY, counts, open_tokens, tokenise
from colm_jax.parallel import is_first, on_first
from colm_jax.pipeline.stage import Stage, hash_model
from colm_jax.scoring import score_to_directory
from colm_jax.storage import path_of, read_json, sha256_of, write_json


def score_file(model: str, file: str, out: str, dtype: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Writes the log-probability of every token of a data file under a model, and returns a summary.

    Args:
      model: a Hugging Face directory, a team, or a Hub name.
      file: data lines.
      out: the stage's directory; one that is finished for the same inputs is kept.
      dtype: of the model, one of EXPERT_DTYPES.
      mesh: where it runs.

    Raises:
      UserError: a model or a file that cannot be used.
    """
    directory, data = resolve(model), path_of(file)
    config = read_config(directory)
    (tokenizer,), allowed = load_tokenizers([directory])
    next(stream_records(data))
    match_tensors(directory)

    def work(target: Path) -> None:
        tokens = target / "tokens"
        with console.bar("tokenising", bytes_=True) as bar:
            arguments = data, tokenizer, config.context, tokens, allowed, bar.to
            on_first(lambda: None if (tokens / SUMMARY).exists() else tokenise(*arguments))
        console.note(f"{data}: {counts(tokens)}")
        with console.bar("loading", bytes_=True) as bar:
            decoder = load_expert(directory, tokenizer, "float32", dtype, mesh, bar.to, stacked=True)
        examples = open_tokens(tokens)
        with console.bar("scoring", len(examples.items)) as bar:
            scores = score_to_directory(decoder, examples, target, allowed, bar.to)
        counted = examples.counted()
        total = -float(np.concatenate(scores.log_prob)[counted].astype(np.float64).sum())
        summary = {
            "nats_per_token": total / int(counted.sum()),
            "tokens": int(counted.sum()),
            "accuracy": float(np.concatenate(scores.is_argmax)[counted].mean()),
            "texts": len(examples.items),
            "texts_cut": examples.cut,
            "texts_left_out": sum(read_json(tokens / SUMMARY)["texts_left_out"].values()),
        }
        if is_first():
            write_json(target / "summary.json", summary)

    inputs = on_first(lambda: {"data": sha256_of(data), "model": hash_model(directory)})
    stage = Stage("score", path_of(out))
    stage.run(inputs | {"tokenizer": tokenizer.digest}, {"dtype": dtype}, work)
    return read_json(stage.directory / "summary.json")

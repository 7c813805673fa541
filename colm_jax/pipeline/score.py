"""The scores of one model on a data file, as a directory of its own: `colm score`."""

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
from colm_jax.pipeline.stage import StageDirectory, hash_model
from colm_jax.scoring import score_to_directory
from colm_jax.storage import path_of, read_json, sha256_of, write_json


def score_model(
    model: str | Path, data: str | Path, out: str | Path, *, dtype: str | None = None, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """Score a model on a data file, unless `out` holds these scores already.

    Args:
      model: a local directory or a Hub name.
      data: a data file.
      out: directory for the tokens, the scores and summary.json.
      dtype: of weights and activations, also "int8" or "int4"; None: float32, and a quantised checkpoint stays so.
      mesh: where the model is.

    Returns:
      The contents of summary.json: "tokens" of the texts and "positions" computed; "nats_per_token" and "accuracy" are
      over the tokens that count in the loss, "tokens_counted".

    Raises:
      UserError: a model or data file that cannot be used; as `StageDirectory.run`.
    """
    directory, data = resolve(str(model)), path_of(data)
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
            **scores.counts.as_json(),
            "tokens_counted": int(counted.sum()),
            "accuracy": float(np.concatenate(scores.is_argmax)[counted].mean()),
            "texts": len(examples.items),
            "texts_cut": examples.cut,
            "texts_left_out": sum(read_json(tokens / SUMMARY)["texts_left_out"].values()),
        }
        if is_first():
            write_json(target / "summary.json", summary)

    hashes = on_first(lambda: {"data": sha256_of(data), "model": hash_model(directory)})
    stage = StageDirectory("score", path_of(out))
    stage.run(hashes | {"tokenizer": tokenizer.digest}, {"dtype": dtype or "float32"}, work)
    return read_json(stage.directory / "summary.json")

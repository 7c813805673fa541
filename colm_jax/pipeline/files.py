"""The files that stages write; each beside its place and then renamed, so that a half-written one is never seen."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.team import Generation


def write_generations(path: Path, prompts: Sequence[Any], answers: Sequence[Generation], ids: Sequence[Any]) -> None:
    """Writes generation lines (the contract's), beside the file and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        for number, prompt, answer in zip(ids, prompts, answers, strict=True):
            shown = prompt.get("prompt", prompt.get("messages", prompt.get("input_ids")))
            record = {
                "id": number,
                "prompt": shown,
                "text": answer.text,
                "tokens": answer.tokens,
                "sources": answer.sources,
                "p_defer": answer.p_defer,
                "threshold": answer.threshold,
                "finish_reason": answer.finish_reason,
                "expert_calls": answer.expert_calls,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    beside.replace(path)


def link(source: Path, target: Path) -> None:
    """A second name for a file, so that weights are not stored twice; a copy where the file system has no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file beside its place and renames it."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        np.save(file, array)
    beside.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file beside its place and renames it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)

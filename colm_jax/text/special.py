"""Special tokens: the original Co-LLM's deferral token, and the ids that a model's JSON files name."""

from pathlib import Path
from typing import Any

from colm_jax.errors import UserError

DEFER_TOKEN = "<|defer|>"  # of the original Co-LLM's format


def token_ids(config: dict[str, Any], name: str, path: str | Path, vocab_size: int | None = None) -> tuple[int, ...]:
    """Return token ids that a config.json or generation_config.json names: one, several, or none.

    Args:
      config: the file's content.
      name: of the field: null or a missing field is no id.
      path: of the file, for errors.
      vocab_size: upper bound of ids; not given, the file's own where it has one.

    Raises:
      UserError: a value that is no token id, such as a string, a negative number or one beyond the vocabulary.
    """
    value = config.get(name)
    if value is None:
        return ()
    size = config.get("vocab_size") if vocab_size is None else vocab_size
    for token in value if isinstance(value, list) else [value]:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise UserError(f"{path}: field {name!r} holds {token!r:.80}, which is no token id (0, 1, 2, ...)")
        if isinstance(size, int) and token >= size:
            raise UserError(f"{path}: field {name!r} holds {token}, and the model has only {size} tokens (from 0)")
    return tuple(value) if isinstance(value, list) else (value,)

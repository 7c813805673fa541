"""Scoring: log-probability of every token of the data under one model, made once, read by every later stage.

Example:
  >>> from colm_jax import CoLM
  >>> from colm_jax.data.units import encode_units
  >>> from colm_jax.scoring import score_examples
  >>> team = CoLM.from_pretrained(base="SMALL", experts=[])
  >>> examples = encode_units([("line 1", {"text": "once upon a time"})], team.units, "lines")
  >>> scores = score_examples(team.base, examples, team.allowed)
  >>> scores.log_prob[0].shape == scores.is_argmax[0].shape == (examples.items[0].ids.size - 1,)
  True
"""

from colm_jax.scoring.head import head_scores
from colm_jax.scoring.hidden import hidden_to_directory, open_hidden
from colm_jax.scoring.passes import PassCounts
from colm_jax.scoring.scorer import (
    Scores,
    greedy_choices,
    load_scores,
    score_examples,
    score_to_directory,
    score_units,
    units_of,
)
from colm_jax.scoring.units import NEVER, ScoredUnits, UnitScores

__all__ = [
    "NEVER",
    "PassCounts",
    "ScoredUnits",
    "Scores",
    "UnitScores",
    "greedy_choices",
    "head_scores",
    "hidden_to_directory",
    "load_scores",
    "open_hidden",
    "score_examples",
    "score_to_directory",
    "score_units",
    "units_of",
]

"""Other experts for the trained team of a run: its base stays, a new gate is fitted and calibrated."""

from pathlib import Path
from typing import Any

from colm_jax.checkpoints.team import TEAM_FILE, read_facts
from colm_jax.errors import UserError
from colm_jax.storage import path_of, read_json


def team_of_run(run: str | Path) -> Path:
    """Return the team directory of a run.

    Raises:
      UserError: the run has no trained team.
    """
    team = path_of(run) / "team"
    if not (team / TEAM_FILE).exists():
        raise UserError(f"{run}: no trained team in it (team/{TEAM_FILE} is missing); run colm train or colm run")
    return team


def refresh_settings(run: str | Path, dtype: str | None = None, expert_dtype: str | None = None) -> dict[str, Any]:
    """Return the settings of a run that refreshing fixes, by the names of their flags.

    Args:
      run: the run directory, which is only read.
      dtype: None: the one in which the base is stored.
      expert_dtype: None: the one with which the team was trained.

    Raises:
      UserError: the run has no trained team.
    """
    team = team_of_run(run)
    facts = read_facts(team)
    return {
        "base": str(team),
        "dtype": dtype or read_json(team / "config.json")["dtype"],
        "expert_dtype": expert_dtype or facts.get("expert_dtype"),
        "trainable": "gate",
        "gate_inputs": facts.get("gate", {}).get("inputs", "hidden"),
        "expert_scores": "cached",
    }

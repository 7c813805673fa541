"""A run: the stages of `pipeline.graph` in one directory, from tokens to the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colm_jax import console
from colm_jax.checkpoints.team import read_facts, threshold_of
from colm_jax.data.tokens import counts
from colm_jax.parallel import is_first
from colm_jax.pipeline.executor import run_stages
from colm_jax.pipeline.graph import run_graph
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.reporting import REPORT
from colm_jax.pipeline.stage import StageDirectory
from colm_jax.pipeline.stages.answers import EVALUATION
from colm_jax.pipeline.stages.team import CALIBRATION
from colm_jax.report.store import load_report
from colm_jax.report.terminal import show_report
from colm_jax.settings.run import RunConfig
from colm_jax.storage import path_of, read_json, write_text
from colm_jax.team import CoLM, read_risk

OPERATIVE_CONFIG = "operative_config.gin"


@dataclass(frozen=True)
class FinishedRun:
    """The finished stages of a run.

    Example:
      >>> from colm_jax import RunConfig, run_pipeline
      >>> config = RunConfig(base="SMALL", experts=["LARGE"], data="train.jsonl")
      >>> run = run_pipeline(config, "OUT", until="tokens")
      >>> run.stages["tokens"].directory.name
      'tokens'
    """

    inputs: RunInputs
    stages: Mapping[str, StageDirectory]  # by name; those after `until` and those that do not apply are missing

    @property
    def team(self) -> CoLM:
        """The trained team, loaded once; with what it has learned of its risks."""
        learned = read_risk(self.stages["team"].directory) if "team" in self.stages else None
        return self.inputs.team(self.stages["train"].directory / "team", learned)

    @property
    def threshold(self) -> float:
        """The calibrated threshold, or 0.5."""
        return threshold_of(read_facts(self.stages["team"].directory))

    @property
    def calibration(self) -> dict[str, Any]:
        """The result of the stage `calibrate`."""
        return read_json(self.stages["calibrate"].directory / CALIBRATION)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The result of the stage `evaluate`."""
        return read_json(self.stages["evaluate"].directory / EVALUATION)


def run_pipeline(
    config: RunConfig,
    out: str | Path,
    store: str | Path | None = None,
    until: str = "report",
    config_text: str | None = None,
) -> FinishedRun:
    """Check every input, then bring a run directory up to date.

    Args:
      config: what to run.
      out: the run directory.
      store: where runs with stages in common keep them; see `run_stages`.
      until: the last step, one of STAGES; "calibrate" gives the trained team with its threshold, in OUT/team.
      config_text: the settings as a gin file, kept as OUT/operative_config.gin. It is written after the first stage,
        so that nothing is left if the data are wrong.

    Returns:
      The stages that are finished.

    Raises:
      UserError: a file or model that cannot be used, tokenizers that disagree; as `run_stages`.

    Example:
      >>> from colm_jax import RunConfig, run_pipeline
      >>> config = RunConfig(base="SMALL", experts=["LARGE"], data="train.jsonl", dev="dev.jsonl")
      >>> run = run_pipeline(config, "OUT", until="labels")  # until="report", the default, trains and evaluates
      >>> list(run.stages)
      ['tokens', 'scores/base', 'scores/expert-1', 'labels']
    """
    inputs, out = RunInputs(config), path_of(out)

    def after(stage: StageDirectory) -> None:
        if stage.name == "tokens":
            console.note(f"{inputs.files['data']}: {counts(stage.directory)}")
            if config_text is not None and is_first():
                write_text(out / OPERATIVE_CONFIG, config_text)
        if stage.name == "report" and is_first():
            show_report(load_report(stage.directory / REPORT), console.output)
            console.output.print(f"report: {stage.directory / 'report.html'}", soft_wrap=True)

    stages = run_graph(len(config.experts))
    return FinishedRun(inputs, run_stages(stages, inputs, out, store=store, until=until, on_finished=after))

"""The stages of a run, each declared once, in order: from texts to the report."""

from functools import partial

from colm_jax.pipeline.executor import Stage
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages import answers, report, scores, team, training


def run_graph(experts: int) -> tuple[Stage[RunInputs], ...]:
    """Return the stages of a run with so many experts."""
    return (
        Stage("tokens", scores.tokens_key, scores.write_tokens),
        *(
            Stage(
                scores.scores_name(model),
                partial(scores.scores_key, model),
                partial(scores.write_scores, model),
                needs=("tokens",),
                applies=scores.scored_once if model else lambda inputs: True,
                step="score",
            )
            for model in range(experts + 1)
        ),
        Stage(
            "labels",
            training.labels_key,
            training.write_labels,
            needs=("tokens", "scores"),
            applies=training.needs_labels,
        ),
        Stage(
            "hidden",
            scores.hidden_key,
            scores.write_hidden,
            needs=("tokens",),
            applies=scores.needs_hidden,
            step="gate",
        ),
        Stage("gate", training.gate_key, training.write_gate, needs=("tokens", "scores", "labels", "hidden")),
        Stage(
            "train", training.train_key, training.write_trained, needs=("tokens", "scores", "labels", "hidden", "gate")
        ),
        Stage(
            "calibrate",
            team.calibrate_key,
            team.write_calibration,
            needs=("train",),
            applies=lambda inputs: inputs.calibrates,
        ),
        Stage("team", team.team_key, team.write_team, needs=("train", "calibrate"), step="calibrate"),
        Stage(
            "generate",
            answers.generate_key,
            answers.write_generated,
            needs=("train", "team"),
            applies=answers.has_prompts,
        ),
        Stage(
            "evaluate",
            answers.evaluate_key,
            answers.write_evaluation,
            needs=("train", "team", "generate"),
            applies=answers.has_prompts,
        ),
        Stage(
            "study",
            report.study_key,
            report.write_run_study,
            needs=("train", "team", "generate"),
            applies=answers.has_prompts,
            step="report",
        ),
        Stage(
            "report",
            report.report_key,
            report.write_report,
            needs=("tokens", "train", "calibrate", "team", "generate", "evaluate", "study"),
            applies=answers.has_prompts,
        ),
    )

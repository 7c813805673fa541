"""The stages of a run, each declared once, in order: from texts to the report."""

from functools import partial

from colm_jax.pipeline.executor import Stage
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages import answers, report, scores, team, training


def run_graph(experts: int) -> tuple[Stage[RunInputs], ...]:
    """Return the stages of a run with so many experts; the fields are those of `Stage`, in its order."""
    fitted = ("tokens", "scores", "labels", "hidden")
    answered = ("train", "team", "generate")
    evaluated = ("tokens", "scores", "train", "calibrate", "team", "generate")
    return (
        Stage("tokens", scores.tokens_key, scores.write_tokens),
        *(_score_stage(model) for model in range(experts + 1)),
        Stage("labels", training.labels_key, training.write_labels, ("tokens", "scores"), training.needs_labels),
        Stage("hidden", scores.hidden_key, scores.write_hidden, ("tokens",), scores.needs_hidden, step="gate"),
        Stage("gate", training.gate_key, training.write_gate, fitted),
        Stage("train", training.train_key, training.write_trained, (*fitted, "gate")),
        Stage("calibrate", team.calibrate_key, team.write_calibration, ("train",), team.calibrates),
        Stage("risk", team.risk_key, team.write_risk, ("train", "calibrate"), team.learns_risk, step="calibrate"),
        Stage("team", team.team_key, team.write_team, ("train", "calibrate", "risk"), step="calibrate"),
        Stage("generate", answers.generate_key, answers.write_generated, ("train", "team"), answers.has_prompts),
        Stage("evaluate", answers.evaluate_key, answers.write_evaluation, evaluated, answers.has_prompts),
        Stage("study", report.study_key, report.write_run_study, answered, answers.has_prompts, step="report"),
        Stage("report", report.report_key, report.write_report, report.SHOWN, answers.has_prompts),
    )


def _score_stage(model: int) -> Stage[RunInputs]:
    """Return the stage that scores the base (0) or an expert (1..M)."""
    key, work = partial(scores.scores_key, model), partial(scores.write_scores, model)
    if model == 0:
        return Stage(scores.scores_name(model), key, work, ("tokens",), step="score")
    return Stage(scores.scores_name(model), key, work, ("tokens",), scores.scored_once, step="score")

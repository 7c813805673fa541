"""What each subcommand does: from parsed flags to library calls. One function a command, by its name."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from colm_jax import console
from colm_jax.calibration.threshold import Calibration, decoded_prompts, references_of
from colm_jax.calibration.threshold import calibrate as calibrate_team
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checkpoints.team import TEAM_FILE, load_base, save_reference
from colm_jax.cli.flags import Flags, mesh_of, mesh_sizes
from colm_jax.cli.gin_edge import make, operative, parse
from colm_jax.data.convert import convert as convert_records
from colm_jax.data.records import read_jsonl
from colm_jax.decoding.correction import Correction
from colm_jax.decoding.strategies import find_strategy, known_strategy
from colm_jax.errors import UserError
from colm_jax.evaluation.files import evaluate_files, read_records
from colm_jax.evaluation.judges import judged_file, next_prompts
from colm_jax.generation import Settings
from colm_jax.models.lora import Lora
from colm_jax.parallel import is_first, on_first, reshaped
from colm_jax.pipeline.config import RunConfig
from colm_jax.pipeline.files import write_answers
from colm_jax.pipeline.refresh import refresh_settings, team_of_run
from colm_jax.pipeline.run import run_pipeline
from colm_jax.pipeline.score import score_model
from colm_jax.pipeline.stage import BOOKKEEPING, hash_model
from colm_jax.storage import (
    absolute,
    copy_file,
    entries,
    files_below,
    make_directory,
    modified,
    path_of,
    replacing_directory,
    write_json,
    write_text,
)
from colm_jax.sweep.config import Sweep
from colm_jax.sweep.runner import InputHashes, TrialState, trial_command, trial_key
from colm_jax.sweep.trials import Trial
from colm_jax.team import CoLM
from colm_jax.training.config import Training
from colm_jax.training.gate_fit import GateInit


def _config(flags: Flags, **more: Any) -> RunConfig:
    """A run's settings from flags and gin."""
    training = make(Training, objective=flags.objective, trainable=flags.trainable, seed=flags.seed, lora=make(Lora))
    return make(
        RunConfig,
        base=flags.base,
        experts=None if flags.expert is None else tuple(flags.expert),
        data=flags.data,
        dtype=flags.dtype,
        expert_dtype=flags.expert_dtype,
        mesh=mesh_sizes(flags),
        expert_mesh=mesh_sizes(flags, "expert_mesh"),
        expert_scores=flags.expert_scores,
        training=training,
        gate_init=make(GateInit),
        calibration=make(Calibration),
        correction=make(Correction),
        **more,
    )


def _make_team(config: RunConfig, out: str) -> None:
    run_pipeline(config, out, until="calibrate", config_text=operative())
    console.errors.print(f"team: {path_of(out) / 'team'}")


def demo(flags: Flags) -> None:
    """The offline demo."""
    from colm_jax.demo.show import run_demo

    run_demo(Path(flags.out), flags.seed)


def run(flags: Flags) -> None:
    """The whole pipeline."""
    config = _config(flags, dev=flags.dev, test=flags.test, task=flags.task)
    run_pipeline(config, flags.out, flags.store, flags.until, operative())


def check(flags: Flags) -> None:
    """What can be known of a command from its words: flags are read, and what a run or a training would refuse."""
    if flags.command in ("run", "train"):
        _config(flags, **{name: getattr(flags, name, None) for name in ("dev", "test", "task")})
    elif "mesh" in flags:
        mesh_sizes(flags)
    if flags.command == "generate":
        _generation_settings(flags)


def config(flags: Flags) -> None:
    """The settings of a run, printed; nothing is read but the gin files, and nothing is written."""
    _config(flags, dev=flags.dev, test=flags.test, task=flags.task)
    print(operative(places=not flags.bare), end="")


def sweep(flags: Flags) -> dict[str, Any] | None:
    """Many runs that differ in a few settings."""
    from colm_jax.sweep.sweep import run_sweep, run_trial
    from colm_jax.sweep.trials import make_trials

    files, bindings = flags.gin
    parse(files, bindings)
    settings, out = make(Sweep, parallel=flags.parallel), Path(flags.out)
    trials = make_trials(settings, [path_of(file).parent for file in files])
    if flags.trial is not None:
        trials = [trial for trial in trials if trial.name == flags.trial]
        if not trials:
            raise UserError(f"--trial {flags.trial}: no such trial; --commands lists them")
    if flags.commands:
        gin = [*(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in bindings)]
        for trial in trials:
            print(shlex.join(["colm", "sweep", *gin, "--out", flags.out, "--trial", trial.name]))
        return None
    hashes = InputHashes()
    states = [_state_of(trial, files, bindings, out, hashes) for trial in trials]  # all are checked before any begins
    if flags.trial is not None:
        return run_trial(states[0], settings)
    return run_sweep(states, settings, out, " ".join(Path(file).stem for file in files) or "sweep")


def _state_of(trial: Trial, files: list[str], bindings: list[str], out: Path, hashes: InputHashes) -> TrialState:
    """A trial, checked, with the hash of its settings and of what it reads.

    Raises:
      UserError: naming the trial: settings that no run could have.
    """
    try:
        parse([*files, *map(str, trial.files)], [*bindings, *trial.bindings])
        none = dict.fromkeys("base expert data dtype expert_dtype mesh expert_mesh expert_scores".split())
        config = _config(Flags(**none, objective=None, trainable=None, seed=None))
    except UserError as error:
        raise UserError(f"trial {trial.name}: {error}") from None
    command = trial_command(trial, files, bindings, out)
    return TrialState(trial, out / "trials" / trial.name, trial_key(operative(), hashes.of(config)), command)


def convert(flags: Flags) -> dict[str, Any]:
    """Data lines of a data set's official file."""
    out = path_of(flags.out)
    lines = convert_records(read_records(flags.data), flags.format, flags.rows)
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {"lines": len(lines), "written": str(out)}


def train(flags: Flags) -> None:
    """The pipeline up to the trained team."""
    _make_team(_config(flags), flags.out)


def refresh(flags: Flags) -> None:
    """Other experts for a trained team: its base scored, a gate of its own, calibrated; the base is only read."""
    settings = refresh_settings(flags.run, flags.dtype, flags.expert_dtype)
    if absolute(path_of(flags.out)) == absolute(path_of(flags.run)):
        raise UserError(f"--out {flags.out}: is the run itself; name another directory")
    settings |= {"trainable": "gate", "seed": None}
    _make_team(_config(Flags(**{**vars(flags), **settings}), dev=flags.dev, task=flags.task), flags.out)


def score(flags: Flags) -> dict[str, Any]:
    """Scores of one model."""
    return score_model(flags.model, flags.data, flags.out, dtype=flags.dtype, mesh=mesh_of(flags))


def _team(flags: Flags) -> CoLM:
    mesh = mesh_of(flags)
    with console.bar("loading", bytes_=True) as bar:
        return CoLM.from_pretrained(
            flags.base,
            flags.expert,
            mesh=mesh,
            expert_mesh=reshaped(mesh, mesh_sizes(flags, "expert_mesh")),
            dtype=flags.dtype or "float32",
            expert_dtype=flags.expert_dtype,
            progress=lambda model, done, total: bar.to(done, total, Path(model).name),
        )


def calibrate(flags: Flags) -> dict[str, Any]:
    """A threshold for a team."""
    out, records, settings = path_of(flags.out), read_jsonl(flags.data), make(Calibration)
    outline = outline_team(flags.base, flags.expert)
    find_strategy("defer", outline.experts, outline.gate_experts)
    examples = outline.encode_examples(records, flags.data)  # first: it refuses records of no known form
    if prompts := decoded_prompts(records, flags.task, settings):
        outline.encode_prompts(prompts, [where for where, _ in records])
    references_of(records, flags.task)
    team = _team(flags)
    with console.bar("calibrating") as bar:
        result = calibrate_team(team, records, examples, flags.task, settings, bar.to)
    if is_first():
        write_json(out, result)
    return {key: result[key] for key in ("threshold", "metric", "score", "deferral_rate")}


def _generation_settings(flags: Flags) -> Settings:
    """The settings of `generate` by its flags and gin alone: without --threshold, its default is not known yet."""
    known_strategy(flags.strategy)
    chosen = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "samples", "stop", "stop_token_ids")
    return Settings(
        0.5 if flags.threshold is None else flags.threshold,
        **{name: getattr(flags, name) for name in (*chosen, "schedule", "warmup", "rate", "batch_size")},
        correction=make(Correction),
    )


def generate(flags: Flags) -> dict[str, Any]:
    """Answers to a file of prompts."""
    settings = _generation_settings(flags)
    out, records = path_of(flags.out), read_jsonl(flags.prompts)
    prompts, places = [record for _, record in records], [where for where, _ in records]
    outline = outline_team(flags.base, flags.expert)
    find_strategy(flags.strategy, outline.experts, outline.gate_experts)
    settings.check_stop_ids(outline.tokenizer)
    if flags.threshold is None:
        settings = replace(settings, threshold=outline.threshold)
    known = outline.tokenizer, outline.context, outline.allowed
    requests = settings.requests(prompts, range(len(prompts)), places, *known)
    team, dtypes = _team(flags), (flags.dtype, flags.expert_dtype)
    with console.bar("generating", len(prompts) * flags.samples) as bar:
        lines = write_answers(
            out,
            team,
            prompts,
            [record.get("id", str(i)) for i, record in enumerate(prompts)],
            settings,
            flags.strategy,
            key=" ".join([*on_first(lambda: [*map(hash_model, team.directories)]), *map(str, dtypes)]),
            log_probs=flags.log_probs,
            places=places,
            prompt_ids=[request.prompt for request in requests[:: settings.samples]],
            progress=bar.to,
        )
    return {
        "answers": len(lines),
        "tokens": sum(len(line["tokens"]) for line in lines),
        "by_expert": sum(source > 0 for line in lines for source in line["sources"]),
        "expert_passes": team.engine.expert_passes.tolist(),
    }


def evaluate(flags: Flags) -> dict[str, Any]:
    """Grades of generated answers."""
    out = path_of(flags.out)
    result = evaluate_files(flags.task, flags.predictions, flags.references, flags.against)
    write_json(out, result)
    return {key: value for key, value in result.items() if key != "by_answer"}


def show(flags: Flags) -> None:
    """A run's results and answers, printed."""
    from colm_jax.pipeline.showing import show_path

    output = console.Output(width=flags.width)
    show_path(path_of(flags.path), flags.base, flags.answer, flags.changed, flags.answers, output)


def lm_eval(flags: Flags) -> None:
    """lm-evaluation-harness's own command line."""
    try:
        from colm_jax.evaluation.lm_eval import run_harness
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise UserError("colm lm_eval needs lm-evaluation-harness: pip install 'colm-jax[eval]'") from None
    run_harness(flags.passed_on)


def judge(flags: Flags) -> dict[str, Any]:
    """Files for and from the judges of open-ended answers."""
    out = path_of(flags.out)
    if flags.step == "prompts":
        lines = next_prompts(flags.judge, flags.questions, flags.predictions)
        write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return {"prompts": len(lines), "turn": len(flags.predictions) + 1}
    files = map(path_of, flags.predictions)
    made = max((modified(path) for path in files if path.exists()), default=0.0)
    write_text(out, judged_file(flags.judge, flags.questions, flags.predictions, flags.name, made))
    return {"written": str(out)}


def export(flags: Flags) -> None:
    """A run's team, as a directory of its own."""
    team, out = team_of_run(flags.run), path_of(flags.out)
    if entries(out):
        raise UserError(f"--out {flags.out}: is not empty; name a new directory")
    with replacing_directory(out, last=TEAM_FILE if flags.format == "colm" else "config.json") as beside:
        if flags.format == "colm":
            for name in files_below(team):
                if name not in BOOKKEEPING:
                    make_directory((beside / name).parent)
                    copy_file(team / name, beside / name)
        else:
            # Float32, whatever the base is stored in: the gate becomes a row of the head, and would be rounded.
            save_reference(beside, load_base(team, "float32", mesh_of(flags)), "float32")
    console.errors.print(f"written: {out}")

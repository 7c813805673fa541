"""`colm calibrate`: a threshold for a team."""

from typing import Any

from colm_jax.cli.flags import Flags, Parser, distributed_flag, out_flag, task_flag, team_flags
from colm_jax.cli.teams import load_team
from colm_jax.settings.calibration import Calibration

DESCRIPTION = "Choose the threshold on a dev file; curve, ROC and reliability of the gate go into the file too."
EXAMPLE = "colm calibrate --base RUN/team --data dev.jsonl --task number --out calibration.json"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    team_flags(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="the dev set, JSONL or .txt")
    task_flag(parser)
    out_flag(parser, "FILE")
    distributed_flag(parser)


def run(flags: Flags) -> dict[str, Any]:
    """Calibrate; what is wrong with the dev set is found before weights are loaded."""
    from colm_jax import console
    from colm_jax.calibration.threshold import calibrate, decoded_prompts, references_of, source_of
    from colm_jax.checkpoints.outline import outline_team
    from colm_jax.data.records import read_jsonl
    from colm_jax.parallel import is_first
    from colm_jax.settings.strategies import find_strategy
    from colm_jax.storage import path_of, write_json

    out, records, settings = path_of(flags.out), read_jsonl(flags.data), flags.bindings.make(Calibration)
    outline = outline_team(flags.base, flags.expert, spans=flags.spans or "auto", gate=flags.gate)
    find_strategy("defer", outline.experts, outline.gate_experts, outline.resident)
    examples = outline.encode_examples(records, flags.data)  # first: it refuses records of no known form
    source = source_of(records, settings, outline.resident)
    if prompts := decoded_prompts(records, flags.task, source):
        outline.encode_prompts(prompts, [where for where, _ in records])
    references_of(records, flags.task)
    team = load_team(flags)
    with console.bar("calibrating") as bar:
        result = calibrate(team, records, examples, flags.task, settings, bar.to)
    if is_first():
        write_json(out, result)
    return {key: result[key] for key in ("threshold", "metric", "score", "deferral_rate")}

"""`colm refresh`: other experts for a trained team."""

from colm_jax.cli.configuration import make_run
from colm_jax.cli.flags import (
    REMOTE,
    STORED,
    Flags,
    Parser,
    dtype_flags,
    expert_flag,
    expert_mesh_flag,
    mesh_flag,
    out_flag,
    setting_flags,
    task_flag,
)
from colm_jax.errors import UserError
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import OBJECTIVES, Training

DESCRIPTION = "Give a trained team other experts: score them, fit a new gate, calibrate; the base stays as it is."
EXAMPLE = "colm refresh --run RUN --expert NEW --data train.jsonl --dev dev.jsonl --out DIR"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    text = "a run with a trained team; nothing in it is changed"
    parser.add_argument("--run", required=True, metavar="DIR", help=text)
    expert_flag(parser, required=True)
    mesh_flag(parser)
    expert_mesh_flag(parser)
    dtype_flags(parser, default="as the team is stored", expert_default=f"as the team was trained; {STORED}")
    latent = [name for name in OBJECTIVES if name != "sft"]
    parser.add_argument("--objective", choices=latent, help="of the gate (default: marginal)")
    parser.add_argument("--data", required=True, metavar="FILE", help="training texts, JSONL or .txt")
    parser.add_argument("--dev", required=True, metavar="FILE", help="texts for calibration, JSONL or .txt")
    setting_flags(parser, RunConfig, "spans")
    setting_flags(parser, Training, "gate_ridge")
    setting_flags(parser, RemoteSettings, *REMOTE)
    task_flag(parser)
    out_flag(parser, text="a run directory of its own; the team is DIR/team")


def run(flags: Flags) -> None:
    """Score the experts, fit the gate, calibrate."""
    from colm_jax import console
    from colm_jax.pipeline.refresh import refresh_settings
    from colm_jax.pipeline.run import run_pipeline
    from colm_jax.storage import absolute, path_of

    fixed = refresh_settings(flags.run, flags.dtype, flags.expert_dtype)
    if absolute(path_of(flags.out)) == absolute(path_of(flags.run)):
        raise UserError(f"--out {flags.out}: is the run itself; name another directory")
    config = make_run(flags.bindings, {**vars(flags), **fixed})
    run_pipeline(config, flags.out, until="calibrate", config_text=flags.bindings.text())
    console.errors.print(f"team: {flags.out}/team")

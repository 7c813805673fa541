"""`colm train`: the pipeline up to the trained team."""

from colm_jax.cli.configuration import make_run
from colm_jax.cli.flags import Flags, Parser, distributed_flag, out_flag, run_flags

DESCRIPTION = "Train a gate (and its base) for a pair; the team is written to DIR/team."
EXAMPLE = "colm train --base small --expert large --data train.jsonl --out RUN --trainable gate"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    run_flags(parser)
    out_flag(parser, text="a run directory; the team is DIR/team")
    distributed_flag(parser)


def check(flags: Flags) -> None:
    """Validate the settings."""
    make_run(flags.bindings, vars(flags))


def run(flags: Flags) -> None:
    """Run the pipeline up to the team."""
    from colm_jax import console
    from colm_jax.pipeline.run import run_pipeline

    config = make_run(flags.bindings, vars(flags))
    run_pipeline(config, flags.out, until="calibrate", config_text=flags.bindings.text())
    console.errors.print(f"team: {flags.out}/team")

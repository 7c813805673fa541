"""`colm run`: the whole pipeline."""

from colm_jax.cli.configuration import make_run
from colm_jax.cli.flags import Flags, Parser, distributed_flag, out_flag, run_flags
from colm_jax.settings.run import STAGES

DESCRIPTION = (
    "Tokenise, score, label, fit the gate, train, calibrate, generate, evaluate, report. A stage that is done is "
    "skipped; rerun the same command to resume."
)
EXAMPLE = "colm run --base small --expert large --data train.jsonl --dev dev.jsonl --out RUN"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    run_flags(parser, "dev", "test", "task")
    out_flag(parser, text="the run directory")
    text = "keep the stages here, for runs that have stages in common; --out then links to them, as in colm sweep"
    parser.add_argument("--store", metavar="DIR", help=text)
    text = "the last stage to run (default: report)"
    parser.add_argument("--until", choices=STAGES, default="report", help=text)
    distributed_flag(parser)


def check(flags: Flags) -> None:
    """Validate the settings."""
    make_run(flags.bindings, vars(flags))


def run(flags: Flags) -> None:
    """Run the pipeline up to `--until`."""
    from colm_jax.pipeline.run import run_pipeline

    config = make_run(flags.bindings, vars(flags))
    run_pipeline(config, flags.out, flags.store, flags.until, flags.bindings.text())

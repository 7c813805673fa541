"""`colm config`: the settings of a run, printed."""

from colm_jax.cli.configuration import make_run
from colm_jax.cli.flags import Flags, Parser, run_flags

DESCRIPTION = "Every setting of a run, defaults too, as a gin file, and where each value comes from; nothing is run."
EXAMPLE = "colm config --gin_file configs/runs/llama2_7b_llemma_34b_gsm8k.gin --gin_file configs/methods/weak.gin"


def add_flags(parser: Parser) -> None:
    """Declares the command's flags."""
    run_flags(parser, "dev", "test", "task")
    parser.add_argument("--bare", action="store_true", help="without the comments")


def check(flags: Flags) -> None:
    """Validates the settings."""
    make_run(flags.bindings, vars(flags))


def run(flags: Flags) -> None:
    """Prints the settings; nothing is read but the gin files, and nothing is written."""
    make_run(flags.bindings, vars(flags))
    print(flags.bindings.text(places=not flags.bare), end="")

"""`colm check`: another command's flags and settings, validated."""

import argparse

from colm_jax.cli.flags import Flags, Parser

DESCRIPTION = (
    "Validate the flags and settings of the command that follows; no model or data is read, nothing is run. The launch "
    "scripts call it before they ask for machines."
)
EXAMPLE = "colm check train --base small --expert large --data train.jsonl --out RUN --mesh 1,16,1"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags: a command line."""
    parser.add_argument("command_line", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="and its flags")


def run(flags: Flags) -> None:
    """Do nothing: `main` validates the command that follows."""

"""`colm demo`: the offline demo."""

from pathlib import Path

from colm_jax.cli.flags import Flags, Parser

EXAMPLE = "colm demo"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--out", default="colm-demo", metavar="DIR", help="(default: colm-demo)")
    parser.add_argument("--seed", type=int, default=0, help="of pair, problems and training (default: 0)")


def run(flags: Flags) -> None:
    """Run the demo."""
    from colm_jax.demo.show import run_demo

    run_demo(Path(flags.out), flags.seed)

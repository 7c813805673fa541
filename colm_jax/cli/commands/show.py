"""`colm show`: a run's results and answers in the terminal."""

from pathlib import Path

from colm_jax.cli.flags import Flags, Parser

DESCRIPTION = "A run's results and answers in the terminal: who wrote which word, and what each model held likely."
EXAMPLE = "colm show RUN --changed\n         colm show RUN --answer 7\n         colm show answers.jsonl --base RUN/team"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    text = "a run (or demo) directory, or a file of generation lines"
    parser.add_argument("path", metavar="RUN_OR_FILE", help=text)
    parser.add_argument("--answer", type=int, metavar="N", help="one answer, token by token; the first is 1")
    text = (
        "only answers of which the expert changed the outcome: right where the base alone is wrong, or wrong where it "
        "is right; without a task, those whose text differs from the base's"
    )
    parser.add_argument("--changed", action="store_true", help=text)
    parser.add_argument("--answers", type=int, default=10, metavar="K", help="at most K; 0: all (default: 10)")
    text = "width of the output (default: the terminal's, or 80)"
    parser.add_argument("--width", type=int, metavar="COLUMNS", help=text)
    text = "model whose tokenizer decodes a file of generation lines (default: the team of the run containing it)"
    parser.add_argument("--base", metavar="MODEL", help=text)
    parser.add_argument("--svg", metavar="FILE", help="also write the output as a picture")


def run(flags: Flags) -> None:
    """Print it."""
    from colm_jax import console
    from colm_jax.cli.out import check_out
    from colm_jax.pipeline.showing import show_path
    from colm_jax.storage import path_of, write_text

    picture = None if flags.svg is None else check_out(flags.svg, is_file=True, flag="--svg")
    output = console.Output(width=flags.width, record=picture is not None)
    show_path(path_of(flags.path), flags.base, flags.answer, flags.changed, flags.answers, output)
    if picture is not None:
        write_text(picture, output.export_svg(title=f"colm show {Path(flags.path).name}"))

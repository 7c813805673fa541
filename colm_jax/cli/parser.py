"""The parser of the command line: `colm COMMAND ...`, a parser for each command, made by its own module."""

import argparse
import difflib
import importlib
from typing import NoReturn

import colm_jax
from colm_jax.cli.commands import GROUPS, SUMMARIES
from colm_jax.errors import UserError

_GIN = "settings: --gin_file FILE (repeatable) and --gin.NAME=VALUE, e.g. --gin.Training.learning_rate=1e-4"
# Commands that read no settings. A file of settings may be there for others, but a single one must be a mistake.
FLAGS_ONLY = ("convert", "demo", "evaluate", "export", "judge", "lm_eval", "push", "score", "show")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of the command line."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message and where to find help."""
        message = message.replace("the following arguments are required:", "missing:")
        raise UserError(f"{self.prog.removeprefix('colm ')}: {message}; see {self.prog} --help")


def main_help() -> str:
    """Return what `colm --help` prints: the commands by what one does."""
    lines = [
        "usage: colm COMMAND [--flag VALUE ...]",
        "",
        "A small base model writes; a gate, learned without labels, calls an expert for single tokens.",
    ]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:10} {summary}" for name, summary in commands.items())]
    lines += [
        "",
        "`colm COMMAND --help` says more; `colm --version` prints the version.",
        f"Most commands take {_GIN}.",
    ]
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command and its flags; its work is `flags.work`, which takes the flags.

    Raises:
      UserError: no such command or flag, a flag that is missing, a value that it cannot have.
      SystemExit: after --help or --version.
    """
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(main_help())
        raise SystemExit(0)
    if first == "--version":
        print(colm_jax.__version__)
        raise SystemExit(0)
    if first not in SUMMARIES:
        near = difflib.get_close_matches(first, SUMMARIES, 1)
        hint = f"did you mean {near[0]}?" if near else "colm --help lists them"
        raise UserError(f"{first}: no such command; {hint}")
    return parser_of(first).parse_args(arguments[1:])


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    module = importlib.import_module(f"colm_jax.cli.commands.{command}")
    parser = _Parser(
        prog=f"colm {command}",
        description=getattr(module, "DESCRIPTION", SUMMARIES[command]),
        epilog=f"example: {module.EXAMPLE}" + ("" if command in FLAGS_ONLY else f"\n\n{_GIN}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_flags(parser)
    parser.set_defaults(command=command, work=module.run, check=getattr(module, "check", lambda flags: None))
    return parser

"""The commands as Markdown: a section for each, made from its parser as `colm COMMAND --help` is."""

import argparse
import re
from collections.abc import Iterator

from colm_jax.cli.commands import GROUPS
from colm_jax.cli.parser import parser_of

MARK = "<!-- commands -->"
WIDTH = 88  # of usage lines, in characters


def commands_markdown() -> str:
    """Return a section for each group of commands, and in it one for each command and subcommand."""
    lines: list[str] = []
    for group, commands in GROUPS.items():
        lines += [f"## {group[0].upper()}{group[1:]}", ""]
        for command in commands:
            for parser in _with_subcommands(parser_of(command)):
                depth = "###" if parser.prog == f"colm {command}" else "####"
                lines += [f"{depth} {parser.prog}", "", *_section(parser)]
    return "\n".join(lines)


def _section(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the lines that describe a command: what it does, its usage, its flags, an example."""
    kind = parser.formatter_class
    parser.formatter_class = lambda prog: kind(prog, width=WIDTH)  # type: ignore[assignment]
    usage = re.sub(r"^usage: ", "", parser.format_usage(), count=1)
    yield from (*_plain(parser.description or "").split("\n"), "")
    yield from ("```text", *re.sub(r"(?m)^ {7}", "", usage).rstrip().split("\n"), "```", "")
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_shown(action)]
        if actions and group.title not in ("options", "positional arguments"):
            yield from (f"{_plain(group.title or '')}:", "")
        for action in actions:
            names = ", ".join(action.option_strings) or _metavar(action)
            takes = f" {_metavar(action)}" if action.option_strings and action.nargs != 0 else ""
            text = (
                _plain(formatter._expand_help(action)) if action.help else "required" if action.required else "optional"
            )
            yield from (f"`{names}{takes}`", f": {text}", "")
    example = (parser.epilog or "").partition("\n\nsettings: ")[0]
    if example:
        yield from ("Example:", "", "```text", *example.removeprefix("example: ").split("\n"), "```", "")


def _metavar(action: argparse.Action) -> str:
    """Return what stands for a flag's value."""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(str(choice) for choice in action.choices) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _is_shown(action: argparse.Action) -> bool:
    return (
        not isinstance(action, argparse._HelpAction | argparse._SubParsersAction) and action.help != argparse.SUPPRESS
    )


def _plain(text: str) -> str:
    """Escape what Markdown would read as markup, and mark flags as code."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"--[a-z](?:[\w.]|\\_)*", lambda flag: f"`{flag[0].replace(chr(92), '')}`", escaped)


def _with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()

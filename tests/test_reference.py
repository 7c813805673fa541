"""The reference: every public name has its place in docs/api, every command and flag in docs/cli.md."""

import re
from functools import cache
from pathlib import Path

import pytest

from colm_jax.cli.commands import SUMMARIES
from colm_jax.cli.parser import parser_of
from docs._ext.commands import MARK, commands_markdown
from docs._ext.public import defined_names, imported_from, public_names

ROOT = Path(__file__).parents[1]


def described() -> set[str]:
    """What the pages of docs/api describe: modules, and names with the module that they are described in."""
    found, public = set(), public_names()
    for page in (ROOT / "docs/api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for module, options in re.findall(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", text, re.MULTILINE):
            members = re.search(r":members: (.+)", options)
            left_out = re.search(r":exclude-members: (.*)", options)
            names = members[1].split(", ") if members else public.get(module) or defined_names(module)
            found |= {f"{module}.{name}" for name in names if not left_out or name not in left_out[1].split(", ")}
            found.add(module)
    return found


def homes(module: str, name: str) -> set[str]:
    """A public name with the modules in which it may be described: those that export it, and that which has it."""
    exporting = {f"{other}.{name}" for other, names in public_names().items() if name in names}
    return exporting | {f"{imported_from(module).get(name, module)}.{name}"}


@pytest.mark.parametrize("module", sorted(public_names()))
def test_every_public_name_is_described(module):
    pages = described()
    assert not [name for name in public_names()[module] if not homes(module, name) & pages]


@cache
def sections() -> dict[str, str]:
    """What the page says of each command, that of its subcommands included."""
    parts = re.split(r"^### (.*)$", commands_markdown(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def test_every_command_and_flag_is_on_the_page():
    assert MARK in (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    text_of = sections()
    for command in SUMMARIES:
        text = text_of[f"colm {command}"]
        for action in parser_of(command)._actions:
            for flag in set(action.option_strings) - {"-h", "--help"}:
                assert re.search(rf"^`[^`]*{re.escape(flag)}\b", text, re.MULTILINE), f"colm {command} {flag}"


def named_commands() -> set[tuple[str, str, str]]:
    """(page, command, flag) of the commands in the pages' code: `colm COMMAND --flag ...`."""
    found = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^ *```(?:bash)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            for command, rest in re.findall(r"(?:^|[ (])colm ([a-z_]+)((?: [^;|>&#]*)?)", line):
                if command in SUMMARIES and command not in ("check", "lm_eval"):  # these take another command's flags
                    flags = re.findall(r"(?<= )(--\w+)(?![\w.])", rest)
                    found |= {(page.name, command, flag) for flag in flags if flag != "--gin_file"}
    return found


def test_commands_in_the_pages_have_the_flags_that_they_are_given():
    named = named_commands()
    assert len(named) > 100
    for page, command, flag in named:
        assert re.search(rf"{flag}\b", sections()[f"colm {command}"]), f"{page}: colm {command} has no {flag}"

"""`colm config`: the settings of a run, printed."""

from dataclasses import MISSING, fields

from colm_jax.cli.configuration import make_run
from colm_jax.cli.flags import Flags, Parser, run_flags
from colm_jax.settings.fields import declared, default_of, name_of, types_of
from colm_jax.settings.gin_edge import SETTINGS

DESCRIPTION = "Every setting of a run, defaults too, as a gin file, and where each value comes from; nothing is run."
_HEAD = ("| setting | default | values | meaning |", "| --- | --- | --- | --- |")
EXAMPLE = "colm config --gin_file configs/runs/llama2_7b_llemma_34b_gsm8k.gin --gin_file configs/methods/weak.gin"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    run_flags(parser, "dev", "test", "task")
    parser.add_argument("--bare", action="store_true", help="without the comments")
    text = "print every setting there is, as the tables of docs/settings.md"
    parser.add_argument("--markdown", action="store_true", help=text)


def check(flags: Flags) -> None:
    """Validate the settings."""
    make_run(flags.bindings, vars(flags))


def run(flags: Flags) -> None:
    """Print the settings; nothing is read but the gin files, and nothing is written."""
    if flags.markdown:
        print(tables())
        return
    make_run(flags.bindings, vars(flags))
    print(flags.bindings.text(places=not flags.bare), end="")


def tables() -> str:
    """Return every setting of every class that gin knows, a Markdown table a class."""
    parts = []
    for name, kind in SETTINGS.items():
        lines = [f"### {name}", "", str(kind.__doc__).strip().splitlines()[0], "", *_HEAD]
        for entry in fields(kind):
            if "setting" in entry.metadata:
                wanted = name_of(types_of(kind)[entry.name], declared(entry))
                value = "required" if (default := default_of(kind, entry.name)) is MISSING else f"`{default!r}`"
                cells = (f"`{entry.name}`", value, wanted, declared(entry).help)
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)

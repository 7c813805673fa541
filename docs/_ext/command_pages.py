"""The page docs/cli.md: the commands in the place of their mark."""

from typing import Any

from sphinx.application import Sphinx

from docs._ext.commands import MARK, commands_markdown


def _insert(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "cli":
        source[0] = source[0].replace(MARK, commands_markdown())


def setup(app: Sphinx) -> dict[str, Any]:
    """Put the commands in the place of their mark."""
    app.connect("source-read", _insert)
    return {"parallel_read_safe": True}

"""Pages for source files: a link of the docs to a file or folder outside docs/ leads to a page that shows it.

Pages link to such files by relative paths, as in `[env.example.sh](../launch/env.example.sh)`, which a view of the
repository follows. On the site each of them has a page, made as `sphinx.ext.viewcode` makes those of modules.
"""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
# Files of the top level that are pages of the docs.
PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
}


class SourceLinks(SphinxTransform):
    """Turns relative links to files outside docs/ into links to their pages."""

    default_priority = 5  # before downloads are collected and references resolved

    def apply(self, **kwargs: Any) -> None:
        """Replace each link of the document that leads out of docs/ to something that exists."""
        folder = (Path(self.env.srcdir) / self.env.docname).parent
        if self.env.docname in PAGES.values():  # its links are those of the file that it includes
            folder = ROOT
        for node in list(self.document.findall(lambda found: isinstance(found, download_reference | pending_xref))):
            if node.get("reftype") != "myst":
                continue
            target, mark, anchor = node["reftarget"].partition("#")
            if node["refdomain"] == "doc":  # a page, for which MyST takes every file that ends in .md
                target, anchor = f"{target}.md", node["reftargetid"] or ""
                mark = "#" if anchor else ""
            path = (folder / target).resolve()
            if not path.exists() or not path.is_relative_to(ROOT) or path.is_relative_to(self.env.srcdir):
                continue
            name = path.relative_to(ROOT).as_posix()
            if PAGES.get(name) in self.env.found_docs:
                page = PAGES[name]
            else:
                page = f"source/{name}"
                _linked(self.env).setdefault(self.env.docname, set()).add(name)
            link = nodes.reference("", "", *node.children, internal=True, classes=["source"])
            link["refuri"] = f"{'../' * self.env.docname.count('/')}{page}.html{mark}{anchor}"
            node.replace_self(link)


def _linked(env: BuildEnvironment) -> dict[str, set[str]]:
    """The files and folders that each page links to, as paths from the repository's root."""
    if not hasattr(env, "colm_source_links"):
        env.colm_source_links = {}
    return env.colm_source_links


def _forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    _linked(env).pop(docname, None)


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file that is linked, and for each file of a folder that is."""
    waiting = sorted(set().union(*_linked(app.env).values()))
    done: set[str] = set()
    for name in waiting:
        if name in done:
            continue
        done.add(name)
        path = ROOT / name
        if path.is_dir():
            inside = [entry for entry in sorted(path.iterdir()) if entry.is_file()]
            waiting += [entry.relative_to(ROOT).as_posix() for entry in inside]
            links = (
                f'<li><a href="{path.name}/{entry.name}.html">{html.escape(entry.name)}</a></li>' for entry in inside
            )
            body = f"<ul>{''.join(links)}</ul>"
        else:
            body = app.builder.highlighter.highlight_block(
                path.read_text(encoding="utf-8"), _language(path), force=True
            )
        title = html.escape(name)
        yield f"source/{name}", {"title": title, "body": f"<h1>{title}</h1>{body}"}, "page.html"


def _language(path: Path) -> str:
    """Return Pygments's name of a file's language; gin is read as Python."""
    if path.suffix == ".gin":
        return "python"
    try:
        return get_lexer_for_filename(path.name).aliases[0]
    except (ClassNotFound, IndexError):
        return "text"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the links and their pages."""
    app.add_transform(SourceLinks)
    app.connect("env-purge-doc", _forget)
    app.connect("html-collect-pages", _pages)
    return {"parallel_read_safe": False, "env_version": 1}

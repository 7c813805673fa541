"""Links between the pages, and from them to files of the repository: each leads to something that exists."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for folder in (ROOT, ROOT / "docs", ROOT / "docs/api", ROOT / "docs/launch") for path in folder.glob("*.md")
)


@cache
def tokens(path: Path):
    """A page's tokens, those of tables and paragraphs in flat lists; code has no links."""
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def links(path: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    inner = [child for token in tokens(path) for child in token.children or []]
    return [
        str(token.attrGet("href") or token.attrGet("src")) for token in inner if token.type in ("link_open", "image")
    ]


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    found: dict[str, int] = {}
    listed = tokens(path)
    for heading, inline in pairwise(listed):
        if heading.type == "heading_open":
            text = "".join(child.content for child in inline.children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
    return {slug if not n else f"{slug}-{n}" for slug, count in found.items() for n in range(count + 1)}


def test_there_are_pages_in_every_folder():
    assert {path.parent for path in PAGES} == {ROOT, ROOT / "docs", ROOT / "docs/api", ROOT / "docs/launch"}
    assert not {path for path in ROOT.joinpath("docs").rglob("*.md")} - set(PAGES)


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in PAGES])
def test_relative_links_lead_to_files_and_headings_that_exist(page):
    path = ROOT / page
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue  # checked by sphinx-build -b linkcheck, which needs a network
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(ROOT) and target.exists(), f"{page} links to {link}: no such file"
        if anchor:
            assert target.suffix == ".md", f"{page} links to {link}: only pages have anchors"
            assert anchor in anchors(target), f"{page} links to {link}: no such heading"


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for index in (ROOT / "docs/index.md", ROOT / "docs/api/index.md"):
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", index.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            for line in filter(None, block.splitlines()):
                if not line.startswith(":") and not line.endswith("<self>"):
                    name = re.sub(r".*<(.*)>$", r"\1", line)
                    listed.add((index.parent / f"{name}.md").relative_to(ROOT / "docs"))
    pages = {path.relative_to(ROOT / "docs") for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert listed == pages - {Path("index.md")}

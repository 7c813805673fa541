"""The scripts that make the tables of the docs, and what they share."""

from pathlib import Path


def put_table(page: Path, begin: str, end: str, table: str) -> None:
    """Write a table between two marks of a page, and print it."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")
    print(table)

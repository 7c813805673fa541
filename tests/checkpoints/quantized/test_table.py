"""The table of formats in docs/families.md: every format is in it, and what it says holds."""

import pytest

from docs.tables.formats import BEGIN, DOCS, END, HEAD, ROWS, measure
from tests.checkpoints.quantized.test_scores import NATS


def shown():
    """The rows of the page, by name."""
    lines = DOCS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip().splitlines()
    assert lines[0] == HEAD
    return {name: cells for name, *cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])}


def test_the_table_shows_every_format():
    assert list(shown()) == ROWS
    for kept, share, error in shown().values():
        assert (kept, share, error) == ("none", "–", "–") or (float(error) < NATS and float(share) < 0.7)


@pytest.mark.parametrize("name", ["awq", "mxfp4 (gpt-oss)", "GGUF Q8_0", "GGUF Q4_0", "GGUF Q4_K"])
def test_the_table_shows_what_stays_quantised(name):
    row = measure(name)
    assert row.error < NATS
    kept, share, _ = shown()[name]
    assert kept == (f"{row.kept} of {row.of}" if row.kept else "none")
    assert share == ("–" if row.share is None else f"{row.share:.2f}")

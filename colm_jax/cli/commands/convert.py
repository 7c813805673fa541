"""`colm convert`: data lines of a data set's official file."""

import json
from typing import Any

from colm_jax.cli.flags import Flags, Parser, out_flag

DESCRIPTION = "Data lines (prompt, completion, what the task grades by) of a data set's official file."
EXAMPLE = "colm convert --format gsm8k --data train.jsonl --rows 0:6973 --out data/gsm8k/train.jsonl"
FORMATS = ("gsm8k", "math", "pubmedqa", "bioasq")  # those of data.convert; a test compares them


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--format", required=True, choices=FORMATS, help="whose file it is")
    parser.add_argument("--data", required=True, metavar="FILE", help="as published: JSONL or .json")
    text = "these records only, counted from 0, LAST left out; either may be missing (default: all)"
    parser.add_argument("--rows", metavar="FIRST:LAST", help=text)
    out_flag(parser, "FILE")


def run(flags: Flags) -> dict[str, Any]:
    """Convert the file."""
    from colm_jax.data.convert import convert
    from colm_jax.evaluation.files import read_records
    from colm_jax.storage import path_of, write_text

    out = path_of(flags.out)
    lines = convert(read_records(flags.data), flags.format, flags.rows)
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {"lines": len(lines), "written": str(out)}

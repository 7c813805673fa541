"""`colm score`: scores of one model on a data file."""

from typing import Any

from colm_jax.cli.flags import STORED, Flags, Parser, distributed_flag, mesh_flag, mesh_of, out_flag
from colm_jax.settings.models import EXPERT_DTYPES, MODEL

EXAMPLE = "colm score --model M --data F --out DIR"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--model", required=True, metavar="MODEL", help=MODEL)
    mesh_flag(parser)
    distributed_flag(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="JSONL or .txt")
    text = f"of weights and activations; int8, int4: weights only (default: float32; {STORED})"
    parser.add_argument("--dtype", choices=EXPERT_DTYPES, help=text)
    out_flag(parser)


def run(flags: Flags) -> dict[str, Any]:
    """Score the file; a rerun resumes."""
    from colm_jax.pipeline.score import score_model

    return score_model(flags.model, flags.data, flags.out, dtype=flags.dtype, mesh=mesh_of(flags))

"""`colm score`: scores of one model on a data file."""

from typing import Any

from colm_jax.cli.flags import Flags, Parser, distributed_flag, mesh_flag, mesh_of, out_flag
from colm_jax.settings.models import EXPERT_DTYPES

EXAMPLE = "colm score --model M --data F --out DIR"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    text = "Hugging Face directory, team, GGUF file, or Hub name"
    parser.add_argument("--model", required=True, metavar="MODEL", help=text)
    mesh_flag(parser)
    distributed_flag(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="JSONL or .txt")
    text = "int8, int4: weights only (default: float32; quantised checkpoints stay so)"
    parser.add_argument("--dtype", choices=EXPERT_DTYPES, help=text)
    out_flag(parser)


def run(flags: Flags) -> dict[str, Any]:
    """Score the file; a rerun resumes."""
    from colm_jax.pipeline.score import score_model

    return score_model(flags.model, flags.data, flags.out, dtype=flags.dtype, mesh=mesh_of(flags))

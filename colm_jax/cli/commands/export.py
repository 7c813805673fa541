"""`colm export`: a run's team, or its gate alone, as a directory of its own."""

from colm_jax.cli.flags import Flags, Parser, mesh_flag, mesh_of, out_flag
from colm_jax.errors import UserError

EXAMPLE = "colm export --run RUN --out TEAM\n         colm export --run RUN --out GATE --format gate"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--run", required=True, metavar="DIR", help="a run with a trained team")
    out_flag(parser, text="a new directory")
    mesh_flag(parser)
    text = (
        "colm: base, gate and colm.json; gate: without the base, which must not have been trained (--trainable gate); "
        "reference: the original Co-LLM's (default: colm)"
    )
    parser.add_argument("--format", choices=("colm", "gate", "reference"), default="colm", help=text)


def run(flags: Flags) -> None:
    """Copy the team, write its gate alone, or write it in the original's format."""
    from colm_jax import console
    from colm_jax.checkpoints.gates import write_gate
    from colm_jax.checkpoints.team import TEAM_FILE, load_base, save_reference
    from colm_jax.pipeline.refresh import team_of_run
    from colm_jax.pipeline.stage import BOOKKEEPING
    from colm_jax.storage import copy_file, entries, files_below, make_directory, path_of, replacing_directory

    team, out = team_of_run(flags.run), path_of(flags.out)
    if entries(out):
        raise UserError(f"--out {flags.out}: is not empty; name a new directory")
    with replacing_directory(out, last="config.json" if flags.format == "reference" else TEAM_FILE) as beside:
        if flags.format == "colm":
            for name in files_below(team):
                if name not in BOOKKEEPING:
                    make_directory((beside / name).parent)
                    copy_file(team / name, beside / name)
        elif flags.format == "gate":
            write_gate(team, beside, leave=BOOKKEEPING)
        else:
            # Float32, whatever the base is stored in: the gate becomes a row of the head, and would be rounded.
            save_reference(beside, load_base(team, "float32", mesh_of(flags)), "float32")
    console.errors.print(f"written: {out}")

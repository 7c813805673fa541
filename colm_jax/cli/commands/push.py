"""`colm push`: a team, or a gate without its base, published on the Hub."""

from typing import Any

from colm_jax.cli.flags import Flags, Parser

DESCRIPTION = (
    "Publish a team directory, or a gate without its base (colm export), on the Hub, in one commit. Others then load "
    "it by its name: --base OWNER/NAME, or --gate OWNER/NAME. Published colm.json names models by their Hub names, and "
    "holds no paths of this machine. The login is huggingface_hub's: `hf auth login`, or HF_TOKEN."
)
EXAMPLE = (
    "colm push RUN/team OWNER/NAME --license apache-2.0 --dry_run\n"
    "         colm push RUN/team OWNER/NAME --license apache-2.0 --experts OWNER/EXPERT --private"
)


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    text = "a directory: RUN/team, or what colm export wrote (--format colm or gate)"
    parser.add_argument("team", metavar="TEAM", help=text)
    text = "the repository on the Hub, created if missing; what a team there no longer holds is removed"
    parser.add_argument("name", metavar="OWNER/NAME", help=text)
    text = "list files, sizes and the card's metadata; validate everything; nothing is sent or asked"
    parser.add_argument("--dry_run", action="store_true", help=text)
    text = "only those with access see it (default: public, unless the owner's setting is another one)"
    parser.add_argument("--private", action="store_true", help=text)
    text = "branch, created if missing (default: main)"
    parser.add_argument("--revision", metavar="BRANCH", help=text)
    parser.add_argument("--message", metavar="TEXT", help="of the commit (default: Upload team, or gate)")
    text = "licence of what is uploaded, by the Hub's identifier: apache-2.0, mit, llama3.2, other, ..."
    parser.add_argument("--license", metavar="ID", help=text)
    parser.add_argument("--license_name", metavar="NAME", help="of --license other")
    parser.add_argument("--license_link", metavar="URL", help="of --license other")
    text = (
        "names by which others load the experts, in order, as OWNER/NAME[:FILE.gguf][@REVISION]; needed where they are "
        "local directories. Only the uploaded colm.json changes; without REVISION, the newest commit is pinned"
    )
    parser.add_argument("--experts", metavar="NAME,...", help=text)
    text = "name by which others find the base, likewise; needed for a gate whose base is a local directory here"
    parser.add_argument("--base_model", metavar="NAME", help=text)
    text = "data set on the Hub that the gate was trained on, for the card; repeatable"
    parser.add_argument("--dataset", action="append", default=[], metavar="OWNER/NAME", help=text)
    text = "language code, for the card; repeatable"
    parser.add_argument("--language", action="append", default=[], metavar="CODE", help=text)


def run(flags: Flags) -> dict[str, Any]:
    """Validate, and publish unless --dry_run."""
    from colm_jax.checkpoints.card import Stated
    from colm_jax.checkpoints.gates import is_gate_only
    from colm_jax.checkpoints.hub import pin, publish
    from colm_jax.checkpoints.publish import prepare
    from colm_jax.pipeline.stage import BOOKKEEPING

    names = None if flags.experts is None else [name.strip() for name in flags.experts.split(",")]
    stated = Stated(
        license=flags.license,
        license_name=flags.license_name,
        license_link=flags.license_link,
        datasets=tuple(flags.dataset),
        language=tuple(flags.language),
    )
    upload = prepare(flags.team, flags.name, stated, names, flags.base_model, BOOKKEEPING)
    sent: dict[str, Any] = {}
    if not flags.dry_run:
        pinned = [*map(pin, upload.experts)]
        base = None if flags.base_model is None else pin(flags.base_model)
        upload = prepare(flags.team, flags.name, stated, pinned, base, BOOKKEEPING)
        what = "gate" if is_gate_only(upload.facts) else "team"
        message = flags.message or f"Upload {what}"
        sent = publish(upload, private=flags.private, branch=flags.revision, message=message)
    sizes = upload.sizes
    return {
        "name": upload.name,
        **sent,
        "files": sizes,
        "bytes": sum(sizes.values()),
        "experts": upload.experts,
        "card": upload.card,
        "left_out": list(upload.left_out),
        "notes": list(upload.notes),
    }

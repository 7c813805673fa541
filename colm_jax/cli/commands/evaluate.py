"""`colm evaluate`: grades of generated answers."""

from typing import Any

from colm_jax.cli.flags import Flags, Parser, out_flag
from colm_jax.settings.run import TASKS

EXAMPLE = "colm evaluate --task gsm8k --predictions answers.jsonl --references test.jsonl --out result.json"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--task", required=True, metavar="TASK", help=", ".join(TASKS))
    text = "generation lines, of one or more samples a prompt; of bioasq also a submission"
    parser.add_argument("--predictions", required=True, metavar="FILE", help=text)
    text = "the right answers: JSONL, or the data set's official .json; pairs by id where both files have it"
    parser.add_argument("--references", required=True, metavar="FILE", help=text)
    text = "other predictions of the same references: difference, its 95 %% interval and p (paired bootstrap)"
    parser.add_argument("--against", metavar="FILE", help=text)
    out_flag(parser, "FILE")


def run(flags: Flags) -> dict[str, Any]:
    """Grade the answers."""
    from colm_jax.evaluation.files import evaluate_files
    from colm_jax.storage import path_of, write_json

    out = path_of(flags.out)
    result = evaluate_files(flags.task, flags.predictions, flags.references, flags.against)
    write_json(out, result)
    return {key: value for key, value in result.items() if key != "by_answer"}

"""`colm judge`: files for and from the judges of open-ended answers."""

import json
from typing import Any

from colm_jax.cli.flags import Flags, Parser, out_flag

EXAMPLE = "colm judge prompts --judge mt_bench --questions question.jsonl --out prompts1.jsonl"
_PROMPTS = (
    "Prompt lines of the next turn, for colm generate.",
    "colm judge prompts --judge mt_bench --questions question.jsonl --predictions turn1.jsonl --out prompts2.jsonl",
)
_ANSWERS = (
    "Generation lines as the file that the judge reads: FastChat's model_answer JSONL, alpaca_eval's outputs JSON.",
    "colm judge answers --judge mt_bench --questions question.jsonl --predictions turn1.jsonl "
    "--predictions turn2.jsonl --name my-team --out model_answer/my-team.jsonl",
)


def add_flags(parser: Parser) -> None:
    """Declare the command's flags: two steps with flags of their own."""
    steps = parser.add_subparsers(dest="step", required=True, metavar="WHAT")
    prompts = _step(steps, "prompts", *_PROMPTS)
    text = "generation lines of each turn so far, in order; repeatable"
    prompts.add_argument("--predictions", action="append", default=[], metavar="FILE", help=text)
    out_flag(prompts, "FILE")
    answers = _step(steps, "answers", *_ANSWERS)
    text = "generation lines of each turn, in order; repeatable"
    answers.add_argument("--predictions", action="append", required=True, metavar="FILE", help=text)
    answers.add_argument("--name", required=True, help="of the team, in the judge's tables")
    out_flag(answers, "FILE")


def _step(steps: Any, name: str, summary: str, example: str) -> Parser:
    step = steps.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    step.add_argument("--judge", required=True, choices=("mt_bench", "alpaca_eval"))
    text = "MT-Bench's question.jsonl, or alpaca_eval's JSON of instructions"
    step.add_argument("--questions", required=True, metavar="FILE", help=text)
    return step


def run(flags: Flags) -> dict[str, Any]:
    """Write prompts, or the judge's file."""
    from colm_jax.evaluation.judges import judged_file, next_prompts
    from colm_jax.storage import modified, path_of, write_text

    out = path_of(flags.out)
    if flags.step == "prompts":
        lines = next_prompts(flags.judge, flags.questions, flags.predictions)
        write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return {"prompts": len(lines), "turn": len(flags.predictions) + 1}
    files = map(path_of, flags.predictions)
    made = max((modified(path) for path in files if path.exists()), default=0.0)
    write_text(out, judged_file(flags.judge, flags.questions, flags.predictions, flags.name, made))
    return {"written": str(out)}

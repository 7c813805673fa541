"""`colm generate`: answers to a file of prompts."""

from dataclasses import replace
from typing import Any

from colm_jax.cli.flags import Flags, Parser, distributed_flag, out_flag, team_flags
from colm_jax.cli.teams import load_team

DESCRIPTION = (
    "Answer prompts; each generated token says who wrote it. Finished answers are kept in FILE.part: rerun the same "
    "command to resume."
)
EXAMPLE = "colm generate --base RUN/team --prompts prompts.jsonl --out answers.jsonl --threshold 0.3"

_CHOSEN = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "samples", "stop", "stop_token_ids")
_MORE = ("schedule", "warmup", "rate", "batch_size")


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    sub = parser
    team_flags(parser)
    sub.add_argument(
        "--prompts", required=True, metavar="FILE", help='JSONL: {"prompt"}, {"messages"} or {"input_ids"}; or .txt'
    )
    out_flag(parser, "FILE")
    sub.add_argument("--threshold", type=float, help="an expert writes where p_defer exceeds it (default: calibrated)")
    sub.add_argument("--strategy", default="defer", metavar="S", help="defer (default)")
    sub.add_argument("--max_new_tokens", type=int, default=96, metavar="N")
    sub.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: most probable token (default)")
    sub.add_argument("--top_p", type=float, default=1.0, metavar="P")
    sub.add_argument("--top_k", type=int, default=0, metavar="K", help="0: all (default)")
    sub.add_argument("--min_p", type=float, default=0.0, metavar="P")
    sub.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each prompt (default 1)")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="0 (default) to 2^64 - 1")
    sub.add_argument("--stop", action="append", metavar="STR")
    sub.add_argument("--stop_token_ids", type=int, nargs="+", action="extend", metavar="ID")
    sub.add_argument("--schedule", default="constant", metavar="S", help="constant, linear, cosine, exponential")
    sub.add_argument("--warmup", type=int, default=0, metavar="N", help="tokens over which the threshold falls from 1")
    sub.add_argument("--rate", type=float, default=0.5, help="deferral probability of strategy random")
    sub.add_argument("--batch_size", type=int, default=8, metavar="B", help="answers written side by side (default 8)")
    sub.add_argument("--log_probs", action="store_true")
    distributed_flag(parser)


def check(flags: Flags) -> None:
    """Validate the settings."""
    _settings(flags)


def _settings(flags: Flags) -> Any:
    from colm_jax.decoding.correction import Correction
    from colm_jax.decoding.strategies import known_strategy
    from colm_jax.generation import Settings

    known_strategy(flags.strategy)
    return Settings(
        0.5 if flags.threshold is None else flags.threshold,
        **{name: getattr(flags, name) for name in (*_CHOSEN, *_MORE)},
        correction=flags.bindings.make(Correction),
    )


def run(flags: Flags) -> dict[str, Any]:
    """Answer the prompts; what is wrong with them is found before weights are loaded."""
    from colm_jax import console
    from colm_jax.checkpoints.outline import outline_team
    from colm_jax.data.records import read_jsonl
    from colm_jax.decoding.strategies import find_strategy
    from colm_jax.parallel import on_first
    from colm_jax.pipeline.files import write_answers
    from colm_jax.pipeline.stage import hash_model
    from colm_jax.storage import path_of

    settings = _settings(flags)
    out, records = path_of(flags.out), read_jsonl(flags.prompts)
    prompts, places = [record for _, record in records], [where for where, _ in records]
    outline = outline_team(flags.base, flags.expert)
    find_strategy(flags.strategy, outline.experts, outline.gate_experts)
    settings.check_stop_ids(outline.tokenizer)
    if flags.threshold is None:
        settings = replace(settings, threshold=outline.threshold)
    known = outline.tokenizer, outline.context, outline.allowed
    requests = settings.requests(prompts, range(len(prompts)), places, *known)
    team, dtypes = load_team(flags), (flags.dtype, flags.expert_dtype)
    with console.bar("generating", len(prompts) * flags.samples) as bar:
        lines = write_answers(
            out,
            team,
            prompts,
            [record.get("id", str(i)) for i, record in enumerate(prompts)],
            settings,
            flags.strategy,
            key=" ".join([*on_first(lambda: [*map(hash_model, team.directories)]), *map(str, dtypes)]),
            log_probs=flags.log_probs,
            places=places,
            prompt_ids=[request.prompt for request in requests[:: settings.samples]],
            progress=bar.to,
        )
    return {
        "answers": len(lines),
        "tokens": sum(len(line["tokens"]) for line in lines),
        "by_expert": sum(source > 0 for line in lines for source in line["sources"]),
        "expert_passes": team.engine.expert_passes.tolist(),
    }

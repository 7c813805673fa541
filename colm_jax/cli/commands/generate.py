"""`colm generate`: answers to a file of prompts."""

from typing import Any

from colm_jax.cli.configuration import make_remote
from colm_jax.cli.flags import Flags, Parser, distributed_flag, given, out_flag, setting_flags, team_flags
from colm_jax.cli.teams import load_team
from colm_jax.settings.generation import Correction, GenerationSettings

DESCRIPTION = (
    "Answer prompts; each generated token says who wrote it. Finished answers are kept in FILE.part: rerun the same "
    "command to resume."
)
EXAMPLE = "colm generate --base RUN/team --prompts prompts.jsonl --out answers.jsonl --threshold 0.3"
SETTINGS = (
    *("threshold", "strategy", "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "samples", "seed"),
    *("stop", "stop_token_ids", "schedule", "warmup", "rate", "batch_size", "speculate", "on_expert_failure"),
)


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    team_flags(parser)
    text = 'JSONL: {"prompt"}, {"messages"} or {"input_ids"}; or .txt'
    parser.add_argument("--prompts", required=True, metavar="FILE", help=text)
    out_flag(parser, "FILE", "of generation lines")
    setting_flags(parser, GenerationSettings, *SETTINGS, repeatable=("stop",))
    text = "add each token's log-probability under every model, which reads each answer once more"
    parser.add_argument("--log_probs", action="store_true", default=None, help=text)
    distributed_flag(parser)


def check(flags: Flags) -> None:
    """Validate the settings."""
    _settings(flags)


def _settings(flags: Flags) -> GenerationSettings:
    flags.bindings.bind("Generation", **given(vars(flags), GenerationSettings))
    return flags.bindings.make(GenerationSettings, correction=flags.bindings.make(Correction))


def run(flags: Flags) -> dict[str, Any]:
    """Answer the prompts; what is wrong with them is found before weights are loaded."""
    from colm_jax import console
    from colm_jax.checkpoints.outline import outline_team
    from colm_jax.data.records import read_jsonl
    from colm_jax.generation import check_stop_ids
    from colm_jax.parallel import on_first
    from colm_jax.pipeline.files import total_sent, write_answers
    from colm_jax.pipeline.stage import hash_expert, hash_model
    from colm_jax.settings.strategies import find_strategy
    from colm_jax.storage import path_of

    settings = _settings(flags)
    out, records = path_of(flags.out), read_jsonl(flags.prompts)
    prompts, places = [record for _, record in records], [where for where, _ in records]
    outline = outline_team(flags.base, flags.expert, spans=flags.spans or "auto", gate=flags.gate)
    find_strategy(settings.strategy, outline.experts, outline.gate_experts, outline.resident)
    check_stop_ids(settings, outline.tokenizer)
    outline.encode_prompts(prompts, places)
    remote, named = make_remote(flags.bindings, vars(flags)), list(zip(outline.models[1:], outline.directories[1:]))
    own = [where for where in (outline.base_directory, outline.gate) if where is not None]
    team = load_team(flags)  # first: it downloads what is missing of the files that are hashed
    models = on_first(lambda: [*map(hash_model, own), *(hash_expert(*each, remote) for each in named)])
    facts = (*models, flags.dtype, flags.expert_dtype, *outline.kinds)
    with console.bar("generating", len(prompts) * settings.samples) as bar:
        lines = write_answers(
            out,
            team,
            prompts,
            [record.get("id", str(i)) for i, record in enumerate(prompts)],
            settings,
            key=" ".join(map(str, facts)),
            places=places,
            progress=bar.to,
        )
    return {
        "answers": len(lines),
        "tokens": sum(len(line["tokens"]) for line in lines),
        "by_expert": sum(source > 0 for line in lines for source in line["sources"]),
        "expert_passes": team.engine.expert_passes.tolist(),
        **({"sent": total_sent(lines)} if "remote" in outline.kinds else {}),
    }

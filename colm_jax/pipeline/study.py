"""The study of answers, for the report: likeliest tokens of each model at every written token; responsibilities.

It is a stage of its own because it runs the models again. Its size is bounded, and so is the report's.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from colm_jax.data.records import Examples
from colm_jax.evaluation.gate import Agreement, agreement
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import is_first, on_first
from colm_jax.report.contents import View
from colm_jax.scoring.candidates import Candidates, find_candidates
from colm_jax.storage import read_json, read_lines, write_json, write_text
from colm_jax.team import CoLM, Generation
from colm_jax.text.generated import GeneratedText
from colm_jax.text.tokenizer import Tokenizer

CANDIDATES, AGREEMENT = "candidates.jsonl", "agreement.json"
END = "⟨end⟩"  # shown for the end-of-text token, which has no text


@dataclass(frozen=True)
class Study:
    """The contents of a study's directory."""

    views: dict[str, tuple[tuple[View, ...], ...]]  # by the answer's id: for each token, each model's view
    agreement: Agreement | None


def write_study(
    team: CoLM,
    answers: Sequence[Generation],
    ids: Sequence[Any],
    examples: Examples,
    directory: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, model: None,
) -> None:
    """Write candidates.jsonl, a line for each answer, and agreement.json; an existing file is kept.

    Args:
      team: the models.
      answers: every model scores their tokens; the base alone where an expert does not read them.
      ids: the answers' ids in their file.
      examples: texts that are scored for responsibilities.
      directory: where the files are written.
      progress: progress callback(answers done, their total over all models, model's name).
    """
    if on_first(lambda: not (directory / CANDIDATES).exists()):
        resident = [expert for expert in team.experts if isinstance(expert, Decoder)]
        decoders = [team.base, *(resident if len(resident) == len(team.experts) else [])]
        total = len(decoders) * len(answers)
        found: list[list[Candidates]] = []
        for m, decoder in enumerate(decoders):
            name = f"expert {m}" if m else "base"

            def report(done: int, of_model: int, m: int = m, name: str = name) -> None:
                progress(m * len(answers) + done, total, name)

            prompts, written = [a.prompt_ids for a in answers], [a.tokens for a in answers]
            found.append(find_candidates(decoder, prompts, written, team.allowed, progress=report))
        lines = [_line(team.tokenizer, ids[i], answers[i], [views[i] for views in found]) for i in range(len(answers))]
        if is_first():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(directory / CANDIDATES, text)
    if on_first(lambda: not (directory / AGREEMENT).exists()):
        found_agreement = agreement(team.score_examples(examples)) if examples.tokens else None
        if is_first():
            write_json(directory / AGREEMENT, {} if found_agreement is None else asdict(found_agreement))


def read_study(directory: Path) -> Study:
    """Read what `write_study` wrote."""
    lines = read_lines(directory / CANDIDATES)
    facts = read_json(directory / AGREEMENT)
    tuples = {key: _as_tuple(value) for key, value in facts.items()}
    return Study({line["id"]: _views(line["models"]) for line in lines}, Agreement(**tuples) if facts else None)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _views(models: Sequence[dict[str, Any]]) -> tuple[tuple[View, ...], ...]:
    """Return each model's view for each token."""
    by_model = []
    for model in models:
        rows = zip(model["texts"], model["probabilities"], model["written"], model["entropy"], strict=True)
        by_model.append([View(tuple(zip(texts, p)), written, entropy) for texts, p, written, entropy in rows])
    return tuple(zip(*by_model, strict=True))


def _line(tokenizer: Tokenizer, number: Any, answer: Generation, found: Sequence[Candidates]) -> dict[str, Any]:
    """Return an answer's line: each model's likeliest tokens with texts and probabilities, and its entropy."""
    before = [answer.prompt_ids[-1], *answer.tokens[:-1]]
    text_of = partial(_added_text, tokenizer, {})
    return {
        "id": number,
        "models": [
            {
                "tokens": views.tokens.tolist(),
                "texts": [[text_of(b, int(token)) for token in row] for b, row in zip(before, views.tokens)],
                "probabilities": _rounded(views.probabilities),
                "written": _rounded(views.written),
                "entropy": _rounded(views.entropy),
            }
            for views in found
        ],
    }


def _rounded(array: Any) -> Any:
    return [[round(float(x), 6) for x in row] if row.ndim else round(float(row), 6) for row in array]


def _added_text(tokenizer: Tokenizer, known: dict[tuple[int, int], str], before: int, token: int) -> str:
    """Return the text that a token adds after token `before`: decoded alone, a token may lose its first space."""
    if (before, token) not in known:
        if token in tokenizer.eos_ids:
            text = END
        else:
            added = GeneratedText(tokenizer.token_bytes, [before])
            added.extend([token])
            added.finish()
            text = added.text
        known[before, token] = text
    return known[before, token]

"""`colm show`: a run's report, or a file of generation lines, in the terminal. Loads no model."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from colm_jax.checkpoints.directory import resolve
from colm_jax.checks import INT32, check_number, check_whole
from colm_jax.data.records import read_jsonl
from colm_jax.decoding.risk import Mark, marked
from colm_jax.errors import UserError
from colm_jax.pipeline.files import ids_of_prompt
from colm_jax.pipeline.reporting import REPORT
from colm_jax.report.contents import Piece, Report, ShownAnswer, Table
from colm_jax.report.store import load_report
from colm_jax.report.terminal import show_answer, show_results, show_sections, show_tokens
from colm_jax.storage import absolute, shown
from colm_jax.text.generated import GeneratedText, cut
from colm_jax.text.tokenizer import Tokenizer, load_tokenizer


def show_path(path: Path, base: str | None, answer: int | None, changed: bool, answers: int, console: Console) -> None:
    """Print results and answers, or one answer token by token.

    Args:
      path: a run directory or a file of generation lines.
      base: the model whose tokenizer decodes the file's tokens; None: the team of the run that the file belongs to.
      answer: number of the answer to print, from 1; None: results and answers.
      changed: print only the answers whose outcome the expert changed.
      answers: largest number of answers to print; 0: all.
      console: where to print.

    Raises:
      UserError: nothing to show there, no such answer, or `changed` without the base's own answers.
    """
    if answers < 0:
        raise UserError(f"answers must be at least 1, or 0 for all, got {answers}")
    if console.width < 20:
        raise UserError(f"width must be at least 20, got {console.width}")
    report = _read(path, base)
    if answer is not None:
        if not 1 <= answer <= len(report.answers):
            raise UserError(f"answer {answer}: {path} has answers 1 to {len(report.answers)}")
        chosen = report.answers[answer - 1]
        show_answer(chosen, report.writers, console)
        show_tokens(chosen, report.writers, console)
        return
    numbered = list(enumerate(report.answers, start=1))
    if changed:
        if all(each.outcome is None for each in report.answers):
            raise UserError(f"changed: {path} does not hold what the base writes alone; name a run directory")
        numbered = [(i, each) for i, each in numbered if each.outcome != "same"]
    show_results(report, console)
    shown = numbered[:answers] if answers else numbered
    for i, each in shown:
        console.print()
        console.print(f"[bold]{i}[/]")
        show_answer(each, report.writers, console)
    console.print()
    kind = " of which the expert changed the outcome" if changed else ""
    console.print(
        f"{len(shown)} of {len(numbered)} answers{kind}; --answers 0 shows all, --answer N the tokens of one",
        soft_wrap=True,
    )
    if not changed:
        show_sections(report, console)


def _read(path: Path, base: str | None) -> Report:
    """Read the report of a run, or make one of a file's lines.

    Raises:
      UserError: there is neither.
    """
    if path.is_dir():
        if (path / "report" / REPORT).exists():
            return load_report(path / "report" / REPORT)
        answers = path / "generate" / "defer.jsonl"
        if not answers.exists():
            raise UserError(f"{path}: neither report/{REPORT} nor generate/defer.jsonl in it; run colm run to its end")
        return _of_lines(answers, base)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    return _of_lines(path, base)


def _of_lines(path: Path, base: str | None) -> Report:
    """Return a report of a file of generation lines alone."""
    lines = read_jsonl(path)
    teams = [folder / "team" for folder in absolute(path).parents[:2] if (folder / "team" / "colm.json").exists()]
    directory = resolve(base, weights=False) if base is not None else teams[0] if teams else None
    tokenizer = None if directory is None else load_tokenizer(directory)
    answers = [_answer(where, line, tokenizer) for where, line in lines]
    experts = max((source for _, line in lines for source in line["sources"]), default=0)
    tokens = sum(len(line["tokens"]) for _, line in lines)
    written = sum(source > 0 for _, line in lines for source in line["sources"])
    rates = [sum(s > 0 for s in line["sources"]) / len(line["sources"]) for _, line in lines if line["sources"]]
    row = (len(answers), tokens, written, round(sum(rates) / len(rates), 4) if rates else None)
    unknown = "not known without the base's tokenizer; give the model as base"
    facts = (("file", str(path)), *((("writer of each token", unknown),) if tokenizer is None else ()))
    return Report(
        title=path.name,
        facts=facts,
        tables=(Table("Answers", ("answers", "tokens", "by experts", "deferral rate"), (row,)),),
        curves=(),
        answers=tuple(answers),
        writers=("base", *(f"expert {m + 1}" for m in range(experts))),
    )


def _answer(where: str, line: dict[str, Any], tokenizer: Tokenizer | None) -> ShownAnswer:
    """Return a generation line as the report shows it; without a tokenizer its text is one piece, without writers.

    Raises:
      UserError: a field of the contract is missing, or lists are not of one length.
    """
    for name, kind in (("prompt", str | list), ("text", str), ("tokens", list), ("sources", list)):
        if not isinstance(line.get(name), kind):
            found = f"{line[name]!r:.60} as" if name in line else "no"
            raise UserError(f"{where}: {found} {name!r}; colm show reads what colm generate writes")
    tokens, sources = line["tokens"], line["sources"]
    for name in ("tokens", "sources"):
        for number in line[name]:
            check_whole(f"{where}: each of {name!r}", number, most=INT32)
    line.setdefault("risks", None)
    for name in ("p_defer", "threshold", "risks"):
        if not isinstance(line.get(name), list | None):
            raise UserError(f"{where}: {name!r} must be a list or null, got {line[name]!r:.60}")
        for rate in line.get(name) or []:
            check_number(f"{where}: each of {name!r}", rate, 0, 1)
    counts = {name: len(line[name]) for name in ("tokens", "sources", "p_defer", "risks") if line.get(name) is not None}
    if len(set(counts.values())) > 1:
        *first, last = counts
        numbers = ", ".join(map(str, counts.values()))
        raise UserError(f"{where}: {', '.join(first)} and {last} have {numbers} entries")
    rates = line.get("p_defer") or [None] * len(tokens)
    risks = line["risks"] or [None] * len(tokens)
    prompt = line["prompt"]
    if isinstance(prompt, list) and prompt and all(isinstance(message, dict) for message in prompt):
        prompt = "\n".join(map(_message, prompt))
    elif isinstance(prompt, list):
        ids = [check_whole(f"{where}: each of 'prompt'", token, most=INT32) for token in prompt]
        prompt = tokenizer.decode(ids) if tokenizer else f"({len(ids)} tokens)"
    threshold = (line.get("threshold") or [None])[-1]
    if tokenizer is None:
        return ShownAnswer(prompt, (Piece(line["text"], 0, None),) if line["text"] else (), None, None, threshold)
    text = GeneratedText(tokenizer.token_bytes, ids_of_prompt(line, tokenizer, where))
    text.extend(tokens)
    text.finish()
    pieces = cut(text.pieces, len(line["text"]))
    if "".join(pieces) != line["text"]:
        raise UserError(
            f"{where}: the tokenizer of {shown(tokenizer.directory)} decodes these tokens to another text; give the "
            "model that wrote the file as base"
        )
    checks = marked(pieces, _marks(where, line))
    columns = zip(pieces, sources, rates, risks, checks)
    known = tuple(Piece(piece, by, rate, (), risk, check) for piece, by, rate, risk, check in columns)
    return ShownAnswer(prompt, known, None, None, threshold)


def _marks(where: str, line: dict[str, Any]) -> list[Mark]:
    """Return the marks of a generation line that say where to check.

    Raises:
      UserError: they are no marks.
    """
    found = line.get("check") or []
    try:
        marks = [Mark(mark["start"], mark["end"], mark["risk"]) for mark in found]
    except (TypeError, KeyError):
        wanted = "a list of objects with start, end and risk"
        raise UserError(f"{where}: 'check' must be {wanted}, got {found!r:.60}") from None
    for mark in marks:
        check_whole(f"{where}: each end in 'check'", mark.end, least=check_whole(f"{where}: 'check'", mark.start))
        check_number(f"{where}: each risk in 'check'", mark.risk, 0, 1)
    return marks


def _message(message: dict[str, Any]) -> str:
    """Return a message of a prompt as text: its content or, if it has none, its tool calls."""
    content = message.get("content", message.get("tool_calls"))
    return f"{message.get('role')}: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}"

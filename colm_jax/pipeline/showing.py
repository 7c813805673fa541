"""`colm show`: a run's report, or a file of generation lines, in the terminal. Loads no model."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from colm_jax.checkpoints.directory import resolve
from colm_jax.checks import INT32, check_number, check_whole
from colm_jax.data.records import read_jsonl
from colm_jax.errors import UserError
from colm_jax.pipeline.files import ids_of_prompt
from colm_jax.pipeline.reporting import REPORT
from colm_jax.report.contents import Piece, Report, ShownAnswer, Table
from colm_jax.report.store import load_report
from colm_jax.report.terminal import show_answer, show_results, show_sections, show_tokens
from colm_jax.storage import absolute
from colm_jax.text.generated import GeneratedText, cut
from colm_jax.text.tokenizer import Tokenizer, load_tokenizer


def show_path(path: Path, base: str | None, number: int | None, changed: bool, most: int, console: Console) -> None:
    """Prints results and answers, or one answer token by token.

    Args:
      path: a run directory or a file of generation lines.
      base: a model whose tokenizer wrote the file; None: the team's of the run that it lies in.
      number: of the answer to print, from 1; None: results and answers.
      changed: only the answers of which the expert changed the outcome.
      most: answers to print, at most; 0: all.
      console: where to.

    Raises:
      UserError: nothing to show there, no such answer, or nothing to compare with where `changed` is asked.
    """
    if most < 0:
        raise UserError(f"--answers {most}: at least 1, or 0 for all")
    if console.width < 20:
        raise UserError(f"--width {console.width}: at least 20")
    report = _read(path, base)
    if number is not None:
        if not 1 <= number <= len(report.answers):
            raise UserError(f"--answer {number}: {path} has answers 1 to {len(report.answers)}")
        answer = report.answers[number - 1]
        show_answer(answer, report.writers, console)
        show_tokens(answer, report.writers, console)
        return
    numbered = list(enumerate(report.answers, start=1))
    if changed:
        if all(answer.outcome is None for answer in report.answers):
            raise UserError(f"--changed: {path} does not say what the base writes alone; name a run directory")
        numbered = [(i, answer) for i, answer in numbered if answer.outcome != "same"]
    show_results(report, console)
    shown = numbered[:most] if most else numbered
    for i, answer in shown:
        console.print()
        console.print(f"[bold]{i}[/]")
        show_answer(answer, report.writers, console)
    console.print()
    kind = " of which the expert changed the outcome" if changed else ""
    console.print(
        f"{len(shown)} of {len(numbered)} answers{kind}; --answers 0 shows all, --answer N the tokens of one",
        soft_wrap=True,
    )
    if not changed:
        show_sections(report, console)


def _read(path: Path, base: str | None) -> Report:
    """The report of a run, or one made of a file's lines.

    Raises:
      UserError: neither there.
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
    """What a file of generation lines tells by itself."""
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
    unknown = "not known without the tokenizer of the model that wrote them; name it by --base"
    facts = (("file", str(path)), *((("who wrote which word", unknown),) if tokenizer is None else ()))
    return Report(
        title=path.name,
        facts=facts,
        tables=(Table("Answers", ("answers", "tokens", "by experts", "deferral rate"), (row,)),),
        curves=(),
        answers=tuple(answers),
        writers=("base", *(f"expert {m + 1}" for m in range(experts))),
    )


def _answer(where: str, line: dict[str, Any], tokenizer: Tokenizer | None) -> ShownAnswer:
    """A generation line as the report shows it; without a tokenizer, its text is one piece by nobody in particular.

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
    for name in ("p_defer", "threshold"):
        if not isinstance(line.get(name), list | None):
            raise UserError(f"{where}: {name!r} must be a list or null, got {line[name]!r:.60}")
        for rate in line.get(name) or []:
            check_number(f"{where}: each of {name!r}", rate, 0, 1)
    rates = line.get("p_defer") or [None] * len(tokens)
    if not len(tokens) == len(sources) == len(rates):
        raise UserError(
            f"{where}: tokens, sources and p_defer have {len(tokens)}, {len(sources)}, {len(rates)} entries"
        )
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
            f"{where}: the tokenizer of {tokenizer.directory} makes another text of these tokens; name the model that "
            "wrote the file (--base)"
        )
    return ShownAnswer(prompt, tuple(map(Piece, pieces, sources, rates)), None, None, threshold)


def _message(message: dict[str, Any]) -> str:
    """A message of a prompt in a line or more: its content or, where it has none, its tool calls."""
    said = message.get("content", message.get("tool_calls"))
    return f"{message.get('role')}: {said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)}"

"""Generation lines: files of answers, and how writing one resumes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colm_jax.data.records import encode_prompt, prompt_key
from colm_jax.decoding.requests import Generation
from colm_jax.decoding.strategies import definitions
from colm_jax.parallel import is_first, on_first
from colm_jax.pipeline.stage import plain
from colm_jax.settings.generation import GenerationSettings
from colm_jax.storage import GrowingFile, copy_file, make_directory, read_lines, write_text
from colm_jax.team import CoLM
from colm_jax.text.tokenizer import Tokenizer


def generation_line(prompt: Any, answer: Generation, name: Any) -> dict[str, Any]:
    """Return a generation line (the contract's), with "tools", "sample", "sent", "lost", "risk", "risks", "check" and
    "log_probs" if any.
    """
    key = prompt_key(prompt, str(name))
    line = {
        "id": name,
        "prompt": prompt[key],
        "text": answer.text,
        "tokens": answer.tokens,
        "sources": answer.sources,
        "p_defer": answer.p_defer,
        "threshold": answer.threshold,
        "finish_reason": answer.finish_reason,
        "expert_calls": answer.expert_calls,
    }
    if key == "messages" and prompt.get("tools"):
        line["tools"] = prompt["tools"]
    if answer.sample:
        line["sample"] = answer.sample
    if answer.sent is not None:
        line["sent"] = answer.sent
    if answer.lost:
        line["lost"] = answer.lost
    if answer.risk is not None and answer.risks is not None and answer.check is not None:
        line |= {"risk": round(answer.risk, 4), "risks": [round(risk, 4) for risk in answer.risks]}
        line["check"] = [asdict(mark) for mark in answer.check]
    return line if answer.log_probs is None else line | {"log_probs": answer.log_probs}


def total_sent(lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return what was sent to remote experts for all these generation lines."""
    return {key: sum(line["sent"][key] for line in lines) for key in ("requests", "characters")}


def ids_of_prompt(line: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """Return ids of the prompt in a generation line, which is text, messages (with the line's tools) or ids.

    Raises:
      UserError: it is none of these.
    """
    prompt = line["prompt"]
    key = "prompt" if isinstance(prompt, str) else "messages"
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        key = "input_ids"
    return encode_prompt({key: prompt, "tools": line.get("tools")}, tokenizer, where)


def write_generations(path: Path, prompts: Sequence[Any], answers: Sequence[Generation], names: Sequence[Any]) -> None:
    """Write a file of generation lines."""
    make_directory(path.parent)
    lines = (generation_line(*each) for each in zip(prompts, answers, names, strict=True))
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


class GenerationFile:
    """A file of generation lines, which appears when it is whole.

    Until then finished answers are in FILE.part, in the order in which they were finished; a rerun resumes from it. Its
    first line holds the hash of what decides the answers; if that has changed, all prompts are answered again.
    """

    def __init__(self, path: Path, prompts: Sequence[Any], names: Sequence[Any], samples: int, key: str):
        """Read the answers of an interrupted run.

        Args:
          path: the file.
          prompts: the records that are answered.
          names: the "id" of each.
          samples: answers to each.
          key: hash of all that decides the answers.
        """
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._prompts, self._names, self._samples = prompts, names, samples
        self._lines: dict[tuple[int, int], str] = {}
        self._head = json.dumps({"key": key}) + "\n"
        whole = self._part.read_bytes().decode("utf-8", "replace") if self._part.exists() else ""
        if whole.startswith(self._head):
            for line in whole[len(self._head) :].split("\n")[:-1]:  # what follows the last end of line was cut off
                if (found := self._kept(line)) is None:
                    break  # damaged, or another version's: from here on all is answered again
                self._lines[found[:2]] = found[2]

    def _kept(self, line: str) -> tuple[int, int, str] | None:
        """Return a line of FILE.part: prompt, sample and generation line; None where it is something else."""
        number, _, rest = line.partition(" ")
        sample, _, text = rest.partition(" ")
        try:
            place, content = (int(number), int(sample)), json.loads(text)
        except ValueError:
            return None
        inside = 0 <= place[0] < len(self._prompts) and 0 <= place[1] < self._samples
        return (*place, text) if inside and isinstance(content, dict) else None

    @property
    def done(self) -> int:
        """Answers that are finished."""
        return len(self._lines)

    @property
    def missing(self) -> list[int]:
        """Numbers of the prompts that are not answered in full."""
        return [i for i in range(len(self._prompts)) if any((i, j) not in self._lines for j in range(self._samples))]

    def add(self, number: int, answer: Generation) -> None:
        """Keep an answer to prompt `number`."""
        line = generation_line(self._prompts[number], answer, self._names[number])
        self._lines[number, answer.sample] = text = json.dumps(line, ensure_ascii=False)
        self._growing.write(f"{number} {answer.sample} {text}\n")

    def begin(self) -> None:
        """Start a new FILE.part with the answers that were found in it."""
        make_directory(self._path.parent)
        found = (f"{number} {sample} {text}\n" for (number, sample), text in self._lines.items())
        self._growing = GrowingFile(self._part, "".join((self._head, *found)))

    def stop(self) -> None:
        """Close the file; finished answers are kept."""
        self._growing.close()

    def finish(self) -> None:
        """Write the whole file, in the order of the prompts."""
        ordered = [self._lines[place] for place in sorted(self._lines)]
        write_text(self._path, "".join(f"{text}\n" for text in ordered))
        self._part.unlink()


def write_answers(
    path: Path,
    team: CoLM,
    prompts: Sequence[Any],
    names: Sequence[Any],
    settings: GenerationSettings,
    key: str,
    places: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Answer prompts into a file of generation lines; resume where an interrupted run stopped.

    Of several processes all compute every answer together, and the first writes.

    Args:
      path: the file.
      team: who answers.
      prompts: records.
      names: the "id" of each.
      settings: one value for all prompts each.
      key: hash of the models and of whatever else is not among the arguments and decides the answers.
      places: name of each prompt in errors.
      progress: progress callback(answers finished).

    Returns:
      The lines; none in processes other than the first, which need not see the file.

    Raises:
      UserError: as `CoLM.generate`, before anything is written.
    """
    settings = team.settings(settings)
    deciding = {k: v for k, v in plain(settings).items() if k not in ("batch_size", "expert_batching", "speculate")}
    if registered := definitions(settings.strategy):
        deciding["registered"] = registered
    whole = json.dumps([key, list(prompts), list(names), deciding], sort_keys=True)
    file = GenerationFile(path, prompts, names, settings.samples, hashlib.sha256(whole.encode()).hexdigest())
    numbers = on_first(lambda: file.missing)
    chosen, where = [prompts[i] for i in numbers], None if places is None else [places[i] for i in numbers]
    answers = team.answers(chosen, settings, places=where, keys=numbers)
    on_first(file.begin)
    progress(file.done)
    try:
        for number, answer in answers:
            if is_first():
                file.add(numbers[number], answer)
            progress(file.done)
    finally:
        if is_first():
            file.stop()
    on_first(file.finish)
    return read_lines(path) if is_first() else []


def link(source: Path, target: Path) -> None:
    """Hard-link a file, so that weights are not stored twice; copy it where there are no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        copy_file(source, target)

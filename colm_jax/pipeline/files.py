"""Files of generation lines, and how an interrupted one is resumed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colm_jax.data.records import encode_prompt, prompt_key
from colm_jax.generation import Generation, Settings
from colm_jax.parallel import is_first, on_first
from colm_jax.pipeline.stage import plain
from colm_jax.storage import GrowingFile, copy_file, in_bucket, make_directory, read_lines, write_text
from colm_jax.team import CoLM
from colm_jax.text.tokenizer import Tokenizer


def generation_line(prompt: Any, answer: Generation, name: Any) -> dict[str, Any]:
    """Return an answer as a generation line, with "tools", "sample" and "log_probs" if there are any."""
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
    return line if answer.log_probs is None else line | {"log_probs": answer.log_probs}


def ids_of_prompt(line: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """Return the ids of the prompt in a generation line: text, messages (with the line's tools) or ids.

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
    """A file of generation lines that appears when it is complete.

    Until then FILE.part holds the finished answers, in the order in which they came; an interrupted run is resumed from
    it. Its first line holds a key of all that decides the answers: under another key they are generated again.
    """

    def __init__(self, path: Path, prompts: Sequence[Any], names: Sequence[Any], samples: int, key: str):
        """Read the answers that an interrupted run has left.

        Args:
          path: the file.
          prompts: records to answer.
          names: the "id" of each.
          samples: number of answers to each.
          key: hash of all that decides the answers.
        """
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._prompts, self._names, self._samples = prompts, names, samples
        self._lines: dict[tuple[int, int], str] = {}
        self._head = json.dumps({"key": key}) + "\n"
        whole = self._part.read_bytes().decode("utf-8", "replace") if self._part.exists() else ""
        if whole.startswith(self._head):
            for line in whole[len(self._head) :].split("\n")[:-1]:  # text after the last end of line was cut off
                if (found := self._kept(line)) is None:
                    break  # damaged, or of another version: this and later lines are generated again
                self._lines[found[:2]] = found[2]

    def _kept(self, line: str) -> tuple[int, int, str] | None:
        """Parse a line of FILE.part: prompt, sample and generation line; None if it is damaged."""
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
        """Number of finished answers."""
        return len(self._lines)

    @property
    def missing(self) -> list[int]:
        """Numbers of the prompts that lack an answer."""
        return [i for i in range(len(self._prompts)) if any((i, j) not in self._lines for j in range(self._samples))]

    def add(self, number: int, answer: Generation) -> None:
        """Append an answer to prompt `number`."""
        line = generation_line(self._prompts[number], answer, self._names[number])
        self._lines[number, answer.sample] = text = json.dumps(line, ensure_ascii=False)
        self._growing.write(f"{number} {answer.sample} {text}\n")

    def begin(self) -> None:
        """Start FILE.part again, with the answers that were found in it."""
        make_directory(self._path.parent)
        found = (f"{number} {sample} {text}\n" for (number, sample), text in self._lines.items())
        self._growing = GrowingFile(self._part, "".join((self._head, *found)))

    def stop(self) -> None:
        """Close FILE.part; its answers stay."""
        self._growing.close()

    def finish(self) -> None:
        """Write the complete file, in the order of the prompts, and remove FILE.part."""
        ordered = [self._lines[place] for place in sorted(self._lines)]
        write_text(self._path, "".join(f"{text}\n" for text in ordered))
        self._part.unlink()


def write_answers(
    path: Path,
    team: CoLM,
    prompts: Sequence[Any],
    names: Sequence[Any],
    settings: Settings,
    strategy: str,
    key: str,
    log_probs: bool = False,
    places: Sequence[str] | None = None,
    prompt_ids: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Answer prompts into a file of generation lines, resuming an interrupted run.

    With several processes all compute every answer together, and the first writes.

    Args:
      path: the file.
      team: the models.
      prompts: records.
      names: the "id" of each.
      settings: each with one value for all prompts.
      strategy: as in `CoLM.generate`.
      key: hash of the models and of everything else that decides the answers and is not among the arguments.
      log_probs: as in `CoLM.generate`.
      places: name of each prompt in errors.
      prompt_ids: token ids of each prompt; None: they are encoded here.
      progress: progress callback(finished answers).

    Returns:
      The lines; empty in processes other than the first, which may not see the file.

    Raises:
      UserError: as `CoLM.generate`, before anything is written.
    """
    deciding = {k: v for k, v in plain(settings).items() if k not in ("batch_size", "parking")}
    whole = json.dumps([key, list(prompts), list(names), strategy, log_probs, deciding], sort_keys=True)
    file = GenerationFile(path, prompts, names, settings.samples, hashlib.sha256(whole.encode()).hexdigest())
    numbers = on_first(lambda: file.missing)
    encoded = prompts if prompt_ids is None else [{"input_ids": list(ids)} for ids in prompt_ids]
    chosen, where = [encoded[i] for i in numbers], None if places is None else [places[i] for i in numbers]
    answers = team.answers(chosen, settings, strategy, log_probs, where, keys=numbers)
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
    """Make `target` a hard link to a file, so that weights are stored once; a copy if links are not supported."""
    if in_bucket(target):
        copy_file(source, target)
        return
    try:
        target.hardlink_to(source)
    except OSError:
        copy_file(source, target)

"""Measure what an expert that has read a document adds to a base that has not, for docs/documents.md:

    python -m docs.tables.documents BASE EXPERT [EXPERT ...] [--questions N] [--out DIR]

The questions are about documents of invented facts (docs/tables/document_facts.py), each in two versions. For each
EXPERT (BASE again is allowed: the same weights with another view of the prompt) a gate is trained on questions about
documents of other kinds; after that nothing is trained, and the document is exchanged. Everything is kept in DIR: rerun
the same command to resume.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax import CoLM, console
from colm_jax.checkpoints.outline import Outline, outline_team
from colm_jax.evaluation.compare import paired_bootstrap, wilson
from colm_jax.pipeline.files import write_answers
from colm_jax.pipeline.run import run_pipeline
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import Training
from colm_jax.storage import sha256_of
from colm_jax.text.generated import GeneratedText, cut
from docs.tables.document_facts import Question, data_lines, questions, write_lines

Line = dict[str, Any]  # a generation line


@dataclass(frozen=True)
class Way:
    """One way to answer: who reads which version of the document, and the strategy."""

    name: str
    strategy: str
    base_reads: int | None = None  # version of the document in the base's own prompt
    expert_reads: int | None = None  # version in the expert's view
    rate: str = ""  # the way whose share of the expert's tokens is the rate of strategy random

    def record(self, question: Question) -> dict[str, str]:
        """Return the prompt record of a question."""
        base = question.prompt if self.base_reads is None else question.with_document(self.base_reads)
        view = {} if self.expert_reads is None else {"expert_prompt": question.with_document(self.expert_reads)}
        return {"prompt": base, **view}

    @property
    def version(self) -> int:
        """The version that an answer should follow."""
        return (self.base_reads or 0) + (self.expert_reads or 0)


ALONE = (Way("base", "base"), Way("base-reads", "base", base_reads=0))
TOGETHER = (
    Way("team", "defer", expert_reads=0),
    Way("team-exchanged", "defer", expert_reads=1),
    Way("expert", "expert", expert_reads=0),
    Way("random", "random", expert_reads=0, rate="team"),
    Way("team-without", "defer"),
)
TITLES = {
    "base": "base, without the document",
    "base-reads": "base, the document in its own prompt",
    "expert": "expert, with the document",
    "random": "team, random, at the team's share of tokens",
    "team-without": "team, nobody has the document",
    "team": "**team**, the expert has the document",
    "team-exchanged": "team, the document exchanged",
}


class Answers:
    """The answers of one team, kept in a folder; models are loaded only where an answer is missing."""

    def __init__(self, folder: Path, outline: Outline, load: Callable[[], CoLM], asked: list[Question], settings: Line):
        """Begin; `settings` are those of `GenerationSettings` that all ways share."""
        self._folder, self.outline, self._load, self._asked = folder, outline, load, asked
        self._settings, self._team = settings, None
        self.found: dict[str, list[Line]] = {}

    def answer(self, way: Way, progress: Callable[[int], None]) -> None:
        """Answer all questions in one way."""
        own: Line = {"strategy": way.strategy, "stop": "\n", **self._settings}
        if way.rate:
            own["rate"] = round(share(self.found[way.rate]), 3)
        path, kept = self._folder / f"{way.name}.jsonl", self._folder / f"{way.name}.key"
        key = json.dumps([self._models(), own, [q.text for q in self._asked]])
        if not (path.exists() and kept.exists() and kept.read_text(encoding="utf-8") == key):
            if self._team is None:
                self._team = self._load()
            records, names = [way.record(q) for q in self._asked], list(range(len(self._asked)))
            write_answers(path, self._team, records, names, GenerationSettings(**own), key, progress=progress)
            kept.write_text(key, encoding="utf-8")
        self.found[way.name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        progress(len(self._asked))

    def _models(self) -> list[str]:
        """Return what decides whether kept answers are of these models: their names, and the gate's contents."""
        gate = sha256_of(self.outline.base_directory / "gate.safetensors")
        return [*map(str, self.outline.models), gate]

    def row(self, way: Way) -> "Row":
        """Return what a way got right, and what it cost."""
        asked, lines = self._asked, self.found[way.name]
        right = [q.said(line["text"]) == q.values[way.version] for q, line in zip(asked, lines, strict=True)]
        by_expert = [self._by_expert(line, q.values[way.version]) for q, line, good in zip(asked, lines, right) if good]
        read, written = np.zeros(2), np.zeros(2)
        for question, line in zip(asked, lines, strict=True):
            views = self.outline.units.prompts(way.record(question), "prompt")
            wrote = [sum((source > 0) == bool(m) for source in line["sources"]) for m in (0, 1)]
            written += wrote
            if way.strategy != "expert" or not self.outline.shares_tokenizer:
                read[0] += len(views.base) + len(line["tokens"])
            if wrote[1]:
                read[1] += len(views.experts[0]) + self._until_expert(line)
        count = len(asked)
        return Row(way.name, right, float(np.mean(by_expert)) if by_expert else None, read / count, written / count)

    def _pieces(self, line: Line) -> list[str]:
        """Return the text of each token of an answer."""
        tokenizer = self.outline.tokenizer
        text = GeneratedText(tokenizer.token_bytes, tokenizer.encode_prompt(line["prompt"]))
        text.extend(line["tokens"])
        text.finish()
        return cut(text.pieces, len(line["text"]))

    def _by_expert(self, line: Line, value: str) -> bool:
        """Return whether the expert wrote the first value of an answer, all of it."""
        pieces, start = self._pieces(line), line["text"].index(value)
        ends = np.cumsum([len(piece) for piece in pieces])
        inside = (ends > start) & (ends - [len(piece) for piece in pieces] < start + len(value))
        return all(source > 0 for source, part in zip(line["sources"], inside.tolist(), strict=True) if part)

    def _until_expert(self, line: Line) -> int:
        """Return how many of its own tokens the expert's last call has read of an answer, or written."""
        last = max(i for i, source in enumerate(line["sources"]) if source)
        text, tokenizer = "".join(self._pieces(line)[: last + 1]), self.outline.expert_tokenizers[0]
        assert tokenizer is not None
        return len(tokenizer.encode_plain(text))


@dataclass(frozen=True)
class Row:
    """The figures of one way."""

    name: str
    right: list[bool]
    by_expert: float | None  # of the right values, the share that the expert wrote; None: none is right
    read: np.ndarray  # [2] tokens a question, of base and expert
    written: np.ndarray  # [2]

    def cells(self) -> list[str]:
        """Return the cells of the table."""
        low, high = wilson(sum(self.right), len(self.right))
        whole = self.written.sum()
        return [
            TITLES[self.name],
            f"{np.mean(self.right):.2f} ({low:.2f} to {high:.2f})",
            f"{self.written[1] / whole if whole else 0:.0%}",
            "–" if self.by_expert is None else f"{self.by_expert:.0%}",
            *(f"{tokens:.0f}" for tokens in (*self.read, *self.written)),
        ]


HEAD = ["", "accuracy (95 %)", "expert's tokens", "right values by the expert"]
HEAD += ["base reads", "expert reads", "base writes", "expert writes"]


def share(lines: Sequence[Line]) -> float:
    """Return the share of tokens that experts wrote."""
    sources = [source for line in lines for source in line["sources"]]
    return float(np.mean([source > 0 for source in sources])) if sources else 0.0


def exchange(first: Sequence[Line], second: Sequence[Line], asked: Sequence[Question]) -> str:
    """Return a sentence about what exchanging the document did."""
    said = [(q.said(a["text"]), q.said(b["text"])) for q, a, b in zip(asked, first, second, strict=True)]
    changed = sum(a["text"] != b["text"] for a, b in zip(first, second, strict=True))
    followed = sum(found == q.values for found, q in zip(said, asked, strict=True))
    old = sum(now == q.values[0] for (_, now), q in zip(said, asked, strict=True))
    return (
        f"Exchanging the document changed {changed} of {len(asked)} answers; {followed} follow each version; {old} "
        "still give the old value."
    )


def paired(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table: the team's accuracy less that of each other way, by the paired bootstrap."""
    right = {row.name: [float(each) for each in row.right] for row in rows}
    found = {name: paired_bootstrap(right["team"], own) for name, own in right.items() if not name.startswith("team")}
    body = [
        [TITLES[name], f"{d.difference:.2f} ({d.low:.2f} to {d.high:.2f})", f"{d.p:.2g}"] for name, d in found.items()
    ]
    return table(["team less", "accuracy (95 %)", "p"], body)


def by_kind(rows: Sequence[Row], asked: Sequence[Question]) -> list[str]:
    """Return the lines of a table of accuracies, a column for each kind of document."""
    kinds = list(dict.fromkeys(q.kind for q in asked))
    of = {kind: [q.kind == kind for q in asked] for kind in kinds}
    body = [[TITLES[r.name], *(f"{np.mean(np.array(r.right)[of[kind]]):.2f}" for kind in kinds)] for r in rows]
    return table(["", *kinds], body)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def train_gate(base: str, expert: str, folder: Path, texts: int) -> Path:
    """Train a gate on documents of other kinds, if it is not there; return the team's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_lines(folder / "train.jsonl", data_lines(texts, seed=1))
    training = Training(objective="marginal", trainable="gate")
    config = RunConfig(base=base, experts=(expert,), data=str(data), training=training)
    return run_pipeline(config, folder / "run", until="train").stages["train"].directory / "team"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="the model that writes")
    parser.add_argument("experts", metavar="EXPERT", nargs="+", help="models that read the document")
    for name, size, text in (
        ("questions", 60, "questions"),
        ("texts", 96, "training texts of a gate"),
        ("batch_size", 16, "questions at a time"),
    ):
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N", help=f"{text} (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, metavar="X", help="of the gate (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("documents"), metavar="DIR", help="(%(default)s)")
    flags = parser.parse_args()
    asked = questions(flags.questions)
    settings = {"max_new_tokens": 20, "threshold": flags.threshold, "batch_size": flags.batch_size}
    for number, expert in enumerate(flags.experts):
        folder = flags.out / Path(expert).stem.replace("#", "-")
        team = train_gate(flags.base, expert, folder, flags.texts)
        ways = (*ALONE, *TOGETHER) if number == 0 else TOGETHER

        def load(team: Path = team, expert: str = expert) -> CoLM:
            return CoLM.from_pretrained(team, [expert])

        answers = Answers(folder, outline_team(team, [expert]), load, asked, settings)
        with console.bar("answering", len(ways) * len(asked)) as bar:
            for i, way in enumerate(ways):
                answers.answer(way, lambda done, i=i: bar.to(i * len(asked) + done))  # type: ignore[misc]
        rows = sorted((answers.row(way) for way in ways), key=lambda row: list(TITLES).index(row.name))
        print(f"\n{Path(expert).name} ({answers.outline.kinds[0]}), {len(asked)} questions\n")
        print("\n".join(table(HEAD, [row.cells() for row in rows])), end="\n\n")
        print("\n".join(paired(rows)), end="\n\n")
        print(exchange(answers.found["team"], answers.found["team-exchanged"], asked), end="\n\n")
        print("\n".join(by_kind(rows, asked)), flush=True)


if __name__ == "__main__":
    main()

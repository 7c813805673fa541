"""Write documents of invented facts, and questions about them, for the guide to documents (docs/documents.md):

    python -m docs.tables.document_facts --out DIR

Each document has two versions with the same subjects and different values, as two issues of a price list. DIR gets
questions.jsonl (prompts without the document), first.jsonl and second.jsonl (the same prompts with a version as
`expert_prompt`), and train.jsonl and dev.jsonl: questions with answers about documents of other kinds, for a gate.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LINES = 6  # facts of a document
NAMES = """Abara Belloc Cardew Dahlin Eskola Fenwick Garrod Halvik Ingram Jessop Kovale Lindqvist Marchetti Norwood
Okafor Pellew Quiller Rastrick Sandoval Thorne Ulvang Varley Westcott Yarrow""".split()
MONTHS = """January February March April May June July August September October November December""".split()
TOWNS = """Ashford Bramley Colne Dunmore Elsdon Farrow Gorsley Helston Ibstock Kelham Lowick Marden Norham Oakley
Pelton Rothley Selby Tarvin Uldale Wexcombe""".split()
COLOURS = """red blue green yellow orange purple brown black white grey pink silver golden turquoise""".split()
NUMBER = r"\d+(?:[.,:]\d+)*"

# A question and an answer of none of these kinds; they show the form, in every model's prompt.
EXAMPLE = "Question: How many steps does the old tower have?\nAnswer: The old tower has 294 steps.\n\n"


@dataclass(frozen=True)
class Kind:
    """A kind of document; texts have {subject}, {value} and {town} in them."""

    title: str
    subjects: Sequence[str]
    value: Callable[[random.Random], str]
    line: str  # of the document
    question: str
    answer: str
    pattern: str  # that a value of this kind matches


def _number(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(low, high))


def _any(words: Sequence[str]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(words)


def _people(rng: random.Random) -> str:
    return rng.choice(NAMES)


KINDS = {
    "prices": Kind(
        "Price list of the shop in {town}",
        """lamp|kettle|blanket|toaster|mirror|armchair|bucket|ladder|curtain|clock|basket|shelf""".split("|"),
        _number(11, 990),
        "The {subject} costs {value} euros.",
        "How much does the {subject} cost?",
        "The {subject} costs {value} euros.",
        NUMBER,
    ),
    "opening hours": Kind(
        "Opening hours in {town}",
        """museum|library|swimming pool|post office|castle|bakery|town hall|zoo|market|pharmacy|bank|cinema""".split(
            "|"
        ),
        lambda rng: f"{rng.randrange(6, 13)}:{rng.choice(('05', '10', '20', '25', '35', '40', '50', '55'))}",
        "The {subject} opens at {value}.",
        "When does the {subject} open?",
        "The {subject} opens at {value}.",
        NUMBER,
    ),
    "doses": Kind(
        "Leaflet of the hospital in {town}: largest doses",
        """Solvarin|Trepamol|Quindox|Belatrol|Fenoril|Maxidane|Loprazin|Cortavel|Nemolide|Zeprafen""".split("|"),
        _number(11, 990),
        "The largest daily dose of {subject} is {value} mg.",
        "What is the largest daily dose of {subject}?",
        "The largest daily dose of {subject} is {value} mg.",
        NUMBER,
    ),
    "dates": Kind(
        "Events in {town}",
        """flower show|chess tournament|boat race|book fair|lantern parade|choir concert|dog show|marathon|cheese fair|
        kite festival|quiz night""".replace("\n        ", "").split("|"),
        lambda rng: f"{rng.choice(MONTHS)} {rng.randrange(1, 29)}",
        "The {subject} is on {value}.",
        "When is the {subject}?",
        "The {subject} is on {value}.",
        rf"(?:{'|'.join(MONTHS)}) \d+",
    ),
    "rooms": Kind(
        "Rooms of the school in {town}",
        """chemistry class|music class|French class|drawing class|history class|dance class|physics class|pottery class|
        Spanish class|drama class""".replace("\n        ", "").split("|"),
        _number(101, 990),
        "The {subject} is in room {value}.",
        "In which room is the {subject}?",
        "The {subject} is in room {value}.",
        NUMBER,
    ),
    "names": Kind(
        "Who is who at the council of {town}",
        """parks|schools|roads|housing|finance|transport|sports|culture|energy|tourism|water|planning""".split("|"),
        _people,
        "The head of {subject} is {value}.",
        "Who is the head of {subject}?",
        "The head of {subject} is {value}.",
        rf"(?:{'|'.join(NAMES)})",
    ),
}
# Of the texts for a gate: other subjects, other sentences.
OTHERS = {
    "stock": Kind(
        "Stock of the warehouse in {town}",
        """hammers|ropes|tents|bottles|helmets|candles|pillows|brushes|spades|gloves""".split("|"),
        _number(11, 990),
        "{subject}: {value} in stock",
        "How many {subject} are in stock?",
        "There are {value} {subject} in stock.",
        NUMBER,
    ),
    "platforms": Kind(
        "Trains from {town}",
        """north|south|east|west|coast|harbour|airport|mountains|border|capital""".split("|"),
        lambda rng: f"{rng.randrange(1, 24)}:{rng.randrange(10, 60)}",
        "Train to the {subject}: {value}",
        "At what time does the train to the {subject} leave?",
        "The train to the {subject} leaves at {value}.",
        NUMBER,
    ),
    "buses": Kind(
        "Buses of {town}",
        """hospital|station|stadium|university|forest|lake|cathedral|factory|theatre|beach""".split("|"),
        _any(COLOURS),
        "Bus to the {subject}: {value} line",
        "Which line goes to the {subject}?",
        "The line that goes to the {subject} is the {value} line.",
        rf"(?:{'|'.join(COLOURS)})",
    ),
    "seats": Kind(
        "Companies near {town}",
        """Bexo|Tarnix|Ploom|Vandet|Orsa|Quell|Miravo|Stenna|Zubra|Lonco""".split("|"),
        _any(TOWNS),
        "{subject}: {value}",
        "Where is the company {subject} based?",
        "The company {subject} is based in {value}.",
        rf"(?:{'|'.join(TOWNS)})",
    ),
    "years": Kind(
        "Buildings of {town}",
        """bridge|lighthouse|windmill|chapel|prison|opera|brewery|palace|fountain|monastery""".split("|"),
        _number(1400, 1990),
        "{subject}: built in {value}",
        "When was the {subject} built?",
        "The {subject} was built in {value}.",
        NUMBER,
    ),
    "winners": Kind(
        "Winners of the games in {town}",
        """swimming|rowing|archery|fencing|wrestling|cycling|sailing|skiing|judo|running""".split("|"),
        _people,
        "{subject}: {value}",
        "Who won the {subject}?",
        "The winner of the {subject} is {value}.",
        rf"(?:{'|'.join(NAMES)})",
    ),
}


@dataclass(frozen=True)
class Question:
    """A question with both versions of the document that answers it."""

    kind: str
    text: str
    documents: tuple[str, str]
    values: tuple[str, str]
    answers: tuple[str, str]  # whole sentences
    pattern: str

    @property
    def prompt(self) -> str:
        """The prompt without the document."""
        return f"{EXAMPLE}Question: {self.text}\nAnswer:"

    def with_document(self, version: int) -> str:
        """Return the prompt after a version (0 or 1) of the document."""
        return f"{self.documents[version]}\n\n{self.prompt}"

    def said(self, answer: str) -> str | None:
        """Return the first value of the question's kind in an answer; None: there is none."""
        found = re.search(rf"(?<!\w){self.pattern}(?!\w)", answer)
        return found.group() if found else None


def questions(count: int, kinds: dict[str, Kind] = KINDS, seed: int = 0) -> list[Question]:
    """Return so many questions, the kinds in turn; a document has at most LINES of them."""
    rngs = {name: random.Random(f"{seed}: {name}") for name in kinds}
    turns = {name: _of_kind(name, kind, rngs[name]) for name, kind in kinds.items()}
    names = list(kinds)
    return [next(turns[names[i % len(names)]]) for i in range(count)]


def _of_kind(name: str, kind: Kind, rng: random.Random) -> Iterator[Question]:
    """Yield questions about document after document of one kind."""
    while True:
        subjects, town = rng.sample(kind.subjects, LINES), rng.choice(TOWNS)
        versions: list[list[str]] = [[], []]
        while len(versions[1]) < LINES:
            first, second = kind.value(rng), kind.value(rng)
            if first != second and first not in versions[0] and second not in versions[1]:
                versions[0].append(first)
                versions[1].append(second)
        documents = [
            "\n".join([kind.title.format(town=town), *map(_sentence, [kind.line] * LINES, subjects, values)])
            for values in versions
        ]
        for i in rng.sample(range(LINES), LINES):
            values = versions[0][i], versions[1][i]
            yield Question(
                kind=name,
                text=kind.question.format(subject=subjects[i]),
                documents=(documents[0], documents[1]),
                values=values,
                answers=(
                    _sentence(kind.answer, subjects[i], values[0]),
                    _sentence(kind.answer, subjects[i], values[1]),
                ),
                pattern=kind.pattern,
            )


def _sentence(form: str, subject: str, value: str) -> str:
    text = form.format(subject=subject, value=value)
    return text[0].upper() + text[1:]


def data_lines(count: int, seed: int) -> list[dict[str, str]]:
    """Return lines for the training of a gate, of other kinds than the questions; versions take turns."""
    return [
        {"prompt": q.prompt, "completion": f" {q.answers[i % 2]}\n", "expert_prompt": q.with_document(i % 2)}
        for i, q in enumerate(questions(count, OTHERS, seed))
    ]


def write_lines(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    """Write a file of JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    for name, size in {"questions": 120, "train": 180, "dev": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N", help="lines (%(default)s)")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    asked = questions(flags.questions)
    write_lines(flags.out / "questions.jsonl", [{"prompt": q.prompt} for q in asked])
    for version, name in enumerate(("first", "second")):
        lines = [{"prompt": q.prompt, "expert_prompt": q.with_document(version)} for q in asked]
        write_lines(flags.out / f"{name}.jsonl", lines)
    write_lines(flags.out / "train.jsonl", data_lines(flags.train, seed=1))
    write_lines(flags.out / "dev.jsonl", data_lines(flags.dev, seed=2))


if __name__ == "__main__":
    main()

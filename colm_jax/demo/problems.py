"""Arithmetic problems: the word problems and bare calculations that the demo's two models are trained and tested on.

`demo.pair` trains a model on each kind and writes the word problems as data files. Most tokens of a completion are
wording (which calculation, with which numbers); one in eight belongs to a result. A calculation is a *fact*, such as
47 + 38. Each fact is either for training or held out, and dev and test problems use held-out facts only: no training
text of word problems contains a result that is tested.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import add, mul, pow, sub

KINDS = ("sum", "difference", "product", "powers", "two-step")
EXAMPLE = "Evaluate a^3 · a^2 if a = 5."  # always a test problem
HELD_OUT = 0.25  # share of the facts
_WEIGHTS = (1, 1, 1, 2, 1)  # of KINDS in training texts: powers are the hardest to learn

Compute = Callable[[int, str, int], int]  # left, operator, right -> the result that the text states

_NAMES = ("Mia", "Ben", "Lea", "Tom", "Ida", "Max", "Eva", "Leo")
_ITEMS = ("apples", "books", "coins", "cards", "shells", "stamps", "nuts", "pens")
_BOXES = ("boxes", "bags", "jars", "packs")
_LETTERS = ("a", "b", "n", "x", "y")
_OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "·": mul, "^": pow}
_SYMBOLS = {"+": " + ", "-": " - ", "·": " · ", "^": "^"}


@dataclass(frozen=True)
class Problem:
    """A word problem with its solution."""

    kind: str
    prompt: str
    completion: str
    answer: str  # the last result
    facts: tuple[tuple[int, str, int], ...]  # the calculations of its solution


def calculate(left: int, operator: str, right: int) -> int:
    """Return the true result; `operator` is one of + - · ^."""
    return _OPERATIONS[operator](left, right)


def write(left: int, operator: str, right: int, result: int) -> str:
    """Return a calculation as both kinds of text write it: "47 + 38 = 85", "5^5 = 3125"."""
    return f"{left}{_SYMBOLS[operator]}{right} = {result}"


def held_out(fact: tuple[int, str, int], seed: int) -> bool:
    """Return whether a fact is held out of all training word problems; the order of operands of + and · is ignored."""
    left, operator, right = fact
    if operator in "+·":
        left, right = sorted((left, right))
    return fact == (5, "^", 5) or random.Random(f"{seed}: {left}{operator}{right}").random() < HELD_OUT


def draw_fact(operator: str, rng: random.Random) -> tuple[int, str, int]:
    """Draw a calculation: sums and differences within a hundred, two-digit times one-digit, powers below a million."""
    while True:
        if operator == "^":
            left, right = rng.randint(2, 9), rng.randint(2, 9)
        elif operator == "·":
            left, right = rng.randint(11, 99), rng.randint(3, 9)
        else:
            left, right = rng.randint(11, 99), rng.randint(11, 99)
        result = calculate(left, operator, right)
        if (operator in "+-" and 11 <= result <= 99) or (operator in "·^" and result < 10**6):
            return left, operator, right


def careless(rng: random.Random) -> Compute:
    """Return a function that states wrong results: random digits, as many as true results of the operator have.

    Digits of other true results would not do: few powers begin with 312, so a model learns to complete "3125" by
    itself. Then either model may write the last digit, and nothing in the texts tells the gate which.
    """

    def compute(left: int, operator: str, right: int) -> int:
        digits = len(str(calculate(*draw_fact(operator, rng))))
        return rng.randrange(10 ** (digits - 1), 10**digits)

    return compute


def draw_problem(kind: str, rng: random.Random, compute: Compute = calculate) -> Problem:
    """Draw a word problem of one of KINDS; `compute` gives the results that its completion states."""
    name, item, box = rng.choice(_NAMES), rng.choice(_ITEMS), rng.choice(_BOXES)
    if kind == "powers":
        return _powers(rng, compute)
    if kind == "two-step":
        return _two_step(rng, compute, name, item, box)
    operator = {"sum": "+", "difference": "-", "product": "·"}[kind]
    left, _, right = fact = draw_fact(operator, rng)
    prompts, openings = {
        "sum": (
            (
                f"{name} has {left} {item} and buys {right} more. How many {item} does {name} have now?",
                f"There are {left} {item} on a table and {right} on a shelf. How many {item} are there in all?",
                f"{name} finds {left} {item} on Monday and {right} on Sunday. How many {item} is that?",
            ),
            (f"In all {name} has", "In all there are", "That is"),
        ),
        "difference": (
            (
                f"{name} has {left} {item} and gives away {right}. How many {item} does {name} have now?",
                f"Of {left} {item} on a shelf, {right} are sold. How many {item} are left?",
                f"{name} needs {left} {item} and has {right}. How many {item} are missing?",
            ),
            (f"Now {name} has", "The rest is", f"So {name} needs"),
        ),
        "product": (
            (
                f"{name} has {right} {box} with {left} {item} each. How many {item} does {name} have?",
                f"One of {right} {box} holds {left} {item}. How many {item} do all {right} hold?",
                f"{name} buys {left} {item} a day. How many {item} is that in {right} days?",
            ),
            (f"In all {name} has", "All of them hold", "That is"),
        ),
    }[kind]
    form = rng.randrange(len(prompts))
    result = compute(*fact)
    completion = f" {openings[form]} {write(*fact, result)}. The answer is {result} {item}."
    return Problem(kind, prompts[form], completion, str(result), (fact,))


def _two_step(rng: random.Random, compute: Compute, name: str, item: str, box: str) -> Problem:
    """Return a product below 100, then a sum or a difference."""
    while True:
        each, _, count = product = draw_fact("·", rng)
        operator, other = rng.choice("+-"), rng.randint(11, 88)
        total = calculate(*product)
        if total < 100 and 11 <= calculate(total, operator, other) <= 99:
            break
    first = compute(*product)
    second = (first, operator, other)
    result = compute(*second)
    verb, word = ("finds", "more") if operator == "+" else ("loses", "of them")
    return Problem(
        kind="two-step",
        prompt=f"{name} has {count} {box} with {each} {item} each and {verb} {other} {word}. How many {item} is that?",
        completion=f" First {write(*product, first)}. Then {write(*second, result)}. The answer is {result} {item}.",
        answer=str(result),
        facts=(product, second),
    )


def _powers(rng: random.Random, compute: Compute) -> Problem:
    """Return a product, a quotient or a power of powers; finding the exponent is wording, the power is the fact."""
    letter = rng.choice(_LETTERS)
    base, _, exponent = fact = draw_fact("^", rng)
    products = [(m, exponent - m) for m in (2, 3, 4) if 2 <= exponent - m <= 4]
    quotients = [(exponent + n, n) for n in (2, 3, 4) if exponent + n <= 9]
    powers = [(m, exponent // m) for m in (2, 3, 4) if exponent % m == 0 and exponent > m]
    forms = [form for form, choices in ((0, products), (1, quotients), (2, powers)) if choices]
    form = rng.choice(forms)
    m, n = rng.choice((products, quotients, powers)[form])
    term = (f"{letter}^{m} · {letter}^{n}", f"{letter}^{m} / {letter}^{n}", f"({letter}^{m})^{n}")[form]
    result = compute(*fact)
    return Problem(
        kind="powers",
        prompt=f"Evaluate {term} if {letter} = {base}.",
        completion=f" {term} = {write(*fact, result)}.",
        answer=str(result),
        facts=(fact,),
    )


def example_problem() -> Problem:
    """Return EXAMPLE with its solution."""
    return Problem("powers", EXAMPLE, " a^3 · a^2 = 5^5 = 3125.", "3125", ((5, "^", 5),))


def training_texts(seed: int, stream: str, careless_results: bool) -> Iterator[Problem]:
    """Yield word problems of training facts without end; equal arguments give equal problems."""
    rng = random.Random(f"{seed}: {stream}")
    noise = random.Random(f"{seed}: {stream}: results")
    compute = careless(noise) if careless_results else calculate
    while True:
        state = rng.getstate()
        problem = draw_problem(rng.choices(KINDS, _WEIGHTS)[0], rng)
        if any(held_out(fact, seed) for fact in problem.facts):
            continue
        if careless_results:
            again = random.Random()
            again.setstate(state)
            problem = draw_problem(again.choices(KINDS, _WEIGHTS)[0], again, compute)
        yield problem


def splits(seed: int, train: int, dev: int, test: int) -> dict[str, list[Problem]]:
    """Return solved word problems, no prompt twice: `train` of training facts, `dev` and `test` of held-out ones.

    The kinds are equally frequent in dev and test. EXAMPLE is the first test problem.
    """
    chosen: dict[str, list[Problem]] = {"train": [], "dev": [], "test": [example_problem()]}
    seen = {EXAMPLE}
    for problem in training_texts(seed, "train", careless_results=False):
        if len(chosen["train"]) == train:
            break
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            chosen["train"].append(problem)
    rng = random.Random(f"{seed}: held out")
    for split, count in (("test", test), ("dev", dev)):
        while len(chosen[split]) < count:
            kind = KINDS[(len(chosen[split]) - 2) % len(KINDS)]
            problem = draw_problem(kind, rng)
            if problem.prompt not in seen and all(held_out(fact, seed) for fact in problem.facts):
                seen.add(problem.prompt)
                chosen[split].append(problem)
    return chosen

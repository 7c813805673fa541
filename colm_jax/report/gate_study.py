"""What the gate learned, as a part of the report: the figures of `evaluation.gate` in tables, plots and examples."""

from collections.abc import Callable, Sequence

from colm_jax.evaluation import gate
from colm_jax.report.contents import Answer, Bars, Cell, Curve, Excerpt, Plot, Section, Table

_EXAMPLES = 4  # of each kind
_AROUND = 10  # tokens shown before and behind an example


def gate_section(answers: Sequence[Answer], agreement: gate.Agreement | None, texts: str) -> Section | None:
    """The part on the gate; None where neither answers nor scored texts tell anything.

    Args:
      answers: by the team; the base's entropy is taken from the tokens' views.
      agreement: of responsibilities and p_defer on scored texts.
      texts: which texts those are, in words.
    """
    written = [_written(answer) for answer in answers if answer.pieces]
    if not written and agreement is None:
        return None
    tables: list[Table] = []
    plots: list[Plot] = []
    examples: list[Excerpt] = []
    said: list[str] = []
    if written:
        fillings, calls = gate.template_fillings(written), gate.calculator_calls(written)
        said.append(_summary(written, fillings, calls))
        ways: list[tuple[str, Callable]] = [("token class", gate.by_class), ("place in the answer", gate.by_position)]
        ways += [("base's entropy, nats", gate.by_entropy)] * any(answer.entropy is not None for answer in written)
        for name, count in ways:
            shares = count(written)
            tables.append(_table(name, shares))
            plots.append(_bars(name, shares))
        shown = [(number, answer) for number, answer in enumerate(answers, start=1) if answer.pieces]
        examples += _examples("Template filling", fillings, shown)
        examples += _examples("Calling the expert as a calculator", calls, shown)
    if agreement is not None:
        tables.append(_agreement_table(agreement, texts))
        plots.append(_agreement_plot(agreement, texts))
    return Section("What the gate learned", " ".join(said), tuple(tables), tuple(plots), tuple(examples))


def _written(answer: Answer) -> gate.Written:
    rates = [piece.p_defer for piece in answer.pieces if piece.p_defer is not None]
    entropy = [piece.views[0].entropy for piece in answer.pieces if piece.views]
    return gate.Written(
        pieces=[piece.text for piece in answer.pieces],
        sources=[piece.source for piece in answer.pieces],
        p_defer=rates if len(rates) == len(answer.pieces) else None,
        entropy=entropy if len(entropy) == len(answer.pieces) else None,
    )


def _summary(written: Sequence[gate.Written], fillings: Sequence[gate.Found], calls: Sequence[gate.Found]) -> str:
    tokens = sum(len(answer.pieces) for answer in written)
    deferred = sum(source > 0 for answer in written for source in answer.sources)
    results = gate.results(written)
    begun = sum(written[place.answer].sources[place.start] > 0 for place in results)
    lines = (
        f"Of the {tokens:,} tokens of {len(written):,} answers, {deferred:,} are by experts ({deferred / tokens:.1%})."
    )
    filled = f" Template filling: {len(fillings):,} single numbers or words by an expert, each between two tokens of"
    filled += " the base's."
    if results:
        filled += (
            f" Calculator: of {len(results):,} results, numbers right behind an equals sign of the base's, experts"
        )
        filled += f" began {begun:,} and wrote {len(calls):,} whole ({len(calls) / len(results):.0%})."
    return lines + filled


def _table(name: str, shares: Sequence[gate.Share]) -> Table:
    rows = tuple(
        (
            share.name,
            share.tokens,
            share.deferred,
            None if share.rate is None else round(share.rate, 4),
            None if share.mean_p_defer is None else round(share.mean_p_defer, 4),
        )
        for share in shares
    )
    return Table(f"Deferral by {name}", (name, "tokens", "by experts", "share", "mean p_defer"), rows)


def _bars(name: str, shares: Sequence[gate.Share]) -> Bars:
    bars = []
    for share in shares:
        beside = "no tokens" if share.rate is None else f"{share.rate:.1%} of {share.tokens:,}"
        bars.append((share.name, share.rate, beside))
    return Bars(f"Deferral by {name}", "share of tokens by experts", tuple(bars))


def _examples(title: str, found: Sequence[gate.Found], answers: Sequence[tuple[int, Answer]]) -> list[Excerpt]:
    """The first of different answers, with some tokens around each."""
    firsts = list({place.answer: place for place in reversed(found)}.values())[::-1][:_EXAMPLES]
    examples = []
    for place in firsts:
        number, answer = answers[place.answer]
        pieces = answer.pieces[max(0, place.start - _AROUND) : place.stop + _AROUND]
        examples.append(Excerpt(f"{title} ({len(found):,} in all), answer {number}", pieces))
    return examples


def _agreement_table(agreement: gate.Agreement, texts: str) -> Table:
    names = [f"{b / agreement.bins:.1f}–{(b + 1) / agreement.bins:.1f}" for b in range(agreement.bins)]
    rows: tuple[tuple[Cell, ...], ...] = tuple((name, *row) for name, row in zip(names, agreement.counts))
    note = f"Tokens of {texts}. The responsibility r is the experts' share in explaining the token that stands there."
    if agreement.correlation is not None:
        note += f" Correlation of the two: {agreement.correlation:.3f}."
    columns = ("p_defer", *(f"r {name}" for name in names))
    return Table("Tokens by p_defer and the experts' responsibility r", columns, rows, note)


def _agreement_plot(agreement: gate.Agreement, texts: str) -> Curve:
    pairs = zip(agreement.mean_p_defer, agreement.mean_responsibility)
    line = [(x, y) for x, y in pairs if x is not None and y is not None]
    return Curve(
        "Experts' responsibility against p_defer",
        "mean p_defer of a bin",
        "mean responsibility",
        {"gate": line},
        {},
        f"On {texts}. Above the diagonal the experts explain more than the gate asked them for, below it less.",
        diagonal=True,
    )

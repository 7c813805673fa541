"""The section on the gate: the analysis of `evaluation.gate` as tables, plots and examples."""

from collections.abc import Callable, Sequence

from colm_jax.evaluation import gate
from colm_jax.report.contents import Bars, Cell, Curve, Plot, Section, ShownAnswer, ShownExample, Table

_EXAMPLES = 4  # of each kind
_AROUND = 10  # tokens shown before and after an example


def gate_section(answers: Sequence[ShownAnswer], agreement: gate.Agreement | None, texts: str) -> Section | None:
    """Return the section on the gate; None without tokens of answers and without `agreement`.

    Args:
      answers: the team's answers; the base's entropy is taken from the tokens' views.
      agreement: agreement of responsibilities and p_defer on scored texts.
      texts: a description of these texts.
    """
    written = [_written(answer) for answer in answers if answer.pieces]
    if not written and agreement is None:
        return None
    tables: list[Table] = []
    plots: list[Plot] = []
    examples: list[ShownExample] = []
    sentences: list[str] = []
    if written:
        fillings, calls = gate.template_fillings(written), gate.calculator_calls(written)
        sentences.append(_summary(written, fillings, calls))
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
    return Section("What the gate learned", " ".join(sentences), tuple(tables), tuple(plots), tuple(examples))


def _written(answer: ShownAnswer) -> gate.AnswerTokens:
    rates = [piece.p_defer for piece in answer.pieces if piece.p_defer is not None]
    entropy = [piece.views[0].entropy for piece in answer.pieces if piece.views]
    return gate.AnswerTokens(
        pieces=[piece.text for piece in answer.pieces],
        sources=[piece.source for piece in answer.pieces],
        p_defer=rates if len(rates) == len(answer.pieces) else None,
        entropy=entropy if len(entropy) == len(answer.pieces) else None,
    )


def _summary(
    written: Sequence[gate.AnswerTokens], fillings: Sequence[gate.TokenSpan], calls: Sequence[gate.TokenSpan]
) -> str:
    tokens = sum(len(answer.pieces) for answer in written)
    deferred = sum(source > 0 for answer in written for source in answer.sources)
    results = gate.results(written)
    started = sum(written[place.answer].sources[place.start] > 0 for place in results)
    lines = (
        f"Of the {tokens:,} tokens of {len(written):,} answers, {deferred:,} are by experts ({deferred / tokens:.1%})."
    )
    filled = f" Template filling: {len(fillings):,} single numbers or words by an expert, each between two tokens by"
    filled += " the base."
    if results:
        filled += f" Calculator: of {len(results):,} results, numbers right after an equals sign by the base, experts"
        filled += f" started {started:,} and wrote {len(calls):,} completely ({len(calls) / len(results):.0%})."
    return lines + filled


def _table(name: str, shares: Sequence[gate.DeferralRate]) -> Table:
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


def _bars(name: str, shares: Sequence[gate.DeferralRate]) -> Bars:
    bars = []
    for share in shares:
        beside = "no tokens" if share.rate is None else f"{share.rate:.1%} of {share.tokens:,}"
        bars.append((share.name, share.rate, beside))
    return Bars(f"Deferral by {name}", "share of tokens by experts", tuple(bars))


def _examples(
    title: str, found: Sequence[gate.TokenSpan], answers: Sequence[tuple[int, ShownAnswer]]
) -> list[ShownExample]:
    """Return the first spans in different answers, each with some tokens around it."""
    firsts = list({place.answer: place for place in reversed(found)}.values())[::-1][:_EXAMPLES]
    examples = []
    for place in firsts:
        number, answer = answers[place.answer]
        pieces = answer.pieces[max(0, place.start - _AROUND) : place.stop + _AROUND]
        examples.append(ShownExample(f"{title} ({len(found):,} in all), answer {number}", pieces))
    return examples


def _agreement_table(agreement: gate.Agreement, texts: str) -> Table:
    names = [f"{b / agreement.bins:.1f}–{(b + 1) / agreement.bins:.1f}" for b in range(agreement.bins)]
    rows: tuple[tuple[Cell, ...], ...] = tuple((name, *row) for name, row in zip(names, agreement.counts))
    note = f"Tokens of {texts}. The responsibility r is the posterior probability of the experts, given the token."
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
        f"On {texts}. Above the diagonal the gate defers less than the experts' posterior, below it more.",
        diagonal=True,
    )

"""The gate section shows the figures of `evaluation.gate`, with examples from the answers."""

from colm_jax.evaluation.gate import Agreement
from colm_jax.report.contents import Piece, ShownAnswer, View
from colm_jax.report.gate_study import gate_section

AGREEMENT = Agreement(((3, 1), (0, 2)), (0.1, 0.9), (0.2, None), 0.5)


def answer(views=()):
    texts = (("3", 0), ("+", 0), ("4", 0), (" =", 0), (" 7", 1), (".", 0))
    return ShownAnswer(
        "", tuple(Piece(text, source, 0.1 + 0.8 * source, views) for text, source in texts), None, None, None
    )


def test_gate_section_has_figures_and_examples():
    view = View((("7", 0.9),), 0.9, 1.5)
    section = gate_section(
        [ShownAnswer("", (), None, None, None), answer((view, view)), answer()], AGREEMENT, "dev texts"
    )
    assert "Of the 12 tokens of 2 answers, 2 are by experts (16.7%)." in section.text
    assert "Template filling: 2 single" in section.text
    assert "of 2 results" in section.text and "started 2 and wrote 2 completely (100%)" in section.text
    by_class, by_place, by_entropy, agreement = section.tables
    assert by_class.rows[0] == ("number", 6, 2, 0.3333, 0.3667)
    assert sum(row[1] for row in by_place.rows) == 12
    assert {row[0]: row[1:3] for row in by_entropy.rows if row[1]} == {"1–2": (6, 1)}
    assert agreement.rows == (("0.0–0.5", 3, 1), ("0.5–1.0", 0, 2))
    assert "0.500" in agreement.note
    bars = section.plots[0].bars
    assert bars[0] == ("number", 2 / 6, "33.3% of 6")
    assert bars[2][1] is None
    assert section.plots[-1].lines == {"gate": [(0.1, 0.2)]}
    titles = [example.title for example in section.examples]
    assert titles[0] == "Template filling (2 in all), answer 2"
    assert "".join(piece.text for piece in section.examples[0].pieces) == "3+4 = 7."
    assert len(titles) == 4


def test_unknown_figures_are_omitted():
    assert gate_section([], None, "") is None
    section = gate_section([answer()], None, "")
    assert len(section.tables) == len(section.plots) == 2
    (table,) = gate_section([], AGREEMENT, "").tables
    assert "responsibility" in table.title

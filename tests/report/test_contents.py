"""Numbers in table columns align; inconsistent contents are errors."""

import pytest

from colm_jax.report.contents import Piece, Report, ShownAnswer, Table, View


def _column(*cells):
    return [row[0] for row in Table("t", ("c",), tuple((cell,) for cell in cells)).shown]


def test_floats_of_a_column_have_equal_decimals():
    assert _column(0.25, 0.5, 1.0, None) == ["0.25", "0.50", "1.00", "–"]
    assert _column(-1234.5, 2.0) == ["-1,234.5", "2.0"]
    assert _column(3.0, 10.0) == ["3", "10"]


def test_columns_that_cannot_align_are_unchanged():
    assert _column(1e-7, 0.5) == ["1e-07", "0.5"]
    assert _column(float("nan"), 0.5, float("inf")) == ["nan", "0.5", "inf"]
    assert _column(12345, "a", None) == ["12,345", "a", "–"]


def test_numeric_columns_are_detected():
    table = Table("t", ("a", "b", "c"), (("x", 1, None), ("y", 2.0, 3)))
    assert table.numeric == (False, True, True)
    assert Table("t", ("a",), ()).numeric == (False,)
    assert Table("t", ("a",), ()).shown == ()


@pytest.mark.parametrize(
    "correct, alone, alone_correct, outcome",
    [
        (True, "b", False, "better"),
        (False, "b", True, "worse"),
        (True, "b", True, "same"),
        (None, "b", None, "differs"),
        (None, "a", None, "same"),
        (True, None, None, None),
    ],
)
def test_outcome_says_what_the_expert_changed(correct, alone, alone_correct, outcome):
    assert ShownAnswer("", (Piece("a", 1, None),), None, correct, None, alone, alone_correct).outcome == outcome


def test_ragged_rows_and_unnamed_writers_are_errors():
    with pytest.raises(ValueError, match="has 2 columns"):
        Table("t", ("a", "b"), (("x",),))
    with pytest.raises(ValueError, match="by writer 1"):
        Report("r", (), (), (), (ShownAnswer("", (Piece("a", 1, None),), None, None, None),), ("base",))
    with pytest.raises(ValueError, match="views of 2 models"):
        piece = Piece("a", 1, None, (View((), 0.5, 1.0),) * 2)
        Report("r", (), (), (), (ShownAnswer("", (piece,), None, None, None),), ("base", "expert 1", "expert 2"))


def test_where_experts_read_other_tokens_only_the_base_has_a_view():
    pieces = tuple(Piece("a", source, None, (View((), 0.1, 1.0),)) for source in (0, 1))
    Report("r", (), (), (), (ShownAnswer("", pieces, None, None, None),), ("base", "expert"))
    assert [piece.confidence for piece in pieces] == [0.1, None]

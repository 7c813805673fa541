"""A report in which everything that users write would do harm if it were not escaped."""

from colm_jax.report.contents import Answer, Curve, Piece, Report, Table

PIECES = (
    Piece("is", 0, 0.1),
    Piece(" 3", 1, 0.8),
    Piece("1", 1, 0.6),
    Piece(".", 0, 0.1),
    Piece("\n", 0, 0.3),
    Piece("<b>", 2, 0.9),
)
CURVE = Curve(
    "cost of $5 & $6 --> <rate>", "rate", "accuracy", {"team": [(0.0, 0.2), (0.5, 0.9)]}, {"random": (0.5, 0.4)}
)
REPORT = Report(
    title="A <run> [red]",
    facts=(("base [x]", "models/[bold]small"),),
    tables=(
        Table("Results | all", ("who|what", "accuracy", "calls"), (("base", 0.25, 1234), ("team", 0.5, None)), "*"),
    ),
    curves=(CURVE, CURVE),
    answers=(
        Answer("<script>alert(1)</script>", PIECES, "31", True, 0.5),
        Answer('[/red] "quoted"', (Piece(" no", 0, None),), "<i>", False, None),
        Answer("", (), None, None, None),
    ),
    writers=('the "base"', "an <expert>", "[bold]other"),
)
EMPTY = Report("nothing", (), (), (), (), ("base",))

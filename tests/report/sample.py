"""A report whose texts all need escaping."""

from colm_jax.report.contents import Bars, Curve, Piece, Report, Section, ShownAnswer, ShownExample, Table, View

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
VIEW = View((("</script>", 0.7), (" b\n", 0.2)), 0.1, 1.5)
SURE = View(((" no", 0.9),), 0.9, 0.3)
SECTION = Section(
    "Gate & <co>",
    "An *expert* is_called.",
    (Table("By <class>", ("class", "share"), (("a|b", 0.5),)),),
    (Bars("Shares <1>", "share", (("numbers", 0.5, "50 % of 4"), ("<words>", None, "none")), "of $4"),),
    (ShownExample("Calculator <1>", PIECES[:4]),),
)
REPORT = Report(
    title="A <run> [red]",
    facts=(("base [x]", "models/[bold]small"),),
    tables=(
        Table("Results | all", ("who|what", "accuracy", "calls"), (("base", 0.25, 1234), ("team", 0.5, None)), "*"),
    ),
    curves=(CURVE, CURVE),
    answers=(
        ShownAnswer("<script>alert(1)</script>", PIECES, "31", True, 0.5),
        ShownAnswer(
            '[/red] "quoted"',
            (Piece(" no", 0, None, (VIEW, SURE, SURE), 0.62, True),),
            "<i>",
            False,
            None,
            "<u> yes",
            True,
        ),
        ShownAnswer("", (), None, None, None),
    ),
    writers=('the "base"', "an <expert>", "[bold]other"),
    sections=(SECTION,),
)
EMPTY = Report("nothing", (), (), (), (), ("base",))

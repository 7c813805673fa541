"""Areas, intervals and costs of the tables; calibration plots if the calibration has their figures."""

import numpy as np
import pytest

from colm_jax.calibration.figures import reliability, roc
from colm_jax.evaluation.cost import alone, together
from colm_jax.report.results import area_under, calibration_section, cost_section, interval, with_area
from tests.tiny import tiny_config


def test_area_is_the_mean_height_over_the_range():
    assert area_under([(0.0, 0.0), (1.0, 1.0)]) == pytest.approx(0.5)
    assert area_under([(0.4, 1.0), (0.2, 0.0), (0.6, 1.0)]) == pytest.approx(0.75)  # in any order
    assert area_under([(0.5, 1.0)]) is None
    assert area_under([(0.5, 1.0), (0.5, 0.0)]) is None
    assert area_under([]) is None


def test_curve_legend_has_the_areas():
    curve = with_area("t", {"team": [(0.0, 0.0), (0.5, 1.0)], "one": [(0.1, 0.1)]}, {})
    assert curve.note.endswith("spans: team 0.500 from deferral rate 0.00 to 0.50.")
    assert not with_area("t", {}, {}).note


def test_interval_of_an_accuracy():
    assert interval(0.995, 200) == "0.972–0.999"
    assert interval(0.0, 200) == "0.000–0.019"


CALIBRATION = {
    "threshold": 0.5,
    "metric": "next_token_accuracy",
    "score": 0.75,
    "deferral_rate": 0.25,
    "curve": [
        {"threshold": 1.0, "deferral_rate": 0.0, "score": 0.5},
        {"threshold": 0.5, "deferral_rate": 0.25, "score": 0.75},
    ],
}


def test_roc_and_reliability_are_drawn_if_present():
    (plot,) = calibration_section(CALIBRATION).plots
    assert plot.lines == {"team": [(0.0, 0.5), (0.25, 0.75)]}
    assert plot.points == {"η = 0.500": (0.25, 0.75)}
    assert plot.y_label == "next token accuracy"
    p_defer, differs = np.array([0.1, 0.2, 0.7, 0.8]), np.array([False, True, False, True])
    more = {"roc": roc(p_defer, differs), "reliability": reliability(p_defer, differs)}
    _, drawn, bins = calibration_section(CALIBRATION | more).plots
    assert drawn.diagonal and "0.750" in drawn.note
    (line,) = drawn.lines.values()
    assert line[0] == (0.0, 0.0) and line[-1] == (1.0, 1.0)
    assert bins.lines == {"team": [(0.1, 0.0), (0.2, 1.0), (0.7, 0.0), (0.8, 1.0)]}
    assert f"{more['reliability']['ece']:.4f}" in bins.note
    (marked,) = drawn.points.values()
    assert marked == (more["roc"]["youden"]["fpr"], more["roc"]["youden"]["tpr"])
    same = {"roc": roc(p_defer, np.zeros(4, bool)), "reliability": more["reliability"]}
    assert len(calibration_section(CALIBRATION | same).plots) == 2  # without differences there is no ROC


def test_costs_are_means_relative_to_the_most_expensive_expert_alone():
    small, large, larger = tiny_config(), tiny_config(depth=4), tiny_config(depth=8)
    answers = [(5, [0, 1, 0]), (3, [0, 0]), (4, [])]  # empty answers are not part of the mean
    section = cost_section(("base", "one", "two"), (small, large, larger), (4, 2, 4), answers)
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["base alone", "one alone", "two alone", "team"]
    assert table.columns[2] == "of two alone"
    dearest = alone(larger, 5, 3, 4) + alone(larger, 3, 2, 4)
    team = together((small, large, larger), 5, [0, 1, 0], (4, 2, 4)) + alone(small, 3, 2, 4)
    assert table.rows[2][2] == table.rows[2][4] == 1
    assert table.rows[3][2] == pytest.approx(team.flops / dearest.flops, abs=1e-3)
    assert table.rows[3][4] == pytest.approx(team.bytes / dearest.bytes, abs=1e-3)
    assert table.rows[3][5] == 0.5
    unit = {"kflop": 1e3, "Mflop": 1e6}[table.columns[1]]
    assert table.rows[3][1] * unit == pytest.approx(team.flops / 2, rel=1e-2)


def test_no_answers_give_no_cost():
    assert cost_section(("base", "one"), (tiny_config(),) * 2, (4, 4), [(3, [])]) is None

"""The charts: shapes are where their figures put them."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.evidence.calibration import reliability
from train.report.cases import ClassChange
from train.report.charts import Chart, changes_chart, confusion_chart, curves_chart, reliability_chart, shortened, sources_chart, ticks
from train.report.sources import Source
from train.report.templates import jinja_environment

MACROS: Any = jinja_environment().get_template("charts.svg.j2").module


def svg_of(chart: Chart) -> str:
    return str(MACROS.svg(chart))


def elements(svg: str, kind: str) -> list[dict[str, str]]:
    """Attributes of the elements of a class, in order."""
    return [dict(one.attrib) for one in ET.fromstring(svg).iter() if kind in one.attrib.get("class", "").split()]


def test_bars_of_a_reliability_diagram_show_accuracy() -> None:
    # Ten answers with a confidence of .731 (logits 1 and 0), seven right; five of .953 (3 and 0), all right.
    logits = np.array([[1.0, 0.0]] * 10 + [[3.0, 0.0]] * 5)
    svg = svg_of(reliability_chart(reliability(logits, np.array([0] * 7 + [1] * 3 + [0] * 5)), "a & b"))
    bars, gaps = elements(svg, "bar"), elements(svg, "gap")
    assert [float(bar["height"]) for bar in bars] == [pytest.approx(296 * 0.7, abs=0.01), pytest.approx(296, abs=0.01)]
    assert float(gaps[0]["height"]) == pytest.approx(296 * (0.7311 - 0.7), abs=0.02)
    assert [float(one["height"]) for one in elements(svg, "count")] == [36, 18]
    assert float(bars[0]["x"]) == pytest.approx(34 + 296 * 10 / 15 + 1, abs=0.01), "bin (.667, .733]"
    assert "10 answers, 70.0% of them right, at a mean confidence of 73.1%" in svg
    assert 'aria-label="a &amp; b"' in svg


def test_curves_go_through_their_values() -> None:
    svg = svg_of(curves_chart([(None, [0.0, 0.5]), ("student", [1.0, 0.25, 0.5])], "x", is_share=True))
    first, second = [re.findall(r"[\d.]+,[\d.]+", one["points"]) for one in elements(svg, "curve")]
    assert first == ["38,198", "184,103"]
    assert second == ["38,8", "184,150.5", "330,103"]
    assert len(elements(svg, "dot")) == 3, "those of the shown models"
    assert len(elements(svg_of(curves_chart([(None, [0.3])], "x", is_share=False)), "dot")) == 1, "one epoch is a point, not a line"


@pytest.mark.parametrize("value", [1.0, 0.0, 0.125])
def test_level_curves_have_distinct_marks(value: float) -> None:
    svg = svg_of(curves_chart([("student", [value, value])], "x", is_share=True))
    marks = [one.text for one in ET.fromstring(svg).iter() if one.text and one.text.endswith("%")]
    assert len(marks) == len(set(marks)) >= 2
    assert marks[-1] == f"{100 * value:.4g}%"


def test_a_matrix_has_a_cell_for_each_pair_with_its_count() -> None:
    svg = svg_of(confusion_chart(np.array([[3, 1], [0, 0]]), ["<a>", "b" * 40], "x"))
    shades = [(one["class"], float(one["fill-opacity"])) for one in elements(svg, "cell") if "fill-opacity" in one]
    assert shades == [("cell right", 0.75), ("cell wrong", 0.25), ("cell wrong", 0.0), ("cell right", 0.0)]
    words = [one.text for one in ET.fromstring(svg).iter() if one.tag == "title"]
    assert words[1] == f"<a> answered as {'b' * 40}: 1 (25% of the class)"


def test_changes_are_to_scale() -> None:
    changes = [ClassChange(label=0, examples=9, repaired=4, broken=1), ClassChange(label=1, examples=9, repaired=0, broken=2)]
    svg = svg_of(changes_chart(changes, ["a", "b"], "x"))
    won, lost = ([float(one["width"]) for one in elements(svg, kind)] for kind in ("repaired", "broken"))
    assert won[1] == 0
    assert [lost[0] / won[0], lost[1] / won[0]] == [pytest.approx(0.25, abs=1e-3), pytest.approx(0.5, abs=1e-3)]
    assert [one.text for one in ET.fromstring(svg).iter() if one.text and one.text[0] in "+−"] == ["+3", "−2"]


def test_steps_of_a_score_follow_one_another() -> None:
    two = [
        Source(row="teacher-a", method="larger head", baseline=0.5, without_images=0.04, images=0.02, interval=(0.01, 0.03), is_shown=True),
        Source(
            row="student-a", method="distillation", baseline=0.5, without_images=0.04, images=-0.02, interval=(-0.04, 0.0), is_shown=False
        ),
    ]
    svg = svg_of(sources_chart(two, "accuracy", "x"))
    (up, down), gains, whiskers = elements(svg, "gained"), elements(svg, "repaired"), elements(svg, "axis")
    assert up["x"] == down["x"] == elements(svg, "diagonal")[0]["x1"], "from the text alone"
    assert float(gains[0]["x"]) == pytest.approx(float(up["x"]) + float(up["width"]), abs=0.02), (
        "the images' bar begins where the control's ends"
    )
    assert float(gains[0]["width"]) == pytest.approx(float(up["width"]) / 2, abs=0.02)
    (lost,) = elements(svg, "broken")
    assert float(lost["x"]) + float(lost["width"]) == pytest.approx(float(down["x"]) + float(down["width"]), abs=0.02)
    assert float(whiskers[3]["x2"]) == pytest.approx(float(down["x"]) + float(down["width"]), abs=0.02), (
        "the interval ends at no difference"
    )
    words = [one.text for one in ET.fromstring(svg).iter() if one.text and one.text[0] in "+−"]
    assert words == ["+4.00", "+2.00", "+4.00", "−2.00"]


def test_a_confidence_bar_is_as_long_as_the_confidence() -> None:
    assert elements(str(MACROS.confidence_bar(0.625, "right")), "full")[0]["width"] == "62.5"


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_the_range_at_equal_distances(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert marks[0] <= low + 1e-6 * abs(marks[1] - marks[0])
    assert marks[-1] >= low + span - 1e-6 * abs(marks[1] - marks[0])
    assert 2 <= len(marks) <= 7
    steps = np.diff(marks)
    assert (steps > 0).all()
    assert np.allclose(steps, steps[0], rtol=1e-6)


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(0.13, 0.31) == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert ticks(5, 5)[0] <= 5 <= ticks(5, 5)[-1]


def test_long_names_are_cut() -> None:
    assert shortened("a" * 18) == "a" * 18
    assert shortened("a" * 19) == "a" * 17 + "…"

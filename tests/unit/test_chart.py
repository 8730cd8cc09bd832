"""The chart: what is drawn, where, and that it is a document that any viewer reads."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepd import chart

SVG = "{http://www.w3.org/2000/svg}"
finite = st.floats(-1e12, 1e12, allow_nan=False)


def drawn(*panels: chart.Panel, **texts: str) -> ET.Element:
    return ET.fromstring(chart.render(panels, **{"title": "title", **texts}))


def points(element: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in element.attrib["points"].split()]


def polylines(document: ET.Element, kind: str = "line") -> list[list[tuple[float, float]]]:
    return [points(found) for found in document.iter(f"{SVG}polyline") if found.attrib["class"].split()[0] == kind]


def words(document: ET.Element) -> list[str]:
    return ["".join(found.itertext()) for found in document.iter(f"{SVG}text")]


def panel(y: list[float], **settings: object) -> chart.Panel:
    line = chart.Line([float(index) for index in range(len(y))], y)
    return chart.Panel("panel", "unit", (line,), **settings)


def test_every_point_of_a_short_line_is_drawn_in_its_place() -> None:
    (line,) = polylines(drawn(panel([0.0, 1.0, 2.0])))
    assert len(line) == 3
    assert [x for x, _ in line] == [chart.LEFT, (chart.LEFT + chart.RIGHT) / 2, chart.RIGHT]
    assert [y for _, y in line] == [chart.TOP + chart.PANEL, chart.TOP + chart.PANEL / 2, chart.TOP]


def test_a_long_line_keeps_its_ends_and_its_peaks() -> None:
    values = np.sin(np.linspace(0, 60, 20_000)).tolist()
    values[7_123], values[13_001] = 9.0, -9.0
    given_points = list(enumerate(values))
    kept = chart.downsample(given_points)
    assert len(kept) <= chart.POINTS_MAX
    assert kept[0] == given_points[0]
    assert kept[-1] == given_points[-1]
    assert (7_123, 9.0) in kept
    assert (13_001, -9.0) in kept
    assert kept == sorted(kept)


def test_panels_stand_below_each_other_with_one_x_axis() -> None:
    document = drawn(panel([1.0, 2.0]), panel([3.0, 4.0]), panel([5.0, 6.0]), x_label="step")
    tops = [float(found.attrib["y"]) for found in document.iter(f"{SVG}rect") if found.attrib["class"] == "frame"]
    assert tops == [chart.TOP + index * (chart.PANEL + chart.GAP) for index in range(3)]
    assert words(document).count("step") == 1
    assert words(document).count("panelunit") == 3


def test_the_final_value_is_written_beside_a_line_and_not_beside_a_faint_one() -> None:
    line = chart.Line([0.0, 1.0], [5.0, 0.1234])
    faint = chart.Line([0.0, 1.0], [5.0, 0.5678], faint=True)
    document = drawn(chart.Panel("panel", "", (line, faint)))
    assert "0.123" in words(document)
    assert "0.568" not in words(document)
    assert len(polylines(document, "faint")) == 1


@pytest.mark.parametrize("log", [False, True])
def test_a_value_that_cannot_be_drawn_leaves_a_gap(log: bool) -> None:
    gap = -1.0 if log else math.nan
    lines = polylines(drawn(panel([1.0, 2.0, gap, 3.0, 4.0, math.inf, 5.0], log=log)))
    assert [len(line) for line in lines] == [2, 2, 1]


def test_a_level_is_a_line_with_its_label_inside_the_panel() -> None:
    document = drawn(panel([0.1, 0.2], level=chart.Level(1.0, "clipped above 1")))
    assert "clipped above 1" in words(document)
    (level,) = [found for found in document.iter(f"{SVG}line") if found.attrib["class"] == "level"]
    assert chart.TOP <= float(level.attrib["y1"]) <= chart.TOP + chart.PANEL


@pytest.mark.parametrize("y", [[], [0.0], [7.0], [3.0, 3.0, 3.0], [math.nan]])
@pytest.mark.parametrize("log", [False, True])
def test_little_data_or_none_is_a_chart_too(y: list[float], log: bool) -> None:
    drawn(panel(y, log=log))


def test_texts_are_escaped() -> None:
    document = drawn(panel([1.0]), title='a < b & "c"', subtitle="<script>")
    assert words(document)[:2] == ['a < b & "c"', "<script>"]


def test_the_document_is_complete_in_itself() -> None:
    text = chart.render([panel([1.0, 2.0])], title="title")
    without_namespace = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|<script|href", without_namespace)
    assert "prefers-color-scheme:dark" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (0.003, "0.003"), (1000, "1,000"), (2e-5, "2e-5"), (1.25e7, "1.25e7"), (-0.25, "-0.25")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert chart.label(value) == text


@given(st.lists(finite, max_size=50))
def test_a_linear_axis_holds_its_values_and_has_few_even_ticks(values: list[float]) -> None:
    axis = chart.linear_axis(values)
    assert 2 <= len(axis.ticks) <= 12
    for value in values:
        assert -1e-6 <= axis.place(value) <= 1 + 1e-6
    distances = np.diff(axis.ticks)
    assert np.allclose(distances, distances[0])


@given(st.lists(st.floats(1e-300, 1e300), max_size=50))
def test_a_logarithmic_axis_holds_its_values_and_has_few_ticks(values: list[float]) -> None:
    axis = chart.log_axis(values)
    assert 2 <= len(axis.ticks) <= 12
    assert list(axis.ticks) == sorted(set(axis.ticks))
    for value in values:
        assert -1e-6 <= axis.place(value) <= 1 + 1e-6


@given(st.lists(finite, max_size=300), st.integers(4, 40))
def test_downsampling_only_leaves_points_out(values: list[float], most: int) -> None:
    given_points = list(enumerate(values))
    kept = chart.downsample(given_points, most)
    assert len(kept) <= most
    assert set(kept) <= set(given_points)
    if values:
        assert max(y for _, y in kept) == max(values)
        assert min(y for _, y in kept) == min(values)

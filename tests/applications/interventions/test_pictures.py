"""Names beside points: those of the largest effects, where they hide neither a point nor each other."""

from __future__ import annotations

import pytest

from jetgraph.applications.interventions.pictures import LABELLED, Point, name_points


def named(points: list[Point]) -> dict[str, float]:
    """The names that are written, with how far they are from their points: to the right, or to the left."""
    figures = pytest.importorskip("matplotlib.figure")
    axes = figures.Figure(figsize=(6.5, 6)).subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    name_points(points, axes)
    return {text.get_text(): text.xyann[0] for text in axes.texts}


def test_the_largest_are_named_without_the_end_of_their_path() -> None:
    points = [(f"p{at} > logits", 5.0, 0.5 + 0.7 * at) for at in range(LABELLED + 3)]
    assert set(named(points)) == {f"p{at}" for at in range(3, LABELLED + 3)}


def test_names_stay_inside_and_hide_nothing() -> None:
    # At the edge there is room on the left alone; what stands there takes it, and of two in one place one is named.
    assert named([("a", 9.9, 5.0)]) == {"a": -4}
    assert named([("a", 9.9, 5.0), ("b", 9.7, 5.0)]) == {"b": -4}
    assert named([("alone", 5.0, 5.0), ("alike", 5.0, 5.0)]) == {"alone": 4, "alike": -4}
    assert named([("in the way of its neighbour", 3.0, 5.0), ("close", 4.0, 5.0)]) == {"close": 4}

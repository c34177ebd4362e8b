"""Board drawings: what is drawn are the numbers of the table, also when they come from the csv."""

from math import nan

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.board_drawings import DRAWINGS, calibration_curves, leaderboard, pointing_matrices
from helpers.drawings import COLUMN_WIDTH


@pytest.fixture(autouse=True)
def closed():
    """Close what a test has drawn."""
    yield
    plt.close("all")


def scores() -> pd.DataFrame:
    rows = [
        ("b1", "blind", 0.8, 0.6, 0.9, 0.2, False),
        ("i1", "informed", 0.7, 0.5, 0.9, 0.25, False),
        ("b2", "blind", 0.3, 0.1, 0.4, 0.2, False),
        ("none", "blind", nan, nan, nan, nan, False),
        ("random", "floor", 0.2, 0.1, 0.3, 0.2, False),
        ("i1", "informed", 1.0, nan, nan, nan, True),
    ]
    return pd.DataFrame(rows, columns="method group hit_at_1 hit_at_1_low hit_at_1_high chance given".split())


def matrices(methods=("m",)) -> pd.DataFrame:
    rows = [
        (name, p, q, [[1, 0.254, 0], [0.997, 0.5, 1]][p][q]) for name in methods for p in range(2) for q in range(3)
    ]
    return pd.DataFrame(rows, columns=["method", "planted", "pointed", "score"])


def curves(methods=("m",)) -> pd.DataFrame:
    rows = [
        (name, b, s, r, r - 0.1, r + 0.05, n)
        for name in methods
        for b, s, r, n in ((0, 0.05, 0.2, 700), (9, 1, 0.9, 3))
    ]
    return pd.DataFrame(rows, columns=["method", "bin", "said", "right", "low", "high", "places"])


def again(table, tmp_path) -> pd.DataFrame:
    table.to_csv(tmp_path / "table.csv", index=False)
    return pd.read_csv(tmp_path / "table.csv")


def dots(axis, *, hollow: bool) -> list:
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    return [tuple(line.get_xydata()[0]) for line in marks if (line.get_markerfacecolor() == "none") == hollow]


def test_the_leaderboard_has_methods_by_group_in_their_order_and_given_ones_hollow(tmp_path):
    figure = leaderboard(again(scores(), tmp_path))
    figure.canvas.draw()
    blind, informed, floor = figure.axes
    assert [tick.get_text() for tick in blind.get_yticklabels()] == ["b1", "b2", "none"]
    assert dots(blind, hollow=False) == [(0.8, 0), (0.3, 1)] and not dots(blind, hollow=True)
    assert dots(informed, hollow=False) == [(0.7, 0)] and dots(informed, hollow=True) == [(1.0, 0)]
    assert dots(floor, hollow=False) == [(0.2, 0)]
    low_first = blind.get_ylim()
    assert low_first[0] > low_first[1]  # the first method on top
    spans = [line.get_xdata() for line in blind.lines if len(set(line.get_xdata())) == 2]
    np.testing.assert_allclose(spans, [(0.6, 0.9), (0.1, 0.4)])
    chances = [line.get_xdata()[0] for line in informed.lines if len(set(line.get_ydata())) == 2]
    assert chances == [0.25] and figure.get_size_inches()[0] == COLUMN_WIDTH
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["chance", "by construction, not ranked"]
    assert len(leaderboard(scores().query("group == 'blind'")).legends[0].get_texts()) == 1


def test_the_leaderboard_draws_another_score():
    table = scores().rename(columns=lambda name: name.replace("hit_at_1", "auroc"))
    assert dots(leaderboard(table, value="auroc", label="AUROC").axes[0], hollow=False)[0] == (0.8, 0)


def test_a_matrix_is_planted_up_and_pointed_across(tmp_path):
    figure = pointing_matrices(again(matrices(), tmp_path))
    figure.canvas.draw()
    axis = figure.axes[0]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axis.texts}
    assert written == {(0, 0): "1", (1, 0): ".25", (0, 1): "1", (1, 1): ".50", (2, 1): "1"}
    assert sorted(box.get_xy() for box in axis.patches) == [(-0.5, -0.5), (0.5, 0.5)]  # the right answers
    np.testing.assert_allclose(axis.images[0].get_array(), [[1, 0.254, 0], [0.997, 0.5, 1]])
    low, high = axis.get_ylim()
    assert low < high and axis.get_xlabel() == "block it points to"


def test_methods_have_a_panel_each_and_the_lowest_ones_are_labelled():
    names = ["one", "a name that is so long that it must be broken into lines", "three", "four"]
    figure = pointing_matrices(matrices(names), columns=3)
    figure.canvas.draw()
    shown = [axis for axis in figure.axes if axis.get_visible() and axis.get_title()]
    assert [axis.get_title().replace("\n", " ") for axis in shown] == names and "\n" in shown[1].get_title()
    assert [bool(axis.get_xlabel()) for axis in shown] == [False, True, True, True]
    assert [bool(axis.get_ylabel()) for axis in shown] == [True, False, False, True]


def test_a_curve_has_its_numbers_and_its_interval(tmp_path):
    figure = calibration_curves(again(curves(["m", "n"]), tmp_path))
    figure.canvas.draw()
    axis = figure.axes[0]
    (drawn,) = [line for line in axis.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(drawn.get_xydata(), [(0.05, 0.2), (1, 0.9)])
    (bars,) = axis.collections
    np.testing.assert_allclose([s[:, 1] for s in bars.get_segments()], [(0.1, 0.25), (0.8, 0.95)])
    assert [text.get_text() for text in axis.texts] == ["700", "3"]


def test_every_drawing_has_its_name():
    assert list(DRAWINGS) == ["leaderboard", "pointing_matrices", "calibration_curves"]

"""Drawings of methods side by side: what is drawn are the numbers of the table, also when redrawn from the csv."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.config import Paths
from helpers.figures import save_figure
from helpers.head_drawings import DRAWINGS, agreement_matrix, head_dots

NAN = float("nan")


@pytest.fixture(autouse=True)
def closed():
    """Close what a test has drawn."""
    yield
    plt.close("all")


def agreements() -> pd.DataFrame:
    rows = [("a", "b", 0.5, 0.25, 3, 2), ("a", "c", -0.001, NAN, 3, 0), ("b", "c", -0.75, 0.0, 2, 0)]
    columns = ["first", "second", "rank_correlation", "jaccard", "first_heads", "second_heads"]
    return pd.DataFrame(rows, columns=columns)


def dots(methods=("S2 · STR",)) -> pd.DataFrame:
    rows = []
    for method in methods:
        for metric, floor in (("probability", -0.2), ("normalised logit difference", NAN)):
            for head in range(12):
                rows.append((method, metric, 5, head, 0.1 * ((head * 5) % 12) - 0.1, -0.3, 0.9, floor, head == 10))
    names = ["method", "metric", "layer", "head", "score", "threshold_low", "threshold_high", "floor", "marked"]
    return pd.DataFrame(rows, columns=names)


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_the_matrix_has_ranks_above_sets_below_and_counts_between():
    figure = agreement_matrix(agreements())
    figure.canvas.draw()
    axis = figure.axes[0]
    assert texts(axis) == ["3", "0.50", "0.00", "0.25", "2", "-0.75", "–", "0.00", "0"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b", "c"]


def test_every_facet_has_a_matrix_of_its_own():
    tables = [agreements().assign(task=task, jaccard=n / 4) for n, task in enumerate(("one", "two", "three"))]
    figure = agreement_matrix(pd.concat(tables), facet="task")
    figure.canvas.draw()
    drawn = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(drawn) == ["one", "two", "three"]
    assert [texts(axis)[3] for axis in drawn.values()] == ["0.00", "0.25", "0.50"]


@pytest.mark.parametrize("count", [2, 16])
def test_a_matrix_is_as_wide_as_the_column_and_its_numbers_can_be_read(count):
    rows = [(f"{i}", f"{j}", 0.5, 0.5, 1, 1) for i in range(count) for j in range(i + 1, count)]
    figure = agreement_matrix(pd.DataFrame(rows, columns=list(agreements())))
    assert figure.get_size_inches()[0] == pytest.approx(6.3)
    assert min(text.get_fontsize() for text in figure.axes[0].texts) >= 5


def lines_at(axis) -> list[float]:
    """The heights of lines across the panel, lowest first."""
    return sorted(float(line.get_ydata()[0]) for line in axis.lines if len(set(line.get_xdata())) == 2)


def test_dots_are_the_heads_by_effect_with_thresholds_and_floor():
    figure = head_dots(dots())
    figure.canvas.draw()
    probability, logits = figure.axes
    assert lines_at(probability) == [-0.3, -0.2, 0, 0.9] and lines_at(logits) == [-0.3, 0, 0.9]
    for axis in figure.axes:
        plain, marked = (line for line in axis.lines if line.get_marker() == "o")
        together = np.array(sorted([*plain.get_xydata().tolist(), *marked.get_xydata().tolist()]))
        np.testing.assert_allclose(together, np.column_stack([np.arange(12), 0.1 * np.arange(12) - 0.1]))
        assert list(marked.get_xdata()) == [2]  # head 10: 50 modulo 12
        assert texts(axis) == ["5.10"]
        low, high = axis.get_ylim()
        assert low < -0.3 and high > 1
    assert probability.get_title() == "S2 · STR: probability"


def test_every_method_has_a_row_and_a_crowd_at_the_top_is_labelled_below():
    table = dots(("one", "two"))
    table.loc[table["method"] == "two", "score"] = [-0.3 if marked else 0.88 for marked in table["marked"][:24]]
    figure = head_dots(table)
    figure.canvas.draw()
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["one", "one", "two", "two"]
    (label,) = figure.axes[-1].texts
    assert label.xyann[1] < 0.8 and label.xy[1] == -0.3


@pytest.mark.parametrize(("drawing", "table"), [("agreement_matrix", agreements()), ("head_dots", dots())])
def test_a_saved_figure_names_its_source(drawing, table, tmp_path):
    options = {"drawing": drawing, "caption": "c", "seed": 0, "plumbing": False}
    save_figure("f", table, paths=Paths("mini", tmp_path), **options)
    sidecar = json.loads((tmp_path / "figures" / "mini" / "f.json").read_text())
    assert list(sidecar["sources"]) == ["helpers/drawings.py", "helpers/figures.py", "helpers/head_drawings.py"]
    assert drawing in DRAWINGS


def test_heads_keep_their_names_through_the_csv(tmp_path):
    dots().to_csv(tmp_path / "dots.csv", index=False)
    figure = head_dots(pd.read_csv(tmp_path / "dots.csv"))
    assert texts(figure.axes[0]) == ["5.10"]  # and not 5.1

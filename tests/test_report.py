"""Findings on disk, and numbers in words."""

import json

import pandas as pd
import pytest

from helpers.config import Paths
from helpers.report import box, chi_square, paragraph, percent, save_findings, table, tiny, with_interval


def test_findings_are_kept_as_titled_sentences(tmp_path):
    save_findings(Paths("mini", tmp_path), "08_statistics", {"Second": "It is\n  2 β.", "First": "It is 1."})
    content = (tmp_path / "data" / "mini" / "findings" / "08_statistics.json").read_text(encoding="utf-8")
    assert json.loads(content) == [{"title": "Second", "text": "It is 2 β."}, {"title": "First", "text": "It is 1."}]
    assert content.endswith("\n") and "β" in content


def test_an_estimate_stands_with_its_interval_or_is_undefined():
    rows = pd.DataFrame(
        {"recovery": [0.123, 41.0], "low": [-0.004, -90.0], "high": [0.456, 90.0], "defined": [True, False]}
    )
    assert with_interval(rows.iloc[0]) == "0.12 [0.00, 0.46]"
    text = with_interval(rows.iloc[1])
    assert text.startswith("undefined") and "41" not in text and "90" not in text


@pytest.mark.parametrize(
    "p_value, words", [(0.0004, "p < 0.001"), (0.001, "p = 0.001"), (0.0494, "p = 0.049"), (0.5, "p = 0.500")]
)
def test_a_wald_test_in_words(p_value, words):
    row = pd.Series({"chi2": 12.345, "df": 3.0, "p_value": p_value})
    assert chi_square(row) == f"χ²(3) = 12.3, {words}"


@pytest.mark.parametrize("share, words", [(0.0, "0 %"), (0.126, "13 %"), (1.0, "100 %"), (-0.05, "-5 %")])
def test_a_share_is_a_whole_percentage(share, words):
    assert percent(share) == words


@pytest.mark.parametrize(
    "number, words", [(0.0, "exactly 0"), (4.2e-6, "0.000004"), (9.6e-8, "0.0000001"), (0.034, "0.03")]
)
def test_a_rounding_error_has_one_digit(number, words):
    assert tiny(number) == words


def shown(monkeypatch) -> list:
    """What is displayed from now on, in place of a notebook."""
    things = []
    monkeypatch.setattr("IPython.display.display", things.append)
    return things


def test_a_paragraph_is_one_line_of_markdown(monkeypatch):
    things = shown(monkeypatch)
    paragraph("""Two lines,
        **one** paragraph.""")
    assert [thing.data for thing in things] == ["Two lines, **one** paragraph."]


def test_a_box_is_one_quote_with_a_point_for_every_sentence(monkeypatch):
    things = shown(monkeypatch)
    box("Title", ["First\n  sentence.", "**Second.**"])
    assert [thing.data for thing in things] == ["> **Title**\n>\n> - First sentence.\n> - **Second.**"]


def test_a_table_is_rounded_for_reading_only(monkeypatch):
    things = shown(monkeypatch)
    frame = pd.DataFrame({"name": ["x", "y"], "value": [0.123456, None]})
    table(frame, digits=2)
    (html,) = [thing.data for thing in things]
    assert "0.12<" in html and "0.123" not in html and "–" in html and "<th>0</th>" not in html
    assert frame.loc[0, "value"] == 0.123456

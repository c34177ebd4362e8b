"""The data card: counts by hand, and what a cap on the hits takes of every year."""

import pandas as pd
import pytest

from helpers.datacard import by_year, common, mention_table, outline, reach, rule_table

CORPUS = pd.DataFrame(
    {"journal": ["A", None, "B", "A"], "year": pd.array([1999, 2001, None, 2001], dtype="Int64")},
)


def test_only_rules_that_applied_are_listed_in_their_order():
    table = rule_table({"kept": 7, "duplicate": 0, "without_abstract": 2, "matched": 9})
    assert table["rule"].tolist() == ["without abstract", "kept"] and table["records"].tolist() == [2, 7]
    assert table["treatment"].str.len().min() > 10


def test_mentions_stand_beside_the_studys_own():
    table = mention_table({"EEG": 3, "aura": 1}, 2)
    assert table.to_dict("list") == {
        "source": ["this run", "this run", "published"],
        "term": ["EEG", "aura", "EEG"],
        "mentions": [3, 1, 11_674],
        "per_record": [1.5, 0.5, 11_674 / 9_958],
    }


def test_common_values_and_years_by_hand():
    journals = common(CORPUS, "journal", most=2)
    assert journals.to_dict("list") == {"journal": ["A", "–"], "records": [2, 1], "share": [0.5, 0.25]}
    years = by_year(CORPUS, "PubMed")
    assert years.to_dict("list") == {
        "source": ["PubMed"] * 3,
        "year": [1999, 2000, 2001],
        "records": [1, 0, 2],
    }
    assert by_year(CORPUS.assign(year=pd.NA), "PubMed").empty


def test_what_each_selection_reaches_by_hand():
    """Six hits in two slices; the cap takes the three newest, the sample half of each slice."""
    planned = {
        "count": 6,
        "pmids": ["4", "5", "6"],
        "first": ["6", "5", "4"],
        "slices": [
            {"from": "1781-01-01", "to": "1999-12-31", "pmids": ["1", "2"]},
            {"from": "2000-01-01", "to": "2001-12-31", "pmids": ["3", "4", "5", "6"]},
        ],
        "max_records": 3,
        "seed": 0,
    }
    table = reach(planned)
    assert table["selection"].tolist() == ["first"] * 2 + ["sample"] * 2
    assert table["hits"].tolist() == [2, 4, 2, 4] and table["taken"].tolist() == [0, 3, 1, 2]
    assert table["share"].tolist() == [0.0, 0.75, 0.5, 0.5]
    assert table["begin"].tolist() == [1781, 2000] * 2
    assert table["end"].tolist() == pytest.approx([2000, 2002] * 2, abs=0.01)
    corners = outline(table.iloc[:2])
    assert corners["share"].tolist() == [0, 0, 0.75, 0.75] and corners["selection"].tolist() == ["first"] * 4
    assert corners["entered"].tolist() == pytest.approx([1781, 2000, 2000, 2002], abs=0.01)
    assert reach({**planned, "slices": []}).empty and reach(None).empty
    assert reach({**planned, "pmids": list("123456")}).empty, "where all are taken there is nothing to compare"

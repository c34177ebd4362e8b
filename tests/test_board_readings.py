"""Board readings: sentences by hand, on the small leaderboard of test_standings."""

import pandas as pd
import pytest
from test_standings import scores

from helpers.artifacts import ArtifactError
from helpers.board_readings import (
    COLUMNS,
    DIFFERENCES,
    TOLD,
    alarm_sentence,
    by_question,
    covers_chance,
    diagonal_sentence,
    first_sentences,
    floor_sentence,
    given_sentence,
    hits_by_kind,
    plants_sentence,
    recommendation,
    reliability_sentence,
    said,
)
from helpers.localisers import METHODS
from helpers.standings import best, board


@pytest.fixture(scope="module")
def table():
    return board(scores(), resamples=400)


def test_sentences(table):
    assert best(table, "blind")["method"] == "good" and best(table, "informed")["method"] == "cross"
    assert said(best(table, "informed")) == "cross: 1.00 (1.00 to 1.00) over 2 plants of the seeds 0, 1"
    floor = best(table, "floor")
    assert floor["hit_at_1_low"] >= 1 / 6 and covers_chance(floor)
    assert "covers chance, 0.17" in floor_sentence(table)
    assert "does not cover chance" in floor_sentence(table.assign(hit_at_1_low=0.3))
    told = alarm_sentence(table, "fair")
    assert told == "Fair claims a block in 2 of 2 models into which nothing was written (34% to 100%)."  # Wilson
    with pytest.raises(ArtifactError, match="no method 'x'"):
        alarm_sentence(table, "x")
    with pytest.raises(ArtifactError, match="no ranked floor"):
        best(table[table["group"] != "floor"], "floor")
    assert {q: list(t["method"]) for q, t in by_question(table).items()} == {
        "mediation": ["fair"],
        "storage": ["cross", "good"],
    }


def test_what_is_named_is_there(table):
    assert set(COLUMNS) <= set(table.columns)
    assert {*TOLD, *DIFFERENCES, *DIFFERENCES.values()} <= {method.name for method in METHODS}


def test_plants_in_words():
    lines = {"plant": ["a", "b"], "learnt": [1.0, 0.9], "kept_replayed": [1.0, 0.99], "kept_held_out": [0.97, 1.0]}
    plants = pd.DataFrame(lines).assign(counts=[True, False])
    assert plants_sentence(plants) == "Of 2 plants 1 count. Listed, and not ranked: b (learnt 0.900, kept 0.990)."
    assert plants_sentence(plants[:1]).startswith("Of 1 plants 1 count: all learnt")


def test_the_best_in_words(table):
    text = first_sentences(scores(), table, "blind")
    assert text.startswith("Best blind method, hit@1: good: 0.75 (") and "chance is 0.17" in text
    assert text.endswith("1 of the other blind methods may be as good: fair.")
    alone = table[table["method"] != "fair"]
    assert first_sentences(scores(), alone, "blind").endswith("surely better than every other blind method.")
    assert recommendation(table, "blind") == (
        "No blind method can be recommended: all claim a block in more than 5% of the nulls."
    )
    quiet = table.assign(false_alarms=0)
    assert recommendation(quiet, "blind").startswith("Recommended, blind: good: 0.75")
    assert "Good claims a block in 0 of 2 models" in recommendation(quiet, "blind")


def test_what_holds_by_construction_in_words():
    assert given_sentence(scores()).startswith("8 answers of 1 methods hold by construction")


def test_hits_by_kind_of_plant():
    hits = hits_by_kind(scores()).set_index("method")
    assert list(hits.index) == ["cross", "good", "fair", "random"] and list(hits.columns) == ["single", "two"]
    assert hits.loc["good", "single"] == 0.75 and hits.loc["cross", "two"] == 1 and hits["single"].isna()["cross"]


def test_high_scores_in_words():
    """Of ten places said 0.9 three are planted, ten said 0.1 are not: ECE (0.6 · 10 + 0.1 · 10) / 20 = 0.35."""
    curve = pd.DataFrame({"method": "m", "said": [0.1, 0.9], "right": [0.0, 0.3], "places": [10, 10]})
    text = reliability_sentence(curve, "m")
    assert text.startswith("Where m gives a place 0.75 or more, it is planted in 3 of 10 cases (11% to 60%)")
    assert text.endswith("error is 0.35.")
    assert reliability_sentence(curve[:1], "m").startswith("M gives no place 0.75 or more")


def test_matrices_in_words():
    rows = [("a", i, j, float(i == j)) for i in range(2) for j in range(2)]
    rows += [("b", i, j, float(j == 0)) for i in range(2) for j in range(2)]
    matrices = pd.DataFrame(rows, columns=["method", "planted", "pointed", "score"])
    text = diagonal_sentence(matrices)
    assert text.startswith(
        "In the mean, 1 of 2 methods put the planted block first wherever it is, and 1 for one block"
    )
    assert text.endswith("100% point to block 0.")
    assert diagonal_sentence(matrices[:4]) == "In the mean, 1 of 1 methods put the planted block first wherever it is."

"""Board readings: sentences by hand, on the small leaderboard of test_standings."""

import pytest
from test_standings import scores

from helpers.artifacts import ArtifactError
from helpers.board_readings import alarm_sentence, by_question, covers_chance, floor_sentence, said
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

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
    cost_sentence,
    covers_chance,
    diagonal_sentence,
    drift_sentence,
    first_sentences,
    floor_sentence,
    given_sentence,
    hits_by_kind,
    not_given,
    plants_sentence,
    recommendation,
    reliability_sentence,
    said,
    seeds_sentence,
    trained_sentence,
)
from helpers.localisers import METHODS
from helpers.standings import best, board


@pytest.fixture(scope="module")
def table():
    return board(scores(), resamples=400)


def test_sentences(table):
    assert said(best(table, "informed")) == "cross: 1.00 (0.34 to 1.00) over 2 plants of the seeds 0, 1"
    norm = table[table["method"] == "random"].assign(method="weight norm", hit_at_1=0.9, false_alarms=2)
    both = pd.concat([table, norm])
    assert "covers chance, 0.17" in floor_sentence(both) and "hits it in 0.90 (" in floor_sentence(both)
    assert floor_sentence(both).endswith("and claims a block in 2 of 2 nulls.")
    assert "does not cover chance" in floor_sentence(both.assign(hit_at_1_low=0.3))
    told = alarm_sentence(table, "fair")
    assert told.startswith("Fair claims a block in 2 of 2 models into which nothing was written (34% to 100%), ")
    assert told.endswith("and in 8 of 8 that were taught, of which 50% are right.")
    assert alarm_sentence(table.assign(claims=0), "fair").endswith("and in 0 of 8 that were taught.")
    with pytest.raises(ArtifactError, match="no method 'x'"):
        alarm_sentence(table, "x")
    with pytest.raises(ArtifactError, match="no ranked floor"):
        best(table[table["group"] != "floor"], "floor")
    assert {q: list(t["method"]) for q, t in by_question(table).items()} == {
        "mediation": ["fair"],
        "storage": ["cross", "good"],
    }


def test_chance_is_covered_or_not():
    line = pd.Series({"chance": 0.2, "hit_at_1_low": 0.1, "hit_at_1_high": 0.3})
    assert covers_chance(line) and not covers_chance(line.replace(0.1, 0.25))


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
    assert "It comes first, alone or with others, in 100% of resamples" in text
    assert text.endswith("1 others do so in 5% or more: fair.")  # where seed 0 is not drawn, both are alike
    tied = pd.concat([table, table[table["method"] == "good"].assign(method="twin")])
    assert "As good on fewer or as many plants: twin." in first_sentences(scores(), tied, "blind")
    assert recommendation(table, "blind") == (
        "No blind method above chance claims a block in 5% of the nulls or less: none is recommended."
    )
    quiet = table.assign(false_alarms=0)
    assert recommendation(quiet, "blind").startswith("Recommended, blind: good: 0.75")
    assert "Good claims a block in 0 of 2 models" in recommendation(quiet, "blind")


def test_where_all_are_ranked_in_words():
    lines = scores()
    other = lines[(lines["method"] == "cross") & (lines["kind"] == "two")].assign(method="other", hit_at_1=0.0)
    both = pd.concat([lines, other[other["seed"] == 0]])
    text = first_sentences(both, board(both, resamples=20), "informed")
    end = "On the 1 plants on which all informed methods are ranked it hits 1.00, and 1 of 2 methods hit every one."
    assert text.endswith(end)


def test_trained_nulls_in_words():
    rows = [("null-1-seed0", "1"), ("null-4-seed0", "0 4"), ("null-base-seed0", "1"), ("null-1-seed1", "0")]
    nulls = pd.DataFrame(rows, columns=["plant", "top_blocks"]).assign(method="m", kind="null", counts=True)
    single = pd.DataFrame({"method": "m", "plant": "p", "kind": "single", "chance_hit_at_1": [1 / 6]})
    text = trained_sentence(pd.concat([nulls, single]), ["m"])
    assert text.startswith("Of 3 nulls") and "that block: m in 0.50. Chance is 0.17" in text


def test_drift_in_words():
    places = pd.DataFrame({"plant": ["a"] * 3 + ["b"] * 2, "share": [1.0, 0, 0, 1, 0], "score": [9.0, 3, 1, 8, 1]})
    lines = pd.DataFrame({"plant": ["a", "b"], "kind": "drifted", "method": "weight change"})
    text = drift_sentence(lines, places.assign(method="weight change"))
    assert "In 2 drifted plants" in text and "moved 3 to 8 times as far" in text


def test_seeds_in_words():
    text = seeds_sentence(scores())
    assert text.startswith("Between seeds, the skills of 4 methods have rank correlations of ")
    assert text.endswith("the first blind method is fair (seed 0), good (seed 1).")
    assert seeds_sentence(scores().query("seed == 0")).startswith("There is one seed")


def test_cost_in_words(table):
    assert cost_sentence(table, ["fair", "good"]) == (
        "Cost, per pair and per plant: fair 2 passes and 0.1 s; good 2 passes and 0.1 s."
    )


def test_who_has_to_find_plants(table):
    assert list(not_given(table, scores())["method"]) == ["good", "fair"]


def test_what_holds_by_construction_in_words():
    assert given_sentence(scores()).startswith("8 answers of 1 methods hold by construction")


def test_hits_by_kind_of_plant(table):
    hits = hits_by_kind(scores(), table).set_index("method")
    assert list(hits.index) == ["cross", "good", "fair", "random"] and list(hits.columns) == ["single", "two"]
    assert hits.loc["good", "single"] == 0.75 and hits.loc["cross", "two"] == 1 and hits["single"].isna()["cross"]


def test_high_scores_in_words():
    """Of ten places said 0.9 three are planted, ten said 0.1 are not: ECE (0.6 · 10 + 0.1 · 10) / 20 = 0.35."""
    curve = pd.DataFrame({"method": "m", "said": [0.1, 0.9], "right": [0.0, 0.3], "places": [10, 10]})
    text = reliability_sentence(curve, "m")
    assert text.startswith("Where m gives a place 0.75 or more, it is planted in 3 of 10 cases;")
    assert text.endswith("error is 0.35, and 0.15 for whoever says 0 of every place.")
    assert reliability_sentence(curve[:1], "m").startswith("M gives no place 0.75 or more")
    assert reliability_sentence(curve, "x") == "X is ranked on no plant."


def test_matrices_in_words():
    rows = [("a", i, j, float(i == j)) for i in range(2) for j in range(2)]
    rows += [("b", i, j, float(j == 0)) for i in range(2) for j in range(2)]
    matrices = pd.DataFrame(rows, columns=["method", "planted", "pointed", "score"])
    text = diagonal_sentence(matrices)
    assert text.startswith("In the mean, 1 of 2 methods put the planted block first in every row, and 1 in one row at")
    assert text.endswith("100% point to block 0.")
    assert diagonal_sentence(matrices[:4]) == "In the mean, 1 of 1 methods put the planted block first in every row."

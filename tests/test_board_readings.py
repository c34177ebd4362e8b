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
    best_sentence,
    by_construction_sentence,
    by_question,
    cost_sentence,
    covers_chance,
    diagonal_sentence,
    drift_sentence,
    floor_sentence,
    hits_by_kind,
    not_given,
    plants_sentence,
    plants_table,
    recommendation,
    said,
    seeds_sentence,
    trained_nulls_sentence,
    trust_sentence,
    winners,
)
from helpers.localisers import METHODS
from helpers.standings import best, board


@pytest.fixture(scope="module")
def table():
    return board(scores(), resamples=400)


def test_sentences(table):
    assert said(best(table, "informed")) == "“cross”, 1.00 (0.34 to 1.00) over 2 plants (seeds 0, 1)"
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
    assert plants_sentence(plants[:1]).startswith("Of 1 plants 1 count: all kept")
    by_kind = plants_table(plants.assign(kind=["single", "null"])).set_index("kind")
    assert by_kind.loc["single"].tolist() == [1, 1, 1.0, 0.97] and by_kind.loc["null", "counts"] == 0
    assert by_kind["least_learnt"].isna().tolist() == [False, True] and by_kind.loc["null", "least_kept"] == 0.99


def with_norm(table, **changes):
    """The board with the line of the weight norm."""
    return pd.concat([table, table[table["method"] == "random"].assign(method="weight norm", **changes)])


def test_the_best_in_words(table):
    text = best_sentence(scores(), with_norm(table, hit_at_1_high=0.2), "blind")
    assert text.startswith("Best blind method, by hit@1: “good”, 0.75 (") and "chance is 0.17" in text
    assert "It comes first, alone or with others, in 100% of resamples" in text
    assert text.endswith("1 others do so in 5% or more: “fair”.")  # where seed 0 is not drawn, both are alike
    tied = pd.concat([table, table[table["method"] == "good"].assign(method="twin")])
    text = best_sentence(scores(), with_norm(tied, hit_at_1=0.7, hit_at_1_high=0.9), "blind")
    assert "Of the same skill: “twin”." in text
    assert text.endswith("By hit@1 it is not shown to do better than the weight norm, 0.70.")


def test_winners_are_the_best_and_the_recommended(table):
    assert winners(table) == ["good", "cross"]  # no blind one can be recommended
    quiet = table.assign(false_alarms=table["false_alarms"].where(table["method"] == "good", 0), hit_at_1_low=0.4)
    assert winners(quiet) == ["good", "cross", "fair"]


def test_advice_in_words(table):
    assert recommendation(table, "blind") == (
        "No blind method can be recommended: none is above chance, with claims on 5% of the nulls at most."
    )
    quiet = table.assign(false_alarms=0, hit_at_1_low=0.4)
    assert recommendation(quiet, "blind").startswith("It is the first blind method above chance, with claims on 5% of")
    assert "recommended. Good claims a block in 0 of 2 models" in recommendation(quiet, "blind")
    quiet.loc[quiet["method"] == "good", "false_alarms"] = 1
    assert recommendation(quiet, "blind").startswith("“fair”, 0.50 (0.40 to ")


def test_where_all_are_ranked_in_words():
    lines = scores()
    other = lines[(lines["method"] == "cross") & (lines["kind"] == "two")].assign(method="other", hit_at_1=0.0)
    both = pd.concat([lines, other[other["seed"] == 0]])
    text = best_sentence(both, with_norm(board(both, resamples=20), hit_at_1_high=0.2), "informed")
    end = "On the 1 plants on which all informed methods are ranked it hits 1.00, and 1 of 2 methods hit every one."
    assert text.endswith(end)


def test_trained_nulls_in_words():
    rows = [("null-1-seed0", "1"), ("null-4-seed0", "0 4"), ("null-base-seed0", "1"), ("null-1-seed1", "0")]
    nulls = pd.DataFrame(rows, columns=["plant", "top_blocks"]).assign(method="m", kind="null", counts=True, seed=0)
    single = pd.DataFrame({"method": "m", "plant": "p", "kind": "single", "chance_hit_at_1": [1 / 6]})
    text = trained_nulls_sentence(pd.concat([nulls, single]), ["m"])
    assert text.startswith("Of 3 nulls") and "that block: “m” in 0.50 (0.00 to 1.00). Chance is 0.17" in text


def test_drift_in_words():
    places = pd.DataFrame({"plant": ["a"] * 3 + ["b"] * 2, "share": [1.0, 0, 0, 1, 0], "score": [9.0, 3, 1, 8, 1]})
    lines = pd.DataFrame({"plant": ["a", "b"], "kind": "drifted", "method": "weight change"})
    text = drift_sentence(lines, places.assign(method="weight change"))
    assert "In 2 drifted plants" in text and "moved 3 to 8 times as far" in text


def test_seeds_in_words():
    text = seeds_sentence(scores())
    assert text.startswith("Between seeds, the skills of 4 methods have rank correlations of ")
    assert text.endswith("the first blind method is “fair” (seed 0), “good” (seed 1).")
    assert seeds_sentence(scores().query("seed == 0")).startswith("There is one seed")


def test_cost_in_words(table):
    assert cost_sentence(table, ["fair", "good"]) == (
        "Cost, in passes per pair and seconds per plant: “fair” 2 passes and 0.1 s, “good” 2 passes and 0.1 s."
    )


def test_who_has_to_find_plants(table):
    assert list(not_given(table, scores())["method"]) == ["good", "fair"]


def test_what_holds_by_construction_in_words():
    assert by_construction_sentence(scores()).startswith("8 answers of 1 methods hold by construction")


def test_hits_by_kind_of_plant(table):
    hits = hits_by_kind(scores(), table).set_index("method")
    assert list(hits.index) == ["cross", "good", "fair", "random"] and list(hits.columns) == ["single", "two"]
    assert hits.loc["good", "single"] == 0.75 and hits.loc["cross", "two"] == 1 and hits["single"].isna()["cross"]


def test_high_scores_in_words():
    lines = [("a", 4, 1, 0.25, 0.3, 0.1), ("b", 2, 2, 1.0, 0.05, 0.1), ("c", 0, 0, float("nan"), 0.2, 0.1)]
    text = trust_sentence(pd.DataFrame(lines, columns=["method", "places", "planted", "share", "error", "never"]))
    assert text.startswith(
        "1 of 3 methods give no place 0.75 or more. Of the places that the others give 0.75 or more, "
    )
    assert "25% (“a”) to 100% (“b”) are planted. 1 have a smaller calibration error than" in text


def test_matrices_in_words():
    rows = [("a", i, j, float(i == j)) for i in range(2) for j in range(2)]
    rows += [("b", i, j, float(j == 0)) for i in range(2) for j in range(2)]
    matrices = pd.DataFrame(rows, columns=["method", "planted", "pointed", "score"])
    text = diagonal_sentence(matrices)
    assert text.startswith(
        "Of 2 methods that have to find them 1 score the planted block highest wherever it is, and 1"
    )
    assert text.endswith("do so for one block at most. Of the misses 100% are block 0.")
    assert diagonal_sentence(matrices[:4]).endswith("1 score the planted block highest wherever it is.")

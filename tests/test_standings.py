"""Standings: means, intervals and order by hand, what makes a leaderboard stale, and the sentences it gives."""

from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
from toy import ROOT

from helpers.artifacts import ArtifactError
from helpers.board_readings import covers_chance
from helpers.calibration import SEEDS
from helpers.committed import code_digests
from helpers.config import Paths
from helpers.localisers import METHODS
from helpers.planting import NULL_SEEDS, planned_plants
from helpers.plants import plant_digests
from helpers.pointing import SCORES
from helpers.standings import (
    best,
    board,
    clustered_interval,
    common,
    figure_table,
    first_shares,
    given_cells,
    pointing_matrix,
    read_standings,
    recommended,
    reliabilities,
    scoring_code,
    trust,
    write_standings,
)


def line(method, plant, hit, *, seed=0, kind="single", chance=1 / 6, **changes):
    numbers = dict.fromkeys(SCORES, nan) | {"hit_at_1": hit, "reciprocal_rank": hit, "auroc": hit}
    flags = {"counts": True, "given": False, "ranked": True, "claims": True}
    rest = {"stable_block": 1.0, "stable_places": 0.5, "passes": 2.0, "seconds": 0.1, "question": "mediation"}
    row = {"method": method, "plant": f"{plant}-seed{seed}", "seed": seed, "kind": kind, "informed": False}
    rest |= {"site": plant, "top_blocks": "1" if hit == 1 else "2"}
    return row | numbers | flags | rest | {"chance_hit_at_1": chance} | changes


def scores():
    rows = []
    for seed in (0, 1):
        for number, hit in enumerate((1, 1, 0, 0)):
            rows.append(line("fair", f"mlp-{number}", hit, seed=seed))
            rows.append(line("good", f"mlp-{number}", hit or seed, seed=seed, question="storage"))
            rows.append(line("random", f"mlp-{number}", 1 / 6 if number else 0.2, seed=seed, question="storage"))
            sees = {"informed": True, "question": "storage", "given": True, "ranked": False}
            rows.append(line("cross", f"mlp-{number}", 1, seed=seed, **sees))
        for method, informed in (("fair", False), ("good", False), ("random", False), ("cross", True)):
            alarm = method == "fair" or (method == "good" and seed == 0)
            told = {"kind": "null", "chance": nan, "claims": alarm, "informed": informed}
            told["question"] = "mediation" if method == "fair" else "storage"
            rows.append(line(method, "null-1", nan, seed=seed, **told))
        sees = {"informed": True, "question": "storage", "chance": 1 / 3}
        rows.append(line("cross", "two-1-4", 1, seed=seed, kind="two", **sees))
    rows.append(line("good", "mlp-9", 0, counts=False, ranked=False, question="storage"))
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table():
    return board(scores(), resamples=400)


def test_means_are_over_the_plants_that_count_and_are_ranked(table):
    assert list(table["method"]) == ["cross", "good", "fair", "random"]
    rows = table.set_index("method")
    assert rows["plants"].to_dict() == {"cross": 2, "good": 8, "fair": 8, "random": 8}
    assert rows["hit_at_1"].to_dict() == pytest.approx({"cross": 1, "good": 0.75, "fair": 0.5, "random": 0.175})
    assert rows.loc["cross", "chance"] == pytest.approx(1 / 3) and rows.loc["fair", "chance"] == pytest.approx(1 / 6)
    assert rows.loc["fair", "skill"] == pytest.approx((1 / 2 - 1 / 6) / (5 / 6)) and rows.loc["cross", "skill"] == 1
    assert rows["group"].to_dict() == {"cross": "informed", "good": "blind", "fair": "blind", "random": "floor"}
    assert rows["false_alarms"].to_dict() == {"cross": 0, "good": 1, "fair": 2, "random": 0}
    assert (rows["nulls"] == 2).all() and rows.loc["good", "left_out"] == "mlp-9-seed0"
    assert (rows["seeds"] == "0, 1").all() and isnan(rows.loc["fair", "recall_at_2"])
    assert rows.loc["cross", ["hit_at_1_low", "hit_at_1_high"]].tolist() == pytest.approx(
        [0.3424, 1], abs=1e-4
    )  # Wilson
    assert rows["claims"].to_dict() == {"cross": 2, "good": 8, "fair": 8, "random": 8}
    assert rows["claims_right"].to_dict() == pytest.approx(rows["hit_at_1"].to_dict())
    assert rows["stable_seeds"].to_dict() == {"cross": 1, "good": 0.5, "fair": 1, "random": 1}


def test_more_nulls_change_false_alarms_alone(table):
    told = {"kind": "null", "chance": nan, "stable_places": 9.0, "passes": 99.0}
    more = pd.concat([scores(), pd.DataFrame([line("fair", "null-1", nan, seed=seed, **told) for seed in (7, 8)])])
    before, after = (lines[lines["method"] == "fair"].iloc[0] for lines in (table, board(more, resamples=400)))
    same = [name for name in table.columns if name not in ("false_alarms", "nulls")]
    pd.testing.assert_series_equal(after[same], before[same])
    assert (after["false_alarms"], after["nulls"]) == (4, 4)


def test_who_alarms_often_is_not_recommended(table):
    assert recommended(table, "informed")["method"] == "cross"
    with pytest.raises(ArtifactError, match="no ranked blind"):
        recommended(table, "blind")  # 1 of 2 nulls, and 2 of 2
    quiet = table.assign(false_alarms=table["false_alarms"].where(table["method"] == "good", 0), hit_at_1_low=0.4)
    assert best(quiet, "blind")["method"] == "good" and recommended(quiet, "blind")["method"] == "fair"


def test_who_never_claims_or_is_at_chance_is_not_recommended(table):
    quiet = table.assign(false_alarms=0)
    assert recommended(quiet, "blind")["method"] == "good"
    for useless in ({"claims": 0}, {"hit_at_1_low": quiet["chance"]}):
        with pytest.raises(ArtifactError, match="no ranked blind"):
            recommended(quiet.assign(**useless), "blind")


def test_the_base_itself_is_no_null_for_those_who_compare_with_it():
    lines = [
        line("m", name, nan, kind="null", informed=informed)
        for informed in (False, True)
        for name in ("null-base", "null-1")
    ]
    for number, row in enumerate(lines):
        row["method"] = "blind" if number < 2 else "informed"
    table = board(pd.DataFrame(lines), resamples=20).set_index("method")
    assert table["nulls"].to_dict() == {"blind": 2, "informed": 1}


def test_among_equals_the_one_that_had_to_find_more_plants_is_first():
    lines = [line(method, f"mlp-{n}", 1) for method, count in (("few", 2), ("many", 3)) for n in range(count)]
    assert list(board(pd.DataFrame(lines), resamples=20)["method"]) == ["many", "few"]


def hits_of(**hits):
    rows = [(method, number, hit) for method, values in hits.items() for number, hit in enumerate(values)]
    return pd.DataFrame([line(m, f"mlp-{n}", hit, seed=seed) for seed in (0, 1, 2) for m, n, hit in rows])


def test_how_often_a_method_comes_first():
    """The second misses one plant of six, which a resample of eighteen leaves out with a chance of about (5/6)^18."""
    found = hits_of(first=[1] * 6, near=[1] * 5 + [0], far=[0] * 6)
    shares = first_shares(pd.concat([found, pd.DataFrame([line("random", "mlp-0", 1)])]), "blind")
    assert list(shares.index) == ["first", "near", "far"] and shares["first"] == 1 and shares["far"] == 0
    assert shares["near"] == pytest.approx((5 / 6) ** 18, abs=0.02)
    again = first_shares(found.sample(frac=1, random_state=1), "blind")
    pd.testing.assert_series_equal(again, shares)


def test_a_method_is_compared_where_all_are_ranked():
    found = hits_of(first=[1, 1], second=[1, 0])
    found.loc[(found["method"] == "second") & (found["plant"] == "mlp-1-seed0"), "ranked"] = False
    shared = common(found, "blind")
    assert len(shared) == 10 and "mlp-1-seed0" not in set(shared["plant"])


def test_order_of_the_lines_changes_nothing(table):
    pd.testing.assert_frame_equal(board(scores().sample(frac=1, random_state=3), resamples=400)[table.columns], table)


def test_a_kind_has_a_board_of_its_own():
    kinds = board(scores(), by=["kind"], resamples=50)
    assert set(zip(kinds["method"], kinds["kind"], strict=True)) >= {("cross", "two"), ("fair", "null")}
    assert list(kinds["kind"]) == sorted(kinds["kind"])
    cross = kinds[kinds["method"] == "cross"].set_index("kind")["hit_at_1"]
    assert cross["two"] == 1 and isnan(cross["single"])


def test_what_holds_by_construction_stands_apart():
    (row,) = given_cells(scores()).to_dict("records")
    assert row == {"method": "cross", "group": "informed", "kind": "single", "hit_at_1": 1, "plants": 8}
    drawn = figure_table(scores(), board(scores(), resamples=20))
    assert list(drawn["method"]) == ["cross", "good", "fair", "random", "cross"]
    assert list(drawn["given"]) == [False] * 4 + [True] and drawn["hit_at_1"].iat[-1] == 1


def test_an_interval_over_clusters_knows_that_they_are_few():
    # Values differ between seeds alone: resampling plants sees no spread, resampling seeds all of it.
    values, seeds = [0.0] * 20 + [1.0] * 20, [0] * 20 + [1] * 20
    assert clustered_interval(values, seeds) == (0, 1)
    low, high = clustered_interval(values, [0] * 40)
    spread = 1.96 * np.sqrt(0.25 / 40)  # of a mean of 40 independent values
    assert low == pytest.approx(0.5 - spread, abs=0.03) and high == pytest.approx(0.5 + spread, abs=0.03)
    assert clustered_interval(values[::-1], seeds[::-1], seed=1) == clustered_interval(values, seeds, seed=1)
    assert clustered_interval([0.3], [0]) == (0.3, 0.3) and isnan(clustered_interval([], [])[0])


def test_a_leaderboard_is_stale_when_code_or_plants_changed(tmp_path):
    code, plants = {"helpers/a.py": "1"}, {"mlp-0-seed0": "d"}
    tables = {"scores": scores(), "places": pd.DataFrame({"score": [1.0]}), "plants": pd.DataFrame({"plant": ["p"]})}
    write_standings(tables, code=code, plants=plants, folder=tmp_path)
    found = read_standings(tmp_path, code=code, plants=plants)
    assert found.fresh and "fit the code" in found.note
    pd.testing.assert_frame_equal(found.scores, scores())
    assert not read_standings(tmp_path).fresh  # the code as it is
    assert "`make leaderboard`" in read_standings(tmp_path, code=code, plants={"mlp-0-seed0": "e"}).note


def test_the_code_is_everything_that_scores_depend_on():
    assert {"helpers/pointing.py", "helpers/methods.py", "helpers/calibration.py"} <= set(scoring_code())
    assert not {"helpers/board_drawings.py", "helpers/config.py"} & set(scoring_code())
    assert scoring_code() == code_digests(("localisers", "calibration", "pointing"))


def test_the_matrix_by_hand():
    lines = [
        line("m", "mlp-0", 1),
        line("m", "mlp-0", 1, seed=1),
        line("m", "attn-1", 1),
        line("m", "mlp-1", 1, counts=False),
    ]
    rows = []
    for plant, layer, component, blocks in (
        ("mlp-0-seed0", 0, "mlp_out", (0.8, 0.2)),
        ("mlp-0-seed1", 0, "mlp_out", (0.4, 0.4)),
        ("attn-1-seed0", 1, "attn_out", (-0.5, -0.1)),
        ("mlp-1-seed0", 1, "mlp_out", (9, 9)),  # does not count
    ):
        for block, value in enumerate(blocks):
            for name, score in (("attn_out", value - 1), ("mlp_out", value)):
                rows.append(("m", plant, name, block, score, float((name, block) == (component, layer))))
    places = pd.DataFrame(rows, columns=["method", "plant", "component", "layer", "score", "share"])
    found = pointing_matrix(pd.DataFrame(lines), places).set_index(["planted", "pointed"])["score"]
    assert found.to_dict() == pytest.approx({(0, 0): 1, (0, 1): 0.5, (1, 0): 0, (1, 1): 0})
    only = pointing_matrix(pd.DataFrame(lines), places, component="attn_out")
    assert set(only["planted"]) == {1}


def test_reliability_is_of_the_places_that_a_method_is_ranked_on():
    """Said 0.9 three times, and once it is planted; the plant that does not count and the null say 0.9, too."""
    lines = [line("m", "mlp-0", 1), line("m", "mlp-1", 1), line("m", "mlp-2", 1, counts=False, ranked=False)]
    lines += [line("m", "null-1", nan, kind="null")]
    rows = [("m", "mlp-0-seed0", 0.9, 1.0), ("m", "mlp-0-seed0", 0.1, 0.0), ("m", "mlp-1-seed0", 0.9, 0.0)]
    rows += [("m", "mlp-1-seed0", 0.9, 0.0), ("m", "mlp-2-seed0", 0.9, 1.0), ("m", "null-1-seed0", 0.9, 0.0)]
    places = pd.DataFrame(rows, columns=["method", "plant", "score", "share"])
    found = reliabilities(pd.DataFrame(lines), places).set_index("bin")
    assert found["places"].to_dict() == {1: 1, 9: 3} and found["right"].to_dict() == pytest.approx({1: 0, 9: 1 / 3})
    assert set(found["method"]) == {"m"}
    (row,) = trust(pd.DataFrame(lines), places, ["m"], high=0.75).to_dict("records")
    assert (row["places"], row["planted"]) == (3, 1) and row["share"] == pytest.approx(1 / 3)
    # Said 0.9 of three places, right in a third of them, and 0.1 of one: (3 · (0.9 − 1/3) + 0.1) / 4; one of four is.
    assert row["error"] == pytest.approx(0.45) and row["never"] == 0.25


def test_the_committed_leaderboard_has_every_method_on_every_plant_and_random_at_chance():
    embedded = Paths("mini", ROOT).embedded
    standings = read_standings(plants=plant_digests(embedded / "plants"))
    planned = {plant.name: plant for plant in planned_plants(6, SEEDS, NULL_SEEDS)}
    lines = standings.scores.groupby("plant")["method"].agg(list)
    assert set(lines.index) == set(standings.plants["plant"]) == set(planned)
    names = [method.name for method in METHODS]
    assert all(methods == names for methods in lines)
    assert len(standings.places) == len(standings.scores) * 12
    assert "seed0" not in standings.note, "the leaderboard is of other plants than the committed ones"
    table = board(standings.scores, resamples=200).set_index("method")
    assert covers_chance(table.loc["random"])
    given = standings.scores[standings.scores["given"] & standings.scores["counts"]]
    assert not given["ranked"].any() and set(given["kind"]) == {"single", "two"}

"""The rules by hand, and what they read of a model against the tables they are made of."""

import numpy as np
import pandas as pd
import pytest
from ioi import ioi_pairs
from tiny import HEADS, LAYERS, shared_model

from helpers.attended import attention_shares
from helpers.head_parts import head_parts, head_sites, heads_of, name_of, parts_of, published_parts
from helpers.metrics import recovery_table
from helpers.patching import measure_runs, sweep
from helpers.plans import Site
from helpers.streams import direct_attribution

PAIRS = ioi_pairs(3)


def judged(**changes) -> pd.DataFrame:
    """Forty heads in ten layers that do nothing, but for the rows given as head number: columns."""
    table = pd.DataFrame({"layer": np.repeat(range(10), 4), "head": np.tile(range(4), 10)})
    table = table.assign(direct=0.0, most_to_S2=0.0, score=0.0)
    for name, values in changes.items():
        for row, value in values.items():
            table.loc[row, name] = value
    return table


def test_parts_by_hand():
    # Mean (3 + 3 − 2) / 40 = 0.1, SD √(22 / 40 − 0.01) = 0.735: movers lie above 1.570, negative ones below −1.370.
    direct = {33: 3.0, 38: 3.0, 30: -2.0}
    # Mean score 0.01 × 8 = 0.08 with SD √(2.56 / 40 − 0.0064) = 0.24: one SD above the mean is 0.32.
    score = {20: 0.8, 21: 0.8, 33: 0.8, 39: 0.8}
    most = {20: 0.51, 21: 0.5, 33: 1.0, 39: 1.0, 22: 1.0}
    parts = parts_of(judged(direct=direct, score=score, most_to_S2=most))
    found = {row: part for row, part in enumerate(parts) if part != "other"}
    # 21 has no majority, 22 no score, 33 is a mover, and 39 stands in the last mover's own layer.
    assert found == {33: "mover", 38: "mover", 30: "negative mover", 20: "S-inhibition"}


def test_the_thresholds_are_two_and_one_standard_deviations():
    # One head of n = 40 at x has mean x / 40 and SD x √39 / 40, so it always lies √39 = 6.2 SD above; of 8 equal heads
    # each lies √(32 / 8) = 2 SD above the mean, which is not more than 2.
    eight = {row: 1.0 for row in range(32, 40)}
    assert set(parts_of(judged(direct=eight))) == {"other"}
    assert (parts_of(judged(direct=eight | {39: 0.0})) == "mover").sum() == 7
    assert (parts_of(judged(direct={row: -1.0 for row in range(33, 40)})) == "negative mover").sum() == 7
    first = {row: 1.0 for row in range(20)}
    with_score = judged(direct={39: 1.0}, most_to_S2=first, score=first)  # half of all heads: exactly 1 SD above
    assert (parts_of(with_score) == "S-inhibition").sum() == 0
    fewer = judged(direct={39: 1.0}, most_to_S2=first, score={row: 1.0 for row in range(19)})
    assert (parts_of(fewer) == "S-inhibition").sum() == 19


def test_the_number_of_heads_is_the_divisor_of_a_standard_deviation():
    # Of 1, 0.2, 0.2, 0, 0, 0 the first lies 2.16 SD above the mean; with 5 for 6 as the divisor it would be 1.98.
    assert parts_of(judged(direct={5: 1.0, 4: 0.2, 3: 0.2})[:6])[5] == "mover"


def test_without_movers_nothing_inhibits_and_a_sign_is_never_turned():
    assert set(parts_of(judged(most_to_S2={0: 1.0}, score={0: 1.0}))) == {"other"}
    all_but_one = {row: -1.0 for row in range(39)} | {39: -0.1}
    assert set(parts_of(judged(direct=all_but_one))) == {"other"}  # far above the mean, and negative


def test_the_table_holds_what_its_sources_hold():
    model = shared_model("gpt2", 0)
    table = head_parts(model, PAIRS, row_budget=2)
    assert table.columns.tolist() == ["layer", "head", "part", "direct", "IO", "S1", "S2", "most_to_S2", "score"]
    assert list(zip(table["layer"], table["head"], strict=True)) == [
        (a, b) for a in range(LAYERS) for b in range(HEADS)
    ]
    assert table["part"].tolist() == parts_of(table).tolist()
    direct = direct_attribution(model, PAIRS)
    shares = attention_shares(model, PAIRS, [(a, b) for a in range(LAYERS) for b in range(HEADS)])
    swept = sweep(model, PAIRS, components=["head_out"], positions="all", direction="denoising")
    scores = recovery_table(swept, measure_runs(model, PAIRS), by=["layer", "head"])
    for row in table.to_dict("records"):
        here = [
            each[(each["layer"] == row["layer"]) & (each["head"] == row["head"])] for each in (direct, shares, scores)
        ]
        clean = here[1][here[1]["corruption"] == "clean"]
        assert row["direct"] == pytest.approx(here[0]["contribution"].mean(), abs=1e-5)
        for name in ("IO", "S1", "S2"):
            assert row[name] == pytest.approx(clean.loc[clean["role"] == name, "share"].mean(), abs=1e-5)
        assert row["most_to_S2"] == pytest.approx(clean.loc[clean["role"] == "S2", "most"].mean())
        assert row["score"] == pytest.approx(here[2]["recovery"].item(), abs=1e-4)


def test_heads_of_a_part_are_named_and_become_sites():
    table = pd.DataFrame({"layer": [9, 3, 9], "head": [9, 1, 0], "part": ["mover", "other", "mover"]})
    assert heads_of(table, "mover") == [(9, 0), (9, 9)] and heads_of(table, "S-inhibition") == []
    assert name_of((9, 10)) == "9.10" and head_sites([(9, 0)]) == [Site("head_out", 9, "all", 0)]


def test_the_published_parts_are_those_of_gpt2_small():
    table = pd.DataFrame([(layer, head, "mover") for layer in range(12) for head in range(12)])
    found = published_parts(table.set_axis(["layer", "head", "part"], axis=1))
    assert heads_of(found, "mover") == [(9, 6), (9, 9), (10, 0)]
    assert heads_of(found, "negative mover") == [(10, 7), (11, 10)]
    assert heads_of(found, "S-inhibition") == [(7, 3), (7, 9), (8, 6), (8, 10)]
    assert found["part"].value_counts()["other"] == 144 - 9

"""What MLP 0's recovery says, on tables small enough to be computed by hand."""

import pandas as pd
import pytest

from helpers.first_mlp import against_base, kinds_apart, outside_block_0, recovery_by_block, subject_alone, with_truth
from helpers.stats import StatisticsError

CHANCE = {"resamples": 200, "confidence": 0.95, "seed": 0}
PLACES = [("mlp_out", 0), ("attn_out", 1), ("mlp_out", 2)]


def plant(name, component, layer, *values, method="patching"):
    """A plant's scores of PLACES."""
    places = pd.DataFrame(PLACES, columns=["component", "layer"])
    return places.assign(
        plant=name, kind="single", planted_component=component, planted_layer=layer, method=method, score=values
    )


SCORES = pd.concat(
    [
        plant("a", "mlp_out", 0, 0.9, 0.1, 0.1),
        plant("b", "mlp_out", 2, 0.7, 0.1, 0.8),
        plant("c", "mlp_out", 2, 0.5, 0.2, 0.6),
        plant("d", "attn_out", 1, 0.7, 0.5, 0.1),
    ]
)


def effects(shares, *, method="patching"):
    """Pairs of MLP 0, by name, kind, numerator and denominator."""
    rows = pd.DataFrame(shares, columns=["pair", "fact_kind", "numerator", "denominator"])
    return rows.assign(method=method, component="mlp_out", layer=0)


def test_only_plants_with_one_place_that_count_have_a_truth():
    truth = {"a": {("attn_out", 1): 1.0}, "b": {("mlp_out", 0): 0.5, ("mlp_out", 2): 0.5}, "c": {("mlp_out", 2): 1.0}}
    rows = [("m", name, *place, 0.1, own.get(place, 0.0)) for name, own in truth.items() for place in PLACES]
    places = pd.DataFrame(rows, columns=["method", "plant", "component", "layer", "score", "share"])
    scores = pd.DataFrame({"method": "m", "plant": list("abc"), "kind": "single", "counts": [True, True, False]})
    found = with_truth(scores, places)
    assert set(found["plant"]) == {"a"} and len(found) == len(PLACES)
    assert (found["planted_component"] == "attn_out").all() and (found["planted_layer"] == 1).all()
    assert with_truth(scores.assign(kind="drifted"), places).empty
    assert not with_truth(scores.assign(kind="drifted"), places, kinds=("drifted",)).empty


def test_lines_of_plants_outside_block_0():
    rows = [("patching", "a"), ("patching", "b"), ("other", "b"), ("patching", "z")]
    lines = pd.DataFrame(rows, columns=["method", "plant"])
    found = outside_block_0(lines, SCORES, methods=["patching"])
    assert found.to_numpy().tolist() == [["patching", "b"]]  # a is in MLP 0, and the truth of z is not known


def test_recovery_by_block_by_hand():
    found = recovery_by_block(SCORES[::-1], method="patching")
    table = found.table.set_index(["planted_component", "planted_layer"])
    assert table.loc[("mlp_out", 2)].tolist() == pytest.approx([0.6, 0.7, 2])
    assert table.loc[("attn_out", 1)].tolist() == pytest.approx([0.7, 0.5, 1])
    assert table.loc[("mlp_out", 0)].tolist() == pytest.approx([0.9, 0.9, 1])
    assert "between 0.60 and 0.70" in found.sentence and "for 1 of 2 places" in found.sentence
    with pytest.raises(StatisticsError, match="no plant outside MLP 0"):
        recovery_by_block(SCORES[SCORES["plant"] == "a"], method="patching")
    with pytest.raises(StatisticsError, match="no score of 'other'"):
        recovery_by_block(SCORES, method="other")
    with pytest.raises(StatisticsError, match="more than once"):
        recovery_by_block(pd.concat([SCORES, SCORES]), method="patching")


def test_kinds_apart_by_hand():
    """Sums 14/20 and 10/20; own shares 0.8, 0.6 and 0.4, 0.6: of four three are won and one is a tie: 0.875."""
    pairs = [("p", "definitional", 8, 10), ("q", "definitional", 6, 10), ("r", "associative", 4, 10)]
    pairs += [("s", "associative", 6, 10), ("t", "associative", 0, 0)]
    other = effects([("p", "definitional", 5, 1)]).assign(layer=1)
    found = kinds_apart(pd.concat([effects(pairs), other]), **CHANCE)
    row = found.table.iloc[0]
    assert row[["definitional", "associative", "difference"]].tolist() == pytest.approx([0.7, 0.5, 0.2])
    assert row["auroc"] == pytest.approx(0.875) and row["without"] == 1 and row["items"] == 5
    assert row["low"] <= 0.2 <= row["high"] and "0.88 (“patching”)" in found.sentence
    assert f"excludes 0, for {int(row['low'] > 0)} of 1 methods" in found.sentence
    plants = kinds_apart(pd.concat([effects(pairs), effects(pairs)]), **CHANCE)
    pd.testing.assert_frame_equal(plants.table, found.table)
    with pytest.raises(StatisticsError, match="needs items of both kinds"):
        kinds_apart(effects(pairs[:2]), **CHANCE)


def test_the_subject_alone_by_hand():
    """But for a, MLP 0: means 1.9 / 3 and 0.38; planted: 1.9 / 3 and 0.095."""
    subject = SCORES.assign(method="at the subject")
    first = (subject["component"] == "mlp_out") & (subject["layer"] == 0)
    planted = (subject["component"] == subject["planted_component"]) & (subject["layer"] == subject["planted_layer"])
    subject["score"] = subject["score"].where(~first, 0.38).where(first | ~planted, 0.095)
    found = subject_alone(pd.concat([SCORES, subject]), everywhere="patching", subject="at the subject")
    table = found.table.set_index("place")
    assert table.loc["MLP 0"].tolist() == pytest.approx([1.9 / 3, 0.38, 0.6, 3])
    assert table.loc["planted"].tolist() == pytest.approx([1.9 / 3, 0.095, 0.15, 3])
    assert "keeps 0.60" in found.sentence and "and 0.15 of" in found.sentence and "over 3 plants" in found.sentence


def test_repairs_by_hand():
    """Over a, b, c, d, which both are ranked on: the blind hits 1, 0, 0, 1, the difference 1, 1, 1/2, 1."""
    rows = [
        ("blind", name, hit, top) for name, hit, top in zip("abcd", (1, 0, 0, 1), ("0", "0", "0 3", "2"), strict=True)
    ]
    rows += [("against", name, hit, "1") for name, hit in zip("abcde", (1, 1, 0.5, 1, 0), strict=True)]
    scores = pd.DataFrame(rows, columns=["method", "plant", "hit_at_1", "top_blocks"]).assign(seed=0, ranked=True)
    scores.loc[scores["plant"] == "d", "seed"] = 1
    found = against_base(scores[::-1], differences={"blind": "against"})
    row = found.table.iloc[0]
    assert row[["blind_hits", "difference_hits", "gain", "first_block", "plants"]].tolist() == [
        0.5,
        0.875,
        0.375,
        0.25,
        4,
    ]
    assert row["low"] == 0 < row["high"] and "for 0 of 1 methods; the gains are +0.38 to +0.38" in found.sentence
    sure = against_base(scores[scores["plant"].isin(["b", "c"])], differences={"blind": "against"})
    assert sure.table.loc[0, "low"] == 0.5 and "for 1 of 1 methods" in sure.sentence
    with pytest.raises(StatisticsError, match="no plant in common"):
        one = scores[(scores["method"] == "blind") | (scores["plant"] == "e")]
        against_base(one, differences={"blind": "against"})
    with pytest.raises(StatisticsError, match="'blind' or 'other' is ranked on no plant"):
        against_base(scores, differences={"blind": "other"})

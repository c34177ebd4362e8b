"""Recommendations: every verdict at the edges of its rule, from evidence made up by hand, and what 04 is told."""

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.recommendations import KEYS, RECOMMENDATIONS, Reading
from helpers.verdicts import (
    EVIDENCE,
    SETTING_COLUMNS,
    SIDES,
    VERDICT_COLUMNS,
    VERDICTS,
    EvidenceError,
    overview,
    readings,
    settings_check,
    settings_statement,
    verdicts,
)

HOLDS, FAILS, UNDECIDED, UNTESTED = VERDICTS
SETTINGS = {
    "corruption": "STR", "metric": "logit_difference", "directions": ("denoising", "noising"), "window": 1
}  # fmt: skip
PUBLISHED_LIKE = {  # every conclusion of the papers holds
    "gn_over_str_peak": (2.0, 3.0), "gn_less_str_heads": (1, 4), "attention_lost_to_gn": (0.2, 0.4),
    "values_lost_to_gn": (0.5, 0.6), "floor_over_threshold": (0.9, 1.2), "negatives_missed": (1, 1),
    "probability_over_ld_focus": (2.0, 3.5), "ld_kl_overlap": (0.6, 1.0), "ld_kl_correlation": (0.9, 0.95),
    "single_layer_peak": (0.2, 0.3), "joint_over_sum": (1.3, 1.8), "overlap_lost_to_tokens": (0.2, 0.6),
    "overlap_lost_to_direction": (0.2, 0.3), "direct_heads_missed": (1, 2), "backup_heads_missed": (1, 3),
    "correlation_lost_to_ablation": (0.3, 0.6), "attribution_correlation": (0.85, 0.95),
}  # fmt: skip
OPPOSITE = {  # none does
    "gn_over_str_peak": (0.9, 1.1), "gn_less_str_heads": (-3, 0), "attention_lost_to_gn": (-0.1, 0.1),
    "values_lost_to_gn": (-0.2, 0.0), "floor_over_threshold": (3, 9), "negatives_missed": (0, 0),
    "probability_over_ld_focus": (0.9, 1.1), "ld_kl_overlap": (0.1, 0.3), "ld_kl_correlation": (0.1, 0.7),
    "single_layer_peak": (0.01, 0.05), "joint_over_sum": (0.9, 1.1), "overlap_lost_to_tokens": (-0.1, 0.05),
    "overlap_lost_to_direction": (0.0, 0.1), "direct_heads_missed": (0, 0), "backup_heads_missed": (0, 0),
    "correlation_lost_to_ablation": (-0.1, 0.05), "attribution_correlation": (0.2, 0.6),
}  # fmt: skip


def evidence(intervals: dict, *, task: str = "IOI", detail: str = "") -> pd.DataFrame:
    rows = [[key, task, (low + high) / 2, low, high, detail] for key, (low, high) in intervals.items()]
    return pd.DataFrame(rows, columns=EVIDENCE)


def verdict(name: str, *tables: pd.DataFrame) -> str:
    found = verdicts(pd.concat(tables, ignore_index=True), plumbing=False)
    return found.set_index("recommendation").loc[name, "verdict"]


@pytest.mark.parametrize(
    "reading, interval, side",
    [
        (Reading("joint_over_sum", high=1.2), (1.2, 1.2), "against"),  # a bound belongs to what speaks against
        (Reading("joint_over_sum", high=1.2), (0.3, 1.2), "against"),
        (Reading("joint_over_sum", high=1.2), (1.2, 1.4), "open"),
        (Reading("joint_over_sum", high=1.2), (1.2001, 1.4), "for"),
        (Reading("floor_over_threshold", low=2), (2, 3), "against"),
        (Reading("floor_over_threshold", low=2), (1.9, 2), "open"),
        (Reading("floor_over_threshold", low=2), (0.2, 1.9), "for"),
        (Reading("gn_over_str_peak", 1 / 1.2, 1.2), (0.9, 1.2), "against"),
        (Reading("gn_over_str_peak", 1 / 1.2, 1.2), (0.5, 2.0), "open"),  # on either side of it, and through it
        (Reading("gn_over_str_peak", 1 / 1.2, 1.2), (0.5, 0.8), "for"),
        (Reading("gn_over_str_peak", 1 / 1.2, 1.2), (1.3, math.inf), "for"),
        (Reading("joint_over_sum", high=1.2), (math.nan, math.nan), "open"),
    ],
)
def test_a_reading_at_its_bounds(reading, interval, side):
    assert reading.side(*interval) == side


@given(st.floats(-5, 5), st.floats(0, 5))
@settings(deadline=None)
def test_no_reading_says_two_things_and_a_point_is_never_open(middle, width):
    for recommendation in RECOMMENDATIONS.values():
        for reading in recommendation.readings:
            side = reading.side(middle - width, middle + width)
            assert reading.side(middle, middle) in ({"for", "against"} if side == "open" else {side})


def test_everything_holds_on_what_the_papers_report_and_nothing_on_its_opposite():
    holds, fails = (verdicts(evidence(said), plumbing=False) for said in (PUBLISHED_LIKE, OPPOSITE))
    assert list(holds.columns) == VERDICT_COLUMNS and list(holds["recommendation"]) == list(RECOMMENDATIONS)
    assert set(holds["verdict"]) == {HOLDS} and (holds["for"] != "").all() and (holds["against"] == "").all()
    assert set(fails["verdict"]) == {FAILS} and (fails["for"] == "").all() and (fails["against"] != "").all()


def test_the_numbers_that_the_paper_itself_prints_speak_for_its_conclusions():
    """GN over STR 2 to 5; −P*(IO) = −0.03 over −0.027; 4.33 / 1.22; 0.58 − 0.26; 1.04 − 0.49; Tables 4 and 5."""
    str_s2 = set("5.5 7.9 8.6 8.10 9.9 10.7 11.10".split())
    s1_io = set("9.6 9.9 10.0 10.7 11.10".split())
    printed = {
        "gn_over_str_peak": (2, 5),
        "floor_over_threshold": (0.03 / 0.027,) * 2,
        "probability_over_ld_focus": (4.33 / 1.22,) * 2,
        "attention_lost_to_gn": (0.58 - 0.26,) * 2,
        "values_lost_to_gn": (1.04 - 0.49,) * 2,
        "joint_over_sum": (1.4, 1.75),
        "overlap_lost_to_tokens": (1 - len(str_s2 & s1_io) / len(str_s2 | s1_io),) * 2,  # 3 of 9
    }
    table = verdicts(evidence(printed), plumbing=False).set_index("recommendation")["verdict"]
    assert set(table[table == HOLDS].index) == {
        "corruptions_differ", "probability_has_a_floor", "probability_exaggerates", "noise_breaks_circuits",
        "windows_inflate", "tokens_matter",
    }  # fmt: skip
    assert set(table[table != HOLDS]) == {UNTESTED}


@pytest.mark.parametrize("name", RECOMMENDATIONS)
def test_every_recommendation_reaches_every_verdict(name):
    keys = [reading.key for reading in RECOMMENDATIONS[name].readings]
    good, bad = ({key: said[key] for key in keys} for said in (PUBLISHED_LIKE, OPPOSITE))
    unclear = {key: (min(good[key][0], bad[key][0]), max(good[key][1], bad[key][1])) for key in keys}
    assert verdict(name, evidence(good)) == HOLDS
    assert verdict(name, evidence(good), evidence(unclear, task="facts")) == HOLDS  # what is open leaves it to others
    assert verdict(name, evidence(good), evidence(bad, task="facts")) == UNDECIDED
    assert verdict(name, evidence(unclear)) == UNDECIDED
    assert verdict(name, evidence(bad)) == verdict(name, evidence(bad), evidence(unclear, task="facts")) == FAILS
    for key in keys:
        less = {other: interval for other, interval in PUBLISHED_LIKE.items() if other != key}
        assert verdict(name, evidence(less)) == UNTESTED
        assert verdict(name, evidence(good | {key: bad[key]})) == FAILS  # each key can refute alone
        assert verdict(name, evidence(good | {key: unclear[key]})) == UNDECIDED
        assert verdict(name, evidence(good | {key: (math.nan, math.nan)})) == UNDECIDED


def test_a_sentence_gives_every_number_and_its_bound_and_says_when_tasks_contradict_one_another():
    rows = [
        evidence({"joint_over_sum": (1.3, 1.5)}, task="facts", detail="window 5"),
        evidence({"joint_over_sum": (1.1, 1.3)}, task="facts", detail="window 3"),
        evidence({"joint_over_sum": (0.9, 1.0)}, task="arithmetic"),
        evidence({"joint_over_sum": (math.nan, math.nan)}, task="IOI"),
    ]
    what = "peak of a window patched jointly over the peak of its summed single layers (asked: above 1.2)"
    said = verdicts(pd.concat(rows), plumbing=False).set_index("recommendation").loc["windows_inflate"]
    assert said["sentence"] == (
        "A window patched jointly does more than the sum of its layers: undecided. "
        f"For: {what}: 1.40 [1.30, 1.50] (facts, window 5). Against: {what}: 0.95 [0.90, 1.00] (arithmetic). "
        f"Open: {what}: undefined (IOI), 1.20 [1.10, 1.30] (facts, window 3). It depends on where it is asked."
    )
    clear = verdicts(pd.concat(rows[:2]), plumbing=False).set_index("recommendation").loc["windows_inflate"]
    assert "holds here. For:" in clear["sentence"] and "depends" not in clear["sentence"]


def test_what_is_missing_is_named():
    table = verdicts(evidence({"ld_kl_overlap": (0.6, 1.0)}), plumbing=False).set_index("recommendation")
    said = table.loc["soft_metrics_agree"]
    assert said["missing"] == "ld_kl_correlation"
    assert f"not tested (not measured: {KEYS['ld_kl_correlation']})." in said["sentence"]
    assert "0.80 [0.60, 1.00]" in said["sentence"]  # what there is, is said
    assert table.loc["noise_breaks_circuits", "missing"] == "attention_lost_to_gn, values_lost_to_gn"


def test_on_weights_without_training_nothing_is_tested_and_no_number_speaks():
    table = verdicts(evidence(PUBLISHED_LIKE), plumbing=True)
    assert set(table["verdict"]) == {UNTESTED} and (table[list(SIDES)] == "").all(axis=None)
    assert table["sentence"].str.contains("not tested (weights without training).", regex=False).all()
    assert (settings_check(table, **SETTINGS)[["for", "against"]] == "").all(axis=None)


def test_the_order_of_the_evidence_does_not_matter():
    both = pd.concat([evidence(PUBLISHED_LIKE), evidence(OPPOSITE, task="facts"), evidence(OPPOSITE, detail="late")])
    shuffled = both.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(verdicts(shuffled, plumbing=False), verdicts(both, plumbing=False))
    pd.testing.assert_frame_equal(readings(shuffled), readings(both))


def test_every_key_is_read_and_every_reading_has_a_key():
    read = [reading.key for recommendation in RECOMMENDATIONS.values() for reading in recommendation.readings]
    assert sorted(read) == sorted(KEYS)
    table = readings(evidence(PUBLISHED_LIKE))
    assert sorted(table["key"]) == sorted(KEYS) and set(table["side"]) == {"for"}


def test_the_overview_counts_the_verdicts():
    table = verdicts(evidence({"joint_over_sum": (1.3, 1.5), "negatives_missed": (0, 0)}), plumbing=False)
    text = overview(table)
    assert f"Of {len(RECOMMENDATIONS)} conclusions of the papers, **1 holds here** (a window patched jointly" in text
    assert "**1 does not hold here** (probability misses" in text and "undecided" not in text
    assert f"**{len(RECOMMENDATIONS) - 2} not tested**" in text
    assert f"**{len(RECOMMENDATIONS)} hold here**" in overview(verdicts(evidence(PUBLISHED_LIKE), plumbing=False))


def test_settings_that_follow_what_holds_are_spoken_for_and_others_against():
    held = verdicts(evidence(PUBLISHED_LIKE), plumbing=False)
    good = settings_check(held, **SETTINGS)
    assert list(good.columns) == SETTING_COLUMNS
    assert list(good["setting"]) == ["corruption", "metric", "directions", "window"]
    assert (good["for"] != "").all() and (good["against"] == "").all() and (good["silent"] == "").all()
    bad = settings_check(held, corruption="GN", metric="probability", directions=("noising",), window=5)
    assert (bad["for"] == "").all() and (bad["against"] != "").all()
    assert list(bad["value"]) == ["GN", "probability", "noising", "windows"]
    kl = settings_check(held, **SETTINGS | {"metric": "kl_divergence"}).set_index("setting")
    assert kl.loc["metric", "against"] == "" and "(holds here)" in kl.loc["metric", "for"]


def test_a_conclusion_that_does_not_hold_speaks_only_where_it_has_something_to_say():
    failed = verdicts(evidence(OPPOSITE), plumbing=False)
    check = settings_check(failed, **SETTINGS).set_index("setting")
    assert (check["for"] == "").all()
    assert list(check.index[check["against"] != ""]) == ["window"]  # single layers are too weak to be read
    assert check.loc["window", "against"].endswith("(does not hold here)")
    wide = settings_check(failed, **SETTINGS | {"window": 3}).set_index("setting")
    assert wide.loc["window", "for"] == check.loc["window", "against"] and wide.loc["window", "against"] == ""


def test_settings_in_words():
    mixed = {key: OPPOSITE[key] if key == "single_layer_peak" else PUBLISHED_LIKE[key] for key in KEYS}
    mixed = {key: value for key, value in mixed.items() if key != "overlap_lost_to_direction"}
    text = settings_statement(settings_check(verdicts(evidence(mixed), plumbing=False), **SETTINGS))
    assert text.endswith(
        "The evidence of this run speaks for corruption = STR, metric = logit difference. "
        "It speaks both for and against window = single layers. It says nothing about directions = both."
    )
    against = verdicts(evidence(PUBLISHED_LIKE), plumbing=False)
    text = settings_statement(settings_check(against, **SETTINGS | {"corruption": "GN"}))
    assert "It speaks against corruption = GN." in text and "nothing" not in text


@pytest.mark.parametrize(
    "change", [{"corruption": "noise"}, {"window": 0}, {"directions": ("denoising", "path")}, {"directions": ()}]
)
def test_settings_that_do_not_exist_are_refused(change):
    with pytest.raises(EvidenceError, match="Settings are"):
        settings_check(verdicts(evidence({}), plumbing=False), **SETTINGS | change)


@pytest.mark.parametrize(
    "broken, message",
    [
        (evidence(PUBLISHED_LIKE).drop(columns="low"), "lacks low"),
        (evidence({"joint_over_sums": (1, 2)}), "'joint_over_sums'"),
        (pd.concat([evidence(PUBLISHED_LIKE)] * 2), "twice"),
        (evidence({"joint_over_sum": (2, 1)}), "crossed"),
        (evidence({"joint_over_sum": (1, 2)}).assign(estimate=math.nan), "no estimate"),
    ],
)
def test_evidence_that_cannot_be_read_is_refused(broken, message):
    with pytest.raises(EvidenceError, match=message):
        verdicts(broken, plumbing=False)

"""Scores and detection of heads: numbers by hand, and a literal oracle beside the resampling in arrays."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.detection import (
    DetectionError,
    HeadScores,
    detect,
    found_heads,
    head_names,
    head_scores,
    signs,
    spoken,
    threshold_sweep,
)

OPTIONS = {"resamples": 40, "confidence": 0.9, "seed": 3}


def effects_of(numerator, denominator=None, *, heads_per_layer=2, **choices) -> pd.DataFrame:
    """Rows of arrays `(pairs, draws, heads)` and `(pairs, draws)`, in an order that no one should rely on."""
    numerator = np.asarray(numerator, float)
    denominator = np.ones(numerator.shape[:2]) if denominator is None else np.asarray(denominator, float)
    rows = [
        (f"p{pair}", draw, head // heads_per_layer, head % heads_per_layer, value, denominator[pair, draw])
        for (pair, draw, head), value in np.ndenumerate(numerator)
    ]
    table = pd.DataFrame(rows, columns=["pair", "draw", "layer", "head", "numerator", "denominator"])
    table["head"] = table["head"].astype("Int64")
    usual = {"component": "head_out", "direction": "denoising", "metric": "logit_difference", "corruption": "GN"}
    return table.assign(**usual | choices).sample(frac=1, random_state=0)


def scores_of(*rows, resampled=None, by=("metric",)) -> HeadScores:
    """Scores given outright: rows of (group, list of scores)."""
    parts = [
        pd.DataFrame({"metric": name, "layer": 0, "head": range(len(values)), "score": values}) for name, values in rows
    ]
    table = pd.concat(parts, ignore_index=True).assign(defined=True)
    resampled = table["score"].to_numpy()[None] if resampled is None else np.asarray(resampled, float)
    return HeadScores(table, tuple(by), resampled, np.stack(2 * [resampled]), np.zeros((2, len(rows))), 0.9)


TWO_PAIRS = [[[1, 0, 4], [3, 2, -4]], [[8, 2, 2], [0, 4, 2]]]  # (pairs, draws, heads)


def test_a_logit_difference_is_a_ratio_of_means_over_pairs_and_draws():
    table = head_scores(effects_of(TWO_PAIRS, [[1, 3], [8, 4]]), by=["metric"], **OPTIONS).table
    assert head_names(table).tolist() == ["0.0", "0.1", "1.0"]
    # Means over four runs: 12/4, 8/4, 4/4, over 16/4. A mean of ratios would give 0.75, … for the first head.
    assert table["score"].tolist() == [0.75, 0.5, 0.25]
    assert table["effect"].tolist() == [3.0, 2.0, 1.0]
    assert set(table["pairs"]) == set(table["draws"]) == {2} and table["defined"].all()
    # First head by draw: (1 + 8)/(1 + 8) = 1 and (3 + 0)/(3 + 4) = 3/7; over two draws the deviation is |a − b|/√2.
    assert table["draw_deviation"].iat[0] == pytest.approx((1 - 3 / 7) / 2**0.5)
    assert list(table) == [
        "metric", "layer", "head", "score", "low", "high", "prompt_low", "prompt_high", "draw_deviation", "effect",
        "pairs", "draws", "defined",
    ]  # fmt: skip


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("metric", "sign"), [("probability", 1), ("log_probability", 1), ("kl_divergence", -1)])
def test_other_metrics_are_not_normalised_and_positive_is_what_helps(metric, sign, direction):
    effects = effects_of(TWO_PAIRS, [[5, 7], [9, 0]], metric=metric, direction=direction)
    table = head_scores(effects, by=["metric", "direction"], **OPTIONS).table
    assert table["score"].tolist() == [sign * 3.0, sign * 2.0, sign * 1.0] == table["effect"].tolist()
    assert table["defined"].all()


def drawn(count: int, *, seed) -> list[list[int]]:
    """What 40 resamples of `count` units hold, each unit as often as it was drawn."""
    times = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=40)
    return [[unit for unit, often in enumerate(row) for _ in range(often)] for row in times]


def test_resampled_scores_equal_those_of_lists_of_the_pairs_and_draws_that_were_drawn():
    rng = np.random.default_rng(0)
    numerator, denominator = rng.normal(size=(5, 3, 4)), 2 + rng.normal(size=(5, 3))
    scores = head_scores(effects_of(numerator, denominator), by=["metric"], **OPTIONS)
    expected, over_pairs = np.zeros((40, 4)), np.zeros((40, 4))
    for number, (pairs, draws) in enumerate(zip(drawn(5, seed=[3, 0]), drawn(3, seed=[3, 1]), strict=True)):
        both, alone = list(itertools.product(pairs, draws)), list(itertools.product(pairs, range(3)))
        for head in range(4):
            for found, chosen in ((expected, both), (over_pairs, alone)):
                above, below = (np.mean([part[at] for at in chosen]) for part in (numerator[..., head], denominator))
                found[number, head] = above / below
    np.testing.assert_allclose(scores.resampled, expected)
    ends = [0.05, 0.95]
    np.testing.assert_allclose(scores.table[["low", "high"]].T, np.quantile(expected, ends, axis=0))
    np.testing.assert_allclose(scores.table[["prompt_low", "prompt_high"]].T, np.quantile(over_pairs, ends, axis=0))


def test_what_is_due_to_the_draw_shows_in_one_interval_and_not_in_the_other():
    by_draw = np.broadcast_to(np.array([1.0, 2.0, 6.0])[None, :, None], (8, 3, 2))
    table = head_scores(effects_of(by_draw), by=["metric"], resamples=500, confidence=0.95, seed=0).table
    assert (table["prompt_low"] == table["prompt_high"]).all() and table["score"].tolist() == [3.0, 3.0]
    assert (table["low"] == 1).all() and (table["high"] == 6).all()
    assert table["draw_deviation"].tolist() == pytest.approx([7**0.5] * 2)  # of 1, 2, 6 around 3: (4 + 1 + 9)/2


def test_a_single_draw_says_nothing_about_draws():
    rng = np.random.default_rng(1)
    table = head_scores(effects_of(rng.normal(size=(9, 1, 3))), by=["metric"], **OPTIONS).table
    assert table["draw_deviation"].isna().all()
    assert (table["low"] == table["prompt_low"]).all() and (table["high"] == table["prompt_high"]).all()
    assert (table["low"] < table["high"]).all()


def test_every_draw_can_be_a_method_of_its_own():
    table = head_scores(effects_of(TWO_PAIRS, [[1, 3], [8, 4]]), by=["draw"], **OPTIONS).table
    first = table[table["layer"].eq(0) & table["head"].eq(0)].set_index("draw")["score"]
    assert first[0] == 1 and first[1] == pytest.approx(3 / 7)


def test_groups_with_the_same_pairs_are_resampled_alike():
    rng = np.random.default_rng(2)
    numerator = rng.normal(size=(6, 1, 3))
    parts = [effects_of(numerator, corruption="STR"), effects_of(np.repeat(numerator, 4, axis=1), corruption="GN")]
    scores = head_scores(pd.concat(parts), by=["corruption"], **OPTIONS)
    np.testing.assert_allclose(scores.resampled[:, :3], scores.resampled[:, 3:])
    assert scores.resampled.std(0).min() > 0.01
    assert scores.table["corruption"].tolist() == ["STR"] * 3 + ["GN"] * 3


def test_halves_have_no_pair_in_common_and_equal_the_means_of_their_pairs():
    """A pair's scores are its own power of two, so that the weighted mean tells which pairs were drawn."""
    count = 7
    numerator = np.broadcast_to(8.0 ** np.arange(count)[:, None, None], (count, 2, 3))
    scores = head_scores(effects_of(numerator), by=["metric"], **OPTIONS)
    assert scores.halves.shape == (2, 40, 3) and (scores.halves == scores.halves[..., :1]).all()
    drawn_sets = []
    for half in np.rint(scores.halves[..., 0] * 3).astype(int):
        times = [[value // 8**pair % 8 for pair in range(count)] for value in half]
        assert all(sum(row) == 3 for row in times)  # three of seven, with replacement
        drawn_sets.append([{pair for pair, often in enumerate(row) if often} for row in times])
    assert not any(one & other for one, other in zip(*drawn_sets, strict=True))
    assert set().union(*drawn_sets[0]) == set(range(count)) and len({frozenset(one) for one in drawn_sets[0]}) > 10
    assert any(len(one) < 3 for one in drawn_sets[0])


def test_one_pair_has_no_halves():
    assert np.isnan(head_scores(effects_of(np.ones((1, 1, 3))), by=["metric"], **OPTIONS).halves).all()


def test_heads_are_counted_draw_by_draw():
    """Each of two draws finds one head of nine, another one, and their mean finds none."""
    numerator = np.zeros((4, 2, 9))
    numerator[:, 0, 0], numerator[:, 1, 5], numerator[:, :, 8] = 1.0, 1.0, -0.8
    groups = [effects_of(numerator, metric="logit_difference"), effects_of(numerator[:, :1], metric="probability")]
    scores = head_scores(pd.concat(groups), by=["metric"], **OPTIONS)
    assert (signs(scores.table["score"].to_numpy()[:9], 2.0) > 0).sum() == 0
    found = [(signs(numerator[0, draw], 2.0) != 0).sum() for draw in (0, 1)]
    assert scores.single_draws.shape == (41, 2) and scores.single_draws[0].tolist() == [np.mean(found), found[0]]


def test_a_score_is_undefined_where_the_denominator_may_be_zero():
    numerator, balanced = np.ones((8, 1, 2)), np.array([[1.0], [-1.0]] * 4)
    assert not head_scores(effects_of(numerator, balanced), by=["metric"], **OPTIONS).table["defined"].any()
    assert not head_scores(effects_of(numerator[:1]), by=["metric"], **OPTIONS).table["defined"].any()  # a single pair
    never = head_scores(effects_of(numerator, balanced, metric="probability"), by=["metric"], **OPTIONS).table
    assert never["defined"].all()


def test_other_components_are_passed_over():
    heads = effects_of(TWO_PAIRS)
    others = heads.assign(component="mlp_out", head=pd.NA, numerator=np.nan)
    one, other = (head_scores(table, by=["metric"], **OPTIONS) for table in (heads, pd.concat([others, heads])))
    pd.testing.assert_frame_equal(one.table, other.table)


def corrupt(change) -> pd.DataFrame:
    return change(effects_of(TWO_PAIRS).reset_index(drop=True))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (corrupt(lambda t: t.drop(columns="draw")), "no column draw"),
        (corrupt(lambda t: t.assign(component="mlp_out")), "no patch of a head"),
        (corrupt(lambda t: t.assign(numerator=t["numerator"].where(t.index > 0))), "1 of 12 effects of heads are NaN"),
        (corrupt(lambda t: t.assign(metric="rank")), "no published effect by rank"),
        (corrupt(lambda t: t.iloc[1:]), "11 effects, and not one for each of 2 pairs × 2 draws × 3 heads"),
        (corrupt(lambda t: pd.concat([t, t.iloc[:1]])), "patched more than once"),
        (corrupt(lambda t: pd.concat([t, t.assign(direction="noising", pair="q")])), "more than one direction"),
        (corrupt(lambda t: pd.concat([t, t.assign(task="a", pair="q")])), "more than one task"),
    ],
)
def test_effects_that_cannot_be_scored(table, message):
    with pytest.raises(DetectionError, match=message):
        head_scores(table, by=["corruption"], **OPTIONS)


def test_a_head_is_detected_two_deviations_from_the_mean_and_the_deviation_divides_by_all_heads():
    # Mean 2 and deviation 4: with ddof 1 it were 4.47, and 10 not beyond 2 + 2 · 4.47.
    table = detect(scores_of(("LD", [0, 0, 10, 0, 0]), ("KL", [0, 0, -10, 0, 0])))
    assert table["mean"].tolist() == [2] * 5 + [-2] * 5 and set(table["deviation"]) == {4}
    assert table["threshold_high"].tolist() == [10] * 5 + [6] * 5
    assert table["threshold_low"].tolist() == [-6] * 5 + [-10] * 5
    assert table["detected"].tolist() == [0, 0, 1, 0, 0, 0, 0, -1, 0, 0]
    assert set(detect(scores_of(("LD", [0, 0, 10, 0, 0])), deviations=2.01)["detected"]) == {0}


def test_a_negative_head_is_one_far_below_the_mean_whatever_its_sign():
    table = detect(scores_of(("LD", [10, 10, 10, 10, 10, 10, 1])))
    assert table["detected"].tolist() == [0] * 6 + [-1] and table["score"].iat[-1] > 0


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_head_is_further_away_than_the_number_of_heads_allows(values):
    values = np.array(values, float)
    assert not signs(values, np.sqrt(max(len(values) - 1, 0)) + 1e-6).any()
    assert (signs(-values, 1.3) == -signs(values, 1.3)).all()


def test_heads_that_are_all_alike_are_not_detected():
    assert signs(np.full(3, 0.1), 1.0).tolist() == [0] * 3  # though rounding makes their mean another number


def test_stability_is_the_share_of_resamples_that_say_the_same():
    one, none, other = [0, 0, 10, 0, 0, 0], [0, 1, 2, 0, 1, 2], [10, 0, 0, 0, 0, 0]
    found = detect(scores_of(("LD", one), resampled=[one, one, none, other]))
    assert found["detected"].tolist() == [0, 0, 1, 0, 0, 0]
    assert found["stability"].tolist() == [0.75, 1, 0.5, 1, 1, 1]
    turned = detect(scores_of(("LD", one), resampled=[one, [-v for v in one]]))
    assert turned["stability"].iat[2] == 0.5  # detected with the other sign is not detected again


def test_the_threshold_sweep_counts_each_sign_and_what_is_left_of_the_set_at_two():
    values = [10, -6, *[0] * 20]  # mean 0.18, deviation 2.48: 10 lies 3.96 away, −6 lies 2.49
    table = threshold_sweep(scores_of(("LD", values), ("KL", [1, 1, 1])), deviations=(1, 2, 3, 4))
    assert table["metric"].tolist() == ["LD"] * 4 + ["KL"] * 4
    assert table["deviations"].tolist() == [1, 2, 3, 4] * 2
    assert table["positive"].tolist() == [1, 1, 1, 0] + [0] * 4
    assert table["negative"].tolist() == [1, 1, 0, 0] + [0] * 4
    assert table["kept"].tolist()[:4] == [1, 1, 0.5, 0] and table["kept"][4:].isna().all()


def test_found_heads_are_listed_by_layer_and_head():
    values = np.zeros(24)
    values[[3, 10, 11]] = 5, 5, -5
    found = found_heads(detect(scores_of(("LD", values), ("KL", np.zeros(24)))), by=["metric"])
    assert found["positive"].tolist() == ["0.3, 0.10", ""] and found["negative"].tolist() == ["0.11", ""]
    assert found["defined"].all()


def test_names_are_spoken():
    assert spoken("kl_divergence · STR") == "KL divergence · STR" and spoken("logit_difference") == "logit difference"

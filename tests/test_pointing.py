"""Pointing: every formula by hand, ties as means over random orders, chance by counting, claims by their rule."""

from itertools import permutations
from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.methods import PER_PAIR, MethodError, Place
from helpers.pointing import (
    SCORES,
    auroc,
    calibration_error,
    chance,
    claims,
    hit_at_1,
    point,
    rank_correlation,
    recall_at_2,
    reciprocal_rank,
    reliability,
    resampled,
    same_top,
    seed_agreement,
    stability,
    top_blocks,
)

COLUMNS = ["component", "layer", "score"]


def answer(*blocks):
    """Scores of blocks given as (attention, MLP)."""
    rows = [
        (c, layer, s) for layer, pair in enumerate(blocks) for c, s in zip(("attn_out", "mlp_out"), pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def mlps(**shares):
    return [(Place("mlp_out", int(name[1:])), share) for name, share in shares.items()]


def by_pairs(numerators, denominators):
    """Numerators by pair, then by block (attention, MLP); denominators by pair."""
    rows = [
        (f"pair {p}", component, layer, value, denominators[p])
        for p, blocks in enumerate(numerators)
        for layer, block in enumerate(blocks)
        for component, value in zip(("attn_out", "mlp_out"), block, strict=True)
    ]
    return pd.DataFrame(rows, columns=PER_PAIR)


def test_blocks_by_hand():
    scores = answer((0.1, 0.3), (0.9, 0.2), (0.0, 0.5))  # blocks: 0.3, 0.9, 0.5
    ranks = {0: 3, 1: 1, 2: 2}
    for block, rank in ranks.items():
        assert hit_at_1(scores, mlps(**{f"b{block}": 1.0})) == (rank == 1)
        assert reciprocal_rank(scores, mlps(**{f"b{block}": 1.0})) == pytest.approx(1 / rank)
    assert hit_at_1(scores, mlps(b0=0.5, b1=0.5)) == 1 and hit_at_1(scores, mlps(b0=0.5, b2=0.5)) == 0
    assert reciprocal_rank(scores, mlps(b0=0.5, b2=0.5)) == 0.5
    assert recall_at_2(scores, mlps(b0=0.5, b1=0.5)) == 0.5 and recall_at_2(scores, mlps(b1=0.5, b2=0.5)) == 1
    assert isnan(recall_at_2(scores, mlps(b1=1.0)))


def test_ties_by_hand():
    scores = answer((0, 1), (0, 1), (0, 0.5), (0, 0.5), (0, 0.5))
    assert hit_at_1(scores, mlps(b1=1.0)) == 0.5
    assert reciprocal_rank(scores, mlps(b1=1.0)) == pytest.approx((1 + 1 / 2) / 2)
    assert reciprocal_rank(scores, mlps(b3=1.0)) == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)
    # Two of three equal blocks: the first of them comes first in 2 of 3 orders, second in 1 of 3.
    assert reciprocal_rank(scores, mlps(b2=0.5, b3=0.5)) == pytest.approx(2 / 3 / 3 + 1 / 3 / 4)
    assert recall_at_2(scores, mlps(b1=0.5, b2=0.5)) == 0.5
    assert recall_at_2(answer((0, 1), (0, 0), (0, 0)), mlps(b0=0.5, b1=0.5)) == pytest.approx((1 + 1 / 2) / 2)


def test_places_by_hand():
    scores = answer((0.1, 0.4), (0.4, 0.8))
    assert auroc(scores, mlps(b1=1.0)) == 1
    assert auroc(scores, mlps(b0=1.0)) == pytest.approx((1 + 0.5 + 0) / 3)  # above 0.1, equal to 0.4, below 0.8
    assert auroc(scores, mlps(b0=0.5, b1=0.5)) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auroc(scores, [(Place("attn_out", 0), 1.0)]) == 0


def test_order_of_the_planted_places_by_hand():
    scores = answer((9, 1), (9, 2), (9, 4), (9, 3))
    assert rank_correlation(scores, mlps(b0=0.1, b1=0.2, b2=0.3, b3=0.4)) == pytest.approx(0.8)  # 1 − 6·2/(4·15)
    assert rank_correlation(scores, mlps(b0=0.25, b2=0.75)) == pytest.approx(1)
    assert rank_correlation(scores, mlps(b0=0.75, b2=0.25)) == pytest.approx(-1)
    assert isnan(rank_correlation(scores, mlps(b0=0.5, b2=0.5)))
    assert rank_correlation(answer((0, 1), (0, 1)), mlps(b0=0.25, b1=0.75)) == 0


def test_what_a_plant_does_not_define_is_nan():
    scores = answer((0, 1), (0, 2))
    assert all(isnan(value) for value in point(scores, []).values())
    spread = point(scores, mlps(b0=0.5, b1=0.5))
    assert isnan(spread["hit_at_1"]) and isnan(spread["reciprocal_rank"]) and isnan(spread["recall_at_2"])
    assert spread["auroc"] == 1


def test_undefined_scores_rank_last_and_rounding_is_a_tie():
    assert hit_at_1(answer((nan, nan), (-1, -2)), mlps(b1=1.0)) == 1
    assert hit_at_1(answer((nan, nan), (nan, nan)), mlps(b1=1.0)) == 0.5
    assert hit_at_1(answer((0, 1.0), (0, 1.0 + 1e-8)), mlps(b0=1.0)) == 0.5
    assert hit_at_1(answer((0, 1e-12), (0, 3e-12)), mlps(b1=1.0)) == 1  # tiny, but no rounding
    assert top_blocks(answer((0, 1), (1, 0), (0.5, 0))) == {0, 1}


levels = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(levels, st.data())
def test_ties_are_the_mean_over_all_ways_to_break_them(blocks, data):
    planted = data.draw(st.sets(st.integers(0, len(blocks) - 1), min_size=1, max_size=len(blocks) - 1))
    shares = mlps(**{f"b{block}": 1 / len(planted) for block in planted})
    best = [max(block) for block in blocks]
    hits, ranks, recalls = [], [], []
    for order in permutations(range(len(blocks))):  # ties by place in the order
        ranking = sorted(range(len(blocks)), key=lambda block: (-best[block], order[block]))
        hits.append(ranking[0] in planted)
        ranks.append(1 / (1 + min(ranking.index(block) for block in planted)))
        recalls.append(len(planted & set(ranking[:2])) / 2)
    found = point(answer(*blocks), shares)
    assert found["hit_at_1"] == pytest.approx(np.mean(hits))
    assert found["reciprocal_rank"] == pytest.approx(np.mean(ranks))
    if len(planted) == 2:
        assert found["recall_at_2"] == pytest.approx(np.mean(recalls))


@settings(max_examples=40, deadline=None)
@given(levels, st.integers(0, 10_000))
def test_neither_the_order_of_lines_nor_a_rising_map_changes_a_score(blocks, seed):
    scores, shares = answer(*blocks), mlps(b0=0.3, b1=0.7)
    first = point(scores, shares)
    shuffled = point(scores.sample(frac=1, random_state=seed), shares[::-1])
    mapped = point(scores.assign(score=scores["score"] * 3 - 2), shares)
    for name in SCORES:
        assert shuffled[name] == pytest.approx(first[name], nan_ok=True)
        assert mapped[name] == pytest.approx(first[name], nan_ok=True)


def test_chance_is_what_random_scores_get():
    found = chance(6)
    assert found["hit_at_1"] == pytest.approx(1 / 6) and found["auroc"] == 0.5
    assert found["reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6) / 6)
    two = chance(6, planted=2)
    assert two["hit_at_1"] == two["recall_at_2"] == pytest.approx(1 / 3) and two["rank_correlation"] == 0
    assert isnan(chance(6, planted=6)["hit_at_1"])
    chooser = np.random.default_rng(0)
    drawn = pd.DataFrame(
        [point(answer(*chooser.random((4, 2))), mlps(b0=0.4, b2=0.6)) for _ in range(200)]
    )  # fmt: skip
    expected = pd.Series(chance(4, planted=2))
    assert ((drawn.mean() - expected).abs() < 4 * drawn.std() / np.sqrt(200)).all()


def test_agreement_of_seeds_by_hand():
    assert same_top(frozenset({1}), frozenset({1})) == 1 and same_top(frozenset({1, 2}), frozenset({1})) == 0.5
    rows = [("m", "single", "mlp-0", s, frozenset({top})) for s, top in enumerate((0, 0, 3))]
    rows += [("m", "single", "mlp-1", s, frozenset({1})) for s in range(2)]
    rows += [("m", "spread", "spread", 0, frozenset({1}))]  # one seed: nothing to compare
    found = seed_agreement(pd.DataFrame(rows, columns=["method", "kind", "site", "seed", "top_blocks"]))
    assert found.to_dict("records") == [{"method": "m", "kind": "single", "agreement": 0.5, "comparisons": 4}]


def test_resamples_are_ratios_of_sums_and_their_order_does_not_matter():
    chooser = np.random.default_rng(3)
    found = by_pairs(chooser.random((5, 2, 2)), 1 + chooser.random(5))
    places, drawn = resampled(found, resamples=2000, seed=1)
    same, again = resampled(found.sample(frac=1, random_state=1), resamples=2000, seed=1)
    pd.testing.assert_frame_equal(places, same)
    np.testing.assert_allclose(drawn, again)
    assert list(places["layer"]) == [0, 0, 1, 1] and list(places["component"]) == ["attn_out", "mlp_out"] * 2
    one = found[(found["layer"] == 1) & (found["component"] == "mlp_out")]
    assert places["score"].iat[3] == pytest.approx(one["numerator"].sum() / one["denominator"].sum())
    assert abs(drawn[:, 3].mean() - places["score"].iat[3]) < 0.02 and drawn[:, 3].std() > 0.01
    with pytest.raises(MethodError, match="Not every pair"):
        resampled(found.iloc[1:], resamples=5, seed=0)
    with pytest.raises(MethodError, match="by pairs"):
        resampled(answer((0, 1)), resamples=5, seed=0)


def test_stability_by_hand():
    # Two pairs: one says block 0, the other block 1, more strongly. Of (2, 0), (1, 1), (0, 2) only the first errs.
    found = by_pairs([[(0, 1), (0, 0)], [(0, 0), (0, 3)]], [1, 1])
    kept = stability(found, resamples=4000, seed=0)
    assert kept["stable_block"] == pytest.approx(0.75, abs=0.03)
    assert kept["stable_places"] == pytest.approx(0.75, abs=0.03)
    sure = stability(by_pairs([[(0, 1), (0, 0)]] * 4, [1] * 4), resamples=50)
    assert sure == {"stable_block": 1.0, "stable_places": 1.0}
    assert isnan(stability(answer((0, 1), (0, 0)))["stable_block"])


def test_half_of_the_best_is_a_top_place():
    # Both places of the whole are top; without the second pair (1 of 4 resamples) only the first is.
    found = by_pairs([[(1, 0), (0, 0)], [(1, 2), (0, 0)]], [1, 1])
    assert stability(found, resamples=4000)["stable_places"] == pytest.approx((1 + 2 * 1 + 0.5) / 4, abs=0.03)


ONE_PLACE = [(0, 1), (0, 0)]
OTHER_PLACE = [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("found", "made"),
    [
        (by_pairs([ONE_PLACE] * 8, [1] * 8), True),
        (by_pairs([ONE_PLACE] * 8, [20] * 8), False),  # a score of 0.05
        (by_pairs([ONE_PLACE] * 5 + [OTHER_PLACE] * 4, [1] * 9), False),  # another sample, another block
        (by_pairs([[(0, 2), (0, 1)], [(0, -1), (0, -0.5)]] * 4, [2, -1] * 4), False),  # nothing to localise
        (by_pairs([[(0, 1), (0, 1)]] * 8, [1] * 8), False),  # two blocks, equally
        (by_pairs([ONE_PLACE], [1]), True),  # a single pair cannot be resampled
        (answer((0, 0.2), (0, 0.1)), True),
        (answer((0, 0.09), (0, 0.08)), False),
        (answer((0, 0.5), (0.5, 0)), False),
        (answer((nan, nan), (nan, nan)), False),
    ],
)
def test_a_claim_needs_all_of_its_conditions(found, made):
    claim = claims(found, resamples=400)
    assert claim.made == made and claim.block == (0 if made else None)
    assert claims(found.iloc[::-1], resamples=400).made == made


def test_a_claim_says_what_it_rests_on():
    half = claims(by_pairs([[(0, 2), (0, 1)], [(0, -1), (0, -0.5)]] * 4, [2, -2] * 4), resamples=400)
    assert 0.2 < half.something < 0.8
    sure = claims(by_pairs([ONE_PLACE] * 3, [2] * 3), resamples=400)
    assert (sure.something, sure.stable, sure.score) == (1, 1, 0.5)


def test_reliability_by_hand():
    places = pd.DataFrame(
        {
            "score": [-3, 0.05, 0.55, 0.55, 0.58, 1.0, 7, nan],
            "planted": [False, False, True, False, True, True, True, True],
        }
    )
    found = reliability(places)
    assert found["bin"].tolist() == [0, 5, 9] and found["places"].tolist() == [2, 3, 2]
    assert found["said"].tolist() == pytest.approx([0.025, 0.56, 1.0])
    assert found["right"].tolist() == pytest.approx([0, 2 / 3, 1])
    # Wilson for 2 of 3: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)
    z, p, n = 1.959964, 2 / 3, 3
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found["low"].iat[1] == pytest.approx((p + z**2 / (2 * n) - half) / (1 + z**2 / n), abs=1e-6)
    assert found["high"].iat[1] == pytest.approx((p + z**2 / (2 * n) + half) / (1 + z**2 / n), abs=1e-6)
    assert calibration_error(found) == pytest.approx((2 * 0.025 + 3 * abs(2 / 3 - 0.56) + 0) / 7)
    assert isnan(calibration_error(found.iloc[:0]))


def test_honest_scores_are_calibrated():
    chooser = np.random.default_rng(0)
    said = chooser.random(20_000)
    places = pd.DataFrame({"score": said, "planted": chooser.random(20_000) < said})
    assert calibration_error(reliability(places)) < 0.02
    assert calibration_error(reliability(places.assign(score=said**3))) > 0.15

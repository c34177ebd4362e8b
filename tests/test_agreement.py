"""Agreement of methods: by hand, and beside scipy's rank correlation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from helpers.agreement import agreement, correlation, jaccard
from helpers.detection import DetectionError, HeadScores, signs


def scores_of(groups: dict[tuple, list], *, by, resampled=None) -> HeadScores:
    parts = [
        pd.DataFrame({"layer": 0, "head": range(len(values)), "score": np.asarray(values, float)}).assign(
            **dict(zip(by, key, strict=True))
        )
        for key, values in groups.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    resampled = table["score"].to_numpy()[None] if resampled is None else np.asarray(resampled, float)
    return HeadScores(table, tuple(by), resampled, np.stack(2 * [resampled]), np.zeros((2, 1)), 0.9)


def test_the_jaccard_index_is_of_signed_sets_and_two_empty_ones_have_none():
    first = np.array([1, -1, 0, 1, 0])
    assert jaccard(first, np.array([1, -1, 0, 0, 1])) == 0.5  # two of four
    assert jaccard(first, np.array([1, 1, 0, 1, 0])) == 0.5  # two, of the first two and of + and − of the other head
    assert jaccard(first, -first) == 0 and jaccard(first, first) == 1
    assert jaccard(first, np.zeros(5, int)) == 0
    assert np.isnan(jaccard(np.zeros(5, int), np.zeros(5, int)))


ONE, OTHER = [9, 1, 0, 1, 0, -1, 1], [8, 0, 0, 2, 1, 0, -9]  # at two deviations: + head 0; and at 1.5 also − head 6


def test_two_methods_by_hand():
    scores = scores_of({("STR", "kl_divergence"): ONE, ("GN", "probability"): OTHER}, by=["corruption", "metric"])
    table = agreement(scores, methods=["corruption", "metric"], deviations=1.5)
    (row,) = table.to_dict("records")
    assert (row["first"], row["second"]) == ("STR · KL divergence", "GN · probability")
    assert signs(np.array(ONE), 1.5).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert signs(np.array(OTHER), 1.5).tolist() == [1, 0, 0, 0, 0, 0, -1]
    assert (row["shared"], row["first_heads"], row["second_heads"], row["heads"]) == (1, 1, 2, 7)
    assert row["jaccard"] == row["jaccard_low"] == row["jaccard_high"] == 0.5
    # Ranks 7, 5, 2.5, 5, 2.5, 1, 5 and 7, 3, 3, 6, 5, 3, 1: products of what they lie from 4 sum to 10, over the
    # roots of 25.5 and 26.
    assert row["rank_correlation"] == pytest.approx(10 / (25.5 * 26) ** 0.5)
    assert row["rank_correlation"] == pytest.approx(spearmanr(ONE, OTHER).statistic)


def test_intervals_are_those_of_the_resamples():
    rng = np.random.default_rng(0)
    groups = {("a",): rng.normal(size=9), ("b",): rng.normal(size=9)}
    resampled = np.tile(rng.normal(size=(30, 9)) ** 3, 2) + rng.normal(size=(30, 18))
    (row,) = agreement(scores_of(groups, by=["metric"], resampled=resampled), methods=["metric"]).to_dict("records")
    ranks = [spearmanr(each[:9], each[9:]).statistic for each in resampled]
    assert (row["rank_low"], row["rank_high"]) == pytest.approx(tuple(np.quantile(ranks, [0.05, 0.95])))
    sets = [[{(h, s) for h, s in enumerate(signs(half, 2.0)) if s} for half in (e[:9], e[9:])] for e in resampled]
    overlaps = [len(one & other) / len(one | other) for one, other in sets if one | other]
    assert 5 < len(overlaps) and len(set(overlaps)) > 1
    assert (row["jaccard_low"], row["jaccard_high"]) == pytest.approx(tuple(np.quantile(overlaps, [0.05, 0.95])))


def test_methods_are_compared_within_the_other_columns_only():
    groups = {(task, metric): np.random.default_rng(n).normal(size=8)
              for n, (task, metric) in enumerate([(t, m) for t in ("IOI", "sums") for m in "abc"])}  # fmt: skip
    table = agreement(scores_of(groups, by=["task", "metric"]), methods=["metric"])
    assert table[["task", "first", "second"]].to_numpy().tolist() == [
        [task, *two] for task in ("IOI", "sums") for two in ("ab", "ac", "bc")
    ]
    expected = [
        spearmanr(groups[t, a], groups[t, b]).statistic for t, a, b in table.iloc[:, :3].itertuples(index=False)
    ]
    assert table["rank_correlation"].tolist() == pytest.approx(expected)


def test_methods_without_spread_or_heads_have_no_agreement_and_one_method_none_to_agree_with():
    scores = scores_of({("a",): [1, 1, 1], ("b",): [1, 2, 3]}, by=["metric"])
    (row,) = agreement(scores, methods=["metric"]).to_dict("records")
    assert all(np.isnan(row[name]) for name in ("rank_correlation", "rank_low", "jaccard", "jaccard_high"))
    assert row["shared"] == 0
    assert agreement(scores_of({("a",): [1, 2, 3]}, by=["metric"]), methods=["metric"]).empty
    assert correlation(np.arange(4.0), -np.arange(4.0)) == pytest.approx(-1)


@pytest.mark.parametrize("methods", [[], ["corruption"]])
def test_methods_must_be_columns_of_the_scores(methods):
    with pytest.raises(DetectionError, match="told apart by metric"):
        agreement(scores_of({("a",): [1, 2], ("b",): [2, 1]}, by=["metric"]), methods=methods)


def test_methods_must_share_their_heads():
    with pytest.raises(DetectionError, match="a scored 3 heads and b 2"):
        agreement(scores_of({("a",): [1, 2, 3], ("b",): [2, 1]}, by=["metric"]), methods=["metric"])

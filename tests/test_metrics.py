"""Metrics against numbers computed by hand, and the ratio of means against the ways it can go wrong."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import plain_pair

from helpers.metrics import METRICS, NO_TOKEN, MetricError, recovery_table, right_and_wrong, score, with_effects

# Two rows over a vocabulary of three; exp(log 2) = 2, so the probabilities are 1/4, 1/2, 1/4 and 1/3 each.
LOGITS = torch.tensor([[0.0, math.log(2), 0.0], [1.0, 1.0, 1.0]])
CLEAN = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])


def test_hand_computed_scores():
    values = score(LOGITS, answer=torch.tensor([0, 2]), foil=torch.tensor([1, 0]), clean_logits=CLEAN)
    assert tuple(values) == METRICS
    expected = {
        "logit_difference": [-math.log(2), 0.0],
        "log_probability": [-math.log(4), -math.log(3)],
        "probability": [1 / 4, 1 / 3],
        "rank": [1, 0],  # one token is above; a tie with the answer does not count
        # (1/3) [log((1/3)/(1/4)) twice, and log((1/3)/(1/2))]
        "kl_divergence": [(2 * math.log(4 / 3) + math.log(2 / 3)) / 3, 0.0],
    }
    for name in METRICS:
        np.testing.assert_allclose(values[name], expected[name], atol=1e-6, err_msg=name)


def test_hand_computed_scores_of_sets():
    """Probabilities 1/10, 2/10, 3/10, 4/10 and 2/8, 2/8, 2/8, 2/8."""
    logits = torch.tensor([[1.0, 2, 3, 4], [2, 2, 2, 2]]).log()
    answer = torch.tensor([[0, 2, NO_TOKEN], [3, NO_TOKEN, NO_TOKEN]])
    foil = torch.tensor([[1, NO_TOKEN], [0, 1]])
    values = score(logits, answer=answer, foil=foil, clean_logits=logits)
    expected = {
        "logit_difference": [math.log(1 * 3 / 2), -math.log(2)],
        "log_probability": [math.log(4 / 10), math.log(1 / 4)],
        "probability": [4 / 10, 1 / 4],
        "rank": [1, 0],  # above 3/10 there is 4/10 alone; the tokens 0 and 2 are right, whichever is the likelier
        "kl_divergence": [0, 0],
    }
    for name in METRICS:
        np.testing.assert_allclose(values[name], expected[name], atol=1e-6, err_msg=name)


def test_sets_of_one_token_score_as_that_token_to_the_bit():
    answer, foil = torch.tensor([0, 2]), torch.tensor([1, 0])
    alone = score(LOGITS, answer=answer, foil=foil, clean_logits=CLEAN)
    filled = score(
        LOGITS,
        answer=torch.stack([answer, torch.full((2,), NO_TOKEN)], -1),
        foil=foil[:, None],
        clean_logits=CLEAN,
    )
    assert all(torch.equal(alone[name], filled[name]) for name in METRICS)


def test_right_and_wrong_tokens_are_the_sets_or_else_the_first_tokens():
    pairs = [plain_pair(answer=(5, 6), foil=(7,)), plain_pair(answer_set=(5, 9, 8), foil_set=(7, 6))]
    right, wrong = right_and_wrong(pairs)
    assert right.tolist() == [[5, NO_TOKEN, NO_TOKEN], [5, 9, 8]]
    assert wrong.tolist() == [[7, NO_TOKEN], [7, 6]]


def test_kl_is_clean_to_run_and_not_the_reverse():
    values = score(CLEAN, answer=torch.tensor([0, 0]), foil=torch.tensor([1, 1]), clean_logits=LOGITS)
    reverse = math.log(3 / 4) / 2 + math.log(3 / 2) / 2
    np.testing.assert_allclose(values["kl_divergence"], [reverse, 0.0], atol=1e-6)


def test_half_precision_is_scored_in_single():
    values = score(LOGITS.bfloat16(), answer=torch.tensor([1, 1]), foil=torch.tensor([0, 0]), metrics=["probability"])
    assert values["probability"].dtype == torch.float32


@pytest.mark.parametrize("metrics", [["accuracy"], [], "rank"])
def test_unknown_metrics_are_refused(metrics):
    with pytest.raises(MetricError, match="among logit_difference"):
        score(LOGITS, answer=torch.tensor([0, 0]), foil=torch.tensor([1, 1]), clean_logits=CLEAN, metrics=metrics)


def test_kl_needs_the_clean_run():
    with pytest.raises(MetricError, match="clean_logits"):
        score(LOGITS, answer=torch.tensor([0, 0]), foil=torch.tensor([1, 1]))


@pytest.fixture
def runs():
    return pd.DataFrame(
        {"pair": ["a", "a", "b", "b"], "run": ["clean", "corrupted"] * 2, "logit_difference": [4.0, 0.0, 6.0, -2.0]}
    )


def rows(*values, direction="denoising"):
    """A sweep of the columns (pair, layer, position, logit difference)."""
    table = pd.DataFrame(values, columns=["pair", "layer", "position", "logit_difference"])
    return table.astype({"position": "Int64"}).assign(direction=direction)


def test_table_by_hand(runs):
    sweep = rows(("a", 0, 1, 1.0), ("b", 0, 1, 4.0), ("a", 1, 1, 4.0), ("b", 1, 1, 6.0))
    table = recovery_table(sweep, runs, by=["layer"])
    # Clean mean 5, corrupted mean -1; layer 0 has the mean 2.5.
    assert table.columns.tolist() == ["layer", "quantity", "recovery", "numerator", "denominator", "pairs"]
    assert table["recovery"].tolist() == [3.5 / 6, 1.0]
    assert table["numerator"].tolist() == [3.5, 6.0]
    assert table["denominator"].tolist() == [6.0, 6.0]
    assert table["pairs"].tolist() == [2, 2]
    assert set(table["quantity"]) == {"recovered"}


def test_effects_by_hand(runs):
    both = pd.concat([rows(("a", 0, 1, 1.0)), rows(("b", 2, 1, 5.0), direction="noising")], ignore_index=True)
    effects = with_effects(both, runs)
    assert effects[["clean", "corrupted"]].to_numpy().tolist() == [[4.0, 0.0], [6.0, -2.0]]
    assert effects["numerator"].tolist() == [1.0, 1.0]  # 1 − 0 restored, 6 − 5 destroyed
    assert effects["denominator"].tolist() == [4.0, 8.0]


def test_recovery_is_a_ratio_of_means_not_a_mean_of_ratios(runs):
    table = recovery_table(rows(("a", 0, 1, 4.0), ("b", 0, 1, -2.0)), runs, by=["layer"])
    assert table["recovery"].tolist() == [2.0 / 6]  # the pairs' own ratios are 1 and 0


def test_noising_tells_the_share_destroyed(runs):
    sweep = rows(("a", 0, 1, 1.0), ("b", 0, 1, 4.0), ("a", 1, 1, 0.0), ("b", 1, 1, -2.0), direction="noising")
    table = recovery_table(sweep, runs, by=["layer"])
    assert table["recovery"].tolist() == [2.5 / 6, 1.0]
    assert set(table["quantity"]) == {"destroyed"}


def test_every_pair_weighs_the_same_however_many_rows_it_has(runs):
    sweep = rows(("a", 0, 1, 1.0), ("a", 0, 2, 3.0), ("a", 0, 3, 2.0), ("b", 0, 1, 4.0))
    table = recovery_table(sweep, runs, by=[])
    assert table["numerator"].tolist() == [(2.0 + 4.0) / 2 + 1.0]
    assert table["pairs"].tolist() == [2]


def test_missing_positions_are_a_group_of_their_own(runs):
    table = recovery_table(rows(("a", 0, None, 4.0), ("a", 0, 1, 0.0)), runs, by=["position"])
    assert table["position"].tolist() == [1, pd.NA]
    assert table["recovery"].tolist() == [0.0, 1.0]


def test_a_group_uses_the_runs_of_its_own_pairs(runs):
    table = recovery_table(rows(("a", 0, 1, 4.0), ("b", 0, 2, 6.0)), runs, by=["position"])
    assert table["denominator"].tolist() == [4.0, 8.0]


def test_a_zero_denominator_is_undefined_not_infinite(runs):
    runs["logit_difference"] = 1.0
    assert recovery_table(rows(("a", 0, 1, 3.0)), runs, by=["layer"])["recovery"].isna().all()


def test_directions_are_never_mixed(runs):
    both = pd.concat([rows(("a", 0, 1, 1.0)), rows(("a", 0, 1, 3.0), direction="noising")])
    with pytest.raises(MetricError, match="both directions"):
        recovery_table(both, runs, by=["layer"])
    table = recovery_table(both, runs, by=["layer", "direction"])
    assert dict(zip(table["quantity"], table["recovery"], strict=True)) == {"recovered": 0.25, "destroyed": 0.25}


def test_table_refuses(runs):
    sweep = rows(("a", 0, 1, 1.0))
    with pytest.raises(MetricError, match="no column head"):
        recovery_table(sweep, runs, by=["head"])
    with pytest.raises(MetricError, match="pair b"):
        recovery_table(rows(("b", 0, 1, 1.0)), runs[runs["pair"] == "a"], by=["layer"])
    with pytest.raises(MetricError, match="NaN in the sweep table for the pair a"):
        recovery_table(rows(("a", 0, 1, float("nan"))), runs, by=["layer"])
    with pytest.raises(MetricError, match="more than once"):
        recovery_table(sweep, pd.concat([runs, runs]), by=["layer"])
    with pytest.raises(MetricError, match="lacks the clean or the corrupted run"):
        recovery_table(sweep, runs[runs["run"] == "clean"], by=["layer"])

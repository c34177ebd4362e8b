"""Mechanism: every table is there for any model, and the parts are those of the pairs they were to be chosen on."""

import pandas as pd
import pytest
from ioi import ioi_pairs
from tiny import shared_model

from helpers import mechanism, off_distribution
from helpers.attended import attention_shares
from helpers.head_parts import MOVER, S_INHIBITION, head_parts
from helpers.mechanism import measure_mechanism
from helpers.noise import GaussianNoise
from helpers.restoration import restored_differences
from helpers.stats import recovery_intervals

STATISTICS = {"resamples": 50, "confidence": 0.95, "seed": 0}
NOISES = [GaussianNoise(0.1, seed, ("S2",)) for seed in range(2)]
MODEL, PAIRS = shared_model("gpt2", 0), ioi_pairs(8)


@pytest.mark.parametrize("parts", [(), (MOVER,), (MOVER, S_INHIBITION, MOVER)])
def test_every_table_is_there_and_can_be_told_whatever_parts_there_are(monkeypatch, parts):
    table = head_parts(MODEL, PAIRS[:4])
    table["part"] = [*parts, *(len(table) - len(parts)) * ["other"]]
    monkeypatch.setattr(mechanism, "head_parts", lambda model, pairs, row_budget: table)
    found = measure_mechanism(MODEL, PAIRS[4:], PAIRS[:4], noises=NOISES)
    attention = off_distribution.attention_by_run(found["shares"], **STATISTICS)
    restored = recovery_intervals(found["restored"], by=["corruption"], item="pair", **STATISTICS)
    inhibiting = parts.count(S_INHIBITION)
    assert off_distribution.said_of_restoration(restored, attention, inhibiting)
    assert off_distribution.said_of_attention(attention)
    assert off_distribution.said_of_knockouts(found["knockouts"], **STATISTICS)
    assert off_distribution.said_of_repair(found["repair"], **STATISTICS)
    assert off_distribution.said_of_strangeness(found["strangeness"], **STATISTICS)
    assert set(found["shares"]["pair"]) <= {pair.pair_id for pair in PAIRS[4:]}


def test_the_tables_are_those_of_the_heads_that_were_chosen(monkeypatch):
    table = head_parts(MODEL, PAIRS[:4])
    table["part"] = [S_INHIBITION, MOVER, *(len(table) - 2) * ["other"]]
    monkeypatch.setattr(mechanism, "head_parts", lambda model, pairs, row_budget: table)
    found = measure_mechanism(MODEL, PAIRS[4:], PAIRS[:4], noises=NOISES)
    first, second = [(row.layer, row.head) for row in table.head(2).itertuples()]
    shares = attention_shares(MODEL, PAIRS[4:], [second], noises=NOISES, restoring=[first])
    pd.testing.assert_frame_equal(found["shares"], shares)
    pd.testing.assert_frame_equal(found["restored"], restored_differences(MODEL, PAIRS[4:], [first], noises=NOISES))

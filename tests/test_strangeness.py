"""Distances from clean streams: by hand, and against literal sums over recorded runs."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from ioi import ioi_pairs
from oracle import record
from tiny import LAYERS, shared_model

from helpers.noise import GaussianNoise
from helpers.strangeness import StrangenessError, strangeness, stream_strangeness

NOISES = [GaussianNoise(0.7, seed, ("S2",)) for seed in (3, 8)]
PAIRS = ioi_pairs()


def test_norm_and_neighbour_by_hand():
    clean = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 5.0]]).double()  # distances 5, √34, 1; the median is 5
    streams = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 5.0]]).double()
    norm, nearest = strangeness(streams, clean)
    assert norm.tolist() == pytest.approx([0.0, 1.5, 1.25])
    # The third stream is its own clean one, which is no neighbour: the second is.
    assert nearest.tolist() == pytest.approx([4 / 5, 3 / 5, 1 / 5])


def test_equal_clean_streams_have_no_unit():
    norm, nearest = strangeness(torch.ones(3, 2), torch.ones(3, 2))
    assert norm.tolist() == pytest.approx([1, 1, 1]) and nearest.isnan().all()


def test_every_number_equals_its_definition():
    model = shared_model("gpt2", 0)
    table = stream_strangeness(model, PAIRS, role="S2", noises=NOISES, row_budget=2)
    assert table.columns.tolist() == ["pair", "corruption", "draw", "layer", "norm", "nearest"]
    assert len(table) == len(PAIRS) * 4 * (LAYERS + 1)
    found = table.set_index(["corruption", "draw", "layer", "pair"])

    def stream(prompt, pair, noise, layer):
        site = ("resid_pre", layer) if layer < LAYERS else ("resid_post", LAYERS - 1)
        return record(model, prompt, noise)[site][0, pair.roles.index("S2")].tolist()

    for layer in range(LAYERS + 1):
        clean = {pair.pair_id: stream(pair.clean, pair, None, layer) for pair in PAIRS}
        apart = sorted(math.dist(clean[a], clean[b]) for a in clean for b in clean if a < b)
        typical = (apart[4] + apart[5]) / 2  # of ten
        length = sum(math.hypot(*each) for each in clean.values()) / len(PAIRS)
        for pair in PAIRS:
            runs = {("clean", 0): clean[pair.pair_id], ("STR", 0): stream(pair.corrupted, pair, None, layer)}
            for noise in NOISES:
                drawn = noise.draw([pair], width=model.config.hidden_size)[0]
                runs["GN", noise.seed] = stream(pair.clean, pair, drawn, layer)
            for run, own in runs.items():
                near = min(math.dist(own, other) for name, other in clean.items() if name != pair.pair_id)
                row = found.loc[(*run, layer, pair.pair_id)]
                expected = math.hypot(*own) / length, near / typical
                assert (row["norm"], row["nearest"]) == pytest.approx(expected, abs=1e-4)


def test_of_several_tokens_with_the_role_the_last_one_counts():
    model = shared_model("gpt2", 0)
    twice = [replace(pair, roles=tuple(role.replace("relation", "S2") for role in pair.roles)) for pair in PAIRS]
    tables = [stream_strangeness(model, pairs, role="S2") for pairs in (PAIRS, twice)]
    pd.testing.assert_frame_equal(*tables)


def test_more_noise_is_stranger():
    model = shared_model("gpt2", 0)
    loud = GaussianNoise(30.0, 1, ("S2",))
    table = (
        stream_strangeness(model, PAIRS, role="S2", noises=[loud]).groupby(["corruption", "layer"])["nearest"].mean()
    )
    assert table["GN", 0] > 20 * table["STR", 0] and table["GN", 0] > 20 * table["clean", 0]


def test_mistakes_end_in_a_sentence():
    model = shared_model("gpt2", 0)
    with pytest.raises(StrangenessError, match="give at least two"):
        stream_strangeness(model, PAIRS[:1], role="S2")
    with pytest.raises(StrangenessError, match="5 of 5 pairs, p0 first, have no token with the role 'YY'"):
        stream_strangeness(model, PAIRS, role="YY")

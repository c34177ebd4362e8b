"""Sites patched together and one by one: against plain hooks, and where redundancy is known."""

import numpy as np
import pandas as pd
import pytest
from oracle import oracle_runs, oracle_sets
from tiny import LAYERS, random_pair, shared_model

from helpers.interactions import all_layers, joint_effects, top_heads
from helpers.plans import DIRECTIONS, Site

MODEL = shared_model("gpt2", 0)
SIGN = {"denoising": 1, "noising": -1}  # what is restored, and what is lost


@pytest.fixture(scope="module")
def pairs():
    return [random_pair("b", 4, seed=1, subject=(1, 2)), random_pair("a", 3, seed=2)]


def plain(site: Site) -> tuple:
    return site.component, site.layer, site.position, site.head


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel"])
def test_joint_and_added_equal_plain_hooks(pairs, family):
    model = shared_model(family, 1)
    shared = Site("mlp_out", 1, "all")  # in two groups: it is patched alone once, and counts in both
    groups = {
        "MLPs": all_layers(model, "mlp_out"),
        "mixed": [shared, Site("head_out", 2, "last", 1), Site("attn_out", 0, "subject_last")],
        "heads": [Site("head_out", layer, "all", head) for layer in (0, 2) for head in (0, 1)],
    }
    table = joint_effects(model, pairs, groups, directions=DIRECTIONS, row_budget=19)
    assert set(table.columns) == {"pair", "direction", "group", "sites", "joint", "added", "denominator"}
    assert len(table) == len(pairs) * len(groups) * len(DIRECTIONS)
    runs = {(row["pair"], row["run"]): row["metrics"]["logit_difference"] for row in oracle_runs(model, pairs)}
    sets = {name: [plain(site) for site in sites] for name, sites in groups.items()}
    sets |= {plain(site): [plain(site)] for sites in groups.values() for site in sites}
    for direction, swept in table.groupby("direction"):
        effects = {}
        for row in oracle_sets(model, pairs, sets, direction=direction):
            base = runs[row["pair"], "corrupted" if direction == "denoising" else "clean"]
            effects[row["pair"], row["sites"]] = SIGN[direction] * (row["metrics"]["logit_difference"] - base)
        for row in swept.to_dict("records"):
            name, sites = row["pair"], groups[row["group"]]
            added = sum(effects[name, plain(site)] for site in sites)
            whole = runs[name, "clean"] - runs[name, "corrupted"]
            found = row["joint"], row["added"], row["denominator"]
            assert found == pytest.approx((effects[name, row["group"]], added, whole), abs=5e-5)
            assert row["sites"] == len(sites)


def test_a_group_of_one_site_adds_up(pairs):
    groups = {"one": [Site("mlp_out", 1, "all")], "head": [Site("head_out", 0, "all", 1)]}
    table = joint_effects(MODEL, pairs, groups, directions=DIRECTIONS)
    np.testing.assert_allclose(table["joint"], table["added"], rtol=0, atol=1e-6)
    assert table["joint"].abs().min() > 1e-3 and set(table["sites"]) == {1}


def test_sites_that_repeat_one_another_are_less_together_than_added(pairs):
    """Token embeddings and what enters each block carry the whole run along: each alone does what all do together."""
    chain = [Site("embedding", 0, "all"), *all_layers(MODEL, "resid_pre")]
    table = joint_effects(MODEL, pairs, {"chain": chain}, directions=DIRECTIONS)
    np.testing.assert_allclose(table["joint"], table["denominator"], atol=1e-4)
    np.testing.assert_allclose(table["added"], (1 + LAYERS) * table["denominator"], atol=1e-4)
    assert table["denominator"].abs().min() > 0.1


def test_two_halves_of_the_prompt_are_everything_together_and_needed_by_one_direction_where_redundant_by_the_other():
    """The clean first half with the corrupted second one is one run: what it restores, noising the other destroys."""
    pair = random_pair("p", 4, seed=7, subject=(1, 2))
    halves = {"both": [Site("embedding", 0, 1), Site("embedding", 0, 2)]}
    found = joint_effects(MODEL, [pair], halves, directions=DIRECTIONS).set_index("direction")
    whole = found["denominator"].iloc[0]
    np.testing.assert_allclose(found["joint"], whole, atol=1e-4)
    over = (found["added"] - whole) / whole
    assert over["denoising"] == pytest.approx(-over["noising"], abs=1e-4) and abs(over["noising"]) > 0.1


def test_all_layers_are_every_layer_at_all_positions():
    assert all_layers(MODEL, "attn_out") == [Site("attn_out", layer, "all") for layer in range(LAYERS)]


def head_effects(*rows) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["pair", "layer", "head", "numerator"])
    return table.assign(component="head_out", direction="noising", head=table["head"].astype("Int64"))


def test_top_heads_have_the_largest_mean_and_ties_stand_by_layer_and_head():
    effects = head_effects(
        ("p", 0, 0, 9.0), ("q", 0, 0, -9.0),  # large, but not on average
        ("p", 0, 1, 1.0), ("q", 0, 1, 3.0),
        ("p", 1, 0, 2.0), ("q", 1, 0, 2.0),
        ("p", 1, 1, 3.0), ("q", 1, 1, 2.0),
        ("p", 2, 0, -5.0), ("q", 2, 0, -5.0),
    )  # fmt: skip
    others = [
        effects.assign(component="mlp_out", numerator=99.0, head=pd.NA),
        effects.assign(direction="denoising", numerator=-effects["numerator"]),
    ]
    table = pd.concat([effects, *others]).sample(frac=1, random_state=0)
    expected = [Site("head_out", layer, "all", head) for layer, head in ((1, 1), (0, 1), (1, 0), (0, 0), (2, 0))]
    assert top_heads(table, direction="noising", count=4) == expected[:4]
    assert top_heads(table, direction="noising", count=99) == expected
    assert top_heads(table, direction="denoising", count=1) == expected[-1:]
    (site,) = top_heads(table, direction="noising", count=1)
    assert type(site.layer) is int and type(site.head) is int

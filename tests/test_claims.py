"""Claims: verdicts at the edges of the rule, estimates and published numbers from tables made by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from helpers.claims import (
    CLAIMS,
    COLUMNS,
    EDITING,
    FIRST_ATTENTION,
    FIRST_MLP,
    LAST_BLOCK,
    Estimate,
    Region,
    claimed_sites,
    claims_table,
    corrected_estimates,
    published_numbers,
    scope_of,
    verdict,
    whole_layers,
)
from helpers.config import Model
from helpers.plans import Site

STATISTICS = {"resamples": 200, "confidence": 0.9, "seed": 0}
NULL = (-0.25, 0.4)


@pytest.mark.parametrize(
    "interval, null, region, expected",
    [
        ((0.5, 0.6), (), (0.5, 0.6), "supported"),  # no null; the ends of a region belong to it
        ((0.5, 0.6), NULL, (0.46, 0.66), "supported"),  # beyond the null by exactly the margin
        ((0.4999, 0.6), NULL, (0.46, 0.66), "undecided"),  # beyond it by less
        ((-0.5, -0.35), NULL, (-1, 0), "supported"),  # below the null by the margin
        ((-0.5, -0.34), NULL, (-1, 0), "undecided"),
        ((0.5, 0.7), NULL, (0.46, 0.66), "undecided"),  # inside in part
        ((0.0, 0.5), (), (0.46, 0.66), "undecided"),
        ((0.2, 0.46), (), (0.46, 0.66), "undecided"),  # they touch
        ((0.2, 0.4599), (), (0.46, 0.66), "refuted"),
        ((0.2, 0.4599), NULL, (0.46, 0.66), "refuted"),  # a null does not save what lies elsewhere
        ((0.6601, 0.9), (), (0.46, 0.66), "refuted"),
        ((0.1, 0.3), (), (0.0, math.inf), "supported"),
        ((0.1, 0.3), (-0.05, 0.05), (0.0, math.inf), "undecided"),
        ((-0.3, -0.1), (), (0.0, math.inf), "refuted"),
        ((-9.0, 0.1), (), (-math.inf, 0.236), "supported"),
        ((-0.1, 0.3), (), (-math.inf, 0.236), "undecided"),
        ((-0.1, 0.1), NULL, (-math.inf, 0.236), "supported"),  # that something is small needs no null
    ],
)
def test_a_verdict_at_the_edges_of_the_rule(interval, null, region, expected):
    assert verdict(Estimate(sum(interval) / 2, *interval, *null), Region(*region)) == expected


def test_what_is_not_defined_is_undecided_wherever_it_lies():
    for value, defined in ((0.5, False), (math.nan, True)):
        for region in (Region(0.4, 0.6), Region(0.9, 1.0)):
            assert verdict(Estimate(value, 0.45, 0.55, defined=defined), region) == "undecided"


def test_estimates_in_words():
    assert str(Estimate(0.5, 0.25, -0.125, 0.0, 0.5)) == "0.50 [0.25, -0.12]"
    assert str(Estimate(0.5, 0.25, 0.75, defined=False)) == "undefined"
    assert Estimate(0.5, 0.25, 0.75, -0.25, 0.5).null == "-0.25 to 0.50" and Estimate(0.5, 0.25, 0.75).null == "–"


def test_claimed_sites_are_the_first_block_and_the_last():
    assert claimed_sites(4) == {
        FIRST_MLP: [Site("mlp_out", 0, "all")],
        FIRST_ATTENTION: [Site("attn_out", 0, "all")],
        LAST_BLOCK: [Site("attn_out", 3, "all"), Site("mlp_out", 3, "all")],
    }


ITEMS = [("definitional", f"d{n}") for n in range(4)] + [("associative", f"a{n}") for n in range(4)]
# Recovery of every claimed site by network: the second kind is the one that the claim is not about.
RECOVERED = {
    FIRST_MLP: {"associative": (0.5, 0.1, -0.2, 0.0), "definitional": (7.0, 8.0, -8.0, 9.0)},
    LAST_BLOCK: {"definitional": (0.8, -0.3, 0.3, 0.1), "associative": (7.0, 8.0, -8.0, 9.0)},
    FIRST_ATTENTION: {"associative": (0.25, 0.0, 0.0, -0.5), "definitional": (7.0, 8.0, -8.0, 9.0)},
}
EVERYWHERE = {"definitional": (0.0, 0.0, 0.0, 3.0), "associative": (1.0, -1.0, 1.0, 2.0)}
PLACES = [("attn_out", 0), ("attn_out", 1), ("mlp_out", 0), ("mlp_out", 1)]


def made_up_tables(scale: float) -> dict[str, pd.DataFrame]:
    """The tables of helpers.clap, all items of a kind being alike, in two seeds; `scale` moves every number of an arm.

    Beside what the claims are about stand rows that they are not about.
    """
    tables = {"sites": [], "effects": [], "joint": [], "clean": []}
    for (kind, item), seed in itertools.product(ITEMS, (0, 1)):
        row = {"item_id": item, "kind": kind, "seed": seed, "denominator": 4.0}
        for site, recovered in RECOVERED.items():
            tuned, base, shuffled, untrained = (4 * scale * share for share in recovered[kind])
            tables["sites"].append(row | {"sites": site, "network": "fine-tuned", "numerator": tuned})
            for name, value in (("base", base), ("shuffled donor", shuffled)) if seed == 0 else ():
                tables["sites"].append(row | {"sites": site, "network": name, "numerator": value})
            for draw in range(11) if seed == 0 else ():
                drawn = untrained + 4 * scale * (draw - 5) / 10
                own = {"sites": site, "network": "untrained", "draw": draw, "numerator": drawn}
                tables["sites"].append(row | own)
        for (component, layer), value in zip(PLACES, EVERYWHERE[kind], strict=True):
            place = {"component": component, "layer": layer, "role": "all", "network": "fine-tuned"}
            place |= {"direction": "denoising", "metric": "logit_difference", "numerator": scale * value}
            tables["effects"].append(row | place)
            for other in ({"network": "base"}, {"role": "last"}, {"component": "head_out"}, {"direction": "noising"},
                          {"metric": "kl_divergence"}):  # fmt: skip
                tables["effects"].append(row | place | other | {"numerator": 100.0 + layer * len(item)})
        for group, direction in itertools.product(("feed-forward", "attention"), ("denoising", "noising")):
            counts = (group, direction) == ("feed-forward", "denoising")
            together = {"group": group, "direction": direction, "joint": 3.0 * scale if counts else -9.0, "added": 2.0}
            tables["joint"].append(row | together)
        difference = {"definitional": 6.0, "associative": 2.0}[kind] + (1.0 if seed else -1.0)
        tables["clean"].append(row | {"numerator": scale * difference, "denominator": 1.0})
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


@pytest.fixture(scope="module")
def measured():
    real, other = made_up_tables(1.0), made_up_tables(-3.0)
    return {
        name: pd.concat([other[name].assign(arm="made-up"), real[name].assign(arm="real")], ignore_index=True)
        for name in real
    }


@pytest.fixture(scope="module")
def estimates(measured):
    return corrected_estimates(measured, arm="real", statistics=STATISTICS)


def test_every_claim_has_an_estimate(estimates):
    assert list(estimates) == list(CLAIMS)
    assert all(estimate.defined for estimate in estimates.values())


@pytest.mark.parametrize(
    "claim, value, null",
    [
        # Untrained networks reach from -0.5 to 0.5 around their own middle, of which the central 90 % is 0.45 each way.
        ("first_mlp", 0.5, (-0.45, 0.45)),
        ("last_layer", 0.8, (-0.35, 0.55)),
        ("first_attention", 0.25, (-0.95, 0.0)),
    ],
)
def test_recovery_at_a_claimed_site_is_that_of_its_kind_beside_the_widest_of_all_nulls(estimates, claim, value, null):
    found = estimates[claim]
    assert (found.value, found.low, found.high) == pytest.approx((value, value, value))
    assert (found.null_low, found.null_high) == pytest.approx(null)


def test_a_null_that_is_wider_than_the_untrained_networks_counts(measured):
    sites = measured["sites"].copy()
    sites.loc[(sites["network"] == "base") & (sites["sites"] == FIRST_MLP), "numerator"] = 4 * 0.75
    sites.loc[(sites["network"] == "shuffled donor") & (sites["sites"] == FIRST_MLP), "numerator"] = 4 * -0.875
    found = corrected_estimates(measured | {"sites": sites}, arm="real", statistics=STATISTICS)["first_mlp"]
    assert (found.null_low, found.null_high) == pytest.approx((-0.875, 0.75))
    alone = sites[sites["network"] == "fine-tuned"]
    found = corrected_estimates(measured | {"sites": alone}, arm="real", statistics=STATISTICS)["first_mlp"]
    assert math.isnan(found.null_low) and found.value == pytest.approx(0.5)


def test_contrasts_of_kinds_by_hand(estimates):
    # Associative items: 25 / (4 · 7) of the sites take part; definitional ones: one of four.
    found = estimates["distributed"]
    assert (found.value, found.low, found.high) == pytest.approx((25 / 28 - 1 / 4,) * 3)
    assert found.null_low < 0 < found.null_high < found.value + 1e-9
    # The mean of all is 4, and each item's two seeds are 6 and 2 on average: (6 − 2) / 4.
    found = estimates["clean_difference"]
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1)) and found.null_low < 0 < found.null_high


def test_layers_and_their_sum_by_hand(estimates):
    # MLP 0: (0 + 1) / 2; MLP 1: (3 + 2) / 2; over a denominator of 4.
    found = estimates["layers_differ"]
    assert found.value == pytest.approx(0.5) and found.low <= 0.5 <= found.high
    assert 0 <= found.null_low < found.null_high
    found = estimates["layers_add"]
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5)) and math.isnan(found.null_low)


def test_arms_are_kept_apart_and_one_that_was_not_run_has_no_estimate(measured):
    found = corrected_estimates(measured, arm="made-up", statistics=STATISTICS)
    assert found["first_mlp"].value == pytest.approx(-1.5) and found["layers_add"].value == pytest.approx(-4.5)
    assert found["clean_difference"].value == pytest.approx(1)
    assert corrected_estimates(measured, arm="nowhere", statistics=STATISTICS) == {}


def test_a_denominator_that_may_be_0_leaves_a_claim_undefined(measured):
    joint = measured["joint"]
    joint = joint.assign(added=np.where(joint["item_id"].str.endswith(("0", "2")), -1.0, 1.25))
    found = corrected_estimates(measured | {"joint": joint}, arm="real", statistics=STATISTICS)["layers_add"]
    assert not found.defined and verdict(found, CLAIMS["layers_add"].region) == "undecided"


def test_whole_layers_are_attention_and_mlps_at_all_positions_by_denoising(measured):
    found = whole_layers(measured["effects"])
    assert set(found["component"]) == {"attn_out", "mlp_out"} and set(found["network"]) == {"fine-tuned", "base"}
    assert len(found) == 2 * 2 * len(ITEMS) * len(PLACES) * 2
    assert found[["role", "direction", "metric"]].drop_duplicates().to_numpy().tolist() == [
        ["all", "denoising", "logit_difference"]
    ]


def published_sweep_of(group: str, network: str, shift: float, clean=(3.0, 1.0), broken=()) -> pd.DataFrame:
    """Both items in a network of two blocks; `shift` moves every recovery but the unembedding's."""
    recovered = {
        "associative": {"attn.0": 0.125, "mlp.0": 0.5, "attn.1": 0.0, "mlp.1": 0.25},
        "definitional": {"attn.0": 0.25, "mlp.0": 0.25, "attn.1": 0.25, "mlp.1": 0.25},
    }
    rows = []
    for item, ends in zip(("definitional", "associative"), clean, strict=True):
        for place, value in recovered[item].items():
            part, layer = place.split(".")
            for module in ("c_attn" if part == "attn" else "c_fc", "c_proj"):
                other = 0.0 if module == "c_proj" else 7.0  # in a network they are equal; here they tell which is read
                site, own = f"transformer.h.{layer}.{part}.{module}", value + shift + other
                own = math.nan if item in broken else own
                rows.append({"item": item, "site": site, "recovery": own, "clean": ends})
        rows.append({"item": item, "site": "lm_head", "recovery": 1.0, "clean": ends})
        rows.append({"item": item, "site": "transformer.ln_f", "recovery": 77.0, "clean": ends})
    table = pd.DataFrame(rows).assign(group=group, network=network, direction="denoising")
    return pd.concat([table, table.assign(direction="noising", recovery=99.0)], ignore_index=True)


def test_published_numbers_by_hand():
    sweep = pd.concat(
        [published_sweep_of("fine-tuned", f"seed {n}", shift) for n, shift in enumerate((0.0, 5.0, -0.0625))]
        + [published_sweep_of("untrained", f"untrained {n}", n / 4, clean=(-1.0, 1.0)) for n in range(3)]
        + [published_sweep_of("base", "base", 50.0)]
    )
    found = published_numbers(sweep, layers=2)
    assert list(found) == [name for name in CLAIMS if name != "layers_add"]  # which no published sweep can tell
    # The median of 0.5, 5.5 and 0.4375; untrained 0.5, 0.75 and 1, the central 95 % of which is 0.5125 to 0.9875.
    assert found["first_mlp"] == "0.50; untrained 0.51 to 0.99"
    assert found["first_attention"] == "0.12; untrained 0.14 to 0.61"
    assert found["last_layer"] == "1.00; untrained 1.00 to 1.00"
    assert found["layers_differ"] == "0.25; untrained 0.25 to 0.25"
    # (3 − 1) / 2 where it was trained; (−1 − 1) / 1 where it was not.
    assert found["clean_difference"] == "1.00; untrained -2.00 to -2.00"
    # One module of each causal cut counts. Without a shift: 0.875² / (4 · 0.328125) less 1.
    only = published_numbers(published_sweep_of("fine-tuned", "seed 0", 0.0), layers=2)
    assert only["distributed"] == f"{0.875**2 / (4 * 0.328125) - 1:.2f}"


def test_a_quantity_that_needs_prompts_of_one_length_is_a_shape_error():
    found = published_numbers(published_sweep_of("fine-tuned", "seed 0", 0.0, broken=("definitional",)), layers=2)
    assert found["distributed"] == "shape error" and found["first_mlp"] == "0.50" and found["last_layer"] == "1.00"
    found = published_numbers(published_sweep_of("fine-tuned", "seed 0", 0.0, broken=("associative",)), layers=2)
    assert {name for name, text in found.items() if text == "shape error"} == {
        "first_mlp", "distributed", "first_attention", "layers_differ"
    }  # fmt: skip
    assert found["clean_difference"] == "1.00"


def model_of(name: str, *, revision: str | None = None, plumbing: bool = False) -> Model:
    return Model(name, revision, random_layers=2, random_width=32, random_heads=2, plumbing=plumbing)


@pytest.mark.parametrize(
    "model, scope",
    [
        (model_of("random", plumbing=True), "GPT-2 of 2 blocks × 8, random weights; GPT-2: not tested"),
        (model_of("embedded"), "GPT-2 of 2 blocks × 8, embedded and fine-tuned; GPT-2: not tested"),
        (model_of("a/hub-name", revision="0123456789" * 4), "GPT-2 of 2 blocks × 8, a/hub-name at 0123456, fine-tuned"),
        (model_of("/a/folder"), "GPT-2 of 2 blocks × 8, /a/folder, fine-tuned"),
    ],
)
def test_a_scope_names_model_and_weights(model, scope):
    assert scope_of(model, "GPT-2 of 2 blocks × 8") == scope


def test_the_table_of_claims(estimates, measured):
    made_up = corrected_estimates(measured, arm="made-up", statistics=STATISTICS)
    published = {"first_mlp": "0.12; untrained 0.00 to 0.30"}
    table = claims_table(estimates, made_up, published, model=model_of("embedded"), shape="tiny")
    assert table.columns.tolist() == COLUMNS and len(table) == len(CLAIMS) + 1
    assert table["claim"].tolist() == [*(claim.sentence for claim in CLAIMS.values()), EDITING.sentence]
    rows = table.set_index("claim").to_dict("index")
    first = rows[CLAIMS["first_mlp"].sentence]
    assert first == {
        "published": "56 %", "published protocol here": published["first_mlp"],
        "corrected protocol here": "0.50 [0.50, 0.50]", "null": "-0.45 to 0.45", "made-up arm": "-1.50 [-1.50, -1.50]",
        "verdict": "undecided", "scope": "tiny, embedded and fine-tuned; GPT-2: not tested",
    }  # fmt: skip
    verdicts = {name: rows[claim.sentence]["verdict"] for name, claim in CLAIMS.items()}
    assert verdicts["last_layer"] == "refuted" and verdicts["layers_add"] == "refuted"
    assert verdicts == {name: verdict(estimates[name], claim.region) for name, claim in CLAIMS.items()}
    untested = rows[EDITING.sentence]
    assert untested["verdict"] == "not tested" and untested["corrected protocol here"] == untested["made-up arm"] == "–"
    assert rows[CLAIMS["layers_add"].sentence]["published protocol here"] == "–"


def test_random_weights_get_no_verdict_and_an_arm_that_was_not_run_no_number(estimates):
    table = claims_table(estimates, {}, {}, model=model_of("random", plumbing=True), shape="tiny")
    assert set(table["verdict"]) == {"not tested"} and set(table["made-up arm"]) == {"–"}
    assert set(table["scope"]) == {"tiny, random weights; GPT-2: not tested"}
    assert table["corrected protocol here"].iloc[0] == "0.50 [0.50, 0.50]"

"""Quantities: the numbers behind the claims, from tables made by hand, by both protocols."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from helpers.claims import CLAIMS, FIRST_ATTENTION, FIRST_MLP, LAST_ATTENTION, LAST_BLOCK, verdict
from helpers.quantities import corrected_estimates, published_numbers, seed_ranges, whole_layers

STATISTICS = {"resamples": 200, "confidence": 0.9, "seed": 0}
MEASURED = [name for name, claim in CLAIMS.items() if claim.region]
ITEMS = [("definitional", f"d{n}") for n in range(4)] + [("associative", f"a{n}") for n in range(4)]
# Recovery of every claimed site by network: the second kind is the one that the claim is not about.
RECOVERED = {
    FIRST_MLP: {"associative": (0.5, 0.1, -0.2, 0.0), "definitional": (7.0, 8.0, -8.0, 9.0)},
    LAST_BLOCK: {"definitional": (0.8, -0.3, 0.3, 0.1), "associative": (7.0, 8.0, -8.0, 9.0)},
    FIRST_ATTENTION: {"associative": (0.25, 0.0, 0.0, -0.5), "definitional": (7.0, 8.0, -8.0, 9.0)},
    LAST_ATTENTION: {"associative": (-0.25, 0.0, 0.0, 0.5), "definitional": (7.0, 8.0, -8.0, 9.0)},
}
PLACES = [("attn_out", 0), ("attn_out", 1), ("mlp_out", 0), ("mlp_out", 1)]
EVERYWHERE = {"definitional": (0.0, 0.0, 0.0, 3.0), "associative": (1.0, -1.0, 1.0, 2.0)}
IN_BASE = {"definitional": (0.0, 0.0, 5.0, 0.0), "associative": (5.0, 0.0, 5.0, 0.0)}
CLEAN = {"definitional": 6.0, "associative": 2.0}
CLEAN_IN_BASE = {"definitional": 9.0, "associative": 1.0}


def made_up_tables(scale: float) -> dict[str, pd.DataFrame]:
    """The tables of helpers.clap, all items of a kind being alike, in two seeds; `scale` moves every number of an arm.

    Nulls were run for the first seed alone. Beside what the claims are about stand rows that they are not about.
    """
    tables = {"sites": [], "effects": [], "joint": [], "clean": []}
    for (kind, item), seed in itertools.product(ITEMS, (0, 1)):
        row = {"pair": f"{item}/r", "item_id": item, "kind": kind, "seed": seed, "denominator": 4.0}
        for site, recovered in RECOVERED.items():
            tuned, base, shuffled, untrained = (4 * scale * share for share in recovered[kind])
            tables["sites"].append(row | {"sites": site, "network": "fine-tuned", "numerator": tuned})
            for name, value in (("base", base), ("shuffled donor", shuffled)) if seed == 0 else ():
                tables["sites"].append(row | {"sites": site, "network": name, "numerator": value})
            for draw in range(11) if seed == 0 else ():
                drawn = untrained + 4 * scale * (draw - 5) / 10
                own = {"sites": site, "network": "untrained", "draw": draw, "numerator": drawn}
                tables["sites"].append(row | own)
        values = zip(PLACES, EVERYWHERE[kind], IN_BASE[kind], strict=True)
        for (component, layer), value, in_base in values:
            place = {"component": component, "layer": layer, "role": "all", "network": "fine-tuned"}
            place |= {"direction": "denoising", "metric": "logit_difference", "numerator": scale * value}
            tables["effects"].append(row | place)
            null = {"network": "base", "numerator": scale * in_base, "denominator": 1.0}
            others = [{"role": "last"}, {"component": "head_out"}, {"direction": "noising"}, {"metric": "kl"}]
            others = [other | {"numerator": 100.0 + layer * len(item)} for other in others]
            for other in [*others, null] if seed == 0 else others:
                tables["effects"].append(row | place | other)
            if kind == "definitional" and seed == 0:  # of this null there are no items of the other kind
                tables["effects"].append(row | place | null | {"network": "shuffled donor", "numerator": 999.0 * layer})
        for group, direction in itertools.product(("feed-forward", "attention"), ("denoising", "noising")):
            counts = (group, direction) == ("feed-forward", "denoising")
            together = {"group": group, "direction": direction, "joint": 3.0 * scale if counts else -9.0, "added": 2.0}
            tables["joint"].append(row | together)
        clean = row | {"denominator": 1.0, "network": "fine-tuned"}
        tables["clean"].append(clean | {"numerator": scale * (CLEAN[kind] + (1.0 if seed else -1.0))})
        if seed == 0:
            tables["clean"].append(clean | {"network": "base", "numerator": scale * CLEAN_IN_BASE[kind]})
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


@pytest.fixture(scope="module")
def measured():
    real, other = made_up_tables(1.0), made_up_tables(-3.0)
    return {
        name: pd.concat([other[name].assign(arm="made-up"), real[name].assign(arm="real")], ignore_index=True)
        for name in real
    }


def estimates_of(measured, **tables):
    return corrected_estimates(measured | tables, arm="real", statistics=STATISTICS)


@pytest.fixture(scope="module")
def estimates(measured):
    return estimates_of(measured)


def tuned_alone(measured) -> dict[str, pd.DataFrame]:
    """The tables without any other network."""
    return {name: t[t["network"] == "fine-tuned"] if "network" in t else t for name, t in measured.items()}


def test_every_claim_that_has_a_region_has_an_estimate(estimates):
    assert list(estimates) == MEASURED
    assert all(estimate.defined for estimate in estimates.values())


@pytest.mark.parametrize(
    "claim, value, null, control",
    [
        # Untrained networks reach from -0.5 to 0.5 around their own middle, of which the central 90 % is 0.45 each way.
        ("first_mlp", 0.5, (-0.45, 0.45), 0.5),
        ("last_block", 0.8, (-0.35, 0.55), 0.75),
        ("first_attention", 0.25, (-0.95, 0.0), 0.5),
        ("last_attention", -0.25, (0.0, 0.95), 0.5),
    ],
)
def test_recovery_at_a_claimed_site_is_that_of_its_kind_beside_the_widest_of_all_nulls(
    estimates, claim, value, null, control
):
    found = estimates[claim]
    assert (found.value, found.low, found.high) == pytest.approx((value, value, value))
    assert (found.null_low, found.null_high) == pytest.approx(null)
    # The layer that recovers most has 2 of 4 for associative items, 3 of 4 for definitional ones; base 5 of 4.
    assert found.control == pytest.approx(control)


def test_a_null_that_is_wider_than_the_untrained_networks_counts(measured):
    sites = measured["sites"].copy()
    sites.loc[(sites["network"] == "base") & (sites["sites"] == FIRST_MLP), "numerator"] = 4 * 0.75
    sites.loc[(sites["network"] == "shuffled donor") & (sites["sites"] == FIRST_MLP), "numerator"] = 4 * -0.875
    found = estimates_of(measured, sites=sites)["first_mlp"]
    assert (found.null_low, found.null_high) == pytest.approx((-0.875, 0.75))
    found = estimates_of(measured, sites=sites[sites["network"] == "fine-tuned"])["first_mlp"]
    assert math.isnan(found.null_low) and found.value == pytest.approx(0.5)


def test_contrasts_of_kinds_by_hand(estimates):
    # Associative items: 25 / (4 · 7) of the sites take part; definitional ones: one of four; over the mean of all.
    found = estimates["distributed"]
    taking = 25 / 28, 1 / 4
    assert (found.value, found.low, found.high) == pytest.approx(((taking[0] - taking[1]) / (sum(taking) / 2),) * 3)
    # The mean of all is 4, and each item's two seeds are 6 and 2 on average: (6 − 2) / 4.
    found = estimates["clean_difference"]
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1)) and found.null_low < 0


def test_layers_and_their_sum_by_hand(estimates):
    # MLP 0: (0 + 1) / 2; MLP 1: (3 + 2) / 2; over a denominator of 4.
    found = estimates["layers_differ"]
    assert found.value == pytest.approx(0.5) and found.low <= 0.5 <= found.high
    found = estimates["layers_add"]
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5)) and math.isnan(found.null_low)


# In the base model, alike for all items of a kind: participation 1/4 and 1/2, over their own mean; a range of 5, over
# the fine-tuned model's 4; clean 9 and 1, over the fine-tuned model's mean of 4.
OTHERS = {"distributed": 0.25 / 0.375, "layers_differ": 5 / 4, "clean_difference": (9 - 1) / 4}


def mirrored(measured) -> dict[str, pd.DataFrame]:
    """The tables, with the base model's two kinds exchanged: its contrasts have the other sign."""
    other = {"definitional": "associative", "associative": "definitional"}
    found = dict(measured)
    for name in ("effects", "clean"):
        table = measured[name].copy()
        base = table["network"] == "base"
        table.loc[base, "kind"] = table.loc[base, "kind"].map(other)
        found[name] = table
    return found


@pytest.mark.parametrize("claim", OTHERS)
def test_the_other_networks_intervals_widen_what_exchange_at_random_gives(measured, estimates, claim):
    alone, found = (
        corrected_estimates(tuned_alone(measured), arm="real", statistics=STATISTICS)[claim],
        estimates[claim],
    )
    assert (found.value, found.low, found.high) == (alone.value, alone.low, alone.high)
    # The last null's items are of one kind only, so that it has no contrast, whatever its numbers.
    low, high = min(alone.null_low, OTHERS[claim]), max(alone.null_high, OTHERS[claim])
    assert (found.null_low, found.null_high) == pytest.approx((low, high))
    if claim != "layers_differ":
        found = estimates_of(mirrored(measured))[claim]
        low, high = min(alone.null_low, -OTHERS[claim]), max(alone.null_high, -OTHERS[claim])
        assert (found.null_low, found.null_high) == pytest.approx((low, high))


def test_the_widening_can_be_seen(measured):
    """Else the test above could not fail: without the other networks these nulls are narrower."""
    alone = corrected_estimates(tuned_alone(measured), arm="real", statistics=STATISTICS)
    assert alone["layers_differ"].null_high < 1.2 and alone["clean_difference"].null_high < 1.9
    mirror = estimates_of(mirrored(measured))
    assert alone["clean_difference"].null_low > mirror["clean_difference"].null_low
    # In the mirror a tenth of exchanged kinds is as far out as this; the middle half is not.
    narrow = {**STATISTICS, "confidence": 0.2}
    alone = corrected_estimates(tuned_alone(measured), arm="real", statistics=narrow)["distributed"]
    found = corrected_estimates(measured, arm="real", statistics=narrow)["distributed"]
    assert alone.null_high < found.null_high == pytest.approx(OTHERS["distributed"])


def test_a_range_is_in_the_unit_of_the_seeds_that_the_null_was_run_in(measured):
    effects = measured["effects"].copy()
    tuned = (effects["network"] == "fine-tuned") & (effects["seed"] == 1)
    effects.loc[tuned, "denominator"] = 2.0
    effects.loc[effects["network"] != "fine-tuned", "seed"] = 1
    found = estimates_of(measured, effects=effects)["layers_differ"]
    assert found.value == pytest.approx(2 / 3) and found.null_high == pytest.approx(5 / 2)


def test_arms_are_kept_apart_and_one_that_was_not_run_has_no_estimate(measured):
    found = corrected_estimates(measured, arm="made-up", statistics=STATISTICS)
    assert found["first_mlp"].value == pytest.approx(-1.5) and found["layers_add"].value == pytest.approx(-4.5)
    assert found["clean_difference"].value == pytest.approx(1)
    assert corrected_estimates(measured, arm="nowhere", statistics=STATISTICS) == {}


def test_a_denominator_that_may_be_0_leaves_a_claim_undefined(measured):
    joint = measured["joint"]
    joint = joint.assign(added=np.where(joint["item_id"].str.endswith(("0", "2")), -1.0, 1.25))
    found = estimates_of(measured, joint=joint)["layers_add"]
    assert not found.defined and verdict(found, CLAIMS["layers_add"].region) == "undecided"


def test_whole_layers_are_attention_and_mlps_at_all_positions_by_denoising(measured):
    found = whole_layers(measured["effects"])
    assert set(found["component"]) == {"attn_out", "mlp_out"}
    assert found["network"].value_counts().to_dict() == {
        "fine-tuned": 2 * 2 * len(ITEMS) * len(PLACES), "base": 2 * len(ITEMS) * len(PLACES),
        "shuffled donor": len(ITEMS) * len(PLACES),
    }  # fmt: skip
    assert found[["role", "direction", "metric"]].drop_duplicates().to_numpy().tolist() == [
        ["all", "denoising", "logit_difference"]
    ]


def test_ranges_over_seeds_are_of_the_arms_single_seeds(measured):
    sites = measured["sites"].copy()
    sites.loc[(sites["sites"] == FIRST_MLP) & (sites["seed"] == 1) & (sites["arm"] == "real"), "numerator"] = 1.0
    found = seed_ranges(measured | {"sites": sites}, arm="real", statistics=STATISTICS)
    assert list(found) == MEASURED
    assert found["first_mlp"] == "0.25 to 0.50" and found["last_block"] == "0.80 to 0.80"
    # Clean logit differences are 5 and 1 in the first seed, 7 and 3 in the other, each over its own mean.
    assert found["clean_difference"] == f"{4 / 5:.2f} to {4 / 3:.2f}"
    assert seed_ranges(measured, arm="nowhere", statistics=STATISTICS) == {}


def test_one_seed_has_no_range(measured):
    first = {name: table[table["seed"] == 0] for name, table in measured.items()}
    assert seed_ranges(first, arm="real", statistics=STATISTICS) == {}


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
        unembedding = 1.0 if item == "definitional" else 55.0
        rows.append({"item": item, "site": "lm_head", "recovery": unembedding, "clean": ends})
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
    # What no published sweep can tell: two sites together, and what is not measured at all.
    assert set(CLAIMS) - set(found) == {"last_block", "layers_add", "editing"} and set(found) <= set(CLAIMS)
    # The median of 0.5, 5.5 and 0.4375; untrained 0.5, 0.75 and 1, the central 95 % of which is 0.5125 to 0.9875.
    assert found["first_mlp"] == "0.50; untrained 0.51 to 0.99"
    assert found["first_attention"] == "0.12; untrained 0.14 to 0.61"
    assert found["last_attention"] == "0.00; untrained 0.01 to 0.49"
    assert found["final_output"] == "1.00; untrained 1.00 to 1.00"
    assert found["layers_differ"] == "0.25; untrained 0.25 to 0.25"
    # (3 − 1) / 2 where it was trained; (−1 − 1) / 1 where it was not.
    assert found["clean_difference"] == "1.00; untrained -2.00 to -2.00"
    # One module of each causal cut counts. Without a shift: 0.875² / (4 · 0.328125), and 1, over the mean of the two.
    only = published_numbers(published_sweep_of("fine-tuned", "seed 0", 0.0), layers=2)
    taking = 0.875**2 / (4 * 0.328125)
    assert only["distributed"] == f"{(taking - 1) / ((taking + 1) / 2):.2f}" != f"{taking - 1:.2f}"


def test_a_quantity_that_needs_prompts_of_one_length_is_a_shape_error():
    found = published_numbers(published_sweep_of("fine-tuned", "seed 0", 0.0, broken=("definitional",)), layers=2)
    assert found["distributed"] == "shape error" and found["first_mlp"] == "0.50" and found["final_output"] == "1.00"
    found = published_numbers(published_sweep_of("fine-tuned", "seed 0", 0.0, broken=("associative",)), layers=2)
    assert {name for name, text in found.items() if text == "shape error"} == {
        "first_mlp", "distributed", "first_attention", "last_attention", "layers_differ"
    }  # fmt: skip
    assert found["clean_difference"] == "1.00"

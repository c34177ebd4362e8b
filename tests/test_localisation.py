"""Indices of concentration by hand and by their invariances, signatures at their edges, contrasts that are known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.localisation import (
    ALIKE,
    INDICES,
    LocalisationError,
    Signature,
    centre,
    gini,
    index_contrasts,
    localisation_indices,
    participation,
    signature,
    top_share,
)

SHARES = {"participation": participation, "gini": gini, "top_share": top_share}
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
STATISTICS = {"resamples": 200, "confidence": 0.95, "seed": 0}


def of(index, *values) -> float:
    return float(index(np.array([values], dtype=float))[0])


def test_participation_by_hand():
    assert of(participation, 1, 2, 3) == pytest.approx(36 / (3 * 14))
    assert of(participation, 3, 4) == pytest.approx(49 / 50)


def test_gini_by_hand():
    # Differences of all ordered pairs: 2 (1 + 2 + 1) = 8; over 2 · 3 · 6.
    assert of(gini, 1, 3, 2) == pytest.approx(8 / 36)
    assert of(gini, 0, 4) == pytest.approx(8 / 16)


def test_top_share_and_centre_by_hand():
    assert of(top_share, 1, 5, 2) == pytest.approx(5 / 8)
    assert of(lambda a: centre(a, np.array([0.0, 1.0, 4.0])), 1, 5, 2) == pytest.approx(13 / 8)


@pytest.mark.parametrize("sites", [1, 2, 7])
def test_sites_that_all_matter_alike_and_one_that_holds_everything_are_the_extremes(sites):
    alike, one = [0.3] * sites, [0.0] * (sites - 1) + [0.3]
    assert [of(index, *alike) for index in SHARES.values()] == pytest.approx([1, 0, 1 / sites])
    assert [of(index, *one) for index in SHARES.values()] == pytest.approx([1 / sites, 1 - 1 / sites, 1])
    layers = np.arange(sites, dtype=float)
    assert of(lambda a: centre(a, layers), *alike) == pytest.approx((sites - 1) / 2)
    assert of(lambda a: centre(a, layers), *one) == pytest.approx(sites - 1)


@SETTINGS
@given(
    st.lists(st.floats(0, 10).map(lambda x: round(x, 3)), min_size=1, max_size=9).filter(lambda a: sum(a) > 0),
    st.floats(0.01, 100),
    st.randoms(use_true_random=False),
)
def test_indices_keep_their_bounds_and_know_neither_scale_nor_order(values, scale, random):
    count, shuffled = len(values), list(values)
    random.shuffle(shuffled)
    for name, index in SHARES.items():
        found = of(index, *values)
        low, high = (0, 1 - 1 / count) if name == "gini" else (1 / count, 1)
        assert low - 1e-9 <= found <= high + 1e-9
        assert of(index, *shuffled) == pytest.approx(found, abs=1e-9)
        assert of(index, *(scale * value for value in values)) == pytest.approx(found, abs=1e-9)
    slow = sum(abs(a - b) for a in values for b in values) / (2 * count * sum(values))
    assert of(gini, *values) == pytest.approx(slow, abs=1e-9)
    layers = np.linspace(0, 5, count)
    assert 0 <= of(lambda a: centre(a, layers), *values) <= 5 + 1e-9


def test_rows_of_several_items_are_each_their_own():
    table = np.array([[1.0, 3, 2], [0, 0, 0], [2, 2, 2]])
    for index in SHARES.values():
        found = index(table)
        assert math.isnan(found[1]) and found[[0, 2]].tolist() == [of(index, 1, 3, 2), of(index, 2, 2, 2)]


def effects_of(item: str, *values, **described) -> pd.DataFrame:
    """Effects of the MLPs, then of attention, of two layers."""
    sites = [("mlp_out", 0), ("mlp_out", 1), ("attn_out", 0), ("attn_out", 1)]
    table = pd.DataFrame(sites, columns=["component", "layer"]).assign(numerator=values, item_id=item)
    return table.assign(**{"kind": "definitional", **described})


def indices_of(*tables, by=("item_id", "kind")):
    effects = pd.concat(tables, ignore_index=True).sample(frac=1, random_state=0)
    return localisation_indices(effects, by=list(by), sites=["component", "layer"])


def test_the_size_of_an_effect_counts_and_not_its_sign():
    found = indices_of(effects_of("x", 1.0, -3.0, 0.0, 2.0), effects_of("y", -1.0, -1.0, 1.0, 1.0, kind="associative"))
    assert found.columns.tolist() == ["item_id", "kind", *INDICES]
    assert found[["item_id", "kind"]].to_numpy().tolist() == [["x", "definitional"], ["y", "associative"]]
    # Of x: 36 / (4 · 14); differences 2 (2 + 1 + 1 + 3 + 1 + 2) over 2 · 4 · 6; 3 / 6; (3 + 2) / 6.
    assert found.loc[0, list(INDICES)].tolist() == pytest.approx([36 / 56, 20 / 48, 0.5, 5 / 6])
    assert found.loc[1, list(INDICES)].tolist() == pytest.approx([1, 0, 0.25, 0.5])


def test_rows_of_one_site_are_averaged_with_their_signs_before_their_size_is_taken():
    found = indices_of(effects_of("x", 2.0, -3.0, 1.0, 2.0), effects_of("x", 0.0, -3.0, -1.0, 2.0))
    assert found.loc[0, "participation"] == pytest.approx(36 / 56)


def test_an_item_none_of_whose_patches_does_anything_has_no_index():
    found = indices_of(effects_of("x", 0.0, 0.0, 0.0, 0.0), effects_of("y", 1.0, 1.0, 1.0, 1.0)).set_index("item_id")
    assert found.loc["x", list(INDICES)].isna().all() and found.loc["y", "participation"] == 1


def test_items_over_other_sites_are_not_compared():
    short = effects_of("short", 1.0, 1.0, 1.0, 1.0).iloc[:3]
    with pytest.raises(LocalisationError, match=r"same 4 sites, and one is missing.*short.*attn_out.*1"):
        indices_of(effects_of("x", 1.0, 1.0, 1.0, 1.0), short)


@pytest.mark.parametrize(
    "low, high, name",
    [
        (0.0, 0.0, "nothing"),
        (-0.0999, 0.0999, "nothing"),  # each is next to nothing, though they are further apart than ALIKE
        (0.0, ALIKE, "peaked"),
        (-ALIKE, -0.05, "uniform"),
        (0.5, 0.5999, "uniform"),
        (1.0, 1.0, "uniform"),
        (0.5, 0.625, "peaked"),
        (-0.2, 0.05, "peaked"),
    ],
)
def test_the_name_of_a_signature_at_its_edges(low, high, name):
    assert Signature(low, (low + high) / 2, high, 12).name == name


def test_a_signature_in_words():
    ends = {"nothing": (-0.02, 0, 0.01), "uniform": (0.96, 1, 1.01), "peaked": (-0.1, 0, 0.7)}
    said = {name: " ".join(Signature(*values, 12).explained("MLP output").split()) for name, values in ends.items()}
    start = "over 12 sites, MLP output recovers between"
    assert said["nothing"] == f"{start} -0.02 and 0.01: no site does anything, so there is nothing to localise."
    assert said["uniform"].startswith(f"{start} 0.96 and 1.01: *uniform recovery everywhere*, the signature of a patch")
    assert said["uniform"].endswith("as it passes everywhere, and localises nothing.")
    assert said["peaked"] == f"{start} -0.10 and 0.70 (median 0.00): sites differ, so it can localise."


def test_a_signature_is_that_of_the_recoveries():
    assert signature(pd.Series([0.5, -0.25, 2.0, 1.0])) == Signature(-0.25, 0.75, 2.0, 4)
    for broken in ([], [0.1, np.nan], [np.inf]):
        with pytest.raises(LocalisationError, match="needs recoveries that are numbers"):
            signature(pd.Series(broken, dtype=float))


def effects_by_kind(values: dict[str, tuple], network: str, *, arm="real", seed=0, items=6) -> pd.DataFrame:
    """Items that take turns by kind, each of a size of its own, all of a kind alike in shape."""
    tables = []
    for number in range(items):
        kind = ("definitional", "associative")[number % 2]
        own = tuple((1.0 + number) * value for value in values[kind])
        tables.append(effects_of(f"i{number}", *own, kind=kind, arm=arm, seed=seed, network=network))
    return pd.concat(tables)


# Definitional items hold everything at one site of layer 1, associative ones alike at all four.
TUNED = {"definitional": (0.0, 1.0, 0.0, 0.0), "associative": (1.0, -1.0, 1.0, 1.0)}


def contrast_effects() -> pd.DataFrame:
    """The fine-tuned model in two arms and seeds, with an item that nothing does anything to."""
    tables = [
        effects_by_kind(TUNED, "fine-tuned", arm=arm, seed=seed) for arm in ("made-up", "real") for seed in (0, 1)
    ]
    nothing = {"kind": "associative", "arm": "real", "seed": 0, "network": "fine-tuned"}
    return pd.concat([*tables, effects_of("idle", 0.0, 0.0, 0.0, 0.0, **nothing)], ignore_index=True)


def contrasts_of(*tables, kinds=("definitional", "associative"), confidence=0.95) -> pd.DataFrame:
    effects = pd.concat(tables, ignore_index=True)
    return index_contrasts(effects, kinds=kinds, statistics=STATISTICS | {"confidence": confidence})


def test_index_contrasts_by_hand():
    found = contrasts_of(contrast_effects())
    assert list(found["index"].unique()) == list(INDICES.values())  # in the order in which they are explained
    assert list(found["arm"]) == ["made-up", "real"] * 4 and "network" not in found
    own = {"participation ratio": (1 / 4, 1), "Gini index": (3 / 4, 0), "share in the top site": (1, 1 / 4)}
    own["layer centre of mass"] = 1, 0.5
    for row in found.to_dict("records"):
        # All items of a kind are alike, so the interval has no width; the idle item is no item.
        first, second = own[row["index"]]
        assert (row["definitional"], row["associative"]) == pytest.approx((first, second))
        relative = (first - second) / ((first + second) / 2)
        assert [row[name] for name in ("difference", "low", "high")] == pytest.approx([relative] * 3)
        assert row["items"] == 6
        # Kinds exchanged at random give either sign, and at most what was found.
        assert -abs(relative) - 1e-9 <= row["null_low"] < 0 < row["null_high"] <= abs(relative) + 1e-9
    other = contrasts_of(contrast_effects(), kinds=("associative", "definitional"))
    np.testing.assert_allclose(other["difference"], -found["difference"])


def test_index_contrasts_average_seeds_of_an_item_first():
    effects = contrast_effects()
    # In seed 1 the definitional items are at layer 0, so that each has its centre half-way.
    moved = (effects["seed"] == 1) & (effects["kind"] == "definitional")
    effects.loc[moved, "layer"] = 1 - effects.loc[moved, "layer"]
    found = contrasts_of(effects)
    centres = found[found["index"] == INDICES["centre"]]
    assert centres["difference"].tolist() == pytest.approx([0, 0]) and centres["items"].tolist() == [6, 6]
    assert centres["high"].tolist() == pytest.approx([0, 0])


def test_nulls_reach_to_the_ends_of_the_other_networks_each_over_its_own_mean():
    # Participation 1/2 and 1/4 in the base model; 1/4 and 1/2 in the untrained one: 2/3 of their mean, either way.
    one, two = (0.0, 5.0, 0.0, 0.0), (5.0, 0.0, 5.0, 0.0)
    base = effects_by_kind({"definitional": two, "associative": one}, "base")
    untrained = effects_by_kind({"definitional": one, "associative": two}, "untrained")

    def participation_in(arm: str, *tables) -> pd.Series:
        found = contrasts_of(contrast_effects(), *tables, confidence=0.2).set_index(["index", "arm"])
        assert len(found) == 2 * len(INDICES) and set(found.index.get_level_values("arm")) == {"made-up", "real"}
        return found.loc[(INDICES["participation"], arm)]

    parts = ["difference", "low", "high"]
    alone = participation_in("real")
    assert -2 / 3 < alone["null_low"] < alone["null_high"] < 2 / 3  # so that widening can be seen
    above = participation_in("real", base)
    assert (above["null_low"], above["null_high"]) == (alone["null_low"], pytest.approx(2 / 3))
    both = participation_in("real", base, untrained)
    assert (both["null_low"], both["null_high"]) == pytest.approx((-2 / 3, 2 / 3))
    assert both[parts].tolist() == alone[parts].tolist()
    # Of the other arm nothing else was run.
    pd.testing.assert_series_equal(participation_in("made-up", base, untrained), participation_in("made-up"))


def test_a_network_without_items_of_both_kinds_is_no_null():
    values = {"definitional": (9.0, 0.0, 0.0, 0.0), "associative": (9.0, 9.0, 9.0, 9.0)}
    strangers = effects_by_kind(values, "shuffled donor")
    strangers = strangers[strangers["kind"] == "definitional"]
    pd.testing.assert_frame_equal(contrasts_of(contrast_effects(), strangers), contrasts_of(contrast_effects()))

"""All that is measured of one fine-tuned model: which pairs, which networks, which units, and nothing averaged."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import tiny_gpt2
from oracle import oracle_sets, patched_logits, record
from words import word_tokenizer

from helpers.claims import FIRST_MLP, claimed_sites
from helpers.clap import (
    KNOCKED_OUT,
    METRICS,
    gathered,
    measure_change,
    measure_heads,
    measure_nulls,
    measure_tuned,
)
from helpers.config import Items, Patching
from helpers.experiment import EFFECTS, measure_effects, select_pairs, strangers_of
from helpers.models import untrained_twin

LAYERS, HEADS = 2, 2
DIRECTIONS = ("denoising", "noising")
SETTINGS = Patching("STR", "logit_difference", ("mlp_out",), DIRECTIONS, window=1, untrained_networks=3, row_budget=64)
RULE = Items(0.2, None, wording=0, group="seen", max_pairs_per_kind=None, seed=0)
DESCRIBED = ["item_id", "donor_id", "kind", "relation", "arm", "network"]
NAMED = {
    name: [(site.component, site.layer, site.position, site.head) for site in sites]
    for name, sites in claimed_sites(LAYERS).items()
}


@pytest.fixture(scope="module")
def items():
    """Six confirmatory items of two kinds and arms, four exploratory ones; answers of one token and of two."""
    rows = []
    for number in range(10):
        rows.append(
            {
                "item_id": f"i{number}",
                "kind": ("definitional", "associative")[number % 2],
                "relation": "r",
                "arm": "real" if number < 4 else "made-up",
                "phase": "confirmatory" if number < 6 else "exploratory",
                "subject": f"w{11 + number}",
                "answer": f"w{40 + number}" + " w9" * (number % 3 == 0),
                "wording_id": "r-seen-0",
                "prompt": f"w1 w{11 + number} {'w2' if number < 6 else 'w4'}",  # where other heads are the strongest
                "subject_start": 3,
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def networks():
    """The fine-tuned and the base model."""
    return [tiny_gpt2(seed, layers=LAYERS, width=16, heads=HEADS) for seed in (0, 1)]


@pytest.fixture(scope="module")
def selection(networks, items):
    return select_pairs(networks[0], word_tokenizer(), items, settings=RULE)


@pytest.fixture(scope="module")
def tuned(networks, selection):
    return measure_tuned(networks[0], selection, settings=SETTINGS, all_metrics=True)


@pytest.fixture(scope="module")
def nulls(networks, selection):
    return measure_nulls(*networks, selection, settings=SETTINGS, seed=5)


@torch.no_grad()
def ends(model, pair) -> dict[str, float]:
    """The logit differences of both runs."""
    found = {}
    for run in ("clean", "corrupted"):
        logits = patched_logits(model, getattr(pair, run), {}, [])
        found[run] = float(logits[pair.answer[0]] - logits[pair.foil[0]])
    return found


def at_claimed_sites(model, pairs, given=None) -> dict[tuple[str, str], float]:
    """What denoising restores by pair and claimed site, in logits; `given` is the prompt patched from, by pair."""
    value = None if given is None else (lambda pair, prompt, noise: record(model, given[pair.pair_id]))
    corrupted = {pair.pair_id: ends(model, pair)["corrupted"] for pair in pairs}
    rows = oracle_sets(model, pairs, NAMED, direction="denoising", value=value)
    return {(r["pair"], r["sites"]): r["metrics"]["logit_difference"] - corrupted[r["pair"]] for r in rows}


def asked_in(name: str, selection) -> list:
    """The clean run is measured of all that was asked, the rest of what entered."""
    return selection.asked if name == "clean" else selection.pairs


def numerators(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    assert not table.duplicated(["pair", "sites"]).any()
    return table.set_index(["pair", "sites"])["numerator"].to_dict()


def assert_described(table: pd.DataFrame, pairs, selection) -> None:
    """Every row says whose it is, and of all `pairs` there are rows."""
    assert set(table["pair"]) == {pair.pair_id for pair in pairs}
    known = selection.described.set_index("pair")
    for name in ("item_id", "donor_id", "kind", "relation", "arm"):
        assert (table[name].to_numpy() == known.loc[table["pair"], name].to_numpy()).all()


def test_all_tables_of_the_tuned_model_say_whose_they_are(tuned, selection):
    assert list(tuned) == ["effects", "sites", "joint", "direct", "distances", "clean"]
    for name, table in tuned.items():
        assert_described(table, asked_in(name, selection), selection)
        assert set(table["network"]) == {"fine-tuned"}
    assert tuned["effects"].columns.tolist() == [*EFFECTS, *DESCRIBED]


def test_effects_of_the_tuned_model_are_every_patch_of_every_pair(tuned, networks, selection):
    effects, model = tuned["effects"], networks[0]
    plain = measure_effects(model, selection.pairs, settings=SETTINGS, directions=DIRECTIONS)
    own = effects[effects["metric"] == "logit_difference"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own[EFFECTS], plain)
    # Three positions of the MLP, the MLP and two heads whole, in every layer.
    assert len(own) == len(selection.pairs) * LAYERS * (3 + 1 + HEADS) * 2
    assert set(effects["metric"]) == set(METRICS)
    others = effects[effects["metric"] != "logit_difference"]
    assert set(others["direction"]) == {"denoising"} and len(others) == len(own) // 2 * (len(METRICS) - 1)
    kl = measure_effects(model, selection.pairs, settings=SETTINGS, directions=("denoising",), metrics=METRICS[1:2])
    found = others[others["metric"] == "kl_divergence"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[EFFECTS], kl)


def test_other_metrics_are_measured_only_where_they_are_asked_for(networks, selection):
    few = replace(selection, pairs=selection.pairs[:1])
    one = replace(SETTINGS, directions=("noising",))
    found = measure_tuned(networks[0], few, settings=one, all_metrics=False)
    assert set(found["effects"]["metric"]) == {"logit_difference"} and set(found["effects"]["direction"]) == {"noising"}
    assert set(found["joint"]["direction"]) == {"noising"} and set(found["sites"]["direction"]) == {"denoising"}


def test_claimed_sites_of_the_tuned_model_equal_plain_hooks(tuned, networks, selection):
    model, pairs, table = networks[0], selection.pairs, tuned["sites"]
    assert numerators(table) == pytest.approx(at_claimed_sites(model, pairs), abs=5e-5)
    whole = {pair.pair_id: ends(model, pair)["clean"] - ends(model, pair)["corrupted"] for pair in pairs}
    assert table["denominator"].tolist() == pytest.approx([whole[name] for name in table["pair"]], abs=1e-5)
    assert set(table["direction"]) == {"denoising"}


def test_all_layers_are_patched_together_beside_each_alone(tuned, selection):
    joint, effects = tuned["joint"], tuned["effects"]
    assert len(joint) == len(selection.pairs) * 3 * len(DIRECTIONS)
    counts = {group: set(rows["sites"]) for group, rows in joint.groupby("group")}
    assert counts == {"feed-forward": {LAYERS}, "attention": {LAYERS}, "both": {2 * LAYERS}}
    own = effects[(effects["metric"] == "logit_difference") & (effects["role"] == "all")]
    alone = own[own["component"] == "mlp_out"].groupby(["pair", "direction"])["numerator"].sum()
    found = joint[joint["group"] == "feed-forward"].set_index(["pair", "direction"])["added"]
    assert found.to_dict() == pytest.approx(alone.to_dict(), abs=5e-5)
    added = joint.pivot(index=["pair", "direction"], columns="group", values="added")
    assert added["both"].to_dict() == pytest.approx((added["attention"] + added["feed-forward"]).to_dict(), abs=5e-5)


def test_both_together_are_attention_and_mlps_of_every_layer(tuned, networks, selection):
    every = {"both": [(name, layer, "all", None) for layer in range(LAYERS) for name in ("attn_out", "mlp_out")]}
    rows = oracle_sets(networks[0], selection.pairs, every, direction="denoising")
    corrupted = {pair.pair_id: ends(networks[0], pair)["corrupted"] for pair in selection.pairs}
    expected = {row["pair"]: row["metrics"]["logit_difference"] - corrupted[row["pair"]] for row in rows}
    found = tuned["joint"].query("group == 'both' and direction == 'denoising'").set_index("pair")["joint"]
    assert found.to_dict() == pytest.approx(expected, abs=5e-5)


def test_streams_and_the_clean_run_have_a_row_of_every_part_and_place(tuned, networks, selection):
    pairs, clean = selection.pairs, tuned["clean"]
    assert len(tuned["direct"]) == len(pairs) * (2 + LAYERS * (2 + HEADS))
    assert len(tuned["distances"]) == (LAYERS + 1) * sum(pair.positions for pair in pairs)
    found = clean.set_index("pair")["numerator"].to_dict()
    assert found == pytest.approx({pair.pair_id: ends(networks[0], pair)["clean"] for pair in pairs}, abs=1e-5)
    assert set(clean["denominator"]) == {1.0} and len(clean) == len(pairs)
    parts = tuned["direct"][tuned["direct"]["component"] != "head_out"].groupby("pair")["contribution"].sum()
    assert parts.to_dict() == pytest.approx(found, abs=2e-5)


def test_the_strongest_heads_are_chosen_on_exploratory_items_and_measured_on_the_others(networks, items, selection):
    model = networks[0]
    table = measure_heads(model, word_tokenizer(), items, selection, rule=RULE, settings=SETTINGS)
    assert_described(table, selection.pairs, selection)
    assert set(table["direction"]) == {"noising"} and set(table["network"]) == {"fine-tuned"}
    counts = [count for count in KNOCKED_OUT if count <= LAYERS * HEADS]
    assert table[["group", "sites"]].drop_duplicates().to_numpy().tolist() == [[f"top {n}", n] for n in counts]
    assert len(table) == len(selection.pairs) * len(counts) and len(counts) > 1
    every = {(layer, head): [("head_out", layer, "all", head)] for layer in range(LAYERS) for head in range(HEADS)}

    def lost(pairs, sets) -> pd.DataFrame:
        rows = oracle_sets(model, pairs, sets, direction="noising")
        clean = {pair.pair_id: ends(model, pair)["clean"] for pair in pairs}
        effects = [(r["pair"], r["sites"], clean[r["pair"]] - r["metrics"]["logit_difference"]) for r in rows]
        return pd.DataFrame(effects, columns=["pair", "sites", "effect"])

    explored = select_pairs(model, word_tokenizer(), items, settings=RULE, phase="exploratory").pairs
    assert {pair.pair_id for pair in explored}.isdisjoint(table["pair"])
    order = {}
    for name, pairs in (("explored", explored), ("confirmed", selection.pairs)):
        means = lost(pairs, every).groupby("sites")["effect"].mean()
        order[name] = sorted(every, key=lambda head, means=means: -means[head])
    assert order["explored"][:2] != order["confirmed"][:2]  # so that this test can tell
    for count in counts:
        top = order["explored"][:count]
        own = table[table["sites"] == count].set_index("pair")
        together = lost(selection.pairs, {"top": [every[head][0] for head in top]}).set_index("pair")["effect"]
        alone = lost(selection.pairs, {head: every[head] for head in top}).groupby("pair")["effect"].sum()
        assert own["joint"].to_dict() == pytest.approx(together.to_dict(), abs=5e-5)
        assert own["added"].to_dict() == pytest.approx(alone.to_dict(), abs=5e-5)


def test_nulls_are_other_networks_and_strangers_on_the_same_pairs(nulls, selection):
    assert list(nulls) == ["effects", "sites", "clean"]
    for name, table in nulls.items():
        assert_described(table, asked_in(name, selection), selection)
        networks = {"base", "untrained"} if name == "clean" else {"base", "shuffled donor", "untrained"}
        assert set(table["network"]) == networks
    sites = nulls["sites"]
    untrained = sites[sites["network"] == "untrained"]
    assert sorted(untrained["draw"].unique()) == list(range(SETTINGS.untrained_networks))
    assert sites.loc[sites["network"] != "untrained", "draw"].isna().all()
    assert len(untrained) == SETTINGS.untrained_networks * len(selection.pairs) * len(NAMED)
    assert set(nulls["effects"]["direction"]) == {"denoising"} == set(sites["direction"])


def test_nulls_at_the_claimed_sites_equal_plain_hooks_in_the_tuned_models_unit(nulls, tuned, networks, selection):
    (model, base), pairs, sites = networks, selection.pairs, nulls["sites"]
    unit = tuned["sites"].groupby("pair")["denominator"].first()
    assert sites["denominator"].tolist() == pytest.approx(unit.loc[sites["pair"]].tolist())
    by_network = {name: table for name, table in sites.groupby("network")}
    assert numerators(by_network["base"]) == pytest.approx(at_claimed_sites(base, pairs), abs=5e-5)
    strangers = {pair.pair_id: pair.clean for pair in strangers_of(selection, seed=5)}
    known = [pair for pair in pairs if pair.pair_id in strangers]
    expected = at_claimed_sites(model, known, strangers)
    assert numerators(by_network["shuffled donor"]) == pytest.approx(expected, abs=5e-5)
    assert expected != pytest.approx(at_claimed_sites(model, known), abs=1e-2)
    for draw, table in by_network["untrained"].groupby("draw"):
        twin = untrained_twin(model, seed=int(draw))
        assert numerators(table) == pytest.approx(at_claimed_sites(twin, pairs), abs=5e-5)


def test_effects_of_the_nulls_are_in_their_own_networks_unit(nulls, networks, selection):
    (model, base), pairs, effects = networks, selection.pairs, nulls["effects"]
    assert effects.columns.tolist() == [*EFFECTS, *DESCRIBED]
    per_pair = LAYERS * (3 + 1 + HEADS)
    assert effects.groupby(["network", "pair"]).size().eq(per_pair).all()
    # Of untrained networks one is swept; a shuffled donor has the pairs' own difference, in the tuned model.
    units = {"base": base, "shuffled donor": model, "untrained": untrained_twin(model, seed=0)}
    for name, network in units.items():
        own = effects[effects["network"] == name]
        found = own.groupby("pair")["denominator"].agg(["min", "max"])
        for pair in pairs:
            both = ends(network, pair)
            if pair.pair_id in found.index:
                whole = both["clean"] - both["corrupted"]
                assert found.loc[pair.pair_id].tolist() == pytest.approx([whole, whole], abs=2e-5)


@pytest.fixture(scope="module")
def choosy(networks, items):
    """Of what was asked, only what the model knows enters."""
    found = select_pairs(
        networks[0], word_tokenizer(), items, settings=replace(RULE, minimum_clean_logit_difference=0.0)
    )
    assert 0 < len(found.pairs) < len(found.asked)
    return found


def test_the_clean_run_is_measured_of_all_that_was_asked_in_every_network(choosy, networks):
    found = measure_tuned(networks[0], choosy, settings=SETTINGS, all_metrics=False)
    for name, table in found.items():
        assert_described(table, asked_in(name, choosy), choosy)
    null = measure_nulls(*networks, choosy, settings=SETTINGS, seed=5)
    clean = gathered([found, null])["clean"]
    units = {"fine-tuned": networks[0], "base": networks[1], "untrained": untrained_twin(networks[0], seed=0)}
    assert len(clean) == len(units) * len(choosy.asked)
    for name, network in units.items():
        own = clean[clean["network"] == name].set_index("pair")["numerator"]
        expected = {pair.pair_id: ends(network, pair)["clean"] for pair in choosy.asked}
        assert own.to_dict() == pytest.approx(expected, abs=2e-5)


def test_a_null_that_nothing_can_be_made_for_is_left_out(networks, selection):
    few = replace(selection, pairs=selection.pairs[:1])
    assert strangers_of(few, seed=5) == []
    found = measure_nulls(*networks, few, settings=replace(SETTINGS, untrained_networks=0), seed=5)
    assert {name: set(table["network"]) for name, table in found.items()} == dict.fromkeys(found, {"base"})
    assert "draw" not in found["sites"] and set(found["sites"]["pair"]) == {few.pairs[0].pair_id}


def test_shuffled_effects_have_the_pairs_own_difference_in_the_tuned_model(nulls, networks, selection):
    effects = nulls["effects"].query("network == 'shuffled donor' and component == 'mlp_out' and role != 'all'")
    by_name, strangers = {p.pair_id: p for p in selection.pairs}, strangers_of(selection, seed=5)
    given = {pair.pair_id: record(networks[0], pair.clean) for pair in strangers}
    assert set(effects["pair"]) == set(given) and len(given) > 2
    for row in effects.to_dict("records"):
        pair, whole = by_name[row["pair"]], ends(networks[0], by_name[row["pair"]])
        with torch.no_grad():
            site = ("mlp_out", row["layer"], row["position"], None)
            logits = patched_logits(networks[0], pair.corrupted, given[row["pair"]], [site])
        patched = float(logits[pair.answer[0]] - logits[pair.foil[0]])
        expected = patched - whole["corrupted"], whole["clean"] - whole["corrupted"]
        assert (row["numerator"], row["denominator"]) == pytest.approx(expected, abs=1e-4)


def test_what_a_null_shows_whole_is_what_its_claimed_site_shows(nulls):
    """The first MLP is swept and a claimed site: two ways to the same number."""
    effects, sites = nulls["effects"], nulls["sites"]
    swept = effects[(effects["component"] == "mlp_out") & (effects["layer"] == 0) & (effects["role"] == "all")]
    claimed = sites[(sites["sites"] == FIRST_MLP) & (sites["draw"].isna() | (sites["draw"] == 0))]
    one, other = (t.set_index(["network", "pair"])["numerator"].to_dict() for t in (swept, claimed))
    assert one == pytest.approx(other, abs=5e-5) and len(one) == len(swept) > 12


def test_change_is_measured_between_the_models_by_pair(networks, selection):
    change = measure_change(*networks, selection, settings=SETTINGS)
    assert_described(change, selection.pairs, selection)
    assert change.columns.tolist() == [*EFFECTS, *DESCRIBED]
    assert len(change) == len(selection.pairs) * 4 * LAYERS * 2 and set(change["role"]) == {"all"}
    whole = {
        pair.pair_id: ends(networks[0], pair)["clean"] - ends(networks[1], pair)["clean"] for pair in selection.pairs
    }
    assert change["denominator"].tolist() == pytest.approx([whole[name] for name in change["pair"]], abs=2e-5)


def test_gathered_tables_are_put_end_to_end_by_name():
    one, two = pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [3]})
    found = gathered([{"a": one, "b": two}, {}, {"a": two}])
    assert list(found) == ["a", "b"]
    assert found["a"]["x"].tolist() == [1, 2, 3] and found["a"].index.tolist() == [0, 1, 2]
    assert found["b"]["x"].tolist() == [3]

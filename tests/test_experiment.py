"""The patching experiment: who enters by which rule, effects against plain hooks, and averages made by hand."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_gpt2
from oracle import answer_log_probability, oracle_answers, oracle_runs, oracle_sweep
from words import word_tokenizer

from helpers.answers import ANSWER_LOG_PROBABILITY
from helpers.config import Items, Patching
from helpers.donors import shuffled_donors
from helpers.experiment import (
    EFFECTS,
    ROLE_ORDER,
    ExperimentError,
    by_role,
    clean_differences,
    head_recovery,
    in_units_of,
    measure_effects,
    role_recovery,
    select_pairs,
    shares_known,
    strangers_of,
)
from helpers.metrics import with_effects
from helpers.pairs import ROLES
from helpers.patching import measure_runs, sweep

DIRECTIONS = ("denoising", "noising")
SUBJECTS = ("w11", "w12", "w13", "w14", "w15 w16", "w17 w18", "w21 w22 w23")


def settings(**changes) -> Items:
    values = {"exploratory_share": 0.2, "minimum_clean_logit_difference": 0.0, "wording": 0, "group": "seen"}
    return Items(**(values | {"max_pairs_per_kind": None, "seed": 0} | changes))


def make_items(subjects=(*SUBJECTS, "w19"), *, arms=("real",)) -> pd.DataFrame:
    """Seven confirmatory items of two kinds, the last of a length of its own; one exploratory; three other wordings.

    With other subjects, all of which are confirmatory, items take turns by kind, and in pairs by arm.
    """
    rows = []
    for number, subject in enumerate(subjects):
        kind, arm = ("definitional", "associative")[number % 2], arms[number // 2 % len(arms)]
        row = {"item_id": f"i{number}", "kind": kind, "relation": "r", "arm": arm, "subject": subject}
        row |= {"phase": "exploratory" if subject == "w19" else "confirmatory", "answer": f"w{40 + number}"}
        for wording in ("r-seen-0", "r-seen-10", "r-unseen-0", "r-seen-1"):
            rows.append(row | {"wording_id": wording, "prompt": f"w1 {subject} w2 w3", "subject_start": 3})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2(0, layers=2, width=16, heads=2)


@pytest.fixture(scope="module")
def selection(model):
    return select_pairs(model, word_tokenizer(), make_items(), settings=settings(minimum_clean_logit_difference=None))


@torch.no_grad()
def logit_difference(model, pair) -> float:
    logits = model(torch.tensor([pair.clean])).logits[0, -1]
    return float(logits[pair.answer[0]] - logits[pair.foil[0]])


def test_without_a_rule_every_pair_enters(selection):
    assert [pair.pair_id for pair in selection.pairs] == [f"i{n}/r-seen-0" for n in range(6)]
    assert selection.asked == selection.pairs
    described = selection.described.to_dict("list")
    assert described.pop("donor_id") == [pair.donor_id for pair in selection.pairs]
    assert described == {
        "pair": [f"i{n}/r-seen-0" for n in range(6)],
        "item_id": [f"i{n}" for n in range(6)],
        "kind": ["definitional", "associative"] * 3,
        "relation": ["r"] * 6,
        "arm": ["real"] * 6,
    }
    # The subject of three tokens has no donor; the exploratory item was not asked and is not excluded.
    (row,) = selection.excluded.to_dict("records")
    assert (row["item_id"], row["kind"]) == ("i6", "definitional") and "has 6 tokens" in row["reason"]


def test_the_rule_excludes_what_the_model_does_not_know_and_says_so(model, selection):
    known = {pair.pair_id: logit_difference(model, pair) for pair in selection.pairs}
    assert min(known.values()) < 0 < max(known.values())
    # The threshold is one pair's own value: not above it means that this pair is out as well.
    threshold = sorted(known.values())[3]
    for minimum in (0.0, threshold + 1e-4):
        rule = settings(minimum_clean_logit_difference=minimum)
        found = select_pairs(model, word_tokenizer(), make_items(), settings=rule)
        entered = [name for name, value in known.items() if value > minimum]
        assert [p.pair_id for p in found.pairs] == entered and len(entered) < len(known)
        # Donors are drawn before the rule: what was asked is the same, and all of it is described.
        assert found.asked == selection.pairs and set(found.pairs) < set(found.asked)
        pd.testing.assert_frame_equal(found.described, selection.described)
        reasons = dict(zip(found.excluded["item_id"], found.excluded["reason"], strict=True))
        assert set(reasons) == {f"i{n}" for n in range(7)} - {name.split("/")[0] for name in entered}
        assert "has 6 tokens" in reasons.pop("i6")
        assert set(reasons.values()) == {f"clean logit difference not above {minimum:g}"}


def test_the_order_of_the_items_changes_nothing(model, selection):
    shuffled = make_items().sample(frac=1, random_state=1)
    found = select_pairs(model, word_tokenizer(), shuffled, settings=settings(minimum_clean_logit_difference=None))
    assert found.pairs == selection.pairs
    pd.testing.assert_frame_equal(found.described, selection.described)
    pd.testing.assert_frame_equal(found.excluded, selection.excluded)


def test_phase_and_wording_are_kept_to(model):
    other = settings(minimum_clean_logit_difference=None, group="unseen")
    names = [pair.pair_id for pair in select_pairs(model, word_tokenizer(), make_items(), settings=other).pairs]
    assert names == [f"i{n}/r-unseen-0" for n in range(6)]


MANY = tuple(f"w{21 + n}" for n in range(20))
ARMS = ("real", "made-up")


def select_many(model, *, items=None, **changes):
    items = make_items(MANY, arms=ARMS) if items is None else items
    return select_pairs(model, word_tokenizer(), items, settings=settings(**changes))


def test_donors_are_of_the_items_own_arm(model):
    for seed in range(3):
        found = select_many(model, seed=seed, minimum_clean_logit_difference=None)
        arm = found.described.set_index("item_id")["arm"]
        assert len(found.asked) == len(MANY) == len(arm)
        assert (found.described["donor_id"].map(arm) == found.described["arm"]).all()
    # An item that is alone in its arm has none, however many subjects the other arm has.
    alone = make_items(MANY[:9], arms=ARMS).assign(arm=lambda t: t["item_id"].eq("i3").map({True: "x", False: "real"}))
    found = select_many(model, items=alone, minimum_clean_logit_difference=None)
    assert len(found.pairs) == 8
    (row,) = found.excluded.to_dict("records")
    assert row["item_id"] == "i3" and "there is no other subject" in row["reason"]
    assert "i3" not in set(found.described["donor_id"])


def test_the_most_pairs_of_a_kind_are_drawn_by_a_hash_among_those_that_are_known(model):
    every, capped = select_many(model), select_many(model, max_pairs_per_kind=2)
    group = every.described.set_index("pair")[["item_id", "arm", "kind"]].apply(tuple, axis=1)
    expected, sizes = set(), {}
    for pair in every.pairs:
        sizes.setdefault(group[pair.pair_id][1:], []).append(group[pair.pair_id][0])
    assert len(sizes) == 4 and all(len(names) > 2 for names in sizes.values())
    for names in sizes.values():
        expected |= set(sorted(names, key=lambda name: hashlib.sha256(f"0|{name}".encode()).hexdigest())[:2])
    assert expected != {name for names in sizes.values() for name in names[:2]}  # the first ones: no draw
    item_of = group.map(lambda parts: parts[0])
    assert {item_of[pair.pair_id] for pair in capped.pairs} == expected
    # Pairing comes first: the pairs that stay are the same pairs in the same order, and all were asked.
    assert capped.pairs == [pair for pair in every.pairs if item_of[pair.pair_id] in expected]
    assert capped.asked == every.asked
    pd.testing.assert_frame_equal(capped.described, every.described)
    # Whoever is left out is listed, by the rule that left it out.
    reasons = dict(zip(capped.excluded["item_id"], capped.excluded["reason"], strict=True))
    beyond = {name for name, reason in reasons.items() if reason == "beyond the 2 pairs that are drawn of a kind"}
    unknown = set(every.excluded["item_id"])
    assert beyond == {item_of[pair.pair_id] for pair in every.pairs} - expected and set(reasons) == beyond | unknown
    assert {reasons[name] for name in unknown} == {"clean logit difference not above 0"} and unknown


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_items(model):
    items = make_items(MANY, arms=ARMS)
    rule = {"minimum_clean_logit_difference": None, "max_pairs_per_kind": 2}
    first = select_many(model, items=items, **rule)
    for state in range(3):
        found = select_many(model, items=items.sample(frac=1, random_state=state), **rule)
        assert found.pairs == first.pairs and set(found.excluded["item_id"]) == set(first.excluded["item_id"])
    draws = {tuple(p.pair_id for p in select_many(model, items=items, **rule, seed=seed).pairs) for seed in range(4)}
    assert len(draws) == 4 and {len(names) for names in draws} == {8}


def test_a_cap_that_all_pairs_meet_leaves_none_out(model, selection):
    rule = settings(minimum_clean_logit_difference=None, max_pairs_per_kind=3)
    found = select_pairs(model, word_tokenizer(), make_items(), settings=rule)
    assert found.pairs == selection.pairs and list(found.excluded["item_id"]) == ["i6"]


@pytest.mark.parametrize(
    "changes, phase, words",
    [
        ({"minimum_clean_logit_difference": 1e9}, "confirmatory", "7 confirmatory items .* difference not above 1e.09"),
        ({}, "exploratory", "1 exploratory items .* no other subject"),
        ({"wording": 7}, "confirmatory", "0 confirmatory items .* no item was asked in this wording"),
    ],
)
def test_an_experiment_without_pairs_ends_in_the_commonest_reason(model, changes, phase, words):
    with pytest.raises(ExperimentError, match=words):
        select_pairs(model, word_tokenizer(), make_items(), settings=settings(**changes), phase=phase)


PATCHING = Patching("STR", "logit_difference", ("resid_pre", "mlp_out"), DIRECTIONS, 1, 0, 16)


def lines_by_hooks(oracle, model, pairs, direction) -> dict[tuple, dict]:
    """Of every line that effects hold, what the oracle says."""
    found = {}
    for components, positions in ((PATCHING.components, "each"), (("mlp_out", "head_out"), "all")):
        for row in oracle(model, pairs, components=components, positions=positions, direction=direction):
            found[row["pair"], row["component"], row["layer"], row["position"], row["head"]] = row
    return found


def place(row: dict) -> tuple:
    names = ("pair", "component", "layer", "position", "head")
    return tuple(None if pd.isna(row[name]) else row[name] for name in names)


def test_effects_by_every_metric_equal_plain_hooks(model, selection):
    pairs = selection.pairs[2:4]
    pairs = [pairs[0], replace(pairs[1], answer=(*pairs[1].answer, 8, 9))]
    first = ("logit_difference", "kl_divergence")
    effects = measure_effects(
        model, pairs, settings=PATCHING, directions=DIRECTIONS, metrics=(*first, ANSWER_LOG_PROBABILITY)
    )
    assert effects.columns.tolist() == EFFECTS
    runs = {(row["pair"], row["run"]): row["metrics"] for row in oracle_runs(model, pairs)}
    for pair in pairs:
        for run in ("clean", "corrupted"):
            said = answer_log_probability(model, getattr(pair, run), pair.answer)
            runs[pair.pair_id, run] = runs[pair.pair_id, run] | {ANSWER_LOG_PROBABILITY: said}
    seen = set()
    for direction in DIRECTIONS:
        patched = lines_by_hooks(oracle_sweep, model, pairs, direction)
        answers = lines_by_hooks(oracle_answers, model, pairs, direction)
        for row in effects[effects["direction"] == direction].to_dict("records"):
            key, metric = place(row), row["metric"]
            value = patched[key]["metrics"][metric] if metric in first else answers[key][metric]
            clean, corrupted = (runs[row["pair"], run][metric] for run in ("clean", "corrupted"))
            numerator = value - corrupted if direction == "denoising" else clean - value
            assert (row["numerator"], row["denominator"]) == pytest.approx((numerator, clean - corrupted), abs=1e-4)
            seen.add((direction, metric, key))
        assert len(patched) == len(answers) == len(effects) // 6
    assert len(seen) == len(effects)


def test_the_first_tokens_metric_is_measured_when_no_other_is_asked_for(model, selection):
    pairs, arguments = selection.pairs[:2], {"settings": PATCHING, "directions": ("denoising",)}
    plain = measure_effects(model, pairs, **arguments)
    assert set(plain["metric"]) == {"logit_difference"}
    both = measure_effects(model, pairs, **arguments, metrics=(ANSWER_LOG_PROBABILITY, "logit_difference"))
    own = both[both["metric"] == "logit_difference"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, plain)
    alone = measure_effects(model, pairs, **arguments, metrics=(ANSWER_LOG_PROBABILITY,))
    others = both[both["metric"] == ANSWER_LOG_PROBABILITY].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, others)


def test_directions_are_chosen_and_the_residual_stream_is_never_patched_whole(model, selection):
    effects = measure_effects(model, selection.pairs[:1], settings=PATCHING, directions=("noising",))
    assert set(effects["direction"]) == {"noising"}
    assert set(effects["component"]) == {*PATCHING.components, "head_out"}
    assert set(effects.loc[effects["role"] == "all", "component"]) == {"mlp_out", "head_out"}


def test_clean_differences_are_of_all_that_was_asked(model):
    found = select_many(model)
    assert 0 < len(found.pairs) < len(found.asked)
    table = clean_differences(model, found, row_budget=7)
    assert set(table.columns) == {"pair", "numerator", "denominator"} and set(table["denominator"]) == {1.0}
    expected = {pair.pair_id: logit_difference(model, pair) for pair in found.asked}
    assert table.set_index("pair")["numerator"].to_dict() == pytest.approx(expected, abs=1e-4)
    entered = {pair.pair_id for pair in found.pairs}
    assert entered == set(table.loc[table["numerator"] > 0, "pair"])


def wilson(known: int, items: int, z: float) -> tuple[float, float]:
    """The score interval of a share, as in its textbook form."""
    share, spread = known / items, z**2 / items
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / items + spread / (4 * items))
    return middle - half, middle + half


def test_shares_known_by_hand():
    def of(network, kind, item, *values):
        return [(network, kind, item, value) for value in values]

    rows = [
        *of("fine-tuned", "definitional", "a", 3.0, -1.0),  # known on average over seeds
        *of("fine-tuned", "definitional", "b", -3.0, 1.0),
        *of("fine-tuned", "definitional", "c", 0.0),  # no preference is no knowledge
        *of("fine-tuned", "definitional", "d", 0.01),
        *of("fine-tuned", "associative", "a", 1.0),
        *of("base", "associative", "a", -1.0),
        *of("base", "associative", "b", 1.0),
        *of("base", "associative", "c", 1.0),
    ]
    clean = pd.DataFrame(rows, columns=["network", "kind", "item_id", "numerator"]).sample(frac=1, random_state=0)
    found = shares_known(clean, confidence=0.95).set_index(["network", "kind"])
    z = 1.959963984540054
    for place, (known, items) in {
        ("fine-tuned", "definitional"): (2, 4), ("fine-tuned", "associative"): (1, 1), ("base", "associative"): (2, 3)
    }.items():  # fmt: skip
        row = found.loc[place]
        assert (row["items"], row["share"]) == (items, known / items)
        assert (row["low"], row["high"]) == pytest.approx(wilson(known, items, z))
    assert len(found) == 3
    # By hand: of four items two; z²/4 is 0.96036, half the width is 1.95996 / 1.96036 · √(0.0625 + 0.06002).
    assert found.loc[("fine-tuned", "definitional"), ["low", "high"]].tolist() == pytest.approx(
        [0.15004, 0.84996], abs=1e-5
    )
    narrow = shares_known(clean, confidence=0.5).set_index(["network", "kind"])
    assert (narrow["low"] > found["low"]).all() and (narrow["share"] == found["share"]).all()


def test_strangers_are_those_of_the_pairs_own_arm(model):
    found = select_many(model, minimum_clean_logit_difference=None)
    arm = found.described.set_index("pair")["arm"]
    strangers = strangers_of(found, seed=3)
    assert sorted(pair.pair_id for pair in strangers) == sorted(arm.index)
    assert all(arm[pair.donor_id] == arm[pair.pair_id] for pair in strangers)
    for name in ARMS:
        own = [pair for pair in found.pairs if arm[pair.pair_id] == name]
        assert [pair for pair in strangers if arm[pair.pair_id] == name] == shuffled_donors(own, seed=3)
    mixed = shuffled_donors(found.pairs, seed=3)
    assert any(arm[pair.donor_id] != arm[pair.pair_id] for pair in mixed)  # else this test could not fail


def test_strangers_come_from_pairs_that_enter_and_are_fewer_where_there_is_none(model):
    found = select_many(model, minimum_clean_logit_difference=None)
    made_up = [pair for pair in found.pairs if pair.pair_id.split("/")[0] in ("i2", "i3")]
    real = [pair for pair in found.pairs if pair.pair_id.split("/")[0] in ("i0", "i1", "i4", "i5", "i8")]
    few = replace(found, pairs=[made_up[0], *real])  # one of its arm has no stranger, though many were asked
    strangers = strangers_of(few, seed=0)
    assert made_up[0].pair_id not in {pair.pair_id for pair in strangers} and len(strangers) > 1
    assert {pair.donor_id for pair in strangers} <= {pair.pair_id for pair in real}
    assert strangers_of(replace(found, pairs=made_up[:1]), seed=0) == []


def test_effects_in_units_of_a_reference_have_its_denominators():
    effects = pd.DataFrame({"pair": ["p", "q", "p", "r"], "numerator": [1.0, 2.0, 3.0, 4.0], "denominator": 9.0})
    reference = pd.DataFrame({"pair": ["q", "q", "p", "s"], "numerator": 0.0, "denominator": [4.0, 4.0, 2.0, 1.0]})
    found = in_units_of(effects, reference)
    assert found.to_dict("list") == {
        "pair": ["p", "q", "p"], "numerator": [1.0, 2.0, 3.0], "denominator": [2.0, 4.0, 2.0]
    }  # fmt: skip
    assert set(effects["denominator"]) == {9.0}


@pytest.fixture
def table():
    """Two pairs whose subjects have two and one middle tokens, and one head, at one layer in one direction."""
    rows = [
        ("p", "subject_middle", 1.0, 2.0, "mlp_out", pd.NA),
        ("p", "subject_middle", 3.0, 2.0, "mlp_out", pd.NA),
        ("q", "subject_middle", 6.0, 8.0, "mlp_out", pd.NA),
        ("p", "last", -1.0, 2.0, "mlp_out", pd.NA),
        ("q", "prefix", 4.0, 8.0, "mlp_out", pd.NA),
        ("q", "all", 5.0, 8.0, "mlp_out", pd.NA),
        ("p", "all", 1.0, 2.0, "head_out", 0),
        ("q", "all", 3.0, 8.0, "head_out", 0),
    ]
    columns = ["pair", "role", "numerator", "denominator", "component", "head"]
    return pd.DataFrame(rows, columns=columns).assign(layer=0, direction="denoising", kind="definitional")


def test_positions_of_a_role_are_averaged_within_the_pair_first(table):
    roles = by_role(table)
    found = roles.set_index(["pair", "role"])[["numerator", "denominator"]]
    assert {key: tuple(row) for key, row in zip(found.index, found.to_numpy(), strict=True)} == {
        ("p", "subject_middle"): (2.0, 2.0),
        ("q", "subject_middle"): (6.0, 8.0),
        ("p", "last"): (-1.0, 2.0),
        ("q", "prefix"): (4.0, 8.0),
        ("q", "all"): (5.0, 8.0),
    }
    assert set(roles["component"]) == {"mlp_out"}
    assert list(roles["role"].cat.categories) == list(ROLE_ORDER) == [*ROLES, "all"] and roles["role"].cat.ordered


def test_recovery_is_a_ratio_of_means_over_pairs_in_reading_order(table):
    found = role_recovery(table)
    assert list(found["role"]) == ["prefix", "subject_middle", "last"]
    # (2 + 6) / (2 + 8); over the three rows it would be 10 / 12, and the mean of the pairs' ratios 0.875.
    assert list(found["recovery"]) == pytest.approx([0.5, 0.8, -0.5])
    shuffled = role_recovery(table.sample(frac=1, random_state=2))
    pd.testing.assert_frame_equal(found, shuffled)


def test_heads_are_apart_from_roles(table):
    (row,) = head_recovery(table).to_dict("records")
    assert (row["layer"], row["head"], row["kind"], row["direction"]) == (0, 0, "definitional", "denoising")
    assert math.isclose(row["recovery"], 0.4)


def test_metrics_are_not_averaged_into_one(table):
    both = pd.concat([table.assign(metric="logit_difference"), table.assign(metric="kl_divergence", numerator=0.0)])
    roles = by_role(both).set_index("metric")
    assert len(roles) == 10 and (roles.loc["kl_divergence", "numerator"] == 0).all()
    assert (roles.loc["logit_difference", "numerator"] != 0).all()


def test_networks_and_seeds_are_not_averaged_into_one(table):
    both = pd.concat([table.assign(network="tuned", seed=0), table.assign(network="tuned", seed=1, numerator=0.0)])
    roles = by_role(both)
    assert len(roles) == 10 and (roles[roles["seed"] == 1]["numerator"] == 0).all()
    assert (roles[roles["seed"] == 0]["numerator"] != 0).all()


def test_the_profile_s_window_is_what_is_patched(model, selection):
    pairs, wide = selection.pairs[:1], replace(PATCHING, window=2)
    effects = measure_effects(model, pairs, settings=wide, directions=("denoising",))
    swept = sweep(model, pairs, components=PATCHING.components, window=2)
    expected = with_effects(swept, measure_runs(model, pairs))
    own = effects[effects["role"] != "all"]
    assert own["numerator"].tolist() == pytest.approx(expected["numerator"].tolist(), abs=1e-6)
    single = measure_effects(model, pairs, settings=PATCHING, directions=("denoising",))
    assert not np.allclose(effects["numerator"], single["numerator"])

"""The patching experiment: who enters by which rule, effects against plain hooks, and averages made by hand."""

import math

import pandas as pd
import pytest
import torch
from conftest import tiny_gpt2
from oracle import oracle_sweep
from words import word_tokenizer

from helpers.config import Items, Patching
from helpers.experiment import (
    ROLE_ORDER,
    ExperimentError,
    by_role,
    head_recovery,
    measure_effects,
    role_recovery,
    select_pairs,
)
from helpers.pairs import ROLES
from helpers.values import OtherModel

DIRECTIONS = ("denoising", "noising")
SUBJECTS = ("w11", "w12", "w13", "w14", "w15 w16", "w17 w18", "w21 w22 w23")


def settings(**changes) -> Items:
    values = {"exploratory_share": 0.2, "minimum_clean_logit_difference": 0.0, "wording": 0, "group": "seen"}
    return Items(**(values | {"max_pairs_per_kind": None, "seed": 0} | changes))


def make_items() -> pd.DataFrame:
    """Seven confirmatory items of two kinds, the last of a length of its own; one exploratory; three other wordings."""
    rows = []
    for number, subject in enumerate((*SUBJECTS, "w19")):
        kind = ("definitional", "associative")[number % 2]
        row = {"item_id": f"i{number}", "kind": kind, "relation": "r", "arm": "real", "subject": subject}
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


def logit_difference(model, pair) -> float:
    logits = model(torch.tensor([pair.clean])).logits[0, -1]
    return float(logits[pair.answer[0]] - logits[pair.foil[0]])


def test_without_a_rule_every_pair_enters(selection):
    assert [pair.pair_id for pair in selection.pairs] == [f"i{n}/r-seen-0" for n in range(6)]
    assert selection.described.to_dict("list") == {
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
        assert [p.pair_id for p in found.pairs] == [name for name, value in known.items() if value > minimum]
        assert list(found.described["pair"]) == [p.pair_id for p in found.pairs]
        reasons = dict(zip(found.excluded["item_id"], found.excluded["reason"], strict=True))
        assert set(reasons) == {f"i{n}" for n in range(7)} - set(found.described["item_id"])
        assert "has 6 tokens" in reasons.pop("i6")
        assert set(reasons.values()) == {f"clean logit difference not above {minimum:g}"}
        # Donors are drawn before the rule: the pairs that stay are the same pairs.
        assert set(found.pairs) <= set(selection.pairs)


def test_the_order_of_the_items_changes_nothing(model, selection):
    shuffled = make_items().sample(frac=1, random_state=1)
    found = select_pairs(model, word_tokenizer(), shuffled, settings=settings(minimum_clean_logit_difference=None))
    assert found.pairs == selection.pairs
    pd.testing.assert_frame_equal(found.described, selection.described)
    pd.testing.assert_frame_equal(found.excluded, selection.excluded)


def test_phase_wording_and_the_most_pairs_of_a_kind_are_kept_to(model):
    rule = settings(minimum_clean_logit_difference=None, max_pairs_per_kind=2)
    found = select_pairs(model, word_tokenizer(), make_items(), settings=rule)
    assert list(found.described["item_id"]) == ["i0", "i1", "i2", "i3"] and not len(found.excluded)
    other = settings(minimum_clean_logit_difference=None, group="unseen")
    names = [pair.pair_id for pair in select_pairs(model, word_tokenizer(), make_items(), settings=other).pairs]
    assert names == [f"i{n}/r-unseen-0" for n in range(6)]


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


PATCHING = Patching(("resid_pre", "mlp_out"), DIRECTIONS, 0, 16)


def test_effects_equal_plain_hooks(model, selection):
    pairs = selection.pairs[2:5]
    effects = measure_effects(model, pairs, settings=PATCHING, directions=DIRECTIONS)
    expected = {}
    for direction in DIRECTIONS:
        for components, positions in ((PATCHING.components, "each"), (("mlp_out", "head_out"), "all")):
            rows = oracle_sweep(model, pairs, components=components, positions=positions, direction=direction)
            for row in rows:
                key = (direction, row["pair"], row["component"], row["layer"], row["position"], row["head"])
                expected[key] = row["logits"]
    assert len(effects) == len(expected)
    by_name = {pair.pair_id: pair for pair in pairs}
    for row in effects.to_dict("records"):
        pair = by_name[row["pair"]]

        def difference(logits, pair=pair) -> float:
            return float(logits[pair.answer[0]] - logits[pair.foil[0]])

        place = [None if pd.isna(row[name]) else row[name] for name in ("position", "head")]
        patched = difference(expected[(row["direction"], row["pair"], row["component"], row["layer"], *place)])
        clean, corrupted = (
            difference(model(torch.tensor([run])).logits[0, -1]) for run in (pair.clean, pair.corrupted)
        )
        numerator = patched - corrupted if row["direction"] == "denoising" else clean - patched
        found = [row[name] for name in ("clean", "corrupted", "numerator", "denominator")]
        assert found == pytest.approx([clean, corrupted, numerator, clean - corrupted], abs=1e-4)


def test_directions_are_chosen_and_the_residual_stream_is_never_patched_whole(model, selection):
    effects = measure_effects(model, selection.pairs[:1], settings=PATCHING, directions=("noising",))
    assert set(effects["direction"]) == {"noising"}
    assert set(effects["component"]) == {*PATCHING.components, "head_out"}
    assert set(effects.loc[effects["role"] == "all", "component"]) == {"mlp_out", "head_out"}


def test_patching_a_model_with_itself_has_no_effect_and_with_another_one_has(model, selection):
    arguments = {"settings": PATCHING, "directions": DIRECTIONS}
    pairs = selection.pairs[:2]
    own = measure_effects(model, pairs, value=OtherModel(model), **arguments)
    assert own["numerator"].abs().max() < 1e-4 < own["denominator"].abs().min()
    other_model = OtherModel(tiny_gpt2(1, layers=2, width=16, heads=2))
    other = measure_effects(model, pairs, value=other_model, **arguments)
    assert other["numerator"].abs().max() > 0.1
    # The unit stays that of the model under study.
    assert list(other["denominator"]) == pytest.approx(list(own["denominator"]))


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


def test_networks_and_seeds_are_not_averaged_into_one(table):
    both = pd.concat([table.assign(network="tuned", seed=0), table.assign(network="tuned", seed=1, numerator=0.0)])
    roles = by_role(both)
    assert len(roles) == 10 and (roles[roles["seed"] == 1]["numerator"] == 0).all()
    assert (roles[roles["seed"] == 0]["numerator"] != 0).all()

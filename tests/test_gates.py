"""Hand-made gates: what a sweep measures on them is what was derived on paper, for every way, metric and head."""

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import oracle_runs, oracle_sets

from helpers.architectures import architecture_of
from helpers.gates import BOTH, GATES, SITES, STANDS_IN, WAYS, Gate, exact_values, make_gate
from helpers.gatescores import METRICS, backup, components, gate_scores, negative
from helpers.plans import PatchingError

# Worked out by hand: shares of the logit difference of A, of B, and of both.
BY_HAND = {
    "AND": {
        "denoising": (0, 0, 1),
        "noising": (1, 1, 1),
        "zero": (1, 1, 1),
        "mean": (1 / 2, 1 / 2, 1),
        "resample": (1 / 2, 1 / 2, 3 / 4),
    },
    "OR": {
        "denoising": (1, 1, 1),
        "noising": (0, 0, 1),
        "zero": (1, 1, 1),
        "mean": (0, 0, 0),
        "resample": (0, 0, 1 / 4),
    },
    "BACKUP": {
        "denoising": (1, 0, 1),
        "noising": (0.3, 0, 1),
        "zero": (0.6, 0.7, 2.7),
        "mean": (0.15, -0.175, 0.325),
        "resample": (0.15, -0.175, 0.325),
    },
    "NEGATIVE": {
        "denoising": (2, -1, 1),
        "noising": (2, -1, 1),
        "zero": (4, -2, 2),
        "mean": (1, -1 / 2, 1 / 2),
        "resample": (1, -1 / 2, 1 / 2),
    },
}


@pytest.fixture(scope="module")
def gates() -> dict[str, Gate]:
    return {name: make_gate(name) for name in GATES}


@pytest.fixture(scope="module")
def scores(gates):
    return gate_scores(list(gates.values()))


def share(scores, gate, way, metric="logit_difference"):
    """The measured shares by set of heads."""
    chosen = scores[(scores["gate"] == gate) & (scores["way"] == way) & (scores["metric"] == metric)]
    return chosen.set_index("sites")["share"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GATES)
def test_shares_of_the_logit_difference_are_those_worked_out_by_hand(scores, name, way):
    expected = (*BY_HAND[name][way], 1 if way == "zero" else 0)
    np.testing.assert_allclose(share(scores, name, way)[list(SITES)], expected, rtol=0, atol=1e-5)
    base, drawn = (0, exact_values(name, way)) if way == "denoising" else (1, exact_values(name, way))
    on_paper = [abs(np.mean(drawn[sites]) - base) * np.sign(e or 1) for sites, e in zip(SITES, expected, strict=True)]
    np.testing.assert_allclose(on_paper, expected, rtol=0, atol=1e-12)


def test_every_measured_effect_is_the_exact_one(scores):
    assert len(scores) == len(GATES) * len(WAYS) * len(METRICS) * len(SITES)
    assert not scores.duplicated(["gate", "way", "metric", "sites"]).any()
    np.testing.assert_allclose(scores["effect"], scores["exact"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores["effect"], scores["share"] * (scores["clean"] - scores["corrupted"]), atol=1e-5)


def test_every_metric_of_a_backed_up_head_is_the_hand_computed_one(scores):
    """Noising A of BACKUP leaves g = 0.7: LD = 4 (2 · 0.7 − 1) = 1.6, beside ten other tokens with the logit 0."""

    def log_probabilities(difference):
        total = math.exp(difference / 2) + math.exp(-difference / 2) + 10
        return [x - math.log(total) for x in (difference / 2, -difference / 2, *[0] * 10)]

    clean, patched = log_probabilities(4), log_probabilities(1.6)
    expected = {
        "logit_difference": 4 - 1.6,
        "probability": math.exp(clean[0]) - math.exp(patched[0]),
        "log_probability": clean[0] - patched[0],
        "kl_divergence": -sum(math.exp(c) * (c - p) for c, p in zip(clean, patched, strict=True)),
    }
    chosen = scores[(scores["gate"] == "BACKUP") & (scores["way"] == "noising") & (scores["sites"] == "A")]
    assert chosen.set_index("metric")["effect"].to_dict() == pytest.approx(expected, abs=1e-5)
    runs = chosen.set_index("metric")
    ends = {"probability": (math.exp(clean[0]), math.exp(log_probabilities(-4)[0])), "logit_difference": (4, -4)}
    for metric, both in ends.items():
        assert tuple(runs.loc[metric, ["clean", "corrupted"]]) == pytest.approx(both, abs=1e-9)


@pytest.mark.parametrize("name", GATES)
def test_plain_hooks_find_the_gates_exact_too(gates, name):
    gate = gates[name]
    sets = {
        key: [(site.component, site.layer, site.position, site.head) for site in sites]
        for key, sites in gate.sets.items()
    }
    for direction in ("denoising", "noising"):
        for row in oracle_sets(gate.model, gate.pairs, sets, direction=direction):
            (value,) = exact_values(name, direction)[row["sites"]]
            assert row["metrics"]["logit_difference"] == pytest.approx(4 * (2 * value - 1), abs=1e-5)
    for row in oracle_runs(gate.model, gate.pairs):
        assert row["metrics"]["logit_difference"] == pytest.approx(4 if row["run"] == "clean" else -4, abs=1e-5)


def test_denoising_an_or_is_noising_an_and():
    """De Morgan: the gates are each other's mirror image when on and off change places."""
    for sites in SITES:
        for one, other in (("denoising", "noising"), ("noising", "denoising")):
            assert exact_values("OR", one)[sites] == tuple(1 - v for v in exact_values("AND", other)[sites])


def test_only_and_hides_from_denoising_and_only_or_from_noising(scores):
    assert share(scores, "AND", "denoising")[["A", "B"]].abs().max() < 1e-6 < share(scores, "AND", "noising")["A"]
    assert share(scores, "OR", "noising")[["A", "B"]].abs().max() < 1e-6 < share(scores, "OR", "denoising")["A"]
    found = scores[scores["metric"] == "logit_difference"].set_index(["gate", "way", "sites"])["found"]
    assert not found["AND", "denoising", "A"] and found["AND", "denoising", BOTH] and found["AND", "noising", "B"]
    assert not found["OR", "noising", "A"] and found["OR", "noising", BOTH] and found["OR", "denoising", "B"]


def test_a_backup_hides_what_is_lost_and_itself(scores):
    noising = share(scores, "BACKUP", "noising")
    assert 1 - noising["A"] == pytest.approx(STANDS_IN, abs=1e-6) and abs(noising["B"]) < 1e-6
    assert abs(share(scores, "BACKUP", "denoising")["B"]) < 1e-6
    text = backup(scores)
    assert "destroys 0.30" in text and "0.70 is compensated" in text and "denoising B 0.00" in text


def test_only_zero_ablation_finds_the_head_that_says_nothing(scores):
    idle = scores[scores["sites"] == "idle"]
    assert set(idle.loc[idle["found"], "way"]) == {"zero"} and len(idle[idle["found"]]) == len(GATES) * len(METRICS)
    assert idle.loc[idle["way"] != "zero", "effect"].abs().max() < 1e-6


def test_a_sign_is_reversed_where_a_head_looks_like_its_opposite(scores):
    wrong = scores[scores["reversed"]].groupby(["gate", "sites", "metric"])["way"].agg(set).to_dict()
    ablations = {"mean", "resample"}
    assert wrong == {
        # B speaks in the references where A is lost, so that writing their mean helps.
        ("BACKUP", "B", "logit_difference"): ablations,
        ("BACKUP", "B", "probability"): ablations,
        # A divergence only grows: what raises the answer further is damage too.
        ("NEGATIVE", "B", "kl_divergence"): set(WAYS) - {"denoising"},
    }


def test_the_negative_head_leaves_the_probability_at_its_floor(scores):
    unsure = gate_scores([make_gate("NEGATIVE", confidence=1.0)])
    several = pd.concat([scores[scores["gate"] == "NEGATIVE"], unsure], ignore_index=True)
    denoised = several[(several["sites"] == "B") & (several["way"] == "denoising")]
    probability = denoised[denoised["metric"] == "probability"].set_index("confidence")
    for confidence, row in probability.iterrows():
        total = math.exp(confidence / 2) + math.exp(-confidence / 2) + 10
        assert row["corrupted"] == pytest.approx(math.exp(-confidence / 2) / total, rel=1e-9)
        assert -row["corrupted"] < row["effect"] < 0
    assert probability["found"].to_dict() == {1.0: True, 4.0: False}
    assert probability.loc[4.0, "effect"] == pytest.approx(-probability.loc[4.0, "corrupted"], rel=0.01)
    difference = denoised[denoised["metric"] == "logit_difference"]
    np.testing.assert_allclose(difference["share"], -1, atol=1e-6)
    text = " ".join(negative(several).split())
    assert "the effect is -0.034 (floor -0.049, found), -0.0077 (floor -0.0077, not found)." in text
    assert "logit difference in 2 of 2 (shares -1.00)" in text


def test_the_sentence_names_the_ways_that_find_all(scores):
    text = " ".join(components(scores).split())
    assert text.startswith("All 320 measured effects are the exact ones")
    assert "of AND by noising, zero, mean and resample; of OR by denoising and zero; of BACKUP by zero, mean" in text
    assert "By probability, the same, but of NEGATIVE by noising, zero, mean and resample." in text
    assert "says nothing, is found by zero." in text and "every head of every gate: no way." in text
    one = scores[(scores["gate"] == "OR") & (scores["way"] == "denoising")]
    alone = " ".join(components(one).split())
    assert "By logit difference, both heads are found of OR by every way. By probability, the same. " in alone
    assert "is found by no way. Heads taken for their opposite: none, in any way." in alone
    assert "of every gate: denoising by logit difference, denoising by probability" in alone


def test_a_broken_gate_is_seen_and_said(gates):
    model = copy.deepcopy(gates["BACKUP"].model)
    model.transformer.h[0].mlp.c_fc.weight.zero_()  # the backup no longer hears that A is lost
    broken = gate_scores([replace(gates["BACKUP"], model=model)], threshold=0.5)
    noising = broken[(broken["way"] == "noising") & (broken["metric"] == "logit_difference")].set_index("sites")
    np.testing.assert_allclose(noising.loc[["A", "B", BOTH], "share"], [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(noising.loc[["A", "B", BOTH], "exact"], [0.3 * 8, 0, 8], atol=1e-9)
    mean = broken[(broken["way"] == "mean") & (broken["sites"] == "A")].set_index("metric")
    assert mean["found"]["probability"] and not mean["found"]["log_probability"]  # shares of 0.82 and 0.41
    text = components(broken)
    assert "measured effects differ from the exact ones" in text and not text.startswith("All")


def test_a_gate_is_a_gpt2_whose_references_show_every_combination_and_no_pairs_own_prompt(gates):
    before = torch.random.get_rng_state()
    for name, gate in gates.items():
        assert architecture_of(make_gate(name).model).model_type == "gpt2"
        own = {prompt for pair in gate.pairs for prompt in (pair.clean, pair.corrupted)}
        assert len(own) == 2 * len(gate.pairs) == 6 and not own & set(gate.references)
        assert {(prompt[1], prompt[3]) for prompt in gate.references} == {(a, b) for a in (8, 9) for b in (10, 11)}
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("confidence", [0.1, 8.0])
@pytest.mark.parametrize("name", GATES)
def test_a_gates_truth_table(name, confidence):
    """Every combination of features, also those that no pair has, gives the logit difference of its value."""
    gate = make_gate(name, confidence=confidence)
    for prompt in gate.references:
        a, b = prompt[1] - 8, prompt[3] - 10
        value = {"AND": a & b, "OR": a | b, "BACKUP": a or 0.7 * b, "NEGATIVE": 2 * a - b}[name]
        logits = gate.model(torch.tensor([prompt])).logits[0, -1]
        assert float(logits[0] - logits[1]) == pytest.approx(confidence * (2 * value - 1), abs=1e-5)
        assert not logits[2:].any()


@pytest.mark.parametrize("name, confidence", [("XOR", 4.0), ("AND", 0.0), ("AND", math.nan)])
def test_a_gate_that_cannot_be_wired_is_refused(name, confidence):
    with pytest.raises(PatchingError, match="AND, OR, BACKUP, NEGATIVE with a confidence above 0"):
        make_gate(name, confidence=confidence)

"""Claims: verdicts at the edges of the rule, who gets none at all, and the table that a reader sees."""

import math

import pandas as pd
import pytest
import torch
from conftest import VOCABULARY, tiny_gpt2
from words import word_tokenizer

from helpers.claims import (
    CLAIMS,
    COLUMNS,
    CONTROL,
    FIRST_ATTENTION,
    FIRST_MLP,
    LAST_ATTENTION,
    LAST_BLOCK,
    Estimate,
    Region,
    claimed_sites,
    claims_table,
    no_verdict,
    scope_of,
    verdict,
)
from helpers.clap import gathered, measure_nulls, measure_tuned
from helpers.config import Items, Model, Patching
from helpers.experiment import select_pairs, shares_known
from helpers.models import untrained_twin
from helpers.plans import Site
from helpers.quantities import corrected_estimates

NULL = (-0.25, 0.4)
ITEMS = Items(0.2, 0.0, wording=2, group="unseen", max_pairs_per_kind=None, seed=0)


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
    ],
)
def test_a_verdict_at_the_edges_of_the_rule(interval, null, region, expected):
    assert verdict(Estimate(sum(interval) / 2, *interval, *null), Region(*region)) == expected


@pytest.mark.parametrize(
    "interval, control, expected",
    [
        ((-9.0, 0.236), CONTROL, "supported"),
        ((-0.1, 0.1), CONTROL + 1, "supported"),
        ((-0.1, 0.1), CONTROL - 1e-4, "undecided"),  # nothing recovers anything: that a site does not says nothing
        ((-0.1, 0.1), math.nan, "undecided"),
        ((-0.1, 0.3), CONTROL, "undecided"),
        ((0.3, 0.4), 0.0, "refuted"),  # which needs no control
    ],
)
def test_that_something_is_small_needs_a_site_that_is_not_and_no_null(interval, control, expected):
    for null in ((), NULL, (-9.0, 9.0)):
        ends = dict(zip(("null_low", "null_high"), null, strict=False))
        assert verdict(Estimate(0.0, *interval, **ends, control=control), Region(high=0.236)) == expected


def test_a_control_is_asked_of_claims_of_smallness_alone():
    for control in (0.0, math.nan, 1.0):
        assert verdict(Estimate(0.55, 0.5, 0.6, *NULL, control=control), Region(0.46, 0.66)) == "supported"


def test_what_is_not_defined_is_undecided_wherever_it_lies():
    for value, defined in ((0.5, False), (math.nan, True)):
        for region in (Region(0.4, 0.6), Region(0.9, 1.0), Region(high=1.0)):
            assert verdict(Estimate(value, 0.45, 0.55, defined=defined, control=1.0), region) == "undecided"


def test_estimates_in_words():
    assert str(Estimate(0.5, 0.25, -0.125, 0.0, 0.5)) == "0.50 [0.25, -0.12]"
    assert str(Estimate(0.5, 0.25, 0.75, defined=False)) == "undefined"
    assert Estimate(0.5, 0.25, 0.75, -0.25, 0.5).null == "-0.25 to 0.50" and Estimate(0.5, 0.25, 0.75).null == "–"


def test_claimed_sites_are_the_first_block_and_the_last():
    assert claimed_sites(4) == {
        FIRST_MLP: [Site("mlp_out", 0, "all")],
        FIRST_ATTENTION: [Site("attn_out", 0, "all")],
        LAST_ATTENTION: [Site("attn_out", 3, "all")],
        LAST_BLOCK: [Site("attn_out", 3, "all"), Site("mlp_out", 3, "all")],
    }


def model_of(name: str, *, revision: str | None = None, plumbing: bool = False) -> Model:
    return Model(name, revision, random_layers=2, random_width=32, random_heads=2, plumbing=plumbing)


@pytest.mark.parametrize(
    "model, weights",
    [
        (model_of("random", plumbing=True), "random weights (GPT-2 itself: not tested)"),
        (model_of("embedded"), "the embedded model, fine-tuned (GPT-2 itself: not tested)"),
        (model_of("a/hub-name", revision="0123456789" * 4), "a/hub-name at 0123456, fine-tuned"),
        (model_of("/a/folder"), "/a/folder, fine-tuned"),
    ],
)
def test_a_scope_names_the_network_and_its_weights(model, weights):
    network = tiny_gpt2(0, layers=2, width=8, heads=2)
    assert scope_of(model, network) == f"gpt2 of 2 blocks × 8, {weights}"


def shares(*lows: float, network: str = "fine-tuned") -> pd.DataFrame:
    return pd.DataFrame({"network": network, "kind": ["definitional", "associative"][: len(lows)], "low": lows})


def test_who_gets_no_verdict():
    trained = model_of("embedded")
    assert no_verdict(trained, shares(0.51, 0.9)) == ""
    assert no_verdict(trained, shares(0.9, 0.5)) == "undecided" == no_verdict(trained, shares(0.49, 0.9))
    # Networks that should guess may.
    both = pd.concat([shares(0.7, 0.7), shares(0.1, 0.1, network="base")])
    assert no_verdict(trained, both) == ""
    for known in (shares(0.9, 0.9), shares(0.1, 0.1)):
        assert no_verdict(model_of("random", plumbing=True), known) == "not tested"


MEASURED = [name for name, claim in CLAIMS.items() if claim.region]
REAL = {name: Estimate(0.5, 0.5, 0.5, -0.45, 0.45, control=0.25) for name in MEASURED}
REAL |= {"layers_add": Estimate(1.0, 0.95, 1.05), "last_attention": Estimate(0.1, 0.0, 0.2, control=0.75)}
MADE_UP = {"first_mlp": Estimate(-1.5, -1.5, -1.5)}


def table_of(*, instead: str = "", real=REAL, made_up=MADE_UP) -> dict[str, dict]:
    """Rows of the table by claim."""
    published = {"first_mlp": "0.12; untrained 0.00 to 0.30", "final_output": "1.00"}
    table = claims_table(real, made_up, published, seeds={"first_mlp": "0.40 to 0.60"}, instead=instead)
    assert table.columns.tolist() == COLUMNS
    assert table["claim"].tolist() == [claim.sentence for claim in CLAIMS.values()]
    return dict(zip(CLAIMS, table.to_dict("records"), strict=True))


def test_the_table_of_claims():
    rows = table_of()
    assert rows["first_mlp"] == {
        "claim": CLAIMS["first_mlp"].sentence, "published": "56 %",
        "published protocol here": "0.12; untrained 0.00 to 0.30", "measured at": "MLP output of block 0",
        "corrected protocol here": "0.50 [0.50, 0.50]", "seeds": "0.40 to 0.60", "null": "-0.45 to 0.45",
        "made-up arm": "-1.50 [-1.50, -1.50]", "verdict": "undecided",
    }  # fmt: skip
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert {name: verdicts[name] for name in MEASURED} == {
        name: verdict(REAL[name], CLAIMS[name].region) for name in MEASURED
    }
    assert verdicts["last_block"] == "refuted" and verdicts["layers_add"] == "supported"
    assert verdicts["last_attention"] == "supported" and verdicts["first_attention"] == "refuted"
    others = {row["made-up arm"] for name, row in rows.items() if name != "first_mlp"}
    assert others == {"–"} == {row["seeds"] for name, row in rows.items() if name != "first_mlp"}


def test_what_cannot_be_measured_says_why_whatever_the_model():
    for instead in ("", "undecided", "not tested"):
        rows = table_of(instead=instead)
        assert rows["final_output"]["verdict"] == "by construction" and rows["editing"]["verdict"] == "not tested"
        for name in ("final_output", "editing"):
            empty = ("corrected protocol here", "seeds", "null", "made-up arm")
            assert {rows[name][column] for column in empty} == {"–"}
        assert rows["final_output"]["published protocol here"] == "1.00"
    assert {name for name, claim in CLAIMS.items() if claim.region is None} == {"final_output", "editing"}
    # The row that is by construction stands beside the one that could have come out otherwise.
    assert rows["final_output"]["claim"] == rows["last_block"]["claim"]


@pytest.mark.parametrize("instead", ["undecided", "not tested"])
def test_without_a_verdict_the_numbers_stand_all_the_same(instead):
    rows = table_of(instead=instead, made_up={})
    assert {rows[name]["verdict"] for name in MEASURED} == {instead}
    assert rows["first_mlp"]["corrected protocol here"] == "0.50 [0.50, 0.50]"
    assert {row["made-up arm"] for row in rows.values()} == {"–"}


def test_an_arm_that_was_not_run_is_a_dash_and_no_verdict():
    rows = table_of(real={})
    assert {row["corrected protocol here"] for row in rows.values()} == {"–"}
    assert rows["final_output"]["verdict"] == "by construction"
    assert {row["verdict"] for name, row in rows.items() if name != "final_output"} == {"not tested"}


def guessed_items(count: int) -> pd.DataFrame:
    """Questions whose answers have nothing to do with their subjects."""
    first = VOCABULARY - 3
    rows = []
    for number in range(count):
        kind, relation = (("definitional", "r"), ("associative", "s"))[number % 2]
        subject = f"w{3 + number % first} w{3 + (number**2 + number // first) % first}"
        row = {"item_id": f"i{number}", "kind": kind, "relation": relation, "arm": "real", "phase": "confirmatory"}
        row |= {"wording_id": f"{relation}-unseen-2", "prompt": f"w1 {subject}", "subject": subject, "subject_start": 3}
        rows.append(row | {"answer": f"w{3 + (7 * number + 5) % first}"})
    return pd.DataFrame(rows)


def untrained(seed: int):
    """A network without training whose last MLP is so loud that nearly all passes through it."""
    model = untrained_twin(tiny_gpt2(0, layers=2, width=16, heads=2), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in (model.transformer.h[-1].mlp.c_fc, model.transformer.h[-1].mlp.c_proj):
        torch.nn.init.normal_(module.weight, std=1.5, generator=generator)
    return model


def test_an_untrained_model_taken_for_the_fine_tuned_one_supports_nothing():
    """Half of all pairs pass the rule by luck and recover tidily: only the question whether it knows tells."""
    model, settings = (
        untrained(1),
        Patching("STR", "logit_difference", ("mlp_out",), ("denoising",), 1, untrained_networks=2, row_budget=4096),
    )
    selection = select_pairs(model, word_tokenizer(), guessed_items(120), settings=ITEMS)
    parts = [measure_tuned(model, selection, settings=settings, all_metrics=False)]
    parts.append(measure_nulls(model, untrained(2), selection, settings=settings, seed=0))
    measured = {name: table.assign(seed=0) for name, table in gathered(parts).items()}
    statistics = {"resamples": 100, "confidence": 0.95, "seed": 0}
    estimates = corrected_estimates(measured, arm="real", statistics=statistics)
    unasked = {name: row["verdict"] for name, row in table_of(real=estimates).items()}
    assert "supported" in unasked.values()  # else this test could not fail
    instead = no_verdict(model_of("embedded"), shares_known(measured["clean"], confidence=0.95))
    verdicts = {name: row["verdict"] for name, row in table_of(real=estimates, instead=instead).items()}
    assert {verdicts[name] for name in MEASURED} == {"undecided"} and "supported" not in verdicts.values()

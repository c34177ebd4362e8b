"""What patching a place recovers, destroys, or carries between two models: against plain hooks, one patch each."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from oracle import oracle_runs, oracle_sweep
from tiny import LAYERS, random_pair, shared_model

from helpers.crossmodel import cross_model_effects
from helpers.methods import COMPONENTS, PER_PAIR, MethodError
from helpers.noise import GaussianNoise
from helpers.plans import PatchingError
from helpers.recoveries import carried, having, overwritten, recoveries, stream_gains
from helpers.values import OtherModel

# Lengths and roles differ; the third pair's subject ends its prompt, so that it has no last subject token.
PAIRS = [
    random_pair("b", 5, seed=1, subject=(1, 2)),
    random_pair("a", 4, seed=2),
    random_pair("end", 3, seed=3, subject=(2,)),
]


def ends(model, metric, noise=None):
    rows = oracle_runs(model, PAIRS, noise=noise)
    return {(row["pair"], row["run"]): row["metrics"][metric] for row in rows}


def moved(row, ends, direction, metric="logit_difference"):
    """Numerator and denominator from their definitions."""
    clean, corrupted = ends[row["pair"], "clean"], ends[row["pair"], "corrupted"]
    patched = row["metrics"][metric]
    return (patched - corrupted if direction == "denoising" else clean - patched), clean - corrupted


def by_place(found):
    return {
        (row.pair, row.component, row.layer): pytest.approx((row.numerator, row.denominator), abs=5e-5)
        for row in found.itertuples()
    }


@pytest.mark.parametrize(
    "direction, position, metric, window",
    [
        ("denoising", "all", "logit_difference", 1),
        ("noising", "subject_last", "kl_divergence", 1),
        ("denoising", "last", "probability", 3),
    ],
)
def test_recoveries_equal_plain_hooks(direction, position, metric, window):
    model = shared_model("gpt2", 0)
    options = {"direction": direction, "window": window}
    found = recoveries(model, PAIRS, position=position, metric=metric, **options)
    positions = "all" if position == "all" else "roles"
    rows = oracle_sweep(model, PAIRS, components=COMPONENTS, positions=positions, **options)
    known, sign = ends(model, metric), -1 if metric == "kl_divergence" else 1  # of which the clean run has least
    expected = {
        (row["pair"], row["component"], row["layer"]): tuple(sign * x for x in moved(row, known, direction, metric))
        for row in rows
        if row["role"] == position
    }
    assert list(found) == PER_PAIR and len(found) == len(expected)
    assert by_place(found) == expected
    assert set(found["pair"]) == ({"b", "a"} if position == "subject_last" else {"b", "a", "end"})


def test_a_noised_run_is_the_corrupted_one():
    model, noise = shared_model("gpt2", 0), GaussianNoise(0.5, seed=4, roles=("subject_last", "last"))
    drawn = {pair.pair_id: noise.draw([pair], width=model.config.hidden_size)[0] for pair in PAIRS}
    found = recoveries(model, PAIRS, direction="denoising", corruption=noise)
    rows = oracle_sweep(model, PAIRS, components=COMPONENTS, positions="all", direction="denoising", noise=drawn)
    known = ends(model, "logit_difference", noise=drawn)
    assert by_place(found) == {(r["pair"], r["component"], r["layer"]): moved(r, known, "denoising") for r in rows}


@pytest.mark.parametrize("direction, position", [("denoising", "subject_last"), ("noising", "last")])
def test_a_block_gains_what_its_stream_has_more_than_the_one_before(direction, position):
    model = shared_model("gpt2", 0)
    found = stream_gains(model, PAIRS, direction=direction, position=position)
    streams = ("resid_pre", "resid_post")
    rows = oracle_sweep(model, PAIRS, components=streams, positions="roles", direction=direction)
    known = ends(model, "logit_difference")
    at = {
        (row["pair"], row["component"], row["layer"]): moved(row, known, direction)
        for row in rows
        if row["role"] == position
    }
    expected = {
        (pair, component, layer): (at[pair, "resid_post", layer][0] - at[pair, "resid_pre", layer][0], apart)
        for (pair, name, layer), (_, apart) in at.items()
        for component in COMPONENTS
        if name == "resid_pre"
    }
    assert list(found) == PER_PAIR and by_place(found) == expected and len(found) == len(expected)


def test_gains_at_the_last_token_sum_to_all_there_is():
    # Its own token is the same in both prompts, and its last residual is all that is read.
    found = stream_gains(shared_model("gpt2", 0), PAIRS[:2], direction="denoising", position="last")
    sums = (
        found[found["component"] == "mlp_out"]
        .groupby("pair")[["numerator", "denominator"]]
        .agg({"numerator": "sum", "denominator": "first"})
    )
    assert sums["numerator"].tolist() == pytest.approx(sums["denominator"].tolist(), abs=1e-4)


@pytest.mark.parametrize("positions, roles", [("all", ["all"]), ("roles", ["subject_last", "last"])])
def test_what_is_carried_between_models_is_what_cross_model_patching_says(positions, roles):
    taught, base, pairs = shared_model("gpt2", 0), shared_model("gpt2", 1), PAIRS[1:]
    effects = cross_model_effects(taught, base, pairs, positions=positions)
    effects = effects[effects["component"].isin(COMPONENTS)]
    for direction, position in product(("denoising", "noising"), roles):
        found = carried(taught, base, pairs, direction=direction, position=position)
        known = effects[(effects["direction"] == direction) & (effects["role"] == position)]
        expected = {
            (row.pair, row.component, row.layer): (row.numerator, row.denominator) for row in known.itertuples()
        }
        assert by_place(found) == expected and list(found) == PER_PAIR


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("component, changed", [("mlp_out", 1), ("attn_out", 1)])
def test_one_changed_place_carries_all_and_what_lies_below_it_nothing(direction, component, changed):
    base = shared_model("gpt2", 0)
    taught = copy.deepcopy(base)
    block = taught.transformer.h[changed]
    with torch.no_grad():
        for parameter in (block.mlp if component == "mlp_out" else block.attn).parameters():
            parameter.mul_(-1.5)
    found = carried(taught, base, PAIRS, direction=direction)
    order = found["layer"] * 2 + (found["component"] == "mlp_out")
    own = changed * 2 + (component == "mlp_out")
    assert found["denominator"].abs().min() > 0.01
    assert (found.loc[order < own, "numerator"] == 0).all(), "to the bit"
    at = found[order == own]
    assert at["numerator"].to_numpy() == pytest.approx(at["denominator"].to_numpy(), rel=1e-3, abs=1e-4)
    # Below is given at every position, but not what the place itself carries at one of them.
    for position in ("subject_last", "last"):
        found = carried(taught, base, PAIRS, direction=direction, position=position)
        order = found["layer"] * 2 + (found["component"] == "mlp_out")
        assert (found.loc[order < own, "numerator"] == 0).all()
        at = found[order == own]
        assert ((at["numerator"] / at["denominator"] - 1).abs() > 0.05).any()


def test_of_the_last_block_the_last_token_alone_is_read():
    base = shared_model("gpt2", 0)
    taught = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in taught.transformer.h[LAYERS - 1].mlp.parameters():
            parameter.mul_(-1.5)
    at_last = carried(taught, base, PAIRS, direction="denoising", position="last")
    own = (at_last["layer"] == LAYERS - 1) & (at_last["component"] == "mlp_out")
    found, whole = at_last.loc[own, "numerator"].to_numpy(), at_last.loc[own, "denominator"].to_numpy()
    assert found == pytest.approx(whole, abs=1e-4) and (at_last.loc[~own, "numerator"] == 0).all()
    assert (carried(taught, base, PAIRS, direction="denoising", position="subject_last")["numerator"] == 0).all()


def test_two_changed_places_leave_the_answer_open():
    # Below the lower one nothing differs, but no place has to carry all: it can be missed, so it is not given.
    base = shared_model("gpt2", 0)
    taught = copy.deepcopy(base)
    with torch.no_grad():
        for layer in (0, 2):
            for parameter in taught.transformer.h[layer].mlp.parameters():
                parameter.mul_(-1.5)
    found = carried(taught, base, PAIRS, direction="denoising").groupby(["component", "layer"])
    score = found["numerator"].sum() / found["denominator"].sum()
    assert score["attn_out", 0] == 0
    assert abs(score["mlp_out", 0] - 1) > 0.05 and abs(score["mlp_out", 2] - 1) > 0.05
    assert (score[[("attn_out", 1), ("mlp_out", 1), ("attn_out", 2)]].abs() > 0.01).all()


def test_what_is_overwritten_by_itself_stays_as_it_was():
    model = shared_model("gpt2", 0)
    same = overwritten(model, PAIRS, position="all", value=OtherModel(copy.deepcopy(model)))
    assert (same["logit_difference"] == same["clean"]).all() and len(same) == len(PAIRS) * LAYERS * 2


def test_what_cannot_be_asked_is_refused():
    model = shared_model("gpt2", 0)
    with pytest.raises(MethodError, match="recovers 1 by construction"):
        stream_gains(model, PAIRS, direction="denoising", position="all")
    with pytest.raises(MethodError, match="None of the 1 pairs has a token with the role subject_last"):
        recoveries(model, PAIRS[2:], direction="denoising", position="subject_last")
    with pytest.raises(PatchingError, match="window is a number"):
        recoveries(model, PAIRS, direction="denoising", window=0)


def test_pairs_are_chosen_by_role():
    only = replace(PAIRS[1], pair_id="only", roles=("subject_last", "relation", "relation", "last"))
    names = [pair.pair_id for pair in having([*PAIRS, only], "prefix")]
    assert names == ["b", "a", "end"]
    assert having([*PAIRS, only], "all") == [*PAIRS, only]
    assert [pair.pair_id for pair in having([*PAIRS, only], "subject_first", "subject_last")] == ["b", "a", "only"]

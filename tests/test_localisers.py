"""The table of methods: what each may look at, what changes nothing, and single scores against plain computations."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from oracle import oracle_runs, record
from tiny import LAYERS, random_pair, shared_model

from helpers.attribution import attribute
from helpers.localisers import METHODS, attribution, difference, direct_contributions, patching, random_draws
from helpers.methods import COMPONENTS, LAST_BLOCK, PLACE, QUESTIONS, Models, apply, place_scores
from helpers.noise import GaussianNoise
from helpers.recoveries import recoveries

KEY = ["pair", *PLACE]
PAIRS = [replace(random_pair(name, 5, seed=seed, subject=(1, 2)), foil=(50, 3)) for name, seed in (("b", 1), ("a", 2))]
BY_NAME = {method.name: method for method in METHODS}
MODELS = {"taught": shared_model("gpt2", 0), "base": shared_model("gpt2", 1)}
# Of every way to make a score, one: for these the order of the pairs is turned.
ONE_OF_EACH = {
    "CLAP as published",
    "denoising MLP and attention, all positions",
    "denoising MLP and attention, Gaussian noise, logit difference",
    "noising residual stream, last subject token",
    "attribution patching, dropout correction",
    "integrated gradients",
    "resample ablation",
    "optimal ablation",
    "direct logit attribution",
    "cross-model noising, all positions",
    "difference of models, zero ablation",
    "random",
}


class Untouchable:
    """A model that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"a blind method looked at {name!r} of the base model")


def located(method, pairs=PAIRS):
    base = MODELS["base"] if method.informed else Untouchable()
    return method.locate(Models(MODELS["taught"], base), pairs)


def test_the_table_tells_its_methods_apart():
    assert len(BY_NAME) == len(METHODS) == 48 and ONE_OF_EACH <= set(BY_NAME)
    assert {method.question for method in METHODS} == set(QUESTIONS)
    assert sum(method.informed for method in METHODS) == 12
    given = {method.name: set(method.given) for method in METHODS if method.given}
    assert given == {
        "cross-model denoising, all positions": {"single"},
        "cross-model noising, all positions": {"single"},
        "cross-model denoising, last token": {LAST_BLOCK},
        "cross-model noising, last token": {LAST_BLOCK},
        "weight change": {"single", "two"},
        "weight change, relative to the norm before": {"single", "two"},
    }


@pytest.mark.parametrize("name", BY_NAME)
def test_a_method_scores_every_place_and_blind_ones_do_not_look(name):
    method = BY_NAME[name]
    found = located(method)
    answer = apply(replace(method, locate=lambda models, pairs: found), Models(**MODELS), PAIRS)
    assert place_scores(answer)["score"].notna().all()
    assert found.filter(["numerator", "score"]).abs().to_numpy().max() > 1e-4, "something was found"
    if name in ONE_OF_EACH:
        turned = located(method, PAIRS[::-1])
        one, other = (table.set_index(KEY).sort_index() for table in (found, turned))
        pd.testing.assert_frame_equal(one, other[one.columns], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, method in BY_NAME.items() if method.informed])
def test_a_model_that_was_not_changed_has_nothing_written(name):
    model = MODELS["taught"]
    found = BY_NAME[name].locate(Models(model, copy.deepcopy(model)), PAIRS)
    assert (found["numerator" if "pair" in found else "score"].abs() < 1e-5).all()


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_differences_are_the_taught_models_scores_less_the_base_models(direction):
    taught, base = (recoveries(model, PAIRS, direction=direction).set_index(KEY) for model in MODELS.values())
    found = located(BY_NAME[f"difference of models, {direction}"]).set_index(KEY)
    for line in (("b", "attn_out", 1), ("a", "mlp_out", 2)):
        expected = (taught["numerator"][line] - base["numerator"][line], taught["denominator"][line])
        assert tuple(found.loc[line]) == pytest.approx(expected, abs=1e-5)


def test_a_difference_does_not_depend_on_the_order_of_a_scores_lines():
    def score(model, pairs):
        lines = pd.DataFrame({"pair": ["p", "p"], "component": ["attn_out", "mlp_out"], "layer": [0, 0]})
        return lines.assign(numerator=[5.0, 7.0], denominator=[2.0, 2.0]) if model == "taught" else (
            lines.assign(numerator=[1.0, 4.0], denominator=[9.0, 9.0])[::-1]
        )  # fmt: skip

    found = difference("d", score).locate(Models("taught", "base"), []).set_index("component")
    assert found["numerator"].to_dict() == {"attn_out": 4.0, "mlp_out": 3.0}
    assert found["denominator"].to_dict() == {"attn_out": 2.0, "mlp_out": 2.0}


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_attribution_multiplies_the_change_by_the_slope_at_the_base_run(direction):
    model = copy.deepcopy(MODELS["taught"])
    found = attribution(direction)(model, PAIRS).set_index(KEY)
    for pair in PAIRS:
        runs = {row["run"]: row["metrics"]["logit_difference"] for row in oracle_runs(model, [pair])}
        base, other = (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
        with torch.no_grad():
            written = record(model, other)["mlp_out", 1]
        seen = []

        def keep(module, inputs, output, seen=seen):
            output.retain_grad()
            seen.append(output)

        hook = model.transformer.h[1].mlp.register_forward_hook(keep)
        logits = model(torch.tensor([base])).logits[0, -1]
        hook.remove()
        (logits[pair.answer[0]] - logits[pair.foil[0]]).backward()
        gained = ((written - seen[0].detach()) * seen[0].grad).sum().item()
        numerator = gained if direction == "denoising" else -gained
        expected = (numerator, runs["clean"] - runs["corrupted"])
        assert tuple(found.loc[(pair.pair_id, "mlp_out", 1)]) == pytest.approx(expected, abs=1e-4)


def test_corrections_are_those_of_attribution():
    model, options = MODELS["taught"], {"components": COMPONENTS, "positions": "all"}
    for correction, column in (("softmax", "effect"), ("dropout", "rank_score")):
        known = attribute(model, PAIRS, corrections=(correction,), **options).set_index(KEY)[column]
        found = located(BY_NAME[f"attribution patching, {correction} correction"]).set_index(KEY)["numerator"]
        pd.testing.assert_series_equal(found, known, check_names=False, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_direct_contributions_are_read_through_the_frozen_final_norm():
    model = MODELS["taught"]
    norm, unembedding = model.transformer.ln_f, model.lm_head.weight
    found = direct_contributions(model, PAIRS).set_index(KEY)
    for pair in PAIRS:
        held = record(model, pair.clean)
        final = held["resid_post", LAYERS - 1][0, -1]
        deviation = (final.var(correction=0) + norm.eps).sqrt()
        towards = unembedding[pair.answer[0]] - unembedding[pair.foil[0]]
        whole = (norm(final) * towards).sum().item()
        for component, layer in (("attn_out", 0), ("mlp_out", 2)):
            part = held[component, layer][0, -1]
            said = ((part - part.mean()) / deviation * norm.weight * towards).sum().item()
            assert tuple(found.loc[(pair.pair_id, component, layer)]) == pytest.approx((said, whole), abs=1e-4)


@torch.no_grad()
def test_the_lens_reads_a_stream_as_if_the_model_ended_there():
    model = MODELS["taught"]
    found = located(BY_NAME["logit lens"]).set_index(KEY)
    for pair in PAIRS:
        held = record(model, pair.clean)
        towards = model.lm_head.weight[pair.answer[0]] - model.lm_head.weight[pair.foil[0]]

        def read(stream, towards=towards):
            return (model.transformer.ln_f(stream[0, -1]) * towards).sum().item()

        whole = read(held["resid_post", LAYERS - 1])
        for layer in (0, 2):
            middle = read(held["resid_pre", layer] + held["attn_out", layer])
            ends = read(held["resid_pre", layer]), read(held["resid_post", layer])
            said = {"attn_out": middle - ends[0], "mlp_out": ends[1] - middle}
            for component, gain in said.items():
                assert tuple(found.loc[(pair.pair_id, component, layer)]) == pytest.approx((gain, whole), abs=1e-4)
        own = found.loc[pair.pair_id]["numerator"].sum()
        assert own == pytest.approx(whole - read(held["resid_pre", 0]), abs=1e-4)


def test_the_noise_has_three_standard_deviations_of_the_embeddings():
    model = MODELS["taught"]
    noise = GaussianNoise(3 * model.transformer.wte.weight.detach().std().item(), seed=0)
    expected = recoveries(model, PAIRS, direction="denoising", corruption=noise)
    found = patching(direction="denoising", noised=True)(model, PAIRS)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
    ending = random_pair("ending", 4, seed=7, subject=(3,))  # no token of a subject: nothing to put noise on
    assert "ending" not in set(patching(direction="denoising", noised=True)(model, [*PAIRS, ending])["pair"])


def test_random_scores_are_spread_evenly_and_of_each_model_pair_and_place_alone():
    pairs = [random_pair(f"p{number}", 4, seed=number) for number in range(60)]
    found = random_draws(MODELS["taught"], pairs)
    assert found["numerator"].between(0, 1).all() and (found["denominator"] == 1).all()
    assert found["numerator"].nunique() == len(found) == 60 * 2 * LAYERS
    assert found["numerator"].mean() == pytest.approx(0.5, abs=0.05)
    assert found["numerator"].var() == pytest.approx(1 / 12, rel=0.15)
    alone = random_draws(MODELS["taught"], pairs[5:6])
    pd.testing.assert_frame_equal(alone, found[found["pair"] == "p5"].reset_index(drop=True))
    other = random_draws(MODELS["base"], pairs)
    assert abs(other["numerator"].corr(found["numerator"])) < 0.15
